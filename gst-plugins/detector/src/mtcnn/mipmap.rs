//! A mipmap of one frame, from which pyramid levels and crops are resampled by area averaging.

use crate::BoundingBox;

/// Maximum number of source pixels per output pixel along one axis: a level of fitting size is never more than twice as fine
/// as what is resampled from it.
const TAPS: usize = 3;
/// A level is not halved below this: the networks look at 12 pixels at least.
const MIN_SIDE: usize = 24;
/// The sampler gives (x - 127) / 128, these networks were trained on (x - 127.5) / 128.
const OFFSET: f32 = 0.5 / 128.0;

/// One level: red, green and blue, each `height` rows of `width` values.
#[derive(Debug, Default)]
pub(super) struct MipLevel {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl MipLevel {
    fn resize(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.values.resize(3 * width * height, 0.0);
    }

    /// Halves width and height of `finer`; the last row and column of odd sides are dropped.
    fn downsample_from(&mut self, finer: &Self) {
        self.resize(finer.width / 2, finer.height / 2);
        let (width, from) = (self.width, finer.width);
        let planes = self.values.chunks_exact_mut(width * self.height);
        for (plane, source) in planes.zip(finer.values.chunks_exact(from * finer.height)) {
            for (row, rows) in plane.chunks_exact_mut(width).zip(source.chunks_exact(2 * from)) {
                let (upper, lower) = rows.split_at(from);
                let pairs = upper.as_chunks().0.iter().zip(lower.as_chunks().0);
                for (value, ([a, b], [c, d])) in row.iter_mut().zip(pairs) {
                    *value = (a + b + c + d) / 4.0;
                }
            }
        }
    }
}

/// A frame at sizes that each halve the one before.
#[derive(Debug, Default)]
pub(super) struct Mipmap {
    /// Levels of earlier frames are kept for their memory; the first `count` are this frame's.
    levels: Vec<MipLevel>,
    count: usize,
    across: Axis,
    down: Axis,
    row: Vec<f32>,
}

impl Mipmap {
    /// Builds all levels from the largest, of `width` x `height` pixels, which `fill` writes as `[3, height, width]`.
    pub(super) fn build(&mut self, width: usize, height: usize, fill: impl FnOnce(&mut [f32])) {
        let mut sides = (width, height);
        self.count = 1;
        while sides.0.min(sides.1) >= 2 * MIN_SIDE {
            sides = (sides.0 / 2, sides.1 / 2);
            self.count += 1;
        }
        if self.levels.len() < self.count {
            self.levels.resize_with(self.count, MipLevel::default);
        }
        let mut levels = self.levels.iter_mut();
        let Some(mut finer) = levels.next() else { return };
        finer.resize(width, height);
        fill(&mut finer.values);
        for level in levels.take(self.count - 1) {
            level.downsample_from(finer);
            finer = level;
        }
    }

    /// Resamples an area, in pixels of the largest level, to `width` x `height` pixels in `output`, `[3, height, width]`:
    /// averaged where it shrinks, interpolated where it grows.
    pub(super) fn resample(
        &mut self,
        area: BoundingBox<f32>,
        width: usize,
        height: usize,
        output: &mut [f32],
    ) {
        let BoundingBox { left, top, right, bottom } = area;
        let finest = ((right - left) / float(width)).min((bottom - top) / float(height));
        let (mut number, mut shrink) = (0, 1.0);
        while number + 1 < self.count && finest >= 2.0 * shrink {
            number += 1;
            shrink *= 2.0;
        }
        let Some(level) = self.levels.get(number) else { return };
        let Self { across, down, row, .. } = self;
        across.set(left / shrink, right / shrink, width, level.width);
        down.set(top / shrink, bottom / shrink, height, level.height);
        let planes = output.chunks_exact_mut(width * height);
        for (plane, source) in planes.zip(level.values.chunks_exact(level.width * level.height)) {
            for (line, &(first, weights)) in plane.chunks_exact_mut(width).zip(&down.taps) {
                blend_rows(source, level.width, first, weights, across.span.clone(), row);
                for (value, &(first, [a, b, c])) in line.iter_mut().zip(&across.taps) {
                    let taps = row.get(first - across.span.start..).and_then(|taps| taps.first_chunk());
                    let [x, y, z] = taps.copied().unwrap_or_default();
                    *value = a * x + b * y + c * z - OFFSET;
                }
            }
        }
    }
}

/// Writes the weighted sum of three rows of a plane, from `first` on, in the columns of `span`, to `row`.
fn blend_rows(
    plane: &[f32],
    width: usize,
    first: usize,
    [a, b, c]: [f32; TAPS],
    span: std::ops::Range<usize>,
    row: &mut Vec<f32>,
) {
    let line = |number: usize| {
        let begin = (first + number) * width;
        plane.get(begin + span.start..begin + span.end).unwrap_or_default()
    };
    row.clear();
    let lines = line(0).iter().zip(line(1)).zip(line(2));
    row.extend(lines.map(|((x, y), z)| a * x + b * y + c * z));
}

/// The source pixels of each output pixel along one axis.
#[derive(Debug, Default)]
struct Axis {
    /// The first of three source pixels, and their weights.
    taps: Vec<(usize, [f32; TAPS])>,
    /// All source pixels that are needed.
    span: std::ops::Range<usize>,
}

impl Axis {
    /// Divides `from` to `to` into `count` parts, in a level of `limit` pixels, at least three. A part that is narrower than a
    /// pixel becomes one pixel wide about its middle, which is linear interpolation.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sides are at most 32,768 pixels, and what is below 0 is clamped before"
    )]
    fn set(&mut self, from: f32, to: f32, count: usize, limit: usize) {
        let step = (to - from) / float(count);
        // Wider parts come only where no smaller level is left.
        let width = step.clamp(1.0, 2.0);
        let last = float(limit - 1);
        self.taps.clear();
        for index in 0..count {
            let middle = from + (float(index) + 0.5) * step;
            let (begin, end) = (middle - width / 2.0, middle + width / 2.0);
            let first = begin.floor();
            let base = (first.clamp(0.0, last) as usize).min(limit.saturating_sub(TAPS));
            let mut weights = [0.0; TAPS];
            for cell in [first, first + 1.0, first + 2.0] {
                let overlap = (end.min(cell + 1.0) - begin.max(cell)).max(0.0);
                // Beyond the edge, the last pixel is repeated.
                let at = cell.clamp(0.0, last) as usize - base;
                if let Some(weight) = weights.get_mut(at) {
                    *weight += overlap / width;
                }
            }
            self.taps.push((base, weights));
        }
        let ends = self.taps.first().zip(self.taps.last());
        self.span = ends.map_or(0..0, |(&(first, _), &(last, _))| first..last + TAPS);
    }
}

#[expect(clippy::cast_precision_loss, reason = "sides are at most 32,768 pixels")]
pub(super) const fn float(pixels: usize) -> f32 {
    pixels as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a ramp across, another one down, and their sum.
    fn ramps(width: usize, height: usize) -> Mipmap {
        let mut mipmap = Mipmap::default();
        mipmap.build(width, height, |values| {
            let (planes, size) = (3, width * height);
            for (plane, at) in (0..planes).flat_map(|plane| (0..size).map(move |at| (plane, at))) {
                let (x, y) = (float(at % width) + 0.5, float(at / width) + 0.5);
                values[plane * size + at] = [x, y, x + y][plane] + OFFSET;
            }
        });
        mipmap
    }

    #[test]
    fn resampling_a_ramp_gives_each_part_the_value_of_its_middle() {
        let mut mipmap = ramps(400, 200);
        for (rect, width, height) in [
            ([20.0, 30.0, 380.0, 170.0], 24, 24),
            ([100.0, 50.0, 150.0, 100.0], 48, 48),
            ([100.25, 50.5, 118.25, 68.5], 24, 24),
            ([8.0, 8.0, 392.0, 192.0], 12, 12),
        ] {
            let mut cut = vec![0.0; 3 * width * height];
            let [left, top, right, bottom] = rect;
            mipmap.resample(BoundingBox::new(left, top, right, bottom), width, height, &mut cut);
            // Where a part ends within a pixel, that pixel counts as if it had one value all over.
            let part = (right - left) / float(width) + (bottom - top) / float(height);
            for (at, value) in cut.iter().enumerate() {
                let (plane, x, y) = (at / (width * height), at % width, at / width % height);
                let x = left + (float(x) + 0.5) * (right - left) / float(width);
                let y = top + (float(y) + 0.5) * (bottom - top) / float(height);
                let expected = [x, y, x + y][plane];
                assert!(
                    (value - expected).abs() < part / 8.0,
                    "{rect:?} to {width}: {value}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn pixels_at_the_edges_are_repeated_beyond_them() {
        let mut mipmap = ramps(100, 60);
        let mut cut = vec![0.0; 3 * 24 * 24];
        mipmap.resample(BoundingBox::new(-5.0, -5.0, 7.0, 7.0), 24, 24, &mut cut);
        assert!((cut[0] - 0.5).abs() < 1e-3, "{}", cut[0]);
        mipmap.resample(BoundingBox::new(93.0, 53.0, 105.0, 65.0), 24, 24, &mut cut);
        assert!((cut[24 * 24 - 1] - 99.5).abs() < 1e-3, "{}", cut[24 * 24 - 1]);
    }
}
