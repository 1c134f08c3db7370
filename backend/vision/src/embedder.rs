//! The trait that all face embedding networks implement; choosing and loading one of them.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use candle_core::Device;
use image::RgbImage;

use crate::{
    DlibResnet, Face, InceptionResnetV1, MobileFaceNet, ModelError, VisionError,
    layers::{FeatureMap, Size, Workspace, Workspaces},
    weights::{Weights, onnx::OnnxWeights},
};

/// A network that maps a face to a vector, such that vectors of one person lie close together.
///
/// Embeddings of different embedders must never be compared.
pub trait Embedder: Send + Sync {
    /// The name that stored embeddings carry, for example `mobilefacenet`.
    fn name(&self) -> &'static str;

    /// Elements of an embedding.
    fn dimensions(&self) -> usize;

    /// A note for operators of a server that uses this embedder: that it is a fallback, say.
    fn remark(&self) -> Option<&'static str> {
        None
    }

    /// The lowest cosine to a person's mean embedding at which a face is identified as that person.
    fn default_threshold(&self) -> f32;

    /// The lowest cosine between the embeddings of two faces at which they are accepted as the same person. Lower than
    /// [`Self::default_threshold`]: a mean of several embeddings is nearer to each of them than they are to each other.
    fn verification_threshold(&self) -> f32;

    /// The lowest cosine between the embeddings of two pictures at which they are copies of one picture, perhaps in
    /// another size or quality; higher than two separate pictures of one person reach.
    fn same_picture_threshold(&self) -> f32;

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

    /// The name that configuration and stored embeddings use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InceptionResnetV1 => "inception-resnet-v1",
            Self::MobileFaceNet => "mobilefacenet",
            Self::DlibResnet => "dlib-resnet",
        }
    }

    /// Returns the path of its weights in `models_dir`, whether the file exists or not.
    pub fn weights_file(self, models_dir: &Path) -> PathBuf {
        match self {
            Self::InceptionResnetV1 => weights_file(models_dir, "20180402-114759-vggface2"),
            Self::MobileFaceNet => models_dir.join("mobilefacenet.onnx"),
            Self::DlibResnet => models_dir.join("face_recognition_model.bin"),
        }
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

/// Loads an embedder from the weights in `models_dir`.
///
/// # Errors
///
/// [`ModelError::Missing`] where its weights are not there, or another [`ModelError`] of the file.
pub fn load_embedder(kind: EmbedderKind, models_dir: &Path) -> Result<Box<dyn Embedder>, ModelError> {
    load_embedder_on(kind, models_dir, None)
}

/// The same on a device that [`DeviceKind::open`](crate::DeviceKind::open) opened.
///
/// # Errors
///
/// As [`load_embedder`]; [`ModelError::Layout`] where the weights do not get there.
pub fn load_embedder_on(
    kind: EmbedderKind,
    models_dir: &Path,
    device: Option<&Device>,
) -> Result<Box<dyn Embedder>, ModelError> {
    let file = kind.weights_file(models_dir);
    Ok(match kind {
        EmbedderKind::InceptionResnetV1 => {
            Box::new(InceptionResnetV1::new(&Weights::read(&file)?.on(device))?)
        }
        EmbedderKind::MobileFaceNet => Box::new(MobileFaceNet::new(&OnnxWeights::read(&file)?.on(device))?),
        EmbedderKind::DlibResnet => Box::new(DlibResnet::new(&DlibResnet::read(&file)?.on(device))?),
    })
}

/// Returns the most preferred embedder whose weights are in `models_dir`.
pub fn installed_embedder(models_dir: &Path) -> Option<EmbedderKind> {
    EmbedderKind::ALL.into_iter().find(|kind| kind.weights_file(models_dir).is_file())
}

/// `<stem>.safetensors` where that is there and not older than `<stem>.pt`, which it may have been made of; else the latter.
pub(crate) fn weights_file(models_dir: &Path, stem: &str) -> PathBuf {
    let [safetensors, pt] = ["safetensors", "pt"].map(|ending| models_dir.join(format!("{stem}.{ending}")));
    let changed = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    // Nothing is less than any time.
    if safetensors.is_file() && changed(&safetensors) >= changed(&pt) { safetensors } else { pt }
}

/// The work that embedders share: what [`outputs`] gives, brought to length 1.
pub(crate) fn embed(
    embedder: &dyn Embedder,
    workspaces: &Workspaces,
    side: u32,
    normalise: [(f32, f32); 3],
    crops: &[RgbImage],
    most: usize,
    network: impl Fn(&mut Workspace, FeatureMap) -> candle_core::Result<FeatureMap> + Sync,
) -> Result<Vec<Vec<f32>>, VisionError> {
    let outputs = outputs(embedder, workspaces, side, normalise, crops, most, network)?;
    Ok(outputs.iter().map(|row| normalised(row)).collect())
}

/// Checks the crops and runs `network` over at most `most` of them at a time. `normalise` says for each channel what a
/// value is multiplied with and what is then added.
pub(crate) fn outputs(
    embedder: &dyn Embedder,
    workspaces: &Workspaces,
    side: u32,
    normalise: [(f32, f32); 3],
    crops: &[RgbImage],
    most: usize,
    network: impl Fn(&mut Workspace, FeatureMap) -> candle_core::Result<FeatureMap> + Sync,
) -> Result<Vec<Vec<f32>>, VisionError> {
    for (index, crop) in crops.iter().enumerate() {
        if crop.dimensions() != (side, side) {
            let (width, height) = crop.dimensions();
            return Err(VisionError::CropSize {
                index,
                width,
                height,
                embedder: embedder.name(),
                expected: side,
            });
        }
    }
    let side = side as usize;
    let outputs = workspaces.in_batches(crops.len(), most, |workspace, share| {
        let batch = crops.get(share).unwrap_or_default();
        let mut input = workspace.host_map(Size { n: batch.len(), h: side, w: side }, 3);
        for (values, crop) in input.values_mut().chunks_exact_mut(side * side * 3).zip(batch) {
            for (values, pixel) in
                values.as_chunks_mut::<3>().0.iter_mut().zip(crop.as_raw().as_chunks::<3>().0)
            {
                for ((value, &level), (scale, add)) in values.iter_mut().zip(pixel).zip(normalise) {
                    *value = f32::from(level) * scale + add;
                }
            }
        }
        let output = network(workspace, input)?;
        let rows = output.values().chunks_exact(output.channels()).map(<[f32]>::to_vec).collect();
        workspace.recycle(output);
        Ok::<_, VisionError>(rows)
    })?;
    match outputs.iter().position(|e| !e.iter().all(|v| v.is_finite())) {
        Some(index) => Err(VisionError::NotFinite { index, embedder: embedder.name() }),
        None => Ok(outputs),
    }
}

/// `row` divided by its length.
pub(crate) fn normalised(row: &[f32]) -> Vec<f32> {
    // The floor is PyTorch's, of `functional.normalize`.
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    row.iter().map(|v| v / norm).collect()
}

/// The pixels of a map `[N, 1, 1, D]`, each divided by its length; the map is given back.
pub(crate) fn l2_normalised(workspace: &mut Workspace, map: FeatureMap) -> Vec<Vec<f32>> {
    let rows = map.values().chunks_exact(map.channels()).map(normalised).collect();
    workspace.recycle(map);
    rows
}
