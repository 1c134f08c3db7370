//! The class of the element `facetrack`: an in-place transform around [`Tracker`].

use std::{
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};

use crate::{
    capture_time,
    detector_watch::{self, DetectorWatch},
    frame,
    roi::{self, FaceRegion},
    searched,
    timeline::{DISORDER, Timeline, frame_length},
    track::{Bounds, Observation, Prediction, Tracker, TrackerConfig},
    track_events,
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facetrack", gst::DebugColorFlags::empty(), Some("Face tracking"))
});

#[derive(Debug, Clone, Copy)]
struct Settings {
    /// Milliseconds.
    max_age: u32,
    min_hits: u32,
    iou_threshold: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_age: 2000, min_hits: 1, iou_threshold: 0.2 }
    }
}

impl Settings {
    fn config(&self) -> TrackerConfig {
        TrackerConfig {
            max_age: Duration::from_millis(self.max_age.into()),
            min_hits: self.min_hits,
            iou_threshold: self.iou_threshold.into(),
        }
    }
}

/// What the caps say.
#[derive(Debug, Clone, PartialEq)]
struct Video {
    caps: gst::Caps,
    width: u32,
    height: u32,
    rate: Option<gst::Fraction>,
}

/// What lives from `start` to `stop`.
#[derive(Default)]
struct State {
    tracker: Tracker,
    video: Option<Video>,
    timeline: Timeline,
    /// Id of the stream, where it has one.
    stream: Option<String>,
    watch: DetectorWatch,
}

#[derive(Default)]
pub struct FaceTrack {
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

impl FaceTrack {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the elements behind. No lock may be held: one of them may ask this element something.
    fn announce(&self, ended: &[i32]) {
        if ended.is_empty() {
            return;
        }
        gst::debug!(CAT, imp = self, "tracks {ended:?} ended");
        self.obj().src_pad().push_event(track_events::tracks_ended(ended));
    }

    /// Ends all tracks.
    fn reset(&self, why: &str) {
        let mut state = self.state();
        state.timeline = Timeline::default();
        let ended = state.tracker.reset();
        drop(state);
        gst::debug!(CAT, imp = self, "{why}: {} tracks end", ended.len());
        self.announce(&ended);
    }

    /// Whether another segment begins with this event, and not the same one again: with a new end, or where a pad repeats
    /// it. What counts is that timestamps mean the same times as before.
    fn is_another_segment(&self, new: &gst::Segment) -> bool {
        let old = self.obj().segment();
        // Before the first segment, and after a flush, there is none.
        let Some(old) = old.downcast_ref::<gst::ClockTime>() else { return false };
        let Some(new) = new.downcast_ref::<gst::ClockTime>() else { return true };
        let position = new.start().unwrap_or_default();
        (old.rate(), old.applied_rate()) != (new.rate(), new.applied_rate())
            || old.to_running_time_full(position) != new.to_running_time_full(position)
            || old.to_stream_time_full(position) != new.to_stream_time_full(position)
    }

    /// Says that there is nothing to do here.
    fn warn(&self, text: Option<String>) {
        let Some(text) = text else { return };
        gst::element_imp_warning!(self, gst::StreamError::Failed, ("{text}"));
        self.obj().src_pad().push_event(detector_watch::told());
    }

    fn running_time(&self, buffer: &gst::BufferRef) -> Option<Duration> {
        capture_time::running_time(Some(&self.obj().segment()), buffer).map(Duration::from)
    }

    /// Follows the faces of a searched frame; returns the tracks that ended.
    fn follow(
        state: &mut State,
        config: &TrackerConfig,
        time: Duration,
        buffer: &mut gst::BufferRef,
    ) -> Vec<i32> {
        let (faces, candidates) = (roi::faces(buffer), roi::candidates(buffer));
        let strong = faces.iter().map(|face| observation(face, false));
        let observations: Vec<_> =
            strong.chain(candidates.iter().map(|face| observation(face, true))).collect();
        let update = state.tracker.searched(time, &observations, config);
        let (of_faces, of_candidates) = update.ids.split_at_checked(faces.len()).unwrap_or_default();
        roi::assign_tracks(buffer, of_faces, of_candidates);
        update.ended
    }

    /// Attaches the faces of the last searched frame to one that was not searched.
    fn predict(
        state: &mut State,
        config: &TrackerConfig,
        time: Duration,
        buffer: &mut gst::BufferRef,
    ) -> Vec<i32> {
        let (predictions, ended) = state.tracker.passed(time, config);
        if let Some(video) = &state.video {
            for face in predictions.iter().filter_map(|p| predicted_face(p, video.width, video.height)) {
                roi::attach_face(buffer, &face);
            }
        }
        ended
    }
}

fn observation(face: &FaceRegion, weak: bool) -> Observation {
    let (left, top) = (f64::from(face.left), f64::from(face.top));
    let bounds =
        Bounds { left, top, right: left + f64::from(face.width), bottom: top + f64::from(face.height) };
    Observation { bounds, score: face.confidence, weak }
}

/// The part of a predicted box within the frame, rounded to whole pixels; nothing where its middle is outside: the
/// face has left.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the frame, whose sides are u32"
)]
fn predicted_face(prediction: &Prediction, width: u32, height: u32) -> Option<FaceRegion> {
    let (frame_width, frame_height) = (f64::from(width), f64::from(height));
    let (x, y) = prediction.bounds.centre();
    if !(0.0..frame_width).contains(&x) || !(0.0..frame_height).contains(&y) {
        return None;
    }
    let inside = |value: f64, most: f64| value.round().clamp(0.0, most) as u32;
    let Bounds { left, top, right, bottom } = prediction.bounds;
    let (left, top) = (inside(left, frame_width), inside(top, frame_height));
    let (right, bottom) = (inside(right, frame_width), inside(bottom, frame_height));
    let (width, height) = (right.checked_sub(left)?, bottom.checked_sub(top)?);
    (width > 0 && height > 0).then_some(FaceRegion {
        left,
        top,
        width,
        height,
        confidence: prediction.score,
        track_id: Some(prediction.id),
        predicted: true,
    })
}

/// Reads caps of raw video, also in formats and memories that GStreamer's own reader does not know.
fn video(caps: &gst::CapsRef) -> Option<Video> {
    let structure = caps.structure(0)?;
    let side = |name| structure.get::<i32>(name).ok().and_then(|side| u32::try_from(side).ok());
    let rate = structure.get::<gst::Fraction>("framerate").ok();
    Some(Video { caps: caps.to_owned(), width: side("width")?, height: side("height")?, rate })
}

#[glib::object_subclass]
impl ObjectSubclass for FaceTrack {
    const NAME: &'static str = "GstFacepipeFaceTrack";
    type Type = super::FaceTrack;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for FaceTrack {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            vec![
                glib::ParamSpecUInt::builder("max-age")
                    .nick("Maximum age")
                    .blurb(
                        "A face that is not found for longer than this many milliseconds is a new one when it comes \
                         back. Longer bridges longer occlusions, and risks taking somebody else for the first",
                    )
                    .maximum(3_600_000)
                    .default_value(defaults.max_age)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("min-hits")
                    .nick("Minimum number of hits")
                    .blurb(
                        "A face gets its id when it has been found in this many searched frames in a row; until then \
                         it has id 0. Above 1, what the detector takes for a face in a single frame gets no id, and \
                         everybody gets theirs later",
                    )
                    .minimum(1)
                    .maximum(1000)
                    .default_value(defaults.min_hits)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("iou-threshold")
                    .nick("Overlap threshold")
                    .blurb(
                        "A face continues a track if it overlaps the place where the track should be by at least this \
                         (intersection over union). Lower follows faster movements, and mixes up neighbours sooner",
                    )
                    .minimum(0.01)
                    .maximum(1.0)
                    .default_value(defaults.iou_threshold)
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings();
        match pspec.name() {
            "max-age" => crate::set(&mut settings.max_age, value),
            "min-hits" => crate::set(&mut settings.min_hits, value),
            "iou-threshold" => crate::set(&mut settings.iou_threshold, value),
            name => gst::error!(CAT, imp = self, "no property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = self.settings();
        match pspec.name() {
            "max-age" => settings.max_age.to_value(),
            "min-hits" => settings.min_hits.to_value(),
            "iou-threshold" => settings.iou_threshold.to_value(),
            _ => pspec.default_value().clone(),
        }
    }
}

impl GstObjectImpl for FaceTrack {}

impl ElementImpl for FaceTrack {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Face tracker",
                "Filter/Analyzer/Video",
                "Gives each face that a detector found an id that stays the same from frame to frame",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            frame::transform_templates(&gst::Caps::builder("video/x-raw").any_features().build())
        });
        &TEMPLATES
    }
}

impl BaseTransformImpl for FaceTrack {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *self.state() = State::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *self.state() = State::default();
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Caps(caps) => {
                let Some(new) = video(caps.caps()) else {
                    gst::error!(CAT, imp = self, "caps {} are not those of raw video", caps.caps());
                    return false;
                };
                let old = self.state().video.replace(new.clone());
                if old.is_some_and(|old| old != new) {
                    self.reset("the caps changed");
                }
            }
            gst::EventView::StreamStart(start) => {
                let id = start.stream_id().to_owned();
                let before = self.state().stream.replace(id.clone());
                if before.is_some_and(|before| before != id) {
                    self.reset("another stream begins");
                }
            }
            gst::EventView::Segment(segment) if self.is_another_segment(segment.segment()) => {
                self.reset("another segment begins");
            }
            gst::EventView::Eos(_) => {
                let unsearched = self.state().watch.end();
                self.warn(unsearched);
                self.reset("the stream ended");
            }
            gst::EventView::CustomDownstream(_) => self.state().watch.event(&event),
            gst::EventView::FlushStop(_) => {
                // Until the flush is over, nothing behind would take the news.
                let passed = self.parent_sink_event(event);
                self.reset("the stream was flushed");
                return passed;
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        frame::propose_allocation_of_what_follows(self, decide_query, query)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let config = self.settings().config();
        let mut guard = self.state();
        let state = &mut *guard;
        let unsearched = state.watch.frame(buffer);
        let running_time = self.running_time(buffer);
        let length = frame_length(buffer, state.video.as_ref().and_then(|video| video.rate));
        let moment = state.timeline.frame(running_time, length);
        // Frames that were lost before this one (DISCONT), and timestamps in disorder, do not make the same faces others:
        // tracks live as long as `max-age` lets them.
        let mut ended =
            if moment.fell > config.max_age.max(DISORDER) { state.tracker.reset() } else { Vec::new() };
        // Other detectors search every frame that they let pass.
        ended.extend(match searched::was_searched(buffer) {
            Some(false) => Self::predict(state, &config, moment.time, buffer),
            Some(true) | None => Self::follow(state, &config, moment.time, buffer),
        });
        #[cfg(feature = "v1_24")]
        if searched::was_searched(buffer) != Some(false) {
            let now = running_time.unwrap_or(moment.time);
            let age = |first_seen| moment.time.saturating_sub(first_seen);
            let first_seen = |id| state.tracker.first_seen(id).map(|seen| now.saturating_sub(age(seen)));
            roi::relate_tracks(buffer, first_seen);
        }
        drop(guard);
        self.warn(unsearched);
        self.announce(&ended);
        Ok(gst::FlowSuccess::Ok)
    }
}
