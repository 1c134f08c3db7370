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
use facepipe_detector::{
    BoundingBox, ColorMatrix, ColorRange, Detection, Detector, DetectorConfig, PixelFormat,
};
use image::RgbImage;
use serde_json::Value;

/// With a quarter of the chroma samples, scores near the threshold change by more than 0.02; such a face counts both as
/// missed and as extra.
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
            let same = |d: &&Detection| {
                d.bounding_box.iou(&expected.bounding_box) >= 0.9 && (d.score - expected.score).abs() <= 0.02
            };
            if let Some(at) = left.iter().position(same) {
                left.swap_remove(at);
                self.found += 1;
            }
        }
        self.extra += left.len();
    }

    /// Asserts that at least the fraction `found` of the reference's faces was found, and at most the fraction `extra` more.
    fn assert(&self, name: &str, found: f64, extra: f64) {
        println!("{name}: {self:?}");
        let reference = self.reference as f64;
        assert!(self.reference > 250, "{name}: the fixture has over 250 faces, {self:?}");
        assert!(self.found as f64 >= found * reference, "{name}: {self:?}, expected {found}");
        assert!(self.extra as f64 <= extra * reference, "{name}: {self:?}, expected {extra} extra");
    }
}

fn bounding_box(edges: &Value) -> BoundingBox<f64> {
    let [left, top, right, bottom] = [0, 1, 2, 3].map(|edge| edges[edge].as_f64().unwrap());
    BoundingBox::new(left, top, right, bottom)
}

fn reference(faces: &Value) -> Vec<Detection> {
    let face = |face: &Value| Detection {
        bounding_box: bounding_box(&face["box"]),
        score: face["score"].as_f64().unwrap(),
    };
    faces.as_array().unwrap().iter().map(face).collect()
}

/// Runs the model on every picture of the fixture. `None` where data is missing.
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

/// Returns MTCNN with the reference's minimum face size. `None` where data is missing.
fn mtcnn() -> Option<Detector> {
    let model = facepipe_test_support::find("models/pnet.pt");
    let Some(model) = model else {
        facepipe_test_support::skip("no models/pnet.pt: run `facepipe models fetch`");
        return None;
    };
    common::open(DetectorConfig {
        model,
        score_threshold: 0.7,
        nms_threshold: 1.0,
        min_face_size: 20,
        ..DetectorConfig::default()
    })
}

/// Returns the pictures of `mtcnn.json` with facenet-pytorch's boxes and probabilities; of the portraits, every `every`-th.
fn facenet_pytorch(every: usize) -> Vec<(RgbImage, Vec<Detection>)> {
    let fixture = facepipe_test_support::fixture("mtcnn.json");
    let mut found = Vec::new();
    for (index, (name, faces)) in fixture["images"].as_object().unwrap().iter().enumerate() {
        if !name.starts_with("scenes") && index % every != 0 {
            continue;
        }
        let Some(path) = facepipe_test_support::find(name) else { continue };
        let face = |face: &Value| Detection {
            bounding_box: bounding_box(&face["box"]),
            score: face["prob"].as_f64().unwrap(),
        };
        found.push((picture(&path), faces.as_array().unwrap().iter().map(face).collect()));
    }
    if found.is_empty() {
        facepipe_test_support::skip(
            "none of the pictures of mtcnn.json: set FACEPIPE_MIRROR to a folder that has them",
        );
    }
    found
}

/// Returns how many of the reference's faces overlap with a found box by at least `iou`, and how many boxes are left.
fn overlapping(reference: &[Detection], found: &[Detection], iou: f64) -> (usize, usize) {
    let mut left: Vec<&Detection> = found.iter().collect();
    let mut matched = 0;
    for expected in reference {
        if let Some(at) = left.iter().position(|d| d.bounding_box.iou(&expected.bounding_box) >= iou) {
            left.swap_remove(at);
            matched += 1;
        }
    }
    (matched, left.len())
}

#[test]
fn mtcnn_finds_what_facenet_pytorch_finds() {
    let Some(mut detector) = mtcnn() else { return };
    // The reference resizes crops differently, which matters for faces with few pixels.
    let (mut faces, mut matched, mut extra) = (0, 0, 0);
    for (picture, reference) in facenet_pytorch(10) {
        let found = detector.detect(&rgb_frame(&picture)).unwrap();
        let (same, left) = overlapping(&reference, &found, 0.7);
        (faces, matched, extra) = (faces + reference.len(), matched + same, extra + left);
    }
    println!("{faces} faces, {matched} found, {extra} extra");
    assert!(matched * 100 >= faces * 97, "{matched} of {faces}");
    assert!(extra * 100 <= faces * 4, "{extra} besides {faces}");
}

#[test]
fn mtcnn_finds_a_face_in_every_format_and_with_pixels_that_are_not_square() {
    let Some(mut detector) = mtcnn() else { return };
    detector.set_min_face_size(0);
    let portraits = facenet_pytorch(10).into_iter().filter(|(p, faces)| p.width() == 250 && faces.len() == 1);
    for (picture, reference) in portraits.take(2) {
        for format in PixelFormat::ALL {
            let planes = Planes::of(&picture, format, ColorMatrix::Bt709, ColorRange::Limited, 0);
            let found = detector.detect(&planes.frame()).unwrap();
            assert_eq!(overlapping(&reference, &found, 0.75), (1, 0), "{format:?}: {found:?}, {reference:?}");
        }
        let narrow = image::imageops::resize(&picture, 125, 250, image::imageops::FilterType::Triangle);
        let found = detector.detect(&rgb_frame(&narrow).with_pixel_aspect(2, 1)).unwrap();
        let widen = |d: &Detection| {
            let BoundingBox { left, right, .. } = d.bounding_box;
            Detection {
                bounding_box: BoundingBox { left: 2.0 * left, right: 2.0 * right, ..d.bounding_box },
                ..*d
            }
        };
        let wide: Vec<Detection> = found.iter().map(widen).collect();
        assert_eq!(overlapping(&reference, &wide, 0.75), (1, 0), "{found:?}, {reference:?}");
    }
}

#[test]
fn mtcnn_finds_faces_from_the_minimum_size_on() {
    let Some(mut detector) = mtcnn() else { return };
    let Some(path) = facepipe_test_support::find("scenes/multiface.jpg") else {
        return facepipe_test_support::skip("no scenes/multiface.jpg: run `facepipe models fetch`");
    };
    let picture = picture(&path);
    let all = detector.detect(&rgb_frame(&picture)).unwrap();
    let size = |d: &Detection| d.bounding_box.width().max(d.bounding_box.height());
    let smallest = all.iter().map(size).fold(f64::MAX, f64::min);
    detector.set_min_face_size((2.0 * smallest) as u32);
    let large = detector.detect(&rgb_frame(&picture)).unwrap();
    assert!(large.len() < all.len(), "{} of {}", large.len(), all.len());
    assert!(large.iter().all(|d| size(d) > smallest), "{smallest}: {large:?}");
    for side in [1, 2, 16, 40] {
        let pixels = vec![90; side * side * 3];
        let tiny = facepipe_detector::Frame::rgb(&pixels, side as u32, side as u32).unwrap();
        assert!(detector.detect(&tiny).unwrap().is_empty(), "a frame of {side} pixels");
    }
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
