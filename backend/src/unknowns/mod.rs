//! Clusters unknown faces: as they come, by a task that one process of the deployment does at a time, and all together
//! again, as a job.

mod pictures;
mod revision;

pub use pictures::{delete_blobs, keep, run_picture_retention};
pub use revision::{ReclusteringError, ReclusteringResult, recluster};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_identify::{Changes, Clusters, IdentifyError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::{JobKind, Micros, Task, UnknownFace, UnknownTrack, now},
    metrics::Metrics,
    store::{
        Database, StoreError,
        sql::{Assignment, ClusterUpdate, Lease, StoredClusters},
    },
};

/// Detections that are read and written together: few, so that other writers do not wait long.
const CHUNK: i64 = 256;
/// Chunks until the lease is released, so that a job gets it.
const CHUNKS: usize = 16;
/// Clusters whose rows are computed again between two renewals of the lease.
const CHANGED: i64 = 50;
/// How often the time of the nightly job is looked at.
const SCHEDULE_INTERVAL: Duration = Duration::from_secs(30);
const HOUR: Micros = 3_600_000_000;
const DAY: Micros = 24 * HOUR;

/// Settings of the task.
#[derive(Debug, Clone, Copy)]
pub struct ClusteringOptions {
    /// The network whose embeddings are clustered.
    pub embedder: &'static str,
    /// Components of its embeddings.
    pub dimensions: usize,
    /// One minus the mean cosine between the members of two clusters up to which they are one.
    pub max_distance: f32,
    /// The hour of the day, UTC, at which the nightly job is queued.
    pub regroup_hour: u32,
    /// How often new detections are looked for.
    pub poll: Duration,
    /// How long a lease lasts unless it is renewed.
    pub lease: Duration,
}

/// Why faces could not be clustered.
#[derive(Debug, thiserror::Error)]
enum ClusteringError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    #[error("the thread that clusters ended")]
    Interrupted,
}

/// Clusters new unknown faces until `stop` is set, and queues the nightly job.
pub async fn run_clustering(
    database: Database,
    options: ClusteringOptions,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut clusterer = Clusterer {
        database,
        options,
        holder: Uuid::new_v4().to_string(),
        queued_for: None,
        scheduled: None,
        state: None,
    };
    while !stop.is_cancelled() {
        let pass = clusterer.pass(&stop).await;
        if pass.is_err() {
            clusterer.state = None;
        }
        match pass {
            Ok(true) => continue,
            // Corrected by an administrator, or taken over by another process: the changes are read again.
            Ok(false) | Err(ClusteringError::Store(StoreError::ClustersChanged | StoreError::LeaseLost)) => {}
            Err(error) => {
                metrics.task_failed(Task::Recluster);
                tracing::warn!(%error, "cannot cluster unknown faces");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(options.poll) => (),
            () = stop.cancelled() => (),
        }
    }
}

struct Clusterer {
    database: Database,
    options: ClusteringOptions,
    /// The name of this task in leases.
    holder: String,
    /// The time for which this process has queued the nightly job.
    queued_for: Option<Micros>,
    /// When the time of the nightly job was looked at.
    scheduled: Option<Instant>,
    /// `None` until the clusters are read, and after a failure.
    state: Option<State>,
}

/// The clusters in memory.
struct State {
    clusters: Clusters,
    revision: i64,
    read_up_to: i64,
    last_unknown: i64,
}

impl Clusterer {
    /// Reads new detections for a while. Returns whether there may be more at once.
    async fn pass(&mut self, stop: &CancellationToken) -> Result<bool, ClusteringError> {
        // The job has all clusters for itself.
        if self.database.revision_is_open().await? {
            return Ok(false);
        }
        let Self { database, options, holder, .. } = self;
        let due = self.scheduled.is_none_or(|last| last.elapsed() >= SCHEDULE_INTERVAL);
        if !due && !database.has_faces_to_cluster().await? {
            return Ok(false);
        }
        if !database.acquire_lease(Lease::Unknowns, holder, options.lease).await? {
            return Ok(false);
        }
        let outcome = self.leased(stop, due).await;
        self.database.release_lease(Lease::Unknowns, &self.holder).await?;
        outcome
    }

    async fn leased(&mut self, stop: &CancellationToken, due: bool) -> Result<bool, ClusteringError> {
        if due {
            self.schedule().await?;
        }
        for _ in 0..CHUNKS {
            while !stop.is_cancelled() && self.database.summarise_changed_clusters(CHANGED).await? > 0 {
                self.state = None;
                if !self.database.renew_lease(Lease::Unknowns, &self.holder, self.options.lease).await? {
                    return Ok(false);
                }
            }
            if stop.is_cancelled() || !self.chunk().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Queues the nightly job where its time has come.
    async fn schedule(&mut self) -> Result<(), ClusteringError> {
        self.scheduled = Some(Instant::now());
        let slot = latest_slot(now(), self.options.regroup_hour);
        let Some(last) = self.database.last_run(Task::Recluster).await? else {
            // Nothing has been clustered yet.
            self.database.task_finished(Task::Recluster, now()).await?;
            return Ok(());
        };
        if last >= slot || self.queued_for == Some(slot) {
            return Ok(());
        }
        self.queued_for = Some(slot);
        let job = self.database.add_job(JobKind::ReclusterUnknowns).await?;
        tracing::info!(job = job.id, "queued the nightly clustering of unknown faces");
        Ok(())
    }

    /// Reads, clusters and writes a chunk of detections. Returns whether there may be more.
    async fn chunk(&mut self) -> Result<bool, ClusteringError> {
        let Self { database, options, holder, .. } = self;
        let embedder = options.embedder;
        let mut state = match self.state.take() {
            Some(state) => state,
            None => State::read(database.stored_clusters(embedder).await?, options)?,
        };
        let new = database.new_unknown_faces(state.read_up_to, CHUNK, embedder).await?;
        let dimensions = options.dimensions;
        let faces: Vec<UnknownFace> =
            new.faces.into_iter().filter(|face| face.embedding.len() == dimensions).collect();
        let runs = UnknownTrack::runs(faces);
        if runs.is_empty() {
            if new.read_up_to > state.read_up_to {
                database.detections_read(new.read_up_to).await?;
                state.read_up_to = new.read_up_to;
            }
            self.state = Some(state);
            return Ok(new.more);
        }
        let first = runs.iter().filter_map(|run| run.first().cloned()).collect();
        let earlier = database.earlier_tracks(first, embedder).await?;
        let revision = state.revision;
        let clustered = tokio::task::spawn_blocking(move || {
            let mut grown = Vec::new();
            let mut fresh = Vec::new();
            for (run, earlier) in runs.into_iter().zip(earlier) {
                let continued = earlier.filter(|earlier| state.clusters.members(earlier.cluster) > 0);
                let Some(track) = UnknownTrack::new(&run) else { continue };
                let Some(earlier) = continued else {
                    fresh.push(track);
                    continue;
                };
                let all: Vec<UnknownFace> = earlier.faces.iter().chain(&run).cloned().collect();
                if let (Some(old), Some(new)) = (UnknownTrack::new(&earlier.faces), UnknownTrack::new(&all)) {
                    state.clusters.replace(earlier.cluster, &old.mean, &new.mean)?;
                }
                grown.push((earlier.cluster, track));
            }
            let means: Vec<&[f32]> = fresh.iter().map(|track| track.mean.as_slice()).collect();
            let mut last = state.last_unknown;
            let changes = state.clusters.assign(&means, || {
                last += 1;
                last
            })?;
            state.last_unknown = last;
            let updates = updates(&state.clusters, &changes, &fresh, &grown);
            Ok::<_, IdentifyError>((state, changes.merged, updates))
        });
        let (mut state, merged, updates) = clustered.await.map_err(|_| ClusteringError::Interrupted)??;
        let (read_up_to, last_unknown) = (new.read_up_to, state.last_unknown);
        let assignment = Assignment { embedder, revision, read_up_to, last_unknown, merged, updates };
        database.store_assignment(assignment, holder, options.lease).await?;
        state.revision = revision + 1;
        state.read_up_to = read_up_to;
        self.state = Some(state);
        Ok(new.more)
    }
}

impl State {
    fn read(stored: StoredClusters, options: &ClusteringOptions) -> Result<Self, IdentifyError> {
        let mut clusters = Clusters::new(options.dimensions, options.max_distance)?;
        for (row, tracks, mean) in &stored.clusters {
            clusters.set(*row, *tracks, mean)?;
        }
        for (one, other) in &stored.separate {
            clusters.separate(*one, *other);
        }
        let StoredClusters { revision, read_up_to, last_unknown, .. } = stored;
        Ok(Self { clusters, revision, read_up_to, last_unknown })
    }
}

/// Returns the changes to clusters by a chunk: `fresh` tracks were assigned, `grown` ones continue a track of their
/// cluster.
fn updates(
    clusters: &Clusters,
    changes: &Changes,
    fresh: &[UnknownTrack],
    grown: &[(i64, UnknownTrack)],
) -> Vec<ClusterUpdate> {
    let kept = |row: i64| changes.merged.get(&row).copied().unwrap_or(row);
    let assigned = changes.assigned.iter().copied().zip(fresh);
    let mut joining: BTreeMap<i64, Vec<&UnknownTrack>> = BTreeMap::new();
    for (row, track) in assigned.chain(grown.iter().map(|(row, track)| (kept(*row), track))) {
        joining.entry(row).or_default().push(track);
    }
    for row in changes.merged.values() {
        joining.entry(*row).or_default();
    }
    let created: BTreeSet<i64> = changes.created.iter().copied().collect();
    let update = |(row, tracks): (i64, Vec<&UnknownTrack>)| {
        let first_seen = tracks.iter().map(|track| track.first_seen).min();
        let last_seen = tracks.iter().map(|track| track.last_seen).max();
        ClusterUpdate {
            row,
            created: tracks.first().filter(|_| created.contains(&row)).map(|track| track.best),
            tracks: clusters.members(row),
            mean: clusters.mean(row).unwrap_or_default().to_vec(),
            faces: tracks.iter().flat_map(|track| track.faces.iter().copied()).collect(),
            seen: first_seen.zip(last_seen),
        }
    };
    joining.into_iter().map(update).collect()
}

/// Returns the latest time, at most `now`, that is the beginning of an hour of the day, UTC.
fn latest_slot(now: Micros, hour: u32) -> Micros {
    let slot = now - now.rem_euclid(DAY) + i64::from(hour) * HOUR;
    if slot > now { slot - DAY } else { slot }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nightly_job_has_one_slot_a_day() {
        let midnight = 20_000 * DAY;
        for (now, hour, slot) in [
            (midnight, 0, midnight),
            (midnight, 3, midnight + 3 * HOUR - DAY),
            (midnight + 3 * HOUR - 1, 3, midnight + 3 * HOUR - DAY),
            (midnight + 3 * HOUR, 3, midnight + 3 * HOUR),
            (midnight + 23 * HOUR, 3, midnight + 3 * HOUR),
            (midnight + 23 * HOUR, 23, midnight + 23 * HOUR),
        ] {
            assert_eq!(latest_slot(now, hour), slot, "{now} {hour}");
        }
    }
}
