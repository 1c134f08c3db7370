//! `facepipe enroll camera`: enrols one person with sharp, distinct pictures from a camera or a video.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use clap::Args;
use gst_app::AppSink;
use gst_video::{VideoFrameRef, VideoInfo};
use gstfacepipe::{
    crop::{CropSettings, Cropper, Encoding},
    detection_mark, frame,
    roi::{self, FaceRegion},
    timeline::{Timeline, frame_length},
};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::{
    print_training,
    selection::{self, Criteria, FaceSample, Rejection, SampleSelector},
    unknown_person,
    upload::{self, ImageResult, UploadOutcome, quality_summary},
};
use crate::{
    client::{Client, FaceChoice},
    connection::Connection,
    exit::{self, Outcome},
    output, runtime, train,
    video::{
        self,
        faces::{FaceOptions, LeftOut, positive},
        panel::Panel,
        player::Player,
        source::Source,
        window::{self, Window},
    },
};

/// Timeout for a frame before the pipeline is polled.
const WAIT: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// Crop settings of uploaded pictures: with a margin that lets the server's detector find the face.
const UPLOAD_CROP: CropSettings =
    CropSettings { margin: 0.6, min_size: 1, max_size: 640, quality: 95, encoding: Encoding::Jpeg };

/// Default time limit in front of a camera.
const LIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// Enrols one person in front of a camera or in a video.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe enroll camera --id \"Ada Lovelace\" --create --count 20 --train
  facepipe enroll camera /dev/video2 --id ada --count 10 --no-window
  facepipe enroll camera ada.mp4 --id ada --create --apart 0.2

Of several faces in a frame, the main one counts: the nearest to the centre, and
clearly the largest; frames without one are skipped. A frame is sent if the face is
complete, sharp (--min-sharpness), at least --apart seconds after the previous
one, and distinct from all sent before: a correlation of at most --max-likeness
(of 24x24 pixel grey images), or a size that differs by a factor of 1.4. So move
your head, come closer, change the light. Pictures that the server refuses are
not counted and are replaced by others. The window shows the face in a purple
box; a second window shows what is sent.

Ends when --count pictures are enrolled, or with code 3 at the end of the video,
after --seconds or, with a camera, after two minutes. To continue an interrupted
recording, run the command again: pictures the server already has are counted.

{}", exit::HELP))]
#[group(id = "enroll_camera")]
pub struct Options {
    /// A camera, a file or an address (rtsp://…, http://…)
    #[arg(value_name = "SRC", default_value = "/dev/video0")]
    source: Source,
    /// Face ID of the person: 1 to 64 letters, digits, `_`, `-`, `.` and spaces
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Number of pictures to enrol
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// Add the person if the server does not know them yet
    #[arg(long)]
    create: bool,
    /// Train after all pictures are sent, and wait for the new model
    #[arg(long)]
    train: bool,
    /// Minimum time between two pictures, seconds of the video
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS", value_parser = positive)]
    apart: f64,
    /// Minimum sharpness: variance of the Laplacian over the face, scaled to at most 150 pixels
    #[arg(long, default_value_t = 40.0, value_name = "VARIANCE")]
    min_sharpness: f64,
    /// Maximum correlation with a picture sent before, 0 to 1
    #[arg(long, default_value_t = 0.9, value_name = "CORRELATION")]
    max_likeness: f64,
    /// Open no window
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

/// Counters of frames and pictures.
#[derive(Debug, Default, Serialize)]
struct Summary {
    face_id: String,
    /// Whether this run added the person.
    created: bool,
    enrolled: u32,
    /// Pictures that the server already had.
    already_there: u32,
    /// Pictures that the server refused, by reason.
    refused: BTreeMap<UploadOutcome, u32>,
    /// Frames that were searched, and why some were not sent.
    frames: u32,
    frames_without_face: u32,
    frames_with_several_faces: u32,
    frames_cut_off: u32,
    frames_blurred: u32,
    frames_alike: u32,
    frames_too_soon: u32,
    /// Detected faces that were left out.
    left_out: LeftOut,
    /// The enrolled pictures, with quality and warnings.
    images: Vec<ImageResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_version: Option<u64>,
    interrupted: bool,
}

/// Runs the program.
///
/// # Errors
/// The source cannot be read, there is no such person, or the server cannot be reached or refuses the token.
pub fn run(options: &Options) -> Result<Outcome> {
    options.source.check()?;
    let runtime = runtime()?;
    let client = options.connection.client()?;
    let is_known = runtime.block_on(client.person_images(&options.id))?.is_some();
    if !is_known && !options.create {
        return Err(unknown_person(&options.id).into());
    }
    let mut session = Session::new(options, &client, &runtime, is_known)?;
    let played = session.play();
    session.summary.left_out = session.player.counts().left_out;
    let finished = session.player.finish();
    let mut summary = session.summary;
    summary.interrupted = matches!(finished, Ok(true));

    let mut failure = played.err().or_else(|| finished.err());
    let is_complete = summary.total() >= options.count;
    if options.train && summary.enrolled > 0 && failure.is_none() && !summary.interrupted {
        match runtime.block_on(train::begin_and_wait(&client, false)) {
            Ok(Some(job)) => summary.model_version = train::model_version(&job),
            Ok(None) => summary.interrupted = true,
            Err(error) => failure = Some(error),
        }
    }
    if options.json {
        output::json(&summary)?;
    } else {
        summary.print(options.count);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    if summary.interrupted {
        return Ok(Outcome::Interrupted);
    }
    Ok(if is_complete { Outcome::Done } else { Outcome::Partial })
}

struct Session<'a> {
    options: &'a Options,
    client: &'a Client,
    runtime: &'a Runtime,
    player: Player,
    frames: AppSink,
    window: Option<Window>,
    panel: Option<Panel>,
    cropper: Cropper,
    selector: SampleSelector,
    timeline: Timeline,
    summary: Summary,
    /// Whether the server knows the person.
    is_known: bool,
    warned_about_several: bool,
}

impl<'a> Session<'a> {
    fn new(options: &'a Options, client: &'a Client, runtime: &'a Runtime, is_known: bool) -> Result<Self> {
        let live = options.source.is_live();
        let (window, panel) = if window::wanted(options.no_window) {
            (Some(Window::open("")?), Some(Panel::open("purple")?))
        } else {
            (None, None)
        };
        // During an upload, a camera's frames are dropped and a recording waits.
        let mut tail = format!(
            "tee name=found found. ! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! \
             appsink name=frames sync=false async=false max-buffers=1 drop={live}"
        );
        if window.is_some() {
            let leaky = if live { "leaky=downstream" } else { "" };
            tail += &format!(
                " found. ! queue {leaky} max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! \
                 facepipe-faceoverlay unanswered=purple labels=false ! \
                 appsink name=view async=false sync={} max-buffers=2 drop={live}",
                !live
            );
        }
        let player = Player::of_faces(&options.source, &options.faces, "Enrolling", &tail)?;
        let frames = video::appsink(player.element("frames")?)?;
        if let Some(window) = window.clone() {
            video::each_sample(&video::appsink(player.element("view")?)?, move |frame| window.show(frame));
        }
        let criteria = Criteria {
            sharpness: options.min_sharpness,
            similarity: options.max_likeness,
            apart: options.apart,
        };
        Ok(Self {
            options,
            client,
            runtime,
            player,
            frames,
            window,
            panel,
            cropper: Cropper::default(),
            selector: SampleSelector::new(criteria),
            timeline: Timeline::default(),
            summary: Summary { face_id: options.id.clone(), ..Summary::default() },
            is_known,
            warned_about_several: false,
        })
    }

    fn play(&mut self) -> Result<()> {
        self.player.start()?;
        let started = Instant::now();
        let is_limited = self.options.source.is_live() && self.options.faces.until().is_none();
        let mut ended = false;
        loop {
            let sample = self.frames.try_pull_sample(WAIT);
            ended |= self.player.step(Duration::ZERO);
            match &sample {
                Some(sample) if !self.player.is_urgent() => self.process_sample(sample)?,
                Some(_) => {}
                // The last frames may still be queued after the end of the stream.
                None if ended => return Ok(()),
                None => {}
            }
            if let Some(panel) = &self.panel {
                panel.poll();
            }
            let is_late = is_limited && started.elapsed() > LIVE_TIMEOUT;
            let is_unwatched = self.window.as_ref().is_some_and(Window::is_closed);
            if self.summary.total() >= self.options.count || is_late || is_unwatched {
                return Ok(());
            }
            self.player.say(format!("{} of {}", self.summary.total(), self.options.count));
        }
    }

    fn process_sample(&mut self, sample: &gst::Sample) -> Result<()> {
        let buffer = sample.buffer().context("a sample without a frame")?;
        if detection_mark::was_searched(buffer) == Some(false) {
            return Ok(());
        }
        self.summary.frames += 1;
        let faces = roi::faces(buffer);
        let info = VideoInfo::from_caps(sample.caps().context("a sample without caps")?)?;
        let Some(face) = selection::main_face(&faces, [info.width(), info.height()]) else {
            if faces.is_empty() {
                self.summary.frames_without_face += 1;
            } else {
                self.summary.frames_with_several_faces += 1;
                if !std::mem::replace(&mut self.warned_about_several, true) {
                    self.player.print(
                        "Several faces, none of them clearly the main one: such frames are passed over. The person must be \
                         nearest to the camera and to the middle of the picture.",
                    );
                }
            }
            return Ok(());
        };
        if let Some(picture) = self.select_picture(sample, &face)? {
            self.send(picture)?;
        }
        Ok(())
    }

    /// Returns the picture of a frame, unless it is rejected.
    fn select_picture(&mut self, sample: &gst::Sample, face: &FaceRegion) -> Result<Option<Bytes>> {
        let buffer = sample.buffer().context("a sample without a frame")?;
        let info = VideoInfo::from_caps(sample.caps().context("a sample without caps")?)?;
        // Motion JPEG over HTTP has no timestamps, and some cameras restart theirs.
        let running_time = sample
            .segment()
            .and_then(|segment| segment.downcast_ref::<gst::ClockTime>()?.to_running_time(buffer.pts()?));
        let length = frame_length(buffer, Some(info.fps()));
        let moment = self.timeline.advance(running_time.map(Duration::from), length);
        let seconds = moment.time.as_secs_f64();
        let rejection = if face.is_cut(info.width(), info.height()) {
            Rejection::CutOff
        } else if self.selector.is_too_soon(seconds) {
            Rejection::TooSoon
        } else {
            let mapped = VideoFrameRef::from_buffer_ref_readable(buffer, &info)
                .map_err(|_| anyhow!("a frame cannot be mapped for reading"))?;
            let described = frame::borrow_frame(&mapped)?;
            let region = |settings: &CropSettings| {
                settings
                    .region(&face.bounding_box, info.width(), info.height())
                    .context("a face outside its frame")
            };
            let measured = region(&selection::measurement_crop())?;
            let small = self.cropper.crop(&described, &measured, &selection::measurement_crop())?;
            let sample = FaceSample::new(seconds, face, &small, &face.bounding_box.relative_to(&measured));
            match self.selector.accept(sample) {
                Ok(()) => {
                    let picture = self.cropper.crop(&described, &region(&UPLOAD_CROP)?, &UPLOAD_CROP)?;
                    return Ok(Some(picture.encode(&UPLOAD_CROP)?.into()));
                }
                Err(rejection) => rejection,
            }
        };
        let summary = &mut self.summary;
        match rejection {
            Rejection::CutOff => summary.frames_cut_off += 1,
            Rejection::TooSoon => summary.frames_too_soon += 1,
            Rejection::Blurred => summary.frames_blurred += 1,
            Rejection::TooSimilar => summary.frames_alike += 1,
        }
        Ok(None)
    }

    fn send(&mut self, picture: Bytes) -> Result<()> {
        if let Some(panel) = &mut self.panel {
            // Each tile has an id of its own.
            panel.add(Some(i32::try_from(self.summary.frames)?), &picture)?;
        }
        if !self.is_known {
            self.summary.created = self.runtime.block_on(self.client.add_person(&self.options.id))?;
            self.is_known = true;
        }
        match self.runtime.block_on(self.client.add_image(&self.options.id, picture, FaceChoice::Main)) {
            Ok(added) => {
                self.summary.enrolled += 1;
                let number = format!("picture {}", self.summary.total());
                let result = ImageResult::added(number, &added);
                if let Some(warning) = &result.message {
                    self.player.print(&format!("{}: {warning}", result.file));
                }
                self.summary.images.push(result);
                if !self.options.json {
                    self.player.line(format!("{:>5} of {}", self.summary.total(), self.options.count));
                }
            }
            Err(error) => match upload::classify(&error) {
                Some(UploadOutcome::AlreadyThere) => self.summary.already_there += 1,
                Some(outcome) => {
                    self.player.print(&format!("Refused, another one is taken: {error}"));
                    *self.summary.refused.entry(outcome).or_default() += 1;
                }
                None => return Err(error.into()),
            },
        }
        Ok(())
    }
}

impl Summary {
    /// Returns the number of enrolled pictures, including those of earlier runs.
    fn total(&self) -> u32 {
        self.enrolled + self.already_there
    }

    fn print(&self, count: u32) {
        let row = |number: u32, words: &str| {
            if number > 0 {
                output::line(format!("{number:>7}   {words}"));
            }
        };
        if self.created {
            output::line(format!("Added     {}", self.face_id));
        }
        output::line(format!("Enrolled  {} of {count} pictures", self.total()));
        quality_summary(self.images.iter()).iter().for_each(output::line);
        row(self.already_there, UploadOutcome::AlreadyThere.description());
        for (outcome, number) in &self.refused {
            row(*number, &format!("refused by the server: {}", outcome.description()));
        }
        output::line(format!("Frames    {}", self.frames));
        row(self.frames_without_face, "without a face");
        row(self.frames_with_several_faces, "with several faces");
        row(self.frames_cut_off, "with a face that is cut off");
        row(self.frames_blurred, "not sharp");
        row(self.frames_alike, "too much like one that was sent");
        row(self.frames_too_soon, "too soon after the last one");
        self.left_out.summary("--min-size").iter().for_each(output::line);
        print_training(self.model_version, self.enrolled > 0);
    }
}
