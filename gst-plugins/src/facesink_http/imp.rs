//! The class of the element `facesink-http`: a thin sink around [`Uploader`].

use std::{
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
    capture_time::{CaptureClock, CaptureTime, not_after_now, running_time},
    crop::{CropSettings, Encoding},
    crop_pipeline::{self, Counts, CropPipeline, CropPipelineSettings, Shot},
    frame,
    missing_detector::MissingDetectorWarning,
    roi::{self, CropMetadata},
    track_events,
    upload::{self, Camera, Crop, DrainOutcome, PushOutcome, Stats, Uploader},
};

use super::{
    messages,
    settings::{Settings, param_specs},
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facesink-http", gst::DebugColorFlags::empty(), Some("Face upload"))
});

/// Exists from `start` to `stop`.
struct State {
    uploader: Arc<Uploader>,
    input: Option<Input>,
    crop_pipeline: CropPipeline,
    /// For images that are not from facecrop.
    clock: CaptureClock,
    watch: MissingDetectorWarning,
    /// Shared with its crops until it changes.
    camera: Arc<Camera>,
    /// The run that track ids belong to: the tracker's, or this element's where another tracker gives them.
    run: Uuid,
    /// When the recording was started.
    capture_start: Option<OffsetDateTime>,
    /// The queue overflowed with the last buffer too: logged once per overflow.
    overflowing: bool,
}

/// What the negotiated caps say.
enum Input {
    Image(Encoding),
    Raw(VideoInfo),
}

#[derive(Default)]
pub struct FaceSinkHttp {
    settings: Mutex<Settings>,
    state: Mutex<Option<State>>,
    /// Crops of this run with this machine's time, because their camera's clock was refused.
    clock_refused: AtomicU64,
    /// The counts of the last run, which can be read after it.
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

    /// Returns what became of the faces in raw video.
    pub(super) fn counts(&self) -> Counts {
        match self.state().as_ref() {
            Some(state) => state.crop_pipeline.counts(),
            None => *self.final_counts.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn clock_refused(&self) -> u64 {
        self.clock_refused.load(Ordering::Relaxed)
    }

    /// Returns when an image, or the frame that it was cropped from, was captured: for a recording counted from its start,
    /// else never in the future, where a recording that plays faster than its clock would be.
    fn captured_at(
        &self,
        start: Option<OffsetDateTime>,
        running_time: Option<Duration>,
        captured: Option<CaptureTime>,
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

    /// Returns the crops in a buffer: one image, or the faces of a frame.
    fn crops(
        &self,
        state: &mut State,
        settings: &CropPipelineSettings,
        buffer: &gst::Buffer,
    ) -> Result<Vec<Crop>, gst::ErrorMessage> {
        let segment = self.obj().segment();
        let State { input: Some(input), crop_pipeline, clock, camera, run, capture_start: start, .. } = state
        else {
            return Err(gst::error_msg!(gst::CoreError::Negotiation, ("a buffer came before its caps")));
        };
        match input {
            Input::Image(encoding) => {
                let facts = roi::crop_metadata(buffer);
                let running_time = facts
                    .and_then(|facts| facts.running_time)
                    .or_else(|| running_time(Some(&segment), buffer).map(Duration::from));
                let captured = facts.and_then(|facts| captured(&facts)).unwrap_or_else(|| {
                    clock.captured(self.obj().upcast_ref(), running_time, buffer, settings.clock)
                });
                let captured_at = self.captured_at(*start, running_time, Some(captured));
                // Shares the buffer's memory while the crop waits.
                let mapped = buffer.clone().into_mapped_buffer_readable().map_err(|_| {
                    gst::error_msg!(gst::ResourceError::Read, ("a buffer cannot be mapped for reading"))
                })?;
                let image = Bytes::from_owner(mapped);
                Ok(vec![new_crop(image, *encoding, camera, *run, captured_at, facts.as_ref())])
            }
            Input::Raw(info) => {
                let element = self.obj();
                let input = crop_pipeline::InputFrame {
                    element: element.upcast_ref(),
                    segment: Some(&segment),
                    info,
                    buffer,
                };
                let shots = crop_pipeline.process_frame(&input, settings)?;
                shots.iter().map(|shot| self.to_upload(shot, &settings.crop, camera, *run, *start)).collect()
            }
        }
    }

    fn to_upload(
        &self,
        shot: &Shot,
        settings: &CropSettings,
        camera: &Arc<Camera>,
        run: Uuid,
        start: Option<OffsetDateTime>,
    ) -> Result<Crop, gst::ErrorMessage> {
        let metadata = &shot.metadata;
        let encoded = Bytes::from(shot.encode(settings)?);
        let captured_at = self.captured_at(start, metadata.running_time, captured(metadata));
        Ok(new_crop(encoded, settings.encoding, camera, run, captured_at, Some(metadata)))
    }

    /// Ends the tracks of the run before: a tracker that starts again numbers its tracks from the beginning.
    fn begin_run(&self, run: Uuid) {
        if self.state().as_ref().is_some_and(|state| state.run != run) {
            self.end_tracks(None);
        }
        if let Some(state) = self.state().as_mut() {
            state.run = run;
        }
    }

    /// Queues the best shots of tracks that ended: of these, or of all.
    fn end_tracks(&self, tracks: Option<&[i32]>) {
        let settings = self.settings().crop;
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return };
        let shots = match tracks {
            Some(tracks) => state.crop_pipeline.end(tracks),
            None => state.crop_pipeline.end_all(),
        };
        for shot in shots {
            match self.to_upload(&shot, &settings.crop, &state.camera, state.run, state.capture_start) {
                // Events cannot wait for room as frames can.
                Ok(crop) => state.uploader.push_nonblocking(crop),
                Err(message) => {
                    drop(guard);
                    self.post_error_message(message);
                    return;
                }
            }
        }
    }

    fn warn(&self, text: Option<String>) {
        if let Some(text) = text {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{text}"));
        }
    }

    /// Waits for queued crops, at most `eos-timeout`.
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
            // gst-launch-1.0 prints only the details.
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

    /// Applies changed settings while the element runs.
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

/// Returns the capture time in a crop's metadata.
fn captured(facts: &CropMetadata) -> Option<CaptureTime> {
    facts.captured_at.map(|at| CaptureTime { at, clock_refused: facts.clock_refused })
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
    run: Uuid,
    captured_at: OffsetDateTime,
    metadata: Option<&CropMetadata>,
) -> Crop {
    let track_id = metadata.and_then(|metadata| metadata.face.track_id);
    Crop {
        image,
        encoding,
        camera: Arc::clone(camera),
        captured_at,
        track_id,
        run_id: track_id.map(|_| run),
        bounding_box: metadata.map(|metadata| metadata.face.bounding_box),
        area: metadata.and_then(|metadata| metadata.area),
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
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(param_specs);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = self.settings();
        if settings.set(pspec.name(), value) {
            let settings = settings.clone();
            self.apply(&settings);
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats().to_value();
        }
        self.settings().get(pspec.name()).unwrap_or_else(|| pspec.default_value().clone())
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
            let images = Encoding::ALL.map(|encoding| gst::Structure::new_empty(encoding.media_type()));
            let mut caps: gst::Caps = images.into_iter().collect();
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
        let invalid =
            |error: &dyn std::fmt::Display| gst::error_msg!(gst::ResourceError::Settings, ("{error}"));
        if let Some(Err(error)) = &settings.token {
            return Err(invalid(&format_args!("token {error}")));
        }
        let camera = settings.camera();
        camera.validate().map_err(|error| invalid(&error))?;
        let has_token = settings.token.is_some() || settings.token_file.is_some();
        if has_token && settings.allow_insecure_token && upload::exposes_tokens(&settings.backend_url) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Settings,
                ("backend-url is http: the token can be read by everybody on the way, as allow-insecure-token says")
            );
        }
        let capture_start = settings.capture_start.as_deref().map(parse_capture_start).transpose()?;
        let element = self.obj().downgrade();
        let uploader = Uploader::start(
            settings.upload_config(),
            Arc::new(move |event| {
                if let Some(element) = element.upgrade() {
                    messages::post(&element, event);
                }
            }),
        )
        .map_err(|error| invalid(&error))?;
        self.clock_refused.store(0, Ordering::Relaxed);
        *self.state() = Some(State {
            uploader: Arc::new(uploader),
            input: None,
            crop_pipeline: CropPipeline::default(),
            clock: CaptureClock::default(),
            watch: MissingDetectorWarning::default(),
            camera: Arc::new(camera),
            run: Uuid::new_v4(),
            capture_start,
            overflowing: false,
        });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = self.state().take();
        if let Some(state) = state {
            *self.final_counts.lock().unwrap_or_else(PoisonError::into_inner) = state.crop_pipeline.counts();
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
            Some(encoding) => Input::Image(encoding),
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
            && let Some(refusal) = frame::unsupported_caps_error(self.obj().upcast_ref(), accept.caps())
        {
            self.post_error_message(refusal);
        }
        understood
    }

    fn event(&self, event: gst::Event) -> bool {
        match event.type_() {
            gst::EventType::Eos => {
                let unsearched = self.state().as_mut().and_then(|state| state.watch.end_of_stream());
                self.warn(unsearched);
                self.end_tracks(None);
                self.drain();
            }
            gst::EventType::CustomDownstream => {
                if let Some(state) = self.state().as_mut() {
                    state.watch.handle_event(&event);
                }
                if let Some(tracks) = track_events::ended_tracks(&event) {
                    self.end_tracks(Some(&tracks));
                }
            }
            gst::EventType::CustomDownstreamSticky => {
                if let Some(run) = track_events::announced_run(&event) {
                    self.begin_run(run);
                }
            }
            gst::EventType::FlushStop => {
                if let Some(state) = self.state().as_mut() {
                    state.crop_pipeline.clear();
                }
            }
            _ => {}
        }
        self.parent_event(event)
    }

    fn render(&self, buffer: &gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (crop_settings, max_queue, is_live) = {
            let settings = self.settings();
            (settings.crop, settings.max_queue, settings.capture_start.is_none())
        };
        let mut guard = self.state();
        let state = guard.as_mut().ok_or(gst::FlowError::Flushing)?;
        let crops = match self.crops(state, &crop_settings, buffer) {
            Ok(crops) => crops,
            Err(message) => {
                drop(guard);
                self.post_error_message(message);
                return Err(gst::FlowError::Error);
            }
        };
        let notice = state.crop_pipeline.take_warning().or_else(|| state.clock.take_warning());
        let notice = notice.filter(|_| is_live);
        let unsearched = match state.input {
            Some(Input::Raw(_)) => state.watch.inspect_frame(buffer),
            _ => None,
        };
        let uploader = Arc::clone(&state.uploader);
        // Pushing may block, and meanwhile the state must not be locked.
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
                gst::warning!(CAT, imp = self, "max-queue ({}) is reached: crops are lost", max_queue);
            }
            state.overflowing = dropped;
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
