//! `facedetect ! facetrack` on rendered crowds whose walkers are known.

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

use std::path::Path;

use common::init;
use facepipe_test_support::{
    require, require_onnx_runtime,
    tracking::{Frame, GroundTruth},
};
use gst::prelude::*;
use gstfacepipe::roi::faces_and_predictions;

const CROWDS: [&str; 3] =
    ["videos/crowd-medium-1080p6.mp4", "videos/crowd-high-1080p6.mp4", "videos/crowd-very-high-1080p6.mp4"];

/// The result of a video.
struct Played {
    /// The faces of each frame, with the ids of their tracks (0 without).
    frames: Vec<Frame>,
    /// Statistics of the element named `detect`.
    detected: usize,
    skipped_still: usize,
}

/// Runs a video through the elements.
fn play(video: &Path, elements: &str) -> Played {
    init();
    let pipeline = format!(
        "filesrc location={} ! decodebin ! {elements} ! appsink name=frames sync=false",
        video.display()
    );
    let pipeline = gst::parse::launch(&pipeline).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("frames").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut frames = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let faces = faces_and_predictions(sample.buffer().unwrap());
        let tracked = faces.iter().map(|face| {
            let bounds = face.bounding_box.edges().map(f64::from);
            (face.track_id.unwrap_or(0), bounds)
        });
        frames.push(tracked.collect());
    }
    let stats = pipeline.by_name("detect").map(|detect| detect.property::<gst::Structure>("stats"));
    let count = |name: &str| {
        let count = stats.as_ref().map_or(0, |stats| stats.get::<u64>(name).unwrap());
        usize::try_from(count).unwrap()
    };
    let (detected, skipped_still) = (count("detected"), count("skipped-still"));
    let message = pipeline.bus().unwrap().pop_filtered(&[gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(message.is_none(), "{message:?}");
    Played { frames, detected, skipped_still }
}

/// The detector's boxes fit the rendered ones (the median overlap is 0.85), so the usual 0.5 identifies them.
const MIN_IOU: f64 = 0.5;

#[test]
fn walkers_keep_their_ids() {
    require_onnx_runtime!();
    for name in CROWDS {
        let video = require!(name);
        let truth = GroundTruth::beside(&video);
        let agreement =
            truth.compare(&play(&video, "facepipe-facedetect ! facepipe-facetrack").frames, MIN_IOU);
        eprintln!("{name}: IDF1 {:.3}, {agreement:?}", agreement.idf1());
        assert!(agreement.idf1() >= 0.85, "{name}: IDF1 {:.3}, {agreement:?}", agreement.idf1());
        assert!(4 * agreement.tracks <= 5 * agreement.walkers, "{name}: {agreement:?}");
        assert_eq!(agreement.seen, truth.walkers(), "{name}");
    }
}

#[test]
fn walkers_keep_their_ids_when_every_second_or_third_frame_is_searched() {
    require_onnx_runtime!();
    // At three and at two searches per second: walkers move by half a face between two searches.
    for (interval, least) in [(2, 0.85), (3, 0.8)] {
        for name in CROWDS {
            let video = require!(name);
            let truth = GroundTruth::beside(&video);
            let elements = format!("facepipe-facedetect interval={interval} ! facepipe-facetrack");
            let agreement = truth.compare(&play(&video, &elements).frames, MIN_IOU);
            eprintln!("{name}, interval {interval}: IDF1 {:.3}, {agreement:?}", agreement.idf1());
            assert!(agreement.idf1() >= least, "{name}, interval {interval}: {:.3}", agreement.idf1());
            assert!(
                4 * agreement.tracks <= 5 * agreement.walkers,
                "{name}, interval {interval}: {agreement:?}"
            );
        }
    }
}

#[test]
fn skipping_still_scenes_loses_no_walker() {
    require_onnx_runtime!();
    let mut rested = 0;
    for name in CROWDS {
        let video = require!(name);
        let truth = GroundTruth::beside(&video);
        let elements = "facepipe-facedetect name=detect motion-threshold=3 ! facepipe-facetrack";
        let played = play(&video, elements);
        let agreement = truth.compare(&played.frames, MIN_IOU);
        assert_eq!(agreement.seen, truth.walkers(), "{name}");
        assert!(agreement.idf1() >= 0.85, "{name}: IDF1 {:.3}", agreement.idf1());
        assert_eq!(played.detected + played.skipped_still, truth.frames(), "{name}");
        rested += played.skipped_still;
    }
    assert!(rested > 0, "nobody walks in some frames of the emptiest crowd");
}

/// The first frame of a crowd, again and again.
#[test]
fn a_frozen_video_is_searched_once_per_max_gap() {
    require_onnx_runtime!();
    let video = require!(CROWDS[1]);
    let elements =
        "imagefreeze num-buffers=100 ! facepipe-facedetect name=detect motion-threshold=3 max-gap=40";
    let played = play(&video, elements);
    assert_eq!(played.frames.len(), 100);
    assert_eq!((played.detected, played.skipped_still), (3, 97), "frames 0, 40 and 80");
    let first = &played.frames[0];
    assert!(!first.is_empty());
    assert!(played.frames.iter().all(|frame| frame == first), "all keep the faces of the first");
}
