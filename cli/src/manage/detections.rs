//! `facepipe detections`: who was seen where and when, and who is seen now.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::percent;
use crate::{
    client::{Client, Detection},
    connection::Target,
    exit::{self, Outcome},
    interrupt, output, runtime,
};

/// How often `--follow` asks.
const POLL: Duration = Duration::from_secs(1);

/// The most that one page holds.
const PAGE: usize = 1000;

/// Lists who was seen where and when, and follows who is seen now.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe detections
  facepipe detections --person Ada --from 2024-05-06T00:00:00Z --number 1000
  facepipe detections --camera gate-1 --follow
  facepipe detections --follow --json | jq -r .face_id     (a line of JSON for each)

--follow goes by the order of arrival: what a camera kept while it had no
network appears when it arrives.

{}", exit::HELP))]
pub struct Options {
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Only by this camera
    #[arg(long, value_name = "ID")]
    camera: Option<String>,
    /// Only at this place
    #[arg(long, value_name = "PLACE")]
    location: Option<String>,
    /// Not before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// So many at most, the newest
    #[arg(long, short, default_value_t = 20, value_name = "N")]
    number: usize,
    /// Go on with new ones as they come, until Ctrl-C
    #[arg(long, short, conflicts_with_all = ["from", "to"])]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        list(options, &client).await
    })
}

async fn list(options: &Options, client: &Client) -> Result<Outcome> {
    let mut newest = Vec::new();
    let mut cursor = None;
    while newest.len() < options.number {
        let left = options.number - newest.len();
        let mut query = options.filters();
        query.push(("limit", left.min(PAGE).to_string()));
        query.extend(options.from.clone().map(|time| ("from", time)));
        query.extend(options.to.clone().map(|time| ("to", time)));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page = client.detections(&query).await?;
        newest.extend(page.detections);
        cursor = page.meta.next_cursor;
        if cursor.is_none() || interrupt::requested() {
            break;
        }
    }
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
    // The newest come last, as in the lines that follow.
    newest.reverse();
    for detection in &newest {
        say(options, detection)?;
    }
    follow(options, client, &newest).await
}

/// Prints what arrives from now on, until Ctrl-C.
async fn follow(options: &Options, client: &Client, shown: &[Detection]) -> Result<Outcome> {
    // The list goes by the time of capture, `after` by arrival: what arrived before the latest one shown is old.
    let mut after = shown.iter().map(|detection| detection.id).max().unwrap_or(0);
    let latest = shown.iter().map(|detection| detection.received_at.clone()).max();
    while !interrupt::requested() {
        let mut query = options.filters();
        query.push(("after", after.to_string()));
        query.push(("limit", PAGE.to_string()));
        let page = client.detections(&query).await?.detections;
        let is_full = page.len() >= PAGE;
        for detection in page {
            after = after.max(detection.id);
            if latest.as_ref().is_none_or(|latest| detection.received_at >= *latest) {
                say(options, &detection)?;
            }
        }
        if !is_full {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = interrupt::wait() => {}
            }
        }
    }
    Ok(Outcome::Interrupted)
}

impl Options {
    fn filters(&self) -> Vec<(&'static str, String)> {
        let filters = [("person", &self.person), ("camera", &self.camera), ("location", &self.location)];
        filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
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

fn say(options: &Options, detection: &Detection) -> Result<()> {
    if options.target.json {
        return output::json_line(detection);
    }
    let [id, time, camera, place, who, sure] = row(detection);
    output::line(format!("{id:>8}  {time}  {camera}  {place}  {who}  {sure}"));
    Ok(())
}
