//! How long recognition of an image takes, measured while it runs.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Estimates the time that queued images will take, from an exponential moving average of the time per image (weight of
/// the newest sample: 1/8).
#[derive(Default)]
pub struct ThroughputEstimator {
    micros_per_image: AtomicU64,
}

impl ThroughputEstimator {
    /// Records that a batch of `images` took this time, while `parallel_workers` workers processed as many each.
    pub fn record(&self, images: usize, took: Duration, parallel_workers: usize) {
        let done = u64::try_from(images.saturating_mul(parallel_workers)).ok();
        let Some(sample) = done.and_then(|n| micros(took).checked_div(n)) else { return };
        let average = |before| Some(if before == 0 { sample } else { (before * 7 + sample) / 8 });
        // The update never fails: `average` always returns a value.
        let _ = self.micros_per_image.fetch_update(Ordering::Relaxed, Ordering::Relaxed, average);
    }

    /// Returns the time that `images` will take; zero before the first batch.
    pub fn time_for(&self, images: usize) -> Duration {
        let images = u64::try_from(images).unwrap_or(u64::MAX);
        Duration::from_micros(self.micros_per_image.load(Ordering::Relaxed).saturating_mul(images))
    }

    /// Returns the time that `images` will take in whole seconds, 1 to 30, for `Retry-After`.
    pub fn retry_after(&self, images: usize) -> Duration {
        Duration::from_secs(micros(self.time_for(images)).div_ceil(1_000_000).clamp(1, 30))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_measured_time() {
        let estimator = ThroughputEstimator::default();
        assert_eq!(
            (estimator.time_for(1000), estimator.retry_after(1000)),
            (Duration::ZERO, Duration::from_secs(1))
        );
        estimator.record(5, Duration::from_millis(505), 2);
        assert_eq!(estimator.time_for(100), Duration::from_millis(5050));
        assert_eq!(estimator.retry_after(100), Duration::from_secs(6));
        assert_eq!(estimator.retry_after(1_000_000), Duration::from_secs(30));
        estimator.record(0, Duration::from_secs(9), 2);
        assert_eq!(estimator.time_for(100), Duration::from_millis(5050));
    }
}
