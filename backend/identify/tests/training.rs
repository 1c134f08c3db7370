//! Valid and invalid inputs of training; its result depends only on the set of samples.

mod common;
mod nearest_mean;

use std::{ops::ControlFlow, sync::Mutex};

use common::{THRESHOLD, first_photos, people, sample, synthetic, train};
use facepipe_identify::{Decision, IdentifyError, Model, Sample, TrainOptions};

fn try_train(samples: &[Sample]) -> Result<Model, IdentifyError> {
    Model::train("test", samples, &TrainOptions::default())
}

#[test]
fn a_model_without_people_decides_unknown() {
    let model = try_train(&[]).expect("an empty model");
    assert!(model.labels().is_empty());
    assert_eq!((model.dimensions(), model.classifier()), (0, None));
    for embedding in [vec![1.0], vec![0.5; 512]] {
        let answer = model.identify(&embedding, THRESHOLD, usize::MAX).expect("an answer");
        assert_eq!((answer.decision, answer.top, answer.score), (Decision::Unknown, None, None));
        assert!(answer.all.is_empty());
        assert_eq!(answer.threshold, THRESHOLD);
    }
    assert!(model.identify(&[f32::NAN], THRESHOLD, usize::MAX).is_err());
}

#[test]
fn with_one_person_only_the_decision_rejects_strangers() {
    let people = people();
    for shots in [1, 5] {
        let model = train(&first_photos(people.iter().take(1), shots));
        for (index, (person, photos)) in people.iter().enumerate() {
            let answer = model.identify(&photos[9], THRESHOLD, usize::MAX).expect("an answer");
            let expected = if index == 0 { Decision::Known } else { Decision::Unknown };
            assert_eq!(answer.decision, expected, "{person}");
            assert_eq!(answer.all.len(), 1);
            assert_eq!(answer.all[0].confidence, 1.0);
        }
    }
}

#[test]
fn two_people_with_one_photograph_each_are_separated() {
    let people = people();
    let model = train(&first_photos(people.iter().take(2), 1));
    for (person, photos) in people.iter().take(2) {
        for photo in &photos[1..] {
            let answer = model.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
            assert_eq!(&answer.top.expect("somebody").label, person);
        }
    }
}

#[test]
fn unequal_numbers_of_photographs_do_not_bias_identification() {
    let people = people();
    let mut samples = Vec::new();
    for (index, (person, photos)) in people.iter().enumerate() {
        let shots = if index % 2 == 0 { 1 } else { 9 };
        samples.extend(photos[..shots].iter().map(|p| sample(person, p)));
    }
    let model = train(&samples);
    for (person, photos) in &people {
        let answer = model.identify(&photos[9], THRESHOLD, usize::MAX).expect("an answer");
        assert_eq!(&answer.top.expect("somebody").label, person);
    }
}

#[test]
fn the_same_samples_in_any_order_give_the_same_bytes() {
    let mut samples = first_photos(&people(), 4);
    let bytes = train(&samples).to_bytes();
    assert_eq!(train(&samples).to_bytes(), bytes);
    samples.reverse();
    assert_eq!(train(&samples).to_bytes(), bytes);
    samples.rotate_left(7);
    samples.swap(0, 20);
    assert_eq!(train(&samples).to_bytes(), bytes);
}

#[test]
fn more_than_one_working_set_is_trained_the_same_in_any_order() {
    let mut samples = synthetic(40, 6, 16);
    let bytes = train(&samples).to_bytes();
    samples.reverse();
    assert_eq!(train(&samples).to_bytes(), bytes);
}

#[test]
fn the_norm_of_an_embedding_does_not_matter() {
    let people = people();
    let samples = first_photos(&people, 3);
    let model = train(&samples);
    let longer: Vec<Sample> = samples
        .iter()
        .map(|s| sample(&s.label, &s.embedding.iter().map(|v| v * 1000.0).collect::<Vec<_>>()))
        .collect();
    let other = train(&longer);
    for photos in people.values() {
        let tiny: Vec<f32> = photos[9].iter().map(|v| v * 1e-20).collect();
        let (a, b) =
            (model.identify(&photos[9], THRESHOLD, usize::MAX), other.identify(&tiny, THRESHOLD, usize::MAX));
        let (a, b) = (a.expect("an answer"), b.expect("an answer"));
        assert_eq!(a.top.expect("somebody").label, b.top.expect("somebody").label);
        assert!((a.score.expect("a score") - b.score.expect("a score")).abs() < 1e-4);
    }
}

#[test]
fn a_repeated_sample_counts_once() {
    let samples = first_photos(&people(), 3);
    let mut repeated = samples.clone();
    repeated.extend(samples[..4].iter().cloned());
    assert_eq!(train(&repeated).to_bytes(), train(&samples).to_bytes());
}

#[test]
fn one_embedding_with_two_labels_is_rejected() {
    let samples = [sample("a", &[1.0, 0.0]), sample("b", &[0.0, 1.0]), sample("c", &[2.0, 0.0])];
    let error = try_train(&samples).expect_err("0 and 2 point the same way");
    assert_eq!(error, IdentifyError::Conflict { first: 0, second: 2 });
    assert_eq!(error.to_string(), "samples 0 and 2 are the same embedding under different labels");
}

#[test]
fn empty_non_finite_and_zero_embeddings_are_rejected() {
    let good = || sample("a", &[1.0, 0.0, 0.0]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = try_train(&[good(), sample("b", &[0.0, bad, 0.0])]).expect_err("not finite");
        assert!(matches!(error, IdentifyError::NotFinite { component: 1, .. }), "{error}");
        assert!(error.to_string().starts_with("sample 1: component 1 is "), "{error}");
    }
    let error = try_train(&[good(), sample("b", &[0.0; 3])]).expect_err("zero");
    assert_eq!(error.to_string(), "sample 1 has length 0, expected a vector with a direction");
    let error = try_train(&[good(), sample("b", &[0.0, 1.0])]).expect_err("mixed dimensions");
    assert_eq!(error.to_string(), "sample 1 has 2 dimensions, expected 3");
    let error = try_train(&[sample("a", &[])]).expect_err("empty");
    assert_eq!(error.to_string(), "sample 0 has 0 dimensions, expected at least 1");
    let error = try_train(&[sample("a", &[1.0, 0.0]), sample("a", &[-1.0, 0.0])]).expect_err("mean is zero");
    assert!(error.to_string().starts_with("the mean embedding of the person of sample 0"), "{error}");
}

#[test]
fn an_embedding_of_the_wrong_dimension_is_rejected() {
    let model = train(&first_photos(&people(), 1));
    let error = |embedding: &[f32]| {
        model.identify(embedding, THRESHOLD, usize::MAX).expect_err("must be refused").to_string()
    };
    assert_eq!(error(&[0.1; 512]), "embedding has 512 dimensions, expected 128");
    assert_eq!(error(&[]), "embedding has 0 dimensions, expected at least 1");
    assert_eq!(error(&[0.0; 128]), "embedding has length 0, expected a vector with a direction");
    let mut nan = [0.1; 128];
    nan[5] = f32::NAN;
    assert_eq!(error(&nan), "embedding: component 5 is NaN, expected a finite number");
}

#[test]
fn the_nearest_people_of_many_embeddings_are_those_of_each() {
    let people = people();
    let model = train(&first_photos(&people, 3));
    let photos: Vec<&[f32]> = people.values().map(|photos| photos[8].as_slice()).collect();
    let nearest = model.nearest(&photos, &[]).expect("right embeddings");
    for (person, (photo, nearest)) in photos.iter().zip(&nearest).enumerate() {
        let answer = model.identify(photo, THRESHOLD, 1).expect("an answer");
        assert_eq!(*nearest, Some((person, answer.score.expect("a score"))));
    }
    // The nearest without each photograph's own person.
    let own: Vec<Option<usize>> = (0..photos.len()).map(Some).collect();
    for (person, other) in model.nearest(&photos, &own).expect("right embeddings").iter().enumerate() {
        let (other, cosine) = other.expect("nine others");
        assert!(other != person && cosine < THRESHOLD, "{person}: {other} with {cosine}");
    }
    let error = model.nearest(&[photos[0], &[1.0; 3]], &[]).expect_err("another length").to_string();
    assert_eq!(error, "embedding 1 has 3 dimensions, expected 128");
    assert_eq!(try_train(&[]).expect("an empty model").nearest(&photos, &[]), Ok(vec![None; 10]));
}

#[test]
fn a_threshold_that_is_not_a_cosine_is_rejected() {
    let model = train(&first_photos(&people(), 1));
    for threshold in [f32::NAN, -1.1, 1.5, f32::INFINITY] {
        assert!(matches!(
            model.identify(&[0.1; 128], threshold, usize::MAX),
            Err(IdentifyError::Threshold { .. })
        ));
    }
    for threshold in [-1.0, 0.0, 1.0] {
        model.identify(&[0.1; 128], threshold, usize::MAX).expect("a cosine");
    }
}

#[test]
fn invalid_labels_are_rejected() {
    let longest = "ß".repeat(64);
    try_train(&[sample(&longest, &[1.0, 0.0]), sample("Ada L. 2", &[0.0, 1.0])])
        .expect("64 characters are allowed");
    for (label, problem) in [
        (String::new(), "is empty, expected 1 to 64 characters"),
        ("x".repeat(65), "has 65 characters, expected 1 to 64"),
        ("a\nb".to_owned(), "has a control character, expected none"),
    ] {
        let samples = [sample("ok", &[1.0, 0.0]), sample(&label, &[0.0, 1.0])];
        let error = try_train(&samples).expect_err("a bad label").to_string();
        assert_eq!(error, format!("label of sample 1: {problem}"));
    }
    assert!(matches!(Model::train("", &[], &TrainOptions::default()), Err(IdentifyError::Embedder { .. })));
}

#[test]
fn out_of_range_options_are_rejected_by_name() {
    let train = |options| Model::train("test", &[], &options).expect_err("out of range").to_string();
    let default = TrainOptions::default();
    for c in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(train(TrainOptions { c, ..default }).starts_with("c is "));
    }
    for tolerance in [0.0, 0.2, f64::NAN] {
        assert!(train(TrainOptions { tolerance, ..default }).starts_with("tolerance is "));
    }
}

#[test]
fn inseparable_people_still_give_results() {
    // Two labels whose samples lie across each other: cross-validation finds no rise, training must not fail.
    let samples = [
        sample("a", &[1.0, 0.1]),
        sample("a", &[1.0, -0.1]),
        sample("b", &[1.0, 0.05]),
        sample("b", &[1.0, -0.05]),
    ];
    let model = try_train(&samples).expect("a model");
    let answer = model.identify(&[1.0, 0.0], 0.5, usize::MAX).expect("an answer");
    assert_eq!(answer.decision, Decision::Known);
    let sum: f32 = answer.all.iter().map(|p| p.confidence).sum();
    assert!((sum - 1.0).abs() < 1e-6 && answer.all.iter().all(|p| p.confidence.is_finite()));
}

#[test]
fn the_debug_output_of_a_model_has_no_names_or_embeddings() {
    let text = format!("{:?} {:?}", train(&first_photos(&people(), 1)), sample("Tony_Blair", &[0.25]));
    assert!(!text.contains("Blair") && !text.contains("0.25"), "{text}");
    assert!(text.contains("people: 10"), "{text}");
}

#[test]
fn a_training_reports_progress_and_can_be_cancelled() {
    let samples = first_photos(&people(), 3);
    let seen = Mutex::new(Vec::new());
    let watched = Model::train_with_progress("mobilefacenet", &samples, &TrainOptions::default(), &|done| {
        seen.lock().expect("nobody panicked").push(done);
        ControlFlow::Continue(())
    });
    assert_eq!(watched.expect("a model").to_bytes(), train(&samples).to_bytes());
    let mut seen = seen.into_inner().expect("nobody panicked");
    seen.sort_unstable();
    assert_eq!(seen, (1..=10).map(|people| people * 3).collect::<Vec<_>>());

    let ended = Model::train_with_progress("mobilefacenet", &samples, &TrainOptions::default(), &|done| {
        if done > 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(ended, Err(IdentifyError::Cancelled)));
}
