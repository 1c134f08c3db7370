//! `facepipe bench`: measures, with figures that anybody can repeat.

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

/// Measures what facepipe costs.
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
/// Something that it needs is missing (the message says how to get it), or a part of it fails.
pub fn run(options: &Options) -> Result<Outcome> {
    match &options.what {
        What::Bandwidth(options) => bandwidth::run(options),
        What::Crowd(options) => crowd::run(options),
        What::Load(options) => load::run(options),
    }
}
