//! Sends requests to the backend, and interprets its responses.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use super::{
    BackendStatus, RuntimeSettings, Token,
    connection::{Client, root_cause},
    request::RequestBuilder,
    retry::{self, ResponseClass},
    state::PendingUpload,
    token::TokenFile,
    traces::Attempt,
};

/// Responses are a few kilobytes; one that is longer than this (bytes) is not the backend's.
const MAX_RESPONSE_BYTES: usize = 8 << 20;

/// Outcome of one request.
pub(super) enum RequestOutcome {
    Accepted(Accepted),
    /// The backend rejected the content.
    Rejected(ErrorResponse),
    /// The request may succeed later.
    Retry {
        status: BackendStatus,
        error: ErrorResponse,
        retry_after: Option<Duration>,
    },
    /// The connection was closed before a response began, with this reason.
    ConnectionClosed(String),
}

impl RequestOutcome {
    /// Returns the response's HTTP status, if there was a response.
    pub fn http_status(&self) -> Option<StatusCode> {
        match self {
            Self::Accepted(Accepted { status, .. }) => Some(*status),
            Self::Rejected(error) | Self::Retry { error, .. } => StatusCode::from_u16(error.status).ok(),
            Self::ConnectionClosed(_) => None,
        }
    }
}

/// The response to an accepted request.
pub(super) struct Accepted {
    pub status: StatusCode,
    body: Value,
}

impl Accepted {
    pub fn model_version(&self) -> Option<String> {
        match self.body.get("model_version") {
            Some(Value::String(version)) => Some(version.clone()),
            Some(Value::Null) | None => None,
            Some(other) => Some(other.to_string()),
        }
    }

    /// Returns for each crop of the request its faces, or why its image is rejected though others are accepted.
    pub fn per_crop(&self, crops: usize) -> Vec<Result<Vec<Value>, ErrorResponse>> {
        let by_crop = |name: &str| {
            let mut found = vec![Vec::new(); crops];
            for entry in self.body.get(name).and_then(Value::as_array).into_iter().flatten() {
                let image = entry.get("image").and_then(Value::as_u64).unwrap_or(0);
                if let Some(of_crop) = usize::try_from(image).ok().and_then(|i| found.get_mut(i)) {
                    of_crop.push(entry.clone());
                }
            }
            found
        };
        let result = |(faces, errors): (Vec<Value>, Vec<Value>)| match errors
            .first()
            .and_then(|error| error.get("error"))
        {
            None => Ok(faces),
            Some(error) => Err(ErrorResponse {
                status: self.status.as_u16(),
                code: text(error, "code"),
                message: text(error, "message").unwrap_or_else(|| "no reason given".into()),
            }),
        };
        by_crop("faces").into_iter().zip(by_crop("errors")).map(result).collect()
    }
}

/// Why crops were not accepted.
#[derive(Debug, Clone)]
pub(super) struct ErrorResponse {
    /// HTTP status; 0 if there was no response.
    pub status: u16,
    pub code: Option<String>,
    pub message: String,
}

impl ErrorResponse {
    pub fn no_response(message: String) -> Self {
        Self { status: 0, code: None, message }
    }
}

struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Before the head of a response.
    #[error("{0}")]
    ClosedEarly(String),
    /// In the middle of a response.
    #[error("broke off its answer: {0}")]
    Interrupted(String),
}

/// The backend's call, over connections that are kept.
pub(super) struct Service {
    client: Client,
    requests: RequestBuilder,
    /// Whether the connection protects a token, or the user has said that it may be sent anyway.
    may_send_token: bool,
    token_file: tokio::sync::Mutex<TokenFile>,
}

impl Service {
    pub fn new(client: Client, requests: RequestBuilder, may_send_token: bool) -> Self {
        Self { client, requests, may_send_token, token_file: tokio::sync::Mutex::default() }
    }

    /// Sends one request.
    pub async fn send(
        &self,
        crops: &[PendingUpload],
        settings: &RuntimeSettings,
        attempt: Option<&Attempt>,
    ) -> RequestOutcome {
        let token = self.token(settings).await;
        let unavailable = |message| {
            let error = ErrorResponse::no_response(message);
            RequestOutcome::Retry { status: BackendStatus::Unavailable, error, retry_after: None }
        };
        // One that was set after the start, which refuses it.
        if token.is_some() && !self.may_send_token {
            return unavailable(
                "gets no request by http, on which the token could be read: use https, or set allow-insecure-token".into(),
            );
        }
        let request = match self.requests.build(crops, token.as_ref(), attempt) {
            Ok(request) => request,
            Err(error) => return unavailable(format!("cannot be sent a request: {error}")),
        };
        // Without a limit, only a broken connection ends the request.
        let limit = if settings.timeout.is_zero() { Duration::MAX } else { settings.timeout };
        match tokio::time::timeout(limit, self.exchange(request)).await {
            Err(_) => unavailable(format!("gave no answer within {:?}", settings.timeout)),
            Ok(Err(RequestError::ClosedEarly(reason))) => RequestOutcome::ConnectionClosed(reason),
            Ok(Err(error)) => unavailable(error.to_string()),
            Ok(Ok(response)) => self.interpret(response, token.is_some()).await,
        }
    }

    async fn token(&self, settings: &RuntimeSettings) -> Option<Token> {
        match (&settings.token, &settings.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => self.token_file.lock().await.token(path).await,
            (None, None) => None,
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response, RequestError> {
        let response = self.client.request(request).await.map_err(|e| {
            if e.is_connect() {
                // rustls prefixes custom errors of certificate verification, which are ours.
                RequestError::Unreachable(root_cause(&e).trim_start_matches("unexpected error: ").into())
            } else {
                RequestError::ClosedEarly(format!("broke the connection: {}", root_cause(&e)))
            }
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|e| RequestError::Interrupted(root_cause(&*e)))?
            .to_bytes();
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    async fn interpret(&self, response: Response, had_token: bool) -> RequestOutcome {
        let class = retry::classify(response.status, &response.headers, &response.body);
        let error = || error_response(&response);
        let retry = |status, error, retry_after| RequestOutcome::Retry { status, error, retry_after };
        match class {
            ResponseClass::Accepted => {
                let body = serde_json::from_slice(&response.body).unwrap_or_default();
                RequestOutcome::Accepted(Accepted { status: response.status, body })
            }
            ResponseClass::Rejected => RequestOutcome::Rejected(error()),
            ResponseClass::Busy(retry_after) => retry(BackendStatus::Busy, error(), retry_after),
            ResponseClass::Unavailable(retry_after) => {
                retry(BackendStatus::Unavailable, error(), retry_after)
            }
            ResponseClass::Unauthorized(retry_after) => {
                let mut error = error();
                let mut file = self.token_file.lock().await;
                file.invalidate();
                if let Some(problem) = file.problem() {
                    error.message = format!("{} ({problem})", error.message);
                } else if !had_token {
                    error.message.push_str(" (no token was sent)");
                }
                retry(BackendStatus::Unauthorized, error, retry_after)
            }
        }
    }
}

/// Returns what the response says, in a form fit for messages to people.
fn error_response(response: &Response) -> ErrorResponse {
    let json: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let error = json.get("error").unwrap_or(&Value::Null);
    let reason = || response.status.canonical_reason().unwrap_or("no reason given");
    // From a proxy, a network's login page, or a different server.
    let foreign = || match retry::is_web_page(&response.headers) {
        true => "a web page, which is not the backend's",
        false => "which is not the backend's own answer",
    };
    let message = match text(error, "message") {
        Some(message) => message,
        None if response.status.is_success() => foreign().into(),
        // A proxy reports an unavailable backend by the status alone.
        None if response.status.is_server_error() => reason().into(),
        None => format!("{}, {}", reason(), foreign()),
    };
    ErrorResponse { status: response.status.as_u16(), code: text(error, "code"), message }
}

/// Returns a text of the backend's response, cut to what fits in a message.
fn text(value: &Value, name: &str) -> Option<String> {
    let text = value.get(name)?.as_str()?;
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}
