//! The audit log: whether it is kept, and for how long.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Seconds of a day.
const DAY_S: u64 = 86_400;

settings! {
    /// The audit log: whether it is kept, and for how long.
    AuditConfig, AuditFlags {
        /// Whether looks at people, enrolments, erasures and other acts are recorded in the audit log; what cannot be
        /// recorded is refused then
        audit: AuditSwitch = AuditSwitch::On, "FACEPIPE_AUDIT", "SWITCH";
        /// Days for which entries of the audit log are kept
        audit_max_age_days: u32 = 365, "FACEPIPE_AUDIT_MAX_AGE_DAYS", "DAYS", in 1..=36_500;
    }
}

/// Whether the audit log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AuditSwitch {
    /// It is.
    On,
    /// It is not.
    Off,
}

impl AuditConfig {
    /// Returns whether the audit log is kept.
    pub(crate) fn is_on(&self) -> bool {
        self.audit == AuditSwitch::On
    }

    /// Returns for how long entries are kept.
    pub(crate) fn max_age(&self) -> Duration {
        Duration::from_secs(u64::from(self.audit_max_age_days) * DAY_S)
    }
}
