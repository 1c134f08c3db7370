//! The choice of a face of an image for calls that take one face: the main one, or the one that a request names.

use facepipe_vision::{DecodeNote, face_at};

use super::{form::TextPart, recognition::corners};
use crate::{
    domain::IdentifiedFace,
    error::{ApiError, FaceField},
    recognise::ImageResult,
};

/// Minimum intersection over union of a box that a request names and the face that it means. People draw boxes around heads,
/// which have about twice the area of the detector's boxes.
const MIN_OVERLAP: f32 = 0.3;

/// The choice of a face of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FaceChoice {
    /// The main one.
    Main,
    /// The one of this position among the detected faces, from 0, as the errors list them.
    Face(usize),
    /// The one at this place: left, top, right, bottom in pixels of the upright image.
    Box([f32; 4]),
}

impl FaceChoice {
    /// Reads the fields `box` and `face` of a form about one image; an empty field counts as none.
    ///
    /// # Errors
    /// A field is malformed, or both are given.
    pub fn read(r#box: Option<&TextPart>, face: Option<&TextPart>) -> Result<Self, ApiError> {
        let text = |part: Option<&TextPart>| part.map(|part| part.0.clone()).filter(|text| !text.is_empty());
        let r#box =
            text(r#box).map(|text| corners(&text)).transpose().map_err(|reason| invalid("box", reason))?;
        let face =
            text(face).map(|text| number(&text)).transpose().map_err(|reason| invalid("face", reason))?;
        Self::new(r#box, face)
    }

    /// Creates the choice from the fields `box` and `face`.
    ///
    /// # Errors
    /// Both are given.
    pub fn new(r#box: Option<[f32; 4]>, face: Option<usize>) -> Result<Self, ApiError> {
        match (r#box, face) {
            (None, None) => Ok(Self::Main),
            (Some(corners), None) => Ok(Self::Box(corners)),
            (None, Some(face)) => Ok(Self::Face(face)),
            (Some(_), Some(_)) => {
                Err(invalid("face", "stands in the form beside `box`: give one of them".into()))
            }
        }
    }

    /// Takes the chosen face of the image of this index in its request, and remarks on its file.
    ///
    /// # Errors
    /// The image shows no face, none that is clearly the main one, or none where the request says.
    pub fn take(
        self,
        image: ImageResult,
        index: usize,
    ) -> Result<(IdentifiedFace, Vec<DecodeNote>), ApiError> {
        if image.faces.is_empty() {
            return Err(ApiError::NoFace { image: index, turned: image.turned });
        }
        let position = match self {
            Self::Main => image.main_face(),
            Self::Face(face) => Some(face).filter(|face| *face < image.faces.len()),
            Self::Box(wanted) => {
                face_at(image.faces.iter().map(|face| face.bounding_box.into()), wanted.into(), MIN_OVERLAP)
            }
        };
        let ImageResult { mut faces, notes, .. } = image;
        match (position, self) {
            (Some(position), _) => Ok((faces.swap_remove(position), notes)),
            (None, Self::Main) => Err(ApiError::SeveralFaces { image: index, faces: places(&faces) }),
            (None, Self::Face(face)) => Err(ApiError::NoSuchFace {
                image: index,
                field: FaceField::Face(face),
                faces: places(&faces),
            }),
            (None, Self::Box(wanted)) => Err(ApiError::NoSuchFace {
                image: index,
                field: FaceField::Box(wanted),
                faces: places(&faces),
            }),
        }
    }
}

/// Reads the position of a face.
///
/// # Errors
/// A clause that says what it must be.
pub fn number(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| {
        "is not a whole number from 0: the position of a face among the `boxes` of an error".to_owned()
    })
}

fn places(faces: &[IdentifiedFace]) -> Vec<([f32; 4], f32)> {
    faces.iter().map(|face| (face.bounding_box, face.detection_confidence)).collect()
}

fn invalid(field: &str, reason: String) -> ApiError {
    ApiError::InvalidField { field: field.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FaceQuality;

    fn face(bounding_box: [f32; 4]) -> IdentifiedFace {
        IdentifiedFace {
            bounding_box,
            detection_confidence: 0.99,
            known: false,
            score: None,
            threshold: 0.4,
            predictions: Vec::new(),
            embedding: Vec::new(),
            crops: 1,
            quality: FaceQuality::default(),
        }
    }

    /// Returns a picture of two equally large faces side by side.
    fn pair() -> ImageResult {
        let faces = vec![face([10.0, 10.0, 50.0, 60.0]), face([60.0, 10.0, 100.0, 60.0])];
        ImageResult { faces, size: [110, 80], notes: Vec::new(), turned: None }
    }

    fn taken(choice: FaceChoice) -> Result<f32, ApiError> {
        choice.take(pair(), 0).map(|(face, _)| face.bounding_box[0])
    }

    #[test]
    fn a_request_names_a_face_by_its_position_or_by_its_place() {
        assert_eq!(taken(FaceChoice::Face(1)).unwrap(), 60.0);
        assert_eq!(taken(FaceChoice::Box([55.0, 0.0, 110.0, 70.0])).unwrap(), 60.0);
        assert_eq!(taken(FaceChoice::Box([8.0, 12.0, 48.0, 66.0])).unwrap(), 10.0);
        assert!(matches!(taken(FaceChoice::Main), Err(ApiError::SeveralFaces { image: 0, .. })));
        for (wrong, value) in [
            (FaceChoice::Face(2), "`face` is 2"),
            (FaceChoice::Box([0.0, 0.0, 110.0, 80.0]), "`box` is 0,0,110,80"),
            (FaceChoice::Box([60.0, 62.0, 100.0, 79.0]), "`box` is 60,62,100,79"),
        ] {
            let error = taken(wrong).unwrap_err();
            assert!(error.to_string().contains(value), "{error}");
            assert_eq!(error.code(), "no_such_face");
        }
        let nothing = ImageResult::default();
        assert!(matches!(FaceChoice::Face(0).take(nothing, 1), Err(ApiError::NoFace { image: 1, .. })));
    }

    #[test]
    fn wrong_fields_are_named() {
        let part = |text: &str| Some(TextPart(text.into()));
        let read = |r#box: &str, face: &str| FaceChoice::read(part(r#box).as_ref(), part(face).as_ref());
        assert_eq!(read("", "").unwrap(), FaceChoice::Main);
        assert_eq!(read("1,2,3,4", "").unwrap(), FaceChoice::Box([1.0, 2.0, 3.0, 4.0]));
        assert_eq!(read("", " 3").unwrap(), FaceChoice::Face(3));
        for (r#box, face, field) in [
            ("1,2,3", "", "`box`"),
            ("", "-1", "`face`"),
            ("", "first", "`face`"),
            ("1,2,3,4", "0", "`face`"),
        ] {
            let error = read(r#box, face).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
