//! `facepipe enroll`: enrols people with pictures from folders or video.

mod camera;
mod folder;
mod selection;
mod upload;

pub use self::upload::{ImageResult, UploadOutcome};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{
    exit::{Failure, Outcome},
    output,
};

/// Enrols people: adds pictures of their faces.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    Picture(folder::PictureOptions),
    Folder(folder::FolderOptions),
    Tree(folder::TreeOptions),
    Camera(camera::Options),
}

/// Runs the program.
///
/// # Errors
/// The input cannot be read, or the server cannot be reached or refuses everything.
pub fn run(options: &Options) -> Result<Outcome> {
    match &options.source {
        Source::Picture(options) => folder::picture(options),
        Source::Folder(options) => folder::folder(options),
        Source::Tree(options) => folder::tree(options),
        Source::Camera(options) => camera::run(options),
    }
}

/// Returns the error for a person that the server does not know.
fn unknown_person(id: &str) -> Failure {
    Failure::Usage(format!("--id {id}: the server knows nobody of that name; --create adds them"))
}

/// Prints the trained model, or a reminder that new pictures need a training.
fn print_training(model_version: Option<u64>, has_new_pictures: bool) {
    if let Some(version) = model_version {
        output::line(format!("Trained   model {version}"));
    } else if has_new_pictures {
        output::line("Nobody is recognised by new pictures before a training: facepipe train --wait");
    }
}
