//! The server, put together from its parts.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App, HttpServer,
    dev::{Server, ServerHandle},
    middleware::from_fn,
    web,
};
use anyhow::Context as _;
use facepipe_vision::DecodeLimits;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    api,
    config::Config,
    metrics::{self, Exposition, Metrics, Sources},
    outbox::{self, OutboxOptions},
    recognise::{ActiveModel, ModelLoader, Pipeline, Recogniser},
    store::{
        Blobs, Database,
        sweep::{SweepOptions, sweep_regularly},
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
    training: JoinHandle<()>,
    /// Where there is an external API.
    sending: Option<JoinHandle<()>>,
    /// Tells what runs beside the server to end.
    stop: watch::Sender<bool>,
    shutdown_timeout: Duration,
}

/// Stops an [`Application`] from elsewhere.
#[derive(Clone)]
pub struct StopHandle {
    server: ServerHandle,
}

impl StopHandle {
    /// Stops the server; with `graceful`, after it has answered what it has accepted, within the configured time.
    pub fn stop(&self, graceful: bool) {
        // The stop is under way once this returns; its end is seen where the application runs.
        drop(self.server.stop(graceful));
    }
}

impl Application {
    /// Binds the port, opens the database and the blobs, loads the networks and the active model.
    ///
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The port is taken, a folder, the file of tokens or the database cannot be opened, weights are missing or damaged.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let tokens = open_tokens(&config)?;
        let listener = TcpListener::bind(&config.listen)
            .with_context(|| format!("cannot listen on {} (setting `listen`)", config.listen))?;
        let address = listener.local_addr()?;
        let metrics_listener = metrics::bind(config.metrics_listen.as_deref())?;
        if tokens.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                %address,
                "whoever reaches this address can do everything: there is no token_file (--token-file, \
                 FACEPIPE_TOKEN_FILE)"
            );
        }
        let (database, pipeline) = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || open(&config)).await??
        };
        let blobs = match &config.blobs_url {
            Some(url) => Blobs::open_url(url)?,
            None => Blobs::open_folder(&config.blobs_dir())?,
        };
        let pipeline = Arc::new(pipeline);
        let embedder = pipeline.embedder().name();
        let threshold = config.match_threshold.unwrap_or_else(|| pipeline.embedder().default_threshold());
        let verify_threshold =
            config.verify_threshold.unwrap_or_else(|| pipeline.embedder().verification_threshold());
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
                };
                Ok::<_, std::io::Error>((address, metrics::serve(listener, Exposition::new(sources))?))
            })
            .transpose()?;

        let stop = watch::Sender::new(false);
        let poll = Duration::from_millis(config.poll_interval_ms);
        let options = TrainerOptions { poll, lease: Duration::from_secs(config.lease_s) };
        let (trainer, training) = Trainer::start(
            database.clone(),
            blobs.clone(),
            Arc::clone(&loader),
            pipeline,
            options,
            Arc::clone(&metrics),
        );
        let following = Arc::clone(&loader);
        let stopped = stop.subscribe();
        tokio::spawn(async move { following.follow(poll, stopped).await });
        if let Some(tokens) = &tokens {
            tokio::spawn(Arc::clone(tokens).follow(stop.subscribe()));
        }
        let sweep = SweepOptions {
            interval: Duration::from_secs(config.sweep_interval_s),
            min_age: Duration::from_secs(config.sweep_min_age_s),
        };
        tokio::spawn(sweep_regularly(database.clone(), blobs.clone(), sweep, stop.subscribe()));

        let sending = start_sending(&config, &database, &metrics, stop.subscribe()).await?;

        let shutdown_timeout = Duration::from_secs(config.shutdown_timeout_s);
        let address_file = config.address_file.clone();
        let trainer_of_calls = trainer.clone();
        let state = api::State {
            config,
            tokens,
            database,
            blobs,
            recogniser,
            trainer: trainer_of_calls,
            loader,
            verify_threshold,
            metrics,
        };
        let server = serve(listener, state)?;
        if let Some(file) = &address_file {
            write_address(file, address)
                .with_context(|| format!("cannot write the address file {}", file.display()))?;
        }
        let metrics = metrics_server.as_ref().map(|(address, _)| tracing::field::display(*address));
        tracing::info!(%address, metrics, embedder, %threshold, "ready");
        let metrics = metrics_server;
        Ok(Self {
            address,
            address_file,
            server,
            metrics,
            trainer,
            training,
            sending,
            stop,
            shutdown_timeout,
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
        StopHandle { server: self.server.handle() }
    }

    /// Serves until it is stopped.
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
        if tokio::time::timeout(self.shutdown_timeout, self.training).await.is_err() {
            self.trainer.give_up().await;
            tracing::warn!("stopped in the middle of a job; it will be taken up again");
        }
        if let Some(sending) = self.sending
            && tokio::time::timeout(self.shutdown_timeout, sending).await.is_err()
        {
            tracing::warn!("stopped while results were on their way; they will be sent again");
        }
        // Last, so that the end can be watched.
        if let Some((handle, _)) = metrics {
            handle.stop(false).await;
        }
        Ok(outcome?)
    }
}

fn open_tokens(config: &Config) -> anyhow::Result<Option<Arc<Tokens>>> {
    let Some(file) = &config.token_file else { return Ok(None) };
    let tokens = Tokens::open(file).with_context(|| format!("token_file {}", file.display()))?;
    Ok(Some(Arc::new(tokens)))
}

fn open(config: &Config) -> anyhow::Result<(Database, Pipeline)> {
    let database = Database::open(&config.database_options())?;
    let limits = DecodeLimits { max_bytes: config.max_image_bytes, max_pixels: config.max_image_pixels };
    let pipeline = Pipeline::load(&config.models_dir, config.embedder_kind()?, config.min_face_size, limits)?;
    Ok((database, pipeline))
}

fn serve(listener: TcpListener, state: api::State) -> anyhow::Result<Server> {
    let workers = state.config.http_workers;
    let request_timeout = Duration::from_secs(state.config.request_timeout_s);
    let shutdown_timeout_s = state.config.shutdown_timeout_s;
    let form_config = api::form_config(state.config.max_request_bytes);
    let state = web::Data::new(state);
    let app = move || {
        App::new()
            .app_data(state.clone())
            .app_data(form_config.clone())
            .wrap(from_fn(api::limit_body_time))
            .wrap(from_fn(api::authorise))
            .wrap(from_fn(api::observe))
            .configure(api::configure)
    };
    Ok(HttpServer::new(app)
        .workers(workers)
        .client_request_timeout(request_timeout)
        .shutdown_timeout(shutdown_timeout_s)
        .disable_signals()
        .listen(listener)?
        .run())
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
