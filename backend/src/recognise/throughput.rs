//! How long recognition of a pixel takes, measured while it runs.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Pixels of a unit.
const UNIT: u64 = 1000;

/// Estimates the time that queued images will take, from an exponential moving average of the time per pixel (weight of
/// the newest sample: 1/8). An image's cost is its pixels and what it costs beside them, in pixels.
#[derive(Default)]
pub struct ThroughputEstimator {
    nanos_per_unit: AtomicU64,
}

impl ThroughputEstimator {
    /// Records that a batch of this cost took this time, while `parallel_workers` workers processed as much each.
    pub fn record(&self, cost: u64, took: Duration, parallel_workers: usize) {
        let done = cost.saturating_mul(u64::try_from(parallel_workers).unwrap_or(u64::MAX)) / UNIT;
        let Some(sample) = nanos(took).checked_div(done) else { return };
        let average = |before| Some(if before == 0 { sample } else { (before * 7 + sample) / 8 });
        // Always written: `average` never declines.
        let _ = self.nanos_per_unit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, average);
    }

    /// Returns the time that images of this cost will take; zero before the first batch.
    pub fn time_for(&self, cost: u64) -> Duration {
        let units = cost.div_ceil(UNIT);
        Duration::from_nanos(self.nanos_per_unit.load(Ordering::Relaxed).saturating_mul(units))
    }

    /// Returns the same in whole seconds, 1 to 30, for `Retry-After`.
    pub fn retry_after(&self, cost: u64) -> Duration {
        Duration::from_secs(nanos(self.time_for(cost)).div_ceil(1_000_000_000).clamp(1, 30))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_measured_time() {
        let estimator = ThroughputEstimator::default();
        assert_eq!(
            (estimator.time_for(1_000_000), estimator.retry_after(1_000_000)),
            (Duration::ZERO, Duration::from_secs(1))
        );
        estimator.record(500_000, Duration::from_millis(505), 2);
        assert_eq!(estimator.time_for(10_000_000), Duration::from_millis(5050));
        assert_eq!(estimator.retry_after(10_000_000), Duration::from_secs(6));
        assert_eq!(estimator.retry_after(u64::MAX), Duration::from_secs(30));
        estimator.record(0, Duration::from_secs(9), 2);
        assert_eq!(estimator.time_for(10_000_000), Duration::from_millis(5050));
    }
}
