//! A monotonic time for the frames of a stream, whatever their timestamps do.
//!
//! Cameras, decoders and networks produce timestamps that step back by a frame or two, repeat, restart from 0 or are missing.
//! A [`Timeline`] measures the time between frames all the same.

use std::time::Duration;

/// A timestamp that steps back by at most this is out of order; one that steps back further has restarted.
pub const DISORDER: Duration = Duration::from_millis(500);

/// Duration of a frame, where neither the frame nor the caps have one.
const FRAME: Duration = Duration::from_millis(40);

/// The timeline of one stream.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Time of the last frame.
    now: Option<Duration>,
    anchor: Option<Anchor>,
}

/// Maps running time to time: `running_time` is `time`. `last` is the running time of the last frame that had one.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    running_time: Duration,
    time: Duration,
    last: Duration,
}

/// The time of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameTime {
    /// The running time as long as that rises; ahead of it by as much as it fell or stood still.
    pub time: Duration,
    /// How far the running time stepped back since the frame before; zero if it did not.
    pub backward_step: Duration,
}

impl FrameTime {
    /// Returns whether the timestamps restarted, so that deadlines in terms of earlier ones no longer apply.
    pub fn is_discontinuity(&self) -> bool {
        self.backward_step > DISORDER
    }
}

impl Timeline {
    /// Returns the time of the next frame, which lasts for `length`.
    ///
    /// A frame whose running time did not rise, or is not known, comes one `length` after the frame before. If the running time
    /// rises but is behind the timeline, time stands still until it has caught up, up to [`DISORDER`].
    pub fn advance(&mut self, running_time: Option<Duration>, length: Duration) -> FrameTime {
        let following = self.now.map(|now| now.saturating_add(length));
        let mut backward_step = Duration::ZERO;
        let time = match (running_time, self.now, following, &mut self.anchor) {
            (None, ..) => following.unwrap_or_default(),
            (Some(running_time), Some(now), Some(following), Some(anchor)) => {
                let rises = running_time > anchor.last;
                backward_step = anchor.last.saturating_sub(running_time);
                anchor.last = running_time;
                // The running time says anchor.time + after - before, which may be less than zero.
                let after = running_time.saturating_sub(anchor.running_time).saturating_add(anchor.time);
                let before = anchor.running_time.saturating_sub(running_time);
                let time = match (after.checked_sub(now.saturating_add(before)), rises) {
                    (Some(Duration::ZERO), false) | (None, false) => following,
                    (None, true) => now,
                    (Some(step), _) => now.saturating_add(step),
                };
                if now.saturating_add(before).saturating_sub(after) > DISORDER {
                    *anchor = Anchor { running_time, time: following, last: running_time };
                    following
                } else {
                    time
                }
            }
            (Some(running_time), ..) => {
                let time = following.unwrap_or(running_time);
                self.anchor = Some(Anchor { running_time, time, last: running_time });
                time
            }
        };
        self.now = Some(time);
        FrameTime { time, backward_step }
    }
}

/// Returns the duration of a frame: its own, else that of the caps' frame rate, else 40 ms.
pub fn frame_length(buffer: &gst::BufferRef, rate: Option<gst::Fraction>) -> Duration {
    let own = buffer.duration().map(Duration::from);
    let by_rate = || {
        let rate = rate?;
        let (numer, denom) = (u32::try_from(rate.numer()).ok()?, u64::try_from(rate.denom()).ok()?);
        Duration::from_secs(denom).checked_div(numer)
    };
    let length = own.filter(|length| !length.is_zero()).or_else(by_rate);
    length.filter(|length| !length.is_zero()).unwrap_or(FRAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(40);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Returns the times of frames with these timestamps in milliseconds.
    fn times(timestamps: impl IntoIterator<Item = Option<u64>>) -> Vec<u64> {
        let mut timeline = Timeline::default();
        let frame = |timestamp: Option<u64>| timeline.advance(timestamp.map(ms), LENGTH).time.as_millis();
        timestamps.into_iter().map(frame).map(|time| u64::try_from(time).unwrap()).collect()
    }

    #[test]
    fn rising_timestamps_are_kept() {
        let rising = [7000, 7040, 7041, 9000, 3_600_000];
        assert_eq!(times(rising.map(Some)), rising);
    }

    #[test]
    fn frames_out_of_order_follow_each_other_regularly() {
        let disorder = [0, 40, 80, 60, 160, 200, 240, 220, 320].map(Some);
        assert_eq!(times(disorder), [0, 40, 80, 120, 160, 200, 240, 280, 320]);
        // Two in a row.
        assert_eq!(times([0, 40, 80, 20, 60, 200, 240].map(Some)), [0, 40, 80, 120, 120, 200, 240]);
    }

    #[test]
    fn time_advances_while_timestamps_repeat_or_are_missing() {
        assert_eq!(times([Some(1000); 50]), (0..50).map(|n| 1000 + 40 * n).collect::<Vec<_>>());
        assert_eq!(times([None; 4]), [0, 40, 80, 120]);
        assert_eq!(times([None, Some(5000), None, Some(5080)]), [0, 40, 80, 120]);
        assert_eq!(times([Some(5000), None, Some(5080)]), [5000, 5040, 5080]);
    }

    #[test]
    fn time_continues_when_timestamps_restart() {
        let hour = 3_600_000;
        let mut timeline = Timeline::default();
        let mut at = |timestamp| timeline.advance(Some(ms(timestamp)), LENGTH);
        assert!(!at(hour).is_discontinuity() && !at(hour + 40).is_discontinuity());
        let again = at(0);
        assert!(again.is_discontinuity());
        assert_eq!((again.time, again.backward_step), (ms(hour + 80), ms(hour + 40)));
        assert_eq!([40, 80, 1080].map(|t| at(t).time), [hour + 120, hour + 160, hour + 1160].map(ms));
        assert_eq!(at(580), FrameTime { time: ms(hour + 1200), backward_step: ms(500) }, "disorder at most");
        assert_eq!(at(1120).time, ms(hour + 1200), "and waited for");
        // Frames without timestamps before those with large ones.
        assert_eq!(times([None, Some(hour), Some(0), Some(40)]), [0, 40, 80, 120]);
    }

    #[test]
    fn the_timeline_waits_only_briefly_for_timestamps_that_stay_behind() {
        // They step back repeatedly, by less than a restart.
        let mut falling = Vec::new();
        for round in 0..20 {
            falling.extend((0..12).map(|n| Some(10_000 - 400 * round + 40 * n)));
        }
        let times = times(falling);
        let (first, last) = (times[0], times[times.len() - 1]);
        assert!(times.is_sorted() && last - first > 3000, "{times:?}");
    }

    #[test]
    fn the_length_of_a_frame_is_its_own_or_that_of_the_frame_rate() {
        gst::init().unwrap();
        let mut buffer = gst::Buffer::new();
        let rate = |numer, denom| Some(gst::Fraction::new(numer, denom));
        assert_eq!(frame_length(&buffer, rate(10, 1)), ms(100));
        assert_eq!(frame_length(&buffer, rate(0, 1)), ms(40), "a variable rate");
        assert_eq!(frame_length(&buffer, None), ms(40));
        buffer.make_mut().set_duration(gst::ClockTime::from_mseconds(20));
        assert_eq!(frame_length(&buffer, rate(10, 1)), ms(20));
        buffer.make_mut().set_duration(gst::ClockTime::ZERO);
        assert_eq!(frame_length(&buffer, rate(10, 1)), ms(100));
    }
}
