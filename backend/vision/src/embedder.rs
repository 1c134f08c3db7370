//! The trait that all face embedding networks implement; choosing and loading one of them.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use candle_core::Tensor;
use image::RgbImage;

use crate::{
    Backend, DlibResnet, Face, InceptionResnetV1, MobileFaceNet, ModelError, VisionError,
    native::{FeatureMap, Size, Workspace, Workspaces},
    network::{Network, Observer},
    weights::{self, Weights},
};

/// A network that maps a face to a vector, such that vectors of one person lie close together.
///
/// Embeddings of different embedders must never be compared.
pub trait Embedder: Send + Sync {
    /// Returns the name that stored embeddings carry, for example `mobilefacenet`.
    fn name(&self) -> &'static str;

    /// Returns the number of elements of an embedding.
    fn dimensions(&self) -> usize;

    /// Returns a note for operators of a server that uses this embedder: that it is a fallback, say.
    fn remark(&self) -> Option<&'static str> {
        None
    }

    /// Returns the lowest cosine to a person's mean embedding at which a face is identified as that person.
    fn default_threshold(&self) -> f32;

    /// Returns the lowest cosine between the embeddings of two faces at which they are accepted as the same person. Lower
    /// than [`Self::default_threshold`]: a mean of several embeddings is nearer to each of them than they are to each
    /// other.
    fn verification_threshold(&self) -> f32;

    /// Returns the lowest cosine between the embeddings of two pictures at which they are copies of one picture, perhaps in
    /// another size or quality; higher than two separate pictures of one person reach.
    fn same_picture_threshold(&self) -> f32;

    /// Returns the largest distance, one minus the mean cosine between their faces, at which two groups of unknown faces are one
    /// person's. Less than that of two faces, since every further face is another chance of a mistake.
    fn cluster_distance(&self) -> f32;

    /// Cuts the face out as the square that the network takes; black beyond the edges of the image.
    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage;

    /// Returns one embedding per crop, L2-normalised, in the order of the crops.
    ///
    /// # Errors
    ///
    /// [`VisionError::CropSize`] for a crop that [`Self::crop`] did not make, [`VisionError::NotFinite`] with damaged
    /// weights, [`VisionError::Compute`].
    fn embed(&self, crops: &[RgbImage]) -> Result<Vec<Vec<f32>>, VisionError>;
}

/// The implemented embedders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmbedderKind {
    /// 512 dimensions; [`InceptionResnetV1`].
    InceptionResnetV1,
    /// 128 dimensions, a thirteenth of the arithmetic; [`MobileFaceNet`].
    MobileFaceNet,
    /// 128 dimensions, less accurate than both; the fallback where only package registries can be reached; [`DlibResnet`].
    DlibResnet,
}

impl EmbedderKind {
    /// All embedders, in order of preference.
    pub const ALL: [Self; 3] = [Self::InceptionResnetV1, Self::MobileFaceNet, Self::DlibResnet];

    /// Returns the name that configuration and stored embeddings use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InceptionResnetV1 => "inception-resnet-v1",
            Self::MobileFaceNet => "mobilefacenet",
            Self::DlibResnet => "dlib-resnet",
        }
    }

    /// Returns the lowest cosine between the embeddings of two faces at which they are accepted as the same person.
    pub const fn verification_threshold(self) -> f32 {
        match self {
            Self::InceptionResnetV1 => InceptionResnetV1::VERIFICATION_THRESHOLD,
            Self::MobileFaceNet => MobileFaceNet::VERIFICATION_THRESHOLD,
            Self::DlibResnet => DlibResnet::VERIFICATION_THRESHOLD,
        }
    }

    /// Returns the name of the published file of its weights.
    pub const fn published_file(self) -> &'static str {
        match self {
            Self::InceptionResnetV1 => "20180402-114759-vggface2.pt",
            Self::MobileFaceNet => "mobilefacenet.onnx",
            Self::DlibResnet => "face_recognition_model.bin",
        }
    }

    /// Returns the path of its weights in `models_dir`, safetensors, whether the file exists or not.
    pub fn weights_file(self, models_dir: &Path) -> PathBuf {
        weights::safetensors_path(models_dir, self.published_file())
    }
}

impl fmt::Display for EmbedderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No embedder has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no embedder `{0}`, only inception-resnet-v1, mobilefacenet and dlib-resnet")]
pub struct UnknownEmbedder(pub String);

impl FromStr for EmbedderKind {
    type Err = UnknownEmbedder;

    fn from_str(name: &str) -> Result<Self, UnknownEmbedder> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownEmbedder(name.to_owned()))
    }
}

/// Loads an embedder from the weights in `models_dir`, to run by the native kernels.
///
/// # Errors
///
/// [`ModelError::Missing`] where its weights do not exist, [`ModelError::Unconverted`] where only the published file does, or
/// another [`ModelError`] of the file.
pub fn load_embedder(kind: EmbedderKind, models_dir: &Path) -> Result<Box<dyn Embedder>, ModelError> {
    load_embedder_on(kind, models_dir, &Backend::Cpu)
}

/// Loads as [`load_embedder`] does, for a backend.
///
/// # Errors
///
/// As [`load_embedder`]; [`ModelError::Layout`] where the weights cannot be moved to the device.
pub fn load_embedder_on(
    kind: EmbedderKind,
    models_dir: &Path,
    backend: &Backend,
) -> Result<Box<dyn Embedder>, ModelError> {
    let weights = Weights::installed(models_dir, kind.published_file())?;
    Ok(match kind {
        EmbedderKind::InceptionResnetV1 => Box::new(InceptionResnetV1::new(&weights, backend)?),
        EmbedderKind::MobileFaceNet => Box::new(MobileFaceNet::new(&weights, backend)?),
        EmbedderKind::DlibResnet => Box::new(DlibResnet::new(&weights, backend)?),
    })
}

/// Returns the most preferred embedder whose weights are in `models_dir`, converted or as published: unconverted weights are an
/// error when they are loaded, and never a reason to take another embedder, whose embeddings differ.
pub fn installed_embedder(models_dir: &Path) -> Option<EmbedderKind> {
    EmbedderKind::ALL.into_iter().find(|kind| {
        kind.weights_file(models_dir).is_file() || models_dir.join(kind.published_file()).is_file()
    })
}

/// An embedding network and the input that it takes.
#[derive(Debug)]
pub(crate) struct EmbeddingNetwork {
    pub kind: EmbedderKind,
    pub network: Network,
    /// Side of the crops, pixels.
    pub side: u32,
    /// For each channel, the factor of a value (0 to 255) and the summand after it.
    pub normalise: [(f32, f32); 3],
    /// Crops per batch at most, on the processor.
    pub batch: usize,
    pub workspaces: Workspaces,
}

impl EmbeddingNetwork {
    /// Returns the L2-normalised outputs for crops.
    pub(crate) fn embed(&self, crops: &[RgbImage]) -> Result<Vec<Vec<f32>>, VisionError> {
        Ok(self.outputs(crops)?.iter().map(|row| normalised(row)).collect())
    }

    /// Checks the crops and returns the network's output for each.
    pub(crate) fn outputs(&self, crops: &[RgbImage]) -> Result<Vec<Vec<f32>>, VisionError> {
        let (expected, embedder) = (self.side, self.kind.name());
        for (index, crop) in crops.iter().enumerate() {
            let (width, height) = crop.dimensions();
            if (width, height) != (expected, expected) {
                return Err(VisionError::CropSize { index, width, height, embedder, expected });
            }
        }
        let side = self.side as usize;
        let outputs =
            self.network.in_batches(&self.workspaces, crops.len(), self.batch, |workspace, range| {
                let batch = crops.get(range).unwrap_or_default();
                let mut input = workspace.map(Size { n: batch.len(), h: side, w: side }, 3);
                for (values, crop) in input.values_mut().chunks_exact_mut(side * side * 3).zip(batch) {
                    for (values, pixel) in
                        values.as_chunks_mut::<3>().0.iter_mut().zip(crop.as_raw().as_chunks::<3>().0)
                    {
                        for ((value, &level), (scale, add)) in
                            values.iter_mut().zip(pixel).zip(self.normalise)
                        {
                            *value = f32::from(level) * scale + add;
                        }
                    }
                }
                let output = self.network.run(workspace, input)?;
                Ok::<_, VisionError>(rows(workspace, output))
            })?;
        match outputs.iter().position(|e| !e.iter().all(|v| v.is_finite())) {
            Some(index) => Err(VisionError::NotFinite { index, embedder }),
            None => Ok(outputs),
        }
    }

    /// Returns the L2-normalised outputs for normalised faces `[N, 3, side, side]`.
    pub(crate) fn forward(&self, faces: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
        self.network.in_batches(&self.workspaces, faces.dim(0)?, self.batch, |workspace, range| {
            let faces = workspace.map_from_tensor(&faces.narrow(0, range.start, range.len())?)?;
            let output = self.network.run(workspace, faces)?;
            Ok(rows(workspace, output).iter().map(|row| normalised(row)).collect())
        })
    }

    /// Runs as [`Self::forward`] does; shows the output of each layer to `observe`, as [`Network::run_observed`] does.
    pub(crate) fn forward_observed(
        &self,
        faces: &Tensor,
        observe: &mut Observer<'_>,
    ) -> candle_core::Result<Vec<Vec<f32>>> {
        self.workspaces.with(|workspace| {
            let faces = workspace.map_from_tensor(faces)?;
            let output = self.network.run_observed(workspace, faces, observe)?;
            Ok(rows(workspace, output).iter().map(|row| normalised(row)).collect())
        })
    }
}

/// Returns the values of each image of a map, which is recycled.
fn rows(workspace: &mut Workspace, map: FeatureMap) -> Vec<Vec<f32>> {
    let size = map.values().len() / map.size().n.max(1);
    let rows = map.values().chunks_exact(size.max(1)).map(<[f32]>::to_vec).collect();
    workspace.recycle(map);
    rows
}

/// Returns `row` divided by its L2 norm.
pub(crate) fn normalised(row: &[f32]) -> Vec<f32> {
    // The floor is PyTorch's, of `functional.normalize`.
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    row.iter().map(|v| v / norm).collect()
}
