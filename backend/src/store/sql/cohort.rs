//! The cohort: embeddings of strangers, without anything that says whose they are.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use diesel::{
    Connection,
    dsl::{count_star, max, min},
    prelude::*,
};
use facepipe_vision::EmbedderKind;
use uuid::Uuid;

use super::{
    AnyConnection, Database, MAX_VARIABLES,
    leases::{Lease, renew},
    schema::{cohort, cohort_cursor, detections, embeddings, images, leases},
};
use crate::{
    domain::{CohortSource, Micros, cosine, now},
    store::{StoreError, vector_from_bytes, vector_to_bytes},
};

/// The one row of the cursor.
const CURSOR: i32 = 1;
/// A track that has had no detection for so long is over, microseconds.
const TRACK_GAP: Micros = 600_000_000;

/// An embedding of the cohort.
#[derive(Debug, Clone, PartialEq)]
pub struct CohortMember {
    /// A random UUID.
    pub id: String,
    /// Where it comes from.
    pub source: CohortSource,
    /// L2-normalised.
    pub embedding: Vec<f32>,
}

/// An unknown detection that may become a member of the cohort.
#[derive(Debug, Clone, PartialEq)]
pub struct CohortCandidate {
    /// Row id of the detection.
    pub detection: i64,
    /// Its track, if the edge tracks.
    pub track: Option<CandidateTrack>,
    /// When it was captured.
    pub captured_at: Micros,
    /// Probability of a face, 0 to 1.
    pub detection_confidence: f32,
    /// Length of the shorter side of its box, pixels.
    pub shorter_side: f32,
    /// L2-normalised.
    pub embedding: Vec<f32>,
}

/// The track of a detection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CandidateTrack {
    /// Row id of the track.
    Stored(i64),
    /// Camera and number of a track without a row: of detections that were not decided together.
    Numbered(String, i64),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct CandidateBatch {
    /// In the order of arrival.
    pub candidates: Vec<CohortCandidate>,
    /// The last detection that was considered; `None` where there is nothing more to consider.
    pub through: Option<i64>,
}

/// The columns of a detection that may be a candidate.
#[derive(Queryable)]
struct CandidateRow {
    id: i64,
    camera_id: String,
    track_id: Option<i64>,
    track_row: Option<i64>,
    captured_at: Micros,
    received_at: Micros,
    person_id: Option<i64>,
    embedder: String,
    embedding: Option<Vec<u8>>,
    detection_confidence: f32,
    bounding_box: (f32, f32, f32, f32),
}

/// An embedding to add to the cohort.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCohortMember {
    /// L2-normalised.
    pub embedding: Vec<f32>,
    /// When it was uploaded, or captured by a camera.
    pub created_at: Micros,
}

/// The embeddings of one embedder from one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CohortCount {
    /// The network that computed them.
    pub embedder: String,
    /// Where they come from.
    pub source: CohortSource,
    /// How many they are, at least one.
    pub embeddings: i64,
    /// The time of the oldest.
    pub oldest: Micros,
    /// The time of the newest.
    pub newest: Micros,
}

/// Which embeddings of the cohort; all by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CohortFilter {
    /// Only those from this source.
    pub source: Option<CohortSource>,
    /// Only those by this embedder.
    pub embedder: Option<String>,
    /// Only those from before this time.
    pub before: Option<Micros>,
}

impl Database {
    /// Returns the embeddings of the cohort by `embedder`, the oldest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cohort(&self, embedder: &str) -> Result<Vec<Vec<f32>>, StoreError> {
        let members = self.cohort_members(embedder).await?;
        Ok(members.into_iter().map(|member| member.embedding).collect())
    }

    /// Returns the members of the cohort as [`cohort`](Self::cohort) does, with ids and sources.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cohort_members(&self, embedder: &str) -> Result<Vec<CohortMember>, StoreError> {
        let embedder = embedder.to_owned();
        self.read(move |connection| members(connection, &embedder)).await
    }

    /// Counts the embeddings of the cohort, by embedder and source.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cohort_counts(&self) -> Result<Vec<CohortCount>, StoreError> {
        self.read(|connection| {
            let rows = cohort::table
                .group_by((cohort::embedder, cohort::source))
                .select((
                    cohort::embedder,
                    cohort::source,
                    count_star(),
                    min(cohort::created_at),
                    max(cohort::created_at),
                ))
                .order((cohort::embedder, cohort::source.desc()))
                .load::<(String, String, i64, Option<Micros>, Option<Micros>)>(connection)?;
            let count = |(embedder, source, embeddings, oldest, newest): (String, String, i64, _, _)| {
                let (oldest, newest) = Option::zip(oldest, newest)?;
                Some(source_of(&source).map(|source| CohortCount {
                    embedder,
                    source,
                    embeddings,
                    oldest,
                    newest,
                }))
            };
            rows.into_iter().filter_map(count).collect()
        })
        .await
    }

    /// Adds uploaded embeddings by `embedder`, except those that have at least the cosine `same_picture` to one that is
    /// there. Returns for each whether it was added.
    ///
    /// # Errors
    /// The database fails; none is added.
    pub async fn upload_cohort(
        &self,
        embedder: &str,
        new: Vec<NewCohortMember>,
        same_picture: f32,
    ) -> Result<Vec<bool>, StoreError> {
        let embedder = embedder.to_owned();
        self.write(move |connection| {
            lock_cohort(connection)?;
            let mut there: Vec<Vec<f32>> =
                members(connection, &embedder)?.into_iter().map(|member| member.embedding).collect();
            let mut added = Vec::with_capacity(new.len());
            for member in &new {
                let is_new = there.iter().all(|other| cosine(other, &member.embedding) < same_picture);
                if is_new {
                    insert(connection, &embedder, CohortSource::Uploaded, member)?;
                    there.push(member.embedding.clone());
                }
                added.push(is_new);
            }
            Ok(added)
        })
        .await
    }

    /// Returns the next detections, at most `limit`, that may become members of the cohort: unknown ones with an
    /// embedding by `embedder`, unless their track has been considered before or may go on.
    ///
    /// # Errors
    /// The database fails.
    pub async fn cohort_candidates(&self, embedder: &str, limit: i64) -> Result<CandidateBatch, StoreError> {
        let settled = self.last_visible_detection().await?;
        let embedder = embedder.to_owned();
        self.read(move |connection| {
            let after = cohort_cursor::table.find(CURSOR).select(cohort_cursor::detection_id);
            let after: i64 = after.first(connection)?;
            let rows = detections::table
                .filter(detections::id.gt(after))
                .filter(detections::id.le(settled))
                .order(detections::id)
                .limit(limit)
                .select((
                    detections::id,
                    detections::camera_id,
                    detections::track_id,
                    detections::track_row,
                    detections::captured_at,
                    detections::received_at,
                    detections::person_id,
                    detections::embedder,
                    detections::embedding,
                    detections::detection_confidence,
                    (
                        detections::box_left,
                        detections::box_top,
                        detections::box_right,
                        detections::box_bottom,
                    ),
                ))
                .load::<CandidateRow>(connection)?;
            let now = now();
            // A time in the future comes from a wrong clock; it must not block all later candidates.
            let may_go_on = |row: &CandidateRow| (now - TRACK_GAP..=now).contains(&row.received_at);
            let mut batch = CandidateBatch::default();
            for row in rows.into_iter().take_while(|row| !may_go_on(row)) {
                batch.through = Some(row.id);
                if row.person_id.is_none()
                    && row.embedder == embedder
                    && let Some(vector) = &row.embedding
                    && !is_considered(connection, &row, after)?
                {
                    let (left, top, right, bottom) = row.bounding_box;
                    batch.candidates.push(CohortCandidate {
                        detection: row.id,
                        embedding: vector_from_bytes(vector)?,
                        track: match row.track_row {
                            Some(track) => Some(CandidateTrack::Stored(track)),
                            None => row.track_id.map(|track| CandidateTrack::Numbered(row.camera_id, track)),
                        },
                        captured_at: row.captured_at.min(now),
                        detection_confidence: row.detection_confidence,
                        shorter_side: (right - left).min(bottom - top),
                    });
                }
            }
            Ok(batch)
        })
        .await
    }

    /// Copies the embeddings of detections by `embedder` into the cohort, except those of detections that were erased
    /// or identified meanwhile, and erases the oldest from cameras beyond `max`; all detections up to `through` are considered
    /// then. Returns how many it added, and how many it erased.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] where `holder` does not have the cohort's lease any more.
    pub async fn add_to_cohort_from_cameras(
        &self,
        embedder: &str,
        chosen: Vec<CohortCandidate>,
        max: u32,
        through: i64,
        holder: &str,
        ttl: Duration,
    ) -> Result<(usize, usize), StoreError> {
        let (embedder, holder) = (embedder.to_owned(), holder.to_owned());
        self.write(move |connection| {
            // Locks the cohort as `lock_cohort` does.
            if !renew(connection, Lease::Cohort, &holder, ttl)? {
                return Err(StoreError::LeaseLost);
            }
            let ids: Vec<i64> = chosen.iter().map(|candidate| candidate.detection).collect();
            let there: Vec<i64> = detections::table
                .filter(detections::id.eq_any(ids))
                .filter(detections::person_id.is_null())
                .filter(detections::embedding.is_not_null())
                .select(detections::id)
                .load(connection)?;
            let there: HashSet<i64> = there.into_iter().collect();
            for candidate in chosen.iter().filter(|candidate| there.contains(&candidate.detection)) {
                let member = NewCohortMember {
                    embedding: candidate.embedding.clone(),
                    created_at: candidate.captured_at,
                };
                insert(connection, &embedder, CohortSource::Camera, &member)?;
            }
            let from_cameras = cohort::table
                .filter(cohort::embedder.eq(&embedder))
                .filter(cohort::source.eq(CohortSource::Camera.name()));
            let count: i64 = from_cameras.count().get_result(connection)?;
            let beyond = count - i64::from(max);
            let mut evicted = 0;
            if beyond > 0 {
                let oldest: Vec<String> = from_cameras
                    .order((cohort::created_at, cohort::id))
                    .limit(beyond)
                    .select(cohort::id)
                    .load(connection)?;
                evicted = erase_members(connection, &oldest)?;
            }
            diesel::update(cohort_cursor::table.find(CURSOR))
                .set(cohort_cursor::detection_id.eq(through))
                .execute(connection)?;
            Ok((there.len(), evicted))
        })
        .await
    }

    /// Erases embeddings of the cohort. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn erase_cohort(&self, filter: CohortFilter) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let mut query =
                diesel::delete(cohort::table).into_boxed::<<AnyConnection as Connection>::Backend>();
            if let Some(source) = filter.source {
                query = query.filter(cohort::source.eq(source.name()));
            }
            if let Some(embedder) = &filter.embedder {
                query = query.filter(cohort::embedder.eq(embedder));
            }
            if let Some(before) = filter.before {
                query = query.filter(cohort::created_at.lt(before));
            }
            Ok(query.execute(connection)?)
        })
        .await
    }

    /// Erases the embeddings of the cohort with these ids. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn erase_cohort_members(&self, ids: Vec<String>) -> Result<usize, StoreError> {
        self.write(move |connection| erase_members(connection, &ids)).await
    }
}

/// Makes other transactions that call this wait until this one ends, so that the second of two that add the same picture
/// finds it. Transactions that add embeddings call it before they read.
pub(super) fn lock_cohort(connection: &mut AnyConnection) -> Result<(), StoreError> {
    let row = leases::table.find(Lease::Cohort.name());
    diesel::update(row).set(leases::expires_at.eq(leases::expires_at)).execute(connection)?;
    Ok(())
}

pub(super) fn members(
    connection: &mut AnyConnection,
    embedder: &str,
) -> Result<Vec<CohortMember>, StoreError> {
    let rows = cohort::table
        .filter(cohort::embedder.eq(embedder))
        .order((cohort::created_at, cohort::id))
        .select((cohort::id, cohort::source, cohort::vector))
        .load::<(String, String, Vec<u8>)>(connection)?;
    rows.into_iter()
        .map(|(id, source, vector)| {
            Ok(CohortMember { id, source: source_of(&source)?, embedding: vector_from_bytes(&vector)? })
        })
        .collect()
}

pub(super) fn insert(
    connection: &mut AnyConnection,
    embedder: &str,
    source: CohortSource,
    member: &NewCohortMember,
) -> Result<(), StoreError> {
    diesel::insert_into(cohort::table)
        .values((
            // The id is random: it reveals nothing about the face, and no more about the time than `created_at`.
            cohort::id.eq(Uuid::new_v4().to_string()),
            cohort::embedder.eq(embedder),
            cohort::source.eq(source.name()),
            cohort::vector.eq(vector_to_bytes(&member.embedding)),
            cohort::created_at.eq(member.created_at),
        ))
        .execute(connection)?;
    Ok(())
}

pub(super) fn erase_members(connection: &mut AnyConnection, ids: &[String]) -> Result<usize, StoreError> {
    let mut erased = 0;
    for ids in ids.chunks(MAX_VARIABLES) {
        erased += diesel::delete(cohort::table.filter(cohort::id.eq_any(ids))).execute(connection)?;
    }
    Ok(erased)
}

/// Erases the embeddings of the cohort that may show a person: those that verification accepts for one of the person's
/// images. Of strangers, it accepts about one in a thousand, which the cohort can do without. Must be called before the
/// images are deleted. Returns how many it erased.
pub(super) fn erase_of_person(connection: &mut AnyConnection, person_id: i64) -> Result<usize, StoreError> {
    let rows = embeddings::table
        .inner_join(images::table)
        .filter(images::person_id.eq(person_id))
        .select((embeddings::embedder, embeddings::vector))
        .load::<(String, Vec<u8>)>(connection)?;
    let mut templates: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
    for (embedder, vector) in rows {
        templates.entry(embedder).or_default().push(vector_from_bytes(&vector)?);
    }
    let mut erased = 0;
    for (embedder, templates) in templates {
        // Only the version that knows this embedder knows its threshold.
        let Ok(kind) = embedder.parse::<EmbedderKind>() else { continue };
        let threshold = kind.verification_threshold();
        let shows_person = |member: &CohortMember| {
            templates.iter().any(|template| cosine(template, &member.embedding) >= threshold)
        };
        let matching = members(connection, &embedder)?.into_iter().filter(shows_person);
        let ids: Vec<String> = matching.map(|member| member.id).collect();
        erased += erase_members(connection, &ids)?;
    }
    Ok(erased)
}

/// Returns whether a detection of the same track was considered before.
fn is_considered(
    connection: &mut AnyConnection,
    row: &CandidateRow,
    considered: i64,
) -> Result<bool, StoreError> {
    if let Some(track) = row.track_row {
        let earlier = detections::table
            .filter(detections::track_row.eq(track))
            .filter(detections::id.le(considered))
            .select(detections::id);
        return Ok(earlier.first::<i64>(connection).optional()?.is_some());
    }
    let Some(track) = row.track_id else { return Ok(false) };
    let earlier = detections::table
        .filter(detections::camera_id.eq(&row.camera_id))
        .filter(detections::captured_at.between(row.captured_at - TRACK_GAP, row.captured_at + TRACK_GAP))
        .filter(detections::track_id.eq(track))
        .filter(detections::track_row.is_null())
        .filter(detections::id.le(considered))
        .select(detections::id);
    Ok(earlier.first::<i64>(connection).optional()?.is_some())
}

/// Erases the copies of detections' embeddings. Must be called before the detections or their embeddings are deleted, and
/// after clusters are locked. Returns how many it erased.
pub(super) fn erase_of_detections(connection: &mut AnyConnection, ids: &[i64]) -> Result<usize, StoreError> {
    if ids.is_empty() || !is_fed_by_cameras(connection)? {
        return Ok(0);
    }
    let mut is_locked = false;
    let mut erased = 0;
    for ids in ids.chunks(MAX_VARIABLES) {
        let rows: Vec<Option<Vec<u8>>> = detections::table
            .filter(detections::id.eq_any(ids))
            .filter(detections::embedding.is_not_null())
            .select(detections::embedding)
            .load(connection)?;
        let vectors: Vec<Vec<u8>> = rows.into_iter().flatten().collect();
        if vectors.is_empty() {
            continue;
        }
        if !is_locked {
            // Waits for a pass that is copying these embeddings at this moment.
            lock_cohort(connection)?;
            is_locked = true;
        }
        let copies = cohort::table
            .filter(cohort::source.eq(CohortSource::Camera.name()))
            .filter(cohort::vector.eq_any(vectors));
        erased += diesel::delete(copies).execute(connection)?;
    }
    Ok(erased)
}

/// Returns whether the cohort has embeddings from cameras, or a pass that is running may be adding them.
fn is_fed_by_cameras(connection: &mut AnyConnection) -> Result<bool, StoreError> {
    let from_cameras =
        cohort::table.filter(cohort::source.eq(CohortSource::Camera.name())).select(cohort::id);
    if from_cameras.first::<String>(connection).optional()?.is_some() {
        return Ok(true);
    }
    let holder: String = leases::table.find(Lease::Cohort.name()).select(leases::holder).first(connection)?;
    Ok(!holder.is_empty())
}

fn source_of(name: &str) -> Result<CohortSource, StoreError> {
    CohortSource::from_name(name).ok_or_else(|| StoreError::Damaged(format!("a cohort from {name:?}")))
}
