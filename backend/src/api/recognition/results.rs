//! The bodies of recognition's responses.

use std::collections::HashMap;

use facepipe_vision::DecodeNote;
use paperclip::actix::Apiv2Schema;
use serde::Serialize;

use crate::{access::Principal, domain::IdentifiedFace, error::ErrorDetail};

/// The notice where no model can identify faces.
const NO_MODEL: &str = "no model trained yet: POST /model/optimized-train";

/// What the responses share: the faces, and what was done with them as `Outcome`.
#[derive(Serialize, Apiv2Schema)]
pub struct RecognitionBody<Outcome> {
    /// The model that identified them. Null where nothing was trained yet.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// Which call trains, where nothing was trained yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[openapi(example = "no model trained yet: POST /model/optimized-train")]
    notice: Option<String>,
    #[serde(flatten)]
    outcome: Outcome,
    /// True where names, predictions and scores were left out, since the token may not see names; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[openapi(example = "true")]
    names_withheld: bool,
    /// In the order of the images; an image without a face has none.
    faces: Vec<Face>,
    /// Images that could not be read, beside others that could.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ImageError>,
    /// Remarks on images that could be read; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// Nothing was done with the faces.
#[derive(Serialize, Apiv2Schema)]
pub struct NotStored {}

/// The faces were stored.
#[derive(Serialize, Apiv2Schema)]
pub struct Stored {
    /// Detections of the request's images.
    #[openapi(minimum = 0, example = "1")]
    pub stored: usize,
    /// Images with a known key: their faces are those of the first response, and nothing was stored again.
    #[openapi(minimum = 0, example = "0")]
    pub repeated: usize,
}

/// The faces were accepted for sending.
#[derive(Serialize, Apiv2Schema)]
pub struct Sent {
    /// Faces of the request's images that were accepted for sending.
    #[openapi(minimum = 0, example = "1")]
    pub sent: usize,
    /// Images with a known key: their faces are those of the first response, and nothing is sent again.
    #[openapi(minimum = 0, example = "0")]
    pub repeated: usize,
}

/// The faces of the images.
#[derive(Serialize, Apiv2Schema)]
pub struct Results(pub RecognitionBody<NotStored>);

/// The faces of the images, each stored as a detection.
#[derive(Serialize, Apiv2Schema)]
pub struct StoredResults(pub RecognitionBody<Stored>);

/// The faces of the images, each queued for the external API.
#[derive(Serialize, Apiv2Schema)]
pub struct SentResults(pub RecognitionBody<Sent>);

impl<Outcome> RecognitionBody<Outcome> {
    /// Creates a body; without a model it has a notice.
    pub fn new(
        model_version: Option<i64>,
        outcome: Outcome,
        faces: Vec<Face>,
        errors: Vec<ImageError>,
        notes: Vec<ImageNote>,
    ) -> Self {
        let notice = model_version.is_none().then(|| NO_MODEL.to_owned());
        Self { model_version, notice, outcome, names_withheld: false, faces, errors, notes }
    }

    /// Returns the body as a principal may see it. Scores go with the names: they would tell step by step how to resemble
    /// somebody.
    #[must_use]
    pub fn seen_by(mut self, principal: &Principal) -> Self {
        if !principal.may_see_names {
            self.names_withheld = true;
            for face in &mut self.faces {
                face.top_prediction = None;
                face.score = None;
                face.all_predictions = Vec::new();
            }
        }
        self
    }
}

/// Corners in pixels. The box of a face that the image's edge cuts extends beyond the image, by at most 0.3 of its side.
#[derive(Serialize, Apiv2Schema)]
pub struct BoundingBox {
    /// From the left side of the image.
    #[openapi(example = "112.5")]
    pub left: f32,
    /// From the top of the image.
    #[openapi(example = "64")]
    pub top: f32,
    /// From the left side of the image.
    #[openapi(example = "208")]
    pub right: f32,
    /// From the top of the image.
    #[openapi(example = "186.5")]
    pub bottom: f32,
}

impl From<[f32; 4]> for BoundingBox {
    fn from([left, top, right, bottom]: [f32; 4]) -> Self {
        Self { left, top, right, bottom }
    }
}

/// A face on an image and its identity.
#[derive(Serialize, Apiv2Schema)]
pub struct Face {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "0")]
    image: usize,
    bounding_box: BoundingBox,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
    /// The first of `all_predictions`. Null where there is none, and for tokens that may not see names.
    top_prediction: Option<Prediction>,
    /// Whether it shows the person of `top_prediction` or nobody who is enrolled. Unknown where the score is below the
    /// threshold, and where another person's mean embedding is nearer and no name has a probability of 0.5.
    decision: Decision,
    /// Cosine to the mean embedding of the person of `top_prediction`. Null where no model measured it, and for tokens
    /// that may not see names.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: Option<f32>,
    /// The minimum score of a known face.
    #[openapi(minimum = -1, maximum = 1, example = "0.355")]
    threshold: f32,
    /// From how many crops of its track it was decided: from their mean embedding. 1 without a `track_id`.
    #[openapi(minimum = 1, example = "1")]
    crops: i64,
    /// The most probable people, the most probable first: as many as the request's `top_k` says, fewer where the model has
    /// fewer people or one of them was erased since, and none for tokens that may not see names.
    all_predictions: Vec<Prediction>,
}

/// How probable a name is.
#[derive(Clone, Serialize, Apiv2Schema)]
pub struct Prediction {
    /// A Face ID.
    #[openapi(example = "Ada Lovelace")]
    label: String,
    /// Its probability among all enrolled people, listed or not: those of everybody sum to 1.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: f32,
}

/// Whether a face shows somebody who is enrolled.
#[derive(Serialize, Apiv2Schema)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Known,
    Unknown,
}

/// The error of an image beside others without.
#[derive(Serialize, Apiv2Schema)]
pub struct ImageError {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "1")]
    pub image: usize,
    pub error: ErrorDetail,
}

/// A remark on an image that could be read: a defect of its file, or faces that were left out.
#[derive(Serialize, Apiv2Schema)]
pub struct ImageNote {
    /// Which of the request's images, from 0.
    #[openapi(minimum = 0, example = "0")]
    image: usize,
    /// Stable, for programs. `jpeg_end_missing`: a JPEG has all of its pixels and no end marker; its last bytes were cut
    /// off. `too_many_faces`: the image shows more than 256 faces, of which the largest were recognised.
    #[openapi(example = "jpeg_end_missing")]
    code: &'static str,
    /// For people.
    #[openapi(example = "the JPEG has no end marker; its pixels are complete")]
    message: String,
}

impl ImageNote {
    /// Creates a note on the image of this index.
    pub fn new(image: usize, note: DecodeNote) -> Self {
        Self { image, code: note.code(), message: note.to_string() }
    }
}

impl Face {
    /// Creates a face of the image of this index, with the names of people.
    pub fn new(image: usize, face: &IdentifiedFace, face_ids: &HashMap<i64, String>) -> Self {
        let identity = face.resolve(|person| face_ids.contains_key(&person));
        let all_predictions: Vec<Prediction> = identity
            .predictions
            .iter()
            .filter_map(|(person, confidence)| {
                Some(Prediction { label: face_ids.get(person)?.clone(), confidence: *confidence })
            })
            .collect();
        Self {
            image,
            bounding_box: face.bounding_box.into(),
            detection_confidence: face.detection_confidence,
            top_prediction: all_predictions.first().cloned(),
            decision: if identity.person.is_some() { Decision::Known } else { Decision::Unknown },
            score: identity.score,
            threshold: face.threshold,
            crops: face.crops,
            all_predictions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_published_order() {
        let note = || ImageNote::new(0, DecodeNote::EndMissing);
        let body = RecognitionBody::new(Some(7), NotStored {}, Vec::new(), Vec::new(), vec![note()]);
        assert_eq!(
            serde_json::to_string(&Results(body)).unwrap(),
            r#"{"model_version":7,"faces":[],"notes":[{"image":0,"code":"jpeg_end_missing","message":"NOTE"}]}"#
                .replace("NOTE", &DecodeNote::EndMissing.to_string())
        );
        let outcome = Stored { stored: 2, repeated: 1 };
        let body = RecognitionBody::new(None, outcome, Vec::new(), Vec::new(), Vec::new());
        assert_eq!(
            serde_json::to_string(&StoredResults(body)).unwrap(),
            r#"{"model_version":null,"notice":"NOTICE","stored":2,"repeated":1,"faces":[]}"#
                .replace("NOTICE", NO_MODEL)
        );
        let outcome = Sent { sent: 2, repeated: 1 };
        let body = RecognitionBody::new(Some(7), outcome, Vec::new(), Vec::new(), Vec::new());
        assert_eq!(
            serde_json::to_string(&SentResults(body)).unwrap(),
            r#"{"model_version":7,"sent":2,"repeated":1,"faces":[]}"#
        );
    }
}
