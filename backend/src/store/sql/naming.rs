//! Unknown people who become enrolled people: their clusters' best faces are enrolled and their detections get the name.

use std::collections::{BTreeMap, VecDeque};

use diesel::prelude::*;
use uuid::Uuid;

use super::{
    AnyConnection, Database, MAX_VARIABLES, cohort, insert_lock, jobs,
    leases::ensure_unlocked,
    names::{self, PersonKey},
    people::{self, IMAGES_WITHOUT_PICTURES},
    schema::{
        detections, images, merged_unknowns, named_unknowns, proposals, unknown_pictures,
        unknowns as clusters,
    },
    signals::Topic,
    tracks, unknowns,
};
use crate::{
    domain::{FaceId, JobKind, Micros, Person, UnknownFace, UnknownId, UnknownTrack, now},
    store::{StoreError, vector_from_bytes},
};

/// Faces of a cluster that are enrolled at most: of more, a model does not become better.
pub const MAX_ENROLLED: usize = 10;
/// Shorter side of a box, pixels, from which a face does not count as better for its size: the networks' input.
const FULL_SIZE: f32 = 112.0;

/// An unknown person who became an enrolled one.
#[derive(Debug)]
pub struct NamedUnknown {
    pub person: Person,
    /// The person did not exist before.
    pub is_new: bool,
    /// Images that were enrolled.
    pub images: usize,
    /// The number of those images that have a picture.
    pub pictures: usize,
    /// Detections that have the name now.
    pub detections: usize,
    /// The training that was queued; `None` where the cluster had this name already.
    pub job: Option<String>,
    /// Blobs of pictures that were not enrolled; the caller deletes them.
    pub blobs: Vec<String>,
}

/// The columns of a face of a cluster.
#[derive(Queryable)]
struct Row {
    id: i64,
    captured_at: Micros,
    camera_id: String,
    track_id: Option<i64>,
    track_row: Option<i64>,
    embedder: String,
    embedding: Option<Vec<u8>>,
    detection_confidence: f32,
    corners: (f32, f32, f32, f32),
    weight: Option<f32>,
}

impl Row {
    /// Returns the quality of the face, 0 to 1: its weight in a track. For detections of older versions, which have
    /// none, it is computed from the box.
    fn quality(&self) -> f32 {
        if let Some(weight) = self.weight {
            return weight;
        }
        let (left, top, right, bottom) = self.corners;
        self.detection_confidence * ((right - left).min(bottom - top) / FULL_SIZE).clamp(0.0, 1.0)
    }
}

impl Database {
    /// Makes a person of a cluster: enrols its best faces, puts the name to all of its detections, removes the cluster and
    /// queues a training, all in one transaction. The name of somebody who is enrolled is accepted with `add` only. If the
    /// cluster became that person before, nothing changes.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`], [`StoreError::PersonExists`], [`StoreError::DatasetLocked`].
    pub async fn name_unknown(
        &self,
        id: UnknownId,
        name: &FaceId,
        add: bool,
    ) -> Result<NamedUnknown, StoreError> {
        let name = self.name(name);
        let named = self
            .write(move |connection| {
                insert_lock::hold_insert_lock(connection)?;
                unknowns::lock(connection)?;
                ensure_unlocked(connection)?;
                let person = names::find(connection, &PersonKey::Name(name.clone()))?;
                let row = match unknowns::row_of(connection, id) {
                    Err(StoreError::UnknownNotFound) => return named_before(connection, id, person),
                    row => row?,
                };
                let is_new = person.is_none();
                let person = match person {
                    Some(person) if !add => {
                        return Err(StoreError::PersonExists { person_id: Some(person.id) });
                    }
                    Some(person) => person,
                    None => people::add(connection, &name)?,
                };
                people::lock_person(connection, person.row)?;
                let (images, pictures) = enrol(connection, row, person.row)?;
                let faces = detections::table.filter(detections::unknown_id.eq(row)).select(detections::id);
                let faces: Vec<i64> = faces.load(connection)?;
                let blobs = put_name(connection, &faces, person.row)?;
                remember(connection, row, person.row)?;
                diesel::delete(clusters::table.find(row)).execute(connection)?;
                let job = Some(jobs::insert(connection, JobKind::OptimizedTrain)?);
                Ok(NamedUnknown { person, is_new, images, pictures, detections: faces.len(), job, blobs })
            })
            .await?;
        self.signals.notify(Topic::Jobs);
        Ok(named)
    }
}

/// Returns the outcome for a cluster that became `person` earlier.
fn named_before(
    connection: &mut AnyConnection,
    id: UnknownId,
    person: Option<Person>,
) -> Result<NamedUnknown, StoreError> {
    let owner: Option<i64> = named_unknowns::table
        .find(id.to_string())
        .select(named_unknowns::person_id)
        .first(connection)
        .optional()?;
    let person = person.filter(|person| Some(person.row) == owner).ok_or(StoreError::UnknownNotFound)?;
    Ok(NamedUnknown {
        person,
        is_new: false,
        images: 0,
        pictures: 0,
        detections: 0,
        job: None,
        blobs: Vec::new(),
    })
}

/// Records the person that a cluster, and those that were merged into it, became.
fn remember(connection: &mut AnyConnection, cluster: i64, person: i64) -> Result<(), StoreError> {
    let mut ids: Vec<String> = merged_unknowns::table
        .filter(merged_unknowns::unknown_id.eq(cluster))
        .select(merged_unknowns::public_id)
        .load(connection)?;
    ids.push(clusters::table.find(cluster).select(clusters::public_id).first(connection)?);
    for id in ids {
        diesel::insert_into(named_unknowns::table)
            .values((named_unknowns::public_id.eq(id), named_unknowns::person_id.eq(person)))
            .execute(connection)?;
    }
    Ok(())
}

/// Enrols the best faces of a cluster: with their pictures where they were kept, otherwise as embeddings. Returns how many, and
/// how many with pictures.
fn enrol(connection: &mut AnyConnection, cluster: i64, person: i64) -> Result<(usize, usize), StoreError> {
    let rows: Vec<Row> = detections::table
        .filter(detections::unknown_id.eq(cluster))
        .filter(detections::embedding.is_not_null())
        .select((
            detections::id,
            detections::captured_at,
            detections::camera_id,
            detections::track_id,
            detections::track_row,
            detections::embedder,
            detections::embedding,
            detections::detection_confidence,
            (detections::box_left, detections::box_top, detections::box_right, detections::box_bottom),
            detections::weight,
        ))
        .load(connection)?;
    let (mut enrolled, mut with_picture) = (0, 0);
    for face in best(rows)? {
        let picture: Option<(String, i64)> = unknown_pictures::table
            .find(face.id)
            .select((unknown_pictures::blob_key, unknown_pictures::bytes))
            .first(connection)
            .optional()?;
        let Some(embedding) = face.embedding else { continue };
        let image = Uuid::now_v7().to_string();
        // The image takes over the picture's blob.
        let taken = diesel::delete(unknown_pictures::table.find(face.id)).execute(connection)? == 1;
        // One that is gone meanwhile was too old: its blob is deleted.
        let picture = picture.filter(|_| taken);
        with_picture += usize::from(picture.is_some());
        let (blob_key, bytes) = picture.unwrap_or_else(|| (format!("{IMAGES_WITHOUT_PICTURES}{image}"), 0));
        let created_at = now();
        diesel::insert_into(images::table)
            .values((
                images::id.eq(&image),
                images::person_id.eq(person),
                images::blob_key.eq(blob_key),
                images::bytes.eq(bytes),
                images::created_at.eq(created_at),
            ))
            .execute(connection)?;
        let vector = vector_from_bytes(&embedding)?;
        people::insert_embedding(connection, &image, &face.embedder, &vector, created_at)?;
        enrolled += 1;
    }
    Ok((enrolled, with_picture))
}

/// Selects the best faces, first one of each track: crops of one track resemble each other.
fn best(rows: Vec<Row>) -> Result<Vec<Row>, StoreError> {
    let mut faces: BTreeMap<i64, Row> = BTreeMap::new();
    let mut tracked = Vec::with_capacity(rows.len());
    for row in rows {
        tracked.push(UnknownFace {
            id: row.id,
            captured_at: row.captured_at,
            camera_id: row.camera_id.clone(),
            track_id: row.track_id,
            track_row: row.track_row,
            embedding: row.embedding.as_deref().map(vector_from_bytes).transpose()?.unwrap_or_default(),
        });
        faces.insert(row.id, row);
    }
    let mut tracks: Vec<VecDeque<Row>> = UnknownTrack::of(tracked)
        .into_iter()
        .map(|track| {
            let mut rows: Vec<Row> = track.faces.iter().filter_map(|id| faces.remove(id)).collect();
            rows.sort_by(|a, b| b.quality().total_cmp(&a.quality()).then(a.id.cmp(&b.id)));
            rows.into()
        })
        .collect();
    let quality = |track: &VecDeque<Row>| track.front().map_or(0.0, Row::quality);
    tracks.sort_by(|a, b| quality(b).total_cmp(&quality(a)));
    let mut best = Vec::new();
    while best.len() < MAX_ENROLLED && tracks.iter().any(|track| !track.is_empty()) {
        let round = tracks.iter_mut().filter_map(VecDeque::pop_front);
        best.extend(round.take(MAX_ENROLLED - best.len()));
    }
    Ok(best)
}

/// Assigns a person to unknown detections: removes them from their clusters and the cohort, and deletes their embeddings and
/// proposals. Part of a transaction whose first statements take the insert lock, since it revises detections, and lock the
/// clusters. Returns the blobs of their pictures, which the caller deletes after the transaction.
pub(super) fn put_name(
    connection: &mut AnyConnection,
    faces: &[i64],
    person: i64,
) -> Result<Vec<String>, StoreError> {
    let ended = tracks::end_of_detections(connection, faces)?;
    unknowns::leave(connection, faces)?;
    // The cohort of strangers must not keep a copy.
    cohort::erase_of_detections(connection, faces)?;
    for faces in faces.chunks(MAX_VARIABLES) {
        // No model decided this: the stored probability and score belong to other people.
        diesel::update(detections::table.filter(detections::id.eq_any(faces)))
            .set((
                detections::person_id.eq(Some(person)),
                detections::unknown_id.eq(None::<i64>),
                detections::embedding.eq(None::<Vec<u8>>),
                detections::confidence.eq(None::<f32>),
                detections::score.eq(None::<f32>),
                detections::model_version.eq(None::<i64>),
            ))
            .execute(connection)?;
        diesel::delete(proposals::table.filter(proposals::detection_id.eq_any(faces))).execute(connection)?;
    }
    tracks::put_name(connection, faces, &ended, person)?;
    super::unknown_pictures::take(connection, faces)
}
