//! The three networks of MTCNN. Layers and names as in facenet-pytorch's `PNet`, `RNet` and `ONet`.

use candle_core::{Result, Tensor};

use crate::{
    ModelError,
    layers::{Activation, Conv2d, FeatureMap, MaxPool, Window, Workspace},
    weights::Weights,
};

/// An output cell of the first network whose score passed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub row: usize,
    pub column: usize,
    pub score: f32,
    pub regression: [f32; 4],
}

/// What the second and third network say of a crop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refined {
    pub score: f32,
    pub regression: [f32; 4],
}

/// Convolution `name` with the slopes of PReLU `slopes`, `[out, in, kernel, kernel]` in the file.
fn conv(
    weights: &Weights,
    number: &str,
    c_in: usize,
    c_out: usize,
    side: usize,
) -> std::result::Result<Conv2d, ModelError> {
    let weight = weights.get(&format!("conv{number}.weight"), &[c_out, c_in, side, side])?;
    let bias = weights.get(&format!("conv{number}.bias"), &[c_out])?;
    let slopes = weights.get(&format!("prelu{number}.weight"), &[c_out])?.to_vec1()?;
    Ok(Conv2d::new(weights.backend(), &weight, &bias, Window::valid(side, 1), Activation::PRelu(slopes))?)
}

/// Several outputs of the same input, computed as one 1x1 convolution: a score for "no face" and "face", and the
/// regressions. Names and numbers of outputs.
fn heads(
    weights: &Weights,
    names: &[(&str, usize)],
    inputs: usize,
    kernel: &[usize],
) -> std::result::Result<Conv2d, ModelError> {
    let (mut parts, mut biases) = (Vec::new(), Vec::new());
    for &(name, outputs) in names {
        let shape = [&[outputs, inputs], kernel].concat();
        let weight = weights.get(&format!("{name}.weight"), &shape)?;
        parts.push(weight.reshape((outputs, inputs, 1, 1))?);
        biases.push(weights.get(&format!("{name}.bias"), &[outputs])?);
    }
    let (weight, bias) = (Tensor::cat(&parts, 0)?, Tensor::cat(&biases, 0)?);
    Ok(Conv2d::new(weights.backend(), &weight, &bias, Window::POINT, Activation::None)?)
}

/// A dense layer over the values of a `[side, side, channels]` map. PyTorch flattened that with columns before rows before
/// channels; here they stay as they lie, rows before columns.
fn dense(
    weights: &Weights,
    number: usize,
    (side, channels): (usize, usize),
    outputs: usize,
) -> std::result::Result<Conv2d, ModelError> {
    let weight = weights.get(&format!("dense{number}.weight"), &[outputs, side * side * channels])?;
    let weight = weight.reshape((outputs, side, side, channels))?.transpose(1, 2)?.contiguous()?;
    let weight = weight.reshape((outputs, side * side * channels, 1, 1))?;
    let bias = weights.get(&format!("dense{number}.bias"), &[outputs])?;
    let slopes = weights.get(&format!("prelu{number}.weight"), &[outputs])?.to_vec1()?;
    Ok(Conv2d::new(weights.backend(), &weight, &bias, Window::POINT, Activation::PRelu(slopes))?)
}

/// Softmax over "no face" and "face".
fn probability(no_face: f32, face: f32) -> f32 {
    1.0 / (1.0 + (no_face - face).exp())
}

const POOL_2: MaxPool = MaxPool { side: 2, stride: 2, partial: true };
const POOL_3: MaxPool = MaxPool { side: 3, stride: 2, partial: true };

/// A network that looks at crops.
pub(super) trait CropNet: Sync {
    /// What it says of a crop.
    type Output: Send;
    /// Side of the crops, pixels.
    const SIDE: usize;
    /// Crops whose widest maps stay in the second-level cache.
    const AT_ONCE: usize;
    /// Side and channels of the maps that the convolutions leave of a crop.
    const FEATURES: (usize, usize);

    /// What the convolutions make of `crops` `[n, SIDE, SIDE, 3]`.
    fn extract_features(&self, workspace: &mut Workspace, crops: FeatureMap) -> Result<FeatureMap>;

    /// What the dense layers say of that, `[n, 1, 1, all values of a map]`, crop by crop.
    fn classify(&self, workspace: &mut Workspace, seen: FeatureMap) -> Result<Vec<Self::Output>>;
}

/// Looks at every 12x12 cell of a pyramid level.
#[derive(Debug)]
pub(super) struct ProposalNet {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    heads: Conv2d,
}

impl ProposalNet {
    pub(super) fn new(weights: &Weights) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            conv1: conv(weights, "1", 3, 10, 3)?,
            conv2: conv(weights, "2", 10, 16, 3)?,
            conv3: conv(weights, "3", 16, 32, 3)?,
            heads: heads(weights, &[("conv4_1", 2), ("conv4_2", 4)], 32, &[1, 1])?,
        })
    }

    /// Rows (or columns) of output for as many of input, at least 12.
    pub(super) fn outputs(input: usize) -> usize {
        (input - 2).div_ceil(2) - 4
    }

    /// Of `pixels` `[1, height, width, 3]`, the cells with a score of at least `threshold`, row by row.
    pub(super) fn run(
        &self,
        workspace: &mut Workspace,
        pixels: FeatureMap,
        threshold: f32,
        mut found: impl FnMut(Cell),
    ) -> Result<()> {
        let x = workspace.to_device(pixels)?;
        let x = pooled(workspace, &self.conv1, POOL_2, x)?;
        let x = chain(workspace, &[&self.conv2, &self.conv3, &self.heads], x)?;
        let x = workspace.to_host(x)?;
        let columns = x.size().w;
        for (i, &[no, yes, l, t, r, b]) in x.values().as_chunks::<6>().0.iter().enumerate() {
            let score = probability(no, yes);
            if score >= threshold {
                found(Cell { row: i / columns, column: i % columns, score, regression: [l, t, r, b] });
            }
        }
        workspace.recycle(x);
        Ok(())
    }
}

/// A convolution and the pooling after it.
fn pooled(workspace: &mut Workspace, conv: &Conv2d, pool: MaxPool, x: FeatureMap) -> Result<FeatureMap> {
    let wide = chain(workspace, &[conv], x)?;
    let out = pool.forward(workspace, &wide)?;
    workspace.recycle(wide);
    Ok(out)
}

/// Convolutions one after the other.
fn chain(workspace: &mut Workspace, layers: &[&Conv2d], x: FeatureMap) -> Result<FeatureMap> {
    layers.iter().try_fold(x, |x, layer| layer.replace(workspace, x))
}

/// Looks at 24x24 crops.
#[derive(Debug)]
pub(super) struct RefineNet {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    dense4: Conv2d,
    heads: Conv2d,
}

impl RefineNet {
    pub(super) fn new(weights: &Weights) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            conv1: conv(weights, "1", 3, 28, 3)?,
            conv2: conv(weights, "2", 28, 48, 3)?,
            conv3: conv(weights, "3", 48, 64, 2)?,
            dense4: dense(weights, 4, (3, 64), 128)?,
            heads: heads(weights, &[("dense5_1", 2), ("dense5_2", 4)], 128, &[])?,
        })
    }
}

impl CropNet for RefineNet {
    type Output = Refined;
    const SIDE: usize = 24;
    const AT_ONCE: usize = 4;
    const FEATURES: (usize, usize) = (3, 64);

    /// What the convolutions make of `crops` `[n, 24, 24, 3]`: `[n, 3, 3, 64]`.
    fn extract_features(&self, workspace: &mut Workspace, crops: FeatureMap) -> Result<FeatureMap> {
        let x = workspace.to_device(crops)?;
        let x = pooled(workspace, &self.conv1, POOL_3, x)?;
        let x = pooled(workspace, &self.conv2, POOL_3, x)?;
        let x = chain(workspace, &[&self.conv3], x)?;
        workspace.to_host(x)
    }

    /// What the dense layers say of that.
    fn classify(&self, workspace: &mut Workspace, seen: FeatureMap) -> Result<Vec<Refined>> {
        let x = workspace.to_device(seen)?;
        let x = chain(workspace, &[&self.dense4, &self.heads], x)?;
        let x = workspace.to_host(x)?;
        let refined = |&[no, yes, l, t, r, b]: &[f32; 6]| Refined {
            score: probability(no, yes),
            regression: [l, t, r, b],
        };
        let outputs = x.values().as_chunks::<6>().0.iter().map(refined).collect();
        workspace.recycle(x);
        Ok(outputs)
    }
}

/// Looks at 48x48 crops, and says where the landmarks are.
#[derive(Debug)]
pub(super) struct OutputNet {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    dense5: Conv2d,
    heads: Conv2d,
}

impl OutputNet {
    pub(super) fn new(weights: &Weights) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            conv1: conv(weights, "1", 3, 32, 3)?,
            conv2: conv(weights, "2", 32, 64, 3)?,
            conv3: conv(weights, "3", 64, 64, 3)?,
            conv4: conv(weights, "4", 64, 128, 2)?,
            dense5: dense(weights, 5, (3, 128), 256)?,
            heads: heads(weights, &[("dense6_1", 2), ("dense6_2", 4), ("dense6_3", 10)], 256, &[])?,
        })
    }
}

impl CropNet for OutputNet {
    type Output = (Refined, [[f32; 2]; 5]);
    const SIDE: usize = 48;
    const AT_ONCE: usize = 1;
    const FEATURES: (usize, usize) = (3, 128);

    /// What the convolutions make of `crops` `[n, 48, 48, 3]`: `[n, 3, 3, 128]`.
    fn extract_features(&self, workspace: &mut Workspace, crops: FeatureMap) -> Result<FeatureMap> {
        let x = workspace.to_device(crops)?;
        let x = pooled(workspace, &self.conv1, POOL_3, x)?;
        let x = pooled(workspace, &self.conv2, POOL_3, x)?;
        let x = pooled(workspace, &self.conv3, POOL_2, x)?;
        let x = chain(workspace, &[&self.conv4], x)?;
        workspace.to_host(x)
    }

    /// What the dense layers say of that. The landmarks `[x, y]` are in widths and heights of the crop.
    fn classify(&self, workspace: &mut Workspace, seen: FeatureMap) -> Result<Vec<(Refined, [[f32; 2]; 5])>> {
        let x = workspace.to_device(seen)?;
        let x = chain(workspace, &[&self.dense5, &self.heads], x)?;
        let x = workspace.to_host(x)?;
        // The five x come before the five y.
        let output = |&[no, yes, l, t, r, b, x0, x1, x2, x3, x4, y0, y1, y2, y3, y4]: &[f32; 16]| {
            let refined = Refined { score: probability(no, yes), regression: [l, t, r, b] };
            (refined, [[x0, y0], [x1, y1], [x2, y2], [x3, y3], [x4, y4]])
        };
        let outputs = x.values().as_chunks::<16>().0.iter().map(output).collect();
        workspace.recycle(x);
        Ok(outputs)
    }
}
