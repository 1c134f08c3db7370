//! MobileFaceNet (Chen et al. 2018): 128-dimensional face embeddings out of a million weights.

use std::path::Path;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use image::RgbImage;

use crate::{
    Backend, Embedder, Face, ModelError, VisionError, align,
    embedder::{EmbedderKind, EmbeddingNetwork},
    native::Workspaces,
    network::Network,
    nn::{Activation, Conv, Layer, Residual, Sequential, Window, conv2d, depthwise},
    weights::Weights,
};

/// The inverted residual blocks: channels inside, channels out, stride.
const BLOCKS: [(usize, usize, usize); 15] = [
    (128, 64, 2),
    (128, 64, 1),
    (128, 64, 1),
    (128, 64, 1),
    (128, 64, 1),
    (256, 128, 2),
    (256, 128, 1),
    (256, 128, 1),
    (256, 128, 1),
    (256, 128, 1),
    (256, 128, 1),
    (256, 128, 1),
    (512, 128, 2),
    (256, 128, 1),
    (256, 128, 1),
];

/// Faces per batch. The maps of one fit into the second-level cache, those of several do not, and the weights are so few
/// that reading them again costs less.
const BATCH: usize = 1;

/// Mean and standard deviation of ImageNet, of values from 0 to 1.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The network. Takes faces that [`align`](mod@align) made, in RGB with ImageNet's mean and deviation.
#[derive(Debug)]
pub struct MobileFaceNet(EmbeddingNetwork);

/// Returns the network's layers, `[N, 3, 112, 112]` to `[N, 128, 1, 1]`. The batch norms of the published file are folded
/// already.
pub(crate) fn definition(vb: &VarBuilder<'_>) -> Result<Sequential> {
    let three = |stride| Window::same((3, 3), stride);
    let relu = |conv: Conv| conv.with_activation(Activation::Relu);
    let relu6 = |conv: Conv| conv.with_activation(Activation::Relu6);
    let dw_conv = vb.pp("dw_conv");
    let mut network = Sequential::new()
        .add("conv1", relu6(conv2d(3, 64, three(2), &vb.pp("conv1.conv1.0"))?))
        .add("dw_conv.depthwise", relu(depthwise(64, three(1), &dw_conv.pp("depthwise"))?))
        .add("dw_conv.pointwise", relu(conv2d(64, 64, Window::POINT, &dw_conv.pp("pointwise"))?));
    let mut c_in = 64;
    for (i, (inner, c_out, stride)) in BLOCKS.into_iter().enumerate() {
        let vb = vb.pp(format!("features.features.{i}.conv"));
        network = network.add(format!("features.{i}"), inverted_residual(c_in, inner, c_out, stride, &vb)?);
        c_in = c_out;
    }
    Ok(network
        .add("conv2", relu6(conv2d(128, 512, Window::POINT, &vb.pp("conv2.conv2.0"))?))
        .add("gdconv", depthwise(512, Window::valid(7, 1), &vb.pp("gdconv.depthwise"))?)
        .add("conv3", conv2d(512, MobileFaceNet::DIMENSIONS, Window::POINT, &vb.pp("conv3"))?))
}

/// Widens by a 1x1 convolution, filters each channel, narrows again; adds its input where that has the same shape.
fn inverted_residual(
    c_in: usize,
    inner: usize,
    c_out: usize,
    stride: usize,
    vb: &VarBuilder<'_>,
) -> Result<Layer> {
    let expand = conv2d(c_in, inner, Window::POINT, &vb.pp("conv.0.conv.0.0"))?;
    let filter = depthwise(inner, Window::same((3, 3), stride), &vb.pp("conv.1.conv.1.0"))?;
    let layers = Sequential::new()
        .add("expand", expand.with_activation(Activation::Relu6))
        .add("depthwise", filter.with_activation(Activation::Relu6))
        .add("project", conv2d(inner, c_out, Window::POINT, &vb.pp("conv.2"))?);
    Ok(if stride == 1 && c_in == c_out {
        Residual { inner: layers, scale: 1.0, activation: Activation::None }.into()
    } else {
        layers.into()
    })
}

impl MobileFaceNet {
    /// 0.35, where most pairs are told apart rightly: 99.96 % of the 4950 pairs of a hundred photographs of ten people
    /// of Labeled Faces in the Wild, faces found and aligned as here (0 of 4500 pairs of different people taken for
    /// one person, 2 of 450 pairs of one person not). As many are wrong on both sides, 0.2 %, at 0.30.
    pub const VERIFICATION_THRESHOLD: f32 = 0.35;

    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 128;

    /// Reads the safetensors that `mobilefacenet.onnx` of foamliu/MobileFaceNet was converted to, to run by the native kernels.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> std::result::Result<Self, ModelError> {
        Self::new(&Weights::read(file)?, &Backend::Cpu)
    }

    /// Builds it from those tensors, by the names that PyTorch's exporter gave its convolutions.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen tensor.
    pub fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        let channel = |mean: f32, deviation: f32| (1.0 / (255.0 * deviation), -mean / deviation);
        let ([r, g, b], [dr, dg, db]) = (MEAN, DEVIATION);
        Ok(Self(EmbeddingNetwork {
            kind: EmbedderKind::MobileFaceNet,
            network: Network::new(definition, weights, backend)?,
            side: align::ALIGNED_SIDE,
            normalise: [channel(r, dr), channel(g, dg), channel(b, db)],
            batch: BATCH,
            workspaces: Workspaces::default(),
        }))
    }

    /// Returns the L2-normalised embeddings of normalised faces `[N, 3, 112, 112]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward(&self, faces: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.0.forward(faces)
    }
}

impl Embedder for MobileFaceNet {
    fn name(&self) -> &'static str {
        EmbedderKind::MobileFaceNet.name()
    }

    fn dimensions(&self) -> usize {
        Self::DIMENSIONS
    }

    /// Returns 0.355, at which pairs of Labeled Faces in the Wild are told apart best.
    fn default_threshold(&self) -> f32 {
        0.355
    }

    fn verification_threshold(&self) -> f32 {
        Self::VERIFICATION_THRESHOLD
    }

    /// Returns 0.94, from which on are 98 to 100 % of copies of photographs of Labeled Faces in the Wild in JPEG of quality 50
    /// and more, in 4/5 of the size or twice the size, 1 of 937 pairs of files of one person (the same photograph twice), and
    /// none of 86,216 pairs of two people, whose greatest cosine is 0.49.
    fn same_picture_threshold(&self) -> f32 {
        0.94
    }

    /// Returns 0.5: of 1,475 photographs of 852 people of Labeled Faces in the Wild, 150 of whom have several, average linkage at
    /// this distance gives clusters with a pairwise F-measure of 0.97, and 1 or 2 of 872 have two people's faces.
    /// docs/decisions/0037 has other distances.
    fn cluster_distance(&self) -> f32 {
        0.5
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        align::align(image, face)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        self.0.embed(crops)
    }
}
