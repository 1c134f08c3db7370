//! `facepipe jobs`: long-running jobs of the server.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{DEFAULT_NUMBER, collect_pages};
use crate::{
    client::{Client, Job, JobStatus},
    connection::Target,
    exit::{self, Outcome},
    output, runtime, train,
};

/// Lists, follows, starts and cancels jobs: trainings and the computation of embeddings.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe jobs
  facepipe jobs list --status failed -n 5
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
    /// List the newest jobs
    List(List),
    /// Show a job and its progress
    Show {
        /// Id of the job
        job: String,
        /// Wait until it has ended, with a progress bar
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel a job
    Cancel {
        /// Id of the job
        job: String,
    },
    /// Recompute all embeddings, for example after changing the embedder
    Embed {
        /// Wait until the job has ended
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Args)]
struct List {
    /// Only jobs in this state
    #[arg(long, value_enum)]
    status: Option<JobStatus>,
    /// Maximum number
    #[arg(long, short, default_value_t = DEFAULT_NUMBER, value_name = "N")]
    number: usize,
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it, or the awaited job fails.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let newest = Action::List(List { status: None, number: DEFAULT_NUMBER });
        let job = match options.action.as_ref().unwrap_or(&newest) {
            Action::List(list) => {
                let jobs = list.load(&client).await?;
                if options.target.json {
                    output::json(&jobs)?;
                } else if jobs.is_empty() {
                    output::line(if list.status.is_some() { "No such job." } else { "No job yet." });
                } else {
                    output::table(HEADINGS, jobs.iter().map(row));
                }
                return Ok(Outcome::Done);
            }
            Action::Show { job, follow } => {
                let job = client.job(job).await?;
                if *follow { train::wait_for(&client, job).await? } else { Some(job) }
            }
            Action::Cancel { job } => Some(client.cancel_job(job).await?),
            Action::Embed { wait } => {
                let job = client.generate_embeddings().await?;
                if *wait { train::wait_for(&client, job).await? } else { Some(job) }
            }
        };
        let Some(job) = job else { return Ok(Outcome::Interrupted) };
        if options.target.json {
            output::json(&job)?;
        } else {
            output::table(HEADINGS, [row(&job)]);
            if let Some(error) = &job.error {
                output::line(format!("{} ({})", error.message, error.code));
            }
        }
        Ok(Outcome::Done)
    })
}

impl List {
    async fn load(&self, client: &Client) -> Result<Vec<Job>> {
        let jobs = collect_pages(self.number, move |mut query| async move {
            query.extend(self.status.map(|status| ("status", status.as_str().to_owned())));
            let page = client.jobs(&query).await?;
            Ok((page.jobs, page.meta.next_cursor))
        });
        Ok(jobs.await?)
    }
}

const HEADINGS: [&str; 5] = ["Job", "Kind", "Status", "Done", "Asked for"];

fn row(job: &Job) -> [String; 5] {
    let done = job.progress.percent.map_or_else(|| "-".into(), |percent| format!("{percent} %"));
    [job.job_id.clone(), job.kind.clone(), job.status.as_str().into(), done, job.created_at.clone()]
}
