//! Says whether a camera sees the same as before, from a small picture of luma sampled straight from the planes.

use std::iter;

use crate::{Frame, PixelFormat};

/// The longer side of a frame is divided into about so many blocks.
const BLOCKS: usize = 240;
/// Smallest side of a block in pixels.
const SMALLEST_BLOCK: usize = 4;
/// Samples per block across and down. Their mean has a quarter of a pixel's noise.
const SAMPLES: usize = 4;

/// Remembers a frame and compares others with it.
///
/// The frame is divided into blocks of a 240th of its longer side (8 pixels at 1080p, at least 4), each reduced to
/// the mean luma of 16 of its pixels, or of whole rows of them, at least 16 in all, where luma has a plane of its own.
/// Four by four blocks are a cell; cells overlap by half. The change between two frames is that of the cell that
/// changed most: the mean absolute difference of its blocks, in grey levels (0 to 255). A mean over the whole frame
/// would not notice a face in a corner, and a single pixel is mostly noise.
#[derive(Debug, Default)]
pub struct Scene {
    key: Option<(PixelFormat, usize, usize)>,
    columns: usize,
    /// Blocks of the last frame that was looked at, row by row.
    current: Vec<u8>,
    /// Blocks of the remembered frame; empty without one.
    remembered: Vec<u8>,
    /// Where the samples of a row of blocks lie across.
    offsets: Vec<usize>,
}

impl Scene {
    /// Looks at a frame; returns how much it differs from the remembered one, in grey levels. Nothing where none of
    /// its format and size is remembered.
    pub fn change(&mut self, frame: &Frame<'_>) -> Option<f32> {
        let key = (frame.format(), frame.width(), frame.height());
        if self.key != Some(key) {
            self.key = Some(key);
            self.remembered.clear();
        }
        self.sample(frame);
        if self.remembered.is_empty() {
            return None;
        }
        Some(greatest_change(&self.current, &self.remembered, self.columns))
    }

    /// Remembers the frame that was looked at last.
    pub fn remember(&mut self) {
        self.remembered.clone_from(&self.current);
    }

    /// Remembers nothing.
    pub fn forget(&mut self) {
        self.remembered.clear();
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

/// Adds the means of a row of blocks, of `rows` of their pixels: of all or, where half of them have 16 pixels of a
/// block, of every other.
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

/// Adds the means of all blocks that are whole; returns where the rest of each row begins.
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

/// The mean of some rows of a block.
#[inline(always)]
fn mean_of<const ROWS: usize, R: AsRef<[u8]>>(rows: [R; ROWS]) -> u8 {
    let sum: u32 =
        rows.iter().map(|row| row.as_ref().iter().map(|&pixel| u32::from(pixel)).sum::<u32>()).sum();
    let pixels: usize = rows.iter().map(|row| row.as_ref().len()).sum();
    u8::try_from(sum / u32::try_from(pixels).unwrap_or(u32::MAX)).unwrap_or(u8::MAX)
}

/// Positions of a block's samples along one side, evenly spaced, inside the frame.
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
            // Of P010 the upper byte, which has 8 of the 10 bits.
            PixelFormat::Uyvy | PixelFormat::P010 => (1, 2, Samples::Luma),
            PixelFormat::I420Ten | PixelFormat::I422Ten => (0, 2, Samples::WideLuma),
            PixelFormat::Rgb | PixelFormat::Bgr => (0, 3, Samples::Colors),
            PixelFormat::Rgbx | PixelFormat::Bgrx | PixelFormat::Rgba | PixelFormat::Bgra => {
                (0, 4, Samples::Colors)
            }
        };
        Self { first, step, kind }
    }

    /// Whether the first plane is luma and nothing else.
    const fn is_plane(&self) -> bool {
        self.step == 1
    }

    fn luma(&self, row: &[u8], offset: usize) -> u32 {
        match (self.kind, row.get(offset..).unwrap_or_default()) {
            (Samples::Luma, &[luma, ..]) => luma.into(),
            (Samples::WideLuma, &[low, high, ..]) => {
                (u32::from(u16::from_le_bytes([low, high])) / 4).min(255)
            }
            // Green as much as red and blue together: near enough to luma, whichever of these two comes first.
            (Samples::Colors, &[a, green, b, ..]) => (u32::from(a) + 2 * u32::from(green) + u32::from(b)) / 4,
            _ => 0,
        }
    }
}

/// The largest mean difference of any cell.
fn greatest_change(current: &[u8], remembered: &[u8], columns: usize) -> f32 {
    let differences: Vec<u16> =
        current.iter().zip(remembered).map(|(&a, &b)| u16::from(a.abs_diff(b))).collect();
    // Quarters of cells first, which up to four cells share. The largest sum is that of 16 blocks, each 255 at most.
    let (quarters, columns) = sums_of_four::<2>(&differences, columns);
    let (cells, _) = sums_of_four::<1>(&quarters, columns);
    f32::from(cells.into_iter().max().unwrap_or(0)) / 16.0
}

/// Sums over two by two neighbours, starting at every `STEP`-th row and column (1 or 2); and the columns of the
/// result. At the right and lower edge, what has no neighbour is its own.
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

    /// A frame whose luma (or grey) at x, y is `luma(x, y)`, in any format, chroma 128, rows 5 bytes longer than
    /// needed.
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

    fn look(
        scene: &mut Scene,
        format: PixelFormat,
        (width, height): (usize, usize),
        luma: impl Fn(usize, usize) -> u8,
    ) -> Option<f32> {
        let planes = planes(format, width, height, luma);
        let data: Vec<&[u8]> = planes.iter().map(|(data, _)| &data[..]).collect();
        let strides: Vec<usize> = planes.iter().map(|(_, stride)| *stride).collect();
        let (matrix, range) = (ColorMatrix::default(), ColorRange::default());
        let frame = Frame::new(format, width as u32, height as u32, &data, &strides, matrix, range).unwrap();
        scene.change(&frame)
    }

    /// Anything but flat, the same each time.
    fn texture(x: usize, y: usize) -> u8 {
        ((x / 5 * 37 + y / 7 * 91) % 200) as u8 + 20
    }

    #[test]
    fn the_same_scene_has_not_changed_in_any_format() {
        for format in PixelFormat::ALL {
            let mut scene = Scene::default();
            assert_eq!(look(&mut scene, format, (322, 241), texture), None, "nothing is remembered");
            scene.remember();
            assert_eq!(look(&mut scene, format, (322, 241), texture), Some(0.0), "{format:?}");
            let brighter = look(&mut scene, format, (322, 241), |x, y| texture(x, y) + 9);
            assert_eq!(brighter, Some(9.0), "{format:?}");
        }
    }

    #[test]
    fn a_small_thing_in_any_corner_is_a_change_wherever_the_cells_lie() {
        let size = (1920, 1080);
        for (left, top) in [(0, 0), (1896, 0), (0, 1056), (1896, 1056), (947, 533), (960, 544)] {
            let mut scene = Scene::default();
            look(&mut scene, PixelFormat::I420, size, |_, _| 90);
            scene.remember();
            // A face of 24 pixels, 40 levels brighter than the wall behind it.
            let inside = |x: usize, y: usize| (left..left + 24).contains(&x) && (top..top + 24).contains(&y);
            let change =
                look(&mut scene, PixelFormat::I420, size, |x, y| if inside(x, y) { 130 } else { 90 });
            // It fills at least 9 of 16 blocks but for its margins.
            assert!(change.unwrap() > 14.0, "{left} {top}: {change:?}");
        }
    }

    #[test]
    fn noise_is_far_less_of_a_change_than_its_amplitude() {
        let noisy = |seed: usize| {
            move |x: usize, y: usize| {
                let mut hash = (x * 73_856_093) ^ (y * 19_349_663) ^ (seed * 83_492_791);
                hash = (hash ^ (hash >> 13)).wrapping_mul(0x5bd1_e995);
                100 + ((hash >> 15) % 17) as u8
            }
        };
        let mut scene = Scene::default();
        look(&mut scene, PixelFormat::Nv12, (1280, 720), noisy(1));
        scene.remember();
        // Uniform over 17 levels: a standard deviation of 4.9.
        let change = look(&mut scene, PixelFormat::Nv12, (1280, 720), noisy(2)).unwrap();
        assert!((0.5..3.0).contains(&change), "{change}");
    }

    #[test]
    fn what_is_remembered_stays_until_told_otherwise() {
        let mut scene = Scene::default();
        let size = (64, 48);
        look(&mut scene, PixelFormat::Rgb, size, |_, _| 10);
        scene.remember();
        // A slow change adds up.
        for level in 11..20 {
            assert_eq!(look(&mut scene, PixelFormat::Rgb, size, |_, _| level), Some(f32::from(level - 10)));
        }
        assert_eq!(look(&mut scene, PixelFormat::Rgb, (64, 50), |_, _| 10), None, "another size");
        scene.remember();
        scene.forget();
        assert_eq!(look(&mut scene, PixelFormat::Rgb, (64, 50), |_, _| 10), None);
    }

    #[test]
    fn the_smallest_frames_are_compared_too() {
        for size in [(1, 1), (1, 40), (40, 1), (3, 5), (9, 9), (17, 8)] {
            let mut scene = Scene::default();
            look(&mut scene, PixelFormat::I420, size, |_, _| 50);
            scene.remember();
            assert_eq!(look(&mut scene, PixelFormat::I420, size, |_, _| 57), Some(7.0), "{size:?}");
        }
    }
}
