//! Ranking by the nearest mean: accuracy, its stored form, retraining, erasure.

#![allow(clippy::expect_used, reason = "a panic is how a test fails")]

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use facepipe_identify::{
    ClassifierKind, Decision, IdentifyError, Method, Model, NEAREST_MEAN_PEOPLE, Sample, TrainOptions,
};

use crate::common::{Noise, THRESHOLD, first_photos, people, sample, synthetic};

fn options() -> TrainOptions {
    TrainOptions { method: Method::NearestMean, ..TrainOptions::default() }
}

fn train(samples: &[Sample]) -> Model {
    Model::train("mobilefacenet", samples, &options()).expect("training works")
}

fn retrain(model: &Model, samples: &[Sample]) -> Model {
    let go_on = |_| ControlFlow::Continue(());
    model.retrain("mobilefacenet", samples, &options(), &go_on).expect("training works")
}

#[test]
fn as_accurate_as_hyperplanes_and_sure_of_it() {
    let people = people();
    for shots in [1, 3, 5] {
        let samples = first_photos(&people, shots);
        let (means, planes) = (train(&samples), crate::common::train(&samples));
        let mut right = [0; 2];
        for (person, photos) in &people {
            for photo in &photos[shots..] {
                for (right, model) in right.iter_mut().zip([&means, &planes]) {
                    let top = model.identify(photo, THRESHOLD, 1).expect("an answer").top;
                    *right += usize::from(top.is_some_and(|top| top.label == *person));
                }
                let answer = means.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
                let sum: f32 = answer.all.iter().map(|p| p.confidence).sum();
                assert!((sum - 1.0).abs() < 0.01, "{sum}");
                assert!(answer.all.is_sorted_by(|a, b| a.confidence >= b.confidence));
                // The most probable is the nearest, so that the threshold alone decides.
                let known = answer.score.expect("a score") >= THRESHOLD;
                assert_eq!(answer.decision == Decision::Known, known);
                if shots > 1 && answer.all[0].label == *person {
                    assert!(answer.all[0].confidence > 0.5, "{person}: {}", answer.all[0].confidence);
                }
            }
        }
        println!("{shots} photographs: right {right:?}");
        assert!(right[0] + 1 >= right[1], "{shots} photographs: {right:?}");
    }
}

#[test]
fn many_people_are_ranked_by_their_means_and_the_model_says_so() {
    let model =
        |samples: &[Sample]| Model::train("test", samples, &TrainOptions::default()).expect("a model");
    let many = synthetic(NEAREST_MEAN_PEOPLE, 2, 32);
    let (few, many) = (model(&many[..80]), model(&many));
    assert_eq!(few.classifier(), Some(ClassifierKind::LinearSvm));
    assert_eq!(many.classifier(), Some(ClassifierKind::NearestMean));

    let bytes = many.to_bytes();
    assert_eq!(bytes[8..10], [3, 0]);
    let loaded = Model::from_bytes(&bytes).expect("a whole model");
    assert_eq!((loaded.classifier(), loaded.labels()), (many.classifier(), many.labels()));
    assert_eq!(loaded.to_bytes(), bytes);
    for Sample { embedding, label } in synthetic(NEAREST_MEAN_PEOPLE, 2, 32).iter().step_by(97) {
        let answer = many.identify(embedding, THRESHOLD, 5).expect("an answer");
        assert_eq!(loaded.identify(embedding, THRESHOLD, 5), Ok(answer.clone()));
        assert_eq!((answer.all.len(), &answer.all[0].label), (5, label));
    }
}

#[test]
fn retraining_gives_the_bytes_of_a_training_and_leaves_no_trace_of_what_was_removed() {
    let samples = synthetic(120, 3, 48);
    let model = train(&samples[..119 * 3]);
    let mut noise = Noise(9);
    let further: Vec<f32> = samples[0].embedding.iter().map(|v| v + noise.next().expect("endless")).collect();
    let one_photograph_more = [&samples[..], &[sample(&samples[0].label, &further)]].concat();
    let one_less = [&samples[..40], &samples[41..]].concat();
    let without_a_person = [&samples[..3 * 50], &samples[3 * 51..]].concat();
    for changed in [&samples, &one_photograph_more, &one_less, &without_a_person, &samples[..6].to_vec()] {
        let expected = train(changed).to_bytes();
        assert_eq!(retrain(&model, changed).to_bytes(), expected);
        let loaded = Model::from_bytes(&model.to_bytes()).expect("a whole model");
        assert_eq!(retrain(&loaded, changed).to_bytes(), expected);
    }
    // From hyperplanes, and back.
    let planes = Model::train("mobilefacenet", &samples, &TrainOptions::default()).expect("a model");
    assert_eq!(planes.classifier(), Some(ClassifierKind::LinearSvmByDescent));
    assert_eq!(retrain(&planes, &samples).to_bytes(), train(&samples).to_bytes());
    let go_on = |_| ControlFlow::Continue(());
    let back = model.retrain("mobilefacenet", &samples, &TrainOptions::default(), &go_on).expect("a model");
    assert_eq!(back.to_bytes(), planes.to_bytes());
}

/// Embeddings that vary in few directions, so that the variation within a person hides the differences between people:
/// hyperplanes weigh directions, means cannot.
#[test]
fn where_means_tell_people_apart_badly_hyperplanes_stay() {
    let mut noise = Noise(11);
    let mut samples = Vec::new();
    for person in 0..NEAREST_MEAN_PEOPLE {
        let centre: Vec<f32> = noise.by_ref().take(24).collect();
        for _ in 0..3 {
            let mut embedding = centre.clone();
            embedding.iter_mut().zip(noise.by_ref()).take(2).for_each(|(value, n)| *value += 20.0 * n);
            samples.push(sample(&format!("{person:04}"), &embedding));
        }
    }
    let model = Model::train("test", &samples, &TrainOptions::default()).expect("a model");
    assert_eq!(model.classifier(), Some(ClassifierKind::LinearSvmByDescent));
    assert_eq!(train(&samples).classifier(), Some(ClassifierKind::NearestMean));
}

#[test]
fn what_cannot_be_trained_on_is_refused_as_with_hyperplanes() {
    let good = || sample("a", &[1.0, 0.0]);
    for bad in [
        vec![good(), sample("b", &[0.0, f32::NAN])],
        vec![good(), sample("b", &[0.0, 0.0])],
        vec![good(), sample("b", &[0.0, 1.0, 2.0])],
        vec![good(), sample("b", &[0.0, 1.0]), sample("c", &[2.0, 0.0])],
        vec![good(), sample("a", &[-1.0, 0.0])],
        vec![good(), sample("", &[0.0, 1.0])],
    ] {
        let error = |options| Model::train("test", &bad, &options).expect_err("must be refused");
        assert_eq!(error(options()).to_string(), error(TrainOptions::default()).to_string());
    }
    let repeated = [good(), sample("a", &[3.0, 0.0]), sample("b", &[0.0, 1.0])];
    assert_eq!(train(&repeated).to_bytes(), train(&repeated[1..]).to_bytes());
    assert!(train(&[]).classifier().is_none());
}

#[test]
fn a_training_counts_every_sample_once_and_can_be_cancelled() {
    let samples = synthetic(40, 4, 16);
    let highest = AtomicUsize::new(0);
    let watch = |done| {
        highest.fetch_max(done, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    Model::train_with_progress("mobilefacenet", &samples, &options(), &watch).expect("training works");
    assert_eq!(highest.into_inner(), 160);
    let stopped = Model::train_with_progress("test", &samples, &options(), &|_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(IdentifyError::Cancelled)));
}

#[test]
fn damaged_models_are_refused_or_models_and_never_a_panic() {
    let bytes = train(&synthetic(20, 2, 5)).to_bytes();
    for length in 0..bytes.len() {
        assert!(matches!(Model::from_bytes(&bytes[..length]), Err(IdentifyError::Corrupt(_))), "{length}");
    }
    for position in 18..bytes.len() - 32 {
        let mut damaged = bytes[..bytes.len() - 32].to_vec();
        damaged[position] ^= 0x55;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&damaged);
        damaged.extend_from_slice(&digest);
        if let Ok(model) = Model::from_bytes(&damaged) {
            let _ = model.identify(&[0.8, 0.2, 0.1, 0.0, 0.3], 0.5, 5);
        }
    }
}
