//! `facepipe bench bandwidth`: the uplink that a camera's face crops need, compared with its video, and who is recognised
//! from them.

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
    trial::{self, GroundTruth, Policy, Replay, Trial, VIDEO_MBPS},
    video::source::Source,
};

/// Measures the uplink that the faces of a video need, and how many people are recognised from them.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe bench bandwidth entrance.mp4
  facepipe bench bandwidth crowd-*.mp4 --plot bandwidth.svg
  facepipe bench bandwidth crowd-medium.mp4 --policy best --json

Each video is replayed against a backend of its own, once per policy, in real
time unless --fast is given. Bytes are counted at the sockets: request lines,
headers and bodies, without TCP and IP headers. If there is a ground truth file
<video>.json beside the video, the walkers and those recognised are counted too.

{}", exit::HELP))]
pub struct Options {
    /// Videos to replay
    #[arg(required = true, value_name = "VIDEO")]
    videos: Vec<PathBuf>,
    /// Only this policy [default: both]
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// Replay as fast as possible instead of in real time
    #[arg(long)]
    fast: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Draw the bit rates into this file
    #[arg(long, value_name = "FILE.svg", value_parser = crate::missing_feature::plot_file)]
    plot: Option<PathBuf>,
    /// Folder for the backend's log and database
    #[arg(long, default_value = "target/bench-bandwidth", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    trial: trial::Options,
}

/// The result of one video with one policy.
#[derive(Debug, Serialize)]
pub struct Measurement {
    /// Name of the file.
    pub video: String,
    /// `best` or `every`.
    pub policy: &'static str,
    /// Length of the video.
    pub seconds: f64,
    /// Face crops that were sent.
    pub faces: u64,
    /// The same per minute of video.
    pub faces_per_minute: f64,
    /// Mean size of a crop, bytes.
    pub mean_bytes: f64,
    /// Bytes written to the sockets.
    pub bytes_on_wire: u64,
    /// Share of the bytes on the wire that are not image data.
    pub overhead: f64,
    /// Bit rate over the length of the video, Mbit/s.
    pub mbps: f64,
    /// Factor by which this is less than 4 Mbit/s of video.
    pub reduction_factor: f64,
    /// Factor by which this is less than the bit rate of the file.
    pub reduction_factor_file: f64,
    /// Walkers in the video; none without ground truth.
    pub walkers: Option<usize>,
    /// Walkers who are enrolled.
    pub walkers_enrolled: Option<usize>,
    /// Enrolled walkers who were recognised at least once.
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

/// Prints a table per video with a column per policy.
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
