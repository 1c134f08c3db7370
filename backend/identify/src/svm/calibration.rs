//! Probabilities of decision values.

/// `p = 1 / (1 + exp(a f + b))`; a is never positive, so a higher decision value is never less probable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Calibration {
    pub(super) a: f64,
    pub(super) b: f64,
}

/// Newton steps at most, and how short a part of one may be tried.
const MAX_STEPS: usize = 100;
const SHORTEST_STEP: f64 = 1e-10;

/// Is added to the diagonal of the Hessian matrix, so that it has an inverse.
const RIDGE: f64 = 1e-12;

/// It is done where the gradient is less than this for each sample.
const GRADIENT: f64 = 1e-5;

/// A factor of 2 more is far from what a double can hold.
const LARGE_PRODUCT: f64 = 1e300;

/// The negative logarithm of the likelihood at one point, with its derivatives.
struct Likelihood {
    value: f64,
    gradient: [f64; 2],
    /// The second derivatives: twice after a, after a and b, twice after b.
    hessian: [f64; 3],
}

impl Calibration {
    /// What says nothing: a probability of one half whatever the decision value.
    pub(super) const NONE: Self = Self { a: 0.0, b: 0.0 };

    /// The most likely a and b, by Newton's method with backtracking (Lin, Lin and Weng, 2007). None where the
    /// decision values do not rise with the targets.
    pub(super) fn fit(values: &[f64], targets: &[bool]) -> Option<Self> {
        let positives = targets.iter().filter(|t| **t).count() as f64;
        let negatives = targets.len() as f64 - positives;
        let aims = ((positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0));
        let mut at = Self { a: 0.0, b: ((negatives + 1.0) / (positives + 1.0)).ln() };
        let mut here = at.likelihood(values, targets, aims);
        let enough = GRADIENT * values.len() as f64;
        for _ in 0..MAX_STEPS {
            let ([g1, g2], [h11, h12, h22]) = (here.gradient, here.hessian);
            if g1.abs() < enough && g2.abs() < enough {
                break;
            }
            let (h11, h22) = (h11 + RIDGE, h22 + RIDGE);
            let determinant = h11 * h22 - h12 * h12;
            let (step_a, step_b) = ((h12 * g2 - h22 * g1) / determinant, (h12 * g1 - h11 * g2) / determinant);
            let slope = g1 * step_a + g2 * step_b;
            let mut part = 1.0;
            let better = loop {
                let next = Self { a: at.a + part * step_a, b: at.b + part * step_b };
                let there = next.likelihood(values, targets, aims);
                if there.value < here.value + 1e-4 * part * slope {
                    break Some((next, there));
                }
                part /= 2.0;
                if part < SHORTEST_STEP {
                    break None;
                }
            };
            // As near as rounding lets it come.
            let Some(better) = better else { break };
            (at, here) = better;
        }
        (at.a.is_finite() && at.b.is_finite() && at.a < 0.0).then_some(at)
    }

    /// `aims`: the probabilities of a positive and of a negative sample, away from 1 and 0.
    fn likelihood(self, values: &[f64], targets: &[bool], aims: (f64, f64)) -> Likelihood {
        let mut sum = Likelihood { value: 0.0, gradient: [0.0; 2], hessian: [0.0; 3] };
        // One logarithm of a product for many: no factor is more than 2.
        let mut product = 1.0;
        for (&value, &target) in values.iter().zip(targets) {
            let aim = if target { aims.0 } else { aims.1 };
            let exponent = self.a * value + self.b;
            let small = (-exponent.abs()).exp();
            let p = if exponent >= 0.0 { small } else { 1.0 } / (1.0 + small);
            let away = if exponent >= 0.0 { aim } else { aim - 1.0 };
            sum.value += away * exponent;
            product *= 1.0 + small;
            if product > LARGE_PRODUCT {
                sum.value += f64::ln(product);
                product = 1.0;
            }
            let (first, second) = (aim - p, small / ((1.0 + small) * (1.0 + small)));
            let [g1, g2] = &mut sum.gradient;
            *g1 += value * first;
            *g2 += first;
            let [h11, h12, h22] = &mut sum.hessian;
            *h11 += value * value * second;
            *h12 += value * second;
            *h22 += second;
        }
        sum.value += f64::ln(product);
        sum
    }

    /// `ln p` of a decision value, exact also where p itself would underflow.
    pub(super) fn log_probability(self, value: f64) -> f64 {
        let exponent = self.a * value + self.b;
        -(exponent.max(0.0) + (-exponent.abs()).exp().ln_1p())
    }
}

#[cfg(test)]
mod tests {
    use linfa::{
        ParamGuard,
        composing::platt_scaling::{PlattParams, platt_newton_method},
    };
    use ndarray::ArrayView1;

    use super::*;

    #[test]
    fn it_is_what_linfa_comes_to() {
        // Overlapping, unbalanced and all but separated.
        for (positives, negatives, gap) in [(40, 50, 0.5), (6, 900, 1.5), (10, 200, 4.0)] {
            let spread = |n: usize, centre: f64| (0..n).map(move |i| centre + (i as f64 * 0.7).sin());
            let values: Vec<f64> =
                spread(positives, gap / 2.0).chain(spread(negatives, -gap / 2.0)).collect();
            let targets: Vec<bool> = (0..values.len()).map(|i| i < positives).collect();
            let params = PlattParams::<f64, ()>::default().check().unwrap();
            let (a, b) =
                platt_newton_method(ArrayView1::from(&values), ArrayView1::from(&targets), &params).unwrap();
            let ours = Calibration::fit(&values, &targets).unwrap();
            assert!((ours.a - a).abs() < 1e-4 && (ours.b - b).abs() < 1e-4, "{ours:?}, linfa {a} {b}");
        }
    }

    #[test]
    fn it_rises_with_the_decision_value_and_keeps_one_sample_from_certainty() {
        let calibration = Calibration::fit(&[1.0, -1.0, -1.1, -0.9], &[true, false, false, false]).unwrap();
        let p = |f: f64| calibration.log_probability(f).exp();
        assert!(p(1.0) > p(0.0) && p(0.0) > p(-1.0));
        // Platt's targets for 1 positive and 3 negatives: 2/3 and 1/5.
        assert!((p(1.0) - 2.0 / 3.0).abs() < 0.02, "{}", p(1.0));
        assert!((p(-1.0) - 0.2).abs() < 0.02, "{}", p(-1.0));
    }

    #[test]
    fn decision_values_that_fall_with_the_targets_give_none() {
        let targets = [true, true, false, false];
        assert_eq!(Calibration::fit(&[-1.0, -0.8, 1.0, 0.7], &targets), None);
    }
}
