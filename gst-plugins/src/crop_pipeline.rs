//! The crop pipeline that `facecrop` and `facesink-http` share: from a frame with faces to the crops that are to be sent, now or
//! when a track ends.

use std::time::Duration;

use facepipe_detector::BoundingBox;
use gst::glib;
use gst_video::VideoInfo;

use crate::{
    best_shot::{BestShots, FaceSnapshot, Limits, QualityInputs, RejectReason},
    capture_time::{CaptureClock, CaptureTime, running_time},
    crop::{CropError, CropImage, CropSettings, Cropper, default_min_size},
    frame,
    roi::{self, CropArea, CropMetadata, FaceRegion},
    timeline::{Timeline, frame_length},
};

pub use crate::capture_time::ClockLimit;

/// Returns the default minimum of a face's shorter side in such video, see [`default_min_size`].
pub fn min_size_in(video: &VideoInfo) -> u32 {
    let [across, down] = frame::stretch(video);
    default_min_size(f64::from(video.width()) * across, f64::from(video.height()) * down)
}

/// Which faces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeCropPolicy")]
#[repr(i32)]
pub enum Policy {
    /// A few good crops of each tracked face; each face of each frame where they are not tracked.
    #[default]
    #[enum_value(
        name = "A first good picture of each track, clearly better ones, the best at its end",
        nick = "best"
    )]
    Best,
    /// Each face of each frame.
    #[enum_value(name = "Each face of each frame", nick = "every")]
    Every,
}

/// Settings of a crop pipeline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropPipelineSettings {
    /// Crop and encoding. Its `min_size` is ignored in favour of [`min_size`](Self::min_size).
    pub crop: CropSettings,
    /// Faces whose shorter side is less than this are excluded, pixels; `None`: by the frame's size, see
    /// [`default_min_size`].
    pub min_size: Option<u32>,
    /// Which faces are sent.
    pub policy: Policy,
    /// Limits to the crops of one track.
    pub limits: Limits,
    /// When the camera's clock is trusted.
    pub clock: ClockLimit,
}

impl Default for CropPipelineSettings {
    fn default() -> Self {
        Self {
            crop: CropSettings::default(),
            min_size: None,
            policy: Policy::default(),
            limits: Limits { improvement: 0.2, max_per_track: 4, min_quality: 0.0, certainty: 0.8 },
            clock: ClockLimit::default(),
        }
    }
}

/// Counts of faces and tracks since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faces that were detected, each in each frame.
    pub faces: u64,
    /// Crops that were made.
    pub pictures: u64,
    /// Faces smaller than the limit.
    pub below_min_size: u64,
    /// Faces whose crop was, or could only have been, below the minimum quality.
    pub below_min_quality: u64,
    /// Tracks that ended without a crop since their faces were too small.
    pub tracks_below_min_size: u64,
    /// Tracks that ended without a crop since their quality was too low.
    pub tracks_below_min_quality: u64,
    /// Tracks that ended without a crop since the detector was never sure of a face.
    pub tracks_below_certainty: u64,
    /// The minimum of a face's shorter side in the last frame, pixels; 0 before the first frame.
    pub min_size: u32,
}

impl Counts {
    /// Describes what was left out, in a sentence; `None` where nothing was.
    pub fn left_out(&self) -> Option<String> {
        crate::counts_summary([
            (
                self.below_min_size,
                format!("faces smaller than {} pixels were left out (min-size)", self.min_size),
            ),
            (self.below_min_quality, "faces of too low a quality were left out (min-quality)".into()),
            (
                self.tracks_below_min_size.saturating_add(self.tracks_below_min_quality),
                "tracks ended without any picture for that reason".into(),
            ),
            (
                self.tracks_below_certainty,
                "tracks were left out (certainty), since the detector was never sure of a face".into(),
            ),
        ])
    }

    /// Adds the counts of what was left out, and the limit, to a structure for `stats`; each uint64.
    pub fn add_to(&self, structure: gst::structure::Builder) -> gst::structure::Builder {
        structure
            .field("below-min-size", self.below_min_size)
            .field("below-min-quality", self.below_min_quality)
            .field("tracks-below-min-size", self.tracks_below_min_size)
            .field("tracks-below-min-quality", self.tracks_below_min_quality)
            .field("tracks-below-certainty", self.tracks_below_certainty)
            .field("min-size", u64::from(self.min_size))
    }
}

/// A reference timestamp of a frame.
#[derive(Debug, Clone)]
pub struct ReferenceTimestamp {
    reference: gst::Caps,
    timestamp: gst::ClockTime,
    duration: Option<gst::ClockTime>,
}

impl ReferenceTimestamp {
    fn all_of(buffer: &gst::BufferRef) -> Vec<Self> {
        let metas = buffer.iter_meta::<gst::ReferenceTimestampMeta>();
        metas
            .map(|meta| Self {
                reference: meta.reference_owned(),
                timestamp: meta.timestamp(),
                duration: meta.duration(),
            })
            .collect()
    }

    /// Adds it to a buffer.
    pub fn attach(&self, buffer: &mut gst::BufferRef) {
        gst::ReferenceTimestampMeta::add(buffer, &self.reference, self.timestamp, self.duration);
    }
}

/// A crop of a face, with what is known about it.
#[derive(Debug)]
pub struct Shot {
    /// The pixels.
    pub image: CropImage,
    /// The face, its frame and its time.
    pub metadata: CropMetadata,
    /// The reference timestamps of the frame.
    pub references: Vec<ReferenceTimestamp>,
}

impl Shot {
    /// Encodes the pixels.
    ///
    /// # Errors
    ///
    /// The encoder refuses their size: a message for the bus.
    pub fn encode(&self, settings: &CropSettings) -> Result<Vec<u8>, gst::ErrorMessage> {
        self.image.encode(settings).map_err(|error| crop_error(&error))
    }
}

/// A frame with its context.
pub struct InputFrame<'a> {
    /// The element that crops: its clock gives the time of capture.
    pub element: &'a gst::Element,
    /// The segment of the frame.
    pub segment: Option<&'a gst::Segment>,
    /// Size and format.
    pub info: &'a VideoInfo,
    /// Pixels and metadata.
    pub buffer: &'a gst::BufferRef,
}

/// The times of a frame.
#[derive(Debug, Clone, Copy)]
struct FrameTimes {
    /// On the timeline of the stream.
    time: Duration,
    captured: CaptureTime,
}

/// A face that is worth cropping.
struct SelectedFace {
    face: FaceRegion,
    /// The part of the frame to crop.
    region: BoundingBox<u32>,
    /// Without the sharpness.
    quality: QualityInputs,
}

/// Crops faces from frames and chooses among the crops.
#[derive(Debug, Default)]
pub struct CropPipeline {
    cropper: Cropper,
    best_shots: BestShots<Shot>,
    counts: Counts,
    timeline: Timeline,
    clock: CaptureClock,
}

impl CropPipeline {
    /// Returns the crops to send after this frame: some of its own faces, and of tracks that ended for want of faces.
    ///
    /// # Errors
    ///
    /// The frame cannot be read: a message for the bus.
    pub fn process_frame(
        &mut self,
        input: &InputFrame<'_>,
        settings: &CropPipelineSettings,
    ) -> Result<Vec<Shot>, gst::ErrorMessage> {
        let running_time = running_time(input.segment, input.buffer).map(Duration::from);
        let length = frame_length(input.buffer, Some(input.info.fps()));
        let time = self.timeline.advance(running_time, length).time;
        // For every frame, so that the camera's clock is known when the first face comes.
        let captured =
            self.clock.captured(input.element, running_time.map(|_| time), input.buffer, settings.clock);
        let times = FrameTimes { time, captured };
        let mut shots = self.best_shots.end_idle(time);
        self.counts.min_size = settings.min_size.unwrap_or_else(|| min_size_in(input.info));
        let mut selected = Vec::new();
        for face in roi::faces(input.buffer) {
            self.counts.faces += 1;
            selected.extend(self.select(face, input.info, time, settings));
            shots.extend(track(&face, settings).and_then(|id| self.best_shots.take_due(id)));
        }
        if !selected.is_empty() {
            self.crop(input, times, settings, selected, &mut shots)?;
        }
        Ok(self.count(shots))
    }

    /// Returns a face if its crop could be of use, before any pixel is read.
    fn select(
        &mut self,
        face: FaceRegion,
        info: &VideoInfo,
        time: Duration,
        settings: &CropPipelineSettings,
    ) -> Option<SelectedFace> {
        let (width, height) = (info.width(), info.height());
        let stretch = frame::stretch(info);
        // A face outside the frame has no region.
        let crop = CropSettings { min_size: 0, ..settings.crop };
        let region = crop.region(&face.bounding_box, width, height)?;
        let inside = face.bounding_box.clipped(width, height)?;
        if square_size(&inside, stretch) < self.counts.min_size {
            self.counts.below_min_size += 1;
            if let Some(id) = track(&face, settings) {
                self.best_shots.reject(id, RejectReason::TooSmall, time);
            }
            return None;
        }
        let quality = QualityInputs {
            size: square_size(&face.bounding_box, stretch),
            sharpness: 0.0,
            score: face.confidence,
            cut: face.is_cut(width, height),
        };
        let upper_bound = quality.upper_bound();
        let is_good_enough = upper_bound >= settings.limits.min_quality;
        let is_wanted = match track(&face, settings) {
            Some(id) => {
                let snapshot = FaceSnapshot { bounding_box: face.bounding_box, score: face.confidence };
                self.best_shots.observe(id, snapshot, upper_bound, time, &settings.limits)
            }
            None => is_good_enough,
        };
        if !is_good_enough {
            self.reject_quality(track(&face, settings), time);
        }
        is_wanted.then_some(SelectedFace { face, region, quality })
    }

    fn reject_quality(&mut self, track: Option<i32>, now: Duration) {
        self.counts.below_min_quality += 1;
        if let Some(id) = track {
            self.best_shots.reject(id, RejectReason::TooPoor, now);
        }
    }

    /// Returns the counts since the start.
    pub fn counts(&self) -> Counts {
        let unsent = self.best_shots.unsent();
        Counts {
            tracks_below_min_size: unsent.too_small,
            tracks_below_min_quality: unsent.too_poor,
            tracks_below_certainty: unsent.uncertain,
            ..self.counts
        }
    }

    fn count(&mut self, shots: Vec<Shot>) -> Vec<Shot> {
        self.counts.pictures += u64::try_from(shots.len()).unwrap_or(0);
        shots
    }

    /// Crops the selected faces; `shots` gets those that are to be sent at once.
    fn crop(
        &mut self,
        input: &InputFrame<'_>,
        times: FrameTimes,
        settings: &CropPipelineSettings,
        selected: Vec<SelectedFace>,
        shots: &mut Vec<Shot>,
    ) -> Result<(), gst::ErrorMessage> {
        let FrameTimes { time, captured } = times;
        let mapped = frame::map(input.buffer, input.info)?;
        let borrowed = frame::borrow_frame(&mapped)
            .map_err(|error| gst::error_msg!(gst::StreamError::Format, ("{error}")))?;
        let references = ReferenceTimestamp::all_of(input.buffer);
        for SelectedFace { face, region, quality } in selected {
            let image =
                self.cropper.crop(&borrowed, &region, &settings.crop).map_err(|error| crop_error(&error))?;
            let track = track(&face, settings);
            let sharpness = if track.is_some() || settings.limits.min_quality > 0.0 {
                image.sharpness(&face.bounding_box.relative_to(&region))
            } else {
                0.0
            };
            let quality = QualityInputs { sharpness, ..quality };
            if settings.limits.min_quality > 0.0 && quality.quality() < settings.limits.min_quality {
                self.reject_quality(track, time);
                continue;
            }
            let metadata = CropMetadata {
                face,
                frame_width: input.info.width(),
                frame_height: input.info.height(),
                area: Some(CropArea {
                    bounding_box: region,
                    picture_width: image.width().into(),
                    picture_height: image.height().into(),
                }),
                captured_at: Some(captured.at),
                running_time: Some(time),
                clock_refused: captured.clock_refused,
            };
            let shot = Shot { image, metadata, references: references.clone() };
            match track {
                Some(id) => shots.extend(self.best_shots.offer(id, &quality, shot, &settings.limits)),
                None => shots.push(shot),
            }
        }
        Ok(())
    }

    /// Ends tracks and returns their best crops.
    pub fn end(&mut self, tracks: &[i32]) -> Vec<Shot> {
        let ended = tracks.iter().filter_map(|&id| self.best_shots.end(id)).collect();
        self.count(ended)
    }

    /// Ends all tracks and returns their best crops.
    pub fn end_all(&mut self) -> Vec<Shot> {
        let ended = self.best_shots.end_all();
        self.count(ended)
    }

    /// Drops all pending crops, as a flush requires.
    pub fn clear(&mut self) {
        self.best_shots.clear();
        self.timeline = Timeline::default();
    }

    /// Takes the warning that the camera's clock is not trusted: a sentence for the bus, once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.clock.take_warning()
    }
}

/// Returns the track among whose crops those of a face compete.
fn track(face: &FaceRegion, settings: &CropPipelineSettings) -> Option<i32> {
    face.track_id.filter(|_| settings.policy == Policy::Best)
}

/// Returns the shorter side of a box, in square pixels, rounded.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of u32"
)]
fn square_size(bounding_box: &BoundingBox<u32>, [across, down]: [f64; 2]) -> u32 {
    let (width, height) = (f64::from(bounding_box.width()), f64::from(bounding_box.height()));
    (width * across).min(height * down).round() as u32
}

fn crop_error(error: &CropError) -> gst::ErrorMessage {
    gst::error_msg!(gst::StreamError::Encode, ("{error}"))
}
