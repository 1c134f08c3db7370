//! Inception-ResNet v1 (Szegedy et al. 2016; as FaceNet uses it): 512-dimensional face embeddings. Layers, names and
//! weights as in facenet-pytorch's `InceptionResnetV1`.

use std::{ops::Range, path::Path};

use candle_core::{Result, Tensor};
use image::RgbImage;

use crate::{
    Embedder, Face, ModelError, VisionError,
    embedder::{EmbedderKind, embed, l2_normalised},
    layers::{Activation, Conv2d, FeatureMap, MaxPool, Size, Window, Workspace, Workspaces, mean},
    resample::{PixelRect, triangle},
    weights::Weights,
};

/// What batch norm adds to the variance, here as in TensorFlow.
const EPSILON: f64 = 1e-3;
const POOL: MaxPool = MaxPool { side: 3, stride: 2, partial: false };

/// Faces that go through the later layers at once, where weights take longer to read than maps.
const AT_ONCE: usize = 16;

type Loaded<T> = std::result::Result<T, ModelError>;
/// Is told what comes out of each stage.
type Stage<'a> = dyn FnMut(&'static str, &FeatureMap) -> Result<()> + 'a;
/// Is shown that as tensors.
type Observer<'a> = Option<&'a mut dyn FnMut(&'static str, &Tensor)>;

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
    /// Scale and shift of the batch norm after the last layer.
    last_bn: (Vec<f32>, Vec<f32>),
    workspaces: Workspaces,
}

/// A layer of a branch: its output channels and its window.
type Layer = (usize, Window);

/// Branches side by side over one input.
#[derive(Debug)]
struct Branches {
    /// The 1x1 convolutions that branches begin with, as one, so that the input is read once.
    entry: Option<Conv2d>,
    branches: Vec<Branch>,
}

/// What follows the entry in one branch.
#[derive(Debug)]
struct Branch {
    /// Channels of the entry that it goes on from; the input of all branches where there are none.
    entry: Option<Range<usize>>,
    layers: Vec<Conv2d>,
}

impl Branches {
    /// `<name>.branch<i>`, or `<name>.branch<i>.<j>` where a branch has several layers.
    fn load(weights: &Weights, name: &str, channels: usize, branches: &[&[Layer]]) -> Loaded<Self> {
        let layer_name = |i: usize, j: usize, layers: &[Layer]| {
            if layers.len() == 1 { format!("{name}.branch{i}") } else { format!("{name}.branch{i}.{j}") }
        };
        let begins_with_point = |layers: &[Layer]| matches!(layers.first(), Some((_, Window::POINT)));
        let shared = branches.iter().filter(|layers| begins_with_point(layers)).count() > 1;
        let (mut entries, mut width, mut loaded) = (Vec::new(), 0, Vec::new());
        for (i, layers) in branches.iter().enumerate() {
            let (mut c_in, mut entry) = (channels, None);
            let mut convolutions = Vec::with_capacity(layers.len());
            for (j, &(c_out, window)) in layers.iter().enumerate() {
                let name = layer_name(i, j, layers);
                if j == 0 && shared && begins_with_point(layers) {
                    entries.push(folded(weights, &name, c_in, c_out, window)?);
                    entry = Some(width..width + c_out);
                    width += c_out;
                } else {
                    convolutions.push(basic_conv(weights, &name, c_in, c_out, window)?);
                }
                c_in = c_out;
            }
            loaded.push(Branch { entry, layers: convolutions });
        }
        let entry = if entries.is_empty() {
            None
        } else {
            let (weight, shift): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
            let (weight, shift) = (Tensor::cat(&weight, 0)?, Tensor::cat(&shift, 0)?);
            Some(Conv2d::new(weights.backend(), &weight, &shift, Window::POINT, Activation::Relu)?)
        };
        Ok(Self { entry, branches: loaded })
    }

    /// What the entry makes of `x`, if there is one.
    fn enter(&self, workspace: &mut Workspace, x: &FeatureMap) -> Result<Option<FeatureMap>> {
        self.entry.as_ref().map(|entry| entry.forward(workspace, x.all_channels())).transpose()
    }

    /// Channels that come out of the layers after the entry, all branches together.
    fn channels(&self) -> usize {
        self.branches.iter().filter_map(|branch| branch.layers.last()).map(Conv2d::channels).sum()
    }

    /// Size of what comes out of those layers.
    fn output(&self, input: Size) -> Result<Size> {
        let longest = self.branches.iter().max_by_key(|branch| branch.layers.len());
        longest.iter().flat_map(|branch| &branch.layers).try_fold(input, |size, layer| layer.output(size))
    }

    /// Runs those layers, and writes what comes out of each branch to `out`, side by side.
    fn forward_into(
        &self,
        workspace: &mut Workspace,
        x: &FeatureMap,
        entry: Option<&FeatureMap>,
        out: &mut FeatureMap,
    ) -> Result<()> {
        let mut channel = 0;
        for branch in &self.branches {
            let Some((last, before)) = branch.layers.split_last() else { continue };
            let input = match (&branch.entry, entry) {
                (Some(channels), Some(entry)) => entry.channel_range(channels.clone()),
                _ => x.all_channels(),
            };
            let mut between: Option<FeatureMap> = None;
            for layer in before {
                let next = layer.forward(
                    workspace,
                    between.as_ref().map_or_else(|| input.clone(), FeatureMap::all_channels),
                )?;
                if let Some(done) = between.replace(next) {
                    workspace.recycle(done);
                }
            }
            last.forward_into(between.as_ref().map_or(input, FeatureMap::all_channels), out, channel)?;
            if let Some(done) = between {
                workspace.recycle(done);
            }
            channel += last.channels();
        }
        Ok(())
    }
}

/// Branches side by side, their outputs joined along the channels, narrowed by a 1x1 convolution and added to the input.
#[derive(Debug)]
struct Residual {
    branches: Branches,
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
        let branches = Branches::load(weights, name, channels, branches)?;
        // The factor of the residual goes into the weights.
        let weight = weights.get(&format!("{name}.conv2d.weight"), &[channels, inner, 1, 1])?;
        let bias = weights.get(&format!("{name}.conv2d.bias"), &[channels])?;
        let project =
            Conv2d::new(weights.backend(), &(weight * scale)?, &(bias * scale)?, Window::POINT, activation)?;
        Ok(Self { branches, project })
    }

    fn forward(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let entry = self.branches.enter(workspace, &x)?;
        let mut others = workspace.new_map(x.size(), self.branches.channels());
        self.branches.forward_into(workspace, &x, entry.as_ref(), &mut others)?;
        // Branches that end with the entry stand first.
        let ended = self.branches.branches.iter().filter(|branch| branch.layers.is_empty());
        let mut inputs = Vec::with_capacity(2);
        for channels in ended.filter_map(|branch| branch.entry.clone()) {
            inputs.extend(entry.as_ref().map(|entry| entry.channel_range(channels)));
        }
        inputs.push(others.all_channels());
        let out = self.project.forward_add(workspace, &inputs, &x)?;
        [Some(x), Some(others), entry].into_iter().flatten().for_each(|map| workspace.recycle(map));
        Ok(out)
    }
}

/// Branches side by side with a max pooling, their outputs joined along the channels, at half the size.
#[derive(Debug)]
struct Mixed {
    branches: Branches,
}

impl Mixed {
    fn forward(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let entry = self.branches.enter(workspace, &x)?;
        let own = self.branches.channels();
        let mut out = workspace.new_map(self.branches.output(x.size())?, own + x.channels());
        self.branches.forward_into(workspace, &x, entry.as_ref(), &mut out)?;
        POOL.forward_into(&x, &mut out, own)?;
        [Some(x), entry].into_iter().flatten().for_each(|map| workspace.recycle(map));
        Ok(out)
    }
}

/// Scale and shift that a batch norm comes to: `weight / sqrt(var + eps)` and `bias - mean * scale`.
fn batch_norm(weights: &Weights, name: &str, channels: usize) -> Loaded<(Tensor, Tensor)> {
    let get = |part| weights.get(&format!("{name}.{part}"), &[channels]);
    let scale = (get("weight")? / (get("running_var")? + EPSILON)?.sqrt()?)?;
    let shift = (get("bias")? - (get("running_mean")? * &scale)?)?;
    Ok((scale, shift))
}

/// Weight and bias of a convolution without bias and the batch norm that follows it.
fn folded(
    weights: &Weights,
    name: &str,
    c_in: usize,
    c_out: usize,
    window: Window,
) -> Loaded<(Tensor, Tensor)> {
    let shape = [c_out, c_in, window.kernel.0, window.kernel.1];
    let weight = weights.get(&format!("{name}.conv.weight"), &shape)?;
    let (scale, shift) = batch_norm(weights, &format!("{name}.bn"), c_out)?;
    Ok((weight.broadcast_mul(&scale.reshape((c_out, 1, 1, 1))?)?, shift))
}

/// Convolution without bias, batch norm and ReLU, as one convolution.
fn basic_conv(weights: &Weights, name: &str, c_in: usize, c_out: usize, window: Window) -> Loaded<Conv2d> {
    let (weight, shift) = folded(weights, name, c_in, c_out, window)?;
    Ok(Conv2d::new(weights.backend(), &weight, &shift, window, Activation::Relu)?)
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
            Branches::load(weights, name, channels, branches).map(|branches| Mixed { branches })
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
            last_linear: Conv2d::new(weights.backend(), &linear, &no_bias, point, Activation::None)?,
            last_bn: (scale.to_vec1()?, shift.to_vec1()?),
            workspaces: Workspaces::new(weights.backend()),
        })
    }

    /// The embeddings, each of length 1, of normalised faces `[N, 3, 160, 160]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward(&self, faces: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.workspaces.in_batches(faces.dim(0)?, AT_ONCE, |workspace, share| {
            let faces = workspace.map_from_tensor(&faces.narrow(0, share.start, share.len())?)?;
            let embeddings = self.run(workspace, faces, None)?;
            Ok(l2_normalised(workspace, embeddings))
        })
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
        self.workspaces.with(|workspace| {
            let faces = workspace.map_from_tensor(faces)?;
            let embeddings = self.run(workspace, faces, Some(observe))?;
            Ok(l2_normalised(workspace, embeddings))
        })
    }

    /// `[N, 160, 160, 3]` to `[N, 1, 1, 512]`.
    fn run(&self, workspace: &mut Workspace, x: FeatureMap, mut observe: Observer<'_>) -> Result<FeatureMap> {
        let observed = observe.is_some();
        let mut stage = |name, x: &FeatureMap| match &mut observe {
            Some(observe) if x.size().h * x.size().w == 1 => {
                x.to_tensor()?.flatten_from(1).map(|x| observe(name, &x))
            }
            Some(observe) => x.to_tensor().map(|x| observe(name, &x)),
            None => Ok(()),
        };
        let x = workspace.to_device(x)?;
        let x = if observed {
            self.early(workspace, x, &mut stage)?
        } else {
            workspace.per_image(x, |workspace, x| self.early(workspace, x, &mut |_, _| Ok(())))?
        };
        let x = self.mixed_6a.forward(workspace, x)?;
        stage("mixed_6a", &x)?;
        let x = blocks(workspace, &self.repeat_2, x)?;
        stage("repeat_2", &x)?;
        let x = self.mixed_7a.forward(workspace, x)?;
        stage("mixed_7a", &x)?;
        let x = blocks(workspace, &self.repeat_3, x)?;
        stage("repeat_3", &x)?;
        let x = self.block8.forward(workspace, x)?;
        stage("block8", &x)?;
        let pooled = mean(workspace, &x)?;
        workspace.recycle(x);
        stage("avgpool_1a", &pooled)?;
        let x = self.last_linear.replace(workspace, pooled)?;
        let mut x = workspace.to_host(x)?;
        stage("last_linear", &x)?;
        let (scale, shift) = &self.last_bn;
        for embedding in x.values_mut().chunks_exact_mut(Self::DIMENSIONS) {
            for ((value, scale), shift) in embedding.iter_mut().zip(scale).zip(shift) {
                *value = *value * scale + shift;
            }
        }
        stage("last_bn", &x)?;
        Ok(x)
    }

    /// The layers whose maps are large and whose weights are few, up to `[N, 17, 17, 256]`.
    fn early(&self, workspace: &mut Workspace, x: FeatureMap, stage: &mut Stage<'_>) -> Result<FeatureMap> {
        let x = self.conv2d_1a.replace(workspace, x)?;
        stage("conv2d_1a", &x)?;
        let x = self.conv2d_2a.replace(workspace, x)?;
        stage("conv2d_2a", &x)?;
        let x = self.conv2d_2b.replace(workspace, x)?;
        stage("conv2d_2b", &x)?;
        let pooled = POOL.forward(workspace, &x)?;
        workspace.recycle(x);
        stage("maxpool_3a", &pooled)?;
        let x = self.conv2d_3b.replace(workspace, pooled)?;
        stage("conv2d_3b", &x)?;
        let x = self.conv2d_4a.replace(workspace, x)?;
        stage("conv2d_4a", &x)?;
        let x = self.conv2d_4b.replace(workspace, x)?;
        stage("conv2d_4b", &x)?;
        let x = blocks(workspace, &self.repeat_1, x)?;
        stage("repeat_1", &x)?;
        Ok(x)
    }
}

/// The blocks one after the other.
fn blocks(workspace: &mut Workspace, blocks: &[Residual], x: FeatureMap) -> Result<FeatureMap> {
    blocks.iter().try_fold(x, |x, block| block.forward(workspace, x))
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

    /// 0.94, as measured with the other embedder. It was not measured here: the trained weights of this one were not at
    /// hand.
    fn same_picture_threshold(&self) -> f32 {
        0.94
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        triangle(image, face_pixels(image, face), Self::SIDE)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        embed(
            self,
            &self.workspaces,
            Self::SIDE,
            [(1.0 / 128.0, -127.5 / 128.0); 3],
            crops,
            AT_ONCE,
            |workspace, x| self.run(workspace, x, None),
        )
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
