//! Recurring work of a deployment.

/// A recurring task; the migrations create a row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Deletes detections that are older than they may be kept.
    Retain,
    /// Removes blobs that no row refers to.
    Sweep,
    /// Backs up database and blobs.
    Backup,
    /// Fills the cohort from the cameras, and removes people from it who are enrolled.
    Cohort,
    /// Clusters unknown faces all together again.
    Recluster,
}

impl Task {
    pub const ALL: [Self; 5] = [Self::Retain, Self::Sweep, Self::Backup, Self::Cohort, Self::Recluster];

    /// Returns the name in rows and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Sweep => "sweep",
            Self::Backup => "backup",
            Self::Cohort => "cohort",
            Self::Recluster => "recluster",
        }
    }
}
