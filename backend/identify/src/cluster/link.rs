//! Average linkage of all members together.

use std::{collections::BTreeSet, ops::ControlFlow};

use super::{count, least};
use crate::{
    IdentifyError, ProgressCallback,
    matrix::{Matrix, Query},
};

/// Units that are compared with all others together.
const BATCH: usize = 64;

/// An indivisible part of a cluster: a track, or a cluster that must not be divided.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The tracks in it, at least 1.
    pub members: u64,
    /// The mean of the tracks' normalised embeddings.
    pub mean: Vec<f32>,
}

/// A cluster in the making.
struct Node {
    members: u64,
    units: Vec<usize>,
    /// Units that must not join.
    apart: BTreeSet<usize>,
}

/// Groups units by average linkage: repeatedly merges the two clusters with the greatest mean cosine between their members,
/// while one minus that is at most `max_distance`. `apart`: units that must not get into one cluster. `progress` receives
/// the number of units that are compared with all others, and before each step of merging that of all units again; it ends the
/// call early where it breaks.
///
/// Returns the cluster of each unit: numbers from 0 in the order of the clusters' first units.
///
/// Two clusters merge only where some of their members are that near to each other. So the pairs of near units are looked
/// for first, and the units that they connect, directly or not, are linked by chains of nearest neighbours (F. Murtagh, "A
/// survey of recent advances in hierarchical clustering algorithms", The Computer Journal 26(4), 1983), which finds the
/// merges of the definition above. Time grows with the square of the number of units.
///
/// # Errors
/// [`IdentifyError::Option`], [`IdentifyError::Cancelled`], [`IdentifyError::Dimensions`].
pub fn link(
    units: &[Unit],
    max_distance: f32,
    apart: &[(usize, usize)],
    progress: &ProgressCallback<'_>,
) -> Result<Vec<usize>, IdentifyError> {
    let least = least(max_distance)?;
    let dimensions = units.first().map_or(1, |unit| unit.mean.len());
    if let Some(other) = units.iter().find(|unit| unit.mean.len() != dimensions) {
        let found = other.mean.len();
        return Err(IdentifyError::Dimensions { subject: "a mean".into(), found, expected: dimensions });
    }
    let mut forbidden = vec![BTreeSet::new(); units.len()];
    for (one, other) in apart {
        for (of, unit) in [(one, other), (other, one)] {
            if let Some(set) = forbidden.get_mut(*of) {
                set.insert(*unit);
            }
        }
    }
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    for component in components(units, dimensions, least, progress)? {
        let nodes = component.into_iter().filter_map(|unit| {
            let apart = forbidden.get(unit).cloned().unwrap_or_default();
            let node = Node { members: units.get(unit)?.members.max(1), units: vec![unit], apart };
            Some((node, units.get(unit)?.mean.as_slice()))
        });
        let go_on = || progress(units.len());
        clusters.extend(Chain::new(nodes, dimensions, least).run(&go_on)?);
    }
    clusters.iter_mut().for_each(|cluster| cluster.sort_unstable());
    clusters.sort_unstable();
    let mut labels = vec![0; units.len()];
    for (number, cluster) in clusters.iter().enumerate() {
        for unit in cluster {
            if let Some(label) = labels.get_mut(*unit) {
                *label = number;
            }
        }
    }
    Ok(labels)
}

/// Returns the sets of units that are connected by pairs whose product is at least `least`, in the order of their first
/// units.
fn components(
    units: &[Unit],
    dimensions: usize,
    least: f32,
    progress: &ProgressCallback<'_>,
) -> Result<Vec<Vec<usize>>, IdentifyError> {
    let mut all = Matrix::zeros(0, dimensions);
    units.iter().for_each(|unit| all.push(&unit.mean));
    let mut parents: Vec<usize> = (0..units.len()).collect();
    for (batch, some) in units.chunks(BATCH).enumerate() {
        let mut queries = Matrix::zeros(0, dimensions);
        some.iter().for_each(|unit| queries.push(&unit.mean));
        let first = batch * BATCH;
        all.for_each_above(&queries, first, least, |query, row, _| unite(&mut parents, first + query, row));
        if progress(first + some.len()) == ControlFlow::Break(()) {
            return Err(IdentifyError::Cancelled);
        }
    }
    let mut components: Vec<Vec<usize>> = vec![Vec::new(); units.len()];
    for unit in 0..units.len() {
        let root = root(&mut parents, unit);
        if let Some(component) = components.get_mut(root) {
            component.push(unit);
        }
    }
    components.retain(|component| !component.is_empty());
    Ok(components)
}

/// Returns the representative of a unit's set.
fn root(parents: &mut [usize], unit: usize) -> usize {
    let mut root = unit;
    while let Some(parent) = parents.get(root).copied().filter(|parent| *parent != root) {
        // Halves the path for later calls.
        let grandparent = parents.get(parent).copied().unwrap_or(parent);
        if let Some(own) = parents.get_mut(root) {
            *own = grandparent;
        }
        root = grandparent;
    }
    root
}

/// Unites two sets; the smaller root stays.
fn unite(parents: &mut [usize], one: usize, other: usize) {
    let (one, other) = (root(parents, one), root(parents, other));
    if let Some(parent) = parents.get_mut(one.max(other)) {
        *parent = one.min(other);
    }
}

/// A chain in which each cluster's successor is its nearest neighbour: where two are nearest to each other, they merge.
struct Chain {
    nodes: Vec<Node>,
    /// The mean of each node, not normalised.
    means: Matrix,
    least: f32,
}

impl Chain {
    fn new<'a>(nodes: impl Iterator<Item = (Node, &'a [f32])>, dimensions: usize, least: f32) -> Self {
        let mut chain = Self { nodes: Vec::new(), means: Matrix::zeros(0, dimensions), least };
        for (node, mean) in nodes {
            chain.nodes.push(node);
            chain.means.push(mean);
        }
        chain
    }

    /// Links all nodes. Returns the units of each cluster, or an error where `go_on` breaks.
    fn run(mut self, go_on: &dyn Fn() -> ControlFlow<()>) -> Result<Vec<Vec<usize>>, IdentifyError> {
        let (mut clusters, mut path): (Vec<Vec<usize>>, Vec<usize>) = (Vec::new(), Vec::new());
        while !self.nodes.is_empty() {
            if go_on() == ControlFlow::Break(()) {
                return Err(IdentifyError::Cancelled);
            }
            let top = match path.last() {
                Some(top) => *top,
                None => {
                    path.push(0);
                    0
                }
            };
            let before = path.len().checked_sub(2).and_then(|at| path.get(at)).copied();
            match self.nearest(top, before) {
                // No other merge brings it nearer to any.
                None => {
                    path.pop();
                    clusters.push(self.remove(top, &mut path).units);
                }
                Some(other) if Some(other) == before => {
                    path.truncate(path.len().saturating_sub(2));
                    self.merge(top, other, &mut path);
                }
                Some(other) => path.push(other),
            }
        }
        Ok(clusters)
    }

    /// Returns the nearest node that a node may merge with; of equally near ones `before`, else the one with the
    /// earliest first unit.
    fn nearest(&self, of: usize, before: Option<usize>) -> Option<usize> {
        let (node, mean) = (self.nodes.get(of)?, Query::new(self.means.row(of)?));
        let mut best: Option<(f32, bool, std::cmp::Reverse<usize>, usize)> = None;
        self.means.scan(&mean, |first, products| {
            for (row, &product) in (first..).zip(products) {
                if product < self.least || row == of || best.is_some_and(|(highest, ..)| product < highest) {
                    continue;
                }
                let Some(other) = self.nodes.get(row) else { continue };
                if !node.apart.is_empty() && other.units.iter().any(|unit| node.apart.contains(unit)) {
                    continue;
                }
                let first = other.units.first().copied().unwrap_or(usize::MAX);
                let rank = (product, before == Some(row), std::cmp::Reverse(first), row);
                if best.is_none_or(|best| rank > best) {
                    best = Some(rank);
                }
            }
        });
        best.map(|(_, _, _, row)| row)
    }

    /// Merges two nodes that are not on the path.
    fn merge(&mut self, one: usize, other: usize, path: &mut [usize]) {
        let (kept, gone) = (one.min(other), one.max(other));
        let mean = self.means.row(gone).map(<[f32]>::to_vec).unwrap_or_default();
        let removed = self.remove(gone, path);
        let Some(node) = self.nodes.get_mut(kept) else { return };
        let weight = count(removed.members) / count(node.members + removed.members);
        if let Some(own) = self.means.row_mut(kept) {
            own.iter_mut().zip(&mean).for_each(|(own, value)| *own += (value - *own) * weight);
        }
        node.members += removed.members;
        node.units.extend(removed.units);
        node.units.sort_unstable();
        node.apart.extend(removed.apart);
    }

    /// Removes a node that is not on the path; the last one takes its place.
    fn remove(&mut self, node: usize, path: &mut [usize]) -> Node {
        let last = self.nodes.len() - 1;
        self.means.swap_remove(node);
        path.iter_mut().filter(|at| **at == last).for_each(|at| *at = node);
        self.nodes.swap_remove(node)
    }
}
