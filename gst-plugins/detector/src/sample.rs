//! Samples the network's input straight from the planes of a frame: scaling, colour conversion and normalisation in one pass,
//! without an intermediate RGB frame.
//!
//! Each row of the input is made in two steps that stay in the L1 cache: a gather copies the source bytes around each sampling
//! point into contiguous words, and a blend computes on contiguous words only, so that it is vectorised.

use crate::{ChromaSite, ColorMatrix, ColorRange, Frame, PixelFormat, gather::ByteGather};

/// The row number of chroma in formats without chroma.
const NO_CHROMA: Option<usize> = Some(usize::MAX);

/// Fills network inputs of one size from frames of any size and format.
///
/// The frame is stretched to the input's size by bilinear interpolation without antialiasing, with half-pixel centres and
/// repeated edges, as by OpenCV's `INTER_LINEAR`. Subsampled chroma is interpolated as well, by the frame's siting. R'G'B' is clamped to 0..=255 and normalised to `(x - 127) / 128`.
///
/// Tables and row buffers are kept from frame to frame, and rebuilt only when the frame's size or format changes.
#[derive(Debug)]
pub struct Sampler {
    width: usize,
    height: usize,
    tables: Option<Tables>,
    rows: Rows,
    vector: Vector,
}

impl Sampler {
    /// Makes a sampler for inputs of `width` x `height` pixels.
    pub fn new(width: usize, height: usize) -> Self {
        let row = || vec![0; width];
        Self {
            width,
            height,
            tables: None,
            rows: Rows {
                words: [row(), row(), row(), row()],
                chroma: [None; 2],
                doubled: [[0; 8]; 4],
                narrow: [Vec::new(), Vec::new()],
            },
            vector: Vector::detect(),
        }
    }

    /// Returns width and height of the input in pixels.
    pub const fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Fills `input`, `[3, height, width]`: red, green, blue, each value in -0.9921875 to 1.
    ///
    /// # Panics
    ///
    /// If the length of `input` is not `3 * height * width`.
    pub fn sample(&mut self, frame: &Frame<'_>, input: &mut [f32]) {
        let area = self.width * self.height;
        assert_eq!(input.len(), 3 * area, "the input has three planes of {area} values");
        let key = (frame.format(), frame.width(), frame.height(), frame.chroma_site());
        if self.tables.as_ref().is_none_or(|tables| tables.key != key) {
            self.tables = Some(Tables::new(key, self.width, self.height));
        }
        let Some(tables) = &self.tables else { return };
        let (red, rest) = input.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let red = red.chunks_exact_mut(self.width);
        let green = green.chunks_exact_mut(self.width);
        let blue = blue.chunks_exact_mut(self.width);
        let colors = Colors::new(frame.matrix(), frame.range());
        let swapped = colors.swapped();
        self.rows.chroma = [None; 2];
        for (y, ((red, green), blue)) in red.zip(green).zip(blue).enumerate() {
            let target = [red, green, blue];
            match frame.format().eight_bit() {
                PixelFormat::Nv21 | PixelFormat::Yv12 => {
                    let [red, green, blue] = target;
                    self.rows.sample_yuv(frame, tables, &swapped, self.vector, y, [blue, green, red]);
                }
                PixelFormat::Rgb | PixelFormat::Rgbx | PixelFormat::Rgba => {
                    self.rows.sample_rgb(frame, tables, self.vector, y, target);
                }
                PixelFormat::Bgr | PixelFormat::Bgrx | PixelFormat::Bgra => {
                    let [red, green, blue] = target;
                    self.rows.sample_rgb(frame, tables, self.vector, y, [blue, green, red]);
                }
                _ => self.rows.sample_yuv(frame, tables, &colors, self.vector, y, target),
            }
        }
    }
}

/// Format, width, height and siting of chroma.
type Key = (PixelFormat, usize, usize, ChromaSite);

/// The sampling positions in a frame of one format and size.
#[derive(Debug)]
struct Tables {
    key: Key,
    x: ByteGather,
    x_weights: Vec<f32>,
    y: Axis,
    chroma_x: ByteGather,
    chroma_x_weights: Vec<f32>,
    chroma_y: Axis,
}

impl Tables {
    fn new(key: Key, input_width: usize, input_height: usize) -> Self {
        let (format, width, height, site) = key;
        let format = format.eight_bit();
        let (across, down) = format.subsampling();
        let row = |plane: usize| format.plane_size(plane, width, height).0;
        // Bytes from pixel to pixel, bytes to gather at each, their distance, and the length of a row.
        let (luma, chroma) = match format {
            PixelFormat::Nv12 | PixelFormat::Nv21 => ((1, 2, 1, row(0)), (2, 4, 1, row(1))),
            PixelFormat::I420 | PixelFormat::Yv12 | PixelFormat::Y42b | PixelFormat::Y444 => {
                ((1, 2, 1, row(0)), (1, 2, 1, row(1)))
            }
            PixelFormat::Yuy2 | PixelFormat::Uyvy => {
                let length = row(0).saturating_sub(1);
                ((2, 2, 2, length), (4, 4, 2, length))
            }
            // Gathered twice: for the pixel and, in a row that begins one pixel later, for the next.
            PixelFormat::Rgb | PixelFormat::Bgr => ((3, 4, 1, row(0).saturating_sub(2)), (0, 4, 1, 0)),
            PixelFormat::Rgbx | PixelFormat::Bgrx | PixelFormat::Rgba | PixelFormat::Bgra => {
                ((4, 4, 1, row(0).saturating_sub(4)), (0, 4, 1, 0))
            }
            // Grey has constant chroma; `eight_bit` has replaced the 10-bit formats.
            PixelFormat::Gray8 | PixelFormat::P010 | PixelFormat::I420Ten | PixelFormat::I422Ten => {
                ((1, 2, 1, row(0)), (0, 2, 1, 0))
            }
        };
        let gather = |subsampling, cosited, (pixel, bytes, every, length)| {
            let Axis { offsets, weights } = Axis::new(width, subsampling, cosited, input_width, pixel);
            (ByteGather::new(offsets, bytes, every, length), weights)
        };
        let (x, x_weights) = gather(1, false, luma);
        let (chroma_x, chroma_x_weights) = gather(across, site.cosited_across, chroma);
        Self {
            key,
            x,
            x_weights,
            y: Axis::new(height, 1, false, input_height, 1),
            chroma_x,
            chroma_x_weights,
            chroma_y: Axis::new(height, down, site.cosited_down, input_height, 1),
        }
    }
}

/// The two source samples around each position along one side of the input.
#[derive(Debug)]
struct Axis {
    /// Position of the first sample, times the bytes from one sample to the next. The second sample follows it.
    offsets: Vec<u32>,
    /// Weight of the second sample, 0 to 1.
    weights: Vec<f32>,
}

impl Axis {
    /// Stretches `pixels` of the frame along this side to `length`, with one sample for each `subsampling` pixels, in their middle
    /// or (`cosited`) on the first of them.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positions lie within 0 to 32,768"
    )]
    fn new(pixels: usize, subsampling: usize, cosited: bool, length: usize, bytes: u32) -> Self {
        // The position of the first sample, from the frame's edge.
        let first = if cosited { 0.5 / subsampling as f64 } else { 0.5 };
        let samples = pixels.div_ceil(subsampling);
        let step = pixels as f64 / (length * subsampling) as f64;
        let (offsets, weights) = (0..length)
            .map(|i| {
                let position = ((i as f64 + 0.5) * step - first).clamp(0.0, (samples - 1) as f64);
                // The last sample of a row is the second of its pair, so that every pair is complete.
                let first = position.floor().min(samples.saturating_sub(2) as f64);
                (first as u32 * bytes, (position - first) as f32)
            })
            .unzip();
        Self { offsets, weights }
    }

    /// Returns the first sample and the weight of the second.
    #[expect(clippy::indexing_slicing, reason = "an axis has as many entries as the input has rows")]
    fn at(&self, i: usize) -> (usize, f32) {
        (self.offsets[i] as usize, self.weights[i])
    }
}

/// Coefficients from Y'CbCr codes to normalised R'G'B' (ITU-R BT.601-7 and BT.709-6).
#[derive(Debug, Clone, Copy)]
struct Colors {
    luma: f32,
    cr_to_red: f32,
    cb_to_green: f32,
    cr_to_green: f32,
    cb_to_blue: f32,
    /// Added last to red, green and blue.
    offsets: [f32; 3],
}

impl Colors {
    #[expect(clippy::cast_possible_truncation, reason = "coefficients of order one, rounded to f32")]
    fn new(matrix: ColorMatrix, range: ColorRange) -> Self {
        let (kr, kb) = match matrix {
            ColorMatrix::Bt601 => (0.299, 0.114),
            ColorMatrix::Bt709 => (0.2126, 0.0722),
        };
        let kg = 1.0 - kr - kb;
        let (black, luma_gain, chroma_gain) = match range {
            ColorRange::Full => (0.0, 1.0, 1.0),
            ColorRange::Limited => (16.0, 255.0 / 219.0, 255.0 / 224.0),
        };
        let cr_to_red = 2.0 * (1.0 - kr) * chroma_gain;
        let cb_to_blue = 2.0 * (1.0 - kb) * chroma_gain;
        let cb_to_green = -cb_to_blue * kb / kg;
        let cr_to_green = -cr_to_red * kr / kg;
        let offset = |chroma: f64| ((-black * luma_gain - 128.0 * chroma - 127.0) / 128.0) as f32;
        let normalised = |gain: f64| (gain / 128.0) as f32;
        Self {
            luma: normalised(luma_gain),
            cr_to_red: normalised(cr_to_red),
            cb_to_green: normalised(cb_to_green),
            cr_to_green: normalised(cr_to_green),
            cb_to_blue: normalised(cb_to_blue),
            offsets: [offset(cr_to_red), offset(cb_to_green + cr_to_green), offset(cb_to_blue)],
        }
    }

    /// Returns the coefficients for sources with Cb and Cr swapped and targets with red and blue swapped.
    const fn swapped(self) -> Self {
        let [red, green, blue] = self.offsets;
        Self {
            luma: self.luma,
            cr_to_red: self.cb_to_blue,
            cb_to_green: self.cr_to_green,
            cr_to_green: self.cb_to_green,
            cb_to_blue: self.cr_to_red,
            offsets: [blue, green, red],
        }
    }
}

/// 0 and 255, normalised.
const DARKEST: f32 = -127.0 / 128.0;
const BRIGHTEST: f32 = 1.0;

/// Gathered source bytes for one row of the input.
#[derive(Debug)]
struct Rows {
    words: [Vec<u32>; 4],
    /// The rows of chroma in the second and the third of them.
    chroma: [Option<usize>; 2],
    /// Rows of a single sample, doubled: every sampling point needs two samples.
    doubled: [[u8; 8]; 4],
    /// Two rows of 10-bit frames, with 8 bits.
    narrow: [Vec<u8>; 2],
}

impl Rows {
    /// Fills the targets in the order red, green, blue, where `colors` is for Cb before Cr.
    fn sample_yuv(
        &mut self,
        frame: &Frame<'_>,
        tables: &Tables,
        colors: &Colors,
        vector: Vector,
        y: usize,
        target: [&mut [f32]; 3],
    ) {
        let [luma, upper, lower, _] = &mut self.words;
        let [luma_upper, luma_lower, cb, cr] = &mut self.doubled;
        let [narrow_first, narrow_second] = &mut self.narrow;
        // Positions of the first luma and the first chroma in the four bytes of two pixels.
        let packed = match frame.format() {
            PixelFormat::Yuy2 => Some((0, 1)),
            PixelFormat::Uyvy => Some((1, 0)),
            _ => None,
        };

        let (first, weight) = tables.y.at(y);
        let second = (first + 1).min(frame.height() - 1);
        let above = at_least_two(whole_row(frame, 0, first, narrow_first), 1, luma_upper);
        let below = at_least_two(whole_row(frame, 0, second, narrow_second), 1, luma_lower);
        let start = packed.map_or(0, |(luma, _)| luma);
        let [above, below] = [above, below].map(|row| row.get(start..).unwrap_or_default());
        tables.x.pairs(above, below, luma);

        let (first, chroma_weight) = tables.chroma_y.at(y);
        let (_, down) = frame.format().subsampling();
        let second = (first + 1).min(frame.height().div_ceil(down) - 1);
        let planar = frame.format().planes() == 3;
        let gray = frame.format() == PixelFormat::Gray8;
        if gray && self.chroma != [NO_CHROMA; 2] {
            // Neutral chroma.
            upper.fill(0x8080_8080);
            lower.fill(0x8080_8080);
            self.chroma = [NO_CHROMA; 2];
        }
        // Most rows of chroma are used for more than one row of the input.
        if !gray && self.chroma[1] == Some(first) {
            std::mem::swap(upper, lower);
            self.chroma.swap(0, 1);
        }
        for ((row, words), cached) in
            [(first, &mut *upper), (second, &mut *lower)].into_iter().zip(&mut self.chroma)
        {
            if gray || cached.replace(row) == Some(row) {
                continue;
            }
            if planar {
                let cb = at_least_two(whole_row(frame, 1, row, narrow_first), 1, cb);
                let cr = at_least_two(whole_row(frame, 2, row, narrow_second), 1, cr);
                tables.chroma_x.pairs(cb, cr, words);
            } else if let Some((_, start)) = packed {
                let row = at_least_two(frame.row(0, row), 4, cb).get(start..).unwrap_or_default();
                tables.chroma_x.quads(row, words);
            } else {
                let row = whole_row(frame, 1, row, narrow_first);
                tables.chroma_x.quads(at_least_two(row, 2, cb), words);
            }
        }
        let chroma_x = &tables.chroma_x_weights;
        let source = YuvRow {
            luma,
            chroma: [upper, lower],
            x: &tables.x_weights,
            chroma_x,
            y: weight,
            chroma_y: chroma_weight,
        };
        match planar {
            true => vector.blend_yuv::<true>(&source, colors, target),
            false => vector.blend_yuv::<false>(&source, colors, target),
        }
    }

    /// Fills the targets in the order of the bytes in memory.
    fn sample_rgb(
        &mut self,
        frame: &Frame<'_>,
        tables: &Tables,
        vector: Vector,
        y: usize,
        target: [&mut [f32]; 3],
    ) {
        let [upper_left, upper_right, lower_left, lower_right] = &mut self.words;
        let [doubled_upper, doubled_lower, ..] = &mut self.doubled;
        let (first, weight) = tables.y.at(y);
        let second = (first + 1).min(frame.height() - 1);
        let three = matches!(frame.format(), PixelFormat::Rgb | PixelFormat::Bgr);
        let bytes = if three { 3 } else { 4 };
        for (row, left, right, doubled) in [
            (first, &mut *upper_left, &mut *upper_right, doubled_upper),
            (second, &mut *lower_left, &mut *lower_right, doubled_lower),
        ] {
            let row = at_least_two(frame.row(0, row), bytes, doubled);
            tables.x.quads(row, left);
            if three {
                // The next pixel lies three bytes on; with the byte before it, no word ends beyond the row.
                tables.x.quads(row.get(2..).unwrap_or_default(), right);
                right.iter_mut().for_each(|word| *word >>= 8);
            } else {
                tables.x.quads(row.get(4..).unwrap_or_default(), right);
            }
        }
        let source = RgbRow {
            corners: [upper_left, upper_right, lower_left, lower_right],
            x: &tables.x_weights,
            y: weight,
        };
        vector.blend_rgb(&source, target);
    }
}

/// Returns a row of a plane with 8 bits a sample.
fn whole_row<'a>(frame: &Frame<'a>, plane: usize, y: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let (samples, _) = frame.format().eight_bit().plane_size(plane, frame.width(), frame.height());
    frame.samples(plane, y, 0..samples, scratch)
}

/// Returns the row itself, or its only sample of `bytes` bytes twice.
fn at_least_two<'a>(row: &'a [u8], bytes: usize, doubled: &'a mut [u8; 8]) -> &'a [u8] {
    if row.len() >= 2 * bytes {
        return row;
    }
    for (target, &byte) in doubled.iter_mut().zip(row.iter().cycle()) {
        *target = byte;
    }
    doubled.get(..2 * bytes).unwrap_or_default()
}

/// One row's gathered Y'CbCr, and the weights of its second samples.
struct YuvRow<'a> {
    /// From the lowest byte: upper left, upper right, lower left, lower right.
    luma: &'a [u32],
    /// Upper and lower row. Semi-planar and packed: Cb, Cr, Cb, Cr; planar: Cb, Cb, Cr, Cr.
    chroma: [&'a [u32]; 2],
    x: &'a [f32],
    chroma_x: &'a [f32],
    y: f32,
    chroma_y: f32,
}

/// One row's gathered pixels, and the weights of the second ones.
struct RgbRow<'a> {
    /// Upper left, upper right, lower left, lower right; the channels from the lowest byte on.
    corners: [&'a [u32]; 4],
    x: &'a [f32],
    y: f32,
}

#[inline(always)]
fn byte<const INDEX: u32>(word: u32) -> f32 {
    // Signed, since vector units before AVX-512 convert signed integers only.
    ((word >> (8 * INDEX)) & 0xff).cast_signed() as f32
}

#[inline(always)]
fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    a + (b - a) * weight
}

/// Clamps to [`DARKEST`] and [`BRIGHTEST`]. `f32::clamp` would also have to keep a NaN, which costs instructions and cannot occur.
#[inline(always)]
fn clamp(value: f32) -> f32 {
    let value = if value > DARKEST { value } else { DARKEST };
    if value < BRIGHTEST { value } else { BRIGHTEST }
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "all slices are cut to the same length first")]
fn blend_yuv<const PLANAR: bool>(row: &YuvRow<'_>, colors: &Colors, [red, green, blue]: [&mut [f32]; 3]) {
    let n = red.len();
    let (green, blue) = (&mut green[..n], &mut blue[..n]);
    let (luma, upper, lower) = (&row.luma[..n], &row.chroma[0][..n], &row.chroma[1][..n]);
    let (x, chroma_x) = (&row.x[..n], &row.chroma_x[..n]);
    for i in 0..n {
        let (p, wx) = (luma[i], x[i]);
        let y = lerp(lerp(byte::<0>(p), byte::<1>(p), wx), lerp(byte::<2>(p), byte::<3>(p), wx), row.y);
        let (a, b, wx) = (upper[i], lower[i], chroma_x[i]);
        let (cb, cr) = if PLANAR {
            (
                lerp(
                    lerp(byte::<0>(a), byte::<1>(a), wx),
                    lerp(byte::<0>(b), byte::<1>(b), wx),
                    row.chroma_y,
                ),
                lerp(
                    lerp(byte::<2>(a), byte::<3>(a), wx),
                    lerp(byte::<2>(b), byte::<3>(b), wx),
                    row.chroma_y,
                ),
            )
        } else {
            (
                lerp(
                    lerp(byte::<0>(a), byte::<2>(a), wx),
                    lerp(byte::<0>(b), byte::<2>(b), wx),
                    row.chroma_y,
                ),
                lerp(
                    lerp(byte::<1>(a), byte::<3>(a), wx),
                    lerp(byte::<1>(b), byte::<3>(b), wx),
                    row.chroma_y,
                ),
            )
        };
        let y = y * colors.luma;
        red[i] = clamp(y + cr * colors.cr_to_red + colors.offsets[0]);
        green[i] = clamp(y + cb * colors.cb_to_green + cr * colors.cr_to_green + colors.offsets[1]);
        blue[i] = clamp(y + cb * colors.cb_to_blue + colors.offsets[2]);
    }
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "all slices are cut to the same length first")]
fn blend_rgb(row: &RgbRow<'_>, [first, second, third]: [&mut [f32]; 3]) {
    #[inline(always)]
    fn channel<const INDEX: u32>([a, b, c, d]: [u32; 4], x: f32, y: f32) -> f32 {
        let upper = lerp(byte::<INDEX>(a), byte::<INDEX>(b), x);
        let lower = lerp(byte::<INDEX>(c), byte::<INDEX>(d), x);
        (lerp(upper, lower, y) - 127.0) / 128.0
    }
    let n = first.len();
    let (second, third) = (&mut second[..n], &mut third[..n]);
    let [a, b, c, d] = row.corners.map(|corner| &corner[..n]);
    let x = &row.x[..n];
    for i in 0..n {
        let corners = [a[i], b[i], c[i], d[i]];
        first[i] = channel::<0>(corners, x[i], row.y);
        second[i] = channel::<1>(corners, x[i], row.y);
        third[i] = channel::<2>(corners, x[i], row.y);
    }
}

/// The widest vector unit for which the blends were compiled and which this machine has.
#[derive(Debug, Clone, Copy)]
enum Vector {
    /// What every processor of the architecture has: SSE2, NEON.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Vector {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Baseline
    }

    fn blend_yuv<const PLANAR: bool>(self, row: &YuvRow<'_>, colors: &Colors, target: [&mut [f32]; 3]) {
        match self {
            Self::Baseline => blend_yuv::<PLANAR>(row, colors, target),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx2` is only made by `detect`, where the processor has it.
            Self::Avx2 => unsafe { avx2::yuv::<PLANAR>(row, colors, target) },
        }
    }

    fn blend_rgb(self, row: &RgbRow<'_>, target: [&mut [f32]; 3]) {
        match self {
            Self::Baseline => blend_rgb(row, target),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx2` is only made by `detect`, where the processor has it.
            Self::Avx2 => unsafe { avx2::rgb(row, target) },
        }
    }
}

/// The blends again, compiled for eight lanes instead of four.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Colors, RgbRow, YuvRow, blend_rgb, blend_yuv};

    #[target_feature(enable = "avx2")]
    pub(super) fn yuv<const PLANAR: bool>(row: &YuvRow<'_>, colors: &Colors, target: [&mut [f32]; 3]) {
        blend_yuv::<PLANAR>(row, colors, target);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn rgb(row: &RgbRow<'_>, target: [&mut [f32]; 3]) {
        blend_rgb(row, target);
    }
}
