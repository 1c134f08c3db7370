//! The reads and writes of the task that clusters unknown faces: new faces, the clusters, and the changes of a chunk or of a
//! revision, each in one transaction with how far detections have been read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use diesel::{
    dsl::{count_star, max},
    prelude::*,
};

use super::{
    AnyConnection, Database, MAX_VARIABLES,
    leases::{Lease, renew},
    schema::{detections, jobs, separate_unknowns, unknown_clustering, unknowns},
    unknowns::{
        FaceColumns, absorb, face_of, insert, lock, retire, state, store, summarise, tracks_of,
        unknown_face_columns,
    },
};
use crate::{
    domain::{ClusterSummary, JobKind, JobStatus, Micros, UnknownFace, UnknownTrack},
    store::{StoreError, vector_from_bytes, vector_to_bytes},
};

/// How far before and after a face its track is looked for in its cluster.
const TRACK_SEARCH: Micros = 3_600_000_000;

/// The clusters of one embedder, and how far detections have been read.
pub struct StoredClusters {
    /// Grows with each change of clusters.
    pub revision: i64,
    /// The last detection that was read.
    pub read_up_to: i64,
    /// The greatest row id of a cluster so far.
    pub last_unknown: i64,
    /// Row id, number of tracks and their mean.
    pub clusters: Vec<(i64, u64, Vec<f32>)>,
    /// Clusters that stay apart.
    pub separate: Vec<(i64, i64)>,
}

pub struct NewFaces {
    /// Those with an embedding by the embedder that are in no cluster, by row id.
    pub faces: Vec<UnknownFace>,
    /// The last detection that was read for them.
    pub read_up_to: i64,
    /// Whether there may be more.
    pub more: bool,
}

/// The track that a new face continues.
pub struct EarlierTrack {
    /// The row id of its cluster.
    pub cluster: i64,
    /// Its faces in that cluster.
    pub faces: Vec<UnknownFace>,
}

/// The changes to a cluster by a chunk of new faces.
pub struct ClusterUpdate {
    /// The cluster's row id.
    pub row: i64,
    /// The detection that represents a new cluster; `None` for one that is there.
    pub created: Option<i64>,
    /// The number of tracks.
    pub tracks: u64,
    /// Their mean, not normalised.
    pub mean: Vec<f32>,
    /// The detections that join it.
    pub faces: Vec<i64>,
    /// When these were captured first and last; `None` without any.
    pub seen: Option<(Micros, Micros)>,
}

/// The changes by a chunk of new faces.
pub struct Assignment {
    /// The network that computed the embeddings.
    pub embedder: &'static str,
    /// The revision that it is based on.
    pub revision: i64,
    /// The last detection that was read.
    pub read_up_to: i64,
    /// The greatest row id of a cluster so far.
    pub last_unknown: i64,
    /// Row ids of merged clusters, and those of the clusters that they were merged into.
    pub merged: BTreeMap<i64, i64>,
    /// All clusters that have changed otherwise.
    pub updates: Vec<ClusterUpdate>,
}

/// A cluster of a revision.
#[derive(Debug)]
pub struct RevisedCluster {
    /// Its row id; `None` for a new one.
    pub row: Option<i64>,
    /// Whether lists leave it out.
    pub ignored: bool,
    /// The summary in its row.
    pub summary: ClusterSummary,
    /// The detections that join it, by the cluster that they come from.
    pub joining: BTreeMap<i64, Vec<i64>>,
}

/// The changes by a revision.
pub struct Revision {
    /// The network that computed the embeddings.
    pub embedder: &'static str,
    /// The revision number that it is based on.
    pub revision: i64,
    /// The clusters whose detections have changed.
    pub clusters: Vec<RevisedCluster>,
    /// Clusters that are gone, and the positions in `clusters`, or row ids of unchanged ones, that their ids lead to.
    pub gone: BTreeMap<i64, Successor>,
}

/// The cluster that the id of a removed one leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// A position in [`Revision::clusters`].
    Revised(usize),
    /// The row id of a cluster that has not changed.
    Unchanged(i64),
}

/// All clusters, for a revision.
pub struct ClustersForRevision {
    /// Grows with each change of clusters.
    pub revision: i64,
    /// Row id, whether it is ignored, whether it was made by hand.
    pub clusters: Vec<(i64, bool, bool)>,
    /// Clusters that stay apart.
    pub separate: Vec<(i64, i64)>,
}

impl Database {
    /// Returns all clusters of an embedder.
    ///
    /// # Errors
    /// The database fails.
    pub async fn stored_clusters(&self, embedder: &'static str) -> Result<StoredClusters, StoreError> {
        self.read(move |connection| {
            let state = state(connection)?;
            let rows: Vec<(i64, i64, Vec<u8>)> = unknowns::table
                .filter(unknowns::embedder.eq(embedder))
                .order(unknowns::id)
                .select((unknowns::id, unknowns::tracks, unknowns::mean))
                .load(connection)?;
            let cluster = |(row, tracks, mean): (i64, i64, Vec<u8>)| {
                Ok((row, u64::try_from(tracks).unwrap_or(0), vector_from_bytes(&mean)?))
            };
            let clusters = rows.into_iter().map(cluster).collect::<Result<_, StoreError>>()?;
            Ok(StoredClusters {
                revision: state.revision,
                read_up_to: state.read_up_to,
                last_unknown: state.last_unknown,
                clusters,
                separate: separations(connection)?,
            })
        })
        .await
    }

    /// Returns whether there are detections that have not been read, or clusters that detections have left.
    ///
    /// # Errors
    /// The database fails.
    pub async fn has_faces_to_cluster(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            let newest: Option<i64> = detections::table.select(max(detections::id)).first(connection)?;
            if newest.unwrap_or(0) > state(connection)?.read_up_to {
                return Ok(true);
            }
            let changed = unknowns::table.filter(unknowns::changed.eq(true)).select(unknowns::id);
            Ok(changed.first::<i64>(connection).optional()?.is_some())
        })
        .await
    }

    /// Returns the unknown faces among the `limit` detections after the row `after`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn new_unknown_faces(
        &self,
        after: i64,
        limit: i64,
        embedder: &'static str,
    ) -> Result<NewFaces, StoreError> {
        let newest: Option<i64> = self
            .read(|connection| Ok(detections::table.select(max(detections::id)).first(connection)?))
            .await?;
        if newest.unwrap_or(0) <= after {
            return Ok(NewFaces { faces: Vec::new(), read_up_to: after, more: false });
        }
        let settled = self.last_visible_detection().await?;
        self.read(move |connection| {
            // Without further conditions, which might have the engine read more than the range of the primary key.
            let rows = detections::table
                .filter(detections::id.gt(after))
                .filter(detections::id.le(settled))
                .order(detections::id.asc())
                .limit(limit)
                .select((
                    unknown_face_columns!(),
                    (detections::embedder, detections::person_id, detections::unknown_id),
                ))
                .load::<(FaceColumns, (String, Option<i64>, Option<i64>))>(connection)?;
            let more = i64::try_from(rows.len()).is_ok_and(|read| read == limit);
            let read_up_to = rows.last().map_or(after, |((id, ..), _)| *id);
            let mut faces = Vec::new();
            for (columns, (of, person, cluster)) in rows {
                if of == embedder && person.is_none() && cluster.is_none() {
                    faces.extend(face_of(columns)?);
                }
            }
            Ok(NewFaces { faces, read_up_to, more })
        })
        .await
    }

    /// Returns, for each face with a track, the part of the track that is in a cluster already: the cluster of the
    /// track's latest face, and the track's faces there.
    ///
    /// # Errors
    /// The database fails.
    pub async fn earlier_tracks(
        &self,
        faces: Vec<UnknownFace>,
        embedder: &'static str,
    ) -> Result<Vec<Option<EarlierTrack>>, StoreError> {
        self.read(move |connection| {
            faces.iter().map(|face| earlier_track(connection, face, embedder)).collect()
        })
        .await
    }

    /// Stores the changes by a chunk of new faces, if `holder` has the lease for it.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`]; [`StoreError::ClustersChanged`] where clusters or one of the faces have changed since
    /// they were read.
    pub async fn store_assignment(
        &self,
        assignment: Assignment,
        holder: &str,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            if !renew(connection, Lease::Unknowns, &holder, ttl)? {
                return Err(StoreError::LeaseLost);
            }
            lock(connection)?;
            if state(connection)?.revision != assignment.revision + 1 {
                return Err(StoreError::ClustersChanged);
            }
            store_assignment(connection, &assignment)?;
            diesel::update(unknown_clustering::table)
                .set((
                    unknown_clustering::read_up_to.eq(assignment.read_up_to),
                    unknown_clustering::last_unknown.eq(assignment.last_unknown),
                ))
                .execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Records how far detections have been read, if none of them needs clustering.
    ///
    /// # Errors
    /// The database fails.
    pub async fn detections_read(&self, read_up_to: i64) -> Result<(), StoreError> {
        self.write(move |connection| {
            diesel::update(unknown_clustering::table.filter(unknown_clustering::read_up_to.lt(read_up_to)))
                .set(unknown_clustering::read_up_to.eq(read_up_to))
                .execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Computes the rows of at most `limit` clusters that detections have left; removes those without any. Returns the number
    /// of clusters.
    ///
    /// # Errors
    /// The database fails.
    pub async fn summarise_changed_clusters(&self, limit: i64) -> Result<usize, StoreError> {
        let changed = move |connection: &mut AnyConnection| {
            let changed = unknowns::table.filter(unknowns::changed.eq(true)).order(unknowns::id).limit(limit);
            Ok(changed.select(unknowns::id).load::<i64>(connection)?)
        };
        let rows = self.read(changed).await?;
        // A transaction each: a large cluster takes a while, and other writers wait.
        for row in rows.iter().copied() {
            self.write(move |connection| {
                lock(connection)?;
                // Another process may have done it. Nothing is read before: see `summarise`.
                let changed = unknowns::table.find(row).filter(unknowns::changed.eq(true));
                let still =
                    diesel::update(changed).set(unknowns::changed.eq(false)).execute(connection)? == 1;
                if still { summarise(connection, row) } else { Ok(()) }
            })
            .await?;
        }
        Ok(rows.len())
    }

    /// Returns all clusters of an embedder, for a revision.
    ///
    /// # Errors
    /// The database fails.
    pub async fn clusters_for_revision(
        &self,
        embedder: &'static str,
    ) -> Result<ClustersForRevision, StoreError> {
        self.read(move |connection| {
            let revision = state(connection)?.revision;
            let clusters = unknowns::table
                .filter(unknowns::embedder.eq(embedder))
                .order(unknowns::id)
                .select((unknowns::id, unknowns::ignored, unknowns::pinned))
                .load(connection)?;
            Ok(ClustersForRevision { revision, clusters, separate: separations(connection)? })
        })
        .await
    }

    /// Returns the tracks of clusters, by cluster.
    ///
    /// # Errors
    /// The database fails.
    pub async fn tracks_of_clusters(
        &self,
        rows: Vec<i64>,
    ) -> Result<BTreeMap<i64, Vec<UnknownTrack>>, StoreError> {
        self.read(move |connection| tracks_of(connection, &rows)).await
    }

    /// Stores a revision, where `holder` has the lease for it. Returns the number of clusters that are new.
    ///
    /// # Errors
    /// As [`store_assignment`](Self::store_assignment).
    pub async fn store_revision(
        &self,
        revision: Revision,
        holder: &str,
        ttl: Duration,
    ) -> Result<usize, StoreError> {
        let holder = holder.to_owned();
        self.write(move |connection| {
            if !renew(connection, Lease::Unknowns, &holder, ttl)? {
                return Err(StoreError::LeaseLost);
            }
            lock(connection)?;
            let state = state(connection)?;
            if state.revision != revision.revision + 1 {
                return Err(StoreError::ClustersChanged);
            }
            let new = store_revision(connection, &revision, state.last_unknown)?;
            Ok(new)
        })
        .await
    }

    /// Returns whether a revision of all clusters is queued or running.
    ///
    /// # Errors
    /// The database fails.
    pub async fn revision_is_open(&self) -> Result<bool, StoreError> {
        self.read(|connection| {
            let open = [JobStatus::Queued.as_str(), JobStatus::Running.as_str()];
            let number: i64 = jobs::table
                .filter(jobs::kind.eq(JobKind::ReclusterUnknowns.as_str()))
                .filter(jobs::status.eq_any(open))
                .select(count_star())
                .first(connection)?;
            Ok(number > 0)
        })
        .await
    }
}

fn separations(connection: &mut AnyConnection) -> Result<Vec<(i64, i64)>, StoreError> {
    Ok(separate_unknowns::table
        .select((separate_unknowns::unknown_id, separate_unknowns::other_unknown_id))
        .order((separate_unknowns::unknown_id, separate_unknowns::other_unknown_id))
        .load(connection)?)
}

fn earlier_track(
    connection: &mut AnyConnection,
    face: &UnknownFace,
    embedder: &str,
) -> Result<Option<EarlierTrack>, StoreError> {
    if let Some(row) = face.track_row {
        return earlier_of_row(connection, row, embedder);
    }
    let Some(track_id) = face.track_id else { return Ok(None) };
    let (from, to) = face.track_range();
    let latest = detections::table
        .filter(detections::camera_id.eq(&face.camera_id))
        .filter(detections::captured_at.between(from, to))
        // Another face of the same picture belongs to another person.
        .filter(detections::captured_at.ne(face.captured_at))
        .filter(detections::track_id.eq(track_id))
        .filter(detections::track_row.is_null())
        .filter(detections::embedder.eq(embedder))
        .filter(detections::unknown_id.is_not_null())
        .order((detections::captured_at.desc(), detections::id.desc()))
        .select((detections::id, detections::captured_at, detections::unknown_id))
        .first::<(i64, Micros, Option<i64>)>(connection)
        .optional()?;
    let Some((latest, latest_at, Some(cluster))) = latest else { return Ok(None) };
    // If a picture has several faces, it is unknown which one belongs to the track.
    let faces_of_both: i64 = detections::table
        .filter(detections::camera_id.eq(&face.camera_id))
        .filter(detections::captured_at.eq_any([face.captured_at, latest_at]))
        .filter(detections::track_id.eq(track_id))
        .select(count_star())
        .first(connection)?;
    if faces_of_both > 2 {
        return Ok(None);
    }
    let (from, to) = (from.saturating_sub(TRACK_SEARCH), to.saturating_add(TRACK_SEARCH));
    let rows = detections::table
        .filter(detections::unknown_id.eq(cluster))
        .filter(detections::captured_at.between(from, to))
        .filter(detections::camera_id.eq(&face.camera_id))
        .filter(detections::track_id.eq(track_id))
        .filter(detections::track_row.is_null())
        .order((detections::captured_at, detections::id))
        .select(unknown_face_columns!())
        .load::<FaceColumns>(connection)?;
    let faces = rows.into_iter().filter_map(|row| face_of(row).transpose()).collect::<Result<Vec<_>, _>>()?;
    let track = UnknownTrack::runs(faces)
        .into_iter()
        .find(|track| track.iter().any(|face| face.id == latest))
        .unwrap_or_default();
    Ok(Some(EarlierTrack { cluster, faces: track }))
}

/// Returns the part of a track with a row that is in a cluster.
fn earlier_of_row(
    connection: &mut AnyConnection,
    row: i64,
    embedder: &str,
) -> Result<Option<EarlierTrack>, StoreError> {
    let rows = detections::table
        .filter(detections::track_row.eq(row))
        .filter(detections::embedder.eq(embedder))
        .filter(detections::unknown_id.is_not_null())
        .order((detections::captured_at, detections::id))
        .select((detections::unknown_id, unknown_face_columns!()))
        .load::<(Option<i64>, FaceColumns)>(connection)?;
    let Some((Some(cluster), _)) = rows.last() else { return Ok(None) };
    let cluster = *cluster;
    let own = rows.into_iter().filter(|(of, _)| *of == Some(cluster));
    let faces = own.filter_map(|(_, face)| face_of(face).transpose()).collect::<Result<_, _>>()?;
    Ok(Some(EarlierTrack { cluster, faces }))
}

fn store_assignment(connection: &mut AnyConnection, assignment: &Assignment) -> Result<(), StoreError> {
    for update in &assignment.updates {
        if let (Some(representative), Some((first_seen, last_seen))) = (update.created, update.seen) {
            let summary = ClusterSummary {
                mean: update.mean.clone(),
                faces: 0,
                tracks: 0,
                first_seen,
                last_seen,
                representative,
            };
            insert(connection, update.row, assignment.embedder, &summary, false)?;
        }
    }
    for (gone, kept) in &assignment.merged {
        add_row(connection, *kept, *gone)?;
        absorb(connection, *kept, *gone)?;
    }
    for update in &assignment.updates {
        join(connection, update.row, &update.faces, None)?;
        let (faces, first, last): (i64, Micros, Micros) = unknowns::table
            .find(update.row)
            .select((unknowns::faces, unknowns::first_seen, unknowns::last_seen))
            .first(connection)
            .optional()?
            .ok_or(StoreError::ClustersChanged)?;
        let (first_seen, last_seen) = update.seen.unwrap_or((first, last));
        diesel::update(unknowns::table.find(update.row))
            .set((
                unknowns::mean.eq(vector_to_bytes(&update.mean)),
                unknowns::tracks.eq(i64::try_from(update.tracks).unwrap_or(i64::MAX)),
                unknowns::faces.eq(faces + i64::try_from(update.faces.len()).unwrap_or(0)),
                unknowns::first_seen.eq(first.min(first_seen)),
                unknowns::last_seen.eq(last.max(last_seen)),
            ))
            .execute(connection)?;
    }
    Ok(())
}

/// Adds the summary in the row of cluster `gone` to that of `kept`, except the mean.
fn add_row(connection: &mut AnyConnection, kept: i64, gone: i64) -> Result<(), StoreError> {
    type Columns = (i64, Micros, Micros, bool, bool, bool);
    let mut rows = Vec::with_capacity(2);
    for row in [kept, gone] {
        let columns: Option<Columns> = unknowns::table
            .find(row)
            .select((
                unknowns::faces,
                unknowns::first_seen,
                unknowns::last_seen,
                unknowns::ignored,
                unknowns::pinned,
                unknowns::changed,
            ))
            .first(connection)
            .optional()?;
        rows.push(columns.ok_or(StoreError::ClustersChanged)?);
    }
    let [one, other] = rows.as_slice() else { return Err(StoreError::Interrupted) };
    diesel::update(unknowns::table.find(kept))
        .set((
            unknowns::faces.eq(one.0 + other.0),
            unknowns::first_seen.eq(one.1.min(other.1)),
            unknowns::last_seen.eq(one.2.max(other.2)),
            unknowns::ignored.eq(one.3 || other.3),
            unknowns::pinned.eq(one.4 || other.4),
            unknowns::changed.eq(one.5 || other.5),
        ))
        .execute(connection)?;
    Ok(())
}

/// Moves unknown faces into a cluster, from none or from another one.
fn join(
    connection: &mut AnyConnection,
    row: i64,
    faces: &[i64],
    from: Option<i64>,
) -> Result<(), StoreError> {
    for faces in faces.chunks(MAX_VARIABLES) {
        let unknown = detections::table
            .filter(detections::id.eq_any(faces))
            .filter(detections::person_id.is_null())
            .filter(detections::embedding.is_not_null());
        let moved = match from {
            None => diesel::update(unknown.filter(detections::unknown_id.is_null()))
                .set(detections::unknown_id.eq(Some(row)))
                .execute(connection)?,
            Some(from) => diesel::update(unknown.filter(detections::unknown_id.eq(from)))
                .set(detections::unknown_id.eq(Some(row)))
                .execute(connection)?,
        };
        if moved != faces.len() {
            return Err(StoreError::ClustersChanged);
        }
    }
    Ok(())
}

fn store_revision(
    connection: &mut AnyConnection,
    revision: &Revision,
    mut last_unknown: i64,
) -> Result<usize, StoreError> {
    let (mut rows, mut new) = (Vec::with_capacity(revision.clusters.len()), 0);
    for cluster in &revision.clusters {
        let row = match cluster.row {
            Some(row) => row,
            None => {
                last_unknown += 1;
                new += 1;
                insert(connection, last_unknown, revision.embedder, &cluster.summary, cluster.ignored)?;
                last_unknown
            }
        };
        rows.push(row);
    }
    for (cluster, row) in revision.clusters.iter().zip(&rows) {
        for (from, faces) in &cluster.joining {
            join(connection, *row, faces, Some(*from))?;
        }
        store(connection, *row, &cluster.summary)?;
        diesel::update(unknowns::table.find(row))
            .set(unknowns::ignored.eq(cluster.ignored))
            .execute(connection)?;
    }
    for (gone, successor) in &revision.gone {
        let kept = match successor {
            Successor::Unchanged(row) => Some(*row),
            Successor::Revised(position) => rows.get(*position).copied(),
        };
        if let Some(kept) = kept {
            let gone_pinned: Option<bool> =
                unknowns::table.find(gone).select(unknowns::pinned).first(connection).optional()?;
            if gone_pinned == Some(true) {
                diesel::update(unknowns::table.find(kept))
                    .set(unknowns::pinned.eq(true))
                    .execute(connection)?;
            }
            retire(connection, kept, *gone)?;
        }
    }
    // Faces may have left clusters since they were read.
    let touched: BTreeSet<i64> = rows.into_iter().collect();
    for rows in touched.into_iter().collect::<Vec<_>>().chunks(MAX_VARIABLES) {
        diesel::update(unknowns::table.filter(unknowns::id.eq_any(rows)))
            .set(unknowns::changed.eq(true))
            .execute(connection)?;
    }
    diesel::update(unknown_clustering::table)
        .set(unknown_clustering::last_unknown.eq(last_unknown))
        .execute(connection)?;
    Ok(new)
}
