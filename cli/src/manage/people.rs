//! `facepipe people`: the enrolled people.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{confirmed, show_job};
use crate::{
    client::{Client, Conflict, ConflictingImage, DatasetEntry, Image},
    connection::Target,
    exit::{self, Failure, Outcome},
    output, runtime,
};

/// Lists, shows, adds, renames and erases enrolled people.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe people                     (or: facepipe people list)
  facepipe people show Ada
  facepipe people rename Ada \"Ada Lovelace\"
  facepipe people search-past Ada --wait
  facepipe people delete Ada --yes

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List everybody with the number of their pictures
    List,
    /// List a person's pictures
    Show {
        /// Face ID
        name: String,
    },
    /// Add a person without pictures
    Add {
        /// Face ID
        name: String,
    },
    /// Rename a person; pictures and detections are kept
    Rename {
        /// Face ID
        name: String,
        /// The new Face ID
        new: String,
    },
    /// Search stored unknown faces for a person, which makes proposals
    SearchPast {
        /// Face ID
        name: String,
        /// Wait until the job has ended
        #[arg(long)]
        wait: bool,
    },
    /// Erase a person irrevocably: pictures, embeddings and name
    Delete {
        /// Face ID
        name: String,
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
        match options.action.as_ref().unwrap_or(&Action::List) {
            Action::List => {
                let dataset = client.dataset().await?;
                if options.target.json {
                    output::json(&dataset)?;
                } else if dataset.people.is_empty() {
                    output::line("Nobody yet: facepipe enroll tree DIR");
                } else {
                    let rows = dataset.people.into_iter().map(|person| {
                        let note = note(&person);
                        [person.face_id, person.images.to_string(), note]
                    });
                    output::table(["Face ID", "Pictures", ""], rows);
                    for conflict in dataset.conflicts {
                        output::line(conflict_line(&conflict));
                    }
                }
            }
            Action::Show { name } => {
                let Some(images) = client.person_images(name).await? else {
                    return Err(not_found(name).into());
                };
                if options.target.json {
                    output::json(&images)?;
                } else {
                    output::line(format!("{}: {} pictures", images.face_id, images.meta.total));
                    let quality = |image: &Image| {
                        image.face.as_ref().map_or_else(|| "-".into(), |face| face.quality.score.to_string())
                    };
                    let rows = images.images.into_iter().map(|image| {
                        let quality = quality(&image);
                        [image.image_id, image.bytes.to_string(), quality, image.created_at]
                    });
                    output::table(["Picture", "Bytes", "Quality", "Enrolled"], rows);
                }
            }
            Action::Add { name } => {
                let added = client.add_person(name).await?;
                output::line(if added {
                    format!("{name} added")
                } else {
                    format!("{name} is there already")
                });
            }
            Action::Rename { name, new } => {
                let renamed = client.rename_person(name, new).await?;
                output::line(format!("{name} is {} now", renamed.face_id));
            }
            Action::SearchPast { name, wait } => {
                let person = id_of(&client, name).await?;
                let job = client.search_past(&person).await?;
                let next = format!("; facepipe proposals list --person={}", output::quoted(name));
                return show_job(&client, job, *wait, options.target.json, &next).await;
            }
            Action::Delete { name, yes } => {
                let Some(images) = client.person_images(name).await? else {
                    return Err(not_found(name).into());
                };
                let question = format!(
                    "{name} and {} pictures with their embeddings will be erased for good.",
                    images.meta.total
                );
                if !confirmed(&question, *yes)? {
                    output::line("Nothing was erased.");
                    return Ok(Outcome::Done);
                }
                client.erase_person(name).await?;
                output::line(format!("{name} is erased"));
            }
        }
        Ok(Outcome::Done)
    })
}

/// Returns the note on a person in the list; empty for none.
fn note(person: &DatasetEntry) -> String {
    match (person.usable_images, &person.same_name_as) {
        (Some(0), _) => "no usable picture: not in the next model".into(),
        (_, Some(_)) => "name equivalent to another one's: rename one of them".into(),
        (Some(usable), None) if usable < person.images => format!("{usable} of them usable"),
        _ => String::new(),
    }
}

/// Formats a conflict between two pictures.
fn conflict_line(conflict: &Conflict) -> String {
    let side = |image: &ConflictingImage| {
        format!("{} ({})", image.image_id, image.face_id.as_deref().unwrap_or("erased"))
    };
    let sides: Vec<String> = conflict.images.iter().map(side).collect();
    format!("Nearly the same picture: {}; facepipe images delete one of them", sides.join(" and "))
}

/// Returns the id of a person.
pub(super) async fn id_of(client: &Client, name: &str) -> Result<String> {
    client.person_id(name).await.map_err(|error| match error.code() {
        Some("person_not_found") => not_found(name).into(),
        _ => error.into(),
    })
}

fn not_found(name: &str) -> Failure {
    Failure::Input(format!("{name}: the server knows nobody of that name; `facepipe people` lists them"))
}
