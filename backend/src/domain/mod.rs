//! The concepts that recognition, storage, training and the API share: people, faces, identities, detections, unknown
//! people and jobs.
//! No SQL, no HTTP and no networks; `docs/architecture.md` has the order in which modules may use each other.

mod audit;
mod calibration;
mod clock;
mod cohort;
mod detection;
mod enrolment;
mod face;
pub mod face_id;
mod job;
mod person;
mod person_id;
mod proposal;
mod sighting;
mod task;
mod unknown;

pub use audit::{
    AuditAction, AuditChain, AuditCheck, AuditEntry, AuditFault, AuditFilter, AuditObject, AuditObjectKind,
    AuditOutcome, AuditRow, ObjectHasher, PrincipalFilter,
};
pub use calibration::{
    AlikePair, CalibrationMethod, ErrorRate, ModelCalibration, ModelWarning, ModelWarningCode,
    PersonReference,
};
pub use clock::{CLOCK_UNSET_BEFORE, CaptureTime, Micros, PlausibleRange, now, to_micros};
pub use cohort::CohortSource;
pub use detection::{DetectionFilter, DetectionOrder, DetectionPosition, Revision, StoredDetection};
pub use enrolment::similarity_to_own;
pub use face::{
    EmbeddingSum, EnrolledFace, FaceDecision, FaceQuality, IdentifiedFace, MIN_UNKNOWN_SIZE,
    QualityComponent, cosine, people_of,
};
pub use face_id::{FaceId, InvalidFaceId, SameName, hidden_character};
pub use job::{Job, JobFailure, JobKind, JobOutcome, JobStatus};
pub use person::{EnrolledPerson, Person, PersonRef};
pub use person_id::PersonId;
pub use proposal::Proposal;
pub use sighting::{Sighting, SightingFilter, SightingId, SightingPosition, TrackRef};
pub use task::Task;
pub use unknown::{
    ClusterSummary, Unknown, UnknownCamera, UnknownFace, UnknownFilter, UnknownId, UnknownOrder,
    UnknownPosition, UnknownTrack,
};
