//! `facepipe bench`: measures, with figures that anybody can repeat.

mod bandwidth;
mod plot;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measures what facepipe costs.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Bandwidth(bandwidth::Options),
}

/// Runs a benchmark.
///
/// # Errors
/// Something that it needs is missing (the message says how to get it), or a part of it fails.
pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        What::Bandwidth(options) => bandwidth::run(options),
    }
}
