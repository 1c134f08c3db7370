//! `facepipe demo`: the main job from one end to the other. A backend is started with an empty database, people are
//! enrolled and trained, a video is replayed through the real elements, and the detections that were stored are
//! summed up: who was seen where, when and how often, and what it cost in uplink.

mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use self::report::Report;
use crate::{
    exit::{self, Failure, Outcome},
    output,
    trial::{self, GroundTruth, Policy, Replay, Trial},
    video::source::Source,
};

/// Runs the main job on real input: enrol, train, replay a video, report who was seen.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe demo
  facepipe demo --video entrance.mp4 --faces staff/     (staff/<name>/*.jpg)
  facepipe demo --policy every                          (each face of each frame)

Writes report.json, the backend's log and its database below --out.
Where <video>.json with ground truth lies beside the video, the report also
says how many identities were right.

{}", exit::HELP))]
pub struct Options {
    /// Video file to replay, in real time [default: a crowd with ground truth from FACEPIPE_MIRROR, else the
    /// downloaded street]
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Which faces are uploaded: a few good pictures of each person who walks by, or each face of each frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Where the report, the log and the database go
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    trial: trial::Options,
}

/// Runs the demo and writes `report.json`.
///
/// # Errors
/// Something that the demo needs is missing (the message says how to get it), or a part of it fails.
pub fn run(options: &Options) -> Result<Outcome> {
    let video = options.video.clone().or_else(default_video).ok_or_else(|| {
        let how = "run `facepipe models fetch`, set FACEPIPE_MIRROR, or name one with --video";
        Failure::Input(format!("no video to replay: {how}"))
    })?;
    Source::File(video.clone()).check()?;
    let truth = GroundTruth::beside(&video)?;
    output::line(format!("Video     {}", video.display()));
    let Some(trial) = Trial::start(&options.trial, &options.out, &|line| output::line(line))? else {
        return Ok(Outcome::Interrupted);
    };
    let Some(replay) = Replay::run(&video, &trial, options.policy, true)? else {
        return Ok(Outcome::Interrupted);
    };
    let last_seen = trial.server.last_seen(trial.enrolled().into_iter())?;
    let report = Report::new(&video, &trial, options.policy, &replay, truth.as_ref());
    drop(trial);
    report.print(&last_seen);
    let path = options.out.join("report.json");
    report.write(&path)?;
    output::line(format!("\nReport    {}", path.display()));
    if replay.failed > 0 {
        bail!(
            "{} crops could not be delivered; see {}",
            replay.failed,
            options.out.join("backend.log").display()
        );
    }
    Ok(Outcome::Done)
}

fn default_video() -> Option<PathBuf> {
    let places = [Some(trial::assets()), trial::mirror()].into_iter().flatten();
    let crowd = places.clone().map(|place| place.join("videos/crowd-medium-1080p6.mp4"));
    let street = places.map(|place| place.join("videos/street-1080p.mp4"));
    crowd.chain(street).find(|path| path.is_file())
}
