//! When a frame was captured, in wall-clock time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gst::prelude::*;

/// From 1900-01-01, where NTP counts from, to 1970-01-01 (RFC 5905, figure 4).
const NTP_TO_UNIX: Duration = Duration::from_secs(2_208_988_800);

/// The capture time of a buffer since 1970-01-01 UTC.
///
/// A `GstReferenceTimestampMeta` in NTP or Unix time is the camera's own word and is taken first (`rtspsrc`
/// adds it with `add-reference-timestamp-meta=true`). Else the buffer's running time is placed on the
/// pipeline's clock, and that on the system's. Without a clock or timestamp, it is now.
///
/// PTP time (`timestamp/x-ptp`) is not taken: it counts TAI, which is ahead of UTC by leap seconds that the metadata
/// doesn't tell, and many grandmasters hand out a time scale of their own.
pub fn capture_time(
    element: &gst::Element,
    segment: Option<&gst::Segment>,
    buffer: &gst::BufferRef,
) -> Option<Duration> {
    reference_time(buffer).or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        match age(element, segment, buffer) {
            None => Some(now),
            Some(Age::Past(age)) => now.checked_sub(age),
            Some(Age::Future(lead)) => now.checked_add(lead),
        }
    })
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

enum Age {
    Past(Duration),
    Future(Duration),
}

fn age(element: &gst::Element, segment: Option<&gst::Segment>, buffer: &gst::BufferRef) -> Option<Age> {
    let due = element.base_time()?.checked_add(running_time(segment, buffer)?)?;
    let now = element.clock()?.time();
    Some(match now.checked_sub(due) {
        Some(age) => Age::Past(age.into()),
        None => Age::Future(due.saturating_sub(now).into()),
    })
}
