//! `/cameras`: which cameras have sent something, and where they stood.

use actix_web::{Responder, web};
use serde::Serialize;

use super::{State, rfc3339};
use crate::error::ApiError;

#[derive(Serialize)]
struct Cameras {
    cameras: Vec<Camera>,
    meta: Meta,
}

#[derive(Serialize)]
struct Camera {
    camera_id: String,
    /// When it detected a face last.
    last_seen: String,
    /// Where it stood, the latest place first.
    locations: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    location: String,
    last_seen: String,
}

#[derive(Serialize)]
struct Meta {
    total: usize,
}

/// Every camera that has a detection, by its id.
pub async fn list(state: web::Data<State>) -> Result<impl Responder, ApiError> {
    let mut cameras: Vec<Camera> = Vec::new();
    for row in state.database.camera_places().await? {
        let last_seen = rfc3339(row.last_seen)?;
        let place = Place { location: row.location, last_seen: last_seen.clone() };
        match cameras.last_mut().filter(|camera| camera.camera_id == row.camera_id) {
            Some(camera) => camera.locations.push(place),
            None => cameras.push(Camera { camera_id: row.camera_id, last_seen, locations: vec![place] }),
        }
    }
    let meta = Meta { total: cameras.len() };
    Ok(web::Json(Cameras { cameras, meta }))
}
