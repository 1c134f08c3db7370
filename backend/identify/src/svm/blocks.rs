//! Hyperplanes for thousands of people over one shared table of embeddings.
//!
//! A hyperplane rests on a hundred or two of the samples nearest to it; the others only have to be shown to lie
//! beyond the margin. So each is solved on a working set, and the decision values of all samples are computed for a
//! block of hyperplanes at once, as one product of two matrices: nothing is as long as the samples are many squared.
//! Blocks are independent of each other and of how many threads there are.

use std::{
    borrow::Borrow,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use ndarray::{Array2, ArrayView1, linalg::general_mat_mul, s};
use rayon::prelude::*;

use super::{Hyperplane, TrainingSet, descent::WorkingSet, history::Start};
use crate::{IdentifyError, ProgressCallback, TrainOptions, embedding::to_f32};

/// Classes whose decision values are computed together.
const BLOCK: usize = 32;

/// Samples whose decision values are computed together: with a block's hyperplanes they stay in a core's cache.
const ROWS: usize = 1024;

/// A working set starts with at most this many samples of each side and grows by at most as many at a time.
const CHUNK: usize = 128;

/// The first working set is hardly ever the last, so it is solved to this tolerance only.
const FIRST_TOLERANCE: f64 = 1e-2;

/// Decides which previous hyperplanes are kept, then solves the others; both in blocks, in parallel.
pub(super) fn train(
    set: &TrainingSet,
    options: &TrainOptions,
    start: &Start,
    progress: &ProgressCallback<'_>,
) -> Result<Vec<Hyperplane>, IdentifyError> {
    let plan = Plan::new(set, options, start);
    let done = AtomicUsize::new(0);
    let report = |class: usize| {
        let samples = plan.size(class);
        match progress(done.fetch_add(samples, Ordering::Relaxed) + samples) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
        }
    };
    let all: Vec<usize> = (0..set.labels.len()).collect();
    let starts: Vec<Vec<ClassStart>> = all
        .par_chunks(BLOCK)
        .map(|block| {
            let starts = plan.start_block(block);
            for (class, _) in block.iter().zip(&starts).filter(|(_, b)| matches!(b, ClassStart::Kept(_))) {
                report(*class)?;
            }
            Ok(starts)
        })
        .collect::<Result<_, IdentifyError>>()?;

    let (mut planes, mut open) = (Vec::with_capacity(all.len()), Vec::new());
    for (class, start) in starts.into_iter().flatten().enumerate() {
        match start {
            ClassStart::Kept(kept) => planes.push((class, kept)),
            ClassStart::Open(working) => open.push((class, working)),
        }
    }
    let solved: Vec<Vec<(usize, Hyperplane)>> = open
        .par_chunks(BLOCK)
        .map(|block| {
            let solved = plan.solve_block(block);
            for (class, _) in block {
                report(*class)?;
            }
            Ok(solved)
        })
        .collect::<Result<_, IdentifyError>>()?;
    planes.extend(solved.into_iter().flatten());
    planes.sort_unstable_by_key(|(class, _)| *class);
    Ok(planes.into_iter().map(|(_, plane)| plane).collect())
}

/// How the training of a class starts.
enum ClassStart {
    /// With the previous hyperplane, which is still optimal.
    Kept(Hyperplane),
    /// With a first working set.
    Open(WorkingSet),
}

struct Plan<'a> {
    set: &'a TrainingSet,
    options: &'a TrainOptions,
    start: &'a Start,
    /// Number of samples of each class.
    sizes: Vec<usize>,
}

/// A hyperplane that is being fitted.
struct Fit {
    class: usize,
    working: WorkingSet,
    plane: Hyperplane,
}

impl<'a> Plan<'a> {
    fn new(set: &'a TrainingSet, options: &'a TrainOptions, start: &'a Start) -> Self {
        let mut sizes = vec![0; set.labels.len()];
        for &class in &set.classes {
            if let Some(size) = sizes.get_mut(class) {
                *size += 1;
            }
        }
        Self { set, options, start, sizes }
    }

    fn size(&self, class: usize) -> usize {
        self.sizes.get(class).copied().unwrap_or_default()
    }

    fn is_positive(&self, class: usize, row: usize) -> bool {
        self.set.classes.get(row) == Some(&class)
    }

    /// Returns the previous hyperplane of a class.
    fn previous(&self, class: usize) -> Option<&'a Hyperplane> {
        self.start.planes.get(class)?.as_ref()
    }

    fn start_block(&self, block: &[usize]) -> Vec<ClassStart> {
        let initial = |class: &usize| self.previous(*class).cloned().unwrap_or_else(|| self.mean(*class));
        let starts: Vec<Hyperplane> = block.iter().map(initial).collect();
        let mut values = vec![vec![0.0_f32; self.set.classes.len()]; block.len()];
        self.score(&starts, |position, first, scores| {
            if let Some(to) = values.get_mut(position).and_then(|v| v.get_mut(first..first + scores.len())) {
                to.copy_from_slice(scores);
            }
        });
        let decide = |(&class, values): (&usize, &Vec<f32>)| match self.previous(class) {
            Some(previous) if self.is_still_optimal(class, values) => ClassStart::Kept(previous.clone()),
            _ => ClassStart::Open(self.first(class, values)),
        };
        block.iter().zip(&values).map(decide).collect()
    }

    /// Solves the hyperplanes of classes, starting from their working sets.
    fn solve_block(&self, block: &[(usize, WorkingSet)]) -> Vec<(usize, Hyperplane)> {
        let fit = |(class, working): &(usize, WorkingSet)| Fit {
            class: *class,
            working: working.clone(),
            plane: Hyperplane { w: Vec::new(), b: 0.0 },
        };
        let mut fits: Vec<Fit> = block.iter().map(fit).collect();
        self.solve(&mut fits);
        fits.into_iter().map(|fit| (fit.class, fit.plane)).collect()
    }

    /// Returns whether the previous hyperplane of a class, with these decision values, is still optimal: its own
    /// samples are the same, and the new ones lie beyond its margin, so that their multipliers are 0.
    fn is_still_optimal(&self, class: usize, values: &[f32]) -> bool {
        let Some(fresh) = &self.start.fresh else { return false };
        values.iter().zip(fresh).enumerate().all(|(row, (&value, &fresh))| {
            !fresh || (!self.is_positive(class, row) && f64::from(-value) >= 1.0 - self.options.tolerance)
        })
    }

    /// Returns the direction of the mean of a class' samples.
    fn mean(&self, class: usize) -> Hyperplane {
        let mut sum = vec![0.0_f64; self.set.records.ncols()];
        for (row, _) in self.set.classes.iter().enumerate().filter(|(_, c)| **c == class) {
            for (sum, &x) in sum.iter_mut().zip(self.set.records.row(row)) {
                *sum += f64::from(x);
            }
        }
        Hyperplane { w: sum.into_iter().map(to_f32).collect(), b: 0.0 }
    }

    /// Selects the samples with the smallest margins.
    fn first(&self, class: usize, values: &[f32]) -> WorkingSet {
        let mut sides: [Vec<(f32, usize)>; 2] = [Vec::new(), Vec::new()];
        let [positives, negatives] = &mut sides;
        for (row, &value) in values.iter().enumerate() {
            if self.is_positive(class, row) {
                positives.push((value, row));
            } else {
                negatives.push((-value, row));
            }
        }
        let mut working = WorkingSet::new();
        for (side, ranked) in [(true, positives), (false, negatives)] {
            working.extend(lowest(ranked).into_iter().map(|row| (row, side)));
        }
        working
    }

    /// Solves fits until no sample outside a working set violates its margin by more than the tolerance; solves the
    /// first working set only to [`FIRST_TOLERANCE`].
    fn solve(&self, fits: &mut [Fit]) {
        let tolerance = self.options.tolerance;
        let limit = to_f32(1.0 - tolerance);
        let mut open: Vec<&mut Fit> = fits.iter_mut().collect();
        let mut reached = FIRST_TOLERANCE.max(tolerance);
        while !open.is_empty() {
            open.par_iter_mut().for_each(|fit| {
                fit.plane = fit.working.solve(self.set.records.view(), self.options.c, reached);
            });
            let planes: Vec<&Hyperplane> = open.iter().map(|f| &f.plane).collect();
            let mut violators: Vec<Vec<(f32, usize)>> = vec![Vec::new(); open.len()];
            self.score(&planes, |position, first, values| {
                let (Some(fit), Some(violators)) = (open.get(position), violators.get_mut(position)) else {
                    return;
                };
                for (row, &value) in (first..).zip(values) {
                    let margin = if self.is_positive(fit.class, row) { value } else { -value };
                    if margin < limit && fit.working.rows.binary_search(&row).is_err() {
                        violators.push((margin, row));
                    }
                }
            });
            let mut next = Vec::new();
            for (fit, mut violators) in open.into_iter().zip(violators) {
                let class = fit.class;
                if reached > tolerance || !violators.is_empty() {
                    let added = lowest(&mut violators).into_iter();
                    fit.working.extend(added.map(|row| (row, self.is_positive(class, row))));
                    next.push(fit);
                }
            }
            open = next;
            reached = tolerance;
        }
    }

    /// Computes the decision values of all samples: `each` gets the position of the hyperplane, the first row and the
    /// values from there on.
    fn score<P: Borrow<Hyperplane>>(&self, planes: &[P], mut each: impl FnMut(usize, usize, &[f32])) {
        let (samples, dimensions) = self.set.records.dim();
        let mut weights = Array2::zeros((planes.len(), dimensions));
        for (mut row, plane) in weights.outer_iter_mut().zip(planes) {
            row.assign(&ArrayView1::from(&plane.borrow().w));
        }
        let mut scores = Array2::zeros((planes.len(), ROWS));
        for first in (0..samples).step_by(ROWS) {
            let end = (first + ROWS).min(samples);
            let records = self.set.records.slice(s![first..end, ..]);
            let mut scores = scores.slice_mut(s![.., ..end - first]);
            general_mat_mul(1.0, &weights, &records.t(), 0.0, &mut scores);
            for (position, (mut values, plane)) in scores.outer_iter_mut().zip(planes).enumerate() {
                values += to_f32(plane.borrow().b);
                if let Some(values) = values.as_slice() {
                    each(position, first, values);
                }
            }
        }
    }
}

/// Returns up to [`CHUNK`] rows with the lowest values, ties by row.
fn lowest(ranked: &mut [(f32, usize)]) -> Vec<usize> {
    let order = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    let taken = ranked.len().min(CHUNK);
    if taken < ranked.len() {
        ranked.select_nth_unstable_by(taken, order);
    }
    ranked.iter().take(taken).map(|(_, row)| *row).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ops::ControlFlow};

    use ndarray::Array2;

    use super::{super::tests::synthetic, *};

    const EXACT: f64 = 1e-7;

    fn train(set: &TrainingSet, options: &TrainOptions) -> Vec<Hyperplane> {
        blocks(set, options, &Start::cold(set)).unwrap()
    }

    fn blocks(
        set: &TrainingSet,
        options: &TrainOptions,
        start: &Start,
    ) -> Result<Vec<Hyperplane>, IdentifyError> {
        super::train(set, options, start, &|_| ControlFlow::Continue(()))
    }

    #[test]
    fn decision_values_are_those_of_scikit_learn() {
        let embeddings = facepipe_test_support::fixture("mobilefacenet.json");
        let mut people: BTreeMap<&str, Vec<Vec<f32>>> = BTreeMap::new();
        for (path, embedding) in embeddings["embeddings"].as_object().unwrap() {
            let embedding: Vec<f32> = serde_json::from_value(embedding.clone()).unwrap();
            let embedding = crate::embedding::normalised(&embedding, String::new).unwrap();
            people.entry(path.split('/').nth(1).unwrap()).or_default().push(embedding);
        }
        let flat: Vec<f32> = people.values().flat_map(|photos| photos[..5].concat()).collect();
        let set = TrainingSet {
            records: Array2::from_shape_vec((50, 128), flat).unwrap(),
            classes: (0..50).map(|row| row / 5).collect(),
            labels: people.keys().map(ToString::to_string).collect(),
        };
        let classes = train(&set, &TrainOptions { tolerance: EXACT, ..TrainOptions::default() });

        let golden = facepipe_test_support::fixture("linear_svm.json");
        for (person, class) in people.keys().zip(&classes) {
            let theirs: Vec<f64> = serde_json::from_value(golden["decision_values"][person].clone()).unwrap();
            let ours = people.values().flat_map(|photos| &photos[5..]).map(|x| class.value(x));
            assert_eq!(theirs.len(), 50);
            for (ours, theirs) in ours.zip(theirs) {
                assert!((ours - theirs).abs() < 1e-4, "{person}: {ours}, scikit-learn {theirs}");
            }
        }
    }

    #[test]
    fn the_default_tolerance_is_near_the_optimum() {
        let set = synthetic(70, 6, 40);
        let (near, exact) = (
            train(&set, &TrainOptions::default()),
            train(&set, &TrainOptions { tolerance: EXACT, ..TrainOptions::default() }),
        );
        for (near, exact) in near.iter().zip(&exact) {
            for x in set.records.outer_iter() {
                assert!((near.value_of(x) - exact.value_of(x)).abs() < 5e-3);
            }
        }
    }

    #[test]
    fn hyperplanes_unaffected_by_new_samples_are_kept_and_the_rest_match_a_cold_start() {
        let options = TrainOptions::default();
        let all = synthetic(90, 6, 128);
        // The last person comes later. Labels are sorted, so the classes of the others are the same.
        let before = TrainingSet {
            records: all.records.slice(s![..89 * 6, ..]).to_owned(),
            classes: all.classes[..89 * 6].to_vec(),
            labels: all.labels[..89].to_vec(),
        };
        let fresh = (0..all.classes.len()).map(|row| row >= 89 * 6).collect();
        let old = train(&before, &options);
        let start =
            Start { planes: old.iter().cloned().map(Some).chain([None]).collect(), fresh: Some(fresh) };
        let (warm, cold) = (blocks(&all, &options, &start).unwrap(), train(&all, &options));
        let kept = warm.iter().zip(&old).filter(|(new, old)| new == old).count();
        assert!((10..89).contains(&kept), "{kept} stayed");
        for (class, (warm, cold)) in warm.iter().zip(&cold).enumerate() {
            for x in all.records.outer_iter() {
                let (warm, cold) = (warm.value_of(x), cold.value_of(x));
                assert!((warm - cold).abs() < 5e-3, "class {class}: {warm}, cold {cold}");
            }
        }
    }
}
