//! Saving and loading of models; truncated and damaged ones are rejected with the reason.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]

mod common;

use std::ops::ControlFlow;

use common::{THRESHOLD, first_photos, people, train};
use facepipe_identify::{ClassifierKind, FORMAT_VERSION, IdentifyError, Model, Sample, Solver, TrainOptions};
use proptest::{collection::vec, prelude::*};

fn bytes() -> Vec<u8> {
    train(&first_photos(people().iter().take(3), 2)).to_bytes()
}

#[test]
fn a_loaded_model_gives_the_same_results_as_the_saved_one() {
    let people = people();
    let model = train(&first_photos(&people, 3));
    let loaded = Model::from_bytes(&model.to_bytes()).expect("a whole model");
    assert_eq!(loaded.to_bytes(), model.to_bytes());
    assert_eq!(loaded.embedder(), "mobilefacenet");
    assert_eq!(loaded.dimensions(), 128);
    assert_eq!(loaded.classifier(), model.classifier());
    assert_eq!(*loaded.labels(), people.keys().cloned().collect::<Vec<_>>());
    for (person, photos) in &people {
        assert_eq!(loaded.mean_embedding(person), model.mean_embedding(person));
        assert_eq!(
            loaded.identify(&photos[9], THRESHOLD, usize::MAX),
            model.identify(&photos[9], THRESHOLD, usize::MAX)
        );
    }
    assert_eq!(loaded.mean_embedding("nobody"), None);
}

#[test]
fn models_of_zero_and_one_people_can_be_saved_and_loaded() {
    for enrolled in [0, 1] {
        let model = train(&first_photos(people().iter().take(enrolled), 2));
        let loaded = Model::from_bytes(&model.to_bytes()).expect("a whole model");
        assert_eq!(loaded.labels(), model.labels());
        let photo = &people().into_values().next().expect("people")[5];
        assert_eq!(loaded.identify(photo, 0.1, usize::MAX), model.identify(photo, 0.1, usize::MAX));
    }
}

#[test]
fn every_truncation_is_rejected() {
    let bytes = bytes();
    for length in 0..bytes.len() {
        let error = Model::from_bytes(&bytes[..length]).expect_err("cut off");
        assert!(matches!(error, IdentifyError::Corrupt(_)), "{length} of {} bytes: {error}", bytes.len());
    }
}

#[test]
fn every_changed_byte_is_rejected() {
    let bytes = bytes();
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x41;
        let error = Model::from_bytes(&damaged).expect_err("damaged");
        let version = matches!(error, IdentifyError::Version { .. });
        assert_eq!(version, (8..10).contains(&position), "byte {position}: {error}");
    }
}

#[test]
fn trailing_bytes_are_rejected() {
    let mut bytes = bytes();
    bytes.push(0);
    assert!(Model::from_bytes(&bytes).expect_err("too long").to_string().contains("cut off or damaged"));
}

#[test]
fn another_version_is_named() {
    let mut bytes = bytes();
    bytes[8..10].copy_from_slice(&7_u16.to_le_bytes());
    let error = Model::from_bytes(&bytes).expect_err("version 7");
    assert_eq!(error, IdentifyError::Version { found: 7, supported: FORMAT_VERSION });
    assert_eq!(error.to_string(), "model format version 7, this build reads up to 3");
}

#[test]
fn other_files_are_rejected() {
    for bytes in [&b""[..], b"FPMODEL", b"\xff\xd8\xff\xe0 a JPEG", &[0; 4096]] {
        let error = Model::from_bytes(bytes).expect_err("no model").to_string();
        assert!(error.contains("no facepipe model"), "{error}");
    }
}

#[test]
fn a_huge_count_with_a_valid_checksum_is_not_allocated() {
    // A payload that claims 2^32 - 1 people of 2^32 - 1 dimensions, resealed: the counts are checked against the
    // length.
    let empty = Model::train("e", &[], &TrainOptions::default()).expect("a model").to_bytes();
    let mut forged = empty[..empty.len() - 32].to_vec();
    let counts = forged.len() - 8;
    forged[counts..].fill(0xff);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&forged);
    forged.extend_from_slice(&digest);
    let error = Model::from_bytes(&forged).expect_err("forged").to_string();
    assert!(error.contains("cut off"), "{error}");
}

/// Wraps a payload as a model file does, with a right checksum.
fn sealed(version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"FPMODEL\0".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(payload);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// Samples of up to four people with one to three embeddings each, in four dimensions.
fn samples() -> impl Strategy<Value = Vec<Sample>> {
    vec(vec(prop::array::uniform4(-1.0_f32..1.0), 1..4), 0..5).prop_map(|people| {
        let sample = |person: usize, embedding: [f32; 4]| Sample {
            label: format!("person {person}"),
            embedding: embedding.into(),
        };
        let of_person = |(person, embeddings): (usize, Vec<[f32; 4]>)| {
            embeddings.into_iter().map(move |embedding| sample(person, embedding))
        };
        people.into_iter().enumerate().flat_map(of_person).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_trained_model_survives_its_stored_form(
        samples in samples(),
        descent: bool,
        probe in prop::array::uniform4(-1.0_f32..1.0),
    ) {
        let solver = if descent { Solver::DualCoordinateDescent } else { Solver::Smo };
        let options = TrainOptions { solver, ..TrainOptions::default() };
        // Two people with the same embedding, for one, cannot be trained.
        let Ok(model) = Model::train("example-4d", &samples, &options) else { return Ok(()) };
        let bytes = model.to_bytes();
        let loaded = Model::from_bytes(&bytes).expect("a whole model");
        prop_assert_eq!(loaded.to_bytes(), bytes);
        prop_assert_eq!(loaded.labels(), model.labels());
        if !samples.is_empty() && probe != [0.0; 4] {
            prop_assert_eq!(loaded.identify(&probe, THRESHOLD, usize::MAX), model.identify(&probe, THRESHOLD, usize::MAX));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300), version in 0_u16..4) {
        prop_assert!(Model::from_bytes(&bytes).is_err());
        // With a right header and checksum, only the payload itself can be refused.
        if let Ok(model) = Model::from_bytes(&sealed(version, &bytes)) {
            prop_assert!(Model::from_bytes(&model.to_bytes()).is_ok());
        }
    }

    #[test]
    fn a_modified_payload_behind_a_right_checksum_is_refused_or_a_model(
        position: prop::sample::Index,
        change in 1_u8..,
        second: bool,
    ) {
        let (version, whole) = if second { (2, second_format()) } else { (1, first_format()) };
        let mut payload = whole[18..whole.len() - 32].to_vec();
        *position.get_mut(&mut payload) ^= change;
        if let Ok(model) = Model::from_bytes(&sealed(version, &payload)) {
            let again = Model::from_bytes(&model.to_bytes()).expect("what it writes can be read");
            prop_assert_eq!(again.labels(), model.labels());
            // An answer or an error, never a panic.
            let _ = model.identify(&[0.8, 0.2, 0.1], 0.5, usize::MAX);
        }
    }
}

/// Written by the first release: format version 1, three people of three dimensions.
const FIRST_FORMAT: &str = "\
    46504d4f44454c000100b5000000000000000a006578616d706c652d3364030000000300000003006164610300626f620400 \
    636c656fbb497f3f4e594c3d84ca623d84ca623dbb497f3f4e594c3d000000009bc8cb3dc2ba7e3f017009b13fe1ba44bfb5 \
    d81ebf5514d5d67397d3bf87f96323938af7bfab9ee9afbb74dd3fbfef30bf98f2bb3fbbd443bf02b49ad1cea2d8bf1f0e33 \
    ffcefaf6bfb8f573beefa4e03f0ed42cbf30f02abffddcaa3f713c88ef5ac1d0bf28c1b1ecf347f3bf2483b35b3cf2e03fee \
    f6a053197aba87018060472f6bf8428afdde4305e2399922a7e857b1c480ab";

fn first_format() -> Vec<u8> {
    let digits: Vec<u8> = FIRST_FORMAT.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("two digits");
    digits.chunks(2).map(byte).collect()
}

/// Returns the same model as coordinate descent wrote it while probabilities were cross-validated: format version 2,
/// kind 2, and behind the classes the history of three samples, of which all were solved, with three folds.
fn second_format() -> Vec<u8> {
    let first = first_format();
    let mut payload = first[18..first.len() - 32].to_vec();
    // The kind stands before three people's normal vectors, thresholds and calibrations.
    let kind = payload.len() - 3 * (3 * 4 + 3 * 8) - 1;
    payload[kind] = 2;
    payload.extend([3_u32; 3].iter().flat_map(|count| count.to_le_bytes()));
    payload.extend([1.0_f64, 1e-4].iter().flat_map(|value| value.to_le_bytes()));
    payload.extend([7_u64, 8, 9].iter().flat_map(|digest| digest.to_le_bytes()));
    sealed(2, &payload)
}

#[test]
fn a_model_of_format_1_gives_the_results_it_was_saved_with() {
    let bytes = first_format();
    let model = Model::from_bytes(&bytes).expect("it still loads");
    assert_eq!(model.to_bytes(), bytes);
    assert_results_it_was_saved_with(&model);
}

#[test]
fn a_model_of_format_2_gives_the_results_it_was_saved_with_and_can_be_retrained() {
    let model = Model::from_bytes(&second_format()).expect("it still loads");
    assert_eq!(model.classifier(), Some(ClassifierKind::LinearSvmByDescent));
    assert_results_it_was_saved_with(&model);
    let again = Model::from_bytes(&model.to_bytes()).expect("what it writes can be read");
    assert_results_it_was_saved_with(&again);

    let options = TrainOptions { solver: Solver::DualCoordinateDescent, ..TrainOptions::default() };
    let samples: Vec<Sample> =
        [("ada", [1.0, 0.1, 0.0]), ("bob", [0.0, 1.0, 0.2]), ("cleo", [0.1, 0.0, 1.0])]
            .map(|(label, embedding)| Sample { label: label.into(), embedding: embedding.into() })
            .into();
    let go_on = |_| ControlFlow::Continue(());
    let warm = model.retrain("example-3d", &samples, &options, &go_on).expect("training works");
    let cold = Model::train("example-3d", &samples, &options).expect("training works");
    let answer = |model: &Model| model.identify(&[0.8, 0.2, 0.1], 0.5, usize::MAX).expect("an answer").all;
    for (warm, cold) in answer(&warm).iter().zip(answer(&cold)) {
        assert_eq!(warm.label, cold.label);
        assert!((warm.confidence - cold.confidence).abs() < 1e-3, "{warm:?}, anew {cold:?}");
    }
}

fn assert_results_it_was_saved_with(model: &Model) {
    assert_eq!((model.embedder(), model.labels().len()), ("example-3d", 3));
    let answer = model.identify(&[0.8, 0.2, 0.1], 0.5, usize::MAX).expect("an answer");
    let named: Vec<(&str, f32)> = answer.all.iter().map(|p| (p.label.as_str(), p.confidence)).collect();
    let expected = [("ada", 0.670_575_44), ("cleo", 0.166_426_88), ("bob", 0.162_997_66)];
    for ((label, confidence), (expected_label, expected)) in named.into_iter().zip(expected) {
        assert_eq!(label, expected_label);
        assert!((confidence - expected).abs() < 1e-6, "{label}: {confidence}");
    }
    assert!((answer.score.expect("a score") - 0.979_086).abs() < 1e-6);
}
