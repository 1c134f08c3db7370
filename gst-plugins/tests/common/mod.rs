//! Helpers for the tests of the elements: registration, frames, faces.
#![allow(dead_code, reason = "each test program uses its own part of this module")]

pub mod server;

use std::sync::Once;

use facepipe_detector::BoundingBox;
use gst::prelude::*;
use gst_video::{VideoFormat, VideoFrameRef, VideoInfo};
use gstfacepipe::roi::{FaceRegion, attach_face};

/// Starts GStreamer and registers the elements, once.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstfacepipe::register_static().unwrap();
    });
}

/// Returns the error message on the bus of an element that does not start.
#[track_caller]
pub fn start_error(description: &str) -> String {
    init();
    let bus = gst::Bus::new();
    let element = gst::parse::launch(description).unwrap();
    element.set_bus(Some(&bus));
    let started = element.set_state(gst::State::Paused);
    let message = bus.pop_filtered(&[gst::MessageType::Error]);
    element.set_bus(None::<&gst::Bus>);
    element.set_state(gst::State::Null).unwrap();
    assert!(started.is_err(), "{description}: it started");
    let message = message.expect("an error message on the bus");
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    error.error().to_string()
}

pub fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
    init();
    VideoInfo::builder(format, width, height).fps(gst::Fraction::new(25, 1)).build().unwrap()
}

/// Returns a packed frame (any RGB format) whose pixel at x, y is `pixel(x, y)`, in red, green, blue.
pub fn packed_frame(info: &VideoInfo, pixel: impl Fn(u32, u32) -> [u8; 3]) -> gst::Buffer {
    let (order, channels) = match info.format() {
        VideoFormat::Rgb => ([0, 1, 2], 3),
        VideoFormat::Bgr => ([2, 1, 0], 3),
        VideoFormat::Rgbx | VideoFormat::Rgba => ([0, 1, 2], 4),
        VideoFormat::Bgrx | VideoFormat::Bgra => ([2, 1, 0], 4),
        other => panic!("{other} is not packed"),
    };
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    {
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), info).unwrap();
        let stride = info.stride()[0] as usize;
        let (width, height) = (info.width(), info.height());
        let bytes = frame.plane_data_mut(0).unwrap();
        for y in 0..height {
            for x in 0..width {
                let at = y as usize * stride + x as usize * channels;
                let rgb = pixel(x, y);
                for (channel, value) in order.into_iter().zip(rgb) {
                    bytes[at + channel] = value;
                }
            }
        }
    }
    buffer
}

/// The Y'CbCr formats that the elements accept.
pub const YUV_FORMATS: [VideoFormat; 11] = [
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Nv21,
    VideoFormat::Yv12,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
    VideoFormat::Y42b,
    VideoFormat::Y444,
    VideoFormat::P01010le,
    VideoFormat::I42010le,
    VideoFormat::I42210le,
];

/// Returns a Y'CbCr frame of one colour, given as Y, Cb, Cr in 8 bits each.
pub fn yuv_frame(info: &VideoInfo, code: [u8; 3]) -> gst::Buffer {
    yuv_halves(info, code, code)
}

/// Returns a Y'CbCr frame with one colour in its left half and another in its right half, each given as Y, Cb, Cr in 8
/// bits each; grey frames use only Y. The layout is GStreamer's.
pub fn yuv_halves(info: &VideoInfo, left: [u8; 3], right: [u8; 3]) -> gst::Buffer {
    let mut bytes = vec![0; info.size()];
    let components = info.n_components() as usize;
    for (component, (left, right)) in (0_u8..).zip(left.into_iter().zip(right)).take(components) {
        let index = usize::from(component);
        let (depth, shift) = (info.format_info().depth()[index], info.format_info().shift()[index]);
        let (width, height) = (info.comp_width(component), info.comp_height(component));
        for y in 0..height as usize {
            for x in 0..width as usize {
                let row = info.comp_offset(component) + y * info.comp_stride(component) as usize;
                let at = row + x * info.comp_pstride(component) as usize;
                let value = if 2 * x < width as usize { left } else { right };
                if depth == 8 {
                    bytes[at] = value;
                } else {
                    // For P010, GStreamer 1.22 gives an offset of Cr one byte after Cb, but uses two.
                    let at = at.next_multiple_of(2);
                    let wide = u16::from(value) << (depth - 8 + shift);
                    bytes[at..at + 2].copy_from_slice(&wide.to_le_bytes());
                }
            }
        }
    }
    gst::Buffer::from_mut_slice(bytes)
}

/// Returns a face without track id.
pub fn face(left: u32, top: u32, width: u32, height: u32) -> FaceRegion {
    FaceRegion {
        bounding_box: BoundingBox::from_size(left, top, width, height),
        confidence: 0.75,
        track_id: None,
        predicted: false,
    }
}

/// Returns the buffer with a timestamp in milliseconds, 40 ms long, and these faces.
pub fn with_faces(mut buffer: gst::Buffer, milliseconds: u64, faces: &[FaceRegion]) -> gst::Buffer {
    let writable = buffer.make_mut();
    writable.set_pts(gst::ClockTime::from_mseconds(milliseconds));
    writable.set_duration(gst::ClockTime::from_mseconds(40));
    for face in faces {
        attach_face(writable, face);
    }
    buffer
}

pub fn bytes(buffer: &gst::BufferRef) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

pub fn decode(jpeg: &[u8]) -> image::RgbImage {
    image::load_from_memory_with_format(jpeg, image::ImageFormat::Jpeg).unwrap().to_rgb8()
}
