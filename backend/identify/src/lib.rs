//! Open-set face identification: maps an embedding to an enrolled person, or to nobody.
//!
//! A [`Model`] is trained on labelled embeddings of one embedder. It returns the most probable people with their
//! probabilities and an open-set [`Decision`]: the most probable person counts as `known` only when the cosine between
//! the embedding and that person's mean embedding reaches the threshold, and nobody else is nearer unless the probabilities
//! leave no doubt. No images and no HTTP in here.
//!
//! ```
//! use facepipe_identify::{Decision, Model, Sample, TrainOptions, ProgressCallback};
//!
//! let sample = |label: &str, embedding: [f32; 3]| Sample { label: label.into(), embedding: embedding.into() };
//! let samples = [sample("ada", [1.0, 0.1, 0.0]), sample("bob", [0.0, 1.0, 0.1])];
//! let model = Model::train("example-3d", &samples, &TrainOptions::default())?;
//!
//! let answer = model.identify(&[0.9, 0.0, 0.1], 0.5, 5)?;
//! assert_eq!(answer.decision, Decision::Known);
//! assert_eq!(answer.top.map(|top| top.label).as_deref(), Some("ada"));
//!
//! let stranger = model.identify(&[0.0, 0.0, 1.0], 0.5, 5)?;
//! assert_eq!(stranger.decision, Decision::Unknown);
//! # Ok::<(), facepipe_identify::IdentifyError>(())
//! ```

mod classifier;
mod cluster;
pub mod cohort;
mod embedding;
mod error;
pub mod evaluate;
mod format;
mod gallery;
mod labels;
mod log_sum;
mod matrix;
mod model;
mod nearest_mean;
pub mod open_set;
mod quantised;
mod svm;
mod top_k;

pub use classifier::{Classifier, ClassifierKind};
pub use cluster::{Changes, Clusters, Unit, link};
pub use error::IdentifyError;
pub use format::FORMAT_VERSION;
pub use gallery::{Gallery, Neighbours};
pub use labels::Labels;
pub use model::{
    Decision, Identification, MAX_NAME_LENGTH, Method, Model, NEAREST_MEAN_PEOPLE, Prediction,
    ProgressCallback, Sample, TrainOptions,
};
pub use nearest_mean::NearestMean;
pub use svm::{LinearSvm, MAX_SVM_SAMPLES, Solver};
