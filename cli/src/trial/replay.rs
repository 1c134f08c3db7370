//! Replays a video through the real elements, linked into this program, and collects the backend's results.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use facepipe_vision::{BoundingBox, largest_face};
use gst::prelude::*;
use gstfacepipe::roi::{self, CropArea};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{CAMERA_ID, CAMERA_LOCATION, GroundTruth, Score};
use crate::{
    interrupt, progress,
    video::{
        self,
        faces::{Counts, LeftOut},
        source::Source,
    },
};

/// Which faces are uploaded: `facecrop`'s property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Policy {
    /// The best crops of each person
    #[default]
    Best,
    /// Every face of every frame
    Every,
}

impl Policy {
    /// Returns the nick of the property's value.
    pub fn nick(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Every => "every",
        }
    }
}

/// Time limit for uploading the remaining crops after the end of the video, seconds.
const DRAIN_TIMEOUT: u32 = 600;

/// Queue size that holds all crops of a video, however slow the backend is.
const MAX_QUEUE: u32 = 100_000;

/// The result of a replay.
#[derive(Debug)]
pub struct Replay {
    /// Length of the video.
    pub seconds: f64,
    /// Crops that were uploaded.
    pub sent: u64,
    /// Crops that could not be uploaded.
    pub failed: u64,
    /// Request bytes at the sockets.
    pub uplink_bytes: u64,
    /// Bytes of the crops in them.
    pub image_bytes: u64,
    /// Crops in which the backend found no face.
    pub crops_without_face: usize,
    /// Detected faces that were left out.
    pub left_out: LeftOut,
    /// The stored detections.
    pub detections: Vec<Detection>,
    /// Crops of the video.
    pub crops: Crops,
    /// Capture time of the first frame.
    pub started: OffsetDateTime,
}

/// Crops of a replay: totals, and the largest crop of each track.
#[derive(Debug, Default)]
pub struct Crops {
    /// Number of crops.
    pub count: u64,
    /// Bytes of all crops.
    pub bytes: u64,
    /// By track, limited to the first [`MAX_TRACKS`].
    pub by_track: BTreeMap<i32, TrackCrop>,
}

/// The largest crop of a track.
#[derive(Debug)]
pub struct TrackCrop {
    /// Times of the track's first and last crop, seconds since the start of the video.
    pub seconds: [f64; 2],
    /// Time of this crop, seconds since the start of the video.
    pub taken: f64,
    /// Bounds of its face in pixels of the frame.
    pub bounding_box: BoundingBox,
    /// The crop, JPEG.
    pub jpeg: Vec<u8>,
}

/// Maximum number of tracks with a crop.
const MAX_TRACKS: usize = 1000;

impl Crops {
    /// Adds a buffer of `facecrop`.
    fn add(&mut self, buffer: &gst::BufferRef) {
        let (Some(facts), Ok(jpeg)) = (roi::crop_metadata(buffer), buffer.map_readable()) else { return };
        self.count += 1;
        self.bytes += u64::try_from(jpeg.len()).unwrap_or_default();
        let track = facts.face.track_id.unwrap_or_default();
        let seconds = facts.running_time.unwrap_or_default().as_secs_f64();
        let [left, top, right, bottom] = facts.face.bounding_box.edges().map(to_f32);
        let bounding_box = BoundingBox { left, top, right, bottom };
        let area = bounding_box.area();
        let has_room = self.by_track.len() < MAX_TRACKS;
        match self.by_track.get_mut(&track) {
            Some(crop) => {
                crop.seconds = [crop.seconds[0].min(seconds), crop.seconds[1].max(seconds)];
                if area > crop.bounding_box.area() {
                    (crop.taken, crop.bounding_box, crop.jpeg) = (seconds, bounding_box, jpeg.to_vec());
                }
            }
            None if has_room => {
                let seconds = [seconds; 2];
                let crop = TrackCrop { seconds, taken: seconds[0], bounding_box, jpeg: jpeg.to_vec() };
                self.by_track.insert(track, crop);
            }
            None => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "pixels of a frame are far below 2^24")]
fn to_f32(edge: u32) -> f32 {
    edge as f32
}

/// One stored detection.
#[derive(Debug)]
pub struct Detection {
    /// Time since the start of the video.
    pub seconds: f64,
    /// Bounds of the face in pixels of the frame.
    pub bounding_box: BoundingBox,
    /// The name; `None` if unknown.
    pub identity: Option<String>,
    /// Confidence of the name, 0 to 1; 0 if unknown.
    pub confidence: f64,
    /// Track of the crop.
    pub track: i32,
    /// Whether it is the largest face of its crop, and not a neighbour in the margin.
    pub largest: bool,
}

impl Replay {
    /// Plays `video`, in real time or as fast as possible, and uploads faces to `store-results` of `backend` (an address);
    /// without one they are only counted. Returns none if interrupted.
    ///
    /// # Errors
    /// The video cannot be played (missing decoder, not a video), no frame of it comes in time, or an element fails.
    pub fn run(
        video: &Path,
        backend: Option<&str>,
        first_frame_limit: Duration,
        policy: Policy,
        real_time: bool,
    ) -> Result<Option<Self>> {
        // With the precision of stored times.
        let started = OffsetDateTime::now_utc();
        let started = started.replace_millisecond(started.millisecond())?;
        let source = Source::File(video.to_owned());
        source.check()?;
        video::start()?;
        let pipeline = video::pipeline(&format!(
            "{} ! {} ! facepipe-facedetect name=detect ! \
             facepipe-facetrack ! facepipe-facecrop name=crop ! {} name=sink",
            source.description(),
            source.upright(),
            if backend.is_some() { "facepipe-facesink-http" } else { "fakesink" }
        ))?;
        let element = |name: &str| video::element(&pipeline, name);
        source.configure(&element("source")?);
        let crop = element("crop")?;
        crop.set_property_from_str("policy", policy.nick());
        let crops = video::Shared::<Crops>::default();
        let taken = crops.clone();
        let source_pad = crop.static_pad("src").context("facecrop has no source pad")?;
        source_pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                video::lock(&taken).add(buffer);
            }
            gst::PadProbeReturn::Ok
        });
        let sink = element("sink")?;
        sink.set_property("sync", real_time);
        if let Some(backend) = backend {
            sink.set_property("backend-url", backend);
            sink.set_property("camera-id", CAMERA_ID);
            sink.set_property("camera-location", CAMERA_LOCATION);
            sink.set_property("max-queue", MAX_QUEUE);
            sink.set_property("eos-timeout", DRAIN_TIMEOUT);
            sink.set_property("capture-start", started.format(&Rfc3339)?);
        }

        let mut replay = Self {
            seconds: 0.0,
            sent: 0,
            failed: 0,
            uplink_bytes: 0,
            image_bytes: 0,
            crops_without_face: 0,
            left_out: LeftOut::default(),
            detections: Vec::new(),
            crops: Crops::default(),
            started,
        };
        let played = replay.play(&pipeline, &source, first_frame_limit, started);
        let stats: gst::Structure = sink.property("stats");
        replay.left_out = Counts::of(&pipeline).left_out.with_crop_stats(&crop.property("stats"));
        let stopped = video::stop(&pipeline);
        if !played? {
            return Ok(None);
        }
        stopped?;
        replay.crops = std::mem::take(&mut *video::lock(&crops));
        if backend.is_none() {
            replay.image_bytes = replay.crops.bytes;
            return Ok(Some(replay));
        }
        replay.sent = stats.get("sent")?;
        replay.failed = stats.get::<u64>("failed")? + stats.get::<u64>("dropped")?;
        replay.uplink_bytes = stats.get("bytes")?;
        replay.image_bytes = stats.get("image-bytes")?;
        Ok(Some(replay))
    }

    /// Scores the detections against the ground truth.
    pub fn score(&self, truth: &GroundTruth, enrolled: &BTreeSet<&str>) -> Score {
        let mut score = Score::default();
        for detection in &self.detections {
            let identity = detection.identity.as_deref();
            truth.score(&mut score, enrolled, detection.seconds, &detection.bounding_box, identity);
        }
        score
    }

    /// Plays to the end. Returns false if interrupted.
    fn play(
        &mut self,
        pipeline: &gst::Pipeline,
        source: &Source,
        first_frame_limit: Duration,
        started: OffsetDateTime,
    ) -> Result<bool> {
        let bus = pipeline.bus().context("a pipeline without a bus")?;
        let frames = || Counts::of(pipeline).frames;
        let begun = Instant::now();
        let mut played = Duration::ZERO;
        pipeline.set_state(gst::State::Playing)?;
        let bar = progress::bar(0, "Replaying");
        while !interrupt::requested() {
            let message = bus.timed_pop(gst::ClockTime::from_mseconds(200));
            if begun.elapsed() > first_frame_limit && frames() == 0 {
                bar.finish_and_clear();
                return Err(source.no_frame_failure(first_frame_limit).into());
            }
            if let Some(length) = pipeline.query_duration::<gst::ClockTime>() {
                self.seconds = Duration::from(length).as_secs_f64();
                bar.set_length(length.seconds());
            }
            if let Some(position) = pipeline.query_position::<gst::ClockTime>() {
                bar.set_position(position.seconds());
                played = Duration::from(position);
            }
            let Some(message) = message else { continue };
            match message.view() {
                gst::MessageView::Eos(_) => {
                    bar.finish_and_clear();
                    if self.seconds == 0.0 {
                        // Without a known length, for example an animated picture.
                        let played = if played.is_zero() { begun.elapsed() } else { played };
                        self.seconds = played.as_secs_f64();
                    }
                    return Ok(true);
                }
                gst::MessageView::Error(error) => {
                    let (what, details) = (error.error(), error.debug().unwrap_or_default());
                    // Distinguish the source from the sink.
                    let of_sink = message.src().is_some_and(|source| source.name() == "sink");
                    return Err(if of_sink {
                        anyhow!("{source}: {what} ({details})")
                    } else {
                        source.failure(&what, &details).into()
                    });
                }
                gst::MessageView::Warning(warning) => bar.println(format!("Warning: {}", warning.error())),
                // The detector is not the preferred one.
                gst::MessageView::Info(info) if info.error().matches(gst::LibraryError::Settings) => {
                    bar.println(info.error().message());
                }
                gst::MessageView::Element(element) => {
                    if let Some(result) = element.structure().filter(|s| s.name() == "facepipe-result") {
                        self.add_result(result, started)?;
                    }
                }
                _ => {}
            }
        }
        bar.finish_and_clear();
        Ok(false)
    }

    fn add_result(&mut self, result: &gst::StructureRef, started: OffsetDateTime) -> Result<()> {
        let captured = OffsetDateTime::parse(result.get("captured-at")?, &Rfc3339)?;
        let seconds = (captured - started).as_seconds_f64();
        let crop = CropArea::from_structure(result).context("a result without the area of its crop")?;
        let faces = result.get::<gst::Array>("faces")?;
        if faces.is_empty() {
            self.crops_without_face += 1;
        }
        let track = result.get("track-id")?;
        let first = self.detections.len();
        for face in faces.iter() {
            let face: gst::Structure = face.get()?;
            let known = face.get::<&str>("decision").is_ok_and(|decision| decision == "known");
            let identity = if known { Some(face.get::<String>("label")?) } else { None };
            let confidence = if known { face.get("confidence").unwrap_or_default() } else { 0.0 };
            let bounding_box = box_in_frame(&face, &crop)?;
            self.detections.push(Detection {
                seconds,
                bounding_box,
                identity,
                confidence,
                track,
                largest: false,
            });
        }
        let of_crop = self.detections.get_mut(first..).unwrap_or_default();
        let largest = largest_face(of_crop.iter().map(|detection| detection.bounding_box));
        if let Some(largest) = largest.and_then(|position| of_crop.get_mut(position)) {
            largest.largest = true;
        }
        Ok(())
    }
}

/// Returns the box of a face in pixels of the frame.
#[expect(clippy::cast_possible_truncation, reason = "pixels of a frame")]
fn box_in_frame(face: &gst::StructureRef, crop: &CropArea) -> Result<BoundingBox> {
    let edge = |name: &str| face.get::<f64>(name);
    let on_crop = facepipe_detector::BoundingBox::new(
        edge("box-left")?,
        edge("box-top")?,
        edge("box-right")?,
        edge("box-bottom")?,
    );
    let [left, top, right, bottom] = crop.to_frame(&on_crop).edges().map(|edge| edge as f32);
    Ok(BoundingBox { left, top, right, bottom })
}
