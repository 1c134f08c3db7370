//! `facepipe extract`: the faces of a video as pictures in a folder.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use gst::prelude::*;
use gst_app::AppSink;
use gstfacepipe::{crop::Encoding, roi};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    faces::FaceOptions,
    index::{Earlier, Edges, Entry, Folder, INDEX},
    player::{self, Part, Player},
    source::Source,
};
use crate::{
    exit::{self, Outcome},
    output,
    trial::Policy,
};

/// How long the folder waits for a picture before the pipeline is looked at.
const WAIT: Duration = Duration::from_millis(50);

/// Writes the faces of a video into a folder, as pictures and an index.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe extract entrance.mp4 faces/
  facepipe extract entrance.mp4 faces/ --policy every --target-fps 2 --min-size 60
  facepipe extract rtsp://192.168.1.20/stream1 faces/ --seconds 60
  facepipe extract /dev/video0 faces/ --resume            (until Ctrl-C)

Needs no server. File names carry time, track and score and sort by time:
00012.480_t0007_s0.93.jpg. {INDEX} has a line of JSON for each. A recording is
processed whole and as fast as it can be; of a live source, frames that come
faster than they can be searched are not. After Ctrl-C, --resume goes on where
the index ends.

{}", exit::HELP))]
#[group(id = "extract")]
pub struct Options {
    /// File, camera (/dev/videoN) or address (rtsp://, http://, https://)
    #[arg(value_name = "SRC")]
    source: Source,
    /// The folder, made where there is none
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Which faces become pictures: a few good ones of each person who passes, or each face of each frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Form of the pictures
    #[arg(long, value_enum, default_value_t)]
    encoding: Form,
    /// Quality of the encoding, 1 to 100
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// What is added around a face on each side, as a share of its width and height
    #[arg(long, default_value_t = 0.25, value_name = "SHARE", value_parser = margin)]
    margin: f64,
    /// Shrink pictures whose longer side is more than this, pixels [default: as large as in the video]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..))]
    shrink_to: Option<u16>,
    /// Go on where an earlier run into this folder ended
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Remove what an earlier run wrote into this folder
    #[arg(long)]
    overwrite: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faces: FaceOptions,
}

/// Form of the pictures.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Form {
    /// Larger, and quick
    #[default]
    Jpeg,
    /// A third smaller, ten times the work
    Webp,
}

impl Form {
    fn encoding(self) -> Encoding {
        match self {
            Self::Jpeg => Encoding::Jpeg,
            Self::Webp => Encoding::Webp,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }
}

fn margin(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number from 0 to 10".to_owned())?;
    if (0.0..=10.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 10".into()) }
}

#[derive(Serialize)]
struct Summary {
    source: String,
    folder: String,
    /// Frames of the source, and those of them that were searched.
    frames: u64,
    searched: u64,
    late: u64,
    /// Pictures that were written.
    faces: u64,
    tracks: usize,
    bytes: u64,
    /// Length of what was played, and how long it took.
    seconds: f64,
    elapsed_seconds: f64,
    interrupted: bool,
}

/// Runs the program.
///
/// # Errors
/// The source cannot be read, or the folder cannot be written.
pub fn run(options: &Options) -> Result<Outcome> {
    options.source.check()?;
    player::prepare()?;
    let earlier = match (options.resume, options.overwrite) {
        (true, _) => Earlier::Resume,
        (_, true) => Earlier::Overwrite,
        _ => Earlier::Refuse,
    };
    let folder = Folder::open(&options.folder, earlier)?;
    let mut extraction = Extraction::new(options, folder);
    let mut player = extraction.player()?;
    let crops = player
        .element("crops")?
        .downcast::<AppSink>()
        .map_err(|element| anyhow::anyhow!("{} is no appsink", element.name()))?;
    player.start()?;
    let played = extraction.play(&mut player, &crops);
    let counts = player.counts();
    let summary = Summary {
        source: options.source.to_string(),
        folder: options.folder.display().to_string(),
        frames: counts.frames,
        searched: counts.searched,
        late: counts.late,
        faces: extraction.written,
        tracks: extraction.tracks.len(),
        bytes: extraction.bytes,
        seconds: player.seconds(),
        elapsed_seconds: player.elapsed().as_secs_f64(),
        interrupted: false,
    };
    let interrupted = player.finish();
    let summary = Summary { interrupted: matches!(interrupted, Ok(true)), ..summary };
    if options.json {
        output::json(&summary)?;
    } else {
        summary.print();
    }
    played?;
    if interrupted? {
        eprintln!("Interrupted; --resume goes on from here.");
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Done)
}

struct Extraction<'a> {
    options: &'a Options,
    folder: Folder,
    /// Added to the times of a live source, which begin anew with each run.
    offset: f64,
    first_track: i32,
    written: u64,
    bytes: u64,
    tracks: std::collections::HashSet<i32>,
}

impl<'a> Extraction<'a> {
    fn new(options: &'a Options, folder: Folder) -> Self {
        let offset = if options.source.is_live() { folder.ended_at.unwrap_or(0.0) } else { 0.0 };
        let first_track = folder.last_track;
        Self { options, folder, offset, first_track, written: 0, bytes: 0, tracks: [].into() }
    }

    fn player(&self) -> Result<Player> {
        let Options { source, faces, .. } = self.options;
        let mut part = Part::first(faces.seconds);
        if !source.is_live()
            && let Some(ended_at) = self.folder.ended_at
        {
            // Times are written in full, so that the very frame is found again.
            part.after = gst::ClockTime::try_from(Duration::try_from_secs_f64(ended_at)?).ok();
        }
        let player = Player::of_faces(
            source,
            faces,
            part,
            "Extracting",
            "facepipe-facecrop name=crop ! appsink name=crops sync=false async=false max-buffers=16",
        )?;
        let crop = player.element("crop")?;
        crop.set_property_from_str("policy", self.options.policy.nick());
        crop.set_property("encoding", self.options.encoding.encoding());
        crop.set_property("quality", u32::from(self.options.quality));
        crop.set_property("margin", self.options.margin);
        crop.set_property("max-size", u32::from(self.options.shrink_to.unwrap_or(u16::MAX)));
        // The detector's own limit holds already.
        crop.set_property("min-size", 1_u32);
        Ok(player)
    }

    fn play(&mut self, player: &mut Player, crops: &AppSink) -> Result<()> {
        let wait = gst::ClockTime::try_from(WAIT)?;
        loop {
            while let Some(sample) = crops.try_pull_sample(wait) {
                self.write(&sample)?;
                player.say(format!("{} frames, {} faces", player.frames(), self.written));
                if crops.is_eos() || player.step(Duration::ZERO, |_| ()) {
                    break;
                }
            }
            if player.step(Duration::ZERO, |_| ()) || crops.is_eos() {
                break;
            }
        }
        while let Some(sample) = crops.try_pull_sample(gst::ClockTime::ZERO) {
            self.write(&sample)?;
        }
        Ok(())
    }

    fn write(&mut self, sample: &gst::Sample) -> Result<()> {
        let buffer = sample.buffer().context("a sample without a picture")?;
        let facts = roi::crop_facts(buffer).context("a picture without the facts of its face")?;
        let picture = buffer.map_readable().context("a picture that cannot be read")?;
        let time = facts.running_time.unwrap_or_default();
        let seconds = self.offset + time.as_secs_f64();
        let captured_at = match facts.captured_at.filter(|_| self.options.source.is_live()) {
            Some(since_1970) => Some((OffsetDateTime::UNIX_EPOCH + since_1970).format(&Rfc3339)?),
            None => None,
        };
        let track = facts.face.track_id.map(|id| id.saturating_add(self.first_track));
        let score = facts.face.confidence;
        let entry = Entry {
            file: Entry::name(seconds, track, score, self.options.encoding.extension()),
            seconds,
            captured_at,
            track,
            score,
            face: Edges::of(&facts.face),
            frame: [facts.frame_width, facts.frame_height],
            bytes: u64::try_from(picture.len())?,
            policy: self.options.policy.nick().into(),
        };
        if self.folder.has(&entry.file) {
            return Ok(());
        }
        self.folder.add(&entry, &picture)?;
        self.written += 1;
        self.bytes += entry.bytes;
        self.tracks.extend(track);
        Ok(())
    }
}

impl Summary {
    fn print(&self) {
        let speed = if self.elapsed_seconds > 0.0 { self.seconds / self.elapsed_seconds } else { 0.0 };
        let late = if self.late > 0 { format!(", {} came too fast", self.late) } else { String::new() };
        output::line(format!("Frames    {} ({} searched{late})", self.frames, self.searched));
        output::line(format!(
            "Faces     {} pictures of {} tracks, {} bytes",
            self.faces, self.tracks, self.bytes
        ));
        output::line(format!("Folder    {} ({INDEX})", self.folder));
        output::line(format!(
            "Time      {:.1} s of video in {:.1} s, {speed:.1} times as fast",
            self.seconds, self.elapsed_seconds
        ));
    }
}
