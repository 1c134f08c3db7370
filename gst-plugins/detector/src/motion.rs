//! Motion detection: compares frames on a small picture of luma that is sampled straight from the planes.

use std::iter;

use crate::{Frame, PixelFormat};

/// Approximate number of blocks along the longer side of a frame.
const BLOCKS: usize = 240;
/// Minimum side of a block in pixels.
const SMALLEST_BLOCK: usize = 4;
/// Samples per block across and down. Their mean has a quarter of a pixel's noise.
const SAMPLES: usize = 4;

/// Compares frames with a reference frame.
///
/// A frame is divided into blocks of a 240th of its longer side (8 pixels at 1080p, at least 4), each reduced to the mean luma
/// of 16 of its pixels or, where luma has a plane of its own, of whole rows with at least 16 pixels. Four by four blocks are a
/// cell; cells overlap by half. The difference of two frames is that of the cell that changed most: the mean absolute
/// difference of its blocks, in grey levels (0 to 255). A mean over the whole frame would miss a face in a corner, and a single
/// pixel is mostly noise.
#[derive(Debug, Default)]
pub struct MotionDetector {
    key: Option<(PixelFormat, usize, usize)>,
    columns: usize,
    /// Blocks of the last frame, row by row.
    current: Vec<u8>,
    /// Blocks of the reference frame; empty without one.
    reference: Vec<u8>,
    /// Horizontal byte offsets of the samples of a row of blocks.
    offsets: Vec<usize>,
}

impl MotionDetector {
    /// Returns how much a frame differs from the reference frame, in grey levels. `None` while there is no
    /// reference of its format and size.
    pub fn difference(&mut self, frame: &Frame<'_>) -> Option<f32> {
        let key = (frame.format(), frame.width(), frame.height());
        if self.key != Some(key) {
            self.key = Some(key);
            self.reference.clear();
        }
        self.sample(frame);
        if self.reference.is_empty() {
            return None;
        }
        Some(max_difference(&self.current, &self.reference, self.columns))
    }

    /// Makes the last frame the reference.
    pub fn set_reference(&mut self) {
        self.reference.clone_from(&self.current);
    }

    /// Drops the reference.
    pub fn clear_reference(&mut self) {
        self.reference.clear();
    }

    fn sample(&mut self, frame: &Frame<'_>) {
        let (width, height) = (frame.width(), frame.height());
        let block = (width.max(height) / BLOCKS).max(SMALLEST_BLOCK);
        self.columns = width.div_ceil(block);
        let layout = Layout::of(frame.format());
        self.offsets.clear();
        let across = (0..self.columns).flat_map(|column| samples(column, block, width));
        self.offsets.extend(across.map(|x| layout.first + x * layout.step));

        self.current.clear();
        let mut sums = vec![0_u32; self.columns];
        for row in 0..height.div_ceil(block) {
            let rows = samples(row, block, height);
            if layout.is_plane() {
                let rows = rows.map(|y| frame.row(0, y).get(..width).unwrap_or_default());
                add_means(&rows, block, &mut self.current);
                continue;
            }
            sums.fill(0);
            for y in rows {
                let bytes = frame.row(0, y);
                for (sum, offsets) in sums.iter_mut().zip(self.offsets.as_chunks::<SAMPLES>().0) {
                    *sum += offsets.iter().map(|&offset| layout.luma(bytes, offset)).sum::<u32>();
                }
            }
            let mean = |sum: &u32| u8::try_from(sum / 16).unwrap_or(u8::MAX);
            self.current.extend(sums.iter().map(mean));
        }
    }
}

/// Adds the means of a row of blocks from four `rows` of pixels, or from two where these have 16 pixels of a block.
fn add_means(rows: &[&[u8]; SAMPLES], block: usize, means: &mut Vec<u8>) {
    let &[first, _, third, _] = rows;
    // The usual sizes, from small frames to 4K, for which the compiler unrolls the sums.
    let rest = match block {
        4 => add_whole_blocks::<4, SAMPLES>(rows, means),
        5 => add_whole_blocks::<5, SAMPLES>(rows, means),
        8 => add_whole_blocks::<8, 2>(&[first, third], means),
        16 => add_whole_blocks::<16, 2>(&[first, third], means),
        _ => 0,
    };
    let [mut first, mut second, mut third, mut fourth] =
        rows.map(|row| row.get(rest..).unwrap_or_default().chunks(block));
    let chunks = iter::from_fn(|| Some([first.next()?, second.next()?, third.next()?, fourth.next()?]));
    means.extend(chunks.map(mean_of));
}

/// Adds the means of all complete blocks; returns where the rest of each row begins.
fn add_whole_blocks<const BLOCK: usize, const ROWS: usize>(
    rows: &[&[u8]; ROWS],
    means: &mut Vec<u8>,
) -> usize {
    let rows = rows.map(|row| row.as_chunks::<BLOCK>().0);
    let blocks = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    let start = means.len();
    means.resize(start + blocks, 0);
    let Some(means) = means.get_mut(start..) else { return 0 };
    let rows = rows.map(|row| row.get(..blocks).unwrap_or_default());
    for (column, mean) in means.iter_mut().enumerate() {
        #[expect(clippy::indexing_slicing, reason = "all rows are cut to the number of means")]
        let block = rows.map(|row| &row[column]);
        *mean = mean_of(block);
    }
    blocks * BLOCK
}

/// Returns the mean of some rows of a block.
#[inline(always)]
fn mean_of<const ROWS: usize, R: AsRef<[u8]>>(rows: [R; ROWS]) -> u8 {
    let sum: u32 =
        rows.iter().map(|row| row.as_ref().iter().map(|&pixel| u32::from(pixel)).sum::<u32>()).sum();
    let pixels: usize = rows.iter().map(|row| row.as_ref().len()).sum();
    u8::try_from(sum / u32::try_from(pixels).unwrap_or(u32::MAX)).unwrap_or(u8::MAX)
}

/// Returns the positions of a block's samples along one side, evenly spaced, inside the frame.
fn samples(block: usize, side: usize, length: usize) -> [usize; SAMPLES] {
    std::array::from_fn(|i| (block * side + (2 * i + 1) * side / (2 * SAMPLES)).min(length - 1))
}

/// Where luma lies in a row of the first plane.
struct Layout {
    /// Bytes before the first pixel's value.
    first: usize,
    /// Bytes from pixel to pixel.
    step: usize,
    kind: Samples,
}

/// What the bytes at a pixel's place are.
#[derive(Clone, Copy, PartialEq)]
enum Samples {
    /// One of luma.
    Luma,
    /// Two, the lower one first, of luma with 10 bits.
    WideLuma,
    /// Three colours, green in the middle.
    Colors,
}

impl Layout {
    const fn of(format: PixelFormat) -> Self {
        let (first, step, kind) = match format {
            PixelFormat::Nv12
            | PixelFormat::I420
            | PixelFormat::Nv21
            | PixelFormat::Yv12
            | PixelFormat::Y42b
            | PixelFormat::Y444
            | PixelFormat::Gray8 => (0, 1, Samples::Luma),
            PixelFormat::Yuy2 => (0, 2, Samples::Luma),
            // The upper byte of P010 has 8 of the 10 bits.
            PixelFormat::Uyvy | PixelFormat::P010 => (1, 2, Samples::Luma),
            PixelFormat::I420Ten | PixelFormat::I422Ten => (0, 2, Samples::WideLuma),
            PixelFormat::Rgb | PixelFormat::Bgr => (0, 3, Samples::Colors),
            PixelFormat::Rgbx | PixelFormat::Bgrx | PixelFormat::Rgba | PixelFormat::Bgra => {
                (0, 4, Samples::Colors)
            }
        };
        Self { first, step, kind }
    }

    /// Returns whether the first plane has nothing but luma.
    const fn is_plane(&self) -> bool {
        self.step == 1
    }

    fn luma(&self, row: &[u8], offset: usize) -> u32 {
        match (self.kind, row.get(offset..).unwrap_or_default()) {
            (Samples::Luma, &[luma, ..]) => luma.into(),
            (Samples::WideLuma, &[low, high, ..]) => {
                (u32::from(u16::from_le_bytes([low, high])) / 4).min(255)
            }
            // Green has the weight of red and blue together, whichever of these comes first: close enough to luma.
            (Samples::Colors, &[a, green, b, ..]) => (u32::from(a) + 2 * u32::from(green) + u32::from(b)) / 4,
            _ => 0,
        }
    }
}

/// Returns the largest mean difference of any cell.
fn max_difference(current: &[u8], reference: &[u8], columns: usize) -> f32 {
    let differences: Vec<u16> =
        current.iter().zip(reference).map(|(&a, &b)| u16::from(a.abs_diff(b))).collect();
    // Quarters of cells first, which up to four cells share. The largest sum is that of 16 blocks, each 255 at most.
    let (quarters, columns) = sums_of_four::<2>(&differences, columns);
    let (cells, _) = sums_of_four::<1>(&quarters, columns);
    f32::from(cells.into_iter().max().unwrap_or(0)) / 16.0
}

/// Returns sums over two by two neighbours, starting at every `STEP`-th row and column (1 or 2), and their columns. At the
/// right and lower edge, a missing neighbour is replaced by the value itself.
fn sums_of_four<const STEP: usize>(values: &[u16], columns: usize) -> (Vec<u16>, usize) {
    let starts = |length: usize| if STEP == 1 { length.max(2) - 1 } else { length.div_ceil(STEP) };
    let rows: Vec<&[u16]> = values.chunks(columns.max(1)).collect();
    let mut sums = Vec::with_capacity(starts(rows.len()) * starts(columns));
    let mut of_rows: Vec<u16> = Vec::with_capacity(columns + 1);
    for row in (0..starts(rows.len())).map(|row| row * STEP) {
        let Some(upper) = rows.get(row) else { continue };
        let lower = rows.get(row + 1).unwrap_or(upper);
        of_rows.clear();
        of_rows.extend(upper.iter().zip(*lower).map(|(a, b)| a + b));
        if columns == 1 || columns % STEP == 1 {
            of_rows.extend(of_rows.last().copied());
        }
        if STEP == 1 {
            sums.extend(of_rows.array_windows::<2>().map(|[a, b]| a + b));
        } else {
            sums.extend(of_rows.as_chunks::<2>().0.iter().map(|[a, b]| a + b));
        }
    }
    (sums, starts(columns))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]
mod tests {
    use super::*;
    use crate::{ColorMatrix, ColorRange};

    /// Makes a frame whose luma (or grey) at x, y is `luma(x, y)`, in any format, with chroma 128 and 5 bytes of padding per
    /// row.
    fn planes(
        format: PixelFormat,
        width: usize,
        height: usize,
        luma: impl Fn(usize, usize) -> u8,
    ) -> Vec<(Vec<u8>, usize)> {
        (0..format.planes())
            .map(|plane| {
                let (bytes, rows) = format.plane_size(plane, width, height);
                let stride = bytes + 5;
                let mut data = vec![128; stride * rows];
                let layout = Layout::of(format);
                if plane == 0 {
                    for y in 0..height {
                        for x in 0..width {
                            let at = y * stride + layout.first + x * layout.step;
                            match layout.kind {
                                Samples::Luma => data[at] = luma(x, y),
                                Samples::WideLuma => {
                                    let wide = u16::from(luma(x, y)) * 4;
                                    data[at..at + 2].copy_from_slice(&wide.to_le_bytes());
                                }
                                Samples::Colors => data[at..at + 3].fill(luma(x, y)),
                            }
                        }
                    }
                }
                (data, stride)
            })
            .collect()
    }

    fn difference(
        motion: &mut MotionDetector,
        format: PixelFormat,
        (width, height): (usize, usize),
        luma: impl Fn(usize, usize) -> u8,
    ) -> Option<f32> {
        let planes = planes(format, width, height, luma);
        let data: Vec<&[u8]> = planes.iter().map(|(data, _)| &data[..]).collect();
        let strides: Vec<usize> = planes.iter().map(|(_, stride)| *stride).collect();
        let (matrix, range) = (ColorMatrix::default(), ColorRange::default());
        let frame = Frame::new(format, width as u32, height as u32, &data, &strides, matrix, range).unwrap();
        motion.difference(&frame)
    }

    /// Returns a deterministic texture.
    fn texture(x: usize, y: usize) -> u8 {
        ((x / 5 * 37 + y / 7 * 91) % 200) as u8 + 20
    }

    #[test]
    fn equal_frames_do_not_differ_in_any_format() {
        for format in PixelFormat::ALL {
            let mut motion = MotionDetector::default();
            assert_eq!(difference(&mut motion, format, (322, 241), texture), None, "nothing to compare with");
            motion.set_reference();
            assert_eq!(difference(&mut motion, format, (322, 241), texture), Some(0.0), "{format:?}");
            let brighter = difference(&mut motion, format, (322, 241), |x, y| texture(x, y) + 9);
            assert_eq!(brighter, Some(9.0), "{format:?}");
        }
    }

    #[test]
    fn a_small_face_anywhere_is_a_difference() {
        let size = (1920, 1080);
        for (left, top) in [(0, 0), (1896, 0), (0, 1056), (1896, 1056), (947, 533), (960, 544)] {
            let mut motion = MotionDetector::default();
            difference(&mut motion, PixelFormat::I420, size, |_, _| 90);
            motion.set_reference();
            // A face of 24 pixels, 40 levels brighter than the wall behind it.
            let inside = |x: usize, y: usize| (left..left + 24).contains(&x) && (top..top + 24).contains(&y);
            let change =
                difference(&mut motion, PixelFormat::I420, size, |x, y| if inside(x, y) { 130 } else { 90 });
            // It covers at least 9 of 16 blocks, except for its margins.
            assert!(change.unwrap() > 14.0, "{left} {top}: {change:?}");
        }
    }

    #[test]
    fn noise_differs_by_far_less_than_its_amplitude() {
        let noisy = |seed: usize| {
            move |x: usize, y: usize| {
                let mut hash = (x * 73_856_093) ^ (y * 19_349_663) ^ (seed * 83_492_791);
                hash = (hash ^ (hash >> 13)).wrapping_mul(0x5bd1_e995);
                100 + ((hash >> 15) % 17) as u8
            }
        };
        let mut motion = MotionDetector::default();
        difference(&mut motion, PixelFormat::Nv12, (1280, 720), noisy(1));
        motion.set_reference();
        // Uniform over 17 levels: a standard deviation of 4.9.
        let change = difference(&mut motion, PixelFormat::Nv12, (1280, 720), noisy(2)).unwrap();
        assert!((0.5..3.0).contains(&change), "{change}");
    }

    #[test]
    fn the_reference_stays_until_it_is_replaced() {
        let mut motion = MotionDetector::default();
        let size = (64, 48);
        difference(&mut motion, PixelFormat::Rgb, size, |_, _| 10);
        motion.set_reference();
        // A slow change adds up.
        for level in 11..20 {
            assert_eq!(
                difference(&mut motion, PixelFormat::Rgb, size, |_, _| level),
                Some(f32::from(level - 10))
            );
        }
        assert_eq!(difference(&mut motion, PixelFormat::Rgb, (64, 50), |_, _| 10), None, "another size");
        motion.set_reference();
        motion.clear_reference();
        assert_eq!(difference(&mut motion, PixelFormat::Rgb, (64, 50), |_, _| 10), None);
    }

    #[test]
    fn the_smallest_frames_are_compared_too() {
        for size in [(1, 1), (1, 40), (40, 1), (3, 5), (9, 9), (17, 8)] {
            let mut motion = MotionDetector::default();
            difference(&mut motion, PixelFormat::I420, size, |_, _| 50);
            motion.set_reference();
            assert_eq!(difference(&mut motion, PixelFormat::I420, size, |_, _| 57), Some(7.0), "{size:?}");
        }
    }
}
