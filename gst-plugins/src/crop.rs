//! Crops a face from a frame and encodes the crop as JPEG or WebP. Only the pixels of the crop are read; they are averaged down
//! to the crop's size in the frame's own colour space, and only the result is converted to RGB.

use std::iter;

use facepipe_detector::{BoundingBox, ColorMatrix, ColorRange, Frame, PixelFormat};
use gst::glib;
use jpeg_encoder::{ColorType, SamplingFactor};

/// The image format of the crops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeEncoding")]
#[repr(i32)]
pub enum Encoding {
    /// Baseline JPEG, 4:2:0.
    #[default]
    #[enum_value(name = "JPEG", nick = "jpeg")]
    Jpeg,
    /// Lossy WebP: a third smaller at the same quality, ten times the work.
    #[enum_value(name = "WebP", nick = "webp")]
    Webp,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Self; 2] = [Self::Jpeg, Self::Webp];

    /// Returns the media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// Returns the encoding with this media type.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|encoding| encoding.media_type() == media_type)
    }
}

/// The longer side of a frame is this many times the default minimum size of a face.
const FACES_ALONG: f64 = 64.0;

/// The backend detects faces from this size on, so smaller ones are of no use to it.
const MIN_FACE_SIZE: u32 = 20;

/// Returns the default minimum of a face's shorter side for frames of this size in square pixels: a 64th of the longer side,
/// from 20 to 30 pixels. A distant face in a frame of high resolution has as many pixels as a near one in a frame of low
/// resolution, so a limit that suits 1080p would exclude the usable faces of 360p.
pub fn default_min_size(width: f64, height: f64) -> u32 {
    to_pixels(width.max(height) / FACES_ALONG).clamp(MIN_FACE_SIZE, CropSettings::default().min_size)
}

/// The size and quality of crops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropSettings {
    /// Margin on each side, as a fraction of the face's width (left and right) and height (top and bottom).
    pub margin: f64,
    /// Faces whose shorter side is less than this are excluded, pixels.
    pub min_size: u32,
    /// Crops whose longer side is more than this are shrunk to it, pixels. Crops are never enlarged.
    pub max_size: u16,
    /// Encoding quality, 1 to 100, on the scale of libjpeg or libwebp.
    pub quality: u8,
    /// The image format.
    pub encoding: Encoding,
}

impl Default for CropSettings {
    fn default() -> Self {
        Self { margin: 0.25, min_size: 30, max_size: 150, quality: 90, encoding: Encoding::default() }
    }
}

/// Why a crop could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CropError {
    /// The region is empty or reaches beyond the frame.
    #[error("crop region {region:?} does not lie inside the frame of {width}x{height} pixels")]
    Outside {
        /// The region.
        region: BoundingBox<u32>,
        /// Width of the frame.
        width: usize,
        /// Height of the frame.
        height: usize,
    },
    /// The JPEG encoder refused the picture.
    #[error("the crop cannot be encoded as JPEG: {0}")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    /// The WebP encoder refused the picture; it takes sides of up to 16,383 pixels.
    #[error("the crop of {width}x{height} pixels cannot be encoded as WebP: {reason}")]
    Webp {
        /// Width of the picture.
        width: u16,
        /// Height of the picture.
        height: u16,
        /// What libwebp says.
        reason: String,
    },
}

impl CropSettings {
    /// Returns the region to crop around a face: the face and the margin, clipped to the frame. `None` for a face that is
    /// smaller than `min_size` or outside the frame; only the part of a face inside the frame counts.
    pub fn region(
        &self,
        face: &BoundingBox<u32>,
        frame_width: u32,
        frame_height: u32,
    ) -> Option<BoundingBox<u32>> {
        let (left, right) = self.side(face.left, face.right, frame_width)?;
        let (top, bottom) = self.side(face.top, face.bottom, frame_height)?;
        Some(BoundingBox { left, top, right, bottom })
    }

    /// Returns one axis of [`region`](Self::region): start and end, end beyond start.
    fn side(&self, start: u32, end: u32, limit: u32) -> Option<(u32, u32)> {
        let end = end.min(limit);
        let inside = end.checked_sub(start).filter(|&inside| inside >= self.min_size.max(1))?;
        let margin = to_pixels(self.margin * f64::from(inside));
        Some((start.saturating_sub(margin), end.saturating_add(margin).min(limit)))
    }

    /// Returns width and height of the crop of a region: the region's own, once `stretch` (across and down) has made its pixels
    /// square, or shrunk to `max_size`.
    pub fn output_size(&self, region: &BoundingBox<u32>, [across, down]: [f64; 2]) -> (u16, u16) {
        let (width, height) = (f64::from(region.width()) * across, f64::from(region.height()) * down);
        let scale = (f64::from(self.max_size.max(1)) / width.max(height).max(1.0)).min(1.0);
        let side = |pixels: f64| u16::try_from(to_pixels(pixels * scale).max(1)).unwrap_or(u16::MAX);
        (side(width), side(height))
    }
}

/// The pixels of a crop.
#[derive(Debug, Clone)]
pub struct CropImage {
    rgb: Vec<u8>,
    width: u16,
    height: u16,
}

impl CropImage {
    /// Returns the width in pixels.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> u16 {
        self.height
    }

    /// Returns the pixels, `[height, width, 3]`: red, green, blue.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Encodes the crop.
    ///
    /// # Errors
    ///
    /// The encoder refuses its size.
    pub fn encode(&self, settings: &CropSettings) -> Result<Vec<u8>, CropError> {
        let (width, height) = (self.width, self.height);
        let quality = settings.quality.clamp(1, 100);
        match settings.encoding {
            Encoding::Jpeg => {
                let mut jpeg = Vec::with_capacity(usize::from(width) * usize::from(height) / 2 + 1024);
                let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, quality);
                encoder.set_sampling_factor(SamplingFactor::F_2_2);
                // The standard Huffman tables: optimised ones would save a tenth, but zune-jpeg, the decoder of the image
                // crate, misreads those.
                encoder.encode(&self.rgb, width, height, ColorType::Rgb)?;
                Ok(jpeg)
            }
            Encoding::Webp => {
                let encoder = webp::Encoder::from_rgb(&self.rgb, width.into(), height.into());
                let refused = |error| CropError::Webp { width, height, reason: format!("{error:?}") };
                Ok(encoder.encode_simple(false, quality.into()).map_err(refused)?.to_vec())
            }
        }
    }

    /// Returns the variance of the Laplacian (of four neighbours) of the 8-bit luma over a part of the crop, in fractions of its
    /// width and height. 0 for a part that is too small.
    pub fn sharpness(&self, part: &BoundingBox<f64>) -> f64 {
        let BoundingBox { left, top, right, bottom } = *part;
        let at = |fraction: f64, side: u16| floor(fraction.clamp(0.0, 1.0) * f64::from(side));
        let (width, rows) =
            (usize::from(self.width), self.rgb.chunks_exact(usize::from(self.width).max(1) * 3));
        let luma_rows: Vec<Vec<f64>> =
            rows.take(at(bottom, self.height))
                .skip(at(top, self.height))
                .map(|row| {
                    let luma =
                        row.as_chunks::<3>().0.iter().map(|&[r, g, b]| {
                            0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)
                        });
                    luma.take(at(right, self.width).min(width)).skip(at(left, self.width)).collect()
                })
                .collect();
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for rows in luma_rows.array_windows::<3>() {
            let [above, row, below] = rows;
            let middles = row.array_windows::<3>().zip(above.iter().skip(1)).zip(below.iter().skip(1));
            for ((&[before, here, after], up), down) in middles {
                let laplacian = before + after + up + down - 4.0 * here;
                count += 1.0;
                sum += laplacian;
                squares += laplacian * laplacian;
            }
        }
        if count > 0.0 { squares / count - (sum / count) * (sum / count) } else { 0.0 }
    }
}

/// Crops regions from frames. Its buffers are reused.
#[derive(Debug, Default)]
pub struct Cropper {
    planes: [Vec<f32>; 3],
    row: Vec<f32>,
}

impl Cropper {
    /// Crops `region` from `frame`, shrunk by area averaging to [`CropSettings::output_size`]. The crop's pixels are square, also
    /// where the frame's are not.
    ///
    /// # Errors
    ///
    /// The region does not lie inside the frame.
    pub fn crop(
        &mut self,
        frame: &Frame<'_>,
        region: &BoundingBox<u32>,
        settings: &CropSettings,
    ) -> Result<CropImage, CropError> {
        let (width, height) = settings.output_size(region, frame.stretch());
        let rgb = self.shrink_to_rgb(frame, region, usize::from(width), usize::from(height))?;
        Ok(CropImage { rgb, width, height })
    }

    /// Returns the region in RGB, `[height, width, 3]`.
    fn shrink_to_rgb(
        &mut self,
        frame: &Frame<'_>,
        region: &BoundingBox<u32>,
        width: usize,
        height: usize,
    ) -> Result<Vec<u8>, CropError> {
        let (Some(columns), Some(rows)) = (
            inside(region.left, region.width(), frame.width()),
            inside(region.top, region.height(), frame.height()),
        ) else {
            return Err(CropError::Outside { region: *region, width: frame.width(), height: frame.height() });
        };
        let [stretched_across, stretched_down] = frame.stretch().map(|factor| factor > 1.0);
        let grid = |(across, down): (usize, usize)| Grid {
            across: Spans::new(columns, width, across, stretched_across),
            down: Spans::new(rows, height, down, stretched_down),
        };
        let Self { planes: [first, second, third], row } = self;
        let mut rgb = vec![0; width * height * 3];
        let format = frame.format().eight_bit();
        let full = grid((1, 1));
        match format {
            PixelFormat::Rgb => average_packed::<3>(frame, &full, row, first, [0, 1, 2], &mut rgb),
            PixelFormat::Bgr => average_packed::<3>(frame, &full, row, first, [2, 1, 0], &mut rgb),
            PixelFormat::Rgbx | PixelFormat::Rgba => {
                average_packed::<4>(frame, &full, row, first, [0, 1, 2], &mut rgb)
            }
            PixelFormat::Bgrx | PixelFormat::Bgra => {
                average_packed::<4>(frame, &full, row, first, [2, 1, 0], &mut rgb)
            }
            PixelFormat::Nv12 | PixelFormat::Nv21 => {
                average::<1>(frame, 0, &full, row, first);
                average::<2>(frame, 1, &grid(format.subsampling()), row, second);
                let cr_first = format == PixelFormat::Nv21;
                let pairs = second.as_chunks::<2>().0.iter();
                let chroma = pairs.map(|&[a, b]| if cr_first { (b, a) } else { (a, b) });
                YuvToRgb::of(frame).convert_all(first.iter().copied(), chroma, &mut rgb);
            }
            PixelFormat::I420 | PixelFormat::Yv12 | PixelFormat::Y42b | PixelFormat::Y444 => {
                let (cb, cr) = if format == PixelFormat::Yv12 { (2, 1) } else { (1, 2) };
                let chroma = grid(format.subsampling());
                average::<1>(frame, 0, &full, row, first);
                average::<1>(frame, cb, &chroma, row, second);
                average::<1>(frame, cr, &chroma, row, third);
                let chroma = second.iter().copied().zip(third.iter().copied());
                YuvToRgb::of(frame).convert_all(first.iter().copied(), chroma, &mut rgb);
            }
            PixelFormat::Yuy2 | PixelFormat::Uyvy => {
                // Once as pixels of a luma and a chroma byte, once as double pixels of four bytes.
                average::<2>(frame, 0, &full, row, first);
                average::<4>(frame, 0, &grid(format.subsampling()), row, second);
                let luma_first = format == PixelFormat::Yuy2;
                let pixels = first.as_chunks::<2>().0.iter();
                let luma = pixels.map(|&[a, b]| if luma_first { a } else { b });
                let doubles = second.as_chunks::<4>().0.iter();
                let chroma = doubles.map(|&[a, b, c, d]| if luma_first { (b, d) } else { (a, c) });
                YuvToRgb::of(frame).convert_all(luma, chroma, &mut rgb);
            }
            // `eight_bit` has replaced the 10-bit formats.
            PixelFormat::Gray8 | PixelFormat::P010 | PixelFormat::I420Ten | PixelFormat::I422Ten => {
                average::<1>(frame, 0, &full, row, first);
                let chroma = iter::repeat((128.0, 128.0));
                YuvToRgb::of(frame).convert_all(first.iter().copied(), chroma, &mut rgb);
            }
        }
        Ok(rgb)
    }
}

/// Returns one side of a region, start and length, if it is not empty and ends within `limit`.
fn inside(start: u32, length: u32, limit: usize) -> Option<(usize, usize)> {
    let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
    (length > 0 && start.checked_add(length)? <= limit).then_some((start, length))
}

/// The samples of a plane that make up each output pixel, along both axes.
struct Grid {
    across: Spans,
    down: Spans,
}

/// For each output pixel along one axis, the source samples that it covers, with weights that sum to 1.
struct Spans {
    /// First source sample of any span, and the number of them that all spans cover.
    source: (usize, usize),
    /// Per output pixel: its first sample relative to `source`, and its weights' range in `weights`.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<f32>,
}

impl Spans {
    /// Places `outputs` pixels over the source pixels `(start, length)`, on a plane that has one sample for every
    /// `subsampling` pixels. A chroma sample is taken as a patch over its pixels; the quarter pixel by which
    /// MPEG sites it to the left is not visible in a crop. With `smooth`, output pixels that are smaller than a
    /// sample are interpolated between two of them.
    fn new((start, length): (usize, usize), outputs: usize, subsampling: usize, smooth: bool) -> Self {
        let per_sample = to_f64(subsampling);
        let first = start / subsampling;
        let samples = (start + length).div_ceil(subsampling) - first;
        let origin = to_f64(start) / per_sample - to_f64(first);
        let step = to_f64(length) / per_sample / to_f64(outputs);
        let mut spans = Vec::with_capacity(outputs);
        let mut weights = Vec::new();
        for output in 0..outputs {
            let mut from = origin + to_f64(output) * step;
            let mut to = from + step;
            if smooth && step < 1.0 {
                // As wide as a sample, so that it covers parts of two; at the ends, of the one there is.
                let middle = f64::midpoint(from, to);
                from = (middle - 0.5).clamp(0.0, to_f64(samples - 1));
                to = from + 1.0;
            }
            let first_sample = floor(from).min(samples - 1);
            let begin = weights.len();
            let mut sum = 0.0;
            for sample in first_sample..samples {
                let covered = (to_f64(sample) + 1.0).min(to) - to_f64(sample).max(from);
                // A sliver is rounding, not coverage; but the first sample always counts.
                if covered < 1e-6 && sample > first_sample {
                    break;
                }
                let covered = covered.max(1e-9);
                sum += covered;
                weights.push(covered);
            }
            if let Some(own) = weights.get_mut(begin..) {
                own.iter_mut().for_each(|weight| *weight /= sum);
            }
            spans.push((first_sample, begin..weights.len()));
        }
        Self { source: (first, samples), spans, weights: weights.into_iter().map(to_f32).collect() }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.spans.iter().map(|(first, range)| (*first, self.weights.get(range.clone()).unwrap_or_default()))
    }
}

/// Averages one plane of `CHANNELS` interleaved components down to `out`, `[down, across, CHANNELS]`. Rows first: that
/// pass is sequential in memory and most of the work. Where nothing is shrunk, samples are only copied.
#[expect(
    clippy::indexing_slicing,
    reason = "`shrink_to_rgb` has checked that the region, and with it every span, lies inside the frame"
)]
fn average<const CHANNELS: usize>(
    frame: &Frame<'_>,
    plane: usize,
    grid: &Grid,
    row: &mut Vec<f32>,
    out: &mut Vec<f32>,
) {
    let Grid { across, down } = grid;
    let (left, columns) = across.source;
    let (top, _) = down.source;
    let bytes = left * CHANNELS..(left + columns) * CHANNELS;
    let mut scratch = Vec::new();
    let length = across.spans.len() * CHANNELS;
    out.clear();
    out.resize(down.spans.len() * length, 0.0);
    let mut before = None;
    for (line, (first_row, row_weights)) in down.iter().enumerate() {
        let start = line * length;
        row.clear();
        if let [_] = row_weights {
            // Neighbouring lines of subsampled chroma have the same source row.
            if before.replace(first_row) == Some(first_row) {
                out.copy_within(start - length..start, start);
                continue;
            }
            let source = frame.samples(plane, top + first_row, bytes.clone(), &mut scratch);
            row.extend(source.iter().map(|&sample| f32::from(sample)));
        } else {
            before = None;
            row.resize(columns * CHANNELS, 0.0);
            for (offset, &weight) in row_weights.iter().enumerate() {
                let source = frame.samples(plane, top + first_row + offset, bytes.clone(), &mut scratch);
                for (sum, &sample) in row.iter_mut().zip(source) {
                    *sum += weight * f32::from(sample);
                }
            }
        }
        let samples = row.as_chunks::<CHANNELS>().0;
        let pixels = out[start..start + length].as_chunks_mut::<CHANNELS>().0;
        for ((first_column, weights), pixel) in across.iter().zip(pixels) {
            if let [_] = weights {
                *pixel = samples[first_column];
                continue;
            }
            for (sample, weight) in samples[first_column..][..weights.len()].iter().zip(weights) {
                for (sum, sample) in pixel.iter_mut().zip(sample) {
                    *sum += sample * weight;
                }
            }
        }
    }
}

/// Averages packed R'G'B' pixels of `CHANNELS` bytes; `order` has the positions of red, green and blue.
fn average_packed<const CHANNELS: usize>(
    frame: &Frame<'_>,
    grid: &Grid,
    row: &mut Vec<f32>,
    averages: &mut Vec<f32>,
    order: [usize; 3],
    rgb: &mut [u8],
) {
    average::<CHANNELS>(frame, 0, grid, row, averages);
    for (pixel, output) in averages.as_chunks::<CHANNELS>().0.iter().zip(rgb.as_chunks_mut::<3>().0) {
        *output = order.map(|index| to_byte(pixel.get(index).copied().unwrap_or(0.0)));
    }
}

/// Y'CbCr to R'G'B' for one matrix and range (ITU-R BT.601 and BT.709, section "signal format").
struct YuvToRgb {
    luma_offset: f32,
    luma: f32,
    red_v: f32,
    green_u: f32,
    green_v: f32,
    blue_u: f32,
}

impl YuvToRgb {
    fn of(frame: &Frame<'_>) -> Self {
        let (kr, kb) = match frame.matrix() {
            ColorMatrix::Bt601 => (0.299, 0.114),
            ColorMatrix::Bt709 => (0.2126, 0.0722),
        };
        let kg = 1.0 - kr - kb;
        let (luma_offset, luma, chroma) = match frame.range() {
            ColorRange::Full => (0.0, 1.0, 1.0),
            ColorRange::Limited => (16.0, 255.0 / 219.0, 255.0 / 224.0),
        };
        Self {
            luma_offset,
            luma,
            red_v: chroma * 2.0 * (1.0 - kr),
            green_u: chroma * 2.0 * (1.0 - kb) * kb / kg,
            green_v: chroma * 2.0 * (1.0 - kr) * kr / kg,
            blue_u: chroma * 2.0 * (1.0 - kb),
        }
    }

    fn convert_all(
        self,
        luma: impl Iterator<Item = f32>,
        chroma: impl Iterator<Item = (f32, f32)>,
        rgb: &mut [u8],
    ) {
        for (pixel, (y, (u, v))) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma.zip(chroma)) {
            *pixel = self.convert(y, u, v);
        }
    }

    fn convert(&self, y: f32, u: f32, v: f32) -> [u8; 3] {
        let (y, u, v) = ((y - self.luma_offset) * self.luma, u - 128.0, v - 128.0);
        [
            to_byte(y + self.red_v * v),
            to_byte(y - self.green_u * u - self.green_v * v),
            to_byte(y + self.blue_u * u),
        ]
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u8")]
fn to_byte(value: f32) -> u8 {
    (value + 0.5).clamp(0.0, 255.0) as u8
}

/// Rounds a number of pixels; negative ones become 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of u32"
)]
fn to_pixels(value: f64) -> u32 {
    value.round() as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of usize"
)]
fn floor(value: f64) -> usize {
    value.floor() as usize
}

#[expect(clippy::cast_possible_truncation, reason = "weights of 0 to 1 lose only precision")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

fn to_f64(value: usize) -> f64 {
    value as f64
}
