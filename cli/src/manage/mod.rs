//! Administration of the server: people, images, detections, sightings, unknown people, cameras, jobs, trained models and
//! access.

mod access;
mod audit;
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
    fmt::Display,
    future::Future,
    io::{self, BufRead, IsTerminal, Write},
};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

pub use self::{
    access::Options as AccessOptions, audit::Options as AuditOptions, cameras::Options as CamerasOptions,
    detections::Options as DetectionsOptions, images::Options as ImagesOptions, jobs::Options as JobsOptions,
    locate::Options as LocateOptions, people::Options as PeopleOptions,
    proposals::Options as ProposalsOptions, sightings::Options as SightingsOptions,
    trained::Action as TrainedAction, unknowns::Options as UnknownsOptions,
};
pub use self::{
    access::run as access, audit::run as audit, cameras::run as cameras, detections::run as detections,
    images::run as images, jobs::run as jobs, locate::run as locate, people::run as people,
    proposals::run as proposals, sightings::run as sightings, trained::run as trained,
    unknowns::run as unknowns,
};
use crate::{
    client::{Client, ClientError, Job},
    exit::{Failure, Outcome},
    interrupt, output, train,
};

/// Maximum page size of the API.
const MAX_PAGE: usize = 1000;

/// Default number of entries listed.
const DEFAULT_NUMBER: usize = 20;

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

/// Formats a number of things: `1 crop`, `2 crops`, `2 entries`.
fn counted(number: impl Into<i128>, thing: &str) -> String {
    let number: i128 = number.into();
    match (number, thing.strip_suffix("ry")) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ries"),
        (_, None) => format!("{number} {thing}s"),
    }
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

/// The outcome of changes that take one call each.
struct Changes<'a, Id, T> {
    /// Answers to the calls that changed something.
    done: Vec<T>,
    /// Those that are not there.
    missing: Vec<&'a Id>,
    /// The error that ended it.
    failed: Option<ClientError>,
    /// An interrupt ended it.
    is_interrupted: bool,
}

impl<Id, T> Changes<'_, Id, T> {
    /// Returns the outcome. Is called after the completed changes are printed, so that an error does not hide them.
    fn outcome(self) -> Result<Outcome> {
        match self.failed {
            Some(error) => Err(error.into()),
            None if self.is_interrupted => Ok(Outcome::Interrupted),
            None if self.missing.is_empty() => Ok(Outcome::Done),
            None => Ok(Outcome::Partial),
        }
    }
}

/// Makes a call for each id, until an error or an interrupt. `change` returns none for one that is not there.
async fn change_each<'a, Id, T>(
    ids: &'a [Id],
    change: impl AsyncFn(&'a Id) -> Result<Option<T>, ClientError>,
) -> Changes<'a, Id, T> {
    let mut changes = Changes { done: Vec::new(), missing: Vec::new(), failed: None, is_interrupted: false };
    for id in ids {
        if interrupt::requested() {
            changes.is_interrupted = true;
            break;
        }
        match change(id).await {
            Ok(Some(answer)) => changes.done.push(answer),
            Ok(None) => changes.missing.push(id),
            Err(error) => {
                changes.failed = Some(error);
                break;
            }
        }
    }
    changes
}

/// Erases things by id and prints each as it is erased, or all of them as JSON at the end. `erase` returns false for one that is
/// not there.
///
/// # Errors
/// A call fails; the erasures before it are printed.
async fn erase_each<'a, Id: Display + Serialize>(
    ids: &'a [Id],
    json: bool,
    erase: impl AsyncFn(&'a Id) -> Result<bool, ClientError>,
) -> Result<Outcome> {
    let changes = change_each(ids, async |id| {
        let is_there = erase(id).await?;
        if !json {
            output::line(format!("{id} {}", if is_there { "is erased" } else { "is not there" }));
        }
        Ok(is_there.then_some(id))
    })
    .await;
    if json {
        output::json(&json!({ "erased": changes.done, "not_found": changes.missing }))?;
    }
    changes.outcome()
}

/// Waits for the end of a job if `wait`, and prints the job: as JSON, or in a line that ends with `next`.
///
/// # Errors
/// The server cannot be reached, or the awaited job fails.
async fn show_job(client: &Client, job: Job, wait: bool, json: bool, next: &str) -> Result<Outcome> {
    let job = if wait { train::wait_for(client, job).await? } else { Some(job) };
    let Some(job) = job else { return Ok(Outcome::Interrupted) };
    if json {
        output::json(&job)?;
    } else {
        output::line(format!("Job {} is {}{next}", job.job_id, job.status.as_str()));
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_hides_nothing_of_what_was_done_before_it() {
        let changes = change_each(&[1, 2, 3, 4], async |id: &i32| match id {
            1 => Ok(Some("one")),
            2 => Ok(None),
            _ => Err(ClientError::Unreachable { server: "http://127.0.0.1:1".into(), why: "closed".into() }),
        })
        .await;
        assert_eq!((&changes.done, &changes.missing), (&vec!["one"], &vec![&2]));
        assert!(changes.outcome().is_err());
        let changes = change_each(&[1, 2], async |id: &i32| Ok((*id == 1).then_some(()))).await;
        assert_eq!(changes.outcome().unwrap(), Outcome::Partial);
    }
}
