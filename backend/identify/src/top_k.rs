//! Selection of the best of many scored classes, without sorting all of them.

use std::cmp::Ordering;

/// Scores that are collected before the worst are dropped, at least.
const MIN_BUFFER: usize = 64;

/// The `k` highest scores of a stream; of equal scores those of lower classes.
#[derive(Debug, Clone)]
pub(crate) struct TopK {
    k: usize,
    /// How far below the k-th best a score is kept too.
    margin: f64,
    kept: Vec<(f64, usize)>,
    /// As many are kept before the worst are dropped.
    buffer: usize,
    /// Scores that are not above it are dropped, once there are k.
    bound: f64,
}

impl TopK {
    /// Keeps `k` scores, at least one.
    pub(crate) fn new(k: usize) -> Self {
        Self::with_margin(k, 0.0)
    }

    /// Keeps `k` scores, at least one, and all others that are less than `margin` below them.
    pub(crate) fn with_margin(k: usize, margin: f64) -> Self {
        let k = k.max(1);
        let buffer = k.saturating_mul(2).max(MIN_BUFFER);
        Self { k, margin, kept: Vec::new(), buffer, bound: f64::NEG_INFINITY }
    }

    /// Returns the bound; scores that are not above it would be dropped.
    pub(crate) fn bound(&self) -> f64 {
        self.bound
    }

    /// Takes the score of a class. Classes come in rising order.
    #[inline]
    pub(crate) fn push(&mut self, score: f64, class: usize) {
        // Not `score > bound`: NaN is kept, so that it is seen in the result.
        if score <= self.bound {
            return;
        }
        self.kept.push((score, class));
        if self.kept.len() >= self.buffer {
            self.shrink();
            self.buffer = self.kept.len().max(self.k).saturating_mul(2).max(MIN_BUFFER);
        }
    }

    /// Drops scores that are not among the best.
    fn shrink(&mut self) {
        let last = self.k - 1;
        if self.kept.len() > last {
            let (_, nth, _) = self.kept.select_nth_unstable_by(last, best_first);
            self.bound = nth.0 - self.margin;
            if self.margin > 0.0 {
                let bound = self.bound;
                self.kept.retain(|(score, _)| *score > bound);
            } else {
                self.kept.truncate(self.k);
            }
        }
    }

    /// Returns the best scores and those within the margin, in no order.
    pub(crate) fn into_candidates(mut self) -> Vec<(f64, usize)> {
        self.shrink();
        self.kept
    }

    /// Returns the scores and their classes, best first.
    pub(crate) fn into_sorted(self) -> Vec<(f64, usize)> {
        let k = self.k;
        let mut best = self.into_candidates();
        best.sort_unstable_by(best_first);
        best.truncate(k);
        best
    }
}

fn best_first(a: &(f64, usize), b: &(f64, usize)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `k` most probable of classes with given logarithms, which need not be normalised, and the normaliser: the sum over
/// all of them.
#[derive(Debug, Clone)]
pub(crate) struct Softmax {
    best: TopK,
    highest: f64,
    /// The sum of `exp(logarithm - highest)`.
    sum: f64,
}

impl Softmax {
    /// Keeps `k` classes, at least one.
    pub(crate) fn new(k: usize) -> Self {
        Self { best: TopK::new(k), highest: f64::NEG_INFINITY, sum: 0.0 }
    }

    /// Takes the logarithm of a class. Classes come in rising order.
    #[inline]
    pub(crate) fn push(&mut self, log: f64, class: usize) {
        if log > self.highest {
            self.sum = self.sum * (self.highest - log).exp() + 1.0;
            self.highest = log;
        } else {
            self.sum += (log - self.highest).exp();
        }
        self.best.push(log, class);
    }

    /// Returns the most probable classes with their probabilities, best first.
    pub(crate) fn into_probabilities(self) -> Vec<(usize, f64)> {
        let Self { best, highest, sum } = self;
        let probability = |(log, class): (f64, usize)| (class, (log - highest).exp() / sum);
        best.into_sorted().into_iter().map(probability).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

    use super::*;

    #[test]
    fn the_best_are_those_of_a_full_sort_with_ties_by_class() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for count in [0, 1, 7, 64, 1000] {
            // Few different values, so that many are equal.
            let scores: Vec<f64> = (0..count).map(|_| f64::from(random.random_range(0..50))).collect();
            let mut sorted: Vec<(f64, usize)> = scores.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
            for k in [1, 2, 5, 33, 100, usize::MAX] {
                let mut best = TopK::new(k);
                scores.iter().zip(0..).for_each(|(score, class)| best.push(*score, class));
                assert_eq!(best.into_sorted(), sorted[..count.min(k)], "{k} of {count}");
            }
        }
    }

    #[test]
    fn a_margin_keeps_all_that_are_less_far_below_the_last_of_the_best() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for k in [1, 5, 40] {
            let scores: Vec<f64> = (0..5000).map(|_| random.random_range(-1.0..1.0)).collect();
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mut best = TopK::with_margin(k, 0.03);
            scores.iter().zip(0..).for_each(|(score, class)| best.push(*score, class));
            let mut kept = best.into_candidates();
            assert!(kept.iter().all(|(score, class)| scores[*class] == *score));
            kept.sort_by(best_first);
            let expected = sorted.iter().take_while(|score| **score > sorted[k - 1] - 0.03).count();
            assert!(expected > k && kept.len() == expected, "{} of {expected}", kept.len());
        }
    }

    #[test]
    fn probabilities_are_normalised_over_all_classes() {
        // Far out, where the exponentials themselves would underflow, and rising, so that the normaliser is rescaled.
        let logs: Vec<f64> = (0..100).map(|class| -5000.0 + 0.1 * f64::from(class)).collect();
        let mut softmax = Softmax::new(3);
        logs.iter().zip(0..).for_each(|(log, class)| softmax.push(*log, class));
        let sum: f64 = logs.iter().map(|log| (log - logs[99]).exp()).sum();
        let best = softmax.into_probabilities();
        assert_eq!(best.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [99, 98, 97]);
        for (class, probability) in best {
            assert!((probability - (logs[class] - logs[99]).exp() / sum).abs() < 1e-12);
        }
    }
}
