//! `facepipe bench bandwidth`: what a camera's faces cost in uplink, compared with its video, and who is recognised by
//! them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::plot;
use crate::{
    exit::{self, Failure, Outcome},
    output,
    trial::{self, GroundTruth, Policy, Replay, Trial},
    video::source::Source,
};

/// What sending the camera's video itself would cost, in Mbit/s: 1080p H.264 as cameras send it.
const VIDEO_MBPS: f64 = 4.0;

/// Measures what the faces of a video cost in uplink, and how many of the people are recognised by them.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe bench bandwidth entrance.mp4
  facepipe bench bandwidth crowd-*.mp4 --plot bandwidth.svg
  facepipe bench bandwidth crowd-medium.mp4 --policy best --json

Each video is replayed against a backend of the benchmark's own, once for each
policy, in real time unless --fast says otherwise. The bytes are counted at the
sockets: request lines, headers and bodies, without the headers of TCP and IP.
Where <video>.json with ground truth lies beside the video, the people who
walk by and those who were recognised are counted too.

{}", exit::HELP))]
pub struct Options {
    /// Videos to replay
    #[arg(required = true, value_name = "VIDEO")]
    videos: Vec<PathBuf>,
    /// Only this policy [default: both]
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// Replay as fast as the machine can, not in real time
    #[arg(long)]
    fast: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw the bit rates into this file
    #[arg(long, value_name = "FILE.svg", value_parser = crate::missing_feature::plot_file)]
    plot: Option<PathBuf>,
    /// Where the backend's log and database go
    #[arg(long, default_value = "target/bench-bandwidth", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    trial: trial::Options,
}

/// What one video cost with one policy.
#[derive(Debug, Serialize)]
pub struct Measurement {
    /// Name of the file.
    pub video: String,
    /// `best` or `every`.
    pub policy: &'static str,
    /// Length of the video.
    pub seconds: f64,
    /// Pictures of faces that were sent.
    pub faces: u64,
    /// The same by the minute.
    pub faces_per_minute: f64,
    /// Bytes of a picture.
    pub mean_bytes: f64,
    /// Bytes that went into the sockets.
    pub bytes_on_wire: u64,
    /// What was sent beside the pictures, as a share of the bytes on the wire.
    pub overhead: f64,
    /// Bit rate over the length of the video, Mbit/s.
    pub mbps: f64,
    /// How many times less than a video of 4 Mbit/s.
    pub reduction_factor: f64,
    /// How many times less than this file.
    pub reduction_factor_file: f64,
    /// People who walk by, where that is known.
    pub walkers: Option<usize>,
    /// Those of them who are enrolled.
    pub walkers_enrolled: Option<usize>,
    /// Those of these who were recognised at least once.
    pub walkers_recognized: Option<usize>,
}

#[derive(Serialize)]
struct Results<'a> {
    videos: &'a [Measurement],
}

impl Measurement {
    #[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^52")]
    fn new(
        video: &Path,
        policy: Policy,
        replay: &Replay,
        truth: Option<&GroundTruth>,
        enrolled: &BTreeSet<&str>,
    ) -> Result<Self> {
        let file_bytes = fs::metadata(video)?.len();
        let per_second = 8.0 / 1e6 / replay.seconds;
        let mbps = replay.uplink_bytes as f64 * per_second;
        let beside = replay.uplink_bytes.saturating_sub(replay.image_bytes);
        Ok(Self {
            video: video.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            policy: policy.nick(),
            seconds: replay.seconds,
            faces: replay.sent,
            faces_per_minute: replay.sent as f64 * 60.0 / replay.seconds,
            mean_bytes: replay.image_bytes as f64 / replay.sent.max(1) as f64,
            bytes_on_wire: replay.uplink_bytes,
            overhead: beside as f64 / replay.uplink_bytes.max(1) as f64,
            mbps,
            reduction_factor: VIDEO_MBPS / mbps,
            reduction_factor_file: file_bytes as f64 * per_second / mbps,
            walkers: truth.map(GroundTruth::walkers),
            walkers_enrolled: truth.map(|truth| truth.enrolled_walkers(enrolled)),
            walkers_recognized: truth.map(|truth| replay.score(truth, enrolled).recognized_walkers.len()),
        })
    }
}

/// Runs the benchmark.
///
/// # Errors
/// A video is missing or cannot be played, the backend cannot be started, or crops could not be delivered.
pub fn run(options: &Options) -> Result<Outcome> {
    for video in &options.videos {
        Source::File(video.clone()).check()?;
    }
    let say = |line: &str| {
        if !options.json {
            output::line(line);
        }
    };
    let Some(trial) = Trial::start(&options.trial, &options.out, &say)? else {
        return Ok(Outcome::Interrupted);
    };
    let policies = match options.policy {
        Some(policy) => vec![policy],
        None => vec![Policy::Every, Policy::Best],
    };
    let mut measured = Vec::new();
    for video in &options.videos {
        let truth = GroundTruth::beside(video)?;
        for &policy in &policies {
            let Some(replay) = Replay::run(
                video,
                Some(&trial.server.url()),
                options.trial.first_frame_limit(),
                policy,
                !options.fast,
            )?
            else {
                return Ok(Outcome::Interrupted);
            };
            if replay.failed > 0 {
                bail!(
                    "{}: {} crops could not be delivered; see {}",
                    video.display(),
                    replay.failed,
                    options.out.join("backend.log").display()
                );
            }
            measured.push(Measurement::new(video, policy, &replay, truth.as_ref(), &trial.enrolled())?);
        }
    }
    if options.json {
        output::json(&Results { videos: &measured })?;
    } else {
        print(&measured);
    }
    if let Some(path) = &options.plot {
        fs::write(path, plot::bars(&measured)?).map_err(|error| Failure::output(path.display(), error))?;
        say(&format!("\nPlot      {}", path.display()));
    }
    Ok(Outcome::Done)
}

/// A table per video, a column per policy.
fn print(measured: &[Measurement]) {
    for group in measured.chunk_by(|a, b| a.video == b.video) {
        let Some(first) = group.first() else { continue };
        output::line(format!("\n{} ({:.1} s)", first.video, first.seconds));
        let row = |name: &str, value: &dyn Fn(&Measurement) -> String| {
            let values: String = group.iter().map(|m| format!("{:>12}", value(m))).collect();
            output::line(format!("  {name:<38}{values}"));
        };
        row("policy", &|m| m.policy.into());
        row("faces", &|m| m.faces.to_string());
        row("faces per minute", &|m| format!("{:.0}", m.faces_per_minute));
        row("mean size of a face, bytes", &|m| format!("{:.0}", m.mean_bytes));
        row("bytes in the network", &|m| m.bytes_on_wire.to_string());
        row("overhead of the transport, %", &|m| format!("{:.1}", m.overhead * 100.0));
        row("bit rate, Mbit/s", &|m| format!("{:.4}", m.mbps));
        row("reduction factor against 4 Mbit/s", &|m| format!("{:.0}", m.reduction_factor));
        row("reduction factor against the file", &|m| format!("{:.0}", m.reduction_factor_file));
        if let Some(walkers) = first.walkers_enrolled {
            row(&format!("recognised of {walkers} enrolled walkers"), &|m| {
                m.walkers_recognized.unwrap_or_default().to_string()
            });
        }
    }
}
