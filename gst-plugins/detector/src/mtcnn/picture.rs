//! Pictures of one frame in several sizes, from which levels and crops are cut by averaging areas.

/// Source pixels that one output pixel is made of, along one axis, at most: a picture of fitting size is never more than
/// twice as fine as what is cut out of it.
const TAPS: usize = 3;
/// A picture is not halved below this: the networks look at 12 pixels at least.
const SMALLEST: usize = 24;
/// The sampler gives (x - 127) / 128, these networks were trained on (x - 127.5) / 128.
const OFFSET: f32 = 0.5 / 128.0;

/// Red, green and blue, each `height` rows of `width` values.
#[derive(Debug, Default)]
pub(super) struct Picture {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Picture {
    fn resize(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.values.resize(3 * width * height, 0.0);
    }

    /// Becomes `other` at half its width and height; of odd sides, the last pixels go.
    fn become_half_of(&mut self, other: &Self) {
        self.resize(other.width / 2, other.height / 2);
        let (width, from) = (self.width, other.width);
        let planes = self.values.chunks_exact_mut(width * self.height);
        for (plane, source) in planes.zip(other.values.chunks_exact(from * other.height)) {
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

/// A frame in sizes that each halve the one before.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    /// Those of earlier frames are kept for their memory; the first `count` are this frame's.
    all: Vec<Picture>,
    count: usize,
    across: Axis,
    down: Axis,
    row: Vec<f32>,
}

impl Pictures {
    /// Makes them from the largest one, of `width` x `height` pixels, which `fill` puts into `[3, height, width]`.
    pub(super) fn make(&mut self, width: usize, height: usize, fill: impl FnOnce(&mut [f32])) {
        let mut sides = (width, height);
        self.count = 1;
        while sides.0.min(sides.1) >= 2 * SMALLEST {
            sides = (sides.0 / 2, sides.1 / 2);
            self.count += 1;
        }
        if self.all.len() < self.count {
            self.all.resize_with(self.count, Picture::default);
        }
        let mut pictures = self.all.iter_mut();
        let Some(mut finer) = pictures.next() else { return };
        finer.resize(width, height);
        fill(&mut finer.values);
        for picture in pictures.take(self.count - 1) {
            picture.become_half_of(finer);
            finer = picture;
        }
    }

    /// Cuts left, top, right and bottom, pixels of the largest picture, out as `width` x `height` pixels into `output`,
    /// `[3, height, width]`. What is made smaller is averaged, what is made larger interpolated.
    pub(super) fn cut(&mut self, rect: [f32; 4], width: usize, height: usize, output: &mut [f32]) {
        let [left, top, right, bottom] = rect;
        let finest = ((right - left) / float(width)).min((bottom - top) / float(height));
        let (mut number, mut shrink) = (0, 1.0);
        while number + 1 < self.count && finest >= 2.0 * shrink {
            number += 1;
            shrink *= 2.0;
        }
        let Some(picture) = self.all.get(number) else { return };
        let Self { across, down, row, .. } = self;
        across.set(left / shrink, right / shrink, width, picture.width);
        down.set(top / shrink, bottom / shrink, height, picture.height);
        let planes = output.chunks_exact_mut(width * height);
        for (plane, source) in planes.zip(picture.values.chunks_exact(picture.width * picture.height)) {
            for (line, &(first, weights)) in plane.chunks_exact_mut(width).zip(&down.taps) {
                blend_rows(source, picture.width, first, weights, across.span.clone(), row);
                for (value, &(first, [a, b, c])) in line.iter_mut().zip(&across.taps) {
                    let taps = row.get(first - across.span.start..).and_then(|taps| taps.first_chunk());
                    let [x, y, z] = taps.copied().unwrap_or_default();
                    *value = a * x + b * y + c * z - OFFSET;
                }
            }
        }
    }
}

/// `row` becomes the sum of three rows of a plane from the row `first` on, in the columns of `span`.
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

/// Which source pixels, along one axis, each output pixel is made of.
#[derive(Debug, Default)]
struct Axis {
    /// The first of three, and how much each counts.
    taps: Vec<(usize, [f32; TAPS])>,
    /// All that any of them needs.
    span: std::ops::Range<usize>,
}

impl Axis {
    /// From `from` to `to`, cut into `count` parts, of a picture of `limit` pixels, at least three. A part that is narrower than a
    /// pixel becomes one pixel wide about its middle, which is linear interpolation.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sides are at most 32,768 pixels, and what is below 0 is clamped before"
    )]
    fn set(&mut self, from: f32, to: f32, count: usize, limit: usize) {
        let step = (to - from) / float(count);
        // Wider parts come only where no smaller picture is left.
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
                // Beyond the edge, its last pixel is repeated.
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

    /// A ramp across, another one down, and their sum.
    fn ramps(width: usize, height: usize) -> Pictures {
        let mut pictures = Pictures::default();
        pictures.make(width, height, |values| {
            let (planes, size) = (3, width * height);
            for (plane, at) in (0..planes).flat_map(|plane| (0..size).map(move |at| (plane, at))) {
                let (x, y) = (float(at % width) + 0.5, float(at / width) + 0.5);
                values[plane * size + at] = [x, y, x + y][plane] + OFFSET;
            }
        });
        pictures
    }

    #[test]
    fn of_a_ramp_each_part_has_the_value_of_its_middle_whatever_the_scale() {
        let mut pictures = ramps(400, 200);
        for (rect, width, height) in [
            ([20.0, 30.0, 380.0, 170.0], 24, 24),
            ([100.0, 50.0, 150.0, 100.0], 48, 48),
            ([100.25, 50.5, 118.25, 68.5], 24, 24),
            ([8.0, 8.0, 392.0, 192.0], 12, 12),
        ] {
            let mut cut = vec![0.0; 3 * width * height];
            pictures.cut(rect, width, height, &mut cut);
            let [left, top, right, bottom] = rect;
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
    fn beyond_the_edges_their_pixels_are_repeated() {
        let mut pictures = ramps(100, 60);
        let mut cut = vec![0.0; 3 * 24 * 24];
        pictures.cut([-5.0, -5.0, 7.0, 7.0], 24, 24, &mut cut);
        assert!((cut[0] - 0.5).abs() < 1e-3, "{}", cut[0]);
        pictures.cut([93.0, 53.0, 105.0, 65.0], 24, 24, &mut cut);
        assert!((cut[24 * 24 - 1] - 99.5).abs() < 1e-3, "{}", cut[24 * 24 - 1]);
    }
}
