//! Finds images of different people that are nearly the same picture, so that it is unknown which person they show.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{self, AtomicBool},
    },
};

use rayon::prelude::*;

use crate::domain::cosine;

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

/// The pairs among samples.
#[derive(Debug, Clone, PartialEq)]
pub struct SamePictures {
    /// The most similar ones, at most [`MAX_PAIRS`], in the order of the samples.
    pub pairs: Vec<Pair>,
    /// By sample: whether it is in a pair, also in one that is left out of `pairs`.
    pub is_in_pair: Vec<bool>,
    /// Whether `pairs` has all.
    is_complete: bool,
}

/// Parts of an embedding's head, of [`PART`] components each: the head distinguishes nearly all pairs, and its first parts most
/// of them.
const PARTS: usize = 4;
const PART: usize = 8;
/// Heads that are compared with another one at a time.
const LANES: usize = 16;
/// Heads that are compared with a block while it is in the first-level cache.
const HEADS: usize = 64;

/// Pairs that are kept at most, since their number may grow with the square of the number of images: after a training that
/// finds more, the next one compares all images again.
const MAX_PAIRS: usize = 100_000;

/// The head of an embedding: its first components.
struct Head {
    parts: [[f32; PART]; PARTS],
    /// The squared length of each part.
    lengths: [f32; PARTS],
}

/// The heads of [`LANES`] embeddings, transposed, so that each step computes with all of them: the compiler vectorises it.
struct Block {
    /// By part, component and lane.
    parts: [[[f32; LANES]; PART]; PARTS],
    /// By part and lane, the squared lengths.
    lengths: [[f32; LANES]; PARTS],
}

/// An image of a person: the image's id, the person's row id and the embedding, of length 1.
pub type Sample<'a> = (&'a str, i64, &'a [f32]);

/// Finds pairs for successive trainings, and remembers the compared images: after the first training, only new images
/// are compared with all others.
#[derive(Default)]
pub struct PairFinder {
    hasher: RandomState,
    last: Mutex<Compared>,
}

/// The images of a training, and the pairs among them, by the digests of the samples.
#[derive(Default)]
struct Compared {
    threshold: f32,
    images: HashSet<u64>,
    pairs: Vec<(u64, u64, f32)>,
}

impl PairFinder {
    /// Finds the pairs of samples of different people whose cosine is at least `threshold`, in the order of the samples.
    /// Returns `None` as soon as `go_on` returns false. Blocks.
    pub fn same_pictures(
        &self,
        samples: &[Sample<'_>],
        threshold: f32,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Option<SamePictures> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.threshold.to_bits() != threshold.to_bits() {
            *last = Compared::default();
        }
        let digest = |(image, person, embedding): &Sample<'_>| {
            let bits: Vec<u32> = embedding.iter().map(|x| x.to_bits()).collect();
            self.hasher.hash_one((image, person, bits))
        };
        let digests: Vec<u64> = samples.par_iter().map(digest).collect();
        let is_new: Vec<bool> = digests.par_iter().map(|digest| !last.images.contains(digest)).collect();
        let compared: Vec<(i64, &[f32])> =
            samples.iter().map(|(_, person, embedding)| (*person, *embedding)).collect();
        let mut known = Vec::new();
        if !last.pairs.is_empty() {
            let positions: HashMap<u64, usize> =
                digests.iter().enumerate().map(|(position, digest)| (*digest, position)).collect();
            known.extend(last.pairs.iter().filter_map(|(one, other, similarity)| {
                let (one, other) = (*positions.get(one)?, *positions.get(other)?);
                Some(Pair { first: one.min(other), second: one.max(other), similarity: *similarity })
            }));
        }
        let found = same_pictures(&compared, &is_new, known, threshold, go_on)?;
        if !found.is_complete {
            *last = Compared { threshold, ..Compared::default() };
            return Some(found);
        }
        let digest = |position: usize| digests.get(position).copied();
        *last = Compared {
            threshold,
            pairs: found
                .pairs
                .iter()
                .filter_map(|pair| Some((digest(pair.first)?, digest(pair.second)?, pair.similarity)))
                .collect(),
            images: digests.iter().copied().collect(),
        };
        Some(found)
    }
}

impl Pair {
    fn most_similar_first(&self, other: &Self) -> Ordering {
        let place = (self.first, self.second).cmp(&(other.first, other.second));
        other.similarity.total_cmp(&self.similarity).then(place)
    }
}

/// The most similar of the pairs that were added, in any order; up to twice [`MAX_PAIRS`] while they are collected.
#[derive(Default)]
struct MostSimilar {
    pairs: Vec<Pair>,
    left_out: bool,
}

impl MostSimilar {
    fn add(&mut self, pair: Pair) {
        self.pairs.push(pair);
        if self.pairs.len() >= 2 * MAX_PAIRS {
            self.drop_excess();
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.left_out |= other.left_out;
        other.pairs.into_iter().for_each(|pair| self.add(pair));
        self
    }

    fn drop_excess(&mut self) {
        if self.pairs.len() > MAX_PAIRS {
            self.pairs.select_nth_unstable_by(MAX_PAIRS, Pair::most_similar_first);
            self.pairs.truncate(MAX_PAIRS);
            self.left_out = true;
        }
    }
}

/// Finds the pairs of samples of different people with at least one new sample and a cosine of at least `threshold`, and adds
/// them to the `known` ones; embeddings have length 1. Returns `None` as soon as `go_on` returns false.
///
/// Compares all of these pairs. For most, a few components suffice, since the squared distance, 2 - 2 cos, grows with
/// each component.
fn same_pictures(
    samples: &[(i64, &[f32])],
    is_new: &[bool],
    known: Vec<Pair>,
    threshold: f32,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Option<SamePictures> {
    // With a margin for rounding; the cosine decides.
    let farthest = (2.0 - 2.0 * threshold).max(0.0) + 1e-4;
    let blocks: Vec<Block> = samples.par_chunks(LANES).map(Block::new).collect();
    let is_new = |position: usize| is_new.get(position).is_some_and(|new| *new);
    let new: Vec<usize> = (0..samples.len()).filter(|position| is_new(*position)).collect();
    // If all samples are new, earlier ones were already compared with these.
    let first_block = |position: usize| if new.len() == samples.len() { position / LANES } else { 0 };
    let is_in_pair: Vec<AtomicBool> = samples.iter().map(|_| AtomicBool::new(false)).collect();
    let mark = |pair: &Pair| {
        for flag in [pair.first, pair.second].into_iter().filter_map(|position| is_in_pair.get(position)) {
            flag.store(true, atomic::Ordering::Relaxed);
        }
    };
    let add_some = |mut found: MostSimilar, positions: &[usize]| {
        let head = |position: &usize| {
            let (person, embedding) = samples.get(*position)?;
            Some((*position, *person, Head::new(embedding)))
        };
        let heads: Vec<(usize, i64, Head)> = positions.iter().filter_map(head).collect();
        let first_block = positions.first().map_or(0, |position| first_block(*position));
        for (number, block) in blocks.iter().enumerate().skip(first_block) {
            for (position, person, head) in &heads {
                let Some(near) = block.near(head, farthest) else { continue };
                for (other, near) in (number * LANES..samples.len()).zip(near) {
                    let of_another = samples.get(other).is_some_and(|(who, _)| who != person);
                    if near && of_another && (other > *position || !is_new(other)) {
                        let (first, second) = (other.min(*position), other.max(*position));
                        if let Some(pair) = pair(samples, first, second, threshold) {
                            mark(&pair);
                            found.add(pair);
                        }
                    }
                }
            }
        }
        found
    };
    let mut found = new
        .par_chunks(HEADS)
        .try_fold(MostSimilar::default, |found, positions| go_on().then(|| add_some(found, positions)))
        .try_reduce(MostSimilar::default, |one, other| Some(one.merge(other)))?;
    for pair in known {
        mark(&pair);
        found.add(pair);
    }
    found.drop_excess();
    let MostSimilar { mut pairs, left_out } = found;
    pairs.sort_unstable_by_key(|pair| (pair.first, pair.second));
    let is_in_pair = is_in_pair.into_iter().map(AtomicBool::into_inner).collect();
    Some(SamePictures { pairs, is_in_pair, is_complete: !left_out })
}

impl Head {
    fn new(embedding: &[f32]) -> Self {
        let mut parts = [[0.0; PART]; PARTS];
        for (place, number) in parts.iter_mut().flatten().zip(embedding) {
            *place = *number;
        }
        Self { parts, lengths: parts.map(|part| part.iter().map(|x| x * x).sum()) }
    }
}

impl Block {
    fn new(samples: &[(i64, &[f32])]) -> Self {
        // A lane without an embedding is far from all others.
        let mut block =
            Self { parts: [[[0.0; LANES]; PART]; PARTS], lengths: [[f32::INFINITY; LANES]; PARTS] };
        for (lane, (_, embedding)) in samples.iter().enumerate() {
            let head = Head::new(embedding);
            let places = block.parts.iter_mut().flatten().chain(&mut block.lengths);
            for (place, value) in places.zip(head.parts.iter().flatten().chain(&head.lengths)) {
                place.iter_mut().skip(lane).take(1).for_each(|place| *place = *value);
            }
        }
        block
    }

    /// Returns which lanes have at most this squared distance to a head; `None` if none has.
    fn near(&self, head: &Head, farthest: f32) -> Option<[bool; LANES]> {
        let mut distances = [0.0; LANES];
        let parts = self.parts.iter().zip(&self.lengths).zip(head.parts.iter().zip(&head.lengths));
        for ((others, lengths), (one, length)) in parts {
            add_distances(&mut distances, others, lengths, one, *length);
            if !distances.iter().fold(false, |near, distance| near | (*distance <= farthest)) {
                return None;
            }
        }
        Some(distances.map(|distance| distance <= farthest))
    }
}

/// Adds the squared distances within one part of the heads, |a|² + |b|² - 2 a·b.
fn add_distances(
    distances: &mut [f32; LANES],
    others: &[[f32; LANES]; PART],
    lengths: &[f32; LANES],
    one: &[f32; PART],
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

/// Returns two samples as a pair if their cosine reaches the threshold.
fn pair(samples: &[(i64, &[f32])], first: usize, second: usize, threshold: f32) -> Option<Pair> {
    let ((_, one), (_, other)) = (samples.get(first)?, samples.get(second)?);
    let cosine = cosine(one, other);
    // The cosine of identical embeddings may be slightly less than 1.
    let is_pair = one.len() == other.len() && (cosine >= threshold || one == other);
    is_pair.then(|| Pair { first, second, similarity: cosine.clamp(-1.0, 1.0) })
}

#[cfg(test)]
mod tests {
    use std::{
        ops::Range,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn unit(mut vector: Vec<f32>) -> Vec<f32> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    /// Returns a vector with this cosine to another one, along a random direction.
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
        // A copy of the same person's image is no pair.
        vectors.push((5, vectors[5].1.clone()));
        let samples: Vec<(i64, &[f32])> = vectors.iter().map(|(person, v)| (*person, v.as_slice())).collect();
        let all_new = vec![true; samples.len()];
        let found = same_pictures(&samples, &all_new, Vec::new(), 0.98, &|| true).unwrap();
        let pairs = found.pairs;
        let places: Vec<(usize, usize)> = pairs.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(places, [(0, 60), (1, 61), (4, 64)]);
        assert!((pairs[1].similarity - 0.981).abs() < 1e-3, "{}", pairs[1].similarity);
        let in_pairs = found.is_in_pair.iter().enumerate().filter(|(_, is_in_pair)| **is_in_pair);
        assert_eq!(in_pairs.map(|(at, _)| at).collect::<Vec<_>>(), [0, 1, 4, 60, 61, 64]);
        assert_eq!(same_pictures(&samples, &all_new, Vec::new(), 0.98, &|| false), None);
    }

    #[test]
    fn exactly_the_pairs_that_reach_the_threshold_are_found() {
        let mut random = StdRng::seed_from_u64(8);
        let centres: Vec<Vec<f32>> =
            (0..3).map(|_| unit((0..128).map(|_| random.random_range(-1.0_f32..1.0)).collect())).collect();
        // Pairs around the threshold, also among those that heads alone rule out.
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
        let places = |found: SamePictures| {
            found.pairs.iter().map(|pair| (pair.first, pair.second)).collect::<Vec<_>>()
        };
        let found = same_pictures(&samples, &[true; 100], Vec::new(), 0.94, &|| true).unwrap();
        assert_eq!(places(found), expected);

        // The result does not depend on earlier comparisons: other images, erased since, with other embeddings or of
        // other people.
        let ids: Vec<String> = (0..100).map(|number| format!("image-{number}")).collect();
        let named = |range: Range<usize>| -> Vec<Sample<'_>> {
            range.map(|at| (ids[at].as_str(), samples[at].0, samples[at].1)).collect()
        };
        let finder = PairFinder::default();
        let mut before = named(0..70);
        before.retain(|(id, ..)| !id.ends_with('3'));
        before[20].1 = 77;
        before[30].2 = samples[5].1;
        assert!(!finder.same_pictures(&before, 0.94, &|| true).unwrap().pairs.is_empty());
        for _ in 0..2 {
            assert_eq!(places(finder.same_pictures(&named(0..100), 0.94, &|| true).unwrap()), expected);
        }
        assert_eq!(finder.same_pictures(&before, 0.94, &|| false), None);
        let few: Vec<_> = expected.iter().copied().filter(|(_, second)| *second < 50).collect();
        assert_eq!(places(finder.same_pictures(&named(0..50), 0.94, &|| true).unwrap()), few);
        assert!(finder.same_pictures(&named(0..50), 0.99, &|| true).unwrap().pairs.len() < few.len());
    }

    #[test]
    fn of_more_pairs_than_are_kept_the_most_similar_stay_and_all_images_are_known() {
        let mut random = StdRng::seed_from_u64(9);
        let centre = unit(vec![1.0; 16]);
        let vectors: Vec<Vec<f32>> =
            (0..700).map(|_| at(random.random_range(0.96..1.0), &centre, &mut random)).collect();
        let ids: Vec<String> = (0..700).map(|number| number.to_string()).collect();
        let samples: Vec<Sample<'_>> = (0..700)
            .map(|at| (ids[at].as_str(), i64::try_from(at).unwrap(), vectors[at].as_slice()))
            .collect();
        let compared: Vec<(i64, &[f32])> =
            samples.iter().map(|(_, person, vector)| (*person, *vector)).collect();
        let every = (0..700).flat_map(|first| (first + 1..700).map(move |second| (first, second)));
        let mut expected: Vec<Pair> =
            every.filter_map(|(first, second)| pair(&compared, first, second, 0.8)).collect();
        assert!(expected.len() > 2 * MAX_PAIRS, "{}", expected.len());
        expected.sort_unstable_by(Pair::most_similar_first);
        expected.truncate(MAX_PAIRS);
        expected.sort_unstable_by_key(|pair| (pair.first, pair.second));
        let compared = AtomicUsize::new(0);
        let count = || compared.fetch_add(1, Ordering::Relaxed) < usize::MAX;
        let finder = PairFinder::default();
        for _ in 0..2 {
            // Nothing is remembered: the second time all are compared again.
            compared.store(0, Ordering::Relaxed);
            let found = finder.same_pictures(&samples, 0.8, &count).unwrap();
            assert!(found.pairs == expected && found.is_in_pair.iter().all(|is_in_pair| *is_in_pair));
            assert_eq!(compared.load(Ordering::Relaxed), 700_usize.div_ceil(HEADS));
        }
    }

    #[test]
    fn a_training_compares_only_new_images() {
        let axis = |one: usize| unit((0..16).map(|x| f32::from(u8::from(x == one % 16))).collect());
        let vectors: Vec<Vec<f32>> = (0..2 * HEADS).map(axis).collect();
        let ids: Vec<String> = (0..2 * HEADS).map(|number| number.to_string()).collect();
        let samples: Vec<Sample<'_>> = (0..2 * HEADS)
            .map(|at| (ids[at].as_str(), i64::try_from(at).unwrap(), vectors[at].as_slice()))
            .collect();
        let compared = AtomicUsize::new(0);
        let count = || compared.fetch_add(1, Ordering::Relaxed) < usize::MAX;
        let finder = PairFinder::default();
        for (images, steps) in [(2 * HEADS - 2, 2), (2 * HEADS, 1), (2 * HEADS, 0), (HEADS, 0)] {
            compared.store(0, Ordering::Relaxed);
            finder.same_pictures(&samples[..images], 0.9, &count).unwrap();
            assert_eq!(compared.load(Ordering::Relaxed), steps);
        }
    }
}
