//! Stops requests to an unhealthy backend.
//!
//! By hand: circuit breakers of libraries open at a rate of failures and guard single calls. This one opens at the first
//! failure, for as long as `Retry-After` asks, lets one batch probe, ignores failures of requests that were in flight when
//! it opened, and decides when crops are spooled.

use std::time::{Duration, Instant};

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Anything: the breaker is closed.
    Send,
    /// One batch, to probe whether the backend is healthy again: the breaker is half-open.
    Probe,
    /// Nothing before this time: the breaker is open.
    WaitUntil(Instant),
    /// Nothing until the probe in flight has ended.
    Wait,
}

/// Open after a failure until the back-off has passed and one probe has succeeded.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    /// Set unless closed.
    open_until: Option<Instant>,
    consecutive_failures: u32,
    /// The last failure was more than "busy".
    unavailable: bool,
    /// Id of the batch that probes.
    probe: Option<u64>,
}

impl CircuitBreaker {
    pub fn permit(&self, now: Instant) -> Permit {
        match self.open_until {
            None => Permit::Send,
            Some(until) if now < until => Permit::WaitUntil(until),
            Some(_) if self.probe.is_some() => Permit::Wait,
            Some(_) => Permit::Probe,
        }
    }

    pub fn begin_probe(&mut self, batch: u64) {
        self.probe = Some(batch);
    }

    /// Returns true if this batch was the probe, which is then no longer in flight.
    pub fn end_probe(&mut self, batch: u64) -> bool {
        self.probe.take_if(|probe| *probe == batch).is_some()
    }

    /// Closes the circuit: the backend is healthy.
    pub fn record_success(&mut self) {
        *self = Self::default();
    }

    /// Opens for the time that `wait` gives for the number of failures before this one, and returns it. Requests that
    /// were in flight when the breaker opened met the same failure: only the probe's outcome counts then, and zero is
    /// returned for the others.
    pub fn record_failure(
        &mut self,
        is_probe: bool,
        unavailable: bool,
        now: Instant,
        wait: impl FnOnce(u32) -> Duration,
    ) -> Duration {
        if !is_probe && matches!(self.permit(now), Permit::WaitUntil(_) | Permit::Wait) {
            return Duration::ZERO;
        }
        let wait = wait(self.consecutive_failures);
        *self = Self {
            open_until: Some(now.checked_add(wait).unwrap_or(now)),
            consecutive_failures: self.consecutive_failures.saturating_add(1),
            unavailable,
            probe: None,
        };
        wait
    }

    /// Returns true during an outage that has lasted for more than `failures` consecutive failures.
    pub fn is_unavailable_after(&self, failures: u32) -> bool {
        self.unavailable && self.consecutive_failures > failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_of_other_requests_do_not_end_the_probe() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::default();
        assert_eq!(breaker.record_failure(false, true, now, |_| SECOND), SECOND);
        let later = now + SECOND;
        assert_eq!(breaker.permit(later), Permit::Probe);
        breaker.begin_probe(7);
        assert!(!breaker.end_probe(6));
        assert_eq!(breaker.record_failure(false, true, later, |_| SECOND), Duration::ZERO);
        assert_eq!(breaker.permit(later + 2 * SECOND), Permit::Wait, "the probe is still in flight");
        assert!(breaker.end_probe(7));
        assert_eq!(breaker.record_failure(true, true, later, |failures| SECOND * (failures + 1)), 2 * SECOND);
    }

    #[test]
    fn a_busy_backend_is_not_unavailable() {
        let now = Instant::now();
        let mut breaker = CircuitBreaker::default();
        breaker.record_failure(false, false, now, |_| SECOND);
        assert!(!breaker.is_unavailable_after(0));
        breaker.record_failure(false, true, now + SECOND, |_| SECOND);
        assert!(breaker.is_unavailable_after(1) && !breaker.is_unavailable_after(2));
        breaker.record_success();
        assert_eq!(breaker.permit(now), Permit::Send);
    }
}
