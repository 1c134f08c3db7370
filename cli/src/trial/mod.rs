//! A trial: a private backend with enrolled people, and videos replayed against it through the real elements. Shared by
//! `facepipe demo` and `facepipe bench`.

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

#[cfg(test)]
pub use self::replay::TrackCrop;
pub use self::{
    gallery::Person,
    ground_truth::{Appearance, GroundTruth, IdentificationOutcome, Score, Walker},
    replay::{Crops, Detection, Policy, Replay},
    server::Server,
};

use crate::{exit::Failure, networks::ModelsFolder, pictures, video::faces::positive};

/// Camera id of stored detections.
pub const CAMERA_ID: &str = "gate-1";
/// Camera location of stored detections.
pub const CAMERA_LOCATION: &str = "Lobby";
/// Bit rate of the camera's own video, Mbit/s: 1080p H.264.
pub const VIDEO_MBPS: f64 = 4.0;

/// Default number of enrolled photographs per person.
const SHOTS: u16 = 5;

/// Options of a trial: people, models and backend.
#[derive(Debug, Args)]
#[group(id = "trial")]
pub struct Options {
    /// Folder with one subfolder of photographs per person [default: ten people of LFW, if downloaded]
    #[arg(long, value_name = "DIR")]
    faces: Option<PathBuf>,
    /// Photographs to enrol per person: the first by name that have a main face
    #[arg(long, default_value_t = SHOTS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shots: u16,
    #[command(flatten)]
    folder: ModelsFolder,
    /// Embedder of the backend [default: the first whose weights are installed]
    #[arg(long, env = "FACEPIPE_EMBEDDER", value_name = "NAME", value_parser = PossibleValuesParser::new(EmbedderKind::ALL.map(EmbedderKind::name)))]
    embedder: Option<String>,
    /// Timeout for the first frame of a video, seconds
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS", value_parser = positive)]
    first_frame: f64,
    /// Backend program [default: facepipe-backend beside this program]
    #[arg(long, value_name = "FILE")]
    backend: Option<PathBuf>,
}

/// A running backend with enrolled people.
pub struct Trial {
    pub server: Server,
    /// Name of its embedder.
    pub embedder: String,
    pub gallery: Vec<Person>,
    // Dropped after the server.
    _workspace: Workspace,
}

/// A folder locked by one trial at a time.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    // The lock is held while the file is open.
    _lock: File,
}

impl Workspace {
    /// Creates the folder if missing, and locks it.
    ///
    /// # Errors
    /// It cannot be written, or another trial uses it.
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

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Options {
    /// Returns the gallery folder: the given one, else the downloaded one.
    pub fn faces_folder(&self) -> Option<PathBuf> {
        self.faces.clone().or_else(default_faces)
    }

    /// Returns whether the gallery folder was given.
    pub fn faces_are_named(&self) -> bool {
        self.faces.is_some()
    }

    /// Reads the gallery; empty without a folder.
    ///
    /// # Errors
    /// The folder cannot be read, or nobody in it has a picture.
    pub fn gallery(&self) -> Result<Vec<Person>> {
        self.faces_folder().map_or_else(|| Ok(Vec::new()), |folder| gallery::read(&folder))
    }

    /// Returns the models folder.
    pub fn models(&self) -> &Path {
        &self.folder.models
    }

    /// Returns the given embedder, else the most accurate installed one; none if none is installed.
    pub fn embedder(&self) -> Option<EmbedderKind> {
        let named = self.embedder.as_deref().and_then(|name| name.parse().ok());
        named.or_else(|| installed_embedder(&self.folder.models))
    }

    /// Returns the timeout for the first frame of a video.
    pub fn first_frame_limit(&self) -> Duration {
        Duration::from_secs_f64(self.first_frame)
    }

    /// Returns the options as command line arguments.
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
    /// Returns the enrolled people.
    pub fn enrolled(&self) -> BTreeSet<&str> {
        self.gallery.iter().filter(|person| person.is_enrolled()).map(|person| person.id.as_str()).collect()
    }

    /// Returns the people without a usable photograph.
    pub fn without_photograph(&self) -> Vec<String> {
        self.gallery.iter().filter(|person| !person.is_enrolled()).map(|person| person.id.clone()).collect()
    }

    /// Starts a backend with an empty database below `out`, enrols and trains; reports to `say`. Returns none if
    /// interrupted.
    ///
    /// # Errors
    /// Something is missing (the message says how to get it), or the backend fails.
    pub fn start(options: &Options, out: &Path, say: &dyn Fn(&str)) -> Result<Option<Self>> {
        let gallery = options.gallery()?;
        Self::with(options, gallery, Workspace::lock(out)?, 0, say)
    }

    /// Starts as [`Self::start`] does, with a given gallery, workspace and port (0: any free port).
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn with(
        options: &Options,
        mut gallery: Vec<Person>,
        workspace: Workspace,
        port: u16,
        say: &dyn Fn(&str),
    ) -> Result<Option<Self>> {
        check_port(port)?;
        // If none is installed, the backend's error names this one.
        let embedder = options.embedder().unwrap_or(EmbedderKind::MobileFaceNet);
        let out = workspace.folder();
        say(&format!("Embedder  {embedder}{}", embedder_note(embedder, options)));
        let server = Server::start(&backend_program(options)?, out, options.models(), embedder.name(), port)?;
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

/// Checks the port before the backend is started, which would report it in its log only.
fn check_port(port: u16) -> Result<(), Failure> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Failure::Usage(format!(
            "--port {port}: another program listens on 127.0.0.1:{port}; name another port, or none for any free one"
        ))),
        Err(error) => Err(Failure::Usage(format!("--port {port}: cannot be listened on: {error}"))),
        Ok(_) => Ok(()),
    }
}

/// Returns the mirror folder of downloads.
pub fn mirror() -> Option<PathBuf> {
    env::var_os("FACEPIPE_MIRROR").map(PathBuf::from)
}

/// Returns where `facepipe models fetch` stores photographs and videos.
pub fn assets() -> PathBuf {
    env::var_os("FACEPIPE_MODELS").map_or_else(default_models_dir, PathBuf::from).join("assets")
}

/// Downloadable galleries in order of preference, with one folder per person.
const GALLERIES: [&str; 2] = ["lfw10", "gallery"];

/// Downloadable photographs of people who are in none of the galleries, one per person.
const STRANGERS: [&str; 2] = ["strangers", "lfw-open/strangers"];

/// Returns the folders of downloads.
fn download_folders() -> impl Iterator<Item = PathBuf> {
    [Some(assets()), mirror()].into_iter().flatten()
}

/// Returns the downloaded galleries in order of preference.
pub fn galleries() -> impl Iterator<Item = PathBuf> {
    let folders =
        GALLERIES.into_iter().flat_map(|name| download_folders().map(move |place| place.join(name)));
    // A failed download leaves folders without pictures.
    folders
        .filter(|folder| folder.is_dir() && pictures::in_folder(folder).is_ok_and(|f| !f.pictures.is_empty()))
}

/// Returns the default gallery.
pub fn default_faces() -> Option<PathBuf> {
    galleries().next()
}

/// Returns the downloaded crowd video, if any.
pub fn downloaded_crowd() -> Option<PathBuf> {
    download_folders().map(|place| place.join("videos/crowd-medium-1080p6.mp4")).find(|path| path.is_file())
}

/// Returns the downloaded photographs of strangers, one per person.
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
