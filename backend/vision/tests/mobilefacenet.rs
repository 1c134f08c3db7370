//! MobileFaceNet against the reference: on a synthetic input, and on photographs through detection and alignment.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and knows its own numbers"
)]

mod common;
mod dlib_resnet;

use common::{cosine, formula_input, numbers, picture};
use facepipe_convert::convert;
use facepipe_test_support::{fixture, require, require_weights};
use facepipe_vision::{
    Backend, BoundingBox, Embedder, EmbedderKind, Face, MobileFaceNet, ModelError, Mtcnn, MtcnnConfig,
    VisionError, installed_embedder, load_embedder,
    weights::{Weights, is_outdated},
};
use image::RgbImage;
use rayon::prelude::*;

const PUBLISHED: &str = "mobilefacenet.onnx";

#[test]
fn the_embedding_of_a_synthetic_input_matches_the_reference() {
    let file = EmbedderKind::MobileFaceNet.weights_file(&require_weights!(PUBLISHED));
    let by_candle = Backend::Candle(candle_core::Device::Cpu);
    let by_candle = MobileFaceNet::new(&Weights::read(&file).unwrap(), &by_candle).unwrap();
    let expected = numbers(&fixture("mobilefacenet.json")["formula_input"]["embedding"]);
    for network in [MobileFaceNet::load(&file).unwrap(), by_candle] {
        let embedding = network.forward(&formula_input("input", &[1, 3, 112, 112])).unwrap().remove(0);
        assert_eq!(embedding.len(), 128);
        let worst =
            embedding.iter().zip(&expected).map(|(o, t)| (f64::from(*o) - t).abs()).fold(0.0, f64::max);
        println!("worst error {worst:.2e}");
        assert!(worst <= 1e-4, "{worst}");
    }
}

/// Returns the face that the reference chose: that nearest to the middle.
fn middle_face(image: &RgbImage, faces: Vec<Face>) -> Face {
    let (x, y) = (image.width() as f32 / 2.0, image.height() as f32 / 2.0);
    let distance = |f: &Face| {
        let [cx, cy] = f.bounding_box.center();
        (cx - x).hypot(cy - y)
    };
    faces.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
}

#[test]
fn embeddings_of_photographs_match_the_reference_and_verify_people() {
    let models = require_weights!(PUBLISHED);
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let embedder = load_embedder(EmbedderKind::MobileFaceNet, &models).unwrap();
    let fixture = fixture("mobilefacenet.json");
    let mut photographs = Vec::new();
    for (name, expected) in fixture["embeddings"].as_object().unwrap() {
        photographs.push((name.as_str(), numbers(expected), require!(name)));
    }
    assert_eq!(photographs.len(), 100);
    let crops: Vec<_> = photographs
        .par_iter()
        .map(|(_, _, path)| {
            let image = picture(path);
            let faces = mtcnn.detect(&image).unwrap();
            embedder.crop(&image, &middle_face(&image, faces))
        })
        .collect();
    let embeddings = embedder.embed(&crops).unwrap();

    let cosines =
        embeddings.iter().zip(&photographs).map(|(e, (name, expected, _))| (cosine(e, expected), *name));
    let (worst, name) = cosines.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("smallest cosine {worst:.5} ({name})");
    assert!(worst >= 0.99, "{name}: {worst}");

    let person = |i: usize| photographs[i].0.split('/').nth(1).unwrap();
    let (mut same, mut different) = (Vec::new(), Vec::new());
    for i in 0..embeddings.len() {
        for j in i + 1..embeddings.len() {
            let cosine: f32 = embeddings[i].iter().zip(&embeddings[j]).map(|(a, b)| a * b).sum();
            if person(i) == person(j) { same.push(cosine) } else { different.push(cosine) }
        }
    }
    assert_eq!((same.len(), different.len()), (450, 4500));
    let errors = |threshold: f32| {
        let rejected = same.iter().filter(|cosine| **cosine < threshold).count();
        (rejected, different.iter().filter(|cosine| **cosine >= threshold).count())
    };
    for threshold in [0.30, embedder.verification_threshold(), embedder.default_threshold()] {
        println!("at {threshold} of 450 and 4500 pairs wrong: {:?}", errors(threshold));
    }
    // What the documentation of the thresholds says.
    assert_eq!(errors(embedder.verification_threshold()), (2, 0));
    let (rejected, accepted) = errors(0.30);
    assert!(rejected <= 1 && accepted <= 9, "{rejected} {accepted}");
    // No other threshold tells more pairs apart.
    let fewest = (0..1000u16).map(|thousandths| errors(f32::from(thousandths) / 1000.0)).map(|(r, a)| r + a);
    assert_eq!(fewest.min(), Some(2));
    let (rejected, accepted) = errors(embedder.default_threshold());
    assert!(rejected + accepted <= 4, "{rejected} {accepted}");
}

/// Asserts that a batch gives what each crop gives alone, and that embeddings are L2-normalised.
fn assert_batch_equals_single_crops(network: &dyn Embedder, crops: &[RgbImage]) {
    let together = network.embed(crops).unwrap();
    assert_eq!(together.len(), crops.len());
    for (crop, embedding) in crops.iter().zip(&together) {
        let alone = network.embed(std::slice::from_ref(crop)).unwrap().remove(0);
        let worst = alone.iter().zip(embedding).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-5, "{worst}");
        let length = embedding.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
}

#[test]
fn batched_and_single_crops_give_equal_normalised_embeddings() {
    let file = EmbedderKind::MobileFaceNet.weights_file(&require_weights!(PUBLISHED));
    let network = MobileFaceNet::load(&file).unwrap();
    let crops: Vec<_> = (0..19u8)
        .map(|i| {
            RgbImage::from_fn(112, 112, |x, y| image::Rgb([(x * 2) as u8, (y * 2) as u8, i.wrapping_mul(13)]))
        })
        .collect();
    assert_batch_equals_single_crops(&network, &crops);
    assert!(network.embed(&[]).unwrap().is_empty());
}

#[test]
fn a_crop_of_the_wrong_size_is_rejected() {
    let file = EmbedderKind::MobileFaceNet.weights_file(&require_weights!(PUBLISHED));
    let network = MobileFaceNet::load(&file).unwrap();
    let crops = [RgbImage::new(112, 112), RgbImage::new(112, 113)];
    match network.embed(&crops) {
        Err(VisionError::CropSize { index: 1, width: 112, height: 113, expected: 112, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_weights_no_embedder_is_installed_and_loading_names_the_fetch_command() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(installed_embedder(folder.path()), None);
    for kind in EmbedderKind::ALL {
        let error = load_embedder(kind, folder.path()).err().unwrap();
        assert!(matches!(error, ModelError::Missing { .. }), "{error:?}");
        assert!(error.to_string().contains("facepipe models fetch"), "{error}");
    }
}

#[test]
fn the_installed_embedder_is_the_most_preferred_one_with_weights() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(EmbedderKind::DlibResnet.weights_file(folder.path()), b"").unwrap();
    assert_eq!(installed_embedder(folder.path()), Some(EmbedderKind::DlibResnet));
    std::fs::write(folder.path().join("mobilefacenet.onnx"), b"").unwrap();
    assert_eq!(installed_embedder(folder.path()), Some(EmbedderKind::MobileFaceNet));
    std::fs::write(folder.path().join("20180402-114759-vggface2.pt"), b"").unwrap();
    assert_eq!(installed_embedder(folder.path()), Some(EmbedderKind::InceptionResnetV1));
}

#[test]
fn published_weights_are_refused_until_they_are_converted_and_later_ones_are_noticed() {
    for kind in [EmbedderKind::MobileFaceNet, EmbedderKind::DlibResnet] {
        let folder = tempfile::tempdir().unwrap();
        let name = kind.published_file();
        let published = folder.path().join(name);
        std::fs::copy(require!(&format!("models/{name}")), &published).unwrap();
        let image = RgbImage::from_fn(200, 200, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
        let landmarks = [[60.0, 70.0], [130.0, 72.0], [95.0, 110.0], [65.0, 150.0], [125.0, 151.0]];
        let bounding_box = BoundingBox { left: 20.0, top: 20.0, right: 180.0, bottom: 190.0 };
        let face = Face { bounding_box, confidence: 1.0, landmarks };
        let embed = || {
            let embedder = load_embedder(kind, folder.path()).unwrap();
            embedder.embed(&[embedder.crop(&image, &face)]).unwrap()
        };
        let error = load_embedder(kind, folder.path()).err().unwrap();
        assert!(matches!(error, ModelError::Unconverted { .. }), "{error:?}");
        let command = format!("`facepipe models convert {}`", folder.path().display());
        for said in [published.to_str().unwrap(), &command] {
            assert!(error.to_string().contains(said), "{error}");
        }
        let safetensors = published.with_extension("safetensors");
        convert(&published, &safetensors).unwrap();
        assert_eq!(kind.weights_file(folder.path()), safetensors);
        let expected = embed();
        assert!(!is_outdated(folder.path(), name));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        std::fs::File::options().append(true).open(&published).unwrap().set_modified(later).unwrap();
        assert!(is_outdated(folder.path(), name));
        assert_eq!(embed(), expected);
        std::fs::remove_file(&published).unwrap();
        assert!(!is_outdated(folder.path(), name));
        assert_eq!(embed(), expected);
    }
}

#[test]
fn embedders_are_selected_by_name() {
    for kind in EmbedderKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    let error = "facenet".parse::<EmbedderKind>().unwrap_err();
    assert!(error.to_string().contains("facenet") && error.to_string().contains("mobilefacenet"), "{error}");
}

/// Returns a square of `image` around `centre`, its corner and side in pixels, as a picture of 224x224.
fn square(image: &RgbImage, [x, y]: [f32; 2], side: f32) -> (RgbImage, [f32; 2], f32) {
    let side = side.round() as u32;
    let corner = [x, y].map(|centre| (centre - side as f32 / 2.0).round().max(0.0) as u32);
    let seen = image::imageops::crop_imm(image, corner[0], corner[1], side, side).to_image();
    let picture = image::imageops::resize(&seen, 224, 224, image::imageops::FilterType::CatmullRom);
    (picture, corner.map(|c| c as f32), seen.width() as f32)
}

#[test]
fn a_face_in_a_tight_crop_is_detected_and_embedded_like_in_the_whole_photograph() {
    let models = require_weights!(PUBLISHED);
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let embedder = load_embedder(EmbedderKind::MobileFaceNet, &models).unwrap();
    let mut photographs = Vec::new();
    for name in fixture("mobilefacenet.json")["embeddings"].as_object().unwrap().keys().skip(7).step_by(5) {
        photographs.push(require!(name));
    }
    for (share, least, found) in [(0.6, 0.7, 0.8), (0.7, 0.8, 0.95), (0.8, 0.87, 1.0), (0.9, 0.9, 1.0)] {
        let crops: Vec<Option<f64>> = photographs
            .par_iter()
            .map(|path| {
                let image = picture(path);
                let face = middle_face(&image, mtcnn.detect(&image).unwrap());
                let side = share * face.bounding_box.width().max(face.bounding_box.height());
                let (crop, corner, shown) = square(&image, face.bounding_box.center(), side);
                let faces = mtcnn.detect_inside(&crop, false).unwrap();
                assert!(faces.len() <= 1, "{}: {faces:?}", path.display());
                let again = faces.first()?;
                // In pixels of the crop: the eyes and the mouth of the whole photograph lie there.
                for (again, [x, y]) in again.landmarks.iter().zip(face.landmarks) {
                    let expected = [x - corner[0], y - corner[1]].map(|v| v * 224.0 / shown);
                    let off = (again[0] - expected[0]).hypot(again[1] - expected[1]);
                    assert!(off < 0.15 * 224.0, "{}: {off} pixels", path.display());
                }
                let crops = [embedder.crop(&image, &face), embedder.crop(&crop, again)];
                let embeddings = embedder.embed(&crops).unwrap();
                Some(cosine(&embeddings[0], &embeddings[1].iter().map(|v| f64::from(*v)).collect::<Vec<_>>()))
            })
            .collect();
        let cosines: Vec<f64> = crops.iter().flatten().copied().collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        println!("{share} of the box: {} of {} found, mean cosine {mean:.3}", cosines.len(), crops.len());
        assert!(cosines.len() as f64 >= found * crops.len() as f64, "{share}: {crops:?}");
        assert!(mean >= least, "{share}: {mean}, {crops:?}");
        // None is embedded as nobody.
        assert!(cosines.iter().all(|cosine| *cosine >= 0.35), "{share}: {cosines:?}");
    }
}

#[test]
fn detect_inside_drops_only_boxes_that_reach_out_of_the_photograph() {
    let models = require_weights!();
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let names =
        fixture("mobilefacenet.json")["embeddings"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut photographs = vec![require!("scenes/multiface.jpg"), require!("scenes/crowd-03.jpg")];
    for name in names.iter().step_by(3) {
        photographs.push(require!(name));
    }
    let counts: Vec<(usize, usize)> = photographs
        .par_iter()
        .map(|path| {
            let image = picture(path);
            let (width, height) = (image.width() as f32, image.height() as f32);
            let leaves = |face: &Face| {
                let b = face.bounding_box;
                let most = (-b.left).max(-b.top).max(b.right - width).max(b.bottom - height);
                most / b.width().max(b.height())
            };
            let before = mtcnn.detect(&image).unwrap();
            let after = mtcnn.detect_inside(&image, false).unwrap();
            // What lies inside stays as it is.
            for face in before.iter().filter(|face| leaves(face) <= 0.05) {
                assert!(after.contains(face), "{}: {face:?}", path.display());
            }
            assert!(after.iter().all(|face| leaves(face) <= 0.3), "{}: {after:?}", path.display());
            assert!(after.is_sorted_by(|a, b| a.confidence >= b.confidence));
            (before.len(), after.len())
        })
        .collect();
    let (before, after) = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{before} faces, of which {after} are in the pictures");
    assert!(after <= before && after * 100 >= before * 95, "{before} {after}");
}
