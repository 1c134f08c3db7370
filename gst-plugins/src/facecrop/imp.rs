//! The class of the element `facecrop`. One buffer in, any number out: that is beyond `GstBaseTransform`, so
//! it is a plain element with two pads.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_video::{VideoFrameRef, VideoInfo, VideoMeta};

use crate::{
    capture_time::capture_time,
    crop::{CropSettings, Cropper},
    crop_properties, frame,
    roi::{self, CropFacts},
};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("facepipe-facecrop", gst::DebugColorFlags::empty(), Some("Face crops"))
});

/// What lives from caps to caps, and is dropped when the element stops.
#[derive(Default)]
struct State {
    info: Option<VideoInfo>,
    segment: Option<gst::Segment>,
    cropper: Cropper,
}

pub struct FaceCrop {
    sinkpad: gst::Pad,
    srcpad: gst::Pad,
    settings: Mutex<CropSettings>,
    state: Mutex<State>,
}

impl FaceCrop {
    fn settings(&self) -> MutexGuard<'_, CropSettings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let crops = self.crops(&buffer)?;
        if crops.is_empty() {
            // Time goes on for whoever waits downstream, also where nobody passes by the camera.
            if let Some(pts) = buffer.pts() {
                self.srcpad.push_event(gst::event::Gap::builder(pts).duration(buffer.duration()).build());
            }
            return Ok(gst::FlowSuccess::Ok);
        }
        // The lock is not held here: downstream may block, or ask this element something.
        for crop in crops {
            self.srcpad.push(crop)?;
        }
        Ok(gst::FlowSuccess::Ok)
    }

    /// The pictures of the faces in a frame that are large enough.
    fn crops(&self, buffer: &gst::BufferRef) -> Result<Vec<gst::Buffer>, gst::FlowError> {
        let settings = *self.settings();
        let mut state = self.state();
        let State { info, segment, cropper } = &mut *state;
        let info = info.as_ref().ok_or(gst::FlowError::NotNegotiated)?;
        let (width, height) = (info.width(), info.height());
        let faces: Vec<_> = roi::faces(buffer)
            .into_iter()
            .filter_map(|face| settings.region(&face, width, height).map(|region| (face, region)))
            .collect();
        if faces.is_empty() {
            return Ok(Vec::new());
        }

        let mapped = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|_| {
            gst::element_imp_error!(self, gst::ResourceError::Read, ("a frame cannot be mapped for reading"));
            gst::FlowError::Error
        })?;
        let described = frame::describe(&mapped).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::FlowError::Error
        })?;
        let captured_at = capture_time(self.obj().upcast_ref(), segment.as_ref(), buffer);
        let mut discont = buffer.flags().contains(gst::BufferFlags::DISCONT);
        let mut crops = Vec::with_capacity(faces.len());
        for (face, region) in faces {
            let jpeg = cropper.jpeg(&described, &region, &settings).map_err(|error| {
                gst::element_imp_error!(self, gst::StreamError::Encode, ("{error}"));
                gst::FlowError::Error
            })?;
            gst::trace!(CAT, imp = self, "{region:?} became {} bytes", jpeg.len());
            let mut crop = gst::Buffer::from_mut_slice(jpeg);
            let writable = crop.make_mut();
            writable.set_pts(buffer.pts());
            writable.set_duration(buffer.duration());
            if std::mem::take(&mut discont) {
                writable.set_flags(gst::BufferFlags::DISCONT);
            }
            for meta in buffer.iter_meta::<gst::ReferenceTimestampMeta>() {
                let reference = meta.reference_owned();
                gst::ReferenceTimestampMeta::add(writable, &reference, meta.timestamp(), meta.duration());
            }
            let facts = CropFacts { face, frame_width: width, frame_height: height, captured_at };
            roi::attach_crop(writable, &facts);
            crops.push(crop);
        }
        Ok(crops)
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Caps(caps) => self.set_caps(caps.caps()),
            gst::EventView::Segment(segment) => {
                self.state().segment = Some(segment.segment().clone());
                gst::Pad::event_default(pad, Some(&*self.obj()), event)
            }
            gst::EventView::FlushStop(_) => {
                self.state().segment = None;
                gst::Pad::event_default(pad, Some(&*self.obj()), event)
            }
            _ => gst::Pad::event_default(pad, Some(&*self.obj()), event),
        }
    }

    /// The crops' own caps replace those of the frames.
    fn set_caps(&self, caps: &gst::CapsRef) -> bool {
        let Ok(info) = VideoInfo::from_caps(caps) else {
            gst::error!(CAT, imp = self, "caps {caps} are not those of raw video");
            return false;
        };
        let framerate = info.fps();
        self.state().info = Some(info);
        // Crops differ in size, so the caps have none: it is in each picture.
        let crops = gst::Caps::builder("image/jpeg").field("framerate", framerate).build();
        self.srcpad.push_event(gst::event::Caps::new(&crops))
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
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
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(crop_properties::param_specs);
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        crop_properties::set(&mut self.settings(), value, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
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
                "Makes a small JPEG picture of each face that facedetect found in a frame",
                env!("CARGO_PKG_REPOSITORY"),
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let jpeg = gst::Caps::builder("image/jpeg").build();
            [
                gst::PadTemplate::new(
                    "sink",
                    gst::PadDirection::Sink,
                    gst::PadPresence::Always,
                    &frame::raw_video_caps(),
                ),
                gst::PadTemplate::new("src", gst::PadDirection::Src, gst::PadPresence::Always, &jpeg),
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
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::PausedToReady {
            *self.state() = State::default();
        }
        Ok(success)
    }
}
