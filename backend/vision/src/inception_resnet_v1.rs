//! Inception-ResNet v1 (Szegedy et al. 2016; as FaceNet uses it): 512-dimensional face embeddings. Layers, names and
//! weights as in facenet-pytorch's `InceptionResnetV1`.

use std::path::Path;

use candle_core::{Result, Tensor};
use image::RgbImage;

use crate::{
    Embedder, Face, ModelError, VisionError,
    embedder::{EmbedderKind, embed, l2_normalised},
    layers::{Activation, Conv2d, MaxPool, Window},
    resample::{PixelRect, triangle},
    weights::Weights,
};

/// What batch norm adds to the variance, here as in TensorFlow.
const EPSILON: f64 = 1e-3;
const POOL: MaxPool = MaxPool { side: 3, stride: 2, partial: false };

type Loaded<T> = std::result::Result<T, ModelError>;

/// The network. Takes faces as facenet-pytorch's `extract_face` cuts them out: the bounding box, 160x160, RGB,
/// `(value - 127.5) / 128`.
#[derive(Debug)]
pub struct InceptionResnetV1 {
    conv2d_1a: Conv2d,
    conv2d_2a: Conv2d,
    conv2d_2b: Conv2d,
    conv2d_3b: Conv2d,
    conv2d_4a: Conv2d,
    conv2d_4b: Conv2d,
    repeat_1: Vec<Residual>,
    mixed_6a: Mixed,
    repeat_2: Vec<Residual>,
    mixed_7a: Mixed,
    repeat_3: Vec<Residual>,
    block8: Residual,
    last_linear: Conv2d,
    /// Scale and shift of the batch norm after the last layer, `[1, 512]`.
    last_bn: (Tensor, Tensor),
}

/// A layer of a branch: its output channels and its window.
type Layer = (usize, Window);

/// Branches side by side, their outputs joined along the channels, narrowed by a 1x1 convolution and added to the input.
#[derive(Debug)]
struct Residual {
    branches: Vec<Vec<Conv2d>>,
    project: Conv2d,
}

impl Residual {
    fn load(
        weights: &Weights,
        name: &str,
        channels: usize,
        branches: &[&[Layer]],
        scale: f64,
        activation: Activation,
    ) -> Loaded<Self> {
        let inner = branches.iter().filter_map(|b| Some(b.last()?.0)).sum();
        let branches = load_branches(weights, name, channels, branches)?;
        // The factor of the residual goes into the weights.
        let weight = weights.get(&format!("{name}.conv2d.weight"), &[channels, inner, 1, 1])?;
        let bias = weights.get(&format!("{name}.conv2d.bias"), &[channels])?;
        let project = Conv2d::new(&(weight * scale)?, &(bias * scale)?, Window::POINT, activation)?;
        Ok(Self { branches, project })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.project.forward_add(&join(&self.branches, x, None)?, x)
    }
}

/// Branches side by side with a max pooling, their outputs joined along the channels, at half the size.
#[derive(Debug)]
struct Mixed {
    branches: Vec<Vec<Conv2d>>,
}

impl Mixed {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        join(&self.branches, x, Some(POOL.forward(x)?))
    }
}

fn join(branches: &[Vec<Conv2d>], x: &Tensor, last: Option<Tensor>) -> Result<Tensor> {
    let run = |branch: &Vec<Conv2d>| branch.iter().try_fold(x.clone(), |x, layer| layer.forward(&x));
    let mut outputs = branches.iter().map(run).collect::<Result<Vec<_>>>()?;
    outputs.extend(last);
    Tensor::cat(&outputs, 3)
}

/// `<name>.branch<i>`, or `<name>.branch<i>.<j>` where a branch has several layers.
fn load_branches(
    weights: &Weights,
    name: &str,
    channels: usize,
    branches: &[&[Layer]],
) -> Loaded<Vec<Vec<Conv2d>>> {
    let load = |(i, layers): (usize, &&[Layer])| {
        let mut c_in = channels;
        let mut branch = Vec::with_capacity(layers.len());
        for (j, &(c_out, window)) in layers.iter().enumerate() {
            let name =
                if layers.len() == 1 { format!("{name}.branch{i}") } else { format!("{name}.branch{i}.{j}") };
            branch.push(basic_conv(weights, &name, c_in, c_out, window)?);
            c_in = c_out;
        }
        Ok(branch)
    };
    branches.iter().enumerate().map(load).collect()
}

/// Scale and shift that a batch norm comes to: `weight / sqrt(var + eps)` and `bias - mean * scale`.
fn batch_norm(weights: &Weights, name: &str, channels: usize) -> Loaded<(Tensor, Tensor)> {
    let get = |part| weights.get(&format!("{name}.{part}"), &[channels]);
    let scale = (get("weight")? / (get("running_var")? + EPSILON)?.sqrt()?)?;
    let shift = (get("bias")? - (get("running_mean")? * &scale)?)?;
    Ok((scale, shift))
}

/// Convolution without bias, batch norm and ReLU, as one convolution.
fn basic_conv(weights: &Weights, name: &str, c_in: usize, c_out: usize, window: Window) -> Loaded<Conv2d> {
    let shape = [c_out, c_in, window.kernel.0, window.kernel.1];
    let weight = weights.get(&format!("{name}.conv.weight"), &shape)?;
    let (scale, shift) = batch_norm(weights, &format!("{name}.bn"), c_out)?;
    let weight = weight.broadcast_mul(&scale.reshape((c_out, 1, 1, 1))?)?;
    Ok(Conv2d::new(&weight, &shift, window, Activation::Relu)?)
}

impl InceptionResnetV1 {
    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 512;
    /// Side of the faces that it takes, pixels.
    pub const SIDE: u32 = 160;

    /// Reads a state dict of facenet-pytorch, `.pt` or `.safetensors`.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> Loaded<Self> {
        Self::new(&Weights::read(file)?)
    }

    /// From the tensors of such a state dict; others, such as those of the classifier (`logits.*`), do not matter.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen tensor.
    pub fn new(weights: &Weights) -> Loaded<Self> {
        let point = Window::POINT;
        let same = |rows, columns| Window::same((rows, columns), 1);
        let (three, half) = (same(3, 3), Window::valid(3, 2));
        let stem = |name, c_in, c_out, window| basic_conv(weights, name, c_in, c_out, window);
        let repeat = |name: &str, count: usize, channels, branches: &[&[Layer]], scale| {
            (0..count)
                .map(|i| {
                    Residual::load(
                        weights,
                        &format!("{name}.{i}"),
                        channels,
                        branches,
                        scale,
                        Activation::Relu,
                    )
                })
                .collect::<Loaded<Vec<_>>>()
        };
        let mixed = |name, channels, branches: &[&[Layer]]| {
            load_branches(weights, name, channels, branches).map(|branches| Mixed { branches })
        };
        let block35: [&[Layer]; 3] =
            [&[(32, point)], &[(32, point), (32, three)], &[(32, point), (32, three), (32, three)]];
        let block17: [&[Layer]; 2] = [&[(128, point)], &[(128, point), (128, same(1, 7)), (128, same(7, 1))]];
        let block8: [&[Layer]; 2] = [&[(192, point)], &[(192, point), (192, same(1, 3)), (192, same(3, 1))]];

        let linear = weights.get("last_linear.weight", &[Self::DIMENSIONS, 1792])?;
        let no_bias = Tensor::zeros(Self::DIMENSIONS, linear.dtype(), linear.device())?;
        let linear = linear.reshape((Self::DIMENSIONS, 1792, 1, 1))?;
        let (scale, shift) = batch_norm(weights, "last_bn", Self::DIMENSIONS)?;
        Ok(Self {
            conv2d_1a: stem("conv2d_1a", 3, 32, half)?,
            conv2d_2a: stem("conv2d_2a", 32, 32, Window::valid(3, 1))?,
            conv2d_2b: stem("conv2d_2b", 32, 64, three)?,
            conv2d_3b: stem("conv2d_3b", 64, 80, point)?,
            conv2d_4a: stem("conv2d_4a", 80, 192, Window::valid(3, 1))?,
            conv2d_4b: stem("conv2d_4b", 192, 256, half)?,
            repeat_1: repeat("repeat_1", 5, 256, &block35, 0.17)?,
            mixed_6a: mixed("mixed_6a", 256, &[&[(384, half)], &[(192, point), (192, three), (256, half)]])?,
            repeat_2: repeat("repeat_2", 10, 896, &block17, 0.10)?,
            mixed_7a: mixed(
                "mixed_7a",
                896,
                &[
                    &[(256, point), (384, half)],
                    &[(256, point), (256, half)],
                    &[(256, point), (256, three), (256, half)],
                ],
            )?,
            repeat_3: repeat("repeat_3", 5, 1792, &block8, 0.20)?,
            block8: Residual::load(weights, "block8", 1792, &block8, 1.0, Activation::None)?,
            last_linear: Conv2d::new(&linear, &no_bias, point, Activation::None)?,
            last_bn: (scale.unsqueeze(0)?, shift.unsqueeze(0)?),
        })
    }

    /// The embeddings, each of length 1, of normalised faces `[N, 3, 160, 160]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward(&self, faces: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.forward_observed(faces, &mut |_, _| {})
    }

    /// As [`Self::forward`], and shows `observe` what comes out of each stage, by facenet-pytorch's name of it: maps as
    /// `[N, H, W, C]`, after the pooling over space `[N, C]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward_observed(
        &self,
        faces: &Tensor,
        observe: &mut dyn FnMut(&'static str, &Tensor),
    ) -> Result<Vec<Vec<f32>>> {
        l2_normalised(self.run(&faces.permute((0, 2, 3, 1))?.contiguous()?, observe)?)
    }

    /// `[N, 160, 160, 3]` to `[N, 512]`.
    fn run(&self, x: &Tensor, observe: &mut dyn FnMut(&'static str, &Tensor)) -> Result<Tensor> {
        let mut stage = |name, x: Result<Tensor>| x.inspect(|x| observe(name, x));
        let blocks = |blocks: &[Residual], x: Tensor| blocks.iter().try_fold(x, |x, block| block.forward(&x));
        let x = stage("conv2d_1a", self.conv2d_1a.forward(x))?;
        let x = stage("conv2d_2a", self.conv2d_2a.forward(&x))?;
        let x = stage("conv2d_2b", self.conv2d_2b.forward(&x))?;
        let x = stage("maxpool_3a", POOL.forward(&x))?;
        let x = stage("conv2d_3b", self.conv2d_3b.forward(&x))?;
        let x = stage("conv2d_4a", self.conv2d_4a.forward(&x))?;
        let x = stage("conv2d_4b", self.conv2d_4b.forward(&x))?;
        let x = stage("repeat_1", blocks(&self.repeat_1, x))?;
        let x = stage("mixed_6a", self.mixed_6a.forward(&x))?;
        let x = stage("repeat_2", blocks(&self.repeat_2, x))?;
        let x = stage("mixed_7a", self.mixed_7a.forward(&x))?;
        let x = stage("repeat_3", blocks(&self.repeat_3, x))?;
        let x = stage("block8", self.block8.forward(&x))?;
        let x = stage("avgpool_1a", x.mean((1, 2)))?;
        let (n, channels) = x.dims2()?;
        let x = self.last_linear.forward(&x.reshape((n, 1, 1, channels))?)?;
        let x = stage("last_linear", x.reshape((n, Self::DIMENSIONS)))?;
        let (scale, shift) = &self.last_bn;
        stage("last_bn", x.broadcast_mul(scale)?.broadcast_add(shift))
    }
}

impl Embedder for InceptionResnetV1 {
    fn name(&self) -> &'static str {
        EmbedderKind::InceptionResnetV1.name()
    }

    fn dimensions(&self) -> usize {
        Self::DIMENSIONS
    }

    /// 0.46: an Euclidean distance of 1.04 between embeddings of length 1.
    fn default_threshold(&self) -> f32 {
        0.46
    }

    /// 0.379: a squared Euclidean distance of 1.242 between embeddings of length 1, which is 2 - 2 cos. That is the
    /// optimum on Labeled Faces in the Wild that is published for the method (Schroff, Kalenichenko and Philbin,
    /// "FaceNet", CVPR 2015, section 5.6), of another network trained that way. It was not measured here: the trained
    /// weights of this one were not at hand.
    fn verification_threshold(&self) -> f32 {
        0.379
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        triangle(image, face_pixels(image, face), Self::SIDE)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        embed(self, Self::SIDE, [(1.0 / 128.0, -127.5 / 128.0); 3], crops, |x| self.run(x, &mut |_, _| {}))
    }
}

/// The bounding box clipped at the image, its fractions cut off; at least one pixel, so that any face gives a crop.
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
