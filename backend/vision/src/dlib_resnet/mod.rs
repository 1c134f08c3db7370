//! dlib's face recognition network (King, "High Quality Face Recognition with Deep Metric Learning", 2017): a ResNet of 29
//! convolutions, 128-dimensional face embeddings, as the npm package `@vladmandic/face-api` carries it. Layers and names as
//! in that package's `FaceRecognitionNet`.

mod layout;
mod mean_descriptor;

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use facepipe_shared::hex;
use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::{
    Embedder, Face, ModelError, VisionError, align,
    embedder::{EmbedderKind, normalised, outputs},
    layers::{Activation, Conv2d, FeatureMap, MaxPool, Window, Workspace, Workspaces, mean, shortcut},
    weights::{self, Weights},
};
use layout::{CONVOLUTIONS, FC_STORAGE};
use mean_descriptor::HALF_MEAN_DESCRIPTOR;

/// SHA-256 of the only file that [`layout`] describes.
const SHA256: &str = "b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589";

/// Mean of red, green and blue (0 to 255), subtracted before the division by 255.
const MEAN: [f32; 3] = [122.782, 117.001, 104.298];
const NORMALISE: [(f32, f32); 3] =
    [(1.0 / 255.0, -MEAN[0] / 255.0), (1.0 / 255.0, -MEAN[1] / 255.0), (1.0 / 255.0, -MEAN[2] / 255.0)];

/// Where the landmarks of [`Face`] lie in the crop, `[x, y]` in pixels: the middles of the eyes, the tip of the nose and the
/// corners of the mouth of the mean face by which dlib cuts faces out (`get_face_chip_details` of
/// `dlib/image_transforms/interpolation.h`), with the margin of a quarter around it with which the network was trained.
pub const TEMPLATE: [[f64; 2]; 5] =
    [[47.55, 46.6], [100.47, 46.6], [74.01, 76.56], [50.41, 103.02], [97.61, 103.02]];

/// Faces that go through the later layers at once, where weights take longer to read than maps.
const AT_ONCE: usize = 16;

/// The residual blocks whose maps are large and whose weights are few, and that have an image at a time to themselves.
const EARLY: usize = 7;

/// Logged when a server starts.
const REMARK: &str = "dlib-resnet is the fallback for where only package registries can be reached: its verification accuracy is \
                      99.3 % on ten people of Labeled Faces in the Wild, that of mobilefacenet 99.96 % (`facepipe models fetch \
                      mobilefacenet` installs it)";

const POOL: MaxPool = MaxPool { side: 3, stride: 2, partial: false };

type Loaded<T> = std::result::Result<T, ModelError>;

/// The encoding of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Storage {
    /// One byte per value: `min + scale * byte`.
    Quantized { scale: f64, min: f64 },
    /// Little-endian 32-bit floats.
    Float,
}

impl Storage {
    const fn bytes(self) -> usize {
        match self {
            Self::Quantized { .. } => 1,
            Self::Float => 4,
        }
    }

    fn tensor(self, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "single precision is what the networks compute in"
        )]
        let values: Vec<f32> = match self {
            Self::Quantized { scale, min } => {
                bytes.iter().map(|&byte| (min + scale * f64::from(byte)) as f32).collect()
            }
            Self::Float => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// Name, shape and storage of each tensor, as they follow each other in the file.
fn tensors() -> impl Iterator<Item = (String, Vec<usize>, Storage)> {
    let parts = ["conv/filters", "conv/bias", "scale/weights", "scale/biases"];
    let convolutions = CONVOLUTIONS.into_iter().flat_map(move |stored| {
        parts.into_iter().zip(stored.storage).enumerate().map(move |(part, (name, storage))| {
            let filters = vec![stored.side, stored.side, stored.c_in, stored.c_out];
            let shape = if part == 0 { filters } else { vec![stored.c_out] };
            (format!("{}/{name}", stored.name), shape, storage)
        })
    });
    convolutions.chain([("fc".to_owned(), vec![256, DlibResnet::DIMENSIONS], FC_STORAGE)])
}

/// Two convolutions of 3x3, added to the input, or to a shortcut of half its size.
#[derive(Debug)]
struct Residual {
    first: Conv2d,
    second: Conv2d,
    halves: bool,
}

impl Residual {
    fn forward(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let inner = self.first.forward(workspace, x.all_channels())?;
        let out = if self.halves {
            let added = self.second.replace(workspace, inner)?;
            let out = shortcut(workspace, &x, &added)?;
            workspace.recycle(added);
            out
        } else {
            let out = self.second.forward_add(workspace, &[inner.all_channels()], &x)?;
            workspace.recycle(inner);
            out
        };
        workspace.recycle(x);
        Ok(out)
    }
}

/// The network. Takes faces turned upright in 150x150 pixels, RGB, as [`Embedder::crop`] makes them. Embeddings are its
/// descriptors minus half of their mean, L2-normalised: nearly as accurate as the descriptors, and separable by a linear SVM.
#[derive(Debug)]
pub struct DlibResnet {
    stem: Conv2d,
    blocks: Vec<Residual>,
    linear: Conv2d,
    workspaces: Workspaces,
}

impl DlibResnet {
    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 128;
    /// Side of the faces that it takes, pixels.
    pub const SIDE: u32 = 150;

    /// Reads `face_recognition_model.bin` of `@vladmandic/face-api` 1.7.15.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> Loaded<Self> {
        Self::new(&Self::read(file)?)
    }

    /// The tensors of that file, by the names and in the shapes of its package: filters as `[rows, columns, in, out]`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Unreadable`]; [`ModelError::Malformed`] of any other file: its values mean
    /// nothing without the scales that belong to it.
    pub fn read(file: &Path) -> Loaded<Weights> {
        let origin = file.display().to_string();
        let bytes = weights::read_file(file)?;
        let malformed = |reason| ModelError::Malformed { origin: origin.clone(), reason };
        let size: usize =
            tensors().map(|(_, shape, storage)| shape.iter().product::<usize>() * storage.bytes()).sum();
        let package = "face_recognition_model.bin of the npm package @vladmandic/face-api 1.7.15";
        if bytes.len() != size {
            let cut = if bytes.len() < size { "; it was cut off, or is another" } else { "" };
            return Err(malformed(format!("it has {} bytes, {package} has {size}{cut}", bytes.len())));
        }
        let found = hex(&Sha256::digest(&bytes));
        if found != SHA256 {
            return Err(malformed(format!(
                "it is damaged or another: its SHA-256 is {found}, that of {package} is {SHA256}"
            )));
        }
        let mut rest = bytes.as_slice();
        let mut read = Vec::new();
        for (name, shape, storage) in tensors() {
            let bytes = shape.iter().product::<usize>() * storage.bytes();
            let Some((values, after)) = rest.split_at_checked(bytes) else {
                return Err(malformed(format!("it ends in tensor `{name}`")));
            };
            read.push((name, storage.tensor(values, &shape)?));
            rest = after;
        }
        Weights::from_tensors(read, &origin)
    }

    /// From the tensors of that file.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen tensor.
    pub fn new(weights: &Weights) -> Loaded<Self> {
        let convolutions = CONVOLUTIONS.iter().enumerate().map(|(index, stored)| {
            // The first convolution of a block that halves has a stride of 2, without padding, as the stem has.
            let halves = index == 0 || stored.name.contains("_down") && stored.name.ends_with("/conv1");
            let window = if halves { Window::valid(stored.side, 2) } else { Window::same((3, 3), 1) };
            // What the last of a block that halves is added to has another size, so that the shortcut does both.
            let summed = stored.name.contains("_down") && stored.name.ends_with("/conv2");
            let activation = if summed { Activation::None } else { Activation::Relu };
            let shape = [stored.side, stored.side, stored.c_in, stored.c_out];
            let get = |part: &str, shape: &[usize]| weights.get(&format!("{}/{part}", stored.name), shape);
            let channels = [stored.c_out];
            let scale = get("scale/weights", &channels)?;
            let filters = get("conv/filters", &shape)?.broadcast_mul(&scale)?.permute((3, 2, 0, 1))?;
            let shift = ((get("conv/bias", &channels)? * scale)? + get("scale/biases", &channels)?)?;
            let conv = Conv2d::new(weights.backend(), &filters.contiguous()?, &shift, window, activation)?;
            Ok::<_, ModelError>((conv, halves))
        });
        let mut convolutions = convolutions.collect::<Loaded<Vec<_>>>()?.into_iter();
        let missing = || candle_core::Error::Msg("there are no convolutions".to_owned());
        let (stem, _) = convolutions.next().ok_or_else(missing)?;
        let mut blocks = Vec::new();
        while let (Some((first, halves)), Some((second, _))) = (convolutions.next(), convolutions.next()) {
            blocks.push(Residual { first, second, halves });
        }
        let linear = weights.get("fc", &[256, Self::DIMENSIONS])?.t()?.contiguous()?;
        let no_bias = Tensor::zeros(Self::DIMENSIONS, linear.dtype(), linear.device())?;
        let linear = linear.reshape((Self::DIMENSIONS, 256, 1, 1))?;
        Ok(Self {
            stem,
            blocks,
            linear: Conv2d::new(weights.backend(), &linear, &no_bias, Window::POINT, Activation::None)?,
            workspaces: Workspaces::new(weights.backend()),
        })
    }

    /// Returns the descriptors of faces as [`Embedder::crop`] makes them, not normalised: dlib compares these by their Euclidean
    /// distance, and accepts two as the same person below 0.6.
    ///
    /// # Errors
    ///
    /// As [`Embedder::embed`].
    pub fn descriptors(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        outputs(self, &self.workspaces, Self::SIDE, NORMALISE, crops, AT_ONCE, |workspace, x| {
            self.run(workspace, x)
        })
    }

    /// `[N, 150, 150, 3]` to `[N, 1, 1, 128]`.
    fn run(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let x = workspace.to_device(x)?;
        let (early, late) = self.blocks.split_at_checked(EARLY).unwrap_or((&self.blocks, &[]));
        let x = workspace.per_image(x, |workspace, x| {
            let x = self.stem.replace(workspace, x)?;
            let pooled = POOL.forward(workspace, &x)?;
            workspace.recycle(x);
            early.iter().try_fold(pooled, |x, block| block.forward(workspace, x))
        })?;
        let x = late.iter().try_fold(x, |x, block| block.forward(workspace, x))?;
        let pooled = mean(workspace, &x)?;
        workspace.recycle(x);
        let x = self.linear.replace(workspace, pooled)?;
        workspace.to_host(x)
    }
}

impl Embedder for DlibResnet {
    fn name(&self) -> &'static str {
        EmbedderKind::DlibResnet.name()
    }

    fn dimensions(&self) -> usize {
        Self::DIMENSIONS
    }

    fn remark(&self) -> Option<&'static str> {
        Some(REMARK)
    }

    /// 0.82, at which 6 to 11 % of 500 strangers of Labeled Faces in the Wild are taken for one of 75 people, and of their
    /// probes 9 % are missed of who has one photograph, 1 % of who has two, none of who has five.
    fn default_threshold(&self) -> f32 {
        0.82
    }

    /// 0.8, which 1.4 in a thousand of the 124,750 pairs of 500 people of Labeled Faces in the Wild reach, and 95 % of the pairs
    /// of one person of 75 others.
    fn verification_threshold(&self) -> f32 {
        0.8
    }

    /// 0.973, which 2 of 1,323 pairs of files of one person reach, of Labeled Faces in the Wild, and none of 478,387 pairs of two
    /// people, whose greatest cosine is 0.903.
    fn same_picture_threshold(&self) -> f32 {
        0.973
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        align::align_to(image, face, &TEMPLATE, Self::SIDE)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        let descriptors = self.descriptors(crops)?;
        let own = |descriptor: &Vec<f32>| -> Vec<f32> {
            descriptor.iter().zip(&HALF_MEAN_DESCRIPTOR).map(|(value, common)| value - common).collect()
        };
        Ok(descriptors.iter().map(|descriptor| normalised(&own(descriptor))).collect())
    }
}
