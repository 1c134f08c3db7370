//! The class of the element `facedetect`: an in-place transform around [`facepipe_detector::Detector`].

use std::{
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use facepipe_detector::{Detection, Detector, DetectorConfig, DetectorError, Family, Scene, models};
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};
use gst_video::{VideoFrameRef, VideoInfo};

use super::{
    engine::{self, BuildNotice},
    lateness::Lateness,
    orientation,
};
use crate::{
    capture_time::running_time,
    frame,
    roi::{self, FaceRegion},
    searched, set,
    timeline::{Moment, Timeline, frame_length},
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facedetect", gst::DebugColorFlags::empty(), Some("Face detection"))
});

/// The model that is chosen by the frame's width.
const AUTO: &str = "auto";

/// Where the network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeExecutionProvider")]
#[repr(i32)]
enum ExecutionProvider {
    #[default]
    #[enum_value(name = "CPU", nick = "cpu")]
    Cpu,
    #[enum_value(name = "NVIDIA CUDA", nick = "cuda")]
    Cuda,
    #[enum_value(name = "NVIDIA TensorRT", nick = "tensorrt")]
    TensorRt,
    #[enum_value(name = "Intel OpenVINO", nick = "openvino")]
    OpenVino,
}

impl From<ExecutionProvider> for facepipe_detector::ExecutionProvider {
    fn from(provider: ExecutionProvider) -> Self {
        match provider {
            ExecutionProvider::Cpu => Self::Cpu,
            ExecutionProvider::Cuda => Self::Cuda,
            ExecutionProvider::TensorRt => Self::TensorRt,
            ExecutionProvider::OpenVino => Self::OpenVino,
        }
    }
}

/// Frames at most that pass one after the other because they came late.
const MAX_LATE: u64 = 30;

#[derive(Debug, Clone)]
struct Settings {
    model: String,
    /// Unset: the model's.
    score_threshold: Option<f32>,
    /// Unset: the model's.
    low_score_threshold: Option<f32>,
    nms_threshold: f32,
    interval: u32,
    /// 0: no limit.
    max_fps: f64,
    min_face_size: u32,
    /// 0: no limit.
    max_face_size: u32,
    threads: u32,
    execution_provider: ExecutionProvider,
    engine_cache: Option<PathBuf>,
    max_faces: u32,
    motion_threshold: f32,
    max_gap: u32,
    qos: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: AUTO.into(),
            score_threshold: None,
            low_score_threshold: None,
            nms_threshold: 0.3,
            interval: 1,
            max_fps: 0.0,
            min_face_size: 0,
            max_face_size: 0,
            threads: 1,
            execution_provider: ExecutionProvider::default(),
            engine_cache: None,
            max_faces: 0,
            motion_threshold: 0.0,
            max_gap: 60,
            qos: true,
        }
    }
}

impl Settings {
    fn score_threshold(&self, family: Family) -> f32 {
        self.score_threshold.unwrap_or_else(|| family.score_threshold())
    }

    fn low_score_threshold(&self, family: Family) -> f32 {
        self.low_score_threshold.unwrap_or_else(|| family.low_score_threshold())
    }

    fn selection(&self, family: Family) -> Selection {
        let score_threshold = self.score_threshold(family);
        Selection {
            score_threshold,
            // Candidates are what does not even reach the faces' own threshold.
            lowest: self.low_score_threshold(family).min(score_threshold),
            nms_threshold: self.nms_threshold,
            max_faces: self.max_faces,
            min_size: self.min_face_size,
            max_size: if self.max_face_size == 0 { u32::MAX } else { self.max_face_size },
        }
    }

    /// The time from one searched frame to the next, at least.
    fn period(&self) -> Option<Duration> {
        let seconds = (self.max_fps > 0.0).then(|| 1.0 / self.max_fps)?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// Which of the detector's boxes count.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Selection {
    score_threshold: f32,
    lowest: f32,
    nms_threshold: f32,
    max_faces: u32,
    /// A face's shorter side at least, square pixels.
    min_size: u32,
    /// A face's longer side at most, square pixels.
    max_size: u32,
}

/// What a searched frame shows.
#[derive(Debug, Clone, Default)]
struct Faces {
    faces: Vec<FaceRegion>,
    candidates: Vec<FaceRegion>,
    left_out: LeftOut,
}

/// Faces that were found, and that the settings do not want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LeftOut {
    too_small: u64,
    too_large: u64,
    too_many: u64,
}

impl LeftOut {
    /// A sentence for people; none where nothing was left out.
    fn words(&self, settings: &Settings) -> Option<String> {
        let some = |count: u64, why: String| (count > 0).then(|| format!("{count} {why}"));
        let parts: Vec<String> = [
            some(
                self.too_small,
                format!("faces smaller than {} pixels were left out (min-face-size)", settings.min_face_size),
            ),
            some(
                self.too_large,
                format!("faces larger than {} pixels were left out (max-face-size)", settings.max_face_size),
            ),
            some(
                self.too_many,
                format!("faces beyond {} in a frame were left out (max-faces)", settings.max_faces),
            ),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

impl Selection {
    /// Of what the detector found, highest score first, what counts. `stretch` makes the frame's pixels square.
    fn select(&self, detections: &[Detection], (width, height): (u32, u32), stretch: [f64; 2]) -> Faces {
        let mut found = Faces::default();
        let most = if self.max_faces == 0 {
            usize::MAX
        } else {
            usize::try_from(self.max_faces).unwrap_or(usize::MAX)
        };
        let [across, down] = stretch;
        for detection in detections {
            let Some(region) = to_region(detection, width, height) else { continue };
            let is_face = detection.score > self.score_threshold;
            let (width, height) = (f64::from(region.width) * across, f64::from(region.height) * down);
            let reason = if width.min(height) < f64::from(self.min_size) {
                Some(&mut found.left_out.too_small)
            } else if width.max(height) > f64::from(self.max_size) {
                Some(&mut found.left_out.too_large)
            } else if found.faces.len() + found.candidates.len() >= most {
                Some(&mut found.left_out.too_many)
            } else {
                None
            };
            match (reason, is_face) {
                (None, true) => found.faces.push(region),
                (None, false) => found.candidates.push(region),
                // What is no face for sure is nobody's loss.
                (Some(count), true) => *count += 1,
                (Some(_), false) => {}
            }
        }
        found
    }
}

/// What became of the frames since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Stats {
    frames: u64,
    detected: u64,
    skipped_still: u64,
    skipped_late: u64,
    faces: u64,
    left_out: LeftOut,
}

/// What lives from `start` to `stop`.
#[derive(Default)]
struct State {
    detector: Option<OpenDetector>,
    info: Option<VideoInfo>,
    /// Frames seen since the start, a flush or a change of caps.
    frames: u64,
    timeline: Timeline,
    /// Time from which on a frame is searched, where `max-fps` limits that.
    due: Option<Duration>,
    /// The frame in which the network ran last, and what it found.
    last: Option<Last>,
    scene: Scene,
    has_warned_of_orientation: bool,
}

impl State {
    /// What was seen before counts no more.
    fn begin_anew(&mut self) {
        self.frames = 0;
        self.timeline = Timeline::default();
        self.due = None;
        self.last = None;
        self.scene.forget();
    }

    /// Whether it is a frame's turn, where so much time lies between two that are searched. A frame that comes a bit late
    /// does not delay the following ones: on the average, the rate is reached.
    fn is_due(&mut self, moment: Moment, period: Option<Duration>) -> bool {
        let Some(period) = period else {
            self.due = None;
            return true;
        };
        let due = self.due.filter(|_| !moment.begins_again()).unwrap_or(moment.time);
        if moment.time < due {
            return false;
        }
        let next = due.saturating_add(period);
        self.due = Some(if next > moment.time { next } else { moment.time.saturating_add(period) });
        true
    }
}

struct Last {
    number: u64,
    selection: Selection,
    found: Faces,
}

/// What is done with a frame.
enum Verdict {
    /// Not searched: not its turn.
    Passed,
    /// Not searched: too late.
    Late,
    /// As searched: it shows the same as the last one.
    Still(Faces),
    Detected(Faces),
}

struct OpenDetector {
    model: PathBuf,
    detector: Detector,
}

#[derive(Default)]
pub struct FaceDetect {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    // Apart from the state, which is locked while the network runs.
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

    /// That of the model that was opened last.
    fn family(&self) -> Family {
        let family = *self.family.lock().unwrap_or_else(PoisonError::into_inner);
        family.unwrap_or(Family::UltraLight)
    }

    fn lateness(&self) -> MutexGuard<'_, Lateness> {
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the configured model for frames of so many square pixels on the longer side, unless it is open already.
    fn open(&self, open: &mut Option<OpenDetector>, longer_side: Option<u32>) -> Result<(), DetectorError> {
        let settings = self.settings().clone();
        let folders = self.plugin_folder();
        let choice = models::choose(&settings.model, longer_side, &folders)?;
        let model = choice.path;
        if open.as_ref().is_some_and(|open| open.model == model) {
            return Ok(());
        }
        if let (Some(name), Some(wanted)) = (&choice.name, &choice.instead_of) {
            let text = format!("model {wanted} is not installed, so {name} is used: {}", price(name));
            gst::warning!(CAT, imp = self, "{text}");
            // gst-launch-1.0 prints the details alone.
            gst::element_imp_info!(self, gst::LibraryError::Settings, ("{text}"), ["{text}"]);
        }
        let tensor_rt = settings.execution_provider == ExecutionProvider::TensorRt;
        let engine_cache =
            tensor_rt.then(|| settings.engine_cache.clone().unwrap_or_else(engine::default_cache));
        let notice = engine_cache
            .as_deref()
            .map(|cache| BuildNotice::begin(self.obj().upcast_ref(), &model, cache, engine::PERIOD));
        let detector = Detector::open(&DetectorConfig {
            model: model.clone(),
            threads: usize::try_from(settings.threads).unwrap_or(1),
            execution_provider: settings.execution_provider.into(),
            score_threshold: settings.score_threshold(Family::of(&model)),
            nms_threshold: settings.nms_threshold,
            min_face_size: settings.min_face_size,
            // The settings choose among all that were found, to know how many they leave out.
            max_faces: 0,
            engine_cache,
            library_hints: folders,
        })?;
        drop(notice);
        gst::info!(CAT, imp = self, "opened {}, input {:?}", model.display(), detector.input_size());
        *self.family.lock().unwrap_or_else(PoisonError::into_inner) = Some(detector.family());
        *open = Some(OpenDetector { model, detector });
        Ok(())
    }

    /// The folder of the plugin's file: models and libraries may lie beside it.
    fn plugin_folder(&self) -> Vec<PathBuf> {
        let file = self.obj().factory().and_then(|f| f.plugin()).and_then(|plugin| plugin.filename());
        let file = file.map(|file| file.canonicalize().unwrap_or(file));
        file.as_deref().and_then(Path::parent).map(Path::to_path_buf).into_iter().collect()
    }

    /// Searches a frame, or finds that it need not be searched.
    fn look(
        &self,
        state: &mut State,
        settings: &Settings,
        buffer: &gst::BufferRef,
    ) -> Result<Verdict, gst::ErrorMessage> {
        let number = state.frames;
        state.frames = number.wrapping_add(1);
        let due = running_time(Some(&self.obj().segment()), buffer);
        let length = frame_length(buffer, state.info.as_ref().map(VideoInfo::fps));
        let moment = state.timeline.frame(due.map(Duration::from), length);
        if moment.begins_again() {
            self.lateness().begin_again();
        }
        if !number.is_multiple_of(u64::from(settings.interval.max(1)))
            || !state.is_due(moment, settings.period())
        {
            return Ok(Verdict::Passed);
        }
        let State { detector: Some(OpenDetector { detector, .. }), info: Some(info), last, scene, .. } =
            state
        else {
            return Err(gst::error_msg!(gst::CoreError::Negotiation, ("a frame came before its caps")));
        };
        let since = last.as_ref().map(|last| number.saturating_sub(last.number));
        let recent = last.as_ref().filter(|_| since < Some(settings.max_gap.into()));
        // Even where every frame comes late, some are searched.
        let may_pass = recent.is_some() && since < Some(MAX_LATE);
        if settings.qos && may_pass && due.is_some_and(|due| self.is_late(due)) {
            return Ok(Verdict::Late);
        }

        let mapped = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|_| {
            gst::error_msg!(gst::ResourceError::Read, ("a frame cannot be mapped for reading"))
        })?;
        let described = frame::describe(&mapped).map_err(|e| error_message(&e))?;
        let selection = settings.selection(detector.family());
        if settings.motion_threshold > 0.0 {
            let change = scene.change(&described);
            let still = change.is_some_and(|change| change <= settings.motion_threshold);
            if let Some(last) = recent.filter(|last| still && last.selection == selection) {
                return Ok(Verdict::Still(last.found.clone()));
            }
            scene.remember();
        } else {
            scene.forget();
        }

        detector.set_score_threshold(selection.lowest).map_err(|e| error_message(&e))?;
        detector.set_nms_threshold(selection.nms_threshold).map_err(|e| error_message(&e))?;
        detector.set_min_face_size(settings.min_face_size);
        let detections = detector.detect(&described).map_err(|e| error_message(&e))?;
        let found = selection.select(&detections, (info.width(), info.height()), frame::stretch(info));
        *last = Some(Last { number, selection, found: found.clone() });
        Ok(Verdict::Detected(found))
    }

    /// Says once, until the element stops, that the video lies on its side or stands on its head.
    fn look_upright(&self, tags: &gst::TagListRef) {
        let Some(orientation) = tags.get::<gst::tags::ImageOrientation>() else { return };
        let orientation = orientation.get();
        let element = self.obj();
        if orientation::is_upright(orientation) || orientation::is_turned_before(element.upcast_ref()) {
            return;
        }
        if let Some(state) = self.state().as_mut()
            && !std::mem::replace(&mut state.has_warned_of_orientation, true)
        {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Format,
                (
                    "the video is not upright (its orientation is {orientation}), and nothing before {} turns it: most \
                     faces will not be found. Put videoflip video-direction=auto before it",
                    element.name()
                )
            );
        }
    }

    fn count(&self, verdict: &Verdict) {
        let mut stats = self.stats();
        stats.frames += 1;
        match verdict {
            Verdict::Passed => {}
            Verdict::Late => stats.skipped_late += 1,
            Verdict::Still(_) => stats.skipped_still += 1,
            Verdict::Detected(found) => {
                stats.detected += 1;
                stats.faces += u64::try_from(found.faces.len()).unwrap_or(0);
                stats.left_out.too_small += found.left_out.too_small;
                stats.left_out.too_large += found.left_out.too_large;
                stats.left_out.too_many += found.left_out.too_many;
                gst::trace!(CAT, imp = self, "{} faces in frame {}", found.faces.len(), stats.frames);
            }
        }
    }

    /// Whether the frame with this running time comes late.
    fn is_late(&self, due: gst::ClockTime) -> bool {
        let element = self.obj();
        let mut lateness = self.lateness();
        if lateness.wants_latency() {
            // Downstream may want to say something while upstream answers.
            drop(lateness);
            let mut query = gst::query::Latency::new();
            let answer = element.sink_pad().peer_query(&mut query).then(|| query.result());
            lateness = self.lateness();
            lateness.set_latency(answer.map(|(live, minimum, _)| (live, minimum)));
        }
        let now = element.current_running_time();
        let late = lateness.is_late(due, now);
        if late {
            gst::debug!(CAT, imp = self, "the frame of {due} came late, at {now:?}");
        }
        late
    }
}

/// What a model costs that `auto` took instead of another one.
fn price(model: &str) -> &'static str {
    match model {
        "mtcnn" => {
            "it finds about as many faces, for several times the work, and on the CPU only. Where that is too slow, \
             interval, max-fps or a larger min-face-size help, or `facepipe models fetch detector`"
        }
        "rfb-640" => "it finds smaller faces, for several times the work",
        _ => "it misses small faces. `facepipe models fetch detector` gets the other",
    }
}

/// The longer side of a frame, in square pixels.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates at the range of u32"
)]
fn longer_side(info: &VideoInfo) -> u32 {
    let [across, down] = frame::stretch(info);
    (f64::from(info.width()) * across).max(f64::from(info.height()) * down).round() as u32
}

/// The whole pixels that a detection touches, inside the frame.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clipped to the frame, whose sides are at most 32,768 pixels"
)]
fn to_region(detection: &Detection, width: u32, height: u32) -> Option<FaceRegion> {
    let inside = detection.clipped(width as f32, height as f32)?;
    let (left, top) = (inside.left.floor() as u32, inside.top.floor() as u32);
    let (right, bottom) = (inside.right.ceil() as u32, inside.bottom.ceil() as u32);
    Some(FaceRegion {
        left,
        top,
        width: right.min(width).checked_sub(left)?,
        height: bottom.min(height).checked_sub(top)?,
        confidence: f64::from(inside.score),
        track_id: None,
        predicted: false,
    })
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
            let defaults = Settings::default();
            vec![
                glib::ParamSpecString::builder("model")
                    .nick("Model")
                    .blurb(
                        "Detector: a name (rfb-320, rfb-640, slim-320, mtcnn), the path of an .onnx file or of a pnet.pt \
                         beside rnet.pt and onet.pt, or auto: the first that is installed of rfb-640, mtcnn, rfb-320, \
                         slim-320 for frames whose longer side has at least 1280 square pixels, of rfb-320, slim-320, \
                         rfb-640, mtcnn for smaller ones",
                    )
                    .default_value(Some(AUTO))
                    .mutable_ready()
                    .build(),
                glib::ParamSpecFloat::builder("score-threshold")
                    .nick("Score threshold")
                    .blurb("Faces must score more than this. Unless it is set, it is the model's: 0.6, of mtcnn 0.9")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(Family::UltraLight.score_threshold())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("low-score-threshold")
                    .nick("Low score threshold")
                    .blurb(
                        "What scores more than this and not enough for a face is attached as face-candidate, which \
                         only facetrack reads: it may continue a track, never begin one (1 = none). Unless it is set, it \
                         is the model's: 0.3, of mtcnn 0.5",
                    )
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(Family::UltraLight.low_score_threshold())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("nms-threshold")
                    .nick("NMS threshold")
                    .blurb("Of two faces that overlap by more than this (intersection over union), one is kept")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(defaults.nms_threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("interval")
                    .nick("Interval")
                    .blurb("Look for faces in every n-th frame; the others pass without faces, unless facetrack predicts them")
                    .minimum(1)
                    .default_value(defaults.interval)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecDouble::builder("max-fps")
                    .nick("Maximum rate")
                    .blurb(
                        "Search at most so many frames in a second of the stream; the others pass as with interval (0 = \
                         no limit)",
                    )
                    .minimum(0.0)
                    .maximum(1000.0)
                    .default_value(defaults.max_fps)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("min-face-size")
                    .nick("Minimum face size")
                    .blurb(
                        "Leave out faces whose shorter side is less than this (square pixels). With mtcnn it also says \
                         how closely to look, and the time goes with its inverse square; 0 is 1/27 of the frame's \
                         shorter side there, at least 20",
                    )
                    .default_value(defaults.min_face_size)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-face-size")
                    .nick("Maximum face size")
                    .blurb("Leave out faces whose longer side is more than this (square pixels; 0 = no limit)")
                    .default_value(defaults.max_face_size)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("threads")
                    .nick("Threads")
                    .blurb("Threads that run the detector")
                    .minimum(1)
                    .maximum(1024)
                    .default_value(defaults.threads)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("execution-provider", defaults.execution_provider)
                    .nick("Execution provider")
                    .blurb("Where the detector runs; one that cannot be had is an error, never a run on the CPU")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("engine-cache")
                    .nick("Engine cache")
                    .blurb(
                        "Folder for the engines that TensorRT builds, which takes minutes the first time; unset, \
                         facepipe/tensorrt in the user's cache folder",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-faces")
                    .nick("Maximum number of faces")
                    .blurb("Keep the faces with the highest scores only, so many per frame (0 = all)")
                    .default_value(defaults.max_faces)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("motion-threshold")
                    .nick("Motion threshold")
                    .blurb(
                        "While no part of the picture has changed by more than this since the last search, frames \
                         keep the faces of then and the detector rests. In grey levels of 255, the mean of a cell of \
                         1/60 of the frame's longer side; 3 is recommended, more for noisy cameras (0 = off)",
                    )
                    .minimum(0.0)
                    .maximum(255.0)
                    .default_value(defaults.motion_threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-gap")
                    .nick("Maximum gap")
                    .blurb("Search at least every n-th frame, however still the scene; where all come late, every 30th at least")
                    .minimum(1)
                    .default_value(defaults.max_gap)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("qos")
                    .nick("Quality of service")
                    .blurb(
                        "Late frames pass without a search: those that a sink says are late, and in live pipelines \
                         those that come 200 ms later than the latency allows. No frame is dropped",
                    )
                    .default_value(defaults.qos)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb(
                        "Since the start: frames, detected (frames that the detector searched), skipped-still, \
                         skipped-late, faces (all that were attached), and those that were found and left out: \
                         below-min-face-size, above-max-face-size, above-max-faces; each uint64",
                    )
                    .read_only()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings();
        match (pspec.name(), value) {
            ("model", value) => {
                let model: Option<String> = value.get().unwrap_or_default();
                settings.model = model.filter(|m| !m.is_empty()).unwrap_or_else(|| AUTO.into());
            }
            ("score-threshold", value) => settings.score_threshold = value.get().ok(),
            ("low-score-threshold", value) => settings.low_score_threshold = value.get().ok(),
            ("nms-threshold", value) => set(&mut settings.nms_threshold, value),
            ("interval", value) => set(&mut settings.interval, value),
            ("max-fps", value) => set(&mut settings.max_fps, value),
            ("min-face-size", value) => set(&mut settings.min_face_size, value),
            ("max-face-size", value) => set(&mut settings.max_face_size, value),
            ("threads", value) => set(&mut settings.threads, value),
            ("execution-provider", value) => set(&mut settings.execution_provider, value),
            ("engine-cache", value) => {
                let folder: Option<String> = value.get().unwrap_or_default();
                settings.engine_cache = folder.filter(|f| !f.is_empty()).map(PathBuf::from);
            }
            ("max-faces", value) => set(&mut settings.max_faces, value),
            ("motion-threshold", value) => set(&mut settings.motion_threshold, value),
            ("max-gap", value) => set(&mut settings.max_gap, value),
            ("qos", value) => set(&mut settings.qos, value),
            (name, _) => gst::error!(CAT, imp = self, "no property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = self.settings();
        match pspec.name() {
            "model" => settings.model.to_value(),
            "score-threshold" => settings.score_threshold(self.family()).to_value(),
            "low-score-threshold" => settings.low_score_threshold(self.family()).to_value(),
            "nms-threshold" => settings.nms_threshold.to_value(),
            "interval" => settings.interval.to_value(),
            "max-fps" => settings.max_fps.to_value(),
            "min-face-size" => settings.min_face_size.to_value(),
            "max-face-size" => settings.max_face_size.to_value(),
            "threads" => settings.threads.to_value(),
            "execution-provider" => settings.execution_provider.to_value(),
            "engine-cache" => settings.engine_cache.as_ref().map(|f| f.display().to_string()).to_value(),
            "max-faces" => settings.max_faces.to_value(),
            "motion-threshold" => settings.motion_threshold.to_value(),
            "max-gap" => settings.max_gap.to_value(),
            "qos" => settings.qos.to_value(),
            "stats" => stats_structure(*self.stats()).to_value(),
            _ => pspec.default_value().clone(),
        }
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
        // What doesn't depend on the frames should fail before any frame comes.
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
        state.begin_anew();
        Ok(())
    }

    fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
        let accepted = self.parent_accept_caps(direction, caps);
        if !accepted
            && direction == gst::PadDirection::Sink
            && let Some(refusal) = frame::refusal(self.obj().upcast_ref(), caps)
        {
            // Whoever sends such frames would only say that the stream failed.
            self.post_error_message(refusal);
        }
        accepted
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::FlushStop(_) => {
                if let Some(state) = self.state().as_mut() {
                    state.begin_anew();
                    self.lateness().flush();
                }
            }
            gst::EventView::Tag(tag) => self.look_upright(tag.tag()),
            gst::EventView::Eos(_) => {
                let left_out = self.stats().left_out;
                let said = left_out.words(&self.settings());
                if let Some(left_out) = said {
                    // gst-launch-1.0 prints the details alone.
                    gst::element_imp_info!(self, gst::StreamError::Decode, ("{left_out}"), ["{left_out}"]);
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
                self.lateness().take_qos(difference, timestamp);
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
        frame::propose_allocation_of_what_follows(self, decide_query, query)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = self.settings().clone();
        let mut guard = self.state();
        let state = guard.as_mut().ok_or(gst::FlowError::Flushing)?;
        let verdict = match self.look(state, &settings, buffer) {
            Ok(verdict) => verdict,
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
                return Err(gst::FlowError::Error);
            }
        };
        drop(guard);
        self.count(&verdict);
        let found = match verdict {
            Verdict::Passed | Verdict::Late => None,
            Verdict::Still(found) | Verdict::Detected(found) => Some(found),
        };
        searched::mark(buffer, found.is_some());
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
        .field("below-min-face-size", stats.left_out.too_small)
        .field("above-max-face-size", stats.left_out.too_large)
        .field("above-max-faces", stats.left_out.too_many)
        .build()
}
