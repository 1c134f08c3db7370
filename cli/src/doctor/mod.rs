//! `facepipe doctor`: checks whether this machine meets the pipelines' requirements.

mod checks;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

/// Checks whether this machine has what the pipelines need, and says how to fix what is missing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe doctor
  facepipe doctor --server https://faces.example --token-file /etc/facepipe/token
  facepipe doctor --server https://faces.example --ca-file /etc/facepipe/ca.pem
  facepipe doctor --spool-dir /var/spool/facepipe --json

The backend is called through the proxy of http_proxy, https_proxy, all_proxy
and no_proxy, as in facesink-http, except on this machine.

Exit code 0: no check failed (there may be warnings); 1: a check failed.")]
pub struct Options {
    /// Address of the backend, as facesink-http's backend-url
    #[arg(long, env = "FACEPIPE_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Token for the backend
    #[arg(
        long,
        env = "FACEPIPE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        conflicts_with = "token_file"
    )]
    token: Option<String>,
    /// File with the token for the backend
    #[arg(long, env = "FACEPIPE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust in addition to the system's, as facesink-http's ca-file
    #[arg(long, env = "FACEPIPE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Digest of the backend's public key, as facesink-http's pinned-sha256
    #[arg(long, env = "FACEPIPE_PINNED_SHA256", value_name = "PIN")]
    pinned_sha256: Option<String>,
    /// This client's certificate (PEM), as facesink-http's client-cert
    #[arg(long, env = "FACEPIPE_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// The private key of --client-cert (PEM), as facesink-http's client-key
    #[arg(long, env = "FACEPIPE_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// Send the token even over http to another machine, as facesink-http's allow-insecure-token
    #[arg(long, env = "FACEPIPE_INSECURE_TOKEN")]
    insecure_token: bool,
    /// Folder in which facesink-http keeps crops while the backend is away
    #[arg(long, value_name = "DIR")]
    spool_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Works with restrictions.
    Warning,
    /// Something will not work.
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// How to fix it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failed(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Failed, found: found.into(), remedy: Some(remedy.into()) }
    }
}

#[derive(Serialize)]
struct Findings {
    healthy: bool,
    checks: Vec<Check>,
}

/// Runs all checks and prints them.
///
/// # Errors
/// The output cannot be written as JSON.
pub fn run(options: &Options) -> Result<ExitCode> {
    let checks = checks::all(options);
    let healthy = checks.iter().all(|check| check.state != State::Failed);
    let findings = Findings { healthy, checks };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for check in &findings.checks {
            let mark = match check.state {
                State::Ok => "ok     ",
                State::Warning => "warning",
                State::Failed => "FAILED ",
            };
            println!("{mark}  {:<18} {}", check.name, check.found);
            if let Some(remedy) = &check.remedy {
                println!("         {:<18} -> {remedy}", "");
            }
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
