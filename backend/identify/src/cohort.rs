//! Keeps enrolled people out of a cohort: embeddings of strangers, against which a gallery is calibrated.
//!
//! A cohort may contain somebody who is enrolled: a known face of a public data set, or a visitor whom a camera saw before
//! their enrolment. Each such member has a mated score, and would raise the threshold that a calibration finds. A fixed
//! score cannot tell them from strangers, since the highest of many scores grows with the gallery: it would remove
//! exactly those strangers that the calibration is about. So the border follows from the scores themselves. The highest
//! of many independent scores follows approximately a Gumbel distribution; it is fitted to the quartiles, which a few
//! enrolled people hardly move, and the border is the score that one stranger in a thousand exceeds: a tenth of the rate of
//! false positives that is calibrated for by default. docs/decisions/0034-who-belongs-to-the-cohort.md has the figures.

use crate::{embedding::to_f32, matrix::Matrix};

/// The share of strangers beyond the border.
const LOST_STRANGERS: f64 = 1e-3;
/// Fewer scores than these say too little about their distribution.
const LEAST_SCORES: usize = 100;

/// Returns the highest cosine of each member of a cohort to any of the references, -1 without any. All are L2-normalised
/// and of one length.
pub fn top_scores(cohort: &[Vec<f32>], references: &[Vec<f32>]) -> Vec<f32> {
    let found = Matrix::from_vectors(references).nearest(&Matrix::from_vectors(cohort), &[]);
    found.into_iter().map(|nearest| nearest.map_or(-1.0, |(_, cosine)| cosine)).collect()
}

/// Returns the score from which two embeddings show the same person beyond doubt in any number of comparisons: halfway
/// between `same_person`, the embedder's threshold of verification, and 1.
pub fn beyond_doubt(same_person: f32) -> f32 {
    f32::midpoint(same_person, 1.0)
}

/// Returns the score from which a member of a cohort counts as enrolled, given the highest score of each member
/// ([`top_scores`]) and `same_person`, the embedder's threshold of verification. It is between that and
/// [`beyond_doubt`]; with fewer than a hundred scores it is the latter.
///
/// ```
/// use facepipe_identify::cohort;
///
/// let (ada, stranger) = (vec![1.0, 0.0, 0.0], vec![0.0, 0.6, 0.8]);
/// let scores = cohort::top_scores(&[ada.clone(), stranger], &[ada]);
/// let border = cohort::enrolled_from(&scores, 0.35);
/// let is_enrolled: Vec<bool> = scores.iter().map(|score| *score >= border).collect();
/// assert_eq!(is_enrolled, [true, false]);
/// ```
pub fn enrolled_from(top_scores: &[f32], same_person: f32) -> f32 {
    let mut border = beyond_doubt(same_person);
    let mut strangers: Vec<f32> = top_scores.iter().copied().filter(|score| *score < border).collect();
    strangers.sort_by(f32::total_cmp);
    // Each fit is less disturbed by enrolled people than the one before; the border only falls.
    while strangers.len() >= LEAST_SCORES
        && let Some(next) = gumbel_quantile(&strangers, 1.0 - LOST_STRANGERS)
    {
        let next = next.clamp(same_person, border);
        let left = strangers.partition_point(|score| *score < next);
        border = next;
        if left == strangers.len() {
            break;
        }
        strangers.truncate(left);
    }
    border
}

/// Returns the quantile of the Gumbel distribution that has the quartiles of these values, which are sorted.
fn gumbel_quantile(sorted: &[f32], probability: f64) -> Option<f32> {
    let standard = |probability: f64| -(-probability.ln()).ln();
    let lower = f64::from(*sorted.get(sorted.len() / 4)?);
    let upper = f64::from(*sorted.get(sorted.len() * 3 / 4)?);
    let scale = (upper - lower) / (standard(0.75) - standard(0.25));
    let location = lower - scale * standard(0.25);
    Some(to_f32(location + scale * standard(probability)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The threshold of MobileFaceNet.
    const SAME_PERSON: f32 = 0.35;

    /// Returns the highest of `gallery` scores of strangers, each normally distributed as MobileFaceNet's are.
    fn top_of_strangers(rng: &mut ChaCha8Rng, gallery: usize) -> f32 {
        let normal = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        (0..gallery).map(|_| 0.02 + 0.1 * normal(rng)).fold(-1.0, f32::max)
    }

    #[test]
    fn strangers_stay_and_enrolled_people_go_at_any_size_of_the_gallery() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for gallery in [10, 150, 2000] {
            let mut scores: Vec<f32> = (0..1000).map(|_| top_of_strangers(&mut rng, gallery)).collect();
            let border = enrolled_from(&scores, SAME_PERSON);
            let lost = scores.iter().filter(|score| **score >= border).count();
            assert!(lost <= 3, "{gallery}: {lost} strangers at {border}");
            // A tenth of the cohort is enrolled. The border hardly moves.
            scores.extend((0..100).map(|_| 0.7 + 0.2 * rng.random::<f32>()));
            let with_enrolled = enrolled_from(&scores, SAME_PERSON);
            let kept = scores.iter().filter(|score| **score < with_enrolled).count();
            assert!(kept.abs_diff(1000) <= 3, "{gallery}: {kept} kept at {with_enrolled}");
        }
    }

    #[test]
    fn a_cohort_that_is_mostly_enrolled_is_cleaned() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut scores: Vec<f32> = (0..300).map(|_| top_of_strangers(&mut rng, 100)).collect();
        scores.extend((0..700).map(|_| 0.69 + 0.2 * rng.random::<f32>()));
        let border = enrolled_from(&scores, SAME_PERSON);
        let kept = scores.iter().filter(|score| **score < border).count();
        assert!(kept.abs_diff(300) <= 2, "{kept} kept at {border}");
    }

    #[test]
    fn few_scores_are_judged_beyond_doubt() {
        assert_eq!(enrolled_from(&[], SAME_PERSON), 0.675);
        assert_eq!(enrolled_from(&[0.1; 99], SAME_PERSON), 0.675);
        assert_eq!(enrolled_from(&[0.1; 100], SAME_PERSON), SAME_PERSON, "equal scores have no scale");
        assert_eq!(top_scores(&[vec![1.0, 0.0]], &[]), [-1.0]);
    }
}
