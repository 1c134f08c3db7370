//! Measures the tables of embedders.

use rayon::prelude::*;

use super::normalised_all;
use crate::{
    IdentifyError,
    embedding::{dot, to_f32},
};

/// The false match rates that a table has rows for.
const RATES: [f64; 18] = [
    5e-1, 2e-1, 1e-1, 5e-2, 2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6,
    1e-6,
];

/// Comparisons that must reach the threshold of a row.
const MIN_COUNT: f64 = 10.0;

/// Photographs of a person with several.
const PHOTOGRAPHS: usize = 3;

/// A measured [`ImpostorTable`](super::ImpostorTable): false match rates, falling, with their thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredTable {
    /// Of people with one photograph: all pairs of strangers.
    pub one_photograph: Vec<(f64, f64)>,
    /// Of people with three: each person's mean embedding and each stranger.
    pub several_photographs: Vec<(f64, f64)>,
}

/// Measures how often strangers reach a threshold; nobody occurs twice among them, and none of them in `people`. The first
/// three embeddings of each of `people` count; people with fewer do not. Rates that fewer than ten comparisons reach are left out.
///
/// # Errors
/// An embedding that is empty, not finite, zero or of another length than the first.
pub fn measure_table(
    strangers: &[Vec<f32>],
    people: &[Vec<Vec<f32>>],
) -> Result<MeasuredTable, IdentifyError> {
    let dimensions = strangers.first().map_or(0, Vec::len);
    let strangers = normalised_all(strangers.iter().map(Vec::as_slice), dimensions)?;
    let mut means = Vec::new();
    for embeddings in people.iter().filter_map(|embeddings| embeddings.get(..PHOTOGRAPHS)) {
        let embeddings = normalised_all(embeddings.iter().map(Vec::as_slice), dimensions)?;
        let sum: Vec<f32> =
            (0..dimensions).map(|i| embeddings.iter().filter_map(|e| e.get(i)).sum::<f32>()).collect();
        means.push(sum);
    }
    let means = normalised_all(means.iter().map(Vec::as_slice), dimensions)?;
    let pairs = strangers.par_iter().enumerate().flat_map_iter(|(index, one)| {
        strangers.iter().skip(index + 1).map(move |other| to_f32(dot(one, other)))
    });
    let with_people = strangers
        .par_iter()
        .flat_map_iter(|stranger| means.iter().map(move |mean| to_f32(dot(stranger, mean))));
    Ok(MeasuredTable {
        one_photograph: thresholds(pairs.collect()),
        several_photographs: thresholds(with_people.collect()),
    })
}

/// Returns the threshold of each rate that enough scores reach.
fn thresholds(mut scores: Vec<f32>) -> Vec<(f64, f64)> {
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let n = scores.len() as f64;
    let reached = RATES.into_iter().filter(|rate| rate * n >= MIN_COUNT);
    // One pass over the scores, beginning with the lowest rate.
    let mut numbered = scores.iter().zip(1_u64..);
    let mut rows: Vec<(f64, f64)> = reached
        .rev()
        .filter_map(|rate| {
            let (score, _) = numbered.find(|(_, count)| *count as f64 >= rate * n)?;
            Some((rate, (f64::from(*score) * 1e4).round() / 1e4))
        })
        .collect();
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_threshold_that_its_share_of_the_scores_reaches() {
        let scores: Vec<f32> = (1..=1000_u16).map(|i| f32::from(i) / 1000.0).collect();
        let rows = thresholds(scores);
        assert_eq!(
            rows,
            [(0.5, 0.501), (0.2, 0.801), (0.1, 0.901), (0.05, 0.951), (0.02, 0.981), (0.01, 0.991)]
        );
    }
}
