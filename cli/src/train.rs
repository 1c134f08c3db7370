//! `facepipe train`: starts a training on the server and waits for it.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    calibration,
    client::{Client, Job, JobStatus, ModelCalibration},
    connection::Target,
    exit::{self, Outcome},
    interrupt, output, progress, runtime,
};

/// Polling interval of a job.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Trains the server on the enrolled pictures.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe train --wait
  facepipe train --full --wait      (recompute the embeddings from the pictures)
  facepipe train                    (prints the job; `facepipe jobs show JOB` shows its progress)

The server keeps using the old model until the new one is ready.

{}", exit::HELP))]
pub struct Options {
    /// Train from the pictures instead of the stored embeddings (slow)
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
        let job = if options.wait { wait_for(&client, job).await? } else { Some(job) };
        let Some(job) = job else { return Ok(Outcome::Interrupted) };
        if options.target.json {
            output::json(&job)?;
        } else if options.wait {
            output::line(summary(&job));
            calibration(&job).iter().for_each(output::line);
            left_out(&job).iter().for_each(output::line);
        } else {
            output::line(format!("Job       {} ({})", job.job_id, job.status.as_str()));
        }
        Ok(Outcome::Done)
    })
}

/// Trains, waits, and prints who was left out. Returns none if the wait was interrupted; the training continues then.
///
/// # Errors
/// The server cannot be reached or refuses it, or the training fails.
pub async fn begin_and_wait(client: &Client, full: bool) -> Result<Option<Job>> {
    let job = client.train(full).await?;
    let job = wait_for(client, job).await?;
    job.iter().flat_map(left_out).for_each(|line| eprintln!("{line}"));
    Ok(job)
}

/// Waits until a job has succeeded. Returns none if the wait was interrupted.
///
/// # Errors
/// The server cannot be reached, or the job failed or was cancelled.
pub async fn wait_for(client: &Client, mut job: Job) -> Result<Option<Job>> {
    let bar = progress::bar(0, label(&job));
    while !job.status.is_finished() {
        if let Some(total) = job.progress.images_total {
            bar.set_length(total);
        }
        bar.set_position(job.progress.images_done);
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = interrupt::wait() => {
                bar.finish_and_clear();
                eprintln!("Job {} continues on the server; `facepipe jobs cancel` ends it.", job.job_id);
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
            bail!("job {} {}{}", job.job_id, job.status.as_str(), why.unwrap_or_default())
        }
    }
}

/// Returns the label of a job's progress bar.
fn label(job: &Job) -> &'static str {
    match job.kind.as_str() {
        "optimized-train" | "train" => "Training",
        "generate-emb" => "Embedding",
        "recluster-unknowns" => "Grouping",
        "search-past" => "Searching",
        _ => "Working",
    }
}

/// Returns the model version that a training produced.
pub fn model_version(job: &Job) -> Option<u64> {
    job.result.as_ref()?.get("model_version")?.as_u64()
}

/// Summarises the result of a job in a line.
pub fn summary(job: &Job) -> String {
    let of = |name: &str| {
        job.result.as_ref().and_then(|result| result.get(name)).and_then(serde_json::Value::as_u64)
    };
    match (of("model_version"), of("people"), of("images"), of("duration_ms")) {
        (Some(version), Some(people), Some(images), Some(ms)) => {
            format!("Trained   model {version}: {people} people, {images} pictures, {ms} ms")
        }
        _ => format!("Job       {} {}", job.job_id, job.status.as_str()),
    }
}

/// Describes how the threshold of a training's model was calibrated; empty where the server predates that.
pub fn calibration(job: &Job) -> Vec<String> {
    let found = job.result.as_ref().and_then(|result| result.get("calibration")).cloned();
    let found: Option<ModelCalibration> = found.and_then(|value| serde_json::from_value(value).ok());
    found.as_ref().map(calibration::lines).unwrap_or_default()
}

/// Describes who was left out of a training and why; empty if everybody is in the model.
pub fn left_out(job: &Job) -> Vec<String> {
    let list = |name: &str| job.result.as_ref().and_then(|result| result.get(name)).and_then(Value::as_array);
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let name = |value: &Value| text(value, "face_id").unwrap_or_else(|| "somebody erased since".into());
    let mut lines = Vec::new();
    for person in list("people_left_out").into_iter().flatten() {
        let why = match text(person, "reason").as_deref() {
            Some("no_images") => "no picture",
            Some("in_conflict") => "another person has the same pictures",
            _ => "no picture with a face that can be used",
        };
        lines.push(format!("Left out  {}: {why}", name(person)));
    }
    for conflict in list("conflicts").into_iter().flatten() {
        let images = conflict.get("images").and_then(Value::as_array).into_iter().flatten();
        let images: Vec<String> = images
            .map(|image| format!("{} ({})", text(image, "image_id").unwrap_or_default(), name(image)))
            .collect();
        lines.push(format!(
            "Left out  nearly the same picture: {}; `facepipe images delete` the wrong one",
            images.join(" and ")
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_left_out_of_a_training_are_listed_with_the_reason() {
        let job = |result: Value| -> Job {
            serde_json::from_value(json!({
                "job_id": "j",
                "kind": "optimized-train",
                "status": "done",
                "progress": { "images_done": 1, "images_total": 1, "percent": 100 },
                "result": result,
                "created_at": "2024-05-06T07:08:09Z",
            }))
            .expect("a job")
        };
        let lines = left_out(&job(json!({
            "people_left_out": [
                { "person_id": "1", "face_id": "Ann", "images": 0, "reason": "no_images" },
                { "person_id": "2", "face_id": "Bob", "images": 3, "reason": "no_embeddings" },
                { "person_id": "3", "face_id": null, "images": 1, "reason": "in_conflict" },
            ],
            "conflicts": [{
                "images": [
                    { "image_id": "a", "person_id": "3", "face_id": null },
                    { "image_id": "b", "person_id": "4", "face_id": "Eve" },
                ],
                "similarity": 1.0,
            }],
        })));
        assert_eq!(
            lines,
            [
                "Left out  Ann: no picture",
                "Left out  Bob: no picture with a face that can be used",
                "Left out  somebody erased since: another person has the same pictures",
                "Left out  nearly the same picture: a (somebody erased since) and b (Eve); `facepipe images delete` the \
                 wrong one",
            ]
        );
        // From a server that predates the list.
        assert_eq!(left_out(&job(json!({ "model_version": 1 }))), Vec::<String>::new());
    }
}
