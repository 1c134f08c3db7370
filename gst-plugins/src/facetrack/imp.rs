//! The class of the element `facetrack`: an in-place transform around [`Tracker`].

use std::{
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use facepipe_detector::{BoundingBox, Detection};
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};
use uuid::Uuid;

use crate::{
    capture_time, detection_mark, frame,
    missing_detector::{self, MissingDetectorWarning},
    roi::{self, FaceRegion},
    timeline::{DISORDER, Timeline, frame_length},
    track::{Prediction, Tracker, TrackerConfig},
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

/// The caps of the video.
#[derive(Debug, Clone, PartialEq)]
struct VideoCaps {
    caps: gst::Caps,
    width: u32,
    height: u32,
    rate: Option<gst::Fraction>,
}

/// What lives from `start` to `stop`.
#[derive(Default)]
struct State {
    tracker: Tracker,
    video: Option<VideoCaps>,
    timeline: Timeline,
    /// Id of the stream, where it has one.
    stream: Option<String>,
    watch: MissingDetectorWarning,
    /// Track ids are unique within a run.
    run: Uuid,
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

    /// Sends the event to the elements downstream. No lock may be held: one of them may query this element.
    fn send_tracks_ended(&self, ended: &[i32]) {
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
        self.send_tracks_ended(&ended);
    }

    /// Returns whether timestamps mean other times in this segment than in the one before. A repeated segment, or one with
    /// another end only, is the same.
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

    fn running_time(&self, buffer: &gst::BufferRef) -> Option<Duration> {
        capture_time::running_time(Some(&self.obj().segment()), buffer).map(Duration::from)
    }

    /// Tracks the faces of a searched frame; returns the tracks that ended.
    fn track_faces(
        state: &mut State,
        config: &TrackerConfig,
        time: Duration,
        buffer: &mut gst::BufferRef,
    ) -> Vec<i32> {
        let (faces, candidates) = (roi::faces(buffer), roi::candidates(buffer));
        let [detected, weak] =
            [&faces, &candidates].map(|regions| regions.iter().map(detection).collect::<Vec<_>>());
        let update = state.tracker.update(time, &detected, &weak, config);
        roi::assign_tracks(buffer, &update.faces, &update.candidates);
        update.ended
    }

    /// Attaches predicted faces to a frame that was not searched; returns the tracks that ended.
    fn attach_predictions(
        state: &mut State,
        config: &TrackerConfig,
        time: Duration,
        buffer: &mut gst::BufferRef,
    ) -> Vec<i32> {
        let (predictions, ended) = state.tracker.predict(time, config);
        if let Some(video) = &state.video {
            for face in predictions.iter().filter_map(|p| predicted_face(p, video.width, video.height)) {
                roi::attach_face(buffer, &face);
            }
        }
        ended
    }
}

fn detection(face: &FaceRegion) -> Detection {
    Detection { bounding_box: face.bounding_box.map(f64::from), score: face.confidence }
}

/// Returns the part of a predicted box within the frame, rounded to whole pixels; `None` where its middle is outside: the
/// face has left.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the frame, whose sides are u32"
)]
fn predicted_face(prediction: &Prediction, width: u32, height: u32) -> Option<FaceRegion> {
    let Detection { bounding_box, score } = prediction.detection;
    let (frame_width, frame_height) = (f64::from(width), f64::from(height));
    let (x, y) = bounding_box.centre();
    if !(0.0..frame_width).contains(&x) || !(0.0..frame_height).contains(&y) {
        return None;
    }
    let inside = |value: f64, most: f64| value.round().clamp(0.0, most) as u32;
    let BoundingBox { left, top, right, bottom } = bounding_box;
    let bounding_box = BoundingBox {
        left: inside(left, frame_width),
        top: inside(top, frame_height),
        right: inside(right, frame_width),
        bottom: inside(bottom, frame_height),
    };
    (!bounding_box.is_empty()).then_some(FaceRegion {
        bounding_box,
        confidence: score,
        track_id: Some(prediction.track_id),
        predicted: true,
    })
}

/// Parses caps of raw video, also of formats and memories that `VideoInfo` does not know.
fn parse_caps(caps: &gst::CapsRef) -> Option<VideoCaps> {
    let structure = caps.structure(0)?;
    let side = |name| structure.get::<i32>(name).ok().and_then(|side| u32::try_from(side).ok());
    let rate = structure.get::<gst::Fraction>("framerate").ok();
    Some(VideoCaps { caps: caps.to_owned(), width: side("width")?, height: side("height")?, rate })
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
                        "A track ends when its face has not been found for longer than this, in milliseconds. Higher values \
                         bridge longer occlusions, and risk continuing it with somebody else",
                    )
                    .maximum(3_600_000)
                    .default_value(defaults.max_age)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("min-hits")
                    .nick("Minimum number of hits")
                    .blurb(
                        "A face gets its id when it has been found in this many searched frames in a row; until then \
                         it has id 0. Values above 1 suppress false detections in single frames, and delay all ids",
                    )
                    .minimum(1)
                    .maximum(1000)
                    .default_value(defaults.min_hits)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("iou-threshold")
                    .nick("Overlap threshold")
                    .blurb(
                        "A face continues a track if it overlaps the predicted box by at least this (intersection over \
                         union). Lower values follow faster movements, and confuse neighbours sooner",
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
                "Gives each detected face an id that stays the same from frame to frame",
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
        *self.state() = State { run: Uuid::new_v4(), ..State::default() };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *self.state() = State::default();
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Caps(caps) => {
                let Some(new) = parse_caps(caps.caps()) else {
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
            gst::EventView::Segment(segment) => {
                if self.is_another_segment(segment.segment()) {
                    self.reset("another segment begins");
                }
                // Frames follow, but none of this run came before.
                let passed = self.parent_sink_event(event);
                let run = self.state().run;
                self.obj().src_pad().push_event(track_events::track_run(run));
                return passed;
            }
            gst::EventView::Eos(_) => {
                let unsearched = self.state().watch.end_of_stream();
                missing_detector::post(&*self.obj(), self.obj().src_pad(), unsearched);
                self.reset("the stream ended");
            }
            gst::EventView::CustomDownstream(_) => self.state().watch.handle_event(&event),
            gst::EventView::FlushStop(_) => {
                // Elements downstream drop events until the flush is over.
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
        frame::propose_downstream_allocation(self, decide_query, query)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let config = self.settings().config();
        let mut guard = self.state();
        let state = &mut *guard;
        let unsearched = state.watch.inspect_frame(buffer);
        let running_time = self.running_time(buffer);
        let length = frame_length(buffer, state.video.as_ref().and_then(|video| video.rate));
        let moment = state.timeline.advance(running_time, length);
        // Lost frames (DISCONT) and timestamps out of order end no track: `max-age` does.
        let mut ended = if moment.backward_step > config.max_age.max(DISORDER) {
            state.tracker.reset()
        } else {
            Vec::new()
        };
        // Other detectors search every frame.
        ended.extend(match detection_mark::was_searched(buffer) {
            Some(false) => Self::attach_predictions(state, &config, moment.time, buffer),
            Some(true) | None => Self::track_faces(state, &config, moment.time, buffer),
        });
        #[cfg(feature = "v1_24")]
        if detection_mark::was_searched(buffer) != Some(false) {
            let now = running_time.unwrap_or(moment.time);
            let age = |first_seen| moment.time.saturating_sub(first_seen);
            let first_seen = |id| state.tracker.first_seen(id).map(|seen| now.saturating_sub(age(seen)));
            roi::relate_tracks(buffer, first_seen);
        }
        drop(guard);
        missing_detector::post(&*self.obj(), self.obj().src_pad(), unsearched);
        self.send_tracks_ended(&ended);
        Ok(gst::FlowSuccess::Ok)
    }
}
