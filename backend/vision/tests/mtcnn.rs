//! MTCNN against the reference.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and knows its own numbers"
)]

mod common;

use common::{numbers, picture};
use facepipe_test_support::{fixture, require, require_weights};
use facepipe_vision::{Backend, DecodeLimits, Face, ModelError, Mtcnn, MtcnnConfig, decode_image, main_face};
use image::RgbImage;
use rayon::prelude::*;
use serde_json::Value;

struct Reference {
    corners: [f64; 4],
    landmarks: Vec<f64>,
    probability: f64,
}

fn reference(face: &Value) -> Reference {
    Reference {
        corners: numbers(&face["box"]).try_into().unwrap(),
        landmarks: face["landmarks"].as_array().unwrap().iter().flat_map(numbers).collect(),
        probability: face["prob"].as_f64().unwrap(),
    }
}

/// Returns the largest distance of a corner or landmark coordinate, pixels.
fn distance(face: &Face, reference: &Reference) -> f64 {
    let b = face.bounding_box;
    let corners = [b.left, b.top, b.right, b.bottom];
    let ours = corners.iter().chain(face.landmarks.iter().flatten()).map(|v| f64::from(*v));
    let theirs = reference.corners.iter().chain(&reference.landmarks);
    ours.zip(theirs).map(|(o, t)| (o - t).abs()).fold(0.0, f64::max)
}

#[test]
fn detections_match_the_reference() {
    let models = require_weights!();
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let fixture = fixture("mtcnn.json");
    let images = fixture["images"].as_object().unwrap();
    let mut pictures = Vec::new();
    for (name, faces) in images {
        pictures.push((name, faces, require!(name)));
    }
    assert!(pictures.len() > 100);
    let results: Vec<_> = pictures
        .par_iter()
        .map(|(name, faces, path)| {
            let found = mtcnn.detect(&picture(path)).unwrap();
            let expected: Vec<_> = faces.as_array().unwrap().iter().map(reference).collect();
            let mut problems = Vec::new();
            let mut worst = (0f64, 0f64);
            let mut taken = vec![false; found.len()];
            for face in &expected {
                let near =
                    found.iter().enumerate().map(|(i, f)| (distance(f, face), i)).filter(|(_, i)| !taken[*i]);
                let nearest = near.min_by(|a, b| a.0.total_cmp(&b.0));
                let error =
                    nearest.map(|(d, i)| (d, i, (f64::from(found[i].confidence) - face.probability).abs()));
                match error {
                    Some((pixels, i, probability)) if pixels <= 1.0 && probability <= 0.005 => {
                        taken[i] = true;
                        worst = (worst.0.max(pixels), worst.1.max(probability));
                    }
                    _ if face.probability >= 0.95 => {
                        problems
                            .push(format!("{name}: {:?} has nothing nearer than {error:?}", face.corners));
                    }
                    _ => {}
                }
            }
            let extra = taken.iter().filter(|t| !**t).count();
            (problems, worst, expected.len(), extra)
        })
        .collect();
    let problems: Vec<_> = results.iter().flat_map(|r| &r.0).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    let (expected, extra) = results.iter().fold((0, 0), |sum, r| (sum.0 + r.2, sum.1 + r.3));
    let worst = results.iter().fold((0f64, 0f64), |w, r| (w.0.max(r.1.0), w.1.max(r.1.1)));
    println!("{expected} faces, {extra} extra, worst error {:.4} px and {:.6}", worst.0, worst.1);
    assert!(
        extra as f64 <= 0.01 * expected as f64,
        "{extra} faces more than the {expected} of the reference"
    );
}

#[test]
fn faces_are_sorted_by_confidence() {
    let models = require_weights!();
    let path = require!("scenes/multiface.jpg");
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let faces = mtcnn.detect(&picture(&path)).unwrap();
    assert!(faces.len() > 1);
    assert!(faces.is_sorted_by(|a, b| a.confidence >= b.confidence));
}

#[test]
fn a_picture_smaller_than_the_minimum_face_has_no_faces() {
    let models = require_weights!();
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    for (width, height) in [(0, 0), (1, 1), (19, 500), (500, 19), (20, 20), (21, 400), (3000, 20)] {
        let faces = mtcnn.detect(&RgbImage::from_pixel(width, height, image::Rgb([120, 130, 140]))).unwrap();
        assert!(faces.is_empty(), "{} in a plain picture of {width}x{height}", faces.len());
    }
}

#[test]
fn a_larger_minimum_size_and_higher_thresholds_detect_fewer_faces() {
    let models = require_weights!();
    let path = require!("scenes/crowd-10.jpg");
    let image = picture(&path);
    let detect = |config| Mtcnn::load(&models, config).unwrap().detect(&image).unwrap();
    let all = detect(MtcnnConfig::default());
    let large = detect(MtcnnConfig { min_face_size: 80.0, ..MtcnnConfig::default() });
    assert!(large.len() < all.len());
    assert!(large.iter().all(|f| f.bounding_box.width().max(f.bounding_box.height()) > 50.0));
    let sure = detect(MtcnnConfig { thresholds: [0.8, 0.9, 0.9999], ..MtcnnConfig::default() });
    assert!(sure.len() < all.len());
    assert!(sure.iter().all(|f| f.confidence > 0.9999));
}

#[test]
fn out_of_range_settings_are_rejected_by_name() {
    let models = require_weights!();
    let default = MtcnnConfig::default();
    for (config, name) in [
        (MtcnnConfig { min_face_size: 2.0, ..default }, "min_face_size"),
        (MtcnnConfig { min_face_size: f32::NAN, ..default }, "min_face_size"),
        (MtcnnConfig { factor: 1.0, ..default }, "factor"),
        (MtcnnConfig { thresholds: [0.6, 1.5, 0.7], ..default }, "thresholds"),
    ] {
        match Mtcnn::load(&models, config) {
            Err(ModelError::Setting { field, .. }) => assert_eq!(field, name),
            other => panic!("{config:?} gave {other:?}"),
        }
    }
}

#[test]
fn a_detector_can_be_shared_between_threads() {
    let models = require_weights!();
    let path = require!("scenes/crowd-03.jpg");
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let image = picture(&path);
    let alone = mtcnn.detect(&image).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| mtcnn.detect(&image).unwrap())).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });
}

#[test]
fn candle_and_native_detect_the_same_faces() {
    let models = require_weights!();
    let path = require!("scenes/crowd-03.jpg");
    let image = picture(&path);
    let expected = Mtcnn::load(&models, MtcnnConfig::default()).unwrap().detect(&image).unwrap();
    let backend = Backend::Candle(candle_core::Device::Cpu);
    let mtcnn = Mtcnn::load_on(&models, MtcnnConfig::default(), &backend).unwrap();
    let found = mtcnn.detect(&image).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found.bounding_box.left - expected.bounding_box.left).abs() < 0.1, "{found:?} {expected:?}");
        assert!((found.landmarks[4][1] - expected.landmarks[4][1]).abs() < 0.1, "{found:?} {expected:?}");
    }
}

#[test]
fn each_stage_is_refused_until_it_is_converted() {
    let models = require_weights!();
    let folder = tempfile::tempdir().unwrap();
    for name in Mtcnn::PUBLISHED_FILES {
        std::fs::copy(require!(&format!("models/{name}")), folder.path().join(name)).unwrap();
    }
    for name in Mtcnn::PUBLISHED_FILES {
        let error = Mtcnn::load(folder.path(), MtcnnConfig::default()).unwrap_err();
        assert!(matches!(error, ModelError::Unconverted { .. }), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
        let safetensors = std::path::Path::new(name).with_extension("safetensors");
        std::fs::copy(models.join(&safetensors), folder.path().join(&safetensors)).unwrap();
    }
    Mtcnn::load(folder.path(), MtcnnConfig::default()).unwrap();
}

#[test]
fn missing_weights_name_the_file_and_the_command_that_fetches_it() {
    let folder = tempfile::tempdir().unwrap();
    let error = Mtcnn::load(folder.path(), MtcnnConfig::default()).unwrap_err();
    assert!(matches!(error, ModelError::Missing { .. }));
    let text = error.to_string();
    assert!(text.contains("pnet.pt") && text.contains("facepipe models fetch"), "{text}");
}

/// Returns the picture around a face with a margin of `share` of its size, as `facecrop` cuts it.
fn around(image: &RgbImage, face: &Reference, share: f64) -> RgbImage {
    let [left, top, right, bottom] = face.corners;
    let (x, y) = ((right - left) * share, (bottom - top) * share);
    let (left, top) = ((left - x).max(0.0) as u32, (top - y).max(0.0) as u32);
    let right = ((right + x) as u32).min(image.width());
    let bottom = ((bottom + y) as u32).min(image.height());
    image::imageops::crop_imm(image, left, top, right - left, bottom - top).to_image()
}

#[test]
fn detect_in_crop_finds_the_same_most_confident_face_as_detect() {
    let models = require_weights!();
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let fixture = fixture("mtcnn.json");
    let mut crops = Vec::new();
    for (name, faces) in fixture["images"].as_object().unwrap() {
        let image = picture(&require!(name));
        let faces = faces.as_array().unwrap().iter().map(reference);
        // Smaller ones are not worth to be sent by an edge.
        let large = faces.filter(|f| f.probability > 0.99 && f.corners[2] - f.corners[0] >= 40.0);
        crops.extend(large.flat_map(|face| [0.15, 0.25, 0.5].map(|share| around(&image, &face, share))));
    }
    assert!(crops.len() > 300, "{}", crops.len());
    let differing = crops.par_iter().filter(|crop| {
        let (all, quick) = (mtcnn.detect(crop).unwrap(), mtcnn.detect_in_crop(crop).unwrap());
        all.is_empty() || all.first() != quick.first()
    });
    assert_eq!(differing.count(), 0, "of {} crops", crops.len());
}

#[test]
fn detect_in_crop_skips_small_faces() {
    let models = require_weights!();
    let path = require!("scenes/crowd-01.jpg");
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let image = picture(&path);
    let (all, quick) = (mtcnn.detect(&image).unwrap(), mtcnn.detect_in_crop(&image).unwrap());
    assert!(quick.len() < all.len(), "{} of {}", quick.len(), all.len());
}

/// Returns all files below a folder.
fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_scene_with_several_people_has_no_main_face() {
    let models = require_weights!();
    let scenes = require!("scenes/multiface.jpg");
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let mut several = 0;
    for scene in files(scenes.parent().unwrap()) {
        let image = decode_image(&std::fs::read(&scene).unwrap(), &DecodeLimits::default()).unwrap();
        let found = mtcnn.detect_inside(&image, false).unwrap();
        if found.len() > 1 {
            several += 1;
            let faces: Vec<_> = found.iter().map(|face| (face.bounding_box, face.confidence)).collect();
            assert_eq!(main_face(&faces, [image.width(), image.height()]), None, "{}", scene.display());
        }
    }
    assert!(several > 1, "{several}");
}
