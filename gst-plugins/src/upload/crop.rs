//! A crop as it is uploaded, and the camera that it is from.

use std::sync::Arc;

use bytes::Bytes;
use facepipe_detector::BoundingBox;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{crop::Encoding, roi::CropArea};

/// Maximum length of a camera's id and of its location, in characters: the backend's own limit.
const MAX_CAMERA_CHARACTERS: usize = 200;

/// One crop with its metadata.
#[derive(Debug, Clone)]
pub struct Crop {
    /// The encoded image.
    pub image: Bytes,
    /// Format of the image.
    pub encoding: Encoding,
    /// The camera.
    pub camera: Arc<Camera>,
    /// When the frame was captured.
    pub captured_at: OffsetDateTime,
    /// Track id, if the faces are tracked.
    pub track_id: Option<i32>,
    /// The run of the tracker that gave the track id. Ids start again with each run.
    pub run_id: Option<Uuid>,
    /// The face in pixels of the full frame; `None` for an image of unknown origin.
    pub bounding_box: Option<BoundingBox<u32>>,
    /// The part of the frame that the crop shows, if known. It is not uploaded, but reported with the result.
    pub area: Option<CropArea>,
    /// Idempotency key, unique per crop.
    pub key: Uuid,
}

/// A camera, as detections name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Camera {
    /// Its name, sent as `camera_id`.
    pub id: String,
    /// Its location, sent as `location`.
    pub location: String,
}

/// Why the backend would reject every request of a camera.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// A text is too long or empty.
    #[error("{field} `{excerpt}` has {characters} characters, it must have {min} to 200")]
    Length {
        /// The property.
        field: &'static str,
        /// The beginning of its value.
        excerpt: String,
        /// Number of characters.
        characters: usize,
        /// Minimum number of characters.
        min: usize,
    },
    /// A text contains a line break, a tab or the like.
    #[error("{field} `{excerpt}` has the control character {control:?}, and it must have none")]
    ControlCharacter {
        /// The property.
        field: &'static str,
        /// The beginning of its value, with control characters escaped as in Rust.
        excerpt: String,
        /// The first control character.
        control: char,
    },
}

impl Camera {
    /// Checks that the backend accepts such a camera.
    ///
    /// # Errors
    ///
    /// The id has not 1 to 200 characters, the location more than 200, or one of them has control characters.
    pub fn validate(&self) -> Result<(), CameraError> {
        for (field, text, min) in [("camera-id", &self.id, 1), ("camera-location", &self.location, 0)] {
            let characters = text.chars().count();
            let excerpt = || text.chars().take(40).flat_map(char::escape_debug).collect();
            if !(min..=MAX_CAMERA_CHARACTERS).contains(&characters) {
                return Err(CameraError::Length { field, excerpt: excerpt(), characters, min });
            }
            if let Some(control) = text.chars().find(|c| c.is_control()) {
                return Err(CameraError::ControlCharacter { field, excerpt: excerpt(), control });
            }
        }
        Ok(())
    }
}
