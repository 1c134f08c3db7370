//! The raw video that the elements take: which formats, and how a mapped buffer becomes the borrowed
//! [`Frame`] that the detector and the cropper read.

use facepipe_detector::{ColorMatrix, ColorRange, DetectorError, Frame, PixelFormat};
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, prelude::*};

/// Caps of the raw video, in system memory, for pad templates.
pub fn raw_video_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(PixelFormat::ALL.map(video_format)).build()
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
        limit: format!("one of {}", PixelFormat::ALL.map(|f| video_format(f).to_str().as_str()).join(", ")),
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
    Frame::new(
        format,
        frame.width(),
        frame.height(),
        planes.get(..count).unwrap_or_default(),
        strides.get(..count).unwrap_or_default(),
        matrix,
        range,
    )
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
    }
}
