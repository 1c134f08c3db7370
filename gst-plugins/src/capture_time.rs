//! When a frame was captured, in wall-clock time.
//!
//! Two clocks may know it: that of the camera, by reference timestamps on the frames, and that of this machine, by the time
//! at which the frame is due. A camera's clock is better where it is set (the way through the network doesn't count), and
//! worse than nothing where it is not: cameras without NTP begin in 2000 after each loss of power. So it is taken only
//! while it agrees with this machine's within a limit, and for all frames of a stream or for none, since many frames
//! carry no reference timestamp: those before the first RTCP report, and others where a decoder loses it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gst::prelude::*;

/// From 1900-01-01, where NTP counts from, to 1970-01-01 (RFC 5905, figure 4).
const NTP_TO_UNIX: Duration = Duration::from_secs(2_208_988_800);

/// Nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// 2025-01-01: a clock that is before it has not been set since the machine was switched on.
const UNSET_BEFORE: Duration = Duration::from_secs(1_735_689_600);

/// A clock that is off by more than this from where it was expected has been set, or its frame is wrong.
const STEP: i128 = SECOND;

/// So many frames in a row must say that a clock has been set.
const CONFIRMED: u32 = 5;

/// A frame that was due longer ago has a timestamp that says nothing about this machine's time.
const OLDEST: Duration = Duration::from_secs(300);

/// How far a camera's clock may be from this machine's to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockLimit {
    /// The camera's clock is never taken.
    Never,
    /// It is taken within this.
    Within(Duration),
    /// It is always taken.
    Always,
}

impl Default for ClockLimit {
    /// A minute: more than clocks differ that somebody sets, less than a wrong time zone makes.
    fn default() -> Self {
        Self::Within(Duration::from_secs(60))
    }
}

/// When a frame was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// Since 1970-01-01 UTC.
    pub at: Duration,
    /// The camera's clock is known and was not taken.
    pub clock_refused: bool,
}

/// What is known of one camera's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Camera {
    #[default]
    Unknown,
    /// It is taken: so many nanoseconds ahead of this machine's clock.
    Taken(i128),
    /// It is not taken: likewise.
    Refused(i128),
}

/// The clocks of one stream.
#[derive(Debug, Default)]
pub struct CaptureClock {
    camera: Camera,
    /// Another offset than the known one, and how many frames in a row said so.
    candidate: Option<(i128, u32)>,
    /// Timestamps say nothing about this machine's time.
    adrift: bool,
    told: bool,
    notice: Option<String>,
}

impl CaptureClock {
    /// The capture time of a frame that is due at `running_time`, where it has one.
    ///
    /// A `GstReferenceTimestampMeta` in NTP or Unix time is the camera's own word (`rtspsrc` adds it with
    /// `add-reference-timestamp-meta=true`). This machine's word is the frame's running time, placed on the pipeline's
    /// clock, and that on the system's; without a clock or timestamp, it is now.
    ///
    /// PTP time (`timestamp/x-ptp`) is not taken: it counts TAI, which is ahead of UTC by leap seconds that the metadata
    /// doesn't tell, and many grandmasters hand out a time scale of their own.
    pub fn captured(
        &mut self,
        element: &gst::Element,
        running_time: Option<Duration>,
        buffer: &gst::BufferRef,
        limit: ClockLimit,
    ) -> Captured {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let local = self.local(now, running_time.and_then(|time| age(element, time)));
        self.judge(now, local, reference_time(buffer), limit)
    }

    /// A sentence for the bus, once, when the camera's clock is not taken.
    pub fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    fn local(&mut self, now: Duration, age: Option<Age>) -> Duration {
        let age = match age {
            None => return now,
            Some(Age::Future(lead)) => return now.saturating_add(lead),
            Some(Age::Past(age)) => age,
        };
        // Between both limits it stays as it is, so that times do not alternate.
        self.adrift = age > OLDEST || (self.adrift && age > OLDEST / 2);
        if self.adrift { now } else { now.saturating_sub(age) }
    }

    fn judge(
        &mut self,
        now: Duration,
        local: Duration,
        reference: Option<Duration>,
        limit: ClockLimit,
    ) -> Captured {
        if limit == ClockLimit::Never {
            *self = Self { adrift: self.adrift, ..Self::default() };
            return Captured { at: local, clock_refused: false };
        }
        let said = reference.map(|reference| nanoseconds(reference) - nanoseconds(local));
        if let Some(said) = said {
            self.listen(said, now, reference.unwrap_or_default(), limit);
        }
        match self.camera {
            Camera::Unknown => Captured { at: local, clock_refused: false },
            Camera::Refused(_) => Captured { at: local, clock_refused: true },
            Camera::Taken(offset) => {
                let agrees = said.is_some_and(|said| (said - offset).abs() <= STEP);
                let at =
                    reference.filter(|_| agrees).unwrap_or_else(|| duration(nanoseconds(local) + offset));
                // Nothing is captured after it came, unless it is this machine that doesn't know the time.
                let at = if now < UNSET_BEFORE { at } else { at.min(now.max(local)) };
                Captured { at, clock_refused: false }
            }
        }
    }

    /// Takes a camera's word that its clock is so far ahead.
    fn listen(&mut self, said: i128, now: Duration, reference: Duration, limit: ClockLimit) {
        let within = |offset: i128, part: i128| match limit {
            ClockLimit::Always => true,
            ClockLimit::Never => false,
            ClockLimit::Within(_) if now < UNSET_BEFORE && reference >= UNSET_BEFORE => true,
            ClockLimit::Within(limit) => offset.abs() <= nanoseconds(limit) / part,
        };
        self.camera = match self.camera {
            Camera::Taken(known) | Camera::Refused(known) if (said - known).abs() <= STEP => {
                self.candidate = None;
                // Clocks drift slowly, and single frames come early or late.
                let offset = known + (said - known) / 8;
                // Who was refused must come clearly nearer, so that a clock at the limit does not alternate.
                let part = if matches!(self.camera, Camera::Taken(_)) { 1 } else { 2 };
                if within(offset, part) { Camera::Taken(offset) } else { Camera::Refused(offset) }
            }
            Camera::Taken(_) | Camera::Refused(_) => {
                let (offset, frames) = match self.candidate {
                    Some((offset, frames)) if (said - offset).abs() <= STEP => (offset, frames + 1),
                    _ => (said, 1),
                };
                self.candidate = Some((offset, frames));
                if frames < CONFIRMED {
                    return;
                }
                self.candidate = None;
                if within(offset, 1) { Camera::Taken(offset) } else { Camera::Refused(offset) }
            }
            Camera::Unknown if within(said, 1) => Camera::Taken(said),
            Camera::Unknown => Camera::Refused(said),
        };
        if let (Camera::Refused(offset), ClockLimit::Within(limit), false) = (self.camera, limit, self.told) {
            self.told = true;
            self.notice = Some(format!(
                "the camera's clock is {} this machine's, and max-clock-offset is {} s: faces get this machine's time. Let \
                 the camera, or this machine, take its time from the network (NTP)",
                difference(offset),
                limit.as_secs()
            ));
        }
    }
}

/// A capture time as it may be sent: not after now, unless this machine doesn't know the time.
pub fn not_after_now(captured: Option<Duration>) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match captured {
        Some(captured) if now < UNSET_BEFORE => captured,
        Some(captured) => captured.min(now),
        None => now,
    }
}

/// A buffer's running time: how long after the start of playing it is due.
pub fn running_time(segment: Option<&gst::Segment>, buffer: &gst::BufferRef) -> Option<gst::ClockTime> {
    segment?.downcast_ref::<gst::ClockTime>()?.to_running_time(buffer.pts()?)
}

fn reference_time(buffer: &gst::BufferRef) -> Option<Duration> {
    buffer.iter_meta::<gst::ReferenceTimestampMeta>().find_map(|meta| {
        let time = Duration::from(meta.timestamp());
        match meta.reference().structure(0)?.name().as_str() {
            "timestamp/x-ntp" => time.checked_sub(NTP_TO_UNIX),
            "timestamp/x-unix" => Some(time),
            _ => None,
        }
    })
}

#[derive(Debug, Clone, Copy)]
enum Age {
    Past(Duration),
    Future(Duration),
}

fn age(element: &gst::Element, running_time: Duration) -> Option<Age> {
    let due = Duration::from(element.base_time()?).checked_add(running_time)?;
    let now = Duration::from(element.clock()?.time());
    Some(match now.checked_sub(due) {
        Some(age) => Age::Past(age),
        None => Age::Future(due.saturating_sub(now)),
    })
}

fn nanoseconds(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 4)
}

/// Of nanoseconds since 1970; what is before it is 0.
fn duration(nanoseconds: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
}

/// An offset in words: “26.9 years behind”.
fn difference(offset: i128) -> String {
    let seconds = (offset.abs() + SECOND / 2) / SECOND;
    let amount = match seconds {
        0..600 => format!("{seconds} s"),
        600..36_000 => format!("{} minutes", seconds / 60),
        36_000..864_000 => format!("{} hours", seconds / 3600),
        864_000..63_072_000 => format!("{} days", seconds / 86_400),
        _ => format!("{} years", seconds / 31_557_600),
    };
    format!("{amount} {}", if offset < 0 { "behind" } else { "ahead of" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const MINUTE: ClockLimit = ClockLimit::Within(Duration::from_secs(60));

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// A stream of 10 frames a second that begins at `NOW`. Of each frame: what the camera's clock is ahead by, if it says.
    fn run(
        clock: &mut CaptureClock,
        limit: ClockLimit,
        says: impl IntoIterator<Item = Option<f64>>,
    ) -> Vec<f64> {
        let frames = says.into_iter().enumerate().map(|(number, ahead)| {
            let local = NOW + Duration::from_millis(100) * u32::try_from(number).unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "years in nanoseconds fit")]
            let reference = ahead.map(|ahead| duration(nanoseconds(local) + (ahead * 1e9) as i128));
            // It came 200 ms after it was captured.
            let captured = clock.judge(local + s(0.2), local, reference, limit);
            (nanoseconds(captured.at) - nanoseconds(local)) as f64 / 1e9
        });
        frames.collect()
    }

    fn near(found: &[f64], expected: f64) -> bool {
        found.iter().all(|found| (found - expected).abs() < 0.01)
    }

    #[test]
    fn a_camera_that_knows_the_time_is_believed_also_of_frames_that_do_not_say_it() {
        let mut clock = CaptureClock::default();
        let says = (0..100).map(|frame| (frame >= 20 && frame % 3 == 0).then_some(-0.8));
        let times = run(&mut clock, MINUTE, says);
        assert!(near(&times[..21], 0.0), "nothing is known: {times:?}");
        assert!(near(&times[21..], -0.8), "{times:?}");
        assert_eq!(clock.take_notice(), None);
    }

    #[test]
    fn a_camera_that_does_not_is_not_believed_and_that_is_told_once() {
        for ahead in [-300.0, 300.0, -8.5e8] {
            let mut clock = CaptureClock::default();
            let says = || (0..60).map(|frame| (frame % 3 == 0).then_some(ahead));
            assert!(near(&run(&mut clock, MINUTE, says()), 0.0), "{ahead}");
            let notice = clock.take_notice().unwrap();
            assert!(notice.contains("max-clock-offset is 60 s"), "{notice}");
            assert!(ahead > -1e6 || notice.contains("26 years behind"), "{notice}");
            run(&mut clock, MINUTE, says());
            assert_eq!(clock.take_notice(), None, "said before");
            assert!(clock.judge(NOW, NOW, None, MINUTE).clock_refused);
        }
    }

    #[test]
    fn the_limit_decides() {
        let says = || (0..60).map(|frame| (frame % 3 == 0).then_some(-300.0));
        for limit in [ClockLimit::Always, ClockLimit::Within(s(400.0))] {
            let mut clock = CaptureClock::default();
            assert!(near(&run(&mut clock, limit, says()), -300.0), "all frames or none");
        }
        let mut clock = CaptureClock::default();
        assert!(near(&run(&mut clock, ClockLimit::Never, (0..60).map(|_| Some(-1.0))), 0.0));
        assert_eq!(clock.take_notice(), None);
        assert!(!clock.judge(NOW, NOW, Some(s(1.0)), ClockLimit::Never).clock_refused, "nobody asked it");
    }

    #[test]
    fn a_clock_at_the_limit_does_not_alternate() {
        let mut clock = CaptureClock::default();
        // It drifts over the limit and trembles there.
        let says = (0..400_u32).map(|n| Some(-59.5 - f64::from(n) / 400.0 + f64::from(n % 7) * 0.05));
        let times = run(&mut clock, MINUTE, says);
        let changes = times.windows(2).filter(|pair| (pair[0] - pair[1]).abs() > 1.0).count();
        assert_eq!(changes, 1, "{times:?}");
    }

    #[test]
    fn a_single_wrong_word_changes_nothing_and_a_clock_that_was_set_is_followed() {
        let mut clock = CaptureClock::default();
        let says = (0..40).map(|frame| Some(if frame == 20 { -5000.0 } else { -0.5 }));
        assert!(near(&run(&mut clock, MINUTE, says), -0.5));
        // This machine's clock is set, an hour forward: by then the camera seems to be behind.
        let times = run(&mut clock, MINUTE, (0..20).map(|_| Some(-3600.5)));
        assert!(near(&times[..4], -0.5) && near(&times[4..], 0.0), "{times:?}");
        // And the camera's clock, too.
        let times = run(&mut clock, MINUTE, (0..20).map(|_| Some(-0.5)));
        assert!(near(&times[..4], 0.0) && near(&times[4..], -0.5), "{times:?}");
    }

    #[test]
    fn a_machine_that_does_not_know_the_time_believes_a_camera_that_does() {
        let mut clock = CaptureClock::default();
        let (unset, right) = (s(100.0), NOW);
        assert_eq!(clock.judge(unset, unset, Some(right), MINUTE).at, right);
        assert_eq!(clock.judge(unset + s(1.0), unset + s(1.0), None, MINUTE).at, right + s(1.0));
        let mut clock = CaptureClock::default();
        let neither = Some(s(946_684_800.0));
        assert_eq!(clock.judge(unset, unset, neither, MINUTE), Captured { at: unset, clock_refused: true });
    }

    #[test]
    fn nothing_is_captured_after_it_came() {
        let mut clock = CaptureClock::default();
        let came = NOW + s(0.2);
        assert_eq!(clock.judge(came, NOW, Some(NOW + s(5.0)), MINUTE).at, came);
    }

    #[test]
    fn timestamps_that_say_nothing_are_not_asked() {
        let mut clock = CaptureClock::default();
        let mut local = |age: u64| clock.local(NOW, Some(Age::Past(Duration::from_secs(age))));
        assert_eq!(local(200), NOW - s(200.0));
        assert_eq!((local(301), local(299), local(151)), (NOW, NOW, NOW), "no alternating");
        assert_eq!(local(10), NOW - s(10.0));
        assert_eq!(clock.local(NOW, Some(Age::Future(s(7.0)))), NOW + s(7.0));
        assert_eq!(clock.local(NOW, None), NOW);
    }
}
