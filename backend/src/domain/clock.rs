//! Times as rows hold them, and which time of capture counts for a detection.

use std::time::Duration;

use time::OffsetDateTime;

/// A moment: microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// Returns the present time.
pub fn now() -> Micros {
    to_micros(OffsetDateTime::now_utc())
}

/// Converts a moment. RFC 3339 ends with the year 9999, far within the range of the type.
pub fn to_micros(moment: OffsetDateTime) -> Micros {
    i64::try_from(moment.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// 2025-01-01T00:00:00Z, before the first release: an earlier clock is not set yet, as on a board without a battery that
/// has not reached a time server.
pub const CLOCK_UNSET_BEFORE: Micros = 1_735_689_600_000_000;

/// How far a sender's time of capture may be from the arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlausibleRange {
    /// After the arrival, microseconds.
    pub ahead: Micros,
    /// Before the arrival, microseconds.
    pub behind: Micros,
}

/// The time of capture of a detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureTime {
    /// The time that counts.
    pub captured_at: Micros,
    /// The time that the sender claims, where another one counts.
    pub claimed_at: Option<Micros>,
}

impl PlausibleRange {
    /// Converts the settings.
    pub fn new(ahead: Duration, behind: Duration) -> Self {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self { ahead: micros(ahead), behind: micros(behind) }
    }

    /// Resolves the time that counts for an image that arrived at `received_at`: the claim of the sender where it is
    /// within the range, else the arrival. While this machine's clock is not set, any claim by a clock that is set
    /// counts.
    pub fn resolve(self, claimed: Option<Micros>, received_at: Micros) -> CaptureTime {
        let Some(claimed) = claimed else {
            return CaptureTime { captured_at: received_at, claimed_at: None };
        };
        let plausible = if received_at < CLOCK_UNSET_BEFORE {
            claimed >= CLOCK_UNSET_BEFORE
        } else {
            let earliest = received_at.saturating_sub(self.behind);
            (earliest..=received_at.saturating_add(self.ahead)).contains(&claimed)
        };
        if plausible {
            CaptureTime { captured_at: claimed, claimed_at: None }
        } else {
            CaptureTime { captured_at: received_at, claimed_at: Some(claimed) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;
    const DAY: Micros = 86_400 * SECOND;
    const NOW: Micros = 1_780_000_000 * SECOND;

    fn resolve(claimed: Micros, received_at: Micros) -> CaptureTime {
        let range = PlausibleRange::new(Duration::from_secs(300), Duration::from_secs(30 * 86_400));
        range.resolve(Some(claimed), received_at)
    }

    #[test]
    fn a_claim_counts_within_the_range_of_its_arrival() {
        for claimed in [NOW, NOW + 300 * SECOND, NOW - 30 * DAY, NOW - 300 * SECOND] {
            assert_eq!(resolve(claimed, NOW), CaptureTime { captured_at: claimed, claimed_at: None });
        }
        for claimed in [NOW + 300 * SECOND + 1, NOW - 30 * DAY - 1, 0, i64::MIN, i64::MAX] {
            assert_eq!(resolve(claimed, NOW), CaptureTime { captured_at: NOW, claimed_at: Some(claimed) });
        }
    }

    #[test]
    fn without_a_claim_the_arrival_counts() {
        let range = PlausibleRange::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(range.resolve(None, NOW), CaptureTime { captured_at: NOW, claimed_at: None });
        let widest = PlausibleRange::new(Duration::MAX, Duration::MAX);
        // The years 0 to 9999, the range of a request's times.
        for claimed in [-62_167_219_200 * SECOND, 0, 253_402_300_799 * SECOND] {
            assert_eq!(widest.resolve(Some(claimed), NOW).captured_at, claimed);
        }
    }

    #[test]
    fn a_server_with_an_unset_clock_trusts_plausible_claims() {
        let unset = 60 * SECOND;
        assert_eq!(resolve(NOW, unset), CaptureTime { captured_at: NOW, claimed_at: None });
        assert_eq!(
            resolve(7 * SECOND, unset),
            CaptureTime { captured_at: unset, claimed_at: Some(7 * SECOND) }
        );
    }
}
