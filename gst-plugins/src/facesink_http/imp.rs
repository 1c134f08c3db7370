//! The class of the element `facesink-http`: a thin sink around [`Uploader`].

use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};
use gst_video::{VideoInfo, VideoMeta};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    capture_time::{capture_time, running_time},
    crop_properties,
    cutter::{self, CutterSettings, FaceCutter, Shot},
    frame,
    roi::{self, CropFacts, FaceRegion},
    track_events,
    upload::{Crop, Drained, Endpoint, Stats, UploadConfig, Uploader},
};

use super::messages;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facesink-http", gst::DebugColorFlags::empty(), Some("Face upload"))
});

#[derive(Debug, Clone)]
struct Settings {
    backend_url: String,
    camera_id: Option<String>,
    camera_location: String,
    endpoint: Endpoint,
    /// Seconds.
    timeout: u32,
    max_queue: u32,
    /// Seconds.
    eos_timeout: u32,
    capture_start: Option<String>,
    crop: CutterSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            backend_url: "http://127.0.0.1:8080".into(),
            camera_id: None,
            camera_location: String::new(),
            endpoint: Endpoint::default(),
            timeout: 15,
            max_queue: 512,
            eos_timeout: 30,
            capture_start: None,
            crop: CutterSettings::default(),
        }
    }
}

/// What lives from `start` to `stop`.
struct State {
    uploader: Arc<Uploader>,
    input: Option<Input>,
    cutter: FaceCutter,
    /// When the recording that is played was begun.
    capture_start: Option<OffsetDateTime>,
    /// The queue overflowed with the last crop too: said once per overflow.
    overflowing: bool,
}

/// What the caps announced.
enum Input {
    Jpeg,
    Raw(VideoInfo),
}

#[derive(Default)]
pub struct FaceSinkHttp {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    /// The counts of the last run, which can still be asked for after it.
    final_stats: Mutex<Stats>,
}

impl FaceSinkHttp {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uploader(&self) -> Option<Arc<Uploader>> {
        self.state().as_ref().map(|state| Arc::clone(&state.uploader))
    }

    fn stats(&self) -> gst::Structure {
        let stats = match self.uploader() {
            Some(uploader) => uploader.stats(),
            None => *self.final_stats.lock().unwrap_or_else(PoisonError::into_inner),
        };
        gst::Structure::builder("facepipe-stats")
            .field("queued", stats.queued)
            .field("sent", stats.sent)
            .field("failed", stats.failed)
            .field("dropped", stats.dropped)
            .field("requests", stats.requests)
            .field("retries", stats.retries)
            .field("bytes", stats.bytes)
            .field("bytes-received", stats.bytes_received)
            .build()
    }

    /// When a buffer, or the frame that it was cut from, was captured; never in the future, where a recording
    /// that runs faster than its clock would be.
    fn captured_at(
        &self,
        start: Option<OffsetDateTime>,
        segment: &gst::Segment,
        buffer: Option<&gst::BufferRef>,
        facts: Option<&CropFacts>,
    ) -> OffsetDateTime {
        if let Some(start) = start {
            let elapsed = facts.and_then(|facts| facts.running_time).or_else(|| {
                buffer.and_then(|buffer| running_time(Some(segment), buffer)).map(Duration::from)
            });
            return start
                .checked_add(elapsed.unwrap_or_default().try_into().unwrap_or_default())
                .unwrap_or(start);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let captured = facts
            .and_then(|facts| facts.captured_at)
            .or_else(|| {
                buffer.and_then(|buffer| capture_time(self.obj().upcast_ref(), Some(segment), buffer))
            })
            .unwrap_or(now)
            .min(now);
        OffsetDateTime::UNIX_EPOCH
            .checked_add(captured.try_into().unwrap_or_default())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The crops that a buffer brings: one picture, or the faces of a frame.
    fn crops(
        &self,
        state: &mut State,
        settings: &Settings,
        buffer: &gst::Buffer,
    ) -> Result<Vec<Crop>, gst::ErrorMessage> {
        let segment = self.obj().segment();
        let State { input: Some(input), cutter, capture_start: start, .. } = state else {
            return Err(gst::error_msg!(gst::CoreError::Negotiation, ("a buffer came before its caps")));
        };
        match input {
            Input::Jpeg => {
                let facts = roi::crop_facts(buffer);
                let captured_at = self.captured_at(*start, &segment, Some(buffer), facts.as_ref());
                // Shares the memory with the buffer for as long as the crop waits.
                let mapped = buffer.clone().into_mapped_buffer_readable().map_err(|_| {
                    gst::error_msg!(gst::ResourceError::Read, ("a buffer cannot be mapped for reading"))
                })?;
                Ok(vec![new_crop(Bytes::from_owner(mapped), captured_at, facts.map(|f| f.face))])
            }
            Input::Raw(info) => {
                let element = self.obj();
                let input =
                    cutter::Input { element: element.upcast_ref(), segment: Some(&segment), info, buffer };
                let shots = cutter.frame(&input, &settings.crop)?;
                let start = *start;
                Ok(shots.into_iter().map(|shot| self.crop_of(shot, start, &segment)).collect())
            }
        }
    }

    fn crop_of(&self, shot: Shot, start: Option<OffsetDateTime>, segment: &gst::Segment) -> Crop {
        let captured_at = self.captured_at(start, segment, None, Some(&shot.facts));
        new_crop(Bytes::from(shot.encoded), captured_at, Some(shot.facts.face))
    }

    /// Queues the best pictures of tracks that ended: of these, or of all.
    fn end_tracks(&self, tracks: Option<&[i32]>) {
        let settings = self.settings().crop;
        let segment = self.obj().segment();
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return };
        let shots = match tracks {
            Some(tracks) => state.cutter.end(tracks, &settings),
            None => state.cutter.end_all(&settings),
        };
        match shots {
            Ok(shots) => {
                for shot in shots {
                    state.uploader.push(self.crop_of(shot, state.capture_start, &segment));
                }
            }
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
            }
        }
    }

    /// Waits for what is queued, within `eos-timeout`.
    fn drain(&self) {
        let Some(uploader) = self.uploader() else { return };
        let limit = self.settings().eos_timeout;
        match uploader.drain(Duration::from_secs(limit.into())) {
            Drained::Empty => gst::debug!(CAT, imp = self, "everything is uploaded"),
            Drained::Interrupted => gst::debug!(CAT, imp = self, "stopped while crops were waiting"),
            Drained::TimedOut { left } => gst::element_imp_warning!(
                self,
                gst::ResourceError::Write,
                ("{left} crops were not uploaded within eos-timeout ({limit} s)")
            ),
        }
    }
}

fn parse_capture_start(text: &str) -> Result<OffsetDateTime, gst::ErrorMessage> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|error| {
        gst::error_msg!(
            gst::ResourceError::Settings,
            ("capture-start is `{text}`: {error}; expected a time in RFC 3339 form, such as \
                 2024-05-06T07:08:09Z")
        )
    })
}

fn new_crop(jpeg: Bytes, captured_at: OffsetDateTime, face: Option<FaceRegion>) -> Crop {
    Crop {
        jpeg,
        captured_at,
        track_id: face.and_then(|f| f.track_id),
        bounding_box: face
            .map(|f| [f.left, f.top, f.left.saturating_add(f.width), f.top.saturating_add(f.height)]),
        key: Uuid::now_v7(),
    }
}

#[glib::object_subclass]
impl ObjectSubclass for FaceSinkHttp {
    const NAME: &'static str = "GstFacepipeFaceSinkHttp";
    type Type = super::FaceSinkHttp;
    type ParentType = gst_base::BaseSink;
}

impl ObjectImpl for FaceSinkHttp {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = vec![
                glib::ParamSpecString::builder("backend-url")
                    .nick("Backend URL")
                    .blurb("Root of the backend's API, http:// or https://")
                    .default_value(Some(defaults.backend_url.as_str()))
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("camera-id")
                    .nick("Camera ID")
                    .blurb("Name of the camera, stored with each detection (unset = this machine's host name)")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("camera-location")
                    .nick("Camera location")
                    .blurb("Where the camera stands, stored with each detection")
                    .default_value(Some(defaults.camera_location.as_str()))
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("endpoint", defaults.endpoint)
                    .nick("Endpoint")
                    .blurb("The backend's call that takes the crops")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("timeout")
                    .nick("Timeout")
                    .blurb("Limit for one request, from connecting to the whole answer (seconds); then it is repeated")
                    .minimum(1)
                    .default_value(defaults.timeout)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-queue")
                    .nick("Maximum queue length")
                    .blurb("Crops that may wait for upload; when it is reached the oldest is dropped")
                    .minimum(1)
                    .default_value(defaults.max_queue)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("eos-timeout")
                    .nick("EOS timeout")
                    .blurb("At the end of the stream, wait at most so long for what is queued (seconds)")
                    .default_value(defaults.eos_timeout)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecString::builder("capture-start")
                    .nick("Capture start")
                    .blurb("When the recording that is played was begun (RFC 3339, 2024-05-06T07:08:09Z); unset = live")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb(
                        "Counts since the start: queued (crops waiting or under way now), sent, failed (refused by \
                         the backend), dropped, requests, retries, bytes (written to the network, headers included), \
                         bytes-received",
                    )
                    .read_only()
                    .build(),
            ];
            properties.extend(crop_properties::param_specs());
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let text = || value.get::<Option<String>>().unwrap_or_default();
        let number = |default: u32| value.get::<u32>().unwrap_or(default);
        let defaults = Settings::default();
        let mut settings = self.settings();
        match pspec.name() {
            "backend-url" => settings.backend_url = text().unwrap_or(defaults.backend_url),
            "camera-id" => settings.camera_id = text().filter(|id| !id.is_empty()),
            "camera-location" => settings.camera_location = text().unwrap_or_default(),
            "endpoint" => settings.endpoint = value.get().unwrap_or_default(),
            "timeout" => settings.timeout = number(defaults.timeout),
            "max-queue" => settings.max_queue = number(defaults.max_queue),
            "eos-timeout" => settings.eos_timeout = number(defaults.eos_timeout),
            "capture-start" => settings.capture_start = text().filter(|time| !time.is_empty()),
            name => {
                crop_properties::set(&mut settings.crop, value, name);
            }
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let settings = self.settings();
        match pspec.name() {
            "backend-url" => settings.backend_url.to_value(),
            "camera-id" => settings.camera_id.to_value(),
            "camera-location" => settings.camera_location.to_value(),
            "endpoint" => settings.endpoint.to_value(),
            "timeout" => settings.timeout.to_value(),
            "max-queue" => settings.max_queue.to_value(),
            "eos-timeout" => settings.eos_timeout.to_value(),
            "capture-start" => settings.capture_start.to_value(),
            name => {
                let value = crop_properties::get(&settings.crop, name);
                value.unwrap_or_else(|| pspec.default_value().clone())
            }
        }
    }
}

impl GstObjectImpl for FaceSinkHttp {}

impl ElementImpl for FaceSinkHttp {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Face uploader",
                "Sink/Network",
                "Uploads face crops to the backend, which recognises them",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let mut caps = gst::Caps::builder("image/jpeg").build();
            caps.merge(frame::raw_video_caps());
            gst::PadTemplate::new("sink", gst::PadDirection::Sink, gst::PadPresence::Always, &caps)
                .into_iter()
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseSinkImpl for FaceSinkHttp {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        let camera_id = settings.camera_id.unwrap_or_else(|| glib::host_name().into());
        let capture_start = settings.capture_start.map(|text| parse_capture_start(&text)).transpose()?;
        let element = self.obj().downgrade();
        let uploader = Uploader::start(
            UploadConfig {
                backend_url: settings.backend_url,
                endpoint: settings.endpoint,
                camera_id,
                camera_location: settings.camera_location,
                timeout: Duration::from_secs(settings.timeout.into()),
                max_queue: usize::try_from(settings.max_queue).unwrap_or(usize::MAX),
                ..UploadConfig::default()
            },
            Arc::new(move |event| {
                if let Some(element) = element.upgrade() {
                    messages::post(&element, event);
                }
            }),
        )
        .map_err(|error| gst::error_msg!(gst::ResourceError::Settings, ("{error}")))?;
        *self.state() = Some(State {
            uploader: Arc::new(uploader),
            input: None,
            cutter: FaceCutter::default(),
            capture_start,
            overflowing: false,
        });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = self.state().take();
        if let Some(state) = state {
            let stats = state.uploader.stop();
            gst::info!(CAT, imp = self, "{stats:?}");
            *self.final_stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        }
        Ok(())
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        if let Some(uploader) = self.uploader() {
            uploader.interrupt();
        }
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        if let Some(uploader) = self.uploader() {
            uploader.resume();
        }
        Ok(())
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let jpeg = caps.structure(0).is_some_and(|s| s.name() == "image/jpeg");
        let input = if jpeg {
            Input::Jpeg
        } else {
            let info = VideoInfo::from_caps(caps);
            Input::Raw(info.map_err(|_| gst::loggable_error!(CAT, "caps {caps} are not those of raw video"))?)
        };
        if let Some(state) = self.state().as_mut() {
            state.input = Some(input);
        }
        Ok(())
    }

    fn propose_allocation(&self, query: &mut gst::query::Allocation) -> Result<(), gst::LoggableError> {
        self.parent_propose_allocation(query)?;
        query.add_allocation_meta::<VideoMeta>(None);
        Ok(())
    }

    fn event(&self, event: gst::Event) -> bool {
        match event.type_() {
            gst::EventType::Eos => {
                self.end_tracks(None);
                self.drain();
            }
            gst::EventType::CustomDownstream => {
                if let Some(tracks) = track_events::ended_tracks(&event) {
                    self.end_tracks(Some(&tracks));
                }
            }
            gst::EventType::FlushStop => {
                if let Some(state) = self.state().as_mut() {
                    state.cutter.clear();
                }
            }
            _ => {}
        }
        self.parent_event(event)
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = self.settings().clone();
        let mut guard = self.state();
        let state = guard.as_mut().ok_or(gst::FlowError::Flushing)?;
        let crops = match self.crops(state, &settings, buffer) {
            Ok(crops) => crops,
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
                return Err(gst::FlowError::Error);
            }
        };
        for crop in crops {
            let full = state.uploader.push(crop);
            if full && !state.overflowing {
                gst::warning!(
                    CAT,
                    imp = self,
                    "max-queue ({}) is reached: the oldest crops give way",
                    settings.max_queue
                );
            }
            state.overflowing = full;
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
