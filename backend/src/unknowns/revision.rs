//! Clusters all unknown faces together again, which is more accurate than one after the other, since no face is assigned
//! before others are known. Clusters keep their ids if they keep most of their tracks, ignored clusters stay ignored,
//! and clusters that were merged or divided by hand stay together or apart.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_identify::{IdentifyError, Unit, link};
use paperclip::actix::Apiv2Schema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{ClusterSummary, Task, UnknownTrack, now},
    store::{
        Database, StoreError,
        sql::{Lease, RevisedCluster, Revision, Successor},
    },
};

/// How often a revision starts again because clusters have changed meanwhile.
const ATTEMPTS: u32 = 3;
/// How often the lease is tried for, and the pause in between.
const LEASE_RETRIES: u32 = 300;
const LEASE_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Clusters whose tracks are read together.
const CLUSTERS: usize = 200;
/// Maximum number of tracks that are compared with each other. Beyond it, older ones keep their clusters, since the
/// time grows with the square.
const MAX_UNITS: usize = 100_000;

/// The result of a clustering of all unknown faces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct ReclusteringResult {
    /// Unknown people before.
    #[openapi(minimum = 0, example = "41")]
    pub unknowns_before: i64,
    /// Unknown people now.
    #[openapi(minimum = 0, example = "39")]
    pub unknowns: i64,
    /// Tracks that were compared; a detection without a track is one of its own.
    #[openapi(minimum = 0, example = "180")]
    pub tracks: i64,
    /// Detections that belong to another unknown person now.
    #[openapi(minimum = 0, example = "6")]
    pub detections_moved: i64,
    /// Duration, milliseconds.
    #[openapi(minimum = 0, example = "35")]
    pub duration_ms: i64,
}

/// Why a clustering of all unknown faces has no result.
#[derive(Debug, thiserror::Error)]
pub enum ReclusteringError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The embeddings cannot be compared.
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    /// Clusters changed each time before the result could be stored, or another process holds the lease.
    #[error("unknown people were changed again and again meanwhile: try again later")]
    Changed,
    /// The thread that clusters ended.
    #[error("the thread that clusters ended")]
    Interrupted,
}

/// Receives the number of tracks that were compared, and of all.
pub type ReclusteringProgress = Arc<dyn Fn(usize, usize) -> ControlFlow<()> + Send + Sync>;

/// Clusters all unknown faces with embeddings by `embedder` together again.
///
/// # Errors
/// [`ReclusteringError`]; `Identify(Cancelled)` where `progress` breaks.
pub async fn recluster(
    database: &Database,
    (embedder, max_distance): (&'static str, f32),
    (holder, lease): (&str, Duration),
    progress: ReclusteringProgress,
) -> Result<ReclusteringResult, ReclusteringError> {
    let started = Instant::now();
    let mut tries = 0;
    while !database.acquire_lease(Lease::Unknowns, holder, lease).await? {
        tries += 1;
        if tries == LEASE_RETRIES {
            return Err(ReclusteringError::Changed);
        }
        if progress(0, 0) == ControlFlow::Break(()) {
            return Err(IdentifyError::Cancelled.into());
        }
        tokio::time::sleep(LEASE_RETRY_INTERVAL).await;
    }
    let mut outcome = Err(ReclusteringError::Changed);
    for _ in 0..ATTEMPTS {
        outcome = attempt(database, (embedder, max_distance), (holder, lease), &progress).await;
        if !matches!(outcome, Err(ReclusteringError::Store(StoreError::ClustersChanged))) {
            break;
        }
    }
    database.release_lease(Lease::Unknowns, holder).await?;
    let mut result = match outcome {
        Err(ReclusteringError::Store(StoreError::ClustersChanged)) => return Err(ReclusteringError::Changed),
        outcome => outcome?,
    };
    result.duration_ms = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX);
    database.task_finished(Task::Recluster, now()).await?;
    Ok(result)
}

async fn attempt(
    database: &Database,
    (embedder, max_distance): (&'static str, f32),
    (holder, lease): (&str, Duration),
    progress: &ReclusteringProgress,
) -> Result<ReclusteringResult, ReclusteringError> {
    let stored = database.clusters_for_revision(embedder).await?;
    let mut clusters = Vec::with_capacity(stored.clusters.len());
    for chunk in stored.clusters.chunks(CLUSTERS) {
        let rows = chunk.iter().map(|(row, ..)| *row).collect();
        let mut tracks = database.tracks_of_clusters(rows).await?;
        clusters.extend(chunk.iter().map(|&(row, ignored, pinned)| {
            let tracks = tracks.remove(&row).unwrap_or_default();
            OldCluster { row, ignored, pinned, tracks }
        }));
        if !database.renew_lease(Lease::Unknowns, holder, lease).await? {
            return Err(StoreError::LeaseLost.into());
        }
    }
    let before = clusters.len();
    let tracks: usize = clusters.iter().map(|cluster| cluster.tracks.len()).sum();
    let (separate, shown) = (stored.separate, Arc::clone(progress));
    let planned = tokio::task::spawn_blocking(move || {
        plan(&clusters, &separate, max_distance, MAX_UNITS, &|done, all| shown(done, all))
    });
    tokio::pin!(planned);
    let mut renewals = tokio::time::interval(lease / 3);
    let plan = loop {
        tokio::select! {
            plan = &mut planned => break plan.map_err(|_| ReclusteringError::Interrupted)??,
            _ = renewals.tick() => {
                // If the lease is lost, the transaction that stores the result fails.
                let _ = database.renew_lease(Lease::Unknowns, holder, lease).await?;
            }
        }
    };
    let gone = plan.gone.len();
    let moved: usize = plan.clusters.iter().flat_map(|cluster| cluster.joining.values()).map(Vec::len).sum();
    let revision = Revision { embedder, revision: stored.revision, clusters: plan.clusters, gone: plan.gone };
    let new = database.store_revision(revision, holder, lease).await?;
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(ReclusteringResult {
        unknowns_before: count(before),
        unknowns: count(before + new - gone),
        tracks: count(tracks),
        detections_moved: count(moved),
        duration_ms: 0,
    })
}

/// A cluster before the revision.
struct OldCluster {
    row: i64,
    ignored: bool,
    pinned: bool,
    tracks: Vec<UnknownTrack>,
}

/// The changes by a revision.
#[derive(Debug)]
struct Plan {
    clusters: Vec<RevisedCluster>,
    gone: BTreeMap<i64, Successor>,
}

/// Tracks that stay together: positions of a cluster and of its tracks.
struct Together {
    cluster: usize,
    tracks: Vec<usize>,
}

/// A cluster after the revision.
#[derive(Default)]
struct NewCluster {
    /// Positions of old clusters, and those of the tracks that come from them.
    tracks: BTreeMap<usize, Vec<usize>>,
    /// The position of the old cluster whose id it keeps.
    keeps: Option<usize>,
}

fn plan(
    old: &[OldCluster],
    separate: &[(i64, i64)],
    max_distance: f32,
    max_units: usize,
    progress: &(dyn Fn(usize, usize) -> ControlFlow<()> + Sync),
) -> Result<Plan, IdentifyError> {
    let together = together(old, max_units);
    let (apart, units) = (apart(old, &together, separate), units(old, &together));
    let all = units.len();
    let labels = link(&units, max_distance, &apart, &|done| progress(done, all))?;
    let mut new: Vec<NewCluster> = Vec::new();
    for (unit, label) in together.into_iter().zip(labels) {
        if new.len() <= label {
            new.resize_with(label + 1, NewCluster::default);
        }
        if let Some(cluster) = new.get_mut(label) {
            cluster.tracks.entry(unit.cluster).or_default().extend(unit.tracks);
        }
    }
    let heirs = keep_ids(&mut new);
    let ignored = ignored(old, &new, &heirs);
    let (mut plan, mut successors) = (Plan { clusters: Vec::new(), gone: BTreeMap::new() }, Vec::new());
    for (cluster, ignored) in new.iter().zip(ignored) {
        let keeps = cluster.keeps.and_then(|position| old.get(position).map(|old| (position, old)));
        let unchanged = keeps.filter(|(position, old)| {
            cluster.tracks.len() == 1
                && cluster.tracks.get(position).is_some_and(|tracks| tracks.len() == old.tracks.len())
                && old.ignored == ignored
        });
        if let Some((_, old)) = unchanged {
            successors.push(Successor::Unchanged(old.row));
            continue;
        }
        successors.push(Successor::Revised(plan.clusters.len()));
        plan.clusters.extend(revised(old, cluster, ignored));
    }
    let kept: BTreeSet<usize> = new.iter().filter_map(|cluster| cluster.keeps).collect();
    for (position, cluster) in old.iter().enumerate().filter(|(position, _)| !kept.contains(position)) {
        if let Some(successor) = heirs.get(&position).and_then(|heir| successors.get(*heir)) {
            plan.gone.insert(cluster.row, *successor);
        }
    }
    Ok(plan)
}

/// Returns the units that are not divided: all tracks of a cluster that was made by hand, every track of another one;
/// if there are more than `max_units`, also the older tracks of a cluster.
fn together(old: &[OldCluster], max_units: usize) -> Vec<Together> {
    let free = |(cluster, of): (usize, &OldCluster)| {
        let last_seen: Vec<_> = of.tracks.iter().map(|track| track.last_seen).collect();
        last_seen.into_iter().enumerate().map(move |(track, last_seen)| (Reverse(last_seen), cluster, track))
    };
    let mut single: Vec<_> =
        old.iter().enumerate().filter(|(_, cluster)| !cluster.pinned).flat_map(free).collect();
    single.sort_unstable();
    let older = single.split_off(single.len().min(max_units));
    let mut together: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
    for (_, cluster, track) in single {
        together.insert((cluster, Some(track)), vec![track]);
    }
    for (_, cluster, track) in older {
        together.entry((cluster, None)).or_default().push(track);
    }
    for (position, cluster) in old.iter().enumerate().filter(|(_, cluster)| cluster.pinned) {
        if !cluster.tracks.is_empty() {
            together.insert((position, None), (0..cluster.tracks.len()).collect());
        }
    }
    together.into_iter().map(|((cluster, _), tracks)| Together { cluster, tracks }).collect()
}

fn units(old: &[OldCluster], together: &[Together]) -> Vec<Unit> {
    let unit = |unit: &Together| {
        let own = old.get(unit.cluster).map(|cluster| cluster.tracks.as_slice()).unwrap_or_default();
        let tracks: Vec<&UnknownTrack> = unit.tracks.iter().filter_map(|track| own.get(*track)).collect();
        let members = u64::try_from(tracks.len()).unwrap_or(1);
        Unit { members, mean: ClusterSummary::of(&tracks).map(|summary| summary.mean).unwrap_or_default() }
    };
    together.iter().map(unit).collect()
}

/// Returns the pairs of units of clusters that stay apart.
fn apart(old: &[OldCluster], together: &[Together], separate: &[(i64, i64)]) -> Vec<(usize, usize)> {
    let mut units: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (unit, of) in together.iter().enumerate() {
        if let Some(cluster) = old.get(of.cluster) {
            units.entry(cluster.row).or_default().push(unit);
        }
    }
    let of = |row: &i64| units.get(row).map(Vec::as_slice).unwrap_or_default();
    let pairs = |(one, other): &(i64, i64)| {
        let others = of(other);
        of(one).iter().flat_map(|one| others.iter().map(|other| (*one, *other))).collect::<Vec<_>>()
    };
    separate.iter().flat_map(pairs).collect()
}

/// Gives ids to the new clusters: each old cluster's to the new one with most of its tracks, larger overlaps first. Returns
/// the new cluster that has most of each old one's tracks.
fn keep_ids(new: &mut [NewCluster]) -> BTreeMap<usize, usize> {
    let mut overlaps: Vec<(Reverse<usize>, usize, usize)> = Vec::new();
    for (position, cluster) in new.iter().enumerate() {
        overlaps.extend(cluster.tracks.iter().map(|(old, tracks)| (Reverse(tracks.len()), *old, position)));
    }
    overlaps.sort_unstable();
    let (mut heirs, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for (_, old, position) in overlaps {
        heirs.entry(old).or_insert(position);
        if let Some(cluster) = new.get_mut(position)
            && cluster.keeps.is_none()
            && taken.insert(old)
        {
            cluster.keeps = Some(old);
        }
    }
    heirs
}

/// Returns whether each new cluster is ignored: if it has most of the tracks of an ignored one, or most of its tracks come
/// from ignored ones.
fn ignored(old: &[OldCluster], new: &[NewCluster], heirs: &BTreeMap<usize, usize>) -> Vec<bool> {
    let was_ignored = |position: &usize| old.get(*position).is_some_and(|cluster| cluster.ignored);
    let of = |(position, cluster): (usize, &NewCluster)| {
        let (mut from_ignored, mut all) = (0, 0);
        for (of, tracks) in &cluster.tracks {
            all += tracks.len();
            from_ignored += if was_ignored(of) { tracks.len() } else { 0 };
        }
        from_ignored * 2 > all || heirs.iter().any(|(old, heir)| *heir == position && was_ignored(old))
    };
    new.iter().enumerate().map(of).collect()
}

fn revised(old: &[OldCluster], cluster: &NewCluster, ignored: bool) -> Option<RevisedCluster> {
    let (mut tracks, mut joining) = (Vec::new(), BTreeMap::new());
    for (position, own) in &cluster.tracks {
        let Some(from) = old.get(*position) else { continue };
        let own: Vec<&UnknownTrack> = own.iter().filter_map(|track| from.tracks.get(*track)).collect();
        if cluster.keeps != Some(*position) {
            joining.insert(from.row, own.iter().flat_map(|track| track.faces.iter().copied()).collect());
        }
        tracks.extend(own);
    }
    let row = cluster.keeps.and_then(|position| old.get(position)).map(|cluster| cluster.row);
    Some(RevisedCluster { row, ignored, summary: ClusterSummary::of(&tracks)?, joining })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::UnknownFace;

    /// Returns a track of one detection with an embedding at this angle, in degrees; its capture time is its id.
    fn track(id: i64, angle: f32) -> UnknownTrack {
        let (sin, cos) = angle.to_radians().sin_cos();
        let (captured_at, camera_id) = (id, "gate".to_owned());
        let face = UnknownFace {
            id,
            captured_at,
            camera_id,
            track_id: None,
            track_row: None,
            embedding: vec![cos, sin],
        };
        UnknownTrack::new(&[face]).unwrap()
    }

    fn cluster(row: i64, tracks: &[(i64, f32)]) -> OldCluster {
        let tracks = tracks.iter().map(|(id, angle)| track(*id, *angle)).collect();
        OldCluster { row, ignored: false, pinned: false, tracks }
    }

    /// Plans a revision in which angles up to 36 degrees are near enough.
    fn revise(old: &[OldCluster], separate: &[(i64, i64)]) -> Plan {
        plan(old, separate, 0.19, MAX_UNITS, &|_, _| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn what_is_right_already_stays_as_it_is() {
        let plan = revise(&[cluster(1, &[(1, 0.0), (2, 5.0)]), cluster(2, &[(3, 90.0)])], &[]);
        assert!(plan.clusters.is_empty() && plan.gone.is_empty(), "{plan:?}");
    }

    #[test]
    fn ids_go_with_most_of_their_tracks() {
        // The first has a stray track of the second person, the third is of the first person.
        let old = [
            cluster(1, &[(1, 0.0), (2, 5.0), (3, 92.0)]),
            cluster(2, &[(4, 90.0), (5, 88.0)]),
            cluster(3, &[(6, 3.0)]),
        ];
        let plan = revise(&old, &[]);
        let of = |row: i64| plan.clusters.iter().find(|cluster| cluster.row == Some(row)).unwrap();
        assert_eq!(of(1).joining, BTreeMap::from([(3, vec![6])]));
        assert_eq!((of(1).summary.tracks, of(2).summary.tracks), (3, 3));
        assert_eq!(of(2).joining, BTreeMap::from([(1, vec![3])]));
        let first = plan.clusters.iter().position(|cluster| cluster.row == Some(1)).unwrap();
        assert_eq!(plan.gone, BTreeMap::from([(3, Successor::Revised(first))]));
    }

    #[test]
    fn a_part_that_belongs_to_nobody_else_gets_a_new_id() {
        let plan = revise(&[cluster(1, &[(1, 0.0), (2, 5.0), (3, 120.0)])], &[]);
        let rows: Vec<Option<i64>> = plan.clusters.iter().map(|cluster| cluster.row).collect();
        assert_eq!(rows, [Some(1), None]);
        assert_eq!(plan.clusters[1].joining, BTreeMap::from([(1, vec![3])]));
        assert!(plan.gone.is_empty());
    }

    #[test]
    fn those_who_are_ignored_stay_so_whatever_they_are_merged_with_or_divided_into() {
        let mut old = [cluster(1, &[(1, 0.0), (2, 5.0)]), cluster(2, &[(3, 2.0)])];
        old[1].ignored = true;
        let plan = revise(&old, &[]);
        assert_eq!((plan.clusters.len(), plan.clusters[0].row, plan.clusters[0].ignored), (1, Some(1), true));
        let mut old = [cluster(1, &[(1, 0.0), (2, 5.0), (3, 120.0)])];
        old[0].ignored = true;
        let plan = revise(&old, &[]);
        assert!(plan.clusters.iter().all(|cluster| cluster.ignored) && plan.clusters.len() == 2);
    }

    #[test]
    fn what_was_made_by_hand_stays_together_and_apart() {
        let mut old = [cluster(1, &[(1, 0.0), (2, 60.0)]), cluster(2, &[(3, 30.0)])];
        (old[0].pinned, old[1].pinned) = (true, true);
        let plan = revise(&old, &[(1, 2)]);
        assert!(plan.clusters.is_empty() && plan.gone.is_empty(), "{plan:?}");
        // The mean of the first is 30 degrees off each of its tracks, and as near to the second.
        let plan = revise(&old, &[]);
        assert_eq!((plan.clusters.len(), plan.gone.len()), (1, 1), "{plan:?}");
    }

    #[test]
    fn of_too_many_tracks_the_older_ones_stay_together() {
        let old = [cluster(1, &[(1, 0.0), (2, 100.0), (3, 1.0), (4, 2.0)])];
        let units = together(&old, 2);
        let mut tracks: Vec<Vec<usize>> = units.into_iter().map(|unit| unit.tracks).collect();
        tracks.iter_mut().for_each(|tracks| tracks.sort_unstable());
        assert_eq!(tracks, [vec![0, 1], vec![2], vec![3]]);
    }
}
