//! What the API answers, field by field as the OpenAPI document has it. A test reads the document's examples with
//! these types and writes them again: nothing may be lost.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /dataset`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dataset {
    /// By their Face IDs.
    pub people: Vec<DatasetEntry>,
    /// Images of different people that are nearly the same picture.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// Beside the list.
    pub meta: ListMeta,
}

/// A person of the dataset.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatasetEntry {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
    /// Enrolled images.
    pub images: u64,
    /// Those that a training uses.
    #[serde(default)]
    pub usable_images: Option<u64>,
    /// Whose name counts as the same, by id.
    #[serde(default)]
    pub same_name_as: Option<String>,
}

/// Two images of different people that are nearly the same picture; a training leaves both out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conflict {
    /// The two.
    pub images: Vec<ConflictingImage>,
    /// Cosine between their embeddings.
    pub similarity: f32,
}

/// One of two images that are nearly the same picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConflictingImage {
    /// Its number in the server.
    pub image_id: String,
    /// Whom it is enrolled under.
    pub person_id: String,
    /// The Face ID; none for somebody who was erased since.
    pub face_id: Option<String>,
}

/// `GET /images/{image_id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageDetails {
    /// Its number in the server.
    pub image_id: String,
    /// Whom it is enrolled under.
    pub person_id: String,
    /// The Face ID.
    pub face_id: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes in hexadecimal digits; none for one that was enrolled before servers kept them.
    pub sha256: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// By embedder.
    pub embeddings: Vec<ImageEmbedding>,
    /// Images of others that are nearly the same picture.
    pub similar: Vec<SimilarImage>,
}

/// That an image has an embedding.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageEmbedding {
    /// The network that made it.
    pub embedder: String,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// An image of another person that is nearly the same picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SimilarImage {
    /// Its number in the server.
    pub image_id: String,
    /// Whom it is enrolled under.
    pub person_id: String,
    /// The Face ID.
    pub face_id: String,
    /// Cosine between the embeddings of both.
    pub similarity: f32,
}

/// What is wrong with an image that was enrolled all the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolmentWarning {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The images of others.
    pub images: Vec<SimilarImage>,
}

/// Beside a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListMeta {
    /// Entries of the list.
    pub total: u64,
}

/// Beside a page.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageMeta {
    /// What gets the next page; none on the last.
    pub next_cursor: Option<String>,
}

/// `GET /dataset/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PersonImages {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
    /// The oldest first.
    pub images: Vec<Image>,
    /// Beside the list.
    pub meta: ListMeta,
}

/// An enrolled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Its number in the server.
    pub image_id: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes in hexadecimal digits; none for one that was enrolled before servers kept them.
    #[serde(default)]
    pub sha256: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// The answer to an enrolled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddedImage {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
    /// Its number in the server.
    pub image_id: String,
    /// The network whose embedding was stored.
    pub embedder: String,
    /// The face in the picture.
    pub bounding_box: BoundingBox,
    /// Probability that it is a face.
    pub detection_confidence: f32,
    /// Where other people have nearly the same picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<EnrolmentWarning>,
}

/// A person that was added or renamed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedPerson {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
}

/// Corners in pixels, from the left and upper side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundingBox {
    /// Left side.
    pub left: f32,
    /// Upper side.
    pub top: f32,
    /// Right side.
    pub right: f32,
    /// Lower side.
    pub bottom: f32,
}

/// `get-results`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The model that identified the faces; none before a training.
    pub model_version: Option<u64>,
    /// Which call trains, where nothing was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// By image.
    pub faces: Vec<Face>,
    /// Images that could not be read, beside others that could.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ImageError>,
}

/// A face and whom it shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Face {
    /// Which of the request's images, from 0.
    pub image: usize,
    /// The face in the picture.
    pub bounding_box: BoundingBox,
    /// Probability that it is a face.
    pub detection_confidence: f32,
    /// The most probable person.
    pub top_prediction: Option<Prediction>,
    /// Whether it shows that person.
    pub decision: Decision,
    /// Cosine to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// What the score must reach.
    pub threshold: f32,
    /// Everybody whom the model knows, the most probable first.
    pub all_predictions: Vec<Prediction>,
}

impl Face {
    /// Of several faces on a picture the one that is largest: whoever is photographed stands close.
    pub fn largest(faces: &[Self]) -> Option<&Self> {
        let area = |face: &&Self| {
            let edges = face.bounding_box;
            (edges.right - edges.left) * (edges.bottom - edges.top)
        };
        faces.iter().max_by(|a, b| area(a).total_cmp(&area(b)))
    }

    /// Who it is; none for somebody who is not enrolled.
    pub fn name(&self) -> Option<&str> {
        match self.decision {
            Decision::Known => self.top_prediction.as_ref().map(|top| top.label.as_str()),
            Decision::Unknown => None,
        }
    }
}

/// How probable a name is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prediction {
    /// The Face ID.
    pub label: String,
    /// Probability among all names.
    pub confidence: f32,
}

/// Whether a face shows somebody who is enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It shows the first of the predictions.
    Known,
    /// It shows nobody who is enrolled.
    Unknown,
}

/// An image without an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageError {
    /// Which of the request's images, from 0.
    pub image: usize,
    /// Why.
    pub error: ErrorDetail,
}

/// The body of every error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The values of the message.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// A job: training or computing embeddings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Its number in the server.
    pub job_id: String,
    /// `optimized-train`, `train` or `generate-emb`.
    pub kind: String,
    /// How far it is.
    pub status: JobStatus,
    /// The same in numbers.
    pub progress: Progress,
    /// What it made, where it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// `GET /jobs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jobs {
    /// The newest first.
    pub jobs: Vec<Job>,
    /// Beside the list.
    pub meta: PageMeta,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Nobody works on it yet.
    Queued,
    /// In work.
    Running,
    /// Ended well.
    Done,
    /// Ended badly.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl JobStatus {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How far a job is, in images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Done.
    pub images_done: u64,
    /// Altogether; none before they were counted.
    pub images_total: Option<u64>,
    /// Of the images.
    pub percent: Option<u64>,
}

/// `GET /model`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Models {
    /// The newest first.
    pub models: Vec<Model>,
    /// Beside the list.
    pub meta: ListMeta,
}

/// What a training made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Model {
    /// Grows with each training.
    pub version: u64,
    /// Whether this one answers.
    pub active: bool,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// The network whose embeddings it takes.
    pub embedder: String,
    /// People whom it knows.
    pub people: u64,
    /// Images that it was trained on.
    pub images: u64,
    /// How long the training took.
    pub duration_ms: u64,
}

/// `GET /database/detections`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detections {
    /// In the order that was asked for.
    pub detections: Vec<Detection>,
    /// Beside the page.
    pub meta: PageMeta,
}

/// A face that was seen somewhere at some time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detection {
    /// Grows with each detection.
    pub id: i64,
    /// RFC 3339, UTC.
    pub captured_at: String,
    /// What the sender claimed instead, where that could not be.
    #[serde(default)]
    pub claimed_at: Option<String>,
    /// `claim` or `arrival`: whose clock `captured_at` is of. Empty from servers that believed every sender.
    #[serde(default)]
    pub time_basis: String,
    /// When the server got it.
    pub received_at: String,
    /// Which camera.
    pub camera_id: String,
    /// Where it stood.
    pub location: String,
    /// Whom it shows; none for an unknown face.
    pub face_id: Option<String>,
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// Probability of the name.
    pub confidence: Option<f32>,
    /// Cosine to the mean embedding of the most probable person.
    pub score: Option<f32>,
    /// What the score had to reach.
    pub threshold: f32,
    /// Probability that it is a face.
    pub detection_confidence: f32,
    /// The model that identified it.
    pub model_version: Option<u64>,
    /// Its number in the camera's video.
    pub track_id: Option<i64>,
    /// In the camera's frame, or in the picture that was sent.
    pub bounding_box: BoundingBox,
}

/// `GET /database/{id}/track`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Track {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
    /// In the order of time.
    pub detections: Vec<Detection>,
    /// Beside the page.
    pub meta: PageMeta,
}

/// Where a person was seen last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastKnownLocation {
    /// The same person as `/people/{person_id}` has it; none by servers from before there were ids.
    #[serde(default)]
    pub person_id: Option<String>,
    /// The Face ID.
    pub face_id: String,
    /// The camera's place.
    pub location: String,
    /// The camera.
    pub camera_id: String,
    /// RFC 3339, UTC.
    pub captured_at: String,
    /// When the server got the picture.
    #[serde(default)]
    pub received_at: String,
    /// What the sender claimed instead, where that could not be.
    #[serde(default)]
    pub claimed_at: Option<String>,
    /// `claim` or `arrival`: whose clock `captured_at` is of. Empty from servers that believed every sender.
    #[serde(default)]
    pub time_basis: String,
    /// Probability of the name.
    pub confidence: Option<f32>,
}

/// `GET /cameras`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cameras {
    /// By their ids.
    pub cameras: Vec<Camera>,
    /// Beside the list.
    pub meta: ListMeta,
}

/// A camera that has sent something.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Camera {
    /// As it calls itself.
    pub camera_id: String,
    /// When it detected a face last.
    pub last_seen: String,
    /// Where it stood, the latest place first.
    pub locations: Vec<Place>,
}

/// A place of a camera.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// As the camera calls it.
    pub location: String,
    /// When it detected a face there last.
    pub last_seen: String,
}

/// The answer to a comparison of two pictures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the similarity reaches the threshold.
    pub same_person: bool,
    /// Cosine between the embeddings of the two faces.
    pub similarity: f32,
    /// What the similarity must reach.
    pub threshold: f32,
    /// The network that embedded the faces.
    pub embedder: String,
    /// The face of each picture.
    pub faces: Vec<VerifiedFace>,
}

/// The one face of a picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifiedFace {
    /// Which of the two pictures, 0 or 1.
    pub image: usize,
    /// The face in the picture.
    pub bounding_box: BoundingBox,
    /// Probability that it is a face.
    pub detection_confidence: f32,
}
