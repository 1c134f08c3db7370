//! Resizing and warping, with the arithmetic of the reference implementations.

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};
use image::{RgbImage, imageops};

/// A part of an image, in whole pixels; `right` and `bottom` are the first pixels outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelRect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// First column outside.
    pub right: u32,
    /// First row outside.
    pub bottom: u32,
}

impl PixelRect {
    /// Returns all of `image`.
    pub fn all(image: &RgbImage) -> Self {
        Self { left: 0, top: 0, right: image.width(), bottom: image.height() }
    }

    /// Returns the number of columns.
    pub fn width(&self) -> u32 {
        self.right.saturating_sub(self.left)
    }

    /// Returns the number of rows.
    pub fn height(&self) -> u32 {
        self.bottom.saturating_sub(self.top)
    }
}

/// Returns the first cell of, and the first cell after, the window of output cell `index`, as PyTorch's `adaptive_avg_pool2d` puts it:
/// `floor(i * in / out)` to `ceil((i + 1) * in / out)`. Neighbouring windows overlap where the ratio is not whole.
fn window(index: usize, input: usize, output: usize) -> (usize, usize) {
    (index * input / output, ((index + 1) * input).div_ceil(output))
}

/// Writes rows `rows` of the part `rect` of `image`, resized to `width` x `height` by area averaging, to `out`, as
/// `(value - 127.5) / 128` in the layout `[row, column, channel]`.
///
/// The same as `torch.nn.functional.interpolate(mode="area")`, but for the order of the additions: sums are kept in
/// integers and are exact. A window may hold at most 8 million pixels.
///
/// A `rect` that reaches out of the image, or is empty, writes nothing.
pub fn area_average(
    image: &RgbImage,
    rect: PixelRect,
    (width, height): (usize, usize),
    rows: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let (rect_width, rect_height) = (rect.width() as usize, rect.height() as usize);
    if rect_width == 0 || rect_height == 0 || rect.right > image.width() || rect.bottom > image.height() {
        return;
    }
    let columns = (0..width).map(|x| window(x, rect_width, width)).collect::<Vec<_>>();
    let rows = rows.map(|y| window(y, rect_height, height)).collect::<Vec<_>>();
    SimdLevel::best().run(AreaAverage { image, rect, columns: &columns, rows: &rows, out });
}

/// The arguments of one [`area_average`].
struct AreaAverage<'a> {
    image: &'a RgbImage,
    rect: PixelRect,
    /// The windows of the output columns and rows, counted from the corner of `rect`.
    columns: &'a [(usize, usize)],
    rows: &'a [(usize, usize)],
    out: &'a mut [f32],
}

impl Kernel for AreaAverage<'_> {
    type Output = ();

    /// Averages. The compiler makes vectors of the loops: of the values of neighbouring pixels in the first, of the channels of
    /// one pixel (and one value more) in the others.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "windows lie in `rect`, which lies in the image")]
    #[expect(clippy::cast_precision_loss, reason = "single precision is what the network computes in")]
    fn run<S: RegisterTile>(self, _: S) {
        let width = self.rect.width() as usize;
        let stride = self.image.width() as usize * 3;
        // Of the pixels of a column in the window, and one value more.
        let mut sums = vec![0u32; width * 3 + 1];
        // Of all pixels before a column. They may wrap; their differences don't.
        let mut before = vec![[0u32; 4]; width + 1];
        // One over the pixels of a window, by how much wider than the narrowest it is.
        let widths = || self.columns.iter().map(|&(left, right)| right - left);
        let (least, most) = (widths().min().unwrap_or_default(), widths().max().unwrap_or_default());
        let mut scales = vec![0f32; most + 1 - least];
        for (&(top, bottom), out) in
            self.rows.iter().zip(self.out.chunks_exact_mut((self.columns.len() * 3).max(1)))
        {
            for y in top..bottom {
                let first = (self.rect.top as usize + y) * stride + self.rect.left as usize * 3;
                let line = sums.iter_mut().zip(&self.image.as_raw()[first..][..width * 3]);
                if y == top {
                    line.for_each(|(sum, &value)| *sum = u32::from(value));
                } else {
                    line.for_each(|(sum, &value)| *sum += u32::from(value));
                }
            }
            let mut total = [0u32; 4];
            for (before, pixel) in before[1..].iter_mut().zip(sums.windows(4).step_by(3)) {
                for (total, value) in total.iter_mut().zip(pixel) {
                    *total = total.wrapping_add(*value);
                }
                *before = total;
            }
            for (scale, width) in scales.iter_mut().zip(least..) {
                *scale = 1.0 / ((width * (bottom - top)) as f32);
            }
            for (out, &(left, right)) in out.as_chunks_mut::<3>().0.iter_mut().zip(self.columns) {
                let scale = scales[right - left - least];
                #[expect(
                    clippy::cast_possible_wrap,
                    reason = "sums of a window are positive as signed numbers as well, which are quicker to convert"
                )]
                let value = |sum: u32| (sum as i32 as f32 * scale - 127.5) * 0.007_812_5;
                let (mut sum, less) = (before[right], before[left]);
                for (sum, less) in sum.iter_mut().zip(less) {
                    *sum = sum.wrapping_sub(less);
                }
                let [red, green, blue, _] = sum.map(value);
                *out = [red, green, blue];
            }
        }
    }
}

/// Resizes the part `rect` of `image` to a square of `side` pixels, as Pillow's `crop(…).resize(…, BILINEAR)` does: a
/// triangle filter that widens with the reduction. At most one grey level off Pillow, which rounds between its two
/// passes.
pub fn triangle(image: &RgbImage, rect: PixelRect, side: u32) -> RgbImage {
    let part = imageops::crop_imm(image, rect.left, rect.top, rect.width(), rect.height());
    imageops::resize(&*part, side, side, imageops::FilterType::Triangle)
}

/// Takes a square of `side` pixels out of `image`: output pixel `(x, y)` is the bilinear value at
/// `(a x + b y + c, d x + e y + f)` for `transform = [[a, b, c], [d, e, f]]`, counted from pixel centres; black where
/// that lies outside. As Pillow's `transform(…, AFFINE, …, BILINEAR)`, which cuts fractions off.
pub fn warp(image: &RgbImage, transform: &[[f64; 3]; 2], side: u32) -> RgbImage {
    let mut out = RgbImage::new(side, side);
    SimdLevel::best().run(Warp { image, transform, out: &mut out });
    out
}

/// A [`warp`] to be done, to a black picture.
struct Warp<'a> {
    image: &'a RgbImage,
    transform: &'a [[f64; 3]; 2],
    out: &'a mut RgbImage,
}

impl Kernel for Warp<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "points lie in the image, and values between 0 and 255, where fractions are to be cut off"
    )]
    #[expect(clippy::indexing_slicing, reason = "corners are clamped to the image")]
    fn run<S: RegisterTile>(self, _: S) {
        let [[a, b, c], [d, e, f]] = *self.transform;
        let (width, height) = (f64::from(self.image.width()), f64::from(self.image.height()));
        let stride = self.image.width() as usize * 3;
        let pixels = self.image.as_raw();
        for (x, y, out) in self.out.enumerate_pixels_mut() {
            let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
            // 0 at the outer edge of the first pixel.
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            // Written so that an undefined coordinate is outside as well.
            if !(x >= 0.0 && x < width && y >= 0.0 && y < height) {
                continue;
            }
            let (x, y) = (x - 0.5, y - 0.5);
            let (left, top) = (x.floor(), y.floor());
            let (dx, dy) = (x - left, y - top);
            let column = |x: f64| x.clamp(0.0, width - 1.0) as usize * 3;
            let row = |y: f64| y.clamp(0.0, height - 1.0) as usize * stride;
            let corner = |row: usize, column: usize| &pixels[row + column..][..3];
            let (columns, rows) = ([column(left), column(left + 1.0)], [row(top), row(top + 1.0)]);
            let (p00, p10) = (corner(rows[0], columns[0]), corner(rows[0], columns[1]));
            let (p01, p11) = (corner(rows[1], columns[0]), corner(rows[1], columns[1]));
            for (channel, out) in out.0.iter_mut().enumerate() {
                let value = |corner: &[u8]| f64::from(corner[channel]);
                let upper = value(p00) + (value(p10) - value(p00)) * dx;
                let lower = value(p01) + (value(p11) - value(p01)) * dx;
                *out = (upper + (lower - upper) * dy) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(out: &[f32]) -> Vec<f32> {
        out.iter().map(|v| v * 128.0 + 127.5).collect()
    }

    #[test]
    fn windows_overlap_as_adaptive_average_pooling_has_them() {
        // 5 cells to 3: [0, 2), [1, 4), [3, 5)
        assert_eq!((0..3).map(|i| window(i, 5, 3)).collect::<Vec<_>>(), [(0, 2), (1, 4), (3, 5)]);
        // 2 cells to 3: enlarging repeats cells and averages where they meet
        assert_eq!((0..3).map(|i| window(i, 2, 3)).collect::<Vec<_>>(), [(0, 1), (0, 2), (1, 2)]);
    }

    #[test]
    fn area_averaging_averages_each_window() {
        let image =
            RgbImage::from_fn(5, 2, |x, y| image::Rgb([u8::try_from(10 * x + 100 * y).unwrap(), 7, 0]));
        let mut out = [0.0; 9];
        area_average(&image, PixelRect::all(&image), (3, 1), 0..1, &mut out);
        let got = levels(&out);
        for (got, want) in got.iter().zip([55.0, 7.0, 0.0, 70.0, 7.0, 0.0, 85.0, 7.0, 0.0]) {
            assert!((got - want).abs() < 1e-3, "{got} instead of {want}");
        }
    }

    #[test]
    fn area_averaging_of_an_enlarged_part_reads_only_that_part() {
        let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([u8::try_from(x * 40 + y).unwrap(); 3]));
        let part = PixelRect { left: 1, top: 2, right: 3, bottom: 4 };
        let mut out = [0.0; 12];
        area_average(&image, part, (4, 4), 1..2, &mut out);
        for (got, want) in levels(&out).chunks(3).zip([42.0, 42.0, 82.0, 82.0]) {
            assert!(got.iter().all(|g| (g - want).abs() < 1e-3), "{got:?} instead of {want}");
        }
    }

    #[test]
    fn a_part_outside_the_image_gives_nothing() {
        let image = RgbImage::new(4, 4);
        let mut out = [7.0; 12];
        area_average(&image, PixelRect { left: 2, top: 0, right: 6, bottom: 4 }, (2, 2), 0..2, &mut out);
        area_average(&image, PixelRect { left: 3, top: 0, right: 3, bottom: 4 }, (2, 2), 0..2, &mut out);
        area_average(&image, PixelRect::all(&image), (0, 2), 0..2, &mut out);
        assert_eq!(out, [7.0; 12]);
    }

    #[test]
    fn warping_by_half_a_pixel_averages_neighbours_and_leaves_the_outside_black() {
        let image = RgbImage::from_fn(4, 4, |x, _| image::Rgb([u8::try_from(x * 10).unwrap(); 3]));
        let moved = warp(&image, &[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], 4);
        assert_eq!((0..4).map(|x| moved.get_pixel(x, 1).0[0]).collect::<Vec<_>>(), [5, 15, 25, 0]);
        let away = warp(&image, &[[1.0, 0.0, f64::NAN], [0.0, 1.0, 0.0]], 2);
        assert!(away.as_raw().iter().all(|&v| v == 0));
    }
}
