//! Administration of the server: people, images, detections, sightings, unknown people, cameras, jobs and trained models.

mod cameras;
mod detections;
mod images;
mod jobs;
mod locate;
mod people;
mod proposals;
mod sightings;
mod trained;
mod unknowns;

use std::{
    future::Future,
    io::{self, BufRead, IsTerminal, Write},
};

use anyhow::Result;

pub use self::{
    cameras::Options as CamerasOptions, detections::Options as DetectionsOptions,
    images::Options as ImagesOptions, jobs::Options as JobsOptions, locate::Options as LocateOptions,
    people::Options as PeopleOptions, proposals::Options as ProposalsOptions,
    sightings::Options as SightingsOptions, trained::Action as TrainedAction,
    unknowns::Options as UnknownsOptions,
};
pub use self::{
    cameras::run as cameras, detections::run as detections, images::run as images, jobs::run as jobs,
    locate::run as locate, people::run as people, proposals::run as proposals, sightings::run as sightings,
    trained::run as trained, unknowns::run as unknowns,
};
use crate::{client::ClientError, exit::Failure, interrupt};

/// Maximum page size of the API.
const MAX_PAGE: usize = 1000;

/// Query parameters of a call.
type Query = Vec<(&'static str, String)>;

/// Asks for confirmation of an irreversible action, unless `yes`.
///
/// # Errors
/// Standard input is no terminal.
pub fn confirmed(question: &str, yes: bool) -> Result<bool> {
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

/// Formats a number of things: `1 crop`, `2 crops`.
fn counted(number: impl Into<i128>, thing: &str) -> String {
    let number = number.into();
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Collects up to `number` entries of a paged list. `load` adds its filters to the paging parameters, and returns a page and the
/// cursor of the next one. Ends early if interrupted.
///
/// # Errors
/// A call fails.
async fn collect_pages<T, P>(number: usize, load: impl Fn(Query) -> P) -> Result<Vec<T>, ClientError>
where
    P: Future<Output = Result<(Vec<T>, Option<String>), ClientError>>,
{
    let mut entries = Vec::new();
    let mut cursor = None;
    while entries.len() < number {
        let limit = (number - entries.len()).min(MAX_PAGE);
        let mut query = vec![("limit", limit.to_string())];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let (page, next) = load(query).await?;
        entries.extend(page);
        cursor = next;
        if cursor.is_none() || interrupt::requested() {
            break;
        }
    }
    Ok(entries)
}
