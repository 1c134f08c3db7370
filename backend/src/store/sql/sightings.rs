//! Sightings: tracks, and detections without one.

use std::collections::HashMap;

use diesel::{Connection, prelude::*};

use super::{
    AnyConnection, Database, MAX_VARIABLES, names,
    people::person,
    schema::{detections, people, tracks},
};
use crate::{
    domain::{Micros, Sighting, SightingFilter, SightingId, SightingPosition},
    store::StoreError,
};

/// The columns of a person.
type PersonColumns = (Option<i64>, Option<String>, Option<Micros>, Option<String>);

/// The columns of a track and of its person.
#[derive(Queryable)]
struct TrackRow {
    id: i64,
    camera_id: String,
    location: String,
    run_id: String,
    track_id: i64,
    first_captured_at: Micros,
    last_captured_at: Micros,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    model_version: Option<i64>,
    crops: i64,
    closes_at: Option<Micros>,
    updated_at: Micros,
    person: PersonColumns,
}

/// The columns of a detection without a track, and of its person.
#[derive(Queryable)]
struct DetectionRow {
    id: i64,
    camera_id: String,
    location: String,
    track_id: Option<i64>,
    captured_at: Micros,
    received_at: Micros,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    model_version: Option<i64>,
    person: PersonColumns,
}

impl TrackRow {
    fn sighting(self, best_detection: Option<i64>) -> Sighting {
        let (row, face_id, enrolled_at, public_id) = self.person;
        let person = row.zip(enrolled_at);
        Sighting {
            id: SightingId::Track(self.id),
            camera_id: self.camera_id,
            location: self.location,
            run_id: Some(self.run_id).filter(|run_id| !run_id.is_empty()),
            track_id: Some(self.track_id),
            first_captured_at: self.first_captured_at,
            last_captured_at: self.last_captured_at,
            face_id,
            person_id: person.map(|(row, at)| names::person_id(row, at, public_id.as_deref())),
            confidence: self.confidence,
            score: self.score,
            threshold: self.threshold,
            model_version: self.model_version,
            crops: self.crops,
            best_detection,
            open: self.closes_at.is_some(),
            updated_at: self.updated_at,
        }
    }
}

impl From<DetectionRow> for Sighting {
    fn from(detection: DetectionRow) -> Self {
        let (row, face_id, enrolled_at, public_id) = detection.person;
        let person = row.zip(enrolled_at);
        Self {
            id: SightingId::Detection(detection.id),
            camera_id: detection.camera_id,
            location: detection.location,
            run_id: None,
            track_id: detection.track_id,
            first_captured_at: detection.captured_at,
            last_captured_at: detection.captured_at,
            face_id,
            person_id: person.map(|(row, at)| names::person_id(row, at, public_id.as_deref())),
            confidence: detection.confidence,
            score: detection.score,
            threshold: detection.threshold,
            model_version: detection.model_version,
            crops: 1,
            best_detection: Some(detection.id),
            open: false,
            updated_at: detection.received_at,
        }
    }
}

/// Returns the sort key of the list, which is in descending order: by the first capture; of the same time tracks before
/// detections, each by id.
fn place(sighting: &Sighting) -> (Micros, bool, i64) {
    match sighting.id {
        SightingId::Detection(id) => (sighting.first_captured_at, false, id),
        SightingId::Track(id) => (sighting.first_captured_at, true, id),
    }
}

impl Database {
    /// Returns at most `limit` sightings, starting after the position `after`: the last to begin comes first.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the filter does not exist.
    pub async fn sightings(
        &self,
        filter: SightingFilter,
        after: Option<SightingPosition>,
        limit: i64,
    ) -> Result<Vec<Sighting>, StoreError> {
        let sought = filter.person.as_ref().map(|who| self.sought(who));
        self.read(move |connection| {
            let person = match &sought {
                Some(sought) => Some(person(connection, sought)?.row),
                None => None,
            };
            // Each of the two lists is read as far as the page may reach in it.
            let rows = track_rows(connection, &filter, person, after, limit)?;
            let best = best_detections(connection, &rows)?;
            let mut sightings: Vec<Sighting> = rows
                .into_iter()
                .map(|row| {
                    let best = best.get(&row.id).copied();
                    row.sighting(best)
                })
                .collect();
            sightings.extend(
                detection_rows(connection, &filter, person, after, limit)?.into_iter().map(Sighting::from),
            );
            sightings.sort_by_key(|sighting| std::cmp::Reverse(place(sighting)));
            sightings.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            Ok(sightings)
        })
        .await
    }
}

fn track_rows(
    connection: &mut AnyConnection,
    filter: &SightingFilter,
    person: Option<i64>,
    after: Option<SightingPosition>,
    limit: i64,
) -> Result<Vec<TrackRow>, StoreError> {
    let mut query = tracks::table
        .left_join(people::table)
        .filter(tracks::stored.eq(true))
        .select((
            tracks::id,
            tracks::camera_id,
            tracks::location,
            tracks::run_id,
            tracks::track_id,
            tracks::first_captured_at,
            tracks::last_captured_at,
            tracks::confidence,
            tracks::score,
            tracks::threshold,
            tracks::model_version,
            tracks::crops,
            tracks::closes_at,
            tracks::updated_at,
            (
                tracks::person_id,
                people::face_id.nullable(),
                people::created_at.nullable(),
                people::public_id.nullable(),
            ),
        ))
        .order((tracks::first_captured_at.desc(), tracks::id.desc()))
        .limit(limit)
        .into_boxed::<<AnyConnection as Connection>::Backend>();
    if let Some(person) = person {
        query = query.filter(tracks::person_id.eq(person));
    }
    query = match filter.known {
        None => query,
        Some(true) => query.filter(tracks::person_id.is_not_null()),
        Some(false) => query.filter(tracks::person_id.is_null()),
    };
    if let Some(camera_id) = &filter.camera_id {
        query = query.filter(tracks::camera_id.eq(camera_id.clone()));
    }
    if let Some(location) = &filter.location {
        query = query.filter(tracks::location.eq(location.clone()));
    }
    if let Some(from) = filter.from {
        query = query.filter(tracks::last_captured_at.ge(from));
    }
    if let Some(to) = filter.to {
        query = query.filter(tracks::first_captured_at.lt(to));
    }
    // The first condition bounds the range of the index.
    query = match after {
        None => query,
        Some(SightingPosition { first_captured_at, id: SightingId::Track(id) }) => query
            .filter(tracks::first_captured_at.le(first_captured_at))
            .filter(tracks::first_captured_at.lt(first_captured_at).or(tracks::id.lt(id))),
        Some(SightingPosition { first_captured_at, id: SightingId::Detection(_) }) => {
            query.filter(tracks::first_captured_at.lt(first_captured_at))
        }
    };
    Ok(query.load::<TrackRow>(connection)?)
}

fn detection_rows(
    connection: &mut AnyConnection,
    filter: &SightingFilter,
    person: Option<i64>,
    after: Option<SightingPosition>,
    limit: i64,
) -> Result<Vec<DetectionRow>, StoreError> {
    let mut query = detections::table
        .left_join(people::table)
        .filter(detections::track_row.is_null())
        .select((
            detections::id,
            detections::camera_id,
            detections::location,
            detections::track_id,
            detections::captured_at,
            detections::received_at,
            detections::confidence,
            detections::score,
            detections::threshold,
            detections::model_version,
            (
                detections::person_id,
                people::face_id.nullable(),
                people::created_at.nullable(),
                people::public_id.nullable(),
            ),
        ))
        .order((detections::captured_at.desc(), detections::id.desc()))
        .limit(limit)
        .into_boxed::<<AnyConnection as Connection>::Backend>();
    if let Some(person) = person {
        query = query.filter(detections::person_id.eq(person));
    }
    query = match filter.known {
        None => query,
        Some(true) => query.filter(detections::person_id.is_not_null()),
        Some(false) => query.filter(detections::person_id.is_null()),
    };
    if let Some(camera_id) = &filter.camera_id {
        query = query.filter(detections::camera_id.eq(camera_id.clone()));
    }
    if let Some(location) = &filter.location {
        query = query.filter(detections::location.eq(location.clone()));
    }
    if let Some(from) = filter.from {
        query = query.filter(detections::captured_at.ge(from));
    }
    if let Some(to) = filter.to {
        query = query.filter(detections::captured_at.lt(to));
    }
    query = match after {
        None => query,
        Some(SightingPosition { first_captured_at, id: SightingId::Track(_) }) => {
            query.filter(detections::captured_at.le(first_captured_at))
        }
        Some(SightingPosition { first_captured_at, id: SightingId::Detection(id) }) => query
            .filter(detections::captured_at.le(first_captured_at))
            .filter(detections::captured_at.lt(first_captured_at).or(detections::id.lt(id))),
    };
    Ok(query.load::<DetectionRow>(connection)?)
}

/// Returns the detection with the greatest weight in each track, the earliest of several.
fn best_detections(
    connection: &mut AnyConnection,
    rows: &[TrackRow],
) -> Result<HashMap<i64, i64>, StoreError> {
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let mut best: HashMap<i64, (f32, i64)> = HashMap::new();
    for ids in ids.chunks(MAX_VARIABLES) {
        let found = detections::table
            .filter(detections::track_row.eq_any(ids))
            .order(detections::id)
            .select((detections::track_row, detections::weight, detections::id))
            .load::<(Option<i64>, Option<f32>, i64)>(connection)?;
        for (track, weight, id) in found {
            let Some(track) = track else { continue };
            let weight = weight.unwrap_or_default();
            let entry = best.entry(track).or_insert((weight, id));
            if weight > entry.0 {
                *entry = (weight, id);
            }
        }
    }
    Ok(best.into_iter().map(|(track, (_, id))| (track, id)).collect())
}
