//! Errors in samples, embeddings, options or stored bytes. Messages contain no name and no embedding (samples are identified
//! by position), so they may be logged.

use thiserror::Error;

/// Why training, identification or loading failed.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum IdentifyError {
    /// The embedder's name is empty, too long or has control characters.
    #[error("embedder: {problem}")]
    Embedder {
        /// The problem and the limit.
        problem: String,
    },
    /// A label is empty, too long or has control characters.
    #[error("label of sample {sample}: {problem}")]
    Label {
        /// Position in the samples, from 0.
        sample: usize,
        /// The problem and the limit.
        problem: String,
    },
    /// An embedding has another number of components than the model or the other samples.
    #[error("{subject} has {found} dimensions, expected {expected}")]
    Dimensions {
        /// `embedding` or `sample <n>`.
        subject: String,
        /// Its number of components.
        found: usize,
        /// The number it must have.
        expected: usize,
    },
    /// An embedding has no component at all.
    #[error("{subject} has 0 dimensions, expected at least 1")]
    Empty {
        /// `embedding` or `sample <n>`.
        subject: String,
    },
    /// A component of an embedding is NaN or infinite.
    #[error("{subject}: component {component} is {value}, expected a finite number")]
    NotFinite {
        /// `embedding` or `sample <n>`.
        subject: String,
        /// Position of the component, from 0.
        component: usize,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// An embedding (or a person's mean embedding) is the zero vector.
    #[error("{subject} has length 0, expected a vector with a direction")]
    NoDirection {
        /// `embedding`, `sample <n>` or `the mean embedding of the person of sample <n>`.
        subject: String,
    },
    /// One embedding has two labels, which no classifier could tell apart.
    #[error("samples {first} and {second} are the same embedding under different labels")]
    Conflict {
        /// Position of the one, from 0.
        first: usize,
        /// Position of the other, from 0.
        second: usize,
    },
    /// The cosine threshold is not in -1..=1.
    #[error("threshold is {value}, expected a cosine from -1 to 1")]
    Threshold {
        /// The threshold as given.
        value: f32,
    },
    /// A training option is out of range.
    #[error("{option} is {value}, expected {limit}")]
    Option {
        /// Name of the field of [`TrainOptions`](crate::TrainOptions).
        option: &'static str,
        /// The value as given.
        value: f64,
        /// The allowed range, in words.
        limit: &'static str,
    },
    /// More samples than the chosen classifier can be trained on.
    #[error("{found} samples, at most {limit} can be trained on")]
    TooManySamples {
        /// Number of different samples.
        found: usize,
        /// The classifier's limit.
        limit: usize,
    },
    /// The solver found no usable solution.
    #[error("training failed: {0}")]
    Training(String),
    /// The progress callback cancelled the training.
    #[error("the training was cancelled")]
    Cancelled,
    /// The bytes are not a model: another kind of file, truncated, or damaged.
    #[error("model bytes: {0}")]
    Corrupt(String),
    /// The format version of the model is not supported.
    #[error("model format version {found}, this build reads up to {supported}")]
    Version {
        /// The version the bytes declare.
        found: u16,
        /// The highest version this build reads.
        supported: u16,
    },
}
