//! Latency percentiles in constant memory.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest distinguishable latency: an hour, microseconds.
const MAX_US: u64 = 3_600_000_000;

/// A latency histogram.
pub struct Latencies {
    // Microseconds. Always present: these bounds are valid.
    histogram: Option<Histogram<u64>>,
}

/// Percentiles in milliseconds, accurate to 0.1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Arithmetic mean.
    pub mean_ms: f64,
}

impl Latencies {
    /// Creates an empty histogram.
    pub fn new() -> Self {
        Self { histogram: Histogram::new_with_bounds(1, MAX_US, 3).ok() }
    }

    /// Records a latency; more than an hour counts as an hour.
    pub fn record(&mut self, time: Duration) {
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(time.as_micros().try_into().unwrap_or(MAX_US));
        }
    }

    /// Returns the percentiles; none if empty.
    #[expect(clippy::cast_precision_loss, reason = "an hour in microseconds is far below 2^52")]
    pub fn percentiles(&self) -> Option<Percentiles> {
        let histogram = self.histogram.as_ref().filter(|histogram| !histogram.is_empty())?;
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Percentiles {
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: histogram.max() as f64 / 1000.0,
            mean_ms: histogram.mean() / 1000.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_match_the_recorded_latencies() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentiles(), None);
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        let found = latencies.percentiles().expect("times");
        let near = |a: f64, b: f64| (a - b).abs() / b < 0.002;
        assert!(
            near(found.p50_ms, 50.0) && near(found.p95_ms, 95.0) && near(found.p99_ms, 99.0),
            "{found:?}"
        );
        assert!(near(found.max_ms, 100.0) && near(found.mean_ms, 50.5), "{found:?}");
        latencies.record(Duration::from_secs(100_000));
        assert!(latencies.percentiles().expect("times").max_ms <= 3_600_100.0 * 1.001);
    }
}
