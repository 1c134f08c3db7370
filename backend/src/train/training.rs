//! A training without the database: from embeddings to the bytes of a model and the report on its inputs.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use facepipe_identify::{
    IdentifyError, Model, Sample, TrainOptions,
    open_set::{
        Calibration, CalibrationMethod as Method, CalibrationOptions, CalibrationWarning,
        calibrate_with_progress,
    },
};

use super::{
    executor::JobError,
    pairs::{PairFinder, SamePictures, Sample as ComparedImage},
    progress::{AbortReason, Progress},
    results::{Conflict, ConflictingImage, LeftOut, WhyLeftOut},
};
use crate::{
    domain::{
        AlikePair, CalibrationMethod, EnrolledPerson, ErrorRate, ModelCalibration, ModelWarning,
        ModelWarningCode, PersonId, PersonReference,
    },
    recognise::{VersionedModel, load_tested},
    store::sql::TrainingImage,
};

/// Entries in each list of a result.
const MAX_LISTED: usize = 100;
/// Pairs of conflicting images that are stored at most.
const MAX_STORED_CONFLICTS: usize = 10_000;

/// The input of a training.
pub struct TrainingData {
    /// The images with their embeddings.
    pub images: Vec<TrainingImage>,
    /// Everybody in the dataset.
    pub people: Vec<EnrolledPerson>,
    /// Images without a usable face.
    pub images_left_out: i64,
    /// The model whose hyperplanes the training continues from; `None` to train from scratch.
    pub previous: Option<Arc<VersionedModel>>,
}

/// A model that is trained and tested, but not stored.
pub struct TrainedModel {
    /// The serialised model.
    pub bytes: Vec<u8>,
    /// Row ids of the people that the model knows.
    pub people: Vec<i64>,
    /// Images that it was trained on.
    pub images: usize,
    /// The threshold that it needs; `None` if it knows nobody.
    pub calibration: Option<Calibration>,
}

/// Images that are nearly the same picture as one of another person.
pub struct Conflicts {
    /// The most similar pairs first, as many as are stored.
    pub pairs: Vec<ConflictingPair>,
    /// The number of images in all pairs.
    pub images: usize,
}

/// Images of two people that are nearly the same picture.
pub struct ConflictingPair {
    /// Id and person of each.
    pub images: [(String, i64); 2],
    /// Cosine between their embeddings.
    pub similarity: f32,
}

/// Trains a model on the images and calibrates its threshold. Blocks.
///
/// # Errors
/// The images cannot be trained on, or `progress` says to stop.
pub fn fit(
    embedder: &str,
    images: Vec<TrainingImage>,
    previous: Option<&VersionedModel>,
    calibration: &CalibrationOptions<'_>,
    progress: &Progress,
) -> Result<TrainedModel, JobError> {
    // Labels are row ids: the model's file contains no names, and a renamed person needs no training.
    let (ids, samples): (Vec<String>, Vec<Sample>) = images
        .into_iter()
        .map(|TrainingImage { id, person, embedding }| (id, Sample { label: person.to_string(), embedding }))
        .unzip();
    let watch = |done: usize| {
        // Images whose embeddings the job computed are counted already.
        progress.advance_to(done);
        match progress.abort_reason() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    };
    let options = TrainOptions::default();
    let trained = match previous {
        Some(previous) => previous.model.retrain(embedder, &samples, &options, &watch),
        None => Model::train_with_progress(embedder, &samples, &options, &watch),
    };
    let model = match trained {
        Ok(model) => model,
        Err(IdentifyError::Cancelled) => return Err(aborted(progress)),
        Err(IdentifyError::Conflict { first, second }) => {
            let id = |position: usize| ids.get(position).cloned().unwrap_or_default();
            return Err(JobError::Conflict { first: id(first), second: id(second) });
        }
        Err(error) => return Err(error.into()),
    };
    let calibration = match calibrate_with_progress(&model, &samples, calibration, &watch) {
        Err(IdentifyError::Cancelled) => return Err(aborted(progress)),
        outcome => outcome?,
    };
    if progress.abort_reason().is_some() {
        return Err(aborted(progress));
    }
    let row = |label: &str| label.parse().map_err(|_| JobError::Internal("a label that is no row id".into()));
    let people = model.labels().iter().map(row).collect::<Result<_, _>>()?;
    let bytes = model.to_bytes();
    // Tests the bytes that every replica will read.
    load_tested(&bytes)?;
    Ok(TrainedModel { bytes, people, images: samples.len(), calibration })
}

/// Separates the images that show one person each from those that two people share. Blocks.
///
/// # Errors
/// `progress` says to stop.
pub fn split_conflicts(
    images: Vec<TrainingImage>,
    pairs: &PairFinder,
    same_picture: f32,
    progress: &Progress,
) -> Result<(Vec<TrainingImage>, Conflicts), JobError> {
    let compared: Vec<ComparedImage<'_>> =
        images.iter().map(|image| (image.id.as_str(), image.person, image.embedding.as_slice())).collect();
    let found = pairs.same_pictures(&compared, same_picture, &|| progress.abort_reason().is_none());
    let SamePictures { mut pairs, is_in_pair, .. } = found.ok_or_else(|| aborted(progress))?;
    pairs.sort_by(|one, other| other.similarity.total_cmp(&one.similarity));
    let side = |position: usize| images.get(position).map(|image| (image.id.clone(), image.person));
    let conflicting = pairs
        .iter()
        .take(MAX_STORED_CONFLICTS)
        .filter_map(|pair| {
            let images = [side(pair.first)?, side(pair.second)?];
            Some(ConflictingPair { images, similarity: pair.similarity })
        })
        .collect();
    let out = is_in_pair.iter().filter(|is_in_pair| **is_in_pair).count();
    let conflicts = Conflicts { pairs: conflicting, images: out };
    let kept = images.into_iter().zip(is_in_pair).filter(|(_, is_in_pair)| !is_in_pair);
    Ok((kept.map(|(image, _)| image).collect(), conflicts))
}

fn aborted(progress: &Progress) -> JobError {
    JobError::Aborted(progress.abort_reason().unwrap_or(AbortReason::Cancelled))
}

/// Returns the people who are not in a model, at most [`MAX_LISTED`], and their total number.
pub fn people_left_out(
    enrolled: &[EnrolledPerson],
    with_embeddings: &HashSet<i64>,
    in_model: &[i64],
) -> (Vec<LeftOut>, usize) {
    let in_model: HashSet<i64> = in_model.iter().copied().collect();
    let left_out = || enrolled.iter().filter(|person| !in_model.contains(&person.row));
    let describe = |person: &EnrolledPerson| {
        let reason = if person.images == 0 {
            WhyLeftOut::NoImages
        } else if with_embeddings.contains(&person.row) {
            WhyLeftOut::InConflict
        } else {
            WhyLeftOut::NoEmbeddings
        };
        LeftOut { person_id: person.id.to_string(), face_id: None, images: person.images, reason }
    };
    (left_out().take(MAX_LISTED).map(describe).collect(), left_out().count())
}

/// Returns the conflicting pairs for a result, at most [`MAX_LISTED`].
pub fn describe_conflicts(pairs: &[ConflictingPair], enrolled: &[EnrolledPerson]) -> Vec<Conflict> {
    let ids: HashMap<i64, PersonId> = enrolled.iter().map(|person| (person.row, person.id)).collect();
    let image = |(image_id, person): &(String, i64)| {
        let person_id = ids.get(person)?.to_string();
        Some(ConflictingImage { image_id: image_id.clone(), person_id, face_id: None })
    };
    let conflict = |pair: &ConflictingPair| {
        let images = pair.images.iter().map(image).collect::<Option<Vec<_>>>()?;
        Some(Conflict { images, similarity: pair.similarity })
    };
    pairs.iter().take(MAX_LISTED).filter_map(conflict).collect()
}

/// Returns a calibration for rows and results, without names; at most [`MAX_LISTED`] people and pairs in each warning.
pub fn describe_calibration(calibration: &Calibration, enrolled: &[EnrolledPerson]) -> ModelCalibration {
    let ids: HashMap<String, PersonId> =
        enrolled.iter().map(|person| (person.row.to_string(), person.id)).collect();
    let person = |label: &String| {
        let person_id = ids.get(label)?.to_string();
        Some(PersonReference { person_id, face_id: String::new() })
    };
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let rate = |rate: facepipe_identify::open_set::ErrorRate| ErrorRate {
        rate: rate.rate,
        lower: rate.lower,
        upper: rate.upper,
        searches: number(rate.searches),
    };
    let warning = |warning: &CalibrationWarning| match warning {
        CalibrationWarning::PeopleAlike(alike) => {
            let pairs = alike.iter().take(MAX_LISTED).filter_map(|alike| {
                let people = alike.labels.iter().map(person).collect::<Option<Vec<_>>>()?;
                Some(AlikePair { people, score: decimal(alike.score) })
            });
            ModelWarning {
                pairs: pairs.collect(),
                ..ModelWarning::new(ModelWarningCode::PeopleAlike, number(alike.len()))
            }
        }
        CalibrationWarning::OneImage(labels) => ModelWarning {
            people: labels.iter().take(MAX_LISTED).filter_map(person).collect(),
            ..ModelWarning::new(ModelWarningCode::OneImage, number(labels.len()))
        },
        CalibrationWarning::NoCohort => ModelWarning::new(ModelWarningCode::NoCohort, 0),
        CalibrationWarning::SmallCohort(needed) => {
            ModelWarning::new(ModelWarningCode::SmallCohort, number(*needed))
        }
        CalibrationWarning::CohortEnrolled(faces) => {
            ModelWarning::new(ModelWarningCode::CohortEnrolled, number(*faces))
        }
        CalibrationWarning::HighFnir => ModelWarning::new(ModelWarningCode::HighFnir, 0),
    };
    ModelCalibration {
        threshold: decimal(calibration.threshold),
        target_fpir: calibration.target_fpir,
        method: match calibration.method {
            Method::CohortQuantile => CalibrationMethod::CohortQuantile,
            Method::CohortTail => CalibrationMethod::CohortTail,
            Method::Table => CalibrationMethod::Table,
            Method::Gallery => CalibrationMethod::Gallery,
            Method::Fixed => CalibrationMethod::Fixed,
        },
        cohort: number(calibration.cohort),
        fpir: calibration.fpir.map(rate),
        fnir: calibration.fnir.map(rate),
        warnings: calibration.warnings.iter().map(warning).collect(),
    }
}

/// Returns the double with the shortest decimal form of a single: 0.1 rather than 0.10000000149011612.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| f64::from(number))
}
