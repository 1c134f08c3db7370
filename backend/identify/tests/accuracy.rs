//! Accuracy, against the reference's linear classifiers; rejection of strangers.

mod common;
mod mixtures;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use common::{THRESHOLD, first_photos, people, synthetic, train};
use facepipe_identify::{
    Decision, Identification,
    evaluate::{
        Pair, Search, best_verification, open_set_rates, tar_at_far, top1_accuracy, verification_accuracy,
    },
};

#[test]
fn top1_reaches_the_reference_with_1_3_and_5_photographs() {
    let people = people();
    let fixture = facepipe_test_support::fixture("classifier.json");
    for shots in [1, 3, 5] {
        let model = train(&first_photos(&people, shots));
        let answers: Vec<(&str, Identification)> = people
            .iter()
            .flat_map(|(person, photos)| photos.iter().skip(shots).map(move |p| (person.as_str(), p)))
            .map(|(person, photo)| (person, model.identify(photo, THRESHOLD, usize::MAX).expect("an answer")))
            .collect();
        assert_eq!(answers.len(), 10 * (10 - shots));
        let accuracy =
            top1_accuracy(answers.iter().map(|(p, a)| (*p, a.top.as_ref().map(|t| t.label.as_str()))))
                .expect("there are answers");

        let reference =
            fixture["top1"][format!("{shots} images per person")].as_object().expect("one row per count");
        let best = reference.values().filter_map(serde_json::Value::as_f64).fold(0.0, f64::max);
        assert!(best > 0.5);
        let confidences: Vec<f32> = answers.iter().map(|(_, a)| a.all[0].confidence).collect();
        let mean = confidences.iter().sum::<f32>() / confidences.len() as f32;
        let lowest = confidences.iter().copied().fold(1.0, f32::min);
        println!("{shots} photographs: top-1 {accuracy}, mean confidence {mean}, lowest {lowest}");
        assert!(accuracy >= best, "{shots} photographs per person: {accuracy}, reference {best}");
    }
}

#[test]
fn strangers_are_unknown_and_enrolled_people_known_in_at_least_95_of_100_searches() {
    let people = people();
    let names: Vec<&String> = people.keys().collect();
    let halves: [Vec<&String>; 4] = [
        names[..5].to_vec(),
        names[5..].to_vec(),
        names.iter().copied().step_by(2).collect(),
        names.iter().copied().skip(1).step_by(2).collect(),
    ];
    for enrolled in halves {
        let model = train(&first_photos(people.iter().filter(|(p, _)| enrolled.contains(p)), 5));
        let mut answers: Vec<(Option<&str>, Identification)> = Vec::new();
        for (person, photos) in &people {
            let known = enrolled.contains(&person);
            // Enrolled people are searched for only with photographs that were not trained on.
            for photo in photos.iter().skip(if known { 5 } else { 0 }) {
                let answer = model.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
                assert_eq!(
                    answer.all.len(),
                    5,
                    "the nearest names are given also where the decision is unknown"
                );
                answers.push((known.then_some(person.as_str()), answer));
            }
        }
        let rates = open_set_rates(answers.iter().map(|(truth, answer)| Search { truth: *truth, answer }));
        println!("enrolled {}..: {rates:?}", enrolled[0]);
        assert_eq!(answers.len(), 75);
        assert!(rates.fpir.expect("strangers") <= 0.05, "{rates:?}");
        assert!(rates.fnir.expect("enrolled") <= 0.05, "{rates:?}");
    }
}

#[test]
fn probabilities_are_sorted_sum_to_1_and_favour_the_right_person() {
    let people = people();
    let model = train(&first_photos(&people, 5));
    for (person, photos) in &people {
        for photo in &photos[5..] {
            let answer = model.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
            let sum: f32 = answer.all.iter().map(|p| p.confidence).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            assert!(answer.all.is_sorted_by(|a, b| a.confidence >= b.confidence));
            assert_eq!(answer.top.as_ref(), answer.all.first());
            assert!(answer.all[0].confidence > 0.5, "{person}: {}", answer.all[0].confidence);
            assert!(answer.all.iter().all(|p| (0.0..=1.0).contains(&p.confidence)));
        }
    }
}

#[test]
fn the_best_people_are_the_beginning_of_the_full_list() {
    let people = people();
    let model = train(&first_photos(&people, 3));
    for photo in people.values().map(|photos| &photos[7]) {
        let full = model.identify(photo, THRESHOLD, usize::MAX).expect("an answer");
        assert_eq!(full.all.len(), 10);
        for top_k in [0, 1, 5, 10, 11] {
            let best = model.identify(photo, THRESHOLD, top_k).expect("an answer");
            assert_eq!(best.all, full.all[..top_k.min(10)]);
            assert_eq!((&best.top, best.score, best.decision), (&full.top, full.score, full.decision));
        }
    }
}

#[test]
fn the_score_is_the_cosine_to_the_mean_of_the_person_named() {
    let people = people();
    let model = train(&first_photos(&people, 3));
    let (person, photos) = people.iter().next().expect("people");
    let answer = model.identify(&photos[9], 0.2, usize::MAX).expect("an answer");
    assert_eq!(&answer.top.expect("somebody").label, person);

    let mean: Vec<f64> = (0..128).map(|i| photos[..3].iter().map(|p| f64::from(p[i])).sum::<f64>()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let photo: Vec<f64> = photos[9].iter().map(|v| f64::from(*v)).collect();
    let cosine = dot(&mean, &photo) / (dot(&mean, &mean) * dot(&photo, &photo)).sqrt();
    assert!((f64::from(answer.score.expect("a score")) - cosine).abs() < 1e-5);
    assert_eq!(answer.threshold, 0.2);
}

#[test]
fn the_decision_changes_exactly_at_the_threshold() {
    let people = people();
    let model = train(&first_photos(&people, 3));
    let photo = &people.values().next().expect("people")[9];
    let score = model.identify(photo, 0.0, usize::MAX).expect("an answer").score.expect("a score");
    let decision = |threshold| model.identify(photo, threshold, usize::MAX).expect("an answer").decision;
    assert_eq!(decision(score), Decision::Known);
    assert_eq!(decision(score.next_up()), Decision::Unknown);
}

#[test]
fn verification_figures_match_the_reference() {
    let people = people();
    let photos: Vec<(&String, &Vec<f32>)> =
        people.iter().flat_map(|(person, photos)| photos.iter().map(move |p| (person, p))).collect();
    let mut pairs = Vec::new();
    for (i, (a, x)) in photos.iter().enumerate() {
        for (b, y) in &photos[i + 1..] {
            pairs.push(Pair { score: x.iter().zip(*y).map(|(x, y)| x * y).sum(), same: a == b });
        }
    }
    let reference = &facepipe_test_support::fixture("mobilefacenet.json")["verification"];
    let number = |name: &str| reference[name].as_f64().expect(name);
    assert_eq!(pairs.len() as f64, number("pairs"));

    let accuracy = verification_accuracy(&pairs, 0.355).expect("pairs");
    assert!((accuracy - number("accuracy")).abs() < 1e-9, "{accuracy}");
    // The reference tries 401 thresholds, ours all that matter: the accuracy is at least the reference's, and as
    // reported.
    let best = best_verification(&pairs).expect("pairs");
    assert!(best.accuracy >= number("accuracy"));
    assert_eq!(verification_accuracy(&pairs, best.threshold), Some(best.accuracy));
    // The reference interpolates its threshold between scores, which can cost or win one pair of 450.
    let tar = tar_at_far(&pairs, 1e-3).expect("pairs of both kinds");
    assert!((tar - number("tar_at_far_1e-3")).abs() <= 1.0 / 450.0 + 1e-9, "{tar}");
}

#[test]
fn a_hundred_people_with_ten_photographs_train_in_reasonable_time() {
    let samples = synthetic(100, 10, 128);
    let started = Instant::now();
    let model = train(&samples);
    let trained = started.elapsed();
    println!("100 x 10 x 128: trained in {trained:?}, {} bytes", model.to_bytes().len());
    assert!(trained < Duration::from_secs(120), "{trained:?}");

    let started = Instant::now();
    let mut right: BTreeMap<bool, usize> = BTreeMap::new();
    for sample in &samples {
        let answer = model.identify(&sample.embedding, THRESHOLD, usize::MAX).expect("an answer");
        *right.entry(answer.top.is_some_and(|t| t.label == sample.label)).or_default() += 1;
    }
    println!("identified in {:?} each", started.elapsed() / 1000);
    assert_eq!(right.get(&true), Some(&1000));
}
