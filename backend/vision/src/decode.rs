//! An uploaded picture's bytes to upright RGB pixels, within limits that hold before anything large is allocated.

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, error::LimitErrorKind,
};

/// What a picture may measure at most.
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

/// Why the bytes did not become a picture. All of these are the sender's mistakes.
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
    /// Not one of the formats that are read.
    #[error("the image is none of JPEG, PNG, WebP, BMP and GIF")]
    UnknownFormat,
    /// Begins as one of the formats, and goes wrong.
    #[error("the image cannot be decoded: {0}")]
    Corrupt(String),
}

/// Room for a decoder's own buffers (rows, tables, a palette) beside the pixels.
const DECODER_OVERHEAD: u64 = 64 * 1024 * 1024;
/// 16-bit RGBA, the widest pixel that a decoder hands out.
const MAX_BYTES_PER_PIXEL: u64 = 8;

/// Decodes JPEG, PNG, WebP, BMP or GIF (its first frame), told apart by their content, and turns the picture upright
/// by its EXIF orientation.
///
/// Transparency is dropped, 16 bits a channel become 8, CMYK and grey become RGB.
///
/// # Errors
///
/// [`DecodeError`]. Bytes and pixels are checked before pixels are allocated; a file that ends early is
/// [`DecodeError::Corrupt`], never a picture with a grey remainder.
pub fn decode_image(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len(), max: limits.max_bytes });
    }
    // libjpeg reports what it cannot go on from by unwinding, with the reason as a text; and should a decoder written
    // in Rust panic on hostile bytes, that must not take a worker thread with it.
    catch_unwind(AssertUnwindSafe(|| decode(bytes, limits))).unwrap_or_else(|reason| {
        let reason =
            reason.downcast::<String>().map_or_else(|_| "the decoder gave up".to_owned(), |text| *text);
        Err(DecodeError::Corrupt(reason))
    })
}

fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DecodeError::Corrupt(e.to_string()))?;
    let Some(format) = reader.format().filter(ImageFormat::reading_enabled) else {
        return Err(DecodeError::UnknownFormat);
    };
    if format == ImageFormat::Jpeg {
        check_jpeg_segments(bytes).map_err(|reason| DecodeError::Corrupt(reason.to_owned()))?;
    }
    let mut decoder = reader.into_decoder().map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    let too_many_pixels = DecodeError::TooManyPixels { width, height, max: limits.max_pixels };
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(too_many_pixels);
    }
    let mut allocation = Limits::no_limits();
    allocation.max_alloc =
        Some(limits.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL).saturating_add(DECODER_OVERHEAD));
    decoder.set_limits(allocation).map_err(refuse)?;
    // Damaged metadata is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let jpeg = if format == ImageFormat::Jpeg { decode_jpeg(bytes, (width, height))? } else { None };
    let mut image = match jpeg {
        Some(pixels) => DynamicImage::ImageRgb8(pixels),
        None => DynamicImage::from_decoder(decoder).map_err(refuse)?,
    };
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn refuse(error: ImageError) -> DecodeError {
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

/// Decodes a JPEG exactly as libjpeg-turbo does, and with it Pillow, OpenCV and browsers.
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

/// Follows the marker segments and scans of a JPEG to its end marker (ITU-T T.81, annex B), and says what is wrong
/// where that is not reached.
///
/// The decoders fill the rest of a truncated picture with grey; a face in it would be stored as a worse face.
fn check_jpeg_segments(bytes: &[u8]) -> Result<(), &'static str> {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let early = || "the JPEG ends before its end marker";
    let mut scans = 0;
    let mut rest = bytes;
    loop {
        // Entropy-coded data holds 0xff only before 0x00, a restart marker or fill, so this finds the next marker
        // from the inside of a scan as well.
        let at = rest.iter().position(|&b| b == 0xff).ok_or_else(early)?;
        let (&marker, after) = rest.get(at + 1..).and_then(<[u8]>::split_first).ok_or_else(early)?;
        rest = after;
        match marker {
            END_OF_IMAGE => return Ok(()),
            // Fill: the marker is still to come.
            0xff => rest = bytes.get(bytes.len() - after.len() - 1..).unwrap_or_default(),
            // No segment follows: stuffing, TEM, restart markers, start of image.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let [high, low] = *after.first_chunk().ok_or_else(early)?;
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = after.get(length.max(2)..).ok_or_else(early)?;
                scans += usize::from(marker == START_OF_SCAN);
                if scans > MAX_JPEG_SCANS {
                    return Err("the JPEG has more than 64 scans");
                }
            }
        }
    }
}
