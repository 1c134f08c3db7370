//! The log.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, LogFormat},
    config_errors::config_error,
};

/// Starts logging to standard error as configured.
///
/// # Errors
/// The filter cannot be parsed, or logging was started before.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.logging.log).map_err(|error| {
        config_error(anyhow::anyhow!("log is {:?}, which is no filter: {error}", config.logging.log))
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match config.logging.log_format {
        LogFormat::Text => log.try_init(),
        // The only span is the request's, with its id.
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).try_init(),
    }
    .map_err(|error| anyhow::anyhow!(error))
}
