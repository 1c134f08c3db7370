//! Linear multiclass support vector machine, one against all, with one probability calibration per class.
//!
//! Hyperplanes come from linfa's SMO solver. For a linear kernel the solution folds into one normal vector,
//! `w = Σ αᵢ xᵢ` with the signed multipliers αᵢ, so a stored model needs no training sample.
//!
//! Probabilities are Platt's: `p = 1 / (1 + exp(A f + B))` of the decision value `f = w·x + b`, with A and B from the
//! Newton method of Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines" (2007),
//! whose regularised targets keep a class of one sample away from 0 and 1. The decision values are cross-validated:
//! those of training samples lie on the margin by construction and would make every answer look certain.

use std::num::NonZeroUsize;

use linfa::{
    DatasetBase, ParamGuard,
    composing::platt_scaling::{PlattParams, platt_newton_method},
    traits::Fit,
};
use linfa_svm::Svm;
use ndarray::{Array1, Array2, ArrayView1, Axis};
use rayon::prelude::*;

use crate::{
    Classifier, ClassifierKind, IdentifyError, TrainOptions,
    embedding::{dot, to_f32},
    format::{Reader, put_f32s},
};

/// The most samples that [`LinearSvm`] is trained on: each of its solvers holds a kernel matrix of this length
/// squared in doubles (128 MB).
pub const MAX_SVM_SAMPLES: usize = 4000;

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
    pub(crate) fn train(set: &TrainingSet, options: &TrainOptions) -> Result<Self, IdentifyError> {
        let found = set.classes.len();
        if found > MAX_SVM_SAMPLES {
            return Err(IdentifyError::TooManySamples { found, limit: MAX_SVM_SAMPLES });
        }
        let classes = if set.count == 1 {
            vec![Class::only(set)]
        } else {
            let ranks = ranks(&set.classes);
            (0..set.count)
                .into_par_iter()
                .map(|class| Class::train(class, set, &ranks, options))
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
        let records = set.records.select(Axis(0), rows);
        let targets: Array1<bool> = rows.iter().map(|&r| targets.get(r).copied().unwrap_or(false)).collect();
        let positives = targets.iter().filter(|t| **t).count();
        let weight = |n: usize| options.c * rows.len() as f64 / (2.0 * n as f64);

        let dataset = DatasetBase::new(records.view(), targets.view());
        let svm = Svm::<f64, bool>::params()
            .linear_kernel()
            .eps(options.tolerance)
            .pos_neg_weights(weight(positives), weight(rows.len() - positives))
            .fit(&dataset)
            .map_err(|e| IdentifyError::Training(e.to_string()))?;

        let w = Array1::from(svm.alpha.clone()).dot(&records);
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
