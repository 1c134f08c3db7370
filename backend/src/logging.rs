//! Log lines: one for each request, with the path's pattern and never the path itself, which may name a person.

use std::{
    io::{self, IsTerminal},
    time::Instant,
};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Sends the process's log to standard error as configured.
///
/// # Errors
/// The filter cannot be parsed, or the process logs already.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| anyhow::anyhow!("log is {:?}, which is no filter: {error}", config.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!(error))
}

/// Logs a request when it was answered.
///
/// # Errors
/// Those of the request.
pub async fn log_request(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let begun = Instant::now();
    let answer = next.call(request).await?;
    let request = answer.request();
    tracing::info!(
        method = %request.method(),
        route = request.match_pattern().as_deref().unwrap_or("-"),
        status = answer.status().as_u16(),
        duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
    Ok(answer)
}
