//! `facepipe completions` and `facepipe man` in a build without them.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Command};

use crate::{
    exit::{Failure, Outcome},
    missing_feature,
};

/// Prints completions for a shell.
#[derive(Debug, Args)]
pub struct CompletionsOptions {
    /// The shell
    shell: String,
}

/// Writes the manual pages of the program and its commands.
#[derive(Debug, Args)]
pub struct ManOptions {
    /// Folder for the pages
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// # Errors
/// Always.
pub fn completions(_: &CompletionsOptions, _: Command) -> Result<Outcome> {
    Err(Failure::Usage(missing_feature::message("completions", "shells")).into())
}

/// # Errors
/// Always.
pub fn man(_: &ManOptions, _: Command) -> Result<Outcome> {
    Err(Failure::Usage(missing_feature::message("manual pages", "shells")).into())
}
