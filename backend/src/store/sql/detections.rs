//! Detections: who was seen where and when.

use std::collections::HashMap;

use diesel::{
    Connection,
    dsl::{IntoBoxed, auto_type, max},
    expression::functions::define_sql_function,
    prelude::*,
    sql_types::{BigInt, Nullable, Text},
};

use super::{
    AnyConnection, Database, cohort, names,
    people::person,
    schema::{detection_revisions, detections, people, tracks, unknowns as clusters},
    tracks as track_rows, unknown_pictures, unknowns,
};
use crate::{
    domain::{
        CLOCK_UNSET_BEFORE, DetectionFilter, DetectionOrder, DetectionPosition, Micros, Person, PersonRef,
        Revision, SightingId, StoredDetection, UnknownId,
    },
    store::{StoreError, vector_to_bytes},
};

/// Maximum number of a cluster's faces for its row to be recomputed when one of them is erased.
const SUMMARISED_AT_ONCE: i64 = 1000;

/// A detection to store.
pub struct NewDetection {
    /// The time of capture that counts.
    pub captured_at: Micros,
    /// The sender's time of capture, where it does not count.
    pub claimed_at: Option<Micros>,
    /// When the image arrived.
    pub received_at: Micros,
    pub camera_id: String,
    /// The camera's location.
    pub location: String,
    /// Row id of the person; `None` for an unknown face.
    pub person_id: Option<i64>,
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
    /// The network that computed the embedding.
    pub embedder: &'static str,
    /// The embedding of an unknown face, unless that is switched off.
    pub embedding: Option<Vec<f32>>,
    /// The image's idempotency key.
    pub upload_key: Option<String>,
    /// Number of the face in its image, from 0.
    pub face: i32,
    /// Left, top, right, bottom in pixels: of the camera's frame where the edge sent them, else of the image.
    pub bounding_box: [f32; 4],
    /// The edge's track.
    pub track_id: Option<i64>,
    /// The row of the track, where it is the track's face.
    pub track_row: Option<i64>,
    /// How much it counts in its track, 0 to 1.
    pub weight: f32,
}

/// The columns of a detection and of its person.
#[derive(Queryable)]
struct Row {
    id: i64,
    captured_at: Micros,
    claimed_at: Option<Micros>,
    received_at: Micros,
    camera_id: String,
    location: String,
    face_id: Option<String>,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    detection_confidence: f32,
    model_version: Option<i64>,
    track_id: Option<i64>,
    bounding_box: (f32, f32, f32, f32),
    /// Row, time of enrolment and id of the person.
    person: (Option<i64>, Option<Micros>, Option<String>),
    /// Id of the unknown person.
    unknown: Option<String>,
    track_row: Option<i64>,
    /// The decision about all crops of the track.
    track: Option<TrackColumns>,
    /// Id and time of the latest revision.
    revision: Option<(i64, Micros)>,
}

/// The columns of a detection's track, which a later crop may have changed for all of the track's detections.
#[derive(Queryable)]
struct TrackColumns {
    run_id: String,
    crops: i64,
    confidence: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    model_version: Option<i64>,
    person_id: Option<i64>,
}

impl From<Row> for StoredDetection {
    fn from(row: Row) -> Self {
        let (left, top, right, bottom) = row.bounding_box;
        let (person_row, enrolled_at, public_id) = row.person;
        let person = person_row.zip(enrolled_at);
        let run_id = row.track.as_ref().map(|track| track.run_id.clone()).filter(|run_id| !run_id.is_empty());
        let crops = row.track.as_ref().map_or(1, |track| track.crops);
        let own = TrackColumns {
            run_id: String::new(),
            crops,
            confidence: row.confidence,
            score: row.score,
            threshold: row.threshold,
            model_version: row.model_version,
            person_id: person_row,
        };
        // The track's decision does not apply to a detection that an administrator gave another name.
        let decided = row.track.filter(|track| track.person_id == person_row).unwrap_or(own);
        Self {
            id: row.id,
            captured_at: row.captured_at,
            claimed_at: row.claimed_at,
            received_at: row.received_at,
            camera_id: row.camera_id,
            location: row.location,
            face_id: row.face_id,
            person_id: person
                .map(|(row, created_at)| names::person_id(row, created_at, public_id.as_deref())),
            unknown_id: row.unknown.as_deref().and_then(UnknownId::parse),
            confidence: decided.confidence,
            score: decided.score,
            threshold: decided.threshold,
            detection_confidence: row.detection_confidence,
            model_version: decided.model_version,
            track_id: row.track_id,
            run_id,
            sighting: row.track_row.map_or(SightingId::Detection(row.id), SightingId::Track),
            crops,
            revision: row.revision.map(|(id, revised_at)| Revision { id, revised_at }),
            bounding_box: [left, top, right, bottom],
        }
    }
}

/// A camera at a location.
pub struct CameraPlace {
    pub camera_id: String,
    pub location: String,
    /// The time of the last detection there.
    pub last_seen: Micros,
}

#[derive(Queryable)]
pub struct LastSeen {
    /// The camera's location.
    pub location: String,
    pub camera_id: String,
    /// The time of capture that counts.
    pub captured_at: Micros,
    /// The sender's time of capture, where it does not count.
    pub claimed_at: Option<Micros>,
    /// When the image arrived.
    pub received_at: Micros,
    /// Probability, 0 to 1.
    pub confidence: Option<f32>,
}

/// Row id, time that counts, claimed time, time of arrival and track of a detection.
type TimesOfRow = (i64, Micros, Option<Micros>, Micros, Option<i64>);

impl Database {
    /// Returns a person and the last detection of the person, if any.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`].
    pub async fn last_seen(&self, who: &PersonRef) -> Result<(Person, Option<LastSeen>), StoreError> {
        let sought = self.sought(who);
        self.read(move |connection| {
            let person = person(connection, &sought)?;
            let row = detections::table
                .left_join(tracks::table)
                .filter(detections::person_id.eq(person.row))
                .order((detections::captured_at.desc(), detections::id.desc()))
                .select((
                    (
                        detections::location,
                        detections::camera_id,
                        detections::captured_at,
                        detections::claimed_at,
                        detections::received_at,
                        detections::confidence,
                    ),
                    (tracks::person_id.nullable(), tracks::confidence.nullable()),
                ))
                .first::<(LastSeen, (Option<i64>, Option<f32>))>(connection)
                .optional()?;
            // The confidence of all crops of the track, unless an administrator named the detection.
            let row = row.map(|(last, (decided, confidence))| LastSeen {
                confidence: if decided == Some(person.row) { confidence } else { last.confidence },
                ..last
            });
            Ok((person, row))
        })
        .await
    }

    /// Corrects the times of at most `limit` detections that are impossible given `now`, the time of a correct clock: later
    /// than `now` plus `ahead`, or received by a clock that was not set yet. Servers with a wrong clock leave such rows, and
    /// so do servers of a version that trusted every camera. Returns how many it corrected.
    ///
    /// # Errors
    /// The database fails.
    pub async fn correct_times(&self, now: Micros, ahead: Micros, limit: i64) -> Result<usize, StoreError> {
        let latest = now.saturating_add(ahead);
        self.write(move |connection| {
            // Two queries, each of them on a range of the index of times.
            let columns = (
                detections::id,
                detections::captured_at,
                detections::claimed_at,
                detections::received_at,
                detections::track_row,
            );
            let mut rows: Vec<TimesOfRow> = detections::table
                .filter(detections::captured_at.gt(latest))
                .order((detections::captured_at, detections::id))
                .limit(limit)
                .select(columns)
                .load(connection)?;
            rows.extend(
                detections::table
                    .filter(detections::captured_at.lt(CLOCK_UNSET_BEFORE))
                    .filter(detections::received_at.lt(CLOCK_UNSET_BEFORE))
                    .order((detections::captured_at, detections::id))
                    .limit(limit)
                    .select(columns)
                    .load::<TimesOfRow>(connection)?,
            );
            for (id, captured_at, claimed_at, received_at, _) in &rows {
                let claim = claimed_at.unwrap_or(*captured_at);
                let possible = CLOCK_UNSET_BEFORE..=latest;
                let (captured_at, claimed_at) = if possible.contains(received_at) {
                    (*received_at, Some(claim))
                } else if possible.contains(&claim) {
                    (claim, None)
                } else {
                    // The detection arrived at the latest now; nothing else is known.
                    (now, Some(claim))
                };
                diesel::update(detections::table.find(id))
                    .set((detections::captured_at.eq(captured_at), detections::claimed_at.eq(claimed_at)))
                    .execute(connection)?;
            }
            let tracks = rows.iter().filter_map(|(.., track)| *track).collect();
            track_rows::correct_times(connection, &tracks)?;
            Ok(rows.len())
        })
        .await
    }

    /// Returns when the newest detection arrived; `None` without detections.
    ///
    /// # Errors
    /// The database fails.
    pub async fn newest_arrival(&self) -> Result<Option<Micros>, StoreError> {
        self.read(|connection| {
            let newest = detections::table.order(detections::id.desc()).select(detections::received_at);
            Ok(newest.first(connection).optional()?)
        })
        .await
    }

    /// Returns at most `limit` detections in `order`, starting after the position `after`.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the filter does not exist.
    pub async fn detections(
        &self,
        filter: DetectionFilter,
        order: DetectionOrder,
        after: Option<DetectionPosition>,
        limit: i64,
    ) -> Result<Vec<StoredDetection>, StoreError> {
        let sought = filter.person.as_ref().map(|who| self.sought(who));
        self.read(move |connection| {
            let mut query = with_names().into_boxed::<<AnyConnection as Connection>::Backend>();
            if let Some(sought) = &sought {
                query = query.filter(detections::person_id.eq(person(connection, sought)?.row));
            }
            if let Some(camera_id) = &filter.camera_id {
                query = query.filter(detections::camera_id.eq(camera_id));
            }
            if let Some(location) = &filter.location {
                query = query.filter(detections::location.eq(location));
            }
            if let Some(unknown) = filter.unknown {
                query = query.filter(detections::unknown_id.eq(unknown));
            }
            if let Some(from) = filter.from {
                query = query.filter(detections::captured_at.ge(from));
            }
            if let Some(to) = filter.to {
                query = query.filter(detections::captured_at.lt(to));
            }
            // The first condition bounds the range of the index.
            query = match (order, after) {
                (_, None) => query,
                (DetectionOrder::NewestFirst, Some(DetectionPosition { captured_at, id })) => query
                    .filter(detections::captured_at.le(captured_at))
                    .filter(detections::captured_at.lt(captured_at).or(detections::id.lt(id))),
                (DetectionOrder::OldestFirst, Some(DetectionPosition { captured_at, id })) => query
                    .filter(detections::captured_at.ge(captured_at))
                    .filter(detections::captured_at.gt(captured_at).or(detections::id.gt(id))),
            };
            query = match order {
                DetectionOrder::NewestFirst => {
                    query.order((detections::captured_at.desc(), detections::id.desc()))
                }
                DetectionOrder::OldestFirst => {
                    query.order((detections::captured_at.asc(), detections::id.asc()))
                }
            };
            Ok(query.limit(limit).load::<Row>(connection)?.into_iter().map(StoredDetection::from).collect())
        })
        .await
    }

    /// Returns at most `limit` detections by row id, that is in the order of arrival, starting after the row `after`.
    /// Ignores the times of the filter.
    ///
    /// A client that continues after the last row of each response gets every detection exactly once, also while several
    /// processes insert detections.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the filter does not exist.
    pub async fn detections_after(
        &self,
        filter: DetectionFilter,
        after: i64,
        limit: i64,
    ) -> Result<Vec<StoredDetection>, StoreError> {
        let settled = self.last_visible_detection().await?;
        let sought = filter.person.as_ref().map(|who| self.sought(who));
        self.read(move |connection| {
            let query = with_names()
                .into_boxed::<<AnyConnection as Connection>::Backend>()
                .filter(detections::id.gt(after))
                .filter(detections::id.le(settled))
                .order(detections::id.asc())
                .limit(limit);
            let of = sought.as_ref().map(|sought| person(connection, sought)).transpose()?;
            let query = hidden_from_indexes(query, of.map(|person| person.row), &filter);
            Ok(query.load::<Row>(connection)?.into_iter().map(StoredDetection::from).collect())
        })
        .await
    }

    /// Returns at most `limit` detections whose person was revised after the revision `after`, in the order of their
    /// latest revision. Ignores the times of the filter.
    ///
    /// A client that continues after the revision of the last row of each response gets the latest revision of every detection,
    /// also while several processes revise detections.
    ///
    /// # Errors
    /// [`StoreError::PersonNotFound`] where the person of the filter does not exist.
    pub async fn detections_revised_after(
        &self,
        filter: DetectionFilter,
        after: i64,
        limit: i64,
    ) -> Result<Vec<StoredDetection>, StoreError> {
        let settled = self.last_visible_revision().await?;
        let sought = filter.person.as_ref().map(|who| self.sought(who));
        self.read(move |connection| {
            let query = with_names()
                .into_boxed::<<AnyConnection as Connection>::Backend>()
                .filter(detection_revisions::id.gt(after))
                .filter(detection_revisions::id.le(settled))
                .order(detection_revisions::id.asc())
                .limit(limit);
            let of = sought.as_ref().map(|sought| person(connection, sought)).transpose()?;
            let query = hidden_from_indexes(query, of.map(|person| person.row), &filter);
            Ok(query.load::<Row>(connection)?.into_iter().map(StoredDetection::from).collect())
        })
        .await
    }

    /// Returns a detection by its row id.
    ///
    /// # Errors
    /// [`StoreError::DetectionNotFound`].
    pub async fn detection(&self, id: i64) -> Result<StoredDetection, StoreError> {
        self.read(move |connection| {
            with_names()
                .filter(detections::id.eq(id))
                .first::<Row>(connection)
                .optional()?
                .map(StoredDetection::from)
                .ok_or(StoreError::DetectionNotFound)
        })
        .await
    }

    /// Erases a detection, and copies of its embedding in the cohort. Returns the blobs of its picture, which the
    /// caller deletes.
    ///
    /// # Errors
    /// [`StoreError::DetectionNotFound`].
    pub async fn erase_detection(&self, id: i64) -> Result<Vec<String>, StoreError> {
        self.write(move |connection| {
            let cluster: Option<i64> = detections::table
                .find(id)
                .select(detections::unknown_id)
                .first(connection)
                .optional()?
                .ok_or(StoreError::DetectionNotFound)?;
            // All faces of a large cluster would take too long to read: only the task that clusters computes its row again.
            let small = match cluster {
                Some(cluster) if unknowns::faces_of(connection, cluster)? <= SUMMARISED_AT_ONCE => {
                    unknowns::lock(connection)?;
                    Some(cluster)
                }
                _ => None,
            };
            // The sum of its track contains its embedding, so the track is closed.
            let tracks = track_rows::end_of_detections(connection, &[id])?;
            unknowns::leave(connection, &[id])?;
            let pictures = unknown_pictures::take(connection, &[id])?;
            cohort::erase_of_detections(connection, &[id])?;
            if diesel::delete(detections::table.find(id)).execute(connection)? == 0 {
                return Err(StoreError::DetectionNotFound);
            }
            if let Some(cluster) = small {
                unknowns::summarise(connection, cluster)?;
                // Other faces may have left it since the transaction began.
                unknowns::mark_changed(connection, cluster)?;
            }
            track_rows::delete_empty(connection, &tracks)?;
            Ok(pictures)
        })
        .await
    }

    /// Deletes at most `limit` detections that were captured before `cutoff`. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn delete_detections_before(&self, cutoff: Micros, limit: i64) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let old: Vec<i64> = detections::table
                .filter(detections::captured_at.lt(cutoff))
                .order((detections::captured_at, detections::id))
                .limit(limit)
                .select(detections::id)
                .load(connection)?;
            unknowns::leave(connection, &old)?;
            Ok(diesel::delete(detections::table.filter(detections::id.eq_any(&old))).execute(connection)?)
        })
        .await
    }

    /// Returns every camera at every location where it has detected a face: by camera, the latest location first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn camera_places(&self) -> Result<Vec<CameraPlace>, StoreError> {
        self.read(|connection| {
            let rows = detections::table
                .group_by((detections::camera_id, detections::location))
                .select((detections::camera_id, detections::location, max(detections::captured_at)))
                .load::<(String, String, Option<Micros>)>(connection)?;
            let mut places: Vec<CameraPlace> = rows
                .into_iter()
                .filter_map(|(camera_id, location, last)| {
                    Some(CameraPlace { camera_id, location, last_seen: last? })
                })
                .collect();
            places.sort_by(|a, b| a.camera_id.cmp(&b.camera_id).then(b.last_seen.cmp(&a.last_seen)));
            Ok(places)
        })
        .await
    }
}

/// Returns detections by row id.
pub(super) fn of_ids(
    connection: &mut AnyConnection,
    ids: &[i64],
) -> Result<HashMap<i64, StoredDetection>, StoreError> {
    let rows = with_names().filter(detections::id.eq_any(ids)).load::<Row>(connection)?;
    Ok(rows.into_iter().map(|row| (row.id, row.into())).collect())
}

define_sql_function! {
    #[sql_name = "COALESCE"]
    fn number_or(value: Nullable<BigInt>, other: BigInt) -> BigInt;
}
define_sql_function! {
    #[sql_name = "COALESCE"]
    fn text_or(value: Text, other: Text) -> Text;
}

/// [`with_names`] with conditions that are known at run time only.
type Named<'a> = IntoBoxed<'a, with_names, <AnyConnection as Connection>::Backend>;

/// Adds the conditions of a follower to `query`, which has a short range of a primary key. They are hidden from the indexes:
/// with their order, all of a person's detections would be read to find the few new ones.
fn hidden_from_indexes<'a>(
    mut query: Named<'a>,
    person: Option<i64>,
    filter: &'a DetectionFilter,
) -> Named<'a> {
    if let Some(person) = person {
        query = query.filter(number_or(detections::person_id, 0).eq(person));
    }
    if let Some(camera_id) = &filter.camera_id {
        query = query.filter(text_or(detections::camera_id, "").eq(camera_id));
    }
    if let Some(location) = &filter.location {
        query = query.filter(text_or(detections::location, "").eq(location));
    }
    query
}

/// Returns detections with the present names of their people and the ids of unknown people.
#[auto_type]
fn with_names() -> _ {
    detections::table
        .left_join(people::table)
        .left_join(clusters::table)
        .left_join(tracks::table)
        .left_join(detection_revisions::table)
        .select((
            detections::id,
            detections::captured_at,
            detections::claimed_at,
            detections::received_at,
            detections::camera_id,
            detections::location,
            people::face_id.nullable(),
            detections::confidence,
            detections::score,
            detections::threshold,
            detections::detection_confidence,
            detections::model_version,
            detections::track_id,
            (detections::box_left, detections::box_top, detections::box_right, detections::box_bottom),
            (detections::person_id, people::created_at.nullable(), people::public_id.nullable()),
            clusters::public_id.nullable(),
            detections::track_row,
            (
                tracks::run_id,
                tracks::crops,
                tracks::confidence,
                tracks::score,
                tracks::threshold,
                tracks::model_version,
                tracks::person_id,
            )
                .nullable(),
            (detection_revisions::id, detection_revisions::revised_at).nullable(),
        ))
}

pub(super) fn insert(connection: &mut AnyConnection, detection: &NewDetection) -> Result<(), StoreError> {
    let [left, top, right, bottom] = detection.bounding_box;
    diesel::insert_into(detections::table)
        .values((
            detections::captured_at.eq(detection.captured_at),
            detections::claimed_at.eq(detection.claimed_at),
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
            detections::track_row.eq(detection.track_row),
            detections::weight.eq(detection.weight),
        ))
        .execute(connection)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use diesel::connection::{InstrumentationEvent, set_default_instrumentation};

    use super::*;
    use crate::{domain::FaceId, store::sql::DatabaseOptions};

    /// The statements of all connections that were opened since.
    static STATEMENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    #[tokio::test]
    async fn following_uses_the_primary_key_with_every_filter() {
        set_default_instrumentation(|| {
            Some(Box::new(|event: InstrumentationEvent<'_>| {
                if let InstrumentationEvent::StartQuery { query, .. } = event {
                    STATEMENTS.lock().unwrap().push(query.to_string());
                }
            }))
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&DatabaseOptions {
            url: folder.path().join("x.db").display().to_string(),
            connections: 1,
            migrate_at_start: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            start_timeout: Duration::ZERO,
            allow_newer_schema: false,
        })
        .unwrap();
        let person = FaceId::try_from("Ada".to_owned()).unwrap();
        database.add_person(&person).await.unwrap();
        let (camera_id, location) = (Some("gate-1".to_owned()), Some("Lobby".to_owned()));
        for filter in [
            DetectionFilter::default(),
            DetectionFilter { person: Some(PersonRef::FaceId(person)), ..DetectionFilter::default() },
            DetectionFilter { camera_id: camera_id.clone(), ..DetectionFilter::default() },
            DetectionFilter { location: location.clone(), ..DetectionFilter::default() },
            DetectionFilter { camera_id, location, ..DetectionFilter::default() },
        ] {
            let told = format!("{filter:?}");
            STATEMENTS.lock().unwrap().clear();
            database.detections_after(filter, 7, 10).await.unwrap();
            let statements = STATEMENTS.lock().unwrap().clone();
            let asked = statements.iter().rfind(|text| text.contains("`detections`.`captured_at`")).unwrap();
            let explain = format!("EXPLAIN QUERY PLAN {}", asked.split(" -- binds").next().unwrap());
            let plan = database
                .read(move |connection| Ok(diesel::sql_query(&explain).load::<Step>(connection)?))
                .await
                .unwrap();
            let plan: Vec<String> = plan.into_iter().map(|step| step.detail).collect();
            assert!(plan[0].contains("detections USING INTEGER PRIMARY KEY (rowid>?"), "{told}: {plan:?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{told}: {plan:?}");
        }
    }
}
