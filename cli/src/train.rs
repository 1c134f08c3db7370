//! `facepipe train`: has the server learn whom its pictures show, and waits for it with a progress bar.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    client::{Client, Job, JobStatus},
    connection::Target,
    exit::{self, Outcome},
    interrupt, output, progress, runtime,
};

/// How often a job is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// Has the server learn whom the enrolled pictures show.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe train --wait
  facepipe train --full --wait      (compute the embeddings from the pictures again)
  facepipe train                    (prints the job; `facepipe jobs show JOB` says how far it is)

The server answers with the old model until the new one is ready.

{}", exit::HELP))]
pub struct Options {
    /// From the pictures, not from the stored embeddings: slow
    #[arg(long)]
    full: bool,
    /// Wait for the new model
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it, or the training fails.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let job = client.train(options.full).await?;
        let job = if options.wait { wait(&client, job).await? } else { Some(job) };
        let Some(job) = job else { return Ok(Outcome::Interrupted) };
        if options.target.json {
            output::json(&job)?;
        } else if options.wait {
            output::line(summary(&job));
        } else {
            output::line(format!("Job       {} ({})", job.job_id, job.status.word()));
        }
        Ok(Outcome::Done)
    })
}

/// Trains and waits; none where the wait was interrupted. The training goes on then.
///
/// # Errors
/// The server cannot be reached or refuses it, or the training fails.
pub async fn begin_and_wait(client: &Client, full: bool) -> Result<Option<Job>> {
    let job = client.train(full).await?;
    wait(client, job).await
}

/// Waits until a job has ended well; none where the wait was interrupted.
///
/// # Errors
/// The server cannot be reached, or the job failed or was cancelled.
pub async fn wait(client: &Client, mut job: Job) -> Result<Option<Job>> {
    let bar = progress::bar(0, "Training");
    while !job.status.has_ended() {
        if let Some(total) = job.progress.images_total {
            bar.set_length(total);
        }
        bar.set_position(job.progress.images_done);
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = interrupt::wait() => {
                bar.finish_and_clear();
                eprintln!("The server goes on with job {}; `facepipe jobs cancel` ends it.", job.job_id);
                return Ok(None);
            }
        }
        job = client.job(&job.job_id).await?;
    }
    bar.finish_and_clear();
    match job.status {
        JobStatus::Done => Ok(Some(job)),
        _ => {
            let why = job.error.as_ref().map(|error| format!(": {} ({})", error.message, error.code));
            bail!("job {} {}{}", job.job_id, job.status.word(), why.unwrap_or_default())
        }
    }
}

/// The model that a training made.
pub fn model_version(job: &Job) -> Option<u64> {
    job.result.as_ref()?.get("model_version")?.as_u64()
}

/// A line on what a job made.
pub fn summary(job: &Job) -> String {
    let of = |name: &str| {
        job.result.as_ref().and_then(|result| result.get(name)).and_then(serde_json::Value::as_u64)
    };
    match (of("model_version"), of("people"), of("images"), of("duration_ms")) {
        (Some(version), Some(people), Some(images), Some(ms)) => {
            format!("Trained   model {version}: {people} people, {images} pictures, {ms} ms")
        }
        _ => format!("Job       {} {}", job.job_id, job.status.word()),
    }
}
