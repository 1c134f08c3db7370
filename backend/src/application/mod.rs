//! The server, assembled from its parts: built, run, and stopped.

mod background;
mod startup;

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{
    App,
    dev::{Server, ServerHandle},
    http::header::STRICT_TRANSPORT_SECURITY,
    middleware::{Condition, DefaultHeaders, from_fn},
    web,
};
use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::background::Background;
use crate::{
    access::AccessControl,
    api,
    audit::AuditLog,
    config::Config,
    config_errors, connection,
    exposition::{self, Exposition, Sources},
    metrics::Metrics,
    model_loader::ModelLoader,
    recognise::{ActiveModel, MatchThreshold, Pipeline, Recogniser},
    shares::{Connections, Shares},
    store::{Blobs, Database, ServerLock, sql},
    tls::ServerTls,
    train::{Trainer, TrainerOptions},
};

/// A server that is bound to its port and ready to serve.
///
/// ```no_run
/// # async fn start() -> anyhow::Result<()> {
/// use facepipe_backend::{Application, Config};
///
/// let config = Config::default().with(|config| config.listener.listen = "127.0.0.1:0".into());
/// let application = Application::build(config).await?;
/// println!("{}", application.url());
/// let stop = application.stop_handle();
/// tokio::spawn(async move { tokio::signal::ctrl_c().await.map(|()| stop.stop(true)) });
/// application.run().await
/// # }
/// ```
pub struct Application {
    address: SocketAddr,
    /// `http` or `https`.
    scheme: &'static str,
    address_file: Option<PathBuf>,
    server: Server,
    /// The address of `/metrics` and its server.
    metrics: Option<(SocketAddr, Server)>,
    background: Background,
    database: Database,
    /// The lock of an embedded database, released once everything is closed.
    lock: Option<ServerLock>,
    shutdown_timeout: Duration,
    draining: Arc<AtomicBool>,
    drain_delay: Duration,
}

/// How long a failed start waits for readers of the embedded database.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(2);

/// Stops an [`Application`] from elsewhere.
#[derive(Clone)]
pub struct StopHandle {
    server: ServerHandle,
    draining: Arc<AtomicBool>,
    drain_delay: Duration,
}

impl StopHandle {
    /// Returns whether the server is stopping.
    pub fn is_stopping(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Stops the server. With `graceful`, it first serves on for the configured delay while it reports that it is not
    /// ready, and then responds to accepted requests within the configured time. Needs a tokio runtime.
    pub fn stop(&self, graceful: bool) {
        self.draining.store(true, Ordering::Relaxed);
        // Calling `stop` starts it; `Application::run` sees its end.
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
    /// The port is in use, a folder, the file of tokens or the database cannot be opened, another server has the embedded
    /// database or its data folder, weights are missing or damaged.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let file = config.database_options().sqlite_file()?;
        let lock =
            file.as_deref().map(|file| ServerLock::take(file, &config.storage.data_dir)).transpose()?;
        let built = Self::build_locked(config, lock).await;
        if let Some(file) = file.filter(|_| built.is_err()) {
            // The pools are closed or about to be; migrations may have run.
            let checkpointed =
                tokio::task::spawn_blocking(move || sql::checkpoint_wal(&file, CHECKPOINT_PATIENCE)).await;
            if let Ok(Err(error)) = checkpointed {
                tracing::warn!(%error, "cannot empty the write-ahead log");
            }
        }
        built
    }

    async fn build_locked(config: Config, mut lock: Option<ServerLock>) -> anyhow::Result<Self> {
        let access = startup::open_access(&config)?;
        let tls = startup::open_tls(&config)?;
        let listeners = Listeners::bind(&config)?;
        let address = listeners.api.local_addr()?;
        let scheme = config.tls.scheme();
        if let Some(lock) = &mut lock {
            lock.set_url(&format!("{scheme}://{address}"))?;
        }
        startup::warn_of_risks(&config);
        let database = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || startup::open_database(&config)).await??
        };
        startup::check_access(&config, &database, &access, address).await?;
        let connections = Connections::new(startup::connection_limits(&config)?);
        let shares = Arc::new(Shares::new(config.shares.limits(config.listener.max_request_bytes)?));
        let mut services = Services::open(&config, database).await?;
        let serve = |listener| {
            serve_metrics(listener, &config, &services, &access, tls.clone(), &connections, &shares)
        };
        let metrics_server = listeners.metrics.map(serve).transpose()?;
        let writing_audit = services.writing_audit.take();
        let background = Background::start(&config, &services, writing_audit, &access, tls.clone()).await?;

        let listener = &config.listener;
        let (shutdown_timeout, drain_delay) = (listener.shutdown_timeout(), listener.drain_delay());
        let (address_file, role) = (listener.address_file.clone(), config.deployment.role.as_str());
        let embedder = services.recogniser.embedder();
        let threshold = services.threshold.of(services.loader.active().as_deref());
        let (remark, database) = (services.pipeline.embedder().remark(), services.database.clone());
        let draining = Arc::new(AtomicBool::new(false));
        let parts = ServerParts { tls, access, connections, shares };
        let server = serve_api(listeners.api, config, parts, services, Arc::clone(&draining))?;
        if let Some(file) = &address_file {
            startup::write_address(file, address)
                .with_context(|| format!("cannot write the address file {}", file.display()))?;
        }
        let metrics = metrics_server.as_ref().map(|(address, _)| tracing::field::display(*address));
        tracing::info!(%address, scheme, metrics, role, embedder, %threshold, "ready");
        if let Some(remark) = remark {
            tracing::warn!(embedder, "{remark}");
        }
        Ok(Self {
            address,
            scheme,
            address_file,
            server,
            metrics: metrics_server,
            background,
            database,
            lock,
            shutdown_timeout,
            draining,
            drain_delay,
        })
    }

    /// Returns the address that the server is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the scheme of the server's URL: `http`, or with a certificate `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Returns the server's URL, with the address that it is bound to.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns the address that serves `/metrics`, where one does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(address, _)| *address)
    }

    /// Returns a handle that stops the server from elsewhere.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle {
            server: self.server.handle(),
            draining: Arc::clone(&self.draining),
            drain_delay: self.drain_delay,
        }
    }

    /// Serves until the server is stopped. Then all work in the background has ended and the database is closed: the file
    /// of an embedded one is complete.
    ///
    /// # Errors
    /// The server fails.
    pub async fn run(self) -> anyhow::Result<()> {
        let metrics = self.metrics.map(|(_, server)| (server.handle(), tokio::spawn(server)));
        let outcome = self.server.await;
        if let Some(file) = &self.address_file {
            let _ = std::fs::remove_file(file);
        }
        self.background.stop(self.shutdown_timeout).await;
        if let Err(error) = self.database.close(self.shutdown_timeout).await {
            tracing::warn!(%error, "cannot close the database cleanly");
        }
        drop(self.lock);
        // Stopped last, so that the shutdown can be observed.
        if let Some((handle, _)) = metrics {
            handle.stop(false).await;
        }
        Ok(outcome?)
    }
}

/// The listeners, bound before anything that takes long.
struct Listeners {
    api: TcpListener,
    metrics: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let listen = &config.listener.listen;
        let api = TcpListener::bind(listen)
            .map_err(|error| config_errors::cannot_listen(error, "listen", listen))?;
        Ok(Self { api, metrics: exposition::bind(config.listener.metrics_listen.as_deref())? })
    }
}

/// The services that handlers and background tasks share.
struct Services {
    database: Database,
    blobs: Blobs,
    pipeline: Arc<Pipeline>,
    loader: Arc<ModelLoader>,
    recogniser: Recogniser,
    trainer: Trainer,
    metrics: Arc<Metrics>,
    audit: AuditLog,
    /// Writes the audit log.
    writing_audit: Option<JoinHandle<()>>,
    /// Cancelled when the server stops.
    stop: CancellationToken,
    threshold: MatchThreshold,
    verify_threshold: f32,
    same_picture_threshold: f32,
    /// Distance up to which two clusters of unknown faces are one.
    max_distance: f32,
}

impl Services {
    /// Opens the blobs, loads the networks and the active model, and starts recognition.
    async fn open(config: &Config, database: Database) -> anyhow::Result<Self> {
        let pipeline = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || startup::load_networks(&config)).await??
        };
        let blobs = config.storage.open_blobs()?;
        startup::reapply_erasures(config, &database, &blobs).await?;
        startup::migrate_names(&database).await?;
        let pipeline = Arc::new(pipeline);
        let embedder = pipeline.embedder();
        let options =
            config.recognition.options(embedder.default_threshold(), config.shares.client_queue_images);
        let threshold = options.threshold;
        let verify_threshold =
            config.recognition.verify_threshold.unwrap_or_else(|| embedder.verification_threshold());
        let same_picture_threshold =
            config.dataset.same_picture_threshold.unwrap_or_else(|| embedder.same_picture_threshold());
        let max_distance =
            config.unknowns.unknown_max_distance.unwrap_or_else(|| embedder.cluster_distance());
        let metrics = Arc::new(Metrics::new()?);
        let active = Arc::new(ActiveModel::default());
        let loader =
            Arc::new(ModelLoader::new(database.clone(), blobs.clone(), Arc::clone(&active), embedder.name()));
        loader.refresh().await?;
        let recogniser = Recogniser::start(Arc::clone(&pipeline), active, options, Arc::clone(&metrics))?;
        let stop = CancellationToken::new();
        let (audit, writing) = if config.audit.is_on() {
            let (log, writing) = AuditLog::start(database.clone(), stop.clone());
            (log, Some(tokio::spawn(writing)))
        } else {
            (AuditLog::off(), None)
        };
        let trainer = Trainer::new(
            database.clone(),
            blobs.clone(),
            Arc::clone(&loader),
            Arc::clone(&pipeline),
            TrainerOptions {
                poll: config.deployment.poll_interval(),
                lease: config.deployment.lease(),
                same_picture: same_picture_threshold,
                max_distance,
                threshold,
                search_past: config.unknowns.search_past,
                target_fpir: config.recognition.target_fpir,
            },
            Arc::clone(&metrics),
            stop.clone(),
        );
        Ok(Self {
            database,
            blobs,
            pipeline,
            loader,
            recogniser,
            trainer,
            metrics,
            audit,
            writing_audit: writing,
            stop,
            threshold,
            verify_threshold,
            same_picture_threshold,
            max_distance,
        })
    }
}

fn serve_metrics(
    listener: TcpListener,
    config: &Config,
    services: &Services,
    access: &Arc<AccessControl>,
    tls: Option<Arc<ServerTls>>,
    connections: &Connections,
    shares: &Shares,
) -> std::io::Result<(SocketAddr, Server)> {
    let address = listener.local_addr()?;
    let sources = Sources {
        metrics: Arc::clone(&services.metrics),
        recogniser: services.recogniser.clone(),
        connections: connections.clone(),
        bytes: shares.bytes.clone(),
        loader: Arc::clone(&services.loader),
        threshold: services.threshold,
        database: services.database.clone(),
        access: Arc::clone(access),
        role: config.deployment.role.as_str(),
        groups_unknowns: config.unknowns.group_unknowns,
        folders: config.storage.folders(),
        tls,
    };
    Ok((address, exposition::serve(listener, Exposition::new(sources))?))
}

/// What protects the API's listener.
struct ServerParts {
    tls: Option<Arc<ServerTls>>,
    access: Arc<AccessControl>,
    connections: Connections,
    shares: Arc<Shares>,
}

fn serve_api(
    listener: TcpListener,
    config: Config,
    parts: ServerParts,
    services: Services,
    draining: Arc<AtomicBool>,
) -> anyhow::Result<Server> {
    let options = config.listener.connection_options(config.shares.write_timeout());
    let metrics = Arc::clone(&services.metrics);
    let origins = config.browsers.cors_origins()?;
    let public_url = config.browsers.public_url()?;
    let hsts = config.tls.hsts();
    let state = web::Data::new(api::State {
        config,
        origins: origins.clone(),
        public_url,
        document: OnceLock::new(),
        access: parts.access,
        audit: services.audit,
        shares: parts.shares,
        database: services.database,
        blobs: services.blobs,
        recogniser: services.recogniser,
        trainer: services.trainer,
        loader: services.loader,
        verify_threshold: services.verify_threshold,
        same_picture_threshold: services.same_picture_threshold,
        draining,
        metrics: services.metrics,
    });
    let app = move || {
        App::new()
            .app_data(state.clone())
            .wrap(from_fn(api::limit_body_time))
            .wrap(from_fn(api::answer_head))
            // Inside of authorisation and roles: what is not served here leaves no trail as an act.
            .wrap(from_fn(api::record))
            .wrap(from_fn(api::serve_role))
            .wrap(from_fn(api::admit))
            .wrap(from_fn(api::authorise))
            // Outside of authorisation, and inside of the delay: wrong tokens are in the trail, also those that come too fast.
            .wrap(from_fn(api::record_refusals))
            .wrap(from_fn(api::delay_failed_authentication))
            // Outside of authorisation: browsers send preflight requests without a token.
            .wrap(Condition::new(!origins.is_empty(), api::allow_origins(&origins)))
            .wrap(Condition::new(
                hsts.is_some(),
                DefaultHeaders::new().add((STRICT_TRANSPORT_SECURITY, hsts.clone().unwrap_or_default())),
            ))
            .wrap(from_fn(api::keep_probes_answering))
            .wrap(from_fn(api::keep_alive))
            .wrap(from_fn(api::observe))
            .wrap(from_fn(api::send_in_pieces))
            .configure(api::configure)
    };
    Ok(connection::serve(listener, parts.tls, options, parts.connections, metrics, app)?)
}
