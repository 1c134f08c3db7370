//! The layers as SIMD kernels for the processor, over channels-last maps `[N, H, W, C]`.
//!
//! Channels last, because then the inputs of a convolution lie in runs, bias and activation run along memory, and the
//! pictures come in that order. candle's own convolution is channels first, copies both ways, unpacks the weights on
//! every call and knows neither ceil-mode pooling nor fast depthwise kernels.

mod aligned;
mod conv;
mod depthwise;
mod feature_map;
pub(crate) mod max_pool;
mod network;
pub(crate) mod parallel;
mod winograd;

use candle_core::{Result, Tensor, bail};
use facepipe_shared::simd::SimdLevel;

use crate::nn::Window;

pub use self::parallel::{with_intra_op_parallelism, without_intra_op_parallelism};
pub(crate) use self::{
    conv::Size,
    feature_map::{ChannelSlice, FeatureMap, Workspace, Workspaces},
    network::NativeNetwork,
    parallel::intra_op_threads,
};
use conv::{DirectConv, PackedWeights};
use depthwise::DepthwiseConv;
use winograd::{WinogradConv, WinogradWeights};

/// The activation that a convolution applies to its sums.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FusedActivation {
    None,
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x` above zero, `slope * x` below, one slope a channel.
    PRelu(Vec<f32>),
}

impl Window {
    /// Returns the number of kernel positions.
    const fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    fn output(&self, size: Size) -> Result<Size> {
        let side = |input: usize, kernel: usize, padding: usize| {
            (input + 2 * padding).checked_sub(kernel).map(|free| free / self.stride + 1)
        };
        let h = side(size.h, self.kernel.0, self.padding.0);
        match (h, side(size.w, self.kernel.1, self.padding.1)) {
            (Some(h), Some(w)) => Ok(Size { n: size.n, h, w }),
            _ => bail!("a {}x{} input is smaller than the {:?} kernel", size.h, size.w, self.kernel),
        }
    }
}

/// Checks that weight `[out, in, rows, columns]`, bias, window and activation fit each other. Returns output and input channels.
fn checked(
    weight: &Tensor,
    bias: &Tensor,
    window: Window,
    activation: &FusedActivation,
) -> Result<(usize, usize)> {
    let (c_out, c_in, rows, columns) = weight.dims4()?;
    if bias.dims() != [c_out] || (rows, columns) != window.kernel {
        bail!(
            "weight {:?} and bias {:?} do not fit the kernel {:?}",
            weight.dims(),
            bias.dims(),
            window.kernel
        );
    }
    if matches!(activation, FusedActivation::PRelu(slopes) if slopes.len() != c_out) {
        bail!("there must be one slope for each of {c_out} channels");
    }
    Ok((c_out, c_in))
}

/// Converts a weight `[out, in, rows, columns]` to `[rows, columns, in, out]`.
fn taps_first(weight: &Tensor) -> Result<Vec<f32>> {
    weight.permute((2, 3, 1, 0))?.contiguous()?.flatten_all()?.to_vec1()
}

/// A convolution with bias and activation.
#[derive(Debug)]
pub(crate) struct Conv2d {
    weights: ConvWeights,
    window: Window,
    c_in: usize,
    c_out: usize,
}

/// Packed for one of the two kernels.
#[derive(Debug)]
enum ConvWeights {
    Direct(PackedWeights),
    Winograd(WinogradWeights),
}

impl Conv2d {
    /// Builds it from PyTorch's `weight` `[out, in, rows, columns]` and `bias` `[out]`.
    pub(crate) fn new(
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: FusedActivation,
    ) -> Result<Self> {
        Self::for_level(SimdLevel::best(), weight, bias, window, activation)
    }

    /// Builds as [`Self::new`] does, with the given vector instructions.
    fn for_level(
        level: SimdLevel,
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: FusedActivation,
    ) -> Result<Self> {
        let (c_out, c_in) = checked(weight, bias, window, &activation)?;
        let (weight, bias) = (taps_first(weight)?, bias.to_vec1()?);
        let weights = if window.kernel == (3, 3) && window.stride == 1 && WinogradWeights::pays(c_in, c_out) {
            ConvWeights::Winograd(WinogradWeights::new(level, &weight, &bias, &activation))
        } else {
            ConvWeights::Direct(PackedWeights::new(level, &weight, &bias, activation))
        };
        Ok(Self { weights, window, c_in, c_out })
    }

    /// Returns the number of output channels.
    pub(crate) fn channels(&self) -> usize {
        self.c_out
    }

    /// Convolves `[N, H, W, in]` to `[N, H', W', out]`.
    pub(crate) fn forward(&self, workspace: &mut Workspace, input: ChannelSlice<'_>) -> Result<FeatureMap> {
        self.new_map(workspace, &[input], None)
    }

    /// Runs as [`Self::forward`] does, and recycles the input.
    pub(crate) fn replace(&self, workspace: &mut Workspace, input: FeatureMap) -> Result<FeatureMap> {
        let out = self.forward(workspace, input.all_channels())?;
        workspace.recycle(input);
        Ok(out)
    }

    /// Runs as [`Self::forward`] does, but adds `residual` `[N, H', W', out]` before the activation, and takes as input the
    /// channels of several maps, one after the other, which only 1x1 kernels can.
    pub(crate) fn forward_add(
        &self,
        workspace: &mut Workspace,
        inputs: &[ChannelSlice<'_>],
        residual: &FeatureMap,
    ) -> Result<FeatureMap> {
        self.new_map(workspace, inputs, Some(residual))
    }

    /// Writes the output to the channels of `out` from `channel` on.
    pub(crate) fn forward_into(
        &self,
        input: ChannelSlice<'_>,
        out: &mut FeatureMap,
        channel: usize,
    ) -> Result<()> {
        self.run(&[input], None, out, channel)
    }

    /// Returns the output size for an input of `size`.
    pub(crate) fn output(&self, size: Size) -> Result<Size> {
        self.window.output(size)
    }

    fn new_map(
        &self,
        workspace: &mut Workspace,
        inputs: &[ChannelSlice<'_>],
        residual: Option<&FeatureMap>,
    ) -> Result<FeatureMap> {
        let Some(first) = inputs.first() else { bail!("a convolution needs an input") };
        let mut out = workspace.map(self.window.output(first.size())?, self.channels());
        self.run(inputs, residual, &mut out, 0)?;
        Ok(out)
    }

    fn run(
        &self,
        inputs: &[ChannelSlice<'_>],
        residual: Option<&FeatureMap>,
        out: &mut FeatureMap,
        channel: usize,
    ) -> Result<()> {
        let Some(first) = inputs.first() else { bail!("a convolution needs an input") };
        let (input, output) = (first.size(), self.window.output(first.size())?);
        let c_in = inputs.iter().map(ChannelSlice::channels).sum::<usize>();
        if c_in != self.c_in {
            bail!("input has {c_in} channels, the convolution wants {}", self.c_in);
        }
        if inputs.iter().any(|other| other.size() != input)
            || (inputs.len() > 1 && self.window != Window::POINT)
        {
            bail!("only a 1x1 convolution takes several maps, of one size");
        }
        if residual.is_some_and(|r| (r.size(), r.channels()) != (output, self.channels())) {
            bail!("the residual does not have the shape of the output");
        }
        let stride = out.channels();
        if out.size() != output || channel + self.channels() > stride {
            bail!("the output does not fit into its map");
        }
        let sources = inputs.iter().map(ChannelSlice::values).collect::<Result<Vec<_>>>()?;
        let Some(values) = out.values_mut().get_mut(channel..) else {
            bail!("the output does not fit into its map")
        };
        let residual = residual.map(FeatureMap::values);
        let window = self.window;
        match (&self.weights, sources.as_slice()) {
            (ConvWeights::Direct(packed), sources) => {
                DirectConv { packed, window, sources, input, output, residual }.run(values, stride);
            }
            (ConvWeights::Winograd(weights), &[source]) => {
                let padding = window.padding;
                WinogradConv { weights, padding, source, input, output, residual }.run(values, stride);
            }
            _ => bail!("only a 1x1 convolution takes several maps"),
        }
        Ok(())
    }
}

/// A convolution that keeps the channels apart, with bias and activation.
#[derive(Debug)]
pub(crate) struct Depthwise {
    level: SimdLevel,
    /// `[kernel rows * kernel columns, channels]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Slopes of PReLU go up to the end of a vector.
    activation: FusedActivation,
    window: Window,
}

impl Depthwise {
    /// Builds it from PyTorch's `weight` `[channels, 1, rows, columns]` and `bias` `[channels]`.
    pub(crate) fn new(
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: FusedActivation,
    ) -> Result<Self> {
        Self::for_level(SimdLevel::best(), weight, bias, window, activation)
    }

    /// Builds as [`Self::new`] does, with the given vector instructions.
    fn for_level(
        level: SimdLevel,
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        mut activation: FusedActivation,
    ) -> Result<Self> {
        let (channels, inputs) = checked(weight, bias, window, &activation)?;
        if inputs != 1 {
            bail!("weight {:?} is not depthwise", weight.dims());
        }
        if let FusedActivation::PRelu(slopes) = &mut activation {
            slopes.resize(channels.next_multiple_of(level.lanes()), 0.0);
        }
        Ok(Self { level, weight: taps_first(weight)?, bias: bias.to_vec1()?, activation, window })
    }

    /// Returns the output size for an input of `size`.
    pub(crate) fn output(&self, size: Size) -> Result<Size> {
        self.window.output(size)
    }

    /// Convolves `[N, H, W, C]` to `[N, H', W', C]`.
    pub(crate) fn forward(&self, workspace: &mut Workspace, input: &FeatureMap) -> Result<FeatureMap> {
        let channels = self.bias.len();
        if input.channels() != channels {
            bail!("input has {} channels, the convolution wants {channels}", input.channels());
        }
        let (size, output) = (input.size(), self.window.output(input.size())?);
        let mut out = workspace.map(output, channels);
        let &Self { level, ref weight, ref bias, ref activation, window } = self;
        let input = input.values();
        DepthwiseConv { level, weight, bias, activation, window, input, size, output }.run(out.values_mut());
        Ok(out)
    }
}

/// Halves a map as dlib's residual blocks do: `max(0, half + added)`, where `half` is the mean of each 2x2 pixels of
/// `input` (a last odd row or column left out), its channels followed by zeros up to those of `added`, and `added`, which
/// may be smaller, is followed by rows and columns of zeros. `[N, H, W, C]` to `[N, H / 2, W / 2, C']`.
pub(crate) fn shortcut(
    workspace: &mut Workspace,
    input: &FeatureMap,
    added: &FeatureMap,
) -> Result<FeatureMap> {
    let (size, channels) = (input.size(), added.channels());
    let output = Size { n: size.n, h: size.h / 2, w: size.w / 2 };
    let small = added.size();
    if small.n != size.n || small.h > output.h || small.w > output.w || input.channels() > channels {
        bail!("a map of {small:?} and {channels} channels is not half of {size:?} and {}", input.channels());
    }
    let mut out = workspace.map(output, channels);
    // Rows of all images, one after the other.
    let (c_in, width) = (input.channels(), size.w * input.channels());
    let images = input.values().chunks_exact((size.h * width).max(1));
    let sums = added.values().chunks_exact((small.h * small.w * channels).max(1));
    let halves = out.values_mut().chunks_exact_mut((output.h * output.w * channels).max(1));
    for ((out, image), added) in halves.zip(images).zip(sums) {
        let rows = image.chunks_exact((2 * width).max(1));
        let mut added = added.chunks_exact((small.w * channels).max(1));
        for (out, rows) in out.chunks_exact_mut((output.w * channels).max(1)).zip(rows) {
            let (upper, lower) = rows.split_at(width);
            let squares = upper.chunks_exact(2 * c_in).zip(lower.chunks_exact(2 * c_in));
            for (out, (upper, lower)) in out.chunks_exact_mut(channels).zip(squares) {
                let (half, beyond) = out.split_at_mut(c_in);
                beyond.fill(0.0);
                let ((a, b), (c, d)) = (upper.split_at(c_in), lower.split_at(c_in));
                for ((((out, a), b), c), d) in half.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *out = (a + b + c + d) * 0.25;
                }
            }
            let added = added.next().unwrap_or_default();
            out.iter_mut().zip(added).for_each(|(out, added)| *out += added);
            out.iter_mut().for_each(|out| *out = out.max(0.0));
        }
    }
    Ok(out)
}

/// Returns the mean of each channel, `[N, H, W, C]` to `[N, 1, 1, C]`.
#[expect(clippy::cast_precision_loss, reason = "single precision is what the networks compute in")]
pub(crate) fn mean(workspace: &mut Workspace, input: &FeatureMap) -> Result<FeatureMap> {
    let Size { n, h, w } = input.size();
    let channels = input.channels();
    let mut out = workspace.map(Size { n, h: 1, w: 1 }, channels);
    let images = input.values().chunks_exact((h * w * channels).max(1));
    for (sums, image) in out.values_mut().chunks_exact_mut(channels.max(1)).zip(images) {
        sums.fill(0.0);
        for pixel in image.chunks_exact(channels) {
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        sums.iter_mut().for_each(|sum| *sum /= (h * w) as f32);
    }
    Ok(out)
}

#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod tests;
