//! 3x3 convolutions of stride 1 by Winograd's minimal filtering F(2x2, 3x3): 16 multiplications for four outputs instead
//! of 36 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1).
//!
//! The output is cut into tiles of 2x2 pixels. The 4x4 inputs of a tile are transformed, channel by channel, into 16
//! values; for each of the 16, the channels are multiplied with a matrix of transformed weights, for many tiles at a time;
//! and the 16 sums of each output channel are transformed back into four outputs. All transforms are additions of whole
//! vectors of channels.

use std::{array, cell::RefCell, ops::Range};

use pulp::Simd;
use rayon::prelude::*;

use super::{
    aligned::Floats,
    conv::{PARALLEL_FROM, Packed, Size, Target, Values, accumulate, activate, vectors},
    level::{Kernel, Level, MAX_ROWS, Registers},
    threads,
};

/// Values that a tile is transformed into.
const VALUES: usize = 16;
/// Floats of transformed input and output that are kept at a time; they should stay in the second-level cache.
const BLOCK_FLOATS: usize = 80 * 1024;
/// Tiles that are worth reading the weights for.
const LEAST_TILES: usize = 24;
/// Floats between the tiles of one value and those of the next, so that the places of a tile in them do not compete for
/// the same lines of the cache.
const APART: usize = 16;
/// Channels, of input and of output, from which the transforms cost less than they save.
const CHANNELS_FROM: usize = 16;

/// Transformed weights.
#[derive(Debug)]
pub(super) struct Transformed {
    /// A matrix for each value of a tile. Each has the bias and the activation, of which the first's count.
    products: Vec<Packed>,
    inputs: usize,
    channels: usize,
}

impl Transformed {
    /// Whether a 3x3 convolution of stride 1 should be done this way.
    pub(super) fn pays(inputs: usize, channels: usize) -> bool {
        inputs >= CHANNELS_FROM && channels >= CHANNELS_FROM
    }

    /// From `weight` `[3, 3, inputs, channels]` and what [`Packed::new`] takes.
    pub(super) fn new(level: Level, weight: &[f32], bias: &[f32], activation: &super::Activation) -> Self {
        let channels = bias.len();
        let each = weight.len() / 9;
        // G g of three weights in a line.
        let line = |[a, b, c]: [f32; 3]| [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c];
        let mut matrices = vec![vec![0f32; each]; VALUES];
        for index in 0..each {
            let tap = |row: usize, column: usize| {
                weight.get((row * 3 + column) * each + index).copied().unwrap_or_default()
            };
            let rows: [[f32; 4]; 3] = array::from_fn(|row| line(array::from_fn(|column| tap(row, column))));
            let columns =
                array::from_fn::<_, 4, _>(|j| line(rows.map(|row| row.get(j).copied().unwrap_or_default())));
            let values = (0..4).flat_map(|row| columns.iter().map(move |column| column.get(row)));
            for (matrix, value) in matrices.iter_mut().zip(values) {
                if let (Some(to), Some(value)) = (matrix.get_mut(index), value) {
                    *to = *value;
                }
            }
        }
        let products =
            matrices.iter().map(|matrix| Packed::new(level, matrix, bias, activation.clone())).collect();
        Self { products, inputs: each / channels.max(1), channels }
    }
}

/// One convolution to be done. The sizes were checked against each other by the caller; here they only decide whether
/// this panics, never what is read or written.
pub(super) struct Winograd<'a> {
    pub weights: &'a Transformed,
    pub padding: (usize, usize),
    pub source: Values<'a>,
    pub input: Size,
    pub output: Size,
    /// Added before the activation, `[pixels, channels]`.
    pub residual: Option<&'a [f32]>,
}

impl Winograd<'_> {
    /// Writes the channels of each output pixel to `out`, which begins at the first of them and has `stride` floats
    /// from one pixel to the next.
    pub(super) fn run(&self, out: &mut [f32], stride: usize) {
        let Some(level) = self.weights.products.first().map(Packed::level) else { return };
        let tiles = self.output.n * self.output.h.div_ceil(2) * self.output.w.div_ceil(2);
        let target = Target::new(out, stride);
        let threads = threads();
        let multiplications = tiles * VALUES * self.weights.inputs * self.weights.channels;
        if threads == 1 || multiplications < PARALLEL_FROM {
            level.run(Tiles { op: self, target, tiles: 0..tiles });
            return;
        }
        (0..threads).into_par_iter().for_each(|i| {
            let tiles = i * tiles / threads..(i + 1) * tiles / threads;
            level.run(Tiles { op: self, target, tiles });
        });
    }

    /// Image, row and column of the first output pixel of a tile.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.output.h.div_ceil(2), self.output.w.div_ceil(2));
        let (line, column) = (tile / columns, tile % columns);
        (line / rows, line % rows * 2, column * 2)
    }

    /// Where the 16 input pixels of a tile begin, line by line.
    ///
    /// # Panics
    ///
    /// Where one would not lie in its map.
    #[inline(always)]
    fn pixels(&self, tile: usize) -> [usize; VALUES] {
        let (image, y, x) = self.place(tile);
        let (pad_y, pad_x) = self.padding;
        let outside = self.input.pixels();
        // Counted in the padded input, as below.
        let whole =
            y >= pad_y && y + 4 <= self.input.h + pad_y && x >= pad_x && x + 4 <= self.input.w + pad_x;
        let pixels = if whole {
            let first = (image * self.input.h + y - pad_y) * self.input.w + x - pad_x;
            array::from_fn(|i| (first + i / 4 * self.input.w + i % 4) * self.source.stride)
        } else {
            array::from_fn(|i| {
                // Counted in the padded input; the unpadded one begins at `padding`.
                let (y, x) = (y + i / 4, x + i % 4);
                let inside = y >= pad_y && y < self.input.h + pad_y && x >= pad_x && x < self.input.w + pad_x;
                let pixel = if inside {
                    (image * self.input.h + y - pad_y) * self.input.w + x - pad_x
                } else {
                    outside
                };
                pixel * self.source.stride
            })
        };
        let furthest = pixels.iter().max().copied().unwrap_or_default();
        assert!(furthest + self.source.channels <= self.source.data.len(), "a pixel lies in its map");
        pixels
    }
}

thread_local! {
    /// Transformed input and output of the tiles of a block.
    static SCRATCH: RefCell<(Floats, Floats)> = const { RefCell::new((Floats::EMPTY, Floats::EMPTY)) };
}

/// The share of one thread.
struct Tiles<'a> {
    op: &'a Winograd<'a>,
    target: Target,
    tiles: Range<usize>,
}

impl Kernel for Tiles<'_> {
    #[inline(always)]
    fn run<S: Registers>(self, simd: S) {
        let op = self.op;
        let inputs = op.weights.inputs.next_multiple_of(S::F32_LANES);
        let channels = op.weights.channels.next_multiple_of(S::F32_LANES);
        let most = (BLOCK_FLOATS / (VALUES * (inputs + channels))).max(LEAST_TILES).next_multiple_of(S::ROWS);
        let most = most.min(self.tiles.len());
        let (mut before, mut after) = SCRATCH.take();
        let (apart_before, apart_after) = (most * inputs + APART, most * channels + APART);
        // What is there already is overwritten before it is read.
        before.grow(VALUES * apart_before);
        after.grow(VALUES * apart_after);
        let mut first = self.tiles.start;
        while first < self.tiles.end {
            let tiles = first..(first + most).min(self.tiles.end);
            for (index, tile) in tiles.clone().enumerate() {
                transform::<S>(simd, op, tile, &mut before, apart_before, index * inputs);
            }
            let values = before.chunks(apart_before).zip(after.chunks_mut(apart_after));
            for (product, (before, after)) in op.weights.products.iter().zip(values) {
                let after = Target::new(after, channels);
                let product = Product { weights: product, before, inputs, after, channels };
                product.run::<S>(simd, tiles.len());
            }
            for (index, tile) in tiles.enumerate() {
                // SAFETY: each tile belongs to one share.
                unsafe {
                    transform_back::<S>(simd, op, tile, &after, apart_after, index * channels, self.target)
                };
            }
            first += most;
        }
        SCRATCH.set((before, after));
    }
}

/// Writes the 16 values of a tile, of all channels, to `to`, from `at` on and `apart` floats from each other.
///
/// Here and in [`transform_back`], loops stand where closures would be shorter: those are not always compiled for the
/// instructions of `S`.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "what is beyond the buffers panics")]
fn transform<S: Registers>(simd: S, op: &Winograd<'_>, tile: usize, to: &mut [f32], apart: usize, at: usize) {
    let pixels = op.pixels(tile);
    let source = op.source;
    let zero = simd.splat_f32s(0.0);
    let mut channel = 0;
    while channel < source.channels {
        let count = S::F32_LANES.min(source.channels - channel);
        let mut half = [[zero; 4]; 4];
        // B^T d, column by column.
        for column in 0..4 {
            let mut input = [zero; 4];
            for row in 0..4 {
                let from = pixels[row * 4 + column] + channel;
                // SAFETY: `pixels` asserted that `source.channels` floats from each of them on lie in the map.
                input[row] = load(simd, unsafe { source.data.get_unchecked(from..from + count) });
            }
            let values = differences(simd, input);
            for row in 0..4 {
                half[row][column] = values[row];
            }
        }
        // The same along the lines.
        for (row, line) in half.iter().enumerate() {
            let values = differences(simd, *line);
            for (column, value) in values.iter().enumerate() {
                let at = (row * 4 + column) * apart + at + channel;
                S::as_mut_simd_f32s(&mut to[at..at + S::F32_LANES]).0[0] = *value;
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
#[expect(clippy::needless_range_loop, reason = "both lines of `half` are written in a turn")]
unsafe fn transform_back<S: Registers>(
    simd: S,
    op: &Winograd<'_>,
    tile: usize,
    from: &[f32],
    apart: usize,
    at: usize,
    target: Target,
) {
    let (image, y, x) = op.place(tile);
    let (channels, output) = (op.weights.channels, op.output);
    let weights = &op.weights.products[0];
    let zero = simd.splat_f32s(0.0);
    let mut channel = 0;
    while channel < channels {
        let count = S::F32_LANES.min(channels - channel);
        // A^T m, column by column.
        let mut half = [[zero; 4]; 2];
        for column in 0..4 {
            let mut sums = [zero; 4];
            for (row, sum) in sums.iter_mut().enumerate() {
                let at = (row * 4 + column) * apart + at + channel;
                *sum = S::as_simd_f32s(&from[at..at + S::F32_LANES]).0[0];
            }
            let values = joined(simd, sums);
            half[0][column] = values[0];
            half[1][column] = values[1];
        }
        let (_, bias, slopes) = weights.panel(channel, S::F32_LANES);
        let bias = load(simd, bias);
        // The same along the lines.
        for (row, line) in half.iter().enumerate() {
            let values = joined(simd, *line);
            for (column, value) in values.iter().enumerate() {
                let (y, x) = (y + row, x + column);
                if y >= output.h || x >= output.w {
                    continue;
                }
                let pixel = (image * output.h + y) * output.w + x;
                let mut value = [[simd.add_f32s(*value, bias)]];
                if let Some(residual) = op.residual {
                    let residual = load(simd, &residual[pixel * channels + channel..][..count]);
                    value[0][0] = simd.add_f32s(value[0][0], residual);
                }
                activate(simd, &mut value, weights.activation(), slopes);
                // SAFETY: the tile is the caller's alone, and the reference ends with this iteration.
                let out = unsafe { target.row(pixel, channel, count) };
                if count == S::F32_LANES {
                    S::as_mut_simd_f32s(out).0[0] = value[0][0];
                } else {
                    simd.partial_store_f32s(out, value[0][0]);
                }
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

/// B^T d of four values in a line.
#[inline(always)]
fn differences<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
}

/// A^T m of four values in a line.
#[inline(always)]
fn joined<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
    let (sum, difference) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
    [simd.add_f32s(a, sum), simd.sub_f32s(difference, d)]
}

/// One of the 16 matrix products: `[tiles, inputs]` by `[inputs, channels]`.
struct Product<'a> {
    weights: &'a Packed,
    before: &'a [f32],
    /// Floats from one tile to the next.
    inputs: usize,
    after: Target,
    /// Floats of a tile in that.
    channels: usize,
}

impl Product<'_> {
    #[inline(always)]
    fn run<S: Registers>(&self, simd: S, tiles: usize) {
        let wide = S::VECTORS * S::F32_LANES;
        for channel in (0..self.channels).step_by(wide) {
            match (self.channels - channel).div_ceil(S::F32_LANES).min(S::VECTORS) {
                1 => self.panel::<S, 1>(simd, channel, tiles),
                2 => self.panel::<S, 2>(simd, channel, tiles),
                3 => self.panel::<S, 3>(simd, channel, tiles),
                _ => self.panel::<S, 4>(simd, channel, tiles),
            }
        }
    }

    #[inline(always)]
    fn panel<S: Registers, const V: usize>(&self, simd: S, channel: usize, count: usize) {
        if V > S::VECTORS {
            return;
        }
        // Of equal height, rather than a low one at the end.
        let blocks = count.div_ceil(S::ROWS);
        let (height, higher) = (count / blocks, count % blocks);
        let mut first = 0;
        for block in 0..blocks {
            let rows = height + usize::from(block < higher);
            match rows {
                1 => self.rows::<S, 1, V>(simd, first, channel),
                2 => self.rows::<S, 2, V>(simd, first, channel),
                3 => self.rows::<S, 3, V>(simd, first, channel),
                4 => self.rows::<S, 4, V>(simd, first, channel),
                5 => self.rows::<S, 5, V>(simd, first, channel),
                6 => self.rows::<S, 6, V>(simd, first, channel),
                7 => self.rows::<S, 7, V>(simd, first, channel),
                _ => self.rows::<S, MAX_ROWS, V>(simd, first, channel),
            }
            first += rows;
        }
    }

    /// `M` tiles from the `first` on by `V` vectors of channels.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "what is beyond the buffers panics")]
    fn rows<S: Registers, const M: usize, const V: usize>(&self, simd: S, first: usize, channel: usize) {
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
