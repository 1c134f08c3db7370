//! `faceoverlay`: boxes and labels in the pixels of every format.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod common;

use std::time::Duration;

use common::{
    YUV_FORMATS, bytes, face, info, init, packed_frame,
    server::{Answer, Server},
    with_faces, yuv_frame,
};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{VideoFormat, VideoInfo};
use gstfacepipe::{
    roi::{self, FaceRegion},
    track_events,
};
use image::RgbImage;

const WHITE: [u8; 3] = [255, 255, 255];
const RED: [u8; 3] = [230, 30, 30];
const BLUE: [u8; 3] = [40, 110, 255];
const GREEN: [u8; 3] = [30, 200, 60];

/// An overlay followed by a converter, so that every format can be checked as RGB.
struct Overlay {
    harness: Harness,
    element: gst::Element,
}

impl Overlay {
    fn new(info: &VideoInfo, properties: &str) -> Self {
        init();
        let line = format!(
            "facepipe-faceoverlay name=overlay {properties} ! videoconvert dither=none ! capsfilter caps=video/x-raw,format=RGB"
        );
        let mut harness = Harness::new_parse(&line);
        harness.set_src_caps(info.to_caps().unwrap());
        let bin = harness.element().unwrap().downcast::<gst::Bin>().unwrap();
        Self { element: bin.by_name("overlay").unwrap(), harness }
    }

    fn draw(&mut self, frame: gst::Buffer, faces: &[FaceRegion]) -> RgbImage {
        self.harness.push(with_faces(frame, 0, faces)).unwrap();
        let buffer = self.harness.pull().unwrap();
        // The converter keeps the regions.
        assert_eq!(roi::faces(&buffer).len(), faces.len());
        let caps = self.harness.sinkpad().unwrap().current_caps().unwrap();
        let info = VideoInfo::from_caps(&caps).unwrap();
        let (stride, row) = (info.stride()[0] as usize, info.width() as usize * 3);
        let pixels = bytes(&buffer).chunks(stride).flat_map(|line| line[..row].to_vec()).collect();
        RgbImage::from_raw(info.width(), info.height(), pixels).unwrap()
    }

    fn set(&self, track: i32, decision: &str, label: &str, confidence: f64) -> bool {
        self.element.emit_by_name("set-result", &[&track, &decision, &label, &confidence])
    }
}

fn near(pixel: &image::Rgb<u8>, color: [u8; 3], tolerance: u8) -> bool {
    (0..3).all(|c| pixel.0[c].abs_diff(color[c]) <= tolerance)
}

fn tracked(id: i32, region: FaceRegion) -> FaceRegion {
    FaceRegion { track_id: Some(id), ..region }
}

fn gray(_: u32, _: u32) -> [u8; 3] {
    [128; 3]
}

#[test]
fn each_state_of_a_face_has_its_colour_in_every_format() {
    let packed = [
        VideoFormat::Rgb,
        VideoFormat::Bgr,
        VideoFormat::Rgbx,
        VideoFormat::Bgrx,
        VideoFormat::Rgba,
        VideoFormat::Bgra,
    ];
    for format in YUV_FORMATS.into_iter().chain(packed) {
        // An odd width, so that rows are padded.
        let info = VideoInfo::builder(format, 641, 362).build().unwrap();
        let gray_frame =
            || if info.is_rgb() { packed_frame(&info, gray) } else { yuv_frame(&info, [126, 128, 128]) };
        let mut overlay = Overlay::new(&info, "line-width=4 labels=false");
        let region = face(200, 100, 120, 140);
        for (id, decision, color) in
            [(1, "", WHITE), (2, "none", RED), (3, "unknown", BLUE), (4, "known", GREEN)]
        {
            assert_eq!(overlay.set(id, decision, "Ada", 0.9), !decision.is_empty());
            let picture = overlay.draw(gray_frame(), &[tracked(id, region)]);
            for (x, y) in [(202, 170), (317, 170), (260, 102), (260, 237)] {
                let pixel = picture.get_pixel(x, y);
                assert!(
                    near(pixel, color, 12),
                    "{format}, {decision} at {x}, {y}: {pixel:?}, expected {color:?}"
                );
            }
            for (x, y) in [(190, 170), (210, 170), (330, 170), (260, 90), (260, 250), (260, 170)] {
                assert!(near(picture.get_pixel(x, y), [128; 3], 4), "{format} at {x}, {y} is not touched");
            }
        }
    }
}

#[test]
fn faces_without_a_result_are_drawn_as_configured() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let region = tracked(5, face(100, 100, 60, 60));
    for (unanswered, color) in
        [("white", WHITE), ("red", RED), ("purple", [160, 50, 220]), ("none", [128, 128, 128])]
    {
        let mut overlay = Overlay::new(&info, &format!("labels=false line-width=4 unanswered={unanswered}"));
        let picture = overlay.draw(packed_frame(&info, gray), &[region]);
        assert!(
            near(picture.get_pixel(102, 130), color, 0),
            "{unanswered}: {:?}",
            picture.get_pixel(102, 130)
        );
        overlay.set(5, "known", "Ada", 0.9);
        let picture = overlay.draw(packed_frame(&info, gray), &[region]);
        assert!(near(picture.get_pixel(102, 130), GREEN, 0), "{unanswered}: an answer counts for more");
    }
}

#[test]
fn the_label_is_above_the_box_or_where_there_is_room() {
    let info = info(VideoFormat::Nv12, 640, 360);
    let black = || yuv_frame(&info, [16, 128, 128]);
    let mut overlay = Overlay::new(&info, "font-size=24");
    overlay.set(1, "known", "Ada Lovelace", 0.87);
    let labelled =
        |picture: &RgbImage, y: u32| (0..640).filter(|&x| near(picture.get_pixel(x, y), GREEN, 60)).count();
    let above = overlay.draw(black(), &[tracked(1, face(200, 150, 100, 100))]);
    assert!(labelled(&above, 130) > 100, "above");
    assert!((200..400).any(|x| near(above.get_pixel(x, 137), [0; 3], 40)), "with ink on it");
    let below = overlay.draw(black(), &[tracked(1, face(200, 0, 100, 100))]);
    assert!(labelled(&below, 110) > 100, "below a face at the top");
    let inside = overlay.draw(black(), &[tracked(1, face(0, 0, 640, 360))]);
    assert!(labelled(&inside, 12) > 100, "inside a face that fills the frame");
    let at_the_right = overlay.draw(black(), &[tracked(1, face(590, 150, 50, 50))]);
    assert!(labelled(&at_the_right, 130) > 100, "moved to the left of the frame's edge");
}

#[test]
fn a_name_supersedes_earlier_results_and_is_dropped_with_its_track() {
    let info = info(VideoFormat::Rgb, 320, 240);
    let mut overlay = Overlay::new(&info, "labels=false line-width=4");
    let region = tracked(5, face(100, 100, 60, 60));
    let color =
        |overlay: &mut Overlay| *overlay.draw(packed_frame(&info, gray), &[region]).get_pixel(102, 130);
    assert!(near(&color(&mut overlay), WHITE, 0));
    overlay.set(5, "none", "", 0.0);
    assert!(near(&color(&mut overlay), RED, 0));
    overlay.set(5, "known", "Ada", 0.6);
    overlay.set(5, "unknown", "", 0.0);
    assert!(near(&color(&mut overlay), GREEN, 0));
    assert!(!overlay.set(5, "perhaps", "Ada", 0.6));
    overlay.harness.push_event(track_events::tracks_ended(&[5]));
    assert!(near(&color(&mut overlay), WHITE, 0));
    overlay.set(5, "known", "Ada", 0.6);
    overlay.element.emit_by_name::<()>("clear-results", &[]);
    assert!(near(&color(&mut overlay), WHITE, 0));
}

#[test]
fn faces_at_and_beyond_the_edges_are_clipped() {
    let info = info(VideoFormat::I420, 322, 241);
    let mut overlay = Overlay::new(&info, "");
    let faces = [
        face(0, 0, 322, 241),
        face(0, 0, 1, 1),
        face(321, 240, 1, 1),
        face(300, 200, 100, 100),
        face(5, 5, 0, 0),
        face(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    ];
    let faces: Vec<_> = (1..).zip(faces).map(|(id, region)| tracked(id, region)).collect();
    let picture = overlay.draw(yuv_frame(&info, [16, 128, 128]), &faces);
    assert!(near(picture.get_pixel(1, 120), WHITE, 12));
}

#[test]
fn a_frame_without_faces_is_not_changed() {
    let info = info(VideoFormat::Nv12, 320, 240);
    let mut overlay = Harness::new_parse("facepipe-faceoverlay");
    overlay.set_src_caps(info.to_caps().unwrap());
    let frame = yuv_frame(&info, [90, 100, 110]);
    overlay.push(frame.clone()).unwrap();
    assert_eq!(bytes(&overlay.pull().unwrap()), bytes(&frame));
}

/// The backend's response for a crop with a known face.
const KNOWN: &str = r#"{"model_version":1,"faces":[{"image":0,"bounding_box":{"left":5,"top":5,"right":45,"bottom":45},
    "detection_confidence":0.99,"top_prediction":{"label":"Ada","confidence":0.9},"decision":"known","threshold":0.3}]}"#;

#[test]
fn only_results_of_the_same_pipeline_are_drawn() {
    init();
    let server = Server::answering([Answer::json(201, KNOWN), Answer::json(201, KNOWN)]);
    let line = |camera: &str| {
        format!(
            "appsrc name=source format=time caps=video/x-raw,format=RGB,width=320,height=240,framerate=25/1 \
             ! tee name=t t. ! queue ! facepipe-faceoverlay name=overlay labels=false line-width=4 {camera} \
             ! appsink name=shown sync=false t. ! queue ! facepipe-facecrop policy=every \
             ! facepipe-facesink-http sync=false async=false camera-id=gate backend-url={}",
            server.url()
        )
    };
    let start = |camera: &str| {
        let pipeline = gst::parse::launch(&line(camera)).unwrap().downcast::<gst::Pipeline>().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        pipeline
    };
    let info = info(VideoFormat::Rgb, 320, 240);
    let show = |pipeline: &gst::Pipeline| {
        let source = pipeline.by_name("source").unwrap().downcast::<gst_app::AppSrc>().unwrap();
        let shown = pipeline.by_name("shown").unwrap().downcast::<gst_app::AppSink>().unwrap();
        let region = tracked(7, face(100, 100, 60, 60));
        source.push_buffer(with_faces(packed_frame(&info, gray), 0, &[region])).unwrap();
        let sample = shown.pull_sample().unwrap();
        let pixels = bytes(sample.buffer().unwrap());
        let at = 130 * info.stride()[0] as usize + 102 * 3;
        [pixels[at], pixels[at + 1], pixels[at + 2]]
    };
    let (with_it, other_camera, other_pipeline) =
        (start("camera-id=gate"), start("camera-id=yard"), start(""));
    assert_eq!(show(&with_it), WHITE, "nothing is known yet");
    assert_eq!(show(&other_camera), WHITE);
    let answered = |pipeline: &gst::Pipeline| {
        let found = pipeline.bus().unwrap().timed_pop_filtered(
            gst::ClockTime::from_seconds(20),
            &[gst::MessageType::Element, gst::MessageType::Error],
        );
        let name = found.and_then(|message| message.structure().map(|s| s.name().to_string()));
        assert_eq!(name.as_deref(), Some("facepipe-result"));
    };
    answered(&with_it);
    answered(&other_camera);
    let begun = std::time::Instant::now();
    while show(&with_it) != GREEN {
        assert!(begun.elapsed() < Duration::from_secs(20), "the result is not drawn");
    }
    assert_eq!(show(&other_camera), WHITE, "results of another camera");
    assert_eq!(show(&other_pipeline), WHITE, "results of another pipeline");
    for pipeline in [with_it, other_camera, other_pipeline] {
        pipeline.set_state(gst::State::Null).unwrap();
    }
}
