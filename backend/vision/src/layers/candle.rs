//! The layers in candle's own operations, for devices that our kernels do not run on. Maps are `[N, C, H, W]` there.

use candle_core::{DType, Device, Result, Tensor};

use super::{Activation, MaxPool, Window, conv::Size};

/// A convolution whose weights lie on a device.
#[derive(Debug)]
pub(super) struct CandleConv {
    weight: Tensor,
    /// `[1, out, 1, 1]`
    bias: Tensor,
    activation: Activation,
    /// Those of PReLU, `[1, out, 1, 1]`.
    slopes: Option<Tensor>,
    window: Window,
    groups: usize,
}

impl CandleConv {
    /// From PyTorch's `weight` `[out, in / groups, rows, columns]` and `bias` `[out]`.
    pub(super) fn new(
        device: &Device,
        weight: &Tensor,
        bias: &Tensor,
        window: Window,
        activation: Activation,
        groups: usize,
    ) -> Result<Self> {
        let channels =
            |values: Tensor| values.reshape((1, (), 1, 1))?.to_dtype(DType::F32)?.to_device(device);
        let slopes = match &activation {
            Activation::PRelu(slopes) => Some(channels(Tensor::new(slopes.as_slice(), &Device::Cpu)?)?),
            _ => None,
        };
        let weight = weight.to_dtype(DType::F32)?.to_device(device)?.contiguous()?;
        Ok(Self { weight, bias: channels(bias.clone())?, activation, slopes, window, groups })
    }

    pub(super) fn run(&self, input: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (rows, columns) = self.window.padding;
        // candle pads both axes alike.
        let padded = if rows == columns {
            input.clone()
        } else {
            input.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?
        };
        let padding = if rows == columns { rows } else { 0 };
        let sums = padded.conv2d(&self.weight, padding, self.window.stride, 1, self.groups)?;
        let mut sums = sums.broadcast_add(&self.bias)?;
        if let Some(residual) = residual {
            sums = (sums + residual)?;
        }
        match (&self.activation, &self.slopes) {
            (Activation::Relu, _) => sums.relu(),
            (Activation::Relu6, _) => sums.clamp(0f32, 6f32),
            (Activation::PRelu(_), Some(slopes)) => {
                // What is below zero is `x - relu(x)`.
                let above = sums.relu()?;
                &above + (sums - &above)?.broadcast_mul(slopes)?
            }
            (Activation::None | Activation::PRelu(_), _) => Ok(sums),
        }
    }
}

/// As [`MaxPool`] has it; `output` is the size that it comes to.
pub(super) fn max_pool(pool: &MaxPool, input: &Tensor, output: Size) -> Result<Tensor> {
    let (_, _, h, w) = input.dims4()?;
    // A window that reaches over the edge has the last row in it, so that repeating that row changes nothing.
    let missing =
        |outputs: usize, inputs: usize| ((outputs - 1) * pool.stride + pool.side).saturating_sub(inputs);
    let padded =
        input.pad_with_same(2, 0, missing(output.h, h))?.pad_with_same(3, 0, missing(output.w, w))?;
    padded.contiguous()?.max_pool2d_with_stride(pool.side, pool.stride)
}

/// The mean over space, `[N, C, 1, 1]`.
pub(super) fn mean(input: &Tensor) -> Result<Tensor> {
    input.mean_keepdim(3)?.mean_keepdim(2)
}

/// As [`super::shortcut`] has it.
pub(super) fn shortcut(input: &Tensor, added: &Tensor) -> Result<Tensor> {
    let half = input.avg_pool2d(2)?;
    let (_, channels, h, w) = half.dims4()?;
    let (_, wanted, rows, columns) = added.dims4()?;
    let half = half.pad_with_zeros(1, 0, wanted.saturating_sub(channels))?;
    let added = added.pad_with_zeros(2, 0, h.saturating_sub(rows))?;
    (half + added.pad_with_zeros(3, 0, w.saturating_sub(columns))?)?.relu()
}
