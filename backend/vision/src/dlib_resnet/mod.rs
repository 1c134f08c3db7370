//! dlib's face recognition network (King, "High Quality Face Recognition with Deep Metric Learning", 2017): a ResNet of 29
//! convolutions, 128-dimensional face embeddings. Layers and names as in the `FaceRecognitionNet` of the npm package
//! `@vladmandic/face-api`.

mod mean_descriptor;

use std::path::Path;

use candle_core::Result;
use candle_nn::{BatchNorm, VarBuilder, linear_no_bias};
use image::RgbImage;

use crate::{
    Backend, Embedder, Face, ModelError, VisionError, align,
    embedder::{EmbedderKind, EmbeddingNetwork, normalised},
    native::Workspaces,
    network::Network,
    nn::{Activation, Conv, Dense, Layer, MaxPool, Residual, Sequential, Window, conv2d},
    weights::Weights,
};
use mean_descriptor::HALF_MEAN_DESCRIPTOR;

/// Mean of red, green and blue (0 to 255), subtracted before the division by 255.
const MEAN: [f32; 3] = [122.782, 117.001, 104.298];
const NORMALISE: [(f32, f32); 3] =
    [(1.0 / 255.0, -MEAN[0] / 255.0), (1.0 / 255.0, -MEAN[1] / 255.0), (1.0 / 255.0, -MEAN[2] / 255.0)];

/// Where the landmarks of [`Face`] lie in the crop, `[x, y]` in pixels: the middles of the eyes, the tip of the nose and the
/// corners of the mouth of the mean face by which dlib cuts faces out (`get_face_chip_details` of
/// `dlib/image_transforms/interpolation.h`), with the margin of a quarter around it with which the network was trained.
pub const TEMPLATE: [[f64; 2]; 5] =
    [[47.55, 46.6], [100.47, 46.6], [74.01, 76.56], [50.41, 103.02], [97.61, 103.02]];

/// Faces per batch in the later layers, whose weights take longer to read than their maps.
const BATCH: usize = 16;

/// Logged when a server starts.
const REMARK: &str = "dlib-resnet is the fallback for where only package registries can be reached: its verification accuracy is \
                      99.3 % on ten people of Labeled Faces in the Wild, that of mobilefacenet 99.96 % (`facepipe models fetch \
                      mobilefacenet` installs it)";

/// The network. Takes faces turned upright in 150x150 pixels, RGB, as [`Embedder::crop`] makes them. Embeddings are its
/// descriptors minus half of their mean, L2-normalised: nearly as accurate as the descriptors, and separable by a linear SVM.
#[derive(Debug)]
pub struct DlibResnet(EmbeddingNetwork);

/// Returns the network's layers, `[N, 3, 150, 150]` to `[N, 128]`.
pub(crate) fn definition(vb: &VarBuilder<'_>) -> Result<Sequential> {
    let mut network = Sequential::new()
        .add("conv32_down", scaled_conv(3, 32, Window::valid(7, 2), Activation::Relu, &vb.pp("conv32_down"))?)
        .add("pool", MaxPool { side: 3, stride: 2, ceil_mode: false });
    // Channels of input and output of the blocks; from one stage to the next, rows and columns are halved.
    for (name, c_in, c_out) in [
        ("conv32_1", 32, 32),
        ("conv32_2", 32, 32),
        ("conv32_3", 32, 32),
        ("conv64_down", 32, 64),
        ("conv64_1", 64, 64),
        ("conv64_2", 64, 64),
        ("conv64_3", 64, 64),
    ] {
        network = network.add(name, block(c_in, c_out, &vb.pp(name))?);
    }
    // Up to here maps are large and weights are few.
    let mut network = network.per_image();
    for (name, c_in, c_out) in [
        ("conv128_down", 64, 128),
        ("conv128_1", 128, 128),
        ("conv128_2", 128, 128),
        ("conv256_down", 128, 256),
        ("conv256_1", 256, 256),
        ("conv256_2", 256, 256),
    ] {
        network = network.add(name, block(c_in, c_out, &vb.pp(name))?);
    }
    Ok(network
        .add("conv256_down_out", block_down(256, 256, &vb.pp("conv256_down_out"))?)
        .add("avg", Layer::GlobalAvgPool)
        .add("fc", Dense::new(linear_no_bias(256, DlibResnet::DIMENSIONS, vb.pp("fc"))?)))
}

/// Returns a convolution with bias, then dlib's affine layer (what is left of a batch norm after training) and an
/// activation.
fn scaled_conv(
    c_in: usize,
    c_out: usize,
    window: Window,
    activation: Activation,
    vb: &VarBuilder<'_>,
) -> Result<Conv> {
    let affine = vb.pp("scale");
    let (weight, bias) = (affine.get(c_out, "weight")?, affine.get(c_out, "bias")?);
    let affine = BatchNorm::new(c_out, bias.zeros_like()?, bias.ones_like()?, weight, bias, 0.0)?;
    Ok(conv2d(c_in, c_out, window, &vb.pp("conv"))?.with_norm(affine).with_activation(activation))
}

/// Returns two 3x3 convolutions, added to the input; a downsampling block where the number of channels grows.
fn block(c_in: usize, c_out: usize, vb: &VarBuilder<'_>) -> Result<Layer> {
    if c_in != c_out {
        return block_down(c_in, c_out, vb);
    }
    let inner = two_convs(c_in, c_out, Window::same((3, 3), 1), vb)?;
    Ok(Residual { inner, scale: 1.0, activation: Activation::Relu }.into())
}

/// Returns two 3x3 convolutions, the first of stride 2, added to the halved input.
fn block_down(c_in: usize, c_out: usize, vb: &VarBuilder<'_>) -> Result<Layer> {
    Ok(Layer::ResidualDown(two_convs(c_in, c_out, Window::valid(3, 2), vb)?))
}

fn two_convs(c_in: usize, c_out: usize, first: Window, vb: &VarBuilder<'_>) -> Result<Sequential> {
    let second = Window::same((3, 3), 1);
    Ok(Sequential::new()
        .add("conv1", scaled_conv(c_in, c_out, first, Activation::Relu, &vb.pp("conv1"))?)
        .add("conv2", scaled_conv(c_out, c_out, second, Activation::None, &vb.pp("conv2"))?))
}

impl DlibResnet {
    /// 0.8, which 1.4 in a thousand of the 124,750 pairs of 500 people of Labeled Faces in the Wild reach, and 95 % of the pairs
    /// of one person of 75 others.
    pub const VERIFICATION_THRESHOLD: f32 = 0.8;

    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 128;
    /// Side of the faces that it takes, pixels.
    pub const SIDE: u32 = 150;

    /// Reads the safetensors that `face_recognition_model.bin` of `@vladmandic/face-api` 1.7.15 was converted to, to run by the
    /// native kernels.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> std::result::Result<Self, ModelError> {
        Self::new(&Weights::read(file)?, &Backend::Cpu)
    }

    /// Builds it from the tensors of that file.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen tensor.
    pub fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        Ok(Self(EmbeddingNetwork {
            kind: EmbedderKind::DlibResnet,
            network: Network::new(definition, weights, backend)?,
            side: Self::SIDE,
            normalise: NORMALISE,
            batch: BATCH,
            workspaces: Workspaces::default(),
        }))
    }

    /// Returns the descriptors of faces as [`Embedder::crop`] makes them, not normalised: dlib compares these by their Euclidean
    /// distance, and accepts two as the same person below 0.6.
    ///
    /// # Errors
    ///
    /// As [`Embedder::embed`].
    pub fn descriptors(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        self.0.outputs(crops)
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

    /// Returns 0.82, at which 6 to 11 % of 500 strangers of Labeled Faces in the Wild are taken for one of 75 people, and of
    /// their probes 9 % are missed of who has one photograph, 1 % of who has two, none of who has five.
    fn default_threshold(&self) -> f32 {
        0.82
    }

    fn verification_threshold(&self) -> f32 {
        Self::VERIFICATION_THRESHOLD
    }

    /// Returns 0.973, which 2 of 1,323 pairs of files of one person reach, of Labeled Faces in the Wild, and none of 478,387
    /// pairs of two people, whose greatest cosine is 0.903.
    fn same_picture_threshold(&self) -> f32 {
        0.973
    }

    /// Returns 0.11: a cosine of 0.89, between the 0.903 that is the greatest of 478,387 pairs of two people of Labeled Faces in
    /// the Wild and the 0.8 that 1.4 in a thousand of such pairs reach. The clusters themselves were not measured.
    fn cluster_distance(&self) -> f32 {
        0.11
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
