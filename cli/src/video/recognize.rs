//! `facepipe recognize video` and `facepipe recognize camera`: who is seen in a recording, a stream or before a camera.

use std::{
    collections::VecDeque,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use clap::Args;
use gst::prelude::*;
use gst_app::{AppSink, AppSinkCallbacks};
use gstfacepipe::{results::Verdict, roi};
use tempfile::NamedTempFile;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    annotate::{self, Draft, Drawn, VideoFile},
    faces::{FaceOptions, Shared, lock},
    index::Edges,
    panel::Panel,
    player::{self, Part, Player},
    report::{Decision, Face, Faces, ReportFile, Summary},
    source::Source,
    window::{self, Window},
};
use crate::{
    client::{self, Client, ClientError},
    connection::Connection,
    exit::{self, Outcome},
    output, runtime,
    trial::Policy,
};

/// How often the pipeline is looked at.
const WAIT: Duration = Duration::from_millis(50);

/// How long a recording waits for a server that has gone away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Crops of a recording that wait for the server; then the recording does.
const QUEUE: u32 = 64;

/// How long the last answers of a recording may take, seconds: a slow server is waited for.
const LAST_ANSWERS: u32 = 24 * 3600;

/// The same for a live source, and wherever somebody waits for the end.
const LAST_ANSWERS_SOON: u32 = 5;

/// How long a crop waits for others to share its request, milliseconds.
const BATCH_DELAY: u32 = 200;
const LIVE_BATCH_DELAY: u32 = 20;

/// Crops that are remembered until their answers come, at most; only those of a live source can be that many.
const MAX_WAITING: usize = 4096;

/// Asks the server who is seen in a recording or a stream.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe recognize video entrance.mp4
  facepipe recognize video entrance.mp4 --no-window --report who.csv --output annotated.mp4
  facepipe recognize video entrance.mp4 --policy every --target-fps 5 --parallel 4 --json
  facepipe recognize video rtsp://192.168.1.20/stream1 --store --camera-id gate-1 --location Lobby

{}

{}", LEGEND, exit::HELP))]
#[group(id = "recognize_video")]
pub struct VideoOptions {
    /// File, address (rtsp://, http://, https://) or camera (/dev/videoN)
    #[arg(value_name = "SRC")]
    source: Source,
    /// When a recording was begun (RFC 3339, 2024-05-06T07:08:09Z), for the date of each face
    #[arg(long, value_name = "TIME", value_parser = date)]
    capture_start: Option<OffsetDateTime>,
    #[command(flatten)]
    common: Common,
}

/// Asks the server who stands before a camera.
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
    /// Camera (/dev/videoN), address (rtsp://, http://, https://) or file
    #[arg(value_name = "SRC", default_value = "/dev/video0")]
    source: Source,
    #[command(flatten)]
    common: Common,
}

const LEGEND: &str = "\
The window and --output show each face in one of four states:
  no box   not detected, or beyond --min-size, --max-size or --min-confidence
  red      a face for the detector here; the server has not said so, or says no
  blue     a face, of nobody whom the server knows
  green    recognised, with the name
A second window shows the latest crops as they were sent. Without a screen
there are no windows.

A recording is processed whole, and waits for a server that is slow; with a
window it is played at its own speed. For --output it is played a second time,
so that each face has its name from its first frame on. A live source waits for
nobody: frames that come faster than they can be searched pass unsearched. To
close the window ends the program in good order, as Ctrl-C does.";

#[derive(Debug, Args)]
#[group(id = "recognize_common")]
struct Common {
    /// Which faces are sent: a few good pictures of each person who passes, or each face of each frame
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Requests at a time
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Have the server store a detection of each face
    #[arg(long)]
    store: bool,
    /// With --store: the camera's name [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    camera_id: Option<String>,
    /// With --store: the camera's place
    #[arg(long, default_value = "", value_name = "PLACE")]
    location: String,
    /// Write the video with boxes and names, MP4 without sound
    #[arg(long, value_name = "FILE.mp4")]
    output: Option<VideoFile>,
    /// Write every face that was sent: time, track, box, score, decision, name
    #[arg(long, value_name = "FILE.json|csv")]
    report: Option<ReportFile>,
    /// Show nothing
    #[arg(long)]
    no_window: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    faces: FaceOptions,
    #[command(flatten)]
    connection: Connection,
}

fn date(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|error| format!("{error}; expected a time in RFC 3339 form, as 2024-05-06T07:08:09Z"))
}

/// Runs `recognize video`.
///
/// # Errors
/// The source cannot be read, the server cannot be reached or refuses the token, or an output cannot be written.
pub fn video(options: &VideoOptions) -> Result<Outcome> {
    run(&options.source, options.capture_start, &options.common)
}

/// Runs `recognize camera`.
///
/// # Errors
/// As [`video`].
pub fn camera(options: &CameraOptions) -> Result<Outcome> {
    run(&options.source, None, &options.common)
}

fn run(source: &Source, capture_start: Option<OffsetDateTime>, options: &Common) -> Result<Outcome> {
    source.check()?;
    if let Some(report) = &options.report {
        report.check()?;
    }
    let draft = options.output.as_ref().map(VideoFile::begin).transpose()?;
    let settings = options.connection.settings()?;
    // Better now than after the first minutes.
    runtime()?.block_on(async {
        Client::new(&settings)?.receive_only(Bytes::from_static(b"x")).await.map_err(anyhow::Error::from)
    })?;
    player::prepare()?;

    let mut recognition = Recognition::new(source, capture_start, options, &settings, draft.as_ref())?;
    let begun = recognition.player.start();
    if begun.is_ok() {
        recognition.play(&settings.server);
    }
    let counts = recognition.player.counts();
    let (seconds, elapsed) = (recognition.player.seconds(), recognition.player.elapsed());
    let stats: gst::Structure = recognition.player.element("upload")?.property("stats");
    let finished = begun.and_then(|()| recognition.player.finish());
    let Recognition { faces, drawn, .. } = recognition;
    let offered: u64 = ["sent", "failed", "dropped", "queued"]
        .into_iter()
        .filter_map(|name| stats.get::<u64>(name).ok())
        .sum();
    let summary = Summary {
        source: source.to_string(),
        frames: counts.frames,
        searched: counts.searched,
        late: counts.late,
        faces: faces.len(),
        known: faces.count(Decision::Known),
        unknown: faces.count(Decision::Unknown),
        no_face: faces.count(Decision::NoFace),
        refused: faces.count(Decision::Refused),
        unanswered: offered.saturating_sub(u64::try_from(faces.len())?),
        seconds,
        elapsed_seconds: elapsed.as_secs_f64(),
        interrupted: matches!(finished, Ok(true)),
        people: faces.people(),
    };
    if let Some(report) = &options.report {
        report.write(&summary, &faces)?;
    }
    if options.json {
        output::json(&summary)?;
    } else {
        summary.print();
        if let Some(report) = &options.report {
            output::line(format!("\nReport    {}", report.path().display()));
        }
    }
    let mut interrupted = match finished {
        Ok(interrupted) => interrupted,
        Err(failure) => {
            // What was seen of a camera until then is whole.
            if let Some(draft) = draft.filter(|_| source.is_live() && seconds > 0.0 && !is_output(&failure)) {
                draft.publish()?;
            }
            return Err(failure);
        }
    };
    if let Some(draft) = draft {
        if !source.is_live() {
            let until =
                if interrupted { part_until(seconds) } else { Part::first(options.faces.seconds).until };
            let drawn = std::mem::take(&mut *lock(&drawn));
            interrupted |= annotate::draw(source, until, &draft, drawn, faces.verdicts(), interrupted)?;
        }
        draft.publish()?;
    }
    if interrupted {
        return Ok(Outcome::Interrupted);
    }
    Ok(if summary.refused > 0 { Outcome::Partly } else { Outcome::Done })
}

fn is_output(failure: &anyhow::Error) -> bool {
    failure.chain().any(|cause| matches!(cause.downcast_ref(), Some(exit::Failure::Output(_))))
}

/// The end of what was played, with the frame that was last.
fn part_until(seconds: f64) -> Option<gst::ClockTime> {
    let last = gst::ClockTime::try_from(Duration::try_from_secs_f64(seconds).ok()?).ok()?;
    Some(last.saturating_add(gst::ClockTime::from_nseconds(1)))
}

/// A crop on its way to the server.
struct Waiting {
    track: Option<i32>,
    face: Edges,
    score: f64,
    seconds: f64,
}

struct Recognition<'a> {
    options: &'a Common,
    player: Player,
    upload: gst::Element,
    /// Whether faces have a date.
    dated: bool,
    live: bool,
    window: Option<Window>,
    panel: Option<Panel>,
    waiting: Shared<VecDeque<Waiting>>,
    /// Crops that nobody has looked at yet, for the second window.
    fresh: Shared<Vec<(i32, Bytes)>>,
    drawn: Shared<Drawn>,
    faces: Faces,
    away: Option<(Instant, String)>,
    /// Certificates to trust, as the element takes them.
    certificates: Option<NamedTempFile>,
}

impl<'a> Recognition<'a> {
    fn new(
        source: &Source,
        capture_start: Option<OffsetDateTime>,
        options: &'a Common,
        settings: &client::Settings,
        draft: Option<&Draft>,
    ) -> Result<Self> {
        let live = source.is_live();
        let (window, panel) = if window::wanted(options.no_window) {
            (Some(Window::open("")?), Some(Panel::open("red")?))
        } else {
            (None, None)
        };
        let inline_draft = draft.filter(|_| live);
        let mut tail = String::from(
            "tee name=found found. ! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! \
             facepipe-facecrop name=crop ! facepipe-facesink-http name=upload sync=false async=false",
        );
        if window.is_some() || inline_draft.is_some() {
            // The screen and the encoder of a live source never keep the search for faces waiting.
            let leaky = if live { "leaky=downstream" } else { "" };
            let queue = format!("queue {leaky} max-size-buffers=4 max-size-bytes=0 max-size-time=0");
            tail += &format!(" found. ! {queue} ! facepipe-faceoverlay unanswered=red ! tee name=drawn");
            if window.is_some() {
                // A recording is shown at its own speed.
                tail += &format!(
                    " drawn. ! {queue} ! appsink name=view async=false sync={} max-buffers=2 drop={live}",
                    !live
                );
            }
            if inline_draft.is_some() {
                tail += &format!(" drawn. ! {queue} ! {}", annotate::writer(true)?);
            }
        }
        let player = Player::of_faces(
            source,
            &options.faces,
            Part::first(options.faces.seconds),
            "Recognising",
            &tail,
        )?;
        if let Some(draft) = inline_draft {
            player.element("output")?.set_property("location", draft.path());
        }
        if let Some(window) = &window {
            let view = player
                .element("view")?
                .downcast::<AppSink>()
                .map_err(|_| anyhow!("the view is no appsink"))?;
            let window = window.clone();
            let show = move |sink: &AppSink| {
                window.show(&sink.pull_sample().map_err(|_| gst::FlowError::Eos)?);
                Ok(gst::FlowSuccess::Ok)
            };
            view.set_callbacks(AppSinkCallbacks::builder().new_sample(show).build());
        }
        let drawn = Shared::<Drawn>::default();
        if draft.is_some() && !live {
            annotate::remember(&player.element("track")?, &drawn)?;
        }
        let certificates = match &settings.ca {
            Some(pem) => {
                let mut file = NamedTempFile::new().context("no temporary file for the certificates")?;
                file.write_all(pem)?;
                Some(file)
            }
            None => None,
        };
        let upload = player.element("upload")?;
        let recognition = Self {
            options,
            dated: live || capture_start.is_some(),
            live,
            window,
            panel,
            waiting: Shared::default(),
            fresh: Shared::default(),
            drawn,
            faces: Faces::default(),
            away: None,
            certificates,
            upload,
            player,
        };
        recognition.configure(settings, capture_start)?;
        recognition.watch_crops()?;
        Ok(recognition)
    }

    fn configure(&self, settings: &client::Settings, capture_start: Option<OffsetDateTime>) -> Result<()> {
        let Self { options, upload, live, .. } = self;
        let crop = self.player.element("crop")?;
        crop.set_property_from_str("policy", options.policy.nick());
        // The detector's own limit holds already.
        crop.set_property("min-size", 1_u32);
        let client::Settings { server, token, answer_limit, .. } = settings;
        upload.set_property("backend-url", server);
        upload.set_property("token", token.as_deref());
        if let Some(file) = &self.certificates {
            upload.set_property("ca-file", file.path().display().to_string());
        }
        upload.set_property_from_str("endpoint", if options.store { "store-results" } else { "get-results" });
        upload.set_property("camera-id", options.camera_id.as_deref());
        upload.set_property("camera-location", &options.location);
        upload.set_property("workers", u32::from(options.parallel));
        upload.set_property("timeout", u32::try_from(answer_limit.as_secs()).unwrap_or(u32::MAX).max(1));
        upload.set_property("batch-delay", if *live { LIVE_BATCH_DELAY } else { BATCH_DELAY });
        upload.set_property("eos-timeout", if *live { LAST_ANSWERS_SOON } else { LAST_ANSWERS });
        upload.set_property("stats-interval", 0_u32);
        if !live {
            upload.set_property("max-queue", QUEUE);
            upload.set_property_from_str("drop-policy", "block");
            let start = capture_start.unwrap_or_else(OffsetDateTime::now_utc);
            upload.set_property("capture-start", start.format(&Rfc3339)?);
        }
        Ok(())
    }

    /// Remembers each crop until its answer comes, for what the answer does not repeat.
    fn watch_crops(&self) -> Result<()> {
        let pad = self.upload.static_pad("sink").context("a sink without a pad")?;
        let (waiting, fresh) = (self.waiting.clone(), self.fresh.clone());
        let looked_at = self.panel.is_some();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer()
                && let Some(facts) = roi::crop_facts(buffer)
            {
                let picture = || {
                    buffer
                        .map_readable()
                        .ok()
                        .map(|bytes| Bytes::copy_from_slice(&bytes))
                        .filter(|_| looked_at)
                };
                if let Some((track, picture)) = facts.face.track_id.zip(picture()) {
                    lock(&fresh).push((track, picture));
                }
                let mut waiting = lock(&waiting);
                waiting.push_back(Waiting {
                    track: facts.face.track_id,
                    face: Edges::of(&facts.face),
                    score: facts.face.confidence,
                    seconds: facts.running_time.unwrap_or_default().as_secs_f64(),
                });
                if waiting.len() > MAX_WAITING {
                    waiting.pop_front();
                }
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }

    /// Plays to the end. What fails is the player's.
    fn play(&mut self, server: &str) {
        let mut messages: Vec<gst::Structure> = Vec::new();
        let mut hurried = false;
        loop {
            let ended = self.player.step(WAIT, |message| messages.push(message.to_owned()));
            for message in messages.drain(..) {
                if let Err(error) = self.take(&message, server) {
                    self.player.fail(error);
                }
            }
            if let Err(error) = self.show() {
                self.player.fail(error);
            }
            if ended {
                return;
            }
            if self.window.as_ref().is_some_and(Window::closed) {
                self.player.end();
            }
            if let Some((since, why)) = &self.away
                && !self.live
                && since.elapsed() > PATIENCE
            {
                let (server, why) = (server.to_owned(), why.clone());
                self.player.fail(ClientError::Unreachable { server, why });
            }
            if self.player.is_urgent() && !std::mem::replace(&mut hurried, true) {
                // A full queue would keep the end waiting.
                self.upload.set_property("eos-timeout", LAST_ANSWERS_SOON);
                self.upload.set_property_from_str("drop-policy", "newest");
            }
            self.player.say(format!("{} frames, {} faces", self.player.frames(), self.faces.len()));
        }
    }

    /// Brings the second window up to date.
    fn show(&mut self) -> Result<()> {
        let fresh = std::mem::take(&mut *lock(&self.fresh));
        if let Some(panel) = &mut self.panel {
            for (track, picture) in fresh {
                panel.add(track, &picture)?;
            }
            panel.closed();
        }
        Ok(())
    }

    fn take(&mut self, message: &gst::StructureRef, server: &str) -> Result<()> {
        match message.name().as_str() {
            "facepipe-result" => self.answered(message),
            "facepipe-rejected" => self.refused(message),
            "facepipe-backend" => {
                let why = || message.get::<String>("reason").unwrap_or_default();
                match message.get::<&str>("state")? {
                    "unauthorized" => {
                        return Err(
                            ClientError::Unauthorized { server: server.into(), message: why() }.into()
                        );
                    }
                    "away" => {
                        self.away =
                            Some((self.away.take().map_or_else(Instant::now, |(since, _)| since), why()))
                    }
                    _ => self.away = None,
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn answered(&mut self, message: &gst::StructureRef) -> Result<()> {
        let faces = message.get::<gst::Array>("faces")?;
        let faces: Vec<gst::Structure> = faces.iter().filter_map(|face| face.get().ok()).collect();
        // A neighbour in the crop's margin is smaller.
        let area = |face: &gst::Structure| {
            let edge = |name| face.get::<f64>(name).unwrap_or(0.0);
            (edge("box-right") - edge("box-left")) * (edge("box-bottom") - edge("box-top"))
        };
        let largest = faces.iter().max_by(|a, b| area(a).total_cmp(&area(b)));
        let mut face = self.face_of(message)?;
        if let Some(answer) = largest {
            face.decision = Decision::Unknown;
            if answer.get::<&str>("decision").is_ok_and(|decision| decision == "known") {
                face.decision = Decision::Known;
                face.name = Some(answer.get("label")?);
                face.confidence = answer.get("confidence").ok();
            }
        }
        self.add(face)
    }

    fn refused(&mut self, message: &gst::StructureRef) -> Result<()> {
        let face = Face { decision: Decision::Refused, ..self.face_of(message)? };
        self.add(face)
    }

    fn add(&mut self, face: Face) -> Result<()> {
        let seconds = face.seconds;
        if let Some((track, verdict)) = self.faces.add(face) {
            if let Some(panel) = &self.panel {
                panel.tell(track, verdict)?;
            }
            if let Verdict::Known { label, confidence } = verdict
                && !self.options.json
            {
                self.player
                    .line(format!("{seconds:>9.2} s  #{track:<4} {label} ({:.0} %)", confidence * 100.0));
            }
        }
        Ok(())
    }

    /// The crop that a message is about, with no face on it as far as is known yet.
    fn face_of(&self, message: &gst::StructureRef) -> Result<Face> {
        let track = Some(message.get::<i32>("track-id")?).filter(|&id| id > 0);
        let edge = |name: &str| message.get::<u32>(name);
        let edges =
            Edges { left: edge("left")?, top: edge("top")?, right: edge("right")?, bottom: edge("bottom")? };
        let mut waiting = lock(&self.waiting);
        let place = waiting.iter().position(|crop| crop.track == track && crop.face == edges);
        let crop =
            place.and_then(|place| waiting.remove(place)).context("an answer to a crop that was not sent")?;
        let captured_at = if self.dated { message.get("captured-at").ok() } else { None };
        Ok(Face {
            seconds: crop.seconds,
            captured_at,
            track,
            face: edges,
            score: crop.score,
            decision: Decision::NoFace,
            name: None,
            confidence: None,
        })
    }
}
