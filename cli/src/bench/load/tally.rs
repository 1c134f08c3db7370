//! Counts responses and prints the counts as a table.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::generator::{CompletedRequest, LoadProfile};
use crate::{
    client::ClientError,
    latency::{Latencies, Percentiles},
    output,
};

/// Counters of one run.
pub struct Tally {
    latencies: Latencies,
    served: u64,
    without_face: u64,
    faces: u64,
    too_busy: u64,
    bytes: u64,
    errors: BTreeMap<String, u64>,
}

/// The result of one load profile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Maximum number of requests in flight.
    pub concurrency: u16,
    /// Requests started per second; none for a closed loop.
    pub rate: Option<f64>,
    /// Completed requests.
    pub requests: u64,
    /// Successful requests.
    pub served: u64,
    /// Requests rejected by a busy server (429).
    pub too_busy: u64,
    /// Other errors, by status and code.
    pub errors: BTreeMap<String, u64>,
    /// Faces found.
    pub faces: u64,
    /// Responses without a face.
    pub without_face: u64,
    /// Time from the start to the last response.
    pub seconds: f64,
    /// Served requests per second.
    pub requests_per_second: f64,
    /// Bytes of the pictures of successful requests, without headers.
    pub bytes: u64,
    /// Latency of successful requests.
    pub latency: Option<Percentiles>,
}

impl Tally {
    /// Creates zeroed counters.
    pub fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            served: 0,
            without_face: 0,
            faces: 0,
            too_busy: 0,
            bytes: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Counts a completed request.
    pub fn count(&mut self, request: &CompletedRequest) {
        match &request.outcome {
            Ok(faces) => {
                self.served += 1;
                self.bytes += request.bytes;
                self.latencies.record(request.took);
                if let Some(faces) = faces {
                    self.without_face += u64::from(*faces == 0);
                    self.faces += u64::try_from(*faces).unwrap_or_default();
                }
            }
            Err(ClientError::Refused { status, .. }) if status.as_u16() == 429 => self.too_busy += 1,
            Err(error) => *self.errors.entry(error_key(error)).or_default() += 1,
        }
    }

    /// Returns the result of a run that took `time`.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub fn into_row(self, profile: &LoadProfile, time: Duration) -> Row {
        let seconds = time.as_secs_f64();
        Row {
            concurrency: profile.concurrency,
            rate: profile.rate,
            requests: self.served + self.too_busy + self.errors.values().sum::<u64>(),
            served: self.served,
            too_busy: self.too_busy,
            faces: self.faces,
            without_face: self.without_face,
            seconds,
            requests_per_second: if seconds > 0.0 { self.served as f64 / seconds } else { 0.0 },
            bytes: self.bytes,
            latency: self.latencies.percentiles(),
            errors: self.errors,
        }
    }
}

/// Returns the key under which an error is counted.
fn error_key(error: &ClientError) -> String {
    match error {
        ClientError::Refused { status, code, .. } => format!("{} {code}", status.as_u16()),
        ClientError::UnexpectedResponse { status, .. } => format!("{} unexpected answer", status.as_u16()),
        ClientError::Unreachable { why, .. } => format!("unreachable: {why}"),
        ClientError::Unauthorized { .. } => "token refused".into(),
    }
}

/// Prints the rows, followed by the errors.
pub fn print(rows: &[Row]) {
    let headings = [
        "at a time",
        "per s",
        "requests",
        "429",
        "errors",
        "time, s",
        "served/s",
        "MB",
        "p50, ms",
        "p95",
        "p99",
        "max",
    ];
    output::table(headings, rows.iter().map(Row::cells));
    let mut notes = Vec::new();
    for row in rows {
        let at = format!("at {} at a time", row.concurrency);
        if row.without_face > 0 {
            notes.push(format!("{at}: {} pictures without a face", row.without_face));
        }
        notes.extend(row.errors.iter().map(|(kind, count)| format!("{at}: {count} x {kind}")));
    }
    if !notes.is_empty() {
        output::line("");
        notes.iter().for_each(output::line);
    }
}

impl Row {
    #[expect(clippy::cast_precision_loss, reason = "bytes of a benchmark are far below 2^52")]
    fn cells(&self) -> [String; 12] {
        let ms = |of: fn(&Percentiles) -> f64| {
            self.latency.as_ref().map_or_else(|| "-".into(), |latency| format!("{:.1}", of(latency)))
        };
        [
            self.concurrency.to_string(),
            self.rate.map_or_else(|| "-".into(), |rate| rate.to_string()),
            self.requests.to_string(),
            self.too_busy.to_string(),
            self.errors.values().sum::<u64>().to_string(),
            format!("{:.2}", self.seconds),
            format!("{:.1}", self.requests_per_second),
            format!("{:.2}", self.bytes as f64 / 1e6),
            ms(|latency| latency.p50_ms),
            ms(|latency| latency.p95_ms),
            ms(|latency| latency.p99_ms),
            ms(|latency| latency.max_ms),
        ]
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use serde_json::Value;

    use super::*;

    fn refused(status: u16, code: &str) -> ClientError {
        let status = StatusCode::from_u16(status).unwrap();
        ClientError::Refused { status, code: code.into(), message: String::new(), details: Value::Null }
    }

    #[test]
    fn requests_are_counted_by_outcome() {
        let mut tally = Tally::new();
        let mut count = |ms, outcome| {
            tally.count(&CompletedRequest { took: Duration::from_millis(ms), bytes: 1000, outcome })
        };
        count(10, Ok(Some(2)));
        count(30, Ok(Some(0)));
        count(20, Ok(None));
        count(1, Err(refused(429, "too_busy")));
        count(1, Err(refused(422, "no_face")));
        count(1, Err(refused(422, "no_face")));
        count(9000, Err(ClientError::Unreachable { server: "s".into(), why: "no answer in time".into() }));
        let profile = LoadProfile { concurrency: 4, rate: Some(2.5), requests: None, duration: None };
        let row = tally.into_row(&profile, Duration::from_secs(2));
        assert_eq!((row.requests, row.served, row.too_busy), (7, 3, 1));
        assert_eq!((row.faces, row.without_face, row.bytes), (2, 1, 3000));
        let errors: Vec<(&str, u64)> =
            row.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(errors, [("422 no_face", 2), ("unreachable: no answer in time", 1)]);
        assert!((row.requests_per_second - 1.5).abs() < 1e-9);
        let latency = row.latency.unwrap();
        assert!(
            (latency.p50_ms - 20.0).abs() < 0.1 && (latency.max_ms - 30.0).abs() < 0.1,
            "only what was served"
        );
        assert_eq!(row.cells()[..5], ["4", "2.5", "7", "1", "3"].map(String::from));
    }
}
