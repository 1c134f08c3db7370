//! dlib's ResNet against the npm package that its weights come from; verification through detection and alignment; rejection
//! of other files.

use facepipe_convert::ConvertError;
use facepipe_test_support::{fixture, require, require_weights};
use facepipe_vision::{
    Backend, DlibResnet, Embedder, EmbedderKind, Mtcnn, MtcnnConfig, load_embedder, weights::Weights,
};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use crate::{
    assert_batch_equals_single_crops,
    common::{numbers, picture},
    middle_face,
};

const PUBLISHED: &str = "face_recognition_model.bin";

#[test]
fn the_descriptor_of_a_synthetic_input_matches_the_npm_package() {
    let file = EmbedderKind::DlibResnet.weights_file(&require_weights!(PUBLISHED));
    let by_candle = Backend::Candle(candle_core::Device::Cpu);
    let by_candle = DlibResnet::new(&Weights::read(&file).unwrap(), &by_candle).unwrap();
    let expected = numbers(&fixture("dlib_resnet.json")["formula_input"]["descriptor"]);
    let level = |x: u32, y: u32, c: u32| ((7 * x + 13 * y + 29 * c + (x * y) % 31) % 256) as u8;
    let input = RgbImage::from_fn(150, 150, |x, y| Rgb([0, 1, 2].map(|c| level(x, y, c))));
    for network in [DlibResnet::load(&file).unwrap(), by_candle] {
        let descriptor = network.descriptors(std::slice::from_ref(&input)).unwrap().remove(0);
        assert_eq!((descriptor.len(), expected.len()), (128, 128));
        let worst =
            descriptor.iter().zip(&expected).map(|(o, t)| (f64::from(*o) - t).abs()).fold(0.0, f64::max);
        println!("worst error {worst:.2e}");
        assert!(worst <= 1e-3, "{worst}");
    }
}

#[test]
fn people_detected_by_mtcnn_are_verified() {
    let models = require_weights!(PUBLISHED);
    let people = require!("lfw10");
    let mtcnn = Mtcnn::load(&models, MtcnnConfig::default()).unwrap();
    let embedder = load_embedder(EmbedderKind::DlibResnet, &models).unwrap();
    let photographs: Vec<_> = fixture("dlib_resnet.json")["pictures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|picture| picture["file"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(photographs.len(), 100);
    let crops: Vec<_> = photographs
        .par_iter()
        .map(|name| {
            let image = picture(&people.join(name));
            let faces = mtcnn.detect(&image).unwrap();
            embedder.crop(&image, &middle_face(&image, faces))
        })
        .collect();
    let embeddings = embedder.embed(&crops).unwrap();

    let person = |i: usize| photographs[i].split('/').next().unwrap();
    let (mut same, mut different) = (Vec::new(), Vec::new());
    for i in 0..embeddings.len() {
        for j in i + 1..embeddings.len() {
            let cosine: f32 = embeddings[i].iter().zip(&embeddings[j]).map(|(a, b)| a * b).sum();
            if person(i) == person(j) { same.push(cosine) } else { different.push(cosine) }
        }
    }
    assert_eq!((same.len(), different.len()), (450, 4500));
    different.sort_unstable_by(|a, b| b.total_cmp(a));
    let errors = |threshold: f32| {
        let rejected = same.iter().filter(|cosine| **cosine < threshold).count();
        (rejected, different.iter().filter(|cosine| **cosine >= threshold).count())
    };
    // The fifth of 4500 is beyond one in a thousand.
    let accepted = same.iter().filter(|cosine| **cosine > different[4]).count();
    for threshold in [embedder.verification_threshold(), embedder.default_threshold()] {
        println!("at {threshold} of 450 and 4500 pairs wrong: {:?}", errors(threshold));
    }
    println!("true accepts at a false accept rate of 1e-3: {accepted} of 450");
    // The package itself: an accuracy of 0.9934 at its best threshold, and a true accept rate of 0.9348.
    let reference = &fixture("dlib_resnet.json")["verification_lfw10"];
    let least = reference["tar_at_far_1e-3"].as_f64().unwrap();
    assert!(accepted as f64 / 450.0 >= least, "{accepted}");
    // The threshold is one that other people's faces gave.
    let (rejected, wrong) = errors(embedder.verification_threshold());
    assert!(1.0 - (rejected + wrong) as f64 / 4950.0 >= 0.99, "{rejected} {wrong}");
}

#[test]
fn dlib_batched_and_single_crops_give_equal_normalised_embeddings() {
    let file = EmbedderKind::DlibResnet.weights_file(&require_weights!(PUBLISHED));
    let network = DlibResnet::load(&file).unwrap();
    let crops: Vec<_> = (0..17u8)
        .map(|i| RgbImage::from_fn(150, 150, |x, y| Rgb([x as u8, y as u8, i.wrapping_mul(13)])))
        .collect();
    assert_batch_equals_single_crops(&network, &crops);
    assert!(network.embed(&[RgbImage::new(112, 112)]).is_err());
}

#[test]
fn any_other_file_is_rejected_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(PUBLISHED);
    let reason = || match facepipe_convert::read(&file) {
        Err(error @ ConvertError::Malformed { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    // Cut off, too long, a page of a proxy, and of the right size.
    for (bytes, said) in [
        (vec![0; 3_000_000], "it has 3000000 bytes"),
        (vec![0; 6_444_033], "it has 6444033 bytes"),
        (b"<!DOCTYPE html>".to_vec(), "it has 15 bytes"),
        (vec![0; 6_444_032], "its SHA-256 is "),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let reason = reason();
        for said in [said, "face_recognition_model.bin", "@vladmandic/face-api 1.7.15"] {
            assert!(reason.contains(said), "{reason}");
        }
    }
    std::fs::remove_file(&file).unwrap();
    let missing =
        DlibResnet::load(&EmbedderKind::DlibResnet.weights_file(folder.path())).unwrap_err().to_string();
    assert!(missing.contains("facepipe models fetch"), "{missing}");
}
