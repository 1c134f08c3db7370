//! `facepipe detections`: lists, follows, shows and erases detections.

use std::{
    collections::{HashMap, HashSet},
    mem,
    time::Duration,
};

use anyhow::Result;
use clap::{Args, Subcommand};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{DEFAULT_NUMBER, MAX_PAGE, Query, collect_pages, confirmed, counted, erase_each, percent};
use crate::{
    client::{Client, ClientError, Detection},
    connection::Target,
    exit::{self, Failure, Outcome},
    interrupt, output, runtime,
};

/// Polling interval of `--follow`.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

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
changed appears again, marked as corrected; with --person, also one that was
printed and is somebody else's now.

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
    erase_each(ids, options.target.json, async |id| client.erase_detection(*id).await).await
}

fn not_found(id: i64) -> Failure {
    Failure::Input(format!("{id}: the server has no such detection; `facepipe detections` lists them"))
}

async fn list(options: &Options, client: &Client) -> Result<Outcome> {
    // Read before the list, which includes every correction until then.
    let revision = if options.follow { latest_revision(client).await? } else { None };
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
    let person = match &options.person {
        Some(name) => Some(client.person_id(name).await?),
        None => None,
    };
    let mut printed = Printed { person, revision, ..Printed::default() };
    newest.iter().for_each(|detection| printed.add(detection));
    follow(options, client, &newest, printed).await
}

/// Prints new detections and corrected ones until Ctrl-C.
async fn follow(
    options: &Options,
    client: &Client,
    shown: &[Detection],
    mut printed: Printed,
) -> Result<Outcome> {
    // The list is ordered by capture time, `after` by arrival: skip detections that arrived before the latest one
    // shown.
    let mut after = shown.iter().map(|detection| detection.id).max().unwrap_or(0);
    let latest = shown.iter().filter_map(|detection| moment(&detection.received_at)).max();
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
                printed.add(&detection);
            }
        }
        is_full |= print_corrections(options, client, &mut printed, after).await?;
        if !is_full {
            pause().await;
        }
    }
    Ok(Outcome::Interrupted)
}

/// Prints detections up to the id `after` whose person has changed. Returns whether there may be more at once.
async fn print_corrections(
    options: &Options,
    client: &Client,
    printed: &mut Printed,
    after: i64,
) -> Result<bool> {
    let Some(revision) = printed.revision else { return Ok(false) };
    // The query covers all people, since a revision may have removed the name.
    let mut query = options.places();
    query.push(("revised_after", revision.to_string()));
    query.push(("limit", MAX_PAGE.to_string()));
    let page = match client.detections(&query).await {
        Ok(page) => page.detections,
        // The next call reports it.
        Err(ClientError::Unreachable { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let is_full = page.len() >= MAX_PAGE;
    for detection in page {
        if printed.correct(&detection, after) {
            print_row(options, &detection)?;
        }
    }
    // A server that returns no revisions would be asked the same at once, forever.
    Ok(is_full && printed.revision > Some(revision))
}

/// The printed detections, as far as they decide about later output.
#[derive(Debug, Default)]
struct Printed {
    /// Id of the only person to be followed.
    person: Option<String>,
    /// The last revision that was read; none from a server that predates revisions.
    revision: Option<i64>,
    /// Detections that were printed with a later revision than that, and which.
    ahead: HashMap<i64, i64>,
    /// Detections that were printed as the person's.
    of_person: HashSet<i64>,
}

impl Printed {
    /// Records a detection that is printed since it is new.
    fn add(&mut self, detection: &Detection) {
        if let Some(revision) = detection.revision.filter(|revision| Some(*revision) > self.revision) {
            self.ahead.insert(detection.id, revision);
        }
        if self.person.is_some() {
            self.of_person.insert(detection.id);
        }
    }

    /// Records a correction. Returns whether to print it: not a second time, and not before the detection itself, which comes
    /// with its present person; only if it is, or was printed as, the person's.
    fn correct(&mut self, detection: &Detection, after: i64) -> bool {
        let Some(revision) = detection.revision else { return false };
        self.revision = self.revision.max(Some(revision));
        let is_printed = self.ahead.remove(&detection.id).is_some_and(|printed| printed >= revision);
        if detection.id > after {
            return false;
        }
        let is_wanted = match &self.person {
            None => true,
            Some(person) if detection.person_id.as_ref() == Some(person) => {
                self.of_person.insert(detection.id);
                true
            }
            Some(_) => self.of_person.remove(&detection.id),
        };
        is_wanted && !is_printed
    }
}

/// Returns the latest revision of all detections, 0 without one; none from a server that predates revisions.
async fn latest_revision(client: &Client) -> Result<Option<i64>> {
    let next = async |after: i64| {
        let query = vec![("revised_after", after.to_string()), ("limit", "1".to_owned())];
        let page = client.detections(&query).await?;
        Ok(page.detections.first().and_then(|detection| detection.revision))
    };
    match last_number(next).await {
        Ok(last) => Ok(Some(last)),
        Err(ClientError::Refused { code, .. }) if code == "invalid_query" => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Finds the greatest of some positive numbers by queries for the next one after a given number: the step doubles until
/// it goes too far, and is then halved. Returns 0 without any.
async fn last_number(
    next: impl AsyncFn(i64) -> Result<Option<i64>, ClientError>,
) -> Result<i64, ClientError> {
    let (mut last, mut step, mut is_growing) = (0_i64, 1_i64, true);
    while step > 0 {
        match next(last.saturating_add(step - 1)).await? {
            Some(number) => last = last.max(number),
            None => is_growing = false,
        }
        step = if is_growing { step.saturating_mul(2) } else { step / 2 };
    }
    Ok(last)
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

    fn filters(&self) -> Query {
        let mut filters = self.places();
        filters.extend(self.person.clone().map(|person| ("person", person)));
        filters
    }

    fn places(&self) -> Query {
        let filters = [("camera", &self.camera), ("location", &self.location)];
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
    use std::cell::Cell;

    use serde_json::{Value, json};

    use super::*;

    fn detection(id: i64, person: Option<&str>, revision: Option<i64>) -> Detection {
        let time = "2024-05-06T07:08:09Z";
        let revised_at = revision.map_or(Value::Null, |_| time.into());
        serde_json::from_value(json!({
            "id": id, "captured_at": time, "received_at": time, "camera_id": "gate-1", "location": "Lobby",
            "face_id": person, "person_id": person, "threshold": 0.4, "detection_confidence": 0.9,
            "confidence": null, "score": null, "model_version": null, "track_id": null,
            "revised_at": revised_at, "revision": revision,
            "bounding_box": { "left": 0.0, "top": 0.0, "right": 9.0, "bottom": 9.0 },
        }))
        .unwrap()
    }

    #[test]
    fn each_correction_is_printed_once() {
        let mut printed = Printed { revision: Some(5), ..Printed::default() };
        printed.add(&detection(1, None, None));
        // It arrived and was revised between two calls: printed with its present person.
        printed.add(&detection(2, Some("ada"), Some(6)));
        assert!(!printed.correct(&detection(2, Some("ada"), Some(6)), 2));
        assert!(printed.correct(&detection(1, Some("ada"), Some(7)), 2));
        // The next call for arrivals has it.
        assert!(!printed.correct(&detection(3, Some("ada"), Some(8)), 2));
        printed.add(&detection(3, Some("ada"), Some(8)));
        // Printed at the revision 9, and revised once more before that was read.
        printed.add(&detection(4, Some("ada"), Some(9)));
        assert!(printed.correct(&detection(4, None, Some(10)), 4));
        assert!(printed.correct(&detection(2, None, Some(11)), 4));
        assert_eq!((printed.revision, printed.ahead.len()), (Some(11), 0));
    }

    #[test]
    fn a_person_is_followed_also_out_of_the_filter() {
        let person = Some("ada".to_owned());
        let mut printed = Printed { person, revision: Some(0), ..Printed::default() };
        printed.add(&detection(1, Some("ada"), None));
        assert!(!printed.correct(&detection(2, Some("bob"), Some(1)), 9), "never printed");
        assert!(printed.correct(&detection(1, None, Some(2)), 9), "the name was taken away");
        assert!(!printed.correct(&detection(1, Some("bob"), Some(3)), 9), "printed as somebody else's");
        assert!(printed.correct(&detection(1, Some("ada"), Some(4)), 9), "the name is back");
        assert!(printed.correct(&detection(2, Some("ada"), Some(5)), 9), "got the name");
        assert!(printed.correct(&detection(2, Some("bob"), Some(6)), 9), "and lost it again");
    }

    #[tokio::test]
    async fn the_latest_revision_is_found_in_few_calls() {
        for numbers in [vec![], vec![1], vec![1, 2, 3], vec![7, 1_000, 1_001, 40_000], (1..=5_000).collect()]
        {
            let calls = Cell::new(0);
            let next = async |after: i64| {
                calls.set(calls.get() + 1);
                Ok(numbers.iter().copied().find(|number| *number > after))
            };
            assert_eq!(last_number(next).await.unwrap(), numbers.last().copied().unwrap_or(0));
            assert!(calls.get() <= 32, "{} calls", calls.get());
        }
    }

    #[test]
    fn times_with_and_without_fractions_are_compared_as_times() {
        let latest = moment("2024-05-06T00:00:00.5Z");
        assert!(is_since("2024-05-06T00:00:01Z", latest));
        assert!(is_since("2024-05-06T02:00:00.500+02:00", latest));
        assert!(!is_since("2024-05-06T00:00:00Z", latest));
        assert!(is_since("2024-05-06T00:00:00Z", None));
    }
}
