//! Decoding of uploaded pictures: formats, limits, orientation, damage.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and knows its own numbers"
)]

use std::io::Cursor;

use facepipe_test_support::require;
use facepipe_vision::{
    DecodeError, DecodeLimits, DecodeNote, decode_image, decode_with_notes, pixels_to_decode,
};
use image::{
    DynamicImage, ExtendedColorType, Frame, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::{gif::GifEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};

/// Returns a picture: left half red, right half blue, with a green top left corner, so that every turn shows.
fn sample() -> RgbImage {
    RgbImage::from_fn(32, 16, |x, y| match (x, y) {
        (0..8, 0..8) => Rgb([0, 255, 0]),
        (0..16, _) => Rgb([255, 0, 0]),
        _ => Rgb([0, 0, 255]),
    })
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    DynamicImage::ImageRgb8(sample()).write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_image(bytes, &DecodeLimits::default())
}

fn assert_near(image: &RgbImage, at: (u32, u32), expected: [u8; 3], tolerance: u8) {
    let found = image.get_pixel(at.0, at.1).0;
    let worst = found.iter().zip(expected).map(|(f, e)| f.abs_diff(e)).max().unwrap();
    assert!(worst <= tolerance, "{found:?} at {at:?} instead of {expected:?}");
}

const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];

#[test]
fn formats_are_recognised_by_content() {
    for format in FORMATS {
        let image = decode(&encoded(format)).unwrap_or_else(|e| panic!("{format:?}: {e}"));
        assert_eq!(image.dimensions(), (32, 16), "{format:?}");
        assert_near(&image, (3, 3), [0, 255, 0], 12);
        assert_near(&image, (10, 12), [255, 0, 0], 12);
        assert_near(&image, (28, 8), [0, 0, 255], 12);
    }
}

#[test]
fn an_empty_file_is_rejected_as_empty() {
    assert_eq!(decode(b""), Err(DecodeError::Empty));
}

#[test]
fn files_that_are_not_pictures_are_rejected_as_unknown() {
    for bytes in [&b"hello"[..], b"%PDF-1.4 ...", b"\0\0\0\x20ftypheic", b"II*\0\x08\0\0\0", b"<svg/>"] {
        assert_eq!(decode(bytes), Err(DecodeError::UnknownFormat), "{bytes:?}");
    }
}

#[test]
fn truncated_files_are_rejected() {
    let sizes = |format| encoded(format).len();
    for format in FORMATS {
        let whole = encoded(format);
        for end in [12, whole.len() / 4, whole.len() / 2, whole.len() * 3 / 4] {
            match decode(&whole[..end.min(sizes(format) - 1)]) {
                Err(DecodeError::Corrupt(_)) => {}
                other => panic!("{format:?} of {end} bytes of {}: {other:?}", whole.len()),
            }
        }
    }
}

/// Returns JPEGs of a noisy picture in which every bit shows: sequential and progressive, with and without restart intervals,
/// grey, and with coarser colours.
fn jpegs() -> Vec<(String, Vec<u8>)> {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    let (width, height) = (75_u16, 52_u16);
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height) * 3).map(|_| noise()).collect();
    let mut made = Vec::new();
    for progressive in [false, true] {
        for restart in [0, 1, 4] {
            for (sampling, colour) in [
                (SamplingFactor::R_4_4_4, ColorType::Rgb),
                (SamplingFactor::R_4_2_0, ColorType::Rgb),
                (SamplingFactor::R_4_4_4, ColorType::Luma),
            ] {
                let mut bytes = Vec::new();
                let mut encoder = Encoder::new(&mut bytes, 90);
                encoder.set_progressive(progressive);
                encoder.set_sampling_factor(sampling);
                if restart > 0 {
                    encoder.set_restart_interval(restart);
                }
                let channels = if colour == ColorType::Luma { 1 } else { 3 };
                let pixels = &pixels[..usize::from(width) * usize::from(height) * channels];
                encoder.encode(pixels, width, height, colour).unwrap();
                made.push((
                    format!("progressive {progressive}, restart {restart}, {sampling:?} {colour:?}"),
                    bytes,
                ));
            }
        }
    }
    made
}

#[test]
fn a_jpeg_that_lacks_only_its_end_marker_is_decoded_with_a_note() {
    for (kind, jpeg) in jpegs() {
        assert_eq!(jpeg[jpeg.len() - 2..], [0xff, 0xd9], "{kind}");
        let whole = decode_with_notes(&jpeg, &DecodeLimits::default()).unwrap();
        assert_eq!(whole.notes, [], "{kind}");
        // Without the marker, and with its first half.
        for lacking in [2, 1] {
            let decoded = decode_with_notes(&jpeg[..jpeg.len() - lacking], &DecodeLimits::default());
            let decoded = decoded.unwrap_or_else(|error| panic!("{kind} without {lacking} bytes: {error}"));
            assert_eq!(decoded.notes, [DecodeNote::EndMissing], "{kind}");
            assert!(decoded.image == whole.image, "{kind}");
        }
    }
}

#[test]
fn a_jpeg_that_lacks_pixels_is_rejected_at_any_length() {
    for (kind, jpeg) in jpegs() {
        // The last bytes hold the last blocks; further ahead every place is like every other.
        let ends = (3..80).chain((80..jpeg.len()).step_by(61));
        for lacking in ends.filter(|lacking| *lacking < jpeg.len() - 4) {
            match decode(&jpeg[..jpeg.len() - lacking]) {
                Err(DecodeError::Corrupt(reason)) => {
                    assert!(reason.contains("ends before"), "{kind}: {reason}")
                }
                Ok(_) => panic!("{kind} without {lacking} of {} bytes is decoded", jpeg.len()),
                Err(other) => panic!("{kind} without {lacking} bytes: {other}"),
            }
        }
    }
}

#[test]
fn bytes_after_the_end_of_a_jpeg_are_ignored() {
    let mut jpeg = encoded(ImageFormat::Jpeg);
    jpeg.extend(b"\xff\xda motion picture \xff");
    assert_eq!(decode(&jpeg).unwrap().dimensions(), (32, 16));
}

#[test]
fn bytes_and_pixels_are_limited() {
    let png = encoded(ImageFormat::Png);
    let limits = DecodeLimits { max_bytes: png.len() - 1, ..DecodeLimits::default() };
    let too_many = DecodeError::TooManyBytes { bytes: png.len(), max: png.len() - 1 };
    assert_eq!(decode_image(&png, &limits), Err(too_many));
    let exact = DecodeLimits { max_bytes: png.len(), max_pixels: 32 * 16 };
    assert!(decode_image(&png, &exact).is_ok());
    for format in FORMATS {
        let limits = DecodeLimits { max_pixels: 32 * 16 - 1, ..DecodeLimits::default() };
        let too_many = DecodeError::TooManyPixels { width: 32, height: 16, max: 511 };
        assert_eq!(decode_image(&encoded(format), &limits), Err(too_many), "{format:?}");
    }
    assert_eq!(DecodeLimits::default(), DecodeLimits { max_bytes: 10_485_760, max_pixels: 50_000_000 });
}

/// Returns the CRC-32 as PNG has it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}

#[test]
fn a_header_that_declares_billions_of_pixels_is_rejected_before_allocation() {
    let mut png = encoded(ImageFormat::Png);
    png[16..20].copy_from_slice(&200_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&200_000u32.to_be_bytes());
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    let expected = DecodeError::TooManyPixels { width: 200_000, height: 200_000, max: 50_000_000 };
    assert_eq!(decode(&png), Err(expected));

    let mut bmp = encoded(ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    assert!(matches!(decode(&bmp), Err(DecodeError::TooManyPixels { .. })), "{:?}", decode(&bmp).err());

    let mut gif = encoded(ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0xff; 4]);
    assert!(matches!(decode(&gif), Err(DecodeError::TooManyPixels { .. })), "{:?}", decode(&gif).err());
}

/// Returns EXIF with nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

#[test]
fn every_exif_orientation_is_applied() {
    // What a camera held that way would have stored; the inverse of what the decoder has to do.
    let upright = DynamicImage::ImageRgb8(sample());
    let stored = [
        upright.clone(),
        upright.fliph(),
        upright.rotate180(),
        upright.flipv(),
        upright.rotate90().fliph(),
        upright.rotate270(),
        upright.rotate270().fliph(),
        upright.rotate90(),
    ];
    for (orientation, stored) in (1..).zip(stored) {
        let stored = stored.into_rgb8();
        let (width, height) = stored.dimensions();
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&stored, width, height, ExtendedColorType::Rgb8).unwrap();
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&stored, width, height, ExtendedColorType::Rgb8).unwrap();
        let mut webp = Vec::new();
        let mut encoder = WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&stored, width, height, ExtendedColorType::Rgb8).unwrap();
        for bytes in [jpeg, png, webp] {
            let image = decode(&bytes).unwrap();
            assert_eq!(image.dimensions(), (32, 16), "orientation {orientation}");
            assert_near(&image, (3, 3), [0, 255, 0], 24);
            assert_near(&image, (4, 13), [255, 0, 0], 24);
            assert_near(&image, (28, 3), [0, 0, 255], 24);
        }
    }
}

#[test]
fn damaged_exif_is_ignored() {
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
    encoder.set_exif_metadata(b"II*\0\xff\xff\xff\xff".to_vec()).unwrap();
    encoder.write_image(&sample(), 32, 16, ExtendedColorType::Rgb8).unwrap();
    assert_eq!(decode(&jpeg).unwrap().dimensions(), (32, 16));
}

#[test]
fn a_cmyk_jpeg_is_converted_to_rgb() {
    // Full cyan absorbs red, and so on; no black.
    let ink = |rgb: [u8; 3]| [255 - rgb[0], 255 - rgb[1], 255 - rgb[2], 0];
    let image = sample();
    let cmyk: Vec<u8> = image.pixels().flat_map(|p| ink(p.0)).collect();
    for kind in [jpeg_encoder::ColorType::Cmyk, jpeg_encoder::ColorType::CmykAsYcck] {
        let mut jpeg = Vec::new();
        jpeg_encoder::Encoder::new(&mut jpeg, 95).encode(&cmyk, 32, 16, kind).unwrap();
        let image = decode(&jpeg).unwrap();
        assert_eq!(image.dimensions(), (32, 16));
        assert_near(&image, (3, 3), [0, 255, 0], 24);
        assert_near(&image, (10, 12), [255, 0, 0], 24);
        assert_near(&image, (28, 8), [0, 0, 255], 24);
    }
}

#[test]
fn a_progressive_and_a_grey_jpeg_are_read() {
    let image = sample();
    let mut jpeg = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 95);
    encoder.set_progressive(true);
    encoder.encode(&image, 32, 16, jpeg_encoder::ColorType::Rgb).unwrap();
    assert_near(&decode(&jpeg).unwrap(), (28, 8), [0, 0, 255], 24);
    assert!(matches!(decode(&jpeg[..jpeg.len() - 20]), Err(DecodeError::Corrupt(_))));

    let mut grey = Vec::new();
    let luma = DynamicImage::ImageRgb8(image).into_luma8();
    DynamicImage::ImageLuma8(luma.clone()).write_to(&mut Cursor::new(&mut grey), ImageFormat::Jpeg).unwrap();
    let level = luma.get_pixel(28, 8).0[0];
    assert_near(&decode(&grey).unwrap(), (28, 8), [level; 3], 12);
}

#[test]
fn a_jpeg_with_thousands_of_scans_is_rejected() {
    let mut jpeg = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 95);
    encoder.set_progressive(true);
    encoder.encode(&sample(), 32, 16, jpeg_encoder::ColorType::Rgb).unwrap();
    let scan = jpeg.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let end = jpeg.len() - 2;
    let last_scan = jpeg[scan..end].to_vec();
    let repeated = [&jpeg[..end], &last_scan.repeat(1000), &jpeg[end..]].concat();
    match decode(&repeated) {
        Err(DecodeError::Corrupt(reason)) => assert!(reason.contains("scans"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn decoded_photographs_match_the_reference() {
    // Sums of the red, green and blue levels, and the levels in the middle: libjpeg-turbo by way of Pillow 13.
    for (name, sums, middle) in [
        ("lfw10/Hugo_Chavez/Hugo_Chavez_0003.jpg", [9816246, 9049548, 8543987], [160, 104, 91]),
        ("scenes/crowd-10.jpg", [89377592, 82432074, 72471966], [44, 42, 29]),
        ("scenes/multiface.jpg", [91805599, 84554280, 84085219], [171, 77, 91]),
    ] {
        let image = decode(&std::fs::read(require!(name)).unwrap()).unwrap();
        let mut found = [0u64; 3];
        for pixel in image.pixels() {
            found.iter_mut().zip(pixel.0).for_each(|(sum, level)| *sum += u64::from(level));
        }
        assert_eq!(found, sums, "{name}");
        assert_eq!(image.get_pixel(image.width() / 2, image.height() / 2).0, middle, "{name}");
    }
}

#[test]
fn the_first_frame_of_an_animation_is_decoded() {
    let mut gif = Vec::new();
    let mut encoder = GifEncoder::new(&mut gif);
    for color in [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]] {
        encoder.encode_frame(Frame::new(RgbaImage::from_pixel(20, 10, Rgba(color)))).unwrap();
    }
    drop(encoder);
    let image = decode(&gif).unwrap();
    assert_eq!(image.dimensions(), (20, 10));
    assert!(image.pixels().all(|p| p.0 == [255, 0, 0]));
}

#[test]
fn sixteen_bit_and_transparent_pictures_become_eight_bit_rgb() {
    let deep =
        image::ImageBuffer::from_fn(8, 4, |x, _| image::Rgb([u16::try_from(x).unwrap() * 8192, 65535, 0]));
    let mut png = Vec::new();
    DynamicImage::ImageRgb16(deep).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    let image = decode(&png).unwrap();
    for x in 0..8u8 {
        assert_near(&image, (x.into(), 1), [x * 32, 255, 0], 1);
    }
    let clear = RgbaImage::from_pixel(8, 4, Rgba([10, 200, 30, 0]));
    let mut png = Vec::new();
    DynamicImage::ImageRgba8(clear).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    assert!(decode(&png).unwrap().pixels().all(|p| p.0 == [10, 200, 30]));
}

#[test]
fn no_damage_to_a_file_makes_the_decoder_panic_or_exceed_its_limits() {
    let limits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 16 };
    for format in FORMATS {
        let whole = encoded(format);
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                if let Ok(image) = decode_image(&damaged, &limits) {
                    assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.max_pixels);
                }
            }
        }
    }
}

/// A GIF whose canvas has these sides and whose one frame has one pixel: 35 bytes.
fn gif_of_one_pixel(width: u16, height: u16) -> Vec<u8> {
    let [w, h] = [width, height].map(u16::to_le_bytes);
    let screen = [b"GIF89a", &w[..], &h[..], &[0x80, 0, 0], &[0; 6]].concat();
    let frame = [0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0];
    [&screen[..], &frame, &[2, 2, 0x44, 0x01, 0], b";"].concat()
}

/// A file with a RIFF header.
fn webp(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let chunk = |(name, data): &(&[u8; 4], &[u8])| {
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&name[..], &length, data, &[0][..data.len() % 2]].concat()
    };
    let chunks: Vec<u8> = chunks.iter().flat_map(chunk).collect();
    let length = u32::try_from(chunks.len() + 4).unwrap().to_le_bytes();
    [b"RIFF", &length[..], b"WEBP", &chunks].concat()
}

#[test]
fn pictures_of_many_pixels_and_hardly_any_data_are_rejected_by_their_header() {
    let limits = DecodeLimits::default();
    let gif = gif_of_one_pixel(7071, 7071);
    assert_eq!(gif.len(), 35);
    let too_small = DecodeError::FrameTooSmall { frame: [1, 1], canvas: [7071, 7071] };
    assert_eq!(pixels_to_decode(&gif, &limits), Err(too_small.clone()));
    assert_eq!(decode(&gif), Err(too_small));
    // A small canvas costs little.
    assert_eq!(pixels_to_decode(&gif_of_one_pixel(500, 500), &limits), Ok(250_000));

    let side = |length: u32| length.to_le_bytes()[..3].to_vec();
    let canvas = [vec![0x02, 0, 0, 0], side(7070), side(7070)].concat();
    let mut still = Vec::new();
    image::codecs::webp::WebPEncoder::new_lossless(&mut still)
        .encode(&[0; 3], 1, 1, image::ExtendedColorType::Rgb8)
        .unwrap();
    let frame = [side(0), side(0), side(0), side(0), vec![0; 4], still[12..].to_vec()].concat();
    let animation = webp(&[(b"VP8X", &canvas), (b"ANIM", &[0; 6]), (b"ANMF", &frame)]);
    let too_small = DecodeError::FrameTooSmall { frame: [1, 1], canvas: [7071, 7071] };
    assert_eq!(pixels_to_decode(&animation, &limits), Err(too_small));

    // One colour needs no data in a lossless WebP, and an RLE bitmap ends wherever it says so.
    let (width, height) = (7000_u32, 7000_u32);
    let bits = 0x2f | (u64::from(width - 1) << 8) | (u64::from(height - 1) << 22);
    let lossless = webp(&[(b"VP8L", &bits.to_le_bytes())]);
    let mut bitmap = encoded(ImageFormat::Bmp);
    bitmap[18..22].copy_from_slice(&width.to_le_bytes());
    bitmap[22..26].copy_from_slice(&height.to_le_bytes());
    // A JPEG that ends where its picture begins.
    let mut jpeg = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut jpeg, 90);
    encoder.encode(&sample(), 32, 16, jpeg_encoder::ColorType::Rgb).unwrap();
    let start = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[start + 5..start + 9].copy_from_slice(&[0x1b, 0x58, 0x1b, 0x58]);
    for picture in [lossless, bitmap, jpeg] {
        let too_few = DecodeError::TooFewBytes { bytes: picture.len(), width, height, min: 24_500 };
        assert_eq!(pixels_to_decode(&picture, &limits), Err(too_few.clone()));
        assert_eq!(decode(&picture), Err(too_few));
    }

    // A frame that is larger than its canvas costs its own pixels.
    let mut gif = gif_of_one_pixel(1, 1);
    gif[24..28].copy_from_slice(&[0xff; 4]);
    let too_many = DecodeError::TooManyPixels { width: 65_535, height: 65_535, max: 50_000_000 };
    assert_eq!(pixels_to_decode(&gif, &limits), Err(too_many));
}

#[test]
fn the_pixels_of_a_picture_are_known_without_decoding() {
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif]
    {
        assert_eq!(pixels_to_decode(&encoded(format), &DecodeLimits::default()), Ok(32 * 16), "{format:?}");
    }
    let black = image::GrayImage::new(3000, 2000);
    let mut png = std::io::Cursor::new(Vec::new());
    black.write_to(&mut png, ImageFormat::Png).unwrap();
    assert_eq!(pixels_to_decode(&png.into_inner(), &DecodeLimits::default()), Ok(6_000_000));
    assert_eq!(pixels_to_decode(b"", &DecodeLimits::default()), Err(DecodeError::Empty));
    assert_eq!(pixels_to_decode(b"text", &DecodeLimits::default()), Err(DecodeError::UnknownFormat));
}

#[test]
fn a_large_jpeg_has_fewer_scans() {
    let mut jpeg = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 95);
    encoder.set_progressive(true);
    let large =
        RgbImage::from_fn(2400, 1700, |x, y| Rgb([(x % 251) as u8, (y % 241) as u8, ((x * y) % 239) as u8]));
    encoder.encode(&large, 2400, 1700, jpeg_encoder::ColorType::Rgb).unwrap();
    assert!(decode(&jpeg).is_ok());
    let scan = jpeg.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let end = jpeg.len() - 2;
    let empty_scan = &jpeg[scan..scan + 12];
    let repeated = [&jpeg[..end], &empty_scan.repeat(20), &jpeg[end..]].concat();
    match decode(&repeated) {
        Err(DecodeError::Corrupt(reason)) => assert!(reason.contains("more than 20 scans"), "{reason}"),
        other => panic!("{:?}", other.map(|image| image.dimensions())),
    }
}
