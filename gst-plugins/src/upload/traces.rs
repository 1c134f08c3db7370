//! Trace context of requests, and the spans of uploads if a collector is configured.
//!
//! A crop's trace and span ids are derived from its key, so that they survive retries, the spool and a restart. A request
//! belongs to the trace of its first crop and is linked to those of the others.

use std::time::Instant;

use uuid::Uuid;

use super::state::PendingUpload;

#[cfg(not(feature = "traces"))]
mod no_tracer;
#[cfg(feature = "traces")]
mod tracer;

#[cfg(not(feature = "traces"))]
pub(super) use no_tracer::Tracer;
#[cfg(feature = "traces")]
pub(super) use tracer::Tracer;

/// Ids of a span and its trace (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SpanIds {
    trace: u128,
    span: u64,
}

impl SpanIds {
    /// Returns the ids of a crop: its trace, and its span, from when it was cropped until it is settled.
    fn of_crop(key: Uuid) -> Self {
        let number = key.as_u128();
        // Samplers use the lower half of a trace id, where a key (UUID v7) has a counter within its millisecond. The key's
        // last four bytes are random: the rotation moves them to the top of that half.
        let trace = number.rotate_left(32);
        let [.., a, b, c, d, e, f, g, h] = number.to_be_bytes();
        Self { trace, span: u64::from_be_bytes([a, b, c, d, e, f, g, h]) }
    }

    /// Returns the ids of a new span in the same trace.
    fn child(self) -> Self {
        // 0 is invalid.
        Self { trace: self.trace, span: rand::random_range(1..=u64::MAX) }
    }
}

/// The trace context of one request.
pub(super) struct Attempt {
    ids: SpanIds,
    /// Number of the attempt for the first crop, from 1.
    #[cfg_attr(not(feature = "traces"), expect(dead_code, reason = "an attribute of its span"))]
    number: u32,
    #[cfg_attr(not(feature = "traces"), expect(dead_code, reason = "its span's parent"))]
    first: Uuid,
    #[cfg_attr(not(feature = "traces"), expect(dead_code, reason = "its span's beginning"))]
    started_at: Instant,
}

impl Attempt {
    /// Starts a request of these crops. `None` without crops.
    pub fn start(crops: &[PendingUpload]) -> Option<Self> {
        let first = crops.first()?;
        Some(Self {
            ids: SpanIds::of_crop(first.crop.key).child(),
            number: first.attempts.saturating_add(1),
            first: first.crop.key,
            started_at: Instant::now(),
        })
    }

    /// Returns the header `traceparent` (W3C Trace Context).
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.ids.trace, self.ids.span)
    }

    /// Returns the header `X-Request-Id`: the span id alone, since each byte counts.
    pub fn request_id(&self) -> String {
        format!("{:016x}", self.ids.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crops_trace_id_is_derived_from_its_key() {
        let key = Uuid::now_v7();
        let (ids, again) = (SpanIds::of_crop(key), SpanIds::of_crop(key));
        assert!(ids.trace != 0 && ids.span != 0 && ids == again);
        assert_ne!(ids.trace, SpanIds::of_crop(Uuid::now_v7()).trace);
        let child = ids.child();
        assert!(child.trace == ids.trace && child.span != ids.span);
    }

    #[test]
    fn trace_ids_have_random_bits_where_samplers_look() {
        // As ratio samplers do: the lower half of the id, as a fraction of its range.
        let share = |key: Uuid| {
            let [.., a, b, c, d, e, f, g, h] = SpanIds::of_crop(key).trace.to_be_bytes();
            u64::from_be_bytes([a, b, c, d, e, f, g, h]) as f64 / u64::MAX as f64
        };
        let below = (0..1000).filter(|_| share(Uuid::now_v7()) < 0.1).count();
        assert!((50..200).contains(&below), "{below} of 1000");
    }

    #[test]
    fn ids_are_formatted_as_headers() {
        let attempt = Attempt {
            ids: SpanIds { trace: 0xa1, span: 0xb2 },
            number: 1,
            first: Uuid::nil(),
            started_at: Instant::now(),
        };
        assert_eq!(attempt.traceparent(), "00-000000000000000000000000000000a1-00000000000000b2-01");
        assert_eq!(attempt.request_id(), "00000000000000b2");
    }
}
