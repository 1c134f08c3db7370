//! Sightings: the crops of one track, decided together, or a single detection without a track.

use std::fmt;

use super::{Micros, PersonId, PersonRef};

/// Names the track of a face to the server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrackRef {
    /// The run of the tracker that gave the number, where the sender says so. Numbers begin again with each run.
    pub run_id: Option<String>,
    /// The number of the track.
    pub track_id: i64,
}

/// A row of the tracks, or a detection without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SightingId {
    /// A detection without a track, by its row id.
    Detection(i64),
    /// A track, by its row id.
    Track(i64),
}

impl fmt::Display for SightingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detection(id) => write!(f, "d{id}"),
            Self::Track(id) => write!(f, "t{id}"),
        }
    }
}

/// Somebody in front of a camera for some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// The track or the detection.
    pub id: SightingId,
    pub camera_id: String,
    /// The camera's location at the last crop.
    pub location: String,
    /// The run of the tracker.
    pub run_id: Option<String>,
    /// The edge's track.
    pub track_id: Option<i64>,
    /// When the first crop was captured.
    pub first_captured_at: Micros,
    /// When the last crop was captured.
    pub last_captured_at: Micros,
    /// The present Face ID of the person; `None` for an unknown face and for an erased person.
    pub face_id: Option<String>,
    /// The id of the person; `None` for an unknown face and for an erased person.
    pub person_id: Option<PersonId>,
    /// Probability of the most probable person, 0 to 1.
    pub confidence: Option<f32>,
    /// Cosine of the crops' mean embedding to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// The score from which the person is known.
    pub threshold: f32,
    /// The model that identified the face.
    pub model_version: Option<i64>,
    /// The number of crops that were decided together.
    pub crops: i64,
    /// The detection of the crop that counts most, unless it was erased.
    pub best_detection: Option<i64>,
    /// Whether the sighting still takes crops.
    pub open: bool,
    /// When the last crop arrived.
    pub updated_at: Micros,
}

/// Selects sightings: those that match everything that is given.
#[derive(Debug, Clone, Default)]
pub struct SightingFilter {
    pub person: Option<PersonRef>,
    /// Whether the person is known.
    pub known: Option<bool>,
    pub camera_id: Option<String>,
    /// The camera's location.
    pub location: Option<String>,
    /// With a crop that was captured at this moment or later.
    pub from: Option<Micros>,
    /// With a crop that was captured before this moment.
    pub to: Option<Micros>,
}

/// The position of a sighting in the list, which begins with the one that began last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SightingPosition {
    /// When its first crop was captured.
    pub first_captured_at: Micros,
    /// The track or the detection, which orders sightings of the same moment: tracks first, by descending id.
    pub id: SightingId,
}
