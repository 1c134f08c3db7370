//! Jobs: trainings, the recomputation of embeddings and the clustering of unknown faces, from the request to the outcome.

use std::fmt;

use paperclip::actix::Apiv2Schema;
use serde::Serialize;

use super::Micros;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Apiv2Schema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Trains on the stored embeddings.
    OptimizedTrain,
    /// Trains from the images.
    Train,
    /// Recomputes the embeddings of all images.
    GenerateEmb,
    /// Clusters all unknown faces together again.
    ReclusterUnknowns,
    /// Searches stored unknown faces for people who were enrolled later.
    SearchPast,
}

impl JobKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::OptimizedTrain, Self::Train, Self::GenerateEmb, Self::ReclusterUnknowns, Self::SearchPast];

    /// Returns the name in rows, metrics and responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OptimizedTrain => "optimized-train",
            Self::Train => "train",
            Self::GenerateEmb => "generate-emb",
            Self::ReclusterUnknowns => "recluster-unknowns",
            Self::SearchPast => "search-past",
        }
    }

    /// Returns the kind with this name; `None` for any other text.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Apiv2Schema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Waits for its turn.
    Queued,
    /// Is being done.
    Running,
    /// Is done and has a result.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl JobStatus {
    /// All states, in the order in which a job goes through them.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// Returns the name in rows, metrics and responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the state with this name; `None` for any other text.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Returns whether the job is in its final state.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job as it is stored.
#[derive(Debug, Clone)]
pub struct Job {
    /// UUID.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// Its state.
    pub status: JobStatus,
    /// JSON, of a job that is done.
    pub result: Option<String>,
    /// Why it failed, of a job that did.
    pub failure: Option<JobFailure>,
    /// When it was requested.
    pub created_at: Micros,
    /// When it was started.
    pub started_at: Option<Micros>,
    /// When it ended.
    pub finished_at: Option<Micros>,
    /// Images that have been processed.
    pub images_done: i64,
    /// Images altogether, once they are counted.
    pub images_total: Option<i64>,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobFailure {
    /// The server is at fault; the log has the details.
    Internal,
    /// The dataset or an administrator is the cause, explained in a sentence that names no person.
    Explained(String),
}

/// The text of [`JobFailure::Internal`] in rows and responses.
const INTERNAL: &str = "internal error";

impl fmt::Display for JobFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => INTERNAL,
            Self::Explained(reason) => reason,
        })
    }
}

impl From<String> for JobFailure {
    /// Reads the text of a row.
    fn from(text: String) -> Self {
        if text == INTERNAL { Self::Internal } else { Self::Explained(text) }
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum JobOutcome {
    /// Completed, with the result as JSON.
    Done(String),
    /// Failed, with an error.
    Failed(JobFailure),
    /// Cancelled on request.
    Cancelled,
}

impl JobOutcome {
    /// Returns the final state of the job.
    pub fn status(&self) -> JobStatus {
        match self {
            Self::Done(_) => JobStatus::Done,
            Self::Failed(_) => JobStatus::Failed,
            Self::Cancelled => JobStatus::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_failures_round_trip_through_rows() {
        for kind in JobKind::ALL {
            assert_eq!(JobKind::from_name(kind.as_str()), Some(kind));
        }
        for status in JobStatus::ALL {
            assert_eq!(JobStatus::from_name(status.as_str()), Some(status));
        }
        assert_eq!((JobKind::from_name("Train"), JobStatus::from_name("")), (None, None));
        for failure in [JobFailure::Internal, JobFailure::Explained("the dataset was unblocked".into())] {
            assert_eq!(JobFailure::from(failure.to_string()), failure);
        }
    }
}
