//! Evaluation figures, on cases small enough to count by hand.

use facepipe_identify::{
    Decision, Identification, Prediction,
    evaluate::{
        Pair, Search, best_verification, equal_error_rate, open_set_rates, roc, tar_at_far, top1_accuracy,
        verification_accuracy,
    },
};

fn pairs(scores: &[(f32, bool)]) -> Vec<Pair> {
    scores.iter().map(|&(score, same)| Pair { score, same }).collect()
}

fn answer(label: &str, decision: Decision) -> Identification {
    let top = Prediction { label: label.into(), confidence: 1.0 };
    Identification { decision, top: Some(top.clone()), score: Some(0.5), threshold: 0.4, all: vec![top] }
}

#[test]
fn top1_counts_right_labels() {
    let rows = [("a", Some("a")), ("b", Some("a")), ("c", None), ("d", Some("d"))];
    assert_eq!(top1_accuracy(rows), Some(0.5));
    assert_eq!(top1_accuracy([]), None);
}

#[test]
fn verification_counts_both_kinds_of_pair() {
    let pairs = pairs(&[(0.9, true), (0.4, true), (0.5, false), (0.1, false)]);
    assert_eq!(verification_accuracy(&pairs, 0.45), Some(0.5));
    assert_eq!(verification_accuracy(&pairs, 0.6), Some(0.75));
    assert_eq!(verification_accuracy(&pairs, 0.9), Some(0.75));
    assert_eq!(verification_accuracy(&[], 0.0), None);
}

#[test]
fn the_best_threshold_separates_what_can_be_separated() {
    let best =
        best_verification(&pairs(&[(0.9, true), (0.7, true), (0.3, false), (0.1, false)])).expect("pairs");
    assert_eq!((best.accuracy, best.threshold), (1.0, 0.7));
    let best = best_verification(&pairs(&[(0.9, false), (0.8, false)])).expect("pairs");
    assert_eq!(best.accuracy, 1.0);
    assert!(best.threshold > 0.9);
    // Ties are taken in together: one right, two wrong is worse than none.
    let best = best_verification(&pairs(&[(0.5, true), (0.5, false), (0.5, false)])).expect("pairs");
    assert_eq!(best.accuracy, 2.0 / 3.0);
    assert!(best.threshold > 0.5);
    assert_eq!(best_verification(&[]), None);
}

#[test]
fn tar_at_far_accepts_no_more_strangers_than_allowed() {
    let pairs = pairs(&[
        (0.9, true),
        (0.8, false),
        (0.7, true),
        (0.6, false),
        (0.5, true),
        (0.4, false),
        (0.3, false),
        (0.2, true),
    ]);
    assert_eq!(tar_at_far(&pairs, 0.0), Some(0.25));
    assert_eq!(tar_at_far(&pairs, 0.24), Some(0.25));
    assert_eq!(tar_at_far(&pairs, 0.25), Some(0.5));
    assert_eq!(tar_at_far(&pairs, 0.5), Some(0.75));
    assert_eq!(tar_at_far(&pairs, 1.0), Some(1.0));
    assert_eq!(tar_at_far(&pairs[..1], 0.1), None);
}

#[test]
fn the_roc_spans_from_nothing_to_everything_accepted() {
    let pairs =
        pairs(&[(0.9, true), (0.7, true), (0.7, false), (0.2, false), (f32::NAN, false), (0.1, false)]);
    let points: Vec<(f64, f64)> = roc(&pairs).iter().map(|p| (p.far, p.tar)).collect();
    assert_eq!(points, [(0.0, 0.0), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0)]);
    let thresholds: Vec<f32> = roc(&pairs).iter().map(|p| p.threshold).collect();
    assert!(thresholds[0] > 0.9);
    assert_eq!(thresholds[1..], [0.9, 0.7, 0.2, 0.1]);
    assert_eq!(roc(&pairs[..1]), []);
    assert_eq!(roc(&[]), []);
}

#[test]
fn the_equal_error_rate_lies_where_both_error_rates_meet() {
    let rate = |scores: &[(f32, bool)]| equal_error_rate(&pairs(scores)).map(|eer| (eer.rate, eer.threshold));
    // Told apart by every threshold between 0.3 and 0.7.
    assert_eq!(rate(&[(0.9, true), (0.7, true), (0.3, false), (0.1, false)]), Some((0.0, 0.7)));
    // At 0.5 one of two is rejected and one of two accepted.
    assert_eq!(rate(&[(0.9, true), (0.5, false), (0.4, true), (0.1, false)]), Some((0.5, 0.5)));
    // From 1/2 rejected and 0 accepted to 0 rejected and 1/4 accepted: they meet after two thirds of the way.
    let tied = [(0.9, true), (0.4, true), (0.4, false), (0.3, false), (0.2, false), (0.1, false)];
    let (found, threshold) = rate(&tied).expect("pairs of both kinds");
    assert!((found - 1.0 / 6.0).abs() < 1e-12 && threshold == 0.4, "{found} {threshold}");
    // Upside down.
    assert_eq!(rate(&[(0.9, false), (0.1, true)]), Some((1.0, 0.9)));
    assert_eq!(rate(&[(f32::NAN, true), (f32::NAN, false)]).map(|(rate, _)| rate), Some(1.0));
    assert_eq!(rate(&[(0.9, true)]), None);
}

#[test]
fn open_set_rates_separate_false_positives_from_false_negatives() {
    let (known, unknown) = (Decision::Known, Decision::Unknown);
    let answers = [answer("a", known), answer("b", known), answer("a", unknown), answer("b", unknown)];
    let search = |truth, index: usize| Search { truth, answer: &answers[index] };
    let rates = open_set_rates([
        search(Some("a"), 0), // right
        search(Some("a"), 1), // somebody else
        search(Some("a"), 2), // not sure enough
        search(Some("b"), 1), // right
        search(None, 0),      // a stranger named
        search(None, 2),
        search(None, 3),
        search(None, 3),
    ]);
    assert_eq!((rates.fpir, rates.fnir), (Some(0.25), Some(0.5)));
    let none = open_set_rates([]);
    assert_eq!((none.fpir, none.fnir), (None, None));
}
