//! `/metrics`: the counters of [`crate::metrics`], and gauges that are read at the time of the scrape.

mod listener;
mod process;

pub use listener::{bind, serve};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{Counter, Gauge, GaugeVec, IntCounter, Opts, Registry, TextEncoder, proto::MetricFamily};
use tokio::sync::Mutex;

use crate::{
    access::AccessControl,
    disk::Folder,
    domain::{ErrorRate, JobStatus, ModelWarningCode, Task, now},
    metrics::Metrics,
    model_loader::ModelLoader,
    recognise::{MatchThreshold, Recogniser, VersionedModel},
    shares::{BytesInFlight, Connections},
    store::{Database, sql::Backlog},
    tls::ServerTls,
};

/// Maximum time that a scrape waits for the database.
const DATABASE_PATIENCE: Duration = Duration::from_secs(1);
/// How long the database's values, or its failure, are cached: several scrapers cost as much as one.
const DATABASE_CACHED: Duration = Duration::from_secs(3);

/// The sources of the values.
pub struct Sources {
    pub metrics: Arc<Metrics>,
    pub recogniser: Recogniser,
    /// The open connections.
    pub connections: Connections,
    /// Bytes of requests in memory.
    pub bytes: BytesInFlight,
    /// The active model.
    pub loader: Arc<ModelLoader>,
    /// The score from which a face is known.
    pub threshold: MatchThreshold,
    /// Jobs, the outbox, connections.
    pub database: Database,
    /// Who may use the server.
    pub access: Arc<AccessControl>,
    /// The process's role.
    pub role: &'static str,
    /// Whether the deployment groups unknown faces.
    pub groups_unknowns: bool,
    /// The folders that it writes to.
    pub folders: Vec<Folder>,
    /// TLS of the API's listener.
    pub tls: Option<Arc<ServerTls>>,
}

/// Renders the metrics of one server.
pub struct Exposition {
    sources: Sources,
    backlog: Mutex<Option<(Instant, Option<Backlog>)>>,
}

impl Exposition {
    /// Renders the metrics of `sources`.
    pub fn new(sources: Sources) -> Self {
        Self { sources, backlog: Mutex::new(None) }
    }

    /// Returns all metrics in Prometheus' text format, without those of the database if it does not respond in time.
    ///
    /// # Errors
    /// A metric cannot be rendered.
    pub async fn text(&self) -> prometheus::Result<String> {
        let backlog = self.backlog().await;
        let mut families = self.sources.metrics.gather();
        families.extend(self.live(backlog)?);
        families.sort_by(|one, other| one.name().cmp(other.name()));
        TextEncoder::new().encode_to_string(&families)
    }

    async fn backlog(&self) -> Option<Backlog> {
        let mut cached = self.backlog.lock().await;
        if let Some((read_at, backlog)) = *cached
            && read_at.elapsed() < DATABASE_CACHED
        {
            return backlog;
        }
        let read = tokio::time::timeout(DATABASE_PATIENCE, self.sources.database.backlog()).await;
        let backlog = read.ok().and_then(Result::ok);
        *cached = Some((Instant::now(), backlog));
        backlog
    }

    fn live(&self, backlog: Option<Backlog>) -> prometheus::Result<Vec<MetricFamily>> {
        let Sources { recogniser, loader, threshold, database, role, groups_unknowns, .. } = &self.sources;
        let snapshot = Snapshot(Registry::new());
        let Sources { connections, bytes, .. } = &self.sources;
        snapshot.gauge("facepipe_connections", "Open connections of clients.", connections.open() as f64)?;
        snapshot.gauge(
            "facepipe_request_bytes_in_memory",
            "Bytes of requests' bodies that are in memory.",
            bytes.held() as f64,
        )?;
        snapshot.gauge(
            "facepipe_queue_images",
            "Images that wait for recognition or are being recognised.",
            recogniser.waiting() as f64,
        )?;
        snapshot.gauge(
            "facepipe_queue_images_limit",
            "Images that may wait or be recognised at a time.",
            recogniser.capacity() as f64,
        )?;
        snapshot.gauge(
            "facepipe_queue_pixels",
            "Pixels of the images that wait for recognition or are being recognised.",
            recogniser.waiting_pixels() as f64,
        )?;
        if let Some(model) = loader.active() {
            snapshot.gauge(
                "facepipe_model_version",
                "Version of the model that answers.",
                model.version as f64,
            )?;
            snapshot.gauge(
                "facepipe_model_age_seconds",
                "Time since the model that answers was trained.",
                seconds_since(model.created_at),
            )?;
            snapshot.decision(&model, *threshold)?;
        }
        let connections = database.connections();
        snapshot.gauges(
            "facepipe_database_connections",
            "Connections to the database.",
            "state",
            &[("idle", f64::from(connections.idle)), ("used", f64::from(connections.used))],
        )?;
        snapshot.gauge(
            "facepipe_database_connections_limit",
            "Connections to the database at most.",
            f64::from(connections.limit),
        )?;
        snapshot.counter(
            "facepipe_database_errors_total",
            "Calls of the database that failed: it could not be reached in time, or refused a statement.",
            database.errors(),
        )?;
        snapshot.gauge(
            "facepipe_inference_threads",
            "Threads that networks run on.",
            rayon::current_num_threads() as f64,
        )?;
        snapshot.labelled(
            "facepipe_build_info",
            "Always 1: which program this is, with which embedder and for what.",
            &[("version", env!("CARGO_PKG_VERSION")), ("embedder", recogniser.embedder()), ("role", role)],
            1.0,
        )?;
        self.access(&snapshot)?;
        self.system(&snapshot)?;
        if let Some(tls) = &self.sources.tls {
            snapshot.gauge(
                "facepipe_tls_certificate_expires_timestamp_seconds",
                "When the server's certificate expires, since 1970.",
                tls.expires_at().unix_timestamp() as f64,
            )?;
            snapshot.counter(
                "facepipe_tls_handshakes_failed_total",
                "Connections of clients that did not get as far as a request: no TLS, or none that both sides accept.",
                tls.failed_handshakes(),
            )?;
        }
        if let Some(backlog) = backlog {
            snapshot.backlog(backlog, *groups_unknowns)?;
        }
        Ok(snapshot.0.gather())
    }

    /// Registers whether the known principals and tokens are up to date.
    fn access(&self, snapshot: &Snapshot) -> prometheus::Result<()> {
        let access = &self.sources.access;
        snapshot.gauge(
            "facepipe_access_age_seconds",
            "Time since this process read the principals and tokens of the database: revocations since then are not known.",
            seconds_since(access.read_at()),
        )?;
        let is_unusable = access.file().is_some_and(|file| file.is_unusable());
        snapshot.gauge(
            "facepipe_token_file_unusable",
            "Whether the token file is missing or invalid, so that the tokens before it stay.",
            if is_unusable { 1.0 } else { 0.0 },
        )
    }

    /// Registers the metrics of disks and of the process.
    fn system(&self, snapshot: &Snapshot) -> prometheus::Result<()> {
        let folders = &self.sources.folders;
        let disks: Vec<_> = folders.iter().filter_map(|folder| Some((folder.name, folder.disk()?))).collect();
        let free: Vec<(&str, f64)> = disks.iter().map(|(name, disk)| (*name, disk.free as f64)).collect();
        let size: Vec<(&str, f64)> = disks.iter().map(|(name, disk)| (*name, disk.size as f64)).collect();
        snapshot.gauges(
            "facepipe_disk_free_bytes",
            "What this process may still write on the disk of a folder.",
            "folder",
            &free,
        )?;
        snapshot.gauges("facepipe_disk_size_bytes", "The disk of a folder in all.", "folder", &size)?;
        for process::Reading { name, help, counter, value } in process::readings() {
            if counter {
                let seconds = Counter::new(name, help)?;
                seconds.inc_by(value);
                snapshot.0.register(Box::new(seconds))?;
            } else {
                snapshot.gauge(name, help, value)?;
            }
        }
        Ok(())
    }
}

fn seconds_since(moment: i64) -> f64 {
    now().saturating_sub(moment).max(0) as f64 / 1e6
}

/// Gauges of one scrape. A value that is not known has no series; a gauge that stayed registered would keep an old one.
struct Snapshot(Registry);

impl Snapshot {
    /// Returns the metrics of the active model's decision: its threshold and its expected error rates.
    fn decision(&self, model: &VersionedModel, threshold: MatchThreshold) -> prometheus::Result<()> {
        self.gauge(
            "facepipe_model_threshold",
            "Score from which a face is known to the model that answers.",
            f64::from(threshold.of(Some(model))),
        )?;
        let Some(calibration) = &model.calibration else { return Ok(()) };
        self.gauge(
            "facepipe_model_target_fpir",
            "Share of strangers who may be named, for which the model's threshold was chosen.",
            calibration.target_fpir,
        )?;
        self.gauge(
            "facepipe_model_cohort_faces",
            "Faces of strangers that the model's threshold was chosen with.",
            calibration.cohort as f64,
        )?;
        let rate = |rate: ErrorRate| [("estimate", rate.rate), ("lower", rate.lower), ("upper", rate.upper)];
        if let Some(fpir) = calibration.fpir {
            self.gauges(
                "facepipe_model_fpir",
                "Expected share of strangers who are named at the model's own threshold, with its 95 % interval.",
                "bound",
                &rate(fpir),
            )?;
        }
        if let Some(fnir) = calibration.fnir {
            self.gauges(
                "facepipe_model_fnir",
                "Expected share of pictures of enrolled people that are not named rightly, with its 95 % interval.",
                "bound",
                &rate(fnir),
            )?;
        }
        let has = |code| calibration.warnings.iter().any(|warning| warning.code == code);
        let warnings = ModelWarningCode::ALL.map(|code| (code.as_str(), if has(code) { 1.0 } else { 0.0 }));
        self.gauges(
            "facepipe_model_warnings",
            "Whether the calibration of the model that answers has a warning of this kind.",
            "code",
            &warnings,
        )
    }

    /// Returns the metrics of the database: jobs, the outbox, and runs of recurring work.
    fn backlog(&self, backlog: Backlog, groups_unknowns: bool) -> prometheus::Result<()> {
        let jobs: Vec<(&str, f64)> = JobStatus::ALL
            .iter()
            .zip(backlog.jobs)
            .map(|(status, jobs)| (status.as_str(), jobs as f64))
            .collect();
        self.gauges("facepipe_jobs", "Jobs of the deployment.", "status", &jobs)?;
        self.gauge(
            "facepipe_outbox_messages",
            "Results of the deployment that wait to be sent to the external API.",
            backlog.messages as f64,
        )?;
        self.gauge(
            "facepipe_outbox_oldest_seconds",
            "Time that the oldest of those waits; 0 where none does.",
            backlog.oldest_message.map_or(0.0, seconds_since),
        )?;
        let [listed, ignored] = backlog.unknowns;
        self.gauges(
            "facepipe_unknowns",
            "Groups of unknown faces of the deployment, by whether lists leave them out.",
            "ignored",
            &[("false", listed as f64), ("true", ignored as f64)],
        )?;
        // Without grouping, the backlog would grow forever and raise an alert.
        if groups_unknowns {
            self.gauge(
                "facepipe_ungrouped_detections",
                "Detections that the grouping of unknown faces has not read yet, at most.",
                backlog.ungrouped_detections as f64,
            )?;
        }
        let last_runs = Task::ALL.into_iter().zip(backlog.task_runs);
        let last_runs: Vec<(Task, f64)> =
            last_runs.filter_map(|(task, finished_at)| Some((task, finished_at? as f64 / 1e6))).collect();
        let (backups, others): (Vec<_>, Vec<_>) =
            last_runs.into_iter().partition(|(task, _)| *task == Task::Backup);
        if let [(_, finished_at)] = backups.as_slice() {
            self.gauge(
                "facepipe_last_backup_timestamp_seconds",
                "When the deployment's last backup began that ended well, since 1970.",
                *finished_at,
            )?;
        }
        let others: Vec<(&str, f64)> = others.into_iter().map(|(task, at)| (task.name(), at)).collect();
        self.gauges(
            "facepipe_task_last_success_timestamp_seconds",
            "When recurring work of the deployment was done to its end last, since 1970.",
            "task",
            &others,
        )?;
        Ok(())
    }

    fn gauge(&self, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
        self.labelled(name, help, &[], value)
    }

    fn labelled(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) -> prometheus::Result<()> {
        let options = labels
            .iter()
            .fold(Opts::new(name, help), |options, (label, value)| options.const_label(*label, *value));
        let gauge = Gauge::with_opts(options)?;
        gauge.set(value);
        self.0.register(Box::new(gauge))
    }

    fn gauges(&self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) -> prometheus::Result<()> {
        let gauges = GaugeVec::new(Opts::new(name, help), &[label])?;
        for (of, value) in values {
            gauges.with_label_values(&[*of]).set(*value);
        }
        self.0.register(Box::new(gauges))
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.0.register(Box::new(counter))
    }
}
