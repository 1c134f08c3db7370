//! Converts HEIC, the format of phones, to JPEG, since the backend does not read it.

use std::panic::catch_unwind;

use facepipe_vision::DecodeLimits;
use image::codecs::jpeg::JpegEncoder;

/// JPEG quality without effect on recognition; 12 megapixels stay below the backend's limit of 10 MiB.
const QUALITY: u8 = 95;

/// Decodes the primary picture upright in sRGB and encodes it. Deterministic, so that the backend recognises duplicates.
///
/// # Errors
/// The picture is damaged, too large, or of a kind that the decoder does not read.
pub fn to_jpeg(heic: &[u8]) -> Result<Vec<u8>, String> {
    let options = heifer::Options { max_threads: 1, max_pixels: DecodeLimits::default().max_pixels };
    // Untrusted input: a panic of the decoder must not affect other pictures.
    let picture = catch_unwind(|| heifer::decode_srgb_rgba8(heic, &options))
        .map_err(|_| "HEIC that cannot be decoded".to_owned())?
        .map_err(|error| format!("HEIC that cannot be decoded ({error}); as JPEG it would be taken"))?;
    let rgb: Vec<u8> = picture.data.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode(&rgb, picture.width, picture.height, image::ExtendedColorType::Rgb8)
        .map_err(|error| format!("HEIC that cannot be sent as JPEG: {error}"))?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use facepipe_vision::decode_image;

    use super::*;

    #[test]
    fn heic_becomes_jpeg_that_the_backend_reads() {
        let (width, height) = (96_u32, 64_u32);
        let rgb: Vec<u8> = (0..height)
            .flat_map(|_| (0..width).flat_map(|x| if x < width / 2 { [200, 40, 40] } else { [40, 40, 200] }))
            .collect();
        let heic = heifer::encode_rgb8(width, height, &rgb, &heifer::EncodeOptions::default()).expect("HEIC");
        let jpeg = to_jpeg(&heic).expect("JPEG");
        assert_eq!(jpeg, to_jpeg(&heic).expect("JPEG"), "the same each time");
        let picture = decode_image(&jpeg, &DecodeLimits::default()).expect("a picture");
        assert_eq!(picture.dimensions(), (width, height));
        let near = |at: (u32, u32), color: [u8; 3]| {
            picture.get_pixel(at.0, at.1).0.iter().zip(color).all(|(a, b)| a.abs_diff(b) < 12)
        };
        assert!(near((10, 30), [200, 40, 40]) && near((90, 30), [40, 40, 200]));
        let refused = to_jpeg(&heic[..heic.len() / 2]).expect_err("cut off");
        assert!(refused.contains("HEIC that cannot be decoded"), "{refused}");
    }
}
