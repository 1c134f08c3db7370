//! `/cameras`: cameras and their locations.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::Serialize;

use super::{ListMeta, State, rfc3339};
use crate::error::ApiError;

/// Every camera that has a detection.
#[derive(Serialize, Apiv2Schema)]
pub struct Cameras {
    /// By their ids.
    cameras: Vec<Camera>,
    meta: ListMeta,
}

/// A camera that has a detection.
#[derive(Serialize, Apiv2Schema)]
struct Camera {
    /// As it calls itself.
    #[openapi(example = "gate-1")]
    camera_id: String,
    /// When it detected a face last.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    last_seen: String,
    /// Where it stood, the latest place first.
    locations: Vec<Place>,
}

/// A place of a camera.
#[derive(Serialize, Apiv2Schema)]
struct Place {
    /// As the camera calls it.
    #[openapi(example = "Lobby")]
    location: String,
    /// When the camera detected a face there last.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    last_seen: String,
}

/// Every camera that has a detection, by its id
#[api_v2_operation]
pub async fn list(state: web::Data<State>) -> Result<web::Json<Cameras>, ApiError> {
    let mut cameras: Vec<Camera> = Vec::new();
    for row in state.database.camera_places().await? {
        let last_seen = rfc3339(row.last_seen)?;
        let place = Place { location: row.location, last_seen: last_seen.clone() };
        match cameras.last_mut().filter(|camera| camera.camera_id == row.camera_id) {
            Some(camera) => camera.locations.push(place),
            None => cameras.push(Camera { camera_id: row.camera_id, last_seen, locations: vec![place] }),
        }
    }
    let meta = ListMeta { total: cameras.len() };
    Ok(web::Json(Cameras { cameras, meta }))
}
