//! `/face-recognition/verify`: whether two pictures show the same person, without anybody being enrolled.

use actix_multipart::form::MultipartForm;
use actix_web::{HttpResponse, web};
use serde::Serialize;

use super::{
    State,
    form::{Form, ImagePart},
    recognition::{BoundingBox, timing},
};
use crate::{error::ApiError, recognise::IdentifiedFace};

/// Form of a verification.
#[derive(MultipartForm)]
pub struct VerificationForm {
    image: Vec<ImagePart>,
}

#[derive(Serialize)]
struct Verification {
    same_person: bool,
    /// Cosine between the embeddings of the two faces, -1 to 1.
    similarity: f32,
    /// What the similarity must reach.
    threshold: f32,
    embedder: &'static str,
    /// The face of each image.
    faces: [VerifiedFace; 2],
}

#[derive(Serialize)]
struct VerifiedFace {
    /// Which of the two images, 0 or 1.
    image: usize,
    bounding_box: BoundingBox,
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

/// Whether two pictures, each of one face, show the same person. Stores nothing.
pub async fn verify(
    state: web::Data<State>,
    Form(form): Form<VerificationForm>,
) -> Result<HttpResponse, ApiError> {
    let images = form.image.len();
    let Ok([first, second]) = <[ImagePart; 2]>::try_from(form.image) else {
        return Err(ApiError::TwoImagesExpected { images });
    };
    let unusable = |image| move |error| ApiError::OneImage { image, error };
    let pictures = vec![first.0.map_err(unusable(0))?, second.0.map_err(unusable(1))?];
    let recognised = state.recogniser.recognise(pictures).await?;
    let mut pictures = recognised.pictures.into_iter();
    let mut only_face = |image: usize| {
        let mut faces = pictures.next().unwrap_or_else(|| Ok(Vec::new())).map_err(unusable(image))?;
        match (faces.len(), faces.pop()) {
            (1, Some(face)) => Ok(face),
            (0, _) => Err(ApiError::NoFace { image }),
            (faces, _) => Err(ApiError::SeveralFaces { image, faces }),
        }
    };
    let [first, second] = &[only_face(0)?, only_face(1)?];
    // Embeddings have length 1; rounding may take the sum a little beyond it.
    let products = first.embedding.iter().zip(&second.embedding).map(|(a, b)| a * b);
    let similarity = products.sum::<f32>().clamp(-1.0, 1.0);
    let threshold = state.verify_threshold;
    let verification = Verification {
        same_person: similarity >= threshold,
        similarity,
        threshold,
        embedder: state.recogniser.embedder(),
        faces: [VerifiedFace::new(0, first), VerifiedFace::new(1, second)],
    };
    let timing = timing(recognised.queued, recognised.computed);
    Ok(HttpResponse::Ok().insert_header(timing).json(verification))
}
