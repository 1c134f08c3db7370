//! Finds images of different people that are nearly the same picture, so that it is unknown whom they show.

use rayon::prelude::*;

/// Two images of different people whose embeddings are nearly the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The index of one among the samples.
    pub first: usize,
    /// The index of the other, which is greater.
    pub second: usize,
    /// Cosine between their embeddings.
    pub similarity: f32,
}

/// The first components of an embedding, which distinguish most pairs: one cache line.
type Head = [f32; 16];

/// Finds the pairs of samples of different people whose cosine is at least `threshold`; embeddings have length 1. Returns
/// `None` as soon as `go_on` returns false.
///
/// Compares all pairs. For most, a few components suffice: the squared distance, 2 - 2 cos, only grows with each.
pub fn same_pictures(
    samples: &[(i64, &[f32])],
    threshold: f32,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Option<Vec<Pair>> {
    // With a margin for rounding; the cosine decides.
    let farthest = (2.0 - 2.0 * threshold).max(0.0) + 1e-4;
    let heads: Vec<(i64, Head)> =
        samples.iter().map(|(person, embedding)| (*person, head(embedding))).collect();
    let of_one = |(first, (person, one)): (usize, &(i64, Head))| {
        if !go_on() {
            return None;
        }
        let behind = heads.iter().enumerate().skip(first + 1);
        let near = behind.filter(|(_, (other, head))| distance(one, head) <= farthest && other != person);
        Some(near.filter_map(|(second, _)| pair(samples, first, second, threshold)).collect::<Vec<_>>())
    };
    let found: Option<Vec<Vec<Pair>>> = heads.par_iter().enumerate().map(of_one).collect();
    Some(found?.into_iter().flatten().collect())
}

fn head(embedding: &[f32]) -> Head {
    let mut head = Head::default();
    for (place, number) in head.iter_mut().zip(embedding) {
        *place = *number;
    }
    head
}

/// The squared distance, summed in lanes that can be vectorised.
fn distance(one: &Head, other: &Head) -> f32 {
    let mut lanes = [0.0_f32; 8];
    for (one, other) in one.as_chunks::<8>().0.iter().zip(other.as_chunks::<8>().0) {
        for (lane, (a, b)) in lanes.iter_mut().zip(one.iter().zip(other)) {
            *lane += (a - b) * (a - b);
        }
    }
    lanes.iter().sum()
}

/// Two samples as a pair, if their cosine reaches the threshold.
fn pair(samples: &[(i64, &[f32])], first: usize, second: usize, threshold: f32) -> Option<Pair> {
    let ((_, one), (_, other)) = (samples.get(first)?, samples.get(second)?);
    let cosine: f32 = one.iter().zip(*other).map(|(a, b)| a * b).sum();
    // The cosine of identical embeddings may be slightly less than 1.
    let is_pair = one.len() == other.len() && (cosine >= threshold || one == other);
    is_pair.then(|| Pair { first, second, similarity: cosine.clamp(-1.0, 1.0) })
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn unit(mut vector: Vec<f32>) -> Vec<f32> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    /// A vector at this cosine from another one, and a random one.
    fn at(cosine: f32, from: &[f32], random: &mut StdRng) -> Vec<f32> {
        let other = unit((0..from.len()).map(|_| random.random_range(-1.0_f32..1.0)).collect());
        let along: f32 = from.iter().zip(&other).map(|(a, b)| a * b).sum();
        let across = unit(from.iter().zip(&other).map(|(a, b)| b - along * a).collect());
        let sine = (1.0 - cosine * cosine).sqrt();
        unit(from.iter().zip(&across).map(|(a, b)| cosine * a + sine * b).collect())
    }

    #[test]
    fn pairs_of_different_people_are_found_from_the_threshold_on() {
        let mut random = StdRng::seed_from_u64(7);
        let mut vectors: Vec<(i64, Vec<f32>)> = (0..60)
            .map(|person| (person, unit((0..128).map(|_| random.random_range(-1.0_f32..1.0)).collect())))
            .collect();
        for (person, cosine) in [(100, 0.999), (101, 0.981), (102, 0.979), (103, 0.5), (104, 1.0)] {
            let copied = vectors[usize::try_from(person - 100).unwrap()].1.clone();
            vectors.push((person, at(cosine, &copied, &mut random)));
        }
        // The same person's own copy is none.
        vectors.push((5, vectors[5].1.clone()));
        let samples: Vec<(i64, &[f32])> = vectors.iter().map(|(person, v)| (*person, v.as_slice())).collect();
        let pairs = same_pictures(&samples, 0.98, &|| true).unwrap();
        let places: Vec<(usize, usize)> = pairs.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(places, [(0, 60), (1, 61), (4, 64)]);
        assert!((pairs[1].similarity - 0.981).abs() < 1e-3, "{}", pairs[1].similarity);
        assert_eq!(same_pictures(&samples, 0.98, &|| false), None);
    }
}
