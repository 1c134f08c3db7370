//! `facepipe proposals`: unknown faces of the past that may be of people who were enrolled later.

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};

use super::{DEFAULT_NUMBER, collect_pages, people::id_of};
use crate::{
    client::Client,
    connection::Target,
    exit::{self, Outcome},
    output, runtime,
};

/// Lists, accepts and refuses proposals: unknown faces of the past that may be of people who were enrolled later.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe proposals
  facepipe proposals list --person Ada --number 100
  facepipe proposals accept 17 18
  facepipe proposals accept --person Ada --min-score 0.5
  facepipe proposals refuse --person Ada

Proposals are made when a training adds people, and by `facepipe people
search-past`. Accepting one puts the name to the detection; one that is refused
is not made again.

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List proposals, the oldest first
    List(List),
    /// Put the names to the detections
    Accept(Selection),
    /// Do not make the proposals again
    Refuse(Selection),
}

#[derive(Debug, Default, Args)]
struct List {
    /// Only of the person with this Face ID
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Those that were refused instead of the open ones
    #[arg(long)]
    refused: bool,
    /// Maximum number [default: 20]
    #[arg(long, short, value_name = "N")]
    number: Option<usize>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("selected").required(true).args(["proposals", "person"]))]
struct Selection {
    /// Proposals, as listed
    #[arg(value_name = "PROPOSAL")]
    proposals: Vec<i64>,
    /// All open ones of the person with this Face ID
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Of the person, only those with this score or a higher one
    #[arg(long, value_name = "SCORE", requires = "person", allow_negative_numbers = true)]
    min_score: Option<f32>,
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
            Some(Action::Accept(selection)) => judge(&client, selection, true, json).await,
            Some(Action::Refuse(selection)) => judge(&client, selection, false, json).await,
        }
    })
}

async fn list(client: &Client, filters: &List, json: bool) -> Result<Outcome> {
    // By id: proxies and logs record addresses.
    let person = match &filters.person {
        Some(name) => Some(id_of(client, name).await?),
        None => None,
    };
    let proposals = collect_pages(filters.number.unwrap_or(DEFAULT_NUMBER), |mut query| {
        query.extend(person.clone().map(|id| ("person_id", id)));
        if filters.refused {
            query.push(("decided", "refused".to_owned()));
        }
        async move {
            let page = client.proposals(&query).await?;
            Ok((page.proposals, page.meta.next_cursor))
        }
    })
    .await?;
    if json {
        output::json(&proposals)?;
    } else if proposals.is_empty() {
        output::line("No proposal.");
    } else {
        let rows = proposals.into_iter().map(|proposal| {
            let detection = proposal.detection;
            [
                proposal.proposal_id.to_string(),
                proposal.face_id,
                format!("{:.3}", proposal.score),
                detection.id.to_string(),
                detection.captured_at,
                detection.camera_id,
                detection.location,
            ]
        });
        output::table(["Proposal", "Face ID", "Score", "Detection", "Time", "Camera", "Place"], rows);
    }
    Ok(Outcome::Done)
}

async fn judge(client: &Client, selection: &Selection, accept: bool, json: bool) -> Result<Outcome> {
    let judged = match &selection.person {
        Some(name) => {
            let person = id_of(client, name).await?;
            client.judge_proposals_of(&person, selection.min_score, accept).await?
        }
        None => client.judge_proposals(&selection.proposals, accept).await?,
    };
    if json {
        output::json(&judged)?;
    } else {
        let done = if accept { "accepted" } else { "refused" };
        output::line(format!("{} {done}, {} not there", judged.proposals, judged.not_found));
    }
    Ok(if judged.not_found > 0 { Outcome::Partial } else { Outcome::Done })
}
