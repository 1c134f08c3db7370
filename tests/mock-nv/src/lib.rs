//! Mocks of the elements of a Jetson, with the names, caps and ranks of NVIDIA's, so that pipelines for a Jetson run on other
//! machines: `nvv4l2decoder` decodes in software, `nvvidconv` passes frames through, `nvarguscamerasrc` plays the H.264 file
//! named by `MOCK_NV_CAMERA` at any size and frame rate. `memory:NVMM` is ordinary memory here. For tests only.

use std::{env, sync::LazyLock};

use gst::{glib, prelude::*, subclass::prelude::*};
use gst_base::subclass::prelude::*;

/// Device memory of a Jetson.
const NVMM: &str = "memory:NVMM";

/// Returns the caps of frames in device or system memory.
fn any_memory_caps() -> gst::Caps {
    let plain = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::Nv12).build();
    let mut all = with_memory(&plain, Some(NVMM));
    all.merge(plain);
    all
}

/// Returns the caps with their memory replaced; `None` is system memory.
fn with_memory(caps: &gst::CapsRef, memory: Option<&str>) -> gst::Caps {
    let structures = caps.iter().map(|structure| {
        let features = memory.map(|memory| gst::CapsFeatures::new([memory]));
        (structure.to_owned(), features)
    });
    gst::Caps::from_iter(structures)
}

fn pad_template(name: &str, direction: gst::PadDirection, caps: &gst::Caps) -> Option<gst::PadTemplate> {
    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).ok()
}

/// `nvvidconv`: moves frames between memories. NVIDIA's also scales and converts.
mod convert {
    use super::*;

    #[derive(Default)]
    pub struct Convert;

    #[glib::object_subclass]
    impl ObjectSubclass for Convert {
        const NAME: &'static str = "MockNvVidConv";
        type Type = super::Convert;
        type ParentType = gst_base::BaseTransform;
    }

    impl ObjectImpl for Convert {}
    impl GstObjectImpl for Convert {}

    impl ElementImpl for Convert {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Mock of nvvidconv",
                    "Filter/Converter/Video",
                    "For tests",
                    "facepipe",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let sides = [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)];
                sides
                    .into_iter()
                    .filter_map(|(name, direction)| pad_template(name, direction, &any_memory_caps()))
                    .collect()
            });
            &TEMPLATES
        }
    }

    impl BaseTransformImpl for Convert {
        const MODE: gst_base::subclass::BaseTransformMode =
            gst_base::subclass::BaseTransformMode::AlwaysInPlace;
        const PASSTHROUGH_ON_SAME_CAPS: bool = true;
        const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

        fn transform_caps(
            &self,
            _direction: gst::PadDirection,
            caps: &gst::Caps,
            filter: Option<&gst::Caps>,
        ) -> Option<gst::Caps> {
            let mut other = with_memory(caps, Some(NVMM));
            other.merge(with_memory(caps, None));
            Some(filter.map_or_else(
                || other.clone(),
                |filter| filter.intersect_with_mode(&other, gst::CapsIntersectMode::First),
            ))
        }

        fn transform_ip(&self, _frame: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
            Ok(gst::FlowSuccess::Ok)
        }
    }
}

glib::wrapper! {
    /// The element `nvvidconv`.
    pub struct Convert(ObjectSubclass<convert::Convert>) @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Builds the content of a bin from a description, and adds ghost pads for the pads in `sides`.
fn fill(bin: &gst::Bin, description: &str, sides: &[(&str, &str)]) -> Result<(), glib::BoolError> {
    let inside = gst::parse::bin_from_description_with_name(description, false, "inside")
        .map_err(|error| glib::bool_error!("{error}"))?;
    bin.add(&inside)?;
    for (element, side) in sides {
        let pad = inside.by_name(element).and_then(|element| element.static_pad(side));
        let pad = pad.ok_or_else(|| glib::bool_error!("{element} has no pad {side}"))?;
        let ghost = gst::GhostPad::with_target(&pad)?;
        inside.add_pad(&ghost)?;
        let template = bin.pad_template(side).ok_or_else(|| glib::bool_error!("no template {side}"))?;
        bin.add_pad(&gst::GhostPad::from_template_with_target(&template, &ghost)?)?;
    }
    Ok(())
}

/// Logs an error, which leaves an element without pads, so that its pipeline fails.
fn log_error(result: Result<(), glib::BoolError>) {
    if let Err(error) = result {
        glib::g_critical!("mock-nv", "{}", error);
    }
}

/// `nvv4l2decoder`: H.264 as byte-stream in, NV12 in NVMM memory out.
mod decoder {
    use super::*;

    #[derive(Default)]
    pub struct Decoder;

    #[glib::object_subclass]
    impl ObjectSubclass for Decoder {
        const NAME: &'static str = "MockNvV4l2Decoder";
        type Type = super::Decoder;
        type ParentType = gst::Bin;
    }

    impl ObjectImpl for Decoder {
        fn constructed(&self) {
            self.parent_constructed();
            log_error(fill(
                self.obj().upcast_ref(),
                "avdec_h264 name=in ! videoconvert ! video/x-raw,format=NV12 ! nvvidconv ! \
                 capsfilter name=out caps=video/x-raw(memory:NVMM),format=NV12",
                &[("in", "sink"), ("out", "src")],
            ));
        }
    }

    impl GstObjectImpl for Decoder {}

    impl ElementImpl for Decoder {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Mock of nvv4l2decoder",
                    "Codec/Decoder/Video",
                    "For tests",
                    "facepipe",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let encoded = gst::Caps::builder("video/x-h264")
                    .field("stream-format", "byte-stream")
                    .field("alignment", "au")
                    .build();
                let frames = gst_video::VideoCapsBuilder::new()
                    .features([NVMM])
                    .format(gst_video::VideoFormat::Nv12)
                    .build();
                let sides = [
                    pad_template("sink", gst::PadDirection::Sink, &encoded),
                    pad_template("src", gst::PadDirection::Src, &frames),
                ];
                sides.into_iter().flatten().collect()
            });
            &TEMPLATES
        }
    }

    impl BinImpl for Decoder {}
}

glib::wrapper! {
    /// The element `nvv4l2decoder`.
    pub struct Decoder(ObjectSubclass<decoder::Decoder>)
        @extends gst::Bin, gst::Element, gst::Object, @implements gst::ChildProxy;
}

/// `nvarguscamerasrc`: a CSI camera, replaced by a recording.
mod camera {
    use super::*;

    #[derive(Default)]
    pub struct Camera;

    #[glib::object_subclass]
    impl ObjectSubclass for Camera {
        const NAME: &'static str = "MockNvArgusCameraSrc";
        type Type = super::Camera;
        type ParentType = gst::Bin;
    }

    impl ObjectImpl for Camera {
        fn properties() -> &'static [glib::ParamSpec] {
            static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
                vec![
                    glib::ParamSpecInt::builder("sensor-id")
                        .nick("Sensor")
                        .blurb("Ignored: there is one recording")
                        .minimum(0)
                        .maximum(255)
                        .build(),
                ]
            });
            &PROPERTIES
        }

        fn set_property(&self, _id: usize, _value: &glib::Value, _pspec: &glib::ParamSpec) {}

        fn property(&self, _id: usize, _pspec: &glib::ParamSpec) -> glib::Value {
            0.to_value()
        }

        fn constructed(&self) {
            self.parent_constructed();
            let recording = env::var("MOCK_NV_CAMERA").unwrap_or_default();
            let description = format!(
                "filesrc location=\"{recording}\" ! qtdemux ! h264parse ! avdec_h264 ! videoconvert ! \
                 videoscale ! videorate ! video/x-raw,format=NV12 ! nvvidconv ! \
                 capsfilter name=out caps=video/x-raw(memory:NVMM),format=NV12"
            );
            log_error(fill(self.obj().upcast_ref(), &description, &[("out", "src")]));
        }
    }

    impl GstObjectImpl for Camera {}

    impl ElementImpl for Camera {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new(
                    "Mock of nvarguscamerasrc",
                    "Video/Capture",
                    "For tests",
                    "facepipe",
                )
            });
            Some(&METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let frames = gst_video::VideoCapsBuilder::new()
                    .features([NVMM])
                    .format(gst_video::VideoFormat::Nv12)
                    .build();
                pad_template("src", gst::PadDirection::Src, &frames).into_iter().collect()
            });
            &TEMPLATES
        }
    }

    impl BinImpl for Camera {}
}

glib::wrapper! {
    /// The element `nvarguscamerasrc`.
    pub struct Camera(ObjectSubclass<camera::Camera>)
        @extends gst::Bin, gst::Element, gst::Object, @implements gst::ChildProxy;
}

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "nvvidconv", gst::Rank::NONE, Convert::static_type())?;
    // NVIDIA's decoder has a higher rank than software decoders as well.
    gst::Element::register(Some(plugin), "nvv4l2decoder", gst::Rank::PRIMARY + 11, Decoder::static_type())?;
    gst::Element::register(Some(plugin), "nvarguscamerasrc", gst::Rank::NONE, Camera::static_type())
}

mod plugin {
    use super::plugin_init;

    gst::plugin_define!(
        mocknv,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        env!("CARGO_PKG_VERSION"),
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_REPOSITORY"),
        "2026-01-01"
    );
}
