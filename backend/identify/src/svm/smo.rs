//! Hyperplanes by linfa's SMO solver, for few samples.
//!
//! linfa's solver computes the whole kernel matrix for every class, but a person's hyperplane depends on a few dozen
//! faces only; so it gets a working set that grows by the samples that violate the margin until none does
//! (chunking: Vapnik, 1982; Osuna, Freund and Girosi, 1997). The result is the same, for a hundred people with ten
//! photographs 25 times faster.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use linfa::{DatasetBase, traits::Fit};
use linfa_svm::Svm;
use ndarray::{Array2, ArrayView1, Axis};
use rayon::prelude::*;

use super::{Hyperplane, TrainingSet};
use crate::{IdentifyError, ProgressCallback, TrainOptions, embedding::to_f32};

/// The working set starts with at most this many samples of each side and grows by at most as many at a time.
const CHUNK: usize = 96;

/// Where classes overlap so much that the working set would exceed this, training gives up: a solver's kernel matrix
/// is this length squared in doubles (128 MB), and every processor runs one.
const MAX_WORKING_SET: usize = 4000;

/// Fits the classes in parallel.
pub(super) fn train(
    set: &TrainingSet,
    options: &TrainOptions,
    progress: &ProgressCallback<'_>,
) -> Result<Vec<Hyperplane>, IdentifyError> {
    let done = AtomicUsize::new(0);
    (0..set.labels.len())
        .into_par_iter()
        .map(|class| {
            let targets: Vec<bool> = set.classes.iter().map(|&c| c == class).collect();
            let all: Vec<usize> = (0..targets.len()).collect();
            let plane = Hyperplane::fit(set, &targets, &all, options)?;
            let samples = targets.iter().filter(|t| **t).count();
            match progress(done.fetch_add(samples, Ordering::Relaxed) + samples) {
                ControlFlow::Continue(()) => Ok(plane),
                ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
            }
        })
        .collect()
}

impl Hyperplane {
    /// Separates the samples `rows` with target true from the others; both must occur.
    ///
    /// A person has few samples and everybody else together has many, so the penalty of a sample is weighted by
    /// how rare its side is: `C n / 2 n₊` and `C n / 2 n₋`.
    fn fit(
        set: &TrainingSet,
        targets: &[bool],
        rows: &[usize],
        options: &TrainOptions,
    ) -> Result<Self, IdentifyError> {
        let is_positive = |row: usize| targets.get(row) == Some(&true);
        let (positives, negatives): (Vec<usize>, Vec<usize>) = rows.iter().partition(|r| is_positive(**r));
        let weight = |n: usize| options.c * rows.len() as f64 / (2.0 * n as f64);
        let weights = (weight(positives.len()), weight(negatives.len()));

        // The hardest to separate are those nearest to the other side.
        let mut working = nearest(set, &positives, &negatives);
        working.extend(nearest(set, &negatives, &positives));
        loop {
            // Sorted, so that rounding depends only on the set of samples.
            working.sort_unstable();
            let side: Vec<bool> = working.iter().map(|&r| is_positive(r)).collect();
            let records = set.records.select(Axis(0), &working).mapv(f64::from);
            let plane = Self::solve(&records, &side, weights, options.tolerance)?;

            let outside = rows.iter().copied().filter(|r| working.binary_search(r).is_err());
            let mut violators: Vec<(f64, usize)> = outside
                .map(|row| {
                    let value = plane.value_of(set.records.row(row));
                    (if is_positive(row) { value } else { -value }, row)
                })
                .filter(|(margin, _)| *margin < 1.0 - options.tolerance)
                .collect();
            if violators.is_empty() {
                return Ok(plane);
            }
            violators.sort_by(|a, b| a.0.total_cmp(&b.0));
            working.extend(violators.iter().take(CHUNK).map(|(_, row)| row));
            if working.len() > MAX_WORKING_SET {
                return Err(IdentifyError::Training(format!(
                    "people overlap so much that more than {MAX_WORKING_SET} samples lie on a margin"
                )));
            }
        }
    }

    /// Returns linfa's solution for these samples, with the penalties of true and false ones.
    fn solve(
        records: &Array2<f64>,
        targets: &[bool],
        weights: (f64, f64),
        tolerance: f64,
    ) -> Result<Self, IdentifyError> {
        let dataset = DatasetBase::new(records.view(), ArrayView1::from(targets));
        let svm = Svm::<f64, bool>::params()
            .linear_kernel()
            .eps(tolerance)
            .pos_neg_weights(weights.0, weights.1)
            .fit(&dataset)
            .map_err(|e| IdentifyError::Training(e.to_string()))?;

        let w = ArrayView1::from(&svm.alpha).dot(records);
        if !(svm.rho.is_finite() && w.iter().all(|v| v.is_finite())) {
            return Err(IdentifyError::Training("the solver did not converge".into()));
        }
        Ok(Self { w: w.iter().map(|&v| to_f32(v)).collect(), b: -svm.rho })
    }
}

/// Returns up to [`CHUNK`] of the rows `of` with the greatest cosine to the mean of the rows `to`.
fn nearest(set: &TrainingSet, to: &[usize], of: &[usize]) -> Vec<usize> {
    if of.len() <= CHUNK {
        return of.to_vec();
    }
    let sum = set.records.select(Axis(0), to).sum_axis(Axis(0));
    let mut ranked: Vec<(f32, usize)> = of.iter().map(|&row| (set.records.row(row).dot(&sum), row)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().take(CHUNK).map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use linfa::traits::{Fit, Predict};

    use super::{super::tests::synthetic, *};

    fn linfa(set: &TrainingSet, targets: &[bool], options: &TrainOptions) -> Svm<f64, bool> {
        let (n, positives) = (targets.len() as f64, targets.iter().filter(|t| **t).count() as f64);
        let records = set.records.mapv(f64::from);
        let dataset = DatasetBase::new(records.view(), ArrayView1::from(targets));
        Svm::<f64, bool>::params()
            .linear_kernel()
            .eps(options.tolerance)
            .pos_neg_weights(options.c * n / (2.0 * positives), options.c * n / (2.0 * (n - positives)))
            .fit(&dataset)
            .unwrap()
    }

    #[test]
    fn the_hyperplane_gives_linfas_decision_values() {
        let options = TrainOptions::default();
        // Small enough for one working set, and large enough to need several.
        for (people, photos) in [(3, 4), (60, 8)] {
            let set = synthetic(people, photos, 32);
            let rows: Vec<usize> = (0..set.classes.len()).collect();
            for class in [0, people - 1] {
                let targets: Vec<bool> = set.classes.iter().map(|&c| c == class).collect();
                let svm = linfa(&set, &targets, &options);
                let plane = Hyperplane::fit(&set, &targets, &rows, &options).unwrap();
                for (row, x) in set.records.outer_iter().enumerate() {
                    let double = x.mapv(f64::from);
                    let theirs = svm.weighted_sum(&double) - svm.rho;
                    let ours = plane.value_of(x);
                    assert!((ours - theirs).abs() < 1e-3, "{people} people, row {row}: {ours} and {theirs}");
                    assert!((plane.value(&x.to_vec()) - theirs).abs() < 1e-3);
                    assert_eq!(ours > 0.0, svm.predict(double), "row {row}");
                }
            }
        }
    }

    #[test]
    fn one_working_set_gives_linfas_decision_values_to_single_precision() {
        let set = synthetic(5, 6, 64);
        let options = TrainOptions::default();
        let rows: Vec<usize> = (0..set.classes.len()).collect();
        let targets: Vec<bool> = set.classes.iter().map(|&c| c == 2).collect();
        let svm = linfa(&set, &targets, &options);
        let plane = Hyperplane::fit(&set, &targets, &rows, &options).unwrap();
        for x in set.records.outer_iter() {
            assert!((plane.value_of(x) - (svm.weighted_sum(&x.mapv(f64::from)) - svm.rho)).abs() < 1e-6);
        }
    }
}
