//! What this process is within a deployment, and how servers of a deployment share work.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

settings! {
    /// What this process is within a deployment, and how servers of a deployment share work.
    DeploymentConfig, DeploymentFlags {
        /// What this server is for: recognize serves /face-recognition only, manage serves everything else and does the
        /// work in the background
        role: ServerRole = ServerRole::All, "FACEPIPE_ROLE", "ROLE";
        /// Milliseconds between looks for changes by other servers, where the database does not announce them
        poll_interval_ms: u64 = 1000, "FACEPIPE_POLL_INTERVAL_MS", "MS", in 1..=3_600_000;
        /// Seconds after which another server takes up the job of one that died
        lease_s: u64 = 15, "FACEPIPE_LEASE_S", "SECONDS", in 1..=3600;
    }
}

/// What a process of a deployment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ServerRole {
    /// Serves `/face-recognition/…` and does no work in the background.
    Recognize,
    /// Serves everything else, trains, sends results to the external API, sweeps, and deletes old detections.
    Manage,
    /// Both.
    All,
}

impl ServerRole {
    /// Returns its name in settings and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recognize => "recognize",
            Self::Manage => "manage",
            Self::All => "all",
        }
    }

    /// Returns whether this server does the deployment's work in the background.
    pub fn manages(self) -> bool {
        self != Self::Recognize
    }
}

impl DeploymentConfig {
    /// Returns the time between checks for changes by other servers.
    pub(crate) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }

    /// Returns how long a lease lasts unless it is renewed.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_s)
    }
}
