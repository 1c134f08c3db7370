//! `facepipe bench load`: throughput and latency of a server with concurrent clients or at a fixed rate.

mod generator;
#[cfg(feature = "plots")]
mod plot;
mod tally;

use std::{
    fs,
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::{
    generator::{LoadGenerator, LoadProfile, StopReason},
    tally::Row,
};
#[cfg(not(feature = "plots"))]
use crate::missing_feature::plot;
use crate::{
    client::{Client, ClientError, Settings},
    connection::Connection,
    exit::{self, Failure, Outcome},
    output, pictures, runtime, trial,
};

/// Default number of requests.
const DEFAULT_REQUESTS: u64 = 100;

/// Default concurrency at a fixed rate: more than a server should queue.
const OPEN_LOOP_CONCURRENCY: u16 = 256;

/// Maximum total size of the pictures, which are held in memory so that no disk is measured.
const MAX_BYTES: usize = 512 * 1024 * 1024;

/// Measures throughput and latency of a server.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe bench load photo.jpg --requests 1000 --concurrency 1,2,4,8      (a row for each)
  facepipe bench load visitors/ --duration 60 --concurrency 16 --plot load.svg
  facepipe bench load visitors/ --rate 20 --duration 60
  facepipe bench load photo.jpg --call dry-run --requests 5000          (transport alone)

Without --rate, each client sends its next request when the previous one is
answered (closed loop). With --rate, requests start at that rate regardless of
the responses (open loop), and latency counts from the scheduled start: a stall
of the server shows in all requests scheduled during it, not in a few.

Latencies are those of successful requests. Responses 429 (server busy) are
counted separately, are not retried, and are no failure of the benchmark. Other
errors are counted by status and code; the exit code is then 3.
--call store-results stores detections of the camera `bench-load`.

{}", exit::HELP))]
#[group(id = "load")]
pub struct Options {
    /// A picture, or a folder whose pictures are sent in turn [default: the photographs of LFW, if downloaded]
    #[arg(value_name = "IMAGE|DIR")]
    pictures: Option<PathBuf>,
    /// Number of requests [default: 100, without --duration]
    #[arg(long, value_name = "N")]
    requests: Option<NonZeroU64>,
    /// Stop starting requests after this time, seconds, up to a day; requests in flight are awaited
    #[arg(long, value_name = "S", value_parser = seconds)]
    duration: Option<Duration>,
    /// Concurrent requests, 1 to 1024; several numbers give a row each [default: 1; with --rate: at most 256]
    #[arg(long, value_name = "C[,C…]", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: Vec<u16>,
    /// Start this many requests per second, 0.01 to 100000, regardless of the responses
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Unmeasured requests before each row [default: the concurrency, up to 16]
    #[arg(long, value_name = "N")]
    warm_up: Option<u64>,
    /// The API call to make
    #[arg(long, value_enum, default_value_t, value_name = "CALL")]
    call: Call,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Plot throughput and latency of the rows to this file
    #[arg(long, value_name = "FILE.svg", value_parser = crate::missing_feature::plot_file)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// An API call to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// Recognise the faces of a picture
    #[default]
    GetResults,
    /// Recognise, and store a detection of each face
    StoreResults,
    /// Compare a picture with the next one
    Verify,
    /// Read a picture and discard it
    DryRun,
}

#[derive(Serialize)]
struct Report<'a> {
    server: String,
    call: Call,
    pictures: usize,
    rows: &'a [Row],
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds, 0.1 to 86400".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=100_000.0).contains(rate));
    rate.ok_or_else(|| "expected requests per second, 0.01 to 100000".into())
}

/// Runs the benchmark.
///
/// # Errors
/// The pictures cannot be read, the server cannot be reached or refuses the token, or the plot cannot be written.
pub fn run(options: &Options) -> Result<Outcome> {
    let pictures = read(options)?;
    let retry_limit = Duration::ZERO;
    let client = Client::new(&Settings { retry_limit, ..options.connection.settings()? })?;
    let server = client.address();
    let requests = match (options.requests, options.duration) {
        (Some(requests), _) => Some(requests.get()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_REQUESTS),
    };
    let concurrencies = match (options.concurrency.as_slice(), options.rate) {
        ([], None) => vec![1],
        ([], Some(_)) => vec![OPEN_LOOP_CONCURRENCY],
        (given, _) => given.to_vec(),
    };
    let count = pictures.len();
    let generator = LoadGenerator::new(client, options.call, pictures);
    let mut rows = Vec::new();
    let mut stop_reason = StopReason::AllSent;
    runtime()?.block_on(async {
        for concurrency in concurrencies {
            let profile =
                LoadProfile { concurrency, rate: options.rate, requests, duration: options.duration };
            let warm_up = options.warm_up.unwrap_or_else(|| u64::from(concurrency.min(16)));
            stop_reason = generator.warm_up(concurrency, warm_up).await;
            if matches!(stop_reason, StopReason::AllSent) {
                let (row, how) = generator.measure(&profile).await;
                stop_reason = how;
                rows.push(row);
            }
            if !matches!(stop_reason, StopReason::AllSent) {
                break;
            }
        }
    });

    if options.json {
        output::json(&Report { server, call: options.call, pictures: count, rows: &rows })?;
    } else if !rows.is_empty() {
        tally::print(&rows);
    }
    match stop_reason {
        StopReason::Failed(error) => return Err(error.into()),
        StopReason::Interrupted => return Ok(Outcome::Interrupted),
        StopReason::AllSent => {}
    }
    if let Some(path) = &options.plot {
        fs::write(path, plot::rows(&rows)?).map_err(|error| Failure::output(path.display(), error))?;
        if !options.json {
            output::line(format!("\nPlot      {}", path.display()));
        }
    }
    let refused = rows.iter().any(|row| !row.errors.is_empty());
    Ok(if refused { Outcome::Partial } else { Outcome::Done })
}

/// Reads all pictures into memory.
fn read(options: &Options) -> Result<Vec<Bytes>, Failure> {
    let path = match &options.pictures {
        Some(path) => path.clone(),
        None => trial::default_faces().ok_or_else(|| {
            Failure::Usage("no picture to send: name one, or run `facepipe models fetch lfw10`".into())
        })?,
    };
    let files = if path.is_dir() {
        pictures::in_folder(&path)?.report_skipped(&path)?.pictures
    } else {
        vec![path.clone()]
    };
    let mut pictures = Vec::new();
    let mut bytes = 0;
    for file in files {
        let picture = read_one(&file)?;
        bytes += picture.len();
        if bytes > MAX_BYTES {
            let limit = format!("its pictures have more than {MAX_BYTES} bytes; name a smaller folder");
            return Err(Failure::input(path.display(), limit));
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

fn read_one(file: &Path) -> Result<Bytes, Failure> {
    pictures::read(file).map(Bytes::from).map_err(|why| Failure::input(file.display(), why))
}

/// Returns whether further requests would fail in the same way.
fn is_fatal(error: &ClientError) -> bool {
    matches!(error, ClientError::Unauthorized { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_have_limits() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["0", "-1", "100000", "NaN", "inf", "soon"] {
            assert!(seconds(wrong).unwrap_err().contains("86400"), "{wrong}");
        }
        assert_eq!(rate("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "1e9", "NaN", "inf", "fast"] {
            assert!(rate(wrong).unwrap_err().contains("100000"), "{wrong}");
        }
    }
}
