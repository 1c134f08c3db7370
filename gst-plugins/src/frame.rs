//! The raw video that the elements take: which formats, and how a mapped buffer becomes the borrowed
//! [`Frame`] that the detector and the cropper read.

use facepipe_detector::{ColorMatrix, ColorRange, DetectorError, Frame, PixelFormat};
use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, prelude::*};

/// The formats, cheapest first.
const FORMATS: [VideoFormat; 8] = [
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
];

/// Caps of the raw video, in system memory, for pad templates.
pub fn raw_video_caps() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(FORMATS).build()
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
        limit: "one of NV12, I420, RGB, BGR, RGBx, BGRx, RGBA, BGRA".into(),
    };
    let format = pixel_format(info.format()).ok_or_else(unsupported)?;
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

fn pixel_format(format: VideoFormat) -> Option<PixelFormat> {
    Some(match format {
        VideoFormat::Nv12 => PixelFormat::Nv12,
        VideoFormat::I420 => PixelFormat::I420,
        VideoFormat::Rgb => PixelFormat::Rgb,
        VideoFormat::Bgr => PixelFormat::Bgr,
        VideoFormat::Rgbx => PixelFormat::Rgbx,
        VideoFormat::Bgrx => PixelFormat::Bgrx,
        VideoFormat::Rgba => PixelFormat::Rgba,
        VideoFormat::Bgra => PixelFormat::Bgra,
        _ => return None,
    })
}
