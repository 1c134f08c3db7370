//! Decision values of different people made comparable, and probabilities of them.
//!
//! A hyperplane that rests on one photograph gives smaller decision values than one that rests on ten, also to the face
//! that it belongs to: its normal vector is shorter and its threshold lower. Independent of the number of
//! photographs is the cosine `c` between an embedding and the normal vector. It is normalised by what the other people's
//! mean embeddings give with the same normal vector (Z-norm: Li and Porter, "Normalizations and selection of speech
//! segments for speaker recognition scoring", 1988): `z = (c - m) / s`, with m and s as [`Calibration::of`] estimates them.
//! The probability that a face is of person k, if it is of anybody who is enrolled, is `exp(SLOPE z_k)` of the sum over all.
//!
//! No fold is held out for it, so people with one photograph are treated like everybody else.

use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use super::Hyperplane;
use crate::embedding::to_f32;

/// `p = 1 / (1 + exp(a f + b))` of a decision value f; a is never positive, so a higher decision value is never less
/// probable. Only the ratios of the probabilities of different people count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Calibration {
    pub(super) a: f64,
    pub(super) b: f64,
}

/// How much the logarithm of a person's probability rises with z. Of 1, 1.5, 2, 2.5, 3 and 4 the one with the least
/// logarithmic loss on photographs that were not trained on, over galleries of 10 to 600 people; see
/// `docs/decisions/0010-scores-of-people-with-few-photographs.md`.
const SLOPE: f64 = 2.0;

/// Added to every b. So far out, `p` is `exp(-a f - b)` to the last digit, and the ratios of the probabilities are those
/// of the normalised exponentials. A z is at most 2 sqrt(people + dimensions), far less in practice.
const OFFSET: f64 = 10_000.0;

/// Hyperplanes whose scores are computed together.
const BLOCK: usize = 64;

impl Calibration {
    /// The same probability for any decision value.
    pub(super) const NONE: Self = Self { a: 0.0, b: 0.0 };

    /// Returns the calibrations of hyperplanes, given the L2-normalised mean embedding `[people, dimensions]` of each
    /// person.
    ///
    /// m and s² are the mean and the variance of the cosines with the means of the other n = people - 1. Training has
    /// pushed those apart from the normal vector, with as many degrees of freedom as there are dimensions d; so both are
    /// drawn towards what was known before, as by d further observations: the average m over all people, and 1/d, the
    /// variance of the cosine of two random directions (the conjugate prior of a normal distribution).
    pub(super) fn of(planes: &[Hyperplane], means: ArrayView2<'_, f32>) -> Vec<Self> {
        let (people, dimensions) = means.dim();
        if people < 2 {
            return vec![Self::NONE; planes.len()];
        }
        let spreads: Vec<Spread> = planes
            .par_chunks(BLOCK)
            .enumerate()
            .flat_map_iter(|(block, planes)| Spread::of(block * BLOCK, planes, means))
            .collect();
        let (others, prior) = ((people - 1) as f64, dimensions as f64);
        let average = spreads.iter().map(|spread| spread.mean).sum::<f64>() / people as f64;
        let calibration = |(plane, spread): (&Hyperplane, &Spread)| {
            if spread.length <= 0.0 {
                return Self { a: 0.0, b: OFFSET };
            }
            let mean = (prior * average + others * spread.mean) / (prior + others);
            let deviation = ((1.0 + others * spread.variance) / (prior + others)).sqrt();
            // z = (c - m) / s with c = (f - threshold) / |w|.
            Self {
                a: -SLOPE / (spread.length * deviation),
                b: OFFSET + SLOPE * (plane.b / spread.length + mean) / deviation,
            }
        };
        planes.iter().zip(&spreads).map(calibration).collect()
    }

    /// Returns `ln p` of a decision value, exact also where p itself would underflow.
    pub(super) fn log_probability(self, value: f64) -> f64 {
        let exponent = self.a * value + self.b;
        -(exponent.max(0.0) + (-exponent.abs()).exp().ln_1p())
    }
}

/// The distribution of a normal vector's cosines with other people's mean embeddings.
struct Spread {
    /// The length of the normal vector.
    length: f64,
    /// Mean and variance of its cosines with them; 0 where it has no direction.
    mean: f64,
    variance: f64,
}

impl Spread {
    /// Returns the calibrations of consecutive hyperplanes, beginning with that of person `first`.
    fn of(first: usize, planes: &[Hyperplane], means: ArrayView2<'_, f32>) -> Vec<Self> {
        let lengths: Vec<f64> = planes.iter().map(Hyperplane::length).collect();
        let mut directions = Array2::zeros((planes.len(), means.ncols()));
        for ((mut row, plane), &length) in directions.outer_iter_mut().zip(planes).zip(&lengths) {
            if length > 0.0 {
                row.assign(&ArrayView1::from(&plane.w));
                row /= to_f32(length);
            }
        }
        let cosines = directions.dot(&means.t());
        let spread = |(position, (row, &length)): (usize, (ArrayView1<'_, f32>, &f64))| {
            let others = || {
                let others = row.iter().enumerate().filter(move |(person, _)| *person != first + position);
                others.map(|(_, &cosine)| f64::from(cosine))
            };
            let count = (row.len() - 1) as f64;
            let mean = others().sum::<f64>() / count;
            let variance = others().map(|c| (c - mean) * (c - mean)).sum::<f64>() / count;
            Self { length, mean, variance }
        };
        cosines.outer_iter().zip(&lengths).enumerate().map(spread).collect()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    /// The greatest difference between `ln p` of two people, and what `exp(SLOPE z)` would make it.
    #[test]
    fn ratios_of_probabilities_are_those_of_the_normalised_scores() {
        let means = arr2(&[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]);
        let planes = [
            Hyperplane { w: vec![3.0, -4.0], b: 0.5 },
            Hyperplane { w: vec![0.0, 0.1], b: -0.7 },
            Hyperplane { w: vec![1.0, 1.0], b: 0.0 },
        ];
        // Cosines of the normal vectors with the other two means.
        let half = 0.5_f64.sqrt();
        let others = [[-0.8, 0.6 * 0.6 - 0.8 * 0.8], [0.0, 0.8], [half, half]];
        let average = others.iter().flatten().sum::<f64>() / 6.0;
        let x = [0.28_f32, 0.96];
        let cosines = [0.6 * 0.28 - 0.8 * 0.96, 0.96, half * (0.28 + 0.96)];
        let z: Vec<f64> = others
            .iter()
            .zip(cosines)
            .map(|([a, b], cosine)| {
                let mean = (a + b) / 2.0;
                let variance = ((a - mean) * (a - mean) + (b - mean) * (b - mean)) / 2.0;
                // Two dimensions, two others.
                let (mean, variance) = ((2.0 * average + 2.0 * mean) / 4.0, (1.0 + 2.0 * variance) / 4.0);
                (cosine - mean) / variance.sqrt()
            })
            .collect();
        let logs: Vec<f64> = Calibration::of(&planes, means.view())
            .iter()
            .zip(&planes)
            .map(|(calibration, plane)| calibration.log_probability(plane.value(&x)))
            .collect();
        for (i, j) in [(0, 1), (1, 2), (2, 0)] {
            let (ours, theirs) = (logs[i] - logs[j], SLOPE * (z[i] - z[j]));
            assert!((ours - theirs).abs() < 1e-4, "{i} and {j}: {ours}, expected {theirs}");
        }
    }

    #[test]
    fn calibration_is_independent_of_the_normal_vectors_length_and_bias() {
        let means = arr2(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        let plane = |w: [f32; 3], b| Hyperplane { w: w.to_vec(), b };
        let planes = [plane([1.0, 0.0, 0.0], 0.0), plane([0.0, 1.0, 0.0], 0.0), plane([0.0, 0.0, 1.0], 0.0)];
        // As of one photograph among people with ten: short, and low.
        let uneven =
            [plane([0.05, 0.0, 0.0], -0.9), plane([0.0, 4.0, 0.0], 0.3), plane([0.0, 0.0, 1.0], -0.2)];
        let logs = |planes: &[Hyperplane]| -> Vec<f64> {
            let calibrations = Calibration::of(planes, means.view());
            let log = |(c, p): (&Calibration, &Hyperplane)| c.log_probability(p.value(&[0.7, 0.6, 0.4]));
            calibrations.iter().zip(planes).map(log).collect()
        };
        for (even, uneven) in logs(&planes).into_iter().zip(logs(&uneven)) {
            assert!((even - uneven).abs() < 1e-4, "{even} and {uneven}");
        }
    }

    #[test]
    fn a_zero_hyperplane_has_finite_probabilities() {
        let means = arr2(&[[1.0, 0.0], [1.0, 0.0]]);
        let planes = [Hyperplane { w: vec![0.0, 0.0], b: 0.0 }, Hyperplane { w: vec![0.0, 0.0], b: -1.0 }];
        let calibrations = Calibration::of(&planes, means.view());
        let logs: Vec<f64> =
            calibrations.iter().zip(&planes).map(|(c, p)| c.log_probability(p.value(&[1.0, 0.0]))).collect();
        assert!(logs.iter().all(|l| l.is_finite()) && logs[0] == logs[1], "{logs:?}");
    }
}
