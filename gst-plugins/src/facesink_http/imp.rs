//! The class of the element `facesink-http`: a thin sink around [`Uploader`].

use std::{
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};
use gst_video::{VideoInfo, VideoMeta};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    capture_time::{CaptureClock, Captured, not_after_now, running_time},
    crop::Encoding,
    crop_properties,
    cutter::{self, Counts, CutterSettings, FaceCutter, Shot},
    detector_watch::DetectorWatch,
    frame,
    roi::{self, CropFacts, FaceRegion},
    track_events,
    upload::{
        self, Camera, Crop, DrainOutcome, DropPolicy, Endpoint, PushOutcome, RuntimeSettings, SpoolConfig,
        Stats, Token, TokenError, UploadConfig, Uploader,
    },
};

use super::messages;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facesink-http", gst::DebugColorFlags::empty(), Some("Face upload"))
});

/// `retries` without end.
const UNLIMITED: i32 = -1;

/// Crops in one request at most: the backend's own limit, unless it is configured otherwise.
const MAX_BATCH: u32 = 64;

#[derive(Debug, Clone)]
struct Settings {
    backend_url: String,
    camera_id: Option<String>,
    camera_location: String,
    endpoint: Endpoint,
    /// Seconds.
    timeout: u32,
    max_queue: u32,
    batch_size: u32,
    /// Milliseconds.
    batch_delay: u32,
    workers: u32,
    retries: i32,
    token: Option<Result<Token, TokenError>>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    pinned_sha256: Option<String>,
    otlp_endpoint: Option<String>,
    spool_dir: Option<PathBuf>,
    spool_max_bytes: u64,
    drop_policy: DropPolicy,
    /// Seconds.
    eos_timeout: u32,
    /// Seconds.
    stats_interval: u32,
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
            batch_size: 8,
            batch_delay: 1000,
            workers: 2,
            retries: UNLIMITED,
            token: None,
            token_file: None,
            ca_file: None,
            pinned_sha256: None,
            otlp_endpoint: None,
            spool_dir: None,
            spool_max_bytes: 256 << 20,
            drop_policy: DropPolicy::default(),
            eos_timeout: 30,
            stats_interval: 60,
            capture_start: None,
            crop: CutterSettings::default(),
        }
    }
}

impl Settings {
    fn runtime(&self) -> RuntimeSettings {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        RuntimeSettings {
            timeout: Duration::from_secs(self.timeout.into()),
            max_queue: size(self.max_queue),
            batch_size: size(self.batch_size),
            batch_delay: Duration::from_millis(self.batch_delay.into()),
            retries: u32::try_from(self.retries).ok(),
            drop_policy: self.drop_policy,
            token: self.token.clone().and_then(Result::ok),
            token_file: self.token_file.clone(),
            stats_interval: Duration::from_secs(self.stats_interval.into()),
        }
    }

    fn spool(&self) -> Option<SpoolConfig> {
        let folder = self.spool_dir.clone()?;
        (self.spool_max_bytes > 0).then_some(SpoolConfig { folder, max_bytes: self.spool_max_bytes })
    }

    fn camera(&self) -> Camera {
        let id = self.camera_id.clone().unwrap_or_else(|| glib::host_name().into());
        Camera { id, location: self.camera_location.clone() }
    }
}

/// What lives from `start` to `stop`.
struct State {
    uploader: Arc<Uploader>,
    input: Option<Input>,
    cutter: FaceCutter,
    /// Of pictures that facecrop has not made.
    clock: CaptureClock,
    watch: DetectorWatch,
    /// Shared by its crops for as long as it doesn't change.
    camera: Arc<Camera>,
    /// When the recording that is played was begun.
    capture_start: Option<OffsetDateTime>,
    /// The queue overflowed with the last crop too: said once per overflow.
    overflowing: bool,
}

/// What the caps announced.
enum Input {
    Picture(Encoding),
    Raw(VideoInfo),
}

#[derive(Default)]
pub struct FaceSinkHttp {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    /// Crops of this run that got this machine's time since their camera's clock was not taken.
    clock_refused: AtomicU64,
    /// The counts of the last run, which can still be asked for after it.
    final_stats: Mutex<Stats>,
    final_counts: Mutex<Counts>,
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
        messages::stats(&stats, &self.counts(), self.clock_refused())
    }

    /// What became of the faces of frames.
    pub(super) fn counts(&self) -> Counts {
        match self.state().as_ref() {
            Some(state) => state.cutter.counts(),
            None => *self.final_counts.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn clock_refused(&self) -> u64 {
        self.clock_refused.load(Ordering::Relaxed)
    }

    /// When a picture, or the frame that it was cut from, was captured: for a recording counted from its start, else never in
    /// the future, where a recording that runs faster than its clock would be.
    fn captured_at(
        &self,
        start: Option<OffsetDateTime>,
        running_time: Option<Duration>,
        captured: Option<Captured>,
    ) -> OffsetDateTime {
        if let Some(start) = start {
            let elapsed = running_time.unwrap_or_default();
            return start.checked_add(elapsed.try_into().unwrap_or_default()).unwrap_or(start);
        }
        if captured.is_some_and(|captured| captured.clock_refused) {
            self.clock_refused.fetch_add(1, Ordering::Relaxed);
        }
        let captured = not_after_now(captured.map(|captured| captured.at));
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
        let State { input: Some(input), cutter, clock, camera, capture_start: start, .. } = state else {
            return Err(gst::error_msg!(gst::CoreError::Negotiation, ("a buffer came before its caps")));
        };
        match input {
            Input::Picture(encoding) => {
                let facts = roi::crop_facts(buffer);
                let running_time = facts
                    .and_then(|facts| facts.running_time)
                    .or_else(|| running_time(Some(&segment), buffer).map(Duration::from));
                let captured = facts.and_then(|facts| captured(&facts)).unwrap_or_else(|| {
                    clock.captured(self.obj().upcast_ref(), running_time, buffer, settings.crop.clock)
                });
                let captured_at = self.captured_at(*start, running_time, Some(captured));
                // Shares the memory with the buffer for as long as the crop waits.
                let mapped = buffer.clone().into_mapped_buffer_readable().map_err(|_| {
                    gst::error_msg!(gst::ResourceError::Read, ("a buffer cannot be mapped for reading"))
                })?;
                let picture = Bytes::from_owner(mapped);
                Ok(vec![new_crop(picture, *encoding, camera, captured_at, facts.map(|f| f.face))])
            }
            Input::Raw(info) => {
                let element = self.obj();
                let input =
                    cutter::Input { element: element.upcast_ref(), segment: Some(&segment), info, buffer };
                let shots = cutter.frame(&input, &settings.crop)?;
                Ok(shots.into_iter().map(|shot| self.to_upload(shot, camera, *start)).collect())
            }
        }
    }

    fn to_upload(&self, shot: Shot, camera: &Arc<Camera>, start: Option<OffsetDateTime>) -> Crop {
        let captured_at = self.captured_at(start, shot.facts.running_time, captured(&shot.facts));
        new_crop(Bytes::from(shot.encoded), shot.encoding, camera, captured_at, Some(shot.facts.face))
    }

    /// Queues the best pictures of tracks that ended: of these, or of all.
    fn end_tracks(&self, tracks: Option<&[i32]>) {
        let settings = self.settings().crop;
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return };
        let shots = match tracks {
            Some(tracks) => state.cutter.end(tracks, &settings),
            None => state.cutter.end_all(&settings),
        };
        match shots {
            Ok(shots) => {
                for shot in shots {
                    // Events cannot wait for room as frames can.
                    let crop = self.to_upload(shot, &state.camera, state.capture_start);
                    state.uploader.push_nonblocking(crop);
                }
            }
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
            }
        }
    }

    fn warn(&self, text: Option<String>) {
        if let Some(text) = text {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
        }
    }

    /// Waits for what is queued, within `eos-timeout`.
    fn drain(&self) {
        let Some(uploader) = self.uploader() else { return };
        let limit = self.settings().eos_timeout;
        match uploader.drain(Duration::from_secs(limit.into())) {
            DrainOutcome::Empty => gst::debug!(CAT, imp = self, "everything is uploaded"),
            DrainOutcome::Interrupted => gst::debug!(CAT, imp = self, "stopped while crops were waiting"),
            DrainOutcome::TimedOut { left, spooled } => {
                let on_disk = match spooled {
                    0 => String::new(),
                    n => format!("; {n} more are on the spool, and are sent when the element runs again"),
                };
                gst::element_imp_warning!(
                    self,
                    gst::ResourceError::Write,
                    ("{left} crops were not uploaded within eos-timeout ({limit} s){on_disk}")
                );
            }
        }
        if let Some(left_out) = self.counts().left_out() {
            // gst-launch-1.0 prints the details alone.
            gst::element_imp_info!(self, gst::StreamError::Encode, ("{left_out}"), ["{left_out}"]);
        }
        let stats = uploader.stats();
        if stats.failed > 0 || stats.dropped > 0 {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Write,
                (
                    "{} crops were lost: {} were refused or given up, {} gave way in a full queue",
                    stats.failed.saturating_add(stats.dropped),
                    stats.failed,
                    stats.dropped
                )
            );
        }
        messages::post_stats(&self.obj(), &stats);
    }

    /// Takes over changed settings while it runs.
    fn apply(&self, settings: &Settings) {
        if let Some(Err(error)) = &settings.token {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("token {error}: none is sent"));
        }
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return };
        state.uploader.update_settings(settings.runtime());
        let camera = settings.camera();
        if *state.camera == camera {
            return;
        }
        match camera.validate() {
            Ok(()) => state.camera = Arc::new(camera),
            Err(error) => {
                drop(guard);
                gst::element_imp_warning!(
                    self,
                    gst::ResourceError::Settings,
                    ("{error}: the camera keeps its former name and place")
                );
            }
        }
    }
}

/// What a crop says of the time of its frame.
fn captured(facts: &CropFacts) -> Option<Captured> {
    facts.captured_at.map(|at| Captured { at, clock_refused: facts.clock_refused })
}

fn parse_capture_start(text: &str) -> Result<OffsetDateTime, gst::ErrorMessage> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|error| {
        let zoned = format!("{}Z", text.trim());
        let why = if OffsetDateTime::parse(&zoned, &Rfc3339).is_ok() {
            format!("it has no time zone; write {zoned} for UTC, or end it with the distance to UTC, such as +02:00")
        } else {
            format!("{error}; expected a time in RFC 3339 form, such as 2024-05-06T07:08:09Z")
        };
        gst::error_msg!(gst::ResourceError::Settings, ("capture-start is `{text}`: {why}"))
    })
}

fn new_crop(
    image: Bytes,
    encoding: Encoding,
    camera: &Arc<Camera>,
    captured_at: OffsetDateTime,
    face: Option<FaceRegion>,
) -> Crop {
    Crop {
        image,
        encoding,
        camera: Arc::clone(camera),
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
                    .mutable_playing()
                    .build(),
                glib::ParamSpecString::builder("camera-location")
                    .nick("Camera location")
                    .blurb("Where the camera stands, stored with each detection")
                    .default_value(Some(defaults.camera_location.as_str()))
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("endpoint", defaults.endpoint)
                    .nick("Endpoint")
                    .blurb("The backend's call that takes the crops")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("timeout")
                    .nick("Timeout")
                    .blurb(
                        "Limit for one request, from connecting to the whole answer (seconds); then it is repeated (0 = no \
                         limit: only a connection that breaks ends it)",
                    )
                    .default_value(defaults.timeout)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-queue")
                    .nick("Maximum queue length")
                    .blurb(
                        "Crops that may wait in memory; when it is reached, drop-policy holds. With a spool, what is \
                         beyond half of it goes to disk",
                    )
                    .minimum(1)
                    .default_value(defaults.max_queue)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("drop-policy", defaults.drop_policy)
                    .nick("Drop policy")
                    .blurb("Which crop is lost when max-queue is reached")
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("batch-size")
                    .nick("Batch size")
                    .blurb("Crops that share one request at most; more cost fewer bytes and calls")
                    .minimum(1)
                    .maximum(MAX_BATCH)
                    .default_value(defaults.batch_size)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("batch-delay")
                    .nick("Batch delay")
                    .blurb(
                        "How long a crop waits for others to share its request, at most (milliseconds; 0 = not at all)",
                    )
                    .default_value(defaults.batch_delay)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("workers")
                    .nick("Workers")
                    .blurb(
                        "Requests under way at the same time, at most; one of them is kept from the spool's crops",
                    )
                    .minimum(1)
                    .maximum(64)
                    .default_value(defaults.workers)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecInt::builder("retries")
                    .nick("Retries")
                    .blurb(
                        "How often a crop is sent again before it is given up; with a spool, how often the backend \
                         may fail in a row before the crops go there (-1 = for ever, and to the spool at once)",
                    )
                    .minimum(UNLIMITED)
                    .default_value(defaults.retries)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecString::builder("token")
                    .nick("Token")
                    .blurb(
                        "Sent as `Authorization: Bearer …`. Can be written only; command lines are visible to other \
                         users, so prefer token-file",
                    )
                    .write_only()
                    .mutable_playing()
                    .build(),
                glib::ParamSpecString::builder("token-file")
                    .nick("Token file")
                    .blurb(
                        "File with the token, used while token is unset; read again when it changes or the backend \
                         refuses the token",
                    )
                    .mutable_playing()
                    .build(),
                glib::ParamSpecString::builder("ca-file")
                    .nick("CA file")
                    .blurb(
                        "Certificates (PEM) that are trusted for https beside the system's: those of authorities, or the \
                         backend's own, also one that signs itself",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("pinned-sha256")
                    .nick("Pinned keys")
                    .blurb(
                        "SHA-256 of the backend's public key in base64, with or without sha256// before it (RFC 7469), \
                         several with semicolons between them: who has one of these keys is the backend, whatever its \
                         certificate says; with ca-file, the certificate is checked as well",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("otlp-endpoint")
                    .nick("Traces endpoint")
                    .blurb(
                        "Collector that gets OpenTelemetry traces of the uploads, http:// or https:// (OTLP over HTTP; \
                         unset = none)",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("spool-dir")
                    .nick("Spool folder")
                    .blurb(
                        "Folder of this element's own, on a local disk, where crops wait while the backend is away, \
                         across restarts; made with mode 0700 (unset = in memory only)",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt64::builder("spool-max-bytes")
                    .nick("Spool size")
                    .blurb(
                        "Size of all files in spool-dir (bytes); beyond it the oldest crops give way (0 = no spool)",
                    )
                    .default_value(defaults.spool_max_bytes)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("eos-timeout")
                    .nick("EOS timeout")
                    .blurb(
                        "At the end of the stream, wait at most so long for what is queued or on the spool (seconds)",
                    )
                    .default_value(defaults.eos_timeout)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("stats-interval")
                    .nick("Statistics interval")
                    .blurb("How often the statistics are posted as an element message (seconds; 0 = never)")
                    .default_value(defaults.stats_interval)
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
                        "Counts since the start. Crops: queued (in memory now), sent, failed (refused, or given up after \
                         retries), dropped (queue full, or left at the stop), spooled, spool-files (now), spool-dropped, \
                         spool-damaged, clock-refused (with this machine's time instead of the camera's); spool-bytes \
                         (now), spool-errors; requests, retries; bytes (written to the network, headers included), \
                         bytes-received, image-bytes (of the pictures sent). Of raw video: \
                         below-min-size and below-min-quality (faces that were left out), tracks-below-min-size and \
                         tracks-below-min-quality and \
                         tracks-below-certainty (tracks that ended without a picture for that), min-size (what counts \
                         in frames as the last one, pixels)",
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
        let filled = || text().filter(|text| !text.is_empty());
        let number = |default: u32| value.get::<u32>().unwrap_or(default);
        let defaults = Settings::default();
        let mut settings = self.settings();
        match pspec.name() {
            "backend-url" => settings.backend_url = text().unwrap_or(defaults.backend_url),
            "camera-id" => settings.camera_id = filled(),
            "camera-location" => settings.camera_location = text().unwrap_or_default(),
            "endpoint" => settings.endpoint = value.get().unwrap_or_default(),
            "timeout" => settings.timeout = number(defaults.timeout),
            "max-queue" => settings.max_queue = number(defaults.max_queue),
            "drop-policy" => settings.drop_policy = value.get().unwrap_or_default(),
            "batch-size" => settings.batch_size = number(defaults.batch_size),
            "batch-delay" => settings.batch_delay = number(defaults.batch_delay),
            "workers" => settings.workers = number(defaults.workers),
            "retries" => settings.retries = value.get().unwrap_or(defaults.retries),
            "token" => settings.token = filled().map(|text| Token::new(&text)),
            "token-file" => settings.token_file = filled().map(PathBuf::from),
            "ca-file" => settings.ca_file = filled().map(PathBuf::from),
            "pinned-sha256" => settings.pinned_sha256 = filled(),
            "otlp-endpoint" => settings.otlp_endpoint = filled(),
            "spool-dir" => settings.spool_dir = filled().map(PathBuf::from),
            "spool-max-bytes" => settings.spool_max_bytes = value.get().unwrap_or(defaults.spool_max_bytes),
            "eos-timeout" => settings.eos_timeout = number(defaults.eos_timeout),
            "stats-interval" => settings.stats_interval = number(defaults.stats_interval),
            "capture-start" => settings.capture_start = filled(),
            name => {
                crop_properties::set(&mut settings.crop, value, name);
                return;
            }
        }
        let settings = settings.clone();
        self.apply(&settings);
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        let settings = self.settings();
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).to_value();
        match pspec.name() {
            "backend-url" => settings.backend_url.to_value(),
            "camera-id" => settings.camera_id.to_value(),
            "camera-location" => settings.camera_location.to_value(),
            "endpoint" => settings.endpoint.to_value(),
            "timeout" => settings.timeout.to_value(),
            "max-queue" => settings.max_queue.to_value(),
            "drop-policy" => settings.drop_policy.to_value(),
            "batch-size" => settings.batch_size.to_value(),
            "batch-delay" => settings.batch_delay.to_value(),
            "workers" => settings.workers.to_value(),
            "retries" => settings.retries.to_value(),
            "token-file" => path(&settings.token_file),
            "ca-file" => path(&settings.ca_file),
            "pinned-sha256" => settings.pinned_sha256.to_value(),
            "otlp-endpoint" => settings.otlp_endpoint.to_value(),
            "spool-dir" => path(&settings.spool_dir),
            "spool-max-bytes" => settings.spool_max_bytes.to_value(),
            "eos-timeout" => settings.eos_timeout.to_value(),
            "stats-interval" => settings.stats_interval.to_value(),
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
            let pictures = Encoding::ALL.map(|encoding| gst::Structure::new_empty(encoding.media_type()));
            let mut caps: gst::Caps = pictures.into_iter().collect();
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
        let refuse =
            |error: &dyn std::fmt::Display| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        if let Some(Err(error)) = &settings.token {
            return Err(refuse(&format_args!("token {error}")));
        }
        let camera = settings.camera();
        camera.validate().map_err(|error| refuse(&error))?;
        let has_token = settings.token.is_some() || settings.token_file.is_some();
        if has_token && upload::exposes_tokens(&settings.backend_url) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Settings,
                ("backend-url is http: the token can be read by everybody on the way; use https")
            );
        }
        let capture_start = settings.capture_start.as_deref().map(parse_capture_start).transpose()?;
        let element = self.obj().downgrade();
        let uploader = Uploader::start(
            UploadConfig {
                backend_url: settings.backend_url.clone(),
                endpoint: settings.endpoint,
                ca_file: settings.ca_file.clone(),
                pinned_sha256: settings.pinned_sha256.clone(),
                workers: usize::try_from(settings.workers).unwrap_or(1),
                otlp_endpoint: settings.otlp_endpoint.clone(),
                spool: settings.spool(),
                settings: settings.runtime(),
                ..UploadConfig::default()
            },
            Arc::new(move |event| {
                if let Some(element) = element.upgrade() {
                    messages::post(&element, event);
                }
            }),
        )
        .map_err(|error| refuse(&error))?;
        self.clock_refused.store(0, Ordering::Relaxed);
        *self.state() = Some(State {
            uploader: Arc::new(uploader),
            input: None,
            cutter: FaceCutter::default(),
            clock: CaptureClock::default(),
            watch: DetectorWatch::default(),
            camera: Arc::new(camera),
            capture_start,
            overflowing: false,
        });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = self.state().take();
        if let Some(state) = state {
            *self.final_counts.lock().unwrap_or_else(PoisonError::into_inner) = state.cutter.counts();
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
        let media_type = caps.structure(0).map(|s| s.name().as_str()).unwrap_or_default();
        let input = match Encoding::from_media_type(media_type) {
            Some(encoding) => Input::Picture(encoding),
            None => {
                let info = VideoInfo::from_caps(caps);
                Input::Raw(
                    info.map_err(|_| gst::loggable_error!(CAT, "caps {caps} are not those of raw video"))?,
                )
            }
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

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        let understood = BaseSinkImplExt::parent_query(self, query);
        if let gst::QueryView::AcceptCaps(accept) = query.view()
            && !accept.result()
            && let Some(refusal) = frame::refusal(self.obj().upcast_ref(), accept.caps())
        {
            self.post_error_message(refusal);
        }
        understood
    }

    fn event(&self, event: gst::Event) -> bool {
        match event.type_() {
            gst::EventType::Eos => {
                let unsearched = self.state().as_mut().and_then(|state| state.watch.end());
                self.warn(unsearched);
                self.end_tracks(None);
                self.drain();
            }
            gst::EventType::CustomDownstream => {
                if let Some(state) = self.state().as_mut() {
                    state.watch.event(&event);
                }
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
        let notice = state.cutter.take_notice().or_else(|| state.clock.take_notice());
        let notice = notice.filter(|_| settings.capture_start.is_none());
        let unsearched = match state.input {
            Some(Input::Raw(_)) => state.watch.frame(buffer),
            _ => None,
        };
        let uploader = Arc::clone(&state.uploader);
        // The queue may make it wait, and meanwhile the state must be free.
        drop(guard);
        self.warn(notice);
        self.warn(unsearched);
        let mut dropped = false;
        for mut crop in crops {
            loop {
                match uploader.push(crop) {
                    PushOutcome::Queued => {
                        gst::log!(CAT, imp = self, "a crop is queued");
                        break;
                    }
                    PushOutcome::Dropped => {
                        dropped = true;
                        break;
                    }
                    PushOutcome::Interrupted(back) => {
                        crop = back;
                        self.obj().wait_preroll()?;
                    }
                }
            }
        }
        if let Some(state) = self.state().as_mut() {
            if dropped && !state.overflowing {
                gst::warning!(
                    CAT,
                    imp = self,
                    "max-queue ({}) is reached: crops are lost",
                    settings.max_queue
                );
            }
            state.overflowing = dropped;
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
