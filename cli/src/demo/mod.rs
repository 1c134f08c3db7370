//! `facepipe demo`: the main job from one end to the other. A backend is started with an empty database, people are
//! enrolled and trained, a video is replayed through the real elements, and the detections that were stored are
//! summed up: who was seen where, when and how often, and what it cost in uplink.

mod ground_truth;
mod replay;
mod report;
mod server;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::{ground_truth::GroundTruth, replay::Replay, report::Report, server::Server};
use crate::progress;

/// Where the demo's camera stands. Both names end up in the stored detections.
const CAMERA_ID: &str = "gate-1";
const CAMERA_LOCATION: &str = "Lobby";

/// Runs the main job on real input: enrol, train, replay a video, report who was seen.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe demo
  facepipe demo --video entrance.mp4 --faces staff/     (staff/<name>/*.jpg)

Writes report.json, the backend's log and its database below --out.
Where <video>.json with ground truth lies beside the video, the report also
says how many identities were right.")]
pub struct Options {
    /// Video file to replay, in real time [default: a crowd with ground truth from FACEPIPE_MIRROR, else the
    /// downloaded street]
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Folder with one folder of photographs per person [default: ten people of LFW, where they were downloaded]
    #[arg(long, value_name = "DIR")]
    faces: Option<PathBuf>,
    /// Photographs to enrol per person: the first in the order of their names that show exactly one face
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shots: u16,
    /// Where the report, the log and the database go
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    out: PathBuf,
    /// Models folder [default: FACEPIPE_MODELS, else ./models]
    #[arg(long, env = "FACEPIPE_MODELS", default_value = "models", value_name = "DIR")]
    models: PathBuf,
    /// Embedder of the backend [default: inception-resnet-v1 where its weights are, else mobilefacenet]
    #[arg(long, env = "FACEPIPE_EMBEDDER", value_name = "NAME", value_parser = ["inception-resnet-v1", "mobilefacenet"])]
    embedder: Option<String>,
    /// The backend's program [default: facepipe-backend beside this program]
    #[arg(long, value_name = "FILE")]
    backend: Option<PathBuf>,
}

/// Runs the demo and writes `report.json`.
///
/// # Errors
/// Something that the demo needs is missing (the message says how to get it), or a part of it fails.
pub fn run(options: &Options) -> Result<()> {
    let video = options.video.clone().or_else(default_video).with_context(
        || "no video to replay: run `facepipe models fetch`, set FACEPIPE_MIRROR, or name one with --video",
    )?;
    if !video.is_file() {
        bail!("--video {}: no such file", video.display());
    }
    let truth = GroundTruth::beside(&video)?;
    let embedder = match &options.embedder {
        Some(name) => name.clone(),
        None => installed_embedder(&options.models).to_owned(),
    };
    let gallery = match &options.faces {
        Some(folder) => read_gallery(folder)?,
        None => match default_faces() {
            Some(folder) => read_gallery(&folder)?,
            None => Vec::new(),
        },
    };
    fs::create_dir_all(&options.out).with_context(|| format!("cannot create {}", options.out.display()))?;

    println!("Video     {}", video.display());
    println!("Embedder  {embedder}{}", embedder_note(&embedder, options));
    let server = Server::start(&backend_program(options)?, &options.out, &options.models, &embedder)?;
    println!("Backend   {} (SQLite below {})", server.url(), options.out.display());

    if gallery.is_empty() {
        println!(
            "Nobody is enrolled: no folder of faces could be had (--faces, or `facepipe models fetch lfw10`). \
             Every face will be stored as unknown."
        );
    } else {
        enrol(&server, &gallery, options.shots.into())?;
    }

    let replay = Replay::run(&video, server.url(), CAMERA_ID, CAMERA_LOCATION)?;
    let last_seen = server.last_seen(gallery.iter().map(|person| person.id.as_str()))?;
    drop(server);

    let report = Report::new(&video, &embedder, &replay, truth.as_ref());
    report.print(&last_seen, CAMERA_LOCATION);
    let path = options.out.join("report.json");
    report.write(&path)?;
    println!("\nReport    {}", path.display());
    if replay.failed > 0 {
        bail!(
            "{} crops could not be delivered; see {}",
            replay.failed,
            options.out.join("backend.log").display()
        );
    }
    Ok(())
}

/// One person of the gallery with the photographs that there are.
struct Person {
    id: String,
    photographs: Vec<PathBuf>,
}

fn enrol(server: &Server, gallery: &[Person], shots: usize) -> Result<()> {
    let wanted = gallery.iter().map(|person| person.photographs.len().min(shots)).sum::<usize>();
    let bar = progress::bar(wanted, "Enrolling");
    let mut refused = Vec::new();
    let mut enrolled = 0;
    for person in gallery {
        server.add_person(&person.id)?;
        let mut accepted = 0;
        for photograph in &person.photographs {
            if accepted == shots {
                break;
            }
            match server.add_image(&person.id, photograph)? {
                Ok(()) => {
                    accepted += 1;
                    bar.inc(1);
                }
                Err(refusal) => {
                    refused.push(format!("{}: {} ({})", photograph.display(), refusal.message, refusal.code));
                }
            }
        }
        enrolled += accepted;
    }
    bar.finish_and_clear();
    println!("Enrolled  {} people with {enrolled} photographs", gallery.len());
    for line in refused {
        println!("          passed over {line}");
    }
    let trained = progress::spinner("Training");
    server.train()?;
    trained.finish_and_clear();
    Ok(())
}

fn read_gallery(folder: &Path) -> Result<Vec<Person>> {
    let mut gallery = Vec::new();
    for directory in sorted_entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let Some(id) = directory.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            bail!("{}: the name of a person's folder must be valid UTF-8", directory.display());
        };
        let photographs: Vec<PathBuf> =
            sorted_entries(&directory)?.into_iter().filter(|path| is_picture(path)).collect();
        if !photographs.is_empty() {
            gallery.push(Person { id, photographs });
        }
    }
    if gallery.is_empty() {
        bail!("{}: no folder in it has a picture (expected <name>/*.jpg)", folder.display());
    }
    Ok(gallery)
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    matches!(extension.as_str(), "jpg" | "jpeg" | "png" | "webp" | "bmp" | "gif")
}

fn mirror() -> Option<PathBuf> {
    env::var_os("FACEPIPE_MIRROR").map(PathBuf::from)
}

fn assets() -> PathBuf {
    env::var_os("FACEPIPE_MODELS").map_or_else(|| PathBuf::from("models"), PathBuf::from).join("assets")
}

fn default_video() -> Option<PathBuf> {
    let places = [Some(assets()), mirror()].into_iter().flatten();
    let crowd = places.clone().map(|place| place.join("videos/crowd-medium-1080p6.mp4"));
    let street = places.map(|place| place.join("videos/street-1080p.mp4"));
    crowd.chain(street).find(|path| path.is_file())
}

fn default_faces() -> Option<PathBuf> {
    [Some(assets()), mirror()]
        .into_iter()
        .flatten()
        .map(|place| place.join("lfw10"))
        .find(|path| path.is_dir())
}

fn installed_embedder(models: &Path) -> &'static str {
    let weights = ["20180402-114759-vggface2.safetensors", "20180402-114759-vggface2.pt"];
    if weights.iter().any(|file| models.join(file).is_file()) {
        "inception-resnet-v1"
    } else {
        "mobilefacenet"
    }
}

fn embedder_note(embedder: &str, options: &Options) -> &'static str {
    if embedder == "mobilefacenet" && options.embedder.is_none() {
        " (the weights of Inception-ResNet v1 are not installed: `facepipe models fetch inception-resnet-v1`)"
    } else {
        ""
    }
}

fn backend_program(options: &Options) -> Result<PathBuf> {
    let program = match &options.backend {
        Some(program) => program.clone(),
        None => env::current_exe()?.with_file_name("facepipe-backend"),
    };
    if !program.is_file() {
        bail!(
            "no backend at {}: build it (`cargo build -p facepipe-backend`) or name it with --backend",
            program.display()
        );
    }
    Ok(program)
}
