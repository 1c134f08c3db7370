//! The training history of a model, for warm starts by coordinate descent.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::{Hyperplane, LinearSvm, TrainingSet};
use crate::{
    IdentifyError, Labels, TrainOptions,
    format::{Reader, corrupt},
};

/// The samples and options that a model was trained with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct History {
    /// A digest of each sample with its label, rising. Eight bytes of SHA-256 lead back to no embedding.
    samples: Vec<u64>,
    c: f64,
    tolerance: f64,
}

/// The initial state of a training.
pub(super) struct Start {
    /// The previous hyperplane of each class, where it had one.
    pub(super) planes: Vec<Option<Hyperplane>>,
    /// Which samples are new, where hyperplanes that are still optimal may be kept.
    pub(super) fresh: Option<Vec<bool>>,
}

impl History {
    /// Returns the history of a training on these samples.
    pub(super) fn new(set: &TrainingSet, options: &TrainOptions) -> Self {
        let mut samples = digests(set);
        samples.sort_unstable();
        Self { samples, c: options.c, tolerance: options.tolerance }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        // The number of samples does not near the limit, MAX_SVM_SAMPLES. It was written a second time, and behind it the
        // number of folds of a cross-validation; a build that does those keeps no hyperplane of a model that had none.
        for count in [self.samples.len(), self.samples.len(), 0] {
            out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        for value in [self.c, self.tolerance] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend(self.samples.iter().flat_map(|digest| digest.to_le_bytes()));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, IdentifyError> {
        let (count, _, _) = (reader.count()?, reader.count()?, reader.count()?);
        let (c, tolerance) = (reader.f64()?, reader.f64()?);
        let length = count.checked_mul(8).ok_or_else(|| corrupt("a length is impossible"))?;
        let (chunks, _) = reader.take(length)?.as_chunks::<8>();
        let samples = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
        Ok(Self { samples, c, tolerance })
    }

    /// Returns which samples of `set` are new; `None` where the trainings differ in more than added samples.
    fn grown(&self, set: &TrainingSet, options: &TrainOptions) -> Option<Vec<bool>> {
        if (self.c, self.tolerance) != (options.c, options.tolerance) {
            return None;
        }
        let known: HashSet<u64> = self.samples.iter().copied().collect();
        let fresh: Vec<bool> = digests(set).iter().map(|digest| !known.contains(digest)).collect();
        // A removed person or photograph may have influenced any hyperplane.
        let removed = fresh.iter().filter(|f| !**f).count() != self.samples.len();
        (!removed).then_some(fresh)
    }
}

impl Start {
    /// Starts from scratch.
    pub(super) fn cold(set: &TrainingSet) -> Self {
        Self { planes: vec![None; set.labels.len()], fresh: None }
    }

    /// Starts from a previous classifier, whose classes have these labels.
    pub(super) fn warm(
        previous: &LinearSvm,
        labels: &Labels,
        set: &TrainingSet,
        options: &TrainOptions,
    ) -> Self {
        // A lone person's hyperplane separates nothing.
        if previous.normals.columns() != set.records.ncols() || previous.normals.rows() < 2 {
            return Self::cold(set);
        }
        let plane = |label: &String| previous.hyperplane(labels.position(label)?);
        let fresh = previous.history.as_ref().and_then(|history| history.grown(set, options));
        Self { planes: set.labels.iter().map(plane).collect(), fresh }
    }
}

/// Returns a digest of each sample with its label.
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
