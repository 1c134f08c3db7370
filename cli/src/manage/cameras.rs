//! `facepipe cameras`: the cameras that have sent detections, with locations and times.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{
    connection::Target,
    exit::{self, Failure, Outcome},
    output, runtime,
};

/// Lists the cameras that have sent detections, with their locations and the time of the last face.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe cameras
  facepipe cameras show gate-1
  facepipe cameras --json

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all cameras
    List,
    /// Show a camera with all its locations
    Show {
        /// The camera's id
        camera: String,
    },
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    let answer =
        runtime()?.block_on(async { Ok::<_, anyhow::Error>(options.target.client()?.cameras().await?) })?;
    match options.action.as_ref().unwrap_or(&Action::List) {
        Action::List if options.target.json => output::json(&answer)?,
        Action::List if answer.cameras.is_empty() => output::line("No camera has sent a face yet."),
        Action::List => {
            let rows = answer.cameras.into_iter().map(|camera| {
                let place =
                    camera.locations.into_iter().next().map(|place| place.location).unwrap_or_default();
                [camera.camera_id, place, camera.last_seen]
            });
            output::table(["Camera", "Place", "Last face"], rows);
        }
        Action::Show { camera: id } => {
            let Some(camera) = answer.cameras.into_iter().find(|camera| camera.camera_id == *id) else {
                let why = "no camera of that id has sent a face; `facepipe cameras` lists them";
                return Err(Failure::input(id, why).into());
            };
            if options.target.json {
                output::json(&camera)?;
            } else {
                let rows = camera.locations.into_iter().map(|place| [place.location, place.last_seen]);
                output::table(["Place", "Last face"], rows);
            }
        }
    }
    Ok(Outcome::Done)
}
