//! How likely a stranger's score reaches a threshold, also where few strangers or none got that far.

/// Shape parameters beyond these are noise of small samples.
const MAX_SHAPE: f64 = 0.5;

/// The share of the scores that the tail is fitted to.
const TAIL_SHARE: f64 = 0.1;

/// The number of scores that the tail is fitted to, at least, but no more than half of all.
const MIN_TAIL: usize = 20;

/// A sample of scores, and the distribution behind it: the share of the sample up to its 90th percentile, above that a
/// generalised Pareto distribution, as ISO/IEC 5152 estimates low false positive rates.
#[derive(Debug, Clone)]
pub(super) struct ScoreSample {
    /// Descending.
    scores: Vec<f32>,
    tail: Option<Tail>,
}

/// A generalised Pareto distribution of the scores above `start`.
#[derive(Debug, Clone, Copy)]
struct Tail {
    start: f64,
    /// The probability of scores above `start`.
    share: f64,
    shape: f64,
    scale: f64,
}

impl ScoreSample {
    /// Fits the tail, where there are enough scores for one.
    pub(super) fn new(mut scores: Vec<f32>) -> Self {
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        let tail = Tail::fit(&scores);
        Self { scores, tail }
    }

    /// Returns the number of scores.
    pub(super) fn len(&self) -> usize {
        self.scores.len()
    }

    /// Returns the number of scores that are at least `threshold`.
    pub(super) fn reaching(&self, threshold: f64) -> usize {
        self.scores.partition_point(|score| f64::from(*score) >= threshold)
    }

    /// Returns the share of the sample that is at least `threshold`, 0 to 1.
    pub(super) fn share_reaching(&self, threshold: f64) -> f64 {
        self.reaching(threshold) as f64 / self.len().max(1) as f64
    }

    /// Returns the probability that a score is at least `threshold`, by the fitted tail where `threshold` is in it.
    pub(super) fn probability(&self, threshold: f64) -> f64 {
        match self.tail {
            Some(tail) if threshold > tail.start => tail.probability(threshold),
            _ => self.share_reaching(threshold),
        }
    }
}

impl Tail {
    /// Fits by probability-weighted moments (Hosking and Wallis, "Parameter and quantile estimation for the generalized Pareto
    /// distribution", 1987), which small samples bear better than maximum likelihood. `scores` are descending.
    fn fit(scores: &[f32]) -> Option<Self> {
        let n = scores.len();
        let by_share = (n as f64 * TAIL_SHARE).ceil();
        let count = (0..n).find(|m| *m as f64 >= by_share)?.max(MIN_TAIL.min(n / 2));
        let start = f64::from(*scores.get(count)?);
        let excesses: Vec<f64> =
            scores.get(..count)?.iter().rev().map(|score| f64::from(*score) - start).collect();
        let m = count as f64;
        let mean = excesses.iter().sum::<f64>() / m;
        if count < MIN_TAIL || mean <= 0.0 {
            return None;
        }
        // The share below an excess is estimated as (rank - 0.35) / m.
        let weighted =
            excesses.iter().enumerate().map(|(below, x)| (1.0 - (below as f64 + 0.65) / m) * x).sum::<f64>()
                / m;
        let shape = 2.0 - mean / (mean - 2.0 * weighted);
        let shape = if shape.is_finite() { shape.clamp(-MAX_SHAPE, MAX_SHAPE) } else { 0.0 };
        // The distribution of this shape that has the mean of the sample.
        Some(Self { start, share: m / n as f64, shape, scale: mean * (1.0 - shape) })
    }

    fn probability(&self, threshold: f64) -> f64 {
        let excess = (threshold - self.start) / self.scale;
        let beyond = if self.shape.abs() < 1e-6 {
            (-excess).exp()
        } else {
            (1.0 + self.shape * excess).max(0.0).powf(-1.0 / self.shape)
        };
        self.share * beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the quantiles of a generalised Pareto distribution from 0 on, at `count` evenly spread probabilities.
    fn pareto(count: usize, shape: f64, scale: f64) -> Vec<f32> {
        (0..count)
            .map(|i| {
                let beyond = (i as f64 + 0.5) / count as f64;
                let x = if shape == 0.0 { -beyond.ln() } else { (beyond.powf(-shape) - 1.0) / shape };
                crate::embedding::to_f32(x * scale)
            })
            .collect()
    }

    #[test]
    fn the_tail_is_that_of_the_distribution_that_the_scores_are_from() {
        for shape in [-0.3, 0.0, 0.2] {
            let sample = ScoreSample::new(pareto(5000, shape, 0.1));
            for probability in [0.05, 0.01, 0.001, 0.0003] {
                let x = if shape == 0.0 {
                    -f64::ln(probability)
                } else {
                    (f64::powf(probability, -shape) - 1.0) / shape
                };
                let found = sample.probability(x * 0.1);
                assert!(
                    (found / probability).ln().abs() < 0.25,
                    "shape {shape}: {found} instead of {probability}"
                );
            }
        }
    }

    #[test]
    fn below_the_tail_and_in_small_samples_it_is_the_share_of_the_sample() {
        let sample = ScoreSample::new(vec![0.1, 0.4, 0.3, 0.2]);
        assert_eq!((sample.probability(0.25), sample.probability(0.5)), (0.5, 0.0));
        assert_eq!((sample.reaching(0.3), sample.share_reaching(0.15)), (2, 0.75));
        let empty = ScoreSample::new(Vec::new());
        assert_eq!((empty.len(), empty.probability(0.1)), (0, 0.0));
        let large = ScoreSample::new((0..1000_u16).map(|i| f32::from(i) / 1000.0).collect());
        assert!((large.probability(0.5) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn probabilities_never_rise_with_the_threshold() {
        let sample = ScoreSample::new(pareto(300, -0.2, 0.05));
        let probabilities: Vec<f64> =
            (0..400_u16).map(|i| sample.probability(f64::from(i) / 1000.0)).collect();
        assert!(probabilities.is_sorted_by(|a, b| a >= b));
        assert_eq!(sample.probability(1.0), 0.0, "beyond the end of a bounded tail");
    }

    #[test]
    fn equal_scores_have_no_tail() {
        let sample = ScoreSample::new(vec![0.25; 500]);
        assert_eq!((sample.probability(0.25), sample.probability(0.26)), (1.0, 0.0));
    }
}
