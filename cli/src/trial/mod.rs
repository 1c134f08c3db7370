//! A trial: a backend of its own with people enrolled, and videos replayed against it through the real elements. What
//! `facepipe demo` and `facepipe bench` have in common.

mod gallery;
mod ground_truth;
mod replay;
mod server;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, builder::PossibleValuesParser};
use facepipe_vision::{EmbedderKind, default_models_dir, installed_embedder};

pub use self::{
    gallery::Person,
    ground_truth::{GroundTruth, Score},
    replay::{Policy, Replay},
    server::Server,
};

use crate::{exit::Failure, video::faces::positive};

/// Where the camera of a trial stands. Both names end up in the stored detections.
pub const CAMERA_ID: &str = "gate-1";
/// See [`CAMERA_ID`].
pub const CAMERA_LOCATION: &str = "Lobby";

/// Who is enrolled, and with what the backend works.
#[derive(Debug, Args)]
#[group(id = "trial")]
pub struct Options {
    /// Folder with one folder of photographs per person [default: ten people of LFW, where they were downloaded]
    #[arg(long, value_name = "DIR")]
    faces: Option<PathBuf>,
    /// Photographs to enrol per person: the first in the order of their names that show exactly one face
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shots: u16,
    /// Models folder [default: FACEPIPE_MODELS, else ./models, else the system's]
    #[arg(
        long,
        env = "FACEPIPE_MODELS",
        default_value_os_t = default_models_dir(),
        value_name = "DIR",
        hide_default_value = true
    )]
    models: PathBuf,
    /// Embedder of the backend [default: the first of them whose weights are installed]
    #[arg(long, env = "FACEPIPE_EMBEDDER", value_name = "NAME", value_parser = PossibleValuesParser::new(EmbedderKind::ALL.map(EmbedderKind::name)))]
    embedder: Option<String>,
    /// How long a video may take to its first frame, seconds
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = positive)]
    first_frame: f64,
    /// The backend's program [default: facepipe-backend beside this program]
    #[arg(long, value_name = "FILE")]
    backend: Option<PathBuf>,
}

/// A running backend that knows people.
pub struct Trial {
    /// The backend.
    pub server: Server,
    /// What it embeds with.
    pub embedder: String,
    /// Who was to be enrolled.
    pub gallery: Vec<Person>,
    /// How long a video may take to its first frame.
    first_frame_limit: Duration,
}

impl Trial {
    /// Who can be recognised.
    pub fn enrolled(&self) -> BTreeSet<&str> {
        self.gallery.iter().filter(|person| person.is_enrolled()).map(|person| person.id.as_str()).collect()
    }

    /// Who cannot, for lack of a photograph that could be used.
    pub fn without_photograph(&self) -> Vec<String> {
        self.gallery.iter().filter(|person| !person.is_enrolled()).map(|person| person.id.clone()).collect()
    }
}

impl Trial {
    /// Starts a backend with an empty database below `out`, enrols and trains, and says so to `say`. None where the
    /// program was asked to end before that was done.
    ///
    /// # Errors
    /// Something that is needed is missing (the message says how to get it), or the backend fails.
    pub fn start(options: &Options, out: &Path, say: &dyn Fn(&str)) -> Result<Option<Self>> {
        let embedder = match &options.embedder {
            Some(name) => name.clone(),
            // Where none is installed, the small and accurate one is what the backend's error asks for.
            None => {
                installed_embedder(&options.models).unwrap_or(EmbedderKind::MobileFaceNet).name().to_owned()
            }
        };
        let mut gallery = match &options.faces {
            Some(folder) => gallery::read(folder)?,
            None => match default_faces() {
                Some(folder) => gallery::read(&folder)?,
                None => Vec::new(),
            },
        };
        fs::create_dir_all(out).map_err(|error| Failure::output(out.display(), error))?;
        say(&format!("Embedder  {embedder}{}", embedder_note(&embedder, options)));
        let server = Server::start(&backend_program(options)?, out, &options.models, &embedder)?;
        say(&format!("Backend   {} (SQLite below {})", server.url(), out.display()));
        if gallery.is_empty() {
            say(
                "Nobody is enrolled: no folder of faces could be had (--faces, or `facepipe models fetch lfw10`). \
                 Every face will be stored as unknown.",
            );
        } else if !gallery::enrol(&server, &mut gallery, options.shots.into(), say)? {
            return Ok(None);
        }
        let first_frame_limit = Duration::from_secs_f64(options.first_frame);
        Ok(Some(Self { server, embedder, gallery, first_frame_limit }))
    }
}

/// The folder of test data that stands in for downloads.
pub fn mirror() -> Option<PathBuf> {
    env::var_os("FACEPIPE_MIRROR").map(PathBuf::from)
}

/// Where `facepipe models fetch` puts photographs and videos.
pub fn assets() -> PathBuf {
    env::var_os("FACEPIPE_MODELS").map_or_else(default_models_dir, PathBuf::from).join("assets")
}

/// Photographs of ten people, where they were downloaded.
pub fn default_faces() -> Option<PathBuf> {
    [Some(assets()), mirror()]
        .into_iter()
        .flatten()
        .map(|place| place.join("lfw10"))
        .find(|path| path.is_dir())
}

fn embedder_note(embedder: &str, options: &Options) -> &'static str {
    if embedder == EmbedderKind::DlibResnet.name() {
        " (the fallback where only package registries can be reached, less accurate than MobileFaceNet: `facepipe models \
         fetch mobilefacenet`)"
    } else if embedder == EmbedderKind::MobileFaceNet.name() && options.embedder.is_none() {
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
