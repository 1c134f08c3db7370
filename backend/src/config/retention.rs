//! Detections: for how long they are kept, and which times of capture are plausible.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{domain::PlausibleRange, store::retention::RetentionOptions};

const MINUTE_S: u64 = 60;
const DAY_S: u64 = 86_400;

settings! {
    /// Detections: for how long they are kept, and which times of capture are plausible.
    RetentionConfig, RetentionFlags {
        /// What happens to the detections of a person who is erased
        erase_detections: ErasedDetections = ErasedDetections::Anonymise, "FACEPIPE_ERASE_DETECTIONS", "POLICY";
        /// Days after their capture for which detections are kept
        detections_max_age_days: u32, "FACEPIPE_DETECTIONS_MAX_AGE_DAYS", "DAYS", unset "forever",
            in 1..=36_500;
        /// Minutes by which a capture time may be ahead of its arrival; beyond, the time of arrival replaces it
        captured_at_max_ahead_minutes: u32 = 5, "FACEPIPE_CAPTURED_AT_MAX_AHEAD_MINUTES", "MINUTES",
            in 1..=52_560_000;
        /// Days by which a capture time may be behind its arrival, as long as crops may wait in a spool; beyond, the time
        /// of arrival replaces it. 36500 accepts recordings of any age with their own time
        captured_at_max_behind_days: u32 = 30, "FACEPIPE_CAPTURED_AT_MAX_BEHIND_DAYS", "DAYS", in 1..=36_500;
    }
}

/// What happens to the detections of a person who is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ErasedDetections {
    /// They stay, as those of somebody unknown.
    Anonymise,
    /// They are deleted.
    Delete,
}

impl RetentionConfig {
    /// Returns for how long detections are kept; `None` forever.
    pub fn detections_max_age(&self) -> Option<Duration> {
        self.detections_max_age_days.map(|days| Duration::from_secs(u64::from(days) * DAY_S))
    }

    /// Returns whether a person's detections are deleted with the person.
    pub(crate) fn erases_detections(&self) -> bool {
        self.erase_detections == ErasedDetections::Delete
    }

    /// Returns how far a capture time may be from its arrival.
    pub(crate) fn plausible_times(&self) -> PlausibleRange {
        PlausibleRange::new(
            Duration::from_secs(u64::from(self.captured_at_max_ahead_minutes) * MINUTE_S),
            Duration::from_secs(u64::from(self.captured_at_max_behind_days) * DAY_S),
        )
    }

    /// Returns the options of retention: what is deleted, and when.
    pub(crate) fn options(&self) -> RetentionOptions {
        RetentionOptions { max_age: self.detections_max_age(), ahead: self.plausible_times().ahead }
    }
}
