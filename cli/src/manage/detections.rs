//! `facepipe detections`: lists, follows, shows and erases detections.

use std::{mem, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{MAX_PAGE, collect_pages, confirmed, counted, percent};
use crate::{
    client::{Client, ClientError, Detection},
    connection::Target,
    exit::{self, Failure, Outcome},
    interrupt, output, runtime,
};

/// Polling interval of `--follow`.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Default number of detections listed.
const DEFAULT_NUMBER: usize = 20;

/// Lists who was seen where and when; follows new detections; shows and erases single ones.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe detections
  facepipe detections --person Ada --from 2024-05-06T00:00:00Z --number 1000
  facepipe detections --camera gate-1 --follow
  facepipe detections --follow --json | jq -r .face_id     (a line of JSON for each)
  facepipe detections show 42
  facepipe detections delete 42 43 --yes

--follow prints detections in order of arrival: those that a camera kept while
offline appear when they arrive. One whose person later crops of its track
changed appears again, marked as corrected.

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Only by this camera
    #[arg(long, value_name = "ID")]
    camera: Option<String>,
    /// Only at this location
    #[arg(long, value_name = "PLACE")]
    location: Option<String>,
    /// Not before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Maximum number, newest first [default: 20]
    #[arg(long, short, value_name = "N")]
    number: Option<usize>,
    /// Continue with new detections until Ctrl-C
    #[arg(long, short, conflicts_with_all = ["from", "to"])]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all fields of a detection
    Show {
        /// Id, as listed
        #[arg(value_name = "DETECTION")]
        id: i64,
    },
    /// Erase detections irrevocably, with the stored embeddings of unknown faces
    Delete {
        /// Ids, as listed
        #[arg(value_name = "DETECTION", required = true)]
        ids: Vec<i64>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        match &options.action {
            None => list(options, &client).await,
            Some(_) if options.has_list_options() => Err(Failure::Usage(
                "show and delete take the numbers of detections: leave out what belongs to the list".into(),
            )
            .into()),
            Some(Action::Show { id }) => show(options, &client, *id).await,
            Some(Action::Delete { ids, yes }) => delete(options, &client, ids, *yes).await,
        }
    })
}

async fn show(options: &Options, client: &Client, id: i64) -> Result<Outcome> {
    let detection = client.detection(id).await?.ok_or_else(|| not_found(id))?;
    if options.target.json {
        output::json(&detection)?;
        return Ok(Outcome::Done);
    }
    let number = |value: Option<f32>| value.map_or_else(|| "-".into(), |value| format!("{value:.3}"));
    let corners = detection.bounding_box;
    let rows = [
        ("Detection", detection.id.to_string()),
        ("Who", detection.face_id.clone().unwrap_or_else(|| "unknown".into())),
        ("Sure", percent(detection.confidence)),
        ("Score", number(detection.score)),
        ("Threshold", number(Some(detection.threshold))),
        ("Model", detection.model_version.map_or_else(|| "-".into(), |version| version.to_string())),
        ("Captured", capture_time(&detection.captured_at, detection.claimed_at.as_deref())),
        ("Received", detection.received_at),
        ("Camera", detection.camera_id),
        ("Place", detection.location),
        ("Track", detection.track_id.map_or_else(|| "-".into(), |track| track.to_string())),
        (
            "Decided",
            match &detection.revised_at {
                Some(revised_at) => {
                    format!("with {}, changed {revised_at}", counted(detection.crops, "crop"))
                }
                None if detection.crops == 1 => "with this crop".into(),
                None => format!("with {}", counted(detection.crops, "crop")),
            },
        ),
        (
            "Face",
            format!(
                "{:.0}, {:.0} to {:.0}, {:.0} of its picture, in pixels",
                corners.left, corners.top, corners.right, corners.bottom
            ),
        ),
        ("Sure it is a face", percent(Some(detection.detection_confidence))),
    ];
    for (name, value) in rows {
        output::line(format!("{name:<18}{value}"));
    }
    Ok(Outcome::Done)
}

async fn delete(options: &Options, client: &Client, ids: &[i64], yes: bool) -> Result<Outcome> {
    let question = match ids {
        [id] => format!("Detection {id} will be erased for good."),
        ids => format!("{} detections will be erased for good.", ids.len()),
    };
    if !confirmed(&question, yes)? {
        output::line("Nothing was erased.");
        return Ok(Outcome::Done);
    }
    let (mut erased, mut missing) = (Vec::new(), Vec::new());
    for id in ids {
        if interrupt::requested() {
            break;
        }
        let list = if client.erase_detection(*id).await? { &mut erased } else { &mut missing };
        list.push(*id);
        if !options.target.json {
            output::line(format!("{id} {}", if missing.contains(id) { "is not there" } else { "is erased" }));
        }
    }
    if options.target.json {
        output::json(&json!({ "erased": erased, "not_found": missing }))?;
    }
    Ok(if erased.len() + missing.len() < ids.len() {
        Outcome::Interrupted
    } else if missing.is_empty() {
        Outcome::Done
    } else {
        Outcome::Partial
    })
}

fn not_found(id: i64) -> Failure {
    Failure::Input(format!("{id}: the server has no such detection; `facepipe detections` lists them"))
}

async fn list(options: &Options, client: &Client) -> Result<Outcome> {
    let mut newest = collect_pages(options.number.unwrap_or(DEFAULT_NUMBER), move |mut query| async move {
        query.extend(options.filters());
        query.extend(options.from.clone().map(|time| ("from", time)));
        query.extend(options.to.clone().map(|time| ("to", time)));
        let page = client.detections(&query).await?;
        Ok((page.detections, page.meta.next_cursor))
    })
    .await?;
    if !options.follow {
        if options.target.json {
            output::json(&newest)?;
        } else if newest.is_empty() {
            output::line("No detection.");
        } else {
            output::table(HEADINGS, newest.iter().map(row));
        }
        return Ok(Outcome::Done);
    }
    // Newest last, as in the following lines.
    newest.reverse();
    for detection in &newest {
        print_row(options, detection)?;
    }
    follow(options, client, &newest).await
}

/// Prints new detections until Ctrl-C.
async fn follow(options: &Options, client: &Client, shown: &[Detection]) -> Result<Outcome> {
    // The list is ordered by capture time, `after` by arrival: skip what arrived before the latest one shown.
    let mut after = shown.iter().map(|detection| detection.id).max().unwrap_or(0);
    let latest = shown.iter().filter_map(|detection| moment(&detection.received_at)).max();
    let mut corrections = Some(shown.iter().filter_map(|detection| detection.revision).max().unwrap_or(0));
    let mut is_server_away = false;
    while !interrupt::requested() {
        let mut query = options.filters();
        query.push(("after", after.to_string()));
        query.push(("limit", MAX_PAGE.to_string()));
        let page = match client.detections(&query).await {
            Ok(page) => page.detections,
            // Detections that arrive meanwhile are listed when the server is back.
            Err(error @ ClientError::Unreachable { .. }) => {
                if !is_server_away {
                    eprintln!("{error}; waiting for it");
                }
                is_server_away = true;
                pause().await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if mem::take(&mut is_server_away) {
            eprintln!("The server is back");
        }
        let mut is_full = page.len() >= MAX_PAGE;
        for detection in page {
            after = after.max(detection.id);
            if is_since(&detection.received_at, latest) {
                print_row(options, &detection)?;
            }
        }
        if let Some(revision) = corrections {
            let are_more;
            (corrections, are_more) = print_corrections(options, client, revision, after, latest).await?;
            is_full |= are_more;
        }
        if !is_full {
            pause().await;
        }
    }
    Ok(Outcome::Interrupted)
}

/// Prints detections up to `printed` whose person has changed since the revision `after` and since `latest`. Returns the last
/// revision, none from a server that predates revisions; and whether there may be more at once.
async fn print_corrections(
    options: &Options,
    client: &Client,
    mut after: i64,
    printed: i64,
    latest: Option<OffsetDateTime>,
) -> Result<(Option<i64>, bool)> {
    let mut query = options.filters();
    query.push(("revised_after", after.to_string()));
    query.push(("limit", MAX_PAGE.to_string()));
    let page = match client.detections(&query).await {
        Ok(page) => page.detections,
        // The next call says so.
        Err(ClientError::Unreachable { .. }) => return Ok((Some(after), false)),
        Err(ClientError::Refused { code, .. }) if code == "invalid_query" => return Ok((None, false)),
        Err(error) => return Err(error.into()),
    };
    let start = after;
    let is_full = page.len() >= MAX_PAGE;
    for detection in page {
        after = after.max(detection.revision.unwrap_or(after));
        // A later one is printed with its present person.
        let is_new = detection.id <= printed
            && (latest.is_none() || detection.revised_at.as_deref().is_some_and(|at| is_since(at, latest)));
        if is_new {
            print_row(options, &detection)?;
        }
    }
    // A server that returns no revisions would be asked the same at once, forever.
    Ok((Some(after), is_full && after > start))
}

fn moment(time: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(time, &Rfc3339).ok()
}

/// Returns whether a time, RFC 3339 with or without fractions of a second, is not before `latest`.
fn is_since(time: &str, latest: Option<OffsetDateTime>) -> bool {
    match (moment(time), latest) {
        (Some(time), Some(latest)) => time >= latest,
        _ => true,
    }
}

async fn pause() {
    tokio::select! {
        () = tokio::time::sleep(POLL_INTERVAL) => {}
        () = interrupt::wait() => {}
    }
}

impl Options {
    fn has_list_options(&self) -> bool {
        self.follow
            || self.number.is_some()
            || self.from.is_some()
            || self.to.is_some()
            || !self.filters().is_empty()
    }

    fn filters(&self) -> Vec<(&'static str, String)> {
        let filters = [("person", &self.person), ("camera", &self.camera), ("location", &self.location)];
        filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

/// Formats the capture time, with the sender's time if that was implausible.
pub(super) fn capture_time(captured_at: &str, claimed_at: Option<&str>) -> String {
    match claimed_at {
        Some(claimed_at) => {
            format!("{captured_at} (the time of arrival: the camera's clock said {claimed_at})")
        }
        None => captured_at.to_owned(),
    }
}

const HEADINGS: [&str; 6] = ["Detection", "Time", "Camera", "Place", "Who", "Sure"];

fn row(detection: &Detection) -> [String; 6] {
    [
        detection.id.to_string(),
        detection.captured_at.clone(),
        detection.camera_id.clone(),
        detection.location.clone(),
        detection.face_id.clone().unwrap_or_else(|| "unknown".into()),
        if detection.face_id.is_some() { percent(detection.confidence) } else { "-".into() },
    ]
}

fn print_row(options: &Options, detection: &Detection) -> Result<()> {
    if options.target.json {
        return output::json_line(detection);
    }
    let [id, time, camera, place, who, sure] = row(detection);
    let mark = if detection.revised_at.is_some() { "  (corrected)" } else { "" };
    output::line(format!("{id:>8}  {time}  {camera}  {place}  {who}  {sure}{mark}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_fractions_are_compared_as_times() {
        let latest = moment("2024-05-06T00:00:00.5Z");
        assert!(is_since("2024-05-06T00:00:01Z", latest));
        assert!(is_since("2024-05-06T02:00:00.500+02:00", latest));
        assert!(!is_since("2024-05-06T00:00:00Z", latest));
        assert!(is_since("2024-05-06T00:00:00Z", None));
    }
}
