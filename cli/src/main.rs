//! The `facepipe` program: models, demo and tools around the edge plugins and the backend.

mod bench;
mod calibration;
mod client;
mod cohort;
mod connection;
mod demo;
mod digest;
mod doctor;
mod enroll;
mod eval;
mod exit;
mod files;
mod interrupt;
mod latency;
mod manage;
mod missing_feature;
mod models;
mod names;
mod networks;
mod output;
mod pictures;
mod progress;
mod recognize;
mod seeded_rng;
#[cfg(feature = "shells")]
mod shell;
#[cfg(not(feature = "shells"))]
mod shell_unavailable;
mod train;
mod trial;
mod video;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
#[cfg(not(feature = "shells"))]
use shell_unavailable as shell;

/// Face recognition for cameras: enrol people, recognise them in pictures and video, administer the server, benchmark.
#[derive(Debug, Parser)]
#[command(name = "facepipe", version = facepipe_shared::VERSION.as_str(), propagate_version = true, after_help = format!("\
Getting started:
  facepipe demo                                   (everything, with its own server)
  facepipe enroll tree staff/ --train             (staff/<name>/*.jpg)
  facepipe recognize folder visitors/

The server is set by --server, FACEPIPE_SERVER, or a profile in ~/.config/facepipe/config.toml.

{}", exit::HELP))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Enroll(enroll::Options),
    Recognize(recognize::Options),
    Extract(video::extract::Options),
    Train(train::Options),
    Cohort(cohort::Options),
    Locate(manage::LocateOptions),
    People(manage::PeopleOptions),
    Images(manage::ImagesOptions),
    Detections(manage::DetectionsOptions),
    Sightings(manage::SightingsOptions),
    Unknowns(manage::UnknownsOptions),
    Proposals(manage::ProposalsOptions),
    Cameras(manage::CamerasOptions),
    Audit(manage::AuditOptions),
    Jobs(manage::JobsOptions),
    Access(manage::AccessOptions),
    Models(models::Options),
    Eval(eval::Options),
    Bench(bench::Options),
    Demo(demo::Options),
    Doctor(doctor::Options),
    Completions(shell::CompletionsOptions),
    Man(shell::ManOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Fails only if a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("facepipe: {error:#}");
            exit::code(&error)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let outcome = match command {
        Command::Enroll(options) => enroll::run(&options),
        Command::Recognize(options) => recognize::run(&options),
        Command::Extract(options) => video::extract::run(&options),
        Command::Train(options) => train::run(&options),
        Command::Cohort(options) => cohort::run(&options),
        Command::Locate(options) => manage::locate(&options),
        Command::People(options) => manage::people(&options),
        Command::Images(options) => manage::images(&options),
        Command::Detections(options) => manage::detections(&options),
        Command::Sightings(options) => manage::sightings(&options),
        Command::Unknowns(options) => manage::unknowns(&options),
        Command::Proposals(options) => manage::proposals(&options),
        Command::Cameras(options) => manage::cameras(&options),
        Command::Audit(options) => manage::audit(&options),
        Command::Jobs(options) => manage::jobs(&options),
        Command::Access(options) => manage::access(&options),
        Command::Models(options) => return models::run(&options),
        Command::Eval(options) => eval::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Doctor(options) => return doctor::run(&options),
        Command::Completions(options) => shell::completions(&options, Arguments::command()),
        Command::Man(options) => shell::man(&options, Arguments::command()),
    };
    outcome.map(ExitCode::from)
}

/// Returns the version, as `--version` prints it.
fn version() -> String {
    Arguments::command().get_version().unwrap_or_default().to_owned()
}

/// Creates the runtime for API calls.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        Arguments::command().debug_assert();
    }
}
