//! `facepipe recognize`: recognises people in pictures or video.

mod annotate;
mod confusion;
mod folder;
mod report;
mod requests;
mod video;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::exit::Outcome;

/// Recognises people in pictures or video.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    Folder(folder::Options),
    Video(video::VideoOptions),
    Camera(video::CameraOptions),
}

/// Runs the program.
///
/// # Errors
/// The input cannot be read, or the server cannot be reached or refuses everything.
pub fn run(options: &Options) -> Result<Outcome> {
    match &options.source {
        Source::Folder(options) => folder::run(options),
        Source::Video(options) => video::video(options),
        Source::Camera(options) => video::camera(options),
    }
}
