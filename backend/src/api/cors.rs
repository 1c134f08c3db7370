//! Which web pages' scripts may use the server from a browser.

use actix_cors::Cors;
use actix_web::http::{Method, header};

use crate::request_id;

/// What scripts may read of an answer beside its body.
const EXPOSED: [header::HeaderName; 7] = [
    request_id::HEADER,
    header::RETRY_AFTER,
    header::LOCATION,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
    header::HeaderName::from_static("server-timing"),
    header::HeaderName::from_static("x-next-cursor"),
];

/// Seconds for which a browser may remember what it was told of a call.
const MAX_AGE_S: usize = 600;

/// Answers browsers that ask whether a page of one of these origins may make a call, and marks the answers that such
/// pages may read. Tokens travel in `Authorization`, which scripts set by themselves: credentials in the sense of CORS
/// (cookies, certificates) are none of the server's.
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
