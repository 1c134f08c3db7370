//! The class of the element `faceoverlay`: an in-place transform that draws.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use facepipe_detector::BoundingBox;
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};
use gst_video::{VideoFrameRef, VideoInfo};

use super::draw::{Color, Drawing, Font};
use crate::{
    frame,
    missing_detector::{self, MissingDetectorWarning},
    results::{FaceResult, PipelineId, RecognitionResult, ResultSubscription},
    roi::{self, FaceRegion},
    track_events,
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-faceoverlay", gst::DebugColorFlags::empty(), Some("Face overlay"))
});

const WHITE: Color = [255, 255, 255];
const BLACK: Color = [0, 0, 0];
const RED: Color = [230, 30, 30];
const BLUE: Color = [40, 110, 255];
const GREEN: Color = [30, 200, 60];
const PURPLE: Color = [160, 50, 220];

/// How faces without a result are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeUnanswered")]
#[repr(i32)]
enum Unanswered {
    #[default]
    #[enum_value(name = "White box", nick = "white")]
    White,
    #[enum_value(name = "Red box, as where the backend found no face", nick = "red")]
    Red,
    #[enum_value(name = "Purple box, for enrolment", nick = "purple")]
    Purple,
    #[enum_value(name = "No box", nick = "none")]
    None,
}

impl Unanswered {
    /// Returns the colours of box and text.
    fn colors(self) -> Option<(Color, Color)> {
        match self {
            Self::White => Some((WHITE, BLACK)),
            Self::Red => Some((RED, WHITE)),
            Self::Purple => Some((PURPLE, WHITE)),
            Self::None => None,
        }
    }
}

/// How long a result without track id is used for the face at the same place.
const PLACE_LIMIT: Duration = Duration::from_secs(1);

/// Minimum intersection over union for that.
const SAME_PLACE: f64 = 0.3;

/// Maximum number of tracks whose results are kept; the oldest are dropped. Far more than appear at once.
const MAX_TRACKS: usize = 4096;

#[derive(Debug, Clone)]
struct Settings {
    camera_id: Option<String>,
    labels: bool,
    unanswered: Unanswered,
    /// Pixels, 0: by the frame's height.
    line_width: u32,
    /// Pixels, 0: by the frame's height.
    font_size: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { camera_id: None, labels: true, unanswered: Unanswered::default(), line_width: 0, font_size: 0 }
    }
}

/// A result for a face without a track id.
#[derive(Debug)]
struct UntrackedResult {
    received: Instant,
    bounding_box: BoundingBox<u32>,
    recognition: RecognitionResult,
}

/// The results by face.
#[derive(Debug, Default)]
struct ResultStore {
    tracks: HashMap<i32, RecognitionResult>,
    untracked: Vec<UntrackedResult>,
}

impl ResultStore {
    fn set(&mut self, track_id: i32, recognition: RecognitionResult) {
        if self.tracks.get(&track_id).is_some_and(|earlier| !recognition.supersedes(earlier)) {
            return;
        }
        self.tracks.insert(track_id, recognition);
        if self.tracks.len() > MAX_TRACKS
            && let Some(oldest) = self.tracks.keys().min().copied()
        {
            self.tracks.remove(&oldest);
        }
    }

    fn add(&mut self, result: FaceResult) {
        let recognition = result.recognition;
        match (result.track_id, result.bounding_box) {
            (Some(track_id), _) => self.set(track_id, recognition),
            (None, Some(bounding_box)) => {
                self.untracked.push(UntrackedResult { received: Instant::now(), bounding_box, recognition });
            }
            (None, None) => {}
        }
    }

    fn of(&self, face: &FaceRegion) -> Option<&RecognitionResult> {
        match face.track_id {
            Some(track_id) => self.tracks.get(&track_id),
            None => self
                .untracked
                .iter()
                .rev()
                .map(|result| (face.bounding_box.iou(&result.bounding_box), &result.recognition))
                .filter(|(iou, _)| *iou >= SAME_PLACE)
                .max_by(|(a, _), (b, _)| a.total_cmp(b))
                .map(|(_, recognition)| recognition),
        }
    }
}

#[derive(Default)]
pub struct FaceOverlay {
    settings: Mutex<Settings>,
    results: Mutex<ResultStore>,
    info: Mutex<Option<VideoInfo>>,
    subscription: Mutex<Option<Arc<ResultSubscription>>>,
    watch: Mutex<MissingDetectorWarning>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaceOverlay {
    /// Takes the results that facesink-http has published for this pipeline since the last frame.
    fn collect(&self, settings: &Settings) {
        let subscription = lock(&self.subscription).clone();
        let published = subscription.map(|subscription| subscription.take()).unwrap_or_default();
        let mut results = lock(&self.results);
        if !published.is_empty() {
            let pipeline = PipelineId::of(self.obj().upcast_ref());
            let wanted = |camera: &str| settings.camera_id.as_deref().is_none_or(|id| id == camera);
            for result in published {
                if result.pipeline == pipeline && wanted(&result.camera_id) {
                    results.add(result);
                }
            }
        }
        results.untracked.retain(|result| result.received.elapsed() < PLACE_LIMIT);
    }

    fn draw(&self, faces: &[FaceRegion], settings: &Settings, info: &VideoInfo) -> Drawing {
        let by_height = |wish: u32, height: u32| if wish > 0 { wish } else { height };
        let line = by_height(settings.line_width, (info.height() / 360).max(2));
        let line = i32::try_from(line).unwrap_or(i32::MAX);
        let font = Font::fitting(by_height(settings.font_size, info.height() / 28));
        let mut drawing = Drawing::default();
        let results = lock(&self.results);
        for face in faces {
            let pixel = |value: u32| i32::try_from(value).unwrap_or(i32::MAX).min(1 << 16);
            let area = face.bounding_box.map(pixel);
            let BoundingBox { left, top, right, bottom } = area;
            let recognition = results.of(face);
            let colors = match recognition {
                None => settings.unanswered.colors(),
                Some(RecognitionResult::NoFace) => Some((RED, WHITE)),
                Some(RecognitionResult::Unknown) => Some((BLUE, WHITE)),
                Some(RecognitionResult::Known { .. }) => Some((GREEN, BLACK)),
            };
            let Some((color, ink)) = colors else { continue };
            // A dark rim keeps the box visible on a background of its own colour.
            let rim = BoundingBox::new(left - 1, top - 1, right + 1, bottom + 1);
            drawing.border(rim, line + 2, BLACK);
            drawing.border(area, line, color);
            let label = if settings.labels { label(face, recognition) } else { String::new() };
            if label.is_empty() {
                continue;
            }
            let pad = font.height() / 6;
            let (width, height) = (font.width(&label) + 2 * pad, font.height() + pad);
            // Above the box, else below it, else inside; always within the frame.
            let (frame_width, frame_height) = (pixel(info.width()), pixel(info.height()));
            let label_top = if top >= height {
                top - height
            } else if bottom + height <= frame_height {
                bottom
            } else {
                top + line
            };
            let label_left = left.min(frame_width - width).max(0);
            let label_area = BoundingBox::new(label_left, label_top, label_left + width, label_top + height);
            drawing.fill(label_area, color, 230);
            drawing.text(label_left + pad, label_top + pad / 2, &label, font, ink);
        }
        drawing
    }
}

fn label(face: &FaceRegion, recognition: Option<&RecognitionResult>) -> String {
    match recognition {
        None => face.track_id.map(|id| format!("#{id}")).unwrap_or_default(),
        Some(RecognitionResult::NoFace) => "no face".into(),
        Some(RecognitionResult::Unknown) => "unknown".into(),
        // The camera's token may not see names.
        Some(RecognitionResult::Known { label, .. }) if label.is_empty() => "known".into(),
        Some(RecognitionResult::Known { label, confidence }) => {
            format!("{label} {:.0} %", confidence * 100.0)
        }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for FaceOverlay {
    const NAME: &'static str = "GstFacepipeFaceOverlay";
    type Type = super::FaceOverlay;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for FaceOverlay {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            vec![
                glib::ParamSpecString::builder("camera-id")
                    .nick("Camera ID")
                    .blurb(
                        "Draw the results of the facesink-http with this camera-id; if unset, those of all in the \
                         pipeline",
                    )
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("labels")
                    .nick("Labels")
                    .blurb("Write the name, or the state of recognition, next to each box")
                    .default_value(defaults.labels)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("unanswered", defaults.unanswered)
                    .nick("Unanswered")
                    .blurb("How faces are drawn for which there is no result yet")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("line-width")
                    .nick("Line width")
                    .blurb("Line width of the boxes in pixels (0 = by the height of the frame)")
                    .maximum(100)
                    .default_value(defaults.line_width)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("font-size")
                    .nick("Font size")
                    .blurb("Line height of the labels in pixels, at least 16 (0 = by the height of the frame)")
                    .maximum(1000)
                    .default_value(defaults.font_size)
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = lock(&self.settings);
        match pspec.name() {
            "camera-id" => {
                settings.camera_id =
                    value.get::<Option<String>>().unwrap_or_default().filter(|id| !id.is_empty());
            }
            "labels" => crate::set(&mut settings.labels, value),
            "unanswered" => crate::set(&mut settings.unanswered, value),
            "line-width" => crate::set(&mut settings.line_width, value),
            "font-size" => crate::set(&mut settings.font_size, value),
            name => gst::error!(CAT, imp = self, "no property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings);
        match pspec.name() {
            "camera-id" => settings.camera_id.to_value(),
            "labels" => settings.labels.to_value(),
            "unanswered" => settings.unanswered.to_value(),
            "line-width" => settings.line_width.to_value(),
            "font-size" => settings.font_size.to_value(),
            _ => pspec.default_value().clone(),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(|| {
            let instance = |values: &[glib::Value]| values.first()?.get::<super::FaceOverlay>().ok();
            vec![
                glib::subclass::Signal::builder("set-result")
                    .param_types([
                        i32::static_type(),
                        str::static_type(),
                        str::static_type(),
                        f64::static_type(),
                    ])
                    .return_type::<bool>()
                    .action()
                    .class_handler(move |values| {
                        let text = |at: usize| {
                            values
                                .get(at)
                                .and_then(|v| v.get::<Option<String>>().ok())
                                .flatten()
                                .unwrap_or_default()
                        };
                        let recognition = match text(2).as_str() {
                            "none" => RecognitionResult::NoFace,
                            "unknown" => RecognitionResult::Unknown,
                            "known" => RecognitionResult::Known {
                                label: text(3),
                                confidence: values.get(4).and_then(|v| v.get().ok()).unwrap_or(0.0),
                            },
                            _ => return Some(false.to_value()),
                        };
                        let track_id = values.get(1)?.get().ok()?;
                        lock(&instance(values)?.imp().results).set(track_id, recognition);
                        Some(true.to_value())
                    })
                    .build(),
                glib::subclass::Signal::builder("clear-results")
                    .action()
                    .class_handler(move |values| {
                        *lock(&instance(values)?.imp().results) = ResultStore::default();
                        None
                    })
                    .build(),
            ]
        });
        &SIGNALS
    }
}

impl GstObjectImpl for FaceOverlay {}

impl ElementImpl for FaceOverlay {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Face overlay",
                "Filter/Editor/Video",
                "Draws boxes around faces (white: detected, red: no face found by the backend, blue: unknown, green: \
                 recognised) and their names",
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

impl BaseTransformImpl for FaceOverlay {
    const MODE: BaseTransformMode = BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.subscription) = Some(ResultSubscription::subscribe());
        *lock(&self.watch) = MissingDetectorWarning::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.subscription) = None;
        *lock(&self.info) = None;
        *lock(&self.results) = ResultStore::default();
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps)
            .map_err(|_| gst::loggable_error!(CAT, "caps {incaps} are not those of raw video"))?;
        *lock(&self.info) = Some(info);
        Ok(())
    }

    fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
        frame::accept_caps(self, direction, caps)
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if let Some(ended) = track_events::ended_tracks(&event) {
            let mut results = lock(&self.results);
            for track in ended {
                results.tracks.remove(&track);
            }
        }
        lock(&self.watch).handle_event(&event);
        if event.type_() == gst::EventType::Eos {
            let unsearched = lock(&self.watch).end_of_stream();
            missing_detector::post(&*self.obj(), self.obj().src_pad(), unsearched);
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
        let settings = lock(&self.settings).clone();
        self.collect(&settings);
        let unsearched = lock(&self.watch).inspect_frame(buffer);
        missing_detector::post(&*self.obj(), self.obj().src_pad(), unsearched);
        let faces = roi::faces_and_predictions(buffer);
        if faces.is_empty() {
            return Ok(gst::FlowSuccess::Ok);
        }
        let info = lock(&self.info).clone().ok_or(gst::FlowError::NotNegotiated)?;
        let drawing = self.draw(&faces, &settings, &info);
        let mut mapped = VideoFrameRef::from_buffer_ref_writable(buffer, &info).map_err(|_| {
            gst::element_imp_error!(
                self,
                gst::ResourceError::Write,
                ("a frame cannot be mapped for writing")
            );
            gst::FlowError::Error
        })?;
        drawing.paint(&mut mapped);
        Ok(gst::FlowSuccess::Ok)
    }
}
