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
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 3] = [Self::Retain, Self::Sweep, Self::Backup];

    /// The name in rows and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retain => "retain",
            Self::Sweep => "sweep",
            Self::Backup => "backup",
        }
    }
}
