//! Unknown people: how their faces are grouped.

use std::time::Duration;

settings! {
    /// Unknown people: how their faces are grouped.
    UnknownsConfig, UnknownsFlags {
        /// Whether unknown faces are grouped, so that one person's have one id; needs keep_unknown_embeddings
        group_unknowns: bool = true, "FACEPIPE_GROUP_UNKNOWNS", "true|false";
        /// Distance up to which two groups of unknown faces are one person's: one minus the mean cosine between their faces.
        /// Less than the default gives fewer groups with two people's faces and more groups for one person
        unknown_max_distance: f32, "FACEPIPE_UNKNOWN_MAX_DISTANCE", "DISTANCE", unset "the embedder's",
            in 0.05..=0.95, unit " (one minus a cosine)";
        /// Faces from which a group is listed, unless a request says otherwise
        unknown_min_faces: u32 = 1, "FACEPIPE_UNKNOWN_MIN_FACES", "FACES", in 1..=1000;
        /// Whether stored unknown faces are searched for people whom a training adds to the model, which makes proposals
        search_past: bool = true, "FACEPIPE_SEARCH_PAST", "true|false";
        /// Whether pictures of unknown faces are kept, cut out of the images; needs keep_unknown_embeddings
        unknown_pictures: bool = false, "FACEPIPE_UNKNOWN_PICTURES", "true|false";
        /// Hours for which they are kept
        unknown_max_age_hours: u64 = 72, "FACEPIPE_UNKNOWN_MAX_AGE_HOURS", "HOURS", in 1..=8760;
        /// Hour of the day, UTC, at which all unknown faces are grouped together again
        unknown_regroup_hour: u32 = 3, "FACEPIPE_UNKNOWN_REGROUP_HOUR", "HOUR", in 0..=23;
    }
}

impl UnknownsConfig {
    /// Checks that unknown faces keep their embeddings if their pictures are kept.
    pub(super) fn check(&self, keep_unknown_embeddings: bool) -> anyhow::Result<()> {
        anyhow::ensure!(
            keep_unknown_embeddings || !self.unknown_pictures,
            "unknown_pictures is true, which needs keep_unknown_embeddings: pictures are kept of detections that have \
             an embedding"
        );
        Ok(())
    }

    /// Returns how long pictures of unknown faces are kept; `None` if none are.
    pub(crate) fn picture_max_age(&self) -> Option<Duration> {
        self.unknown_pictures.then(|| Duration::from_secs(self.unknown_max_age_hours * 3600))
    }
}
