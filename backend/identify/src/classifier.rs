//! The trait that classifiers implement. A new classifier is a file that implements [`Classifier`], a [`ClassifierKind`] and a
//! line in `decode`.

use std::{fmt, sync::Arc};

use crate::{IdentifyError, LinearSvm, NearestMean, format::Reader, matrix::Matrix};

/// Maps an embedding to the most probable of the enrolled people. Classes are numbered as [`Model::labels`] lists them.
///
/// [`Model::labels`]: crate::Model::labels
pub trait Classifier: fmt::Debug + Send + Sync {
    /// Returns the kind of the implementation, as stored in the model's bytes.
    fn kind(&self) -> ClassifierKind;

    /// Returns the number of classes, at least 1.
    fn classes(&self) -> usize;

    /// Returns the number of components of an embedding.
    fn dimensions(&self) -> usize;

    /// Returns the `top_k` most probable classes (one at least, at most all) with their probabilities, the most
    /// probable first, equal ones by class. The probabilities of all classes sum to 1. `embedding` is L2-normalised and
    /// has [`dimensions`](Self::dimensions) components; the caller has checked that.
    fn rank(&self, embedding: &[f32], top_k: usize) -> Vec<(usize, f32)>;

    /// Returns the hyperplanes that a retraining may start from, if any.
    fn linear_svm(&self) -> Option<&LinearSvm> {
        None
    }

    /// Returns the means that a retraining may keep, if they alone make the classifier. Its most probable person is the
    /// nearest.
    fn nearest_mean(&self) -> Option<&NearestMean> {
        None
    }

    /// Appends all parameters in little-endian order, without classes and dimensions, which the model keeps.
    fn encode(&self, out: &mut Vec<u8>);
}

/// The implementations of [`Classifier`]; the numbers are part of the stored form and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClassifierKind {
    /// [`LinearSvm`] by [`Solver::Smo`](crate::Solver::Smo): one hyperplane and one calibration per class.
    LinearSvm,
    /// [`LinearSvm`] by [`Solver::DualCoordinateDescent`](crate::Solver::DualCoordinateDescent): the same, and the
    /// training history that a warm start needs.
    LinearSvmByDescent,
    /// [`NearestMean`]: the cosine to the mean embeddings, and a digest of each person's samples.
    NearestMean,
}

impl ClassifierKind {
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::LinearSvm => 1,
            Self::LinearSvmByDescent => 2,
            Self::NearestMean => 3,
        }
    }

    /// Returns the first format version that supports it.
    pub(crate) const fn since(self) -> u16 {
        match self {
            Self::LinearSvm => 1,
            Self::LinearSvmByDescent => 2,
            Self::NearestMean => 3,
        }
    }

    /// Reads a classifier as its `encode` wrote it.
    pub(crate) fn decode(
        tag: u8,
        reader: &mut Reader<'_>,
        means: &Arc<Matrix>,
    ) -> Result<Arc<dyn Classifier>, IdentifyError> {
        match tag {
            1 | 2 => Ok(Arc::new(LinearSvm::decode(reader, means.rows(), means.columns(), tag == 2)?)),
            3 => Ok(Arc::new(NearestMean::decode(reader, means)?)),
            _ => Err(IdentifyError::Corrupt(format!("classifier kind {tag} is unknown"))),
        }
    }
}
