//! The depthwise convolution kernel. Neighbouring channels in memory are computed in one vector.

use std::{array, ops::Range};

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};
use pulp::Simd;
use rayon::prelude::*;

use super::{
    FusedActivation, Window,
    conv::{Size, activate},
    intra_op_threads,
};

/// Multiplications below which a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1_000_000;
/// Neighbouring output pixels that are computed together.
const NEIGHBOURS: usize = 4;

/// The arguments of one depthwise convolution.
pub(super) struct DepthwiseConv<'a> {
    pub level: SimdLevel,
    /// `[kernel rows * kernel columns, channels]`
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub activation: &'a FusedActivation,
    pub window: Window,
    pub input: &'a [f32],
    pub size: Size,
    pub output: Size,
}

impl DepthwiseConv<'_> {
    /// Writes `out`, `[output pixels, channels]`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let lines = self.output.n * self.output.h;
        let line = self.output.w * self.bias.len();
        if line == 0 {
            return;
        }
        let threads = intra_op_threads();
        if threads == 1 || out.len() * self.window.taps() < PARALLEL_FROM {
            self.level.run(DepthwiseRows { op: self, first: 0, out });
            return;
        }
        let share = lines.div_ceil(threads);
        out.par_chunks_mut(share * line)
            .enumerate()
            .for_each(|(i, out)| self.level.run(DepthwiseRows { op: self, first: i * share, out }));
    }
}

/// Output rows from row `first` on, counted over all images.
struct DepthwiseRows<'a> {
    op: &'a DepthwiseConv<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for DepthwiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: RegisterTile>(self, simd: S) {
        let op = self.op;
        let channels = op.bias.len();
        let small = op.window.kernel == (3, 3);
        // A row outside of the map.
        let zeros = vec![0f32; if small { op.size.w * channels } else { 0 }];
        let line = op.output.w * channels;
        let mut done = 0;
        while done < self.out.len() / line {
            let out = self.out.get_mut(done * line..).unwrap_or_default();
            let current = OutputRow::new(op, self.first + done);
            let next = OutputRow::new(op, self.first + done + 1);
            let two = small && op.window.stride == 1 && out.len() > line && next.image == current.image;
            let rows: [&[f32]; 4] = array::from_fn(|row| current.row(row).unwrap_or(&zeros));
            let (out, after) = out.split_at_mut(line);
            let shared = if two { current.two_lines(simd, rows, out, after) } else { 0..0 };
            current.run(simd, [rows[0], rows[1], rows[2]], shared.clone(), &zeros, out);
            if two {
                next.run(simd, [rows[1], rows[2], rows[3]], shared, &zeros, after);
            }
            done += 1 + usize::from(two);
        }
    }
}

/// One line of output and the lines of input that it is made of.
struct OutputRow<'a> {
    op: &'a DepthwiseConv<'a>,
    image: usize,
    /// First row of the window, in the padded input.
    y: usize,
}

impl<'a> OutputRow<'a> {
    fn new(op: &'a DepthwiseConv<'a>, index: usize) -> Self {
        Self { op, image: index / op.output.h, y: index % op.output.h * op.window.stride }
    }

    /// Returns the output pixels whose windows reach over neither the left nor the right edge.
    fn inner(&self) -> Range<usize> {
        let (op, pad) = (self.op, self.op.window.padding.1);
        let first = pad.div_ceil(op.window.stride);
        let last = (op.size.w + pad).checked_sub(op.window.kernel.1);
        let end = last.map_or(0, |last| last / op.window.stride + 1);
        first..end.min(op.output.w).max(first)
    }

    /// Returns row `row` of the window, if it is inside.
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
            FusedActivation::PRelu(slopes) => slopes.get(channel..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Computes the line but for the whole vectors of channels of the pixels `done`. `rows` are those of the window, `zeros`
    /// a row outside of the map; both count only for windows of 3x3.
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, rows: [&[f32]; 3], done: Range<usize>, zeros: &[f32], out: &mut [f32]) {
        let (op, channels) = (self.op, self.op.bias.len());
        let small = op.window.kernel == (3, 3);
        let inner = if small { self.inner() } else { 0..0 };
        let whole = if small { channels / S::F32_LANES * S::F32_LANES } else { 0 };
        let mut x = 0;
        while x < op.output.w {
            let pixels = if done.contains(&x) {
                done.len()
            } else if inner.contains(&x) && x + NEIGHBOURS <= inner.end {
                self.three_by_three::<S, NEIGHBOURS>(simd, x, rows.map(|row| self.columns(row, x)), out);
                NEIGHBOURS
            } else {
                if small {
                    let taps = rows.map(|row| self.padded_columns(row, x, zeros));
                    self.three_by_three::<S, 1>(simd, x, taps, out);
                }
                1
            };
            for x in x..x + pixels {
                for channel in (whole..channels).step_by(S::F32_LANES) {
                    self.pixel(simd, x, channel, out);
                }
            }
            x += pixels;
        }
    }

    /// Computes the whole vectors of channels of as many pixels of this line and the next as [`NEIGHBOURS`] divide, for
    /// windows of 3x3 and stride 1; `rows` are those of both lines' windows. Says which pixels.
    ///
    /// What is read of the input serves up to six outputs.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn two_lines<S: Simd>(
        &self,
        simd: S,
        rows: [&[f32]; 4],
        out: &mut [f32],
        after: &mut [f32],
    ) -> Range<usize> {
        const COLUMNS: usize = NEIGHBOURS + 2;
        let (op, channels) = (self.op, self.op.bias.len());
        let inner = self.inner();
        let end = inner.start + inner.len() / NEIGHBOURS * NEIGHBOURS;
        let weights = op.weight[..9 * channels].as_ptr();
        let bias = op.bias[..channels].as_ptr();
        for x in (inner.start..end).step_by(NEIGHBOURS) {
            let first = (x - op.window.padding.1) * channels;
            let rows = rows.map(|row| row[first..][..COLUMNS * channels].as_ptr());
            let out =
                [&mut *out, &mut *after].map(|out| out[x * channels..][..NEIGHBOURS * channels].as_mut_ptr());
            let mut channel = 0;
            while channel + S::F32_LANES <= channels {
                // SAFETY: a vector from `channel` on ends before `channels`, of which the weights have 9, each row 6 and
                // each output 4, as sliced above. Any bits are floats.
                let vector = |from: *const f32, at: usize| unsafe {
                    from.add(at * channels + channel).cast::<S::f32s>().read_unaligned()
                };
                let mut sums = [[[vector(bias, 0)]; NEIGHBOURS]; 2];
                let mut taps = [[vector(bias, 0); 3]; 3];
                for (tap, weight) in taps.as_flattened_mut().iter_mut().enumerate() {
                    *weight = vector(weights, tap);
                }
                for (row, &values) in rows.iter().enumerate() {
                    for column in 0..COLUMNS {
                        let value = vector(values, column);
                        for line in 0..2 {
                            for pixel in 0..NEIGHBOURS {
                                if row >= line && row < line + 3 && column >= pixel && column < pixel + 3 {
                                    let sum = &mut sums[line][pixel][0];
                                    *sum = simd.mul_add_e_f32s(value, taps[row - line][column - pixel], *sum);
                                }
                            }
                        }
                    }
                }
                for (sums, out) in sums.iter_mut().zip(out) {
                    activate(simd, sums, op.activation, self.slopes(channel));
                    for (pixel, sum) in sums.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe {
                            out.add(pixel * channels + channel).cast::<S::f32s>().write_unaligned(sum[0])
                        };
                    }
                }
                channel += S::F32_LANES;
            }
        }
        inner.start..end
    }

    /// Computes a vector of channels of any output pixel, tap by tap.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn pixel<S: Simd>(&self, simd: S, x: usize, channel: usize, out: &mut [f32]) {
        let (op, channels) = (self.op, self.op.bias.len());
        let count = S::F32_LANES.min(channels - channel);
        let (rows, columns) = op.window.kernel;
        // In the padded input; the unpadded one begins at `padding`.
        let first = x * op.window.stride;
        let skip = op.window.padding.1.saturating_sub(first).min(columns);
        let end = (op.size.w + op.window.padding.1).saturating_sub(first).clamp(skip, columns);
        let mut sum = load(simd, &op.bias[channel..][..count]);
        for row in 0..rows {
            let Some(line) = self.row(row) else { continue };
            for column in skip..end {
                let at = (first + column - op.window.padding.1) * channels + channel;
                let weight = &op.weight[(row * columns + column) * channels + channel..][..count];
                sum = simd.mul_add_e_f32s(load(simd, &line[at..][..count]), load(simd, weight), sum);
            }
        }
        let mut sums = [[sum]];
        activate(simd, &mut sums, op.activation, self.slopes(channel));
        store(simd, &mut out[x * channels + channel..][..count], sums[0][0]);
    }

    /// Returns the three columns of the window of output pixel `x` in `row`, and all that follows.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "only asked of windows that are inside")]
    fn columns<'b>(&self, row: &'b [f32], x: usize) -> [&'b [f32]; 3] {
        let (channels, first) = (self.op.bias.len(), x * self.op.window.stride - self.op.window.padding.1);
        array::from_fn(|column| &row[(first + column) * channels..])
    }

    /// Returns what [`Self::columns`] does, with zeros for those that are outside.
    #[inline(always)]
    fn padded_columns<'b>(&self, row: &'b [f32], x: usize, zeros: &'b [f32]) -> [&'b [f32]; 3] {
        let (op, channels) = (self.op, self.op.bias.len());
        array::from_fn(|column| {
            let at = (x * op.window.stride + column).checked_sub(op.window.padding.1);
            at.filter(|&at| at < op.size.w).and_then(|at| row.get(at * channels..)).unwrap_or(zeros)
        })
    }

    /// Computes the whole vectors of channels of `P` output pixels from `x` on. `taps` are the rows and columns of the
    /// window of the first. Neighbours share what is read of the weights.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn three_by_three<S: Simd, const P: usize>(
        &self,
        simd: S,
        x: usize,
        taps: [[&[f32]; 3]; 3],
        out: &mut [f32],
    ) {
        let (op, channels) = (self.op, self.op.bias.len());
        let step = op.window.stride * channels;
        let needed = (P - 1) * step + channels;
        let taps = taps.map(|row| row.map(|tap| tap[..needed].as_ptr()));
        let weights = op.weight[..9 * channels].as_ptr();
        let out = &mut out[x * channels..][..P * channels];
        let (bias, out) = (&op.bias[..channels], out.as_mut_ptr());
        // One way for all activations but PReLU, so that the loop has no branches.
        let (low, high) = match op.activation {
            FusedActivation::None | FusedActivation::PRelu(_) => (f32::NEG_INFINITY, f32::INFINITY),
            FusedActivation::Relu => (0.0, f32::INFINITY),
            FusedActivation::Relu6 => (0.0, 6.0),
        };
        let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
        let slopes = matches!(op.activation, FusedActivation::PRelu(_));
        let mut channel = 0;
        while channel + S::F32_LANES <= channels {
            // SAFETY: `at` is less than the length of what the pointer points to by at least a vector: a vector from
            // `channel` on ends before `channels`, of which the weights have 9, each tap `(P - 1) * stride + 1` and the
            // output `P`, as sliced above. Any bits are floats.
            let vector =
                |from: *const f32, at: usize| unsafe { from.add(at).cast::<S::f32s>().read_unaligned() };
            let mut sums = [vector(bias.as_ptr(), channel); P];
            for (tap, &values) in taps.as_flattened().iter().enumerate() {
                let weight = vector(weights, tap * channels + channel);
                for (pixel, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add_e_f32s(vector(values, pixel * step + channel), weight, *sum);
                }
            }
            if slopes {
                for sum in &mut sums {
                    let mut one = [[*sum]];
                    activate(simd, &mut one, op.activation, self.slopes(channel));
                    *sum = one[0][0];
                }
            }
            for (pixel, sum) in sums.into_iter().enumerate() {
                let sum = simd.min_f32s(high, simd.max_f32s(low, sum));
                // SAFETY: as above.
                unsafe { out.add(pixel * channels + channel).cast::<S::f32s>().write_unaligned(sum) };
            }
            channel += S::F32_LANES;
        }
    }
}

/// Loads a vector, of as many values as there are.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values).0.first() {
        Some(vector) => *vector,
        None => simd.partial_load_f32s(values),
    }
}

/// Stores as many values as there is room for.
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, out: &mut [f32], values: S::f32s) {
    match S::as_mut_simd_f32s(out).0.first_mut() {
        Some(out) => *out = values,
        None => simd.partial_store_f32s(out, values),
    }
}
