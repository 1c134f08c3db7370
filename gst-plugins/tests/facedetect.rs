//! `facedetect` on real pictures.

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

use common::{bytes, decode, init, start_error, with_faces};
use facepipe_detector::BoundingBox;
use facepipe_test_support::{fixture, require, require_onnx_runtime};
use gst::prelude::*;
use gst_check::Harness;
use gst_video::{VideoFormat, VideoInfo, VideoRegionOfInterestMeta};
use gstfacepipe::{
    detection_mark::was_searched,
    roi::{FaceRegion, candidates, crop_metadata, faces},
};

const PORTRAIT: &str = "lfw10/Ariel_Sharon/Ariel_Sharon_0001.jpg";
const GROUP: &str = "scenes/multiface.jpg";

/// Returns a picture as an RGB frame.
fn picture(path: &std::path::Path) -> (VideoInfo, gst::Buffer) {
    let image = image::open(path).unwrap().to_rgb8();
    let info = common::info(VideoFormat::Rgb, image.width(), image.height());
    let frame = common::packed_frame(&info, |x, y| image.get_pixel(x, y).0);
    (info, frame)
}

/// Returns the same frame in another format.
fn converted(info: &VideoInfo, frame: &gst::Buffer, format: VideoFormat) -> (VideoInfo, gst::Buffer) {
    let to = common::info(format, info.width(), info.height());
    let mut harness = Harness::new("videoconvert");
    harness.set_caps(info.to_caps().unwrap(), to.to_caps().unwrap());
    let buffer = harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap();
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    (VideoInfo::from_caps(&caps).unwrap(), buffer)
}

fn harness(info: &VideoInfo, properties: &str) -> Harness {
    init();
    let mut harness = Harness::new_parse(&format!("facepipe-facedetect name=detect {properties}"));
    harness.set_src_caps(info.to_caps().unwrap());
    harness
}

fn element(harness: &Harness) -> gst::Element {
    harness.element().unwrap().downcast::<gst::Bin>().unwrap().by_name("detect").unwrap()
}

/// Returns the intersection over union of a face and a reference box.
fn iou(face: &FaceRegion, [left, top, right, bottom]: [f64; 4]) -> f64 {
    face.bounding_box.map(f64::from).iou(&BoundingBox::new(left, top, right, bottom))
}

/// Returns the shorter side of a face, pixels.
fn shorter(face: &FaceRegion) -> u32 {
    face.bounding_box.width().min(face.bounding_box.height())
}

/// Returns the reference's detections in a picture: boxes clipped to the frame, and scores.
fn reference(model: &str, picture: &str, info: &VideoInfo) -> Vec<([f64; 4], f64)> {
    let found = fixture("ultralight.json")["models"][model][picture].as_array().unwrap().clone();
    let (width, height) = (f64::from(info.width()), f64::from(info.height()));
    found
        .iter()
        .map(|face| {
            let b: Vec<f64> = face["box"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let clamped = [
                b[0].clamp(0.0, width),
                b[1].clamp(0.0, height),
                b[2].clamp(0.0, width),
                b[3].clamp(0.0, height),
            ];
            (clamped, face["score"].as_f64().unwrap())
        })
        .collect()
}

/// Asserts that the faces are the reference's, pixels rounded outwards.
fn assert_same(found: &[FaceRegion], reference: &[([f64; 4], f64)], what: &str) {
    assert_eq!(found.len(), reference.len(), "{what}: {found:?}");
    for (expected, score) in reference {
        let best = found.iter().max_by(|a, b| iou(a, *expected).total_cmp(&iou(b, *expected))).unwrap();
        assert!(iou(best, *expected) >= 0.9, "{what}: {best:?}, expected {expected:?}");
        assert!((best.confidence - score).abs() <= 0.02, "{what}: {best:?}, expected score {score}");
    }
}

/// The thresholds of the reference, as far as they differ from the defaults.
const AS_REFERENCE: &str = "score-threshold=0.7 nms-threshold=0.5";

#[test]
fn the_faces_of_a_picture_become_metadata_in_every_format_and_the_pixels_stay() {
    require_onnx_runtime!();
    init();
    let model = require!("models/version-RFB-320.onnx");
    for name in [PORTRAIT, GROUP] {
        let path = require!(name);
        let (rgb_info, rgb) = picture(&path);
        let expected = reference("version-RFB-320", name, &rgb_info);
        let packed = [
            VideoFormat::Rgb,
            VideoFormat::Bgr,
            VideoFormat::Rgbx,
            VideoFormat::Bgrx,
            VideoFormat::Rgba,
            VideoFormat::Bgra,
        ];
        for format in packed.into_iter().chain(common::YUV_FORMATS) {
            let (info, frame) = converted(&rgb_info, &rgb, format);
            let mut harness = harness(&info, &format!("model={} {AS_REFERENCE}", model.display()));
            let before = bytes(&frame);
            let out = harness.push_and_pull(with_faces(frame, 40, &[])).unwrap();
            assert!(bytes(&out) == before, "{name} {format}: the pixels were touched");
            assert_eq!(out.pts(), Some(gst::ClockTime::from_mseconds(40)));
            assert_same(&faces(&out), &expected, &format!("{name} {format}"));
        }
    }
}

#[test]
fn the_metadata_match_the_documentation() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let mut harness = harness(&info, &format!("model={}", model.display()));
    let out = harness.push_and_pull(with_faces(frame, 0, &[])).unwrap();
    let (metas, weak): (Vec<_>, Vec<_>) =
        out.iter_meta::<VideoRegionOfInterestMeta>().partition(|meta| meta.roi_type() == "face");
    for meta in weak {
        assert_eq!(meta.roi_type(), "face-candidate");
        let confidence = meta.param("detection").unwrap().get::<f64>("confidence").unwrap();
        assert!((0.3..=0.6).contains(&confidence), "{confidence}");
    }
    let [meta] = &metas[..] else { panic!("{} regions", metas.len()) };
    assert_eq!((meta.roi_type(), meta.id()), ("face", 0));
    let detection = meta.param("detection").unwrap();
    assert_eq!(detection.get::<&str>("label_name"), Ok("face"));
    assert!((0.9..=1.0).contains(&detection.get::<f64>("confidence").unwrap()));
    let (left, top, width, height) = meta.rect();
    assert!(left + width <= info.width() && top + height <= info.height());
}

#[test]
fn thresholds_are_those_of_the_model_unless_they_are_set() {
    require_onnx_runtime!();
    let [ultra_light, mtcnn] = [require!("models/version-RFB-320.onnx"), require!("models/pnet.pt")];
    let (info, frame) = picture(&require!(PORTRAIT));
    let thresholds = |element: &gst::Element| {
        ["score-threshold", "low-score-threshold"].map(|name| element.property::<f32>(name))
    };
    for (model, expected) in [(&ultra_light, [0.6, 0.3]), (&mtcnn, [0.9, 0.5])] {
        let mut harness = harness(&info, &format!("model={}", model.display()));
        assert_eq!(thresholds(&element(&harness)), expected, "{}", model.display());
        let out = harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap();
        let found = faces(&out);
        assert!(found.len() == 1 && found[0].confidence > 0.95, "{}: {found:?}", model.display());
        let weak = candidates(&out);
        assert!(weak.iter().all(|face| face.confidence > f64::from(expected[1])), "{weak:?}");
    }
    let harness = harness(&info, &format!("score-threshold=0.7 model={}", mtcnn.display()));
    assert_eq!(thresholds(&element(&harness)), [0.7, 0.5]);
}

#[test]
fn every_nth_frame_is_searched() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let mut harness = harness(&info, &format!("interval=3 model={}", model.display()));
    let pattern = |harness: &mut Harness, frames: usize| -> Vec<usize> {
        (0..frames)
            .map(|_| faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap()).len())
            .collect()
    };
    assert_eq!(pattern(&mut harness, 7), [1, 0, 0, 1, 0, 0, 1]);
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(pattern(&mut harness, 2), [1, 0], "a flush restarts the interval");
    let element = element(&harness);
    element.set_property("interval", 1_u32);
    assert_eq!(pattern(&mut harness, 2), [1, 1], "changed while playing");
}

#[test]
fn max_fps_limits_the_searches_per_second_of_stream_time() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let mut harness = harness(&info, &format!("max-fps=4 model={}", model.display()));
    let mut search = |milliseconds: &[u64]| -> Vec<bool> {
        milliseconds
            .iter()
            .map(|&ms| {
                let mut buffer = frame.copy();
                buffer.make_mut().set_pts(gst::ClockTime::from_mseconds(ms));
                was_searched(&harness.push_and_pull(buffer).unwrap()).unwrap()
            })
            .collect()
    };
    // Six frames per second: the first after each quarter of a second is searched.
    let sixths: Vec<u64> = (0..12).map(|n| n * 1000 / 6 + 1).collect();
    let one_second = [true, false, true, true, false, true];
    assert_eq!(search(&sixths), [one_second, one_second].concat());
    assert_eq!(search(&[9000, 9100, 9249, 9250, 9400]), [true, false, false, true, false], "after a pause");
    let element = element(&harness);
    element.set_property("max-fps", 0.0);
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    for _ in 0..2 {
        let buffer = harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap();
        assert_eq!(was_searched(&buffer), Some(true), "without a limit");
    }
}

/// Returns how many of the frames with these timestamps (milliseconds), each after its segment, are searched.
fn searches(
    harness: &mut Harness,
    frame: &gst::Buffer,
    timestamps: impl IntoIterator<Item = Option<u64>>,
) -> usize {
    let searched = |timestamp: &Option<u64>| {
        let mut buffer = with_faces(frame.copy(), 0, &[]);
        buffer.make_mut().set_pts(timestamp.map(gst::ClockTime::from_mseconds));
        was_searched(&harness.push_and_pull(buffer).unwrap()).unwrap()
    };
    timestamps.into_iter().filter(searched).count()
}

#[test]
fn max_fps_holds_for_irregular_timestamps() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let started = || harness(&info, &format!("max-fps=5 model={}", model.display()));
    // 25 frames a second, so every fifth is searched.
    let hour = 3_600_000;
    let mut falling = started();
    let timestamps = (0..50).map(|n| Some(40 * n + if n < 20 { hour } else { 0 }));
    assert_eq!(searches(&mut falling, &frame, timestamps), 10, "from 1 h to 0");
    let leaping = (0..50).map(|n| Some(40 * n + if n == 20 { 100 * hour } else { 0 }));
    let found = searches(&mut started(), &frame, leaping);
    assert!((10..=12).contains(&found), "{found} with one far ahead");
    let early = (0..50).map(|n| Some(40 * n - if n % 5 == 4 { 60 } else { 0 }));
    assert_eq!(searches(&mut started(), &frame, early), 10, "every fifth 60 ms early");
    assert_eq!(searches(&mut started(), &frame, [Some(1000); 50]), 10, "one timestamp");
    assert_eq!(searches(&mut started(), &frame, [None; 50]), 10, "no timestamps");
    // A loop without a flush, three rounds.
    let mut looping = started();
    for round in 0..3 {
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_base(gst::ClockTime::from_mseconds(2000 * round));
        looping.push_event(gst::event::Segment::new(&segment));
        let found = searches(&mut looping, &frame, (0..50).map(|n| Some(40 * n)));
        assert_eq!(found, 10, "round {round}");
    }
}

#[test]
fn faces_outside_the_size_limits_are_left_out() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(GROUP));
    let mut harness = harness(&info, &format!("model={}", model.display()));
    let element = element(&harness);
    let mut sizes = || -> Vec<(u32, u32)> {
        let found = faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap());
        let mut sizes: Vec<_> = found
            .iter()
            .map(|face| (shorter(face), face.bounding_box.width().max(face.bounding_box.height())))
            .collect();
        sizes.sort_unstable();
        sizes
    };
    let all = sizes();
    let middle = all[all.len() / 2];
    let within = |least: u32, most: u32| -> Vec<(u32, u32)> {
        all.iter().copied().filter(|&(shorter, longer)| shorter >= least && longer <= most).collect()
    };
    for (least, most) in [(middle.0 + 1, 0), (0, middle.1 - 1), (middle.0, middle.1), (0, 0)] {
        element.set_property("min-face-size", least);
        element.set_property("max-face-size", most);
        let expected = within(least, if most == 0 { u32::MAX } else { most });
        assert!(!expected.is_empty(), "{all:?}");
        assert_eq!(sizes(), expected, "from {least} to {most} pixels");
    }
    assert!(within(middle.0 + 1, u32::MAX).len() < all.len() && within(0, middle.1 - 1).len() < all.len());
}

#[test]
fn thresholds_and_max_faces_can_be_changed_while_playing() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(GROUP));
    let mut harness = harness(&info, &format!("model={}", model.display()));
    let element = element(&harness);
    let mut found = || faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap());
    let all = found();
    assert!(all.len() >= 6, "{all:?}");
    assert!(all.iter().all(|f| f.confidence > 0.6));

    element.set_property("max-faces", 2_u32);
    let best = found();
    assert_eq!(best.len(), 2);
    let weakest = best.iter().map(|f| f.confidence).fold(1.0, f64::min);
    assert!(all.iter().filter(|f| f.confidence > weakest).count() <= 1, "not the best: {best:?} of {all:?}");

    element.set_property("max-faces", 0_u32);
    let median = 0.5 * (all[0].confidence + all[all.len() - 1].confidence);
    element.set_property("score-threshold", median as f32);
    let strong = found();
    assert!(!strong.is_empty() && strong.iter().all(|f| f.confidence >= median - 1e-6), "{strong:?}");
}

/// Returns the counts below-min-face-size, above-max-face-size and above-max-faces.
fn left_out(element: &gst::Element) -> [u64; 3] {
    let stats = element.property::<gst::Structure>("stats");
    ["below-min-face-size", "above-max-face-size", "above-max-faces"].map(|name| stats.get(name).unwrap())
}

#[test]
fn faces_that_are_left_out_are_counted() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(GROUP));
    let count = |properties: &str| {
        let mut harness = harness(&info, &format!("model={} {properties}", model.display()));
        let found = faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap());
        let element = element(&harness);
        assert_eq!(stats(&element)[4], found.len() as u64);
        (found, left_out(&element))
    };
    let (all, none) = count("");
    assert_eq!(none, [0; 3]);
    let total = all.len() as u64;
    let middle = all.iter().map(shorter).max().unwrap();
    let small = all.iter().filter(|face| shorter(face) < middle).count() as u64;
    assert!(small > 0 && small < total);
    assert_eq!(count(&format!("min-face-size={middle}")).1, [small, 0, 0]);
    assert_eq!(count("max-face-size=1").1, [0, total, 0]);
    assert_eq!(count("max-faces=2").1, [0, 0, total - 2]);
    // Faces that are too small do not count towards max-faces.
    let (kept, counted) = count(&format!("max-faces=1 min-face-size={middle}"));
    assert_eq!((kept.len(), counted), (1, [small, 0, total - small - 1]));
}

#[test]
fn detection_continues_when_a_camera_switches_to_grey() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (rgb_info, rgb) = picture(&require!(GROUP));
    let (day, colours) = converted(&rgb_info, &rgb, VideoFormat::I420);
    let (night, greys) = converted(&rgb_info, &rgb, VideoFormat::Gray8);
    let mut harness = harness(&day, &format!("model={}", model.display()));
    let mut found = |info: Option<&VideoInfo>, frame: &gst::Buffer| {
        if let Some(info) = info {
            harness.set_src_caps(info.to_caps().unwrap());
        }
        faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap())
    };
    let by_day = found(None, &colours);
    let by_night = found(Some(&night), &greys);
    let again = found(Some(&day), &colours);
    assert_eq!(by_day, again);
    assert!(by_day.len() >= 6, "{by_day:?}");
    let seen = by_day.iter().filter(|face| {
        let place = face.bounding_box.edges().map(f64::from);
        by_night.iter().any(|other| iou(other, place) > 0.6)
    });
    assert!(seen.count() + 1 >= by_day.len(), "{by_night:?} by night, {by_day:?} by day");
}

#[test]
fn tracking_and_cropping_continue_when_a_camera_switches_to_grey() {
    init();
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (rgb_info, rgb) = picture(&require!(GROUP));
    let (day, colours) = converted(&rgb_info, &rgb, VideoFormat::I420);
    let (night, greys) = converted(&rgb_info, &rgb, VideoFormat::Gray8);
    let mut harness = Harness::new_parse(&format!(
        "facepipe-facedetect model={} ! facepipe-facetrack ! facepipe-facecrop min-size=20",
        model.display()
    ));
    let mut cropped = |frames: u64, from: u64, info: &VideoInfo, frame: &gst::Buffer| {
        harness.set_src_caps(info.to_caps().unwrap());
        for number in from..from + frames {
            harness.push(with_faces(frame.copy(), number * 200, &[])).unwrap();
        }
        // Pending crops are sent at the end of their tracks, which the next switch causes.
        std::iter::from_fn(|| harness.try_pull()).map(|crop| decode(&bytes(&crop))).collect::<Vec<_>>()
    };
    let is_grey = |crop: &image::RgbImage| crop.pixels().all(|pixel| pixel.0.iter().all(|&c| c == pixel[0]));
    let mut crops = cropped(8, 0, &day, &colours);
    let at_day = crops.len();
    crops.extend(cropped(8, 8, &night, &greys));
    crops.extend(cropped(8, 16, &day, &colours));
    let by_night = crops.iter().filter(|crop| is_grey(crop)).count();
    assert!(at_day >= 6, "{at_day}");
    assert!(by_night + 1 >= at_day, "{by_night} by night, {at_day} by day");
    // By day again, as many as before.
    assert!(
        crops.len() - by_night >= 2 * at_day,
        "{} in all, {by_night} by night, {at_day} at first",
        crops.len()
    );
}

#[test]
fn size_limits_are_in_square_pixels_and_boxes_in_frame_pixels() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (square, frame) = picture(&require!(GROUP));
    // Every second column: the same picture of pixels that are twice as wide as high.
    let bytes = bytes(&frame);
    let stride = square.stride()[0] as usize;
    let narrow = common::info(VideoFormat::Rgb, square.width() / 2, square.height());
    let squeezed = common::packed_frame(&narrow, |x, y| {
        let at = y as usize * stride + 6 * x as usize;
        [bytes[at], bytes[at + 1], bytes[at + 2]]
    });
    let narrow = VideoInfo::builder(VideoFormat::Rgb, narrow.width(), narrow.height())
        .par(gst::Fraction::new(2, 1))
        .build()
        .unwrap();
    let found = |info: &VideoInfo, frame: &gst::Buffer, properties: &str| {
        let mut harness = harness(info, &format!("model={} {properties}", model.display()));
        faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap())
    };
    let (as_square, anamorphic) = (found(&square, &frame, ""), found(&narrow, &squeezed, ""));
    assert!(anamorphic.len() + 1 >= as_square.len(), "{anamorphic:?} of {as_square:?}");
    for face in &anamorphic {
        let [left, top, right, bottom] = face.bounding_box.edges().map(f64::from);
        let place = [2.0 * left, top, 2.0 * right, bottom];
        assert!(as_square.iter().any(|other| iou(other, place) > 0.7), "{face:?} of {as_square:?}");
    }
    let widest = as_square.iter().map(shorter).max().unwrap();
    let limit = format!("min-face-size={}", widest * 2 / 3);
    assert!(!found(&narrow, &squeezed, &limit).is_empty(), "the limit is one of square pixels");
}

/// Returns the messages of a type that an element posts while `act` uses its harness.
fn messages(
    harness: &mut Harness,
    wanted: gst::MessageType,
    act: impl FnOnce(&mut Harness),
) -> Vec<gst::Message> {
    let bus = gst::Bus::new();
    element(harness).set_bus(Some(&bus));
    act(harness);
    element(harness).set_bus(None::<&gst::Bus>);
    std::iter::from_fn(|| bus.pop_filtered(&[wanted])).collect()
}

#[test]
fn unsupported_formats_are_refused_with_the_list_of_supported_ones() {
    require_onnx_runtime!();
    require!("models/version-RFB-320.onnx");
    let good = common::info(VideoFormat::I420, 64, 48);
    let mut harness = harness(&good, "model=rfb-320");
    let refused = messages(&mut harness, gst::MessageType::Error, |harness| {
        harness.push_event(gst::event::Caps::new(
            &"video/x-raw,format=Y444_12LE,width=64,height=48,framerate=25/1".parse::<gst::Caps>().unwrap(),
        ));
    });
    let text = |message: &gst::Message| match message.view() {
        gst::MessageView::Error(error) => error.error().to_string(),
        _ => unreachable!(),
    };
    let sentence = text(refused.first().expect("an error on the bus"));
    for part in ["facedetect", "Y444_12LE", "videoconvert", "NV12", "I420_10LE", "GRAY8"] {
        assert!(sentence.contains(part), "{part}: {sentence}");
    }
    let elsewhere = messages(&mut harness, gst::MessageType::Error, |harness| {
        harness.push_event(gst::event::Caps::new(
            &"video/x-raw(memory:DMABuf),format=NV12,width=64,height=48,framerate=25/1"
                .parse::<gst::Caps>()
                .unwrap(),
        ));
    });
    assert!(text(&elsewhere[0]).contains("memory:DMABuf"), "{}", text(&elsewhere[0]));
    let accepted = messages(&mut harness, gst::MessageType::Error, |harness| {
        harness.set_src_caps(common::info(VideoFormat::Gray8, 64, 48).to_caps().unwrap());
    });
    assert!(accepted.is_empty());
}

/// Returns an orientation tag.
fn orientation(value: &str) -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.make_mut().add::<gst::tags::ImageOrientation>(&value, gst::TagMergeMode::Replace);
    gst::event::Tag::new(tags)
}

#[test]
fn rotated_video_causes_one_warning_unless_an_element_rotates_it() {
    require_onnx_runtime!();
    require!("models/version-RFB-320.onnx");
    let info = common::info(VideoFormat::I420, 64, 48);
    let warnings = |line: &str, tags: &[&str]| {
        init();
        let mut harness = Harness::new_parse(line);
        harness.set_src_caps(info.to_caps().unwrap());
        messages(&mut harness, gst::MessageType::Warning, |harness| {
            for value in tags {
                harness.push_event(orientation(value));
            }
        })
    };
    let alone = "facepipe-facedetect name=detect model=rfb-320";
    assert!(warnings(alone, &["rotate-0", "flip-rotate-0"]).is_empty(), "faces are upright");
    let sideways = warnings(alone, &["rotate-90", "rotate-270"]);
    assert_eq!(sideways.len(), 1);
    let gst::MessageView::Warning(warning) = sideways[0].view() else { unreachable!() };
    let text = warning.error().to_string();
    assert!(text.contains("rotate-90") && text.contains("videoflip video-direction=auto"), "{text}");
    assert_eq!(warnings(alone, &["flip-rotate-180"]).len(), 1, "heads are below");
    for turned in ["video-direction=auto", "video-direction=90r"] {
        let line = format!("videoflip {turned} ! queue ! {alone}");
        assert!(warnings(&line, &["rotate-90"]).is_empty(), "{turned}");
    }
    let line = format!("videoflip ! {alone}");
    assert_eq!(warnings(&line, &["rotate-90"]).len(), 1, "which turns nothing");
}

#[test]
fn rotated_video_is_searched_upright_after_videoflip() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (upright, frame) = picture(&require!(GROUP));
    let (width, height) = (upright.width(), upright.height());
    let (rgb, stride) = (bytes(&frame), upright.stride()[0] as usize);
    // As a phone records it: rotated left, to be rotated right for display.
    let side = common::info(VideoFormat::Rgb, height, width);
    let lying = common::packed_frame(&side, |x, y| {
        let at = x as usize * stride + 3 * (width - 1 - y) as usize;
        [rgb[at], rgb[at + 1], rgb[at + 2]]
    });
    let found = |line: &str, info: &VideoInfo, frame: &gst::Buffer| {
        init();
        let mut harness = Harness::new_parse(line);
        harness.set_src_caps(info.to_caps().unwrap());
        harness.push_event(orientation("rotate-90"));
        faces(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap())
    };
    let alone = format!("facepipe-facedetect name=detect model={}", model.display());
    let turned = found(&format!("videoconvert ! videoflip video-direction=auto ! {alone}"), &side, &lying);
    assert_eq!(turned, found(&alone, &upright, &frame));
    assert!(turned.len() >= 6);
}

fn error_of(properties: &str) -> String {
    start_error(&format!("facepipe-facedetect {properties}"))
}

#[test]
fn a_missing_model_is_an_error_with_a_remedy() {
    let unknown = error_of("model=yolo");
    assert!(unknown.contains("\"yolo\"") && unknown.contains("rfb-320"), "{unknown}");
    let missing = error_of("model=/nowhere/at-all.onnx");
    assert!(missing.contains("at-all.onnx") && missing.contains("facepipe models fetch"), "{missing}");
}

#[test]
fn a_file_that_is_not_a_model_is_an_error() {
    require_onnx_runtime!();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("garbage.onnx");
    std::fs::write(&file, b"this is no ONNX file").unwrap();
    let error = error_of(&format!("model={}", file.display()));
    assert!(error.contains("garbage.onnx"), "{error}");
}

#[test]
fn an_execution_provider_that_the_library_lacks_is_an_error_without_fallback() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let runtime = facepipe_detector::runtime::load(&[]).unwrap();
    for provider in ["cuda", "tensorrt", "openvino"] {
        if runtime.has(provider.parse().unwrap()) {
            continue;
        }
        let error = error_of(&format!("execution-provider={provider} model={}", model.display()));
        assert!(error.contains(provider), "{error}");
    }
}

#[test]
fn the_supported_formats_are_offered_in_system_memory_only() {
    init();
    let factory = gst::ElementFactory::find("facepipe-facedetect").unwrap();
    for format in [
        "NV12",
        "I420",
        "NV21",
        "YV12",
        "YUY2",
        "UYVY",
        "Y42B",
        "Y444",
        "RGB",
        "BGR",
        "RGBx",
        "BGRx",
        "RGBA",
        "BGRA",
        "P010_10LE",
        "I420_10LE",
        "I422_10LE",
        "GRAY8",
    ] {
        let caps = format!("video/x-raw,format={format},width=64,height=64,framerate=25/1");
        let caps: gst::Caps = caps.parse().unwrap();
        assert!(factory.can_sink_all_caps(&caps) && factory.can_src_all_caps(&caps), "{format}");
    }
    for caps in ["video/x-raw,format=Y444_12LE", "video/x-raw(memory:DMABuf),format=NV12", "image/jpeg"] {
        assert!(!factory.can_sink_any_caps(&caps.parse::<gst::Caps>().unwrap()), "{caps}");
    }
}

/// Returns the statistics of the element: frames, detected, skipped-still, skipped-late, faces.
fn stats(element: &gst::Element) -> [u64; 5] {
    let stats = element.property::<gst::Structure>("stats");
    ["frames", "detected", "skipped-still", "skipped-late", "faces"].map(|name| stats.get(name).unwrap())
}

#[test]
fn frames_are_marked_as_searched_or_not() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let mut harness = harness(&info, &format!("interval=2 model={}", model.display()));
    let marks: Vec<_> = (0..4)
        .map(|_| was_searched(&harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap()))
        .collect();
    assert_eq!(marks, [Some(true), Some(false), Some(true), Some(false)]);
    assert_eq!(stats(&element(&harness)), [4, 2, 0, 0, 2]);
}

#[test]
fn detections_below_the_threshold_are_candidates() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(GROUP));
    let mut harness = harness(&info, &format!("low-score-threshold=1 model={}", model.display()));
    let element = element(&harness);
    let mut found = || {
        let frame = harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap();
        (faces(&frame), candidates(&frame))
    };
    let (all, none) = found();
    assert_eq!(none, [], "1 is off");
    // A threshold between the weakest face and the others turns faces into candidates.
    let weakest = all.iter().map(|f| f.confidence).fold(1.0, f64::min);
    let strongest = all.iter().map(|f| f.confidence).fold(0.0, f64::max);
    let between = 0.5 * (weakest + strongest);
    element.set_property("score-threshold", between as f32);
    element.set_property("low-score-threshold", 0.6_f32);
    let (strong, weak) = found();
    assert!(!strong.is_empty() && strong.iter().all(|f| f.confidence > between - 1e-6), "{strong:?}");
    assert!(!weak.is_empty() && weak.iter().all(|f| f.confidence <= between + 1e-6), "{weak:?}");
    assert_eq!([&strong[..], &weak[..]].concat(), all, "the same boxes, in the same order");
    let counted = stats(&element)[4];
    assert_eq!(counted, all.len() as u64 + strong.len() as u64, "candidates are no faces");
}

/// Returns a large still picture with a small portrait at x, y.
fn scene_with(portrait: &image::RgbImage, x: u32, y: u32) -> impl Fn(u32, u32) -> [u8; 3] {
    move |px, py| {
        let inside = px.checked_sub(x).zip(py.checked_sub(y));
        let face = inside.and_then(|(px, py)| portrait.get_pixel_checked(px, py));
        face.map_or([((px / 9 + py / 13) % 40 + 90) as u8; 3], |pixel| pixel.0)
    }
}

#[test]
fn a_small_moving_face_in_a_corner_triggers_the_detector() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let portrait = image::open(require!(PORTRAIT)).unwrap().to_rgb8();
    // The face on it is 28 pixels wide: a 34th of 960.
    let portrait = image::imageops::thumbnail(&portrait, 64, 64);
    let info = common::info(VideoFormat::Rgb, 960, 540);
    let properties = format!("motion-threshold=3 max-gap=1000 model={}", model.display());
    for (x, y, step) in [(0, 0, 2), (890, 0, -2), (0, 470, 2), (890, 470, -2)] {
        let mut harness = harness(&info, &properties);
        let mut push = |x: i32| {
            let frame = common::packed_frame(&info, scene_with(&portrait, x as u32, y));
            harness.push_and_pull(with_faces(frame, 0, &[])).unwrap();
        };
        (0..3).for_each(|_| push(x));
        (1..=10).for_each(|i| push(x + i * step));
        (0..3).for_each(|_| push(x + 10 * step));
        let [frames, detected, still, ..] = stats(&element(&harness));
        // Two pixels per frame: each frame differs from the one before.
        assert_eq!((frames, detected, still), (16, 11, 5), "from {x}, {y}");
    }
}

#[test]
fn a_still_scene_keeps_its_faces_until_something_moves() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(GROUP));
    let mut harness = harness(&info, &format!("max-gap=5 model={}", model.display()));
    let element = element(&harness);
    let mut push = |frame: &gst::Buffer| {
        let out = harness.push_and_pull(with_faces(frame.copy(), 0, &[])).unwrap();
        assert_eq!(was_searched(&out), Some(true), "it shows what the searched one showed");
        faces(&out)
    };
    let first = push(&frame);
    assert!(first.len() >= 6);
    (0..3).for_each(|_| assert_eq!(push(&frame), first));
    assert_eq!(stats(&element)[..3], [4, 4, 0], "off by default");

    element.set_property("motion-threshold", 3.0_f32);
    (0..12).for_each(|_| assert_eq!(push(&frame), first));
    // There was no reference before; then frames 0, 5 and 10 of the twelve.
    assert_eq!(stats(&element)[..3], [16, 7, 9]);

    let gray = common::packed_frame(&info, |_, _| [128; 3]);
    assert_eq!(push(&gray), [], "another scene");
    assert_eq!(push(&frame), first, "and the first again");
    assert_eq!(stats(&element)[..3], [18, 9, 9]);

    element.set_property("max-faces", 2_u32);
    assert_eq!(push(&frame).len(), 2, "a change of what counts is heard at once");
    element.set_property("motion-threshold", 0.0_f32);
    (0..3).for_each(|_| assert_eq!(push(&frame).len(), 2));
    assert_eq!(stats(&element)[..3], [22, 13, 9]);
}

#[test]
fn frames_that_a_sink_reports_as_late_are_not_searched() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let (info, frame) = picture(&require!(PORTRAIT));
    let mut harness = harness(&info, &format!("max-gap=4 model={}", model.display()));
    let element = element(&harness);
    let late = |timestamp: u64, by: i64| {
        let timestamp = gst::ClockTime::from_mseconds(timestamp);
        gst::event::Qos::new(gst::QOSType::Underflow, 1.5, by * 1_000_000, timestamp)
    };
    let push = |harness: &mut Harness, milliseconds: u64| {
        let out = harness.push_and_pull(with_faces(frame.copy(), milliseconds, &[])).unwrap();
        was_searched(&out).unwrap()
    };
    assert!(push(&mut harness, 0));
    harness.push_upstream_event(late(0, 100));
    assert_eq!([40, 80, 120].map(|ms| push(&mut harness, ms)), [false, false, true], "up to 100 ms");
    harness.push_upstream_event(late(120, 1000));
    let searched = [160, 200, 240, 280, 320].map(|ms| push(&mut harness, ms));
    assert_eq!(searched, [false, false, false, true, false], "but not for longer than max-gap");
    harness.push_upstream_event(late(320, -30));
    assert!(push(&mut harness, 360), "in time again");
    assert_eq!(stats(&element)[..4], [10, 4, 0, 6]);

    harness.push_upstream_event(late(360, 1000));
    element.set_property("qos", false);
    assert!(push(&mut harness, 400), "switched off while playing");
}

/// Plays a source of 40 frames at 25 per second into a slow sink; returns the statistics.
fn played(source: &str, properties: &str, sink: &str) -> ([u64; 5], u64) {
    init();
    let line = format!(
        "videotestsrc num-buffers=40 {source} ! video/x-raw,format=I420,width=320,height=240,framerate=25/1 ! \
         facepipe-facedetect name=detect max-gap=10 {properties} ! identity sleep-time=60000 ! {sink}"
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let passed = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = passed.clone();
    let detect = pipeline.by_name("detect").unwrap();
    detect.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let message =
        pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends).unwrap();
    assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    let stats = stats(&detect);
    pipeline.set_state(gst::State::Null).unwrap();
    (stats, passed.load(std::sync::atomic::Ordering::Relaxed))
}

/// A frame takes 60 ms instead of 40, so the last one is 800 ms late.
#[test]
fn late_frames_of_a_live_source_are_not_searched_and_not_dropped() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    let properties = format!("model={}", model.display());
    for sink in ["fakesink sync=false", "fakesink sync=true qos=true"] {
        let ([frames, detected, _, late, _], passed) = played("is-live=true", &properties, sink);
        assert_eq!((frames, passed, detected + late), (40, 40, 40), "{sink}");
        assert!(late >= 10, "{sink}: {late} were late");
        assert!(detected >= 4, "{sink}: some are searched all the same, {detected}");
    }
    let ([.., late, _], _) =
        played("is-live=true", &format!("{properties} qos=false"), "fakesink sync=false");
    assert_eq!(late, 0, "switched off");
}

#[test]
fn a_recording_has_no_late_frames() {
    require_onnx_runtime!();
    let model = require!("models/version-RFB-320.onnx");
    for sink in ["fakesink sync=false", "fakesink sync=false qos=true"] {
        let ([frames, detected, ..], passed) = played("", &format!("model={}", model.display()), sink);
        assert_eq!((frames, detected, passed), (40, 40, 40), "{sink}");
    }
}

#[test]
fn a_seek_in_a_recording_starts_new_tracks() {
    require_onnx_runtime!();
    let video = require!("videos/street-1080p.mp4");
    let model = require!("models/version-RFB-640.onnx");
    init();
    let line = format!(
        "filesrc location={} ! decodebin ! facepipe-facedetect model={} ! facepipe-facetrack ! facepipe-facecrop \
         ! appsink name=crops sync=false",
        video.display(),
        model.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    let crops = pipeline.by_name("crops").unwrap().downcast::<gst_app::AppSink>().unwrap();
    let metadata = |sample: &gst::Sample| {
        let buffer = sample.buffer().unwrap();
        (crop_metadata(buffer).unwrap().face.track_id.unwrap(), buffer.pts().unwrap())
    };
    pipeline.set_state(gst::State::Paused).unwrap();
    let (before, _) = metadata(&crops.pull_preroll().unwrap());
    let (start, wait) = (gst::ClockTime::from_seconds(3), gst::ClockTime::from_seconds(30));
    pipeline.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE, start).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let after: Vec<_> =
        std::iter::from_fn(|| crops.try_pull_sample(wait)).map(|sample| metadata(&sample)).collect();
    assert!(crops.is_eos());
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(after.len() > 5, "{after:?}");
    for (id, pts) in &after {
        assert!(*id > before && *pts >= start, "track {id} at {pts}, first of all was track {before}");
    }
}
