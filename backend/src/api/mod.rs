//! The HTTP API: paths, and what every call shares.

mod answer;
mod auth;
mod body;
mod cameras;
mod connection;
mod cors;
mod database;
mod dataset;
mod debug;
mod detections;
mod entrance;
mod form;
mod guide;
mod head;
mod health;
mod images;
mod jobs;
mod model;
mod observe;
mod openapi;
mod page;
mod people;
mod recognition;
mod roles;
mod single_face;
mod verify;

pub use auth::authorise;
pub use body::limit_body_time;
pub use connection::keep_alive;
pub use cors::allow_origins;
pub use head::answer_head;
pub use observe::observe;
pub use openapi::{document, document_at};
pub use roles::serve_role;

use std::sync::{Arc, atomic::AtomicBool};

use actix_web::{HttpRequest, error::JsonPayloadError};
use bytes::Bytes;
use paperclip::actix::{Apiv2Schema, web};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    config::Config,
    domain::{FaceId, InvalidFaceId, Micros},
    error::ApiError,
    metrics::Metrics,
    model_loader::ModelLoader,
    recognise::Recogniser,
    store::{Blobs, Database, from_micros},
    tokens::Tokens,
    train::Trainer,
};

/// What the calls work with; one for the whole process.
pub struct State {
    /// The configuration.
    pub config: Config,
    /// Where clients find the server, without a `/` at its end; `None` where that is the root of the host they ask.
    pub public_url: Option<String>,
    /// The API's document.
    pub document: Bytes,
    /// Who may use the server; without, everybody.
    pub tokens: Option<Arc<Tokens>>,
    /// Rows.
    pub database: Database,
    /// Bytes.
    pub blobs: Blobs,
    /// Recognition's queue.
    pub recogniser: Recogniser,
    /// The queue of jobs.
    pub trainer: Trainer,
    /// What has models answer.
    pub loader: Arc<ModelLoader>,
    /// Cosine between two faces from which they count as one person's.
    pub verify_threshold: f32,
    /// Cosine between images of two people from which they are the same picture.
    pub same_picture_threshold: f32,
    /// Whether the server is about to stop.
    pub draining: Arc<AtomicBool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Puts the calls and their documentation at their paths, and what answers everything else.
pub fn configure(config: &mut actix_web::web::ServiceConfig) {
    routes(&mut web::ServiceConfig::from(&mut *config));
    // Before the page at `/docs`, below which it lies.
    guide::pages(config);
    openapi::page(config);
    config
        .default_service(web::to(|| async { Err::<&str, _>(ApiError::NotFound) }))
        .app_data(
            web::PathConfig::default().error_handler(|_, _| ApiError::from(InvalidFaceId::Encoding).into()),
        )
        .app_data(
            web::JsonConfig::default()
                .limit(MAX_JSON_BYTES)
                .error_handler(|error, _| json_error(error).into()),
        )
        .app_data(
            web::QueryConfig::default()
                .error_handler(|error, _| ApiError::InvalidQuery(error.to_string()).into()),
        );
}

/// The calls. What is put here must also be described in `openapi/calls.rs`.
fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/")
                .route(web::get().to(entrance::enter))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/dataset")
                .route(web::get().to(dataset::list))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        // An empty id is a wrong id, not a wrong path.
        .service(
            web::resource("/dataset/{id:[^/]*}")
                .route(web::get().to(dataset::images))
                .route(web::post().to(dataset::add))
                .route(web::patch().to(dataset::rename))
                .route(web::delete().to(dataset::erase))
                .default_service(web::to(|request| method_not_allowed(request, "GET, POST, PATCH, DELETE"))),
        )
        .service(
            web::resource("/dataset/{id:[^/]*}/image")
                .route(web::post().to(dataset::add_image))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/dataset/{id:[^/]*}/image/{image_id}")
                .route(web::get().to(dataset::image))
                .route(web::delete().to(dataset::erase_image))
                .default_service(web::to(|request| method_not_allowed(request, "GET, DELETE"))),
        )
        .service(
            web::resource("/people")
                .route(web::get().to(people::list))
                .route(web::post().to(people::add))
                .default_service(web::to(|request| method_not_allowed(request, "GET, POST"))),
        )
        .service(
            web::resource("/people/search")
                .route(web::post().to(people::search))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/people/{person_id}")
                .route(web::get().to(people::images))
                .route(web::patch().to(people::rename))
                .route(web::delete().to(people::erase))
                .default_service(web::to(|request| method_not_allowed(request, "GET, PATCH, DELETE"))),
        )
        .service(
            web::resource("/people/{person_id}/images")
                .route(web::post().to(people::add_image))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/people/{person_id}/track")
                .route(web::get().to(people::track))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/people/{person_id}/last-known-location")
                .route(web::get().to(people::last_known_location))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/images/{image_id}")
                .route(web::get().to(images::get))
                .route(web::delete().to(images::erase))
                .default_service(web::to(|request| method_not_allowed(request, "GET, DELETE"))),
        )
        .service(
            web::resource("/images/{image_id}/content")
                .route(web::get().to(images::content))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/model")
                .route(web::get().to(model::list))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/model/{version}/activate")
                .route(web::post().to(model::activate))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/model/train")
                .route(web::post().to(model::train))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/model/generate-emb")
                .route(web::post().to(model::generate_emb))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/debug/IP")
                .route(web::get().to(debug::ip))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/debug/node-name")
                .route(web::get().to(debug::node_name))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/debug/unblock-dataset")
                .route(web::post().to(debug::unblock_dataset))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/model/optimized-train")
                .route(web::post().to(model::optimized_train))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        // After the paths that are no versions.
        .service(
            web::resource("/model/{version}")
                .route(web::delete().to(model::remove))
                .default_service(web::to(|request| method_not_allowed(request, "DELETE"))),
        )
        .service(
            web::resource("/jobs")
                .route(web::get().to(jobs::list))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/jobs/{job_id}")
                .route(web::get().to(jobs::get))
                .route(web::delete().to(jobs::cancel))
                .default_service(web::to(|request| method_not_allowed(request, "GET, DELETE"))),
        )
        .service(
            web::resource("/face-recognition/get-results")
                .route(web::get().to(recognition::get_results))
                .route(web::post().to(recognition::get_results))
                .default_service(web::to(|request| method_not_allowed(request, "GET, POST"))),
        )
        .service(
            web::resource("/face-recognition/store-results")
                .route(web::post().to(recognition::store_results))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/face-recognition/send-results")
                .route(web::post().to(recognition::send_results))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/face-recognition/verify")
                .route(web::post().to(verify::verify))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/face-recognition/dry-run")
                .route(web::post().to(recognition::dry_run))
                .default_service(web::to(|request| method_not_allowed(request, "POST"))),
        )
        .service(
            web::resource("/database/people")
                .route(web::get().to(database::people))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/database/detections")
                .route(web::get().to(detections::list))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/database/{id:[^/]*}/track")
                .route(web::get().to(detections::track))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/database/{id:[^/]*}/last-known-location")
                .route(web::get().to(database::last_known_location))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        // After the paths of a person's: a person may be called “detections”.
        .service(
            web::resource("/database/detections/{detection_id:[^/]*}")
                .route(web::get().to(detections::get))
                .route(web::delete().to(detections::erase))
                .default_service(web::to(|request| method_not_allowed(request, "GET, DELETE"))),
        )
        .service(
            web::resource("/cameras")
                .route(web::get().to(cameras::list))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/startupz")
                .route(web::get().to(health::started))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/livez")
                .route(web::get().to(health::live))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/readyz")
                .route(web::get().to(health::ready))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        )
        .service(
            web::resource("/openapi.json")
                .route(web::get().to(openapi::serve))
                .default_service(web::to(|request| method_not_allowed(request, "GET"))),
        );
}

async fn method_not_allowed(request: HttpRequest, allowed: &'static str) -> Result<&'static str, ApiError> {
    Err(ApiError::MethodNotAllowed {
        method: head::asked_method(&request).to_string(),
        allowed: head::with_head(allowed),
    })
}

/// Bytes of a JSON body at most.
const MAX_JSON_BYTES: usize = 16 * 1024;

fn json_error(error: JsonPayloadError) -> ApiError {
    match error {
        JsonPayloadError::Overflow { .. } | JsonPayloadError::OverflowKnownLength { .. } => {
            ApiError::RequestTooLarge { max: MAX_JSON_BYTES }
        }
        JsonPayloadError::ContentType => ApiError::JsonExpected,
        JsonPayloadError::Payload(error) => {
            body::late(&error).unwrap_or_else(|| ApiError::MalformedJson(error.to_string()))
        }
        other => ApiError::MalformedJson(other.to_string()),
    }
}

/// What belongs to a list beside its entries.
#[derive(Serialize, Apiv2Schema)]
pub struct ListMeta {
    /// Entries of the list.
    #[openapi(minimum = 0, example = "1")]
    total: usize,
}

/// The Face ID of a path.
fn face_id(path: web::Path<String>) -> Result<FaceId, ApiError> {
    Ok(FaceId::try_from(path.into_inner())?)
}

/// RFC 3339 in UTC, with the fraction that the moment has.
fn rfc3339(micros: Micros) -> Result<String, ApiError> {
    let moment: OffsetDateTime = from_micros(micros)?;
    moment.format(&Rfc3339).map_err(|error| ApiError::Internal(error.into()))
}
