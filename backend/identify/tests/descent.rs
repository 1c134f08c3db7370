//! Training by coordinate descent: accuracy against linfa's solver, determinism, retraining.

#![allow(clippy::expect_used, reason = "a panic is how a test fails")]

mod common;

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{Noise, THRESHOLD, first_photos, people, sample, synthetic};
use facepipe_identify::{
    ClassifierKind, Decision, IdentifyError, Method, Model, Sample, Solver, TrainOptions,
};

const DESCENT: TrainOptions = TrainOptions {
    c: 1.0,
    tolerance: 1e-4,
    solver: Solver::DualCoordinateDescent,
    method: Method::LinearSvm,
};

fn train(samples: &[Sample]) -> Model {
    Model::train("mobilefacenet", samples, &DESCENT).expect("training works")
}

fn retrain(model: &Model, samples: &[Sample]) -> Model {
    let go_on = |_| ControlFlow::Continue(());
    model.retrain("mobilefacenet", samples, &DESCENT, &go_on).expect("training works")
}

/// Returns the greatest difference of a probability between two models of the same people.
fn difference(a: &Model, b: &Model, samples: &[Sample]) -> f32 {
    assert_eq!(a.labels(), b.labels());
    let confidences = |model: &Model, sample: &Sample| {
        let mut all = model.identify(&sample.embedding, THRESHOLD, usize::MAX).expect("an answer").all;
        all.sort_by(|a, b| a.label.cmp(&b.label));
        all.into_iter().map(|p| p.confidence).collect::<Vec<_>>()
    };
    let of = |sample| {
        let (a, b) = (confidences(a, sample), confidences(b, sample));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    samples.iter().map(of).fold(0.0, f32::max)
}

#[test]
fn the_solver_depends_on_the_number_of_samples_and_is_stored_in_the_model() {
    let people = people();
    for (shots, kind, version) in
        [(9, ClassifierKind::LinearSvm, 1), (10, ClassifierKind::LinearSvmByDescent, 2)]
    {
        let model = common::train(&first_photos(&people, shots));
        assert_eq!(model.classifier(), Some(kind), "{} samples", shots * 10);
        let bytes = model.to_bytes();
        assert_eq!(bytes[8..10], [version, 0]);
        let loaded = Model::from_bytes(&bytes).expect("a whole model");
        assert_eq!((loaded.classifier(), loaded.to_bytes()), (Some(kind), bytes));
    }
}

#[test]
fn every_truncated_model_is_rejected() {
    let bytes = train(&first_photos(&people(), 2)).to_bytes();
    for length in (0..bytes.len()).step_by(7) {
        let error = Model::from_bytes(&bytes[..length]).expect_err("cut off");
        assert!(matches!(error, IdentifyError::Corrupt(_)), "{length}: {error}");
    }
}

#[test]
fn predictions_on_held_out_faces_match_linfas_solver() {
    let people = people();
    for shots in [1, 3, 5] {
        let samples = first_photos(&people, shots);
        let smo = TrainOptions { solver: Solver::Smo, ..DESCENT };
        let smo = Model::train("mobilefacenet", &samples, &smo).expect("training works");
        let descent = train(&samples);
        let (mut sums, mut right) = ([0.0; 2], [0; 2]);
        for (person, photos) in &people {
            for photo in &photos[shots..] {
                for (position, model) in [&smo, &descent].into_iter().enumerate() {
                    let answer = model.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
                    right[position] += usize::from(answer.all[0].label == *person);
                    sums[position] += answer.all[0].confidence / (10.0 * (10 - shots) as f32);
                }
            }
        }
        println!("{shots} photographs: right {right:?}, mean confidence {sums:?}");
        assert!(right[1] >= right[0], "{shots} photographs: {right:?}");
        assert!((sums[0] - sums[1]).abs() < 0.05, "{shots} photographs: {sums:?}");
    }
}

#[test]
fn strangers_are_unknown() {
    let people = people();
    let model = train(&first_photos(people.iter().take(5), 5));
    let named = people.values().skip(5).flatten().filter(|photo| {
        model.identify(photo, THRESHOLD, usize::MAX).expect("an answer").decision == Decision::Known
    });
    assert!(named.count() <= 2);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads_or_sample_order() {
    let mut samples = synthetic(70, 4, 24);
    let on = |threads: usize, samples: &[Sample]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| train(samples).to_bytes())
    };
    let bytes = on(1, &samples);
    assert_eq!(on(4, &samples), bytes);
    samples.reverse();
    assert_eq!(on(3, &samples), bytes);
}

#[test]
fn retraining_with_one_more_person_or_photograph_matches_a_cold_start() {
    let mut samples = synthetic(60, 6, 96);
    let newcomer: Vec<Sample> = samples.split_off(59 * 6);
    let model = train(&samples);
    assert_eq!(retrain(&model, &samples).to_bytes(), model.to_bytes(), "nothing is new");

    samples.extend(newcomer);
    let (warm, cold) = (retrain(&model, &samples), train(&samples));
    assert!(difference(&warm, &cold, &samples) < 0.02);
    // Through the stored form, too.
    let loaded = Model::from_bytes(&model.to_bytes()).expect("a whole model");
    assert_eq!(retrain(&loaded, &samples).to_bytes(), warm.to_bytes());

    let mut noise = Noise(3);
    let further: Vec<f32> =
        samples[0].embedding.iter().zip(noise.by_ref()).map(|(v, n)| v + 0.65 * n).collect();
    samples.push(sample(&samples[0].label.clone(), &further));
    assert!(difference(&retrain(&warm, &samples), &train(&samples), &samples) < 0.02);
}

#[test]
fn after_removed_samples_or_changed_options_nothing_is_reused() {
    let samples = synthetic(40, 5, 48);
    let model = train(&samples);
    // Solved again from the same start, so the result does not depend on the rest of the previous model.
    let fewer = &samples[..39 * 5];
    assert!(difference(&retrain(&model, fewer), &train(fewer), fewer) < 1e-3);
    let mut renamed = samples.clone();
    renamed[0].label = renamed[7].label.clone();
    assert!(difference(&retrain(&model, &renamed), &train(&renamed), &renamed) < 1e-3);

    let softer = TrainOptions { c: 0.1, ..DESCENT };
    let go_on = |_| ControlFlow::Continue(());
    let warm = model.retrain("mobilefacenet", &samples, &softer, &go_on).expect("training works");
    let cold = Model::train("mobilefacenet", &samples, &softer).expect("training works");
    assert!(difference(&warm, &cold, &samples) < 5e-3);
    assert!(difference(&warm, &model, &samples) > 0.01);
}

#[test]
fn a_model_of_another_embedder_or_dimension_or_of_one_person_is_not_reused() {
    let samples = synthetic(30, 4, 32);
    let others = synthetic(30, 4, 16);
    let bytes = train(&samples).to_bytes();
    let go_on = |_| ControlFlow::Continue(());
    let other = Model::train("another", &samples, &DESCENT).expect("training works");
    for previous in [other, train(&others), train(&samples[..4]), train(&[])] {
        let model = previous.retrain("mobilefacenet", &samples, &DESCENT, &go_on).expect("training works");
        assert_eq!(model.to_bytes(), bytes);
    }
}

#[test]
fn a_model_by_linfas_solver_can_be_retrained() {
    let samples = synthetic(30, 4, 32);
    let smo = TrainOptions { solver: Solver::Smo, ..DESCENT };
    let previous = Model::train("mobilefacenet", &samples[..80], &smo).expect("training works");
    assert!(difference(&retrain(&previous, &samples), &train(&samples), &samples) < 1e-3);
}

#[test]
fn a_training_can_be_cancelled_quickly() {
    let samples = synthetic(200, 3, 16);
    let model = train(&samples[..190 * 3]);
    for previous in [None, Some(&model)] {
        let calls = AtomicUsize::new(0);
        let stop = |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            ControlFlow::Break(())
        };
        let ended = match previous {
            None => Model::train_with_progress("mobilefacenet", &samples, &DESCENT, &stop),
            Some(model) => model.retrain("mobilefacenet", &samples, &DESCENT, &stop),
        };
        assert!(matches!(ended, Err(IdentifyError::Cancelled)));
        // At most each block that had begun.
        assert!(calls.into_inner() <= 7);
    }
}

#[test]
fn progress_counts_every_sample_once() {
    let samples = synthetic(50, 4, 16);
    let model = train(&samples[..49 * 4]);
    let (calls, highest) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let watch = |done| {
        calls.fetch_add(1, Ordering::Relaxed);
        highest.fetch_max(done, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    model.retrain("mobilefacenet", &samples, &DESCENT, &watch).expect("training works");
    assert_eq!((calls.into_inner(), highest.into_inner()), (50, 200));
}

#[test]
fn few_photographs_and_inseparable_people_still_give_results() {
    let mut noise = Noise(5);
    let mut near = |label: &str, to: &[f32]| {
        sample(label, &to.iter().map(|v| v + 1e-4 * noise.next().expect("endless")).collect::<Vec<_>>())
    };
    let one_each: Vec<Sample> = synthetic(60, 1, 24);
    // Everybody's photograph again, all but the same, under the next person's name.
    let labels = one_each.iter().skip(1).chain(&one_each[..1]).map(|s| s.label.clone());
    let swapped: Vec<Sample> =
        one_each.iter().zip(labels).map(|(s, label)| near(&label, &s.embedding)).collect();
    let conflicting = [one_each.clone(), swapped].concat();
    let lone = synthetic(1, 5, 24);
    for samples in [one_each, conflicting, lone] {
        let model = train(&samples);
        for Sample { embedding, .. } in &samples {
            let answer = model.identify(embedding, 0.5, usize::MAX).expect("an answer");
            let sum: f32 = answer.all.iter().map(|p| p.confidence).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        }
    }
}

#[test]
fn one_photograph_per_person_suffices_for_identification() {
    let samples = synthetic(60, 1, 24);
    let model = train(&samples);
    for Sample { label, embedding } in &samples {
        assert_eq!(&model.identify(embedding, 0.5, usize::MAX).expect("an answer").all[0].label, label);
    }
}
