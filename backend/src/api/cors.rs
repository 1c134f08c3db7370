//! CORS: the web pages with scripts that may use the server from a browser.

use actix_cors::Cors;
use actix_web::http::{Method, header};

use crate::request_id;

/// Response headers that scripts may read.
const EXPOSED: [header::HeaderName; 7] = [
    request_id::HEADER,
    header::RETRY_AFTER,
    header::LOCATION,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
    header::HeaderName::from_static("server-timing"),
    header::HeaderName::from_static("x-next-cursor"),
];

/// How long browsers may cache a preflight response, seconds.
const MAX_AGE_S: usize = 600;

/// Responds to preflight requests from pages of these origins, and marks the responses that such pages may read. Tokens
/// are in `Authorization`, which scripts set themselves; the server uses no credentials in the sense of CORS (cookies,
/// certificates).
pub fn allow_origins(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .allowed_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_any_header()
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE_S);
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}
