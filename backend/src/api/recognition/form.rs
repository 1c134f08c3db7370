//! The form of recognition's calls: images, and fields about all or each of them.

use std::collections::HashSet;

use facepipe_vision::DecodeError;
use paperclip::actix::Apiv2Schema;

use super::super::{
    form::{FormField, FormFields, ImagePart, TextPart},
    parse_time,
};
use crate::{
    config::{MAX_TOP_K, RecognitionConfig},
    domain::{Micros, TrackRef, hidden_character},
    error::ApiError,
    recognise::UploadedImage,
};

/// Maximum length of `camera_id`, `location` and `key`, characters.
pub const MAX_CHARACTERS: usize = 200;
/// Maximum length of `run_id`, characters.
const MAX_RUN_CHARACTERS: usize = 64;

/// Images in which faces are detected. A field for each image is given in the order of the images, empty for none, or not
/// at all.
#[derive(Default, Apiv2Schema)]
pub struct RecognitionForm {
    /// 1 to 64 images: JPEG, PNG, WebP, BMP or GIF, each at most 10 MiB and 50 million pixels, 13 million in
    /// store-results and send-results, and 300 million together (all can be configured). Their EXIF orientation is applied.
    image: Vec<ImagePart>,
    /// Which camera took them: 1 to 200 characters, no control characters. May be left out, or must be the same, where the token
    /// is that of a camera.
    #[openapi(example = "gate-1")]
    pub camera_id: Option<TextPart>,
    /// Where the camera stands: at most 200 characters, no control characters.
    #[openapi(example = "Lobby")]
    pub location: Option<TextPart>,
    /// For each image when it was taken, RFC 3339. The time of arrival by default, and where this is more than 5 minutes
    /// ahead of it or 30 days behind it (both can be configured).
    #[openapi(example = "[]")]
    captured_at: Vec<TextPart>,
    /// For each image the face's number in the camera's video, a whole number. Images with the same camera, `run_id` and
    /// number are crops of one track, and are decided together.
    #[openapi(example = "[]")]
    track_id: Vec<TextPart>,
    /// The run that `track_id` belongs to, 1 to 64 characters: numbers may begin again with another run. Once for all images,
    /// or for each.
    /// Without it, crops belong to the same track as long as each is captured and arrives within ten minutes of the one before
    /// (can be configured).
    #[openapi(example = "[]")]
    run_id: Vec<TextPart>,
    /// For each image its place in the camera's frame: `left,top,right,bottom` in pixels. Such an image counts as a crop
    /// around a face: faces with a side of less than about 0.15 of its shorter side are not detected.
    #[openapi(example = "[]")]
    r#box: Vec<TextPart>,
    /// For each image an idempotency key, 1 to 200 characters: sent again with the same key, it gets its first response
    /// and is not stored or sent again.
    #[openapi(example = "[]")]
    key: Vec<TextPart>,
    /// How many predictions each face gets at most, the most probable: 1 to 100, 5 by default (can be configured).
    #[openapi(example = "5")]
    top_k: Option<TextPart>,
}

impl FormFields for RecognitionForm {
    fn field(&mut self, name: &str) -> Option<FormField<'_>> {
        Some(match name {
            "image" => FormField::Images(&mut self.image),
            "camera_id" => FormField::Text(&mut self.camera_id),
            "location" => FormField::Text(&mut self.location),
            "captured_at" => FormField::Texts(&mut self.captured_at),
            "track_id" => FormField::Texts(&mut self.track_id),
            "run_id" => FormField::Texts(&mut self.run_id),
            "box" => FormField::Texts(&mut self.r#box),
            "key" => FormField::Texts(&mut self.key),
            "top_k" => FormField::Text(&mut self.top_k),
            _ => return None,
        })
    }
}

/// The images of a form and the fields of each, in the same order.
pub struct RecognitionRequest {
    pub images: Vec<Result<UploadedImage, DecodeError>>,
    pub details: Vec<ImageFields>,
    /// Predictions of a face in the response.
    pub top_k: usize,
}

/// The fields of one image.
#[derive(Default)]
pub struct ImageFields {
    pub captured_at: Option<Micros>,
    pub track_id: Option<i64>,
    pub run_id: Option<String>,
    /// Left, top, right, bottom in pixels of the camera's frame.
    pub frame_box: Option<[f32; 4]>,
    pub key: Option<String>,
}

impl ImageFields {
    /// Returns the track that the image is a crop of, if any.
    pub fn track(&self) -> Option<TrackRef> {
        Some(TrackRef { run_id: self.run_id.clone(), track_id: self.track_id? })
    }
}

impl RecognitionRequest {
    /// Reads a form, within the limits and with the defaults of the configuration.
    ///
    /// # Errors
    /// A field is invalid, or there are no or too many images.
    pub fn read(form: RecognitionForm, config: &RecognitionConfig) -> Result<Self, ApiError> {
        let max = config.max_images;
        match form.image.len() {
            0 => return Err(ApiError::ImageMissing),
            n if n > max => return Err(ApiError::TooManyImages { images: n, max }),
            _ => (),
        }
        let count = form.image.len();
        let captured_at = per_image("captured_at", &form.captured_at, count, parse_time)?;
        let track_id = per_image("track_id", &form.track_id, count, track)?;
        let parse_run = |text: &str| characters(text, 1, MAX_RUN_CHARACTERS).map(|()| text.to_owned());
        let run_id = match form.run_id.as_slice() {
            [for_all] if count > 1 => {
                let run_id = per_image("run_id", std::slice::from_ref(for_all), 1, parse_run)?;
                run_id.into_iter().cycle().take(count).collect()
            }
            parts => per_image("run_id", parts, count, parse_run)?,
        };
        let frame_box = per_image("box", &form.r#box, count, corners)?;
        let key = per_image("key", &form.key, count, |text| {
            characters(text, 1, MAX_CHARACTERS).map(|()| text.to_owned())
        })?;
        let top_k = match form.top_k.as_ref().map(|part| part.0.as_str()) {
            // Browsers send empty fields.
            None | Some("") => config.top_k,
            Some(text) => top_k(text).map_err(|reason| invalid("top_k", reason))?,
        };
        let mut keys = HashSet::new();
        if !key.iter().flatten().all(|key| keys.insert(key)) {
            return Err(invalid("key", "has the same value for two images of one request"));
        }
        // Images with a box in their camera's frame are crops.
        let images = form
            .image
            .into_iter()
            .zip(&frame_box)
            .map(|(part, frame_box)| {
                part.0.map(|bytes| UploadedImage { is_crop: frame_box.is_some(), ..bytes.into() })
            })
            .collect();
        let details = captured_at
            .into_iter()
            .zip(track_id)
            .zip(run_id)
            .zip(frame_box)
            .zip(key)
            .map(|((((captured_at, track_id), run_id), frame_box), key)| ImageFields {
                captured_at,
                track_id,
                run_id,
                frame_box,
                key,
            })
            .collect();
        Ok(Self { images, details, top_k })
    }
}

/// Returns the values of a field by image; an empty part is no value, and without such parts no image has one.
///
/// # Errors
/// There are more or fewer values than images, or one of them is malformed.
pub fn per_image<T>(
    field: &str,
    parts: &[TextPart],
    images: usize,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<Option<T>>, ApiError> {
    // Browsers send an empty field once, whatever the number of images.
    if parts.iter().all(|part| part.0.is_empty()) {
        return Ok((0..images).map(|_| None).collect());
    }
    if parts.len() != images {
        let reason = format!(
            "stands in the form {} times beside {images} images: give it for each image in the same order (empty for \
             none), or not at all",
            parts.len()
        );
        return Err(invalid(field, reason));
    }
    let value = |part: &TextPart| match part.0.as_str() {
        "" => Ok(None),
        text => parse(text).map(Some).map_err(|reason| invalid(field, reason)),
    };
    parts.iter().map(value).collect()
}

/// Reads a required text field.
///
/// # Errors
/// It is missing, too short or too long, or has control characters.
pub fn required(field: &'static str, part: Option<&TextPart>, least: usize) -> Result<String, ApiError> {
    let text = &part.ok_or(ApiError::FieldMissing { field })?.0;
    characters(text, least, MAX_CHARACTERS).map_err(|reason| invalid(field, reason))?;
    Ok(text.clone())
}

/// Checks the length of a text, in characters, and that it has no control characters and none that cannot be seen.
///
/// # Errors
/// A clause that says what it must be.
pub fn characters(text: &str, least: usize, most: usize) -> Result<(), String> {
    let count = text.chars().count();
    if !(least..=most).contains(&count) {
        return Err(format!("has {count} characters, it must have {least} to {most}"));
    }
    match hidden_character(text) {
        Some((control, _)) if control.is_control() => Err(format!("has the control character {control:?}")),
        Some((hidden, reason)) => Err(format!("has the character U+{:04X}: {reason}", u32::from(hidden))),
        None => Ok(()),
    }
}

fn track(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "is not a whole number".to_owned())
}

fn top_k(text: &str) -> Result<usize, String> {
    let number: i64 =
        text.parse().map_err(|_| format!("is not a whole number, it must be one from 1 to {MAX_TOP_K}"))?;
    let within_limits = usize::try_from(number).ok().filter(|number| (1..=MAX_TOP_K).contains(number));
    within_limits.ok_or_else(|| format!("is {number}, it must be from 1 to {MAX_TOP_K}"))
}

/// Reads a box: left, top, right, bottom.
///
/// # Errors
/// A clause that says what it must be.
pub fn corners(text: &str) -> Result<[f32; 4], String> {
    let wrong = || "is not left,top,right,bottom in pixels with left < right and top < bottom".to_owned();
    let numbers: Vec<f32> =
        text.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let [left, top, right, bottom] = numbers.try_into().map_err(|_| wrong())?;
    let finite = [left, top, right, bottom].iter().all(|n: &f32| n.is_finite());
    if finite && left < right && top < bottom { Ok([left, top, right, bottom]) } else { Err(wrong()) }
}

fn invalid(field: &str, reason: impl Into<String>) -> ApiError {
    ApiError::InvalidField { field: field.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_four_corners_in_order() {
        assert_eq!(corners("1,2, 3.5,4"), Ok([1.0, 2.0, 3.5, 4.0]));
        for wrong in ["1,2,3", "1,2,3,4,5", "3,2,1,4", "1,4,3,2", "1,2,NaN,4", "1,2,inf,4", "a,b,c,d"] {
            assert!(corners(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_number_of_predictions_is_checked() {
        assert_eq!((top_k("1"), top_k("100")), (Ok(1), Ok(100)));
        for (wrong, value) in
            [("0", "is 0"), ("101", "is 101"), ("-1", "is -1"), ("five", "is not a whole number")]
        {
            let reason = top_k(wrong).unwrap_err();
            assert!(reason.starts_with(value) && reason.ends_with("from 1 to 100"), "{reason}");
        }
    }

    #[test]
    fn values_belong_to_images_by_their_order() {
        let parts = |texts: &[&str]| texts.iter().map(|t| TextPart((*t).into())).collect::<Vec<_>>();
        assert_eq!(per_image("track_id", &parts(&["7", ""]), 2, track).unwrap(), [Some(7), None]);
        assert_eq!(per_image("track_id", &[], 2, track).unwrap(), [None, None]);
        assert_eq!(per_image("track_id", &parts(&[""]), 2, track).unwrap(), [None, None]);
        let error = per_image("track_id", &parts(&["7"]), 2, track).unwrap_err().to_string();
        assert!(error.contains("track_id") && error.contains("1 times beside 2 images"), "{error}");
    }
}
