//! When a frame was captured, in wall-clock time.
//!
//! There are two sources: the camera's clock, by reference timestamps on the frames, and this machine's, by the time at which the
//! frame is due. The camera's clock is better if it is set, since it excludes the network delay, and useless if it is not:
//! cameras without NTP start in the year 2000 after each power loss. So it is trusted only while it agrees with this machine's
//! within a limit, and for all frames of a stream or for none, since many frames have no reference timestamp: those before the
//! first RTCP report, and others where a decoder drops it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gst::prelude::*;

/// From the NTP epoch, 1900-01-01, to the Unix epoch (RFC 5905, figure 4).
const NTP_TO_UNIX: Duration = Duration::from_secs(2_208_988_800);

/// Nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// 2025-01-01: an earlier clock has not been set since power-up.
const UNSET_BEFORE: Duration = Duration::from_secs(1_735_689_600);

/// A larger deviation from the expected offset, in nanoseconds, means that a clock was set, or that the timestamp is wrong.
const STEP: i128 = SECOND;

/// Consecutive frames after which a new offset is accepted.
const CONFIRMED: u32 = 5;

/// A frame that was due longer ago has a timestamp unrelated to this machine's time.
const OLDEST: Duration = Duration::from_secs(300);

/// How far a trusted camera clock may be from this machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockLimit {
    /// The camera's clock is never trusted.
    Never,
    /// It is trusted within this distance.
    Within(Duration),
    /// It is always trusted.
    Always,
}

impl Default for ClockLimit {
    /// Returns one minute: more than the differences between clocks that are set, less than a wrong time zone.
    fn default() -> Self {
        Self::Within(Duration::from_secs(60))
    }
}

/// When a frame was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureTime {
    /// Since 1970-01-01 UTC.
    pub at: Duration,
    /// Whether the camera's clock is known and not trusted.
    pub clock_refused: bool,
}

/// The state of a camera's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CameraClock {
    #[default]
    Unknown,
    /// Trusted; nanoseconds ahead of this machine's clock.
    Trusted(i128),
    /// Not trusted; likewise.
    Refused(i128),
}

/// The clocks of one stream.
#[derive(Debug, Default)]
pub struct CaptureClock {
    camera: CameraClock,
    /// A different offset, and the number of consecutive frames with it.
    candidate: Option<(i128, u32)>,
    /// Whether timestamps are unrelated to this machine's time.
    adrift: bool,
    has_warned: bool,
    warning: Option<String>,
}

impl CaptureClock {
    /// Returns the capture time of a frame that is due at `running_time`, if it has one.
    ///
    /// The camera's time is a `GstReferenceTimestampMeta` in NTP or Unix time (`rtspsrc` adds it with
    /// `add-reference-timestamp-meta=true`). This machine's time is the running time converted to the pipeline's clock, and
    /// that to the system clock; without a clock or timestamp, it is now.
    ///
    /// PTP time (`timestamp/x-ptp`) is ignored: it is TAI, which is ahead of UTC by leap seconds that the metadata does not
    /// have, and many grandmasters use an arbitrary time scale.
    pub fn captured(
        &mut self,
        element: &gst::Element,
        running_time: Option<Duration>,
        buffer: &gst::BufferRef,
        limit: ClockLimit,
    ) -> CaptureTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let local = self.local(now, running_time.and_then(|time| age(element, time)));
        self.resolve(now, local, reference_time(buffer), limit)
    }

    /// Takes the warning that the camera's clock is not trusted: a sentence for the bus, once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    fn local(&mut self, now: Duration, age: Option<Age>) -> Duration {
        let age = match age {
            None => return now,
            Some(Age::Future(lead)) => return now.saturating_add(lead),
            Some(Age::Past(age)) => age,
        };
        // Hysteresis, so that times do not alternate.
        self.adrift = age > OLDEST || (self.adrift && age > OLDEST / 2);
        if self.adrift { now } else { now.saturating_sub(age) }
    }

    fn resolve(
        &mut self,
        now: Duration,
        local: Duration,
        reference: Option<Duration>,
        limit: ClockLimit,
    ) -> CaptureTime {
        if limit == ClockLimit::Never {
            *self = Self { adrift: self.adrift, ..Self::default() };
            return CaptureTime { at: local, clock_refused: false };
        }
        let said = reference.map(|reference| nanoseconds(reference) - nanoseconds(local));
        if let Some(said) = said {
            self.observe_offset(said, now, reference.unwrap_or_default(), limit);
        }
        match self.camera {
            CameraClock::Unknown => CaptureTime { at: local, clock_refused: false },
            CameraClock::Refused(_) => CaptureTime { at: local, clock_refused: true },
            CameraClock::Trusted(offset) => {
                let agrees = said.is_some_and(|said| (said - offset).abs() <= STEP);
                let at =
                    reference.filter(|_| agrees).unwrap_or_else(|| duration(nanoseconds(local) + offset));
                // A frame is captured before it arrives, unless this machine's clock is not set.
                let at = if now < UNSET_BEFORE { at } else { at.min(now.max(local)) };
                CaptureTime { at, clock_refused: false }
            }
        }
    }

    /// Updates the camera's clock by the offset of a frame.
    fn observe_offset(&mut self, said: i128, now: Duration, reference: Duration, limit: ClockLimit) {
        let within = |offset: i128, part: i128| match limit {
            ClockLimit::Always => true,
            ClockLimit::Never => false,
            ClockLimit::Within(_) if now < UNSET_BEFORE && reference >= UNSET_BEFORE => true,
            ClockLimit::Within(limit) => offset.abs() <= nanoseconds(limit) / part,
        };
        self.camera = match self.camera {
            CameraClock::Trusted(known) | CameraClock::Refused(known) if (said - known).abs() <= STEP => {
                self.candidate = None;
                // Smoothed: clocks drift slowly, and single frames are early or late.
                let offset = known + (said - known) / 8;
                // Hysteresis, so that a clock at the limit does not alternate.
                let part = if matches!(self.camera, CameraClock::Trusted(_)) { 1 } else { 2 };
                if within(offset, part) { CameraClock::Trusted(offset) } else { CameraClock::Refused(offset) }
            }
            CameraClock::Trusted(_) | CameraClock::Refused(_) => {
                let (offset, frames) = match self.candidate {
                    Some((offset, frames)) if (said - offset).abs() <= STEP => (offset, frames + 1),
                    _ => (said, 1),
                };
                self.candidate = Some((offset, frames));
                if frames < CONFIRMED {
                    return;
                }
                self.candidate = None;
                if within(offset, 1) { CameraClock::Trusted(offset) } else { CameraClock::Refused(offset) }
            }
            CameraClock::Unknown if within(said, 1) => CameraClock::Trusted(said),
            CameraClock::Unknown => CameraClock::Refused(said),
        };
        if let (CameraClock::Refused(offset), ClockLimit::Within(limit), false) =
            (self.camera, limit, self.has_warned)
        {
            self.has_warned = true;
            self.warning = Some(format!(
                "the camera's clock is {} this machine's, and max-clock-offset is {} s: this machine's time is used. \
                 Synchronise the camera, or this machine, with a time server (NTP)",
                difference(offset),
                limit.as_secs()
            ));
        }
    }
}

/// Limits a capture time to the present, unless this machine's clock is not set.
pub fn not_after_now(captured: Option<Duration>) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match captured {
        Some(captured) if now < UNSET_BEFORE => captured,
        Some(captured) => captured.min(now),
        None => now,
    }
}

/// Returns a buffer's running time.
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

/// Converts nanoseconds since 1970; negative ones become 0.
fn duration(nanoseconds: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
}

/// Describes an offset: “26 years behind”.
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

    /// Runs a stream of 10 frames a second from `NOW` on. `says` has how far the camera's clock is ahead, or `None`, for each
    /// frame.
    fn run(
        clock: &mut CaptureClock,
        limit: ClockLimit,
        says: impl IntoIterator<Item = Option<f64>>,
    ) -> Vec<f64> {
        let frames = says.into_iter().enumerate().map(|(number, ahead)| {
            let local = NOW + Duration::from_millis(100) * u32::try_from(number).unwrap();
            #[expect(clippy::cast_possible_truncation, reason = "years in nanoseconds fit")]
            let reference = ahead.map(|ahead| duration(nanoseconds(local) + (ahead * 1e9) as i128));
            // It arrives 200 ms after it was captured.
            let captured = clock.resolve(local + s(0.2), local, reference, limit);
            (nanoseconds(captured.at) - nanoseconds(local)) as f64 / 1e9
        });
        frames.collect()
    }

    fn near(found: &[f64], expected: f64) -> bool {
        found.iter().all(|found| (found - expected).abs() < 0.01)
    }

    #[test]
    fn a_trusted_camera_clock_also_dates_frames_without_reference_timestamp() {
        let mut clock = CaptureClock::default();
        let says = (0..100).map(|frame| (frame >= 20 && frame % 3 == 0).then_some(-0.8));
        let times = run(&mut clock, MINUTE, says);
        assert!(near(&times[..21], 0.0), "nothing is known: {times:?}");
        assert!(near(&times[21..], -0.8), "{times:?}");
        assert_eq!(clock.take_warning(), None);
    }

    #[test]
    fn a_camera_clock_beyond_the_limit_is_refused_with_one_warning() {
        for ahead in [-300.0, 300.0, -8.5e8] {
            let mut clock = CaptureClock::default();
            let says = || (0..60).map(|frame| (frame % 3 == 0).then_some(ahead));
            assert!(near(&run(&mut clock, MINUTE, says()), 0.0), "{ahead}");
            let warning = clock.take_warning().unwrap();
            assert!(warning.contains("max-clock-offset is 60 s"), "{warning}");
            assert!(ahead > -1e6 || warning.contains("26 years behind"), "{warning}");
            run(&mut clock, MINUTE, says());
            assert_eq!(clock.take_warning(), None, "said before");
            assert!(clock.resolve(NOW, NOW, None, MINUTE).clock_refused);
        }
    }

    #[test]
    fn the_clock_limit_is_obeyed() {
        let says = || (0..60).map(|frame| (frame % 3 == 0).then_some(-300.0));
        for limit in [ClockLimit::Always, ClockLimit::Within(s(400.0))] {
            let mut clock = CaptureClock::default();
            assert!(near(&run(&mut clock, limit, says()), -300.0), "all frames or none");
        }
        let mut clock = CaptureClock::default();
        assert!(near(&run(&mut clock, ClockLimit::Never, (0..60).map(|_| Some(-1.0))), 0.0));
        assert_eq!(clock.take_warning(), None);
        assert!(!clock.resolve(NOW, NOW, Some(s(1.0)), ClockLimit::Never).clock_refused, "it is not used");
    }

    #[test]
    fn a_clock_at_the_limit_does_not_alternate() {
        let mut clock = CaptureClock::default();
        // It drifts across the limit, with jitter.
        let says = (0..400_u32).map(|n| Some(-59.5 - f64::from(n) / 400.0 + f64::from(n % 7) * 0.05));
        let times = run(&mut clock, MINUTE, says);
        let changes = times.windows(2).filter(|pair| (pair[0] - pair[1]).abs() > 1.0).count();
        assert_eq!(changes, 1, "{times:?}");
    }

    #[test]
    fn a_single_wrong_timestamp_is_ignored_and_a_clock_that_was_set_is_followed() {
        let mut clock = CaptureClock::default();
        let says = (0..40).map(|frame| Some(if frame == 20 { -5000.0 } else { -0.5 }));
        assert!(near(&run(&mut clock, MINUTE, says), -0.5));
        // This machine's clock is set one hour ahead, so that the camera's is behind.
        let times = run(&mut clock, MINUTE, (0..20).map(|_| Some(-3600.5)));
        assert!(near(&times[..4], -0.5) && near(&times[4..], 0.0), "{times:?}");
        // Then the camera's clock is set as well.
        let times = run(&mut clock, MINUTE, (0..20).map(|_| Some(-0.5)));
        assert!(near(&times[..4], 0.0) && near(&times[4..], -0.5), "{times:?}");
    }

    #[test]
    fn a_machine_without_the_time_trusts_a_camera_with_it() {
        let mut clock = CaptureClock::default();
        let (unset, right) = (s(100.0), NOW);
        assert_eq!(clock.resolve(unset, unset, Some(right), MINUTE).at, right);
        assert_eq!(clock.resolve(unset + s(1.0), unset + s(1.0), None, MINUTE).at, right + s(1.0));
        let mut clock = CaptureClock::default();
        let neither = Some(s(946_684_800.0));
        assert_eq!(
            clock.resolve(unset, unset, neither, MINUTE),
            CaptureTime { at: unset, clock_refused: true }
        );
    }

    #[test]
    fn no_frame_is_captured_after_its_arrival() {
        let mut clock = CaptureClock::default();
        let came = NOW + s(0.2);
        assert_eq!(clock.resolve(came, NOW, Some(NOW + s(5.0)), MINUTE).at, came);
    }

    #[test]
    fn timestamps_unrelated_to_this_machines_time_are_ignored() {
        let mut clock = CaptureClock::default();
        let mut local = |age: u64| clock.local(NOW, Some(Age::Past(Duration::from_secs(age))));
        assert_eq!(local(200), NOW - s(200.0));
        assert_eq!((local(301), local(299), local(151)), (NOW, NOW, NOW), "no alternating");
        assert_eq!(local(10), NOW - s(10.0));
        assert_eq!(clock.local(NOW, Some(Age::Future(s(7.0)))), NOW + s(7.0));
        assert_eq!(clock.local(NOW, None), NOW);
    }
}
