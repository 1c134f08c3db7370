//! The kernels that keep the channels apart: depthwise convolution and max pooling. Channels side by side in memory are
//! computed side by side in a vector.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::{
    Activation, MaxPool, Window,
    conv::{Size, activate},
    level::{Kernel, Level, Registers},
};

/// Multiplications below which a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1_000_000;
/// Floats of an input row that are gone over before the next channels are: three such rows stay in the first-level cache.
const TILE_FLOATS: usize = 1536;

/// A depthwise convolution to be done.
pub(super) struct Filter<'a> {
    pub level: Level,
    /// `[kernel rows * kernel columns, channels]`
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub activation: &'a Activation,
    pub window: Window,
    pub input: &'a [f32],
    pub size: Size,
    pub output: Size,
}

impl Filter<'_> {
    /// `out` is `[output pixels, channels]`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let lines = self.output.n * self.output.h;
        let line = self.output.w * self.bias.len();
        if line == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        if threads == 1 || out.len() * self.window.taps() < PARALLEL_FROM {
            self.level.run(FilterLines { op: self, first: 0, out });
            return;
        }
        let share = lines.div_ceil(threads);
        out.par_chunks_mut(share * line)
            .enumerate()
            .for_each(|(i, out)| self.level.run(FilterLines { op: self, first: i * share, out }));
    }
}

/// Some lines of output, from line `first` (counted over the images) on.
struct FilterLines<'a> {
    op: &'a Filter<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for FilterLines<'_> {
    #[inline(always)]
    fn run<S: Registers>(self, simd: S) {
        let op = self.op;
        let channels = op.bias.len();
        let small = op.window.kernel == (3, 3);
        // A row outside of the map.
        let zeros = vec![0f32; if small { op.size.w * channels } else { 0 }];
        let tile = (TILE_FLOATS / (channels * op.window.stride).max(1)).max(4);
        for (index, out) in self.out.chunks_exact_mut(op.output.w * channels).enumerate() {
            let line = Line::new(op, self.first + index);
            let inner = if small { line.inner() } else { 0..0 };
            for start in (0..op.output.w).step_by(tile) {
                let xs = start..(start + tile).min(op.output.w);
                for channel in (0..channels).step_by(S::F32_LANES) {
                    let whole = channel + S::F32_LANES <= channels;
                    let fast = if whole {
                        inner.start.clamp(xs.start, xs.end)..inner.end.clamp(xs.start, xs.end)
                    } else {
                        xs.start..xs.start
                    };
                    for x in (xs.start..fast.start).chain(fast.end.max(fast.start)..xs.end) {
                        line.pixel(simd, x, channel, out);
                    }
                    if !fast.is_empty() {
                        line.three_by_three(simd, fast, channel, &zeros, out);
                    }
                }
            }
        }
    }
}

/// One line of output and the lines of input that it is made of.
struct Line<'a> {
    op: &'a Filter<'a>,
    image: usize,
    /// First row of the window, in the padded input.
    y: usize,
}

impl<'a> Line<'a> {
    fn new(op: &'a Filter<'a>, index: usize) -> Self {
        Self { op, image: index / op.output.h, y: index % op.output.h * op.window.stride }
    }

    /// The output pixels whose windows reach over neither the left nor the right edge.
    fn inner(&self) -> Range<usize> {
        let (op, pad) = (self.op, self.op.window.padding.1);
        let first = pad.div_ceil(op.window.stride);
        let end =
            (op.size.w + pad).checked_sub(op.window.kernel.1).map_or(0, |last| last / op.window.stride + 1);
        first..end.min(op.output.w).max(first)
    }

    /// Row `row` of the window, if it is inside.
    fn row(&self, row: usize) -> Option<&'a [f32]> {
        let (op, pad) = (self.op, self.op.window.padding.0);
        let y = (self.y + row).checked_sub(pad).filter(|&y| y < op.size.h)?;
        let line = op.size.w * op.bias.len();
        op.input.get((self.image * op.size.h + y) * line..)?.get(..line)
    }

    /// Slopes of PReLU of the channels from `channel` on, a whole vector at least.
    #[inline(always)]
    fn slopes(&self, channel: usize) -> &'a [f32] {
        match self.op.activation {
            Activation::PRelu(slopes) => slopes.get(channel..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// A vector of channels of any output pixel, tap by tap.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn pixel<S: Simd>(&self, simd: S, x: usize, channel: usize, out: &mut [f32]) {
        let (op, channels) = (self.op, self.op.bias.len());
        let count = S::F32_LANES.min(channels - channel);
        let (rows, columns) = op.window.kernel;
        let mut sum = [simd.partial_load_f32s(&op.bias[channel..][..count])];
        for row in 0..rows {
            let Some(line) = self.row(row) else { continue };
            for column in 0..columns {
                let Some(at) = (x * op.window.stride + column).checked_sub(op.window.padding.1) else {
                    continue;
                };
                if at >= op.size.w {
                    continue;
                }
                let value = simd.partial_load_f32s(&line[at * channels + channel..][..count]);
                let weight = &op.weight[(row * columns + column) * channels + channel..][..count];
                sum[0] = simd.mul_add_e_f32s(value, simd.partial_load_f32s(weight), sum[0]);
            }
        }
        activate(simd, &mut sum, op.activation, self.slopes(channel));
        simd.partial_store_f32s(&mut out[x * channels + channel..][..count], sum[0]);
    }

    /// A whole vector of channels of the output pixels `xs`, whose windows have three columns inside.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn three_by_three<S: Simd>(
        &self,
        simd: S,
        xs: Range<usize>,
        channel: usize,
        zeros: &[f32],
        out: &mut [f32],
    ) {
        let (op, channels) = (self.op, self.op.bias.len());
        let vector = |values: &[f32], at: usize| S::as_simd_f32s(&values[at..][..S::F32_LANES]).0[0];
        let bias = vector(op.bias, channel);
        let weights: [S::f32s; 9] = std::array::from_fn(|tap| vector(op.weight, tap * channels + channel));
        let rows: [&[f32]; 3] = std::array::from_fn(|row| self.row(row).unwrap_or(zeros));
        let slopes = self.slopes(channel);
        for x in xs {
            let at = (x * op.window.stride - op.window.padding.1) * channels + channel;
            let mut sum = [bias];
            for (row, weights) in rows.iter().zip(weights.as_chunks::<3>().0) {
                let values = &row[at..][..2 * channels + S::F32_LANES];
                for (column, weight) in weights.iter().enumerate() {
                    sum[0] = simd.mul_add_e_f32s(vector(values, column * channels), *weight, sum[0]);
                }
            }
            activate(simd, &mut sum, op.activation, slopes);
            S::as_mut_simd_f32s(&mut out[x * channels + channel..][..S::F32_LANES]).0[0] = sum[0];
        }
    }
}

/// A max pooling to be done.
pub(super) struct Pooling<'a> {
    pub level: Level,
    pub window: MaxPool,
    pub input: &'a [f32],
    pub size: Size,
    pub channels: usize,
    pub output: Size,
    /// Begins at the first pooled channel of the first pixel.
    pub out: &'a mut [f32],
    /// Floats from one output pixel to the next.
    pub stride: usize,
}

impl Pooling<'_> {
    pub(super) fn run(self) {
        if self.channels > 0 && self.output.pixels() > 0 {
            self.level.run(self);
        }
    }
}

impl Kernel for Pooling<'_> {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "rows and columns are cut off at the edges of the input")]
    fn run<S: Registers>(self, simd: S) {
        let (size, channels, window) = (self.size, self.channels, self.window);
        for (line, out) in
            self.out.chunks_mut(self.output.w * self.stride).enumerate().take(self.output.n * self.output.h)
        {
            let (image, y) = (line / self.output.h, line % self.output.h * window.stride);
            let rows = y..(y + window.side).min(size.h);
            for (out_x, out) in out.chunks_mut(self.stride).enumerate() {
                let x = out_x * window.stride;
                let columns = (x + window.side).min(size.w) - x;
                let at = |row: usize| ((image * size.h + row) * size.w + x) * channels;
                let mut channel = 0;
                while channel < channels {
                    let count = S::F32_LANES.min(channels);
                    // The last vector reaches back over channels that are done, rather than be a part of one.
                    let first = channel.min(channels - count);
                    let mut best = simd.splat_f32s(f32::NEG_INFINITY);
                    for row in rows.clone() {
                        let line = &self.input[at(row)..][..columns * channels];
                        for column in 0..columns {
                            let values = &line[column * channels + first..][..count];
                            best = simd.max_f32s(best, load(simd, values));
                        }
                    }
                    let out = &mut out[first..][..count];
                    match S::as_mut_simd_f32s(out).0.first_mut() {
                        Some(out) => *out = best,
                        None => simd.partial_store_f32s(out, best),
                    }
                    channel += S::F32_LANES;
                }
            }
        }
    }
}

/// A vector, of as many values as there are.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values).0.first() {
        Some(vector) => *vector,
        None => simd.partial_load_f32s(values),
    }
}
