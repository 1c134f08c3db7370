//! A crop that waits for the backend, and the crops that share a request.

use std::time::Instant;

use super::{
    Crop,
    spool::{SpoolEntry, SpoolId},
};

/// After so many responses 500 a crop is sent alone: it may be the cause.
const SUSPICIOUS: u32 = 3;

/// After so many responses 500, the last to the crop alone, it is given up as the cause.
const MAX_INTERNAL_ERRORS: u32 = 5;

/// A crop that waits for the backend.
#[derive(Debug, Clone)]
pub(super) struct PendingUpload {
    pub crop: Crop,
    /// Since when it is in memory.
    pub queued_at: Instant,
    /// Requests that it was part of.
    pub attempts: u32,
    /// How many of them the backend answered with 500.
    pub internal_errors: u32,
    /// An earlier run spooled it.
    pub earlier_run: bool,
    /// To be sent in a request of its own.
    pub send_alone: bool,
    /// Its file, if it is from the spool.
    pub spooled: Option<SpoolId>,
    /// It was part of a request since `queued_at`.
    was_sent: bool,
}

impl PendingUpload {
    pub fn new(crop: Crop, now: Instant) -> Self {
        Self {
            crop,
            queued_at: now,
            attempts: 0,
            internal_errors: 0,
            earlier_run: false,
            send_alone: false,
            spooled: None,
            was_sent: false,
        }
    }

    pub fn from_spool(id: SpoolId, entry: SpoolEntry, now: Instant) -> Self {
        let SpoolEntry { crop, attempts, internal_errors, earlier_run } = entry;
        let send_alone = internal_errors >= SUSPICIOUS;
        Self { attempts, internal_errors, earlier_run, send_alone, spooled: Some(id), ..Self::new(crop, now) }
    }

    pub fn to_spool(&self) -> SpoolEntry {
        let Self { attempts, internal_errors, earlier_run, .. } = *self;
        SpoolEntry { crop: self.crop.clone(), attempts, internal_errors, earlier_run }
    }

    pub fn is_live(&self) -> bool {
        self.spooled.is_none()
    }

    /// Returns true if it was in no request since it was queued.
    #[cfg(feature = "traces")]
    pub fn is_first_attempt(&self) -> bool {
        !self.was_sent
    }

    /// Returns true if both can be in one request. Fields are matched to images by their order, so either all crops of a
    /// request have a field or none; and a request has one camera and one run.
    pub fn can_share_request_with(&self, other: &Self) -> bool {
        let (crop, other_crop) = (&self.crop, &other.crop);
        !self.send_alone
            && !other.send_alone
            && crop.track_id.is_some() == other_crop.track_id.is_some()
            && crop.run_id == other_crop.run_id
            && crop.bounding_box.is_some() == other_crop.bounding_box.is_some()
            && crop.camera == other_crop.camera
    }

    fn record_attempt(&mut self, internal_error: bool) {
        self.was_sent = true;
        self.attempts = self.attempts.saturating_add(1);
        self.internal_errors = self.internal_errors.saturating_add(u32::from(internal_error));
        self.send_alone |= self.internal_errors >= SUSPICIOUS;
    }
}

/// The crops of one request.
#[derive(Debug)]
pub(super) struct Batch {
    pub id: u64,
    pub crops: Vec<PendingUpload>,
    pub from_spool: bool,
    /// It probes whether the backend is healthy again, while nothing else is sent.
    pub is_probe: bool,
}

impl Batch {
    /// Returns true if it has a crop that was sent before.
    pub fn is_retry(&self) -> bool {
        self.crops.iter().any(|pending| pending.attempts > 0)
    }

    /// Records a request that did not settle the crops.
    pub fn record_attempt(&mut self, internal_error: bool) {
        self.crops.iter_mut().for_each(|pending| pending.record_attempt(internal_error));
    }

    /// Has each crop sent in a request of its own.
    pub fn split(&mut self) {
        self.crops.iter_mut().for_each(|pending| pending.send_alone = true);
    }

    /// Removes and returns the crops that are not to be sent again: those beyond the number of retries, if that is
    /// limited, and one that the backend keeps failing on.
    pub fn give_up(&mut self, retries: Option<u32>) -> Vec<PendingUpload> {
        let is_alone = self.crops.len() == 1;
        self.crops
            .extract_if(.., |pending| {
                let is_poisonous = is_alone && pending.internal_errors >= MAX_INTERNAL_ERRORS;
                is_poisonous || retries.is_some_and(|retries| pending.attempts > retries)
            })
            .collect()
    }
}
