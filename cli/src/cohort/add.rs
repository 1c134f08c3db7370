//! `facepipe cohort add`: sends pictures of strangers, several per request.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt, future::BoxFuture, stream};
use serde::Serialize;

use crate::{
    client::{AddedToCohort, Client, ClientError, CohortOutcome, ErrorDetail},
    connection::Target,
    digest,
    enroll::{ImageResult, UploadOutcome},
    exit::{self, Failure, Outcome},
    interrupt, output,
    pictures::{self, FolderContents, PassedOver},
    progress, runtime,
};

/// Maximum size of the pictures of a request, unless one alone is larger, bytes.
const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Adds pictures of people who are not enrolled to the cohort.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe cohort add lfw/
  facepipe cohort add lfw/ --after lfw/Mary_Smith/1.jpg     (go on)

Includes subfolders, except hidden and system ones (@eaDir, .thumbnails,
__MACOSX). Pictures are JPEG, PNG, WebP, BMP, GIF and HEIC files, recognised by
content, not by name; all other files are listed, and the exit code is then 3.
Of each picture, the main face counts; one picture per person is best. The same
picture counts once, also in another run. The server stores embeddings only:
no picture and no name.

{}", exit::HELP))]
pub struct Options {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Begin after this file, to continue an interrupted run; files are sent in the order of their paths
    #[arg(long, value_name = "FILE")]
    after: Option<PathBuf>,
    /// Pictures in a request
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    batch: u8,
}

/// Outcome of a run.
#[derive(Serialize)]
struct Report {
    images: Vec<ImageResult>,
    summary: BTreeMap<UploadOutcome, usize>,
    /// Files that are no pictures or are unreadable.
    passed_over: Vec<PassedOver>,
    /// Number of hidden and system files and folders that were skipped.
    hidden: usize,
    /// Pictures not sent because the run was interrupted or failed.
    left: usize,
    /// Embeddings in the cohort by the server's embedder, as the responses have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// The folder or `--after` cannot be read, or the server cannot be reached or refuses the token.
pub fn run(options: &Options, target: &Target) -> Result<Outcome> {
    let FolderContents { mut pictures, passed_over, hidden } =
        pictures::in_folder(&options.folder)?.report_skipped(&options.folder)?;
    if let Some(after) = &options.after {
        pictures.drain(..position_after(&pictures, after)?);
    }
    runtime()?.block_on(send(options, target, &pictures, passed_over, hidden))
}

/// Returns the number of pictures up to a file.
fn position_after(pictures: &[PathBuf], file: &Path) -> Result<usize, Failure> {
    let position = pictures.iter().position(|picture| picture == file);
    let position = position.or_else(|| {
        let file = file.canonicalize().ok()?;
        pictures.iter().position(|picture| picture.canonicalize().is_ok_and(|picture| picture == file))
    });
    position.map(|position| position + 1).ok_or_else(|| {
        Failure::Usage(format!("--after {}: there is no such picture in the folder", file.display()))
    })
}

async fn send(
    options: &Options,
    target: &Target,
    pictures: &[PathBuf],
    passed_over: Vec<PassedOver>,
    hidden: usize,
) -> Result<Outcome> {
    let client = target.client()?;
    let bar = progress::bar(pictures.len(), "Adding");
    let batches = Batches {
        pictures: pictures.iter(),
        size: options.batch.into(),
        digests: HashSet::new(),
        next: None,
    };
    // The next request is read and sent while the server computes.
    let mut running = stream::iter(batches)
        .take_while(|_| std::future::ready(!interrupt::requested()))
        .map(|batch| send_batch(&client, batch))
        .buffered(2);
    let mut report =
        Report { images: Vec::new(), summary: BTreeMap::new(), passed_over, hidden, left: 0, total: None };
    let mut failure = None;
    while let Some(sent) = running.next().await {
        match sent {
            Ok((images, total)) => {
                for image in images.iter().filter(|image| image.result.is_refusal()) {
                    let why = image.message.as_deref().unwrap_or_default();
                    bar.suspend(|| eprintln!("{}: {}: {why}", image.file, image.result.description()));
                }
                bar.inc(images.len().try_into()?);
                report.images.extend(images);
                // With two concurrent requests, the one sent first may be counted last.
                report.total = report.total.max(total);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    bar.finish_and_clear();
    for image in &report.images {
        *report.summary.entry(image.result).or_default() += 1;
    }
    report.left = pictures.len() - report.images.len();
    if target.json {
        output::json(&report)?
    } else {
        print(&report)
    }
    if report.left > 0
        && let Some(last) = report.images.last()
    {
        let folder = output::quoted(&options.folder.display().to_string());
        eprintln!("Go on with: facepipe cohort add {folder} --after {}", output::quoted(&last.file));
    }
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    if report.left > 0 {
        return Ok(Outcome::Interrupted);
    }
    let refused = report.summary.keys().any(|outcome| outcome.is_refusal());
    Ok(if refused || !report.passed_over.is_empty() { Outcome::Partial } else { Outcome::Done })
}

fn print(report: &Report) {
    for (outcome, count) in &report.summary {
        output::line(format!("{count:>7}   {}", outcome.description()));
    }
    if !report.passed_over.is_empty() {
        output::line(format!("{:>7}   passed over, no pictures", report.passed_over.len()));
    }
    if report.left > 0 {
        output::line(format!("{:>7}   not sent", report.left));
    }
    if let Some(total) = report.total {
        output::line(format!("The cohort has {total} embeddings"));
    }
    if report.summary.contains_key(&UploadOutcome::Added) {
        output::line("The next training uses them: facepipe train --wait");
    }
}

/// A picture of a request: its file, and its bytes or its outcome where it is not sent.
type Picture = (String, Result<Bytes, (UploadOutcome, Option<String>)>);

/// Reads pictures for one request after the other.
struct Batches<'a> {
    pictures: std::slice::Iter<'a, PathBuf>,
    size: usize,
    /// Digests of the files so far.
    digests: HashSet<String>,
    /// A picture for which the last request had no room.
    next: Option<Picture>,
}

impl Batches<'_> {
    fn read(&mut self) -> Option<Picture> {
        let file = self.pictures.next()?;
        let read = match pictures::read(file) {
            Err(why) => Err((UploadOutcome::Unreadable, Some(why))),
            Ok(bytes) if !self.digests.insert(digest::sha256(&bytes)) => {
                Err((UploadOutcome::Duplicate, None))
            }
            Ok(bytes) => Ok(Bytes::from(bytes)),
        };
        Some((file.display().to_string(), read))
    }
}

impl Iterator for Batches<'_> {
    type Item = Vec<Picture>;

    fn next(&mut self) -> Option<Vec<Picture>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < self.size
            && let Some(picture) = self.next.take().or_else(|| self.read())
        {
            bytes += picture.1.as_ref().map_or(0, Bytes::len);
            if bytes > MAX_BATCH_BYTES && !batch.is_empty() {
                self.next = Some(picture);
                break;
            }
            batch.push(picture);
        }
        (!batch.is_empty()).then_some(batch)
    }
}

/// Sends the pictures of a request. Returns their outcomes, and the size of the cohort if anything was sent.
async fn send_batch(
    client: &Client,
    batch: Vec<Picture>,
) -> Result<(Vec<ImageResult>, Option<u64>), ClientError> {
    let bytes: Vec<Bytes> = batch.iter().filter_map(|(_, read)| read.as_ref().ok().cloned()).collect();
    let (sent, total) =
        if bytes.is_empty() { (Vec::new(), None) } else { send_pictures(client, bytes).await? };
    let mut sent = sent.into_iter();
    let result = |(file, read): Picture| {
        let (result, message) = match read {
            Ok(_) => sent.next().unwrap_or((UploadOutcome::Refused, None)),
            Err(not_sent) => not_sent,
        };
        ImageResult { file, result, message, quality: None, warnings: Vec::new() }
    };
    Ok((batch.into_iter().map(result).collect(), total))
}

/// Outcomes of pictures, and the size of the cohort.
type Sent = (Vec<(UploadOutcome, Option<String>)>, Option<u64>);

/// Sends pictures in one request, or in more where the server takes smaller requests only.
fn send_pictures(client: &Client, pictures: Vec<Bytes>) -> BoxFuture<'_, Result<Sent, ClientError>> {
    Box::pin(async move {
        match client.add_to_cohort(pictures.clone()).await {
            Ok(added) => {
                let total = added.total;
                Ok((outcomes(added), Some(total)))
            }
            Err(error) if matches!(error.code(), Some("too_many_images" | "request_too_large")) => {
                if pictures.len() < 2 {
                    return Ok((vec![(UploadOutcome::Refused, Some(error.to_string()))], None));
                }
                let (first, second) = pictures.split_at(pictures.len() / 2);
                let (mut all, _) = send_pictures(client, first.to_vec()).await?;
                let (rest, total) = send_pictures(client, second.to_vec()).await?;
                all.extend(rest);
                Ok((all, total))
            }
            Err(error) => Err(error),
        }
    })
}

fn outcomes(added: AddedToCohort) -> Vec<(UploadOutcome, Option<String>)> {
    let reasons: BTreeMap<usize, ErrorDetail> =
        added.errors.into_iter().map(|refused| (refused.image, refused.error)).collect();
    let outcome = |(image, outcome): (usize, CohortOutcome)| match (outcome, reasons.get(&image)) {
        (CohortOutcome::Added, _) => (UploadOutcome::Added, None),
        (CohortOutcome::AlreadyThere, _) => (UploadOutcome::AlreadyThere, None),
        (CohortOutcome::Refused, None) => (UploadOutcome::Refused, None),
        (CohortOutcome::Refused, Some(reason)) => {
            let outcome = match reason.code.as_str() {
                "no_face" => UploadOutcome::NoFace,
                "image_unreadable" | "image_empty" => UploadOutcome::Unreadable,
                _ => UploadOutcome::Refused,
            };
            (outcome, Some(format!("{} ({})", reason.message, reason.code)))
        }
    };
    added.results.into_iter().enumerate().map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_by_number_and_bytes_and_equal_files_are_read_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, bytes: usize, fill: u8| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![fill; bytes]).expect("a file");
            path
        };
        let large = MAX_BATCH_BYTES / 2 + 1;
        let files = [
            file("a", 10, 1),
            file("b", 10, 2),
            file("c", large, 3),
            file("d", large, 4),
            file("e", 10, 1),
            folder.path().join("missing"),
        ];
        let batches = Batches { pictures: files.iter(), size: 3, digests: HashSet::new(), next: None };
        let outcomes: Vec<Vec<Option<UploadOutcome>>> = batches
            .map(|batch| batch.into_iter().map(|(_, read)| read.err().map(|(outcome, _)| outcome)).collect())
            .collect();
        let (duplicate, unreadable) = (Some(UploadOutcome::Duplicate), Some(UploadOutcome::Unreadable));
        assert_eq!(outcomes, [vec![None, None, None], vec![None, duplicate, unreadable]]);
        let batches = Batches { pictures: files.iter(), size: 64, digests: HashSet::new(), next: None };
        assert_eq!(batches.map(|batch| batch.len()).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn a_run_goes_on_after_a_file() {
        let pictures = ["x/a.jpg", "x/b.jpg", "x/c.jpg"].map(PathBuf::from);
        assert_eq!(position_after(&pictures, Path::new("x/b.jpg")).expect("a position"), 2);
        let error = position_after(&pictures, Path::new("x/d.jpg")).expect_err("refused").to_string();
        assert!(error.contains("--after x/d.jpg"), "{error}");
    }
}
