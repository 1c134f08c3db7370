//! Why a call failed, in words that say what to do.

use std::error::Error as _;

use reqwest::{StatusCode, Url};
use serde_json::Value;

/// Why a call has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer at all.
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
        /// The server's sentence.
        message: String,
    },
    /// The server refused what was asked, in its own words.
    #[error("{message} ({code})")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The stable code, for example `person_not_found`.
        code: String,
        /// The sentence for people.
        message: String,
        /// The values of the message.
        details: Value,
    },
    /// An answer that the API does not know.
    #[error("{path} of {server} answered {status} with something that is not of this API: {why}")]
    UnexpectedResponse {
        /// The server's address.
        server: String,
        /// The call's path, without values.
        path: &'static str,
        /// The status.
        status: StatusCode,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// No connection, or one that broke.
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

    /// The stable code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether it is of one request, so that the next may well succeed: everything but a server that cannot be
    /// reached or does not let anybody in.
    pub fn is_request_error(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS)
    }
}

/// A server's address as people write it: without a password and without the slash at its end.
pub(super) fn display(server: &Url) -> String {
    let mut url = server.clone();
    if url.password().is_some() {
        let _ = url.set_password(Some("…"));
    }
    url.as_str().trim_end_matches('/').to_owned()
}
