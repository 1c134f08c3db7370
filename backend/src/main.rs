//! `facepipe-backend`: reads the configuration, starts the server, and stops it on a signal; or runs a command.

use std::process::ExitCode;

use facepipe_backend::{
    Application, Args, Command, Config, StopHandle, commands,
    config_errors::{self, UnknownName},
    logging,
    notify::ServiceManager,
    openapi_document, private_files,
    traces::Traces,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    match run(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("facepipe-backend: {error:#}");
            if config_errors::is_config_error(&error) {
                config_errors::EXIT_CODE.into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.print_openapi {
        print!("{}", openapi_document());
        return Ok(());
    }
    let config = Config::load(args)?;
    let unknown = config_errors::unknown_variables(environment(), &Args::variables());
    if args.print_config {
        for name in unknown {
            eprintln!("facepipe-backend: warning: {}", no_setting(&name));
        }
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    private_files::create_privately();
    logging::init(&config)?;
    if let Some(command @ Command::Health { .. }) = &args.command {
        // The health check runs every few seconds: one thread suffices.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(commands::run(command, config));
    }
    for name in unknown {
        tracing::warn!("{}", no_setting(&name));
    }
    let _traces = Traces::start(config.logging.otlp_endpoint()?.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(command) = &args.command {
        return runtime.block_on(commands::run(command, config));
    }
    let database = config.database_options().sqlite_file()?;
    let manager = ServiceManager::from_env()?;
    let served: anyhow::Result<bool> = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let application = tokio::select! {
            application = Application::build(config) => application?,
            () = signals.next() => {
                tracing::info!("stopped before it was ready");
                return Ok(false);
            }
        };
        let stop = application.stop_handle();
        manager.ready();
        let (watched, scheme, address) = (stop.clone(), application.scheme(), application.address());
        tokio::spawn(manager.clone().keep_watchdog(scheme, address, move || watched.is_stopping()));
        tokio::spawn(stop_on_signals(signals, stop, manager));
        application.run().await.map(|()| true)
    });
    if let Ok(false) = served {
        // The start may be blocked on anything.
        runtime.shutdown_background();
        if let Some(file) = database {
            commands::checkpoint_wal(&file);
        }
    }
    served.map(|_| ())
}

/// Returns the names of environment variables; none of this project's is not Unicode.
fn environment() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

fn no_setting(name: &UnknownName) -> String {
    format!("the environment has {name}, which nothing reads: `facepipe-backend --help` lists all settings")
}

/// SIGTERM and SIGINT, from the start to the end of the server, even where a shell made a background process ignore
/// SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

/// Stops the server on signals: the first one gracefully, the second one at once.
async fn stop_on_signals(mut signals: Signals, stop: StopHandle, manager: ServiceManager) {
    for graceful in [true, false] {
        signals.next().await;
        tracing::info!(graceful, "stopping");
        manager.stopping();
        stop.stop(graceful);
    }
}
