//! Whether a request is retried, and when.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use rand::Rng;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// Upper limit for `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Exponential back-off with jitter: the n-th retry waits a random time between half and all of `initial * 2^n`, at most
/// `maximum`, so that many cameras don't return to a backend at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first retry.
    pub initial: Duration,
    /// Upper limit.
    pub maximum: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), maximum: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// Returns how long to wait after an attempt, the first being 0.
    pub(super) fn delay(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
        let whole = self.initial.saturating_mul(factor).min(self.maximum);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// What a response means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseClass {
    Accepted,
    /// The content is rejected, and a retry would not help.
    Rejected,
    /// The backend is healthy but overloaded: retry after the time it asks for, or the back-off.
    Busy(Option<Duration>),
    /// The backend or a proxy fails, or the address is wrong: retry likewise.
    Unavailable(Option<Duration>),
    /// The backend rejects the token: retry likewise, since a token can be replaced.
    Unauthorized(Option<Duration>),
}

/// Classifies a response. A crop is rejected for good only by an error in the backend's own format: proxies, firewalls, a
/// network's login page or a different server at this address may respond with any status.
pub(super) fn classify(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ResponseClass {
    let wait = || retry_after(headers, OffsetDateTime::now_utc());
    match status.as_u16() {
        200..=299 if is_web_page(headers) || !(body.is_empty() || is_object(body)) => {
            ResponseClass::Unavailable(None)
        }
        200..=299 => ResponseClass::Accepted,
        // Bad request, content too large, unsupported media type, unprocessable content.
        400 | 413 | 415 | 422 if is_error(body) => ResponseClass::Rejected,
        403 if is_web_page(headers) => ResponseClass::Unavailable(wait()),
        401 | 403 => ResponseClass::Unauthorized(wait()),
        // Request timeout, locked, too early, too many requests.
        408 | 423 | 425 | 429 => ResponseClass::Busy(wait()),
        // Server errors; redirections, "not found" and the like, which are no fault of the crops; and responses that are
        // not the backend's.
        _ => ResponseClass::Unavailable(wait()),
    }
}

fn is_object(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|answer| answer.is_object())
}

/// Returns true for an error in the backend's format: `{"error": {"code": "…", …}}`.
fn is_error(body: &[u8]) -> bool {
    let answer = serde_json::from_slice::<Value>(body).unwrap_or_default();
    answer.pointer("/error/code").is_some_and(Value::is_string)
}

/// Returns true for a response in HTML, which the backend never sends.
pub(super) fn is_web_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

/// Returns the wait that a response asks for, limited to [`MAX_RETRY_AFTER`].
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    parse_retry_after(headers, now).map(|wait| wait.min(MAX_RETRY_AFTER))
}

/// Parses `Retry-After` in either of its forms, seconds or an HTTP date (RFC 9110, section 10.2.3).
pub fn parse_retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = OffsetDateTime::parse(value, &Rfc2822).ok()?;
    Some(Duration::try_from(until - now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_with_jitter_up_to_its_maximum() {
        let backoff = Backoff { initial: Duration::from_millis(100), maximum: Duration::from_millis(900) };
        for (attempt, whole) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 900), (31, 900), (40, 900)] {
            let whole = Duration::from_millis(whole);
            let delays: Vec<_> = (0..50).map(|_| backoff.delay(attempt)).collect();
            assert!(delays.iter().all(|d| (whole / 2..=whole).contains(d)), "attempt {attempt}: {delays:?}");
            assert!(delays.iter().any(|d| d != &delays[0]), "attempt {attempt}: no jitter");
        }
    }

    #[test]
    fn retry_after_is_parsed_in_both_forms() {
        let now = OffsetDateTime::parse("Sun, 06 Nov 1994 08:49:37 GMT", &Rfc2822).unwrap();
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO), "a time in the past");
        assert_eq!(read("86400"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn responses_are_classified_by_status_and_body() {
        let error = br#"{"error":{"code":"image_unreadable","message":"unreadable"}}"#;
        let classify =
            |status, body: &[u8]| classify(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body);
        assert_eq!(classify(201, b"{}"), ResponseClass::Accepted);
        assert_eq!(classify(204, b""), ResponseClass::Accepted);
        for status in [400, 413, 415, 422] {
            assert_eq!(classify(status, error), ResponseClass::Rejected, "{status}");
            for foreign in
                ["", "<html>", "{}", r#"{"error":"no"}"#, r#"{"error":{"code":7}}"#, r#"["error"]"#]
            {
                assert_eq!(
                    classify(status, foreign.as_bytes()),
                    ResponseClass::Unavailable(None),
                    "{status} {foreign}"
                );
            }
        }
        for status in [401, 403] {
            assert_eq!(classify(status, error), ResponseClass::Unauthorized(None), "{status}");
        }
        for status in [408, 423, 425, 429] {
            assert_eq!(classify(status, error), ResponseClass::Busy(None), "{status}");
        }
        for status in [302, 404, 407, 409, 451, 500, 502, 503, 504, 507, 511] {
            assert_eq!(classify(status, error), ResponseClass::Unavailable(None), "{status}");
        }
    }

    #[test]
    fn a_web_page_is_not_the_backends_response() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "text/html; charset=utf-8".parse().unwrap());
        assert_eq!(classify(StatusCode::OK, &headers, b""), ResponseClass::Unavailable(None));
        assert_eq!(classify(StatusCode::FORBIDDEN, &headers, b"blocked"), ResponseClass::Unavailable(None));
        assert_eq!(classify(StatusCode::UNAUTHORIZED, &headers, b"401"), ResponseClass::Unauthorized(None));
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        assert_eq!(classify(StatusCode::OK, &headers, b"{}"), ResponseClass::Accepted);
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert_eq!(classify(StatusCode::OK, &headers, b"welcome"), ResponseClass::Unavailable(None));
    }
}
