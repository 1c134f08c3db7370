//! Dual coordinate descent for one linear SVM with hinge loss: Hsieh, Chang, Lin, Keerthi and Sundararajan, "A dual
//! coordinate descent method for large-scale linear SVM" (2008), with the shrinking of its section 3.2.
//!
//! The bias is a further component of the normal vector, for a component of every sample that is 1; so it is
//! regularised too, and the dual has no equality constraint that would tie the multipliers to each other.

use ndarray::ArrayView2;
use pulp::{Arch, Simd, WithSimd};
use rand::seq::SliceRandom;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::Hyperplane;
use crate::embedding::to_f32;

/// Maximum passes over the samples. Only classes that cannot be separated need as many.
const MAX_PASSES: usize = 2000;

/// Relative precision of a decision value in single precision, to the length of the normal vector.
const SINGLE_PRECISION: f64 = 4e-7;

/// The working set: the samples of a problem that are taken into account.
#[derive(Debug, Clone)]
pub(super) struct WorkingSet {
    /// Positions in the records, rising.
    pub(super) rows: Vec<usize>,
    /// On which side each of them is.
    pub(super) sides: Vec<bool>,
    /// The multiplier of each, 0 to the penalty.
    pub(super) multipliers: Vec<f64>,
}

impl WorkingSet {
    /// Creates an empty set.
    pub(super) fn new() -> Self {
        Self { rows: Vec::new(), sides: Vec::new(), multipliers: Vec::new() }
    }

    /// Adds samples that are not in the set yet.
    pub(super) fn extend(&mut self, added: impl IntoIterator<Item = (usize, bool)>) {
        let old = std::mem::replace(self, Self::new());
        let mut all: Vec<(usize, bool, f64)> = old.iter().collect();
        all.extend(added.into_iter().map(|(row, side)| (row, side, 0.0)));
        // Sorted, so that rounding depends only on the set of samples.
        all.sort_unstable_by_key(|(row, ..)| *row);
        *self = all.into_iter().collect();
    }

    /// Returns row, side and multiplier of each sample.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, bool, f64)> + '_ {
        self.rows.iter().zip(&self.sides).zip(&self.multipliers).map(|((r, s), m)| (*r, *s, *m))
    }

    /// Brings the multipliers to the optimum on these samples, within `tolerance`, starting from their present values.
    pub(super) fn solve(&mut self, records: ArrayView2<'_, f32>, penalty: f64, tolerance: f64) -> Hyperplane {
        let samples: Vec<Sample<'_>> = self
            .rows
            .iter()
            .zip(&self.sides)
            .filter_map(|(&row, &side)| {
                let x = records.slice_move(ndarray::s![row, ..]).to_slice()?;
                Some(Sample { x, sign: if side { 1.0 } else { -1.0 } })
            })
            .collect();
        let mut plane = combination(&samples, &self.multipliers, records.ncols());
        let multipliers = &mut self.multipliers;
        Arch::new().dispatch(Descent {
            samples: &samples,
            multipliers,
            plane: &mut plane,
            penalty,
            tolerance,
        });
        // The hyperplane is recomputed from the multipliers, since thousands of steps in single precision accumulate
        // rounding errors.
        combination(&samples, &self.multipliers, records.ncols())
    }
}

impl FromIterator<(usize, bool, f64)> for WorkingSet {
    fn from_iter<T: IntoIterator<Item = (usize, bool, f64)>>(samples: T) -> Self {
        let mut set = Self::new();
        for (row, side, multiplier) in samples {
            set.rows.push(row);
            set.sides.push(side);
            set.multipliers.push(multiplier);
        }
        set
    }
}

struct Sample<'a> {
    x: &'a [f32],
    /// 1 or -1.
    sign: f64,
}

/// Computes `w = Σ αᵢ yᵢ xᵢ` and `b = Σ αᵢ yᵢ`.
fn combination(samples: &[Sample<'_>], multipliers: &[f64], dimensions: usize) -> Hyperplane {
    let mut w = vec![0.0_f64; dimensions];
    let mut b = 0.0;
    for (sample, &multiplier) in samples.iter().zip(multipliers).filter(|(_, m)| **m != 0.0) {
        let factor = multiplier * sample.sign;
        for (w, &x) in w.iter_mut().zip(sample.x) {
            *w += factor * f64::from(x);
        }
        b += factor;
    }
    Hyperplane { w: w.into_iter().map(to_f32).collect(), b }
}

/// The extremes of the projected gradient that a pass saw.
#[derive(Clone, Copy)]
struct Extremes {
    highest: f64,
    lowest: f64,
}

impl Extremes {
    const NONE: Self = Self { highest: f64::NEG_INFINITY, lowest: f64::INFINITY };
    /// Shrinks nothing.
    const OPEN: Self = Self { highest: f64::INFINITY, lowest: f64::NEG_INFINITY };
}

/// The passes over the samples, compiled for the processor's vector instructions.
struct Descent<'a, 'b> {
    samples: &'a [Sample<'a>],
    multipliers: &'b mut [f64],
    plane: &'b mut Hyperplane,
    penalty: f64,
    tolerance: f64,
}

impl WithSimd for Descent<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { samples, multipliers, plane, penalty, tolerance } = self;
        // The diagonal of the kernel matrix.
        let mut squares = Vec::with_capacity(samples.len());
        // No closure: it would be compiled for any processor.
        for sample in samples {
            squares.push(f64::from(dot(simd, sample.x, sample.x)) + 1.0);
        }
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut order: Vec<usize> = (0..samples.len()).collect();
        let mut active = order.len();
        let mut before = Extremes::OPEN;
        for _ in 0..MAX_PASSES {
            let (candidates, _) = order.split_at_mut(active);
            candidates.shuffle(&mut random);
            let mut seen = Extremes::NONE;
            let mut position = 0;
            while position < active {
                let Some(&index) = order.get(position) else { break };
                let (Some(sample), Some(square), Some(multiplier)) =
                    (samples.get(index), squares.get(index), multipliers.get_mut(index))
                else {
                    break;
                };
                let gradient = sample.sign * (f64::from(dot(simd, &plane.w, sample.x)) + plane.b) - 1.0;
                // At a bound, only a gradient that leads back inside counts; one that clearly leads out shrinks the
                // sample away.
                let (projected, shrinks) = if *multiplier <= 0.0 {
                    (gradient.min(0.0), gradient > before.highest)
                } else if *multiplier >= penalty {
                    (gradient.max(0.0), gradient < before.lowest)
                } else {
                    (gradient, false)
                };
                if shrinks {
                    active -= 1;
                    order.swap(position, active);
                    continue;
                }
                position += 1;
                seen.highest = seen.highest.max(projected);
                seen.lowest = seen.lowest.min(projected);
                if projected != 0.0 {
                    let old = *multiplier;
                    *multiplier = (old - gradient / square).clamp(0.0, penalty);
                    let step = (*multiplier - old) * sample.sign;
                    add_scaled(simd, &mut plane.w, to_f32(step), sample.x);
                    plane.b += step;
                }
            }
            let length = f64::from(dot(simd, &plane.w, &plane.w)).sqrt() + plane.b.abs();
            if active == 0 || seen.highest - seen.lowest <= tolerance.max(SINGLE_PRECISION * length) {
                if active == order.len() {
                    break;
                }
                // Optimal for the active samples: check all of them again.
                active = order.len();
                before = Extremes::OPEN;
                continue;
            }
            before = Extremes {
                highest: if seen.highest <= 0.0 { f64::INFINITY } else { seen.highest },
                lowest: if seen.lowest >= 0.0 { f64::NEG_INFINITY } else { seen.lowest },
            };
        }
    }
}

/// Returns the inner product, in four independent sums so that additions can overlap.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((a, a_last), (b, b_last)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [simd.splat_f32s(0.0); 4];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = simd.mul_add_e_f32s(*a, *b, *sum);
        }
    }
    let [mut first, second, third, fourth] = sums;
    for (a, b) in a_last.iter().zip(b_last) {
        first = simd.mul_add_e_f32s(*a, *b, first);
    }
    let sum = simd.add_f32s(simd.add_f32s(first, second), simd.add_f32s(third, fourth));
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + rest
}

#[inline(always)]
fn add_scaled<S: Simd>(simd: S, to: &mut [f32], factor: f32, x: &[f32]) {
    let ((to, to_rest), (x, x_rest)) = (S::as_mut_simd_f32s(to), S::as_simd_f32s(x));
    let factors = simd.splat_f32s(factor);
    for (to, x) in to.iter_mut().zip(x) {
        *to = simd.mul_add_e_f32s(factors, *x, *to);
    }
    for (to, x) in to_rest.iter_mut().zip(x_rest) {
        *to += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::synthetic, *};

    const PENALTY: f64 = 0.8;

    fn solve(people: usize, spoilt: bool, tolerance: f64) -> (WorkingSet, Hyperplane, Vec<f64>) {
        let set = synthetic(people, 5, 24);
        let mut working = WorkingSet::new();
        // A spoilt person's photographs are on both sides, so that many multipliers reach their limits.
        let side = |row: usize| if spoilt { row.is_multiple_of(3) } else { row < 5 };
        working.extend((0..set.classes.len()).map(|row| (row, side(row))));
        let plane = working.solve(set.records.view(), PENALTY, tolerance);
        let margins = working
            .iter()
            .map(|(row, side, _)| plane.value_of(set.records.row(row)) * if side { 1.0 } else { -1.0 })
            .collect();
        (working, plane, margins)
    }

    #[test]
    fn the_optimality_conditions_hold() {
        for spoilt in [false, true] {
            let (working, _, margins) = solve(12, spoilt, 1e-4);
            let mut at_limit = 0;
            for ((.., multiplier), margin) in working.iter().zip(margins) {
                assert!((0.0..=PENALTY).contains(&multiplier));
                if multiplier == 0.0 {
                    assert!(margin > 1.0 - 2e-4, "beyond the margin: {margin}");
                } else if multiplier == PENALTY {
                    at_limit += 1;
                    assert!(margin < 1.0 + 2e-4, "within the margin: {margin}");
                } else {
                    assert!((margin - 1.0).abs() < 2e-4, "on the margin: {margin}");
                }
            }
            assert_eq!(at_limit > 10, spoilt);
        }
    }

    #[test]
    fn the_duality_gap_closes() {
        for spoilt in [false, true] {
            let (working, plane, margins) = solve(12, spoilt, 1e-5);
            let square = plane.w.iter().map(|w| f64::from(w * w)).sum::<f64>() + plane.b * plane.b;
            let losses = working.iter().zip(margins).map(|(_, m)| PENALTY * (1.0 - m).max(0.0));
            let primal = square / 2.0 + losses.sum::<f64>();
            let dual = working.multipliers.iter().sum::<f64>() - square / 2.0;
            assert!((primal - dual).abs() < 1e-4 * primal, "{primal} and {dual}");
        }
    }

    #[test]
    fn the_inner_product_takes_every_component() {
        struct Dot<'a>(&'a [f32], &'a [f32]);
        impl WithSimd for Dot<'_> {
            type Output = f32;
            fn with_simd<S: Simd>(self, simd: S) -> f32 {
                dot(simd, self.0, self.1)
            }
        }
        for length in [1, 7, 8, 31, 32, 33, 100, 513] {
            let a: Vec<f32> = (0..length).map(|i| (i % 5) as f32 - 2.0).collect();
            let b: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
            let expected: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert_eq!(Arch::new().dispatch(Dot(&a, &b)), expected, "{length} components");
        }
    }
}
