//! Decides which frames are so late that searching them would only delay the following ones.

use gst::ClockTime;

/// Tolerance beyond the pipeline's latency for live frames. Less would mistake the jitter of cameras and decoders for a backlog.
const TOLERANCE: ClockTime = ClockTime::from_mseconds(200);

/// A live frame cannot arrive before it is due. One that is earlier by more than this has a timestamp that jumped.
const EARLIEST: ClockTime = ClockTime::from_seconds(1);

/// The latency information of sinks, pipeline and source.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Running time up to which frames are too late for a sink.
    late_until: Option<ClockTime>,
    /// The configured latency of the pipeline.
    configured: Option<ClockTime>,
    source: Source,
    /// Nanoseconds by which timestamps are behind the clock (negative: ahead) since they restarted or jumped.
    offset: i128,
    /// Timestamps have restarted: the next frame counts as on time.
    after_discontinuity: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Source {
    #[default]
    Unknown,
    /// Not live.
    Recorded,
    /// Live, with this latency.
    Live(ClockTime),
}

impl Lateness {
    /// Handles a QoS event: the frame with running time `timestamp` was `difference` nanoseconds late (negative: early).
    pub(super) fn handle_qos(&mut self, difference: i64, timestamp: Option<ClockTime>) {
        let late = u64::try_from(difference).ok().filter(|&late| late > 0).map(ClockTime::from_nseconds);
        self.late_until = timestamp.zip(late).map(|(timestamp, late)| timestamp.saturating_add(late));
    }

    /// Sets the pipeline's latency. The source is queried again.
    pub(super) fn configure(&mut self, latency: ClockTime) {
        self.configured = Some(latency);
        self.source = Source::Unknown;
    }

    /// Returns whether the source must be queried for its latency.
    pub(super) fn wants_latency(&self) -> bool {
        self.source == Source::Unknown
    }

    /// Sets the answer of the source: whether it is live, and its latency.
    pub(super) fn set_latency(&mut self, answer: Option<(bool, ClockTime)>) {
        self.source = match answer {
            Some((true, latency)) => Source::Live(latency),
            _ => Source::Recorded,
        };
    }

    /// Forgets what was late before a flush.
    pub(super) fn flush(&mut self) {
        (self.late_until, self.offset, self.after_discontinuity) = (None, 0, false);
    }

    /// Handles a restart of the timestamps: lateness is measured from the next frame on.
    pub(super) fn handle_discontinuity(&mut self) {
        self.late_until = None;
        self.after_discontinuity = true;
    }

    /// Returns whether the frame with running time `due` is late at `now`, which needs a clock.
    pub(super) fn is_late(&mut self, due: ClockTime, now: Option<ClockTime>) -> bool {
        if self.late_until.is_some_and(|until| due <= until) {
            return true;
        }
        let (Source::Live(latency), Some(now)) = (self.source, now) else { return false };
        let allowed = latency.max(self.configured.unwrap_or_default()).saturating_add(TOLERANCE);
        let [due, now, allowed, earliest] =
            [due, now, allowed, EARLIEST].map(|time| i128::from(time.nseconds()));
        if self.after_discontinuity || due + self.offset > now + earliest {
            self.after_discontinuity = false;
            self.offset = now - due;
        }
        now > due + self.offset + allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> ClockTime {
        ClockTime::from_mseconds(milliseconds)
    }

    #[test]
    fn frames_are_late_while_a_sink_reports_it() {
        let mut lateness = Lateness::default();
        assert!(!lateness.is_late(ms(0), None));
        lateness.handle_qos(300_000_000, Some(ms(1000)));
        assert!(lateness.is_late(ms(1040), None) && lateness.is_late(ms(1300), None));
        assert!(!lateness.is_late(ms(1301), None));
        lateness.handle_qos(-20_000_000, Some(ms(1040)));
        assert!(!lateness.is_late(ms(1080), None), "in time again");
        lateness.handle_qos(300_000_000, Some(ms(2000)));
        lateness.flush();
        assert!(!lateness.is_late(ms(2000), None));
    }

    #[test]
    fn live_frames_are_late_beyond_the_latency_and_recorded_ones_never() {
        let mut lateness = Lateness::default();
        assert!(lateness.wants_latency());
        lateness.set_latency(Some((true, ms(100))));
        assert!(!lateness.wants_latency());
        assert!(!lateness.is_late(ms(1000), Some(ms(1300))));
        assert!(lateness.is_late(ms(1000), Some(ms(1301))));
        assert!(!lateness.is_late(ms(1000), None), "no clock, no lateness");
        lateness.configure(ms(2000));
        assert!(lateness.wants_latency(), "the source is asked again");
        lateness.set_latency(Some((true, ms(100))));
        assert!(!lateness.is_late(ms(1000), Some(ms(3200))) && lateness.is_late(ms(1000), Some(ms(3201))));
        for answer in [Some((false, ms(0))), None] {
            lateness.set_latency(answer);
            assert!(!lateness.is_late(ms(1000), Some(ms(99_000))));
        }
    }

    #[test]
    fn timestamps_that_restart_or_jump_do_not_make_all_later_frames_late() {
        let mut lateness = Lateness::default();
        lateness.set_latency(Some((true, ms(100))));
        let hour = ms(3_600_000);
        assert!(!lateness.is_late(hour, Some(hour)));
        lateness.handle_qos(300_000_000, Some(hour));
        // From 1 h to 0: a camera was switched off and on.
        lateness.handle_discontinuity();
        assert!(!lateness.is_late(ms(0), Some(hour + ms(40))));
        assert!(
            !lateness.is_late(ms(40), Some(hour + ms(80))) && !lateness.is_late(ms(80), Some(hour + ms(420)))
        );
        assert!(lateness.is_late(ms(120), Some(hour + ms(461))), "301 ms behind the first");
        // One timestamp far ahead, and back.
        assert!(!lateness.is_late(hour + hour, Some(hour + ms(500))));
        lateness.handle_discontinuity();
        assert!(!lateness.is_late(ms(200), Some(hour + ms(600))));
        assert!(lateness.is_late(ms(240), Some(hour + ms(941))));
    }
}
