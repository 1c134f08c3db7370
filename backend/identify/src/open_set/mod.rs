//! The threshold that a gallery needs, and how well it does: calibration of the open-set decision, in the terms of ISO/IEC
//! 19795-1.
//!
//! The more people are enrolled, the likelier a stranger resembles one of them: at a fixed threshold, the false positive
//! identification rate (FPIR) grows with the gallery. [`calibrate`] finds the threshold at which a stranger is named with a
//! probability of [`CalibrationOptions::target_fpir`], from
//!
//! - the scores of a *cohort*, embeddings of strangers, each compared with the whole gallery, with a fitted tail where the
//!   cohort is too small for the quantile;
//! - a table of the embedder's false match rates, extrapolated to the gallery's size; it counts as much as
//!   100 strangers do, so that it decides without a cohort and hardly matters beside a large one;
//! - the gallery itself: how alike its people are shifts the table.
//!
//! The false negative identification rate (FNIR) is estimated by leaving out one image at a time. docs/decisions/0033 has the
//! data behind the choices.

mod interval;
mod measure;
mod measured;
mod table;
mod tail;

pub use interval::ErrorRate;
pub use measure::{MeasuredTable, measure_table};
pub use table::ImpostorTable;

use std::{collections::HashMap, ops::ControlFlow};

use self::{interval::bisect, table::GallerySize, tail::ScoreSample};
use crate::{
    IdentifyError, Labels, Model, ProgressCallback, Sample,
    cohort::beyond_doubt,
    embedding::{dot, normalised, to_f32},
};

/// The number of strangers that a table counts as. Beside 200 measured strangers that keeps most of the accuracy that either has;
/// a table that is wrong for the cameras at hand moves the rate by a tenth beside 1,000.
const TABLE_WEIGHT: usize = 100;

/// The number of people at which half of the difference between gallery and table is believed.
const SHIFT_WEIGHT: f64 = 10.0;

/// Expected false positives from which the quantile of the cohort is exact enough without a fitted tail.
const QUANTILE_POSITIVES: f64 = 50.0;

/// Where none of n strangers is named, the rate is at most this in n, with 95 % confidence.
pub const RULE_OF_THREE: f64 = 3.0;

/// The number of leave-one-out scores from which their median says how alike images of one person are.
const MIN_MATED: usize = 20;

/// The number of people from which the scores within a gallery say something about strangers without a table.
const MIN_PEOPLE: usize = 50;

/// FNIR from which there is a warning, unless a single image makes the difference: the interval begins at a fifth of it.
const HIGH_FNIR: f64 = 0.05;

/// Maximum number of multiplications and additions for the comparisons of strangers, and for those of the gallery's images: a
/// few seconds of one core. Larger sets are sampled evenly.
pub const MAX_PRODUCTS: usize = 40_000_000_000;
const MAX_GALLERY_PRODUCTS: usize = 10_000_000_000;

/// The length from which the sum of a person's other images has a direction: rounding leaves less of those that cancel out.
const MIN_LENGTH: f64 = 1e-6;

/// The options of [`calibrate`].
#[derive(Debug, Clone, Copy)]
pub struct CalibrationOptions<'a> {
    /// The share of strangers that may be named, above 0 and below 1.
    pub target_fpir: f64,
    /// The embedder's fixed threshold, a cosine: no threshold is lower where no cohort is large enough to show that a lower one
    /// suffices.
    pub default_threshold: f32,
    /// The embedder's measured rates, if any.
    pub table: Option<&'a ImpostorTable>,
    /// Embeddings of strangers.
    pub cohort: &'a [Vec<f32>],
}

/// A threshold, its method, and its expected error rates.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// The minimum cosine between a known face and the person's mean embedding.
    pub threshold: f32,
    /// The FPIR that it was chosen for.
    pub target_fpir: f64,
    /// The method that determined it.
    pub method: CalibrationMethod,
    /// The number of strangers that were compared with the gallery.
    pub cohort: usize,
    /// The expected share of strangers who are named: of those of the cohort, or by the table. None where nothing is known.
    pub fpir: Option<ErrorRate>,
    /// The share of images that are not named, or not rightly, where the other images of the person are enrolled. None where
    /// nobody has two.
    pub fnir: Option<ErrorRate>,
    /// Problems that make decisions worse or estimates vague.
    pub warnings: Vec<CalibrationWarning>,
}

/// The method that determines a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationMethod {
    /// The quantile of the cohort's scores.
    CohortQuantile,
    /// The cohort's scores with a generalised Pareto tail.
    CohortTail,
    /// The embedder's table, extrapolated to the gallery's size.
    Table,
    /// The scores within the gallery: there is neither a cohort nor a table.
    Gallery,
    /// The embedder's fixed threshold: nothing else is known.
    Fixed,
}

/// Something that makes decisions worse, or estimates vague. People are named by their labels.
#[derive(Debug, Clone, PartialEq)]
pub enum CalibrationWarning {
    /// An image of one of two people reaches the threshold for the other; the most alike first.
    PeopleAlike(Vec<AlikePeople>),
    /// People with one image: there is no telling whether another one would be recognised.
    OneImage(Vec<String>),
    /// There is no cohort, so that the FPIR is that of other pictures.
    NoCohort,
    /// The cohort is too small to show that the target is met; it would take this many strangers.
    SmallCohort(usize),
    /// This many members of the cohort look as much like enrolled people as their own images do, and were left out.
    CohortEnrolled(usize),
    /// More enrolled people are missed than usual.
    HighFnir,
}

/// Two people who are hard to tell apart.
#[derive(Debug, Clone, PartialEq)]
pub struct AlikePeople {
    /// Their labels, sorted.
    pub labels: [String; 2],
    /// The greatest cosine between an image of one and the mean embedding of the other.
    pub score: f32,
}

/// Calibrates the decision of a model that was trained on `samples`. `None` where nobody is enrolled. The work is bounded: of
/// large galleries and cohorts a part is compared.
///
/// # Errors
/// A target outside of its range, or an embedding that is empty, not finite, zero or of another length than the model's.
pub fn calibrate(
    model: &Model,
    samples: &[Sample],
    options: &CalibrationOptions<'_>,
) -> Result<Option<Calibration>, IdentifyError> {
    calibrate_with_progress(model, samples, options, &|_| ControlFlow::Continue(()))
}

/// Does the same as [`calibrate`]. `progress` receives the number of samples that are prepared, and ends the call early where
/// it breaks.
///
/// # Errors
/// Those of [`calibrate`], and [`IdentifyError::Cancelled`].
pub fn calibrate_with_progress(
    model: &Model,
    samples: &[Sample],
    options: &CalibrationOptions<'_>,
    progress: &ProgressCallback<'_>,
) -> Result<Option<Calibration>, IdentifyError> {
    let target = options.target_fpir;
    if !(target > 0.0 && target < 1.0) {
        return Err(IdentifyError::Option {
            option: "target_fpir",
            value: target,
            limit: "more than 0 and less than 1",
        });
    }
    if model.labels().is_empty() {
        return Ok(None);
    }
    let gallery = Gallery::new(model, samples, progress)?;
    let mated: Vec<&Comparison> = gallery.compared.iter().filter(|compared| compared.own.is_some()).collect();
    let own = mated.iter().filter_map(|compared| compared.own);
    // Where images of one person resemble each other little, their median would be a score of strangers too.
    let doubtless = beyond_doubt(options.default_threshold);
    let enrolled_score = median(own.collect(), MIN_MATED).map_or(doubtless, |median| median.max(doubtless));
    let samples_compared = gallery.compared.len();
    proceed(progress, samples_compared)?;
    let mut strangers = gallery.scores_of(options.cohort)?;
    let compared = strangers.len();
    strangers.retain(|score| *score < enrolled_score);
    let left_out = compared - strangers.len();
    proceed(progress, samples_compared)?;
    let evidence = Evidence::new(&gallery, strangers, enrolled_score, options.table, target);

    let found = evidence.threshold();
    let may_be_lower = evidence.strangers.len() as f64 * target >= 1.0;
    let threshold = match found {
        Some(found) if may_be_lower || found > f64::from(options.default_threshold) => rounded_up(found),
        _ => options.default_threshold,
    };
    let missed = mated.iter().filter(|compared| compared.is_missed_at(threshold)).count();
    let fnir = ErrorRate::of(missed, mated.len());

    let mut warnings = Vec::new();
    let alike = gallery.people_alike(threshold);
    if !alike.is_empty() {
        warnings.push(CalibrationWarning::PeopleAlike(alike));
    }
    let one_image = gallery.people_with_one_image();
    if !one_image.is_empty() {
        warnings.push(CalibrationWarning::OneImage(one_image));
    }
    if left_out > 0 {
        warnings.push(CalibrationWarning::CohortEnrolled(left_out));
    }
    let needed = strangers_needed(target);
    match evidence.strangers.len() {
        0 => warnings.push(CalibrationWarning::NoCohort),
        n if n < needed => warnings.push(CalibrationWarning::SmallCohort(needed)),
        _ => (),
    }
    if fnir.is_some_and(|fnir| fnir.rate >= HIGH_FNIR && fnir.lower >= HIGH_FNIR / 5.0) {
        warnings.push(CalibrationWarning::HighFnir);
    }
    Ok(Some(Calibration {
        threshold,
        target_fpir: target,
        method: evidence.method(),
        cohort: evidence.strangers.len(),
        fpir: evidence.fpir(threshold),
        fnir,
        warnings,
    }))
}

/// Returns the number of strangers from which a cohort can show with 95 % confidence that an FPIR is at most `target`, above 0:
/// by the [rule of three](RULE_OF_THREE).
pub fn strangers_needed(target: f64) -> usize {
    whole((RULE_OF_THREE / target).ceil())
}

/// The people of a model with the samples that it was trained on.
struct Gallery<'a> {
    model: &'a Model,
    labels: &'a Labels,
    /// The different samples of each person.
    samples: Vec<Vec<&'a [f32]>>,
    /// The samples that were compared.
    compared: Vec<Comparison>,
}

/// A sample and its nearest neighbours.
struct Comparison {
    /// The index of its person.
    person: usize,
    /// Its cosine to the mean of the person's other samples, if there are any.
    own: Option<f32>,
    /// The position of the nearest of the other people and the cosine to their mean, if there are any.
    other: Option<(usize, f32)>,
}

impl Comparison {
    /// Returns whether the decision on this sample would be wrong if it were not enrolled.
    fn is_missed_at(&self, threshold: f32) -> bool {
        self.own.is_none_or(|own| own < threshold || self.other.is_some_and(|(_, score)| score >= own))
    }
}

impl<'a> Gallery<'a> {
    fn new(
        model: &'a Model,
        samples: &'a [Sample],
        progress: &ProgressCallback<'_>,
    ) -> Result<Self, IdentifyError> {
        let labels = model.labels();
        let mut by_person: Vec<Vec<&[f32]>> = vec![Vec::new(); labels.len()];
        for sample in samples {
            let person = labels.position(&sample.label).and_then(|at| by_person.get_mut(at));
            if let Some(person) = person
                && !person.contains(&sample.embedding.as_slice())
            {
                person.push(&sample.embedding);
            }
        }
        let mut gallery = Self { model, labels, samples: by_person, compared: Vec::new() };
        gallery.compared = gallery.compare(progress)?;
        Ok(gallery)
    }

    /// Returns how many embeddings may be compared with all references.
    fn affordable(&self, products: usize) -> usize {
        (products / (self.labels.len() * self.model.dimensions()).max(1)).max(1)
    }

    /// Compares the samples, or evenly spread ones of them.
    fn compare(&self, progress: &ProgressCallback<'_>) -> Result<Vec<Comparison>, IdentifyError> {
        let all: Vec<(usize, usize)> = self
            .samples
            .iter()
            .enumerate()
            .flat_map(|(person, samples)| (0..samples.len()).map(move |sample| (person, sample)))
            .collect();
        let chosen = evenly_spread(&all, self.affordable(MAX_GALLERY_PRODUCTS));
        let dimensions = self.model.dimensions();
        let mut compared = Vec::with_capacity(chosen.len());
        let mut embeddings = Vec::with_capacity(chosen.len());
        // Samples of one person are adjacent.
        let (mut current, mut units, mut sum) = (None, Vec::new(), Vec::new());
        for &(person, sample) in chosen {
            if current != Some(person) {
                proceed(progress, compared.len())?;
                let samples = self.samples.get(person).map(Vec::as_slice).unwrap_or_default();
                units = normalised_all(samples.iter().copied(), dimensions)?;
                sum = vec![0.0_f64; dimensions];
                for unit in &units {
                    sum.iter_mut().zip(unit).for_each(|(sum, value)| *sum += f64::from(*value));
                }
                current = Some(person);
            }
            let Some(embedding) = units.get(sample) else { continue };
            let rest: Vec<f32> =
                sum.iter().zip(embedding).map(|(sum, value)| to_f32(sum - f64::from(*value))).collect();
            // The rest has no direction if there are no other samples, or if they cancel out.
            let has_direction = dot(&rest, &rest) >= MIN_LENGTH * MIN_LENGTH;
            let rest = has_direction.then(|| normalised(&rest, String::new).ok()).flatten();
            let own = rest.map(|rest| to_f32(dot(&rest, embedding).clamp(-1.0, 1.0)));
            compared.push(Comparison { person, own, other: None });
            embeddings.push(embedding.clone());
        }
        let probes: Vec<&[f32]> = embeddings.iter().map(Vec::as_slice).collect();
        let except: Vec<Option<usize>> = compared.iter().map(|compared| Some(compared.person)).collect();
        let others = self.model.nearest(&probes, &except)?;
        for (compared, other) in compared.iter_mut().zip(others) {
            compared.other = other;
        }
        Ok(compared)
    }

    /// Returns the greatest cosine of each of these embeddings, or of evenly spread ones of them, to anybody.
    fn scores_of(&self, cohort: &[Vec<f32>]) -> Result<Vec<f32>, IdentifyError> {
        let chosen = evenly_spread(cohort, self.affordable(MAX_PRODUCTS));
        let probes: Vec<&[f32]> = chosen.map(Vec::as_slice).collect();
        Ok(self.model.nearest(&probes, &[])?.into_iter().flatten().map(|(_, score)| score).collect())
    }

    fn size(&self) -> GallerySize {
        let several = self.samples.iter().filter(|samples| samples.len() > 1).count();
        GallerySize { one_photograph: self.labels.len() - several, several_photographs: several }
    }

    /// Returns the mean score of each compared person's samples to the nearest of the others.
    fn scores_to_others(&self) -> Vec<f32> {
        let mut people: HashMap<usize, (f32, f32)> = HashMap::new();
        for (person, (_, score)) in self.compared.iter().filter_map(|c| Some((c.person, c.other?))) {
            let (sum, count) = people.entry(person).or_default();
            *sum += score;
            *count += 1.0;
        }
        people.into_values().map(|(sum, count)| sum / count).collect()
    }

    /// Returns the pairs of people in which an image of one reaches `threshold` for the other, the most alike first.
    fn people_alike(&self, threshold: f32) -> Vec<AlikePeople> {
        let mut pairs: HashMap<[usize; 2], f32> = HashMap::new();
        for (person, (other, score)) in self.compared.iter().filter_map(|c| Some((c.person, c.other?))) {
            if score >= threshold {
                let highest = pairs.entry([person.min(other), person.max(other)]).or_insert(score);
                *highest = highest.max(score);
            }
        }
        let label = |index: usize| self.labels.get(index).unwrap_or_default().to_owned();
        let mut alike: Vec<AlikePeople> =
            pairs.into_iter().map(|(pair, score)| AlikePeople { labels: pair.map(label), score }).collect();
        alike.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.labels.cmp(&b.labels)));
        alike
    }

    fn people_with_one_image(&self) -> Vec<String> {
        let people = self.labels.iter().zip(&self.samples);
        people.filter(|(_, samples)| samples.len() == 1).map(|(label, _)| label.to_owned()).collect()
    }
}

/// The evidence about the scores of strangers.
struct Evidence<'a> {
    target: f64,
    /// The scores of the cohort.
    strangers: ScoreSample,
    table: Option<ShiftedTable<'a>>,
    /// The scores of each sample to the nearest other person, if there is no other evidence.
    gallery: Option<ScoreSample>,
}

/// A table for a gallery whose people are more alike than those that it was measured on.
#[derive(Debug, Clone, Copy)]
struct ShiftedTable<'a> {
    table: &'a ImpostorTable,
    size: GallerySize,
    /// The amount by which all scores are greater, at least 0.
    shift: f64,
}

impl ShiftedTable<'_> {
    fn probability(&self, threshold: f64) -> f64 {
        self.size.false_positive_rate(self.table, threshold - self.shift)
    }
}

impl<'a> Evidence<'a> {
    /// Creates an estimate; an image with a score of at least `enrolled_score` counts as one of a person who is
    /// enrolled twice.
    fn new(
        gallery: &Gallery<'_>,
        strangers: Vec<f32>,
        enrolled_score: f32,
        table: Option<&'a ImpostorTable>,
        target: f64,
    ) -> Self {
        let size = gallery.size();
        let table = table.map(|table| {
            let shift = shift(table, size, gallery.scores_to_others());
            ShiftedTable { table, size, shift }
        });
        let strangers = ScoreSample::new(strangers);
        let has_to_do = table.is_none() && strangers.len() == 0 && gallery.labels.len() >= MIN_PEOPLE;
        let gallery = has_to_do.then(|| {
            let others = gallery.compared.iter().filter_map(|compared| Some(compared.other?.1));
            ScoreSample::new(others.filter(|score| *score < enrolled_score).collect())
        });
        Self { target, strangers, table, gallery }
    }

    fn method(&self) -> CalibrationMethod {
        let strangers = self.strangers.len();
        if strangers > 0 && (strangers >= TABLE_WEIGHT || self.table.is_none()) {
            if self.has_quantile() {
                CalibrationMethod::CohortQuantile
            } else {
                CalibrationMethod::CohortTail
            }
        } else if self.table.is_some() {
            CalibrationMethod::Table
        } else if self.gallery.is_some() {
            CalibrationMethod::Gallery
        } else {
            CalibrationMethod::Fixed
        }
    }

    fn has_quantile(&self) -> bool {
        self.strangers.len() as f64 * self.target >= QUANTILE_POSITIVES
    }

    /// Returns the probability that a stranger is named at `threshold`; none without data.
    fn probability(&self, threshold: f64) -> Option<f64> {
        let strangers = self.strangers.len() as f64;
        let by_cohort = || match self.has_quantile() {
            true => self.strangers.share_reaching(threshold),
            false => self.strangers.probability(threshold),
        };
        match (&self.table, &self.gallery) {
            (Some(table), _) => {
                let weight = TABLE_WEIGHT as f64;
                Some((weight * table.probability(threshold) + strangers * by_cohort()) / (weight + strangers))
            }
            (None, _) if strangers > 0.0 => Some(by_cohort()),
            (None, Some(gallery)) => Some(gallery.probability(threshold)),
            (None, None) => None,
        }
    }

    /// Returns the lowest threshold that meets the target; none without data.
    fn threshold(&self) -> Option<f64> {
        self.probability(1.0)?;
        Some(bisect(-1.0, |threshold| self.probability(threshold).is_some_and(|rate| rate <= self.target)))
    }

    /// Returns the FPIR to expect at `threshold`.
    fn fpir(&self, threshold: f32) -> Option<ErrorRate> {
        let threshold = f64::from(threshold);
        let counted = |sample: &ScoreSample| ErrorRate::of(sample.reaching(threshold), sample.len());
        match self.method() {
            CalibrationMethod::CohortQuantile | CalibrationMethod::CohortTail => counted(&self.strangers),
            CalibrationMethod::Table => {
                let rate = self.probability(threshold)?;
                Some(ErrorRate::expected(rate, TABLE_WEIGHT + self.strangers.len()))
            }
            CalibrationMethod::Gallery => counted(self.gallery.as_ref()?),
            CalibrationMethod::Fixed => None,
        }
    }
}

/// Returns how much more alike the people of a gallery are than the table says, at the median, which neither relatives nor
/// somebody who is enrolled twice moves; 0 where they are less alike. `scores` has one of each person.
fn shift(table: &ImpostorTable, size: GallerySize, scores: Vec<f32>) -> f64 {
    let people = scores.len() as f64;
    let Some(found) = median(scores, 2) else { return 0.0 };
    let expected = bisect(-1.0, |cosine| size.false_positive_rate_among_others(table, cosine) <= 0.5);
    (f64::from(found) - expected).max(0.0) * people / (people + SHIFT_WEIGHT)
}

/// Returns the median of at least `least` values.
fn median(mut values: Vec<f32>, least: usize) -> Option<f32> {
    if values.len() < least.max(1) {
        return None;
    }
    let middle = values.len() / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    Some(*median)
}

/// Returns at most `most` of `all`, spread evenly.
fn evenly_spread<T>(all: &[T], most: usize) -> impl ExactSizeIterator<Item = &T> {
    all.iter().step_by(all.len().div_ceil(most.max(1)).max(1))
}

/// Returns L2-normalised copies; errors name the position.
fn normalised_all<'a>(
    embeddings: impl Iterator<Item = &'a [f32]>,
    dimensions: usize,
) -> Result<Vec<Vec<f32>>, IdentifyError> {
    embeddings
        .enumerate()
        .map(|(index, embedding)| {
            let subject = || format!("embedding {index}");
            if embedding.len() != dimensions {
                let found = embedding.len();
                return Err(IdentifyError::Dimensions { subject: subject(), found, expected: dimensions });
            }
            normalised(embedding, subject)
        })
        .collect()
}

/// Fails where `progress` breaks.
fn proceed(progress: &ProgressCallback<'_>, done: usize) -> Result<(), IdentifyError> {
    match progress(done) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
    }
}

/// Rounds a cosine up to four decimals.
fn rounded_up(cosine: f64) -> f32 {
    to_f32(((cosine * 1e4).ceil() / 1e4).clamp(-1.0, 1.0))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number from 3 on; larger ones than fit are saturated, and never needed"
)]
fn whole(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

    use super::*;
    use crate::TrainOptions;

    const DIMENSIONS: usize = 48;
    const DEFAULT: f32 = 0.3;

    /// A world of faces: a direction for each person, noise for each picture, and, of some worlds, something that all have in
    /// common.
    struct World {
        random: ChaCha8Rng,
        common: f32,
    }

    impl World {
        fn new(seed: u64, common: f32) -> Self {
            Self { random: ChaCha8Rng::seed_from_u64(seed), common }
        }

        fn direction(&mut self) -> Vec<f32> {
            let mut vector: Vec<f32> = (0..DIMENSIONS)
                .map(|_| (0..4).map(|_| self.random.random_range(-1.0_f32..1.0)).sum())
                .collect();
            unit(&mut vector);
            if let Some(first) = vector.first_mut() {
                *first += self.common;
            }
            unit(&mut vector);
            vector
        }

        fn picture(&mut self, person: &[f32]) -> Vec<f32> {
            let noise = self.direction();
            let mut picture: Vec<f32> = person.iter().zip(&noise).map(|(p, n)| p + 0.6 * n).collect();
            unit(&mut picture);
            picture
        }

        fn strangers(&mut self, count: usize) -> Vec<Vec<f32>> {
            (0..count)
                .map(|_| {
                    let person = self.direction();
                    self.picture(&person)
                })
                .collect()
        }

        /// Returns so many people with so many pictures each.
        fn people(&mut self, count: usize, pictures: usize) -> Vec<Vec<Vec<f32>>> {
            (0..count)
                .map(|_| {
                    let person = self.direction();
                    (0..pictures).map(|_| self.picture(&person)).collect()
                })
                .collect()
        }
    }

    fn unit(vector: &mut [f32]) {
        let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|v| *v /= length);
    }

    fn samples(people: &[Vec<Vec<f32>>]) -> Vec<Sample> {
        let pictures = people.iter().enumerate().flat_map(|(person, pictures)| {
            pictures
                .iter()
                .map(move |picture| Sample { label: format!("{person:04}"), embedding: picture.clone() })
        });
        pictures.collect()
    }

    fn trained(samples: &[Sample]) -> Model {
        Model::train("example", samples, &TrainOptions::default()).unwrap()
    }

    /// Returns the table of the rates of independent random directions.
    fn table() -> ImpostorTable {
        let mut world = World::new(99, 0.0);
        let (strangers, people) = (world.strangers(1500), world.people(300, 3));
        let measured = measure_table(&strangers, &people).unwrap();
        ImpostorTable {
            embedder: "example",
            one_photograph: measured.one_photograph.leak(),
            several_photographs: measured.several_photographs.leak(),
        }
    }

    fn options<'a>(cohort: &'a [Vec<f32>], table: Option<&'a ImpostorTable>) -> CalibrationOptions<'a> {
        CalibrationOptions { target_fpir: 0.01, default_threshold: DEFAULT, table, cohort }
    }

    fn calibrated(samples: &[Sample], options: &CalibrationOptions<'_>) -> Calibration {
        calibrate(&trained(samples), samples, options).unwrap().expect("people")
    }

    /// Returns the share of strangers whose score to any mean embedding reaches the threshold.
    fn named(samples: &[Sample], strangers: &[Vec<f32>], threshold: f32) -> f64 {
        let model = trained(samples);
        let gallery = Gallery::new(&model, samples, &|_| ControlFlow::Continue(())).unwrap();
        let scores = gallery.scores_of(strangers).unwrap();
        scores.iter().filter(|score| **score >= threshold).count() as f64 / scores.len() as f64
    }

    #[test]
    fn a_cohort_gives_galleries_of_any_size_the_threshold_that_meets_the_target() {
        let mut world = World::new(1, 0.3);
        let (cohort, strangers) = (world.strangers(1000), world.strangers(4000));
        let mut thresholds = Vec::new();
        for people in [5, 40, 200] {
            let samples = samples(&world.people(people, 3));
            let calibration = calibrated(&samples, &options(&cohort, None));
            let fpir = calibration.fpir.unwrap();
            let rate = named(&samples, &strangers, calibration.threshold);
            assert_eq!(calibration.method, CalibrationMethod::CohortTail);
            // In some worlds, a stranger looks like somebody enrolled.
            assert!(calibration.cohort >= 998 && fpir.searches == calibration.cohort);
            assert!((0.004..0.019).contains(&rate), "{people} people: {rate}");
            assert!((fpir.lower..=fpir.upper).contains(&rate), "{people} people: {rate} {fpir:?}");
            // No warning of too little data.
            let vague = |w: &CalibrationWarning| {
                matches!(
                    w,
                    CalibrationWarning::NoCohort
                        | CalibrationWarning::SmallCohort(_)
                        | CalibrationWarning::OneImage(_)
                )
            };
            assert!(!calibration.warnings.iter().any(vague), "{:?}", calibration.warnings);
            thresholds.push(calibration.threshold);
        }
        assert!(thresholds.is_sorted_by(|a, b| a < b), "{thresholds:?}");
    }

    #[test]
    fn a_quantile_is_taken_where_the_cohort_is_large_enough_for_it() {
        let mut world = World::new(2, 0.0);
        let (cohort, samples) = (world.strangers(1000), samples(&world.people(20, 2)));
        let calibration =
            calibrated(&samples, &CalibrationOptions { target_fpir: 0.05, ..options(&cohort, None) });
        assert_eq!(calibration.method, CalibrationMethod::CohortQuantile);
        let rate = calibration.fpir.unwrap().rate;
        assert!((0.047..=0.05).contains(&rate), "{rate}");
    }

    #[test]
    fn without_a_cohort_the_table_is_extrapolated_to_the_size_of_the_gallery() {
        let table = table();
        let mut world = World::new(3, 0.0);
        let strangers = world.strangers(4000);
        for (people, pictures) in [(30, 3), (200, 3), (200, 1)] {
            let samples = samples(&world.people(people, pictures));
            let calibration = calibrated(&samples, &options(&[], Some(&table)));
            assert_eq!((calibration.method, calibration.cohort), (CalibrationMethod::Table, 0));
            let rate = named(&samples, &strangers, calibration.threshold);
            assert!((0.004..0.016).contains(&rate), "{people} people: {rate}");
            let fpir = calibration.fpir.unwrap();
            assert!((fpir.rate - 0.01).abs() < 5e-4 && fpir.upper > 0.05, "{fpir:?}");
            assert!(calibration.warnings.contains(&CalibrationWarning::NoCohort));
            assert_eq!(calibration.fnir.is_some(), pictures > 1);
        }
    }

    #[test]
    fn the_table_is_shifted_where_the_people_of_the_gallery_are_more_alike() {
        let table = table();
        let mut world = World::new(4, 0.6);
        let others = samples(&World::new(4, 0.0).people(100, 3));
        let (strangers, samples) = (world.strangers(4000), samples(&world.people(100, 3)));
        let calibration = calibrated(&samples, &options(&[], Some(&table)));
        let unshifted = calibrated(&others, &options(&[], Some(&table))).threshold;
        let rate = named(&samples, &strangers, calibration.threshold);
        assert!(rate < 0.03, "{rate} at {}", calibration.threshold);
        assert!(calibration.threshold > unshifted + 0.05, "{} and {unshifted}", calibration.threshold);
        // The fixed threshold would name more than half of the strangers.
        assert!(named(&samples, &strangers, DEFAULT) > 0.5);
    }

    #[test]
    fn a_small_cohort_corrects_a_table_and_does_not_replace_it() {
        let table = table();
        let mut world = World::new(5, 0.0);
        let samples = samples(&world.people(100, 3));
        let by_table = calibrated(&samples, &options(&[], Some(&table))).threshold;
        for _ in 0..10 {
            let few = world.strangers(30);
            let calibration = calibrated(&samples, &options(&few, Some(&table)));
            assert_eq!((calibration.method, calibration.cohort), (CalibrationMethod::Table, 30));
            assert!((calibration.threshold - by_table).abs() < 0.08, "{}", calibration.threshold);
            assert!(calibration.warnings.contains(&CalibrationWarning::SmallCohort(300)));
        }
    }

    #[test]
    fn enrolled_people_in_a_cohort_do_not_count_as_strangers() {
        let mut world = World::new(6, 0.0);
        let people = world.people(60, 4);
        let enrolled: Vec<Vec<Vec<f32>>> = people.iter().map(|pictures| pictures[..3].to_vec()).collect();
        let samples = samples(&enrolled);
        let strangers = world.strangers(600);
        let clean = calibrated(&samples, &options(&strangers, None));
        let mut cohort = strangers;
        // Their other pictures, and those that are enrolled.
        cohort.extend(people.iter().take(20).flatten().cloned());
        let calibration = calibrated(&samples, &options(&cohort, None));
        let left_out = 680 - calibration.cohort;
        assert!(
            calibration.warnings.contains(&CalibrationWarning::CohortEnrolled(left_out)) && left_out > 50
        );
        assert!(calibration.threshold < 0.75, "{} instead of {}", calibration.threshold, clean.threshold);
    }

    #[test]
    fn people_who_are_enrolled_twice_are_reported_and_move_no_threshold() {
        let table = table();
        let mut world = World::new(7, 0.0);
        let mut people = world.people(60, 3);
        let alone = calibrated(&samples(&people), &options(&[], Some(&table)));
        let twin = people[10].clone();
        people.push(twin.iter().map(|picture| world.picture(picture)).collect());
        let calibration = calibrated(&samples(&people), &options(&[], Some(&table)));
        assert!((calibration.threshold - alone.threshold).abs() < 0.02);
        let Some(CalibrationWarning::PeopleAlike(alike)) = calibration.warnings.first() else {
            panic!("{:?}", calibration.warnings)
        };
        assert_eq!(alike[0].labels, ["0010", "0060"]);
        assert!(alike[0].score > calibration.threshold && alike.is_sorted_by(|a, b| a.score >= b.score));
    }

    #[test]
    fn small_galleries_without_a_cohort_keep_the_fixed_threshold_at_least() {
        let table = table();
        let mut world = World::new(8, 0.0);
        for people in 1..=10 {
            let samples = samples(&world.people(people, 1));
            for table in [None, Some(&table)] {
                let calibration = calibrated(&samples, &options(&[], table));
                assert!((DEFAULT..DEFAULT + 0.3).contains(&calibration.threshold), "{calibration:?}");
                assert_eq!(calibration.fnir, None);
                let labels: Vec<String> = (0..people).map(|person| format!("{person:04}")).collect();
                assert!(calibration.warnings.contains(&CalibrationWarning::OneImage(labels)));
                if table.is_none() {
                    assert_eq!(calibration.method, CalibrationMethod::Fixed);
                    assert_eq!((calibration.threshold, calibration.fpir), (DEFAULT, None));
                }
            }
        }
    }

    #[test]
    fn large_galleries_say_something_about_strangers_where_nothing_else_does() {
        let mut world = World::new(9, 0.6);
        let (samples, strangers) = (samples(&world.people(200, 3)), world.strangers(2000));
        let calibration = calibrated(&samples, &options(&[], None));
        assert_eq!(calibration.method, CalibrationMethod::Gallery);
        let rate = named(&samples, &strangers, calibration.threshold);
        assert!(rate < 0.03, "{rate}");
    }

    #[test]
    fn the_fnir_is_that_of_pictures_that_are_not_enrolled() {
        let mut world = World::new(10, 0.0);
        let people = world.people(100, 8);
        let enrolled: Vec<Vec<Vec<f32>>> = people.iter().map(|pictures| pictures[..4].to_vec()).collect();
        let samples = samples(&enrolled);
        let cohort = world.strangers(1000);
        let calibration = calibrated(&samples, &options(&cohort, None));
        let model = trained(&samples);
        let others = people.iter().enumerate().flat_map(|(person, pictures)| {
            pictures[4..].iter().map(move |picture| (format!("{person:04}"), picture))
        });
        let missed = others.filter(|(label, picture)| {
            let mean = model.mean_embedding(label).unwrap();
            dot(mean, picture) < f64::from(calibration.threshold)
        });
        let (rate, fnir) = (missed.count() as f64 / 400.0, calibration.fnir.unwrap());
        assert_eq!(fnir.searches, 400);
        // Three pictures are left where one is left out of four.
        assert!(fnir.rate >= rate && fnir.rate < rate + 0.1, "{rate}, estimated {fnir:?}");
        let high = calibration.warnings.contains(&CalibrationWarning::HighFnir);
        assert_eq!(high, fnir.rate >= HIGH_FNIR && fnir.lower >= 0.01);
    }

    #[test]
    fn a_calibration_ends_where_the_progress_breaks() {
        let samples = samples(&World::new(12, 0.0).people(10, 3));
        let (model, cohort) = (trained(&samples), World::new(13, 0.0).strangers(10));
        for last in [0, 12, 30] {
            let watch = |done: usize| match done {
                done if done >= last => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let outcome = calibrate_with_progress(&model, &samples, &options(&cohort, None), &watch);
            assert_eq!(outcome, Err(IdentifyError::Cancelled));
        }
    }

    #[test]
    fn each_image_is_compared_with_the_mean_of_the_persons_others() {
        let mut people = World::new(14, 0.0).people(3, 5);
        // One embedding has another length, and two cancel out.
        people[1][2].iter_mut().for_each(|value| *value *= 7.0);
        people[2].truncate(2);
        let opposite: Vec<f32> = people[2][0].iter().map(|value| -value).collect();
        people[2].insert(1, opposite);
        let samples = samples(&people);
        let model = trained(&samples);
        let gallery = Gallery::new(&model, &samples, &|_| ControlFlow::Continue(())).unwrap();
        let mut compared = gallery.compared.iter();
        for (person, pictures) in people.iter().enumerate() {
            for sample in 0..pictures.len() {
                let mut rest = vec![0.0; DIMENSIONS];
                for (_, other) in pictures.iter().enumerate().filter(|(index, _)| *index != sample) {
                    let mut other = other.clone();
                    unit(&mut other);
                    rest.iter_mut().zip(&other).for_each(|(sum, value)| *sum += value);
                }
                let cancels_out = rest.iter().all(|value| value.abs() < 1e-6);
                unit(&mut rest);
                let mut own = pictures[sample].clone();
                unit(&mut own);
                let found = compared.next().unwrap();
                assert_eq!((found.person, found.own.is_none()), (person, cancels_out));
                assert!(cancels_out || (f64::from(found.own.unwrap()) - dot(&rest, &own)).abs() < 1e-5);
            }
        }
        assert!(compared.next().is_none() && gallery.compared.iter().any(|found| found.own.is_none()));
    }

    #[test]
    fn nobody_needs_no_threshold_and_a_wrong_target_is_named() {
        assert_eq!(calibrate(&trained(&[]), &[], &options(&[], None)), Ok(None));
        for target_fpir in [0.0, 1.0, -0.1, f64::NAN] {
            let wrong = CalibrationOptions { target_fpir, ..options(&[], None) };
            let error = calibrate(&trained(&[]), &[], &wrong).unwrap_err().to_string();
            assert!(error.contains("target_fpir") && error.contains("less than 1"), "{error}");
        }
        let samples = samples(&World::new(11, 0.0).people(2, 1));
        let short = [vec![1.0; 3]];
        let error = calibrate(&trained(&samples), &samples, &options(&short, None)).unwrap_err().to_string();
        assert!(error.contains("embedding 0 has 3 dimensions, expected 48"), "{error}");
    }
}
