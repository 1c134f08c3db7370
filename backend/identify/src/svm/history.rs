//! What a model by coordinate descent knows of its training, so that the next one need not do everything anew.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{Class, LinearSvm, TrainingSet};
use crate::{
    IdentifyError, TrainOptions,
    format::{Reader, corrupt},
};

/// Hyperplanes are kept until the samples have become more by this share since all were last solved: what a new
/// sample changes in the calibration of a hyperplane that it leaves alone is left out until then.
const GROWTH: f64 = 0.1;

/// The samples and options that a model was trained with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct History {
    /// A digest of each sample with its label, rising. Eight bytes of SHA-256 lead back to no embedding.
    samples: Vec<u64>,
    /// How many samples there were when all hyperplanes were last solved.
    pub(super) solved: usize,
    c: f64,
    tolerance: f64,
    calibration_folds: usize,
}

/// What a training starts from.
pub(super) struct Start<'a> {
    /// The previous hyperplane of each class, where it had one.
    pub(super) classes: Vec<Option<&'a Class>>,
    /// Where hyperplanes that are still right may stay: which samples are new, and with how many all were last solved.
    pub(super) kept: Option<(Vec<bool>, usize)>,
}

impl History {
    /// Of a training that solved all hyperplanes when there were `solved` samples.
    pub(super) fn new(set: &TrainingSet, options: &TrainOptions, solved: usize) -> Self {
        let mut samples = digests(set);
        samples.sort_unstable();
        Self {
            samples,
            solved,
            c: options.c,
            tolerance: options.tolerance,
            calibration_folds: options.calibration_folds,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        // Neither count nears the limit: MAX_SVM_SAMPLES and 10.
        for count in [self.samples.len(), self.solved, self.calibration_folds] {
            out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        for value in [self.c, self.tolerance] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend(self.samples.iter().flat_map(|digest| digest.to_le_bytes()));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, IdentifyError> {
        let (count, solved, calibration_folds) = (reader.count()?, reader.count()?, reader.count()?);
        let (c, tolerance) = (reader.f64()?, reader.f64()?);
        let length = count.checked_mul(8).ok_or_else(|| corrupt("a length is impossible"))?;
        let (chunks, _) = reader.take(length)?.as_chunks::<8>();
        let samples = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
        Ok(Self { samples, solved, c, tolerance, calibration_folds })
    }

    /// Which samples of `set` are new, unless something else than new samples sets the two trainings apart.
    fn grown(&self, set: &TrainingSet, options: &TrainOptions) -> Option<Vec<bool>> {
        let same_options = (self.c, self.tolerance, self.calibration_folds)
            == (options.c, options.tolerance, options.calibration_folds);
        if !same_options || set.classes.len() as f64 > self.solved as f64 * (1.0 + GROWTH) {
            return None;
        }
        let known: HashSet<u64> = self.samples.iter().copied().collect();
        let fresh: Vec<bool> = digests(set).iter().map(|digest| !known.contains(digest)).collect();
        // Somebody who was erased, or one photograph, may have left their mark in any hyperplane.
        let removed = fresh.iter().filter(|f| !**f).count() != self.samples.len();
        (!removed).then_some(fresh)
    }
}

impl<'a> Start<'a> {
    /// From nothing.
    pub(super) fn cold(set: &TrainingSet) -> Self {
        Self { classes: vec![None; set.labels.len()], kept: None }
    }

    /// From a previous classifier, whose classes have these labels.
    pub(super) fn warm(
        previous: &'a LinearSvm,
        labels: &[String],
        set: &TrainingSet,
        options: &TrainOptions,
    ) -> Self {
        // The hyperplane of a lone person separates them from nobody.
        if previous.dimensions != set.records.ncols() || previous.classes.len() < 2 {
            return Self::cold(set);
        }
        let class = |label| previous.classes.get(labels.binary_search(label).ok()?);
        let kept = previous.history.as_ref().and_then(|h| Some((h.grown(set, options)?, h.solved)));
        Self { classes: set.labels.iter().map(class).collect(), kept }
    }
}

/// A digest of each sample with its label.
fn digests(set: &TrainingSet) -> Vec<u64> {
    let mut bytes = Vec::new();
    set.classes
        .iter()
        .zip(set.records.outer_iter())
        .map(|(&class, record)| {
            bytes.clear();
            bytes.extend(record.iter().flat_map(|v| v.to_le_bytes()));
            bytes.extend_from_slice(set.labels.get(class).map_or(&[][..], |label| label.as_bytes()));
            let digest = Sha256::digest(&bytes);
            let (first, _) = digest.as_chunks::<8>();
            first.first().map_or(0, |chunk| u64::from_le_bytes(*chunk))
        })
        .collect()
}
