//! The three networks of MTCNN. Layers and names as in facenet-pytorch's `PNet`, `RNet` and `ONet`.

use candle_core::Result;
use candle_nn::{VarBuilder, linear};

use crate::{
    Backend, ModelError,
    native::{FeatureMap, Workspace},
    network::Network,
    nn::{Conv, Dense, Layer, MaxPool, Sequential, Window, concat, conv2d, prelu},
    weights::Weights,
};

const POOL_2: MaxPool = MaxPool { side: 2, stride: 2, ceil_mode: true };
const POOL_3: MaxPool = MaxPool { side: 3, stride: 2, ceil_mode: true };

/// Returns the convolution `conv<number>` and PReLU `prelu<number>`.
fn conv(number: usize, c_in: usize, c_out: usize, side: usize, vb: &VarBuilder<'_>) -> Result<Conv> {
    let conv = conv2d(c_in, c_out, Window::valid(side, 1), &vb.pp(format!("conv{number}")))?;
    Ok(conv.with_activation(prelu(c_out, &vb.pp(format!("prelu{number}")))?))
}

/// Returns the dense layer `dense<number>` over maps `[N, channels, 3, 3]`, and PReLU `prelu<number>`.
fn dense(number: usize, channels: usize, outputs: usize, vb: &VarBuilder<'_>) -> Result<Dense> {
    let linear = linear(3 * 3 * channels, outputs, vb.pp(format!("dense{number}")))?;
    let prelu = prelu(outputs, &vb.pp(format!("prelu{number}")))?;
    Ok(Dense::of_maps(linear, 3, 3, channels).with_activation(prelu))
}

/// Returns linear layers over one input.
fn heads<const N: usize>(
    inputs: usize,
    heads: [(&'static str, usize); N],
    vb: &VarBuilder<'_>,
) -> Result<Layer> {
    let head = |(name, outputs)| -> Result<(&'static str, Layer)> {
        Ok((name, Dense::new(linear(inputs, outputs, vb.pp(name))?).into()))
    };
    Ok(concat(heads.into_iter().map(head).collect::<Result<Vec<_>>>()?))
}

/// Returns P-Net: `[N, 3, H, W]` to `[N, 6, H', W']`, for each 12x12 cell the scores of "no face" and "face", and the regression.
pub(crate) fn pnet(vb: &VarBuilder<'_>) -> Result<Sequential> {
    let head = |name, outputs| -> Result<(&'static str, Layer)> {
        Ok((name, conv2d(32, outputs, Window::POINT, &vb.pp(name))?.into()))
    };
    Ok(Sequential::new()
        .add("conv1", conv(1, 3, 10, 3, vb)?)
        .add("pool1", POOL_2)
        .add("conv2", conv(2, 10, 16, 3, vb)?)
        .add("conv3", conv(3, 16, 32, 3, vb)?)
        .add("conv4", concat([head("conv4_1", 2)?, head("conv4_2", 4)?])))
}

/// Returns the convolutions of R-Net: `[N, 3, 24, 24]` to `[N, 64, 3, 3]`.
pub(crate) fn rnet_features(vb: &VarBuilder<'_>) -> Result<Sequential> {
    Ok(Sequential::new()
        .add("conv1", conv(1, 3, 28, 3, vb)?)
        .add("pool1", POOL_3)
        .add("conv2", conv(2, 28, 48, 3, vb)?)
        .add("pool2", POOL_3)
        .add("conv3", conv(3, 48, 64, 2, vb)?))
}

/// Returns the dense layers of R-Net: `[N, 64, 3, 3]` to `[N, 6]`, the scores of "no face" and "face", and the regression.
pub(crate) fn rnet_heads(vb: &VarBuilder<'_>) -> Result<Sequential> {
    Ok(Sequential::new()
        .add("dense4", dense(4, 64, 128, vb)?)
        .add("dense5", heads(128, [("dense5_1", 2), ("dense5_2", 4)], vb)?))
}

/// Returns the convolutions of O-Net: `[N, 3, 48, 48]` to `[N, 128, 3, 3]`.
pub(crate) fn onet_features(vb: &VarBuilder<'_>) -> Result<Sequential> {
    Ok(Sequential::new()
        .add("conv1", conv(1, 3, 32, 3, vb)?)
        .add("pool1", POOL_3)
        .add("conv2", conv(2, 32, 64, 3, vb)?)
        .add("pool2", POOL_3)
        .add("conv3", conv(3, 64, 64, 3, vb)?)
        .add("pool3", POOL_2)
        .add("conv4", conv(4, 64, 128, 2, vb)?))
}

/// Returns the dense layers of O-Net: `[N, 128, 3, 3]` to `[N, 16]`, the scores of "no face" and "face", the regression,
/// and the landmarks, the five x before the five y.
pub(crate) fn onet_heads(vb: &VarBuilder<'_>) -> Result<Sequential> {
    Ok(Sequential::new()
        .add("dense5", dense(5, 128, 256, vb)?)
        .add("dense6", heads(256, [("dense6_1", 2), ("dense6_2", 4), ("dense6_3", 10)], vb)?))
}

/// An output cell of P-Net whose score reached the threshold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub row: usize,
    pub column: usize,
    pub score: f32,
    pub regression: [f32; 4],
}

/// Score and regression of a crop, by R-Net or O-Net.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refined {
    pub score: f32,
    pub regression: [f32; 4],
}

/// Returns the softmax over "no face" and "face".
fn probability(no_face: f32, face: f32) -> f32 {
    1.0 / (1.0 + (no_face - face).exp())
}

/// P-Net, over all 12x12 cells of a pyramid level.
#[derive(Debug)]
pub(super) struct ProposalNet(Network);

impl ProposalNet {
    pub(super) fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        Network::new(pnet, weights, backend).map(Self)
    }

    /// Rows (or columns) of output for as many of input, at least 12.
    pub(super) fn outputs(input: usize) -> usize {
        (input - 2).div_ceil(2) - 4
    }

    /// Calls `found` with the cells of `pixels` `[1, height, width, 3]` whose score is at least `threshold`, row by row.
    pub(super) fn run(
        &self,
        workspace: &mut Workspace,
        pixels: FeatureMap,
        threshold: f32,
        mut found: impl FnMut(Cell),
    ) -> Result<()> {
        let x = self.0.run(workspace, pixels)?;
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

/// A network that refines crops: convolutions, then dense layers, which run on larger batches.
#[derive(Debug)]
pub(super) struct CropNetwork {
    features: Network,
    heads: Network,
}

impl CropNetwork {
    fn new(
        features: fn(&VarBuilder<'_>) -> Result<Sequential>,
        heads: fn(&VarBuilder<'_>) -> Result<Sequential>,
        weights: &Weights,
        backend: &Backend,
    ) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            features: Network::new(features, weights, backend)?,
            heads: Network::new(heads, weights, backend)?,
        })
    }
}

/// R-Net or O-Net.
pub(super) trait CropNet: Sync {
    /// The result for a crop.
    type Output: Send;
    /// Side of the crops, pixels.
    const SIDE: usize;
    /// Crops whose widest maps stay in the second-level cache.
    const AT_ONCE: usize;
    /// Rows, columns and channels of the convolutions' output.
    const FEATURES: [usize; 3];

    /// Returns the layers.
    fn network(&self) -> &CropNetwork;

    /// Interprets the values of the dense layers, which are crop after crop.
    fn parse(values: &[f32]) -> Vec<Self::Output>;

    /// Runs the convolutions on crops `[n, SIDE, SIDE, 3]`. Returns `[n, rows, columns, channels]`.
    fn extract_features(&self, workspace: &mut Workspace, crops: FeatureMap) -> Result<FeatureMap> {
        self.network().features.run(workspace, crops)
    }

    /// Runs the dense layers on their output.
    fn classify(&self, workspace: &mut Workspace, features: FeatureMap) -> Result<Vec<Self::Output>> {
        let x = self.network().heads.run(workspace, features)?;
        let outputs = Self::parse(x.values());
        workspace.recycle(x);
        Ok(outputs)
    }
}

/// R-Net, for 24x24 crops.
#[derive(Debug)]
pub(super) struct RefineNet(CropNetwork);

impl RefineNet {
    pub(super) fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        CropNetwork::new(rnet_features, rnet_heads, weights, backend).map(Self)
    }
}

impl CropNet for RefineNet {
    type Output = Refined;
    const SIDE: usize = 24;
    const AT_ONCE: usize = 4;
    const FEATURES: [usize; 3] = [3, 3, 64];

    fn network(&self) -> &CropNetwork {
        &self.0
    }

    fn parse(values: &[f32]) -> Vec<Refined> {
        let refined = |&[no, yes, l, t, r, b]: &[f32; 6]| Refined {
            score: probability(no, yes),
            regression: [l, t, r, b],
        };
        values.as_chunks::<6>().0.iter().map(refined).collect()
    }
}

/// O-Net, for 48x48 crops, which also locates the landmarks.
#[derive(Debug)]
pub(super) struct OutputNet(CropNetwork);

impl OutputNet {
    pub(super) fn new(weights: &Weights, backend: &Backend) -> std::result::Result<Self, ModelError> {
        CropNetwork::new(onet_features, onet_heads, weights, backend).map(Self)
    }
}

impl CropNet for OutputNet {
    /// The landmarks `[x, y]` are in widths and heights of the crop.
    type Output = (Refined, [[f32; 2]; 5]);
    const SIDE: usize = 48;
    const AT_ONCE: usize = 1;
    const FEATURES: [usize; 3] = [3, 3, 128];

    fn network(&self) -> &CropNetwork {
        &self.0
    }

    fn parse(values: &[f32]) -> Vec<Self::Output> {
        let output = |&[no, yes, l, t, r, b, x0, x1, x2, x3, x4, y0, y1, y2, y3, y4]: &[f32; 16]| {
            let refined = Refined { score: probability(no, yes), regression: [l, t, r, b] };
            (refined, [[x0, y0], [x1, y1], [x2, y2], [x3, y3], [x4, y4]])
        };
        values.as_chunks::<16>().0.iter().map(output).collect()
    }
}
