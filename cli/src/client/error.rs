//! Errors of API calls, with advice in their messages.

use std::error::Error as _;

use reqwest::{StatusCode, Url};
use serde_json::Value;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No response.
    #[error("{server} cannot be reached: {why} (is the server running, and is --server right?)")]
    Unreachable {
        /// The server's address.
        server: String,
        /// The innermost cause.
        why: String,
    },
    /// 401 or 403.
    #[error("{server} refused the token: {message} (--token-file, --token or FACEPIPE_TOKEN)")]
    Unauthorized {
        /// The server's address.
        server: String,
        /// The server's message.
        message: String,
    },
    /// The server refused the request.
    #[error("{message} ({code})")]
    Refused {
        status: StatusCode,
        /// The stable code, for example `person_not_found`.
        code: String,
        /// Human-readable message.
        message: String,
        /// Structured details.
        details: Value,
    },
    /// A response that does not conform to the API.
    #[error("{path} of {server} returned {status} with an unexpected body: {why}")]
    UnexpectedResponse {
        /// The server's address.
        server: String,
        /// Path template of the call.
        path: &'static str,
        status: StatusCode,
        /// The problem with the body.
        why: String,
    },
}

impl ClientError {
    /// Converts a transport error.
    pub(super) fn unreachable(server: &Url, error: &reqwest::Error) -> Self {
        let mut why = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
        let mut cause = error.source();
        while let Some(deeper) = cause {
            if !error.is_timeout() {
                why = deeper.to_string();
            }
            cause = deeper.source();
        }
        if why.is_empty() {
            why = error.to_string();
        }
        Self::Unreachable { server: display(server), why }
    }

    /// Returns the error code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Returns whether the error concerns this request alone, so that others may succeed.
    pub fn is_request_error(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS)
    }
}

/// Formats a server's address without its user, password and trailing slash.
pub(super) fn display(server: &Url) -> String {
    let mut url = server.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.as_str().trim_end_matches('/').to_owned()
}
