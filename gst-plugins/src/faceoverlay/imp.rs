//! The class of the element `faceoverlay`: an in-place transform that draws.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{
    prelude::*,
    subclass::{BaseTransformMode, prelude::*},
};
use gst_video::{VideoFrameRef, VideoInfo};

use super::draw::{Color, Drawing, Font};
use crate::{
    detector_watch::{self, DetectorWatch},
    frame,
    results::{FaceResult, Inbox, Scope, Verdict},
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

/// How faces are drawn of which the backend has said nothing (yet).
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
    /// The colours of box and writing.
    fn colors(self) -> Option<(Color, Color)> {
        match self {
            Self::White => Some((WHITE, BLACK)),
            Self::Red => Some((RED, WHITE)),
            Self::Purple => Some((PURPLE, WHITE)),
            Self::None => None,
        }
    }
}

/// Without track ids, a result is taken for the face at the same place for so long.
const PLACE_LIMIT: Duration = Duration::from_secs(1);

/// Least overlap (intersection over union) for that.
const SAME_PLACE: f64 = 0.3;

/// Tracks whose results are remembered; the oldest give way. Many more than anybody sees at once.
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

/// What is known of the faces.
#[derive(Debug, Default)]
struct Verdicts {
    tracks: HashMap<i32, Verdict>,
    places: Vec<(Instant, [u32; 4], Verdict)>,
}

impl Verdicts {
    fn set(&mut self, track_id: i32, verdict: Verdict) {
        if self.tracks.get(&track_id).is_some_and(|earlier| !verdict.outweighs(earlier)) {
            return;
        }
        self.tracks.insert(track_id, verdict);
        if self.tracks.len() > MAX_TRACKS
            && let Some(oldest) = self.tracks.keys().min().copied()
        {
            self.tracks.remove(&oldest);
        }
    }

    fn take(&mut self, result: FaceResult) {
        match (result.track_id, result.bounding_box) {
            (Some(track_id), _) => self.set(track_id, result.verdict),
            (None, Some(place)) => self.places.push((Instant::now(), place, result.verdict)),
            (None, None) => {}
        }
    }

    fn of(&self, face: &FaceRegion) -> Option<&Verdict> {
        match face.track_id {
            Some(track_id) => self.tracks.get(&track_id),
            None => self
                .places
                .iter()
                .rev()
                .map(|(_, place, verdict)| (overlap(face, place), verdict))
                .filter(|(overlap, _)| *overlap >= SAME_PLACE)
                .max_by(|(a, _), (b, _)| a.total_cmp(b))
                .map(|(_, verdict)| verdict),
        }
    }
}

/// Intersection over union.
fn overlap(face: &FaceRegion, [left, top, right, bottom]: &[u32; 4]) -> f64 {
    let (face_right, face_bottom) =
        (face.left.saturating_add(face.width), face.top.saturating_add(face.height));
    let width = face_right.min(*right).saturating_sub(face.left.max(*left));
    let height = face_bottom.min(*bottom).saturating_sub(face.top.max(*top));
    let shared = f64::from(width) * f64::from(height);
    let place = f64::from(right.saturating_sub(*left)) * f64::from(bottom.saturating_sub(*top));
    let both = f64::from(face.width) * f64::from(face.height) + place - shared;
    if both > 0.0 { shared / both } else { 0.0 }
}

#[derive(Default)]
pub struct FaceOverlay {
    settings: Mutex<Settings>,
    verdicts: Mutex<Verdicts>,
    info: Mutex<Option<VideoInfo>>,
    inbox: Mutex<Option<Arc<Inbox>>>,
    watch: Mutex<DetectorWatch>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaceOverlay {
    /// Says that there is nothing to do here.
    fn warn(&self, text: Option<String>) {
        let Some(text) = text else { return };
        gst::element_imp_warning!(self, gst::StreamError::Failed, ("{text}"));
        self.obj().src_pad().push_event(detector_watch::told());
    }

    /// Takes over what facesink-http has published for this pipeline since the last frame.
    fn collect(&self, settings: &Settings) {
        let inbox = lock(&self.inbox).clone();
        let published = inbox.map(|inbox| inbox.take()).unwrap_or_default();
        let mut verdicts = lock(&self.verdicts);
        if !published.is_empty() {
            let scope = Scope::of(self.obj().upcast_ref());
            let wanted = |camera: &str| settings.camera_id.as_deref().is_none_or(|id| id == camera);
            for result in published {
                if result.scope == scope && wanted(&result.camera_id) {
                    verdicts.take(result);
                }
            }
        }
        verdicts.places.retain(|(since, ..)| since.elapsed() < PLACE_LIMIT);
    }

    fn draw(&self, faces: &[FaceRegion], settings: &Settings, info: &VideoInfo) -> Drawing {
        let by_height = |wish: u32, height: u32| if wish > 0 { wish } else { height };
        let line = by_height(settings.line_width, (info.height() / 360).max(2));
        let line = i32::try_from(line).unwrap_or(i32::MAX);
        let font = Font::fitting(by_height(settings.font_size, info.height() / 28));
        let mut drawing = Drawing::default();
        let verdicts = lock(&self.verdicts);
        for face in faces {
            let pixel = |value: u32| i32::try_from(value).unwrap_or(i32::MAX).min(1 << 16);
            let (left, top) = (pixel(face.left), pixel(face.top));
            let (right, bottom) = (left + pixel(face.width), top + pixel(face.height));
            let verdict = verdicts.of(face);
            let colors = match verdict {
                None => settings.unanswered.colors(),
                Some(Verdict::NoFace) => Some((RED, WHITE)),
                Some(Verdict::Unknown) => Some((BLUE, WHITE)),
                Some(Verdict::Known { .. }) => Some((GREEN, BLACK)),
            };
            let Some((color, ink)) = colors else { continue };
            // A dark rim keeps the box visible on a background of its own colour.
            drawing.border([left - 1, top - 1, right + 1, bottom + 1], line + 2, BLACK);
            drawing.border([left, top, right, bottom], line, color);
            let label = if settings.labels { label(face, verdict) } else { String::new() };
            if label.is_empty() {
                continue;
            }
            let pad = font.height() / 6;
            let (width, height) = (font.width(&label) + 2 * pad, font.height() + pad);
            // Above the box, or below where the frame ends above it, or inside; and never beyond the frame's sides.
            let (frame_width, frame_height) = (pixel(info.width()), pixel(info.height()));
            let label_top = if top >= height {
                top - height
            } else if bottom + height <= frame_height {
                bottom
            } else {
                top + line
            };
            let label_left = left.min(frame_width - width).max(0);
            drawing.fill([label_left, label_top, label_left + width, label_top + height], color, 230);
            drawing.text(label_left + pad, label_top + pad / 2, &label, font, ink);
        }
        drawing
    }
}

fn label(face: &FaceRegion, verdict: Option<&Verdict>) -> String {
    match verdict {
        None => face.track_id.map(|id| format!("#{id}")).unwrap_or_default(),
        Some(Verdict::NoFace) => "no face".into(),
        Some(Verdict::Unknown) => "unknown".into(),
        Some(Verdict::Known { label, confidence }) => format!("{label} {:.0} %", confidence * 100.0),
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
                        "Draw the results of the facesink-http with this camera-id; unset, those of every one in \
                         the pipeline",
                    )
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("labels")
                    .nick("Labels")
                    .blurb("Write who it is beside each box")
                    .default_value(defaults.labels)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("unanswered", defaults.unanswered)
                    .nick("Unanswered")
                    .blurb("How faces are drawn of which the backend has said nothing yet")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("line-width")
                    .nick("Line width")
                    .blurb("Width of the boxes' lines in pixels (0 = by the height of the frame)")
                    .maximum(100)
                    .default_value(defaults.line_width)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("font-size")
                    .nick("Font size")
                    .blurb("Height of the labels' lines in pixels, at least 16 (0 = by the height of the frame)")
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
                        let verdict = match text(2).as_str() {
                            "none" => Verdict::NoFace,
                            "unknown" => Verdict::Unknown,
                            "known" => Verdict::Known {
                                label: text(3),
                                confidence: values.get(4).and_then(|v| v.get().ok()).unwrap_or(0.0),
                            },
                            _ => return Some(false.to_value()),
                        };
                        let track_id = values.get(1)?.get().ok()?;
                        lock(&instance(values)?.imp().verdicts).set(track_id, verdict);
                        Some(true.to_value())
                    })
                    .build(),
                glib::subclass::Signal::builder("clear-results")
                    .action()
                    .class_handler(move |values| {
                        *lock(&instance(values)?.imp().verdicts) = Verdicts::default();
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
                "Draws boxes around faces (white: detected, red: no face for the backend, blue: unknown, green: \
                 recognised) and who they are",
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
        *lock(&self.inbox) = Some(Inbox::subscribe());
        *lock(&self.watch) = DetectorWatch::default();
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.inbox) = None;
        *lock(&self.info) = None;
        *lock(&self.verdicts) = Verdicts::default();
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps)
            .map_err(|_| gst::loggable_error!(CAT, "caps {incaps} are not those of raw video"))?;
        *lock(&self.info) = Some(info);
        Ok(())
    }

    fn accept_caps(&self, direction: gst::PadDirection, caps: &gst::Caps) -> bool {
        let accepted = self.parent_accept_caps(direction, caps);
        if !accepted
            && direction == gst::PadDirection::Sink
            && let Some(refusal) = frame::refusal(self.obj().upcast_ref(), caps)
        {
            self.post_error_message(refusal);
        }
        accepted
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if let Some(ended) = track_events::ended_tracks(&event) {
            let mut verdicts = lock(&self.verdicts);
            for track in ended {
                verdicts.tracks.remove(&track);
            }
        }
        lock(&self.watch).event(&event);
        if event.type_() == gst::EventType::Eos {
            let unsearched = lock(&self.watch).end();
            self.warn(unsearched);
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
        let settings = lock(&self.settings).clone();
        self.collect(&settings);
        let unsearched = lock(&self.watch).frame(buffer);
        self.warn(unsearched);
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
