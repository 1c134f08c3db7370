//! A trial: a backend of its own with people enrolled, and videos replayed against it through the real elements. What
//! `facepipe demo` and `facepipe bench` have in common.

mod gallery;
mod ground_truth;
mod replay;
mod server;

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File, TryLockError},
    io::ErrorKind,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, builder::PossibleValuesParser};
use facepipe_vision::{EmbedderKind, default_models_dir, installed_embedder};

pub use self::{
    gallery::Person,
    ground_truth::{GroundTruth, IdentificationOutcome, Score},
    replay::{Crops, Detection, Policy, Replay},
    server::Server,
};

use crate::{exit::Failure, pictures, video::faces::positive};

/// Where the camera of a trial stands. Both names end up in the stored detections.
pub const CAMERA_ID: &str = "gate-1";
/// See [`CAMERA_ID`].
pub const CAMERA_LOCATION: &str = "Lobby";

/// Photographs that are enrolled per person, if nothing is said.
const SHOTS: u16 = 5;

/// Who is enrolled, and with what the backend works.
#[derive(Debug, Args)]
#[group(id = "trial")]
pub struct Options {
    /// Folder with one folder of photographs per person [default: ten people of LFW, where they were downloaded]
    #[arg(long, value_name = "DIR")]
    faces: Option<PathBuf>,
    /// Photographs to enrol per person: the first in the order of their names that show exactly one face
    #[arg(long, default_value_t = SHOTS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
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
    // Held until the server has ended.
    _workspace: Workspace,
}

/// A folder that one trial at a time works in.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    // The lock lasts as long as it is open.
    _lock: File,
}

impl Workspace {
    /// Makes the folder where it is missing, and takes it.
    ///
    /// # Errors
    /// It cannot be written, or another trial works in it.
    pub fn lock(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::output(folder.display(), error);
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::options().create(true).append(true).open(folder.join(".lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder: folder.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Failure::Output(format!(
                "{}: another facepipe works in this folder (a demo that keeps its backend running does so until it is \
                 ended); end it, or name another folder with --out",
                folder.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Options {
    /// The folder of those who are to be enrolled: what was named, else what was downloaded.
    pub fn faces_folder(&self) -> Option<PathBuf> {
        self.faces.clone().or_else(default_faces)
    }

    /// Whether somebody named that folder.
    pub fn faces_are_named(&self) -> bool {
        self.faces.is_some()
    }

    /// Those who are to be enrolled; nobody where there is no folder.
    ///
    /// # Errors
    /// The folder cannot be read, or nobody in it has a picture.
    pub fn gallery(&self) -> Result<Vec<Person>> {
        self.faces_folder().map_or_else(|| Ok(Vec::new()), |folder| gallery::read(&folder))
    }

    /// Where the models are.
    pub fn models(&self) -> &Path {
        &self.models
    }

    /// The embedder that was named, else the most accurate one whose weights are there; none where there are none.
    pub fn embedder(&self) -> Option<EmbedderKind> {
        let named = self.embedder.as_deref().and_then(|name| name.parse().ok());
        named.or_else(|| installed_embedder(&self.models))
    }

    /// How long a video may take to its first frame.
    pub fn first_frame_limit(&self) -> Duration {
        Duration::from_secs_f64(self.first_frame)
    }

    /// The same options for a command that is to be tried next, as a shell takes them.
    pub fn as_arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(faces) = &self.faces {
            arguments.extend(["--faces".to_owned(), faces.display().to_string()]);
        }
        if self.shots != SHOTS {
            arguments.extend(["--shots".to_owned(), self.shots.to_string()]);
        }
        arguments
    }
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
        let gallery = options.gallery()?;
        Self::with(options, gallery, Workspace::lock(out)?, 0, say)
    }

    /// The same with a gallery that was read before, in a folder that was taken, on a port of this machine (0: any free one).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with(
        options: &Options,
        mut gallery: Vec<Person>,
        workspace: Workspace,
        port: u16,
        say: &dyn Fn(&str),
    ) -> Result<Option<Self>> {
        check_port(port)?;
        // Where none is installed, the small and accurate one is what the backend's error asks for.
        let embedder = options.embedder().unwrap_or(EmbedderKind::MobileFaceNet);
        let out = workspace.folder();
        say(&format!("Embedder  {embedder}{}", embedder_note(embedder, options)));
        let server = Server::start(&backend_program(options)?, out, &options.models, embedder.name(), port)?;
        say(&format!("Backend   {} (SQLite below {})", server.url(), out.display()));
        if gallery.is_empty() {
            say(
                "Nobody is enrolled: no folder of faces could be had (--faces, or `facepipe models fetch lfw10`). \
                 Every face will be stored as unknown.",
            );
        } else if !gallery::enroll(&server, &mut gallery, options.shots.into(), say)? {
            return Ok(None);
        }
        Ok(Some(Self { server, embedder: embedder.name().to_owned(), gallery, _workspace: workspace }))
    }
}

/// Said before anything is started: the backend would say it in its log.
fn check_port(port: u16) -> Result<(), Failure> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Failure::Usage(format!(
            "--port {port}: another program listens on 127.0.0.1:{port}; name another port, or none for any free one"
        ))),
        Err(error) => Err(Failure::Usage(format!("--port {port}: cannot be listened on: {error}"))),
        Ok(_) => Ok(()),
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

/// Galleries that can be downloaded, the preferred first: a folder of photographs for each person.
const GALLERIES: [&str; 2] = ["lfw10", "gallery"];

/// Photographs of people who are in none of the galleries: one file for each.
const STRANGERS: [&str; 2] = ["strangers", "lfw-open/strangers"];

/// Where downloads lie.
fn download_folders() -> impl Iterator<Item = PathBuf> {
    [Some(assets()), mirror()].into_iter().flatten()
}

/// All galleries that were downloaded, the preferred first.
pub fn galleries() -> impl Iterator<Item = PathBuf> {
    let folders =
        GALLERIES.into_iter().flat_map(|name| download_folders().map(move |place| place.join(name)));
    // A download that failed leaves folders without a picture.
    folders
        .filter(|folder| folder.is_dir() && pictures::in_folder(folder).is_ok_and(|f| !f.pictures.is_empty()))
}

/// The photographs that the demo enrols if nothing is said.
pub fn default_faces() -> Option<PathBuf> {
    galleries().next()
}

/// A crowd that was rendered before, where it was downloaded.
pub fn downloaded_crowd() -> Option<PathBuf> {
    download_folders().map(|place| place.join("videos/crowd-medium-1080p6.mp4")).find(|path| path.is_file())
}

/// Photographs of strangers, one of each, where they were downloaded.
pub fn strangers() -> Vec<PathBuf> {
    let folders =
        STRANGERS.into_iter().flat_map(|name| download_folders().map(move |place| place.join(name)));
    let found =
        folders.filter(|folder| folder.is_dir()).filter_map(|folder| pictures::in_folder(&folder).ok());
    found.map(|found| found.pictures).find(|pictures| !pictures.is_empty()).unwrap_or_default()
}

fn embedder_note(embedder: EmbedderKind, options: &Options) -> &'static str {
    match embedder {
        EmbedderKind::DlibResnet => {
            " (the fallback where only package registries can be reached, less accurate than MobileFaceNet: `facepipe models \
             fetch mobilefacenet`)"
        }
        EmbedderKind::MobileFaceNet if options.embedder.is_none() => {
            " (the weights of Inception-ResNet v1 are not installed: `facepipe models fetch inception-resnet-v1`)"
        }
        _ => "",
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
