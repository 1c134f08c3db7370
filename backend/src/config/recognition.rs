//! Recognition: networks, thresholds, the queue, and limits of images.

use std::{path::PathBuf, str::FromStr as _, time::Duration};

use anyhow::Context as _;
use facepipe_vision::{Compute, DecodeLimits, DeviceKind, EmbedderKind, default_models_dir};

use crate::recognise::{MatchThreshold, QueueLimits, RecogniserOptions};

/// Default number of predictions of a face in a response.
const DEFAULT_TOP_K: usize = 5;
/// Maximum number of predictions of a face in a response.
pub const MAX_TOP_K: usize = 100;

settings! {
    /// Recognition: networks, thresholds, the queue, and limits of images.
    RecognitionConfig, RecognitionFlags {
        /// Folder of the weights that `facepipe models fetch` installs
        models_dir: PathBuf = default_models_dir(), "FACEPIPE_MODELS", "DIR",
            unset "models where there is such a folder, else /usr/local/share/facepipe/models";
        /// Network that embeds faces: inception-resnet-v1, mobilefacenet or dlib-resnet
        embedder: String, "FACEPIPE_EMBEDDER", "NAME", unset "the first that is installed";
        /// Device of the networks: cpu, or cuda:<number> for NVIDIA's device of that number, which needs a program built
        /// with the feature cuda
        device: String = DeviceKind::default().to_string(), "FACEPIPE_DEVICE", "DEVICE";
        /// Implementation of the networks: native (SIMD kernels, for the device cpu) or candle (for any device)
        compute: String, "FACEPIPE_COMPUTE", "NAME", unset "native on the device cpu, candle on others";
        /// Minimum cosine between a known face and the person's mean embedding, -1 to 1
        match_threshold: f32, "FACEPIPE_MATCH_THRESHOLD", "COSINE", unset "what the model was calibrated for, or the embedder's",
            in -1.0..=1.0, unit " (a cosine)", arg [allow_negative_numbers = true];
        /// False positive identification rate that trainings calibrate the match threshold for: the share of strangers who
        /// may be named
        target_fpir: f64 = 0.01, "FACEPIPE_TARGET_FPIR", "SHARE", in 0.00001..=0.5, unit " (a share of strangers)";
        /// Minimum cosine between two faces that verify takes for one person, -1 to 1
        verify_threshold: f32, "FACEPIPE_VERIFY_THRESHOLD", "COSINE", unset "the embedder's",
            in -1.0..=1.0, unit " (a cosine)", arg [allow_negative_numbers = true];
        /// Predictions of a face in a response, where the request does not say how many
        top_k: usize = DEFAULT_TOP_K, "FACEPIPE_TOP_K", "N", in 1..=MAX_TOP_K;
        /// Whether detections of unknown faces keep their embedding
        keep_unknown_embeddings: bool = true, "FACEPIPE_KEEP_UNKNOWN_EMBEDDINGS", "true|false";
        /// Seconds after its last crop for which a track takes more of them, and for which the sum of their embeddings is kept to
        /// decide about all together; 0 has each crop decided by itself
        track_window_s: u32 = 600, "FACEPIPE_TRACK_WINDOW_S", "SECONDS", in 0..=86_400, unit " s";
        /// Shortest side of a face that is detected, pixels
        // MTCNN's first network looks at 12 pixels; below, it would have to enlarge the image.
        min_face_size: f32 = 20.0, "FACEPIPE_MIN_FACE_SIZE", "PIXELS", in 12.0..=10_000.0, unit " pixels";
        /// Images that may be queued or processed at a time; more are rejected with 429
        queue_images: u32 = 256, "FACEPIPE_QUEUE_IMAGES", "N", in 1..=65_536;
        /// Milliseconds that the queued images may take, at the current throughput; more are rejected with 429
        queue_budget_ms: u64 = 5000, "FACEPIPE_QUEUE_BUDGET_MS", "MS", in 1..=3_600_000;
        /// Pixels of the images that may be queued or processed at a time; more are rejected with 503
        queue_pixels: u64 = 400_000_000, "FACEPIPE_QUEUE_PIXELS", "PIXELS", in 1..=1_000_000_000_000;
        /// Seconds that an image may wait in the queue; its request is then rejected with 503
        queue_deadline_s: u64 = 60, "FACEPIPE_QUEUE_DEADLINE_S", "SECONDS", in 1..=3600;
        /// Images in a batch
        batch_images: usize = 16, "FACEPIPE_BATCH_IMAGES", "N", in 1..=1024;
        /// Images in a request
        max_images: usize = 64, "FACEPIPE_MAX_IMAGES", "N", in 1..=1024;
        /// Maximum size of an image, bytes
        max_image_bytes: usize = 10 * 1024 * 1024, "FACEPIPE_MAX_IMAGE_BYTES", "BYTES",
            in 1..=1 << 30;
        /// Maximum size of an image, pixels
        max_image_pixels: u64 = 50_000_000, "FACEPIPE_MAX_IMAGE_PIXELS", "PIXELS",
            in 1..=1_000_000_000;
        /// Maximum size of an image that a camera sends to store-results or send-results, pixels
        max_camera_pixels: u64 = 13_000_000, "FACEPIPE_MAX_CAMERA_PIXELS", "PIXELS", in 1..=1_000_000_000;
        /// Maximum size of all images of a request together, pixels
        max_request_pixels: u64 = 300_000_000, "FACEPIPE_MAX_REQUEST_PIXELS", "PIXELS", in 1..=1_000_000_000_000;
    }
}

impl RecognitionConfig {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.embedder_kind()?;
        self.device_kind()?;
        self.compute_kind()?;
        Ok(())
    }

    /// Returns the configured embedder.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn embedder_kind(&self) -> anyhow::Result<Option<EmbedderKind>> {
        self.embedder
            .as_deref()
            .map(EmbedderKind::from_str)
            .transpose()
            .context("embedder must be inception-resnet-v1, mobilefacenet or dlib-resnet")
    }

    /// Returns the device of the networks.
    ///
    /// # Errors
    /// There is no device of that name.
    pub fn device_kind(&self) -> anyhow::Result<DeviceKind> {
        self.device.parse().context("device must be cpu, cuda or cuda:<number>")
    }

    /// Returns the configured implementation of the networks.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn compute_kind(&self) -> anyhow::Result<Option<Compute>> {
        let compute = self.compute.as_deref().map(Compute::from_str).transpose();
        compute.context("compute must be native or candle")
    }

    /// Returns how long a track takes crops after its last one; `None` if each crop is decided by itself.
    pub(crate) fn track_window(&self) -> Option<Duration> {
        (self.track_window_s > 0).then(|| Duration::from_secs(self.track_window_s.into()))
    }

    /// Returns the limits of images.
    pub(crate) fn decode_limits(&self) -> DecodeLimits {
        DecodeLimits { max_bytes: self.max_image_bytes, max_pixels: self.max_image_pixels }
    }

    /// Returns the limits of images that cameras send.
    pub(crate) fn camera_limits(&self) -> DecodeLimits {
        let max_pixels = self.max_camera_pixels.min(self.max_image_pixels);
        DecodeLimits { max_pixels, ..self.decode_limits() }
    }

    /// Returns the options of recognition with an embedder that has this default threshold; `client_images` is the maximum of one
    /// client's images.
    pub(crate) fn options(&self, default_threshold: f32, client_images: Option<u32>) -> RecogniserOptions {
        let images = |number| usize::try_from(number).unwrap_or(usize::MAX);
        RecogniserOptions {
            threshold: MatchThreshold { configured: self.match_threshold, default: default_threshold },
            limits: QueueLimits {
                images: images(self.queue_images),
                client_images: images(client_images.unwrap_or(self.queue_images).min(self.queue_images)),
                pixels: self.queue_pixels,
                request_pixels: self.max_request_pixels,
                budget: Duration::from_millis(self.queue_budget_ms),
                deadline: Duration::from_secs(self.queue_deadline_s),
            },
            decode_limits: self.decode_limits(),
            camera_limits: self.camera_limits(),
            batch_images: self.batch_images,
        }
    }
}
