//! What the tests of the elements share: the elements registered, frames made, faces attached.
#![allow(dead_code, reason = "each test program uses its own part of this module")]

pub mod server;

use std::sync::Once;

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

pub fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
    init();
    VideoInfo::builder(format, width, height).fps(gst::Fraction::new(25, 1)).build().unwrap()
}

/// A packed frame (RGB and its kin) whose pixel at x, y is `pixel(x, y)`, in red, green, blue.
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

/// An NV12 or I420 frame of one colour, given as Y, Cb, Cr.
pub fn yuv_frame(info: &VideoInfo, [y, cb, cr]: [u8; 3]) -> gst::Buffer {
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    {
        let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), info).unwrap();
        frame.plane_data_mut(0).unwrap().fill(y);
        if info.format() == VideoFormat::Nv12 {
            frame.plane_data_mut(1).unwrap().chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&[cb, cr]));
        } else {
            frame.plane_data_mut(1).unwrap().fill(cb);
            frame.plane_data_mut(2).unwrap().fill(cr);
        }
    }
    buffer
}

/// A face without track id.
pub fn face(left: u32, top: u32, width: u32, height: u32) -> FaceRegion {
    FaceRegion { left, top, width, height, confidence: 0.75, track_id: None }
}

/// The buffer with a timestamp in milliseconds, 40 ms long, and these faces.
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
