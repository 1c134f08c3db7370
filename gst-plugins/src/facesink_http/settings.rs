//! The properties of `facesink-http`: their values, descriptions and defaults. The cropping properties are those of
//! `facecrop`.

use std::{path::PathBuf, time::Duration};

use gst::{glib, prelude::*};

use crate::{
    crop_pipeline::CropPipelineSettings,
    crop_properties,
    upload::{Camera, DropPolicy, Endpoint, RuntimeSettings, SpoolConfig, Token, TokenError, UploadConfig},
};

/// `retries` without a limit.
const UNLIMITED: i32 = -1;

/// Maximum `batch-size`: the backend's default limit.
const MAX_BATCH: u32 = 64;

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub backend_url: String,
    pub camera_id: Option<String>,
    pub camera_location: String,
    pub endpoint: Endpoint,
    /// Seconds.
    pub timeout: u32,
    pub max_queue: u32,
    pub batch_size: u32,
    /// Milliseconds.
    pub batch_delay: u32,
    pub workers: u32,
    pub retries: i32,
    pub token: Option<Result<Token, TokenError>>,
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub pinned_sha256: Option<String>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub allow_insecure_token: bool,
    pub otlp_endpoint: Option<String>,
    pub spool_dir: Option<PathBuf>,
    pub spool_max_bytes: u64,
    pub drop_policy: DropPolicy,
    /// Seconds.
    pub eos_timeout: u32,
    /// Seconds.
    pub stats_interval: u32,
    pub capture_start: Option<String>,
    pub crop: CropPipelineSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            backend_url: "http://127.0.0.1:8080".into(),
            camera_id: None,
            camera_location: String::new(),
            endpoint: Endpoint::default(),
            timeout: 15,
            max_queue: 512,
            batch_size: 8,
            batch_delay: 1000,
            workers: 2,
            retries: UNLIMITED,
            token: None,
            token_file: None,
            ca_file: None,
            pinned_sha256: None,
            client_cert: None,
            client_key: None,
            allow_insecure_token: false,
            otlp_endpoint: None,
            spool_dir: None,
            spool_max_bytes: 256 << 20,
            drop_policy: DropPolicy::default(),
            eos_timeout: 30,
            stats_interval: 60,
            capture_start: None,
            crop: CropPipelineSettings::default(),
        }
    }
}

impl Settings {
    pub fn runtime(&self) -> RuntimeSettings {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        RuntimeSettings {
            timeout: Duration::from_secs(self.timeout.into()),
            max_queue: size(self.max_queue),
            batch_size: size(self.batch_size),
            batch_delay: Duration::from_millis(self.batch_delay.into()),
            retries: u32::try_from(self.retries).ok(),
            drop_policy: self.drop_policy,
            token: self.token.clone().and_then(Result::ok),
            token_file: self.token_file.clone(),
            stats_interval: Duration::from_secs(self.stats_interval.into()),
        }
    }

    fn spool(&self) -> Option<SpoolConfig> {
        let folder = self.spool_dir.clone()?;
        (self.spool_max_bytes > 0).then_some(SpoolConfig { folder, max_bytes: self.spool_max_bytes })
    }

    pub fn camera(&self) -> Camera {
        let id = self.camera_id.clone().unwrap_or_else(|| glib::host_name().into());
        Camera { id, location: self.camera_location.clone() }
    }

    pub fn upload_config(&self) -> UploadConfig {
        UploadConfig {
            backend_url: self.backend_url.clone(),
            endpoint: self.endpoint,
            ca_file: self.ca_file.clone(),
            pinned_sha256: self.pinned_sha256.clone(),
            client_cert: self.client_cert.clone(),
            client_key: self.client_key.clone(),
            allow_insecure_token: self.allow_insecure_token,
            workers: usize::try_from(self.workers).unwrap_or(1),
            otlp_endpoint: self.otlp_endpoint.clone(),
            spool: self.spool(),
            settings: self.runtime(),
            ..UploadConfig::default()
        }
    }

    /// Sets a property; GObject has checked type and range. Returns true if the uploader has to know it.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        let text = || value.get::<Option<String>>().unwrap_or_default();
        let filled = || text().filter(|text| !text.is_empty());
        let number = |default: u32| value.get::<u32>().unwrap_or(default);
        let defaults = Self::default();
        match name {
            "backend-url" => self.backend_url = text().unwrap_or(defaults.backend_url),
            "camera-id" => self.camera_id = filled(),
            "camera-location" => self.camera_location = text().unwrap_or_default(),
            "endpoint" => self.endpoint = value.get().unwrap_or_default(),
            "timeout" => self.timeout = number(defaults.timeout),
            "max-queue" => self.max_queue = number(defaults.max_queue),
            "drop-policy" => self.drop_policy = value.get().unwrap_or_default(),
            "batch-size" => self.batch_size = number(defaults.batch_size),
            "batch-delay" => self.batch_delay = number(defaults.batch_delay),
            "workers" => self.workers = number(defaults.workers),
            "retries" => self.retries = value.get().unwrap_or(defaults.retries),
            "token" => self.token = filled().map(|text| Token::new(&text)),
            "token-file" => self.token_file = filled().map(PathBuf::from),
            "ca-file" => self.ca_file = filled().map(PathBuf::from),
            "pinned-sha256" => self.pinned_sha256 = filled(),
            "client-cert" => self.client_cert = filled().map(PathBuf::from),
            "client-key" => self.client_key = filled().map(PathBuf::from),
            "allow-insecure-token" => self.allow_insecure_token = value.get().unwrap_or_default(),
            "otlp-endpoint" => self.otlp_endpoint = filled(),
            "spool-dir" => self.spool_dir = filled().map(PathBuf::from),
            "spool-max-bytes" => self.spool_max_bytes = value.get().unwrap_or(defaults.spool_max_bytes),
            "eos-timeout" => self.eos_timeout = number(defaults.eos_timeout),
            "stats-interval" => self.stats_interval = number(defaults.stats_interval),
            "capture-start" => self.capture_start = filled(),
            name => {
                crop_properties::set(&mut self.crop, value, name);
                return false;
            }
        }
        true
    }

    /// Returns the value of a property, `None` for one that cannot be read.
    pub fn get(&self, name: &str) -> Option<glib::Value> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).to_value();
        Some(match name {
            "backend-url" => self.backend_url.to_value(),
            "camera-id" => self.camera_id.to_value(),
            "camera-location" => self.camera_location.to_value(),
            "endpoint" => self.endpoint.to_value(),
            "timeout" => self.timeout.to_value(),
            "max-queue" => self.max_queue.to_value(),
            "drop-policy" => self.drop_policy.to_value(),
            "batch-size" => self.batch_size.to_value(),
            "batch-delay" => self.batch_delay.to_value(),
            "workers" => self.workers.to_value(),
            "retries" => self.retries.to_value(),
            "token-file" => path(&self.token_file),
            "ca-file" => path(&self.ca_file),
            "pinned-sha256" => self.pinned_sha256.to_value(),
            "client-cert" => path(&self.client_cert),
            "client-key" => path(&self.client_key),
            "allow-insecure-token" => self.allow_insecure_token.to_value(),
            "otlp-endpoint" => self.otlp_endpoint.to_value(),
            "spool-dir" => path(&self.spool_dir),
            "spool-max-bytes" => self.spool_max_bytes.to_value(),
            "eos-timeout" => self.eos_timeout.to_value(),
            "stats-interval" => self.stats_interval.to_value(),
            "capture-start" => self.capture_start.to_value(),
            name => return crop_properties::get(&self.crop, name),
        })
    }
}

/// Returns the element's properties.
pub(super) fn param_specs() -> Vec<glib::ParamSpec> {
    let defaults = Settings::default();
    let mut properties = vec![
        glib::ParamSpecString::builder("backend-url")
            .nick("Backend URL")
            .blurb("Root of the backend's API, http:// or https://")
            .default_value(Some(defaults.backend_url.as_str()))
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("camera-id")
            .nick("Camera ID")
            .blurb("Name of the camera, stored with each detection (unset = this machine's host name)")
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("camera-location")
            .nick("Camera location")
            .blurb("Where the camera stands, stored with each detection")
            .default_value(Some(defaults.camera_location.as_str()))
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("endpoint", defaults.endpoint)
            .nick("Endpoint")
            .blurb("The backend's call to post crops to")
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt::builder("timeout")
            .nick("Timeout")
            .blurb(
                "Limit for one request, from connecting to the whole response (seconds); then it is retried (0 = no \
                 limit: only a broken connection ends it)",
            )
            .default_value(defaults.timeout)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("max-queue")
            .nick("Maximum queue length")
            .blurb(
                "Maximum number of crops in memory; when it is reached, drop-policy applies. With a spool, crops \
                 beyond half of it are written to disk",
            )
            .minimum(1)
            .default_value(defaults.max_queue)
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("drop-policy", defaults.drop_policy)
            .nick("Drop policy")
            .blurb("Which crop is dropped when max-queue is reached")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("batch-size")
            .nick("Batch size")
            .blurb("Maximum number of crops in one request; larger batches save bytes and calls")
            .minimum(1)
            .maximum(MAX_BATCH)
            .default_value(defaults.batch_size)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("batch-delay")
            .nick("Batch delay")
            .blurb(
                "Maximum time that a crop waits for others to share its request (milliseconds; 0 = none)",
            )
            .default_value(defaults.batch_delay)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("workers")
            .nick("Workers")
            .blurb(
                "Maximum number of concurrent requests; one of them is reserved for live crops",
            )
            .minimum(1)
            .maximum(64)
            .default_value(defaults.workers)
            .mutable_ready()
            .build(),
        glib::ParamSpecInt::builder("retries")
            .nick("Retries")
            .blurb(
                "How often a crop is sent again before it is given up; with a spool, number of consecutive \
                 failures before crops are spooled (-1 = no limit, spooled at once)",
            )
            .minimum(UNLIMITED)
            .default_value(defaults.retries)
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("token")
            .nick("Token")
            .blurb(
                "Sent as `Authorization: Bearer …`. Write-only; command lines are visible to other users, so prefer \
                 token-file",
            )
            .write_only()
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("token-file")
            .nick("Token file")
            .blurb(
                "File with the token, used while token is unset; read again when it changes or the backend \
                 rejects the token",
            )
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("ca-file")
            .nick("CA file")
            .blurb(
                "Certificates (PEM) to trust for https beside the system's: those of authorities, or the \
                 backend's own, also a self-signed one",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("pinned-sha256")
            .nick("Pinned keys")
            .blurb(
                "SHA-256 of the backend's public key in base64, with or without sha256// before it (RFC 7469), \
                 several separated by semicolons: a server with one of these keys is the backend, whatever its \
                 certificate says; with ca-file, the certificate is checked as well",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("client-cert")
            .nick("Client certificate")
            .blurb(
                "File with this client's certificate (PEM), by which it proves itself to the backend over https; read \
                 again when it changes",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("client-key")
            .nick("Client key")
            .blurb("File with the private key of client-cert (PEM; unset = in client-cert)")
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("allow-insecure-token")
            .nick("Allow insecure token")
            .blurb(
                "Send the token even over http to another machine, where everybody on the way can read it; otherwise the \
                 element refuses to start",
            )
            .default_value(defaults.allow_insecure_token)
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("otlp-endpoint")
            .nick("Traces endpoint")
            .blurb(
                "Collector for OpenTelemetry traces of the uploads, http:// or https:// (OTLP over HTTP; \
                 unset = none)",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecString::builder("spool-dir")
            .nick("Spool folder")
            .blurb(
                "Folder on a local disk, for this element alone, where crops wait during an outage and across \
                 restarts; created with mode 0700 (unset = in memory only)",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt64::builder("spool-max-bytes")
            .nick("Spool size")
            .blurb(
                "Size of all files in spool-dir (bytes); beyond it the oldest crops are dropped (0 = no spool)",
            )
            .default_value(defaults.spool_max_bytes)
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt::builder("eos-timeout")
            .nick("EOS timeout")
            .blurb(
                "Maximum time to wait at the end of the stream for crops in the queue or on the spool (seconds)",
            )
            .default_value(defaults.eos_timeout)
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt::builder("stats-interval")
            .nick("Statistics interval")
            .blurb("How often the statistics are posted as an element message (seconds; 0 = never)")
            .default_value(defaults.stats_interval)
            .mutable_playing()
            .build(),
        glib::ParamSpecString::builder("capture-start")
            .nick("Capture start")
            .blurb("When the recording was started (RFC 3339, 2024-05-06T07:08:09Z); unset = live")
            .mutable_ready()
            .build(),
        glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
            .nick("Statistics")
            .blurb(
                "Counts since the start. Crops: queued (in memory now), sent, failed (rejected, or given up after \
                 retries), dropped (queue full, or left at the stop), spooled, spool-files (now), spool-dropped, \
                 spool-damaged, clock-refused (with this machine's time instead of the camera's); spool-bytes \
                 (now), spool-errors; requests, retries; bytes (written to the network, headers included), \
                 bytes-received, image-bytes (of the images sent). For raw video: \
                 below-min-size and below-min-quality (faces that were left out), tracks-below-min-size and \
                 tracks-below-min-quality and \
                 tracks-below-certainty (tracks that ended without a crop for that reason), min-size (the limit \
                 for frames like the last one, pixels)",
            )
            .read_only()
            .build(),
    ];
    properties.extend(crop_properties::param_specs());
    properties
}
