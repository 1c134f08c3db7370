//! `facepipe-backend`: reads the configuration, starts the server, and stops it on a signal; or does what a command asks
//! for.

use std::process::ExitCode;

use facepipe_backend::{
    Application, Args, Command, Config, StopHandle, commands, logging, openapi_document, traces::Traces,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    match run(&Args::read()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("facepipe-backend: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.print_openapi {
        print!("{}", openapi_document());
        return Ok(());
    }
    let config = Config::load(args)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    logging::init(&config)?;
    if let Some(command @ Command::Health { .. }) = &args.command {
        // Asked every few seconds: one thread will do.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(commands::run(command, config));
    }
    let _traces = Traces::start(config.otlp_endpoint()?.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(command) = &args.command {
        return runtime.block_on(commands::run(command, config));
    }
    let database = config.database_options().sqlite_file()?;
    let served: anyhow::Result<bool> = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let application = tokio::select! {
            application = Application::build(config) => application?,
            () = signals.next() => {
                tracing::info!("stopped before it was ready");
                return Ok(false);
            }
        };
        tokio::spawn(stop_on_signals(signals, application.stop_handle()));
        application.run().await.map(|()| true)
    });
    if let Ok(false) = served {
        // Whatever the start was waiting for.
        runtime.shutdown_background();
        if let Some(file) = database {
            commands::fold(&file);
        }
    }
    served.map(|_| ())
}

/// SIGTERM and SIGINT. None is lost between the start and the end of the server, also where a shell has a program in the
/// background ignore one of them.
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

/// The first signal lets accepted requests end, the second one does not.
async fn stop_on_signals(mut signals: Signals, stop: StopHandle) {
    for graceful in [true, false] {
        signals.next().await;
        tracing::info!(graceful, "stopping");
        stop.stop(graceful);
    }
}
