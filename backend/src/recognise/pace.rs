//! How fast recognition is, measured as it goes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long an image takes, as a moving average: what a client that was turned away is told to wait.
#[derive(Default)]
pub struct Pace {
    micros_per_image: AtomicU64,
}

impl Pace {
    /// `images` took so long, while as many were computed by each of `side_by_side` workers.
    pub fn measured(&self, images: usize, took: Duration, side_by_side: usize) {
        let done = u64::try_from(images.saturating_mul(side_by_side)).ok();
        let Some(sample) = done.and_then(|n| micros(took).checked_div(n)) else { return };
        let average = |before| Some(if before == 0 { sample } else { (before * 7 + sample) / 8 });
        // Always written: `average` never declines.
        let _ = self.micros_per_image.fetch_update(Ordering::Relaxed, Ordering::Relaxed, average);
    }

    /// How long `images` take; nothing before any was measured.
    pub fn time_for(&self, images: usize) -> Duration {
        let images = u64::try_from(images).unwrap_or(u64::MAX);
        Duration::from_micros(self.micros_per_image.load(Ordering::Relaxed).saturating_mul(images))
    }

    /// When they will be done, in whole seconds as `Retry-After` has them, 1 to 30.
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
    fn the_wait_follows_what_images_take() {
        let pace = Pace::default();
        assert_eq!((pace.time_for(1000), pace.retry_after(1000)), (Duration::ZERO, Duration::from_secs(1)));
        pace.measured(5, Duration::from_millis(505), 2);
        assert_eq!(pace.time_for(100), Duration::from_millis(5050));
        assert_eq!(pace.retry_after(100), Duration::from_secs(6));
        assert_eq!(pace.retry_after(1_000_000), Duration::from_secs(30));
        pace.measured(0, Duration::from_secs(9), 2);
        assert_eq!(pace.time_for(100), Duration::from_millis(5050));
    }
}
