//! Responses of the API, field by field as in the OpenAPI document. A test parses the document's examples with these
//! types and serialises them again; nothing may be lost.

use facepipe_vision::{BoundingBox, largest_face};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /dataset`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dataset {
    /// Ordered by Face ID.
    pub people: Vec<DatasetEntry>,
    /// Near-duplicate images of different people.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// List metadata.
    pub meta: DatasetMeta,
}

/// Metadata of the people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatasetMeta {
    /// Number of people on all pages.
    pub total: u64,
    /// Cursor of the next page; none on the last, and from servers without pages.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatasetEntry {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
    /// Enrolled images.
    pub images: u64,
    /// Images that a training uses.
    #[serde(default)]
    pub usable_images: Option<u64>,
    /// Id of the person with an equivalent name.
    #[serde(default)]
    pub same_name_as: Option<String>,
}

/// Two near-duplicate images of different people; a training excludes both.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conflict {
    /// The two images.
    pub images: Vec<ConflictingImage>,
    /// Cosine similarity of their embeddings.
    pub similarity: f32,
}

/// One of two near-duplicate images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConflictingImage {
    pub image_id: String,
    pub person_id: String,
    /// The Face ID; none if the person was erased since.
    pub face_id: Option<String>,
}

/// `GET /images/{image_id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageDetails {
    pub image_id: String,
    pub person_id: String,
    pub face_id: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits; none for images that predate it.
    pub sha256: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The enrolled face; none for images that predate it.
    #[serde(default)]
    pub face: Option<EnrolledFace>,
    /// One per embedder.
    pub embeddings: Vec<ImageEmbedding>,
    /// Near-duplicate images of other people.
    pub similar: Vec<SimilarImage>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageEmbedding {
    /// Name of the embedder.
    pub embedder: String,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// A near-duplicate image of another person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SimilarImage {
    pub image_id: String,
    pub person_id: String,
    pub face_id: String,
    /// Cosine similarity of the embeddings.
    pub similarity: f32,
}

/// A warning about an image that was enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolmentWarning {
    /// Stable code.
    pub code: String,
    /// Human-readable message.
    pub message: String,
    /// The near-duplicate images.
    #[serde(default)]
    pub images: Vec<SimilarImage>,
    /// The person that the face resembles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<OtherPerson>,
    /// Cosine similarity to a mean embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// The similarity at which the warning begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
}

/// The person that a face resembles.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OtherPerson {
    pub person_id: String,
    pub face_id: String,
}

/// How well a face can be recognised.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct FaceQuality {
    /// Sums up the others, 0 to 100.
    pub score: u32,
    /// Shorter side of the bounds, pixels.
    pub size: f32,
    /// Variance of the Laplacian.
    pub sharpness: f32,
    /// Degrees to the side.
    pub yaw: f32,
    /// Degrees up or down.
    pub pitch: f32,
    /// Degrees of inclination.
    pub roll: f32,
    /// Mean luma, 0 to 1.
    pub brightness: f32,
    /// Detection confidence, 0 to 1.
    pub detection_confidence: f32,
}

/// The face of an enrolled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolledFace {
    /// Bounds of the face in the image, pixels.
    pub bounding_box: BoundingBox,
    pub quality: FaceQuality,
}

/// Metadata of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListMeta {
    /// Number of entries.
    pub total: u64,
}

/// Metadata of a page.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageMeta {
    /// Cursor of the next page; none on the last.
    pub next_cursor: Option<String>,
}

/// `GET /people/{person_id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PersonImages {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
    /// Oldest first.
    pub images: Vec<Image>,
    /// List metadata.
    pub meta: ListMeta,
}

/// An enrolled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    pub image_id: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits; none for images that predate it.
    #[serde(default)]
    pub sha256: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The enrolled face; none for images that predate it.
    #[serde(default)]
    pub face: Option<EnrolledFace>,
}

/// Response to an enrolled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddedImage {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
    pub image_id: String,
    /// Embedder of the stored embedding.
    pub embedder: String,
    /// Bounds of the face in the image, pixels.
    pub bounding_box: BoundingBox,
    /// Detection confidence, 0 to 1.
    pub detection_confidence: f32,
    /// Quality of the face; absent from servers that do not measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<FaceQuality>,
    /// Present if other people have a near-duplicate image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<EnrolmentWarning>,
    /// All warnings, including that one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<EnrolmentWarning>,
}

impl AddedImage {
    /// Returns all warnings, also of a server that has one at most.
    pub fn warnings(&self) -> Vec<&EnrolmentWarning> {
        let only = self.warning.iter().filter(|_| self.warnings.is_empty());
        self.warnings.iter().chain(only).collect()
    }
}

/// A person that was added or renamed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedPerson {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
}

/// `get-results`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Version of the active model; none before the first training.
    pub model_version: Option<u64>,
    /// Hint on how to train, before the first training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// Ordered by image.
    pub faces: Vec<Face>,
    /// Images that could not be read, if others could.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ImageError>,
}

/// A face with its identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Face {
    /// Index of the image in the request.
    pub image: usize,
    /// Bounds of the face in the image, pixels.
    pub bounding_box: BoundingBox,
    /// Detection confidence, 0 to 1.
    pub detection_confidence: f32,
    /// The most probable person.
    pub top_prediction: Option<Prediction>,
    /// Whether the face is accepted as that person's.
    pub decision: Decision,
    /// Cosine similarity to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// Score from which on a face is known.
    pub threshold: f32,
    /// Number of crops of its track from which it was decided.
    #[serde(default = "one")]
    pub crops: u64,
    /// Everybody in the model, most probable first.
    pub all_predictions: Vec<Prediction>,
}

impl Face {
    /// Returns the largest of several faces.
    pub fn largest(faces: &[Self]) -> Option<&Self> {
        faces.get(largest_face(faces.iter().map(|face| face.bounding_box))?)
    }

    /// Returns the name; none for an unknown face.
    pub fn name(&self) -> Option<&str> {
        match self.decision {
            Decision::Known => self.top_prediction.as_ref().map(|top| top.label.as_str()),
            Decision::Unknown => None,
        }
    }
}

/// A name with its probability.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction {
    /// The Face ID.
    pub label: String,
    /// Probability, 0 to 1; the sum over all names is 1.
    pub confidence: f32,
}

/// Whether a face is somebody enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The person of the top prediction.
    Known,
    /// Nobody enrolled.
    Unknown,
}

/// An image that could not be processed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageError {
    /// Index of the image in the request.
    pub image: usize,
    /// The reason.
    pub error: ErrorDetail,
}

/// `PUT /cohort`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddedToCohort {
    /// Name of the embedder.
    pub embedder: String,
    /// Pictures added.
    pub added: u64,
    /// Pictures that were there before.
    pub already_there: u64,
    /// Pictures without a face.
    pub no_face: u64,
    /// Pictures that cannot be read.
    pub unreadable: u64,
    /// Embeddings by this embedder in the cohort.
    pub total: u64,
    /// One per picture, in the order of the request.
    pub results: Vec<CohortOutcome>,
    /// Reasons for refusals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ImageError>,
}

/// Outcome of a picture of a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CohortOutcome {
    /// Its embedding was added.
    Added,
    /// The cohort has an embedding of it.
    AlreadyThere,
    /// It has no usable face.
    Refused,
}

/// `GET /cohort`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cohort {
    /// Name of the server's embedder.
    pub embedder: String,
    /// Embeddings by it.
    pub total: u64,
    /// Smallest false positive identification rate that the cohort can show; none for fewer than 3 embeddings.
    pub measurable_fpir: Option<f64>,
    /// The rate for which trainings calibrate.
    pub target_fpir: f64,
    /// Whether the cohort can show that rate.
    pub large_enough: bool,
    /// By embedder and source.
    pub groups: Vec<CohortGroup>,
    /// Whether unknown faces of the cameras are added.
    pub from_cameras: bool,
    /// Maximum number of those.
    pub max_from_cameras: u64,
    /// Days for which those are kept; none forever.
    pub camera_max_age_days: Option<u32>,
}

/// Embeddings of one embedder from one source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CohortGroup {
    /// Name of the embedder.
    pub embedder: String,
    /// `uploaded` or `camera`.
    pub source: String,
    /// Number of them.
    pub embeddings: u64,
    /// Whether the server's embedder computed them.
    pub used: bool,
    /// RFC 3339, UTC.
    pub oldest_at: String,
    /// RFC 3339, UTC.
    pub newest_at: String,
}

/// `DELETE /cohort`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErasedFromCohort {
    /// Embeddings erased.
    pub erased: u64,
    /// Embeddings left.
    pub left: u64,
}

/// Body of every error response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable code.
    pub code: String,
    /// Human-readable message.
    pub message: String,
    /// Structured details.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// A job: a training or the computation of embeddings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub job_id: String,
    /// `optimized-train`, `train`, `generate-emb`, `recluster-unknowns` or `search-past`.
    pub kind: String,
    pub status: JobStatus,
    pub progress: Progress,
    /// Its result, if done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC; none before the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339, UTC; none before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// `GET /jobs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jobs {
    /// Newest first.
    pub jobs: Vec<Job>,
    /// List metadata.
    pub meta: PageMeta,
}

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Not started.
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl JobStatus {
    /// Returns the API's name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether the job has ended.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// Progress of a job in images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Images processed.
    pub images_done: u64,
    /// Images in total; none until counted.
    pub images_total: Option<u64>,
    /// Percentage of images processed.
    pub percent: Option<u64>,
}

/// `GET /model`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Models {
    /// Newest first.
    pub models: Vec<Model>,
    /// List metadata.
    pub meta: ListMeta,
}

/// A trained model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Model {
    /// Increases with each training.
    pub version: u64,
    /// Whether it is the active model.
    pub active: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Embedder it was trained for.
    pub embedder: String,
    /// Number of people.
    pub people: u64,
    /// Number of training images.
    pub images: u64,
    /// Duration of the training.
    pub duration_ms: u64,
    /// How its threshold was calibrated; none of models from before, and from servers that predate it.
    #[serde(default)]
    pub calibration: Option<ModelCalibration>,
}

/// The threshold of a model and its expected error rates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelCalibration {
    /// Score from which a face is known.
    pub threshold: f32,
    /// FPIR that it was chosen for.
    pub target_fpir: f64,
    /// The method that determined it, for example `cohort_tail`.
    pub method: String,
    /// Number of strangers that were compared.
    pub cohort: u64,
    /// Expected FPIR.
    pub fpir: Option<ErrorRate>,
    /// Expected FNIR.
    pub fnir: Option<ErrorRate>,
    /// Problems that make decisions worse or estimates vague.
    pub warnings: Vec<ModelWarning>,
}

/// A share of errors and its 95 % confidence interval.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorRate {
    /// The estimate, 0 to 1.
    pub rate: f64,
    /// Lower end of the interval.
    pub lower: f64,
    /// Upper end of the interval.
    pub upper: f64,
    /// Number of searches that it rests on.
    pub searches: u64,
}

/// A warning about a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelWarning {
    /// Its kind, for example `people_alike`.
    pub code: String,
    /// For humans, without names.
    pub message: String,
    /// Number of people, pairs or faces that it is about.
    pub count: u64,
    /// The first of the people.
    pub people: Vec<PersonReference>,
    /// The first of the pairs.
    pub pairs: Vec<AlikePair>,
}

/// Two people who are hard to tell apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlikePair {
    /// The two.
    pub people: Vec<PersonReference>,
    /// Greatest cosine between an image of one and the mean of the other.
    pub score: f32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PersonReference {
    /// UUID.
    pub person_id: String,
    /// Current name.
    pub face_id: String,
}

/// `GET /database/detections`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detections {
    /// In the requested order.
    pub detections: Vec<Detection>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// A stored detection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detection {
    /// Increases with each detection.
    pub id: i64,
    /// RFC 3339, UTC.
    pub captured_at: String,
    /// The sender's implausible time, where `captured_at` is the time of arrival.
    #[serde(default)]
    pub claimed_at: Option<String>,
    /// `claim` or `arrival`: the clock of `captured_at`. Empty from servers that predate the check.
    #[serde(default)]
    pub time_basis: String,
    /// When it arrived, RFC 3339, UTC.
    pub received_at: String,
    pub camera_id: String,
    /// Location of the camera.
    pub location: String,
    /// The Face ID; none for an unknown face.
    pub face_id: Option<String>,
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The id of the unknown person; none for a known face, and for one that is not grouped.
    #[serde(default)]
    pub unknown_id: Option<String>,
    /// Probability of the name, 0 to 1.
    pub confidence: Option<f32>,
    /// Cosine similarity to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// Score from which on a face was known.
    pub threshold: f32,
    /// Detection confidence, 0 to 1.
    pub detection_confidence: f32,
    /// Version of the model that identified it.
    pub model_version: Option<u64>,
    /// Track in the camera's video.
    pub track_id: Option<i64>,
    /// Run of the edge that the track belongs to.
    #[serde(default)]
    pub run_id: Option<String>,
    /// Id of its sighting. Empty from servers that predate sightings.
    #[serde(default)]
    pub sighting_id: String,
    /// Number of crops from which the person was decided.
    #[serde(default = "one")]
    pub crops: u64,
    /// When later crops of the track changed the person.
    #[serde(default)]
    pub revised_at: Option<String>,
    /// Number of that change.
    #[serde(default)]
    pub revision: Option<i64>,
    /// Bounds in the camera's frame or in the uploaded image, pixels.
    pub bounding_box: BoundingBox,
}

fn one() -> u64 {
    1
}

/// `GET /audit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditEntries {
    /// In the order that the query asks for.
    pub entries: Vec<AuditEntry>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// An entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Counts from 1 without a gap.
    pub id: i64,
    /// When the call was made, RFC 3339, UTC.
    pub at: String,
    /// Who made it.
    pub principal: AuditPrincipal,
    /// The client's address.
    pub address: Option<String>,
    /// What was done.
    pub action: String,
    /// Method and path.
    pub route: String,
    /// What it was about.
    pub object: Option<AuditObject>,
    /// The request's id.
    pub request_id: Option<String>,
    /// How it ended.
    pub outcome: String,
    /// The status of the response.
    pub status: Option<i32>,
    /// For how many calls the entry stands.
    pub calls: i64,
    /// The hash of the entry before.
    pub previous_hash: String,
    /// The hash of the entry.
    pub hash: String,
}

/// Who made a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditPrincipal {
    /// `camera`, `person`, `file`, `local`, `anonymous` or `server`.
    pub kind: String,
    /// The id of a camera or person.
    pub id: Option<i64>,
    /// The name.
    pub name: Option<String>,
}

/// What a call was about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditObject {
    /// What it is.
    pub kind: String,
    /// Its id while it exists.
    pub id: Option<String>,
    /// Its keyed hash.
    pub hash: String,
    /// The keyed hash of the person whom it belongs to.
    pub person_hash: Option<String>,
}

/// `GET /audit/verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditVerification {
    /// Whether all entries are as they were written.
    pub intact: bool,
    /// Entries that are.
    pub entries: i64,
    /// The first other one.
    pub broken: Option<BrokenEntry>,
    /// The last entry that was removed for its age.
    pub trimmed_up_to: Option<i64>,
    /// The last entry.
    pub last_id: Option<i64>,
    /// Its hash.
    pub last_hash: Option<String>,
}

/// A broken entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BrokenEntry {
    /// Its id.
    pub id: i64,
    /// What is wrong with it.
    pub fault: String,
}

/// `GET /database/sightings`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sightings {
    /// The one that began last is first.
    pub sightings: Vec<Sighting>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// The crops of a track, decided together, or a detection without a track.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sighting {
    pub id: String,
    pub camera_id: String,
    /// Location of the camera.
    pub location: String,
    /// Run of the edge that the track belongs to.
    pub run_id: Option<String>,
    /// Track in the camera's video.
    pub track_id: Option<i64>,
    /// Capture time of the first crop, RFC 3339, UTC.
    pub first_captured_at: String,
    /// Capture time of the last crop, RFC 3339, UTC.
    pub last_captured_at: String,
    /// The Face ID; none for an unknown face.
    pub face_id: Option<String>,
    pub person_id: Option<String>,
    /// Whether it is of somebody who is enrolled.
    pub decision: Decision,
    /// Probability of the name, 0 to 1.
    pub confidence: Option<f32>,
    /// Cosine similarity of the mean embeddings.
    pub score: Option<f32>,
    /// Score from which on a face was known.
    pub threshold: f32,
    /// Version of the model that identified it.
    pub model_version: Option<u64>,
    /// Number of crops.
    pub crops: u64,
    /// Id of the best detection.
    pub best_detection: Option<i64>,
    /// Whether further crops may join it.
    pub open: bool,
    /// When the last crop arrived, RFC 3339, UTC.
    pub updated_at: String,
}

/// `GET /people/{person_id}/track`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Track {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
    /// In order of time.
    pub detections: Vec<Detection>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// Where a person was seen last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastKnownLocation {
    /// The person's id; absent from servers that predate ids.
    #[serde(default)]
    pub person_id: Option<String>,
    pub face_id: String,
    /// The camera's location.
    pub location: String,
    pub camera_id: String,
    /// RFC 3339, UTC.
    pub captured_at: String,
    /// When it arrived, RFC 3339, UTC.
    #[serde(default)]
    pub received_at: String,
    /// The sender's implausible time, where `captured_at` is the time of arrival.
    #[serde(default)]
    pub claimed_at: Option<String>,
    /// `claim` or `arrival`: the clock of `captured_at`. Empty from servers that predate the check.
    #[serde(default)]
    pub time_basis: String,
    /// Probability of the name, 0 to 1.
    pub confidence: Option<f32>,
}

/// `GET /unknowns`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unknowns {
    /// In the order of the query.
    pub unknowns: Vec<Unknown>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// An unknown person: a group of faces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unknown {
    pub unknown_id: String,
    pub faces: u64,
    /// Tracks that they are of.
    pub tracks: u64,
    /// RFC 3339, UTC.
    pub first_seen: String,
    /// RFC 3339, UTC.
    pub last_seen: String,
    /// Latest first.
    pub cameras: Vec<UnknownCamera>,
    /// Id of the detection that is most like all of them.
    pub representative: i64,
    /// Whether lists leave the person out.
    pub ignored: bool,
    /// Whether the group was merged or split by hand.
    pub pinned: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// A camera that has seen an unknown person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnknownCamera {
    pub camera_id: String,
    /// Its detections of the person.
    pub faces: u64,
    /// RFC 3339, UTC.
    pub last_seen: String,
}

/// `GET /unknowns/{unknown_id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnknownDetails {
    pub unknown: Unknown,
    /// Newest first.
    pub detections: Vec<Detection>,
    /// Newest first; empty where the server keeps none.
    pub pictures: Vec<UnknownPicture>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// A picture of an unknown face.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnknownPicture {
    /// Id of its detection.
    pub detection_id: i64,
    /// Size in bytes.
    pub bytes: u64,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// `POST /unknowns/{unknown_id}/split`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SplitUnknown {
    /// The group without the split detections.
    pub remaining: Unknown,
    /// The new group.
    pub new: Unknown,
}

/// `POST /unknowns/{unknown_id}/name`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedUnknown {
    pub person_id: String,
    pub face_id: String,
    /// Whether the person was added.
    pub new_person: bool,
    /// Images that were enrolled.
    pub images: u64,
    /// Those of them with a picture.
    pub images_with_picture: u64,
    /// Detections that have the name now.
    pub detections: u64,
    /// The training that was started.
    pub job_id: Option<String>,
}

/// `GET /proposals`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proposals {
    /// Oldest first.
    pub proposals: Vec<Proposal>,
    /// Page metadata.
    pub meta: PageMeta,
}

/// An unknown face that may be of a person who was enrolled later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Proposal {
    pub proposal_id: i64,
    pub person_id: String,
    pub face_id: String,
    /// `proposed` or `refused`.
    pub decided: String,
    /// Cosine to the person's mean embedding.
    pub score: f32,
    /// The model that found it.
    pub model_version: u64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The unknown face.
    pub detection: Detection,
}

/// `POST /proposals/accept` and `/refuse`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct JudgedProposals {
    /// Accepted or refused.
    pub proposals: u64,
    /// Ids of no open proposal.
    pub not_found: u64,
}

/// `GET /access/principals`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Principals {
    /// Ordered by name.
    pub principals: Vec<Principal>,
    /// List metadata.
    pub meta: ListMeta,
}

/// A camera, person or program that has access.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Principal {
    /// Its id.
    pub principal_id: i64,
    /// `camera` or `person`.
    pub kind: String,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// The only camera that it may upload for; none for any.
    pub camera_id: Option<String>,
    /// Whether responses to its images name people.
    pub may_see_names: bool,
    /// Whether its tokens are refused.
    pub disabled: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Tokens that have not expired.
    pub tokens: u64,
    /// The minute of the last use of a token, RFC 3339, UTC.
    pub last_used_at: Option<String>,
}

/// `GET /access/principals/{principal_id}/tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccessTokens {
    /// Oldest first.
    pub tokens: Vec<AccessToken>,
    /// List metadata.
    pub meta: ListMeta,
}

/// A token, without the token itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccessToken {
    /// Its id.
    pub token_id: i64,
    /// Whose it is.
    pub principal_id: i64,
    /// What it is for.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
    /// The minute of the last use, RFC 3339, UTC.
    pub last_used_at: Option<String>,
    /// From where it was used last.
    pub last_used_address: Option<String>,
}

/// A new token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IssuedToken {
    /// The token itself.
    pub token: String,
    /// All else.
    #[serde(flatten)]
    pub details: AccessToken,
}

/// `POST /access/principals`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddedPrincipal {
    /// Who has access now.
    pub principal: Principal,
    /// The first token; none if the request wanted none.
    pub token: Option<IssuedToken>,
}

/// `POST /access/tokens/{token_id}/rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotatedToken {
    /// The new token.
    pub new: IssuedToken,
    /// The replaced one.
    pub old: AccessToken,
}

/// `GET /cameras`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cameras {
    /// Ordered by id.
    pub cameras: Vec<Camera>,
    /// List metadata.
    pub meta: ListMeta,
}

/// A camera that has sent a detection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Camera {
    pub camera_id: String,
    /// When it last detected a face.
    pub last_seen: String,
    /// Its locations, latest first.
    pub locations: Vec<Place>,
}

/// A location of a camera.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// Name of the location.
    pub location: String,
    /// When it last detected a face there.
    pub last_seen: String,
}

/// Result of comparing two images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the similarity reaches the threshold.
    pub same_person: bool,
    /// Cosine similarity of the embeddings.
    pub similarity: f32,
    /// Similarity from which on it is the same person.
    pub threshold: f32,
    /// Embedder used.
    pub embedder: String,
    /// The face of each image.
    pub faces: Vec<VerifiedFace>,
}

/// The face of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifiedFace {
    /// Index of the image, 0 or 1.
    pub image: usize,
    /// Bounds of the face in the image, pixels.
    pub bounding_box: BoundingBox,
    /// Detection confidence, 0 to 1.
    pub detection_confidence: f32,
}
