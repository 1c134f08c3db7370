//! Decodes uploaded pictures to upright RGB pixels, within limits that are checked before anything large is allocated.

mod frames;

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, error::LimitErrorKind,
};

/// Upper limits for a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Bytes of the file. 10 MiB by default.
    pub max_bytes: usize,
    /// Width times height. 50 million by default.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_bytes: 10 * 1024 * 1024, max_pixels: 50_000_000 }
    }
}

/// Why a picture could not be decoded. All of these are the sender's errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the image is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("the image has {bytes} bytes, at most {max} are allowed")]
    TooManyBytes {
        /// Bytes received.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// More pixels than allowed.
    #[error("the image has {width}x{height} pixels, at most {max} pixels are allowed")]
    TooManyPixels {
        /// Width in pixels, as the header states it.
        width: u32,
        /// Height in pixels, as the header states it.
        height: u32,
        /// Pixels allowed.
        max: u64,
    },
    /// Far fewer bytes than a picture of so many pixels has.
    #[error(
        "the image states {width}x{height} pixels and has {bytes} bytes: a picture of this size has at least {min}"
    )]
    TooFewBytes {
        /// Bytes received.
        bytes: usize,
        /// Width in pixels, as the header states it.
        width: u32,
        /// Height in pixels, as the header states it.
        height: u32,
        /// Bytes expected at least.
        min: u64,
    },
    /// An animation whose first frame covers little of its canvas.
    #[error(
        "the animation's first frame has {}x{} pixels on a canvas of {}x{}: it must cover a quarter of it at least",
        frame[0], frame[1], canvas[0], canvas[1]
    )]
    FrameTooSmall {
        /// Width and height of the first frame, pixels.
        frame: [u32; 2],
        /// Width and height of the canvas, pixels.
        canvas: [u32; 2],
    },
    /// None of the supported formats.
    #[error("the image is none of JPEG, PNG, WebP, BMP and GIF")]
    UnknownFormat,
    /// A supported format, but damaged.
    #[error("the image cannot be decoded: {0}")]
    Corrupt(String),
}

/// A remark on a picture that could be read: a defect of its file, or what was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeNote {
    /// A JPEG has all of its pixels but no end marker: its sender cut off the last bytes.
    #[error("the JPEG has no end marker; its pixels are complete")]
    EndMissing,
    /// It shows more faces than are recognised.
    #[error("the image shows more than {max} faces; the smallest were left out")]
    TooManyFaces {
        /// The number of faces that were kept, the largest ones.
        max: usize,
    },
}

impl DecodeNote {
    /// Returns a stable code for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::EndMissing => "jpeg_end_missing",
            Self::TooManyFaces { .. } => "too_many_faces",
        }
    }
}

/// A decoded picture and remarks on its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Upright.
    pub image: RgbImage,
    /// Empty for most pictures.
    pub notes: Vec<DecodeNote>,
}

/// Allowance for what a header needs beside twice the bytes of its file: an unpacked colour profile and a row.
const HEADER_OVERHEAD: u64 = 4 * 1024 * 1024;
/// Allowance for a decoder's own buffers (rows, tables, a palette) beside the pixels.
const DECODER_OVERHEAD: u64 = 64 * 1024 * 1024;
/// 16-bit RGBA, the widest pixel format of the decoders.
const MAX_BYTES_PER_PIXEL: u64 = 8;

/// Pixels up to which a picture may have any number of bytes and a frame any place on its canvas: it costs little.
const SMALL_PIXELS: u64 = 250_000;
/// Pixels per byte at most. A black grey PNG, the emptiest picture that encoders of cameras and phones write, has 1,030; a
/// lossless WebP of one colour, an RLE bitmap and a GIF need no data for any number of pixels.
const MAX_PIXELS_PER_BYTE: u64 = 2_000;
/// The part of its canvas that an animation's first frame covers at least: one in this number.
const MIN_FRAME_SHARE: u64 = 4;

/// Reads the size of a picture from its header and checks it against the limits, without decoding. Returns the number of
/// pixels that decoding costs: those of the picture or, where that is larger, of an animation's first frame.
///
/// # Errors
///
/// [`DecodeError`]: what decoding would fail with for the header's sake.
pub fn pixels_to_decode(bytes: &[u8], limits: &DecodeLimits) -> Result<u64, DecodeError> {
    check_bytes(bytes, limits)?;
    guarded(|| {
        let (decoder, _) = open(bytes)?;
        check_size(bytes, decoder.dimensions(), limits)
    })
}

fn check_bytes(bytes: &[u8], limits: &DecodeLimits) -> Result<(), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), max: limits.max_bytes });
    }
    Ok(())
}

/// Opens a file of a supported format; reads no more than its header.
fn open(bytes: &[u8]) -> Result<(impl ImageDecoder, ImageFormat), DecodeError> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DecodeError::Corrupt(e.to_string()))?;
    // The PNG decoder unpacks the colour profile with the header. It leaves out one that exceeds the limit.
    let mut allocation = Limits::no_limits();
    let file = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    allocation.max_alloc = Some(file.saturating_mul(2).saturating_add(HEADER_OVERHEAD));
    reader.limits(allocation);
    let Some(format) = reader.format().filter(ImageFormat::reading_enabled) else {
        return Err(DecodeError::UnknownFormat);
    };
    Ok((reader.into_decoder().map_err(decode_error)?, format))
}

/// Checks the size that a header states, and that of an animation's first frame. Returns the larger number of pixels.
fn check_size(bytes: &[u8], (width, height): (u32, u32), limits: &DecodeLimits) -> Result<u64, DecodeError> {
    let area = |[width, height]: [u32; 2]| u64::from(width) * u64::from(height);
    let canvas = [width, height];
    let frame = frames::first_frame(bytes).unwrap_or(canvas);
    for [width, height] in [canvas, frame] {
        if area([width, height]) > limits.max_pixels {
            return Err(DecodeError::TooManyPixels { width, height, max: limits.max_pixels });
        }
    }
    let pixels = area(canvas).max(area(frame));
    if pixels > SMALL_PIXELS {
        if area(frame) < area(canvas) / MIN_FRAME_SHARE {
            return Err(DecodeError::FrameTooSmall { frame, canvas });
        }
        let min = pixels / MAX_PIXELS_PER_BYTE;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) < min {
            return Err(DecodeError::TooFewBytes { bytes: bytes.len(), width, height, min });
        }
    }
    Ok(pixels)
}

/// Decodes JPEG, PNG, WebP, BMP or GIF (its first frame), recognised by content, and applies the
/// EXIF orientation.
///
/// Transparency is dropped, 16 bits a channel become 8, CMYK and grey become RGB.
///
/// # Errors
///
/// [`DecodeError`]. Bytes and pixels are checked before pixels are allocated; a file that ends before its last pixel is
/// [`DecodeError::Corrupt`], never a picture with a grey remainder.
pub fn decode_image(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode_with_notes(bytes, limits).map(|decoded| decoded.image)
}

/// Decodes as [`decode_image`] does; also returns the defects that did not prevent decoding.
///
/// # Errors
///
/// As for [`decode_image`].
pub fn decode_with_notes(bytes: &[u8], limits: &DecodeLimits) -> Result<Decoded, DecodeError> {
    check_bytes(bytes, limits)?;
    guarded(|| decode(bytes, limits))
}

/// Turns a decoder's unwinding into an error.
///
/// libjpeg reports what it cannot go on from by unwinding, with the reason as a text; and should a decoder written in Rust
/// panic on hostile bytes, that must not take a worker thread with it.
fn guarded<T>(decode: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|reason| {
        let reason =
            reason.downcast::<String>().map_or_else(|_| "the decoder gave up".to_owned(), |text| *text);
        Err(DecodeError::Corrupt(reason))
    })
}

fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Decoded, DecodeError> {
    let mut notes = Vec::new();
    let image = match jpeg_end(bytes).map_err(|reason| DecodeError::Corrupt(reason.to_owned()))? {
        JpegEnd::Missing { next_restart } => {
            notes.push(DecodeNote::EndMissing);
            decode_without_end(bytes, next_restart, limits)?
        }
        JpegEnd::Marker | JpegEnd::NoJpeg => decode_whole(bytes, limits)?,
    };
    Ok(Decoded { image, notes })
}

/// Bytes by which a JPEG is continued: some blocks.
const NOISE_BYTES: usize = 64;

/// Decodes a JPEG that lacks its end marker, if that is all that it lacks.
///
/// libjpeg warns and fills missing data with zeros; the crate that wraps it does not report the warning. So the data are
/// extended in several ways: a complete picture comes out the same each time, since decoders ignore bytes after the last
/// pixel, whereas missing pixels come out differently.
fn decode_without_end(
    bytes: &[u8],
    next_restart: Option<u8>,
    limits: &DecodeLimits,
) -> Result<RgbImage, DecodeError> {
    // Half of the marker, or of a byte of the data.
    let half = bytes.iter().rev().take_while(|&&b| b == 0xff).count();
    let data = bytes.get(..bytes.len() - half).unwrap_or_default();
    let continued = |more: &[u8]| decode_whole(&[data, more, &[0xff, 0xd9]].concat(), limits);
    let noise: Vec<u8> =
        [0xd6, 0xae, 0x9b, 0xc5, 0xf3, 0xb9, 0xea].into_iter().cycle().take(NOISE_BYTES).collect();
    let image = continued(&[])?;
    let mut same = continued(&noise)? == image;
    // Pixels that are missing from a restart interval on are not reached otherwise.
    if let Some(marker) = next_restart {
        same &= continued(&[&[0xff, marker], noise.as_slice()].concat())? == image;
    }
    if same { Ok(image) } else { Err(DecodeError::Corrupt("the JPEG ends before its last pixel".to_owned())) }
}

fn decode_whole(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let (mut decoder, format) = open(bytes)?;
    let (width, height) = decoder.dimensions();
    check_size(bytes, (width, height), limits)?;
    let mut allocation = Limits::no_limits();
    allocation.max_alloc =
        Some(limits.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL).saturating_add(DECODER_OVERHEAD));
    decoder.set_limits(allocation).map_err(decode_error)?;
    // Damaged metadata is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let jpeg = if format == ImageFormat::Jpeg { decode_jpeg(bytes, (width, height))? } else { None };
    let mut image = match jpeg {
        Some(pixels) => DynamicImage::ImageRgb8(pixels),
        None => DynamicImage::from_decoder(decoder).map_err(decode_error)?,
    };
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn decode_error(error: ImageError) -> DecodeError {
    match error {
        ImageError::Unsupported(_) => {
            DecodeError::Corrupt("it uses a feature that is not supported".to_owned())
        }
        ImageError::Limits(e) if e.kind() == LimitErrorKind::InsufficientMemory => {
            DecodeError::Corrupt("its parts need more memory than its pixels".to_owned())
        }
        other => DecodeError::Corrupt(other.to_string()),
    }
}

/// Decodes a JPEG bit for bit as libjpeg-turbo does, and thus Pillow, OpenCV and browsers.
///
/// Other decoders differ from it by a level or two, which is enough for MTCNN to prefer another of several equally
/// confident boxes, pixels away. `None` for CMYK, which libjpeg does not turn into RGB.
fn decode_jpeg(bytes: &[u8], (width, height): (u32, u32)) -> Result<Option<RgbImage>, DecodeError> {
    use mozjpeg::ColorSpace;

    let corrupt = |e: std::io::Error| DecodeError::Corrupt(e.to_string());
    let decoder = mozjpeg::Decompress::new_mem(bytes).map_err(corrupt)?;
    if matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Ok(None);
    }
    if decoder.size() != (width as usize, height as usize) {
        return Err(DecodeError::Corrupt("it states two sizes".to_owned()));
    }
    let mut image = RgbImage::new(width, height);
    decoder.rgb().map_err(corrupt)?.read_scanlines_into(image.as_mut()).map_err(corrupt)?;
    Ok(Some(image))
}

/// Scans that a progressive JPEG may have. Encoders write ten or so; each costs a pass over all pixels, however few
/// bytes it has.
const MAX_JPEG_SCANS: usize = 64;
/// The same of a large picture, one of more than [`LARGE_PIXELS`].
const MAX_LARGE_JPEG_SCANS: usize = 20;
/// Pixels from which a pass over all of them is expensive.
const LARGE_PIXELS: u64 = 4_000_000;

/// The end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JpegEnd {
    /// Not a JPEG.
    NoJpeg,
    /// With the end marker, whatever follows that.
    Marker,
    /// In the data of a scan that may be the last one.
    Missing {
        /// The restart marker that would follow the data so far, where there are any.
        next_restart: Option<u8>,
    },
}

/// Follows the marker segments and scans of a JPEG to its end marker (ITU-T T.81, annex B). Fails where the marker is missing
/// and so are scans.
///
/// The decoders fill the rest of a truncated picture with grey; a face in it would be stored as a worse face.
fn jpeg_end(bytes: &[u8]) -> Result<JpegEnd, &'static str> {
    const RESTART: std::ops::RangeInclusive<u8> = 0xd0..=0xd7;
    let early = "the JPEG ends before its end marker";
    if !bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        return Ok(JpegEnd::NoJpeg);
    }
    let mut scans = Scans::default();
    let mut rest = bytes;
    // Entropy-coded data holds 0xff only before 0x00, a restart marker or fill, so this finds the next marker from the
    // inside of a scan as well.
    while let Some((&marker, after)) =
        rest.iter().position(|&b| b == 0xff).and_then(|at| rest.get(at + 1..)).and_then(<[u8]>::split_first)
    {
        rest = after;
        match marker {
            0xd9 => return Ok(JpegEnd::Marker),
            // Fill: the marker is still to come.
            0xff => rest = bytes.get(bytes.len() - after.len() - 1..).unwrap_or_default(),
            // No segment follows: stuffing, TEM, restart markers, start of image.
            0x00 | 0x01 | 0xd8 => {}
            _ if RESTART.contains(&marker) => scans.restarts = scans.restarts.wrapping_add(1),
            _ => {
                let [high, low] = *after.first_chunk().ok_or(early)?;
                let length = usize::from(u16::from_be_bytes([high, low])).max(2);
                let segment = after.get(2..length).ok_or(early)?;
                rest = after.get(length..).ok_or(early)?;
                scans.segment(marker, segment)?;
            }
        }
    }
    if !scans.cover_all_coefficients() {
        return Err(early);
    }
    let next_restart = (scans.restart_interval > 0).then(|| RESTART.start() + scans.restarts % 8);
    Ok(JpegEnd::Missing { next_restart })
}

/// The scans of a JPEG, as its segments describe them.
#[derive(Default)]
struct Scans {
    count: usize,
    /// Of the largest frame header.
    pixels: u64,
    progressive: bool,
    /// Per component of the frame: its id, and for each coefficient of a block the number of bits that are still missing;
    /// [`NO_SCAN_YET`] before its first scan.
    components: Vec<(u8, [u8; 64])>,
    restart_interval: u16,
    /// Restart markers since the last scan began.
    restarts: u8,
}

/// More bits than a coefficient has.
const NO_SCAN_YET: u8 = u8::MAX;

impl Scans {
    fn segment(&mut self, marker: u8, segment: &[u8]) -> Result<(), &'static str> {
        match marker {
            // Start of frame: precision, height, width, components of three bytes each.
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                self.progressive = matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                if let Some(&[high, low, wide_high, wide_low]) = segment.get(1..5) {
                    let side = |high, low| u64::from(u16::from_be_bytes([high, low]));
                    self.pixels = self.pixels.max(side(high, low) * side(wide_high, wide_low));
                }
                let ids = segment.get(6..).unwrap_or_default().chunks(3).filter_map(|c| c.first());
                self.components = ids.map(|&id| (id, [NO_SCAN_YET; 64])).collect();
            }
            0xdd => {
                self.restart_interval = segment.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
            }
            // Start of scan: the number of its components, two bytes each of them, which coefficients, which bits.
            0xda => {
                self.count += 1;
                self.restarts = 0;
                if self.count > MAX_JPEG_SCANS {
                    return Err("the JPEG has more than 64 scans");
                }
                if self.count > MAX_LARGE_JPEG_SCANS && self.pixels > LARGE_PIXELS {
                    return Err("the JPEG has more than 20 scans and more than 4 million pixels");
                }
                let (&count, after) = segment.split_first().ok_or("the JPEG has an empty scan")?;
                let (ids, after) = after
                    .split_at_checked(usize::from(count) * 2)
                    .ok_or("the JPEG has a scan of more components than it names")?;
                let (first, last, bits) = match (self.progressive, after) {
                    (true, &[first, last, bits, ..]) => (usize::from(first), usize::from(last), bits & 0x0f),
                    _ => (0, 63, 0),
                };
                for id in ids.iter().step_by(2) {
                    let component = self.components.iter_mut().find(|(component, _)| component == id);
                    let coefficients = component.and_then(|(_, left)| left.get_mut(first..=last));
                    coefficients.into_iter().flatten().for_each(|left| *left = bits);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns whether the scans, including an unfinished last one, cover all bits of all coefficients.
    fn cover_all_coefficients(&self) -> bool {
        !self.components.is_empty()
            && self.components.iter().all(|(_, left)| left.iter().all(|&bits| bits == 0))
    }
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

    use super::*;

    /// Returns a PNG of one pixel with a colour profile of this many zeros.
    fn png_with_profile(bytes: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = PngEncoder::new(&mut file);
        encoder.set_icc_profile(vec![0; bytes]).unwrap();
        encoder.write_image(&[1, 2, 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
        file
    }

    #[test]
    fn a_colour_profile_that_unpacks_to_a_multiple_of_its_file_is_left_out() {
        let profile = |file: &[u8]| {
            let (mut decoder, _) = open(file).unwrap();
            decoder.icc_profile().unwrap().map(|profile| profile.len())
        };
        let usual = 3 * 1024 * 1024;
        assert_eq!(profile(&png_with_profile(usual)), Some(usual));
        let bomb = png_with_profile(32 * 1024 * 1024);
        assert!(bomb.len() < 1024 * 1024, "{} bytes", bomb.len());
        assert_eq!(profile(&bomb), None);
        assert_eq!(decode_image(&bomb, &DecodeLimits::default()).unwrap().as_raw(), &[1, 2, 3]);
    }
}
