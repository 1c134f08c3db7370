//! The HTTP API: a file per resource, [`routes`] with the table of routes, and what all calls share.

mod access;
mod admission;
mod audit;
mod auth;
mod body;
mod cameras;
mod cohort;
mod connection;
mod cors;
mod database;
mod dataset;
mod debug;
mod detections;
mod face_choice;
mod form;
mod guide;
mod head;
mod health;
mod images;
mod jobs;
mod loopback;
mod model;
mod observe;
mod openapi;
mod page;
mod people;
mod proposals;
mod quality;
mod recognition;
mod response;
mod roles;
mod root;
mod routes;
mod sightings;
mod trail;
mod unknowns;
mod verify;
mod warnings;

pub use admission::{admit, delay_failed_authentication, keep_probes_answering, send_in_pieces};
pub use auth::authorise;
pub use body::limit_body_time;
pub use connection::keep_alive;
pub use cors::allow_origins;
pub use head::answer_head;
pub use observe::observe;
pub use openapi::document;
pub use roles::serve_role;
pub use trail::{record, record_refusals};

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use actix_web::{HttpRequest, error::JsonPayloadError};
use bytes::Bytes;
use paperclip::actix::{Apiv2Schema, web};
use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    access::AccessControl,
    audit::AuditLog,
    config::Config,
    domain::{FaceId, InvalidFaceId, Micros, to_micros},
    error::ApiError,
    metrics::Metrics,
    model_loader::ModelLoader,
    recognise::Recogniser,
    shares::Shares,
    store::{Blobs, Database, from_micros},
    train::Trainer,
};

/// The state that handlers share; one for the whole process.
pub struct State {
    /// The configuration.
    pub config: Config,
    /// The setting `cors_origins`.
    pub origins: Vec<String>,
    /// The setting `public_url`, without a `/` at its end.
    pub public_url: Option<String>,
    /// The API's document, made for the first request.
    pub document: OnceLock<Bytes>,
    /// Who may use the server.
    pub access: Arc<AccessControl>,
    /// The audit log.
    pub audit: AuditLog,
    /// What clients may use at a time.
    pub shares: Arc<Shares>,
    /// The database.
    pub database: Database,
    /// The blob store: images and models.
    pub blobs: Blobs,
    /// The queue of recognition.
    pub recogniser: Recogniser,
    /// The queue of jobs.
    pub trainer: Trainer,
    /// Loads models and makes them active.
    pub loader: Arc<ModelLoader>,
    /// Minimum cosine between two faces of one person.
    pub verify_threshold: f32,
    /// Minimum cosine between two images that count as the same picture.
    pub same_picture_threshold: f32,
    /// Whether the server is shutting down.
    pub draining: Arc<AtomicBool>,
    /// The process's counters.
    pub metrics: Arc<Metrics>,
}

/// Registers the routes, and the errors of unknown paths and of malformed paths, queries and bodies.
pub fn configure(config: &mut actix_web::web::ServiceConfig) {
    routes::register_calls(&mut web::ServiceConfig::from(&mut *config));
    routes::register_pages(config);
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

async fn method_not_allowed(
    request: HttpRequest,
    methods: &'static [&'static str],
) -> Result<&'static str, ApiError> {
    Err(ApiError::MethodNotAllowed {
        method: head::sent_method(&request).to_string(),
        allowed: head::allowed_methods(methods),
    })
}

/// Maximum size of a JSON body, bytes.
const MAX_JSON_BYTES: usize = 16 * 1024;

fn json_error(error: JsonPayloadError) -> ApiError {
    match error {
        JsonPayloadError::Overflow { .. } | JsonPayloadError::OverflowKnownLength { .. } => {
            ApiError::RequestTooLarge { max: MAX_JSON_BYTES }
        }
        JsonPayloadError::ContentType => ApiError::JsonExpected,
        JsonPayloadError::Payload(error) => {
            body::refused(&error).unwrap_or_else(|| ApiError::MalformedJson(error.to_string()))
        }
        other => ApiError::MalformedJson(other.to_string()),
    }
}

/// Metadata of a list.
#[derive(Serialize, Apiv2Schema)]
pub struct ListMeta {
    /// Number of entries.
    #[openapi(minimum = 0, example = "1")]
    total: usize,
}

/// Reads the Face ID of a path.
fn face_id(path: web::Path<String>) -> Result<FaceId, ApiError> {
    Ok(FaceId::try_from(path.into_inner())?)
}

/// Formats a time as RFC 3339 in UTC, with as many digits of the fraction as it has.
fn rfc3339(micros: Micros) -> Result<String, ApiError> {
    let moment: OffsetDateTime = from_micros(micros)?;
    moment.format(&Rfc3339).map_err(|error| ApiError::Internal(error.into()))
}

/// Parses the time of a field or a query. The error is a clause such as “is not a time …”.
fn parse_time(text: &str) -> Result<Micros, String> {
    let moment = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| "is not a time as RFC 3339 has it, e.g. 2024-05-06T07:08:09.25Z".to_owned())?;
    // Responses have the time in UTC, where the year must be in RFC 3339's range, too.
    moment
        .checked_to_offset(UtcOffset::UTC)
        .filter(|utc| (0..=9999).contains(&utc.year()))
        .map(to_micros)
        .ok_or_else(|| "is in UTC not in the years 0 to 9999".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_can_be_formatted_again() {
        assert_eq!(parse_time("1970-01-01T01:00:00.25+01:00"), Ok(250_000));
        assert!(
            parse_time("0000-01-01T00:00:00Z").is_ok() && parse_time("9999-12-31T23:59:59.999999Z").is_ok()
        );
        for outside in ["0000-01-01T00:59:59+01:00", "9999-12-31T23:00:00-01:00"] {
            assert!(parse_time(outside).unwrap_err().contains("0 to 9999"), "{outside}");
        }
        for none in ["", "2024-05-06", "2024-05-06T07:08:09", "2024-02-30T07:08:09Z", "now"] {
            assert!(parse_time(none).unwrap_err().contains("RFC 3339"), "{none}");
        }
    }
}
