//! Face alignment by five landmarks, as MobileFaceNet and dlib's ResNet were trained with.

use image::RgbImage;

use crate::{Face, resample};

/// Side of the aligned face in pixels.
pub const ALIGNED_SIDE: u32 = 112;

/// Positions of the landmarks of [`Face`] in the aligned face, `[x, y]` in pixels: ArcFace's 112x112 template
/// (Deng et al. 2019).
pub const TEMPLATE: [[f64; 2]; 5] =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// Aligns the face to a 112x112 crop by the least-squares similarity transform of its landmarks to [`TEMPLATE`]; black beyond
/// the edges of the image, and all black where the landmarks coincide.
pub fn align(image: &RgbImage, face: &Face) -> RgbImage {
    align_to(image, face, &TEMPLATE, ALIGNED_SIDE)
}

/// Aligns as [`align`] does, to another template in a square of `side` pixels.
pub fn align_to(image: &RgbImage, face: &Face, template: &[[f64; 2]; 5], side: u32) -> RgbImage {
    let landmarks = face.landmarks.map(|p| p.map(f64::from));
    match similarity(template, &landmarks) {
        Some(transform) => resample::warp(image, &transform, side),
        None => RgbImage::new(side, side),
    }
}

/// Returns the affine transform from the aligned face back into the image: the inverse of the least-squares similarity that
/// takes `landmarks` to `template` (Umeyama 1991, in two dimensions, where the singular value decomposition has this
/// closed form: with points as complex numbers, the factor is `sum(conj(from) to) / sum(|from|^2)`).
///
/// `None` where no such transform exists.
fn similarity(template: &[[f64; 2]; 5], landmarks: &[[f64; 2]; 5]) -> Option<[[f64; 3]; 2]> {
    let mean = |points: &[[f64; 2]; 5]| {
        let n = 5.0;
        [points.iter().map(|p| p[0]).sum::<f64>() / n, points.iter().map(|p| p[1]).sum::<f64>() / n]
    };
    let [from_x, from_y] = mean(landmarks);
    let [to_x, to_y] = mean(template);
    let (mut real, mut imaginary, mut spread) = (0.0, 0.0, 0.0);
    for ([lx, ly], [tx, ty]) in landmarks.iter().zip(template) {
        let (lx, ly, tx, ty) = (lx - from_x, ly - from_y, tx - to_x, ty - to_y);
        real += lx * tx + ly * ty;
        imaginary += lx * ty - ly * tx;
        spread += lx * lx + ly * ly;
    }
    // The forward transform multiplies by (real + i imaginary) / spread; its inverse by the reciprocal.
    let norm = real * real + imaginary * imaginary;
    let (cos, sin) = (real * spread / norm, -imaginary * spread / norm);
    let inverse =
        [[cos, -sin, from_x - cos * to_x + sin * to_y], [sin, cos, from_y - sin * to_x - cos * to_y]];
    inverse.iter().flatten().all(|v| v.is_finite()).then_some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BoundingBox;

    fn face(landmarks: [[f32; 2]; 5]) -> Face {
        let bounding_box = BoundingBox { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 };
        Face { bounding_box, confidence: 1.0, landmarks }
    }

    #[test]
    fn a_rotated_scaled_and_shifted_template_is_recovered() {
        let (scale, angle) = (2.5f64, 0.4f64);
        let (cos, sin) = (scale * angle.cos(), scale * angle.sin());
        let moved = TEMPLATE.map(|[x, y]| [cos * x - sin * y + 30.0, sin * x + cos * y - 12.0]);
        let found = similarity(&TEMPLATE, &moved).unwrap();
        let expected = [[cos, -sin, 30.0], [sin, cos, -12.0]];
        for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f - e).abs() < 1e-9, "{found:?}");
        }
    }

    #[test]
    fn aligning_an_aligned_face_changes_nothing() {
        let image = RgbImage::from_fn(112, 112, |x, y| image::Rgb([u8::try_from(x + y).unwrap(), 3, 200]));
        let crop = align(
            &image,
            &face(TEMPLATE.map(|[x, y]| {
                #[expect(clippy::cast_possible_truncation, reason = "single precision is what a face holds")]
                [x as f32, y as f32]
            })),
        );
        let worst = crop.as_raw().iter().zip(image.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "{worst:?}");
    }

    #[test]
    fn landmarks_in_one_point_give_a_black_crop_rather_than_a_panic() {
        let image = RgbImage::from_pixel(50, 50, image::Rgb([255; 3]));
        assert!(align(&image, &face([[20.0, 20.0]; 5])).as_raw().iter().all(|&v| v == 0));
        assert!(align(&image, &face([[f32::NAN; 2]; 5])).as_raw().iter().all(|&v| v == 0));
    }
}
