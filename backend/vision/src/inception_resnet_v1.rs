//! Inception-ResNet v1 (Szegedy et al. 2016; as FaceNet uses it): 512-dimensional face embeddings. Layers, names and
//! weights as in facenet-pytorch's `InceptionResnetV1`.

use std::path::Path;

use candle_core::{Result, Tensor};
use candle_nn::{VarBuilder, linear_no_bias};
use image::RgbImage;

use crate::{
    Backend, Embedder, Face, ModelError, VisionError,
    embedder::{EmbedderKind, EmbeddingNetwork},
    native::Workspaces,
    network::Network,
    nn::{
        Activation, Conv, Dense, Layer, MaxPool, Residual, Sequential, Window, concat, conv2d,
        conv2d_no_bias, norm,
    },
    resample::{PixelRect, triangle},
    weights::Weights,
};

/// The epsilon of the batch norms, here as in TensorFlow.
const EPSILON: f64 = 1e-3;
const POINT: Window = Window::POINT;
const THREE: Window = Window::same((3, 3), 1);
/// Halves rows and columns.
const HALF: Window = Window::valid(3, 2);
const POOL: MaxPool = MaxPool { side: 3, stride: 2, ceil_mode: false };

/// Faces per batch in the later layers, whose weights take longer to read than their maps.
const BATCH: usize = 16;

/// The network. Takes faces as facenet-pytorch's `extract_face` cuts them out: the bounding box, 160x160, RGB,
/// `(value - 127.5) / 128`.
#[derive(Debug)]
pub struct InceptionResnetV1(EmbeddingNetwork);

/// Returns the network's layers, `[N, 3, 160, 160]` to `[N, 512]`.
pub(crate) fn definition(vb: &VarBuilder<'_>) -> Result<Sequential> {
    Ok(Sequential::new()
        .add("conv2d_1a", basic_conv(3, 32, HALF, &vb.pp("conv2d_1a"))?)
        .add("conv2d_2a", basic_conv(32, 32, Window::valid(3, 1), &vb.pp("conv2d_2a"))?)
        .add("conv2d_2b", basic_conv(32, 64, THREE, &vb.pp("conv2d_2b"))?)
        .add("maxpool_3a", POOL)
        .add("conv2d_3b", basic_conv(64, 80, POINT, &vb.pp("conv2d_3b"))?)
        .add("conv2d_4a", basic_conv(80, 192, Window::valid(3, 1), &vb.pp("conv2d_4a"))?)
        .add("conv2d_4b", basic_conv(192, 256, HALF, &vb.pp("conv2d_4b"))?)
        .add("repeat_1", repeat(5, |i| block35(&vb.pp("repeat_1").pp(i)))?)
        // Up to here maps are large and weights are few.
        .per_image()
        .add("mixed_6a", mixed_6a(&vb.pp("mixed_6a"))?)
        .add("repeat_2", repeat(10, |i| block17(&vb.pp("repeat_2").pp(i)))?)
        .add("mixed_7a", mixed_7a(&vb.pp("mixed_7a"))?)
        .add("repeat_3", repeat(5, |i| block8(0.20, Activation::Relu, &vb.pp("repeat_3").pp(i)))?)
        .add("block8", block8(1.0, Activation::None, &vb.pp("block8"))?)
        .add("avgpool_1a", Layer::GlobalAvgPool)
        .add("last_linear", Dense::new(linear_no_bias(1792, 512, vb.pp("last_linear"))?))
        .add("last_bn", norm(512, EPSILON, &vb.pp("last_bn"))?))
}

/// Returns a convolution without bias, batch norm and ReLU.
fn basic_conv(c_in: usize, c_out: usize, window: Window, vb: &VarBuilder<'_>) -> Result<Conv> {
    let conv = conv2d_no_bias(c_in, c_out, window, &vb.pp("conv"))?;
    Ok(conv.with_norm(norm(c_out, EPSILON, &vb.pp("bn"))?).with_activation(Activation::Relu))
}

fn repeat(count: usize, block: impl Fn(usize) -> Result<Residual>) -> Result<Sequential> {
    (0..count).try_fold(Sequential::new(), |blocks, i| Ok(blocks.add(i.to_string(), block(i)?)))
}

/// Returns [`basic_conv`]s one after the other, by number.
fn branch<const N: usize>(c_in: usize, convs: [(usize, Window); N], vb: &VarBuilder<'_>) -> Result<Layer> {
    let (mut layers, mut channels) = (Sequential::new(), c_in);
    for (i, (c_out, window)) in convs.into_iter().enumerate() {
        layers = layers.add(i.to_string(), basic_conv(channels, c_out, window, &vb.pp(i))?);
        channels = c_out;
    }
    Ok(layers.into())
}

/// Returns branches, concatenated, projected by a 1x1 convolution and added to the input.
fn residual(
    (c_inner, channels): (usize, usize),
    scale: f64,
    activation: Activation,
    branches: Layer,
    vb: &VarBuilder<'_>,
) -> Result<Residual> {
    let project = conv2d(c_inner, channels, POINT, &vb.pp("conv2d"))?;
    Ok(Residual {
        inner: Sequential::new().add("branches", branches).add("conv2d", project),
        scale,
        activation,
    })
}

fn block35(vb: &VarBuilder<'_>) -> Result<Residual> {
    let branches = concat([
        ("branch0", basic_conv(256, 32, POINT, &vb.pp("branch0"))?.into()),
        ("branch1", branch(256, [(32, POINT), (32, THREE)], &vb.pp("branch1"))?),
        ("branch2", branch(256, [(32, POINT), (32, THREE), (32, THREE)], &vb.pp("branch2"))?),
    ]);
    residual((96, 256), 0.17, Activation::Relu, branches, vb)
}

fn block17(vb: &VarBuilder<'_>) -> Result<Residual> {
    let (row, column) = (Window::same((1, 7), 1), Window::same((7, 1), 1));
    let branches = concat([
        ("branch0", basic_conv(896, 128, POINT, &vb.pp("branch0"))?.into()),
        ("branch1", branch(896, [(128, POINT), (128, row), (128, column)], &vb.pp("branch1"))?),
    ]);
    residual((256, 896), 0.10, Activation::Relu, branches, vb)
}

fn block8(scale: f64, activation: Activation, vb: &VarBuilder<'_>) -> Result<Residual> {
    let (row, column) = (Window::same((1, 3), 1), Window::same((3, 1), 1));
    let branches = concat([
        ("branch0", basic_conv(1792, 192, POINT, &vb.pp("branch0"))?.into()),
        ("branch1", branch(1792, [(192, POINT), (192, row), (192, column)], &vb.pp("branch1"))?),
    ]);
    residual((384, 1792), scale, activation, branches, vb)
}

fn mixed_6a(vb: &VarBuilder<'_>) -> Result<Layer> {
    Ok(concat([
        ("branch0", basic_conv(256, 384, HALF, &vb.pp("branch0"))?.into()),
        ("branch1", branch(256, [(192, POINT), (192, THREE), (256, HALF)], &vb.pp("branch1"))?),
        ("branch2", POOL.into()),
    ]))
}

fn mixed_7a(vb: &VarBuilder<'_>) -> Result<Layer> {
    Ok(concat([
        ("branch0", branch(896, [(256, POINT), (384, HALF)], &vb.pp("branch0"))?),
        ("branch1", branch(896, [(256, POINT), (256, HALF)], &vb.pp("branch1"))?),
        ("branch2", branch(896, [(256, POINT), (256, THREE), (256, HALF)], &vb.pp("branch2"))?),
        ("branch3", POOL.into()),
    ]))
}

impl InceptionResnetV1 {
    /// 0.379: a squared Euclidean distance of 1.242 between embeddings of length 1, which is 2 - 2 cos. That is the
    /// optimum on Labeled Faces in the Wild that is published for the method (Schroff, Kalenichenko and Philbin,
    /// "FaceNet", CVPR 2015, section 5.6), of another network trained that way. It was not measured here: the trained
    /// weights of this one were not at hand.
    pub const VERIFICATION_THRESHOLD: f32 = 0.379;

    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 512;
    /// Side of the faces that it takes, pixels.
    pub const SIDE: u32 = 160;

    /// Reads the safetensors that a state dict of facenet-pytorch was converted to, to run by the native kernels.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> std::result::Result<Self, ModelError> {
        Self::new(&Weights::read(file)?, &Backend::Cpu)
    }

    /// Builds it from the tensors of such a state dict; others, such as those of the classifier (`logits.*`), are ignored.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen tensor.
    pub fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        Ok(Self(EmbeddingNetwork {
            kind: EmbedderKind::InceptionResnetV1,
            network: Network::new(definition, weights, backend)?,
            side: Self::SIDE,
            normalise: [(1.0 / 128.0, -127.5 / 128.0); 3],
            batch: BATCH,
            workspaces: Workspaces::default(),
        }))
    }

    /// Returns the L2-normalised embeddings of normalised faces `[N, 3, 160, 160]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward(&self, faces: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.0.forward(faces)
    }

    /// Runs as [`Self::forward`] does; shows the output of each stage to `observe`, by facenet-pytorch's name: maps as `[N, H, W,
    /// C]`, from the global pooling on `[N, C]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward_observed(
        &self,
        faces: &Tensor,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Vec<f32>>> {
        self.0.forward_observed(faces, observe)
    }
}

impl Embedder for InceptionResnetV1 {
    fn name(&self) -> &'static str {
        EmbedderKind::InceptionResnetV1.name()
    }

    fn dimensions(&self) -> usize {
        Self::DIMENSIONS
    }

    /// Returns 0.46: a Euclidean distance of 1.04 between embeddings of length 1.
    fn default_threshold(&self) -> f32 {
        0.46
    }

    fn verification_threshold(&self) -> f32 {
        Self::VERIFICATION_THRESHOLD
    }

    /// Returns 0.94, as measured with the other embedder. It was not measured here: the trained weights of this one were not at
    /// hand.
    fn same_picture_threshold(&self) -> f32 {
        0.94
    }

    /// Returns 0.3: a squared Euclidean distance of 0.6 between embeddings of length 1, half of that at which two faces are
    /// verified. It was not measured here: the trained weights of this one were not at hand.
    fn cluster_distance(&self) -> f32 {
        0.3
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        triangle(image, face_pixels(image, face), Self::SIDE)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        self.0.embed(crops)
    }
}

/// Returns the bounding box clipped at the image, its fractions cut off; at least one pixel, so that any face gives a crop.
fn face_pixels(image: &RgbImage, face: &Face) -> PixelRect {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from float saturate")]
    let whole = |v: f32, size: u32| (v.max(0.0) as u32).min(size);
    let span = |from: f32, to: f32, size: u32| {
        let from = whole(from, size).min(size.saturating_sub(1));
        (from, whole(to, size).max(from + 1))
    };
    let (left, right) = span(face.bounding_box.left, face.bounding_box.right, image.width());
    let (top, bottom) = span(face.bounding_box.top, face.bounding_box.bottom, image.height());
    PixelRect { left, top, right, bottom }
}
