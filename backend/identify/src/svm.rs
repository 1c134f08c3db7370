//! Linear multiclass support vector machine, one against all, with one probability calibration per class.
//!
//! Hyperplanes come from linfa's SMO solver. For a linear kernel the solution folds into one normal vector,
//! `w = Σ αᵢ xᵢ` with the signed multipliers αᵢ, so a stored model needs no training sample. linfa's solver computes
//! the whole kernel matrix anew for every class; a person's hyperplane rests on a few dozen faces, though, so it is
//! given a working set that grows by the samples that violate the margin until none does (chunking: Vapnik, 1982;
//! Osuna, Freund and Girosi, 1997). The result is the same, for a hundred people with ten photographs 25 times sooner.
//!
//! Probabilities are Platt's: `p = 1 / (1 + exp(A f + B))` of the decision value `f = w·x + b`, with A and B from the
//! Newton method of Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines" (2007),
//! whose regularised targets keep a class of one sample away from 0 and 1. The decision values are cross-validated:
//! those of training samples lie on the margin by construction and would make every answer look certain.

use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use linfa::{
    DatasetBase, ParamGuard,
    composing::platt_scaling::{PlattParams, platt_newton_method},
    traits::Fit,
};
use linfa_svm::Svm;
use ndarray::{Array2, ArrayView1, Axis};
use rayon::prelude::*;

use crate::{
    Classifier, ClassifierKind, IdentifyError, TrainOptions, Watch,
    embedding::{dot, to_f32},
    format::{Reader, put_f32s},
};

/// The most samples that [`LinearSvm`] is trained on.
pub const MAX_SVM_SAMPLES: usize = 20_000;

/// The working set starts with at most this many samples of each side and grows by at most as many at a time.
const CHUNK: usize = 96;

/// Where classes overlap so much that the working set would exceed this, training gives up: a solver's kernel matrix
/// is this length squared in doubles (128 MB), and every processor runs one.
const MAX_WORKING_SET: usize = 4000;

/// One hyperplane and one calibration per class.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSvm {
    dimensions: usize,
    classes: Vec<Class>,
}

#[derive(Debug, Clone, PartialEq)]
struct Class {
    hyperplane: Hyperplane,
    calibration: Calibration,
}

/// `f(x) = w·x + b`, positive on the side of the class.
#[derive(Debug, Clone, PartialEq)]
struct Hyperplane {
    w: Vec<f32>,
    b: f64,
}

/// `p = 1 / (1 + exp(a f + b))`; a is never positive, so a higher decision value is never less probable.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Calibration {
    a: f64,
    b: f64,
}

/// Checked samples: L2-normalised `records` `[n, dimensions]`, the class of each, and the number of classes, each of
/// which occurs.
pub(crate) struct TrainingSet {
    pub(crate) records: Array2<f64>,
    pub(crate) classes: Vec<usize>,
    pub(crate) count: usize,
}

impl LinearSvm {
    pub(crate) fn train(
        set: &TrainingSet,
        options: &TrainOptions,
        watch: &Watch<'_>,
    ) -> Result<Self, IdentifyError> {
        let found = set.classes.len();
        if found > MAX_SVM_SAMPLES {
            return Err(IdentifyError::TooManySamples { found, limit: MAX_SVM_SAMPLES });
        }
        let classes = if set.count == 1 {
            vec![Class::only(set)]
        } else {
            let ranks = ranks(&set.classes);
            let done = AtomicUsize::new(0);
            (0..set.count)
                .into_par_iter()
                .map(|class| {
                    let trained = Class::train(class, set, &ranks, options)?;
                    let samples = set.classes.iter().filter(|c| **c == class).count();
                    match watch(done.fetch_add(samples, Ordering::Relaxed) + samples) {
                        ControlFlow::Continue(()) => Ok(trained),
                        ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
                    }
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Self { dimensions: set.records.ncols(), classes })
    }

    pub(crate) fn decode(
        reader: &mut Reader<'_>,
        classes: usize,
        dimensions: usize,
    ) -> Result<Self, IdentifyError> {
        let mut read = Vec::new();
        for _ in 0..classes {
            let hyperplane = Hyperplane { w: reader.f32s(dimensions)?, b: reader.f64()? };
            let calibration = Calibration { a: reader.f64()?, b: reader.f64()? };
            read.push(Class { hyperplane, calibration });
        }
        Ok(Self { dimensions, classes: read })
    }
}

impl Classifier for LinearSvm {
    fn kind(&self) -> ClassifierKind {
        ClassifierKind::LinearSvm
    }

    fn classes(&self) -> usize {
        self.classes.len()
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The calibrated probability of each class, scaled to sum 1. In logarithms: far from every hyperplane all of
    /// them underflow, and their ratios still mean something.
    fn probabilities(&self, embedding: &[f32]) -> Vec<f32> {
        let logs: Vec<f64> = self
            .classes
            .iter()
            .map(|c| c.calibration.log_probability(c.hyperplane.value(embedding)))
            .collect();
        let highest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scaled: Vec<f64> = logs.iter().map(|l| (l - highest).exp()).collect();
        let sum: f64 = scaled.iter().sum();
        scaled.iter().map(|s| to_f32(s / sum)).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for Class { hyperplane, calibration } in &self.classes {
            put_f32s(out, &hyperplane.w);
            for value in [hyperplane.b, calibration.a, calibration.b] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
}

impl Class {
    /// The only class there is: nothing to separate it from, so its probability is 1 whatever the parameters.
    fn only(set: &TrainingSet) -> Self {
        let w = vec![0.0; set.records.ncols()];
        Self { hyperplane: Hyperplane { w, b: 0.0 }, calibration: Calibration { a: 0.0, b: 0.0 } }
    }

    /// `ranks` gives each sample's position among those of its class.
    fn train(
        class: usize,
        set: &TrainingSet,
        ranks: &[usize],
        options: &TrainOptions,
    ) -> Result<Self, IdentifyError> {
        let targets: Vec<bool> = set.classes.iter().map(|&c| c == class).collect();
        let all: Vec<usize> = (0..targets.len()).collect();
        let hyperplane = Hyperplane::fit(set, &targets, &all, options)?;

        let positives = targets.iter().filter(|t| **t).count();
        let calibration = match NonZeroUsize::new(positives.min(options.calibration_folds)) {
            Some(folds) if folds.get() >= 2 => match cross_validated(set, &targets, ranks, folds, options)? {
                Some(values) => Calibration::fit(&values, &targets)?,
                None => None,
            },
            _ => None,
        };
        let calibration = match calibration {
            Some(calibration) => calibration,
            // One sample, or photographs so unlike each other that they do not even predict one another: the values
            // of the training samples are all there is.
            None => {
                let values: Vec<f64> = set.records.outer_iter().map(|x| hyperplane.value_of(x)).collect();
                Calibration::fit(&values, &targets)?.unwrap_or(Calibration { a: 0.0, b: 0.0 })
            }
        };
        Ok(Self { hyperplane, calibration })
    }
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
            // In one order whatever came first, so that rounding is the same for the same samples.
            working.sort_unstable();
            let side: Vec<bool> = working.iter().map(|&r| is_positive(r)).collect();
            let records = set.records.select(Axis(0), &working);
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

    /// linfa's solution on these samples, with the penalties of true and false ones.
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

    fn value(&self, embedding: &[f32]) -> f64 {
        dot(&self.w, embedding) + self.b
    }

    fn value_of(&self, record: ArrayView1<'_, f64>) -> f64 {
        self.w.iter().zip(record).map(|(&w, &x)| f64::from(w) * x).sum::<f64>() + self.b
    }
}

impl Calibration {
    /// None where the decision values do not rise with the targets.
    fn fit(values: &[f64], targets: &[bool]) -> Result<Option<Self>, IdentifyError> {
        let failed = |e: &dyn std::error::Error| IdentifyError::Training(format!("calibration: {e}"));
        let params = PlattParams::<f64, ()>::default().check().map_err(|e| failed(&e))?;
        let (a, b) = platt_newton_method(ArrayView1::from(values), ArrayView1::from(targets), &params)
            .map_err(|e| failed(&e))?;
        Ok((a.is_finite() && b.is_finite() && a < 0.0).then_some(Self { a, b }))
    }

    /// `ln p` of a decision value, exact also where p itself would underflow.
    fn log_probability(self, value: f64) -> f64 {
        let exponent = self.a * value + self.b;
        -(exponent.max(0.0) + (-exponent.abs()).exp().ln_1p())
    }
}

/// The decision value of every sample from a hyperplane that has not seen it; none where a fold would leave one side
/// without samples.
fn cross_validated(
    set: &TrainingSet,
    targets: &[bool],
    ranks: &[usize],
    folds: NonZeroUsize,
    options: &TrainOptions,
) -> Result<Option<Vec<f64>>, IdentifyError> {
    let mut values = vec![0.0; targets.len()];
    for fold in 0..folds.get() {
        let held_out = |row: &usize| ranks.get(*row).is_some_and(|rank| *rank % folds == fold);
        let (held_out, kept): (Vec<usize>, Vec<usize>) = (0..targets.len()).partition(held_out);
        let positives = kept.iter().filter(|&&r| targets.get(r) == Some(&true)).count();
        if positives == 0 || positives == kept.len() {
            return Ok(None);
        }
        let hyperplane = Hyperplane::fit(set, targets, &kept, options)?;
        for row in held_out {
            if let Some(value) = values.get_mut(row) {
                *value = hyperplane.value_of(set.records.row(row));
            }
        }
    }
    Ok(Some(values))
}

/// Up to [`CHUNK`] of the rows `of` with the greatest cosine to the mean of the rows `to`.
fn nearest(set: &TrainingSet, to: &[usize], of: &[usize]) -> Vec<usize> {
    if of.len() <= CHUNK {
        return of.to_vec();
    }
    let sum = set.records.select(Axis(0), to).sum_axis(Axis(0));
    let mut ranked: Vec<(f64, usize)> = of.iter().map(|&row| (set.records.row(row).dot(&sum), row)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().take(CHUNK).map(|(_, row)| row).collect()
}

/// Each sample's position among the samples of its class.
fn ranks(classes: &[usize]) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    classes
        .iter()
        .map(|class| {
            let next = seen.entry(class).or_insert(0);
            let rank = *next;
            *next += 1;
            rank
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use linfa::traits::{Fit, Predict};
    use ndarray::{Array1, s};

    use super::*;

    /// `people` directions with `photos` noisy copies each, L2-normalised, from a small linear congruential generator.
    fn synthetic(people: usize, photos: usize, dimensions: usize) -> TrainingSet {
        let mut state = 11_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
        };
        let mut records = Array2::zeros((people * photos, dimensions));
        for person in 0..people {
            let centre = Array1::from_shape_fn(dimensions, |_| noise());
            for photo in 0..photos {
                let vector = &centre + &Array1::from_shape_fn(dimensions, |_| 0.8 * noise());
                let length = vector.dot(&vector).sqrt();
                records.row_mut(person * photos + photo).assign(&(vector / length));
            }
        }
        let classes = (0..people * photos).map(|row| row / photos).collect();
        TrainingSet { records, classes, count: people }
    }

    fn linfa(set: &TrainingSet, targets: &[bool], options: &TrainOptions) -> Svm<f64, bool> {
        let (n, positives) = (targets.len() as f64, targets.iter().filter(|t| **t).count() as f64);
        let dataset = DatasetBase::new(set.records.view(), ArrayView1::from(targets));
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
                    let theirs = svm.weighted_sum(&x) - svm.rho;
                    let ours = plane.value_of(x);
                    assert!((ours - theirs).abs() < 1e-3, "{people} people, row {row}: {ours} and {theirs}");
                    let single: Vec<f32> = x.iter().map(|v| to_f32(*v)).collect();
                    assert!((plane.value(&single) - theirs).abs() < 1e-3);
                    assert_eq!(ours > 0.0, svm.predict(x), "row {row}");
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
            assert!((plane.value_of(x) - (svm.weighted_sum(&x) - svm.rho)).abs() < 1e-6);
        }
    }

    #[test]
    fn calibration_rises_with_the_decision_value_and_keeps_one_sample_from_certainty() {
        let calibration =
            Calibration::fit(&[1.0, -1.0, -1.1, -0.9], &[true, false, false, false]).unwrap().unwrap();
        let p = |f: f64| calibration.log_probability(f).exp();
        assert!(p(1.0) > p(0.0) && p(0.0) > p(-1.0));
        // Platt's targets for 1 positive and 3 negatives: 2/3 and 1/5.
        assert!((p(1.0) - 2.0 / 3.0).abs() < 0.02, "{}", p(1.0));
        assert!((p(-1.0) - 0.2).abs() < 0.02, "{}", p(-1.0));
    }

    #[test]
    fn calibration_refuses_decision_values_that_fall_with_the_targets() {
        let targets = [true, true, false, false];
        assert_eq!(Calibration::fit(&[-1.0, -0.8, 1.0, 0.7], &targets).unwrap(), None);
    }

    #[test]
    fn far_from_every_hyperplane_probabilities_still_sum_to_1() {
        let class = |b| Class {
            hyperplane: Hyperplane { w: vec![1.0], b },
            calibration: Calibration { a: -1.0, b: 0.0 },
        };
        let svm = LinearSvm { dimensions: 1, classes: vec![class(-5000.0), class(-5001.0)] };
        let p = svm.probabilities(&[1.0]);
        assert!((p[0] + p[1] - 1.0).abs() < 1e-6);
        assert!((p[0] / p[1] - std::f32::consts::E).abs() < 1e-3, "{p:?}");
    }

    #[test]
    fn a_hyperplane_held_out_of_a_fold_has_not_seen_it() {
        // Decision values of the class' own samples must be lower than when trained on them.
        let set = synthetic(6, 6, 64);
        let options = TrainOptions::default();
        let targets: Vec<bool> = set.classes.iter().map(|&c| c == 1).collect();
        let folds = NonZeroUsize::new(3).unwrap();
        let values = cross_validated(&set, &targets, &ranks(&set.classes), folds, &options).unwrap().unwrap();
        let rows: Vec<usize> = (0..set.classes.len()).collect();
        let plane = Hyperplane::fit(&set, &targets, &rows, &options).unwrap();
        let trained: f64 = set.records.slice(s![6..12, ..]).outer_iter().map(|x| plane.value_of(x)).sum();
        assert!(values[6..12].iter().sum::<f64>() < trained - 0.5);
    }
}
