//! `facepipe unknowns`: people who were seen and are not enrolled.

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use super::{DEFAULT_NUMBER, Query, change_each, collect_pages, confirmed, counted, erase_each, show_job};
use crate::{
    client::{Client, ClientError, Unknown},
    connection::Target,
    exit::{self, Failure, Outcome},
    output, runtime, train,
};

/// Default number of detections of an unknown person.
const DEFAULT_DETECTIONS: u16 = 20;

/// Lists unknown people, as groups of their faces; shows, merges, splits, ignores and erases them.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe unknowns
  facepipe unknowns list --camera gate-1 --min-faces 3 --sort faces
  facepipe unknowns show 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c
  facepipe unknowns merge 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c 018f4c9b-0d2f-7e4a-8b3c-6e7f8a9b0c1d
  facepipe unknowns split 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c 42 43
  facepipe unknowns name 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c \"Ada Lovelace\" --wait
  facepipe unknowns ignore 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c
  facepipe unknowns delete 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c --yes

The server groups unknown faces soon after they arrive, and all of them together
again every night.

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List unknown people
    List(List),
    /// Show an unknown person with the person's detections
    Show {
        /// Id, as listed
        unknown: String,
        /// Maximum number of detections, newest first, up to 1000
        #[arg(
            long,
            short,
            default_value_t = DEFAULT_DETECTIONS,
            value_name = "N",
            value_parser = clap::value_parser!(u16).range(1..=1000)
        )]
        number: u16,
    },
    /// Merge groups of the same person; the first one keeps its id
    Merge {
        /// Id of the group that stays
        unknown: String,
        /// Ids of the groups that go into it
        #[arg(value_name = "OTHER", required = true)]
        others: Vec<String>,
    },
    /// Enrol an unknown person under a name, and put it to the person's detections
    Name {
        /// Id, as listed
        unknown: String,
        /// The Face ID
        name: String,
        /// Add the faces to the person who has this name already
        #[arg(long)]
        add: bool,
        /// Wait until the training has ended
        #[arg(long)]
        wait: bool,
    },
    /// Move detections that show somebody else to a new group
    Split {
        /// Id, as listed
        unknown: String,
        /// Detections, as `show` lists them
        #[arg(value_name = "DETECTION", required = true)]
        detections: Vec<i64>,
    },
    /// Leave unknown people out of lists, also when they are seen again
    Ignore {
        /// Ids, as listed
        #[arg(value_name = "UNKNOWN", required = true)]
        unknowns: Vec<String>,
        /// List them again
        #[arg(long)]
        undo: bool,
    },
    /// Erase unknown people irrevocably, with the embeddings of their faces
    Delete {
        /// Ids, as listed
        #[arg(value_name = "UNKNOWN", required = true)]
        unknowns: Vec<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Group all unknown faces together again, as is done every night
    Recluster {
        /// Wait until the job has ended
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Default, Args)]
struct List {
    /// Only those whom this camera has seen
    #[arg(long, value_name = "ID")]
    camera: Option<String>,
    /// Only those seen at this time or later, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only those seen before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only those with at least so many detections
    #[arg(long, value_name = "FACES", value_parser = clap::value_parser!(u32).range(1..))]
    min_faces: Option<u32>,
    /// Only those who are ignored
    #[arg(long, conflicts_with = "all")]
    ignored: bool,
    /// Also those who are ignored
    #[arg(long)]
    all: bool,
    /// Order
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// Maximum number [default: 20]
    #[arg(long, short, value_name = "N")]
    number: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// The most recent first
    LastSeen,
    /// The most frequent first
    Faces,
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let json = options.target.json;
        match &options.action {
            None => list(&client, &List::default(), json).await,
            Some(Action::List(filters)) => list(&client, filters, json).await,
            Some(Action::Show { unknown, number }) => show(&client, unknown, *number, json).await,
            Some(Action::Merge { unknown, others }) => {
                let merged =
                    client.merge_unknowns(unknown, others).await.map_err(|error| failure(unknown, error))?;
                print(&[merged], json)
            }
            Some(Action::Name { unknown, name: face_id, add, wait }) => {
                name(&client, unknown, face_id, *add, *wait, json).await
            }
            Some(Action::Split { unknown, detections }) => {
                let parts = client
                    .split_unknown(unknown, detections)
                    .await
                    .map_err(|error| failure(unknown, error))?;
                if json {
                    output::json(&parts)?;
                } else {
                    output::table(HEADINGS, [row(&parts.remaining), row(&parts.new)]);
                }
                Ok(Outcome::Done)
            }
            Some(Action::Ignore { unknowns, undo }) => ignore(&client, unknowns, !undo, json).await,
            Some(Action::Delete { unknowns, yes }) => delete(&client, unknowns, *yes, json).await,
            Some(Action::Recluster { wait }) => {
                let job = client.recluster_unknowns().await?;
                show_job(&client, job, *wait, json, ".").await
            }
        }
    })
}

async fn list(client: &Client, filters: &List, json: bool) -> Result<Outcome> {
    let unknowns = collect_pages(filters.number.unwrap_or(DEFAULT_NUMBER), move |mut query| async move {
        query.extend(filters.query());
        let page = client.unknowns(&query).await?;
        Ok((page.unknowns, page.meta.next_cursor))
    })
    .await?;
    if unknowns.is_empty() && !json {
        output::line("No unknown person.");
        return Ok(Outcome::Done);
    }
    print(&unknowns, json)
}

async fn show(client: &Client, unknown: &str, number: u16, json: bool) -> Result<Outcome> {
    let query = vec![("limit", number.to_string())];
    let details = client.unknown(unknown, &query).await?.ok_or_else(|| not_found(unknown))?;
    if json {
        output::json(&details)?;
        return Ok(Outcome::Done);
    }
    let person = &details.unknown;
    let cameras: Vec<String> =
        person.cameras.iter().map(|camera| format!("{} ({})", camera.camera_id, camera.faces)).collect();
    for (name, value) in [
        ("Unknown", person.unknown_id.clone()),
        ("Faces", format!("{} in {}", person.faces, counted(person.tracks, "track"))),
        ("First seen", person.first_seen.clone()),
        ("Last seen", person.last_seen.clone()),
        ("Cameras", cameras.join(", ")),
        ("Pictures", details.pictures.len().to_string()),
        ("Ignored", if person.ignored { "yes" } else { "no" }.into()),
    ] {
        output::line(format!("{name:<12}{value}"));
    }
    let rows = details.detections.iter().map(|detection| {
        let of = |text: &str| text.to_owned();
        [
            detection.id.to_string(),
            of(&detection.captured_at),
            of(&detection.camera_id),
            of(&detection.location),
            detection.track_id.map_or_else(|| "-".into(), |track| track.to_string()),
        ]
    });
    output::table(["Detection", "Time", "Camera", "Place", "Track"], rows);
    Ok(Outcome::Done)
}

/// Enrols an unknown person under a name.
async fn name(
    client: &Client,
    unknown: &str,
    name: &str,
    add: bool,
    wait: bool,
    json: bool,
) -> Result<Outcome> {
    let named = client.name_unknown(unknown, name, add).await.map_err(|error| failure(unknown, error))?;
    if json {
        output::json(&named)?;
    } else if named.job_id.is_none() {
        output::line(format!("{unknown} is {} already", named.face_id));
    } else {
        output::line(format!(
            "{unknown} is {} now: {} named, {} enrolled, {} of them with a picture",
            named.face_id,
            counted(named.detections, "detection"),
            counted(named.images, "face"),
            named.images_with_picture
        ));
    }
    let Some(job) = named.job_id.filter(|_| wait) else { return Ok(Outcome::Done) };
    let job = client.job(&job).await?;
    if json {
        // Standard output has the answer above.
        let job = train::wait_for(client, job).await?;
        return Ok(job.map_or(Outcome::Interrupted, |_| Outcome::Done));
    }
    show_job(client, job, true, false, ".").await
}

/// Hides unknown people from lists, or shows them again. Reports the outcome for the others even if some are not found.
async fn ignore(client: &Client, unknowns: &[String], ignored: bool, json: bool) -> Result<Outcome> {
    let changes = change_each(unknowns, async |id| match client.ignore_unknown(id, ignored).await {
        Ok(unknown) => Ok(Some(unknown)),
        Err(error) if error.code() == Some("unknown_not_found") => Ok(None),
        Err(error) => Err(error),
    })
    .await;
    if let ([id], [_]) = (unknowns, changes.missing.as_slice()) {
        return Err(not_found(id).into());
    }
    if json || !changes.done.is_empty() {
        print(&changes.done, json)?;
    }
    for id in &changes.missing {
        eprintln!("{}", not_found(id));
    }
    changes.outcome()
}

async fn delete(client: &Client, unknowns: &[String], yes: bool, json: bool) -> Result<Outcome> {
    let question = match unknowns {
        [id] => format!("Unknown person {id} will be erased for good."),
        ids => format!("{} unknown people will be erased for good.", ids.len()),
    };
    if !confirmed(&question, yes)? {
        output::line("Nothing was erased.");
        return Ok(Outcome::Done);
    }
    erase_each(unknowns, json, async |id| client.erase_unknown(id).await).await
}

fn not_found(id: &str) -> Failure {
    Failure::input(id, "the server has no such unknown person; `facepipe unknowns` lists them")
}

/// Converts the error of a call about an unknown person.
fn failure(id: &str, error: ClientError) -> anyhow::Error {
    if error.code() == Some("unknown_not_found") { not_found(id).into() } else { error.into() }
}

impl List {
    fn query(&self) -> Query {
        let texts = [("camera", &self.camera), ("from", &self.from), ("to", &self.to)];
        let mut query: Query =
            texts.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect();
        query.extend(self.min_faces.map(|faces| ("min_faces", faces.to_string())));
        if self.ignored || self.all {
            query.push(("ignored", if self.all { "all" } else { "true" }.into()));
        }
        let sort = self.sort.map(|sort| match sort {
            Sort::LastSeen => "last_seen",
            Sort::Faces => "faces",
        });
        query.extend(sort.map(|sort| ("sort", sort.to_owned())));
        query
    }
}

fn print(unknowns: &[Unknown], json: bool) -> Result<Outcome> {
    if json {
        output::json(&unknowns)?;
    } else {
        output::table(HEADINGS, unknowns.iter().map(row));
    }
    Ok(Outcome::Done)
}

const HEADINGS: [&str; 6] = ["Unknown", "Faces", "Tracks", "Last seen", "Cameras", "Ignored"];

fn row(unknown: &Unknown) -> [String; 6] {
    let cameras: Vec<&str> = unknown.cameras.iter().map(|camera| camera.camera_id.as_str()).collect();
    [
        unknown.unknown_id.clone(),
        unknown.faces.to_string(),
        unknown.tracks.to_string(),
        unknown.last_seen.clone(),
        cameras.join(", "),
        if unknown.ignored { "yes" } else { "no" }.into(),
    ]
}
