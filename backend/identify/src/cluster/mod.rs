//! Clusters of embeddings of unknown people: incremental, as faces arrive, and all together, for a nightly revision.
//!
//! Both are average linkage: two clusters are one where the mean cosine of all pairs of their members reaches a bound,
//! one minus the maximum distance. That mean is the product of the clusters' means (which are not normalised), so that a
//! cluster needs no more than its mean and the number of its members, however many those are. A single bad face that
//! resembles two people cannot join them, as it does in density-based clustering, where a chain of neighbours suffices.
//!
//! ```
//! use facepipe_identify::{Clusters, IdentifyError};
//!
//! let mut clusters = Clusters::new(3, 0.5)?;
//! let faces = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]];
//! let mut next = 0;
//! let changes = clusters.assign(&faces, || { next += 1; next })?;
//! assert_eq!(changes.assigned, [1, 2, 1]);
//! # Ok::<(), IdentifyError>(())
//! ```

mod link;

pub use link::{Unit, link};

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    IdentifyError,
    embedding::normalised,
    matrix::{Matrix, Query},
};

/// Tracks that are compared with all clusters together.
const BATCH: usize = 64;

/// Clusters of embeddings of one embedder, which take further embeddings one after the other. The outcome depends on
/// their order and on nothing else.
///
/// Memory: the mean of each cluster (4 bytes a component, padded to 64 bytes) and about 60 bytes more.
#[derive(Debug, Clone)]
pub struct Clusters {
    /// The mean cosine from which two clusters are one.
    least: f32,
    ids: Vec<i64>,
    members: Vec<u64>,
    /// The mean of each cluster's members, not normalised.
    means: Matrix,
    rows: HashMap<i64, usize>,
    /// Clusters that stay apart from others at any distance.
    apart: HashMap<i64, BTreeSet<i64>>,
}

/// The changes by embeddings that were assigned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The cluster of each embedding, after all merges.
    pub assigned: Vec<i64>,
    /// Clusters that are new and still there.
    pub created: Vec<i64>,
    /// Clusters that are gone and were there before, and those that they went into, after all merges.
    pub merged: BTreeMap<i64, i64>,
}

impl Clusters {
    /// Creates an empty set of clusters for embeddings of `dimensions` components. `max_distance`: one minus the mean
    /// cosine between the members of two clusters up to which they are one, greater than 0 and less than 1.
    ///
    /// # Errors
    /// [`IdentifyError::Option`], [`IdentifyError::Empty`].
    pub fn new(dimensions: usize, max_distance: f32) -> Result<Self, IdentifyError> {
        if dimensions == 0 {
            return Err(IdentifyError::Empty { subject: "an embedding".into() });
        }
        Ok(Self {
            least: least(max_distance)?,
            ids: Vec::new(),
            members: Vec::new(),
            means: Matrix::zeros(0, dimensions),
            rows: HashMap::new(),
            apart: HashMap::new(),
        })
    }

    /// Returns the number of clusters.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether there is no cluster.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the mean of a cluster's members, not normalised; `None` if there is no such cluster.
    pub fn mean(&self, id: i64) -> Option<&[f32]> {
        self.means.row(*self.rows.get(&id)?)
    }

    /// Returns the number of a cluster's members; 0 if there is no such cluster.
    pub fn members(&self, id: i64) -> u64 {
        self.rows.get(&id).and_then(|row| self.members.get(*row)).copied().unwrap_or(0)
    }

    /// Sets the members of a cluster: their number, and the mean of their normalised embeddings. Without members, removes it.
    ///
    /// # Errors
    /// The mean has another number of components, or one that is not finite.
    pub fn set(&mut self, id: i64, members: u64, mean: &[f32]) -> Result<(), IdentifyError> {
        if members == 0 {
            self.remove(id);
            return Ok(());
        }
        self.check(mean)?;
        match self.rows.get(&id) {
            Some(&row) => {
                if let Some(own) = self.means.row_mut(row) {
                    own.copy_from_slice(mean);
                }
                if let Some(own) = self.members.get_mut(row) {
                    *own = members;
                }
            }
            None => self.add(id, members, mean),
        }
        Ok(())
    }

    /// Removes a cluster, if there is one of this id.
    pub fn remove(&mut self, id: i64) {
        if let Some(row) = self.rows.remove(&id) {
            self.means.swap_remove(row);
            self.members.swap_remove(row);
            self.ids.swap_remove(row);
            if let Some(moved) = self.ids.get(row) {
                self.rows.insert(*moved, row);
            }
        }
        for other in self.apart.remove(&id).unwrap_or_default() {
            if let Some(set) = self.apart.get_mut(&other) {
                set.remove(&id);
            }
        }
    }

    /// Keeps two clusters apart at any distance, also after merges with others.
    pub fn separate(&mut self, one: i64, other: i64) {
        if one != other {
            self.apart.entry(one).or_default().insert(other);
            self.apart.entry(other).or_default().insert(one);
        }
    }

    /// Replaces the embedding of a member by another one, for example when its track has a further face. Does not change
    /// the cluster otherwise.
    ///
    /// # Errors
    /// An embedding has another number of components, one that is not finite, or no direction.
    pub fn replace(&mut self, id: i64, old: &[f32], new: &[f32]) -> Result<(), IdentifyError> {
        let (old, new) = (self.unit(old)?, self.unit(new)?);
        let members = self.members(id);
        let row = self.rows.get(&id).copied();
        if let Some(mean) = row.and_then(|row| self.means.row_mut(row)) {
            for ((mean, old), new) in mean.iter_mut().zip(&old).zip(&new) {
                *mean += (new - old) / count(members);
            }
        }
        Ok(())
    }

    /// Assigns tracks, one after the other, each by the mean of its embeddings: to the nearest cluster that is near
    /// enough, or to a new one with an id of `new_id`. Clusters that have become near enough to each other merge; the one
    /// with more members keeps its id, of equal ones the one with the smaller id.
    ///
    /// # Errors
    /// An embedding has another number of components, one that is not finite, or no direction; nothing is assigned then.
    pub fn assign<T: AsRef<[f32]>>(
        &mut self,
        tracks: &[T],
        mut new_id: impl FnMut() -> i64,
    ) -> Result<Changes, IdentifyError> {
        let tracks = tracks.iter().map(|track| self.unit(track.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let (mut assigned, mut merges, mut created) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        for batch in tracks.chunks(BATCH) {
            let mut queries = Matrix::zeros(0, self.means.columns());
            batch.iter().for_each(|track| queries.push(track));
            let mut near: Vec<Vec<i64>> = vec![Vec::new(); batch.len()];
            self.means.for_each_above(&queries, 0, self.least, |track, row, _| {
                if let (Some(near), Some(id)) = (near.get_mut(track), self.ids.get(row)) {
                    near.push(*id);
                }
            });
            // Clusters that changed within the batch, so that their products with later tracks are out of date.
            let mut touched = BTreeSet::new();
            for (track, near) in batch.iter().zip(near) {
                let near: BTreeSet<i64> = near.into_iter().chain(touched.iter().copied()).collect();
                let mut near = self.nearest(&Query::new(track), near);
                let cluster = if near.is_empty() {
                    let id = new_id();
                    self.add(id, 1, track);
                    created.insert(id);
                    id
                } else {
                    let (nearest, _) = near.remove(0);
                    self.join(nearest, 1, track);
                    self.settle(nearest, near.into_iter().map(|(id, _)| id).collect(), &mut merges)
                };
                touched.insert(cluster);
                assigned.push(cluster);
            }
        }
        let last = |mut id: i64| {
            while let Some(into) = merges.get(&id) {
                id = *into;
            }
            id
        };
        let gone = merges.keys().filter(|id| !created.contains(id));
        Ok(Changes {
            assigned: assigned.into_iter().map(last).collect(),
            merged: gone.map(|id| (*id, last(*id))).collect(),
            created: created.iter().copied().filter(|id| !merges.contains_key(id)).collect(),
        })
    }

    /// Returns those of `ids` that are near enough to a vector, the nearest first.
    fn nearest(&self, vector: &Query, ids: BTreeSet<i64>) -> Vec<(i64, f32)> {
        let product = |id: i64| {
            let product = self.means.dot(*self.rows.get(&id)?, vector)?;
            (product >= self.least).then_some((id, product))
        };
        let mut near: Vec<(i64, f32)> = ids.into_iter().filter_map(product).collect();
        near.sort_by(|(a, one), (b, other)| other.total_cmp(one).then(a.cmp(b)));
        near
    }

    /// Merges a cluster that has changed with those that it is near enough to now. Returns its id.
    ///
    /// No two clusters were near enough to merge before. So the cluster may only have come near those that the joining
    /// embedding itself is near to (`near`): the product of two means is the mean over the pairs of members.
    fn settle(&mut self, mut id: i64, mut near: BTreeSet<i64>, merges: &mut BTreeMap<i64, i64>) -> i64 {
        loop {
            let free: BTreeSet<i64> =
                near.iter().copied().filter(|other| !self.are_apart(id, *other)).collect();
            let Some(mean) = self.mean(id).map(Query::new) else { return id };
            let Some((other, _)) = self.nearest(&mean, free).first().copied() else { return id };
            near.remove(&other);
            let rank = |id: i64| (self.members(id), std::cmp::Reverse(id));
            let (kept, gone) = if rank(other) > rank(id) { (other, id) } else { (id, other) };
            self.merge(kept, gone);
            merges.insert(gone, kept);
            id = kept;
        }
    }

    /// Merges a cluster into another.
    fn merge(&mut self, kept: i64, gone: i64) {
        let (members, mean) = (self.members(gone), self.mean(gone).map(<[f32]>::to_vec).unwrap_or_default());
        self.join(kept, members, &mean);
        for other in self.apart.get(&gone).cloned().unwrap_or_default() {
            self.separate(kept, other);
        }
        self.remove(gone);
    }

    /// Adds members to a cluster, given by their mean.
    fn join(&mut self, id: i64, members: u64, mean: &[f32]) {
        let Some(&row) = self.rows.get(&id) else { return };
        let (Some(own), Some(count_of_own)) = (self.means.row_mut(row), self.members.get_mut(row)) else {
            return;
        };
        let all = *count_of_own + members;
        let weight = count(members) / count(all);
        for (own, value) in own.iter_mut().zip(mean) {
            *own += (value - *own) * weight;
        }
        *count_of_own = all;
    }

    fn add(&mut self, id: i64, members: u64, mean: &[f32]) {
        self.rows.insert(id, self.ids.len());
        self.ids.push(id);
        self.members.push(members);
        self.means.push(mean);
    }

    fn are_apart(&self, one: i64, other: i64) -> bool {
        self.apart.get(&one).is_some_and(|others| others.contains(&other))
    }

    fn unit(&self, embedding: &[f32]) -> Result<Vec<f32>, IdentifyError> {
        self.check(embedding)?;
        normalised(embedding, || "an embedding".into())
    }

    fn check(&self, vector: &[f32]) -> Result<(), IdentifyError> {
        let (found, expected) = (vector.len(), self.means.columns());
        if found != expected {
            return Err(IdentifyError::Dimensions { subject: "an embedding".into(), found, expected });
        }
        match vector.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((component, &value)) => {
                Err(IdentifyError::NotFinite { subject: "an embedding".into(), component, value })
            }
            None => Ok(()),
        }
    }
}

/// Returns the lowest mean cosine that a maximum distance allows.
fn least(max_distance: f32) -> Result<f32, IdentifyError> {
    if max_distance > 0.0 && max_distance < 1.0 {
        return Ok(1.0 - max_distance);
    }
    let limit = "a distance greater than 0 and less than 1";
    Err(IdentifyError::Option { option: "max_distance", value: f64::from(max_distance), limit })
}

/// Converts a number of members for arithmetic; exact up to 16 million.
#[expect(clippy::cast_precision_loss, reason = "beyond 16 million members, one more or less changes no mean")]
fn count(members: u64) -> f32 {
    members as f32
}
