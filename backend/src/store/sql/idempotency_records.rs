//! Stores the faces of a request as detections or as messages of the outbox, exactly once per idempotency key.

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
    detections::{self, NewDetection},
    insert_lock,
    outbox::{self, NewMessage},
    people::face_ids,
    schema::idempotency_records,
    signals::{Topic, notify_other_processes},
    tracks::{self, DecidedTrack, Fusion, Prepared, TrackedFace},
    unknown_pictures::{self, NewPicture},
};
use uuid::Uuid;

use crate::{
    access::OWN_KEY,
    domain::{CaptureTime, IdentifiedFace, MIN_UNKNOWN_SIZE, Micros, now, people_of},
    store::StoreError,
};

/// The calls with idempotency keys. Each has its own keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdempotentCall {
    /// Stores each face as a detection.
    StoreResults,
    /// Puts each face into the outbox as a message.
    SendResults,
}

impl IdempotentCall {
    /// Returns its name in rows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StoreResults => "store-results",
            Self::SendResults => "send-results",
        }
    }
}

/// A recognised image of a request.
pub struct Upload {
    /// The idempotency key, if the sender gave one.
    pub key: Option<String>,
    /// The time of capture.
    pub time: CaptureTime,
    /// The edge's track, if it tracks.
    pub track_id: Option<i64>,
    /// The face that the track is of.
    pub tracked: Option<TrackedFace>,
    /// The face in the camera's frame, if the edge sent it: left, top, right, bottom in pixels.
    pub frame_box: Option<[f32; 4]>,
    /// The faces of the image.
    pub faces: Vec<IdentifiedFace>,
    /// Pictures of the faces where they are unknown, in their order; empty where none are kept.
    pub pictures: Vec<Option<NewPicture>>,
}

/// The images of a request.
pub struct NewUploads {
    /// The call that sent them.
    pub call: IdempotentCall,
    /// Predictions of each face in the response; the faces of `uploads` have no more.
    pub top_k: usize,
    /// How the crops of a track are decided together; `None` where each is decided by itself.
    pub fusion: Option<Fusion>,
    /// Whether detections of unknown faces keep their embedding, if they have at least [`MIN_UNKNOWN_SIZE`].
    pub keep_unknown_embeddings: bool,
    /// Id of the camera that captured them.
    pub camera_id: String,
    /// The camera's location.
    pub location: String,
    /// When the request arrived.
    pub received_at: Micros,
    /// The request's `X-Request-Id`.
    pub request_id: Option<String>,
    /// The network that computed the embeddings.
    pub embedder: &'static str,
    /// The model that identified the faces.
    pub model_version: Option<i64>,
    /// The images, in the order of the request.
    pub uploads: Vec<Upload>,
}

/// The response to an image with an idempotency key.
pub struct IdempotencyRecord {
    /// The model that identified the faces.
    pub model_version: Option<i64>,
    /// The faces of the image.
    pub faces: Vec<IdentifiedFace>,
}

/// The outcome for one image.
pub struct UploadOutcome {
    /// The response: the first one where the key was known.
    pub record: IdempotencyRecord,
    /// Whether the key was known and nothing was stored.
    pub repeated: bool,
}

/// The outcome for the images of a request.
pub struct StoredBatch {
    /// One per image, in the order of the request.
    pub uploads: Vec<UploadOutcome>,
    /// Face IDs of the people in the responses by row id, read in the same transaction.
    pub face_ids: HashMap<i64, String>,
    /// Blobs of pictures that no row refers to, which the caller deletes: those of the request's faces that were not stored
    /// as unknown ones, and those of earlier faces that have become known.
    pub unused_pictures: Vec<String>,
}

impl Database {
    /// Returns those of `keys` that `call` has a record of.
    ///
    /// # Errors
    /// The database fails.
    pub async fn answered_keys(
        &self,
        call: IdempotentCall,
        keys: Vec<String>,
    ) -> Result<HashSet<String>, StoreError> {
        if keys.is_empty() {
            return Ok(HashSet::new());
        }
        self.read(move |connection| {
            let known = idempotency_records::table
                .filter(idempotency_records::call.eq(call.name()))
                .filter(idempotency_records::upload_key.eq_any(&keys))
                .select(idempotency_records::upload_key)
                .load::<String>(connection)?;
            Ok(known.into_iter().collect())
        })
        .await
    }

    /// Deletes at most `limit` records from before `cutoff`: like detections, they contain who was seen. Returns how
    /// many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn delete_idempotency_records_before(
        &self,
        cutoff: Micros,
        limit: i64,
    ) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let old = idempotency_records::table.filter(idempotency_records::created_at.lt(cutoff));
            let keys: Vec<String> =
                old.limit(limit).select(idempotency_records::upload_key).load(connection)?;
            Ok(diesel::delete(old.filter(idempotency_records::upload_key.eq_any(&keys)))
                .execute(connection)?)
        })
        .await
    }

    /// Stores a detection or a message for each face of the images whose key is not known.
    ///
    /// # Errors
    /// The database fails; nothing of the request is stored.
    pub async fn store_uploads(&self, new: NewUploads) -> Result<StoredBatch, StoreError> {
        let new = Arc::new(new);
        let prepared = Arc::new(self.prepare_tracks(Arc::clone(&new)).await?);
        let attempt = || {
            let (new, prepared) = (Arc::clone(&new), Arc::clone(&prepared));
            self.write(move |connection| store(connection, &new, &prepared))
        };
        let stored = match attempt().await {
            // Another process inserted the same key after this one's query, or erased a person: the second attempt sees
            // that.
            Err(StoreError::Database(Error::DatabaseError(
                DatabaseErrorKind::UniqueViolation | DatabaseErrorKind::ForeignKeyViolation,
                _,
            ))) => attempt().await,
            outcome => outcome,
        }?;
        if new.call == IdempotentCall::SendResults {
            self.signals.notify(Topic::Outbox);
        }
        Ok(stored)
    }
}

/// Returns the record of a key. Records of earlier versions list everybody in the model, so at most `top_k` predictions
/// of each face are returned.
fn find_record(
    connection: &mut AnyConnection,
    call: IdempotentCall,
    key: &str,
    top_k: usize,
) -> Result<Option<IdempotencyRecord>, StoreError> {
    let row = idempotency_records::table
        .find((call.name(), key))
        .select((idempotency_records::model_version, idempotency_records::faces))
        .first::<(Option<i64>, String)>(connection)
        .optional()?;
    let Some((model_version, faces)) = row else { return Ok(None) };
    let mut faces: Vec<IdentifiedFace> = serde_json::from_str(&faces)
        .map_err(|error| StoreError::Damaged(format!("the faces of an idempotency record: {error}")))?;
    faces.iter_mut().for_each(|face| face.predictions.truncate(top_k));
    Ok(Some(IdempotencyRecord { model_version, faces }))
}

fn store(
    connection: &mut AnyConnection,
    new: &NewUploads,
    prepared: &Prepared,
) -> Result<StoredBatch, StoreError> {
    if new.call == IdempotentCall::StoreResults {
        insert_lock::hold_insert_lock(connection)?;
    }
    let mut known = Vec::with_capacity(new.uploads.len());
    for upload in &new.uploads {
        known.push(match &upload.key {
            Some(key) => find_record(connection, new.call, key, new.top_k)?,
            None => None,
        });
    }
    let is_fresh = |image: usize| known.get(image).is_some_and(Option::is_none);
    let mut faces: Vec<Vec<IdentifiedFace>> = new.uploads.iter().map(|upload| upload.faces.clone()).collect();
    let tracks = tracks::decide(connection, new, prepared, is_fresh, &mut faces)?;

    let mut uploads = Vec::with_capacity(new.uploads.len());
    for (known, faces) in known.into_iter().zip(faces) {
        let repeated = known.is_some();
        let record = known.unwrap_or(IdempotencyRecord { model_version: new.model_version, faces });
        uploads.push(UploadOutcome { record, repeated });
    }
    let named = people_of(uploads.iter().flat_map(|upload| &upload.record.faces));
    let face_ids = face_ids(connection, &named)?;
    let people: HashSet<i64> = face_ids.keys().copied().collect();
    let mut unused_pictures = tracks::save(connection, new, &tracks, &people)?;
    for (image, (upload, outcome)) in new.uploads.iter().zip(&uploads).enumerate() {
        if outcome.repeated {
            let pictures = upload.pictures.iter().flatten();
            unused_pictures.extend(pictures.map(|picture| picture.blob_key.clone()));
        } else {
            let track = tracks.iter().find(|track| track.members.iter().any(|(of, _)| *of == image));
            let unused = store_upload(connection, new, upload, &outcome.record.faces, track, &people)?;
            unused_pictures.extend(unused);
        }
    }
    Ok(StoredBatch { uploads, face_ids, unused_pictures })
}

/// Stores an image that is new, with its faces as they were decided with their track. Returns the blobs of pictures that were
/// not stored.
fn store_upload(
    connection: &mut AnyConnection,
    new: &NewUploads,
    upload: &Upload,
    faces: &[IdentifiedFace],
    track: Option<&DecidedTrack>,
    people: &HashSet<i64>,
) -> Result<Vec<String>, StoreError> {
    let unused = match new.call {
        IdempotentCall::StoreResults => store_detections(connection, new, upload, faces, track, people)?,
        IdempotentCall::SendResults => {
            store_messages(connection, new, upload, faces, people)?;
            Vec::new()
        }
    };
    if let Some(key) = &upload.key {
        let faces = serde_json::to_string(faces)
            .map_err(|error| StoreError::Damaged(format!("the faces of an idempotency record: {error}")))?;
        diesel::insert_into(idempotency_records::table)
            .values((
                idempotency_records::call.eq(new.call.name()),
                idempotency_records::upload_key.eq(key),
                idempotency_records::model_version.eq(new.model_version),
                idempotency_records::faces.eq(faces),
                idempotency_records::created_at.eq(now()),
            ))
            .execute(connection)?;
    }
    Ok(unused)
}

/// Stores the faces of an image as detections. Returns the blobs of pictures that were not stored: of faces that are known or too small.
fn store_detections(
    connection: &mut AnyConnection,
    new: &NewUploads,
    upload: &Upload,
    faces: &[IdentifiedFace],
    track: Option<&DecidedTrack>,
    people: &HashSet<i64>,
) -> Result<Vec<String>, StoreError> {
    let mut unused = Vec::new();
    for (number, face) in (0..).zip(faces) {
        let identity = face.resolve(|person| people.contains(&person));
        let keep_embedding =
            identity.person.is_none() && new.keep_unknown_embeddings && face.quality.size >= MIN_UNKNOWN_SIZE;
        let is_tracked = |tracked: &&TrackedFace| i32::try_from(tracked.face) == Ok(number);
        let tracked = upload.tracked.as_ref().filter(is_tracked);
        let detection = NewDetection {
            captured_at: upload.time.captured_at,
            claimed_at: upload.time.claimed_at,
            received_at: new.received_at,
            camera_id: new.camera_id.clone(),
            location: new.location.clone(),
            person_id: identity.person,
            confidence: identity.predictions.first().map(|(_, confidence)| *confidence),
            score: identity.score,
            threshold: face.threshold,
            detection_confidence: face.detection_confidence,
            model_version: new.model_version,
            embedder: new.embedder,
            embedding: keep_embedding.then(|| face.embedding.clone()),
            upload_key: upload.key.clone(),
            face: number,
            bounding_box: upload.frame_box.unwrap_or(face.bounding_box),
            // Other faces of the crop belong to no track.
            track_id: upload.track_id.filter(|_| tracked.is_some()),
            track_row: tracked.and(track).map(DecidedTrack::id),
            weight: face.weight(),
        };
        detections::insert(connection, &detection)?;
        let picture = usize::try_from(number).ok().and_then(|number| upload.pictures.get(number));
        match picture {
            Some(Some(picture)) if keep_embedding => unknown_pictures::insert(connection, picture)?,
            Some(Some(picture)) => unused.push(picture.blob_key.clone()),
            _ => (),
        }
    }
    Ok(unused)
}

fn store_messages(
    connection: &mut AnyConnection,
    new: &NewUploads,
    upload: &Upload,
    faces: &[IdentifiedFace],
    people: &HashSet<i64>,
) -> Result<(), StoreError> {
    let key = upload.key.as_deref().map(|key| key.trim_start_matches(OWN_KEY).to_owned());
    let image_key = key.unwrap_or_else(|| Uuid::now_v7().to_string());
    for (number, face) in faces.iter().enumerate() {
        let identity = face.resolve(|person| people.contains(&person));
        let message = NewMessage {
            key: format!("{image_key}/{number}"),
            person_id: identity.person,
            confidence: identity.predictions.first().map(|(_, confidence)| *confidence),
            camera_id: &new.camera_id,
            location: &new.location,
            captured_at: upload.time.captured_at,
            request_id: new.request_id.as_deref(),
        };
        outbox::insert(connection, &message)?;
    }
    if !faces.is_empty() {
        notify_other_processes(connection, Topic::Outbox)?;
    }
    Ok(())
}
