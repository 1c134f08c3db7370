//! The server, put together from its parts.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{
    App,
    dev::{Server, ServerHandle},
    middleware::{Condition, from_fn},
    web,
};
use anyhow::Context as _;
use facepipe_vision::{DecodeLimits, ModelError};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    api,
    config::{Config, ErasedDetections},
    connection::{self, ConnectionOptions},
    exposition::{self, Exposition, Sources},
    metrics::Metrics,
    mistakes::{self, mistake},
    model_loader::ModelLoader,
    outbox::{self, OutboxOptions},
    recognise::{ActiveModel, Pipeline, Recogniser},
    store::{
        Blobs, Database, ServerLock, StoreError,
        ledger::{self, ReappliedErasures},
        retention::run_retention,
        sql::{self, NameChanges},
        sweep::{SweepOptions, run_sweeps},
    },
    tokens::Tokens,
    train::{Trainer, TrainerOptions},
};

/// A server that is bound to its port and ready to answer.
///
/// ```no_run
/// # async fn start() -> anyhow::Result<()> {
/// use facepipe_backend::{Application, Config};
///
/// let application = Application::build(Config { listen: "127.0.0.1:0".into(), ..Config::default() }).await?;
/// println!("http://{}", application.address());
/// let stop = application.stop_handle();
/// tokio::spawn(async move { tokio::signal::ctrl_c().await.map(|()| stop.stop(true)) });
/// application.run().await
/// # }
/// ```
pub struct Application {
    address: SocketAddr,
    address_file: Option<PathBuf>,
    server: Server,
    /// Where metrics are served, and what serves them.
    metrics: Option<(SocketAddr, Server)>,
    trainer: Trainer,
    /// Where this process does jobs.
    training: Option<JoinHandle<()>>,
    /// Where there is an external API.
    sending: Option<JoinHandle<()>>,
    /// Whatever else goes on beside the server.
    background: Background,
    database: Database,
    /// Of an embedded database; given back when everything is closed.
    lock: Option<ServerLock>,
    /// Tells what runs beside the server to end.
    stop: watch::Sender<bool>,
    shutdown_timeout: Duration,
    draining: Arc<AtomicBool>,
    drain_delay: Duration,
}

/// Tasks that end once they are told to stop.
#[derive(Default)]
struct Background(Vec<JoinHandle<()>>);

impl Background {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task));
    }

    /// Waits until all have ended.
    async fn join(self, patience: Duration) {
        let end = Instant::now() + patience;
        for task in self.0 {
            let abort = task.abort_handle();
            if tokio::time::timeout_at(end.into(), task).await.is_err() {
                abort.abort();
                tracing::warn!("stopped in the middle of work in the background; the next start takes it up");
            }
        }
    }
}

/// How long a start that failed waits for whoever reads the embedded database.
const FOLD_PATIENCE: Duration = Duration::from_secs(2);

/// Stops an [`Application`] from elsewhere.
#[derive(Clone)]
pub struct StopHandle {
    server: ServerHandle,
    draining: Arc<AtomicBool>,
    drain_delay: Duration,
}

impl StopHandle {
    /// Whether somebody has stopped the server.
    pub fn is_stopping(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops the server; with `graceful`, after it has gone on for the configured delay while it says that it is not
    /// ready, and has answered what it has accepted, within the configured time. Needs a tokio runtime.
    pub fn stop(&self, graceful: bool) {
        self.draining.store(true, Ordering::Relaxed);
        // The stop is under way once this returns; its end is seen where the application runs.
        if !graceful || self.drain_delay.is_zero() {
            drop(self.server.stop(graceful));
            return;
        }
        let Self { server, drain_delay, .. } = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(drain_delay).await;
            drop(server.stop(true));
        });
    }
}

impl Application {
    /// Binds the port, opens the database and the blobs, loads the networks and the active model.
    ///
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, a folder, the file of tokens or the database cannot be opened, another server has the embedded
    /// database or its data folder, weights are missing or damaged.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let file = config.database_options().sqlite_file()?;
        let lock = file.as_deref().map(|file| ServerLock::take(file, &config.data_dir)).transpose()?;
        let built = Self::build_locked(config, lock).await;
        if let Some(file) = file.filter(|_| built.is_err()) {
            // Its pools are gone, or about to be; migrations may have been run.
            let folded = tokio::task::spawn_blocking(move || sql::checkpoint_wal(&file, FOLD_PATIENCE)).await;
            if let Ok(Err(error)) = folded {
                tracing::warn!(%error, "cannot empty the write-ahead log");
            }
        }
        built
    }

    async fn build_locked(config: Config, mut lock: Option<ServerLock>) -> anyhow::Result<Self> {
        let tokens = open_tokens(&config)?;
        let listener = TcpListener::bind(&config.listen)
            .map_err(|error| mistakes::cannot_listen(error, "listen", &config.listen))?;
        let address = listener.local_addr()?;
        if let Some(lock) = &mut lock {
            lock.set_address(address)?;
        }
        let metrics_listener = exposition::bind(config.metrics_listen.as_deref())?;
        if tokens.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                %address,
                "whoever reaches this address can do everything: there is no token_file (--token-file, \
                 FACEPIPE_TOKEN_FILE)"
            );
        }
        if config.role.manages() && config.detections_max_age_days.is_none() {
            tracing::warn!(
                "detections are kept for ever: detections_max_age_days is not set (--detections-max-age-days, \
                 FACEPIPE_DETECTIONS_MAX_AGE_DAYS)"
            );
        }
        let (database, pipeline) = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open(&config)).await??
        };
        let blobs = config.open_blobs()?;
        reapply_erasures(&config, &database, &blobs).await?;
        migrate_names(&database).await?;
        let pipeline = Arc::new(pipeline);
        let (embedder, remark) = (pipeline.embedder().name(), pipeline.embedder().remark());
        let threshold = config.match_threshold.unwrap_or_else(|| pipeline.embedder().default_threshold());
        let verify_threshold =
            config.verify_threshold.unwrap_or_else(|| pipeline.embedder().verification_threshold());
        let same_picture_threshold =
            config.same_picture_threshold.unwrap_or_else(|| pipeline.embedder().same_picture_threshold());
        let metrics = Arc::new(Metrics::new()?);
        let active = Arc::new(ActiveModel::default());
        let loader =
            Arc::new(ModelLoader::new(database.clone(), blobs.clone(), Arc::clone(&active), embedder));
        loader.refresh().await?;
        let recogniser = Recogniser::start(
            Arc::clone(&pipeline),
            active,
            threshold,
            config.queue_images,
            Duration::from_millis(config.queue_budget_ms),
            config.batch_images,
            Arc::clone(&metrics),
        )?;
        let metrics_server = metrics_listener
            .map(|listener| {
                let address = listener.local_addr()?;
                let sources = Sources {
                    metrics: Arc::clone(&metrics),
                    recogniser: recogniser.clone(),
                    loader: Arc::clone(&loader),
                    database: database.clone(),
                    role: config.role.as_str(),
                    folders: config.folders(),
                };
                Ok::<_, std::io::Error>((address, exposition::serve(listener, Exposition::new(sources))?))
            })
            .transpose()?;

        let stop = watch::Sender::new(false);
        let poll = Duration::from_millis(config.poll_interval_ms);
        let lease = Duration::from_secs(config.lease_s);
        let options = TrainerOptions { poll, lease, same_picture: same_picture_threshold };
        let trainer = Trainer::new(
            database.clone(),
            blobs.clone(),
            Arc::clone(&loader),
            pipeline,
            options,
            Arc::clone(&metrics),
        );
        let manages = config.role.manages();
        let training = manages.then(|| trainer.start());
        let following = Arc::clone(&loader);
        let stopped = stop.subscribe();
        let mut background = Background::default();
        background.spawn(async move { following.follow(poll, stopped).await });
        if let Some(tokens) = &tokens {
            background.spawn(Arc::clone(tokens).watch(stop.subscribe()));
        }
        let mut sending = None;
        if manages {
            let sweep = SweepOptions {
                interval: Duration::from_secs(config.sweep_interval_s),
                min_age: Duration::from_secs(config.sweep_min_age_s),
            };
            let counted = Arc::clone(&metrics);
            background.spawn(run_sweeps(database.clone(), blobs.clone(), sweep, counted, stop.subscribe()));
            let counted = Arc::clone(&metrics);
            background.spawn(run_retention(database.clone(), config.retention(), counted, stop.subscribe()));
            sending = start_sending(&config, &database, &metrics, stop.subscribe()).await?;
        }

        let shutdown_timeout = Duration::from_secs(config.shutdown_timeout_s);
        let drain_delay = Duration::from_secs(config.drain_delay_s);
        let draining = Arc::new(AtomicBool::new(false));
        let (address_file, role) = (config.address_file.clone(), config.role.as_str());
        let trainer_of_calls = trainer.clone();
        let database_of_all = database.clone();
        let public_url = config.public_url()?;
        let document =
            api::document_at(public_url.as_deref(), config.guide().join(Config::GUIDE_PAGE).is_file());
        let state = api::State {
            public_url,
            document: document.into(),
            config,
            tokens,
            database,
            blobs,
            recogniser,
            trainer: trainer_of_calls,
            loader,
            verify_threshold,
            same_picture_threshold,
            draining: Arc::clone(&draining),
            metrics,
        };
        let server = serve(listener, state)?;
        if let Some(file) = &address_file {
            write_address(file, address)
                .with_context(|| format!("cannot write the address file {}", file.display()))?;
        }
        let metrics = metrics_server.as_ref().map(|(address, _)| tracing::field::display(*address));
        tracing::info!(%address, metrics, role, embedder, %threshold, "ready");
        if let Some(remark) = remark {
            tracing::warn!(embedder, "{remark}");
        }
        let metrics = metrics_server;
        Ok(Self {
            address,
            address_file,
            server,
            metrics,
            trainer,
            training,
            sending,
            background,
            database: database_of_all,
            lock,
            stop,
            shutdown_timeout,
            draining,
            drain_delay,
        })
    }

    /// The address that the server is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that serves `/metrics`, where one does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(address, _)| *address)
    }

    /// What stops the server from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle {
            server: self.server.handle(),
            draining: Arc::clone(&self.draining),
            drain_delay: self.drain_delay,
        }
    }

    /// Serves until it is stopped. Nothing of it goes on after that, and the database is closed: the file of an embedded
    /// one has everything.
    ///
    /// # Errors
    /// The server cannot go on.
    pub async fn run(self) -> anyhow::Result<()> {
        let metrics = self.metrics.map(|(_, server)| (server.handle(), tokio::spawn(server)));
        let outcome = self.server.await;
        if let Some(file) = &self.address_file {
            let _ = std::fs::remove_file(file);
        }
        self.stop.send_replace(true);
        self.trainer.stop();
        let patience = self.shutdown_timeout;
        let trained = async {
            if let Some(training) = self.training
                && tokio::time::timeout(patience, training).await.is_err()
            {
                self.trainer.release_lease().await;
                tracing::warn!("stopped in the middle of a job; it will be taken up again");
            }
        };
        let sent = async {
            if let Some(sending) = self.sending
                && tokio::time::timeout(patience, sending).await.is_err()
            {
                tracing::warn!("stopped while results were on their way; they will be sent again");
            }
        };
        tokio::join!(trained, sent, self.background.join(patience));
        if let Err(error) = self.database.close(patience).await {
            tracing::warn!(%error, "the database is not closed as it should be");
        }
        drop(self.lock);
        // Last, so that the end can be watched.
        if let Some((handle, _)) = metrics {
            handle.stop(false).await;
        }
        Ok(outcome?)
    }
}

fn open_tokens(config: &Config) -> anyhow::Result<Option<Arc<Tokens>>> {
    let Some(file) = &config.token_file else { return Ok(None) };
    let tokens = Tokens::open(file).map_err(|error| {
        mistake(anyhow::Error::new(error).context(format!("token_file {}", file.display())))
    })?;
    Ok(Some(Arc::new(tokens)))
}

fn open(config: &Config) -> anyhow::Result<(Database, Pipeline)> {
    let database = Database::open(&config.database_options())?.with_name_rule(config.same_name());
    let limits = DecodeLimits { max_bytes: config.max_image_bytes, max_pixels: config.max_image_pixels };
    let (embedder, device) = (config.embedder_kind()?, config.device_kind()?);
    let pipeline = Pipeline::load(&config.models_dir, embedder, device, config.min_face_size, limits);
    let pipeline = pipeline.map_err(|error| {
        // Weights may yet come, and a device's driver; what was not built in does not.
        let not_built_in = matches!(error, ModelError::Device { .. }) && cfg!(not(feature = "cuda"));
        if not_built_in { mistake(error) } else { error.into() }
    })?;
    Ok((database, pipeline))
}

/// Erases again what the ledger of erasures names, before anything is answered: the database may have been restored
/// from a backup that is older than the ledger. The model that answers may know one of those people, so another one is
/// trained then.
async fn reapply_erasures(config: &Config, database: &Database, blobs: &Blobs) -> anyhow::Result<()> {
    let with_detections = config.erase_detections == ErasedDetections::Delete;
    let begun = Instant::now();
    let patience = Duration::from_secs(config.database_start_timeout_s);
    let reapplied = loop {
        match ledger::apply(database, blobs, with_detections).await {
            Err(StoreError::DatasetLocked { retry_after }) if begun.elapsed() < patience => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
            }
            // SQLite has one writer, which may be a server before this one at its end.
            Err(StoreError::Unavailable(_)) if begun.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => break outcome.context("cannot apply the ledger of erasures")?,
        }
    };
    let ReappliedErasures { people, images } = reapplied;
    if reapplied == ReappliedErasures::default() {
        return Ok(());
    }
    tracing::warn!(people, images, "the database had what was erased before; it is erased again");
    ledger::train_without_erased(database).await?;
    Ok(())
}

/// Brings the names of people who were added by an earlier version, or under another rule of names, under the rule. After
/// what was erased is: nobody gets a number for the sake of somebody who is not there any more.
async fn migrate_names(database: &Database) -> anyhow::Result<()> {
    let NameChanges { normalised, numbered, sharing } =
        database.migrate_names().await.context("cannot bring the names of people under the rule of names")?;
    if normalised > 0 {
        tracing::warn!(
            people = normalised,
            numbered,
            "names were written in several ways (Unicode, white space around them) and are now in one; whoever had the \
             very name of somebody else then has a number after it"
        );
    }
    if sharing > 0 {
        tracing::warn!(
            people = sharing,
            "people have a name that counts as another one's (setting face_ids_ignore_case) and keep it: see \
             same_name_as in GET /dataset"
        );
    }
    Ok(())
}

fn serve(listener: TcpListener, state: api::State) -> anyhow::Result<Server> {
    let workers = state.config.http_workers;
    let request_timeout = Duration::from_secs(state.config.request_timeout_s);
    let shutdown_timeout_s = state.config.shutdown_timeout_s;
    let keep_alive = Duration::from_secs(state.config.keep_alive_s);
    let origins = state.config.cors_origins()?;
    let state = web::Data::new(state);
    let app = move || {
        App::new()
            .app_data(state.clone())
            .wrap(from_fn(api::limit_body_time))
            .wrap(from_fn(api::answer_head))
            .wrap(from_fn(api::serve_role))
            .wrap(from_fn(api::authorise))
            // Browsers ask without a token whether a page may use one.
            .wrap(Condition::new(!origins.is_empty(), api::allow_origins(&origins)))
            .wrap(from_fn(api::keep_alive))
            .wrap(from_fn(api::observe))
            .configure(api::configure)
    };
    let options = ConnectionOptions { workers, request_timeout, keep_alive, shutdown_timeout_s };
    Ok(connection::serve(listener, options, app)?)
}

/// Starts what sends results to the external API, where there is one. Where there is none any more, results that are
/// too old for any go.
async fn start_sending(
    config: &Config,
    database: &Database,
    metrics: &Arc<Metrics>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let max_age = Duration::from_secs(config.results_max_age_s);
    let Some(url) = config.results_url()? else {
        let results = database.drop_messages_older_than(max_age, Vec::new()).await?;
        if results > 0 {
            metrics.outbox_dropped(results);
            tracing::warn!(results, "dropped old results: there is no external API (setting results_url)");
        }
        return Ok(None);
    };
    let options = OutboxOptions {
        url,
        max_age,
        timeout: Duration::from_secs(config.results_timeout_s),
        poll: Duration::from_millis(config.poll_interval_ms),
        lease: Duration::from_secs(config.lease_s),
    };
    Ok(Some(outbox::start(database.clone(), options, Arc::clone(metrics), stop)?))
}

/// Writes the file whole or not at all: whoever waits for it never reads half an address.
fn write_address(file: &Path, address: SocketAddr) -> std::io::Result<()> {
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let mut written = std::fs::File::create(&temporary)?;
    writeln!(written, "{address}")?;
    written.sync_all()?;
    std::fs::rename(&temporary, file)
}
