//! `facepipe jobs`: the server's long work.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{
    client::Job,
    connection::Target,
    exit::{self, Outcome},
    output, runtime, train,
};

/// Lists, follows and ends the server's long work: trainings and the computing of embeddings.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe jobs
  facepipe jobs show 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c --follow
  facepipe jobs cancel 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c
  facepipe jobs embed --wait

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The newest hundred
    List,
    /// How far one is
    Show {
        /// Its number
        job: String,
        /// Until it has ended, with a progress bar
        #[arg(long, short)]
        follow: bool,
    },
    /// Ends one
    Cancel {
        /// Its number
        job: String,
    },
    /// Has all embeddings computed anew, as after another embedder was chosen
    Embed {
        /// Wait for the end
        #[arg(long)]
        wait: bool,
    },
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it, or a job that is waited for fails.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let job = match options.action.as_ref().unwrap_or(&Action::List) {
            Action::List => {
                let jobs = client.jobs().await?;
                if options.target.json {
                    output::json(&jobs)?;
                } else if jobs.jobs.is_empty() {
                    output::line("No job yet.");
                } else {
                    output::table(["Job", "Kind", "Status", "Done", "Asked for"], jobs.jobs.iter().map(row));
                }
                return Ok(Outcome::Done);
            }
            Action::Show { job, follow } => {
                let job = client.job(job).await?;
                if *follow { train::wait(&client, job).await? } else { Some(job) }
            }
            Action::Cancel { job } => Some(client.cancel_job(job).await?),
            Action::Embed { wait } => {
                let job = client.generate_embeddings().await?;
                if *wait { train::wait(&client, job).await? } else { Some(job) }
            }
        };
        let Some(job) = job else { return Ok(Outcome::Interrupted) };
        if options.target.json {
            output::json(&job)?;
        } else {
            output::table(["Job", "Kind", "Status", "Done", "Asked for"], [row(&job)]);
            if let Some(error) = &job.error {
                output::line(format!("{} ({})", error.message, error.code));
            }
        }
        Ok(Outcome::Done)
    })
}

fn row(job: &Job) -> [String; 5] {
    let done = job.progress.percent.map_or_else(|| "-".into(), |percent| format!("{percent} %"));
    [job.job_id.clone(), job.kind.clone(), job.status.word().into(), done, job.created_at.clone()]
}
