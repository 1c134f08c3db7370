//! The dataset: when two names or two images count as the same.

use crate::domain::SameName;

settings! {
    /// The dataset: when two names or two images count as the same.
    DatasetConfig, DatasetFlags {
        /// Whether Face IDs that differ only in capital and small letters are the same person's; the same on all servers
        /// of a deployment
        face_ids_ignore_case: bool = true, "FACEPIPE_FACE_IDS_IGNORE_CASE", "true|false";
        /// Minimum cosine between images of two people that count as the same picture: enrolling the second is warned of,
        /// and a training leaves both out, -1 to 1
        same_picture_threshold: f32, "FACEPIPE_SAME_PICTURE_THRESHOLD", "COSINE", unset "the embedder's",
            in -1.0..=1.0, unit " (a cosine)", arg [allow_negative_numbers = true];
        /// Minimum quality of a face that is enrolled, 0 (any) to 100: the score of its size, sharpness, pose, brightness and
        /// the detector's confidence
        min_quality: u32 = 0, "FACEPIPE_MIN_QUALITY", "SCORE", in 0..=100;
    }
}

impl DatasetConfig {
    /// Returns the rule by which Face IDs count as the same person's.
    pub fn same_name(&self) -> SameName {
        if self.face_ids_ignore_case { SameName::IgnoringCase } else { SameName::MindingCase }
    }
}
