//! The cohort: embeddings of strangers, against which a gallery is calibrated.

/// Where an embedding of the cohort comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CohortSource {
    /// A picture that was uploaded as a stranger's.
    Uploaded,
    /// An unknown face of one of the deployment's cameras.
    Camera,
}

impl CohortSource {
    pub const ALL: [Self; 2] = [Self::Uploaded, Self::Camera];

    /// Returns its name in rows, responses and queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Camera => "camera",
        }
    }

    /// Returns the source with this name; `None` for any other text.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }
}
