//! Evaluation of embedders and models: verification, closed-set and open-set identification. Pure functions over scores and
//! results, terms as in ISO/IEC 19795-1.

use std::iter;

use crate::{Decision, Identification};

/// The score (cosine, higher is more alike) of two embeddings and whether they are of the same person.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Cosine of the two embeddings, -1..=1.
    pub score: f32,
    /// Whether the two are of the same person.
    pub same: bool,
}

/// The accuracy of the best threshold on pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verification {
    /// Share of pairs that the threshold puts on the right side, 0..=1.
    pub accuracy: f64,
    /// Pairs that score at least this count as the same person.
    pub threshold: f32,
}

/// The rates of one threshold on pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RocPoint {
    /// Pairs that score at least this are accepted as the same person.
    pub threshold: f32,
    /// False accept rate: share of the pairs of different people that are accepted, 0..=1.
    pub far: f64,
    /// True accept rate: share of the pairs of the same person that are accepted, 0..=1.
    pub tar: f64,
}

/// The point at which the shares of accepted pairs of different people and of rejected pairs of the same person are
/// equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EqualErrorRate {
    /// The rate of both, 0..=1.
    pub rate: f64,
    /// The lowest threshold at which no more pairs of the same person are rejected than others accepted.
    pub threshold: f32,
}

/// Error rates of open-set identification, each 0..=1; none where no search of that kind was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenSetRates {
    /// False positive identification rate: share of the searches for people who are not enrolled that named somebody.
    pub fpir: Option<f64>,
    /// False negative identification rate: share of the searches for enrolled people that did not name them.
    pub fnir: Option<f64>,
}

/// One search: the true label, if enrolled, and the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search<'a> {
    /// The true label, or none for somebody who is not enrolled.
    pub truth: Option<&'a str>,
    /// The model's answer to the search.
    pub answer: &'a Identification,
}

/// Returns the share (0..=1) of predicted labels that are the true ones, none for no predictions.
pub fn top1_accuracy<'a>(
    truth_and_predicted: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
) -> Option<f64> {
    let (mut right, mut total) = (0_usize, 0_usize);
    for (truth, predicted) in truth_and_predicted {
        total += 1;
        right += usize::from(predicted == Some(truth));
    }
    share(right, total)
}

/// Returns the share (0..=1) of pairs that `threshold` puts on the right side, none for no pairs.
pub fn verification_accuracy(pairs: &[Pair], threshold: f32) -> Option<f64> {
    let right = pairs.iter().filter(|p| (p.score >= threshold) == p.same).count();
    share(right, pairs.len())
}

/// Returns the threshold of highest accuracy, the highest such one, among the scores that occur; none for no pairs. A
/// pair with a NaN score counts as one that no threshold reaches.
pub fn best_verification(pairs: &[Pair]) -> Option<Verification> {
    let mut sorted: Vec<Pair> = pairs.iter().copied().filter(|p| !p.score.is_nan()).collect();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));

    // Above every score all pairs count as different; each step down takes in the pairs of one score.
    let mut right = pairs.iter().filter(|p| !p.same).count();
    let mut best = (right, sorted.first().map_or(f32::INFINITY, |p| p.score.next_up()));
    for tied in sorted.chunk_by(|a, b| a.score == b.score) {
        let same = tied.iter().filter(|p| p.same).count();
        right = right + same - (tied.len() - same);
        if let Some(first) = tied.first()
            && right > best.0
        {
            best = (right, first.score);
        }
    }
    share(best.0, pairs.len()).map(|accuracy| Verification { accuracy, threshold: best.1 })
}

/// Returns the true accept rate at the lowest threshold whose false accept rate is at most `far` (0..=1); none without
/// pairs of both kinds.
pub fn tar_at_far(pairs: &[Pair], far: f64) -> Option<f64> {
    let mut different: Vec<f32> = pairs.iter().filter(|p| !p.same).map(|p| p.score).collect();
    different.sort_by(|a, b| b.total_cmp(a));
    // The first score, from the highest down, that takes in more than may be accepted: stay just above it.
    let excess = different.chunk_by(|a, b| a == b).scan(0, |accepted, tied| {
        *accepted += tied.len();
        Some((*accepted, tied))
    });
    let mut excess =
        excess.filter(|(accepted, _)| share(*accepted, different.len()).is_some_and(|f| f > far));
    let threshold = match excess.next() {
        Some((_, tied)) => tied.first()?.next_up(),
        None if different.is_empty() => return None,
        None => f32::NEG_INFINITY,
    };
    let same: Vec<f32> = pairs.iter().filter(|p| p.same).map(|p| p.score).collect();
    share(same.iter().filter(|s| **s >= threshold).count(), same.len())
}

/// Returns the receiver operating characteristic: a point for each threshold that changes the rates, from the
/// strictest, which accepts nothing, to the one that accepts every score; empty without pairs of both kinds. A pair
/// with a NaN score is accepted by none.
pub fn roc(pairs: &[Pair]) -> Vec<RocPoint> {
    let same = pairs.iter().filter(|p| p.same).count();
    let different = pairs.len() - same;
    let mut sorted: Vec<Pair> = pairs.iter().copied().filter(|p| !p.score.is_nan()).collect();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    let strictest = sorted.first().map_or(f32::INFINITY, |p| p.score.next_up());
    let tied = sorted.chunk_by(|a, b| a.score == b.score).filter_map(|tied| {
        let accepted = tied.iter().filter(|p| p.same).count();
        Some((tied.first()?.score, accepted, tied.len() - accepted))
    });
    let mut accepted = (0, 0);
    iter::once((strictest, 0, 0))
        .chain(tied)
        .filter_map(|(threshold, right, wrong)| {
            accepted = (accepted.0 + right, accepted.1 + wrong);
            Some(RocPoint { threshold, far: share(accepted.1, different)?, tar: share(accepted.0, same)? })
        })
        .collect()
}

/// Returns the equal error rate, between two thresholds on the straight line between them; none without pairs of both
/// kinds.
pub fn equal_error_rate(pairs: &[Pair]) -> Option<EqualErrorRate> {
    let roc = roc(pairs);
    let rejected = |point: &RocPoint| 1.0 - point.tar;
    let crossing = roc.iter().position(|point| point.far >= rejected(point));
    // With NaN scores the two may never meet: then the loosest threshold is the nearest to it.
    let Some((index, point)) = crossing.and_then(|index| Some((index, roc.get(index)?))) else {
        return roc.last().map(|last| EqualErrorRate { rate: rejected(last), threshold: last.threshold });
    };
    let rate = match index.checked_sub(1).and_then(|before| roc.get(before)) {
        None => point.far,
        Some(before) => {
            let (gap_before, gap_after) = (rejected(before) - before.far, point.far - rejected(point));
            before.far + (point.far - before.far) * gap_before / (gap_before + gap_after)
        }
    };
    Some(EqualErrorRate { rate, threshold: point.threshold })
}

/// Returns FPIR and FNIR of searches.
pub fn open_set_rates<'a>(searches: impl IntoIterator<Item = Search<'a>>) -> OpenSetRates {
    let (mut strangers, mut named, mut enrolled, mut missed) = (0_usize, 0_usize, 0_usize, 0_usize);
    for Search { truth, answer } in searches {
        let known = answer.decision == Decision::Known;
        match truth {
            None => {
                strangers += 1;
                named += usize::from(known);
            }
            Some(truth) => {
                enrolled += 1;
                let right = known && answer.top.as_ref().is_some_and(|top| top.label == truth);
                missed += usize::from(!right);
            }
        }
    }
    OpenSetRates { fpir: share(named, strangers), fnir: share(missed, enrolled) }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
