//! The raw video that the elements take: which formats, and how a mapped buffer becomes the borrowed
//! [`Frame`] that the detector and the cropper read.

use facepipe_detector::{
    ChromaSite, ColorMatrix, ColorRange, DetectorError, Frame, PixelFormat, square_pixels,
};
use gst_base::{prelude::*, subclass::prelude::*};
use gst_video::{
    VideoChromaSite, VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo, prelude::*,
};

/// Caps of the raw video, in system memory, for pad templates.
pub fn raw_video_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(PixelFormat::ALL.map(video_format)).build()
}

/// Answers how frames may be allocated for an element through which they pass as they are: what may be done with them is for the
/// elements behind it to say, and for the element itself only where those say nothing.
///
/// # Errors
/// Those of the element's base class.
pub fn propose_allocation_of_what_follows<T>(
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

/// The names of the formats, for messages.
pub fn format_names() -> String {
    PixelFormat::ALL.map(|format| video_format(format).to_str().as_str()).join(", ")
}

/// Why an element that reads [`raw_video_caps`] refuses fixed caps, and what to do: a sentence for people. Nothing for caps
/// that it takes, and for those that describe no video frames.
pub fn refusal(element: &gst::Element, caps: &gst::CapsRef) -> Option<gst::ErrorMessage> {
    let structure = caps.structure(0).filter(|structure| structure.name() == "video/x-raw")?;
    if !caps.is_fixed() || caps.is_subset(&raw_video_caps()) {
        return None;
    }
    let name = element.factory().map_or_else(|| element.name().to_string(), |f| f.name().to_string());
    let memory =
        caps.features(0).filter(|features| !features.is_equal(&gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY));
    let why = match memory {
        Some(memory) => format!(
            "{name} reads frames in system memory only, and these are in {memory}: put what downloads them before it (vapostproc, \
             nvvidconv, gldownload, cudadownload), then videoconvert"
        ),
        None => format!(
            "{name} cannot read frames of the format {}: put videoconvert before it, or have the source send one of {}",
            structure.get::<&str>("format").unwrap_or("that has no name"),
            format_names()
        ),
    };
    Some(gst::error_msg!(gst::StreamError::Format, ("{why}"), ["the caps are {caps}"]))
}

/// By how much a frame must be stretched across and down for its pixels to be square, each at least 1.
pub fn stretch(info: &VideoInfo) -> [f64; 2] {
    let (width, height) = pixel_aspect(info);
    square_pixels(width, height)
}

/// Width and height of a pixel, to each other.
fn pixel_aspect(info: &VideoInfo) -> (u32, u32) {
    let aspect = info.par();
    (u32::try_from(aspect.numer()).unwrap_or(0), u32::try_from(aspect.denom()).unwrap_or(0))
}

/// The templates `sink` and `src` of an element that gives what it takes.
pub fn transform_templates(caps: &gst::Caps) -> Vec<gst::PadTemplate> {
    [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
        .into_iter()
        .filter_map(|(name, direction)| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).ok()
        })
        .collect()
}

/// Describes a mapped frame, without copying any of it.
///
/// # Errors
///
/// A format that [`raw_video_caps`] doesn't have, and planes that are shorter than the caps promise.
pub fn describe<'a>(frame: &'a VideoFrameRef<&'a gst::BufferRef>) -> Result<Frame<'a>, DetectorError> {
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

/// GStreamer's name of a format.
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
