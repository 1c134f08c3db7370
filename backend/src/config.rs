//! Everything that can be configured: built-in defaults, under a file, under the environment, under flags.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use facepipe_shared::VERSION;
use facepipe_vision::{DeviceKind, EmbedderKind, default_models_dir};
use figment::{
    Figment,
    providers::{Format as _, Serialized, Toml},
};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::{
    disk::Folder,
    domain::{PlausibleRange, SameName},
    mistakes::{self, mistake},
    optional,
    store::{Blobs, retention::RetentionOptions, sql::DatabaseOptions},
};

/// The configuration of a server. Each field is also a key of the configuration file, a flag of
/// `facepipe-backend` and an environment variable; `--help` explains them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which calls this process serves, and which of the deployment's work it does. `all` by default.
    pub role: ServerRole,
    /// Address and port; port 0 takes a free one. `127.0.0.1:8080` by default.
    pub listen: String,
    /// File that gets the address once the server is ready, and is removed when it stops.
    pub address_file: Option<PathBuf>,
    /// Address and port of `/metrics`, or `off`. `127.0.0.1:9464` by default, unless another server has it.
    pub metrics_listen: Option<String>,
    /// File of the bearer tokens that the server takes, a line `camera <token>` or `admin <token>` each. None by
    /// default: whoever reaches the server can do everything.
    pub token_file: Option<PathBuf>,
    /// Folder of the embedded database and the blobs. `data` by default.
    pub data_dir: PathBuf,
    /// Database: `sqlite://<path>`, `postgres://…` or `mysql://…`. `facepipe.db` in `data_dir` by default.
    pub database_url: Option<String>,
    /// Connections to a database server. 8 by default.
    pub database_connections: u32,
    /// Seconds that a call waits for a connection before the database counts as away. 5 by default.
    pub database_timeout_s: u64,
    /// Seconds that the start waits for a database server that is not there yet. 60 by default.
    pub database_start_timeout_s: u64,
    /// Whether the start brings the schema up to date. `true` by default; otherwise it waits for a schema that is new
    /// enough, for as long as `database_start_timeout_s`.
    pub migrate_at_start: bool,
    /// Whether a schema will do that is newer than this program knows: for going back to the version before after an
    /// upgrade, and for starting it while one is under way. `false` by default.
    pub allow_newer_schema: bool,
    /// Seconds that one statement may take. 30 by default.
    pub statement_timeout_s: u64,
    /// Milliseconds after which a change that another replica made is seen, where the database tells of none. 1000
    /// by default.
    pub poll_interval_ms: u64,
    /// Seconds after which the job of a replica that died is taken up by another. 15 by default.
    pub lease_s: u64,
    /// Where images and trained models are kept: `s3://bucket/prefix`, `az://container/prefix` or `file:///folder`.
    /// `blobs` in `data_dir` by default.
    pub blobs_url: Option<String>,
    /// Seconds between two sweeps for blobs that no row refers to. 3600 by default.
    pub sweep_interval_s: u64,
    /// Seconds that such a blob must be old to be removed. 3600 by default.
    pub sweep_min_age_s: u64,
    /// Whether Face IDs that differ only in capital and small letters are the same person's. `true` by default. All
    /// servers of a deployment must have the same.
    pub face_ids_ignore_case: bool,
    /// What becomes of a person's detections when the person is erased. `anonymise` by default.
    pub erase_detections: ErasedDetections,
    /// Days after their capture for which detections are kept. None by default: for ever.
    pub detections_max_age_days: Option<u32>,
    /// Minutes by which the capture time that a sender gives may be ahead of its arrival; beyond, the arrival counts. 5 by
    /// default.
    pub captured_at_max_ahead_minutes: u32,
    /// Days by which the capture time that a sender gives may be behind its arrival, as long as crops may wait on a spool;
    /// beyond, the arrival counts. 30 by default.
    pub captured_at_max_behind_days: u32,
    /// Folder of the weights. `models` by default.
    pub models_dir: PathBuf,
    /// `inception-resnet-v1`, `mobilefacenet` or `dlib-resnet`. By default the first of them whose weights are installed.
    pub embedder: Option<String>,
    /// What the networks run on: `cpu`, or `cuda:<number>` where the program was built with the feature `cuda`. `cpu` by
    /// default.
    pub device: String,
    /// Cosine to a person's mean embedding from which a face counts as known, -1 to 1. By default the embedder's.
    pub match_threshold: Option<f32>,
    /// Cosine between the embeddings of two faces from which they count as one person's, -1 to 1. By default the
    /// embedder's.
    pub verify_threshold: Option<f32>,
    /// Cosine between the embeddings of two people's images from which they are the same picture, so that nobody can tell
    /// whom it shows, -1 to 1. By default the embedder's.
    pub same_picture_threshold: Option<f32>,
    /// Whether detections of unknown faces keep their embedding. `true` by default.
    pub keep_unknown_embeddings: bool,
    /// Shortest side of a face that is looked for, pixels. 20 by default.
    pub min_face_size: f32,
    /// Images that may wait or be computed at a time. 256 by default.
    pub queue_images: u32,
    /// Milliseconds that those may take together, as far as can be told from the last ones. 5000 by default.
    pub queue_budget_ms: u64,
    /// Images that are computed together. 16 by default.
    pub batch_images: usize,
    /// Images in one request. 64 by default.
    pub max_images: usize,
    /// Bytes of one image. 10 MiB by default.
    pub max_image_bytes: usize,
    /// Pixels of one image. 50 million by default.
    pub max_image_pixels: u64,
    /// Bytes of one request. 64 MiB by default.
    pub max_request_bytes: usize,
    /// Seconds that a client may take to send its request. 30 by default.
    pub request_timeout_s: u64,
    /// Seconds for which a connection without a request is kept, as `Keep-Alive: timeout=…` announces. 75 by default:
    /// longer than proxies keep theirs, so that no request meets a connection that is being closed.
    pub keep_alive_s: u64,
    /// Origins of the web pages whose scripts may use the server from a browser, as CORS has them:
    /// `https://dashboard.example`, with a port where it is not the scheme's. None by default.
    pub cors_origins: Vec<String>,
    /// Where clients find the server, `https://example.org/faces`, where that is not what they would take from the
    /// request: behind a proxy that takes a path away. None by default.
    pub public_url: Option<String>,
    /// Folder of the guide that `/docs/guide` serves, as `make docs` builds it. By default
    /// [`GUIDE_DIR`](Self::GUIDE_DIR), where that is there.
    pub guide_dir: Option<PathBuf>,
    /// Seconds that a server that is to stop goes on serving while `/readyz` says 503, so that no load balancer sends
    /// anything when its port closes. 0 by default.
    pub drain_delay_s: u64,
    /// Seconds that accepted requests get to end when the server stops. 30 by default.
    pub shutdown_timeout_s: u64,
    /// URL of the external API that takes what send-results sends, `http://` or `https://`; a user and a password in it
    /// are sent as HTTP's basic authentication. None by default: send-results is refused.
    pub results_url: Option<String>,
    /// Seconds for which a result that the external API does not take is kept and tried again. 86400 by default.
    pub results_max_age_s: u64,
    /// Seconds that the external API may take to answer. 10 by default.
    pub results_timeout_s: u64,
    /// Threads that speak HTTP. 2 by default: recognition has its own.
    pub http_workers: usize,
    /// What is logged, in the syntax of `RUST_LOG`. `info` by default.
    pub log: String,
    /// How it is logged. `text` by default.
    pub log_format: LogFormat,
    /// Collector of OpenTelemetry traces, `http://` or `https://`: OTLP, protobuf over HTTP, to `v1/traces` below it.
    /// None by default: nothing is traced.
    pub otlp_endpoint: Option<String>,
}

/// What a process of a deployment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ServerRole {
    /// Answers `/face-recognition/…` and does none of the deployment's work in the background.
    Recognize,
    /// Answers everything else, trains, sends results to the external API, sweeps, and deletes old detections.
    Manage,
    /// Both.
    All,
}

impl ServerRole {
    /// As settings and errors name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recognize => "recognize",
            Self::Manage => "manage",
            Self::All => "all",
        }
    }

    /// Whether it does the deployment's work in the background.
    pub fn manages(self) -> bool {
        self != Self::Recognize
    }
}

/// What becomes of the detections of a person who is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ErasedDetections {
    /// They stay, as those of somebody unknown.
    Anonymise,
    /// They go with the person.
    Delete,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: ServerRole::All,
            listen: "127.0.0.1:8080".into(),
            address_file: None,
            metrics_listen: None,
            token_file: None,
            data_dir: "data".into(),
            database_url: None,
            database_connections: 8,
            database_timeout_s: 5,
            database_start_timeout_s: 60,
            migrate_at_start: true,
            allow_newer_schema: false,
            statement_timeout_s: 30,
            poll_interval_ms: 1000,
            lease_s: 15,
            blobs_url: None,
            sweep_interval_s: 3600,
            sweep_min_age_s: 3600,
            face_ids_ignore_case: true,
            erase_detections: ErasedDetections::Anonymise,
            detections_max_age_days: None,
            captured_at_max_ahead_minutes: 5,
            captured_at_max_behind_days: 30,
            models_dir: default_models_dir(),
            embedder: None,
            device: DeviceKind::default().to_string(),
            match_threshold: None,
            verify_threshold: None,
            same_picture_threshold: None,
            keep_unknown_embeddings: true,
            min_face_size: 20.0,
            queue_images: 256,
            queue_budget_ms: 5000,
            batch_images: 16,
            max_images: 64,
            max_image_bytes: 10 * 1024 * 1024,
            max_image_pixels: 50_000_000,
            max_request_bytes: 64 * 1024 * 1024,
            request_timeout_s: 30,
            keep_alive_s: 75,
            cors_origins: Vec::new(),
            public_url: None,
            guide_dir: None,
            drain_delay_s: 0,
            shutdown_timeout_s: 30,
            results_url: None,
            results_max_age_s: 86_400,
            results_timeout_s: 10,
            http_workers: 2,
            log: "info".into(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
        }
    }
}

/// Face recognition over HTTP: enrol people, train, ask who is on a picture, store who was seen where and when.
#[derive(Debug, Parser)]
#[command(
    name = "facepipe-backend",
    version = VERSION.as_str(),
    after_help = "\
Every setting can stand in a TOML file (--config; keys are the long flags with _ for -, e.g. `listen = \"0.0.0.0:8080\"`),
in the environment, or on the command line, before or after a command; the latter win. SIGTERM and SIGINT stop the
server after it has answered what it has accepted; a second one stops it at once.

Several servers may share a database server and the blobs. With --role, some of them only recognise and others do the
rest; --drain-delay-s lets a load balancer take one out before it stops. `/startupz`, `/livez` and `/readyz` are for
whoever starts, restarts, or sends traffic; `facepipe-backend health` asks for whoever has no HTTP client.

A first visit, in three commands:
  facepipe-backend &
  curl -X POST http://127.0.0.1:8080/dataset/Ada
  curl -F image=@ada.jpg http://127.0.0.1:8080/dataset/Ada/image

Then train and ask:
  curl -X POST 'http://127.0.0.1:8080/model/optimized-train?wait=true'
  curl -F image=@visitor.jpg http://127.0.0.1:8080/face-recognition/get-results

Without --token-file, whoever reaches the server can do everything: set it before you listen on other than the local
machine. The file has a line for each token, of at least 16 characters (`openssl rand -hex 32` makes one): `camera <token>`
may POST to /face-recognition, `admin <token>` may do everything. Empty lines and # comments are allowed. It is read
again when it changes, so that tokens come and go without a restart. Clients send `Authorization: Bearer <token>`, which
anybody on the way can read: put something that speaks TLS in front.

  (umask 077; echo \"admin $(openssl rand -hex 32)\" >tokens)
  facepipe-backend --token-file tokens &
  curl -H \"Authorization: Bearer $(cut -d ' ' -f 2 tokens)\" http://127.0.0.1:8080/dataset"
)]
pub struct Args {
    /// Configuration file, TOML
    #[arg(long, env = "FACEPIPE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration that would be used, as TOML, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Print the API's document, OpenAPI 3.0 as JSON, and exit; the server has it at /openapi.json and /docs
    #[arg(long)]
    pub print_openapi: bool,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What `facepipe-backend` does instead of serving, with the same settings.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Bring the database's schema up to date, and exit
    Migrate,
    /// Remove images and models that no row refers to, once, and exit
    Sweep,
    /// Delete detections that are older than --detections-max-age-days, once, and exit
    Retain {
        /// Believe this machine's clock, also where it is far ahead of the last time that this was done
        #[arg(long)]
        trust_clock: bool,
    },
    /// Copy database and blobs into a new folder, while servers go on, and exit. PostgreSQL and MySQL are copied by their
    /// own tools, which must be installed: pg_dump, mariadb-dump or mysqldump
    Backup {
        /// The folder; it must not be there yet, and appears when it is whole
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Restore a backup into a new data folder or an empty database, erase from it who was erased since, and exit.
    /// PostgreSQL and MySQL need pg_restore, mariadb or mysql
    Restore {
        /// The folder that `backup` wrote
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Folder with further entries of the ledger of erasures: a copy of `erasures/` that is newer than the backup
        #[arg(long, value_name = "DIR")]
        erasures: Option<PathBuf>,
    },
    /// Ask a running server whether it answers; exit with 0 where it does, else with 1
    Health {
        /// Where the server is [default: where --listen or --address-file says, on this machine]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
}

impl Args {
    /// Reads the command line and the environment. A mistake, `--help` and `--version` end the process.
    pub fn read() -> Self {
        let matches = Self::command_of_all_settings().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The environment variables that the program reads.
    pub fn variables() -> Vec<String> {
        let command = Self::command();
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        variables.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// The commands take every setting as well.
    fn command_of_all_settings() -> clap::Command {
        Self::command().mut_args(|argument| {
            let of_the_server = argument.get_id().as_str().starts_with("print_");
            argument.global(!of_the_server)
        })
    }
}

/// Settings of the environment and of the command line; the latter win.
#[derive(Debug, Default, clap::Args, Serialize)]
pub struct Settings {
    /// What this server is for: recognize answers /face-recognition only, manage everything else and does the work in
    /// the background [default: all]
    #[arg(long, env = "FACEPIPE_ROLE", value_name = "ROLE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<ServerRole>,
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, env = "FACEPIPE_LISTEN", value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// File that gets the address once the server is ready [default: none]
    #[arg(long, env = "FACEPIPE_ADDRESS_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    address_file: Option<PathBuf>,
    /// Address and port of /metrics for Prometheus, which anybody may read who reaches it; `off` for none
    /// [default: 127.0.0.1:9464, unless another server has it]
    #[arg(long, env = "FACEPIPE_METRICS_LISTEN", value_name = "ADDRESS:PORT|off")]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_listen: Option<String>,
    /// File of the bearer tokens that are taken; without, whoever reaches the server can do everything [default: none]
    #[arg(long, env = "FACEPIPE_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// Folder of the embedded database and of images and trained models [default: data]
    #[arg(long, env = "FACEPIPE_DATA_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    /// Database: sqlite://<path>, postgres://… or mysql://… [default: facepipe.db in the data folder]
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    /// Connections to a database server; SQLite has its own number [default: 8]
    #[arg(long, env = "FACEPIPE_DATABASE_CONNECTIONS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_connections: Option<u32>,
    /// Seconds that a call waits for a connection before it is answered with 503 [default: 5]
    #[arg(long, env = "FACEPIPE_DATABASE_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_timeout_s: Option<u64>,
    /// Seconds that the start waits for a database server that is not there yet [default: 60]
    #[arg(long, env = "FACEPIPE_DATABASE_START_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    database_start_timeout_s: Option<u64>,
    /// Whether the start brings the schema up to date; with false it waits for `facepipe-backend migrate` to have done
    /// so, as long as --database-start-timeout-s [default: true]
    #[arg(long, env = "FACEPIPE_MIGRATE_AT_START", value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    migrate_at_start: Option<bool>,
    /// Whether a schema will do that is newer than this program knows, for going back by one version after an upgrade
    /// [default: false]
    #[arg(long, env = "FACEPIPE_ALLOW_NEWER_SCHEMA", value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_newer_schema: Option<bool>,
    /// Seconds that one statement may take [default: 30]
    #[arg(long, env = "FACEPIPE_STATEMENT_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    statement_timeout_s: Option<u64>,
    /// Milliseconds after which another replica's change is seen where the database tells of none [default: 1000]
    #[arg(long, env = "FACEPIPE_POLL_INTERVAL_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    poll_interval_ms: Option<u64>,
    /// Seconds after which the job of a replica that died is taken up by another [default: 15]
    #[arg(long, env = "FACEPIPE_LEASE_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_s: Option<u64>,
    /// Where images and trained models are kept: s3://bucket/prefix, az://container/prefix or file:///folder
    /// [default: blobs in the data folder]
    #[arg(long, env = "FACEPIPE_BLOBS_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    blobs_url: Option<String>,
    /// Seconds between two sweeps for blobs that no row refers to [default: 3600]
    #[arg(long, env = "FACEPIPE_SWEEP_INTERVAL_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep_interval_s: Option<u64>,
    /// Seconds that such a blob must be old to be removed [default: 3600]
    #[arg(long, env = "FACEPIPE_SWEEP_MIN_AGE_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep_min_age_s: Option<u64>,
    /// Whether Face IDs that differ only in capital and small letters are the same person's; the same on all servers of a
    /// deployment [default: true]
    #[arg(long, env = "FACEPIPE_FACE_IDS_IGNORE_CASE", value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    face_ids_ignore_case: Option<bool>,
    /// What becomes of a person's detections when the person is erased [default: anonymise]
    #[arg(long, env = "FACEPIPE_ERASE_DETECTIONS", value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    erase_detections: Option<ErasedDetections>,
    /// Days after their capture for which detections are kept [default: for ever]
    #[arg(long, env = "FACEPIPE_DETECTIONS_MAX_AGE_DAYS", value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    detections_max_age_days: Option<u32>,
    /// Minutes by which a capture time may be ahead of its arrival; beyond, the arrival counts [default: 5]
    #[arg(long, env = "FACEPIPE_CAPTURED_AT_MAX_AHEAD_MINUTES", value_name = "MINUTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_at_max_ahead_minutes: Option<u32>,
    /// Days by which a capture time may be behind its arrival, as long as crops may wait on a spool; beyond, the arrival
    /// counts. 36500 takes recordings of any age at their own time [default: 30]
    #[arg(long, env = "FACEPIPE_CAPTURED_AT_MAX_BEHIND_DAYS", value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_at_max_behind_days: Option<u32>,
    /// Folder of the weights that `facepipe models fetch` installs [default: models where there is such a folder, else
    /// /usr/local/share/facepipe/models]
    #[arg(long, env = "FACEPIPE_MODELS", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    models_dir: Option<PathBuf>,
    /// Network that embeds faces: inception-resnet-v1, mobilefacenet or dlib-resnet [default: the first that is
    /// installed]
    #[arg(long, env = "FACEPIPE_EMBEDDER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    embedder: Option<String>,
    /// What the networks run on: cpu, or cuda:<number> for NVIDIA's device of that number, which needs a program built
    /// with the feature cuda [default: cpu]
    #[arg(long, env = "FACEPIPE_DEVICE", value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Cosine to a person's mean embedding from which a face counts as known, -1 to 1 [default: the embedder's]
    #[arg(long, env = "FACEPIPE_MATCH_THRESHOLD", value_name = "COSINE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    match_threshold: Option<f32>,
    /// Cosine between two faces from which verify takes them for one person, -1 to 1 [default: the embedder's]
    #[arg(long, env = "FACEPIPE_VERIFY_THRESHOLD", value_name = "COSINE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    verify_threshold: Option<f32>,
    /// Cosine between images of two people from which they are the same picture: enrolling the second is warned of, and a
    /// training leaves both out, -1 to 1 [default: the embedder's]
    #[arg(
        long,
        env = "FACEPIPE_SAME_PICTURE_THRESHOLD",
        value_name = "COSINE",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    same_picture_threshold: Option<f32>,
    /// Whether detections of unknown faces keep their embedding [default: true]
    #[arg(long, env = "FACEPIPE_KEEP_UNKNOWN_EMBEDDINGS", value_name = "true|false")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_unknown_embeddings: Option<bool>,
    /// Shortest side of a face that is looked for, pixels [default: 20]
    #[arg(long, env = "FACEPIPE_MIN_FACE_SIZE", value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_face_size: Option<f32>,
    /// Images that may wait or be computed at a time; more are answered with 429 [default: 256]
    #[arg(long, env = "FACEPIPE_QUEUE_IMAGES", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_images: Option<u32>,
    /// Milliseconds that those may take together, at the pace of the last ones; more are answered with 429
    /// [default: 5000]
    #[arg(long, env = "FACEPIPE_QUEUE_BUDGET_MS", value_name = "MS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_budget_ms: Option<u64>,
    /// Images that are computed together [default: 16]
    #[arg(long, env = "FACEPIPE_BATCH_IMAGES", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_images: Option<usize>,
    /// Images in one request [default: 64]
    #[arg(long, env = "FACEPIPE_MAX_IMAGES", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_images: Option<usize>,
    /// Bytes of one image [default: 10485760]
    #[arg(long, env = "FACEPIPE_MAX_IMAGE_BYTES", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_image_bytes: Option<usize>,
    /// Pixels of one image [default: 50000000]
    #[arg(long, env = "FACEPIPE_MAX_IMAGE_PIXELS", value_name = "PIXELS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_image_pixels: Option<u64>,
    /// Bytes of one request [default: 67108864]
    #[arg(long, env = "FACEPIPE_MAX_REQUEST_BYTES", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_request_bytes: Option<usize>,
    /// Seconds that a client may take to send its request [default: 30]
    #[arg(long, env = "FACEPIPE_REQUEST_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    request_timeout_s: Option<u64>,
    /// Seconds for which a connection without a request is kept, and announced as `Keep-Alive: timeout=...`: more than
    /// the proxy in front keeps its own [default: 75]
    #[arg(long, env = "FACEPIPE_KEEP_ALIVE_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive_s: Option<u64>,
    /// Origins of web pages whose scripts may use the server (CORS), separated by commas, e.g.
    /// https://dashboard.example,http://localhost:3000 [default: none]
    #[arg(long, env = "FACEPIPE_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    cors_origins: Option<Vec<String>>,
    /// Where clients find the server behind a proxy that takes a path away, e.g. https://example.org/faces: the document's
    /// server, and what Location begins with [default: none, the root of whatever host was asked]
    #[arg(long, env = "FACEPIPE_PUBLIC_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    public_url: Option<String>,
    /// Folder of the guide that /docs/guide serves, as `make docs` builds it
    /// [default: /usr/share/facepipe/guide, where a package has installed it]
    #[arg(long, env = "FACEPIPE_GUIDE_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    guide_dir: Option<PathBuf>,
    /// Seconds that a server that is to stop goes on serving while /readyz says 503 [default: 0]
    #[arg(long, env = "FACEPIPE_DRAIN_DELAY_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_delay_s: Option<u64>,
    /// Seconds that accepted requests get to end when the server stops [default: 30]
    #[arg(long, env = "FACEPIPE_SHUTDOWN_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shutdown_timeout_s: Option<u64>,
    /// External API that takes what send-results sends, http:// or https://; user and password in it are sent as basic
    /// authentication [default: none]
    #[arg(long, env = "FACEPIPE_RESULTS_URL", value_name = "URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    results_url: Option<String>,
    /// Seconds for which a result that the external API does not take is tried again [default: 86400]
    #[arg(long, env = "FACEPIPE_RESULTS_MAX_AGE_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    results_max_age_s: Option<u64>,
    /// Seconds that the external API may take to answer [default: 10]
    #[arg(long, env = "FACEPIPE_RESULTS_TIMEOUT_S", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    results_timeout_s: Option<u64>,
    /// Threads that speak HTTP; recognition has its own [default: 2]
    #[arg(long, env = "FACEPIPE_HTTP_WORKERS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_workers: Option<usize>,
    /// What is logged: error, warn, info, debug, or RUST_LOG's syntax [default: info]
    #[arg(long, env = "FACEPIPE_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// How it is logged [default: text]
    #[arg(long, env = "FACEPIPE_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
    /// Collector of OpenTelemetry traces, http:// or https://, e.g. http://127.0.0.1:4318; OTEL_* variables say of
    /// sampling, batches, headers and resources what they always say [default: none, nothing is traced]
    #[arg(long, env = "FACEPIPE_OTLP_ENDPOINT", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp_endpoint: Option<String>,
}

impl Config {
    /// Where packages install the guide.
    pub const GUIDE_DIR: &str = "/usr/share/facepipe/guide";
    /// The guide's first page.
    pub(crate) const GUIDE_PAGE: &str = "index.html";

    /// Puts defaults, file, environment and flags together and checks the result.
    ///
    /// # Errors
    /// The file cannot be read or has an unknown key; a value is outside of what it may be (the error names the
    /// setting, the value and the limit). All of them are [mistakes](mistakes::is_mistake).
    pub fn load(args: &Args) -> anyhow::Result<Self> {
        Self::put_together(args).map_err(mistake)
    }

    /// The names of all settings, as keys of the configuration file.
    pub(crate) fn keys() -> Vec<String> {
        let settings = serde_json::to_value(Self::default()).unwrap_or_default();
        settings.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }

    fn put_together(args: &Args) -> anyhow::Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = &args.config {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
            // What is no TOML is told by figment.
            let unknown =
                text.parse().map(|table| mistakes::unknown_keys(&table, &Self::keys())).unwrap_or_default();
            if let Some(key) = unknown.first() {
                anyhow::bail!("the configuration file {} has {key}, which is no setting", file.display());
            }
            figment = figment.merge(Toml::string(&text));
        }
        let config: Self = figment.merge(Serialized::defaults(&args.settings)).extract()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.embedder_kind()?;
        self.device_kind()?;
        self.results_url()?;
        if let Some(collector) = self.otlp_endpoint()? {
            optional::TRACES.needed_by("otlp_endpoint", &collector.origin().ascii_serialization())?;
        }
        self.public_url()?;
        self.cors_origins()?;
        if let Some(folder) = &self.guide_dir {
            anyhow::ensure!(
                folder.join(Self::GUIDE_PAGE).is_file(),
                "guide_dir is {}, where there is no {}: it must be a folder that `make docs` has built",
                folder.display(),
                Self::GUIDE_PAGE
            );
        }
        let thresholds = [
            ("match_threshold", self.match_threshold),
            ("verify_threshold", self.verify_threshold),
            ("same_picture_threshold", self.same_picture_threshold),
        ];
        for (name, threshold) in thresholds {
            anyhow::ensure!(
                threshold.is_none_or(|cosine| (-1.0..=1.0).contains(&cosine)),
                "{name} is {}, it must be from -1 to 1 (a cosine)",
                threshold.unwrap_or_default()
            );
        }
        // MTCNN's first net looks at 12 pixels; below, it would have to enlarge the picture.
        anyhow::ensure!(
            (12.0..=10_000.0).contains(&self.min_face_size),
            "min_face_size is {}, it must be from 12 to 10000 pixels",
            self.min_face_size
        );
        let limits = [
            ("database_connections", u64::from(self.database_connections), 1024),
            ("database_timeout_s", self.database_timeout_s, 3600),
            ("database_start_timeout_s", self.database_start_timeout_s, 86_400),
            ("statement_timeout_s", self.statement_timeout_s, 3600),
            ("poll_interval_ms", self.poll_interval_ms, 3_600_000),
            ("lease_s", self.lease_s, 3600),
            ("sweep_interval_s", self.sweep_interval_s, 31_536_000),
            ("queue_images", u64::from(self.queue_images), 65_536),
            ("queue_budget_ms", self.queue_budget_ms, 3_600_000),
            ("batch_images", as_u64(self.batch_images), 1024),
            ("max_images", as_u64(self.max_images), 1024),
            ("max_image_bytes", as_u64(self.max_image_bytes), 1 << 30),
            ("max_image_pixels", self.max_image_pixels, 1_000_000_000),
            ("max_request_bytes", as_u64(self.max_request_bytes), 1 << 34),
            ("request_timeout_s", self.request_timeout_s, 86_400),
            ("keep_alive_s", self.keep_alive_s, 3600),
            ("shutdown_timeout_s", self.shutdown_timeout_s, 86_400),
            ("results_max_age_s", self.results_max_age_s, 31_536_000),
            ("results_timeout_s", self.results_timeout_s, 300),
            ("http_workers", as_u64(self.http_workers), 1024),
            ("captured_at_max_ahead_minutes", u64::from(self.captured_at_max_ahead_minutes), 52_560_000),
            ("captured_at_max_behind_days", u64::from(self.captured_at_max_behind_days), 36_500),
        ];
        for (name, value, most) in limits {
            anyhow::ensure!((1..=most).contains(&value), "{name} is {value}, it must be from 1 to {most}");
        }
        anyhow::ensure!(
            self.drain_delay_s <= 3600,
            "drain_delay_s is {}, it must be from 0 to 3600",
            self.drain_delay_s
        );
        if let Some(days) = self.detections_max_age_days {
            anyhow::ensure!(
                (1..=36_500).contains(&days),
                "detections_max_age_days is {days}, it must be from 1 to 36500"
            );
        }
        Ok(())
    }

    /// The embedder that was asked for, if one was.
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

    /// What the networks run on.
    ///
    /// # Errors
    /// There is no device of that name.
    pub fn device_kind(&self) -> anyhow::Result<DeviceKind> {
        self.device.parse().context("device must be cpu, cuda or cuda:<number>")
    }

    /// The external API's URL, where there is one.
    ///
    /// # Errors
    /// It is no URL, or of a scheme other than http and https. The message has no password.
    pub fn results_url(&self) -> anyhow::Result<Option<Url>> {
        http_url("results_url", self.results_url.as_deref())
    }

    /// The collector's URL, where there is one.
    ///
    /// # Errors
    /// It is no URL, or of a scheme other than http and https.
    pub fn otlp_endpoint(&self) -> anyhow::Result<Option<Url>> {
        http_url("otlp_endpoint", self.otlp_endpoint.as_deref())
    }

    /// The folder of the guide, whether or not it is there.
    pub fn guide(&self) -> &Path {
        self.guide_dir.as_deref().unwrap_or(Path::new(Self::GUIDE_DIR))
    }

    /// Where clients find the server, without a `/` at its end.
    ///
    /// # Errors
    /// It is no URL, of a scheme other than http and https, or has a user, a query or a fragment.
    pub fn public_url(&self) -> anyhow::Result<Option<String>> {
        let Some(url) = http_url("public_url", self.public_url.as_deref())? else { return Ok(None) };
        anyhow::ensure!(
            url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none(),
            "public_url must be scheme://host/path, without a user, a query or a fragment"
        );
        Ok(Some(url.as_str().trim_end_matches('/').to_owned()))
    }

    /// The origins of pages that may use the server, as browsers write them.
    ///
    /// # Errors
    /// One is no origin of http or https.
    pub fn cors_origins(&self) -> anyhow::Result<Vec<String>> {
        let origin = |text: &String| {
            let url = http_url("cors_origins", Some(text)).with_context(|| {
                format!("cors_origins has {text:?}, an origin is scheme://host or scheme://host:port")
            })?;
            let url = url.filter(|url| {
                url.path() == "/"
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
                    && url.fragment().is_none()
                    && !url.host_str().unwrap_or_default().contains('*')
            });
            let url = url.with_context(|| {
                format!(
                    "cors_origins has {text:?}, an origin is scheme://host or scheme://host:port: no path, no user, no *"
                )
            })?;
            Ok(url.origin().ascii_serialization())
        };
        self.cors_origins.iter().map(origin).collect()
    }

    /// The database's URL.
    pub fn database_url(&self) -> String {
        match &self.database_url {
            Some(url) => url.clone(),
            None => format!("sqlite://{}", self.data_dir.join("facepipe.db").display()),
        }
    }

    /// How to reach the database.
    pub fn database_options(&self) -> DatabaseOptions {
        DatabaseOptions {
            url: self.database_url(),
            connections: self.database_connections,
            migrate_at_start: self.migrate_at_start,
            connect_timeout: Duration::from_secs(self.database_timeout_s),
            statement_timeout: Duration::from_secs(self.statement_timeout_s),
            start_timeout: Duration::from_secs(self.database_start_timeout_s),
            allow_newer_schema: self.allow_newer_schema,
        }
    }

    /// Which Face IDs are the same person's.
    pub fn same_name(&self) -> SameName {
        if self.face_ids_ignore_case { SameName::IgnoringCase } else { SameName::MindingCase }
    }

    /// For how long detections are kept; `None` for ever.
    pub fn detections_max_age(&self) -> Option<Duration> {
        self.detections_max_age_days.map(|days| Duration::from_secs(u64::from(days) * 86_400))
    }

    /// How far a capture time may be from its arrival.
    pub(crate) fn plausible_times(&self) -> PlausibleRange {
        PlausibleRange::new(
            Duration::from_secs(u64::from(self.captured_at_max_ahead_minutes) * 60),
            Duration::from_secs(u64::from(self.captured_at_max_behind_days) * 86_400),
        )
    }

    /// What is kept for how long.
    pub(crate) fn retention(&self) -> RetentionOptions {
        RetentionOptions { max_age: self.detections_max_age(), ahead: self.plausible_times().ahead }
    }

    /// Opens the store of images and models.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_blobs(&self) -> anyhow::Result<Blobs> {
        match &self.blobs_url {
            Some(url) => Blobs::open_url(url),
            None => Blobs::open_folder(&self.blobs_dir()),
        }
    }

    /// The folder of the blobs, where they lie in one; `None` of S3 and Azure.
    ///
    /// # Errors
    /// `blobs_url` is no URL, or of a folder of another machine.
    pub fn blobs_folder(&self) -> anyhow::Result<Option<PathBuf>> {
        match &self.blobs_url {
            Some(url) => Blobs::folder_of(url),
            None => Ok(Some(self.blobs_dir())),
        }
    }

    /// The folder of the blobs, where no URL says otherwise.
    pub fn blobs_dir(&self) -> PathBuf {
        self.data_dir.join("blobs")
    }

    /// The folders that this process writes to: that of its data, and that of the blobs where it lies elsewhere.
    pub(crate) fn folders(&self) -> Vec<Folder> {
        let mut folders = vec![Folder { name: "data", path: self.data_dir.clone() }];
        let blobs = self.blobs_url.as_deref().and_then(|url| Url::parse(url).ok());
        let blobs = blobs.filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
        if let Some(path) = blobs.filter(|path| !path.starts_with(&self.data_dir)) {
            folders.push(Folder { name: "blobs", path });
        }
        folders
    }

    /// The configuration as the TOML file that would give it, with passwords of URLs left out.
    ///
    /// # Errors
    /// A path is not Unicode, or `results_url` is none.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut shown = self.clone();
        shown.database_url = Some(without_password(&self.database_url()));
        if let Some(mut url) = self.results_url()?
            && url.password().is_some()
        {
            // Fails for URLs without a host only, which have no password either.
            let _ = url.set_password(Some("***"));
            shown.results_url = Some(url.into());
        }
        Ok(toml::to_string(&shown)?)
    }
}

/// The URL of a setting.
fn http_url(setting: &'static str, text: Option<&str>) -> anyhow::Result<Option<Url>> {
    let Some(text) = text else { return Ok(None) };
    let url = Url::parse(text).with_context(|| format!("{setting} is no URL"))?;
    anyhow::ensure!(
        matches!(url.scheme(), "http" | "https"),
        "{setting} begins with {}:, it must begin with http:// or https://",
        url.scheme()
    );
    Ok(Some(url))
}

/// `scheme://user:password@host` without the password.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{host}")
        }
        None => url.to_owned(),
    }
}

fn as_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_can_stand_in_file_environment_and_flags() {
        let keys = serde_json::to_value(Config::default()).unwrap();
        let command = Args::command_of_all_settings();
        command.clone().debug_assert();
        for key in keys.as_object().unwrap().keys() {
            let argument = command.get_arguments().find(|a| a.get_id() == key.as_str());
            let argument = argument.unwrap_or_else(|| panic!("no flag for {key}"));
            assert_eq!(argument.get_long().map(|l| l.replace('-', "_")).as_deref(), Some(key.as_str()));
            assert!(argument.get_env().is_some(), "no environment variable for {key}");
        }
    }

    #[test]
    fn a_value_outside_of_its_limits_is_refused_by_name() {
        let config = Config { match_threshold: Some(1.5), ..Config::default() };
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("match_threshold") && error.contains("1.5") && error.contains("-1 to 1"),
            "{error}"
        );
        let config = Config { max_images: 0, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("max_images is 0"));
        let config = Config { verify_threshold: Some(f32::NAN), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("verify_threshold is NaN"));
        let config = Config { results_timeout_s: 0, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("results_timeout_s is 0"));
        let config = Config { detections_max_age_days: Some(0), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("detections_max_age_days is 0"));
        let config = Config { drain_delay_s: 3601, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("drain_delay_s is 3601"));
        let config = Config { otlp_endpoint: Some("grpc://127.0.0.1:4317".into()), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("otlp_endpoint begins with grpc:"));
        let config = Config { embedder: Some("arcface".into()), ..Config::default() };
        assert!(format!("{:#}", config.check().unwrap_err()).contains("arcface"));
    }

    #[test]
    fn results_go_to_http_urls_only() {
        let told = |url: &str| {
            let config = Config { results_url: Some(url.into()), ..Config::default() };
            config.check().map_err(|error| format!("{error:#}"))
        };
        for url in ["http://127.0.0.1:9000/results", "https://user:secret@api.example/faces?a=b"] {
            assert_eq!(told(url), Ok(()));
        }
        for (url, named) in [
            ("ftp://user:secret@api.example/", "ftp:"),
            ("api.example:80/results", "api.example:"),
            ("/results", "results_url is no URL"),
            ("http://user:secret@/", "results_url is no URL"),
            ("", "results_url is no URL"),
        ] {
            let error = told(url).unwrap_err();
            assert!(error.contains("results_url") && error.contains(named), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn origins_are_those_that_browsers_write() {
        let read = |origins: &[&str]| {
            let cors_origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
            let config = Config { cors_origins, ..Config::default() };
            config.check().and_then(|()| config.cors_origins()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(
            read(&["https://Dashboard.example:443/", "http://localhost:3000", "http://[::1]:80"]).unwrap(),
            ["https://dashboard.example", "http://localhost:3000", "http://[::1]"]
        );
        for wrong in
            ["*", "null", "", "https://*.example", "https://a.example/path", "ftp://a.example", "a.example"]
        {
            let error = read(&["https://good.example", wrong]).unwrap_err();
            assert!(error.contains(&format!("cors_origins has {wrong:?}")), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_public_url_is_a_place_and_nothing_else() {
        let read = |url: &str| {
            let config = Config { public_url: Some(url.into()), ..Config::default() };
            config.check().and_then(|()| config.public_url()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(read("https://example.org/faces/").unwrap().as_deref(), Some("https://example.org/faces"));
        assert_eq!(read("http://10.0.0.7:8080").unwrap().as_deref(), Some("http://10.0.0.7:8080"));
        for wrong in [
            "/faces",
            "example.org",
            "ftp://example.org",
            "https://u@example.org",
            "https://example.org/?a=b",
        ] {
            assert!(read(wrong).unwrap_err().contains("public_url"), "{wrong}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("postgres://u:p@ss@h/db"), "postgres://u:***@h/db");
        assert_eq!(without_password("sqlite:///x.db"), "sqlite:///x.db");
        let config = Config { results_url: Some("https://u:secret@h/r@s".into()), ..Config::default() };
        assert!(config.to_toml().unwrap().contains("\"https://u:***@h/r@s\""));
    }
}
