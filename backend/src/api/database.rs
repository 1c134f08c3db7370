//! `/database`: the people, and where they were seen.

use actix_web::{Responder, web};
use serde::Serialize;

use super::{State, face_id, rfc3339};
use crate::error::ApiError;

/// The People table.
#[derive(Serialize)]
struct People {
    people: Vec<Person>,
    meta: Meta,
}

#[derive(Serialize)]
struct Person {
    face_id: String,
    created_at: String,
}

#[derive(Serialize)]
struct Meta {
    total: usize,
}

#[derive(Serialize)]
struct LastKnownLocation {
    face_id: String,
    location: String,
    camera_id: String,
    captured_at: String,
    confidence: Option<f32>,
}

/// The People table, by Face ID.
pub async fn people(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let rows = state.database.people().await?;
    let people = rows
        .into_iter()
        .map(|row| Ok(Person { face_id: row.face_id, created_at: rfc3339(row.created_at)? }))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let meta = Meta { total: people.len() };
    Ok(web::Json(People { people, meta }))
}

/// Where, by which camera and when a person was seen last.
pub async fn last_known_location(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<impl Responder, ApiError> {
    let id = face_id(path)?;
    let seen = state.database.last_seen(&id).await?.ok_or(ApiError::NeverSeen)?;
    Ok(web::Json(LastKnownLocation {
        face_id: id.to_string(),
        location: seen.location,
        camera_id: seen.camera_id,
        captured_at: rfc3339(seen.captured_at)?,
        confidence: seen.confidence,
    }))
}
