//! The one place that calls the backend: addresses, token, time limits, waiting when it is busy, and errors in words.

mod error;
mod operation;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use gstfacepipe::upload;
use reqwest::{RequestBuilder, Response, StatusCode, Url, header::RETRY_AFTER, multipart};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use url::Host;

pub use self::{
    error::ClientError,
    types::{
        AddedImage, Cameras, Conflict, ConflictingImage, Dataset, DatasetEntry, Decision, Detection,
        Detections, EnrolmentWarning, Face, ImageDetails, Job, JobStatus, Jobs, LastKnownLocation, Model,
        Models, NamedPerson, PersonImages, Results, Track, Verification,
    },
};
use self::{
    operation::Operation,
    types::{ErrorBody, ErrorDetail},
};
use crate::exit::Failure;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one answer may take, if nothing else is said.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a busy server (429, 423, 503 with `Retry-After`) is asked again, if nothing else is said.
pub const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// Where the server says nothing about when to come back.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How a server is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its address, for example `http://127.0.0.1:8080`; a path in it is kept.
    pub server: String,
    /// Bearer token.
    pub token: Option<String>,
    /// File of certificates (PEM) to trust beside the system's; one of them may be the server's own.
    pub ca_file: Option<PathBuf>,
    /// See [`REQUEST_TIMEOUT`].
    pub request_timeout: Duration,
    /// See [`RETRY_LIMIT`]; zero asks once.
    pub retry_limit: Duration,
}

impl Settings {
    /// A server without token, with the usual limits.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            ca_file: None,
            request_timeout: REQUEST_TIMEOUT,
            retry_limit: RETRY_LIMIT,
        }
    }
}

/// A backend that is called. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    /// The ids of people by the names that were asked for: names stand in bodies, never in addresses, which proxies write
    /// down.
    ids: Arc<Mutex<HashMap<String, String>>>,
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
    retry_limit: Duration,
}

/// What a request carries.
#[derive(Debug, Clone)]
enum Body {
    Nothing,
    Json(Value),
    Form(Vec<(&'static str, Part)>),
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Image(Bytes),
}

/// Which recognition call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognition<'a> {
    /// Who is on the pictures.
    GetResults,
    /// The same, and a detection of each face is stored.
    StoreResults {
        /// Which camera took them.
        camera_id: &'a str,
        /// Where it stands.
        location: &'a str,
    },
}

/// Whether an address is this machine's own.
fn is_this_machine(server: &Url) -> bool {
    match server.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl Client {
    /// # Errors
    /// The address is none, or the certificates cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        let server = Url::parse(&settings.server)
            .map_err(|error| Failure::Usage(format!("--server {}: {error}", settings.server)))?;
        if !matches!(server.scheme(), "http" | "https") || !server.has_host() {
            return Err(Failure::Usage(format!(
                "--server {}: expected http:// or https:// and a host, for example http://127.0.0.1:8080",
                settings.server
            )));
        }
        let mut builder =
            reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(settings.request_timeout);
        if let Some(file) = &settings.ca_file {
            // Checked as facesink-http and the doctor do: what one of them takes, all take.
            let tls = upload::tls(Some(file), &[])
                .map_err(|error| Failure::Usage(format!("--ca-file: {error}")))?;
            builder = builder.tls_backend_preconfigured(tls);
        }
        // What http_proxy, https_proxy, all_proxy and no_proxy name, as facesink-http does; this machine itself is never
        // called through a proxy.
        if is_this_machine(&server) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| Failure::Usage(format!("no HTTP client can be made: {error}")))?;
        Ok(Self {
            ids: Arc::default(),
            http,
            server,
            token: settings.token.clone(),
            retry_limit: settings.retry_limit,
        })
    }

    /// The server's address, for messages.
    pub fn address(&self) -> String {
        error::display(&self.server)
    }

    /// Whom the server knows.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn dataset(&self) -> Result<Dataset, ClientError> {
        self.call(&operation::DATASET, &[], &[], Body::Nothing).await
    }

    /// Adds a person. False: there is one already.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn add_person(&self, id: &str) -> Result<bool, ClientError> {
        let name = Body::Json(json!({ "face_id": id }));
        match self.call::<NamedPerson>(&operation::ADD_PERSON, &[], &[], name).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("person_exists") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The images of a person; none where there is no such person.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn person_images(&self, id: &str) -> Result<Option<PersonImages>, ClientError> {
        none_if(
            "person_not_found",
            self.call_for_person(&operation::PERSON_IMAGES, id, &[], Body::Nothing).await,
        )
    }

    /// Enrols a picture.
    ///
    /// # Errors
    /// As every call: see [`ClientError`]; `no_face`, `several_faces`, `duplicate_image`, … where the server cannot
    /// use the picture.
    pub async fn add_image(&self, id: &str, image: Bytes) -> Result<AddedImage, ClientError> {
        let form = Body::Form(vec![("image", Part::Image(image))]);
        self.call_for_person(&operation::ADD_IMAGE, id, &[], form).await
    }

    /// Whose an image is, and what else is known of it; none where there is no such image.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn image(&self, id: &str) -> Result<Option<ImageDetails>, ClientError> {
        none_if("image_not_found", self.call(&operation::IMAGE, &[id], &[], Body::Nothing).await)
    }

    /// Erases an image, whosever it is. False: there is no such image.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn erase_image(&self, id: &str) -> Result<bool, ClientError> {
        let answer = self.send(&operation::ERASE_IMAGE, &[id], &[], Body::Nothing).await;
        Ok(none_if("image_not_found", answer)?.is_some())
    }

    /// Gives a person another name.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn rename_person(&self, id: &str, new: &str) -> Result<NamedPerson, ClientError> {
        let name = Body::Json(json!({ "face_id": new }));
        let renamed = self.call_for_person(&operation::RENAME_PERSON, id, &[], name).await?;
        self.forget_id(id);
        Ok(renamed)
    }

    /// Erases a person.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn erase_person(&self, id: &str) -> Result<(), ClientError> {
        let person = self.person_id(id).await?;
        self.send(&operation::ERASE_PERSON, &[&person], &[], Body::Nothing).await?;
        self.forget_id(id);
        Ok(())
    }

    /// Who is on a picture. With `StoreResults`, `key` makes a repetition store nothing twice.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn recognize(
        &self,
        call: Recognition<'_>,
        image: Bytes,
        key: Option<&str>,
    ) -> Result<Results, ClientError> {
        let mut parts = vec![("image", Part::Image(image))];
        let operation = match call {
            Recognition::GetResults => &operation::GET_RESULTS,
            Recognition::StoreResults { camera_id, location } => {
                parts.push(("camera_id", Part::Text(camera_id.into())));
                parts.push(("location", Part::Text(location.into())));
                if let Some(key) = key {
                    parts.push(("key", Part::Text(key.into())));
                }
                &operation::STORE_RESULTS
            }
        };
        self.call(operation, &[], &[], Body::Form(parts)).await
    }

    /// Has the server read a picture and discard it: what transport alone costs.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn dry_run(&self, image: Bytes) -> Result<(), ClientError> {
        let form = Body::Form(vec![("image", Part::Image(image))]);
        self.send(&operation::DRY_RUN, &[], &[], form).await?;
        Ok(())
    }

    /// Compares the faces of two pictures, each of exactly one face.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn verify(&self, first: Bytes, second: Bytes) -> Result<Verification, ClientError> {
        let form = Body::Form(vec![("image", Part::Image(first)), ("image", Part::Image(second))]);
        self.call(&operation::VERIFY, &[], &[], form).await
    }

    /// Begins a training: on the stored embeddings, or, if `full`, from the images.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn train(&self, full: bool) -> Result<Job, ClientError> {
        let operation = if full { &operation::TRAIN } else { &operation::OPTIMIZED_TRAIN };
        self.call(operation, &[], &[], Body::Nothing).await
    }

    /// Begins to compute all embeddings anew.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn generate_embeddings(&self) -> Result<Job, ClientError> {
        self.call(&operation::GENERATE_EMBEDDINGS, &[], &[], Body::Nothing).await
    }

    /// A page of jobs, the newest first.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn jobs(&self, query: &[(&str, String)]) -> Result<Jobs, ClientError> {
        self.call(&operation::JOBS, &[], query, Body::Nothing).await
    }

    /// How far a job is.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn job(&self, id: &str) -> Result<Job, ClientError> {
        self.call(&operation::JOB, &[id], &[], Body::Nothing).await
    }

    /// Ends a job.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn cancel_job(&self, id: &str) -> Result<Job, ClientError> {
        self.call(&operation::CANCEL_JOB, &[id], &[], Body::Nothing).await
    }

    /// All models, the newest first.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn models(&self) -> Result<Models, ClientError> {
        self.call(&operation::MODELS, &[], &[], Body::Nothing).await
    }

    /// Has a model answer that was trained before.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn activate_model(&self, version: u64) -> Result<Model, ClientError> {
        self.call(&operation::ACTIVATE_MODEL, &[&version.to_string()], &[], Body::Nothing).await
    }

    /// Removes a model that does not answer.
    ///
    /// # Errors
    /// As every call: see [`ClientError`]; `model_active` for the one that answers.
    pub async fn delete_model(&self, version: u64) -> Result<(), ClientError> {
        self.send(&operation::DELETE_MODEL, &[&version.to_string()], &[], Body::Nothing).await?;
        Ok(())
    }

    /// A detection; none where there is no such detection.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn detection(&self, id: i64) -> Result<Option<Detection>, ClientError> {
        let answer = self.call(&operation::DETECTION, &[&id.to_string()], &[], Body::Nothing).await;
        none_if("detection_not_found", answer)
    }

    /// Erases a detection. False: there is no such detection.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn erase_detection(&self, id: i64) -> Result<bool, ClientError> {
        let answer = self.send(&operation::ERASE_DETECTION, &[&id.to_string()], &[], Body::Nothing).await;
        Ok(none_if("detection_not_found", answer)?.is_some())
    }

    /// A page of detections. A `person` of the query is a Face ID.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn detections(&self, query: &[(&str, String)]) -> Result<Detections, ClientError> {
        let mut query = query.to_vec();
        for (name, value) in &mut query {
            if *name == "person" {
                (*name, *value) = ("person_id", self.person_id(value).await?);
            }
        }
        self.call(&operation::DETECTIONS, &[], &query, Body::Nothing).await
    }

    /// A page of a person's detections in the order of time; none where there is no such person.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn track(&self, id: &str, query: &[(&str, String)]) -> Result<Option<Track>, ClientError> {
        none_if("person_not_found", self.call_for_person(&operation::TRACK, id, query, Body::Nothing).await)
    }

    /// Where a person was seen last; none for one who was never seen.
    ///
    /// # Errors
    /// As every call: see [`ClientError`]; `person_not_found` for a name that nobody has.
    pub async fn last_known_location(&self, id: &str) -> Result<Option<LastKnownLocation>, ClientError> {
        let seen = self.call_for_person(&operation::LAST_KNOWN_LOCATION, id, &[], Body::Nothing).await;
        none_if("never_seen", seen)
    }

    /// Every camera that has a detection.
    ///
    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn cameras(&self) -> Result<Cameras, ClientError> {
        self.call(&operation::CAMERAS, &[], &[], Body::Nothing).await
    }

    /// The id of whoever has a name; asked for once, as long as nobody has turned out to have it no more.
    async fn person_id(&self, name: &str) -> Result<String, ClientError> {
        if let Some(id) = self.ids.lock().ok().and_then(|ids| ids.get(name).cloned()) {
            return Ok(id);
        }
        let body = Body::Json(json!({ "face_id": name }));
        let person: NamedPerson = self.call(&operation::FIND_PERSON, &[], &[], body).await?;
        let id = person.person_id.unwrap_or_default();
        if let Ok(mut ids) = self.ids.lock() {
            ids.insert(name.to_owned(), id.clone());
        }
        Ok(id)
    }

    fn forget_id(&self, name: &str) {
        if let Ok(mut ids) = self.ids.lock() {
            ids.remove(name);
        }
    }

    /// A call about a person of a name.
    async fn call_for_person<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        name: &str,
        query: &[(&str, String)],
        body: Body,
    ) -> Result<T, ClientError> {
        let id = self.person_id(name).await?;
        match self.call(operation, &[&id], query, body.clone()).await {
            // Erased, and perhaps enrolled again under the same name, since the id was asked for.
            Err(error) if error.code() == Some("person_not_found") => {
                self.forget_id(name);
                let id = self.person_id(name).await?;
                self.call(operation, &[&id], query, body).await
            }
            answer => answer,
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        values: &[&str],
        query: &[(&str, String)],
        body: Body,
    ) -> Result<T, ClientError> {
        let answer = self.send(operation, values, query, body).await?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(|error| ClientError::unreachable(&self.server, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.unexpected(operation, status, &error.to_string()))
    }

    /// Sends a request until it has an answer that is not “come back later”, or patience ends.
    async fn send(
        &self,
        operation: &Operation,
        values: &[&str],
        query: &[(&str, String)],
        body: Body,
    ) -> Result<Response, ClientError> {
        let begun = Instant::now();
        loop {
            let answer = self
                .request(operation, values, query, body.clone())
                .send()
                .await
                .map_err(|error| ClientError::unreachable(&self.server, &error))?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let pause = retry_delay(&answer);
            let error = self.refusal(operation, answer).await;
            match pause {
                Some(pause) if begun.elapsed() + pause <= self.retry_limit => tokio::time::sleep(pause).await,
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

    async fn refusal(&self, operation: &Operation, answer: Response) -> ClientError {
        let status = answer.status();
        let bytes = match answer.bytes().await {
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
            // A proxy in between answers in its own way.
            Err(_) if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                ClientError::Unauthorized { server: self.address(), message: status.to_string() }
            }
            Err(_) if status.is_server_error() => ClientError::Unreachable {
                server: self.address(),
                why: format!("something in between answered {status}"),
            },
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

/// The address of a call: below the server's own path, with each value as one segment, whatever is in it.
fn address(server: &Url, operation: &Operation, values: &[&str], query: &[(&str, String)]) -> Url {
    let mut url = server.clone();
    let mut values = values.iter();
    // Only an address without a host has no segments, and `Client::new` refuses those.
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

/// When to come back, if the server says that coming back helps.
fn retry_delay(answer: &Response) -> Option<Duration> {
    let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    match answer.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::LOCKED => {
            Some(asked.map_or(DEFAULT_RETRY_DELAY, Duration::from_secs))
        }
        StatusCode::SERVICE_UNAVAILABLE => asked.map(Duration::from_secs),
        _ => None,
    }
}

/// None instead of the refusal with that code.
fn none_if<T>(missing: &str, answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some(missing) => Ok(None),
        Err(error) => Err(error),
    }
}
