//! The cohort: what fills it besides uploads.

use crate::cohort::FillOptions;

settings! {
    /// The cohort: what fills it besides uploads.
    CohortConfig, CohortFlags {
        /// Whether unknown faces of the cameras are added to the cohort: the embedding of one face of each track, as long
        /// as detections keep theirs, without people who are enrolled
        cohort_from_cameras: bool = false, "FACEPIPE_COHORT_FROM_CAMERAS", "true|false";
        /// Embeddings from cameras that the cohort has at most; further ones replace the oldest
        cohort_max: u32 = 5000, "FACEPIPE_COHORT_MAX", "N", in 1..=100_000;
    }
}

impl CohortConfig {
    /// Checks that unknown faces keep their embeddings if cameras fill the cohort.
    pub(super) fn check(&self, keep_unknown_embeddings: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            keep_unknown_embeddings || !self.cohort_from_cameras,
            "cohort_from_cameras is true, which needs keep_unknown_embeddings: the cohort is filled from the embeddings \
             of unknown detections"
        );
        Ok(())
    }

    /// Returns how the cohort is filled.
    pub(crate) fn options(&self) -> FillOptions {
        FillOptions { from_cameras: self.cohort_from_cameras, max: self.cohort_max }
    }
}
