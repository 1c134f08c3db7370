//! Requests to the backend over HTTP: address, token, certificates and proxy, time limits, retries while the server is busy,
//! and errors in words.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gstfacepipe::upload::{self, TlsOptions};
use reqwest::{RequestBuilder, Response, StatusCode, Url, multipart};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    error::{self, ClientError},
    operation::Operation,
    types::{ErrorBody, ErrorDetail},
};
use crate::exit::Failure;

/// Timeout for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default timeout of one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Default time during which a request to a busy server (429, 423, 503 with `Retry-After`) is repeated.
pub const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// Delay before a repetition where the server sends no `Retry-After`.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Address, credentials and limits of a connection.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base address, for example `http://127.0.0.1:8080`; may have a path.
    pub server: String,
    /// Bearer token.
    pub token: Option<String>,
    /// PEM file of certificates to trust in addition to the system's; may contain the server's own certificate.
    pub ca_file: Option<PathBuf>,
    /// Digests of the server's public key, as [`upload::KeyPin::parse_all`] reads them; only a server with one is trusted.
    pub pinned_sha256: Option<String>,
    /// PEM file of the client's certificate.
    pub client_cert: Option<PathBuf>,
    /// PEM file of its private key; unset: it is in `client_cert`.
    pub client_key: Option<PathBuf>,
    /// Whether the token may be sent over plain HTTP to another machine.
    pub insecure_token: bool,
    /// See [`REQUEST_TIMEOUT`].
    pub request_timeout: Duration,
    /// See [`RETRY_LIMIT`]; zero disables repetitions.
    pub retry_limit: Duration,
}

impl Settings {
    /// Returns settings without a token and with default limits.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            ca_file: None,
            pinned_sha256: None,
            client_cert: None,
            client_key: None,
            insecure_token: false,
            request_timeout: REQUEST_TIMEOUT,
            retry_limit: RETRY_LIMIT,
        }
    }
}

impl Settings {
    /// Returns how server and client prove themselves, `None` where that is by the system's authorities alone.
    ///
    /// # Errors
    /// A file or a digest cannot be used, or there is no https that could prove anything.
    pub fn tls(&self, is_https: bool) -> Result<Option<ClientConfig>, String> {
        let pins = self.pinned_sha256.as_deref().map(upload::KeyPin::parse_all).transpose();
        let pins = pins.map_err(|error| format!("--pinned-sha256: {error}"))?.unwrap_or_default();
        if !is_https && !pins.is_empty() {
            return Err(
                "--pinned-sha256: the server's address is http, by which it cannot prove its key".into()
            );
        }
        if !is_https && self.client_cert.is_some() {
            return Err("--client-cert: the server's address is http, by which nothing can be proved".into());
        }
        let options = TlsOptions {
            ca_file: self.ca_file.clone(),
            pins,
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
        };
        let is_default = options.ca_file.is_none()
            && options.pins.is_empty()
            && options.client_cert.is_none()
            && options.client_key.is_none();
        if is_default {
            return Ok(None);
        }
        upload::tls(&options).map(Some).map_err(|error| format!("--{error}"))
    }
}

/// Sends requests to one backend. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Transport {
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
    retry_limit: Duration,
}

/// Body of a request.
#[derive(Debug, Clone)]
pub enum Body {
    Nothing,
    Json(Value),
    Form(Vec<(&'static str, Part)>),
}

/// Field of a multipart form.
#[derive(Debug, Clone)]
pub enum Part {
    Text(String),
    Image(Bytes),
}

impl Transport {
    /// Builds the HTTP client.
    ///
    /// # Errors
    /// The address is invalid, or the certificates cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        let server = Url::parse(&settings.server).map_err(|error| {
            Failure::Usage(format!("--server {}: {error}", upload::without_user(&settings.server)))
        })?;
        if !matches!(server.scheme(), "http" | "https") || !server.has_host() {
            return Err(Failure::Usage(format!(
                "--server {}: expected http:// or https:// and a host, for example http://127.0.0.1:8080",
                upload::without_user(&settings.server)
            )));
        }
        let mut builder =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(settings.request_timeout);
        // The same checks as in facesink-http and `facepipe doctor`.
        let tls = settings.tls(server.scheme() == "https").map_err(Failure::Usage)?;
        if let Some(tls) = tls {
            builder = builder.tls_backend_preconfigured(tls);
        }
        if settings.token.is_some() && !settings.insecure_token && upload::exposes_tokens(server.as_str()) {
            return Err(Failure::Usage(format!(
                "--server {}: everybody on the way can read the token over http: use https, or --insecure-token if the \
                 network is protected otherwise",
                error::display(&server)
            )));
        }
        // The proxy environment variables apply as in facesink-http, except to this machine.
        if server.host_str().is_some_and(upload::is_loopback) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| Failure::Usage(format!("cannot create an HTTP client: {error}")))?;
        Ok(Self { http, server, token: settings.token.clone(), retry_limit: settings.retry_limit })
    }

    /// Returns the server's address, for messages.
    pub fn address(&self) -> String {
        error::display(&self.server)
    }

    /// Sends a request and parses the response.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        values: &[&str],
        query: &[(&str, String)],
        body: Body,
    ) -> Result<T, ClientError> {
        let response = self.send(operation, values, query, body).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| ClientError::unreachable(&self.server, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.unexpected(operation, status, &error.to_string()))
    }

    /// Sends a request; repeats it while the server is busy, up to the retry limit.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send(
        &self,
        operation: &Operation,
        values: &[&str],
        query: &[(&str, String)],
        body: Body,
    ) -> Result<Response, ClientError> {
        let started = Instant::now();
        loop {
            let response = self
                .request(operation, values, query, body.clone())
                .send()
                .await
                .map_err(|error| ClientError::unreachable(&self.server, &error))?;
            if response.status().is_success() {
                return Ok(response);
            }
            let delay = retry_delay(&response);
            let error = self.refusal(operation, response).await;
            match delay {
                Some(delay) if started.elapsed().saturating_add(delay) <= self.retry_limit => {
                    tokio::time::sleep(delay).await
                }
                _ => return Err(error),
            }
        }
    }

    fn request(
        &self,
        operation: &Operation,
        values: &[&str],
        query: &[(&str, String)],
        body: Body,
    ) -> RequestBuilder {
        let mut request =
            self.http.request(operation.method.clone(), address(&self.server, operation, values, query));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        match body {
            Body::Nothing => request,
            Body::Json(value) => request.json(&value),
            Body::Form(parts) => {
                request.multipart(parts.into_iter().fold(multipart::Form::new(), |form, (name, part)| {
                    match part {
                        Part::Text(text) => form.text(name, text),
                        Part::Image(bytes) => {
                            let length = bytes.len().try_into().unwrap_or(u64::MAX);
                            // Not the file's own name: it may be a person's.
                            form.part(
                                name,
                                multipart::Part::stream_with_length(bytes, length).file_name("image"),
                            )
                        }
                    }
                }))
            }
        }
    }

    /// Converts an error response.
    async fn refusal(&self, operation: &Operation, response: Response) -> ClientError {
        let status = response.status();
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return ClientError::unreachable(&self.server, &error),
        };
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error: ErrorDetail { message, .. } })
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
            {
                ClientError::Unauthorized { server: self.address(), message }
            }
            Ok(ErrorBody { error: ErrorDetail { code, message, details } }) => {
                ClientError::Refused { status, code, message, details }
            }
            // From a proxy, not from the backend.
            Err(_) if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                ClientError::Unauthorized { server: self.address(), message: status.to_string() }
            }
            Err(_) if status.is_server_error() => {
                ClientError::Unreachable { server: self.address(), why: format!("a proxy answered {status}") }
            }
            Err(_) => self.unexpected(operation, status, "no error object"),
        }
    }

    fn unexpected(&self, operation: &Operation, status: StatusCode, why: &str) -> ClientError {
        ClientError::UnexpectedResponse {
            server: self.address(),
            path: operation.path,
            status,
            why: why.to_owned(),
        }
    }
}

/// Builds the URL of a call below the server's path; each value becomes one percent-encoded segment.
pub(super) fn address(server: &Url, operation: &Operation, values: &[&str], query: &[(&str, String)]) -> Url {
    let mut url = server.clone();
    let mut values = values.iter();
    // Fails only for URLs without a host, which `Transport::new` refuses.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty();
        for segment in operation.path.split('/').skip(1) {
            segments.push(if segment.starts_with('{') {
                values.next().copied().unwrap_or_default()
            } else {
                segment
            });
        }
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query.iter().map(|(name, value)| (name, value)));
    }
    url
}

/// Returns the delay before a repetition; none if the response is final.
fn retry_delay(response: &Response) -> Option<Duration> {
    // A date may have passed by this machine's clock; nothing is repeated without a pause.
    let requested = upload::parse_retry_after(response.headers(), OffsetDateTime::now_utc())
        .map(|delay| delay.max(DEFAULT_RETRY_DELAY));
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::LOCKED => Some(requested.unwrap_or(DEFAULT_RETRY_DELAY)),
        StatusCode::SERVICE_UNAVAILABLE => requested,
        _ => None,
    }
}
