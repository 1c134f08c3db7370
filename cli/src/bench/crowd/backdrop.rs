//! The backdrop of a crowd: sky, a row of houses, a pavement and sensor noise, with nothing that resembles a face.

use image::{Rgb, RgbImage, imageops};

use crate::seeded_rng::SeededRng;

/// Number of houses.
const HOUSES: u32 = 8;
/// Rows of windows per house, and windows per row.
const STOREYS: u32 = 4;
const WINDOWS: u32 = 3;

/// Lens blur (sigma), pixels in a frame of 1080 lines.
const BLUR: f32 = 1.2;
/// Amplitude of the sensor noise, levels.
const NOISE: i16 = 5;

pub fn paint([width, height]: [u32; 2], rng: &mut SeededRng) -> RgbImage {
    let mut walls = [[0_u8; 3]; HOUSES as usize];
    for channel in walls.iter_mut().flatten() {
        *channel = 90 + rng.byte() % 80;
    }
    let eaves = height / 12;
    let ground = height * 2 / 3;
    let house_width = width.div_ceil(HOUSES);
    let sharp = RgbImage::from_fn(width, height, |x, y| {
        if y < eaves {
            Rgb([176, 190, 205])
        } else if y < ground {
            let wall = usize::try_from(x / house_width).ok().and_then(|house| walls.get(house));
            let wall = wall.copied().unwrap_or_default();
            let inside = [x % house_width, y - eaves];
            Rgb(if is_window(inside, [house_width, ground - eaves]) { wall.map(darken) } else { wall })
        } else {
            pavement([x, y - ground], [width, height - ground])
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "lines of a frame are far below 2^24")]
    let mut scene = imageops::blur(&sharp, (BLUR * height as f32 / 1080.0).max(0.3));
    for pixel in scene.pixels_mut() {
        let noise = i16::from(rng.byte()) % (2 * NOISE + 1) - NOISE;
        pixel.0 =
            pixel.0.map(|level| u8::try_from((i16::from(level) + noise).clamp(0, 255)).unwrap_or(level));
    }
    scene
}

fn is_window([x, y]: [u32; 2], [width, height]: [u32; 2]) -> bool {
    // One cell per window, with glass in its centre.
    let glass = |at: u32, whole: u32, cells: u32, from: u32, to: u32| {
        let cell = (whole / cells).max(1);
        (cell * from / 10..cell * to / 10).contains(&(at % cell))
    };
    glass(x, width, WINDOWS, 2, 8) && glass(y, height, STOREYS, 3, 9)
}

fn darken(level: u8) -> u8 {
    level / 9 * 4
}

/// Returns the colour of slabs with joints that run towards a vanishing point behind the houses.
fn pavement([x, y]: [u32; 2], [width, height]: [u32; 2]) -> Rgb<u8> {
    let near = f64::from(y) / f64::from(height.max(1));
    let side = (f64::from(x) - f64::from(width) / 2.0) / f64::from(width) / (1.0 + 2.0 * near);
    let joint = (side * 40.0).rem_euclid(1.0) < 0.03;
    Rgb(if joint { [104, 102, 99] } else { [122, 120, 116] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backdrop_has_sky_and_pavement_and_depends_on_the_seed() {
        let paint = |seed| super::paint([320, 180], &mut SeededRng::new(seed, 0));
        let scene = paint(1);
        let near = |x: u32, y: u32, color: [u8; 3]| {
            scene.get_pixel(x, y).0.iter().zip(color).all(|(a, b)| a.abs_diff(b) <= 12)
        };
        assert!(near(160, 4, [176, 190, 205]), "sky");
        assert!(near(4, 176, [122, 120, 116]) || near(8, 176, [122, 120, 116]), "pavement");
        assert_eq!(scene, paint(1));
        assert_ne!(scene, paint(2));
    }
}
