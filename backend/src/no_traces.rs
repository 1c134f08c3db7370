//! Replaces `traces.rs` in a build without it: nothing is traced.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use actix_web::http::{Method, StatusCode, header::HeaderMap};
use reqwest::Url;

use crate::request_id::RequestId;

/// The context of spans, which does not exist in this build.
#[derive(Debug, Clone)]
pub enum Trace {}

/// Sends nothing.
pub struct Traces;

impl Traces {
    /// Starts nothing: a configuration that names a collector was refused.
    ///
    /// # Errors
    /// None.
    pub fn start(_: Option<&Url>) -> anyhow::Result<Self> {
        Ok(Self)
    }
}

/// Returns `None`.
pub fn begin_request(_: &HeaderMap, _: &Method, _: &str, _: &RequestId) -> Option<Trace> {
    None
}

/// Runs the handling of a request.
pub async fn within<F: Future>(_: Option<&Trace>, answering: F) -> F::Output {
    answering.await
}

/// Is never called, since no request is traced.
pub fn end_request(request: &Trace, _: StatusCode) {
    match *request {}
}

/// Is never called.
pub fn abandon_request(request: &Trace) {
    match *request {}
}

/// Is never called.
pub fn trace_id(request: &Trace) -> String {
    match *request {}
}

/// Returns `None`.
pub fn current() -> Option<Trace> {
    None
}

/// A step that is not recorded.
pub struct Step;

impl Step {
    /// Returns a step of this name.
    pub fn new(_: &'static str, _: Instant, _: Duration) -> Self {
        Self
    }

    /// Returns the same with a count.
    pub fn count(self, _: &'static str, _: usize) -> Self {
        self
    }

    /// Records nothing.
    pub fn record(self, _: Option<&Trace>) {}
}

/// Records nothing.
pub fn record_embedding<'a>(_: impl Iterator<Item = &'a Trace>, _: usize, _: Instant, _: Duration, _: usize) {
}

/// Runs a call of the database.
///
/// # Errors
/// The call's.
pub fn database_call<T, E>(
    _: Option<&Trace>,
    _: &'static str,
    _: &'static str,
    _: impl FnOnce(&E) -> bool,
    call: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    call()
}
