//! `facepipe images`: shows and erases enrolled pictures.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::confirmed;
use crate::{
    client::EnrolledFace,
    connection::Target,
    exit::{self, Failure, Outcome},
    output, runtime,
};

/// Shows and erases enrolled pictures.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Picture ids are listed by `facepipe people show NAME`, in the conflicts of `facepipe people`, and in server errors.

Examples:
  facepipe images show 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c
  facepipe images delete 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c --yes

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show a picture's person and near-duplicates of other people
    Show {
        /// Id of the picture
        image: String,
    },
    /// Erase a picture and its embeddings irrevocably
    Delete {
        /// Id of the picture
        image: String,
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
            Action::Show { image } => {
                let Some(details) = client.image(image).await? else { return Err(not_found(image).into()) };
                if options.target.json {
                    output::json(&details)?;
                } else {
                    output::line(format!("Face ID   {}", details.face_id));
                    output::line(format!("Enrolled  {}", details.created_at));
                    output::line(format!("Bytes     {}", details.bytes));
                    if let Some(EnrolledFace { bounding_box: at, quality }) = details.face {
                        let place = format!("{:.0},{:.0},{:.0},{:.0}", at.left, at.top, at.right, at.bottom);
                        output::line(format!("Face      {place} (left,top,right,bottom in pixels)"));
                        output::line(format!(
                            "Quality   {} of 100: {:.0} pixels, sharpness {:.0}, yaw {:.0}, pitch {:.0} degrees, \
                             brightness {:.2}, confidence {:.2}",
                            quality.score,
                            quality.size,
                            quality.sharpness,
                            quality.yaw,
                            quality.pitch,
                            quality.brightness,
                            quality.detection_confidence,
                        ));
                    }
                    let embedders: Vec<String> = details.embeddings.into_iter().map(|e| e.embedder).collect();
                    let embedders = if embedders.is_empty() { "none".into() } else { embedders.join(", ") };
                    output::line(format!("Embedded  {embedders}"));
                    if !details.similar.is_empty() {
                        output::line("Nearly the same picture, so trainings leave all of them out:");
                        let rows = details.similar.into_iter();
                        let rows = rows.map(|s| [s.face_id, s.image_id, format!("{:.3}", s.similarity)]);
                        output::table(["Face ID", "Picture", "Similarity"], rows);
                    }
                }
            }
            Action::Delete { image, yes } => {
                let Some(details) = client.image(image).await? else { return Err(not_found(image).into()) };
                let question = format!("This picture of {} will be erased for good.", details.face_id);
                if !confirmed(&question, *yes)? {
                    output::line("Nothing was erased.");
                    return Ok(Outcome::Done);
                }
                if !client.erase_image(image).await? {
                    return Err(not_found(image).into());
                }
                output::line(format!("{image} of {} is erased", details.face_id));
            }
        }
        Ok(Outcome::Done)
    })
}

fn not_found(image: &str) -> Failure {
    Failure::Input(format!(
        "{image}: the server has no picture of that id; `facepipe people show NAME` lists a person's"
    ))
}
