//! Search among enrolled people by the cosine to their mean embeddings: exactly, in this process.

use std::{cmp::Ordering, fmt, sync::Arc};

use crate::{
    log_sum::LogSum,
    matrix::{Matrix, Query},
    quantised::Quantised,
    top_k::TopK,
};

/// The mean embeddings of enrolled people, and the search among them: where an engine outside of this process would take over
/// (see `docs/scaling.md`). People are numbered as [`Model::labels`](crate::Model::labels) lists them.
///
/// An implementation must find the nearest people exactly, and must forget erased people wholly.
pub trait Gallery: fmt::Debug + Send + Sync {
    /// Returns the number of people.
    fn people(&self) -> usize;

    /// Returns the number of components of an embedding.
    fn dimensions(&self) -> usize;

    /// Searches for the `top_k` nearest people (one at least, at most all). `embedding` is L2-normalised and has
    /// [`dimensions`](Self::dimensions) components. `slope`, above 0, is that of [`Neighbours::log_sum`].
    fn search(&self, embedding: &[f32], top_k: usize, slope: f32) -> Neighbours;
}

/// The people nearest to an embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Person and cosine, -1..=1, the nearest first, equally near ones by number.
    pub nearest: Vec<(usize, f32)>,
    /// `ln Σ exp(slope * cosine)` over all people: the normaliser of the probabilities. An engine that cannot sum over everybody
    /// sums over as many as it finds.
    pub log_sum: f64,
}

/// Scans all people: first in eight bits a component, then exactly those whom the first pass does not exclude. Nobody is
/// missed: the error of the first pass is bounded.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    means: Arc<Matrix>,
    quantised: Quantised,
}

impl Scan {
    pub(crate) fn new(means: Arc<Matrix>) -> Self {
        let quantised = Quantised::new(&means);
        Self { means, quantised }
    }
}

impl Gallery for Scan {
    fn people(&self) -> usize {
        self.means.rows()
    }

    fn dimensions(&self) -> usize {
        self.means.columns()
    }

    fn search(&self, embedding: &[f32], top_k: usize, slope: f32) -> Neighbours {
        let coarse = self.quantised.query(embedding);
        // People farther below the k-th best have a smaller cosine than those k even if both errors are at their
        // maximum.
        let mut best = TopK::with_margin(top_k, 2.0 * coarse.error());
        let mut sum = LogSum::new(slope);
        self.quantised.scan(&coarse, |first, products, highest| {
            sum.add(products, highest);
            if f64::from(highest) > best.bound() {
                for (person, product) in (first..).zip(products) {
                    best.push(f64::from(*product), person);
                }
            }
        });
        let query = Query::new(embedding);
        let exact = |(approximate, person): (f64, usize)| {
            let cosine = self.means.dot(person, &query)?;
            sum.replace(approximate, cosine.into());
            Some((person, cosine.clamp(-1.0, 1.0)))
        };
        let mut nearest: Vec<(usize, f32)> = best.into_candidates().into_iter().filter_map(exact).collect();
        nearest.sort_unstable_by(nearest_first);
        nearest.truncate(top_k.max(1));
        Neighbours { nearest, log_sum: sum.value() }
    }
}

fn nearest_first(a: &(usize, f32), b: &(usize, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::tests::random;

    /// Ranks by the definition, without quantisation.
    #[derive(Debug)]
    struct Naive(Arc<Matrix>);

    impl Gallery for Naive {
        fn people(&self) -> usize {
            self.0.rows()
        }

        fn dimensions(&self) -> usize {
            self.0.columns()
        }

        fn search(&self, embedding: &[f32], top_k: usize, slope: f32) -> Neighbours {
            let query = Query::new(embedding);
            let mut nearest: Vec<(usize, f32)> = (0..self.people())
                .map(|person| (person, self.0.dot(person, &query).unwrap().clamp(-1.0, 1.0)))
                .collect();
            let sum = nearest.iter().map(|(_, cosine)| (f64::from(slope) * f64::from(*cosine)).exp());
            let log_sum = sum.sum::<f64>().ln();
            nearest.sort_by(nearest_first);
            nearest.truncate(top_k.max(1));
            Neighbours { nearest, log_sum }
        }
    }

    /// Ranks, ties and cosines are exactly those of the full precision; people very near to each other included.
    #[test]
    fn a_scan_finds_exactly_whom_a_full_sort_finds() {
        for (people, dimensions) in [(1, 8), (3, 3), (700, 24), (3000, 128), (2000, 512)] {
            let mut means = random(people, dimensions);
            // Twins, and people who differ by less than the first pass can see.
            let first = means.row(0).unwrap().to_vec();
            for (step, row) in means.iter_mut().skip(1).step_by(7).enumerate().take(60) {
                row.copy_from_slice(&first);
                row[0] += 1e-5 * f32::from(u8::try_from(step / 2).unwrap());
            }
            let means = Arc::new(means);
            let (scan, naive) = (Scan::new(Arc::clone(&means)), Naive(Arc::clone(&means)));
            let queries = random(30, dimensions);
            for query in queries.iter().chain(means.iter().take(10)) {
                for top_k in [1, 5, 100, usize::MAX] {
                    let (found, expected) =
                        (scan.search(query, top_k, 25.0), naive.search(query, top_k, 25.0));
                    assert_eq!(found.nearest.len(), expected.nearest.len());
                    for (found, expected) in found.nearest.iter().zip(&expected.nearest) {
                        assert_eq!(found, expected);
                    }
                    assert!((found.log_sum - expected.log_sum).abs() < 0.02, "{found:?}, {expected:?}");
                }
            }
        }
    }

    #[test]
    fn few_need_the_second_pass() {
        let means = Arc::new(random(20_000, 128));
        let scan = Scan::new(Arc::clone(&means));
        let coarse = scan.quantised.query(means.row(7).unwrap());
        let mut best = TopK::with_margin(5, 2.0 * coarse.error());
        scan.quantised.scan(&coarse, |first, products, _| {
            (first..).zip(products).for_each(|(person, product)| best.push((*product).into(), person));
        });
        let candidates = best.into_candidates().len();
        assert!((5..200).contains(&candidates), "{candidates}");
    }
}
