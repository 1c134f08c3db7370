//! The log and traces.

use clap::ValueEnum;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::http_url;
use crate::optional;

settings! {
    /// The log and traces.
    LoggingConfig, LoggingFlags {
        /// What is logged: error, warn, info, debug, or RUST_LOG's syntax
        log: String = "info".into(), "FACEPIPE_LOG", "FILTER";
        /// The form of log lines
        log_format: LogFormat = LogFormat::Text, "FACEPIPE_LOG_FORMAT", "FORMAT";
        /// Collector of OpenTelemetry traces, http:// or https://, e.g. http://127.0.0.1:4318; the usual OTEL_* variables
        /// set sampling, batches, headers and resources
        otlp_endpoint: String, "FACEPIPE_OTLP_ENDPOINT", "URL", unset "none, nothing is traced";
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LoggingConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if let Some(collector) = self.otlp_endpoint()? {
            optional::TRACES.needed_by("otlp_endpoint", &collector.origin().ascii_serialization())?;
        }
        Ok(())
    }

    /// Returns the collector's URL.
    ///
    /// # Errors
    /// It is no URL, or of a scheme other than http and https.
    pub fn otlp_endpoint(&self) -> anyhow::Result<Option<Url>> {
        http_url("otlp_endpoint", self.otlp_endpoint.as_deref())
    }
}
