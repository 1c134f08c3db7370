//! The class of the element `facecrop`. One buffer in, any number out: `GstBaseTransform` cannot do that, so it is a plain
//! element with two pads.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_video::{VideoInfo, VideoMeta};
use uuid::Uuid;

use crate::{
    crop_pipeline::{Counts, CropPipeline, CropPipelineSettings, InputFrame, Shot},
    crop_properties, frame,
    missing_detector::{self, MissingDetectorWarning},
    roi, track_events,
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facecrop", gst::DebugColorFlags::empty(), Some("Face crops"))
});

/// The state of a run.
#[derive(Default)]
struct State {
    info: Option<VideoInfo>,
    segment: Option<gst::Segment>,
    crop_pipeline: CropPipeline,
    /// The run that track ids belong to, once a tracker has announced it.
    run: Option<Uuid>,
    /// Timestamp of the last frame of the segment: that of crops that are sent later than their own frame.
    position: Option<gst::ClockTime>,
    watch: MissingDetectorWarning,
}

pub struct FaceCrop {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    settings: Mutex<CropPipelineSettings>,
    state: Mutex<State>,
}

impl FaceCrop {
    fn settings(&self) -> MutexGuard<'_, CropPipelineSettings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let shots = self.shots(&buffer)?;
        if shots.is_empty() {
            // Downstream must see time pass also while there are no faces.
            if let Some(pts) = buffer.pts() {
                self.srcpad.push_event(gst::event::Gap::builder(pts).duration(buffer.duration()).build());
            }
            return Ok(gst::FlowSuccess::Ok);
        }
        let discont = buffer.flags().contains(gst::BufferFlags::DISCONT);
        self.push(shots, buffer.pts(), buffer.duration(), discont)
    }

    /// Returns the crops to send after this frame.
    fn shots(&self, buffer: &gst::BufferRef) -> Result<Vec<Shot>, gst::FlowError> {
        let settings = *self.settings();
        let mut state = self.state();
        let State { info, segment, crop_pipeline, position, watch, .. } = &mut *state;
        let info = info.as_ref().ok_or(gst::FlowError::NotNegotiated)?;
        *position = buffer.pts().or(*position);
        let element = self.obj();
        let input = InputFrame { element: element.upcast_ref(), segment: segment.as_ref(), info, buffer };
        let shots = crop_pipeline.process_frame(&input, &settings);
        let clock_warning = crop_pipeline.take_warning();
        let unsearched = watch.inspect_frame(buffer);
        drop(state);
        missing_detector::post(&*self.obj(), &self.srcpad, unsearched);
        if let Some(warning) = clock_warning {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{warning}"));
        }
        shots.map_err(|message| self.fail(message))
    }

    fn fail(&self, message: gst::ErrorMessage) -> gst::FlowError {
        self.post_error_message(message);
        gst::FlowError::Error
    }

    /// Encodes and pushes crops with one timestamp. No lock is held here: elements downstream may block, or query this element.
    fn push(
        &self,
        shots: Vec<Shot>,
        pts: Option<gst::ClockTime>,
        duration: Option<gst::ClockTime>,
        mut discont: bool,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = self.settings().crop;
        for shot in shots {
            let encoded = shot.encode(&settings).map_err(|message| self.fail(message))?;
            gst::trace!(CAT, imp = self, "{:?} became {} bytes", shot.metadata.face, encoded.len());
            let mut crop = gst::Buffer::from_mut_slice(encoded);
            let writable = crop.make_mut();
            writable.set_pts(pts);
            writable.set_duration(duration);
            if std::mem::take(&mut discont) {
                writable.set_flags(gst::BufferFlags::DISCONT);
            }
            for reference in &shot.references {
                reference.attach(writable);
            }
            roi::attach_crop(writable, &shot.metadata);
            self.srcpad.push(crop)?;
        }
        Ok(gst::FlowSuccess::Ok)
    }

    /// Pushes the best crops of tracks that ended: of these, or of all.
    fn end(&self, tracks: Option<&[i32]>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut state = self.state();
        let position = state.position;
        let shots = match tracks {
            Some(tracks) => state.crop_pipeline.end(tracks),
            None => state.crop_pipeline.end_all(),
        };
        drop(state);
        self.push(shots, position, None, false)
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        let mut flow = Ok(gst::FlowSuccess::Ok);
        match event.view() {
            gst::EventView::Caps(caps) => return self.set_caps(caps.caps()),
            gst::EventView::Segment(segment) => {
                let mut state = self.state();
                state.segment = Some(segment.segment().clone());
                state.position = None;
            }
            gst::EventView::FlushStop(_) => {
                let mut state = self.state();
                state.segment = None;
                state.position = None;
                state.crop_pipeline.clear();
            }
            gst::EventView::Eos(_) => {
                let unsearched = self.state().watch.end_of_stream();
                missing_detector::post(&*self.obj(), &self.srcpad, unsearched);
                flow = self.end(None);
                let left_out = self.state().crop_pipeline.counts().left_out();
                if let Some(left_out) = left_out {
                    // gst-launch-1.0 prints the details alone.
                    gst::element_imp_info!(self, gst::StreamError::Encode, ("{left_out}"), ["{left_out}"]);
                }
            }
            gst::EventView::CustomDownstream(_) => {
                self.state().watch.handle_event(&event);
                if let Some(tracks) = track_events::ended_tracks(&event) {
                    flow = self.end(Some(&tracks));
                }
            }
            gst::EventView::CustomDownstreamSticky(_) => {
                // A tracker that starts again numbers its tracks from the beginning.
                if let Some(run) = track_events::announced_run(&event)
                    && self.state().run.replace(run).is_some_and(|before| before != run)
                {
                    flow = self.end(None);
                }
            }
            _ => {}
        }
        if let Err(error) = flow {
            gst::debug!(CAT, imp = self, "the last crops of tracks were not accepted downstream: {error}");
        }
        gst::Pad::event_default(pad, Some(&*self.obj()), event)
    }

    /// Pushes the caps of the crops in place of those of the frames.
    fn set_caps(&self, caps: &gst::CapsRef) -> bool {
        let Ok(info) = VideoInfo::from_caps(caps) else {
            gst::error!(CAT, imp = self, "caps {caps} are not those of raw video");
            return false;
        };
        let framerate = info.fps();
        self.state().info = Some(info);
        // Crops differ in size, so the caps have none.
        let media_type = self.settings().crop.encoding.media_type();
        let crops = gst::Caps::builder(media_type).field("framerate", framerate).build();
        self.srcpad.push_event(gst::event::Caps::new(&crops))
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        if let gst::QueryView::AcceptCaps(accept) = query.view()
            && let Some(refusal) = frame::unsupported_caps_error(self.obj().upcast_ref(), accept.caps())
        {
            self.post_error_message(refusal);
        }
        match query.view_mut() {
            gst::QueryViewMut::Allocation(allocation) => {
                allocation.add_allocation_meta::<VideoMeta>(None);
                true
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for FaceCrop {
    const NAME: &'static str = "GstFacepipeFaceCrop";
    type Type = super::FaceCrop;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        let pad = |name: &str| {
            // Both templates are registered with the class by now.
            let builder = class.pad_template(name).map(|template| gst::Pad::builder_from_template(&template));
            builder.unwrap_or_else(|| gst::Pad::builder(gst::PadDirection::Unknown))
        };
        let sinkpad = pad("sink")
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(
                    parent,
                    || Err(gst::FlowError::Error),
                    |crop| crop.chain(buffer),
                )
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |crop| crop.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |crop| crop.sink_query(pad, query))
            })
            .build();
        let srcpad = pad("src").flags(gst::PadFlags::FIXED_CAPS).build();
        Self { sinkpad, srcpad, settings: Mutex::default(), state: Mutex::default() }
    }
}

impl ObjectImpl for FaceCrop {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut specs = crop_properties::param_specs();
            specs.push(
                glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                    .nick("Statistics")
                    .blurb(
                        "Counts since the start: faces (detected in frames), pictures (crops of them), below-min-size \
                         and below-min-quality (faces that were left out), tracks-below-min-size, \
                         tracks-below-min-quality and tracks-below-certainty (tracks that ended without a crop for \
                         that reason), and min-size (the limit in the last frame, pixels); each uint64",
                    )
                    .read_only()
                    .build(),
            );
            specs
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        crop_properties::set(&mut self.settings(), value, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return stats_structure(&self.state().crop_pipeline.counts()).to_value();
        }
        let value = crop_properties::get(&self.settings(), pspec.name());
        value.unwrap_or_else(|| pspec.default_value().clone())
    }

    fn constructed(&self) {
        self.parent_constructed();
        let element = self.obj();
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(error) = element.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for FaceCrop {}

impl ElementImpl for FaceCrop {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Face cropper",
                "Filter/Converter/Encoder/Image",
                "Crops the faces that facedetect found as small pictures: a few good ones of each face that facetrack tracks",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let mut pictures = gst::Caps::builder("image/jpeg").build();
            pictures.merge(gst::Caps::builder("image/webp").build());
            [
                gst::PadTemplate::new(
                    "sink",
                    gst::PadDirection::Sink,
                    gst::PadPresence::Always,
                    &frame::raw_video_caps(),
                ),
                gst::PadTemplate::new("src", gst::PadDirection::Src, gst::PadPresence::Always, &pictures),
            ]
            .into_iter()
            .flatten()
            .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::ReadyToPaused {
            *self.state() = State::default();
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::PausedToReady {
            let mut state = self.state();
            // The counts outlive the run.
            let mut crop_pipeline = std::mem::take(&mut state.crop_pipeline);
            crop_pipeline.clear();
            *state = State { crop_pipeline, ..State::default() };
        }
        Ok(success)
    }
}

fn stats_structure(counts: &Counts) -> gst::Structure {
    let structure = gst::Structure::builder("facepipe-facecrop-stats")
        .field("faces", counts.faces)
        .field("pictures", counts.pictures);
    counts.add_to(structure).build()
}
