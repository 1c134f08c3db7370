//! MobileFaceNet (Chen et al. 2018): 128-dimensional face embeddings out of a million weights.

use std::path::Path;

use candle_core::{Result, Tensor};
use image::RgbImage;

use crate::{
    Embedder, Face, ModelError, VisionError, align,
    embedder::{EmbedderKind, embed, l2_normalised},
    layers::{Activation, Conv2d, Depthwise, FeatureMap, Window, Workspace, Workspaces},
    weights::onnx::OnnxWeights,
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

/// Faces that go through the network at once. The maps of one fit into the second-level cache, those of several do not,
/// and the weights are so few that reading them again costs less.
const AT_ONCE: usize = 1;

/// Mean and standard deviation of ImageNet, of values from 0 to 1.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The network. Takes faces that [`align`](mod@align) made, in RGB with ImageNet's mean and deviation.
#[derive(Debug)]
pub struct MobileFaceNet {
    conv1: Conv2d,
    depthwise: Depthwise,
    pointwise: Conv2d,
    blocks: Vec<InvertedResidual>,
    conv2: Conv2d,
    global_depthwise: Depthwise,
    conv3: Conv2d,
    workspaces: Workspaces,
}

/// Widens by a 1x1 convolution, filters each channel, narrows again; adds its input where that has the same shape.
#[derive(Debug)]
struct InvertedResidual {
    expand: Conv2d,
    depthwise: Depthwise,
    project: Conv2d,
    residual: bool,
}

impl InvertedResidual {
    fn forward(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let wide = self.expand.forward(workspace, x.all_channels())?;
        let inner = self.depthwise.forward(workspace, &wide)?;
        workspace.recycle(wide);
        let out = if self.residual {
            self.project.forward_add(workspace, &[inner.all_channels()], &x)?
        } else {
            self.project.forward(workspace, inner.all_channels())?
        };
        workspace.recycle(inner);
        workspace.recycle(x);
        Ok(out)
    }
}

impl MobileFaceNet {
    /// Elements of an embedding.
    pub const DIMENSIONS: usize = 128;

    /// Reads `mobilefacenet.onnx`, as foamliu/MobileFaceNet publishes it; its batch norms are folded already.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of the file.
    pub fn load(file: &Path) -> std::result::Result<Self, ModelError> {
        Self::new(&OnnxWeights::read(file)?)
    }

    /// From the convolutions of that file, which carry the names that PyTorch's exporter gave them.
    ///
    /// # Errors
    ///
    /// [`ModelError`] of a missing or misshapen convolution.
    pub fn new(weights: &OnnxWeights) -> std::result::Result<Self, ModelError> {
        let conv = |name: &str, c_in, c_out, window: Window, activation| {
            let (weight, bias) = weights
                .convolution(&format!("{name}/Conv"), &[c_out, c_in, window.kernel.0, window.kernel.1])?;
            Ok::<_, ModelError>(Conv2d::new(weights.backend(), &weight, &bias, window, activation)?)
        };
        let depthwise = |name: &str, channels, window: Window, activation| {
            let (weight, bias) = weights
                .convolution(&format!("{name}/Conv"), &[channels, 1, window.kernel.0, window.kernel.1])?;
            Ok::<_, ModelError>(Depthwise::new(weights.backend(), &weight, &bias, window, activation)?)
        };
        let three = |stride| Window::same((3, 3), stride);
        let mut blocks = Vec::with_capacity(BLOCKS.len());
        let mut c_in = 64;
        for (i, (inner, c_out, stride)) in BLOCKS.into_iter().enumerate() {
            let name = |part| format!("/features/features.{i}/conv/{part}");
            blocks.push(InvertedResidual {
                expand: conv(&name("conv.0/conv.0.0"), c_in, inner, Window::POINT, Activation::Relu6)?,
                depthwise: depthwise(&name("conv.1/conv.1.0"), inner, three(stride), Activation::Relu6)?,
                project: conv(&name("conv.2"), inner, c_out, Window::POINT, Activation::None)?,
                residual: stride == 1 && c_in == c_out,
            });
            c_in = c_out;
        }
        Ok(Self {
            conv1: conv("/conv1/conv1.0", 3, 64, three(2), Activation::Relu6)?,
            depthwise: depthwise("/dw_conv/depthwise", 64, three(1), Activation::Relu)?,
            pointwise: conv("/dw_conv/pointwise", 64, 64, Window::POINT, Activation::Relu)?,
            blocks,
            conv2: conv("/conv2/conv2.0", 128, 512, Window::POINT, Activation::Relu6)?,
            global_depthwise: depthwise("/gdconv/depthwise", 512, Window::valid(7, 1), Activation::None)?,
            conv3: conv("/conv3", 512, Self::DIMENSIONS, Window::POINT, Activation::None)?,
            workspaces: Workspaces::new(weights.backend()),
        })
    }

    /// The embeddings, each of length 1, of normalised faces `[N, 3, 112, 112]`.
    ///
    /// # Errors
    ///
    /// candle's, of an input of another shape.
    pub fn forward(&self, faces: &Tensor) -> Result<Vec<Vec<f32>>> {
        self.workspaces.in_batches(faces.dim(0)?, AT_ONCE, |workspace, share| {
            let faces = workspace.map_from_tensor(&faces.narrow(0, share.start, share.len())?)?;
            let embeddings = self.run(workspace, faces)?;
            Ok(l2_normalised(workspace, embeddings))
        })
    }

    /// `[N, 112, 112, 3]` to `[N, 1, 1, 128]`.
    fn run(&self, workspace: &mut Workspace, x: FeatureMap) -> Result<FeatureMap> {
        let x = workspace.to_device(x)?;
        let x = self.conv1.replace(workspace, x)?;
        let x = self.depthwise.replace(workspace, x)?;
        let mut x = self.pointwise.replace(workspace, x)?;
        for block in &self.blocks {
            x = block.forward(workspace, x)?;
        }
        let x = self.conv2.replace(workspace, x)?;
        let x = self.global_depthwise.replace(workspace, x)?;
        let x = self.conv3.replace(workspace, x)?;
        workspace.to_host(x)
    }
}

impl Embedder for MobileFaceNet {
    fn name(&self) -> &'static str {
        EmbedderKind::MobileFaceNet.name()
    }

    fn dimensions(&self) -> usize {
        Self::DIMENSIONS
    }

    /// 0.355, at which pairs of Labeled Faces in the Wild are told apart best.
    fn default_threshold(&self) -> f32 {
        0.355
    }

    /// 0.35, where most pairs are told apart rightly: 99.96 % of the 4950 pairs of a hundred photographs of ten people
    /// of Labeled Faces in the Wild, faces found and aligned as here (0 of 4500 pairs of different people taken for
    /// one person, 2 of 450 pairs of one person not). As many are wrong on both sides, 0.2 %, at 0.30.
    fn verification_threshold(&self) -> f32 {
        0.35
    }

    /// 0.94, from which on are 98 to 100 % of copies of photographs of Labeled Faces in the Wild in JPEG of quality 50 and
    /// more, in 4/5 of the size or twice the size, 1 of 937 pairs of files of one person (the same
    /// photograph twice), and none of 86,216 pairs of two people, whose greatest cosine is 0.49.
    fn same_picture_threshold(&self) -> f32 {
        0.94
    }

    fn crop(&self, image: &RgbImage, face: &Face) -> RgbImage {
        align::align(image, face)
    }

    fn embed(&self, crops: &[RgbImage]) -> std::result::Result<Vec<Vec<f32>>, VisionError> {
        let channel = |mean: f32, deviation: f32| (1.0 / (255.0 * deviation), -mean / deviation);
        let ([r, g, b], [dr, dg, db]) = (MEAN, DEVIATION);
        let normalise = [channel(r, dr), channel(g, dg), channel(b, db)];
        embed(self, &self.workspaces, align::ALIGNED_SIDE, normalise, crops, AT_ONCE, |workspace, x| {
            self.run(workspace, x)
        })
    }
}
