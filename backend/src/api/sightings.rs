//! `/database/sightings`: who was where from when to when, in pages.

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderName},
    web,
};
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    State,
    detections::{person_of, time_range},
    page::{self, LIST_LIMIT, PageMeta, limit_of},
    recognition::Decision,
    response::{Csv, JsonResponse, OneOf, csv_of, prefers},
    rfc3339,
};
use crate::{
    domain::{Micros, Sighting as StoredSighting, SightingFilter, SightingId, SightingPosition},
    error::ApiError,
};

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Only of the person with this Face ID.
    person: Option<String>,
    /// Only of the person with this id: instead of `person`, so that no name stands in an address.
    person_id: Option<String>,
    /// `known`: only of somebody who is enrolled; `unknown`: only of others.
    decision: Option<String>,
    /// Only by the camera with this id.
    camera: Option<String>,
    /// Only at this location.
    location: Option<String>,
    /// Only those that lasted until this time or longer, RFC 3339. A `+` is sent as `%2B`.
    from: Option<String>,
    /// Only those that began before this time, RFC 3339.
    to: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// A page of sightings.
#[derive(Serialize, Apiv2Schema)]
pub struct Sightings {
    /// The one that began last is first.
    sightings: Vec<Sighting>,
    meta: PageMeta,
}

/// Somebody in front of a camera for some time: the crops of one track, decided together, or a detection without a track.
#[derive(Serialize, Apiv2Schema)]
struct Sighting {
    /// `sighting_id` of its detections.
    #[openapi(example = "t4503599627370497")]
    id: String,
    /// Which camera it was.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// Where the camera stood at the last crop.
    #[openapi(example = "Lobby")]
    location: String,
    /// The run of the edge that `track_id` belongs to. Null where the sender gave none.
    #[openapi(example = "fJ2bYb3bRk-GvJ0bC1m3nA")]
    run_id: Option<String>,
    /// The face's number in the camera's video. Null where the sender gave none.
    #[openapi(example = "12")]
    track_id: Option<i64>,
    /// When its first crop was captured.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    first_captured_at: String,
    /// When its last crop was captured.
    #[openapi(example = "2024-05-06T07:08:13.5Z")]
    last_captured_at: String,
    /// The Face ID of the person. Null for an unknown face and for an erased person.
    #[openapi(example = "Ada Lovelace")]
    face_id: Option<String>,
    /// The same person as `/people/{person_id}` takes it. Null where `face_id` is.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: Option<String>,
    /// Whether it is of somebody who is enrolled.
    decision: Decision,
    /// Probability of the first name among all that were enrolled. Null where the model gave none.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: Option<f32>,
    /// Cosine of the crops' mean embedding to that of the most probable person. Null where no model measured it.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: Option<f32>,
    /// The minimum score of a known face at that time.
    #[openapi(minimum = -1, maximum = 1, example = "0.355")]
    threshold: f32,
    /// The model that identified it. Null where there was none.
    #[openapi(minimum = 1, example = "7")]
    model_version: Option<i64>,
    /// The number of crops that were decided together.
    #[openapi(minimum = 1, example = "3")]
    crops: i64,
    /// The `id` of the detection that counts most. Null where its detections were erased.
    #[openapi(example = "42")]
    best_detection: Option<i64>,
    /// Whether further crops of the track join it: until ten minutes after the last one (can be configured).
    #[openapi(example = "false")]
    open: bool,
    /// When its last crop arrived.
    #[openapi(example = "2024-05-06T07:08:14Z")]
    updated_at: String,
}

/// The fields of the CSV form, which are those of the JSON form.
const CSV_FIELDS: [&str; 18] = [
    "id",
    "camera_id",
    "location",
    "run_id",
    "track_id",
    "first_captured_at",
    "last_captured_at",
    "face_id",
    "person_id",
    "decision",
    "confidence",
    "score",
    "threshold",
    "model_version",
    "crops",
    "best_detection",
    "open",
    "updated_at",
];

/// The sightings to which the query applies: who was in front of which camera from when to when
///
/// A sighting is a track: all crops of one face in one video, decided together from their mean embedding. A detection without
/// a track is a sighting of one crop. As CSV where `Accept` prefers `text/csv`: a header line, then a line for each sighting
/// with the fields of the JSON form, and nothing where JSON has null. A page ends with `next_cursor`, which CSV has no place
/// for; the header `X-Next-Cursor` has it in both forms.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    request: HttpRequest,
    query: web::Query<ListQuery>,
) -> Result<OneOf<JsonResponse<Sightings>, Csv>, ApiError> {
    let ListQuery { person, person_id, decision, camera, location, from, to, limit, cursor } =
        query.into_inner();
    let (from, to) = time_range(from, to)?;
    let known = match decision.as_deref() {
        None => None,
        Some("known") => Some(true),
        Some("unknown") => Some(false),
        Some(other) => {
            return Err(ApiError::InvalidQuery(format!(
                "decision is {other:?}, it must be known or unknown"
            )));
        }
    };
    let person = person_of(person, person_id)?;
    let filter = SightingFilter { person, known, camera_id: camera, location, from, to };
    let limit = limit.map_or(Ok(LIST_LIMIT), limit_of)?;
    let scope = format!("sightings {filter:?}");
    let position = |text: String| page::position_of(&text, &scope).and_then(sighting_position);
    let after = cursor.map(|text| position(text).ok_or(ApiError::InvalidCursor)).transpose()?;

    // One row more shows whether there is a next page.
    let rows = state.database.sightings(filter, after, i64::from(limit) + 1).await?;
    let (rows, more) = page::cut(rows, limit);
    let last = rows.last().filter(|_| more);
    let place =
        |row: &StoredSighting| SightingPosition { first_captured_at: row.first_captured_at, id: row.id };
    let next_cursor = last.map(|row| page::cursor_of(cursor_position(place(row)), &scope));

    let mut headers = vec![(header::VARY, "accept".to_owned())];
    if let Some(cursor) = &next_cursor {
        headers.push((HeaderName::from_static("x-next-cursor"), cursor.clone()));
    }
    let sightings: Vec<Sighting> = rows.into_iter().map(Sighting::try_from).collect::<Result<_, _>>()?;
    if prefers(&request, "text/csv") {
        return Ok(OneOf::Second(Csv { text: csv_of(&CSV_FIELDS, sightings)?, headers }));
    }
    let page = Sightings { sightings, meta: PageMeta { next_cursor } };
    Ok(OneOf::First(JsonResponse::new(page).headers(headers)))
}

/// Returns a cursor's position: the time in the upper 64 bits, below it one bit for a track and 63 of the row.
fn cursor_position(position: SightingPosition) -> u128 {
    let (kind, id) = match position.id {
        SightingId::Detection(id) => (0, id),
        SightingId::Track(id) => (1, id),
    };
    u128::from(position.first_captured_at.cast_unsigned()) << 64 | kind << 63 | u128::from(id.cast_unsigned())
}

fn sighting_position(position: u128) -> Option<SightingPosition> {
    let low = u64::try_from(position & u128::from(u64::MAX)).ok()?;
    let id = (low & (u64::MAX >> 1)).cast_signed();
    let id = if low >> 63 == 1 { SightingId::Track(id) } else { SightingId::Detection(id) };
    let first_captured_at: Micros = u64::try_from(position >> 64).ok()?.cast_signed();
    Some(SightingPosition { first_captured_at, id })
}

impl TryFrom<StoredSighting> for Sighting {
    type Error = ApiError;

    fn try_from(row: StoredSighting) -> Result<Self, ApiError> {
        Ok(Self {
            id: row.id.to_string(),
            camera_id: row.camera_id,
            location: row.location,
            run_id: row.run_id,
            track_id: row.track_id,
            first_captured_at: rfc3339(row.first_captured_at)?,
            last_captured_at: rfc3339(row.last_captured_at)?,
            decision: if row.person_id.is_some() { Decision::Known } else { Decision::Unknown },
            face_id: row.face_id,
            person_id: row.person_id.map(|id| id.to_string()),
            confidence: row.confidence,
            score: row.score,
            threshold: row.threshold,
            model_version: row.model_version,
            crops: row.crops,
            best_detection: row.best_detection,
            open: row.open,
            updated_at: rfc3339(row.updated_at)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_position_survives_a_cursor(first_captured_at: i64, id in 0..i64::MAX, is_track: bool) {
            let id = if is_track { SightingId::Track(id) } else { SightingId::Detection(id) };
            let place = SightingPosition { first_captured_at, id };
            assert_eq!(sighting_position(cursor_position(place)), Some(place));
        }
    }
}
