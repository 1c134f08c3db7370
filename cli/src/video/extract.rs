//! `facepipe extract`: saves the faces of a video as files.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use gst::prelude::*;
use gst_app::AppSink;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

use super::{
    faces::{FaceOptions, LeftOut},
    player::Player,
    source::Source,
};
use crate::{
    exit::{self, Failure, Outcome},
    output,
    trial::Policy,
};

/// Name of the index, with a line of JSON per face.
const INDEX: &str = "index.jsonl";

/// Timeout for a crop before the pipeline is polled.
const WAIT: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// Saves the faces of a recording, a stream or a camera's video, one file each.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe extract entrance.mp4 faces/
  facepipe extract rtsp://camera/stream faces/ --min-size 60 --target-fps 5
  facepipe extract entrance.mp4 faces/ --policy every --skip-frames 2
  facepipe extract entrance.mp4 faces/ --resume

File names contain time, track and detection score: 00012.480_t0007_s0.93.jpg is
from second 12.48 of the recording; for streams and cameras the name starts with
the time of day, UTC. index.jsonl has a line of JSON per face. Only you can read
the files. A recording is searched completely, as fast as possible; frames of
streams and cameras that arrive too fast are not searched.

{}", exit::HELP))]
#[group(id = "extract")]
pub struct Options {
    /// A file, a camera (/dev/video0) or an address (rtsp://…, http://…)
    #[arg(value_name = "SRC")]
    source: Source,
    /// Folder for the faces; created if missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Save the best crops of each person, or every face of every frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Maximum longer side of a crop including its margin, pixels; larger ones are shrunk
    #[arg(long, default_value_t = 400, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=4096))]
    crop_size: u32,
    /// Continue in a folder that already has faces of the same video
    #[arg(long)]
    resume: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faces: FaceOptions,
}

/// A line of the index.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    file: String,
    /// Time since the start of the video.
    seconds: f64,
    /// Capture time, RFC 3339; only for streams and cameras.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    captured_at: Option<String>,
    /// Id of the track; 0 without one.
    track: i32,
    score: f64,
    /// `[left, top, right, bottom]` in pixels of the frame.
    #[serde(rename = "box")]
    bounding_box: [u32; 4],
    /// Width and height of the frame.
    frame: [u32; 2],
}

#[derive(Serialize)]
struct Report {
    source: String,
    folder: String,
    /// Files written by this run, and files that were already there.
    files: usize,
    already_there: usize,
    tracks: usize,
    /// Detected faces that were left out.
    left_out: LeftOut,
    /// Duration of the video, and time taken.
    seconds: f64,
    took: f64,
    interrupted: bool,
}

/// Runs the program.
///
/// # Errors
/// The source cannot be played, the models are missing, or the folder cannot be written.
pub fn run(options: &Options) -> Result<Outcome> {
    options.source.check()?;
    let mut player = Player::of_faces(
        &options.source,
        &options.faces,
        "Searching",
        "facepipe-facecrop name=crop ! appsink name=faces sync=false async=false max-buffers=16",
    )?;
    let crop = player.element("crop")?;
    crop.set_property_from_str("policy", options.policy.nick());
    // The detector applies the limit.
    crop.set_property("min-size", 1_u32);
    crop.set_property("max-size", options.crop_size);
    let faces = super::appsink(player.element("faces")?)?;
    let mut face_folder = FaceFolder::open(&options.folder, options.resume)?;

    player.start()?;
    let played = play(options.source.is_live(), &mut player, &faces, &mut face_folder);
    let left_out = player.counts().left_out;
    let finished = player.finish();
    played?;
    let interrupted = finished?;
    let report = Report {
        source: options.source.to_string(),
        folder: options.folder.display().to_string(),
        files: face_folder.written,
        already_there: face_folder.earlier.len(),
        tracks: face_folder.tracks.len(),
        left_out,
        seconds: player.seconds(),
        took: player.elapsed().as_secs_f64(),
        interrupted,
    };
    if options.json {
        output::json(&report)?;
    } else {
        let there = if report.already_there > 0 {
            format!(" ({} were there)", report.already_there)
        } else {
            String::new()
        };
        output::line(format!(
            "Faces     {} files of {} tracks in {}{there}",
            report.files, report.tracks, report.folder
        ));
        output::line(format!("Video     {:.1} s in {:.1} s", report.seconds, report.took));
        left_out.summary("--min-size").iter().for_each(output::line);
    }
    Ok(if interrupted { Outcome::Interrupted } else { Outcome::Done })
}

/// Plays to the end or until interrupted.
fn play(live: bool, player: &mut Player, faces: &AppSink, face_folder: &mut FaceFolder) -> Result<()> {
    let mut ended = false;
    loop {
        let sample = faces.try_pull_sample(WAIT);
        ended |= player.step(Duration::ZERO);
        match sample {
            Some(sample) => face_folder.add(live, &sample)?,
            // The last faces may still be queued after the end of the stream.
            None if ended => return Ok(()),
            None => {}
        }
        player.say(format!("{} frames, {} faces", player.frames(), face_folder.written));
    }
}

/// A folder of faces with its index.
struct FaceFolder {
    folder: PathBuf,
    index: File,
    /// Files of earlier runs and of this one.
    earlier: HashSet<String>,
    seen: HashSet<String>,
    tracks: HashSet<i32>,
    written: usize,
}

impl FaceFolder {
    fn open(folder: &Path, resume: bool) -> Result<Self> {
        let failed = |error| Failure::output(folder.display(), error);
        fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join(INDEX);
        let mut earlier = HashSet::new();
        let mut tracks = HashSet::new();
        let mut whole = 0_u64;
        if let Ok(index) = File::open(&path) {
            // An empty index is left by a source that could not be played.
            if !resume && index.metadata().map_err(failed)?.len() > 0 {
                return Err(Failure::Usage(format!(
                    "{} has faces already: take another folder, or go on in it with --resume",
                    folder.display()
                ))
                .into());
            }
            // A truncated last line is written again.
            for line in BufReader::new(index).split(b'\n') {
                let line = line.map_err(failed)?;
                let Ok(entry) = serde_json::from_slice::<Entry>(&line) else { break };
                whole += u64::try_from(line.len())? + 1;
                tracks.insert(entry.track);
                earlier.insert(entry.file);
            }
        }
        let index = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        if index.metadata().map_err(failed)?.len() > whole {
            index.set_len(whole).map_err(failed)?;
        }
        Ok(Self { folder: folder.to_owned(), index, earlier, seen: HashSet::new(), tracks, written: 0 })
    }

    /// Writes a face: first its file, atomically, then its line in the index.
    fn add(&mut self, live: bool, sample: &gst::Sample) -> Result<()> {
        let buffer = sample.buffer().context("a sample without a buffer")?;
        let facts = gstfacepipe::roi::crop_metadata(buffer).context("a crop without its metadata")?;
        let face = facts.face;
        let time = facts.running_time.or(buffer.pts().map(Duration::from)).unwrap_or_default();
        let captured = live.then(|| match facts.captured_at {
            Some(since_epoch) => OffsetDateTime::UNIX_EPOCH + since_epoch,
            None => OffsetDateTime::now_utc(),
        });
        let track = face.track_id.unwrap_or(0);
        let when = match captured {
            Some(captured) => captured.format(format_description!(
                "[year][month][day]T[hour][minute][second].[subsecond digits:3]Z"
            ))?,
            None => format!("{:09.3}", time.as_secs_f64()),
        };
        let stem = format!("{when}_t{track:04}_s{:.2}", face.confidence);
        let name = self.unused_name(&stem);
        self.seen.insert(name.clone());
        // A recording yields the same faces again: skip those of earlier runs.
        if self.earlier.contains(&name) {
            return Ok(());
        }
        let entry = Entry {
            file: name.clone(),
            seconds: (time.as_secs_f64() * 1000.0).round() / 1000.0,
            captured_at: captured.map(|captured| captured.format(&Rfc3339)).transpose()?,
            track,
            score: (face.confidence * 10_000.0).round() / 10_000.0,
            bounding_box: face.bounding_box.edges(),
            frame: [facts.frame_width, facts.frame_height],
        };
        let picture = buffer.map_readable()?;
        self.write(&name, &picture, &entry)
            .map_err(|error| Failure::output(self.folder.join(&name).display(), error))?;
        self.tracks.insert(track);
        self.written += 1;
        Ok(())
    }

    /// Returns a file name that this run has not used; faces without a track may share time and score.
    fn unused_name(&self, stem: &str) -> String {
        let mut name = format!("{stem}.jpg");
        let mut count = 1;
        while self.seen.contains(&name) {
            count += 1;
            name = format!("{stem}_{count}.jpg");
        }
        name
    }

    fn write(&mut self, name: &str, picture: &[u8], entry: &Entry) -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".unfinished-").tempfile_in(&self.folder)?;
        file.write_all(picture)?;
        file.persist(self.folder.join(name)).map_err(|error| error.error)?;
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.index.write_all(&line)
    }
}
