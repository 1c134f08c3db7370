//! Where log lines go, and in which form.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, LogFormat},
    mistakes::mistake,
};

/// Sends the process's log to standard error as configured.
///
/// # Errors
/// The filter cannot be parsed, or the process logs already.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| mistake(anyhow::anyhow!("log is {:?}, which is no filter: {error}", config.log)))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.try_init(),
        // A line's one span is the request's, with its id.
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).try_init(),
    }
    .map_err(|error| anyhow::anyhow!(error))
}
