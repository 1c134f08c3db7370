//! `facedetect ! facetrack` on rendered crowds whose walkers are known.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::init;
use facepipe_test_support::{
    require, skip,
    tracking::{Frame, Truth},
    workspace_root,
};
use gst::prelude::*;
use gstfacepipe::roi::faces_and_predictions;

const CROWDS: [&str; 3] =
    ["videos/crowd-medium-1080p6.mp4", "videos/crowd-high-1080p6.mp4", "videos/crowd-very-high-1080p6.mp4"];

/// Loads ONNX Runtime from the checkout, or ends the test.
macro_rules! runtime {
    () => {
        if let Err(error) = facepipe_detector::runtime::load(&[workspace_root()]) {
            skip(&error.to_string());
            return;
        }
    };
}

/// Runs a video through the elements; returns the tracked faces of each frame.
fn play(video: &Path, elements: &str) -> Vec<Frame> {
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
            let [left, top] = [face.left, face.top].map(f64::from);
            let bounds = [left, top, left + f64::from(face.width), top + f64::from(face.height)];
            (face.track_id.unwrap_or(0), bounds)
        });
        frames.push(tracked.collect());
    }
    let message = pipeline.bus().unwrap().pop_filtered(&[gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(message.is_none(), "{message:?}");
    frames
}

#[test]
fn dump() {
    runtime!();
    for name in CROWDS {
        let video = require!(name);
        let truth = Truth::beside(&video);
        for elements in std::env::var("ELEMENTS").unwrap().split(';') {
            let frames = play(&video, elements);
            let mut overlaps = truth.overlaps(&frames);
            overlaps.sort_by(f64::total_cmp);
            let q = |p: usize| overlaps[overlaps.len() * p / 100];
            for iou in [0.3, 0.4, 0.5] {
                let a = truth.compare(&frames, iou);
                eprintln!(
                    "{name} {elements} iou {iou}: IDF1 {:.3} right {} boxes {} tracked {} tracks {} walkers {} seen {}",
                    a.idf1(),
                    a.right,
                    a.boxes,
                    a.tracked,
                    a.tracks,
                    a.walkers,
                    a.seen.len()
                );
            }
            eprintln!(
                "overlap quantiles 5 {:.2} 10 {:.2} 25 {:.2} 50 {:.2} 75 {:.2} 90 {:.2}",
                q(5),
                q(10),
                q(25),
                q(50),
                q(75),
                q(90)
            );
            if let Ok(out) = std::env::var("DUMP") {
                let lines: Vec<String> = frames.iter().map(|f| serde_json::to_string(f).unwrap()).collect();
                std::fs::write(
                    format!("{out}/{}.jsonl", video.file_stem().unwrap().to_str().unwrap()),
                    lines.join("\n"),
                )
                .unwrap();
            }
        }
    }
}
