//! Stored detections, and how they are selected and ordered.

use super::{Micros, PersonId, PersonRef, SightingId, UnknownId};

/// Selects detections: those that match everything that is given.
#[derive(Debug, Clone, Default)]
pub struct DetectionFilter {
    pub person: Option<PersonRef>,
    pub camera_id: Option<String>,
    /// The camera's location.
    pub location: Option<String>,
    /// Captured at this moment or later.
    pub from: Option<Micros>,
    /// Captured before this moment.
    pub to: Option<Micros>,
    /// The row of the unknown person.
    pub unknown: Option<i64>,
}

/// The order of a list of detections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectionOrder {
    /// By the time of capture, the latest first.
    NewestFirst,
    /// By the time of capture, the earliest first.
    OldestFirst,
}

/// The position of a detection in either order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetectionPosition {
    /// The time of capture.
    pub captured_at: Micros,
    /// Row id, which orders detections of the same moment.
    pub id: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StoredDetection {
    /// Row id.
    pub id: i64,
    /// The time of capture that counts.
    pub captured_at: Micros,
    /// The sender's time of capture, where it does not count.
    pub claimed_at: Option<Micros>,
    /// When the detection arrived.
    pub received_at: Micros,
    pub camera_id: String,
    /// The camera's location at that time.
    pub location: String,
    /// The present Face ID of the person; `None` for an unknown face and for an erased person.
    pub face_id: Option<String>,
    /// The id of the person; `None` for an unknown face and for an erased person.
    pub person_id: Option<PersonId>,
    /// The id of the unknown person; `None` for a known face, and for an unknown one that is in no cluster.
    pub unknown_id: Option<UnknownId>,
    /// Probability of the most probable person, 0 to 1.
    pub confidence: Option<f32>,
    /// Cosine to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// The score from which the person is known.
    pub threshold: f32,
    /// Probability of a face, 0 to 1.
    pub detection_confidence: f32,
    /// The model that identified the face.
    pub model_version: Option<i64>,
    /// The edge's track.
    pub track_id: Option<i64>,
    /// The run of the edge that the track belongs to.
    pub run_id: Option<String>,
    /// The sighting that it is a part of.
    pub sighting: SightingId,
    /// The number of crops from which the person was decided.
    pub crops: i64,
    /// The latest revision, where the person was decided again after the detection was stored.
    pub revision: Option<Revision>,
    /// Left, top, right, bottom in pixels.
    pub bounding_box: [f32; 4],
}

/// A later decision about the person of a stored detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// Grows with each revision of any detection.
    pub id: i64,
    /// When it was decided.
    pub revised_at: Micros,
}
