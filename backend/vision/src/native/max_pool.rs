//! Max pooling. Neighbouring channels in memory are computed in one vector.

use candle_core::{Result, bail};
use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};
use pulp::Simd;

use super::{
    FeatureMap, Size, Workspace,
    depthwise::{load, store},
};
use crate::nn::MaxPool;

/// Returns the output size for an input of `size`.
pub(crate) fn output(pool: &MaxPool, size: Size) -> Result<Size> {
    match (pool.outputs(size.h), pool.outputs(size.w)) {
        (Some(h), Some(w)) => Ok(Size { n: size.n, h, w }),
        _ => bail!("a {}x{} input is smaller than the pooling window of {}", size.h, size.w, pool.side),
    }
}

/// Pools `[N, H, W, C]` to `[N, H', W', C]`.
pub(crate) fn forward(pool: &MaxPool, workspace: &mut Workspace, input: &FeatureMap) -> Result<FeatureMap> {
    let mut out = workspace.map(output(pool, input.size())?, input.channels());
    forward_into(pool, input, &mut out, 0)?;
    Ok(out)
}

/// Writes the output to the channels of `out` from `channel` on.
pub(crate) fn forward_into(
    pool: &MaxPool,
    input: &FeatureMap,
    out: &mut FeatureMap,
    channel: usize,
) -> Result<()> {
    run(pool, SimdLevel::best(), input, out, channel)
}

/// Pools as [`forward_into`] does, with the given vector instructions.
pub(super) fn run(
    pool: &MaxPool,
    level: SimdLevel,
    input: &FeatureMap,
    out: &mut FeatureMap,
    channel: usize,
) -> Result<()> {
    let output = output(pool, input.size())?;
    let stride = out.channels();
    if out.size() != output || channel + input.channels() > stride {
        bail!("the output does not fit into its map");
    }
    let Some(out) = out.values_mut().get_mut(channel..) else {
        bail!("the output does not fit into its map")
    };
    let pooling = MaxPooling {
        level,
        window: *pool,
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

/// The arguments of one max pooling.
struct MaxPooling<'a> {
    level: SimdLevel,
    window: MaxPool,
    input: &'a [f32],
    size: Size,
    channels: usize,
    output: Size,
    /// Begins at the first pooled channel of the first pixel.
    out: &'a mut [f32],
    /// Floats from one output pixel to the next.
    stride: usize,
}

impl MaxPooling<'_> {
    fn run(self) {
        if self.channels > 0 && self.output.pixels() > 0 {
            self.level.no_wider_than(self.channels).run(self);
        }
    }
}

impl Kernel for MaxPooling<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn run<S: RegisterTile>(self, simd: S) {
        let (size, channels, window) = (self.size, self.channels, self.window);
        let lines = self.output.n * self.output.h;
        for (line, out) in self.out.chunks_mut(self.output.w * self.stride).enumerate().take(lines) {
            let (image, y) = (line / self.output.h, line % self.output.h * window.stride);
            let height = window.side.min(size.h - y);
            for (out_x, out) in out.chunks_mut(self.stride).enumerate() {
                let x = out_x * window.stride;
                let width = window.side.min(size.w - x);
                let input = &self.input[((image * size.h + y) * size.w + x) * channels..];
                let part = PoolWindow { input, line: size.w * channels, channels };
                let out = &mut out[..channels];
                match (height, width) {
                    (2, 2) => part.largest::<S, 2>(simd, out),
                    (3, 3) => part.largest::<S, 3>(simd, out),
                    _ => part.largest_of(simd, height, width, out),
                }
            }
        }
    }
}

/// A window of a pooling.
struct PoolWindow<'a> {
    /// From its first pixel on.
    input: &'a [f32],
    /// Floats from a row to the next.
    line: usize,
    channels: usize,
}

impl PoolWindow<'_> {
    /// Writes the largest value of each channel in a window that is `N` pixels high and wide.
    #[inline(always)]
    fn largest<S: Simd, const N: usize>(&self, simd: S, out: &mut [f32]) {
        self.largest_of(simd, N, N, out);
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "sizes were checked on entry; what is beyond them panics")]
    fn largest_of<S: Simd>(&self, simd: S, height: usize, width: usize, out: &mut [f32]) {
        let input = &self.input[..(height - 1) * self.line + width * self.channels];
        let out = &mut out[..self.channels];
        let lowest = simd.splat_f32s(f32::NEG_INFINITY);
        if self.channels < S::F32_LANES {
            let mut best = lowest;
            for row in 0..height {
                for column in 0..width {
                    let at = row * self.line + column * self.channels;
                    best = simd.max_f32s(best, load(simd, &input[at..][..self.channels]));
                }
            }
            store(simd, out, best);
            return;
        }
        let mut done = 0;
        while done < self.channels {
            // The last vector reaches back over channels that are done, rather than be a part of one.
            let first = done.min(self.channels - S::F32_LANES);
            let mut best = lowest;
            for row in 0..height {
                for column in 0..width {
                    let at = row * self.line + column * self.channels + first;
                    // SAFETY: a vector from `first` on ends with the channels of its pixel, up to the last of which the input
                    // was cut. Any bits are floats.
                    let value = unsafe { input.as_ptr().add(at).cast::<S::f32s>().read_unaligned() };
                    best = simd.max_f32s(best, value);
                }
            }
            store(simd, &mut out[first..][..S::F32_LANES], best);
            done += S::F32_LANES;
        }
    }
}
