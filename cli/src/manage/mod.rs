//! Administration of the server: people, images, detections, cameras, jobs and trained models.

mod cameras;
mod detections;
mod images;
mod jobs;
mod locate;
mod people;
mod trained;

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Result;

pub use self::{
    cameras::Options as CamerasOptions, detections::Options as DetectionsOptions,
    images::Options as ImagesOptions, jobs::Options as JobsOptions, locate::Options as LocateOptions,
    people::Options as PeopleOptions, trained::Action as TrainedAction,
};
pub use self::{
    cameras::run as cameras, detections::run as detections, images::run as images, jobs::run as jobs,
    locate::run as locate, people::run as people, trained::run as trained,
};
use crate::exit::Failure;

/// Asks for confirmation of an irreversible action, unless `yes`.
///
/// # Errors
/// Standard input is no terminal.
fn confirmed(question: &str, yes: bool) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(
            Failure::Usage(format!("{question} Confirm with --yes: there is no terminal to ask.")).into()
        );
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Formats a share as a percentage; a dash for none.
fn percent(share: Option<f32>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.0} %", share * 100.0))
}
