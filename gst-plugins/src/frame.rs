//! The raw video that the elements accept: its formats, and how a mapped buffer becomes the borrowed [`Frame`] that the
//! detector and the cropper read.

use facepipe_detector::{
    ChromaSite, ColorMatrix, ColorRange, DetectorError, Frame, PixelFormat, square_pixels,
};
use gst_base::{prelude::*, subclass::prelude::*};
use gst_video::{
    VideoChromaSite, VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo, prelude::*,
};

/// Returns the caps of raw video in system memory, for pad templates.
pub fn raw_video_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(PixelFormat::ALL.map(video_format)).build()
}

/// Answers an allocation query for an element that works in place: with the answer of the elements downstream, or else with the
/// element's own.
///
/// # Errors
/// Those of the element's base class.
pub fn propose_downstream_allocation<T>(
    element: &T,
    decide_query: Option<&gst::query::Allocation>,
    query: &mut gst::query::Allocation,
) -> Result<(), gst::LoggableError>
where
    T: BaseTransformImpl,
    T::Type: IsA<gst_base::BaseTransform>,
{
    if !element.obj().upcast_ref::<gst_base::BaseTransform>().src_pad().peer_query(query) {
        element.parent_propose_allocation(decide_query, query)?;
    }
    Ok(())
}

/// Accepts caps as the base class does. If it refuses those of a sink pad, posts an error that says what to do: elements upstream
/// would only report that the stream failed.
pub fn accept_caps<T>(element: &T, direction: gst::PadDirection, caps: &gst::Caps) -> bool
where
    T: BaseTransformImpl,
    T::Type: IsA<gst_base::BaseTransform>,
{
    let accepted = element.parent_accept_caps(direction, caps);
    if !accepted && direction == gst::PadDirection::Sink {
        let object = element.obj();
        let error = unsupported_caps_error(object.upcast_ref::<gst_base::BaseTransform>().upcast_ref(), caps);
        if let Some(error) = error {
            element.post_error_message(error);
        }
    }
    accepted
}

/// Returns the names of the formats, for messages.
pub fn format_names() -> String {
    PixelFormat::ALL.map(|format| video_format(format).to_str().as_str()).join(", ")
}

/// Says why an element that accepts [`raw_video_caps`] does not accept fixed caps, and what to do. `None` for caps that it
/// accepts, and for those that are not raw video.
pub fn unsupported_caps_error(element: &gst::Element, caps: &gst::CapsRef) -> Option<gst::ErrorMessage> {
    let structure = caps.structure(0).filter(|structure| structure.name() == "video/x-raw")?;
    if !caps.is_fixed() || caps.is_subset(&raw_video_caps()) {
        return None;
    }
    let name = element.factory().map_or_else(|| element.name().to_string(), |f| f.name().to_string());
    let memory =
        caps.features(0).filter(|features| !features.is_equal(&gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY));
    let why = match memory {
        Some(memory) => format!(
            "{name} reads frames in system memory only, and these are in {memory}: put an element that downloads them before it \
             (vapostproc, nvvidconv, gldownload, cudadownload), then videoconvert"
        ),
        None => format!(
            "{name} cannot read frames of the format {}: put videoconvert before it, or have the source send one of {}",
            structure.get::<&str>("format").unwrap_or("that has no name"),
            format_names()
        ),
    };
    Some(gst::error_msg!(gst::StreamError::Format, ("{why}"), ["the caps are {caps}"]))
}

/// Returns the factors, across and down, by which a frame is stretched to make its pixels square, each at least 1.
pub fn stretch(info: &VideoInfo) -> [f64; 2] {
    let (width, height) = pixel_aspect(info);
    square_pixels(width, height)
}

/// Returns the pixel aspect ratio.
fn pixel_aspect(info: &VideoInfo) -> (u32, u32) {
    let aspect = info.par();
    (u32::try_from(aspect.numer()).unwrap_or(0), u32::try_from(aspect.denom()).unwrap_or(0))
}

/// Returns the pad templates `sink` and `src` of an element whose output has the caps of its input.
pub fn transform_templates(caps: &gst::Caps) -> Vec<gst::PadTemplate> {
    [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
        .into_iter()
        .filter_map(|(name, direction)| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).ok()
        })
        .collect()
}

/// Maps a frame for reading.
///
/// # Errors
///
/// The buffer cannot be mapped, or is too small for its caps: a message for the bus.
pub fn map<'a>(
    buffer: &'a gst::BufferRef,
    info: &'a VideoInfo,
) -> Result<VideoFrameRef<&'a gst::BufferRef>, gst::ErrorMessage> {
    VideoFrameRef::from_buffer_ref_readable(buffer, info)
        .map_err(|_| gst::error_msg!(gst::ResourceError::Read, ("a frame cannot be mapped for reading")))
}

/// Borrows the planes of a mapped frame.
///
/// # Errors
///
/// A format that [`raw_video_caps`] doesn't have, and planes that are shorter than the caps promise.
pub fn borrow_frame<'a>(frame: &'a VideoFrameRef<&'a gst::BufferRef>) -> Result<Frame<'a>, DetectorError> {
    let info = frame.info();
    let unsupported = || DetectorError::InvalidFrame {
        field: format!("format ({})", info.format()),
        value: 0,
        limit: format!("one of {}", format_names()),
    };
    let format =
        PixelFormat::ALL.into_iter().find(|&f| video_format(f) == info.format()).ok_or_else(unsupported)?;
    let mut planes: [&[u8]; 3] = [&[]; 3];
    let mut strides = [0_usize; 3];
    let count = format.planes();
    for (index, (plane, stride)) in (0_u32..).zip(planes.iter_mut().zip(&mut strides).take(count)) {
        *plane = frame.plane_data(index).map_err(|_| unsupported())?;
        let bytes = usize::try_from(index).ok().and_then(|i| frame.plane_stride().get(i).copied());
        *stride = bytes.and_then(|s| usize::try_from(s).ok()).ok_or_else(unsupported)?;
    }
    let colorimetry = info.colorimetry();
    let matrix = match colorimetry.matrix() {
        VideoColorMatrix::Bt601 | VideoColorMatrix::Fcc | VideoColorMatrix::Smpte240m => ColorMatrix::Bt601,
        // BT.2020 differs from BT.709 by less than the detector or a JPEG crop can tell.
        _ => ColorMatrix::Bt709,
    };
    let range = match colorimetry.range() {
        VideoColorRange::Range0_255 => ColorRange::Full,
        _ => ColorRange::Limited,
    };
    let site = info.chroma_site();
    let site = ChromaSite {
        cosited_across: site.contains(VideoChromaSite::H_COSITED),
        cosited_down: site.contains(VideoChromaSite::V_COSITED),
    };
    let (pixel_width, pixel_height) = pixel_aspect(info);
    let described = Frame::new(
        format,
        frame.width(),
        frame.height(),
        planes.get(..count).unwrap_or_default(),
        strides.get(..count).unwrap_or_default(),
        matrix,
        range,
    )?;
    Ok(described.with_chroma_site(site).with_pixel_aspect(pixel_width, pixel_height))
}

/// Returns GStreamer's name of a format.
fn video_format(format: PixelFormat) -> VideoFormat {
    match format {
        PixelFormat::Nv12 => VideoFormat::Nv12,
        PixelFormat::I420 => VideoFormat::I420,
        PixelFormat::Nv21 => VideoFormat::Nv21,
        PixelFormat::Yv12 => VideoFormat::Yv12,
        PixelFormat::Yuy2 => VideoFormat::Yuy2,
        PixelFormat::Uyvy => VideoFormat::Uyvy,
        PixelFormat::Y42b => VideoFormat::Y42b,
        PixelFormat::Y444 => VideoFormat::Y444,
        PixelFormat::Rgb => VideoFormat::Rgb,
        PixelFormat::Bgr => VideoFormat::Bgr,
        PixelFormat::Rgbx => VideoFormat::Rgbx,
        PixelFormat::Bgrx => VideoFormat::Bgrx,
        PixelFormat::Rgba => VideoFormat::Rgba,
        PixelFormat::Bgra => VideoFormat::Bgra,
        PixelFormat::P010 => VideoFormat::P01010le,
        PixelFormat::I420Ten => VideoFormat::I42010le,
        PixelFormat::I422Ten => VideoFormat::I42210le,
        PixelFormat::Gray8 => VideoFormat::Gray8,
    }
}
