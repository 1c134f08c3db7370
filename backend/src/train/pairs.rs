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

/// Components of each half of an embedding's head. A head distinguishes most pairs, and its first half most of those.
const HALF: usize = 8;
/// Heads that are compared with another one at a time.
const LANES: usize = 16;

/// The head of an embedding: its first components.
struct Head {
    halves: [[f32; HALF]; 2],
    /// The squared length of each half.
    lengths: [f32; 2],
}

/// The heads of [`LANES`] embeddings, transposed, so that each step computes with all of them: the compiler vectorises it.
struct Block {
    /// By half, component and lane.
    halves: [[[f32; LANES]; HALF]; 2],
    /// By half and lane, the squared lengths.
    lengths: [[f32; LANES]; 2],
}

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
    let blocks: Vec<Block> = samples.chunks(LANES).map(Block::new).collect();
    let of_one = |(first, (person, one)): (usize, &(i64, &[f32]))| {
        if !go_on() {
            return None;
        }
        let head = Head::new(one);
        let mut pairs = Vec::new();
        for (number, block) in blocks.iter().enumerate().skip(first / LANES) {
            let Some(near) = block.near(&head, farthest) else { continue };
            for (second, near) in (number * LANES..samples.len()).zip(near) {
                let of_another = samples.get(second).is_some_and(|(other, _)| other != person);
                if near && second > first && of_another {
                    pairs.extend(pair(samples, first, second, threshold));
                }
            }
        }
        Some(pairs)
    };
    let found: Option<Vec<Vec<Pair>>> = samples.par_iter().enumerate().map(of_one).collect();
    Some(found?.into_iter().flatten().collect())
}

impl Head {
    fn new(embedding: &[f32]) -> Self {
        let mut halves = [[0.0; HALF]; 2];
        for (place, number) in halves.iter_mut().flatten().zip(embedding) {
            *place = *number;
        }
        Self { halves, lengths: halves.map(|half| half.iter().map(|x| x * x).sum()) }
    }
}

impl Block {
    fn new(samples: &[(i64, &[f32])]) -> Self {
        // A lane without an embedding is far from all others.
        let mut block = Self { halves: [[[0.0; LANES]; HALF]; 2], lengths: [[f32::INFINITY; LANES]; 2] };
        for (lane, (_, embedding)) in samples.iter().enumerate() {
            let head = Head::new(embedding);
            let places = block.halves.iter_mut().flatten().chain(&mut block.lengths);
            for (place, value) in places.zip(head.halves.iter().flatten().chain(&head.lengths)) {
                place.iter_mut().skip(lane).take(1).for_each(|place| *place = *value);
            }
        }
        block
    }

    /// Which lanes have at most this squared distance to a head; `None` where none has.
    fn near(&self, head: &Head, farthest: f32) -> Option<[bool; LANES]> {
        let mut distances = [0.0; LANES];
        let halves = self.halves.iter().zip(&self.lengths).zip(head.halves.iter().zip(&head.lengths));
        for ((others, lengths), (one, length)) in halves {
            add_distances(&mut distances, others, lengths, one, *length);
            if !distances.iter().fold(false, |near, distance| near | (*distance <= farthest)) {
                return None;
            }
        }
        Some(distances.map(|distance| distance <= farthest))
    }
}

/// Adds the squared distances within one half of the heads, |a|² + |b|² - 2 a·b.
fn add_distances(
    distances: &mut [f32; LANES],
    others: &[[f32; LANES]; HALF],
    lengths: &[f32; LANES],
    one: &[f32; HALF],
    length: f32,
) {
    let mut products = [0.0_f32; LANES];
    for (others, component) in others.iter().zip(one) {
        for (product, other) in products.iter_mut().zip(others) {
            *product += other * component;
        }
    }
    for ((distance, other), product) in distances.iter_mut().zip(lengths).zip(products) {
        *distance += length + other - 2.0 * product;
    }
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

    #[test]
    fn exactly_the_pairs_that_reach_the_threshold_are_found() {
        let mut random = StdRng::seed_from_u64(8);
        let centres: Vec<Vec<f32>> =
            (0..3).map(|_| unit((0..128).map(|_| random.random_range(-1.0_f32..1.0)).collect())).collect();
        // Pairs around the threshold, and heads around what the heads rule out.
        let vectors: Vec<(i64, Vec<f32>)> = (0..100)
            .map(|person| {
                (
                    person,
                    at(
                        random.random_range(0.93..1.0),
                        &centres[usize::try_from(person).unwrap() % 3],
                        &mut random,
                    ),
                )
            })
            .collect();
        let samples: Vec<(i64, &[f32])> = vectors.iter().map(|(person, v)| (*person, v.as_slice())).collect();
        let every = (0..100).flat_map(|first| (first + 1..100).map(move |second| (first, second)));
        let expected: Vec<(usize, usize)> =
            every.filter(|(first, second)| pair(&samples, *first, *second, 0.94).is_some()).collect();
        assert!((100..1600).contains(&expected.len()), "{}", expected.len());
        let found = same_pictures(&samples, 0.94, &|| true).unwrap();
        assert_eq!(found.iter().map(|pair| (pair.first, pair.second)).collect::<Vec<_>>(), expected);
    }
}
