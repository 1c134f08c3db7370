//! The `facepipe` program: models, demo and tools around the edge plugins and the backend.

mod bench;
mod demo;
mod doctor;
mod models;
mod progress;
mod trial;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Models, demo and tools around the facepipe elements and the facepipe backend.
#[derive(Debug, Parser)]
#[command(name = "facepipe", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Options),
    Demo(demo::Options),
    Doctor(doctor::Options),
    Models(models::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Only the first call in a process can fail, and only where a provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match arguments.command {
        Command::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Demo(options) => demo::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Doctor(options) => doctor::run(&options),
        Command::Models(options) => models::run(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("facepipe: {error:#}");
            ExitCode::FAILURE
        }
    }
}
