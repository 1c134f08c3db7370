//! The convolution kernel: tiles of output pixels by output channels, held in registers over the whole depth of the
//! sum, and written once, with bias, residual and activation.
//!
//! Channels-last maps need no im2col: the inputs of an output pixel lie in a few runs (one for a
//! 1x1 kernel, one for each row or each tap of a larger one), and the kernel reads them where they are. Only the weights
//! are packed, once, in the order in which the kernel reads them.

use std::{array, cell::RefCell, marker::PhantomData, ops::Range};

use facepipe_shared::simd::{Kernel, MAX_ROWS, RegisterTile, SimdLevel};
use pulp::Simd;
use rayon::prelude::*;

use super::{FusedActivation, Window, aligned::AlignedFloats, intra_op_threads};

/// Multiplications below which a second thread costs more than it saves.
pub(super) const PARALLEL_FROM: usize = 2_000_000;
/// Floats of input that the tiles of one block read; they should stay in the second-level cache beside the weights of a
/// panel.
const BLOCK_FLOATS: usize = 48 * 1024;

/// A view of all channels of a map, or of a contiguous range of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChannelView<'a> {
    /// From the first value of the first pixel on. One more pixel than the map has, the last of zeros, is what lies
    /// beyond the edges.
    pub data: &'a [f32],
    /// Floats from one pixel to the next.
    pub stride: usize,
    /// Channels that count.
    pub channels: usize,
}

/// Images, height and width of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub n: usize,
    pub h: usize,
    pub w: usize,
}

impl Size {
    pub(crate) fn pixels(self) -> usize {
        self.n * self.h * self.w
    }
}

/// Weights in the order in which the kernel reads them.
///
/// The output channels are cut into panels as wide as a tile. In a panel, the channels of one input stand side by side,
/// and the inputs follow each other as they do in the window. The last panel is cut off after the vector in which the
/// channels end, and filled with zeros.
#[derive(Debug)]
pub(super) struct PackedWeights {
    level: SimdLevel,
    panels: AlignedFloats,
    /// Inputs of an output: kernel rows * kernel columns * input channels.
    depth: usize,
    channels: usize,
    /// With zeros up to the width of the panels.
    bias: Vec<f32>,
    activation: FusedActivation,
}

impl PackedWeights {
    /// Builds it from `weight` `[inputs, channels]` and `bias` `[channels]`; slopes of PReLU are one for each channel.
    pub(super) fn new(level: SimdLevel, weight: &[f32], bias: &[f32], activation: FusedActivation) -> Self {
        let channels = bias.len();
        let depth = weight.len() / channels.max(1);
        let (lanes, wide) = (level.lanes(), level.tile_channels());
        let padded = channels.next_multiple_of(lanes);
        let mut panels = AlignedFloats::zeros(padded * depth);
        let mut at = 0;
        for first in (0..channels).step_by(wide) {
            let width = wide.min(padded - first);
            let used = width.min(channels - first);
            for row in weight.chunks_exact(channels) {
                if let (Some(to), Some(from)) = (panels.get_mut(at..at + used), row.get(first..first + used))
                {
                    to.copy_from_slice(from);
                }
                at += width;
            }
        }
        let filled = |values: &[f32]| {
            let mut values = values.to_vec();
            values.resize(padded, 0.0);
            values
        };
        let activation = match activation {
            FusedActivation::PRelu(slopes) => FusedActivation::PRelu(filled(&slopes)),
            other => other,
        };
        Self { level, panels, depth, channels, bias: filled(bias), activation }
    }

    pub(super) fn level(&self) -> SimdLevel {
        self.level
    }

    pub(super) fn activation(&self) -> &FusedActivation {
        &self.activation
    }

    /// Returns weights, biases, and slopes of PReLU, of the panel that begins at channel `first`.
    pub(super) fn panel(&self, first: usize, width: usize) -> (&[f32], &[f32], &[f32]) {
        let at = first * self.depth;
        let part = |values: &'_ Vec<f32>| first..(first + width).min(values.len());
        let slopes = match &self.activation {
            FusedActivation::PRelu(slopes) => slopes.get(part(slopes)),
            _ => None,
        };
        (
            self.panels.get(at..at + width * self.depth).unwrap_or_default(),
            self.bias.get(part(&self.bias)).unwrap_or_default(),
            slopes.unwrap_or_default(),
        )
    }
}

/// The arguments of one convolution. The sizes were checked against each other by the caller; here they only decide whether
/// this panics, never what is read or written.
pub(super) struct DirectConv<'a> {
    pub packed: &'a PackedWeights,
    pub window: Window,
    /// The maps whose channels, one after the other, are the input. Windows other than 1x1 take one.
    pub sources: &'a [ChannelView<'a>],
    pub input: Size,
    pub output: Size,
    /// Added before the activation, `[pixels, channels]`.
    pub residual: Option<&'a [f32]>,
}

/// The output of a kernel. Shared by the threads, each of which writes its own pixels and channels.
#[derive(Clone, Copy)]
pub(super) struct OutputBuffer {
    start: *mut f32,
    len: usize,
    /// Floats from one pixel to the next.
    stride: usize,
}

// SAFETY: the pointer came from an exclusive borrow that outlives all the threads, and `OutputBuffer::row` says which of the
// floats behind it each may touch.
unsafe impl Send for OutputBuffer {}
// SAFETY: as above.
unsafe impl Sync for OutputBuffer {}

impl OutputBuffer {
    /// Computes all of `out`, which has `stride` floats from one pixel to the next.
    pub(super) fn new(out: &mut [f32], stride: usize) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), stride }
    }

    /// Returns `len` floats of pixel `pixel` from channel `channel` on.
    ///
    /// # Safety
    ///
    /// No other thread may touch, and the caller may not hold another reference to, these floats.
    #[inline(always)]
    pub(super) unsafe fn row<'a>(self, pixel: usize, channel: usize, len: usize) -> &'a mut [f32] {
        let at = pixel * self.stride + channel;
        assert!(at + len <= self.len, "a tile lies in its map");
        // SAFETY: the floats lie in the borrow that `self` came from (asserted above), and are the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// Writes whole vectors to the channels from `channel` on of `M` pixels from `pixel` on.
    ///
    /// # Safety
    ///
    /// No other thread may touch, and the caller may not hold a reference to, these floats.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd, const M: usize, const V: usize>(
        self,
        pixel: usize,
        channel: usize,
        values: &[[S::f32s; V]; M],
    ) {
        let at = pixel * self.stride + channel;
        assert!(at + (M - 1) * self.stride + V * S::F32_LANES <= self.len, "a tile lies in its map");
        for (m, row) in values.iter().enumerate() {
            for (v, value) in row.iter().enumerate() {
                // SAFETY: the last of the vectors lies in the borrow that `self` came from (asserted above), and they are
                // the caller's alone.
                unsafe {
                    let out = self.start.add(at + m * self.stride + v * S::F32_LANES);
                    out.cast::<S::f32s>().write_unaligned(*value);
                }
            }
        }
    }
}

impl DirectConv<'_> {
    /// Writes the channels of each output pixel to `out`, which begins at the first of them and has `stride` floats
    /// from one pixel to the next.
    pub(super) fn run(&self, out: &mut [f32], stride: usize) {
        let (pixels, channels) = (self.output.pixels(), self.packed.channels);
        if pixels == 0 {
            return;
        }
        let target = OutputBuffer::new(out, stride);
        let threads = intra_op_threads();
        let weights = self.packed.depth * channels;
        if threads == 1 || pixels * weights < PARALLEL_FROM {
            self.run_item(target, 0..pixels, 0..channels);
            return;
        }
        // Split so that what is larger is read by one thread only: the weights or the map.
        let wide = self.packed.level.tile_channels();
        let panels = channels.div_ceil(wide);
        if panels >= threads && weights > self.input.pixels() * (self.packed.depth / self.window.taps()) {
            (0..threads).into_par_iter().for_each(|i| {
                let channel = |i: usize| (i * panels / threads * wide).min(channels);
                self.run_item(target, 0..pixels, channel(i)..channel(i + 1));
            });
        } else {
            let tasks = threads.min(pixels.div_ceil(MAX_ROWS));
            (0..tasks).into_par_iter().for_each(|i| {
                self.run_item(target, i * pixels / tasks..(i + 1) * pixels / tasks, 0..channels);
            });
        }
    }

    fn run_item(&self, target: OutputBuffer, pixels: Range<usize>, channels: Range<usize>) {
        self.packed.level.run(WorkItem { convolution: self, target, pixels, channels });
    }

    /// Returns the runs in which the inputs of an output pixel lie, in the order of the packed weights.
    fn runs(&self) -> Vec<InputRun<'_>> {
        if self.window == Window::POINT {
            let run = |source: &ChannelView<'_>| InputRun {
                data: source.data.as_ptr(),
                len: source.channels,
                at: 0,
                _source: PhantomData,
            };
            return self.sources.iter().map(run).collect();
        }
        let Some(source) = self.sources.first() else { return Vec::new() };
        let (rows, columns) = self.window.kernel;
        let line = self.input.w * source.stride;
        let run = |len, at| InputRun { data: source.data.as_ptr(), len, at, _source: PhantomData };
        if self.place() == WindowPlacement::Inside && source.stride == source.channels {
            return (0..rows).map(|row| run(columns * source.channels, row * line)).collect();
        }
        let taps = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let at = |(row, column)| match self.place() {
            WindowPlacement::Inside => row * line + column * source.stride,
            WindowPlacement::Padded => 0,
        };
        taps.map(|tap| run(source.channels, at(tap))).collect()
    }

    fn place(&self) -> WindowPlacement {
        if self.window.padding == (0, 0) && self.sources.len() == 1 {
            WindowPlacement::Inside
        } else {
            WindowPlacement::Padded
        }
    }

    /// Appends where the window of each of `pixels` begins, or, where it may lie [`WindowPlacement::Padded`], where each of its
    /// runs does.
    ///
    /// # Panics
    ///
    /// Where a run would not lie in its source.
    fn offsets(&self, pixels: Range<usize>, offsets: &mut Vec<usize>) {
        let Some(source) = self.sources.first() else { return };
        if self.window == Window::POINT {
            for source in self.sources {
                assert!(pixels.end * source.stride <= source.data.len(), "a run lies in its map");
            }
            if self.sources.len() == 1 {
                offsets.extend(evenly(pixels.start * source.stride, source.stride, pixels.len()));
            } else {
                offsets.extend(
                    pixels.flat_map(|pixel| self.sources.iter().map(move |source| pixel * source.stride)),
                );
            }
            return;
        }
        let (rows, columns) = self.window.kernel;
        let (pad_y, pad_x) = self.window.padding;
        let outside = self.input.pixels() * source.stride;
        let last = match self.place() {
            WindowPlacement::Inside => ((rows - 1) * self.input.w + columns - 1) * source.stride,
            WindowPlacement::Padded => 0,
        };
        let mut furthest = 0;
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            // As far as the line goes.
            let (line, first) = (pixel / self.output.w, pixel % self.output.w);
            let (image, y) = (line / self.output.h, line % self.output.h * self.window.stride);
            let xs = first..self.output.w.min(first + pixels.end - pixel);
            pixel += xs.len();
            if self.place() == WindowPlacement::Inside {
                let start = (image * self.input.h + y) * self.input.w;
                let first = (start + xs.start * self.window.stride) * source.stride;
                offsets.extend(evenly(first, self.window.stride * source.stride, xs.len()));
                furthest = furthest.max(offsets.last().copied().unwrap_or_default());
                continue;
            }
            // Counted in the padded input; the unpadded one begins at `padding`.
            for x in xs.map(|x| x * self.window.stride) {
                for y in y..y + rows {
                    let inside = y >= pad_y && y < self.input.h + pad_y;
                    let line = (image * self.input.h + y).wrapping_sub(pad_y).wrapping_mul(self.input.w);
                    for x in x..x + columns {
                        let inside = inside && x >= pad_x && x < self.input.w + pad_x;
                        let at =
                            if inside { (line + x).wrapping_sub(pad_x) * source.stride } else { outside };
                        furthest = furthest.max(at);
                        offsets.push(at);
                    }
                }
            }
        }
        assert!(furthest + last + source.channels <= source.data.len(), "a run lies in its map");
    }
}

/// Returns `count` numbers, each `step` more than the one before. By additions, of which the compiler makes vectors.
fn evenly(first: usize, step: usize, count: usize) -> impl ExactSizeIterator<Item = usize> {
    let mut next = first;
    (0..count).map(move |_| {
        let this = next;
        next += step;
        this
    })
}

/// Where the windows of a convolution lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowPlacement {
    /// Inside of one map, so that the runs are at the same places in all windows.
    Inside,
    /// Partly in the padding, or in several maps.
    Padded,
}

/// Inputs that lie side by side in memory.
struct InputRun<'a> {
    /// The values of the map.
    data: *const f32,
    len: usize,
    /// Where it begins, counted from the offset.
    at: usize,
    _source: PhantomData<&'a [f32]>,
}

thread_local! {
    /// Where the windows of a block begin.
    static OFFSETS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// One thread's share of a convolution: a range of pixels by a range of channels that starts at a panel.
struct WorkItem<'a> {
    convolution: &'a DirectConv<'a>,
    target: OutputBuffer,
    pixels: Range<usize>,
    channels: Range<usize>,
}

impl Kernel for WorkItem<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: RegisterTile>(self, simd: S) {
        let op = self.convolution;
        let runs = op.runs();
        // A pixel's own share of the input, but for what it shares with its neighbours.
        let own = op.packed.depth / op.window.kernel.0.min(op.window.kernel.1).max(1);
        let block = (BLOCK_FLOATS / own.max(1)).clamp(8 * S::ROWS, 512).next_multiple_of(S::ROWS);
        // Taken rather than borrowed in a closure, so that all below is compiled for the instructions of `S`.
        let mut offsets = OFFSETS.take();
        let mut first = self.pixels.start;
        while first < self.pixels.end {
            let pixels = first..(first + block).min(self.pixels.end);
            offsets.clear();
            op.offsets(pixels.clone(), &mut offsets);
            let block =
                Block { op, target: self.target, runs: &runs, offsets: &offsets, pixels: pixels.clone() };
            block.panels::<S>(simd, pixels.len(), self.channels.clone());
            first = pixels.end;
        }
        OFFSETS.set(offsets);
    }
}

/// A matrix product in tiles of rows by vectors of channels, whose sums fit into the registers.
pub(super) trait Tiled {
    /// Computes `M` rows from the `first` on, by `V` vectors of channels from `channel` on.
    fn tile<S: RegisterTile, const M: usize, const V: usize>(&self, simd: S, first: usize, channel: usize);

    /// Computes all tiles of `rows` rows and of `channels`, which begin at a panel.
    #[inline(always)]
    fn panels<S: RegisterTile>(&self, simd: S, rows: usize, channels: Range<usize>) {
        for channel in channels.clone().step_by(S::VECTORS * S::F32_LANES) {
            match (channels.end - channel).div_ceil(S::F32_LANES).min(S::VECTORS) {
                1 => self.panel::<S, 1>(simd, rows, channel),
                2 => self.panel::<S, 2>(simd, rows, channel),
                3 => self.panel::<S, 3>(simd, rows, channel),
                _ => self.panel::<S, 4>(simd, rows, channel),
            }
        }
    }

    /// Computes the `V` vectors of channels from `channel` on, of all rows.
    #[inline(always)]
    fn panel<S: RegisterTile, const V: usize>(&self, simd: S, rows: usize, channel: usize) {
        if V > S::VECTORS || rows == 0 {
            return;
        }
        // Tiles of equal height, rather than a low one at the end.
        let tiles = rows.div_ceil(S::ROWS);
        let (height, higher) = (rows / tiles, rows % tiles);
        let mut first = 0;
        for tile in 0..tiles {
            let rows = height + usize::from(tile < higher);
            match rows {
                1 => self.tile::<S, 1, V>(simd, first, channel),
                2 => self.tile::<S, 2, V>(simd, first, channel),
                3 => self.tile::<S, 3, V>(simd, first, channel),
                4 => self.tile::<S, 4, V>(simd, first, channel),
                5 => self.tile::<S, 5, V>(simd, first, channel),
                6 => self.tile::<S, 6, V>(simd, first, channel),
                7 => self.tile::<S, 7, V>(simd, first, channel),
                _ => self.tile::<S, MAX_ROWS, V>(simd, first, channel),
            }
            first += rows;
        }
    }
}

/// Neighbouring output pixels whose inputs fit into the cache together.
struct Block<'a> {
    op: &'a DirectConv<'a>,
    target: OutputBuffer,
    /// Together as long as the packed weights are deep.
    runs: &'a [InputRun<'a>],
    /// Of each pixel, or of each run of each pixel: what [`DirectConv::offsets`] made of these pixels.
    offsets: &'a [usize],
    pixels: Range<usize>,
}

impl Tiled for Block<'_> {
    /// Computes `M` pixels, from the `first` of the block on, by `V` vectors of channels, from `channel` on.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn tile<S: RegisterTile, const M: usize, const V: usize>(&self, simd: S, first: usize, channel: usize) {
        if M > S::ROWS {
            return;
        }
        let packed = self.op.packed;
        let (panel, bias, slopes) = packed.panel(channel, V * S::F32_LANES);
        let (panel, bias) = (vectors::<S, V>(panel), vectors::<S, V>(bias));
        let mut sums = [bias[0]; M];
        let each = if self.op.place() == WindowPlacement::Inside { 1 } else { self.runs.len() };
        let offsets = &self.offsets[first * each..][..M * each];
        let mut weights = panel;
        for (index, run) in self.runs.iter().enumerate() {
            let (now, later) = weights.split_at(run.len);
            weights = later;
            let index = if each == 1 { 0 } else { index };
            // SAFETY: `DirectConv::offsets` asserted that the run, from its offset on, lies in its map.
            let rows: [*const f32; M] =
                array::from_fn(|m| unsafe { run.data.add(offsets[m * each + index] + run.at) });
            // SAFETY: there is a weight for each float of the run, which lies in its map from `rows[m]` on.
            unsafe { accumulate(simd, &mut sums, rows, now) };
        }
        let channels = (packed.channels - channel).min(V * S::F32_LANES);
        let pixel = self.pixels.start + first;
        if let Some(residual) = self.op.residual {
            let residual = &residual[pixel * packed.channels + channel..];
            add(simd, &mut sums, residual, packed.channels, channels);
        }
        activate(simd, &mut sums, &packed.activation, slopes);
        if channels == V * S::F32_LANES {
            // SAFETY: each pixel belongs to one tile of one part, each channel to one panel of one part.
            unsafe { self.target.write::<S, M, V>(pixel, channel, &sums) };
            return;
        }
        // A copy, so that the sums themselves need no address and stay in registers.
        let copy = sums;
        for (m, sums) in copy.iter().enumerate() {
            // SAFETY: as above, and the reference ends with this iteration.
            let out = unsafe { self.target.row(pixel + m, channel, channels) };
            for (out, sum) in out.chunks_mut(S::F32_LANES).zip(sums) {
                simd.partial_store_f32s(out, *sum);
            }
        }
    }
}

/// Adds to the sums of each row the products of its floats with the weights.
///
/// # Safety
///
/// From each of `rows` on, there must be as many floats as there are weights.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "the sizes are the types'")]
pub(super) unsafe fn accumulate<S: Simd, const M: usize, const V: usize>(
    simd: S,
    sums: &mut [[S::f32s; V]; M],
    rows: [*const f32; M],
    weights: &[[S::f32s; V]],
) {
    for (k, weight) in weights.iter().enumerate() {
        for m in 0..M {
            // SAFETY: `k` is less than the number of weights.
            let value = simd.splat_f32s(unsafe { *rows[m].add(k) });
            for v in 0..V {
                sums[m][v] = simd.mul_add_e_f32s(value, weight[v], sums[m][v]);
            }
        }
    }
}

/// Returns the floats as rows of `V` vectors.
#[inline(always)]
pub(super) fn vectors<S: Simd, const V: usize>(floats: &[f32]) -> &[[S::f32s; V]] {
    S::as_simd_f32s(floats).0.as_chunks::<V>().0
}

/// Adds a residual, whose first row is that of `sums`, with `stride` floats from one row to the next, `channels` of which
/// count.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
fn add<S: Simd, const M: usize, const V: usize>(
    simd: S,
    sums: &mut [[S::f32s; V]; M],
    residual: &[f32],
    stride: usize,
    channels: usize,
) {
    let mut values = [[simd.splat_f32s(0.0); V]; M];
    if channels == V * S::F32_LANES {
        let residual = residual[..(M - 1) * stride + channels].as_ptr();
        for (m, row) in values.iter_mut().enumerate() {
            for (v, value) in row.iter_mut().enumerate() {
                let at = m * stride + v * S::F32_LANES;
                // SAFETY: `at` and a vector end before row `m` does, up to which the residual was cut. Any bits are
                // floats.
                *value = unsafe { residual.add(at).cast::<S::f32s>().read_unaligned() };
            }
        }
    } else {
        for (m, values) in values.iter_mut().enumerate() {
            let row = residual[m * stride..][..channels].chunks(S::F32_LANES);
            for (value, part) in values.iter_mut().zip(row) {
                *value = simd.partial_load_f32s(part);
            }
        }
    }
    for (sum, value) in sums.as_flattened_mut().iter_mut().zip(values.as_flattened()) {
        *sum = simd.add_f32s(*sum, *value);
    }
}

/// Applies the activation; `slopes` are those of these channels.
///
/// Here and above, loops over the types' sizes with bodies of one instruction, which the compiler unrolls; then the sums
/// stay in registers.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "the sizes are the types'")]
pub(super) fn activate<S: Simd, const M: usize, const V: usize>(
    simd: S,
    values: &mut [[S::f32s; V]; M],
    activation: &FusedActivation,
    slopes: &[f32],
) {
    let zero = simd.splat_f32s(0.0);
    match activation {
        FusedActivation::None => {}
        FusedActivation::Relu => {
            for value in values.as_flattened_mut() {
                *value = simd.max_f32s(*value, zero);
            }
        }
        FusedActivation::Relu6 => {
            let six = simd.splat_f32s(6.0);
            for value in values.as_flattened_mut() {
                *value = simd.min_f32s(simd.max_f32s(*value, zero), six);
            }
        }
        FusedActivation::PRelu(_) => {
            let slopes = vectors::<S, V>(slopes)[0];
            for row in values {
                for (value, slope) in row.iter_mut().zip(slopes) {
                    let below = simd.min_f32s(*value, zero);
                    *value = simd.mul_add_e_f32s(slope, below, simd.max_f32s(*value, zero));
                }
            }
        }
    }
}
