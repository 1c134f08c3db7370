//! The quality of an enrolled face, as responses have it.

use paperclip::actix::Apiv2Schema;
use serde::Serialize;

use super::recognition::BoundingBox;
use crate::domain::{EnrolledFace, FaceQuality};

/// How well a face can be recognised: measurements, and a score that sums them up. The terms are those of ISO/IEC 29794-5, the
/// scales are this server's.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "FaceQuality")]
pub struct Quality {
    /// 0 (useless) to 100 (best): the product of what each measurement contributes. The setting `min_quality` is a minimum of
    /// it.
    #[openapi(minimum = 0, maximum = 100, example = "71")]
    score: u32,
    /// The shorter side of the bounding box, pixels; 80 and more are best.
    #[openapi(minimum = 0, example = "95.5")]
    size: f32,
    /// Variance of the Laplacian of the aligned face's luma: photographs in focus have 100 and more, blurred and strongly
    /// enlarged ones less than 30.
    #[openapi(minimum = 0, example = "212.5")]
    sharpness: f32,
    /// How far the head is turned to the side, degrees, positive to the right of the image; estimated from five landmarks.
    #[openapi(minimum = -90, maximum = 90, example = "-6.5")]
    yaw: f32,
    /// How far the head is turned up or down, degrees, positive upwards; estimated from five landmarks.
    #[openapi(minimum = -90, maximum = 90, example = "3.25")]
    pitch: f32,
    /// How far the head is inclined in the image, degrees, positive clockwise. It does not lower the score.
    #[openapi(minimum = -180, maximum = 180, example = "1.5")]
    roll: f32,
    /// Mean luma of the face, 0 (black) to 1 (white); 0.25 to 0.85 are best.
    #[openapi(minimum = 0, maximum = 1, example = "0.5")]
    brightness: f32,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
}

/// The face of an image that was enrolled.
#[derive(Serialize, Apiv2Schema)]
#[openapi(rename = "EnrolledFace")]
pub struct ImageFace {
    bounding_box: BoundingBox,
    quality: Quality,
}

impl From<FaceQuality> for Quality {
    fn from(quality: FaceQuality) -> Self {
        let FaceQuality { size, sharpness, yaw, pitch, roll, brightness, detection_confidence } = quality;
        let score = quality.score().into();
        Self { score, size, sharpness, yaw, pitch, roll, brightness, detection_confidence }
    }
}

impl From<EnrolledFace> for ImageFace {
    fn from(face: EnrolledFace) -> Self {
        Self { bounding_box: face.bounding_box.into(), quality: face.quality.into() }
    }
}
