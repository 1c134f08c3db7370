//! The class of the element `facedetect`: an in-place transform around [`facepipe_detector::Detector`].

use std::{
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use facepipe_detector::{Detector, DetectorConfig, DetectorError, Family, MotionDetector, models};
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};
use gst_video::VideoInfo;

use super::{
    engine::{self, BuildProgress},
    lateness::Lateness,
    orientation,
    selection::{FilteredFaces, SelectedFaces, Selection},
    settings::{self, AUTO, ExecutionProvider, Settings},
};
use crate::{
    capture_time::running_time,
    detection_mark, frame, roi,
    timeline::{FrameTime, Timeline, frame_length},
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facedetect", gst::DebugColorFlags::empty(), Some("Face detection"))
});

/// Maximum number of consecutive frames that are skipped as late.
const MAX_LATE: u64 = 30;

/// Counts of frames and faces since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Stats {
    frames: u64,
    detected: u64,
    skipped_still: u64,
    skipped_late: u64,
    faces: u64,
    filtered: FilteredFaces,
}

/// The state of a run.
#[derive(Default)]
struct State {
    detector: Option<LoadedDetector>,
    info: Option<VideoInfo>,
    /// Frames seen since the start, a flush or a change of caps.
    frames: u64,
    timeline: Timeline,
    /// Time from which the next frame is searched, if `max-fps` is set.
    due: Option<Duration>,
    /// The last frame on which the network ran, and its faces.
    last: Option<LastDetection>,
    motion: MotionDetector,
    has_warned_of_orientation: bool,
}

impl State {
    /// Forgets the frames so far.
    fn reset_stream(&mut self) {
        self.frames = 0;
        self.timeline = Timeline::default();
        self.due = None;
        self.last = None;
        self.motion.clear_reference();
    }

    /// Returns whether a frame is due, with `period` between searched frames. A slightly late frame does not delay the following
    /// ones, so that the rate is reached on average.
    fn is_due(&mut self, moment: FrameTime, period: Option<Duration>) -> bool {
        let Some(period) = period else {
            self.due = None;
            return true;
        };
        let due = self.due.filter(|_| !moment.is_discontinuity()).unwrap_or(moment.time);
        if moment.time < due {
            return false;
        }
        let next = due.saturating_add(period);
        self.due = Some(if next > moment.time { next } else { moment.time.saturating_add(period) });
        true
    }
}

struct LastDetection {
    number: u64,
    selection: Selection,
    found: SelectedFaces,
}

/// How a frame was handled.
enum FrameOutcome {
    /// Not searched: not due by `interval` or `max-fps`.
    NotDue,
    /// Not searched: too late.
    Late,
    /// Not searched, since nothing moved: it has the faces of the last searched frame.
    Unchanged(SelectedFaces),
    Detected(SelectedFaces),
}

struct LoadedDetector {
    model: PathBuf,
    detector: Detector,
}

#[derive(Default)]
pub struct FaceDetect {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    // Separate from the state, which is locked while the network runs.
    stats: Mutex<Stats>,
    family: Mutex<Option<Family>>,
    lateness: Mutex<Lateness>,
}

impl FaceDetect {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the family of the model that was opened last.
    fn family(&self) -> Family {
        let family = *self.family.lock().unwrap_or_else(PoisonError::into_inner);
        family.unwrap_or(Family::UltraLight)
    }

    fn lateness(&self) -> MutexGuard<'_, Lateness> {
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the configured model for frames with this longer side in square pixels, unless it is open already.
    fn open(&self, open: &mut Option<LoadedDetector>, longer_side: Option<u32>) -> Result<(), DetectorError> {
        let settings = self.settings().clone();
        let folders = self.plugin_folder();
        let choice = models::choose(&settings.model, longer_side, &folders)?;
        let model = choice.path;
        if open.as_ref().is_some_and(|open| open.model == model) {
            return Ok(());
        }
        if let (Some(name), Some(wanted)) = (&choice.name, &choice.instead_of) {
            let text = format!("model {wanted} is not installed, so {name} is used: {}", tradeoff(name));
            gst::warning!(CAT, imp = self, "{text}");
            // gst-launch-1.0 prints only the details.
            gst::element_imp_info!(self, gst::LibraryError::Settings, ("{text}"), ["{text}"]);
        }
        let tensor_rt = settings.execution_provider == ExecutionProvider::TensorRt;
        let engine_cache =
            tensor_rt.then(|| settings.engine_cache.clone().unwrap_or_else(engine::default_cache));
        let notice = engine_cache
            .as_deref()
            .map(|cache| BuildProgress::begin(self.obj().upcast_ref(), &model, cache, engine::PERIOD));
        let detector = Detector::open(&DetectorConfig {
            model: model.clone(),
            threads: usize::try_from(settings.threads).unwrap_or(1),
            execution_provider: settings.execution_provider.into(),
            score_threshold: settings.score_threshold(Family::of(&model)),
            nms_threshold: settings.nms_threshold,
            min_face_size: settings.min_face_size,
            // The selection limits the number, and counts what it leaves out.
            max_faces: 0,
            engine_cache,
            library_hints: folders,
        })?;
        drop(notice);
        gst::info!(CAT, imp = self, "opened {}, input {:?}", model.display(), detector.input_size());
        *self.family.lock().unwrap_or_else(PoisonError::into_inner) = Some(detector.family());
        *open = Some(LoadedDetector { model, detector });
        Ok(())
    }

    /// Returns the folder of the plugin's file: models and libraries may be next to it.
    fn plugin_folder(&self) -> Vec<PathBuf> {
        let file = self.obj().factory().and_then(|f| f.plugin()).and_then(|plugin| plugin.filename());
        let file = file.map(|file| file.canonicalize().unwrap_or(file));
        file.as_deref().and_then(Path::parent).map(Path::to_path_buf).into_iter().collect()
    }

    /// Runs the detector on a frame, unless it is not due, late or unchanged.
    fn process_frame(
        &self,
        state: &mut State,
        settings: &Settings,
        buffer: &gst::BufferRef,
    ) -> Result<FrameOutcome, gst::ErrorMessage> {
        let number = state.frames;
        state.frames = number.wrapping_add(1);
        let due = running_time(Some(&self.obj().segment()), buffer);
        let length = frame_length(buffer, state.info.as_ref().map(VideoInfo::fps));
        let moment = state.timeline.advance(due.map(Duration::from), length);
        if moment.is_discontinuity() {
            self.lateness().handle_discontinuity();
        }
        if !number.is_multiple_of(u64::from(settings.interval.max(1)))
            || !state.is_due(moment, settings.period())
        {
            return Ok(FrameOutcome::NotDue);
        }
        let State { detector: Some(LoadedDetector { detector, .. }), info: Some(info), last, motion, .. } =
            state
        else {
            return Err(gst::error_msg!(gst::CoreError::Negotiation, ("a frame came before its caps")));
        };
        let since = last.as_ref().map(|last| number.saturating_sub(last.number));
        let recent = last.as_ref().filter(|_| since < Some(settings.max_gap.into()));
        // Some frames are searched even if all are late.
        let may_pass = recent.is_some() && since < Some(MAX_LATE);
        if settings.qos && may_pass && due.is_some_and(|due| self.is_late(due)) {
            return Ok(FrameOutcome::Late);
        }

        let mapped = frame::map(buffer, info)?;
        let borrowed = frame::borrow_frame(&mapped).map_err(|e| error_message(&e))?;
        let selection = settings.selection(detector.family());
        if settings.motion_threshold > 0.0 {
            let change = motion.difference(&borrowed);
            let still = change.is_some_and(|change| change <= settings.motion_threshold);
            if let Some(last) = recent.filter(|last| still && last.selection == selection) {
                return Ok(FrameOutcome::Unchanged(last.found.clone()));
            }
            motion.set_reference();
        } else {
            motion.clear_reference();
        }

        detector.set_score_threshold(selection.low_score_threshold).map_err(|e| error_message(&e))?;
        detector.set_nms_threshold(selection.nms_threshold).map_err(|e| error_message(&e))?;
        detector.set_min_face_size(settings.min_face_size);
        let detections = detector.detect(&borrowed).map_err(|e| error_message(&e))?;
        let found = selection.select(&detections, (info.width(), info.height()), frame::stretch(info));
        *last = Some(LastDetection { number, selection, found: found.clone() });
        Ok(FrameOutcome::Detected(found))
    }

    /// Warns once per run if the video is rotated.
    fn check_orientation(&self, tags: &gst::TagListRef) {
        let Some(orientation) = tags.get::<gst::tags::ImageOrientation>() else { return };
        let orientation = orientation.get();
        let element = self.obj();
        if orientation::is_upright(orientation) || orientation::is_rotated_upstream(element.upcast_ref()) {
            return;
        }
        if let Some(state) = self.state().as_mut()
            && !std::mem::replace(&mut state.has_warned_of_orientation, true)
        {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Format,
                (
                    "the video is not upright (its orientation is {orientation}), and no element before {} rotates it: most \
                     faces will not be found. Put videoflip video-direction=auto before it",
                    element.name()
                )
            );
        }
    }

    fn count(&self, outcome: &FrameOutcome) {
        let mut stats = self.stats();
        stats.frames += 1;
        match outcome {
            FrameOutcome::NotDue => {}
            FrameOutcome::Late => stats.skipped_late += 1,
            FrameOutcome::Unchanged(_) => stats.skipped_still += 1,
            FrameOutcome::Detected(found) => {
                stats.detected += 1;
                stats.faces += u64::try_from(found.faces.len()).unwrap_or(0);
                stats.filtered.too_small += found.filtered.too_small;
                stats.filtered.too_large += found.filtered.too_large;
                stats.filtered.too_many += found.filtered.too_many;
                gst::trace!(CAT, imp = self, "{} faces in frame {}", found.faces.len(), stats.frames);
            }
        }
    }

    /// Returns whether the frame with this running time is late.
    fn is_late(&self, due: gst::ClockTime) -> bool {
        let element = self.obj();
        let mut lateness = self.lateness();
        if lateness.wants_latency() {
            // The lock must not be held: downstream may send events while upstream answers.
            drop(lateness);
            let mut query = gst::query::Latency::new();
            let answer = element.sink_pad().peer_query(&mut query).then(|| query.result());
            lateness = self.lateness();
            lateness.set_latency(answer.map(|(live, minimum, _)| (live, minimum)));
        }
        let now = element.current_running_time();
        let late = lateness.is_late(due, now);
        if late {
            gst::debug!(CAT, imp = self, "the frame of {due} is late, at {now:?}");
        }
        late
    }
}

/// Describes the drawbacks of the model that `auto` fell back to.
fn tradeoff(model: &str) -> &'static str {
    match model {
        "mtcnn" => {
            "it finds about as many faces, for several times the work, and on the CPU only. Where that is too slow, \
             interval, max-fps or a larger min-face-size help, or `facepipe models fetch detector`"
        }
        "rfb-640" => "it finds smaller faces, for several times the work",
        _ => "it misses small faces. `facepipe models fetch detector` gets the other",
    }
}

/// Returns the longer side of a frame, in square pixels.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of u32"
)]
fn longer_side(info: &VideoInfo) -> u32 {
    let [across, down] = frame::stretch(info);
    (f64::from(info.width()) * across).max(f64::from(info.height()) * down).round() as u32
}

fn error_message(error: &DetectorError) -> gst::ErrorMessage {
    match error {
        DetectorError::RuntimeMissing { .. } | DetectorError::ModelMissing { .. } => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{error}"))
        }
        DetectorError::ModelUnreadable { .. }
        | DetectorError::ModelCorrupt { .. }
        | DetectorError::ModelUnsupported { .. } => {
            gst::error_msg!(gst::ResourceError::OpenRead, ("{error}"))
        }
        DetectorError::UnknownModel { .. }
        | DetectorError::InvalidConfig { .. }
        | DetectorError::ProviderUnavailable { .. } => {
            gst::error_msg!(gst::ResourceError::Settings, ("{error}"))
        }
        _ => gst::error_msg!(gst::LibraryError::Failed, ("{error}")),
    }
}

#[glib::object_subclass]
impl ObjectSubclass for FaceDetect {
    const NAME: &'static str = "GstFacepipeFaceDetect";
    type Type = super::FaceDetect;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for FaceDetect {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut specs = settings::param_specs();
            specs.push(glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb(
                        "Counts since the start: frames, detected (frames that were searched), skipped-still, \
                         skipped-late, faces (all that were attached), and faces that were left out: \
                         below-min-face-size, above-max-face-size, above-max-faces; each uint64",
                    )
                    .read_only()
                    .build());
            specs
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        self.settings().set(pspec.name(), value);
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return stats_structure(*self.stats()).to_value();
        }
        let value = self.settings().get(pspec.name(), self.family());
        value.unwrap_or_else(|| pspec.default_value().clone())
    }
}

impl GstObjectImpl for FaceDetect {}

impl ElementImpl for FaceDetect {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Face detector",
                "Filter/Analyzer/Video",
                "Finds faces and attaches them to the frames as region-of-interest metadata",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> =
            LazyLock::new(|| frame::transform_templates(&frame::raw_video_caps()));
        &TEMPLATES
    }
}

impl BaseTransformImpl for FaceDetect {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let mut state = State::default();
        // Errors that do not depend on the frames should come before any frame.
        if self.settings().model != AUTO {
            self.open(&mut state.detector, None).map_err(|e| error_message(&e))?;
        }
        *self.state() = Some(state);
        *self.stats() = Stats::default();
        *self.lateness() = Lateness::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *self.state() = None;
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps)
            .map_err(|_| gst::loggable_error!(CAT, "caps {incaps} are not those of raw video"))?;
        let mut guard = self.state();
        let state = guard.get_or_insert_default();
        if let Err(error) = self.open(&mut state.detector, Some(longer_side(&info))) {
            drop(guard);
            self.post_error_message(error_message(&error));
            return Err(gst::loggable_error!(CAT, "{error}"));
        }
        state.info = Some(info);
        state.reset_stream();
        Ok(())
    }

    fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
        frame::accept_caps(self, direction, caps)
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::FlushStop(_) => {
                if let Some(state) = self.state().as_mut() {
                    state.reset_stream();
                    self.lateness().flush();
                }
            }
            gst::EventView::Tag(tag) => self.check_orientation(tag.tag()),
            gst::EventView::Eos(_) => {
                let filtered = self.stats().filtered;
                let summary = filtered.summary(&self.settings());
                if let Some(summary) = summary {
                    // gst-launch-1.0 prints only the details.
                    gst::element_imp_info!(self, gst::StreamError::Decode, ("{summary}"), ["{summary}"]);
                }
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Qos(qos) => {
                let (_, _, difference, timestamp) = qos.get();
                self.lateness().handle_qos(difference, timestamp);
            }
            gst::EventView::Latency(latency) => self.lateness().configure(latency.latency()),
            _ => {}
        }
        self.parent_src_event(event)
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        frame::propose_downstream_allocation(self, decide_query, query)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = self.settings().clone();
        let mut guard = self.state();
        let state = guard.as_mut().ok_or(gst::FlowError::Flushing)?;
        let outcome = match self.process_frame(state, &settings, buffer) {
            Ok(outcome) => outcome,
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
                return Err(gst::FlowError::Error);
            }
        };
        drop(guard);
        self.count(&outcome);
        let found = match outcome {
            FrameOutcome::NotDue | FrameOutcome::Late => None,
            FrameOutcome::Unchanged(found) | FrameOutcome::Detected(found) => Some(found),
        };
        detection_mark::mark(buffer, found.is_some());
        for face in found.iter().flat_map(|found| &found.faces) {
            roi::attach_face(buffer, face);
        }
        for candidate in found.iter().flat_map(|found| &found.candidates) {
            roi::attach_candidate(buffer, candidate);
        }
        Ok(gst::FlowSuccess::Ok)
    }
}

fn stats_structure(stats: Stats) -> gst::Structure {
    gst::Structure::builder("facepipe-facedetect-stats")
        .field("frames", stats.frames)
        .field("detected", stats.detected)
        .field("skipped-still", stats.skipped_still)
        .field("skipped-late", stats.skipped_late)
        .field("faces", stats.faces)
        .field("below-min-face-size", stats.filtered.too_small)
        .field("above-max-face-size", stats.filtered.too_large)
        .field("above-max-faces", stats.filtered.too_many)
        .build()
}
