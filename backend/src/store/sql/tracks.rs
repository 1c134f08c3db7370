//! Tracks: the crops of one face in one camera's video are decided together.
//!
//! A row holds the weighted sum of its crops' embeddings. A request reads the row of its track, adds its crops, has the model
//! decide about the mean, and writes the row, all in the transaction that stores the crops and their idempotency keys. On
//! database servers the row is locked from the reading on, so that no crop is lost between replicas; SQLite has one writer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use diesel::{
    dsl::{exists, not},
    prelude::*,
};
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

use super::{
    AnyConnection, Database, IdempotentCall, MAX_VARIABLES, NewUploads, cohort,
    schema::{detection_revisions, detections, proposals, tracks},
    unknown_pictures, unknowns,
};
use crate::{
    domain::{EmbeddingSum, FaceDecision, IdentifiedFace, Micros, TrackRef, now},
    store::{StoreError, vector_from_bytes, vector_to_bytes},
};

/// Row ids are random numbers of so many bits, which a JSON number holds exactly. So the row is inserted without asking the
/// engine for its id; one that exists fails the insertion, which is repeated with another.
const ID_BITS: u32 = 53;

/// Decides about a mean embedding with the model that identified the request's faces.
pub type Decide = dyn Fn(&[f32]) -> Result<FaceDecision, String> + Send + Sync;

/// How the crops of a track are decided together.
#[derive(Clone)]
pub struct Fusion {
    /// How long a track takes crops after its last one, microseconds.
    pub window: Micros,
    /// Decides about the mean embedding.
    pub decide: Arc<Decide>,
}

/// The track of an image, and which of its faces it is of.
pub struct TrackedFace {
    /// The edge's reference to the track.
    pub track: TrackRef,
    /// The face, an index.
    pub face: usize,
}

/// A track that may take crops, as its row has it.
#[derive(Debug, Clone, Queryable)]
struct OpenTrack {
    id: i64,
    embedding: Option<Vec<u8>>,
    weight: f32,
    crops: i64,
    first_captured_at: Micros,
    last_captured_at: Micros,
    closes_at: Option<Micros>,
    person_id: Option<i64>,
}

/// The changes in the row of a track that takes no more crops.
#[derive(Default, AsChangeset)]
#[diesel(table_name = tracks, treat_none_as_null = true)]
struct Ended {
    embedding: Option<Vec<u8>>,
    open_key: Option<String>,
    closes_at: Option<Micros>,
}

/// The crops of one track in a request.
struct Group<'a> {
    key: String,
    track: &'a TrackRef,
    /// Indices of image and face, and the face.
    faces: Vec<(usize, usize, &'a IdentifiedFace)>,
    first: Micros,
    last: Micros,
    /// A later track of the same request has the same key: this one takes no more crops.
    superseded: bool,
}

/// A track with the crops of a request, decided but not yet written.
pub(super) struct DecidedTrack {
    /// Row id, also of a row that is not there yet.
    id: i64,
    open_key: Option<String>,
    track: TrackRef,
    /// Indices of image and face.
    pub(super) members: Vec<(usize, usize)>,
    current: Option<OpenTrack>,
    /// An earlier track under the same key, which takes no more crops.
    ended: Option<i64>,
    sum: EmbeddingSum,
    first: Micros,
    last: Micros,
    /// One of the faces, with the decision about all.
    pub(super) face: IdentifiedFace,
}

/// Decisions that were made before the transaction, by key.
pub(super) type Prepared = HashMap<String, PreparedDecision>;

/// A decision about a track that had `before` crops and has `after` with those of the request.
pub(super) struct PreparedDecision {
    before: i64,
    after: i64,
    decision: FaceDecision,
}

impl DecidedTrack {
    pub(super) fn id(&self) -> i64 {
        self.id
    }
}

impl OpenTrack {
    /// Returns whether crops that arrive at `received_at` belong to the track. If the sender names no run, another run
    /// may have begun with the same number, so the capture times must be near, too.
    fn takes(&self, group: &Group<'_>, received_at: Micros, window: Micros) -> bool {
        let near = group.first.saturating_sub(window) <= self.last_captured_at
            && group.last.saturating_add(window) >= self.first_captured_at;
        self.embedding.is_some()
            && self.closes_at.is_some_and(|end| received_at <= end)
            && (group.track.run_id.is_some() || near)
    }

    fn sum(&self) -> Result<EmbeddingSum, StoreError> {
        let sum = self.embedding.as_deref().map(vector_from_bytes).transpose()?.unwrap_or_default();
        Ok(EmbeddingSum { sum, weight: self.weight })
    }
}

/// Returns the key of a track that takes crops: a digest, since the texts are longer than the indexes of some engines
/// allow.
fn open_key(new: &NewUploads, track: &TrackRef) -> String {
    let run_id = track.run_id.as_deref().unwrap_or_default();
    let mut hash = Sha256::new();
    for text in [new.call.name(), new.embedder, &new.camera_id, run_id] {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hash.update(track.track_id.to_le_bytes());
    hex(&hash.finalize())
}

/// Time of capture, image, index in the image and face of a crop.
type Crop<'a> = (Micros, usize, usize, &'a IdentifiedFace);

/// Returns the crops of a request by track, in the order in which all requests lock tracks.
fn groups<'a>(new: &'a NewUploads, window: Micros, is_fresh: impl Fn(usize) -> bool) -> Vec<Group<'a>> {
    let mut by_key: BTreeMap<String, (&TrackRef, Vec<Crop<'_>>)> = BTreeMap::new();
    for (image, upload) in new.uploads.iter().enumerate().filter(|(image, _)| is_fresh(*image)) {
        if let Some(TrackedFace { track, face: index }) = &upload.tracked
            && let Some(face) = upload.faces.get(*index)
        {
            let (_, crops) =
                by_key.entry(open_key(new, track)).or_insert_with(|| (track, Vec::with_capacity(1)));
            crops.push((upload.time.captured_at, image, *index, face));
        }
    }
    let mut groups: Vec<Group<'a>> = Vec::with_capacity(by_key.len());
    for (key, (track, mut crops)) in by_key {
        crops.sort_by_key(|(captured_at, image, ..)| (*captured_at, *image));
        let mut begins = true;
        for (captured_at, image, index, face) in crops {
            match groups.last_mut().filter(|_| !begins) {
                Some(group) if track.run_id.is_some() || captured_at <= group.last.saturating_add(window) => {
                    group.faces.push((image, index, face));
                    group.last = captured_at;
                }
                before => {
                    if let Some(before) = before {
                        before.superseded = true;
                    }
                    let faces = vec![(image, index, face)];
                    let (first, last) = (captured_at, captured_at);
                    groups.push(Group { key: key.clone(), track, faces, first, last, superseded: false });
                }
            }
            begins = false;
        }
    }
    groups
}

const COLUMNS: (
    tracks::id,
    tracks::embedding,
    tracks::weight,
    tracks::crops,
    tracks::first_captured_at,
    tracks::last_captured_at,
    tracks::closes_at,
    tracks::person_id,
) = (
    tracks::id,
    tracks::embedding,
    tracks::weight,
    tracks::crops,
    tracks::first_captured_at,
    tracks::last_captured_at,
    tracks::closes_at,
    tracks::person_id,
);

/// Finds the track of a key and locks it until the transaction ends.
fn find_locked(connection: &mut AnyConnection, key: &str) -> Result<Option<OpenTrack>, StoreError> {
    let sought = tracks::table.filter(tracks::open_key.eq(key)).select(COLUMNS);
    Ok(match connection {
        // SQLite has one writer.
        AnyConnection::Sqlite(sqlite) => sought.first::<OpenTrack>(sqlite).optional()?,
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(postgres) => sought.for_update().first::<OpenTrack>(postgres).optional()?,
        // Only a row that exists is locked: otherwise InnoDB locks the gap where it would be, and requests that insert other
        // tracks there would wait for each other.
        #[cfg(feature = "database-servers")]
        AnyConnection::Mysql(mysql) => {
            let row = tracks::table.filter(tracks::open_key.eq(key)).select(tracks::id);
            match row.first::<i64>(mysql).optional()? {
                Some(id) => tracks::table
                    .find(id)
                    .filter(tracks::open_key.eq(key))
                    .select(COLUMNS)
                    .for_update()
                    .first::<OpenTrack>(mysql)
                    .optional()?,
                None => None,
            }
        }
    })
}

/// Returns the sum of a track's embeddings with those of a request's crops, and the number of crops in it.
fn add(current: Option<&OpenTrack>, group: &Group<'_>) -> Result<(EmbeddingSum, i64), StoreError> {
    let mut sum = current.map(OpenTrack::sum).transpose()?.unwrap_or_default();
    group.faces.iter().for_each(|(_, _, face)| sum.add(face));
    let crops = i64::try_from(group.faces.len()).unwrap_or(i64::MAX);
    Ok((sum, current.map_or(0, |track| track.crops).saturating_add(crops)))
}

fn decided(fusion: &Fusion, sum: &EmbeddingSum) -> Result<FaceDecision, StoreError> {
    (fusion.decide)(&sum.mean()).map_err(StoreError::Undecided)
}

/// Decides the tracks of new images, and writes the decision and the number of crops into the tracks' faces in `faces`.
/// Locks the tracks.
pub(super) fn decide(
    connection: &mut AnyConnection,
    new: &NewUploads,
    prepared: &Prepared,
    is_fresh: impl Fn(usize) -> bool,
    faces: &mut [Vec<IdentifiedFace>],
) -> Result<Vec<DecidedTrack>, StoreError> {
    let Some(fusion) = &new.fusion else { return Ok(Vec::new()) };
    let mut tracks = Vec::new();
    let mut later_of_key = false;
    for group in groups(new, fusion.window, is_fresh) {
        // A later group of the same key follows a row that this request is about to write.
        let found = if later_of_key { None } else { find_locked(connection, &group.key)? };
        later_of_key = group.superseded;
        let takes = found.as_ref().is_some_and(|track| track.takes(&group, new.received_at, fusion.window));
        let ended = found.as_ref().filter(|_| !takes).map(|track| track.id);
        let current = found.filter(|_| takes);
        let (sum, crops) = add(current.as_ref(), &group)?;
        let before = current.as_ref().map_or(0, |track| track.crops);
        let decision = match (prepared.get(&group.key), group.faces.as_slice()) {
            (_, [(_, _, only)]) if current.is_none() => only.decision(),
            (Some(known), _) if (known.before, known.after) == (before, crops) => known.decision.clone(),
            _ => decided(fusion, &sum)?,
        };
        for (image, index, _) in &group.faces {
            if let Some(face) = faces.get_mut(*image).and_then(|faces| faces.get_mut(*index)) {
                face.decide(decision.clone(), crops);
            }
        }
        let Some((_, _, first)) = group.faces.first() else { continue };
        let mut face = (*first).clone();
        face.decide(decision, crops);
        tracks.push(DecidedTrack {
            id: current
                .as_ref()
                .map_or_else(|| (rand::random::<u64>() >> (64 - ID_BITS)).cast_signed(), |t| t.id),
            open_key: (!group.superseded).then_some(group.key),
            track: group.track.clone(),
            members: group.faces.iter().map(|(image, index, _)| (*image, *index)).collect(),
            first: current.as_ref().map_or(group.first, |track| track.first_captured_at.min(group.first)),
            last: current.as_ref().map_or(group.last, |track| track.last_captured_at.max(group.last)),
            current,
            ended,
            sum,
            face,
        });
    }
    Ok(tracks)
}

/// Writes decided tracks, and assigns their earlier detections the new person if the decision has changed. `people` are
/// enrolled. Returns the blobs of pictures of detections that have become known, which the caller deletes.
pub(super) fn save(
    connection: &mut AnyConnection,
    new: &NewUploads,
    tracks: &[DecidedTrack],
    people: &HashSet<i64>,
) -> Result<Vec<String>, StoreError> {
    let Some(fusion) = &new.fusion else { return Ok(Vec::new()) };
    let mut pictures = Vec::new();
    let stored = new.call == IdempotentCall::StoreResults;
    for track in tracks {
        if let Some(ended) = track.ended {
            close(connection, &[ended])?;
        }
        let identity = track.face.resolve(|person| people.contains(&person));
        let keeps_embedding = track.open_key.is_some();
        let changed = (
            tracks::open_key.eq(&track.open_key),
            tracks::closes_at
                .eq(track.open_key.as_ref().map(|_| new.received_at.saturating_add(fusion.window))),
            tracks::location.eq(&new.location),
            tracks::embedding.eq(keeps_embedding.then(|| vector_to_bytes(&track.sum.sum))),
            tracks::weight.eq(track.sum.weight),
            tracks::crops.eq(track.face.crops),
            tracks::first_captured_at.eq(track.first),
            tracks::last_captured_at.eq(track.last),
            tracks::updated_at.eq(new.received_at),
            tracks::person_id.eq(identity.person),
            tracks::confidence.eq(identity.predictions.first().map(|(_, confidence)| *confidence)),
            tracks::score.eq(identity.score),
            tracks::threshold.eq(track.face.threshold),
            tracks::model_version.eq(new.model_version),
        );
        match &track.current {
            Some(before) => {
                diesel::update(tracks::table.find(before.id)).set(changed).execute(connection)?;
                if stored && before.person_id != identity.person {
                    pictures.extend(revise(connection, before.id, identity.person)?);
                }
            }
            None => {
                let named = (
                    tracks::id.eq(track.id),
                    tracks::camera_id.eq(&new.camera_id),
                    tracks::run_id.eq(track.track.run_id.as_deref().unwrap_or_default()),
                    tracks::track_id.eq(track.track.track_id),
                    tracks::embedder.eq(new.embedder),
                    tracks::stored.eq(stored),
                );
                diesel::insert_into(tracks::table).values((named, changed)).execute(connection)?;
            }
        }
    }
    Ok(pictures)
}

/// Assigns the stored detections of a track another person, and records that for clients that follow corrections. A face
/// that becomes known loses the embedding and the picture that unknown faces keep, and leaves its group of unknown faces.
/// Returns the blobs of pictures, which the caller deletes.
fn revise(
    connection: &mut AnyConnection,
    track: i64,
    person: Option<i64>,
) -> Result<Vec<String>, StoreError> {
    let of_track = detections::table.filter(detections::track_row.eq(track));
    // The write comes first: after it, MySQL also reads rows that other processes have stored since this transaction
    // began.
    diesel::update(of_track).set(detections::person_id.eq(person)).execute(connection)?;
    let ids: Vec<i64> = of_track.order(detections::id).select(detections::id).load(connection)?;
    let mut pictures = Vec::new();
    if person.is_some() {
        unknowns::leave(connection, &ids)?;
        // The cohort of strangers must not keep a copy.
        cohort::erase_of_detections(connection, &ids)?;
        pictures = unknown_pictures::take(connection, &ids)?;
        for faces in ids.chunks(MAX_VARIABLES) {
            diesel::delete(proposals::table.filter(proposals::detection_id.eq_any(faces)))
                .execute(connection)?;
        }
        diesel::update(of_track)
            .set((detections::embedding.eq(None::<Vec<u8>>), detections::unknown_id.eq(None::<i64>)))
            .execute(connection)?;
    }
    record_revisions(connection, &ids)?;
    Ok(pictures)
}

/// Records that detections have another person, for clients that follow corrections.
fn record_revisions(connection: &mut AnyConnection, ids: &[i64]) -> Result<(), StoreError> {
    let revised_at = now();
    // InnoDB locks the gaps where a DELETE finds no row, and transactions that insert there would wait for each other.
    #[cfg(feature = "database-servers")]
    if let AnyConnection::Mysql(mysql) = connection {
        for id in ids {
            diesel::replace_into(detection_revisions::table)
                .values((
                    detection_revisions::detection_id.eq(id),
                    detection_revisions::revised_at.eq(revised_at),
                ))
                .execute(mysql)?;
        }
        return Ok(());
    }
    for ids in ids.chunks(MAX_VARIABLES) {
        diesel::delete(detection_revisions::table.filter(detection_revisions::detection_id.eq_any(ids)))
            .execute(connection)?;
    }
    for id in ids {
        diesel::insert_into(detection_revisions::table)
            .values((
                detection_revisions::detection_id.eq(id),
                detection_revisions::revised_at.eq(revised_at),
            ))
            .execute(connection)?;
    }
    Ok(())
}

/// Closes the tracks of detections to further crops, before the detections are named or erased. Must be called before rows
/// of clusters, the cohort or detections are locked, since requests lock their tracks first. Returns the row ids of the
/// tracks.
pub(super) fn end_of_detections(
    connection: &mut AnyConnection,
    faces: &[i64],
) -> Result<Vec<i64>, StoreError> {
    // Sorted, as requests lock tracks in this order.
    let mut rows: BTreeSet<(Option<String>, i64)> = BTreeSet::new();
    for faces in faces.chunks(MAX_VARIABLES) {
        let of_faces = detections::table.inner_join(tracks::table).filter(detections::id.eq_any(faces));
        let found = of_faces.select((tracks::open_key, tracks::id)).distinct();
        rows.extend(found.load::<(Option<String>, i64)>(connection)?);
    }
    for (_, row) in &rows {
        // Waits for a request that is adding a crop.
        diesel::update(tracks::table.find(row)).set(Ended::default()).execute(connection)?;
    }
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Records that an administrator assigned a person to detections. The tracks in `ended` are closed, since later crops
/// would be decided otherwise; they get the person if all of their detections have it.
pub(super) fn put_name(
    connection: &mut AnyConnection,
    faces: &[i64],
    ended: &[i64],
    person: i64,
) -> Result<(), StoreError> {
    record_revisions(connection, faces)?;
    for row in ended {
        let of_track = detections::table.filter(detections::track_row.eq(row));
        let others: Option<i64> = of_track
            .filter(detections::person_id.is_null().or(detections::person_id.ne(person)))
            .select(detections::id)
            .first(connection)
            .optional()?;
        if others.is_none() {
            diesel::update(tracks::table.find(row))
                .set((
                    tracks::person_id.eq(Some(person)),
                    tracks::confidence.eq(None::<f32>),
                    tracks::score.eq(None::<f32>),
                    tracks::model_version.eq(None::<i64>),
                    tracks::updated_at.eq(now()),
                ))
                .execute(connection)?;
        }
    }
    Ok(())
}

/// Closes tracks to further crops: removes their embeddings. Deletes tracks without detections.
fn close(connection: &mut AnyConnection, ids: &[i64]) -> Result<(), StoreError> {
    let rows = || tracks::table.filter(tracks::id.eq_any(ids));
    diesel::delete(rows().filter(tracks::stored.eq(false))).execute(connection)?;
    diesel::update(rows()).set(Ended::default()).execute(connection)?;
    Ok(())
}

/// Closes the tracks of a person and erases their embeddings, so that nothing of the person decides about later crops; part
/// of the transaction that erases the person. Deletes tracks without detections, with `with_detections` all.
pub(super) fn erase_person(
    connection: &mut AnyConnection,
    person: i64,
    with_detections: bool,
) -> Result<(), StoreError> {
    let rows = tracks::table.filter(tracks::person_id.eq(person));
    if with_detections {
        diesel::delete(rows).execute(connection)?;
        return Ok(());
    }
    diesel::delete(rows.filter(tracks::stored.eq(false))).execute(connection)?;
    diesel::update(rows).set(Ended::default()).execute(connection)?;
    Ok(())
}

/// Deletes those of some tracks that have no detections any more.
pub(super) fn delete_empty(connection: &mut AnyConnection, rows: &[i64]) -> Result<(), StoreError> {
    for row in rows {
        let left = detections::table.filter(detections::track_row.eq(row));
        diesel::delete(tracks::table.find(row).filter(not(exists(left)))).execute(connection)?;
    }
    Ok(())
}

/// Corrects the times of tracks after those of their detections.
pub(super) fn correct_times(connection: &mut AnyConnection, rows: &HashSet<i64>) -> Result<(), StoreError> {
    for row in rows {
        let times = detections::table.filter(detections::track_row.eq(row));
        let (first, last): (Option<Micros>, Option<Micros>) = times
            .select((diesel::dsl::min(detections::captured_at), diesel::dsl::max(detections::captured_at)))
            .first(connection)?;
        if let (Some(first), Some(last)) = (first, last) {
            diesel::update(tracks::table.find(row))
                .set((tracks::first_captured_at.eq(first), tracks::last_captured_at.eq(last)))
                .execute(connection)?;
        }
    }
    Ok(())
}

impl Database {
    /// Decides about the tracks of a request before its transaction, so that the one writer of the embedded database does not
    /// wait for the model. The transaction decides again where a track has changed meanwhile.
    pub(super) async fn prepare_tracks(&self, new: Arc<NewUploads>) -> Result<Prepared, StoreError> {
        let tracked = new.uploads.iter().any(|upload| upload.tracked.is_some());
        if !self.one_writer || !tracked {
            return Ok(Prepared::new());
        }
        self.read(move |connection| {
            let Some(fusion) = &new.fusion else { return Ok(Prepared::new()) };
            let mut prepared = Prepared::new();
            for group in groups(&new, fusion.window, |_| true) {
                // A later group of the same key begins another track.
                if prepared.contains_key(&group.key) {
                    continue;
                }
                let row = tracks::table.filter(tracks::open_key.eq(&group.key)).select(COLUMNS);
                let current: Option<OpenTrack> = row.first(connection).optional()?;
                if let Some(current) = current
                    && current.takes(&group, new.received_at, fusion.window)
                {
                    let (sum, after) = add(Some(&current), &group)?;
                    let decision = decided(fusion, &sum)?;
                    prepared.insert(group.key, PreparedDecision { before: current.crops, after, decision });
                }
            }
            Ok(prepared)
        })
        .await
    }

    /// Closes at most `limit` tracks that take no more crops at `now`. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn close_tracks(&self, now: Micros, limit: i64) -> Result<usize, StoreError> {
        // Mostly there is nothing to do.
        let due = self
            .read(move |connection| {
                let due = tracks::table.filter(tracks::closes_at.lt(now));
                Ok(due.order(tracks::closes_at).limit(limit).select(tracks::id).load::<i64>(connection)?)
            })
            .await?;
        if due.is_empty() {
            return Ok(0);
        }
        self.write(move |connection| {
            // A crop may have come meanwhile.
            let rows = tracks::table.filter(tracks::id.eq_any(&due)).filter(tracks::closes_at.lt(now));
            // Writes first, so that the rows stay as they are until the end of the transaction.
            diesel::update(rows).set(tracks::closes_at.eq(0)).execute(connection)?;
            let ended = tracks::table.filter(tracks::id.eq_any(&due)).filter(tracks::closes_at.eq(0));
            let ended: Vec<i64> = ended.select(tracks::id).load(connection)?;
            close(connection, &ended)?;
            Ok(ended.len())
        })
        .await
    }

    /// Deletes at most `limit` tracks whose last crop was captured before `cutoff`. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn delete_tracks_before(&self, cutoff: Micros, limit: i64) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let old: Vec<i64> = tracks::table
                .filter(tracks::last_captured_at.lt(cutoff))
                .order(tracks::last_captured_at)
                .limit(limit)
                .select(tracks::id)
                .load(connection)?;
            // A crop may have come meanwhile.
            let rows = tracks::table.filter(tracks::id.eq_any(&old));
            Ok(diesel::delete(rows.filter(tracks::last_captured_at.lt(cutoff))).execute(connection)?)
        })
        .await
    }
}
