//! Selects frames for enrolment: complete, sharp faces that differ from those already selected.

use facepipe_detector::BoundingBox;
use gstfacepipe::{
    crop::{CropImage, CropSettings},
    roi::FaceRegion,
};

/// Side of the grey patch by which faces are compared, pixels.
const SIDE: usize = 24;

/// Size ratio from which on a face counts as distinct regardless of its similarity.
const SIZE_RATIO: f64 = 1.4;

/// Returns the main face of a frame of this width and height, by the server's rule; none if there is no clear one. All detected
/// faces count: the rule's confidence is that of the server's detector.
#[expect(clippy::cast_precision_loss, reason = "sides of frames are small")]
pub fn main_face(faces: &[FaceRegion], size: [u32; 2]) -> Option<FaceRegion> {
    let candidate = |face: &FaceRegion| {
        let BoundingBox { left, top, right, bottom } = face.bounding_box;
        let [left, top, right, bottom] = [left, top, right, bottom].map(|edge| edge as f32);
        (facepipe_vision::BoundingBox { left, top, right, bottom }, 1.0)
    };
    let candidates: Vec<_> = faces.iter().map(candidate).collect();
    faces.get(facepipe_vision::main_face(&candidates, size)?).copied()
}

/// Criteria of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Criteria {
    /// Minimum variance of the Laplacian over the face, in squares of 8-bit luma, measured on a crop of at most 150 pixels.
    /// Photographs of faces have 50 (smooth, evenly lit) to 1,000.
    pub sharpness: f64,
    /// Maximum correlation with each accepted picture, 0 to 1.
    pub similarity: f64,
    /// Minimum time since the previous one, seconds.
    pub apart: f64,
}

/// Returns the crop on which a face is measured: that of `facecrop`, so that sharpness is comparable.
pub fn measurement_crop() -> CropSettings {
    CropSettings { min_size: 1, ..CropSettings::default() }
}

/// Measurements of a face in a frame.
#[derive(Debug, Clone)]
pub struct FaceSample {
    seconds: f64,
    /// Shorter side, pixels.
    size: f64,
    sharpness: f64,
    /// `[SIDE, SIDE]`, normalised to mean 0 and length 1, so that the dot product of two is their correlation.
    patch: Vec<f64>,
}

/// Why a frame is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// A part of the face is outside the frame.
    CutOff,
    /// Too soon after the previous one.
    TooSoon,
    /// Not sharp enough.
    Blurred,
    /// Too similar to an accepted one.
    TooSimilar,
}

impl FaceSample {
    /// Measures a face found at this time; `picture` is a crop by [`measurement_crop`].
    pub fn new(seconds: f64, face: &FaceRegion, picture: &CropImage, inside: &BoundingBox<f64>) -> Self {
        Self {
            seconds,
            size: f64::from(face.bounding_box.width().min(face.bounding_box.height())),
            sharpness: picture.sharpness(inside),
            patch: patch(picture, inside),
        }
    }

    fn similarity(&self, other: &Self) -> f64 {
        self.patch.iter().zip(&other.patch).map(|(a, b)| a * b).sum()
    }
}

/// Selects face samples.
#[derive(Debug)]
pub struct SampleSelector {
    criteria: Criteria,
    accepted: Vec<FaceSample>,
}

impl SampleSelector {
    /// Creates a selector without samples.
    pub fn new(criteria: Criteria) -> Self {
        Self { criteria, accepted: Vec::new() }
    }

    /// Returns whether it is too soon for another sample, before any pixel is read.
    pub fn is_too_soon(&self, seconds: f64) -> bool {
        self.accepted.last().is_some_and(|last| (seconds - last.seconds).abs() < self.criteria.apart)
    }

    /// Accepts a sample unless it fails a criterion. It is kept for comparison even if the server refuses it.
    ///
    /// # Errors
    /// The failed criterion.
    pub fn accept(&mut self, sample: FaceSample) -> Result<(), Rejection> {
        if self.is_too_soon(sample.seconds) {
            return Err(Rejection::TooSoon);
        }
        if sample.sharpness < self.criteria.sharpness {
            return Err(Rejection::Blurred);
        }
        let is_similar = |other: &FaceSample| {
            let differs_in_size = (sample.size / other.size).max(other.size / sample.size) >= SIZE_RATIO;
            !differs_in_size && sample.similarity(other) > self.criteria.similarity
        };
        if self.accepted.iter().any(is_similar) {
            return Err(Rejection::TooSimilar);
        }
        self.accepted.push(sample);
        Ok(())
    }
}

/// Returns the face as a grey patch normalised for brightness and contrast.
fn patch(picture: &CropImage, &BoundingBox { left, top, right, bottom }: &BoundingBox<f64>) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); SIDE * SIDE];
    let (width, height) = (usize::from(picture.width()), usize::from(picture.height()));
    for (row, pixels) in picture.rgb().chunks_exact(width.max(1) * 3).enumerate() {
        let Some(y) = cell(row, height, top, bottom) else { continue };
        for (column, &[r, g, b]) in pixels.as_chunks::<3>().0.iter().enumerate() {
            let Some(x) = cell(column, width, left, right) else { continue };
            if let Some((sum, count)) = sums.get_mut(y * SIDE + x) {
                *sum += 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
                *count += 1.0;
            }
        }
    }
    // If the face is smaller than the grid, empty cells repeat the previous one.
    let mut last = 0.0;
    let mut patch: Vec<f64> = sums
        .into_iter()
        .map(|(sum, count)| {
            last = if count > 0.0 { sum / count } else { last };
            last
        })
        .collect();
    let mean = patch.iter().sum::<f64>() / (SIDE * SIDE) as f64;
    patch.iter_mut().for_each(|value| *value -= mean);
    let length = patch.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::EPSILON);
    patch.iter_mut().for_each(|value| *value /= length);
    patch
}

/// Returns the grid cell of a pixel; none outside the face.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sides of pictures are small, and the share is from 0 to 1"
)]
fn cell(at: usize, side: usize, start: f64, end: f64) -> Option<usize> {
    let share = ((at as f64 + 0.5) / side.max(1) as f64 - start) / (end - start).max(f64::EPSILON);
    (0.0..1.0).contains(&share).then_some((share * SIDE as f64) as usize)
}

#[cfg(test)]
mod tests {
    use facepipe_detector::{ColorMatrix, ColorRange, Frame, PixelFormat};
    use gstfacepipe::crop::Cropper;

    use super::*;

    const CRITERIA: Criteria = Criteria { sharpness: 20.0, similarity: 0.9, apart: 0.5 };
    const FACE: FaceRegion = FaceRegion {
        bounding_box: BoundingBox::from_size(20, 20, 60, 60),
        confidence: 0.9,
        track_id: None,
        predicted: false,
    };

    /// Returns a sample of a face with this grey pattern.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u8")]
    fn sample(seconds: f64, face: FaceRegion, gray: impl Fn(f64, f64) -> f64) -> FaceSample {
        let mut pixels = Vec::new();
        for y in 0..100_u32 {
            for x in 0..100_u32 {
                let value = gray(f64::from(x) / 100.0, f64::from(y) / 100.0).clamp(0.0, 255.0);
                pixels.extend([value as u8; 3]);
            }
        }
        let frame = Frame::new(
            PixelFormat::Rgb,
            100,
            100,
            [&pixels[..]].as_slice(),
            &[300],
            ColorMatrix::Bt601,
            ColorRange::Full,
        )
        .expect("a frame");
        let region = BoundingBox::from_size(0, 0, 100, 100);
        let picture = Cropper::default().crop(&frame, &region, &measurement_crop()).expect("a picture");
        FaceSample::new(seconds, &face, &picture, &BoundingBox::new(0.2, 0.2, 0.8, 0.8))
    }

    fn stripes(x: f64, _: f64) -> f64 {
        128.0 + 60.0 * (x * 40.0).sin()
    }

    fn rows(_: f64, y: f64) -> f64 {
        128.0 + 60.0 * (y * 40.0).sin()
    }

    #[test]
    fn the_main_face_of_a_frame_is_the_central_and_clearly_the_largest() {
        let at = |left, top, side| FaceRegion {
            bounding_box: BoundingBox::from_size(left, top, side, side),
            ..FACE
        };
        let (main, beside) = (at(250, 150, 140), at(20, 20, 60));
        assert_eq!(main_face(&[beside, main], [640, 480]), Some(main));
        assert_eq!(main_face(&[beside], [640, 480]), Some(beside));
        assert_eq!(main_face(&[at(480, 150, 130), main], [640, 480]), None);
        assert_eq!(main_face(&[], [640, 480]), None);
    }

    #[test]
    fn a_sample_must_be_sharp_apart_and_distinct() {
        let mut selector = SampleSelector::new(CRITERIA);
        assert_eq!(selector.accept(sample(0.0, FACE, |x, _| 100.0 + 50.0 * x)), Err(Rejection::Blurred));
        assert_eq!(selector.accept(sample(0.1, FACE, stripes)), Ok(()));
        assert!(selector.is_too_soon(0.5) && !selector.is_too_soon(0.7));
        assert_eq!(selector.accept(sample(0.5, FACE, rows)), Err(Rejection::TooSoon));
        assert_eq!(selector.accept(sample(1.0, FACE, stripes)), Err(Rejection::TooSimilar));
        let brighter = |x, y| 0.7 * stripes(x, y) + 40.0;
        assert_eq!(
            selector.accept(sample(1.0, FACE, brighter)),
            Err(Rejection::TooSimilar),
            "light alone is no difference"
        );
        assert_eq!(selector.accept(sample(1.0, FACE, rows)), Ok(()));
        let nearer = FaceRegion { bounding_box: BoundingBox::from_size(20, 20, 90, 90), ..FACE };
        assert_eq!(selector.accept(sample(2.0, nearer, stripes)), Ok(()), "another distance");
        assert_eq!(
            selector.accept(sample(3.0, FACE, stripes)),
            Err(Rejection::TooSimilar),
            "each that was taken counts"
        );
    }
}
