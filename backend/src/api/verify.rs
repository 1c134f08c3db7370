//! `/face-recognition/verify`: whether two images show the same person, without enrolment.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::{
    State,
    face_choice::{FaceChoice, number},
    form::{Form, FormField, FormFields, ImagePart, TextPart},
    recognition::{BoundingBox, ImageNote, corners, per_image, timing},
    response::JsonResponse,
};
use crate::{
    domain::{IdentifiedFace, cosine},
    error::ApiError,
    recognise::{ImageResult, UploadedImage},
};

/// Two pictures to compare.
#[derive(Default, Apiv2Schema)]
pub struct VerificationForm {
    /// Two pictures: JPEG, PNG, WebP, BMP or GIF, each at most 10 MiB and 50 million pixels (both can be configured). Their
    /// EXIF orientation is applied. Where one shows several faces, the main one is compared, as an enrolment takes it.
    image: Vec<ImagePart>,
    /// For each image which face to compare, by its place, empty for the main one: `left,top,right,bottom` in pixels of the
    /// upright image.
    #[openapi(example = "[]")]
    r#box: Vec<TextPart>,
    /// For each image which face to compare, by its position among the `boxes` of the error `several_faces`, from 0; empty for
    /// the main one. Not together with `box`.
    #[openapi(example = "[]")]
    face: Vec<TextPart>,
}

impl FormFields for VerificationForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        Some(match name {
            "image" => FormField::Images(&mut self.image),
            "box" => FormField::Texts(&mut self.r#box),
            "face" => FormField::Texts(&mut self.face),
            _ => return None,
        })
    }
}

/// The comparison of two faces.
#[derive(Serialize, Apiv2Schema)]
pub struct Verification {
    /// Whether the similarity reaches the threshold.
    #[openapi(example = "true")]
    same_person: bool,
    /// Cosine between the embeddings of the two faces.
    #[openapi(minimum = -1, maximum = 1, example = "0.6875")]
    similarity: f32,
    /// The minimum similarity of one person.
    #[openapi(minimum = -1, maximum = 1, example = "0.35")]
    threshold: f32,
    /// Which network embedded the faces.
    #[openapi(example = "mobilefacenet")]
    embedder: &'static str,
    /// The compared face of each image.
    faces: Vec<VerifiedFace>,
    /// Remarks on the images' files; absent for most requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<ImageNote>,
}

/// The compared face of an image.
#[derive(Serialize, Apiv2Schema)]
struct VerifiedFace {
    /// Which of the two images, 0 or 1.
    #[openapi(minimum = 0, maximum = 1, example = "0")]
    image: usize,
    bounding_box: BoundingBox,
    /// Probability that it is a face.
    #[openapi(minimum = 0, maximum = 1, example = "0.996")]
    detection_confidence: f32,
}

impl VerifiedFace {
    fn new(image: usize, face: &IdentifiedFace) -> Self {
        Self {
            image,
            bounding_box: face.bounding_box.into(),
            detection_confidence: face.detection_confidence,
        }
    }
}

/// Whether two pictures show the same person
///
/// Of several faces on an image, its main one is compared: the nearest to the centre, and clearly the largest. Nobody needs to
/// be enrolled, and nothing is stored.
#[api_v2_operation]
pub async fn verify(
    state: web::Data<State>,
    Form(form): Form<VerificationForm>,
) -> Result<JsonResponse<Verification>, ApiError> {
    let images = form.image.len();
    let Ok([first, second]) = <[ImagePart; 2]>::try_from(form.image) else {
        return Err(ApiError::TwoImagesExpected { images });
    };
    let boxes = per_image("box", &form.r#box, images, corners)?;
    let numbers = per_image("face", &form.face, images, number)?;
    let choices = boxes.into_iter().zip(numbers).map(|(r#box, face)| FaceChoice::new(r#box, face));
    let choices = choices.collect::<Result<Vec<_>, _>>()?;
    let unusable = |image| move |error| ApiError::OneImage { image, error };
    let images = vec![
        UploadedImage::with_required_face(first.0.map_err(unusable(0))?),
        UploadedImage::with_required_face(second.0.map_err(unusable(1))?),
    ];
    let result = state.recogniser.recognise(images).await?;
    let mut images = result.images.into_iter().zip(choices);
    let mut notes = Vec::new();
    let mut chosen_face = |image: usize| {
        let nothing = || (Ok(ImageResult::default()), FaceChoice::Main);
        let (found, choice) = images.next().unwrap_or_else(nothing);
        let (face, remarks) = choice.take(found.map_err(unusable(image))?, image)?;
        notes.extend(remarks.into_iter().map(|note| ImageNote::new(image, note)));
        Ok::<_, ApiError>(face)
    };
    let [first, second] = &[chosen_face(0)?, chosen_face(1)?];
    // Embeddings have length 1; rounding may take the sum slightly beyond it.
    let similarity = cosine(&first.embedding, &second.embedding).clamp(-1.0, 1.0);
    let threshold = state.verify_threshold;
    let verification = Verification {
        same_person: similarity >= threshold,
        similarity,
        threshold,
        embedder: state.recogniser.embedder(),
        faces: vec![VerifiedFace::new(0, first), VerifiedFace::new(1, second)],
        notes,
    };
    Ok(JsonResponse::new(verification).headers([timing(result.queued, result.processed)]))
}
