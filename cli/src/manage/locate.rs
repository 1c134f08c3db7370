//! `facepipe locate`: where a person was seen last, and before.

use anyhow::Result;
use clap::Args;

use super::{collect_pages, detections::capture_time, percent};
use crate::{
    connection::Target,
    exit::{self, Failure, Outcome},
    interrupt, output, runtime,
};

/// Shows where a person was seen last.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe locate \"Ada Lovelace\"
  facepipe locate Ada --track --from 2024-05-06T00:00:00Z

The exit code is 3 if the person was never seen.

{}", exit::HELP))]
pub struct Options {
    /// Face ID
    name: String,
    /// Also list earlier detections in order of time
    #[arg(long)]
    track: bool,
    /// With --track: not before this time, RFC 3339
    #[arg(long, value_name = "TIME", requires = "track")]
    from: Option<String>,
    /// With --track: before this time, RFC 3339
    #[arg(long, value_name = "TIME", requires = "track")]
    to: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached, or knows nobody of that name.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let last = match client.last_known_location(&options.name).await {
            Err(error) if error.code() == Some("person_not_found") => {
                let why = "the server knows nobody of that name; `facepipe people` lists them";
                return Err(Failure::input(&options.name, why).into());
            }
            answer => answer?,
        };
        let mut track = Vec::new();
        if options.track {
            let client = &client;
            track = collect_pages(usize::MAX, move |mut query| async move {
                query.extend(options.from.clone().map(|time| ("from", time)));
                query.extend(options.to.clone().map(|time| ("to", time)));
                let page = client.track(&options.name, &query).await?;
                Ok(page.map_or_else(Default::default, |page| (page.detections, page.meta.next_cursor)))
            })
            .await?;
            if interrupt::requested() {
                return Ok(Outcome::Interrupted);
            }
        }
        if options.target.json {
            if options.track { output::json(&track)? } else { output::json(&last)? }
        } else {
            match &last {
                Some(last) => output::line(format!(
                    "{}: {} (camera {}) at {}, {}",
                    last.face_id,
                    last.location,
                    last.camera_id,
                    capture_time(&last.captured_at, last.claimed_at.as_deref()),
                    percent(last.confidence)
                )),
                None => output::line(format!("{}: never seen", options.name)),
            }
            if !track.is_empty() {
                let rows = track
                    .into_iter()
                    .map(|d| [d.captured_at, d.location, d.camera_id, percent(d.confidence)]);
                output::table(["Time", "Place", "Camera", "Sure"], rows);
            }
        }
        Ok(if last.is_some() { Outcome::Done } else { Outcome::Partial })
    })
}
