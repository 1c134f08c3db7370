//! `facepipe sightings`: who was in front of which camera from when to when.

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{DEFAULT_NUMBER, collect_pages, percent};
use crate::{
    client::Sighting,
    connection::Target,
    exit::{self, Outcome},
    output, runtime,
};

/// Lists who was in front of which camera from when to when: a row for each track, whose crops are decided together.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe sightings
  facepipe sightings --person Ada --from 2024-05-06T00:00:00Z --number 1000
  facepipe sightings --camera gate-1 --decision unknown
  facepipe sightings --json | jq -r '.[].best_detection'

A detection without a track is a sighting of one crop. `facepipe detections
show ID` shows the best detection of a sighting.

{}", exit::HELP))]
pub struct Options {
    /// Only of this person
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Only of somebody who is enrolled, or only of others
    #[arg(long, value_name = "DECISION")]
    decision: Option<Decision>,
    /// Only by this camera
    #[arg(long, value_name = "ID")]
    camera: Option<String>,
    /// Only at this location
    #[arg(long, value_name = "PLACE")]
    location: Option<String>,
    /// Until this time or longer, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Since before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Maximum number, the one that began last first
    #[arg(long, short, value_name = "N", default_value_t = DEFAULT_NUMBER)]
    number: usize,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Decision {
    Known,
    Unknown,
}

impl Decision {
    fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
        }
    }
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    let sightings = runtime()?.block_on(async {
        let client = &options.target.client()?;
        let list = collect_pages(options.number, move |mut query| async move {
            let decision = options.decision.map(|decision| decision.name().to_owned());
            let filters = [
                ("person", &options.person),
                ("decision", &decision),
                ("camera", &options.camera),
                ("location", &options.location),
                ("from", &options.from),
                ("to", &options.to),
            ];
            query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
            let page = client.sightings(&query).await?;
            Ok((page.sightings, page.meta.next_cursor))
        });
        Ok::<_, anyhow::Error>(list.await?)
    })?;
    if options.target.json {
        output::json(&sightings)?;
    } else if sightings.is_empty() {
        output::line("No sighting.");
    } else {
        let headings = ["From", "To", "Camera", "Place", "Who", "Sure", "Crops", "Best"];
        output::table(headings, sightings.iter().map(row));
    }
    Ok(Outcome::Done)
}

fn row(sighting: &Sighting) -> [String; 8] {
    [
        sighting.first_captured_at.clone(),
        sighting.last_captured_at.clone(),
        sighting.camera_id.clone(),
        sighting.location.clone(),
        sighting.face_id.clone().unwrap_or_else(|| "unknown".into()),
        if sighting.face_id.is_some() { percent(sighting.confidence) } else { "-".into() },
        sighting.crops.to_string(),
        sighting.best_detection.map_or_else(|| "-".into(), |id| id.to_string()),
    ]
}
