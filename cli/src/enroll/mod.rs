//! `facepipe enroll`: makes people known to the server, by pictures from folders or from a camera.

mod folder;
mod upload;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{exit::Outcome, video};

/// Makes people known: adds pictures of their faces, from folders or from a camera.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    Folder(folder::FolderOptions),
    Tree(folder::TreeOptions),
    Camera(video::EnrollOptions),
}

/// Runs the program.
///
/// # Errors
/// The input cannot be read, or the server cannot be reached or refuses everything.
pub fn run(options: &Options) -> Result<Outcome> {
    match &options.source {
        Source::Folder(options) => folder::folder(options),
        Source::Tree(options) => folder::tree(options),
        Source::Camera(options) => video::enroll(options),
    }
}
