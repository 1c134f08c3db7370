//! `/database`: people and their last known location.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::{ListMeta, State, detections::TimeBasis, face_id, rfc3339};
use crate::{domain::PersonRef, error::ApiError};

/// The People table.
#[derive(Serialize, Apiv2Schema)]
pub struct People {
    /// By their Face IDs.
    people: Vec<Person>,
    meta: ListMeta,
}

/// A row of the People table.
#[derive(Serialize, Apiv2Schema)]
struct Person {
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// When the person was added.
    #[openapi(example = "2024-05-01T09:30:00Z")]
    created_at: String,
}

/// Where a person was seen last.
#[derive(Serialize, Apiv2Schema)]
pub struct LastKnownLocation {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// Where the camera stood.
    #[openapi(example = "Lobby")]
    location: String,
    /// Which camera it was.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// When the image was taken.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    captured_at: String,
    /// When the server received it.
    #[openapi(example = "2024-05-06T07:08:10.5Z")]
    received_at: String,
    /// The sender's `captured_at`, where it is too far from the arrival to be plausible. Null where it is plausible, and
    /// where the sender gave none.
    #[openapi(example = "2036-01-01T00:00:00Z")]
    claimed_at: Option<String>,
    time_basis: TimeBasis,
    /// Probability of the name among all enrolled, 0 to 1. Null where the model gave none.
    #[openapi(minimum = 0, maximum = 1, example = "0.875")]
    confidence: Option<f32>,
}

/// The People table, by Face ID
#[api_v2_operation]
pub async fn people(state: web::Data<State>) -> Result<web::Json<People>, ApiError> {
    let rows = state.database.people(state.recogniser.embedder()).await?;
    let people = rows
        .into_iter()
        .map(|row| Ok(Person { face_id: row.person.face_id, created_at: rfc3339(row.created_at)? }))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = ListMeta { total: people.len() };
    Ok(web::Json(People { people, meta }))
}

/// Where, by which camera and when a person was seen last
#[api_v2_operation]
pub async fn last_known_location(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<LastKnownLocation>, ApiError> {
    last_location_of(&state, &PersonRef::FaceId(face_id(path)?)).await
}

/// Returns the last known location of a person.
pub async fn last_location_of(
    state: &State,
    who: &PersonRef,
) -> Result<web::Json<LastKnownLocation>, ApiError> {
    let (person, seen) = state.database.last_seen(who).await?;
    let seen = seen.ok_or(ApiError::NeverSeen)?;
    Ok(web::Json(LastKnownLocation {
        person_id: person.id.to_string(),
        face_id: person.face_id,
        location: seen.location,
        camera_id: seen.camera_id,
        captured_at: rfc3339(seen.captured_at)?,
        received_at: rfc3339(seen.received_at)?,
        claimed_at: seen.claimed_at.map(rfc3339).transpose()?,
        time_basis: TimeBasis::of(seen.captured_at, seen.claimed_at, seen.received_at),
        confidence: seen.confidence,
    }))
}
