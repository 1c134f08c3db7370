//! `facepipe recognize video` and `facepipe recognize camera`: recognises people in a recording, a stream or a camera's
//! video.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use gst::prelude::*;
use gst_app::AppSink;
use gstfacepipe::results::RecognitionResult;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    annotate::{self, Draft, FacesByTime, VideoFile},
    report::{Decision, FaceRecord, Faces, Report, ReportFile, TrackUpdate},
    requests::{Crop, CropResult, RequestPool},
};
use crate::{
    client::{self, ClientError},
    connection::Connection,
    exit::{self, Failure, Outcome},
    output,
    trial::Policy,
    video::{
        self, Shared,
        faces::FaceOptions,
        lock,
        panel::{self, Panel},
        player::Player,
        source::Source,
        window::{self, Window},
    },
};

/// Timeout for a crop or a result before the pipeline is polled.
const WAIT: Duration = Duration::from_millis(20);

/// Time limit for the last results after an interrupt or the end of a live source.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Recognises people in a recording or a stream.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe recognize video entrance.mp4
  facepipe recognize video entrance.mp4 --report who.csv --output annotated.mp4
  facepipe recognize video entrance.mp4 --policy every --target-fps 5 --parallel 4 --json
  facepipe recognize video rtsp://192.168.1.20/stream1 --seconds 60

{}

{}", LEGEND, exit::HELP))]
#[group(id = "recognize_video")]
pub struct VideoOptions {
    /// A file, an address (rtsp://…, http://…) or a camera (/dev/video0)
    #[arg(value_name = "SRC")]
    source: Source,
    #[command(flatten)]
    common: Common,
}

/// Recognises people in front of a camera.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe recognize camera
  facepipe recognize camera /dev/video2 --min-size 60 --parallel 4
  facepipe recognize camera --no-window --seconds 60 --report who.json
  facepipe recognize camera rtsp://192.168.1.20/stream1 --output seen.mp4       (until Ctrl-C)

{}

{}", LEGEND, exit::HELP))]
#[group(id = "recognize_camera")]
pub struct CameraOptions {
    /// A camera, an address (rtsp://…, http://…) or a file
    #[arg(value_name = "SRC", default_value = "/dev/video0")]
    source: Source,
    #[command(flatten)]
    common: Common,
}

const LEGEND: &str = "\
The window and --output show each face in one of four states:
  no box   not detected, or outside --min-size, --max-size or --min-confidence
  red      detected locally, but not (yet) confirmed by the server
  blue     an unknown face
  green    recognised, with the name
A second window shows the latest crops that were sent. Without a screen there are
no windows. Closing the first window ends the program like Ctrl-C.

A recording is processed completely; it waits for a slow or unavailable server
(up to --timeout) and, with a window, plays at its own speed. For --output it is
played a second time, so that each face has its name from its first frame on. A
live source does not wait: frames that arrive too fast are not searched, and
crops that arrive too fast are not sent.";

#[derive(Debug, Args)]
#[group(id = "recognize_common")]
struct Common {
    /// Send the best crops of each person, or every face of every frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Number of concurrent requests
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Write an annotated video, MP4 without sound
    #[arg(long, value_name = "FILE.mp4")]
    output: Option<VideoFile>,
    /// Write a report of every face sent: time, track, box, score, decision, name
    #[arg(long, value_name = "FILE.json|csv")]
    report: Option<ReportFile>,
    /// Open no window
    #[arg(long)]
    no_window: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faces: FaceOptions,
    #[command(flatten)]
    connection: Connection,
}

/// Runs `recognize video`.
///
/// # Errors
/// The source cannot be read, the server cannot be reached or refuses the token, or an output cannot be written.
pub fn video(options: &VideoOptions) -> Result<Outcome> {
    run(&options.source, &options.common)
}

/// Runs `recognize camera`.
///
/// # Errors
/// As [`video`].
pub fn camera(options: &CameraOptions) -> Result<Outcome> {
    run(&options.source, &options.common)
}

fn run(source: &Source, options: &Common) -> Result<Outcome> {
    source.check()?;
    if let Some(report) = &options.report {
        report.check()?;
    }
    let draft = options.output.as_ref().map(VideoFile::begin).transpose()?;
    let pool = RequestPool::new(options.connection.settings()?, source.is_live())?;

    let mut recognition = Recognition::new(source, options, pool, draft.as_ref())?;
    let started = recognition.player.start();
    if started.is_ok() {
        recognition.play();
    }
    let finished = started.and_then(|()| recognition.player.finish());
    let position = recognition.player.position();
    let Recognition { player, faces, drawn, unanswered, .. } = recognition;
    let track_results = faces.track_results().clone();
    let report = Report::new(source, &player, faces, unanswered, matches!(finished, Ok(true)));
    drop(player);
    if let Some(file) = &options.report {
        file.write(&report)?;
    }
    if options.json {
        output::json(&report)?;
    } else {
        report.print();
    }

    let mut interrupted = match finished {
        Ok(interrupted) => interrupted,
        Err(failure) => {
            // The video up to the camera's failure is complete.
            if let Some(draft) = draft.filter(|_| source.is_live() && !is_output_failure(&failure)) {
                draft.publish()?;
            }
            return Err(failure);
        }
    };
    if let Some(draft) = draft {
        if !source.is_live() {
            let until =
                if interrupted { Some(position + gst::ClockTime::NSECOND) } else { options.faces.until() };
            let drawn = std::mem::take(&mut *lock(&drawn));
            interrupted |= annotate::draw_boxes(source, until, &draft, drawn, &track_results, interrupted)?;
        }
        draft.publish()?;
    }
    if interrupted {
        return Ok(Outcome::Interrupted);
    }
    Ok(if report.refused > 0 { Outcome::Partial } else { Outcome::Done })
}

fn is_output_failure(failure: &anyhow::Error) -> bool {
    failure.chain().any(|cause| matches!(cause.downcast_ref(), Some(Failure::Output(_))))
}

struct Recognition<'a> {
    options: &'a Common,
    live: bool,
    player: Player,
    crops: AppSink,
    /// Draws boxes in the window or a live recording.
    overlay: Option<gst::Element>,
    window: Option<Window>,
    panel: Option<Panel>,
    /// Faces for drawing after the end.
    drawn: Shared<FacesByTime>,
    /// Crops not sent yet, oldest first.
    waiting: VecDeque<Crop>,
    pool: RequestPool,
    faces: Faces,
    /// Number of crops without a result.
    unanswered: usize,
    /// Whether the last request did not reach the server.
    is_server_away: bool,
}

impl<'a> Recognition<'a> {
    fn new(source: &Source, options: &'a Common, pool: RequestPool, draft: Option<&Draft>) -> Result<Self> {
        let live = source.is_live();
        let (window, panel) = if window::wanted(options.no_window) {
            (Some(Window::open("")?), Some(Panel::open("red")?))
        } else {
            (None, None)
        };
        let live_draft = draft.filter(|_| live);
        let is_drawn = window.is_some() || live_draft.is_some();
        let mut tail = String::from(
            "tee name=found found. ! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! \
             facepipe-facecrop name=crop min-size=1 ! \
             appsink name=crops sync=false async=false max-buffers=16",
        );
        if is_drawn {
            // Screen and encoder must not block the detection of a live source.
            let leaky = if live { "leaky=downstream" } else { "" };
            let queue = format!("queue {leaky} max-size-buffers=4 max-size-bytes=0 max-size-time=0");
            tail += &format!(
                " found. ! {queue} ! facepipe-faceoverlay name=overlay unanswered=red ! tee name=drawn"
            );
            if window.is_some() {
                // A recording is played at its own speed.
                tail += &format!(
                    " drawn. ! {queue} ! appsink name=view async=false sync={} max-buffers=2 drop={live}",
                    !live
                );
            }
            if live_draft.is_some() {
                tail += &format!(" drawn. ! {queue} ! {}", annotate::writer(true));
            }
        }
        let mut player = Player::of_faces(source, &options.faces, "Recognising", &tail)?;
        player.element("crop")?.set_property_from_str("policy", options.policy.nick());
        if let Some(draft) = live_draft {
            player.write(draft.path(), draft.target())?;
        }
        if let Some(window) = window.clone() {
            video::each_sample(&video::appsink(player.element("view")?)?, move |frame| window.show(frame));
        }
        let drawn = Shared::<FacesByTime>::default();
        if draft.is_some() && !live {
            annotate::record_faces(&player.element("track")?, &drawn)?;
        }
        Ok(Self {
            options,
            live,
            crops: video::appsink(player.element("crops")?)?,
            overlay: if is_drawn { Some(player.element("overlay")?) } else { None },
            player,
            window,
            panel,
            drawn,
            waiting: VecDeque::new(),
            pool,
            faces: Faces::default(),
            unanswered: 0,
            is_server_away: false,
        })
    }

    /// Plays to the end and waits for the last results. Failures are stored in the player.
    fn play(&mut self) {
        let mut ended: Option<Instant> = None;
        loop {
            if self.player.step(Duration::ZERO) {
                ended.get_or_insert_with(Instant::now);
            }
            let drained = match self.process_pending() {
                Ok(drained) => drained,
                Err(error) => {
                    self.player.fail(error);
                    false
                }
            };
            if self.window.as_ref().is_some_and(Window::is_closed) {
                self.player.end();
            }
            if let Some(ended) = ended {
                let is_urgent = self.live || self.player.is_urgent();
                if drained || (is_urgent && ended.elapsed() > DRAIN_TIMEOUT) {
                    break;
                }
            }
            self.player.say(format!("{} frames, {} faces", self.player.frames(), self.faces.len()));
        }
        self.unanswered += self.waiting.len() + self.pool.in_flight();
    }

    /// Takes crops, submits requests and collects results, waiting briefly. Returns whether nothing is pending.
    fn process_pending(&mut self) -> Result<bool> {
        let parallel = usize::from(self.options.parallel);
        // A recording waits for a slow server: the pipeline blocks.
        let mut received = false;
        // After a failure, nothing more is sent.
        let is_urgent = self.live || self.player.has_failed();
        if is_urgent || self.waiting.is_empty() {
            let wait =
                if self.pool.is_idle() { gst::ClockTime::try_from(WAIT)? } else { gst::ClockTime::ZERO };
            while let Some(sample) =
                self.crops.try_pull_sample(if received { gst::ClockTime::ZERO } else { wait })
            {
                received = true;
                self.waiting.push_back(self.crop(&sample)?);
                if !is_urgent {
                    break;
                }
            }
        }
        let capacity = if self.player.has_failed() { 0 } else { parallel };
        while is_urgent && self.waiting.len() > capacity {
            self.waiting.pop_front();
            self.unanswered += 1;
        }
        while self.pool.in_flight() < parallel
            && let Some(crop) = self.waiting.pop_front()
        {
            if let Some(panel) = &mut self.panel {
                panel.add(crop.track, &crop.picture)?;
            }
            self.pool.submit(crop);
        }
        let wait = if received || self.pool.is_idle() { Duration::ZERO } else { WAIT };
        if let Some(result) = self.pool.next_result(wait) {
            self.add_result(result)?;
            while let Some(result) = self.pool.next_result(Duration::ZERO) {
                self.add_result(result)?;
            }
        }
        if let Some(panel) = &self.panel {
            panel.poll();
        }
        Ok(!received && self.waiting.is_empty() && self.pool.is_idle())
    }

    fn crop(&self, sample: &gst::Sample) -> Result<Crop> {
        let buffer = sample.buffer().context("a sample without a buffer")?;
        let facts = gstfacepipe::roi::crop_metadata(buffer).context("a crop without its metadata")?;
        let face = facts.face;
        let captured_at = match facts.captured_at.filter(|_| self.live) {
            Some(since_epoch) => Some((OffsetDateTime::UNIX_EPOCH + since_epoch).format(&Rfc3339)?),
            None => None,
        };
        let time = facts.running_time.unwrap_or_default();
        Ok(Crop {
            seconds: (time.as_secs_f64() * 1000.0).round() / 1000.0,
            captured_at,
            track: face.track_id,
            bounding_box: face.bounding_box.edges(),
            score: (face.confidence * 10_000.0).round() / 10_000.0,
            picture: buffer.map_readable()?.to_vec().into(),
        })
    }

    fn add_result(&mut self, (crop, answer): CropResult) -> Result<()> {
        let (decision, known) = match answer {
            Ok(faces) => {
                if std::mem::take(&mut self.is_server_away) {
                    self.player.print("The server answers again.");
                }
                decision(&faces)
            }
            Err(error) if error.is_request_error() => {
                self.player.print(&format!("A picture was refused: {error}"));
                (Decision::Refused, None)
            }
            // A camera continues; the next request may succeed.
            Err(error) if self.live && !matches!(error, ClientError::Unauthorized { .. }) => {
                self.unanswered += 1;
                if !std::mem::replace(&mut self.is_server_away, true) {
                    self.player.print(&format!("Going on without answers: {error}"));
                }
                return Ok(());
            }
            Err(error) => {
                self.unanswered += 1;
                return Err(error.into());
            }
        };
        let seconds = crop.seconds;
        let Some(TrackUpdate { track, result, identity_changed }) =
            self.faces.add(FaceRecord::new(crop, decision, known))
        else {
            return Ok(());
        };
        if let Some(panel) = &self.panel {
            panel.set_result(track, result)?;
        }
        if let Some(overlay) = &self.overlay {
            panel::set_result(overlay, track, result);
        }
        if let RecognitionResult::Known { label, confidence } = result
            && identity_changed
            && !self.options.json
        {
            self.player.line(format!("{seconds:>9.2} s  #{track:<4} {label} ({:.0} %)", confidence * 100.0));
        }
        Ok(())
    }
}

/// Returns decision, name and confidence for the largest face of a crop; its margin may contain a neighbour.
fn decision(faces: &[client::Face]) -> (Decision, Option<(String, f32)>) {
    let Some(face) = client::Face::largest(faces) else { return (Decision::NoFace, None) };
    match (face.name(), &face.top_prediction) {
        (Some(name), Some(top)) => (Decision::Known, Some((name.to_owned(), top.confidence))),
        _ => (Decision::Unknown, None),
    }
}
