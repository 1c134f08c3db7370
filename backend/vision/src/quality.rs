//! How well a face can be recognised: size, sharpness, pose, brightness and the detector's confidence. The components follow
//! ISO/IEC 29794-5 (facial image quality), the scales are our own.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{Face, align::TEMPLATE};

/// Widest crop that is measured as it is; a wider one is halved first, so that faces have about the same size.
const MAX_SIDE: u32 = 150;

/// The part of an embedder's crop that every crop fills with the face: left, top, right, bottom as shares of its side.
const MEASURED: [f32; 4] = [0.2, 0.25, 0.8, 0.9];

/// Depth of the nose's tip and of the corners of the mouth in front of the eyes, in distances between the eyes: rounded
/// averages of adult heads.
const NOSE_DEPTH: f64 = 0.45;
const MOUTH_DEPTH: f64 = 0.05;

/// The quality of a face for recognition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct FaceQuality {
    /// Shorter side of the bounding box, pixels of the image.
    pub size: f32,
    /// Variance of the Laplacian of the face's luma (0 to 255), measured on the embedder's crop, so that small, blurred and
    /// out-of-focus faces have low values.
    pub sharpness: f32,
    /// Rotation of the head to the side, degrees, positive to the right of the image; an estimate.
    pub yaw: f32,
    /// Rotation of the head up or down, degrees, positive upwards; an estimate.
    pub pitch: f32,
    /// Rotation of the head in the image, degrees, positive clockwise.
    pub roll: f32,
    /// Mean luma of the face, 0 (black) to 1 (white).
    pub brightness: f32,
    /// The detector's probability that it is a face, 0 to 1.
    pub detection_confidence: f32,
}

/// A component of [`FaceQuality`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QualityComponent {
    /// [`FaceQuality::size`].
    Size,
    /// [`FaceQuality::sharpness`].
    Sharpness,
    /// [`FaceQuality::yaw`] and [`FaceQuality::pitch`].
    Pose,
    /// [`FaceQuality::brightness`].
    Brightness,
    /// [`FaceQuality::detection_confidence`].
    DetectionConfidence,
}

impl FaceQuality {
    /// Measures a face. `crop` is the embedder's square crop of it.
    pub fn measure(face: &Face, crop: &RgbImage) -> Self {
        let bounds = face.bounding_box;
        let [yaw, pitch, roll] = pose(&face.landmarks);
        let (sharpness, brightness) = sharpness_and_brightness(crop);
        Self {
            size: bounds.width().min(bounds.height()),
            sharpness,
            yaw,
            pitch,
            roll,
            brightness,
            detection_confidence: face.confidence,
        }
    }

    /// Returns how far each component lets the face be recognised, 0 to 1. A roll does not matter: alignment undoes it.
    pub fn factors(&self) -> [(QualityComponent, f32); 5] {
        let frontal = self.yaw.to_radians().cos().max(0.0) * self.pitch.to_radians().cos().max(0.0);
        [
            (QualityComponent::Size, ramp(self.size, 0.0, 80.0)),
            (QualityComponent::Sharpness, self.sharpness / (self.sharpness + 20.0)),
            (QualityComponent::Pose, frontal),
            (
                QualityComponent::Brightness,
                ramp(self.brightness, 0.02, 0.25) * ramp(self.brightness, 1.0, 0.85),
            ),
            (QualityComponent::DetectionConfidence, ramp(self.detection_confidence, 0.5, 0.98)),
        ]
    }

    /// Returns the component that lowers [`Self::score`] most.
    pub fn weakest(&self) -> QualityComponent {
        let [first, rest @ ..] = self.factors();
        rest.into_iter().fold(first, |weakest, next| if next.1 < weakest.1 { next } else { weakest }).0
    }

    /// Returns how much the face counts among several of one person, 0 to 1: the product of [`Self::factors`].
    pub fn weight(&self) -> f32 {
        let product: f32 = self.factors().iter().map(|(_, factor)| factor).product();
        if product.is_finite() { product.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Returns the quality as one number, 0 (useless) to 100 (best), rounded: a hundred times [`Self::weight`].
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
    pub fn score(&self) -> u8 {
        (self.weight() * 100.0).round() as u8
    }
}

/// Returns where a value lies between the one that counts as 0 and the one that counts as 1.
fn ramp(value: f32, zero: f32, one: f32) -> f32 {
    ((value - zero) / (one - zero)).clamp(0.0, 1.0)
}

/// Estimates yaw, pitch and roll in degrees from the five landmarks: the least-squares pose under weak perspective of a head
/// whose landmarks lie at [`TEMPLATE`] when it faces the camera (POS: DeMenthon and Davis 1995, “Model-based object pose in 25
/// lines of code”). Zero where the landmarks coincide.
fn pose(landmarks: &[[f32; 2]; 5]) -> [f32; 3] {
    let eyes = TEMPLATE[1][0] - TEMPLATE[0][0];
    let depths = [0.0, 0.0, NOSE_DEPTH * eyes, MOUTH_DEPTH * eyes, MOUTH_DEPTH * eyes];
    let mut model = [[0.0; 3]; 5];
    for ((point, [x, y]), depth) in model.iter_mut().zip(TEMPLATE).zip(depths) {
        *point = [x, y, depth];
    }
    let model = centred(model);
    let image = centred(landmarks.map(|point| point.map(f64::from)));

    // The normal equations of model * axis = image, for x and y.
    let mut normal = [[0.0; 3]; 3];
    let mut sides = [[0.0; 3]; 2];
    for (point, seen) in model.iter().zip(&image) {
        for (row, &a) in normal.iter_mut().zip(point) {
            row.iter_mut().zip(point).for_each(|(sum, &b)| *sum += a * b);
        }
        for (side, &seen) in sides.iter_mut().zip(seen) {
            side.iter_mut().zip(point).for_each(|(sum, &a)| *sum += a * seen);
        }
    }
    let [across, down] = sides.map(|side| solve(&normal, &side));
    let scale = (length(&across) * length(&down)).sqrt();
    if !scale.is_normal() {
        return [0.0; 3];
    }
    // Where the head's axes point to in the image: the one from eye to eye, and the one out of the face. The head is turned
    // up or down first, then to the side, then in the image.
    let roll = down[0].atan2(across[0]);
    let (sin, cos) = roll.sin_cos();
    let [x, y] = [across[2] / scale, down[2] / scale];
    let [right, downwards] = [cos * x + sin * y, cos * y - sin * x];
    let pitch = (-downwards).clamp(-1.0, 1.0).asin();
    let yaw = (right / pitch.cos().max(1e-6)).clamp(-1.0, 1.0).asin();
    #[expect(clippy::cast_possible_truncation, reason = "angles are small")]
    [yaw, pitch, roll].map(|angle| angle.to_degrees() as f32)
}

fn centred<const N: usize>(points: [[f64; N]; 5]) -> [[f64; N]; 5] {
    let mut mean = [0.0; N];
    for point in &points {
        mean.iter_mut().zip(point).for_each(|(sum, value)| *sum += value / 5.0);
    }
    points.map(|mut point| {
        point.iter_mut().zip(mean).for_each(|(value, mean)| *value -= mean);
        point
    })
}

fn length(vector: &[f64; 3]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn cross([a, b, c]: [f64; 3], [d, e, f]: [f64; 3]) -> [f64; 3] {
    [b * f - c * e, c * d - a * f, a * e - b * d]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves a symmetric system of three equations by Cramer's rule.
fn solve(&[a, b, c]: &[[f64; 3]; 3], &side: &[f64; 3]) -> [f64; 3] {
    let determinant = dot(a, cross(b, c));
    [dot(side, cross(b, c)), dot(a, cross(side, c)), dot(a, cross(b, side))].map(|minor| minor / determinant)
}

/// Measures the inner part of a crop: variance of the Laplacian, and mean luma from 0 to 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "crops have at most some hundred pixels a side"
)]
fn sharpness_and_brightness(crop: &RgbImage) -> (f32, f32) {
    let halved;
    let crop = if crop.width() > MAX_SIDE {
        halved = image::imageops::thumbnail(crop, crop.width() / 2, crop.height() / 2);
        &halved
    } else {
        crop
    };
    let width = crop.width() as usize;
    let place = |share: f32, side: u32| (share * side as f32) as usize;
    let [left, top, right, bottom] = MEASURED;
    let columns = place(left, crop.width())..place(right, crop.width());
    let rows = place(top, crop.height())..place(bottom, crop.height());
    let luma: Vec<Vec<i32>> = crop
        .as_raw()
        .chunks_exact(width.max(1) * 3)
        .take(rows.end)
        .skip(rows.start)
        .map(|row| {
            let (pixels, _) = row.as_chunks::<3>();
            let pixels = pixels.get(columns.clone()).unwrap_or_default();
            pixels
                .iter()
                .map(|&[r, g, b]| (77 * i32::from(r) + 150 * i32::from(g) + 29 * i32::from(b)) >> 8)
                .collect()
        })
        .collect();
    let pixels = luma.iter().map(Vec::len).sum::<usize>();
    let brightness = luma.iter().flatten().map(|&value| i64::from(value)).sum::<i64>();
    let (mut sum, mut squares, mut count) = (0_i64, 0_i64, 0_i64);
    for rows in luma.windows(3) {
        let [above, row, below] = rows else { continue };
        for ((above, row), below) in above.windows(3).zip(row.windows(3)).zip(below.windows(3)) {
            let ([_, up, _], [before, at, after], [_, down, _]) = (above, row, below) else { continue };
            let laplacian = i64::from(up + down + before + after - 4 * at);
            sum += laplacian;
            squares += laplacian * laplacian;
            count += 1;
        }
    }
    let count = count.max(1) as f64;
    let mean = sum as f64 / count;
    let variance = squares as f64 / count - mean * mean;
    (variance.max(0.0) as f32, brightness as f32 / (255.0 * pixels.max(1) as f32))
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "coordinates and colours of made faces are small"
)]
mod tests {
    use image::{Rgb, imageops};

    use super::*;
    use crate::BoundingBox;

    /// Returns the landmarks of a head with this pose, seen from afar at twice the template's size.
    fn turned(yaw: f64, pitch: f64, roll: f64) -> [[f32; 2]; 5] {
        let eyes = TEMPLATE[1][0] - TEMPLATE[0][0];
        let depths = [0.0, 0.0, NOSE_DEPTH * eyes, MOUTH_DEPTH * eyes, MOUTH_DEPTH * eyes];
        let [(sy, cy), (sp, cp), (sr, cr)] = [yaw, pitch, roll].map(|angle| angle.to_radians().sin_cos());
        let mut landmarks = [[0.0; 2]; 5];
        for ((landmark, [x, y]), z) in landmarks.iter_mut().zip(TEMPLATE).zip(depths) {
            // Upwards is towards smaller y, and z points to the camera.
            let (y, z) = (y * cp - z * sp, y * sp + z * cp);
            let x = x * cy + z * sy;
            *landmark = [(2.0 * (x * cr - y * sr) + 300.0) as f32, (2.0 * (x * sr + y * cr) + 40.0) as f32];
        }
        landmarks
    }

    fn face(side: f32, confidence: f32, landmarks: [[f32; 2]; 5]) -> Face {
        let bounding_box = BoundingBox { left: 10.0, top: 10.0, right: 10.0 + side, bottom: 15.0 + side };
        Face { bounding_box, confidence, landmarks }
    }

    /// Returns a crop with stripes of this contrast, `period` pixels apart.
    fn stripes(side: u32, period: f32, contrast: f32) -> RgbImage {
        RgbImage::from_fn(side, side, |x, _| {
            let wave = (x as f32 / period * std::f32::consts::TAU).sin();
            Rgb([(128.0 + contrast * wave) as u8; 3])
        })
    }

    #[test]
    fn the_pose_of_a_turned_head_is_recovered() {
        for expected in [
            [0.0, 0.0, 0.0],
            [25.0, 0.0, 0.0],
            [-40.0, 0.0, 0.0],
            [0.0, 20.0, 0.0],
            [0.0, -30.0, 0.0],
            [0.0, 0.0, 35.0],
            [30.0, -15.0, 20.0],
            [-20.0, 10.0, -60.0],
        ] {
            let found = pose(&turned(expected[0], expected[1], expected[2]));
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 0.1, "{found:?} for {expected:?}");
            }
        }
        assert_eq!(pose(&[[20.0, 20.0]; 5]), [0.0; 3]);
        assert_eq!(pose(&[[f32::NAN; 2]; 5]), [0.0; 3]);
    }

    #[test]
    fn blur_and_darkness_are_measured_in_crops_of_every_size() {
        for side in [112, 150, 160] {
            let sharp = stripes(side, 8.0, 60.0);
            let blurred = imageops::blur(&sharp, 3.0);
            let (sharpness, brightness) = sharpness_and_brightness(&sharp);
            assert!(sharpness > 200.0 && (brightness - 0.5).abs() < 0.05, "{side}: {sharpness} {brightness}");
            assert!(sharpness_and_brightness(&blurred).0 < 0.3 * sharpness, "{side}");
        }
        let dark = RgbImage::from_pixel(112, 112, Rgb([10; 3]));
        assert_eq!(sharpness_and_brightness(&dark), (0.0, 10.0 / 255.0));
        assert_eq!(sharpness_and_brightness(&RgbImage::new(0, 0)), (0.0, 0.0));
        assert_eq!(sharpness_and_brightness(&RgbImage::new(2, 2)).0, 0.0);
    }

    #[test]
    fn each_component_lowers_the_score_and_the_weakest_is_named() {
        let crop = stripes(112, 8.0, 60.0);
        let best = FaceQuality::measure(&face(120.0, 0.999, turned(0.0, 0.0, 10.0)), &crop);
        assert!(best.score() > 75 && best.weight() <= 1.0, "{best:?}");
        assert_eq!(best.size, 120.0);
        for (worse, weakest) in [
            (FaceQuality { size: 24.0, ..best }, QualityComponent::Size),
            (FaceQuality { sharpness: 5.0, ..best }, QualityComponent::Sharpness),
            (FaceQuality { yaw: 70.0, ..best }, QualityComponent::Pose),
            (FaceQuality { pitch: -70.0, ..best }, QualityComponent::Pose),
            (FaceQuality { brightness: 0.05, ..best }, QualityComponent::Brightness),
            (FaceQuality { brightness: 0.99, ..best }, QualityComponent::Brightness),
            (FaceQuality { detection_confidence: 0.7, ..best }, QualityComponent::DetectionConfidence),
        ] {
            assert!(worse.score() < best.score() / 2 + 10, "{worse:?} {}", worse.score());
            assert_eq!(worse.weakest(), weakest);
        }
        assert_eq!(FaceQuality::default().score(), 0);
        assert_eq!(FaceQuality { sharpness: f32::NAN, ..best }.weight(), 0.0);
    }
}
