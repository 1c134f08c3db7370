//! Storing what a camera sent, exactly once per idempotency key.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use diesel::{
    prelude::*,
    result::{DatabaseErrorKind, Error},
};

use super::{
    AnyConnection, Database,
    detections::{NewDetection, insert},
    people::face_ids,
    schema::answers,
};
use crate::{
    recognise::IdentifiedFace,
    store::{Micros, StoreError, now},
};

/// The call whose answers are kept.
const STORE_RESULTS: &str = "store-results";

/// One picture of a request, recognised.
pub struct Upload {
    /// Idempotency key, if the sender gave one.
    pub key: Option<String>,
    /// When it was taken.
    pub captured_at: Micros,
    /// The edge's track, if it tracks.
    pub track_id: Option<i64>,
    /// Where the face is in the camera's frame, if the edge says so: left, top, right, bottom in pixels.
    pub frame_box: Option<[f32; 4]>,
    /// The faces on it.
    pub faces: Vec<IdentifiedFace>,
}

/// The pictures of one request.
pub struct NewUploads {
    /// The camera.
    pub camera_id: String,
    /// Where the camera stands.
    pub location: String,
    /// When the request arrived.
    pub received_at: Micros,
    /// Which network made the embeddings.
    pub embedder: &'static str,
    /// The model that was asked.
    pub model_version: Option<i64>,
    /// The pictures.
    pub uploads: Vec<Upload>,
}

/// What was answered for a key.
pub struct KeyedAnswer {
    /// The model that was asked.
    pub model_version: Option<i64>,
    /// The faces that were found.
    pub faces: Vec<IdentifiedFace>,
}

/// What holds for one picture after it was stored.
pub struct Uploaded {
    /// The answer: of now, or the first one where the key was known.
    pub answer: KeyedAnswer,
    /// Whether the key was known and nothing was stored.
    pub repeated: bool,
}

/// What holds for a request's pictures after they were stored.
pub struct StoredUploads {
    /// Picture by picture, in the order of the request.
    pub uploads: Vec<Uploaded>,
    /// Face IDs by row id, of the same moment.
    pub face_ids: HashMap<i64, String>,
}

impl Database {
    /// Those of `keys` that were answered before.
    ///
    /// # Errors
    /// The database fails.
    pub async fn answered_keys(&self, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
        if keys.is_empty() {
            return Ok(HashSet::new());
        }
        self.read(move |connection| {
            let known = answers::table
                .filter(answers::call.eq(STORE_RESULTS))
                .filter(answers::upload_key.eq_any(&keys))
                .select(answers::upload_key)
                .load::<String>(connection)?;
            Ok(known.into_iter().collect())
        })
        .await
    }

    /// Stores a detection for each face, except on pictures whose key is known.
    ///
    /// # Errors
    /// The database fails; then nothing of the request is stored.
    pub async fn store_uploads(&self, new: NewUploads) -> Result<StoredUploads, StoreError> {
        let new = Arc::new(new);
        let attempt = || {
            let new = Arc::clone(&new);
            self.write(move |connection| store(connection, &new))
        };
        match attempt().await {
            // Another process stored the same key between our look and our insert, or erased somebody: now that is
            // there to be found.
            Err(StoreError::Database(Error::DatabaseError(
                DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::ForeignKeyViolation,
                _,
            ))) => attempt().await,
            outcome => outcome,
        }
    }
}

fn stored_answer(connection: &mut AnyConnection, key: &str) -> Result<Option<KeyedAnswer>, StoreError> {
    let row = answers::table
        .find((STORE_RESULTS, key))
        .select((answers::model_version, answers::faces))
        .first::<(Option<i64>, String)>(connection)
        .optional()?;
    let Some((model_version, faces)) = row else { return Ok(None) };
    let faces = serde_json::from_str(&faces)
        .map_err(|error| StoreError::Damaged(format!("the faces of a stored answer: {error}")))?;
    Ok(Some(KeyedAnswer { model_version, faces }))
}

fn store(connection: &mut AnyConnection, new: &NewUploads) -> Result<StoredUploads, StoreError> {
    let face_ids = face_ids(connection)?;
    let people: HashSet<i64> = face_ids.keys().copied().collect();
    let mut uploads = Vec::with_capacity(new.uploads.len());
    for upload in &new.uploads {
        let known = match &upload.key {
            Some(key) => stored_answer(connection, key)?,
            None => None,
        };
        uploads.push(match known {
            Some(answer) => Uploaded { answer, repeated: true },
            None => {
                store_upload(connection, new, upload, &people)?;
                let answer = KeyedAnswer { model_version: new.model_version, faces: upload.faces.clone() };
                Uploaded { answer, repeated: false }
            }
        });
    }
    Ok(StoredUploads { uploads, face_ids })
}

fn store_upload(
    connection: &mut AnyConnection,
    new: &NewUploads,
    upload: &Upload,
    people: &HashSet<i64>,
) -> Result<(), StoreError> {
    for (number, face) in (0..).zip(&upload.faces) {
        let verdict = face.verdict(|person| people.contains(&person));
        let detection = NewDetection {
            captured_at: upload.captured_at,
            received_at: new.received_at,
            camera_id: new.camera_id.clone(),
            location: new.location.clone(),
            person_id: verdict.person,
            confidence: verdict.predictions.first().map(|(_, confidence)| *confidence),
            score: verdict.score,
            threshold: face.threshold,
            detection_confidence: face.detection_confidence,
            model_version: new.model_version,
            embedder: new.embedder,
            embedding: verdict.person.is_none().then(|| face.embedding.clone()),
            upload_key: upload.key.clone(),
            face: number,
            bounding_box: upload.frame_box.unwrap_or(face.bounding_box),
            track_id: upload.track_id,
        };
        insert(connection, &detection)?;
    }
    if let Some(key) = &upload.key {
        let faces = serde_json::to_string(&upload.faces)
            .map_err(|error| StoreError::Damaged(format!("the faces of an answer: {error}")))?;
        diesel::insert_into(answers::table)
            .values((
                answers::call.eq(STORE_RESULTS),
                answers::upload_key.eq(key),
                answers::model_version.eq(new.model_version),
                answers::faces.eq(faces),
                answers::created_at.eq(now()),
            ))
            .execute(connection)?;
    }
    Ok(())
}
