//! Unknown people: clusters of unknown faces, as administrators see and correct them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::{
    Connection,
    dsl::{count_star, max},
    prelude::*,
};

use super::{
    AnyConnection, Database, MAX_VARIABLES, cohort,
    erasures::{RowIdentity, record_erasure},
    people::PendingErasure,
    schema::{detections, merged_unknowns, proposals, separate_unknowns, unknown_clustering, unknowns},
    tracks, unknown_pictures,
};
use crate::{
    domain::{
        ClusterSummary, Micros, Unknown, UnknownCamera, UnknownFace, UnknownFilter, UnknownId, UnknownOrder,
        UnknownPosition, UnknownTrack, now,
    },
    store::{StoreError, vector_from_bytes, vector_to_bytes},
};

/// The columns of a cluster without its mean.
#[derive(Queryable)]
struct Row {
    id: i64,
    public_id: String,
    embedder: String,
    faces: i64,
    tracks: i64,
    first_seen: Micros,
    last_seen: Micros,
    representative: i64,
    ignored: bool,
    pinned: bool,
    created_at: Micros,
}

const COLUMNS: (
    unknowns::id,
    unknowns::public_id,
    unknowns::embedder,
    unknowns::faces,
    unknowns::tracks,
    unknowns::first_seen,
    unknowns::last_seen,
    unknowns::representative,
    unknowns::ignored,
    unknowns::pinned,
    unknowns::created_at,
) = (
    unknowns::id,
    unknowns::public_id,
    unknowns::embedder,
    unknowns::faces,
    unknowns::tracks,
    unknowns::first_seen,
    unknowns::last_seen,
    unknowns::representative,
    unknowns::ignored,
    unknowns::pinned,
    unknowns::created_at,
);

/// Why clusters cannot be merged or divided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterConflict {
    /// Their embeddings are of different embedders.
    #[error(
        "has a group of faces that {other} embedded, this one's were embedded by {own}: they cannot be compared"
    )]
    Embedders {
        /// The cluster's.
        own: String,
        /// The other one's.
        other: String,
    },
    /// A cluster cannot be merged with itself.
    #[error("has the id of this very group, or of one that was merged into it")]
    Same,
    /// No cluster has this id.
    #[error("has {0}, which is no group's id")]
    NotFound(String),
    /// A detection is not in the cluster.
    #[error("has {0}, which is no detection of this group")]
    NotInCluster(i64),
    /// All detections of the cluster would leave it.
    #[error("has all detections of this group: leave out those that stay")]
    All,
}

impl ClusterConflict {
    /// Returns the field of the call that is invalid.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Embedders { .. } | Self::Same | Self::NotFound(_) => "unknown_ids",
            Self::NotInCluster(_) | Self::All => "detections",
        }
    }
}

/// The two parts of a divided cluster.
pub struct Divided {
    /// The cluster without the moved detections.
    pub remaining: Unknown,
    /// The new cluster.
    pub new: Unknown,
}

/// How far detections have been read, and the state of all clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Queryable)]
pub(super) struct Clustering {
    /// The last detection that was read.
    pub read_up_to: i64,
    /// Grows with each change of clusters.
    pub revision: i64,
    /// The greatest row id of a cluster so far.
    pub last_unknown: i64,
}

impl Database {
    /// Returns at most `limit` clusters in `order`, starting after the position `after`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknowns(
        &self,
        filter: UnknownFilter,
        order: UnknownOrder,
        after: Option<UnknownPosition>,
        limit: i64,
    ) -> Result<Vec<Unknown>, StoreError> {
        self.read(move |connection| {
            let mut query = unknowns::table
                .filter(unknowns::faces.ge(filter.min_faces))
                .limit(limit)
                .select(COLUMNS)
                .into_boxed::<<AnyConnection as Connection>::Backend>();
            if let Some(ignored) = filter.ignored {
                query = query.filter(unknowns::ignored.eq(ignored));
            }
            let (from, to) = (filter.from.unwrap_or(Micros::MIN), filter.to.unwrap_or(Micros::MAX));
            let seen = detections::table
                .filter(detections::unknown_id.is_not_null())
                .filter(detections::captured_at.ge(from))
                .filter(detections::captured_at.lt(to))
                .select(detections::unknown_id);
            if let Some(camera_id) = filter.camera_id.clone() {
                let by_camera = seen.filter(detections::camera_id.eq(camera_id));
                query = query.filter(unknowns::id.nullable().eq_any(by_camera));
            } else if filter.from.is_some() || filter.to.is_some() {
                query = query.filter(unknowns::id.nullable().eq_any(seen));
            }
            query = match (order, after) {
                (UnknownOrder::LastSeen, None) => query,
                (UnknownOrder::LastSeen, Some(UnknownPosition { value, row })) => query
                    .filter(unknowns::last_seen.le(value))
                    .filter(unknowns::last_seen.lt(value).or(unknowns::id.lt(row))),
                (UnknownOrder::Faces, None) => query,
                (UnknownOrder::Faces, Some(UnknownPosition { value, row })) => query
                    .filter(unknowns::faces.le(value))
                    .filter(unknowns::faces.lt(value).or(unknowns::id.lt(row))),
            };
            query = match order {
                UnknownOrder::LastSeen => query.order((unknowns::last_seen.desc(), unknowns::id.desc())),
                UnknownOrder::Faces => query.order((unknowns::faces.desc(), unknowns::id.desc())),
            };
            let rows = query.load::<Row>(connection)?;
            with_cameras(connection, rows)
        })
        .await
    }

    /// Returns a cluster by its id, or by the id of one that was merged into it.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`].
    pub async fn unknown(&self, id: UnknownId) -> Result<Unknown, StoreError> {
        self.read(move |connection| {
            let row = row_of(connection, id)?;
            of_row(connection, row)
        })
        .await
    }

    /// Merges clusters into one, whose id stays, and keeps them together from then on.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`], [`StoreError::ClusterConflict`].
    pub async fn merge_unknowns(
        &self,
        into: UnknownId,
        others: Vec<UnknownId>,
    ) -> Result<Unknown, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let kept = row_of(connection, into)?;
            let embedder = of_row(connection, kept)?.embedder;
            let mut rows = BTreeSet::new();
            for id in &others {
                let row = match row_of(connection, *id) {
                    Err(StoreError::UnknownNotFound) => {
                        return Err(ClusterConflict::NotFound(id.to_string()).into());
                    }
                    row => row?,
                };
                if row == kept {
                    return Err(ClusterConflict::Same.into());
                }
                let other = of_row(connection, row)?.embedder;
                if other != embedder {
                    return Err(ClusterConflict::Embedders { own: embedder, other }.into());
                }
                rows.insert(row);
            }
            for row in rows {
                absorb(connection, kept, row)?;
            }
            // Recomputes the summary; the cluster whose id is kept also keeps its mark of being ignored or not.
            summarise(connection, kept)?;
            // Faces may have left since the transaction began.
            mark_changed(connection, kept)?;
            pin(connection, kept)?;
            of_row(connection, kept)
        })
        .await
    }

    /// Moves detections of a cluster to a new one, and keeps the two apart from then on.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`], [`StoreError::ClusterConflict`].
    pub async fn divide_unknown(&self, id: UnknownId, faces: Vec<i64>) -> Result<Divided, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let row = row_of(connection, id)?;
            let embedder = of_row(connection, row)?.embedder;
            let own: BTreeSet<i64> = detections::table
                .filter(detections::unknown_id.eq(row))
                .select(detections::id)
                .load::<i64>(connection)?
                .into_iter()
                .collect();
            let moved: BTreeSet<i64> = faces.iter().copied().collect();
            if let Some(other) = moved.difference(&own).next() {
                return Err(ClusterConflict::NotInCluster(*other).into());
            }
            if moved.len() == own.len() {
                return Err(ClusterConflict::All.into());
            }
            let new = state(connection)?.last_unknown + 1;
            diesel::update(unknown_clustering::table)
                .set(unknown_clustering::last_unknown.eq(new))
                .execute(connection)?;
            let moved: Vec<i64> = moved.into_iter().collect();
            for ids in moved.chunks(MAX_VARIABLES) {
                let of_ids = || detections::table.filter(detections::id.eq_any(ids));
                // One may have become known meanwhile.
                diesel::update(of_ids().filter(detections::unknown_id.eq(row)))
                    .set(detections::unknown_id.eq(Some(new)))
                    .execute(connection)?;
                let there: BTreeSet<i64> = of_ids()
                    .filter(detections::unknown_id.eq(new))
                    .select(detections::id)
                    .load::<i64>(connection)?
                    .into_iter()
                    .collect();
                if let Some(other) = ids.iter().find(|id| !there.contains(id)) {
                    return Err(ClusterConflict::NotInCluster(*other).into());
                }
            }
            let summary = summary(connection, new)?.ok_or(StoreError::Interrupted)?;
            insert(connection, new, &embedder, &summary, false)?;
            summarise(connection, row)?;
            for row in [row, new] {
                // Faces may have left since the transaction began.
                mark_changed(connection, row)?;
                pin(connection, row)?;
            }
            separate(connection, row, new)?;
            Ok(Divided { remaining: of_row(connection, row)?, new: of_row(connection, new)? })
        })
        .await
    }

    /// Hides a cluster from lists, or shows it again.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`].
    pub async fn ignore_unknown(&self, id: UnknownId, ignored: bool) -> Result<Unknown, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let row = row_of(connection, id)?;
            diesel::update(unknowns::table.find(row))
                .set(unknowns::ignored.eq(ignored))
                .execute(connection)?;
            of_row(connection, row)
        })
        .await
    }

    /// Erases a cluster with the embeddings of its detections, and with `with_detections` the detections, too.
    ///
    /// # Errors
    /// [`StoreError::UnknownNotFound`].
    pub async fn erase_unknown(
        &self,
        id: UnknownId,
        with_detections: bool,
    ) -> Result<PendingErasure, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let row = row_of(connection, id)?;
            erase(connection, row, with_detections)
        })
        .await
    }

    /// Erases a cluster as [`erase_unknown`](Self::erase_unknown) does. `None` where the row does not exist.
    ///
    /// # Errors
    /// The database fails.
    pub async fn erase_unknown_row(
        &self,
        row: i64,
        with_detections: bool,
    ) -> Result<Option<PendingErasure>, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let there: Option<i64> =
                unknowns::table.find(row).select(unknowns::id).first(connection).optional()?;
            there.map(|row| erase(connection, row, with_detections)).transpose()
        })
        .await
    }

    /// Returns the identities of all clusters, and of those that were merged into them, with the row ids of the
    /// clusters.
    ///
    /// # Errors
    /// The database fails.
    pub async fn unknown_identities(&self) -> Result<Vec<(i64, RowIdentity)>, StoreError> {
        self.read(|connection| {
            let mut rows: Vec<(i64, String)> =
                unknowns::table.select((unknowns::id, unknowns::public_id)).load(connection)?;
            rows.extend(
                merged_unknowns::table
                    .select((merged_unknowns::unknown_id, merged_unknowns::public_id))
                    .load::<(i64, String)>(connection)?,
            );
            Ok(rows.into_iter().map(|(row, id)| (row, RowIdentity::Unknown { id })).collect())
        })
        .await
    }
}

/// Locks all clusters until the transaction ends, and marks them as changed. Reads nothing: on MySQL, a transaction sees the
/// rows of others as they were at its first look.
pub(super) fn lock(connection: &mut AnyConnection) -> Result<(), StoreError> {
    diesel::update(unknown_clustering::table)
        .set(unknown_clustering::revision.eq(unknown_clustering::revision + 1))
        .execute(connection)?;
    Ok(())
}

/// Locks all clusters until the transaction ends, for one that changes none of them.
pub(super) fn hold(connection: &mut AnyConnection) -> Result<(), StoreError> {
    diesel::update(unknown_clustering::table)
        .set(unknown_clustering::revision.eq(unknown_clustering::revision))
        .execute(connection)?;
    Ok(())
}

/// Returns how far detections have been read, and the state of all clusters.
pub(super) fn state(connection: &mut AnyConnection) -> Result<Clustering, StoreError> {
    Ok(unknown_clustering::table
        .select((
            unknown_clustering::read_up_to,
            unknown_clustering::revision,
            unknown_clustering::last_unknown,
        ))
        .first(connection)?)
}

/// Returns the row of a cluster, or of the one that it was merged into.
pub(super) fn row_of(connection: &mut AnyConnection, id: UnknownId) -> Result<i64, StoreError> {
    let id = id.to_string();
    let own = unknowns::table.filter(unknowns::public_id.eq(&id)).select(unknowns::id);
    if let Some(row) = own.first(connection).optional()? {
        return Ok(row);
    }
    let merged = merged_unknowns::table.find(&id).select(merged_unknowns::unknown_id);
    merged.first(connection).optional()?.ok_or(StoreError::UnknownNotFound)
}

fn of_row(connection: &mut AnyConnection, row: i64) -> Result<Unknown, StoreError> {
    let row = unknowns::table.find(row).select(COLUMNS).first::<Row>(connection).optional()?;
    let rows = row.map_or(Err(StoreError::UnknownNotFound), |row| with_cameras(connection, vec![row]))?;
    rows.into_iter().next().ok_or(StoreError::UnknownNotFound)
}

/// Clusters with the cameras that have seen them.
fn with_cameras(connection: &mut AnyConnection, rows: Vec<Row>) -> Result<Vec<Unknown>, StoreError> {
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let mut cameras: HashMap<i64, Vec<UnknownCamera>> = HashMap::new();
    for ids in ids.chunks(MAX_VARIABLES) {
        let seen = detections::table
            .filter(detections::unknown_id.eq_any(ids))
            .group_by((detections::unknown_id, detections::camera_id))
            .select((
                detections::unknown_id,
                detections::camera_id,
                count_star(),
                max(detections::captured_at),
            ))
            .load::<(Option<i64>, String, i64, Option<Micros>)>(connection)?;
        for (unknown, camera_id, faces, last_seen) in seen {
            if let (Some(unknown), Some(last_seen)) = (unknown, last_seen) {
                cameras.entry(unknown).or_default().push(UnknownCamera { camera_id, faces, last_seen });
            }
        }
    }
    let unknown = |row: Row| {
        let mut cameras = cameras.remove(&row.id).unwrap_or_default();
        cameras.sort_by(|a, b| b.last_seen.cmp(&a.last_seen).then(a.camera_id.cmp(&b.camera_id)));
        let id = UnknownId::parse(&row.public_id);
        Ok(Unknown {
            row: row.id,
            id: id.ok_or_else(|| StoreError::Damaged("the id of a cluster".into()))?,
            embedder: row.embedder,
            faces: row.faces,
            tracks: row.tracks,
            first_seen: row.first_seen,
            last_seen: row.last_seen,
            representative: row.representative,
            ignored: row.ignored,
            pinned: row.pinned,
            created_at: row.created_at,
            cameras,
        })
    };
    rows.into_iter().map(unknown).collect()
}

/// The columns of an [`UnknownFace`], as [`FaceColumns`].
macro_rules! unknown_face_columns {
    () => {
        (
            detections::id,
            detections::captured_at,
            detections::camera_id,
            detections::track_id,
            detections::track_row,
            detections::embedding,
        )
    };
}
pub(super) use unknown_face_columns;

/// The columns of an [`UnknownFace`].
pub(super) type FaceColumns = (i64, Micros, String, Option<i64>, Option<i64>, Option<Vec<u8>>);

/// Returns the face of a row; `None` if it has no embedding.
pub(super) fn face_of(
    (id, captured_at, camera_id, track_id, track_row, embedding): FaceColumns,
) -> Result<Option<UnknownFace>, StoreError> {
    let Some(embedding) = embedding else { return Ok(None) };
    let embedding = vector_from_bytes(&embedding)?;
    Ok(Some(UnknownFace { id, captured_at, camera_id, track_id, track_row, embedding }))
}

/// Returns the tracks of clusters, by cluster.
pub(super) fn tracks_of(
    connection: &mut AnyConnection,
    clusters: &[i64],
) -> Result<BTreeMap<i64, Vec<UnknownTrack>>, StoreError> {
    let mut faces: BTreeMap<i64, Vec<UnknownFace>> = BTreeMap::new();
    for clusters in clusters.chunks(MAX_VARIABLES) {
        let rows = detections::table
            .filter(detections::unknown_id.eq_any(clusters))
            .select((detections::unknown_id, unknown_face_columns!()))
            .load::<(Option<i64>, FaceColumns)>(connection)?;
        for (cluster, columns) in rows {
            if let (Some(cluster), Some(face)) = (cluster, face_of(columns)?) {
                faces.entry(cluster).or_default().push(face);
            }
        }
    }
    Ok(faces.into_iter().map(|(cluster, faces)| (cluster, UnknownTrack::of(faces))).collect())
}

fn summary(connection: &mut AnyConnection, row: i64) -> Result<Option<ClusterSummary>, StoreError> {
    let tracks = tracks_of(connection, &[row])?.remove(&row).unwrap_or_default();
    Ok(ClusterSummary::of(&tracks.iter().collect::<Vec<_>>()))
}

/// Recomputes the summary in a cluster's row; removes the cluster if it has no detections.
///
/// Another transaction may take detections out of the cluster at the same time. If this one has not read before, it does not
/// miss that; otherwise it has to mark the cluster as changed afterwards.
pub(super) fn summarise(connection: &mut AnyConnection, row: i64) -> Result<(), StoreError> {
    // The write precedes all reads: it waits for transactions that take detections out of the cluster; later ones mark
    // the cluster again.
    diesel::update(unknowns::table.find(row)).set(unknowns::changed.eq(false)).execute(connection)?;
    let Some(summary) = summary(connection, row)? else {
        // The cluster has no faces, or only faces without a direction, which belong to no track.
        release(connection, row)?;
        diesel::delete(unknowns::table.find(row)).execute(connection)?;
        return Ok(());
    };
    store(connection, row, &summary)
}

/// Marks a cluster for the clustering task, which computes the summary in the cluster's row again.
pub(super) fn mark_changed(connection: &mut AnyConnection, row: i64) -> Result<(), StoreError> {
    diesel::update(unknowns::table.find(row)).set(unknowns::changed.eq(true)).execute(connection)?;
    Ok(())
}

/// Returns the number of a cluster's faces; 0 if there is no such cluster.
pub(super) fn faces_of(connection: &mut AnyConnection, row: i64) -> Result<i64, StoreError> {
    let faces = unknowns::table.find(row).select(unknowns::faces).first(connection).optional()?;
    Ok(faces.unwrap_or_default())
}

/// Stores the summary of a cluster.
pub(super) fn store(
    connection: &mut AnyConnection,
    row: i64,
    summary: &ClusterSummary,
) -> Result<(), StoreError> {
    diesel::update(unknowns::table.find(row))
        .set((
            unknowns::mean.eq(vector_to_bytes(&summary.mean)),
            unknowns::faces.eq(summary.faces),
            unknowns::tracks.eq(summary.tracks),
            unknowns::first_seen.eq(summary.first_seen),
            unknowns::last_seen.eq(summary.last_seen),
            unknowns::representative.eq(summary.representative),
            unknowns::changed.eq(false),
        ))
        .execute(connection)?;
    Ok(())
}

/// Inserts a cluster.
pub(super) fn insert(
    connection: &mut AnyConnection,
    row: i64,
    embedder: &str,
    summary: &ClusterSummary,
    ignored: bool,
) -> Result<(), StoreError> {
    diesel::insert_into(unknowns::table)
        .values((
            unknowns::id.eq(row),
            unknowns::public_id.eq(UnknownId::new().to_string()),
            unknowns::embedder.eq(embedder),
            unknowns::mean.eq(vector_to_bytes(&summary.mean)),
            unknowns::faces.eq(summary.faces),
            unknowns::tracks.eq(summary.tracks),
            unknowns::first_seen.eq(summary.first_seen),
            unknowns::last_seen.eq(summary.last_seen),
            unknowns::representative.eq(summary.representative),
            unknowns::ignored.eq(ignored),
            unknowns::pinned.eq(false),
            unknowns::changed.eq(false),
            unknowns::created_at.eq(now()),
        ))
        .execute(connection)?;
    Ok(())
}

/// Moves all detections of a cluster to another one and removes it. Its id leads to the other one from then on, which also
/// takes over its separations. The summary of the other one must be recomputed afterwards.
pub(super) fn absorb(connection: &mut AnyConnection, kept: i64, gone: i64) -> Result<(), StoreError> {
    diesel::update(detections::table.filter(detections::unknown_id.eq(gone)))
        .set(detections::unknown_id.eq(Some(kept)))
        .execute(connection)?;
    retire(connection, kept, gone)
}

/// Removes a cluster without detections. Its id leads to another one from then on, which also takes over its
/// separations.
pub(super) fn retire(connection: &mut AnyConnection, kept: i64, gone: i64) -> Result<(), StoreError> {
    let Some(public_id) =
        unknowns::table.find(gone).select(unknowns::public_id).first::<String>(connection).optional()?
    else {
        return Ok(());
    };
    diesel::update(merged_unknowns::table.filter(merged_unknowns::unknown_id.eq(gone)))
        .set(merged_unknowns::unknown_id.eq(kept))
        .execute(connection)?;
    diesel::insert_into(merged_unknowns::table)
        .values((merged_unknowns::public_id.eq(public_id), merged_unknowns::unknown_id.eq(kept)))
        .execute(connection)?;
    for other in separated_from(connection, gone)? {
        separate(connection, kept, other)?;
    }
    // Foreign keys delete its separations.
    diesel::delete(unknowns::table.find(gone)).execute(connection)?;
    Ok(())
}

/// Keeps two clusters apart, unless they are the same or are kept apart already.
fn separate(connection: &mut AnyConnection, one: i64, other: i64) -> Result<(), StoreError> {
    if one == other || separated_from(connection, one)?.contains(&other) {
        return Ok(());
    }
    diesel::insert_into(separate_unknowns::table)
        .values((
            separate_unknowns::unknown_id.eq(one.min(other)),
            separate_unknowns::other_unknown_id.eq(one.max(other)),
        ))
        .execute(connection)?;
    Ok(())
}

fn separated_from(connection: &mut AnyConnection, row: i64) -> Result<BTreeSet<i64>, StoreError> {
    let pairs: Vec<(i64, i64)> = separate_unknowns::table
        .filter(separate_unknowns::unknown_id.eq(row).or(separate_unknowns::other_unknown_id.eq(row)))
        .select((separate_unknowns::unknown_id, separate_unknowns::other_unknown_id))
        .load(connection)?;
    Ok(pairs.into_iter().map(|(one, other)| if one == row { other } else { one }).collect())
}

fn pin(connection: &mut AnyConnection, row: i64) -> Result<(), StoreError> {
    diesel::update(unknowns::table.find(row)).set(unknowns::pinned.eq(true)).execute(connection)?;
    Ok(())
}

/// Takes all detections out of a cluster.
fn release(connection: &mut AnyConnection, row: i64) -> Result<(), StoreError> {
    diesel::update(detections::table.filter(detections::unknown_id.eq(row)))
        .set(detections::unknown_id.eq(None::<i64>))
        .execute(connection)?;
    Ok(())
}

/// Erases a cluster and records that in the ledger, under its id and those that were merged into it.
fn erase(
    connection: &mut AnyConnection,
    row: i64,
    with_detections: bool,
) -> Result<PendingErasure, StoreError> {
    let mut ids: Vec<String> = merged_unknowns::table
        .filter(merged_unknowns::unknown_id.eq(row))
        .select(merged_unknowns::public_id)
        .load(connection)?;
    ids.push(unknowns::table.find(row).select(unknowns::public_id).first(connection)?);
    let own = detections::table.filter(detections::unknown_id.eq(row));
    let faces = own.select(detections::id).load::<i64>(connection)?;
    // The tracks' sums contain the embeddings, so the tracks are closed.
    let tracks = tracks::end_of_detections(connection, &faces)?;
    // Locks the cluster's row before the cohort, as others do.
    mark_changed(connection, row)?;
    cohort::erase_of_detections(connection, &faces)?;
    let blobs = unknown_pictures::take(connection, &faces)?;
    if with_detections {
        diesel::delete(own).execute(connection)?;
    } else {
        for faces in faces.chunks(MAX_VARIABLES) {
            let proposed = proposals::table.filter(proposals::detection_id.eq_any(faces));
            diesel::delete(proposed).execute(connection)?;
        }
        diesel::update(own)
            .set((detections::embedding.eq(None::<Vec<u8>>), detections::unknown_id.eq(None::<i64>)))
            .execute(connection)?;
    }
    tracks::delete_empty(connection, &tracks)?;
    diesel::delete(unknowns::table.find(row)).execute(connection)?;
    let recorded = ids.into_iter().map(|id| record_erasure(connection, &RowIdentity::Unknown { id }));
    let erasures = recorded.collect::<Result<_, StoreError>>()?;
    Ok(PendingErasure { blobs, erasures })
}

/// Marks the clusters of detections that are about to be deleted, erased or identified: the clustering task recomputes
/// the summaries in their rows. Part of every transaction that takes detections out of clusters.
pub(super) fn leave(connection: &mut AnyConnection, faces: &[i64]) -> Result<(), StoreError> {
    for faces in faces.chunks(MAX_VARIABLES) {
        let clusters: Vec<Option<i64>> = detections::table
            .filter(detections::id.eq_any(faces))
            .filter(detections::unknown_id.is_not_null())
            .select(detections::unknown_id)
            .distinct()
            .load(connection)?;
        let clusters: Vec<i64> = clusters.into_iter().flatten().collect();
        if !clusters.is_empty() {
            diesel::update(unknowns::table.filter(unknowns::id.eq_any(&clusters)))
                .set(unknowns::changed.eq(true))
                .execute(connection)?;
        }
    }
    Ok(())
}
