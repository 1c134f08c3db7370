//! The detector finds what the reference (the same network in ONNX Runtime under Python, OpenCV's resize) finds.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the lints exempt test functions, but not the functions that these call"
)]

mod common;

use common::{Planes, picture, rgb_frame};
use facepipe_detector::{ColorMatrix, ColorRange, Detection, Detector, DetectorConfig, PixelFormat};
use image::RgbImage;
use serde_json::Value;

/// With a quarter of the chroma gone, scores near the threshold move by more than 0.02; such a face counts both as
/// not found and as extra.
const WEAKER_BY_CHROMA: f64 = 0.04;

/// Counts over all pictures of one model.
#[derive(Debug, Default)]
struct Tally {
    reference: usize,
    found: usize,
    extra: usize,
}

impl Tally {
    fn add(&mut self, reference: &[Detection], detections: &[Detection]) {
        let mut left: Vec<&Detection> = detections.iter().collect();
        self.reference += reference.len();
        for expected in reference {
            let same = |d: &&Detection| d.iou(expected) >= 0.9 && (d.score - expected.score).abs() <= 0.02;
            if let Some(at) = left.iter().position(same) {
                left.swap_remove(at);
                self.found += 1;
            }
        }
        self.extra += left.len();
    }

    /// At least `found` of the reference's faces, and no more than `extra` besides, as parts of the reference.
    fn assert(&self, name: &str, found: f64, extra: f64) {
        println!("{name}: {self:?}");
        let reference = self.reference as f64;
        assert!(self.reference > 250, "{name}: the fixture has over 250 faces, {self:?}");
        assert!(self.found as f64 >= found * reference, "{name}: {self:?}, expected {found}");
        assert!(self.extra as f64 <= extra * reference, "{name}: {self:?}, expected {extra} extra");
    }
}

fn reference(faces: &Value) -> Vec<Detection> {
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    let face = |face: &Value| Detection {
        left: number(&face["box"][0]),
        top: number(&face["box"][1]),
        right: number(&face["box"][2]),
        bottom: number(&face["box"][3]),
        score: number(&face["score"]),
    };
    faces.as_array().unwrap().iter().map(face).collect()
}

/// Runs the model over every picture of the fixture. Nothing where data is missing.
fn tally(model: &str, detect: fn(&mut Detector, &RgbImage) -> Vec<Detection>) -> Option<Tally> {
    let Some(path) = facepipe_test_support::find(&format!("models/{model}.onnx")) else {
        facepipe_test_support::skip(&format!("no models/{model}.onnx: run `facepipe models fetch`"));
        return None;
    };
    let mut detector = common::open(DetectorConfig {
        model: path,
        score_threshold: 0.7,
        nms_threshold: 0.5,
        ..DetectorConfig::default()
    })?;
    let fixture = facepipe_test_support::fixture("ultralight.json");
    let pictures = fixture["models"][model].as_object().unwrap();
    let mut tally = Tally::default();
    for (name, faces) in pictures {
        let Some(path) = facepipe_test_support::find(name) else {
            facepipe_test_support::skip(&format!("no {name}: set FACEPIPE_MIRROR to a folder that has it"));
            return None;
        };
        tally.add(&reference(faces), &detect(&mut detector, &picture(&path)));
    }
    Some(tally)
}

fn from_rgb(detector: &mut Detector, picture: &RgbImage) -> Vec<Detection> {
    detector.detect(&rgb_frame(picture)).unwrap()
}

fn from_nv12(detector: &mut Detector, picture: &RgbImage) -> Vec<Detection> {
    let planes = Planes::of(picture, PixelFormat::Nv12, ColorMatrix::Bt709, ColorRange::Limited, 0);
    detector.detect(&planes.frame()).unwrap()
}

#[test]
fn rfb_320_finds_99_percent_of_the_reference_from_rgb() {
    if let Some(tally) = tally("version-RFB-320", from_rgb) {
        tally.assert("RFB-320, RGB", 0.99, 0.01);
    }
}

#[test]
fn slim_320_finds_99_percent_of_the_reference_from_rgb() {
    if let Some(tally) = tally("version-slim-320", from_rgb) {
        tally.assert("slim-320, RGB", 0.99, 0.01);
    }
}

#[test]
fn rfb_320_finds_97_percent_of_the_reference_from_nv12() {
    if let Some(tally) = tally("version-RFB-320", from_nv12) {
        tally.assert("RFB-320, NV12", 0.97, WEAKER_BY_CHROMA);
    }
}

#[test]
fn slim_320_finds_97_percent_of_the_reference_from_nv12() {
    if let Some(tally) = tally("version-slim-320", from_nv12) {
        tally.assert("slim-320, NV12", 0.97, WEAKER_BY_CHROMA);
    }
}
