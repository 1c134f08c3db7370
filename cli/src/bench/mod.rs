//! `facepipe bench`: repeatable measurements.

mod bandwidth;
pub mod crowd;
mod load;
#[cfg(feature = "plots")]
mod plot;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exit::Outcome;
#[cfg(not(feature = "plots"))]
use crate::missing_feature::plot;

/// Measures bandwidth and load, and renders test videos.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Bandwidth(bandwidth::Options),
    Crowd(crowd::Options),
    Load(load::Options),
}

/// Runs a benchmark.
///
/// # Errors
/// A dependency is missing (the message says how to get it), or the benchmark fails.
pub fn run(options: &Options) -> Result<Outcome> {
    match &options.what {
        What::Bandwidth(options) => bandwidth::run(options),
        What::Crowd(options) => crowd::run(options),
        What::Load(options) => load::run(options),
    }
}
