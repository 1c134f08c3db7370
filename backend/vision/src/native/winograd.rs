//! 3x3 convolutions of stride 1 by Winograd's minimal filtering: F(2x2, 3x3), 16 multiplications for four outputs instead of
//! 36, and F(4x4, 3x3), 36 for sixteen instead of 144 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//! CVPR 2016, sections 4.1 and 4.2).
//!
//! The output is cut into tiles of 2x2 or 4x4 pixels. The 4x4 or 6x6 inputs of a tile are transformed, channel by channel,
//! into as many values; for each of the values, the channels are multiplied with a matrix of transformed weights, for many
//! tiles at a time; and the sums of each output channel are transformed back into the outputs. All transforms are additions of
//! whole vectors of channels, in the larger tiles some of them after a multiplication.

use std::{array, cell::RefCell, ops::Range};

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};
use pulp::Simd;
use rayon::prelude::*;

use super::{
    aligned::AlignedFloats,
    conv::{
        ChannelView, OutputBuffer, PARALLEL_FROM, PackedWeights, Size, Tiled, accumulate, activate, vectors,
    },
    intra_op_threads,
};

/// Floats of transformed input and output that are kept at a time; they should stay in the second-level cache.
const BLOCK_FLOATS: usize = 80 * 1024;
/// Tiles of a block at least, to be worth reading the weights.
const LEAST_TILES: usize = 24;
/// Floats between the tiles of one value and those of the next, so that the places of a tile in them do not compete for
/// the same lines of the cache.
const APART: usize = 16;
/// Channels, of input and of output, from which the transforms cost less than they save.
const CHANNELS_FROM: usize = 16;
/// Weights of a tap up to which the larger tiles are used. They need 36 numbers for nine weights where the smaller need 16,
/// and reading more of those takes longer than the multiplications that are saved.
const LARGE_TO: usize = 40_000;

/// Transformed weights.
#[derive(Debug)]
pub(super) struct WinogradWeights {
    /// Rows and columns of output of a tile, 2 or 4.
    side: usize,
    /// A matrix for each value of a tile. Each has the bias and the activation, of which the first's count.
    products: Vec<PackedWeights>,
    inputs: usize,
    channels: usize,
}

impl WinogradWeights {
    /// Returns whether a 3x3 convolution of stride 1 should be done this way.
    pub(super) fn pays(inputs: usize, channels: usize) -> bool {
        inputs >= CHANNELS_FROM && channels >= CHANNELS_FROM
    }

    /// Builds it from `weight` `[3, 3, inputs, channels]` and what [`PackedWeights::new`] takes.
    pub(super) fn new(
        level: SimdLevel,
        weight: &[f32],
        bias: &[f32],
        activation: &super::FusedActivation,
    ) -> Self {
        let channels = bias.len();
        let each = weight.len() / 9;
        let side = if each <= LARGE_TO { 4 } else { 2 };
        let mut matrices = vec![vec![0f32; each]; (side + 2) * (side + 2)];
        for index in 0..each {
            let tap = |row: usize, column: usize| {
                weight.get((row * 3 + column) * each + index).copied().map_or(0.0, f64::from)
            };
            let rows: [Vec<f64>; 3] =
                array::from_fn(|row| transformed_weights(side, array::from_fn(|column| tap(row, column))));
            let columns = (0..side + 2).map(|column| {
                let column = rows.each_ref().map(|row| row.get(column).copied().unwrap_or_default());
                transformed_weights(side, column)
            });
            for (column, values) in columns.enumerate() {
                for (row, value) in values.into_iter().enumerate() {
                    if let Some(to) =
                        matrices.get_mut(row * (side + 2) + column).and_then(|m| m.get_mut(index))
                    {
                        #[expect(clippy::cast_possible_truncation, reason = "what the kernels compute in")]
                        let value = value as f32;
                        *to = value;
                    }
                }
            }
        }
        let products = matrices
            .iter()
            .map(|matrix| PackedWeights::new(level, matrix, bias, activation.clone()))
            .collect();
        Self { side, products, inputs: each / channels.max(1), channels }
    }
}

/// Returns G g of three weights in a line.
fn transformed_weights(side: usize, [a, b, c]: [f64; 3]) -> Vec<f64> {
    if side == 2 {
        return vec![a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
    }
    let (even, wide) = (a + c, a / 4.0 + c);
    vec![a / 4.0, -(even + b) / 6.0, -(even - b) / 6.0, (wide + b / 2.0) / 6.0, (wide - b / 2.0) / 6.0, c]
}

/// The arguments of one convolution. The sizes were checked against each other by the caller; here they only decide whether
/// this panics, never what is read or written.
pub(super) struct WinogradConv<'a> {
    pub weights: &'a WinogradWeights,
    pub padding: (usize, usize),
    pub source: ChannelView<'a>,
    pub input: Size,
    pub output: Size,
    /// Added before the activation, `[pixels, channels]`.
    pub residual: Option<&'a [f32]>,
}

impl WinogradConv<'_> {
    /// Writes the channels of each output pixel to `out`, which begins at the first of them and has `stride` floats
    /// from one pixel to the next.
    pub(super) fn run(&self, out: &mut [f32], stride: usize) {
        let Some(level) = self.weights.products.first().map(PackedWeights::level) else { return };
        let side = self.weights.side;
        let tiles = self.output.n * self.output.h.div_ceil(side) * self.output.w.div_ceil(side);
        let target = OutputBuffer::new(out, stride);
        let threads = intra_op_threads();
        let multiplications =
            tiles * self.weights.products.len() * self.weights.inputs * self.weights.channels;
        if threads == 1 || multiplications < PARALLEL_FROM {
            self.run_tiles(level, target, 0..tiles);
            return;
        }
        (0..threads).into_par_iter().for_each(|i| {
            self.run_tiles(level, target, i * tiles / threads..(i + 1) * tiles / threads);
        });
    }

    fn run_tiles(&self, level: SimdLevel, target: OutputBuffer, tiles: Range<usize>) {
        if self.weights.side == 2 {
            level.run(Tiles::<2, 4> { op: self, target, tiles });
        } else {
            level.run(Tiles::<4, 6> { op: self, target, tiles });
        }
    }

    /// Returns image, row and column of the first output pixel of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let side = self.weights.side;
        let (rows, columns) = (self.output.h.div_ceil(side), self.output.w.div_ceil(side));
        let (line, column) = (tile / columns, tile % columns);
        (line / rows, line % rows * side, column * side)
    }

    /// Returns where the `T` by `T` input pixels of a tile begin.
    ///
    /// # Panics
    ///
    /// Where one would not lie in its map.
    #[inline(always)]
    fn pixels<const T: usize>(&self, tile: usize) -> [[usize; T]; T] {
        let (image, y, x) = self.place(tile);
        let (pad_y, pad_x) = self.padding;
        let Size { h, w, .. } = self.input;
        let stride = self.source.stride;
        // Counted in the padded input; the unpadded one begins at `padding`.
        let (rows, columns) = (pad_y..h + pad_y, pad_x..w + pad_x);
        let first = (image * h + y).wrapping_sub(pad_y).wrapping_mul(w).wrapping_add(x).wrapping_sub(pad_x);
        let mut pixels = [[self.input.pixels() * stride; T]; T];
        let whole = y >= pad_y && x >= pad_x && y + T <= rows.end && x + T <= columns.end;
        // The last of them, or the pixel of zeros.
        let furthest = if whole { (first + (T - 1) * (w + 1)) * stride } else { pixels[0][0] };
        assert!(furthest + self.source.channels <= self.source.data.len(), "a pixel lies in its map");
        for (row, pixels) in pixels.iter_mut().enumerate() {
            for (column, pixel) in pixels.iter_mut().enumerate() {
                if whole || (rows.contains(&(y + row)) && columns.contains(&(x + column))) {
                    *pixel = first.wrapping_add(row * w + column) * stride;
                }
            }
        }
        pixels
    }
}

thread_local! {
    /// Transformed input and output of the tiles of a block.
    static SCRATCH: RefCell<(AlignedFloats, AlignedFloats)> = const { RefCell::new((AlignedFloats::EMPTY, AlignedFloats::EMPTY)) };
}

/// The share of one thread. Tiles have `O` by `O` outputs and `T` by `T` inputs, two more each way.
struct Tiles<'a, const O: usize, const T: usize> {
    op: &'a WinogradConv<'a>,
    target: OutputBuffer,
    tiles: Range<usize>,
}

impl<const O: usize, const T: usize> Kernel for Tiles<'_, O, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: RegisterTile>(self, simd: S) {
        let op = self.op;
        let inputs = op.weights.inputs.next_multiple_of(S::F32_LANES);
        let channels = op.weights.channels.next_multiple_of(S::F32_LANES);
        let most = (BLOCK_FLOATS / (T * T * (inputs + channels))).max(LEAST_TILES).next_multiple_of(S::ROWS);
        let most = most.min(self.tiles.len());
        let (mut before, mut after) = SCRATCH.take();
        let (apart_before, apart_after) = (most * inputs + APART, most * channels + APART);
        // What is there already is overwritten before it is read.
        before.grow(T * T * apart_before);
        after.grow(T * T * apart_after);
        let mut first = self.tiles.start;
        while first < self.tiles.end {
            let tiles = first..(first + most).min(self.tiles.end);
            for (index, tile) in tiles.clone().enumerate() {
                transform::<S, T>(simd, op, tile, &mut before, apart_before, index * inputs);
            }
            let values = before.chunks(apart_before).zip(after.chunks_mut(apart_after));
            for (product, (before, after)) in op.weights.products.iter().zip(values) {
                let after = OutputBuffer::new(after, channels);
                let product = Product { weights: product, before, inputs, after };
                product.panels::<S>(simd, tiles.len(), 0..channels);
            }
            for (index, tile) in tiles.enumerate() {
                let at = index * channels;
                // SAFETY: each tile belongs to one share.
                unsafe { transform_back::<S, O, T>(simd, op, tile, &after, apart_after, at, self.target) };
            }
            first += most;
        }
        SCRATCH.set((before, after));
    }
}

/// Writes the values of a tile, of all channels, to `to`, from `at` on and `apart` floats from each other.
///
/// Here and in [`transform_back`], loops stand where closures would be shorter: those are not always compiled for the
/// instructions of `S`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "what is beyond the buffers panics")]
#[expect(clippy::needless_range_loop, reason = "all lines of `half` are written in a turn")]
fn transform<S: RegisterTile, const T: usize>(
    simd: S,
    op: &WinogradConv<'_>,
    tile: usize,
    to: &mut [f32],
    apart: usize,
    at: usize,
) {
    let pixels = op.pixels::<T>(tile);
    let source = op.source;
    let zero = simd.splat_f32s(0.0);
    let mut channel = 0;
    while channel < source.channels {
        let count = S::F32_LANES.min(source.channels - channel);
        let mut half = [[zero; T]; T];
        // B^T d, column by column.
        for column in 0..T {
            let mut input = [zero; T];
            for row in 0..T {
                let from = pixels[row][column] + channel;
                // SAFETY: `pixels` asserted that `source.channels` floats from each of them on lie in the map.
                input[row] = load(simd, unsafe { source.data.get_unchecked(from..from + count) });
            }
            let values = differences(simd, input);
            for row in 0..T {
                half[row][column] = values[row];
            }
        }
        // The same along the lines.
        let to = &mut to[at + channel..][..(T * T - 1) * apart + S::F32_LANES];
        for row in 0..T {
            let values = differences(simd, half[row]);
            for column in 0..T {
                // SAFETY: a vector from there on lies in `to`, as it was cut, and any floats may.
                unsafe {
                    let to = to.as_mut_ptr().add((row * T + column) * apart);
                    to.cast::<S::f32s>().write_unaligned(values[column]);
                }
            }
        }
        channel += S::F32_LANES;
    }
}

/// Writes the outputs of a tile.
///
/// # Safety
///
/// No other thread may touch the tile's outputs in `target`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "what is beyond the buffers panics")]
#[expect(clippy::needless_range_loop, reason = "all lines of `half` are written in a turn")]
unsafe fn transform_back<S: RegisterTile, const O: usize, const T: usize>(
    simd: S,
    op: &WinogradConv<'_>,
    tile: usize,
    from: &[f32],
    apart: usize,
    at: usize,
    target: OutputBuffer,
) {
    let (image, y, x) = op.place(tile);
    let (channels, output) = (op.weights.channels, op.output);
    let weights = &op.weights.products[0];
    let zero = simd.splat_f32s(0.0);
    let (rows, columns) = (O.min(output.h - y), O.min(output.w - x));
    let mut channel = 0;
    while channel < channels {
        let count = S::F32_LANES.min(channels - channel);
        let from = &from[at + channel..][..(T * T - 1) * apart + S::F32_LANES];
        // A^T m, column by column.
        let mut half = [[zero; T]; O];
        for column in 0..T {
            let mut sums = [zero; T];
            for row in 0..T {
                // SAFETY: a vector from there on lies in `from`, as it was cut.
                sums[row] = unsafe {
                    from.as_ptr().add((row * T + column) * apart).cast::<S::f32s>().read_unaligned()
                };
            }
            let values = joined::<S, O, T>(simd, sums);
            for row in 0..O {
                half[row][column] = values[row];
            }
        }
        let (_, bias, slopes) = weights.panel(channel, S::F32_LANES);
        let bias = load(simd, bias);
        // The same along the lines.
        for row in 0..O {
            if row >= rows {
                break;
            }
            let mut values = [[bias]; O];
            for (value, sum) in values.as_flattened_mut().iter_mut().zip(joined::<S, O, T>(simd, half[row])) {
                *value = simd.add_f32s(*value, sum);
            }
            let first = (image * output.h + y + row) * output.w + x;
            if let Some(residual) = op.residual {
                for (column, value) in values.as_flattened_mut().iter_mut().enumerate().take(columns) {
                    let residual = &residual[(first + column) * channels + channel..][..count];
                    *value = simd.add_f32s(*value, load(simd, residual));
                }
            }
            activate(simd, &mut values, weights.activation(), slopes);
            if count == S::F32_LANES && columns == O {
                // SAFETY: the tile is the caller's alone.
                unsafe { target.write::<S, O, 1>(first, channel, &values) };
                continue;
            }
            for (column, value) in values.iter().enumerate().take(columns) {
                // SAFETY: as above, and the reference ends with this iteration.
                let out = unsafe { target.row(first + column, channel, count) };
                simd.partial_store_f32s(out, value[0]);
            }
        }
        channel += S::F32_LANES;
    }
}

#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    if values.len() == S::F32_LANES
        && let Some(vector) = S::as_simd_f32s(values).0.first()
    {
        *vector
    } else {
        simd.partial_load_f32s(values)
    }
}

/// Returns B^T d of the values in a line.
#[inline(always)]
fn differences<S: Simd, const T: usize>(simd: S, d: [S::f32s; T]) -> [S::f32s; T] {
    let mut to = d;
    if T == 4 {
        to[0] = simd.sub_f32s(d[0], d[2]);
        to[1] = simd.add_f32s(d[1], d[2]);
        to[2] = simd.sub_f32s(d[2], d[1]);
        to[3] = simd.sub_f32s(d[1], d[3]);
        return to;
    }
    let [four, less_four, less_five] = [simd.splat_f32s(4.0), simd.splat_f32s(-4.0), simd.splat_f32s(-5.0)];
    let [two, less_two] = [simd.splat_f32s(2.0), simd.splat_f32s(-2.0)];
    let (outer, inner) = (simd.sub_f32s(d[4], d[2]), simd.sub_f32s(d[3], d[1]));
    to[0] = simd.mul_add_e_f32s(four, d[0], simd.mul_add_e_f32s(less_five, d[2], d[4]));
    to[1] = simd.mul_add_e_f32s(less_four, simd.add_f32s(d[1], d[2]), simd.add_f32s(d[3], d[4]));
    to[2] = simd.mul_add_e_f32s(four, simd.sub_f32s(d[1], d[2]), simd.sub_f32s(d[4], d[3]));
    to[3] = simd.mul_add_e_f32s(two, inner, outer);
    to[4] = simd.mul_add_e_f32s(less_two, inner, outer);
    to[5] = simd.mul_add_e_f32s(four, d[1], simd.mul_add_e_f32s(less_five, d[3], d[5]));
    to
}

/// Returns A^T m of the values in a line.
#[inline(always)]
fn joined<S: Simd, const O: usize, const T: usize>(simd: S, m: [S::f32s; T]) -> [S::f32s; O] {
    let (sum, difference) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let mut to = [sum; O];
    if O == 2 {
        to[0] = simd.add_f32s(m[0], sum);
        to[1] = simd.sub_f32s(difference, m[3]);
        return to;
    }
    let [two, four, eight] = [simd.splat_f32s(2.0), simd.splat_f32s(4.0), simd.splat_f32s(8.0)];
    let (outer, outer_difference) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    to[0] = simd.add_f32s(simd.add_f32s(m[0], sum), outer);
    to[1] = simd.mul_add_e_f32s(two, outer_difference, difference);
    to[2] = simd.mul_add_e_f32s(four, outer, sum);
    to[3] = simd.add_f32s(simd.mul_add_e_f32s(eight, outer_difference, difference), m[5]);
    to
}

/// The matrix product of one value: `[tiles, inputs]` by `[inputs, channels]`.
struct Product<'a> {
    weights: &'a PackedWeights,
    before: &'a [f32],
    /// Floats from one tile to the next.
    inputs: usize,
    after: OutputBuffer,
}

impl Tiled for Product<'_> {
    /// Computes `M` tiles from the `first` on by `V` vectors of channels.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "what is beyond the buffers panics")]
    fn tile<S: RegisterTile, const M: usize, const V: usize>(&self, simd: S, first: usize, channel: usize) {
        if M > S::ROWS {
            return;
        }
        let (panel, ..) = self.weights.panel(channel, V * S::F32_LANES);
        let panel = vectors::<S, V>(panel);
        let rows: [*const f32; M] =
            array::from_fn(|m| self.before[(first + m) * self.inputs..][..panel.len()].as_ptr());
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        // SAFETY: each row was cut to as many floats as there are weights.
        unsafe { accumulate(simd, &mut sums, rows, panel) };
        // SAFETY: the scratch is this thread's own, and nothing refers to it meanwhile.
        unsafe { self.after.write::<S, M, V>(first, channel, &sums) };
    }
}
