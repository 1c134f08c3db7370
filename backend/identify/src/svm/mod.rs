//! Linear multiclass support vector machine, one against all, with one probability calibration per class.
//!
//! For a linear kernel the solution folds into one normal vector, `w = Σ αᵢ xᵢ` with the signed multipliers αᵢ, so a
//! stored model needs no training sample. Two solvers find it: [`Solver::Smo`] for few samples,
//! [`Solver::DualCoordinateDescent`] for many.
//!
//! Probabilities are `p = 1 / (1 + exp(A f + B))` of the decision value `f = w·x + b`, scaled to sum 1. A and B make the
//! decision values of people with few and with many photographs comparable (`calibration.rs`). Models of earlier builds
//! have A and B of Platt's method, and answer as they did.

mod blocks;
mod calibration;
mod descent;
mod history;
mod smo;

use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};

use calibration::Calibration;
use history::{History, Start};

use crate::{
    Classifier, ClassifierKind, IdentifyError, Labels, ProgressCallback, TrainOptions,
    embedding::to_f32,
    format::{Reader, corrupt, put_f32s},
    matrix::{Matrix, Query},
    top_k::Softmax,
};

/// The most samples that [`LinearSvm`] is trained on.
pub const MAX_SVM_SAMPLES: usize = 200_000;

/// From this many samples on, [`Solver::Automatic`] is [`Solver::DualCoordinateDescent`]. With 100 samples linfa's solver takes
/// 0.15 s for a model, with 200 0.85 s, and coordinate descent in 0.01 and 0.03 s; see `docs/performance-training.md`.
const MANY_SAMPLES: usize = 100;

/// The algorithm that finds the hyperplanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Solver {
    /// The faster one for the number of samples.
    #[default]
    Automatic,
    /// linfa's sequential minimal optimisation: a bias that is not regularised, and penalties C n / 2 n₊ and C n / 2 n₋ that
    /// give both sides the same weight.
    Smo,
    /// Coordinate descent in the dual, as in liblinear: the bias is regularised too, the penalty of every sample is C. Can
    /// be warm-started from a previous model.
    DualCoordinateDescent,
}

/// One hyperplane and one calibration per class.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSvm {
    /// Normal vectors, `[classes, dimensions]`.
    normals: Matrix,
    offsets: Vec<Offset>,
    /// The history of a model trained by coordinate descent.
    history: Option<History>,
}

/// Converts the product of an embedding and a class' normal vector into the logarithm of a probability.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Offset {
    /// The bias of the hyperplane.
    bias: f64,
    calibration: Calibration,
}

/// `f(x) = w·x + b`, positive on the side of the class.
#[derive(Debug, Clone, PartialEq)]
struct Hyperplane {
    w: Vec<f32>,
    b: f64,
}

/// Checked samples: L2-normalised `records` `[n, dimensions]`, the class of each, and the labels of the classes, each of
/// which occurs.
pub(crate) struct TrainingSet {
    pub(crate) records: Array2<f32>,
    pub(crate) classes: Vec<usize>,
    pub(crate) labels: Vec<String>,
}

impl LinearSvm {
    /// Trains the hyperplanes. Warm-starts from the previous classifier, given with its labels, if there is one and the solver
    /// supports it. `means`: the L2-normalised mean embedding of each class, `[classes, dimensions]`.
    pub(crate) fn train(
        set: &TrainingSet,
        means: &Matrix,
        options: &TrainOptions,
        previous: Option<(&Self, &Labels)>,
        progress: &ProgressCallback<'_>,
    ) -> Result<Self, IdentifyError> {
        let found = set.classes.len();
        if found > MAX_SVM_SAMPLES {
            return Err(IdentifyError::TooManySamples { found, limit: MAX_SVM_SAMPLES });
        }
        let dimensions = set.records.ncols();
        if set.labels.len() == 1 {
            return Ok(Self::of_one(dimensions));
        }
        let descends = match options.solver {
            Solver::Automatic => found >= MANY_SAMPLES,
            Solver::Smo => false,
            Solver::DualCoordinateDescent => true,
        };
        let (planes, history) = if descends {
            let start = previous.map_or_else(
                || Start::cold(set),
                |(previous, labels)| Start::warm(previous, labels, set, options),
            );
            (blocks::train(set, options, &start, progress)?, Some(History::new(set, options)))
        } else {
            (smo::train(set, options, progress)?, None)
        };
        let means = means.view().ok_or_else(|| IdentifyError::Training("the means have no shape".into()))?;
        // Calibrates all classes, since a new person changes everybody's calibration.
        let calibrations = Calibration::of(&planes, means);
        let mut normals = Matrix::zeros(planes.len(), dimensions);
        for (to, plane) in normals.iter_mut().zip(&planes) {
            to.copy_from_slice(&plane.w);
        }
        let offset = |(plane, calibration): (&Hyperplane, Calibration)| Offset { bias: plane.b, calibration };
        let offsets = planes.iter().zip(calibrations).map(offset).collect();
        Ok(Self { normals, offsets, history })
    }

    /// Returns the classifier of a single class, with a probability of always 1.
    fn of_one(dimensions: usize) -> Self {
        let offsets = vec![Offset { bias: 0.0, calibration: Calibration::NONE }];
        Self { normals: Matrix::zeros(1, dimensions), offsets, history: None }
    }

    /// Returns the hyperplane of a class.
    fn hyperplane(&self, class: usize) -> Option<Hyperplane> {
        Some(Hyperplane { w: self.normals.row(class)?.to_vec(), b: self.offsets.get(class)?.bias })
    }

    pub(crate) fn decode(
        reader: &mut Reader<'_>,
        classes: usize,
        dimensions: usize,
        by_descent: bool,
    ) -> Result<Self, IdentifyError> {
        // Checked before memory is allocated: three doubles follow each normal vector.
        let length = dimensions.checked_mul(4).and_then(|row| (row + 24).checked_mul(classes));
        if length.is_none_or(|length| length > reader.remaining()) {
            return Err(corrupt("cut off within the hyperplanes"));
        }
        let mut normals = Matrix::zeros(classes, dimensions);
        let mut offsets = Vec::with_capacity(classes);
        for normal in normals.iter_mut() {
            reader.f32s(normal)?;
            let bias = reader.f64()?;
            let calibration = Calibration { a: reader.f64()?, b: reader.f64()? };
            offsets.push(Offset { bias, calibration });
        }
        let history = by_descent.then(|| History::decode(reader)).transpose()?;
        Ok(Self { normals, offsets, history })
    }
}

impl Classifier for LinearSvm {
    fn kind(&self) -> ClassifierKind {
        if self.history.is_some() { ClassifierKind::LinearSvmByDescent } else { ClassifierKind::LinearSvm }
    }

    fn linear_svm(&self) -> Option<&LinearSvm> {
        Some(self)
    }

    fn classes(&self) -> usize {
        self.normals.rows()
    }

    fn dimensions(&self) -> usize {
        self.normals.columns()
    }

    /// Returns the calibrated probability of each class, scaled to sum 1. Computes in logarithms: far from every
    /// hyperplane all of them underflow, and their ratios still mean something.
    fn rank(&self, embedding: &[f32], top_k: usize) -> Vec<(usize, f32)> {
        let mut softmax = Softmax::new(top_k);
        self.normals.scan(&Query::new(embedding), |first, products| {
            let offsets = self.offsets.iter().skip(first);
            for ((class, product), Offset { bias, calibration }) in (first..).zip(products).zip(offsets) {
                softmax.push(calibration.log_probability(f64::from(*product) + bias), class);
            }
        });
        softmax.into_probabilities().into_iter().map(|(class, p)| (class, to_f32(p))).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for (normal, Offset { bias, calibration }) in self.normals.iter().zip(&self.offsets) {
            put_f32s(out, normal);
            for value in [bias, &calibration.a, &calibration.b] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        if let Some(history) = &self.history {
            history.encode(out);
        }
    }
}

impl Hyperplane {
    #[cfg(test)]
    fn value(&self, embedding: &[f32]) -> f64 {
        crate::embedding::dot(&self.w, embedding) + self.b
    }

    /// Returns the length of the normal vector.
    fn length(&self) -> f64 {
        self.w.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt()
    }

    fn value_of(&self, record: ArrayView1<'_, f32>) -> f64 {
        self.w.iter().zip(record).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() + self.b
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array1;

    use super::*;

    /// Returns `people` directions with `photos` noisy copies each, L2-normalised, from a small linear congruential
    /// generator.
    pub(super) fn synthetic(people: usize, photos: usize, dimensions: usize) -> TrainingSet {
        let mut state = 11_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
        };
        let mut records = Array2::<f32>::zeros((people * photos, dimensions));
        for person in 0..people {
            let centre = Array1::from_shape_fn(dimensions, |_| noise());
            for photo in 0..photos {
                let vector = &centre + &Array1::from_shape_fn(dimensions, |_| 0.8 * noise());
                let length = vector.dot(&vector).sqrt();
                records.row_mut(person * photos + photo).assign(&(vector / length).mapv(to_f32));
            }
        }
        let classes = (0..people * photos).map(|row| row / photos).collect();
        TrainingSet { records, classes, labels: (0..people).map(|p| format!("{p:04}")).collect() }
    }

    #[test]
    fn far_from_every_hyperplane_probabilities_still_sum_to_1() {
        let offset = |bias| Offset { bias, calibration: Calibration { a: -1.0, b: 0.0 } };
        let mut normals = Matrix::zeros(2, 1);
        normals.iter_mut().for_each(|normal| normal.fill(1.0));
        let svm = LinearSvm { normals, offsets: vec![offset(-5001.0), offset(-5000.0)], history: None };
        let ranked = svm.rank(&[1.0], 2);
        assert_eq!(ranked.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [1, 0]);
        let p = [ranked[0].1, ranked[1].1];
        assert!((p[0] + p[1] - 1.0).abs() < 1e-6);
        assert!((p[0] / p[1] - std::f32::consts::E).abs() < 1e-3, "{p:?}");
    }
}
