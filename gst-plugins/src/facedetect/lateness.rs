//! Which frames are so late that a search would only make the following ones later.

use gst::ClockTime;

/// How much later than its pipeline's latency a live frame may be. Less would take the jitter of cameras and
/// decoders for a backlog.
const TOLERANCE: ClockTime = ClockTime::from_mseconds(200);

/// A live frame cannot come before its time. One that seems to come earlier than this has a timestamp that leapt.
const EARLIEST: ClockTime = ClockTime::from_seconds(1);

/// What sinks, pipeline and sources say about time.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Running time up to which a sink gets its frames too late.
    late_until: Option<ClockTime>,
    /// The latency that the pipeline has decided on.
    configured: Option<ClockTime>,
    /// What the source was found to be.
    source: Source,
    /// By how many nanoseconds timestamps are behind the clock (below 0: ahead) since they began again or leapt.
    shift: i128,
    /// They have begun again: the next frame is taken to be in time.
    begins_again: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Source {
    #[default]
    Unknown,
    /// It waits for nobody to miss a frame.
    Recorded,
    /// Frames arrive this long after their running time.
    Live(ClockTime),
}

impl Lateness {
    /// A QoS event: the frame with running time `timestamp` came `difference` nanoseconds too late (below 0: early).
    pub(super) fn take_qos(&mut self, difference: i64, timestamp: Option<ClockTime>) {
        let late = u64::try_from(difference).ok().filter(|&late| late > 0).map(ClockTime::from_nseconds);
        self.late_until = timestamp.zip(late).map(|(timestamp, late)| timestamp.saturating_add(late));
    }

    /// The pipeline's latency has changed, and so maybe the source's.
    pub(super) fn configure(&mut self, latency: ClockTime) {
        self.configured = Some(latency);
        self.source = Source::Unknown;
    }

    /// Whether the source is to be asked for its latency.
    pub(super) fn wants_latency(&self) -> bool {
        self.source == Source::Unknown
    }

    /// The source's answer: whether it is live, and how long its frames take.
    pub(super) fn set_latency(&mut self, answer: Option<(bool, ClockTime)>) {
        self.source = match answer {
            Some((true, latency)) => Source::Live(latency),
            _ => Source::Recorded,
        };
    }

    /// What was late before a flush says nothing about what comes after.
    pub(super) fn flush(&mut self) {
        (self.late_until, self.shift, self.begins_again) = (None, 0, false);
    }

    /// Timestamps have fallen: they no longer say when their frames are due. How late the following ones are is measured
    /// from the next.
    pub(super) fn begin_again(&mut self) {
        self.late_until = None;
        self.begins_again = true;
    }

    /// Whether the frame with running time `due` is late at `now`, where the pipeline has a clock.
    pub(super) fn is_late(&mut self, due: ClockTime, now: Option<ClockTime>) -> bool {
        if self.late_until.is_some_and(|until| due <= until) {
            return true;
        }
        let (Source::Live(latency), Some(now)) = (self.source, now) else { return false };
        let allowed = latency.max(self.configured.unwrap_or_default()).saturating_add(TOLERANCE);
        let [due, now, allowed, earliest] =
            [due, now, allowed, EARLIEST].map(|time| i128::from(time.nseconds()));
        if self.begins_again || due + self.shift > now + earliest {
            self.begins_again = false;
            self.shift = now - due;
        }
        now > due + self.shift + allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> ClockTime {
        ClockTime::from_mseconds(milliseconds)
    }

    #[test]
    fn frames_are_late_as_long_as_a_sink_says_so() {
        let mut lateness = Lateness::default();
        assert!(!lateness.is_late(ms(0), None));
        lateness.take_qos(300_000_000, Some(ms(1000)));
        assert!(lateness.is_late(ms(1040), None) && lateness.is_late(ms(1300), None));
        assert!(!lateness.is_late(ms(1301), None));
        lateness.take_qos(-20_000_000, Some(ms(1040)));
        assert!(!lateness.is_late(ms(1080), None), "in time again");
        lateness.take_qos(300_000_000, Some(ms(2000)));
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
    fn timestamps_that_fall_or_leap_make_no_frame_late_for_ever() {
        let mut lateness = Lateness::default();
        lateness.set_latency(Some((true, ms(100))));
        let hour = ms(3_600_000);
        assert!(!lateness.is_late(hour, Some(hour)));
        lateness.take_qos(300_000_000, Some(hour));
        // From 1 h to 0: a camera that was switched off and on.
        lateness.begin_again();
        assert!(!lateness.is_late(ms(0), Some(hour + ms(40))));
        assert!(
            !lateness.is_late(ms(40), Some(hour + ms(80))) && !lateness.is_late(ms(80), Some(hour + ms(420)))
        );
        assert!(lateness.is_late(ms(120), Some(hour + ms(461))), "301 ms behind the first");
        // One timestamp far ahead, and back.
        assert!(!lateness.is_late(hour + hour, Some(hour + ms(500))));
        lateness.begin_again();
        assert!(!lateness.is_late(ms(200), Some(hour + ms(600))));
        assert!(lateness.is_late(ms(240), Some(hour + ms(941))));
    }
}
