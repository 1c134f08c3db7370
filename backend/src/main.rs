//! `facepipe-backend`: reads the configuration, starts the server, and stops it on a signal; or does what a command asks
//! for.

use std::process::ExitCode;

use facepipe_backend::{
    Application, Args, Command, Config, StopHandle, commands, logging, openapi_document, traces::Traces,
};
use tokio::signal::unix::{SignalKind, signal};

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
    runtime.block_on(async {
        let application = Application::build(config).await?;
        tokio::spawn(stop_on_signals(application.stop_handle()));
        application.run().await
    })
}

/// The first signal lets accepted requests end, the second one does not.
async fn stop_on_signals(stop: StopHandle) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    for graceful in [true, false] {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        tracing::info!(graceful, "stopping");
        stop.stop(graceful);
    }
    Ok(())
}
