//! The thumbnails of a report: pixelated beyond recognition unless requested otherwise.

use std::io::Cursor;

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{
    ImageFormat,
    imageops::{self, FilterType},
};

/// How faces are shown in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Thumbnails {
    /// Pixelated beyond recognition
    #[default]
    Pixelated,
    /// As they were uploaded
    Clear,
}

/// Blocks on the longer side of a crop; the face itself has about six.
const BLOCKS: u32 = 9;

/// Side of a block, pixels.
const BLOCK: u32 = 14;

/// Returns a thumbnail as a `data:` URL; none if the crop cannot be decoded.
pub fn data_address(jpeg: &[u8], thumbnails: Thumbnails) -> Option<String> {
    let picture = image::load_from_memory(jpeg).ok()?.to_rgb8();
    if thumbnails == Thumbnails::Clear {
        return Some(format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg)));
    }
    let (width, height) = picture.dimensions();
    let longer = width.max(height).max(1);
    let blocks = |side: u32| (side * BLOCKS).div_ceil(longer).max(1);
    let (across, down) = (blocks(width), blocks(height));
    // Re-encoded from the block colours: the file must not contain the hidden details.
    let small = imageops::resize(&picture, across, down, FilterType::Triangle);
    let large = imageops::resize(&small, across * BLOCK, down * BLOCK, FilterType::Nearest);
    let mut png = Cursor::new(Vec::new());
    large.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png.into_inner())))
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    fn noise(width: u32, height: u32) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x * 7 + y * 13, x * y, x ^ y].map(|value| value.to_le_bytes()[0]))
        });
        let mut jpeg = Cursor::new(Vec::new());
        picture.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
        jpeg.into_inner()
    }

    #[test]
    fn a_pixelated_thumbnail_contains_only_its_blocks() {
        for (width, height) in [(150, 120), (40, 150), (3, 2)] {
            let address = data_address(&noise(width, height), Thumbnails::Pixelated).unwrap();
            let png =
                BASE64_STANDARD.decode(address.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
            let picture = image::load_from_memory(&png).unwrap().to_rgb8();
            assert_eq!(picture.width().max(picture.height()), BLOCKS * BLOCK);
            for (x, y, colour) in picture.enumerate_pixels() {
                assert_eq!(colour, picture.get_pixel(x - x % BLOCK, y - y % BLOCK), "{x} {y}");
            }
        }
    }

    #[test]
    fn a_clear_thumbnail_is_the_uploaded_crop_and_a_damaged_one_is_none() {
        let jpeg = noise(60, 60);
        let address = data_address(&jpeg, Thumbnails::Clear).unwrap();
        let encoded = address.strip_prefix("data:image/jpeg;base64,").unwrap();
        assert_eq!(BASE64_STANDARD.decode(encoded).unwrap(), jpeg);
        assert_eq!(data_address(b"\xff\xd8 no picture", Thumbnails::Clear), None);
    }
}
