//! Who was seen where and when.

use diesel::prelude::*;

use super::{AnyConnection, Database, people::person, schema::detections};
use crate::{
    face_id::FaceId,
    store::{Micros, StoreError, vector_to_bytes},
};

/// A face to be stored.
pub struct NewDetection {
    /// When the picture was taken.
    pub captured_at: Micros,
    /// When it arrived here.
    pub received_at: Micros,
    /// The camera.
    pub camera_id: String,
    /// Where the camera stands.
    pub location: String,
    /// Whom the face shows; unknown faces have nobody.
    pub person_id: Option<i64>,
    /// Probability of the nearest person, 0 to 1.
    pub confidence: Option<f32>,
    /// Cosine to the nearest person's mean embedding.
    pub score: Option<f32>,
    /// What the score must reach.
    pub threshold: f32,
    /// Probability that it is a face, 0 to 1.
    pub detection_confidence: f32,
    /// The model that was asked.
    pub model_version: Option<i64>,
    /// Which network made the embedding.
    pub embedder: &'static str,
    /// Kept of unknown faces only.
    pub embedding: Option<Vec<f32>>,
    /// The picture's idempotency key.
    pub upload_key: Option<String>,
    /// Counts the faces of one picture from 0.
    pub face: i32,
    /// Left, top, right, bottom: pixels of the camera's frame where the edge sent them, else of the picture.
    pub bounding_box: [f32; 4],
    /// The edge's track.
    pub track_id: Option<i64>,
}

/// Where somebody was seen last.
pub struct LastSeen {
    /// The camera's place.
    pub location: String,
    /// The camera.
    pub camera_id: String,
    /// When.
    pub captured_at: Micros,
    /// Probability, 0 to 1.
    pub confidence: Option<f32>,
}

impl Database {
    /// Where a person was seen last; `None` where never.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn last_seen(&self, id: &FaceId) -> Result<Option<LastSeen>, StoreError> {
        let face_id = id.to_string();
        self.read(move |connection| {
            let person_id = person(connection, &face_id)?;
            let row = detections::table
                .filter(detections::person_id.eq(person_id))
                .order((detections::captured_at.desc(), detections::id.desc()))
                .select((
                    detections::location,
                    detections::camera_id,
                    detections::captured_at,
                    detections::confidence,
                ))
                .first::<(String, String, Micros, Option<f32>)>(connection)
                .optional()?;
            Ok(row.map(|(location, camera_id, captured_at, confidence)| LastSeen {
                location,
                camera_id,
                captured_at,
                confidence,
            }))
        })
        .await
    }
}

pub(super) fn insert(connection: &mut AnyConnection, detection: &NewDetection) -> Result<(), StoreError> {
    let [left, top, right, bottom] = detection.bounding_box;
    diesel::insert_into(detections::table)
        .values((
            detections::captured_at.eq(detection.captured_at),
            detections::received_at.eq(detection.received_at),
            detections::camera_id.eq(&detection.camera_id),
            detections::location.eq(&detection.location),
            detections::person_id.eq(detection.person_id),
            detections::confidence.eq(detection.confidence),
            detections::score.eq(detection.score),
            detections::threshold.eq(detection.threshold),
            detections::detection_confidence.eq(detection.detection_confidence),
            detections::model_version.eq(detection.model_version),
            detections::embedder.eq(detection.embedder),
            detections::embedding.eq(detection.embedding.as_deref().map(vector_to_bytes)),
            detections::upload_key.eq(&detection.upload_key),
            detections::face.eq(detection.face),
            detections::box_left.eq(left),
            detections::box_top.eq(top),
            detections::box_right.eq(right),
            detections::box_bottom.eq(bottom),
            detections::track_id.eq(detection.track_id),
        ))
        .execute(connection)?;
    Ok(())
}
