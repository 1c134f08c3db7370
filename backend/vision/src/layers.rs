//! The layers that the networks are made of, as candle operations over channels-last tensors `[N, H, W, C]`.
//!
//! Channels last, because then a convolution is one matrix product whose left side is copied together in runs (and
//! not copied at all for 1x1 kernels), bias and activation run along memory, and the pictures come in that order.
//! candle's own convolution is channels first, copies both ways and knows neither ceil-mode pooling nor fast
//! depthwise kernels. The matrix product itself is that of `gemm`, candle's own.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

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

    fn output(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let side = |input: usize, kernel: usize, padding: usize| {
            (input + 2 * padding).checked_sub(kernel).map(|free| free / self.stride + 1)
        };
        match (side(height, self.kernel.0, self.padding.0), side(width, self.kernel.1, self.padding.1)) {
            (Some(h), Some(w)) => Ok((h, w)),
            _ => bail!("a {height}x{width} input is smaller than the {:?} kernel", self.kernel),
        }
    }
}

/// Floats that one block's left side may hold: it should stay in the second-level cache.
const BLOCK_FLOATS: usize = 256 * 1024;
/// Multiplications below which a second thread costs more than it saves.
const PARALLEL_FROM: usize = 4_000_000;

/// A convolution with bias and activation.
#[derive(Debug)]
pub(crate) struct Conv2d {
    /// `[kernel rows, kernel columns, in, out]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    activation: Activation,
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
        Ok(Self { weight, bias: bias.to_vec1()?, activation, window, c_in })
    }

    /// `[N, H, W, in]` to `[N, H', W', out]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1_no_bwd(self)
    }

    /// As [`Self::forward`], but adds `residual` `[N, H', W', out]` before the activation.
    pub(crate) fn forward_add(&self, input: &Tensor, residual: &Tensor) -> Result<Tensor> {
        input.apply_op2_no_bwd(residual, self)
    }

    fn run(&self, input: &[f32], shape: &Shape, residual: Option<&[f32]>) -> Result<(Vec<f32>, Shape)> {
        let (n, h, w, c_in) = shape.dims4()?;
        if c_in != self.c_in {
            bail!("input has {c_in} channels, the convolution wants {}", self.c_in);
        }
        let (out_h, out_w) = self.window.output(h, w)?;
        let c_out = self.bias.len();
        let pixels = n * out_h * out_w;
        let mut output = vec![0f32; pixels * c_out];
        if residual.is_some_and(|r| r.len() != output.len()) {
            bail!("the residual does not have the shape of the output");
        }
        let depth = self.window.kernel.0 * self.window.kernel.1 * c_in;
        let threads = rayon::current_num_threads();
        let large = threads > 1 && pixels * depth * c_out >= PARALLEL_FROM;
        let block = (BLOCK_FLOATS / depth).max(64);
        let block = if large { block.min(pixels.div_ceil(threads)).max(64) } else { block };
        // Where there is just one block, the product itself is split instead.
        let split = if large && pixels <= block {
            gemm::Parallelism::Rayon(threads)
        } else {
            gemm::Parallelism::None
        };
        let geometry = Geometry { h, w, c: c_in, out_h, out_w };
        let compute = |columns: &mut Vec<f32>, (index, out): (usize, &mut [f32])| {
            let first = index * block;
            let count = out.len() / c_out;
            let left = if self.window == Window::POINT {
                input.get(first * c_in..(first + count) * c_in).unwrap_or_default()
            } else {
                columns.clear();
                gather_windows(input, &geometry, &self.window, first..first + count, columns);
                columns.as_slice()
            };
            matmul(left, &self.weight, out, (count, c_out, depth), split);
            let residual = residual.and_then(|r| r.get(first * c_out..(first + count) * c_out));
            finish(out, &self.bias, residual, &self.activation);
        };
        if large && pixels > block {
            output.par_chunks_mut(block * c_out).enumerate().for_each_init(Vec::new, compute);
        } else {
            let mut columns = Vec::new();
            output.chunks_mut(block * c_out).enumerate().for_each(|chunk| compute(&mut columns, chunk));
        }
        Ok((output, Shape::from((n, out_h, out_w, c_out))))
    }
}

impl CustomOp1 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d-channels-last"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (output, shape) = self.run(floats(storage, layout)?, layout.shape(), None)?;
        Ok((CpuStorage::F32(output), shape))
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d-channels-last-add"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (output, shape) = self.run(floats(s1, l1)?, l1.shape(), Some(floats(s2, l2)?))?;
        Ok((CpuStorage::F32(output), shape))
    }
}

/// The floats of a tensor that lies in memory as its shape reads.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let slice = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets().and_then(|(start, end)| slice.get(start..end)) {
        Some(floats) => Ok(floats),
        None => bail!("the layers take contiguous tensors"),
    }
}

/// Sizes of the input and output of a window operation.
struct Geometry {
    h: usize,
    w: usize,
    c: usize,
    out_h: usize,
    out_w: usize,
}

/// Appends the window of each output pixel of `pixels` (counted over `[N, H', W']`) to `columns`, row after row of the
/// window, with zeros where it reaches over the edge.
#[expect(clippy::indexing_slicing, reason = "the window was fitted into the input by `Window::output`")]
fn gather_windows(
    input: &[f32],
    g: &Geometry,
    window: &Window,
    pixels: std::ops::Range<usize>,
    columns: &mut Vec<f32>,
) {
    let (rows, cols) = window.kernel;
    columns.reserve(pixels.len() * rows * cols * g.c);
    for pixel in pixels {
        let (out_x, line) = (pixel % g.out_w, pixel / g.out_w);
        let (out_y, image) = (line % g.out_h, line / g.out_h);
        // In the padded input; the unpadded one begins at `padding`.
        let x = out_x * window.stride;
        let skip = window.padding.1.saturating_sub(x).min(cols);
        let end = (g.w + window.padding.1).saturating_sub(x).clamp(skip, cols);
        for row in 0..rows {
            let y = out_y * window.stride + row;
            if y < window.padding.0 || y >= g.h + window.padding.0 {
                columns.resize(columns.len() + cols * g.c, 0.0);
                continue;
            }
            let line = ((image * g.h + y - window.padding.0) * g.w) * g.c;
            columns.resize(columns.len() + skip * g.c, 0.0);
            if end > skip {
                let start = line + (x + skip - window.padding.1) * g.c;
                columns.extend_from_slice(&input[start..start + (end - skip) * g.c]);
            }
            columns.resize(columns.len() + (cols - end) * g.c, 0.0);
        }
    }
}

/// `out = left * right`, all row-major: `[m, k]`, `[k, n]`, `[m, n]`.
fn matmul(
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
    (m, n, k): (usize, usize, usize),
    split: gemm::Parallelism,
) {
    assert!(left.len() == m * k && right.len() == k * n && out.len() == m * n, "sizes of a matrix product");
    #[expect(clippy::cast_possible_wrap, reason = "no slice is longer than isize::MAX")]
    let (n_stride, k_stride) = (n as isize, k as isize);
    // SAFETY: the three slices have exactly m*k, k*n and m*n elements (asserted above), and with row strides of k, n
    // and n and column strides of 1, no index reaches further; `out` is borrowed mutably, so nothing aliases it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n_stride,
            false,
            left.as_ptr(),
            1,
            k_stride,
            right.as_ptr(),
            1,
            n_stride,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            split,
        );
    }
}

/// Adds bias and residual and applies the activation, in place, over `[pixels, channels]`.
fn finish(out: &mut [f32], bias: &[f32], residual: Option<&[f32]>, activation: &Activation) {
    if let Some(residual) = residual {
        for (o, r) in out.iter_mut().zip(residual) {
            *o += r;
        }
    }
    for pixel in out.chunks_exact_mut(bias.len()) {
        for (o, b) in pixel.iter_mut().zip(bias) {
            *o += b;
        }
    }
    activate(out, activation);
}

/// A convolution that keeps the channels apart, with bias and activation.
#[derive(Debug)]
pub(crate) struct Depthwise {
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
        let (channels, one, rows, columns) = weight.dims4()?;
        if one != 1 || bias.dims() != [channels] || (rows, columns) != window.kernel {
            bail!(
                "weight {:?} and bias {:?} are not depthwise {:?}",
                weight.dims(),
                bias.dims(),
                window.kernel
            );
        }
        let weight = weight.permute((2, 3, 1, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { weight, bias: bias.to_vec1()?, activation, window })
    }

    /// `[N, H, W, C]` to `[N, H', W', C]`.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Depthwise {
    fn name(&self) -> &'static str {
        "depthwise-channels-last"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = layout.shape().dims4()?;
        if c != self.bias.len() {
            bail!("input has {c} channels, the convolution wants {}", self.bias.len());
        }
        let (out_h, out_w) = self.window.output(h, w)?;
        let input = floats(storage, layout)?;
        let mut output = vec![0f32; n * out_h * out_w * c];
        let geometry = Geometry { h, w, c, out_h, out_w };
        let line = |(index, out): (usize, &mut [f32])| depthwise_line(self, input, &geometry, index, out);
        if output.len() * self.weight.len() / c >= PARALLEL_FROM {
            output.par_chunks_mut(out_w * c).enumerate().for_each(line);
        } else {
            output.chunks_mut(out_w * c).enumerate().for_each(line);
        }
        Ok((CpuStorage::F32(output), Shape::from((n, out_h, out_w, c))))
    }
}

/// Channels whose sums are held in registers together.
const LANES: usize = 32;

/// Computes one row of output pixels, on the widest registers that the processor has.
fn depthwise_line(op: &Depthwise, input: &[f32], g: &Geometry, index: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(op: &Depthwise, input: &[f32], g: &Geometry, index: usize, out: &mut [f32]) {
            depthwise_line_generic(op, input, g, index, out);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, which is all that `wide` asks for.
            unsafe { wide(op, input, g, index, out) };
            return;
        }
    }
    depthwise_line_generic(op, input, g, index, out);
}

#[inline(always)]
fn depthwise_line_generic(op: &Depthwise, input: &[f32], g: &Geometry, index: usize, out: &mut [f32]) {
    let cols = op.window.kernel.1;
    let (pad_y, pad_x) = op.window.padding;
    let (image, y) = (index / g.out_h, index % g.out_h * op.window.stride);
    let row_span = pad_y.saturating_sub(y)..(g.h + pad_y).saturating_sub(y).min(op.window.kernel.0);
    // Where the taps that lie inside the input begin, there and in the weights.
    let mut taps: Vec<(&[f32], &[f32])> = Vec::with_capacity(op.window.kernel.0 * cols);
    for (out_x, pixel) in out.chunks_exact_mut(g.c).enumerate() {
        let x = out_x * op.window.stride;
        let col_span = pad_x.saturating_sub(x)..(g.w + pad_x).saturating_sub(x).min(cols);
        taps.clear();
        for row in row_span.clone() {
            for col in col_span.clone() {
                let at = ((image * g.h + y + row - pad_y) * g.w + x + col - pad_x) * g.c;
                let tap = (row * cols + col) * g.c;
                taps.extend(input.get(at..at + g.c).zip(op.weight.get(tap..tap + g.c)));
            }
        }
        let (blocks, rest) = pixel.as_chunks_mut::<LANES>();
        for (i, (block, bias)) in blocks.iter_mut().zip(op.bias.as_chunks::<LANES>().0).enumerate() {
            let mut sums = *bias;
            for (values, weights) in &taps {
                if let (Some(values), Some(weights)) =
                    (values.as_chunks::<LANES>().0.get(i), weights.as_chunks::<LANES>().0.get(i))
                {
                    for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                        *sum += value * weight;
                    }
                }
            }
            *block = sums;
        }
        for (value, channel) in rest.iter_mut().zip(blocks.len() * LANES..) {
            let at = |values: &[f32]| values.get(channel).copied().unwrap_or_default();
            *value =
                at(&op.bias) + taps.iter().map(|(values, weights)| at(values) * at(weights)).sum::<f32>();
        }
    }
    activate(out, &op.activation);
}

/// Applies the activation in place, over `[pixels, channels]`.
#[inline(always)]
fn activate(values: &mut [f32], activation: &Activation) {
    match activation {
        Activation::None => {}
        Activation::Relu => values.iter_mut().for_each(|v| *v = v.max(0.0)),
        Activation::Relu6 => values.iter_mut().for_each(|v| *v = v.clamp(0.0, 6.0)),
        Activation::PRelu(slopes) => {
            for pixel in values.chunks_exact_mut(slopes.len()) {
                for (v, slope) in pixel.iter_mut().zip(slopes) {
                    *v = v.max(0.0) + slope * v.min(0.0);
                }
            }
        }
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
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        input.apply_op1_no_bwd(self)
    }

    fn output(&self, input: usize) -> Result<usize> {
        let Some(free) = input.checked_sub(self.side) else {
            bail!("an input of {input} is smaller than the pooling window of {}", self.side)
        };
        Ok(1 + if self.partial { free.div_ceil(self.stride) } else { free / self.stride })
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool-channels-last"
    }

    #[expect(clippy::indexing_slicing, reason = "rows and columns are cut off at the edges of the input")]
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = layout.shape().dims4()?;
        let (out_h, out_w) = (self.output(h)?, self.output(w)?);
        let input = floats(storage, layout)?;
        let mut output = vec![f32::NEG_INFINITY; n * out_h * out_w * c];
        for (index, out) in output.chunks_exact_mut(c).enumerate() {
            let (out_x, line) = (index % out_w, index / out_w);
            let (y, x) = (line % out_h * self.stride, out_x * self.stride);
            for row in y..(y + self.side).min(h) {
                let line = (line / out_h * h + row) * w;
                for col in x..(x + self.side).min(w) {
                    let at = (line + col) * c;
                    for (o, v) in out.iter_mut().zip(&input[at..at + c]) {
                        *o = o.max(*v);
                    }
                }
            }
        }
        Ok((CpuStorage::F32(output), Shape::from((n, out_h, out_w, c))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Numbers that repeat nowhere, so that a wrong index shows.
    fn numbers(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| (i as f32 * 0.731).sin()).collect::<Vec<_>>();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn assert_close(got: &Tensor, channels_first: &Tensor) {
        let want = channels_first.permute((0, 2, 3, 1)).unwrap();
        assert_eq!(got.dims(), want.dims());
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() < 1e-4, "element {i} is {g}, candle has {w}");
        }
    }

    #[test]
    fn a_convolution_agrees_with_candles_own() {
        let input = numbers(&[2, 5, 9, 11]);
        let last = input.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        for (kernel, stride, padding) in
            [((1, 1), 1, 0), ((3, 3), 1, 1), ((3, 3), 2, 0), ((3, 3), 2, 1), ((2, 2), 1, 0)]
        {
            let weight = numbers(&[7, 5, kernel.0, kernel.1]);
            let bias = numbers(&[7]);
            let window = Window { kernel, stride, padding: (padding, padding) };
            let ours = Conv2d::new(&weight, &bias, window, Activation::Relu).unwrap().forward(&last).unwrap();
            let theirs = input.conv2d(&weight, padding, stride, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&bias.reshape((1, 7, 1, 1)).unwrap()).unwrap().relu().unwrap();
            assert_close(&ours, &theirs);
        }
    }

    #[test]
    fn asymmetric_kernels_are_padded_on_their_long_side_only() {
        let input = numbers(&[1, 3, 4, 6]);
        let last = input.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        for (kernel, dim) in [((1, 7), 3), ((7, 1), 2)] {
            let (weight, bias) = (numbers(&[2, 3, kernel.0, kernel.1]), numbers(&[2]));
            let op = Conv2d::new(&weight, &bias, Window::same(kernel, 1), Activation::None).unwrap();
            let padded = input.pad_with_zeros(dim, 3, 3).unwrap();
            let theirs = padded.conv2d(&weight, 0, 1, 1, 1).unwrap();
            let theirs = theirs.broadcast_add(&bias.reshape((1, 2, 1, 1)).unwrap()).unwrap();
            assert_close(&op.forward(&last).unwrap(), &theirs);
        }
    }

    #[test]
    fn many_blocks_on_many_threads_give_the_same_as_one() {
        let input = numbers(&[3, 8, 70, 90]);
        let last = input.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let (weight, bias) = (numbers(&[12, 8, 3, 3]), numbers(&[12]));
        let op = Conv2d::new(&weight, &bias, Window::same((3, 3), 1), Activation::None).unwrap();
        let theirs = input.conv2d(&weight, 1, 1, 1, 1).unwrap();
        assert_close(
            &op.forward(&last).unwrap(),
            &theirs.broadcast_add(&bias.reshape((1, 12, 1, 1)).unwrap()).unwrap(),
        );
    }

    #[test]
    fn the_residual_is_added_before_the_activation() {
        let input = numbers(&[1, 2, 2, 3]);
        let (weight, bias) = (numbers(&[4, 3, 1, 1]), numbers(&[4]));
        let plain =
            Conv2d::new(&weight, &bias, Window::POINT, Activation::None).unwrap().forward(&input).unwrap();
        let op = Conv2d::new(&weight, &bias, Window::POINT, Activation::Relu).unwrap();
        let residual = numbers(&[1, 2, 2, 4]);
        let want = (plain + &residual).unwrap().relu().unwrap();
        let got = op.forward_add(&input, &residual).unwrap();
        assert_close(&got, &want.permute((0, 3, 1, 2)).unwrap());
        assert!(op.forward_add(&input, &numbers(&[1, 2, 2, 3])).is_err());
    }

    #[test]
    fn a_depthwise_convolution_agrees_with_candles_own() {
        for channels in [32, 40, 3] {
            let input = numbers(&[2, channels, 7, 6]);
            let last = input.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            for stride in [1, 2] {
                let (weight, bias) = (numbers(&[channels, 1, 3, 3]), numbers(&[channels]));
                let op =
                    Depthwise::new(&weight, &bias, Window::same((3, 3), stride), Activation::None).unwrap();
                let theirs = input.conv2d(&weight, 1, stride, 1, channels).unwrap();
                let bias = bias.reshape((1, channels, 1, 1)).unwrap();
                assert_close(&op.forward(&last).unwrap(), &theirs.broadcast_add(&bias).unwrap());
            }
        }
    }

    #[test]
    fn pooling_counts_partial_windows_only_in_ceil_mode() {
        let input =
            Tensor::from_vec((0..25).map(|v| v as f32).collect::<Vec<_>>(), (1, 5, 5, 1), &Device::Cpu)
                .unwrap();
        let pool = |side, partial| {
            let out = MaxPool { side, stride: 2, partial }.forward(&input).unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(pool(2, false), [6.0, 8.0, 16.0, 18.0]);
        assert_eq!(pool(2, true), [6.0, 8.0, 9.0, 16.0, 18.0, 19.0, 21.0, 23.0, 24.0]);
        assert_eq!(pool(3, true), pool(3, false));
    }

    #[test]
    fn prelu_scales_what_is_below_zero() {
        let input = Tensor::new(&[[[[-2f32, -2.0], [3.0, 3.0]]]], &Device::Cpu).unwrap();
        let identity =
            Tensor::eye(2, candle_core::DType::F32, &Device::Cpu).unwrap().reshape((2, 2, 1, 1)).unwrap();
        let bias = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        let op = Conv2d::new(&identity, &bias, Window::POINT, Activation::PRelu(vec![0.5, 0.25])).unwrap();
        let got = op.forward(&input).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, [-1.0, -0.5, 3.0, 3.0]);
    }
}
