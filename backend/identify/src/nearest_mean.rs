//! The person whose mean embedding is nearest, for more people than hyperplanes pay for.
//!
//! People are ranked by the cosine `c` between the embedding and their mean embedding. The probability that a face is of
//! person k, if it is of anybody who is enrolled, is `exp(slope c_k)` of the sum over all. The slope is fitted to the
//! samples: [`fit_slope`].
//!
//! A person's mean depends on nobody else, so a training computes only the means of people whose samples have changed, as
//! a digest per person shows, and takes all others from the previous model. Nothing of a removed sample remains.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    Classifier, ClassifierKind, Gallery, IdentifyError, Labels, ProgressCallback, Sample,
    embedding::{normalised, to_f32},
    format::{Reader, corrupt, put_f32s},
    gallery::Scan,
    log_sum::LogSum,
    matrix::{Matrix, Query},
};

/// Samples that the slope is fitted to at most, one of a person each, and people that they are compared with.
const PROBES: usize = 256;
const RIVALS: usize = 2048;

/// Fewer samples determine no slope.
const MIN_PROBES: usize = 16;

/// The slope where nothing determines it, and those that are tried, in units of the square root of the dimensions: the
/// cosine of two random directions has the standard deviation 1 / sqrt(dimensions).
const DEFAULT_SLOPE: f32 = 2.0;
const SLOPES: [f32; 13] = [1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0];

/// Ranks people by the cosine to their mean embeddings.
#[derive(Debug, Clone)]
pub struct NearestMean {
    gallery: Arc<dyn Gallery>,
    slope: f32,
    /// A digest of each person's samples.
    digests: Vec<u64>,
}

/// The people of a training: labels, L2-normalised mean embeddings and classifier.
pub(crate) struct Trained {
    pub(crate) labels: Labels,
    pub(crate) means: Arc<Matrix>,
    pub(crate) classifier: NearestMean,
    /// Share of held-out samples to which somebody else is nearer; none where too few could be held out.
    pub(crate) mistakes: Option<f64>,
}

/// The previous model, from which a training may take means.
#[derive(Clone, Copy)]
pub(crate) struct Previous<'a> {
    pub(crate) labels: &'a Labels,
    pub(crate) means: &'a Matrix,
    pub(crate) classifier: &'a NearestMean,
}

/// The samples of one person: their positions, by digest and without repetitions.
struct Person<'a> {
    label: &'a str,
    samples: Vec<usize>,
    digest: u64,
}

impl NearestMean {
    /// Trains on at least one sample; the labels are checked.
    pub(crate) fn train(
        samples: &[Sample],
        previous: Option<Previous<'_>>,
        progress: &ProgressCallback<'_>,
    ) -> Result<Trained, IdentifyError> {
        let dimensions = samples.first().map_or(0, |sample| sample.embedding.len());
        let digests = sample_digests(samples, dimensions)?;
        check_conflicts(samples, &digests)?;
        let people = group(samples, &digests);

        let previous = previous.filter(|previous| previous.means.columns() == dimensions);
        let mut means = Matrix::zeros(people.len(), dimensions);
        let done = AtomicUsize::new(0);
        let mut rows: Vec<(&Person<'_>, &mut [f32])> = people.iter().zip(means.iter_mut()).collect();
        rows.par_iter_mut().try_for_each(|(person, row)| {
            match previous.and_then(|previous| previous.mean(person)) {
                Some(mean) => row.copy_from_slice(mean),
                None => row.copy_from_slice(&mean(samples, &person.samples)?),
            }
            let count = person.samples.len();
            match progress(done.fetch_add(count, Ordering::Relaxed) + count) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
            }
        })?;

        let (slope, mistakes) = fit_slope(samples, &people, &means)?;
        let mut labels = Labels::with_capacity(people.len());
        for person in &people {
            labels.push(person.label)?;
        }
        labels.shrink();
        let means = Arc::new(means);
        let digests = people.iter().map(|person| person.digest).collect();
        let classifier = Self { gallery: Arc::new(Scan::new(Arc::clone(&means))), slope, digests };
        Ok(Trained { labels, means, classifier, mistakes })
    }

    pub(crate) fn decode(reader: &mut Reader<'_>, means: &Arc<Matrix>) -> Result<Self, IdentifyError> {
        let mut slope = [0.0];
        reader.f32s(&mut slope)?;
        let [slope] = slope;
        if slope <= 0.0 {
            return Err(corrupt("the slope of the probabilities is not above 0"));
        }
        let length = means.rows().checked_mul(8).ok_or_else(|| corrupt("a length is impossible"))?;
        let (chunks, _) = reader.take(length)?.as_chunks::<8>();
        let digests = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
        Ok(Self { gallery: Arc::new(Scan::new(Arc::clone(means))), slope, digests })
    }
}

impl Classifier for NearestMean {
    fn kind(&self) -> ClassifierKind {
        ClassifierKind::NearestMean
    }

    fn nearest_mean(&self) -> Option<&NearestMean> {
        Some(self)
    }

    fn classes(&self) -> usize {
        self.gallery.people()
    }

    fn dimensions(&self) -> usize {
        self.gallery.dimensions()
    }

    fn rank(&self, embedding: &[f32], top_k: usize) -> Vec<(usize, f32)> {
        let found = self.gallery.search(embedding, top_k, self.slope);
        let probability =
            |cosine: f32| (f64::from(self.slope) * f64::from(cosine) - found.log_sum).exp().min(1.0);
        found.nearest.iter().map(|&(class, cosine)| (class, to_f32(probability(cosine)))).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.slope.to_le_bytes());
        out.extend(self.digests.iter().flat_map(|digest| digest.to_le_bytes()));
    }
}

impl<'a> Previous<'a> {
    /// Returns the kept mean embedding of a person whose samples have not changed.
    fn mean(&self, person: &Person<'_>) -> Option<&'a [f32]> {
        let class = self.labels.position(person.label)?;
        let same = self.classifier.digests.get(class) == Some(&person.digest);
        same.then(|| self.means.row(class)).flatten()
    }
}

/// Returns the first eight bytes of SHA-256, from which no embedding can be recovered.
fn digest(bytes: impl AsRef<[u8]>) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.as_chunks::<8>().0.first().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Returns a digest of each sample's direction. Fails as a training does on the first sample that is no embedding of so
/// many dimensions.
fn sample_digests(samples: &[Sample], dimensions: usize) -> Result<Vec<u64>, IdentifyError> {
    let one = |(index, sample): (usize, &Sample)| {
        let subject = || format!("sample {index}");
        let vector = normalised(&sample.embedding, subject)?;
        if vector.len() != dimensions {
            let (found, expected) = (vector.len(), dimensions);
            return Err(IdentifyError::Dimensions { subject: subject(), found, expected });
        }
        let mut bytes = Vec::with_capacity(size_of_val(vector.as_slice()));
        put_f32s(&mut bytes, &vector);
        Ok(digest(bytes))
    };
    let all: Vec<Result<u64, IdentifyError>> = samples.par_iter().enumerate().map(one).collect();
    all.into_iter().collect()
}

/// Fails where two people have the same embedding.
fn check_conflicts(samples: &[Sample], digests: &[u64]) -> Result<(), IdentifyError> {
    let mut order: Vec<(u64, usize)> = digests.iter().copied().zip(0..).collect();
    order.par_sort_unstable();
    for same in order.chunk_by(|a, b| a.0 == b.0) {
        let Some((&(_, first), others)) = same.split_first() else { continue };
        let Some(one) = samples.get(first) else { continue };
        for &(_, second) in others {
            let Some(other) = samples.get(second).filter(|other| other.label != one.label) else { continue };
            // The digest is short, so a collision is possible.
            if normalised(&one.embedding, String::new)? == normalised(&other.embedding, String::new)? {
                return Err(IdentifyError::Conflict { first, second });
            }
        }
    }
    Ok(())
}

/// Returns the people by label.
fn group<'a>(samples: &'a [Sample], digests: &[u64]) -> Vec<Person<'a>> {
    let mut order: Vec<(&str, u64, usize)> = samples
        .iter()
        .zip(digests)
        .enumerate()
        .map(|(index, (s, d))| (s.label.as_str(), *d, index))
        .collect();
    order.par_sort_unstable();
    let person = |rows: &[(&'a str, u64, usize)]| {
        let mut distinct = rows.to_vec();
        distinct.dedup_by_key(|(_, digest, _)| *digest);
        let bytes: Vec<u8> = distinct.iter().flat_map(|(_, digest, _)| digest.to_le_bytes()).collect();
        let label = rows.first().map_or("", |(label, ..)| *label);
        Person {
            label,
            samples: distinct.into_iter().map(|(.., index)| index).collect(),
            digest: digest(bytes),
        }
    };
    order.chunk_by(|a, b| a.0 == b.0).map(person).collect()
}

/// Returns the L2-normalised mean of the directions of some samples.
fn mean(samples: &[Sample], of: &[usize]) -> Result<Vec<f32>, IdentifyError> {
    let mut sum: Vec<f64> = Vec::new();
    for sample in of.iter().filter_map(|index| samples.get(*index)) {
        let vector = normalised(&sample.embedding, String::new)?;
        sum.resize(vector.len(), 0.0);
        for (sum, value) in sum.iter_mut().zip(vector) {
            *sum += f64::from(value);
        }
    }
    let mean: Vec<f32> = sum.iter().map(|value| to_f32(value / of.len() as f64)).collect();
    let first = of.iter().min().copied().unwrap_or(0);
    normalised(&mean, || format!("the mean embedding of the person of sample {first}"))
}

/// Fits the slope of the probabilities: that of [`SLOPES`] with the least logarithmic loss on samples that are held out of their
/// person's mean, against the means of some other people, weighted so that they stand for all others. People with one sample
/// have none to hold out. Also returns the share of those samples to which another person is nearer.
fn fit_slope(
    samples: &[Sample],
    people: &[Person<'_>],
    means: &Matrix,
) -> Result<(f32, Option<f64>), IdentifyError> {
    let unit = (means.columns() as f64).sqrt();
    let slope = |factor: f32| to_f32(f64::from(factor) * unit);
    let several: Vec<usize> = people
        .iter()
        .enumerate()
        .filter(|(_, person)| person.samples.len() > 1)
        .map(|(class, _)| class)
        .collect();
    let rivals = evenly(people.len(), RIVALS);
    if several.len() < MIN_PROBES || rivals.len() < 2 {
        return Ok((slope(DEFAULT_SLOPE), None));
    }
    let mut rival_means = Matrix::zeros(rivals.len(), means.columns());
    for (to, class) in rival_means.iter_mut().zip(&rivals) {
        to.copy_from_slice(means.row(*class).unwrap_or_default());
    }
    let losses = |probe: usize| {
        let Some((class, person)) = several.get(probe).and_then(|class| Some((*class, people.get(*class)?)))
        else {
            return Ok(([0.0; SLOPES.len()], false));
        };
        let Some((held_out, others)) = person.samples.split_first() else {
            return Ok(([0.0; SLOPES.len()], false));
        };
        let Some(held_out) = samples.get(*held_out) else { return Ok(([0.0; SLOPES.len()], false)) };
        // The sum of opposite directions has no direction.
        let Ok(own) = mean(samples, others) else { return Ok(([0.0; SLOPES.len()], false)) };
        let query = Query::new(&normalised(&held_out.embedding, String::new)?);
        let mut cosines = Vec::with_capacity(rivals.len());
        rival_means.scan(&query, |_, products| cosines.extend_from_slice(products));
        if let Ok(position) = rivals.binary_search(&class) {
            cosines.remove(position);
        }
        let highest = cosines.iter().copied().fold(-1.0, f32::max);
        let mut own_row = Matrix::zeros(1, own.len());
        own_row.iter_mut().for_each(|row| row.copy_from_slice(&own));
        let genuine = f64::from(own_row.dot(0, &query).unwrap_or_default());
        // Each rival stands for this many people (as a logarithm).
        let weight = ((people.len() - 1) as f64 / cosines.len() as f64).ln();
        let losses = SLOPES.map(|factor| {
            let mut sum = LogSum::new(slope(factor));
            sum.add(&cosines, highest);
            let advantage = f64::from(slope(factor)) * genuine - sum.value() - weight;
            // -ln(own / (own + others)).
            (-advantage).max(0.0) + (-advantage.abs()).exp().ln_1p()
        });
        Ok((losses, genuine <= f64::from(highest)))
    };
    let all: Vec<([f64; SLOPES.len()], bool)> =
        evenly(several.len(), PROBES).into_par_iter().map(losses).collect::<Result<_, IdentifyError>>()?;
    let total = |position: usize| all.iter().filter_map(|(losses, _)| losses.get(position)).sum::<f64>();
    let best = SLOPES.iter().enumerate().min_by(|a, b| total(a.0).total_cmp(&total(b.0)));
    let mistakes = all.iter().filter(|(_, mistaken)| *mistaken).count() as f64 / all.len() as f64;
    Ok((slope(best.map_or(DEFAULT_SLOPE, |(_, factor)| *factor)), Some(mistakes)))
}

/// Returns up to `most` of numbers below `count`, evenly spaced, rising.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    let taken = count.min(most);
    (0..taken).map(|position| position * count / taken).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(label: &str, embedding: [f32; 3]) -> Sample {
        Sample { label: label.into(), embedding: embedding.into() }
    }

    #[test]
    fn means_of_unchanged_people_are_taken_from_the_previous_model() {
        let go_on = |_| ControlFlow::Continue(());
        let mut samples = vec![sample("a", [1.0, 0.0, 0.0]), sample("b", [0.0, 1.0, 0.0])];
        let before = NearestMean::train(&samples, None, &go_on).unwrap();
        // Means that no training would compute reveal whether they were reused.
        let mut marked = (*before.means).clone();
        marked.iter_mut().for_each(|row| row.copy_from_slice(&[0.0, 0.0, 1.0]));
        let previous = Previous { labels: &before.labels, means: &marked, classifier: &before.classifier };
        samples.extend([sample("b", [0.0, 0.6, 0.8]), sample("c", [1.0, 1.0, 1.0])]);
        let after = NearestMean::train(&samples, Some(previous), &go_on).unwrap();
        let row = |label| after.means.row(after.labels.position(label).unwrap()).unwrap();
        assert_eq!(row("a"), [0.0, 0.0, 1.0]);
        assert!(row("b")[1] > 0.8 && row("c")[0] > 0.5, "{:?} {:?}", row("b"), row("c"));
    }

    #[test]
    fn the_slope_is_the_steeper_the_better_people_can_be_told_apart() {
        use rand::Rng as _;
        use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

        let slope = |noise: f32| {
            let mut random = ChaCha8Rng::seed_from_u64(4);
            let mut samples = Vec::new();
            for person in 0..300 {
                let centre: Vec<f32> = (0..64).map(|_| random.random_range(-1.0..1.0)).collect();
                for _ in 0..3 {
                    let embedding =
                        centre.iter().map(|v| v + noise * random.random_range(-1.0_f32..1.0)).collect();
                    samples.push(Sample { label: format!("{person:03}"), embedding });
                }
            }
            NearestMean::train(&samples, None, &|_| ControlFlow::Continue(())).unwrap().classifier.slope
        };
        let slopes = [0.7, 1.2, 1.8].map(slope);
        assert!(slopes.is_sorted_by(|a, b| a >= b) && slopes[0] > slopes[2], "{slopes:?}");
        // With one photograph each, nothing can be held out.
        let lone = [sample("a", [1.0, 0.0, 0.0]), sample("b", [0.0, 1.0, 0.0])];
        let trained = NearestMean::train(&lone, None, &|_| ControlFlow::Continue(())).unwrap();
        assert_eq!(trained.classifier.slope, DEFAULT_SLOPE * 3.0_f32.sqrt());
    }
}
