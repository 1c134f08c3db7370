//! The layers that the networks are made of, over channels-last maps `[N, H, W, C]`.
//!
//! Channels last, because then the inputs of a convolution lie in runs, bias and activation run along memory, and the
//! pictures come in that order. candle's own convolution is channels first, copies both ways, unpacks the weights on
//! every call and knows neither ceil-mode pooling nor fast depthwise kernels.

mod conv;
mod depthwise;
mod level;
mod map;

use candle_core::{Result, Tensor, bail};

pub(crate) use self::{
    conv::Size,
    level::Level,
    map::{Map, Part, Workspace, Workspaces},
};
use conv::{Convolution, Packed};
use depthwise::{Filter, Pooling};

/// What follows the bias of a convolution.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Activation {
    None,
    Relu,
    /// `min(max(x, 0), 6)`
    Relu6,
    /// `x` above zero, `slope * x` below, one slope a channel.
    PRelu(Vec<f32>),
}

/// Kernel size, stride and zero padding (on both sides), rows before columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub kernel: (usize, usize),
    pub stride: usize,
    pub padding: (usize, usize),
}

impl Window {
    pub(crate) const POINT: Self = Self { kernel: (1, 1), stride: 1, padding: (0, 0) };

    /// No padding.
    pub(crate) const fn valid(side: usize, stride: usize) -> Self {
        Self { kernel: (side, side), stride, padding: (0, 0) }
    }

    /// Padded so that stride 1 keeps the size; for odd kernels.
    pub(crate) const fn same(kernel: (usize, usize), stride: usize) -> Self {
        Self { kernel, stride, padding: (kernel.0 / 2, kernel.1 / 2) }
    }

    /// Pixels of it.
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

/// A convolution with bias and activation.
#[derive(Debug)]
pub(crate) struct Conv2d {
    packed: Packed,
    window: Window,
    c_in: usize,
}

impl Conv2d {
    /// From PyTorch's `weight` `[out, in, rows, columns]` and `bias` `[out]`.
    pub(crate) fn new(
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: Activation,
    ) -> Result<Self> {
        Self::for_level(Level::best(), weight, bias, window, activation)
    }

    /// As [`Self::new`], for certain vector instructions.
    fn for_level(
        level: Level,
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: Activation,
    ) -> Result<Self> {
        let (c_out, c_in, rows, columns) = weight.dims4()?;
        if bias.dims() != [c_out] || (rows, columns) != window.kernel {
            bail!(
                "weight {:?} and bias {:?} do not fit the kernel {:?}",
                weight.dims(),
                bias.dims(),
                window.kernel
            );
        }
        if matches!(&activation, Activation::PRelu(slopes) if slopes.len() != c_out) {
            bail!("there must be one slope for each of {c_out} channels");
        }
        let weight = weight.permute((2, 3, 1, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let packed = Packed::new(level, &weight, &bias.to_vec1()?, activation);
        Ok(Self { packed, window, c_in })
    }

    /// Output channels.
    pub(crate) fn channels(&self) -> usize {
        self.packed.channels()
    }

    /// `[N, H, W, in]` to `[N, H', W', out]`.
    pub(crate) fn forward(&self, workspace: &mut Workspace, input: Part<'_>) -> Result<Map> {
        self.new_map(workspace, &[input], None)
    }

    /// As [`Self::forward`], but adds `residual` `[N, H', W', out]` before the activation, and takes as input the
    /// channels of several maps, one after the other, which only 1x1 kernels can.
    pub(crate) fn forward_add(
        &self,
        workspace: &mut Workspace,
        inputs: &[Part<'_>],
        residual: &Map,
    ) -> Result<Map> {
        self.new_map(workspace, inputs, Some(residual))
    }

    /// Writes the output to the channels of `out` from `channel` on.
    pub(crate) fn forward_into(&self, input: Part<'_>, out: &mut Map, channel: usize) -> Result<()> {
        self.run(&[input], None, out, channel)
    }

    /// Size of what comes out of an input of `size`.
    pub(crate) fn output(&self, size: Size) -> Result<Size> {
        self.window.output(size)
    }

    fn new_map(&self, workspace: &mut Workspace, inputs: &[Part<'_>], residual: Option<&Map>) -> Result<Map> {
        let Some(first) = inputs.first() else { bail!("a convolution needs an input") };
        let mut out = workspace.map(self.window.output(first.size())?, self.channels());
        self.run(inputs, residual, &mut out, 0)?;
        Ok(out)
    }

    fn run(&self, inputs: &[Part<'_>], residual: Option<&Map>, out: &mut Map, channel: usize) -> Result<()> {
        let Some(first) = inputs.first() else { bail!("a convolution needs an input") };
        let (input, output) = (first.size(), self.window.output(first.size())?);
        let c_in = inputs.iter().map(Part::channels).sum::<usize>();
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
        let sources = inputs.iter().map(Part::values).collect::<Result<Vec<_>>>()?;
        let stride = out.channels();
        if out.size() != output || channel + self.channels() > stride {
            bail!("the output does not fit into its map");
        }
        let Some(values) = out.values_mut().get_mut(channel..) else {
            bail!("the output does not fit into its map")
        };
        let residual = residual.map(Map::values);
        let convolution = Convolution {
            packed: &self.packed,
            window: self.window,
            sources: &sources,
            input,
            output,
            residual,
        };
        convolution.run(values, stride);
        Ok(())
    }
}

/// A convolution that keeps the channels apart, with bias and activation.
#[derive(Debug)]
pub(crate) struct Depthwise {
    level: Level,
    /// `[kernel rows * kernel columns, channels]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    activation: Activation,
    window: Window,
}

impl Depthwise {
    /// From PyTorch's `weight` `[channels, 1, rows, columns]` and `bias` `[channels]`.
    pub(crate) fn new(
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: Activation,
    ) -> Result<Self> {
        Self::for_level(Level::best(), weight, bias, window, activation)
    }

    /// As [`Self::new`], for certain vector instructions.
    fn for_level(
        level: Level,
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: Activation,
    ) -> Result<Self> {
        let (channels, one, rows, columns) = weight.dims4()?;
        if one != 1 || bias.dims() != [channels] || (rows, columns) != window.kernel {
            bail!(
                "weight {:?} and bias {:?} are not depthwise {:?}",
                weight.dims(),
                bias.dims(),
                window.kernel
            );
        }
        let activation = match activation {
            Activation::PRelu(slopes) if slopes.len() != channels => {
                bail!("there must be one slope for each of {channels} channels")
            }
            Activation::PRelu(mut slopes) => {
                slopes.resize(channels.next_multiple_of(level.lanes()), 0.0);
                Activation::PRelu(slopes)
            }
            other => other,
        };
        let weight = weight.permute((2, 3, 1, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { level, weight, bias: bias.to_vec1()?, activation, window })
    }

    /// `[N, H, W, C]` to `[N, H', W', C]`.
    pub(crate) fn forward(&self, workspace: &mut Workspace, input: &Map) -> Result<Map> {
        let channels = self.bias.len();
        if input.channels() != channels {
            bail!("input has {} channels, the convolution wants {channels}", input.channels());
        }
        let output = self.window.output(input.size())?;
        let mut out = workspace.map(output, channels);
        let filter = Filter {
            level: self.level,
            weight: &self.weight,
            bias: &self.bias,
            activation: &self.activation,
            window: self.window,
            input: input.values(),
            size: input.size(),
            output,
        };
        filter.run(out.values_mut());
        Ok(out)
    }
}

/// The largest value of each channel in a square window without padding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool {
    pub side: usize,
    pub stride: usize,
    /// Whether a window that reaches over the right or bottom edge counts (PyTorch's `ceil_mode`).
    pub partial: bool,
}

impl MaxPool {
    /// `[N, H, W, C]` to `[N, H', W', C]`.
    pub(crate) fn forward(&self, workspace: &mut Workspace, input: &Map) -> Result<Map> {
        let mut out = workspace.map(self.output(input.size())?, input.channels());
        self.forward_into(input, &mut out, 0)?;
        Ok(out)
    }

    /// Writes the output to the channels of `out` from `channel` on.
    pub(crate) fn forward_into(&self, input: &Map, out: &mut Map, channel: usize) -> Result<()> {
        self.run(Level::best(), input, out, channel)
    }

    fn run(&self, level: Level, input: &Map, out: &mut Map, channel: usize) -> Result<()> {
        let output = self.output(input.size())?;
        let stride = out.channels();
        if out.size() != output || channel + input.channels() > stride {
            bail!("the output does not fit into its map");
        }
        let Some(out) = out.values_mut().get_mut(channel..) else {
            bail!("the output does not fit into its map")
        };
        let pooling = Pooling {
            level,
            window: *self,
            input: input.values(),
            size: input.size(),
            channels: input.channels(),
            output,
            out,
            stride,
        };
        pooling.run();
        Ok(())
    }

    fn output(&self, size: Size) -> Result<Size> {
        let side = |input: usize| {
            let Some(free) = input.checked_sub(self.side) else {
                bail!("an input of {input} is smaller than the pooling window of {}", self.side)
            };
            Ok(1 + if self.partial { free.div_ceil(self.stride) } else { free / self.stride })
        };
        Ok(Size { n: size.n, h: side(size.h)?, w: side(size.w)? })
    }
}

/// The mean of each channel, `[N, H, W, C]` to `[N, 1, 1, C]`.
#[expect(clippy::cast_precision_loss, reason = "single precision is what the networks compute in")]
pub(crate) fn mean(workspace: &mut Workspace, input: &Map) -> Map {
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
    out
}

#[cfg(test)]
mod tests;
