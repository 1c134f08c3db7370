//! Calls that take an image of one person.

use facepipe_vision::DecodeNote;

use crate::{domain::IdentifiedFace, error::ApiError, recognise::SeenPicture};

/// The one face of an image, and notes on its file. `image` is the number of the image in its request.
///
/// # Errors
/// The image shows no face, or several.
pub fn single_face(
    picture: SeenPicture,
    image: usize,
) -> Result<(IdentifiedFace, Vec<DecodeNote>), ApiError> {
    let SeenPicture { mut faces, notes, turned } = picture;
    match (faces.len(), faces.pop()) {
        (1, Some(face)) => Ok((face, notes)),
        (_, None) => Err(ApiError::NoFace { image, turned }),
        (_, Some(last)) => {
            faces.push(last);
            let faces = faces.iter().map(|face| (face.bounding_box, face.detection_confidence)).collect();
            Err(ApiError::SeveralFaces { image, faces })
        }
    }
}
