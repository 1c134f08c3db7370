//! Selects faces among the detections of a frame.

use facepipe_detector::{BoundingBox, Detection};

use super::settings::Settings;
use crate::roi::FaceRegion;

/// Which detections become faces or candidates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    /// Faces score more than this.
    pub score_threshold: f32,
    /// Candidates score more than this.
    pub low_score_threshold: f32,
    pub nms_threshold: f32,
    pub max_faces: u32,
    /// Minimum of a face's shorter side, square pixels.
    pub min_size: u32,
    /// Maximum of a face's longer side, square pixels.
    pub max_size: u32,
}

/// The faces and candidates of a searched frame.
#[derive(Debug, Clone, Default)]
pub struct SelectedFaces {
    pub faces: Vec<FaceRegion>,
    pub candidates: Vec<FaceRegion>,
    pub filtered: FilteredFaces,
}

/// Counts of faces that were found and that the settings exclude.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilteredFaces {
    pub too_small: u64,
    pub too_large: u64,
    pub too_many: u64,
}

impl FilteredFaces {
    /// Describes what was left out, in a sentence; `None` where nothing was.
    pub fn summary(&self, settings: &Settings) -> Option<String> {
        crate::counts_summary([
            (
                self.too_small,
                format!("faces smaller than {} pixels were left out (min-face-size)", settings.min_face_size),
            ),
            (
                self.too_large,
                format!("faces larger than {} pixels were left out (max-face-size)", settings.max_face_size),
            ),
            (
                self.too_many,
                format!("faces beyond {} in a frame were left out (max-faces)", settings.max_faces),
            ),
        ])
    }
}

impl Selection {
    /// Selects among `detections`, highest score first. `stretch` makes the frame's pixels square.
    pub fn select(
        &self,
        detections: &[Detection],
        (width, height): (u32, u32),
        stretch: [f64; 2],
    ) -> SelectedFaces {
        let mut found = SelectedFaces::default();
        let most = if self.max_faces == 0 {
            usize::MAX
        } else {
            usize::try_from(self.max_faces).unwrap_or(usize::MAX)
        };
        let [across, down] = stretch;
        for detection in detections {
            let Some(region) = face_region(detection, width, height) else { continue };
            let is_face = detection.score > f64::from(self.score_threshold);
            let (width, height) = (region.bounding_box.width(), region.bounding_box.height());
            let (width, height) = (f64::from(width) * across, f64::from(height) * down);
            let reason = if width.min(height) < f64::from(self.min_size) {
                Some(&mut found.filtered.too_small)
            } else if width.max(height) > f64::from(self.max_size) {
                Some(&mut found.filtered.too_large)
            } else if found.faces.len() + found.candidates.len() >= most {
                Some(&mut found.filtered.too_many)
            } else {
                None
            };
            match (reason, is_face) {
                (None, true) => found.faces.push(region),
                (None, false) => found.candidates.push(region),
                // Candidates are not counted.
                (Some(count), true) => *count += 1,
                (Some(_), false) => {}
            }
        }
        found
    }
}

/// Returns the face of a detection: its box rounded outwards to whole pixels, inside the frame.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clipped to the frame, whose sides are at most 32,768 pixels"
)]
fn face_region(detection: &Detection, width: u32, height: u32) -> Option<FaceRegion> {
    let inside = detection.bounding_box.clipped(f64::from(width), f64::from(height))?;
    let bounding_box = BoundingBox {
        left: inside.left.floor() as u32,
        top: inside.top.floor() as u32,
        right: (inside.right.ceil() as u32).min(width),
        bottom: (inside.bottom.ceil() as u32).min(height),
    };
    Some(FaceRegion { bounding_box, confidence: detection.score, track_id: None, predicted: false })
}
