//! `facepipe recognize folder`: recognises people in the pictures of a folder, with statistics.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::confusion::{Confusion, PredictedIdentity};
use crate::{
    client::{Client, ClientError, Face, Recognition},
    connection::Connection,
    digest,
    exit::{self, Outcome},
    interrupt,
    latency::{Latencies, Percentiles},
    names::NameIndex,
    output,
    pictures::{self, FolderContents, PassedOver},
    progress, runtime,
};

/// Recognises people in the pictures of a folder.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe recognize folder visitors/
  facepipe recognize folder test-set/ --stats       (test-set/<name>/*.jpg: with a confusion table)
  facepipe recognize folder visitors/ --dry-run --stats       (measures transport alone)
  facepipe recognize folder visitors/ --store --camera-id door --location Hall

Includes subfolders, except hidden and system ones (@eaDir, .thumbnails,
__MACOSX). Pictures are JPEG, PNG, WebP, BMP, GIF and HEIC files, recognised by
content, not by name; all other files are listed, and the exit code is then 3.
With --store, each picture has an idempotency key derived from its bytes, so that
running it again stores nothing twice.

{}", exit::HELP))]
#[group(id = "recognize_folder")]
pub struct Options {
    /// The folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Have the server read and discard the pictures, to measure transport alone
    #[arg(long, conflicts_with = "store")]
    dry_run: bool,
    /// Also print statistics: time, requests per second, latencies, bytes and confusions
    #[arg(long)]
    stats: bool,
    /// Store a detection of each face
    #[arg(long)]
    store: bool,
    /// With --store: id of the camera
    #[arg(long, default_value = "folder", value_name = "NAME")]
    camera_id: String,
    /// With --store: location of the camera
    #[arg(long, default_value = "folder", value_name = "PLACE")]
    location: String,
    /// Maximum number of predictions of each face in the JSON [default: the server's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    top_k: Option<u8>,
    /// Number of concurrent requests
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Print JSON: each picture with its faces, and the statistics
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// A picture and its result.
#[derive(Serialize)]
struct ImageReport {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    faces: Vec<Face>,
}

#[derive(Serialize)]
struct Statistics {
    /// Pictures that succeeded and failed.
    images: usize,
    failed: usize,
    faces: usize,
    known: usize,
    unknown: usize,
    images_without_face: usize,
    seconds: f64,
    requests_per_second: f64,
    /// Latency of a request, including repetitions while the server was busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Percentiles>,
    /// Bytes of the pictures, without headers.
    bytes: u64,
    /// Share of correct results among pictures with a face, if folders are named after people.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confusion: Option<Confusion>,
}

#[derive(Serialize)]
struct Report {
    images: Vec<ImageReport>,
    /// Files that are no pictures or unreadable.
    passed_over: Vec<PassedOver>,
    /// Number of hidden and system files and folders that were skipped.
    hidden: usize,
    statistics: Statistics,
}

/// A completed request for one picture.
struct CompletedRequest {
    file: PathBuf,
    bytes: u64,
    took: Duration,
    outcome: Result<Vec<Face>, RequestError>,
}

enum RequestError {
    File(String),
    Server(ClientError),
    Interrupted,
}

/// Runs the program.
///
/// # Errors
/// The folder cannot be read, or the server cannot be reached, cannot serve or refuses the token.
pub fn run(options: &Options) -> Result<Outcome> {
    let found = pictures::in_folder(&options.folder)?.report_skipped(&options.folder)?;
    runtime()?.block_on(recognize(options, found))
}

async fn recognize(options: &Options, found: FolderContents) -> Result<Outcome> {
    let FolderContents { pictures: files, passed_over, hidden } = found;
    let client = options.connection.client()?;
    let enrolled = if options.dry_run {
        NameIndex::new([])
    } else {
        NameIndex::new(client.dataset().await?.people.into_iter().map(|person| person.face_id))
    };
    let bar = progress::bar(files.len(), if options.dry_run { "Sending" } else { "Asking" });
    let mut latencies = Latencies::new();
    let mut images = Vec::new();
    let mut bytes = 0;
    let mut failure = None;
    let started = Instant::now();
    let mut requests = stream::iter(&files)
        .map(|file| recognize_file(options, &client, file))
        .buffered(options.parallel.into());
    while let Some(request) = requests.next().await {
        let CompletedRequest { file, bytes: size, took, outcome } = request;
        let (faces, error) = match outcome {
            Err(RequestError::Interrupted) => continue,
            Err(RequestError::Server(error)) if !error.is_request_error() => {
                failure = Some(error);
                break;
            }
            Err(RequestError::Server(error)) => (Vec::new(), Some(error.to_string())),
            Err(RequestError::File(why)) => (Vec::new(), Some(why)),
            Ok(faces) => {
                latencies.record(took);
                bytes += size;
                (faces, None)
            }
        };
        let picture = ImageReport { file: file.display().to_string(), error, faces };
        if !options.json && !options.dry_run {
            bar.suspend(|| output::line(picture.summary()));
        } else if let Some(error) = &picture.error {
            bar.suspend(|| eprintln!("{}: {error}", picture.file));
        }
        images.push(picture);
        bar.inc(1);
    }
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let confusion = (!options.dry_run).then(|| confusion(&options.folder, &files, &images, &enrolled));
    let statistics =
        Statistics::new(&images, seconds, &latencies, bytes, confusion.filter(Confusion::is_meaningful));
    let complete = statistics.failed == 0 && passed_over.is_empty();
    if options.json {
        output::json(&Report { images, passed_over, hidden, statistics })?;
    } else if options.stats || options.dry_run {
        statistics.print(options.dry_run, passed_over.len());
    }
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    if interrupt::requested() {
        return Ok(Outcome::Interrupted);
    }
    Ok(if complete { Outcome::Done } else { Outcome::Partial })
}

async fn recognize_file(options: &Options, client: &Client, file: &Path) -> CompletedRequest {
    let done = |bytes, took, outcome| CompletedRequest { file: file.to_owned(), bytes, took, outcome };
    if interrupt::requested() {
        return done(0, Duration::ZERO, Err(RequestError::Interrupted));
    }
    let image = match pictures::read(file) {
        Ok(bytes) => Bytes::from(bytes),
        Err(why) => return done(0, Duration::ZERO, Err(RequestError::File(why))),
    };
    let size = image.len().try_into().unwrap_or(u64::MAX);
    let key = options.store.then(|| idempotency_key(&image));
    let started = Instant::now();
    let answer = if options.dry_run {
        client.dry_run(image).await.map(|()| Vec::new())
    } else {
        let call = if options.store {
            Recognition::StoreResults { camera_id: &options.camera_id, location: &options.location }
        } else {
            Recognition::GetResults
        };
        client.recognize(call, image, key.as_deref(), options.top_k).await.map(|results| results.faces)
    };
    done(size, started.elapsed(), answer.map_err(RequestError::Server))
}

/// Returns the idempotency key of a picture, derived from its bytes.
fn idempotency_key(image: &[u8]) -> String {
    format!("folder-{}", digest::sha256(image))
}

/// Compares the results with the names of the subfolders of `root`. Of several faces in a picture the largest counts.
fn confusion(root: &Path, files: &[PathBuf], images: &[ImageReport], enrolled: &NameIndex) -> Confusion {
    let answered: HashMap<&str, &ImageReport> =
        images.iter().map(|image| (image.file.as_str(), image)).collect();
    let mut confusion = Confusion::default();
    for file in files {
        let below = file.strip_prefix(root).unwrap_or(file);
        let mut parts = below.components();
        let (Some(truth), Some(_)) = (parts.next(), parts.next()) else { continue };
        let truth = truth.as_os_str().to_string_lossy();
        let shown = file.display().to_string();
        let Some(image) = answered.get(shown.as_str()).filter(|image| image.error.is_none()) else {
            continue;
        };
        let answer = match Face::largest(&image.faces) {
            None => PredictedIdentity::NoFace,
            Some(face) => face.name().map_or(PredictedIdentity::Unknown, PredictedIdentity::Named),
        };
        let person = enrolled.face_id(&truth);
        confusion.count(person.unwrap_or(&truth), person.is_some(), &answer);
    }
    confusion
}

impl ImageReport {
    fn summary(&self) -> String {
        if let Some(error) = &self.error {
            return format!("{}: {error}", self.file);
        }
        if self.faces.is_empty() {
            return format!("{}: no face", self.file);
        }
        let faces: Vec<String> = self
            .faces
            .iter()
            .map(|face| match (face.name(), &face.top_prediction) {
                (Some(name), Some(top)) => format!("{name} ({:.0} %)", top.confidence * 100.0),
                _ => "unknown".into(),
            })
            .collect();
        format!("{}: {}", self.file, faces.join(", "))
    }
}

impl Statistics {
    #[expect(clippy::cast_precision_loss, reason = "counts of pictures are far below 2^52")]
    fn new(
        images: &[ImageReport],
        seconds: f64,
        latencies: &Latencies,
        bytes: u64,
        confusion: Option<Confusion>,
    ) -> Self {
        let answered = || images.iter().filter(|image| image.error.is_none());
        let faces: usize = answered().map(|image| image.faces.len()).sum();
        let known = answered().flat_map(|image| &image.faces).filter(|face| face.name().is_some()).count();
        let accuracy = confusion.as_ref().map(Confusion::correct).filter(|(_, all)| *all > 0);
        Self {
            images: answered().count(),
            failed: images.len() - answered().count(),
            faces,
            known,
            unknown: faces - known,
            images_without_face: answered().filter(|image| image.faces.is_empty()).count(),
            seconds,
            requests_per_second: if seconds > 0.0 { answered().count() as f64 / seconds } else { 0.0 },
            latency: latencies.percentiles(),
            bytes,
            accuracy: accuracy.map(|(right, all)| right as f64 / all as f64),
            confusion,
        }
    }

    fn print(&self, dry_run: bool, passed_over: usize) {
        let row = |name: &str, value: String| output::line(format!("  {name:<26}{value}"));
        output::line("");
        row("pictures answered", self.images.to_string());
        row("pictures not accepted", self.failed.to_string());
        if passed_over > 0 {
            row("files passed over", passed_over.to_string());
        }
        if !dry_run {
            row("pictures without a face", self.images_without_face.to_string());
            row("faces", format!("{} ({} known, {} unknown)", self.faces, self.known, self.unknown));
        }
        row("time, s", format!("{:.2}", self.seconds));
        row("requests per second", format!("{:.1}", self.requests_per_second));
        if let Some(latency) = self.latency {
            row(
                "latency p50/p95/p99, ms",
                format!("{:.0} / {:.0} / {:.0}", latency.p50_ms, latency.p95_ms, latency.p99_ms),
            );
        }
        row("bytes of the pictures", self.bytes.to_string());
        if let Some(accuracy) = self.accuracy {
            row("answered rightly, %", format!("{:.1}", accuracy * 100.0));
        }
        if let Some(confusion) = &self.confusion {
            output::line("");
            confusion.print();
        }
    }
}
