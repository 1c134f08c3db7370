//! `facepipe models`: lists, fetches and verifies what facepipe downloads.

mod check;
mod download;
mod fetch;
mod manifest;
mod wheel;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;

use self::{
    check::{State, check},
    fetch::Fetcher,
    manifest::{Asset, Entry, Kind, Manifest},
};
use crate::manage;

/// Lists, fetches and verifies models, the ONNX Runtime, and pictures and videos for demo and tests.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe models list
  facepipe models fetch                          (all but the optional ones)
  facepipe models fetch mtcnn mobilefacenet
  facepipe models fetch inception-resnet-v1      (optional: 107 MB)
  FACEPIPE_MIRROR=/media/usb facepipe models fetch
  facepipe models verify --json

Exit codes:
  0  all is well
  1  something that is required, or was asked for by name, is missing or wrong
  2  wrong usage
Missing pictures and videos for demo and tests are only warned of.")]
pub struct Options {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    places: Places,
    /// Another manifest than the one built in.
    #[arg(long, value_name = "FILE", global = true)]
    manifest: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows what there is, what it is for, and whether it is there (by size; `verify` checks the contents).
    List {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Downloads what is missing or wrong, checks and resumes. What is right already is left alone.
    Fetch {
        #[command(flatten)]
        which: Which,
        /// Also the optional ones.
        #[arg(long)]
        all: bool,
    },
    /// Checks size and SHA-256 of what is there.
    Verify {
        #[command(flatten)]
        which: Which,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Server(manage::TrainedAction),
}

#[derive(Debug, Args)]
struct Which {
    /// Names as `list` shows them, file names, or kinds (detector, mtcnn, embedder, runtime, collection).
    names: Vec<String>,
}

/// The folders.
#[derive(Debug, Args)]
struct Places {
    /// Folder of the models; pictures and videos go to `assets` in it.
    #[arg(long, value_name = "FOLDER", env = "FACEPIPE_MODELS", default_value = "models", global = true)]
    dir: PathBuf,
    /// Folder of the ONNX Runtime library.
    #[arg(long, value_name = "FOLDER", env = "FACEPIPE_RUNTIME", default_value = ".runtime", global = true)]
    runtime_dir: PathBuf,
    /// Folder from which files are taken before anything is downloaded.
    #[arg(long, value_name = "FOLDER", env = "FACEPIPE_MIRROR", global = true)]
    mirror: Option<PathBuf>,
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
    state: &'static str,
    files: Vec<FileRow<'a>>,
}

#[derive(Debug, Serialize)]
struct FileRow<'a> {
    path: PathBuf,
    bytes: Option<u64>,
    /// None where no hash is pinned.
    sha256: Option<&'a str>,
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

/// Runs `facepipe models`.
///
/// # Errors
/// A manifest that cannot be read.
pub fn run(options: &Options) -> Result<ExitCode> {
    let manifest = match &options.manifest {
        Some(path) => Manifest::read(path)?,
        None => Manifest::embedded()?,
    };
    let which = match &options.action {
        Action::List { which, .. } | Action::Fetch { which, .. } | Action::Verify { which, .. } => which,
        Action::Server(action) => return manage::trained(action).map(ExitCode::from),
    };
    let entries = match manifest.select(&which.names) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("facepipe: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let places = &options.places;
    match &options.action {
        Action::List { json, .. } => {
            let rows: Vec<Row<'_>> = entries.iter().map(|entry| places.row(entry, by_size)).collect();
            print(&if *json { as_json(&rows)? } else { list(&rows) })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Verify { json, which } => {
            let rows: Vec<Row<'_>> = entries.iter().map(|entry| places.row(entry, by_content)).collect();
            print(&if *json { as_json(&rows)? } else { verified(&rows) })?;
            let asked = |row: &Row<'_>| row.required || !which.names.is_empty();
            let is_bad = |row: &Row<'_>| row.has(WRONG) || (row.state != PRESENT && asked(row));
            Ok(if rows.iter().any(is_bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Action::Fetch { which, all } => {
            let named = |entry: &Entry| which.names.iter().any(|name| entry.is_called(name));
            let wanted: Vec<&Entry> =
                entries.into_iter().filter(|entry| !entry.optional || *all || named(entry)).collect();
            Ok(fetch(&wanted, places, !which.names.is_empty()))
        }
        Action::Server(action) => manage::trained(action).map(ExitCode::from),
    }
}

impl Places {
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

    fn row<'a>(&self, entry: &'a Entry, look: fn(&Path, &Asset) -> State) -> Row<'a> {
        let files: Vec<FileRow<'a>> = entry
            .files
            .iter()
            .map(|asset| {
                let path = self.target(entry, asset);
                let (state, found_sha256, problem) = match look(&path, asset) {
                    State::Missing => (MISSING, None, None),
                    State::Right { sha256 } => (PRESENT, Some(sha256).filter(|hash| !hash.is_empty()), None),
                    State::Wrong { problem } => (WRONG, None, Some(problem)),
                };
                let expected = &asset.expected;
                FileRow {
                    path,
                    bytes: expected.bytes,
                    sha256: expected.sha256.as_deref(),
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

/// An entry that is not complete, with each distinct problem and how many files have it.
struct Missing<'a> {
    entry: &'a Entry,
    files: usize,
    example: PathBuf,
    problems: Vec<(String, usize)>,
}

fn fetch(entries: &[&Entry], places: &Places, named: bool) -> ExitCode {
    if let Some(mirror) = places.mirror().filter(|folder| !folder.is_dir()) {
        eprintln!("the mirror folder {} is not there: downloading everything", mirror.display());
    }
    let mut fetcher = Fetcher::new(places);
    let mut missing: Vec<Missing<'_>> = Vec::new();
    for &entry in entries {
        if let Some(lost) = fetch_entry(entry, places, &mut fetcher) {
            missing.push(lost);
        }
    }
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", summary(&missing));
    let is_error = |lost: &Missing<'_>| named || lost.entry.required();
    if missing.iter().any(is_error) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn fetch_entry<'a>(entry: &'a Entry, places: &Places, fetcher: &mut Fetcher<'_>) -> Option<Missing<'a>> {
    let mut lost: Option<Missing<'a>> = None;
    let mut origins: Vec<(String, usize)> = Vec::new();
    for asset in &entry.files {
        let path = places.target(entry, asset);
        match fetcher.fetch(entry, asset) {
            Ok(fetched) => {
                if asset.expected.sha256.is_none() {
                    println!("{}: sha256 {} (not pinned)", path.display(), fetched.sha256);
                }
                let from =
                    fetched.from.map_or_else(|| "already there".to_owned(), |from| format!("from {from}"));
                count(&mut origins, from);
                if entry.kind == Kind::Embedder
                    && let Some(converted) = convert(&path)
                {
                    count(&mut origins, converted);
                }
            }
            Err(problems) => {
                let lost = lost.get_or_insert_with(|| Missing {
                    entry,
                    files: 0,
                    example: path.clone(),
                    problems: Vec::new(),
                });
                lost.files += 1;
                problems.into_iter().for_each(|problem| count(&mut lost.problems, problem));
            }
        }
    }
    let several = entry.files.len() > 1;
    let mut parts: Vec<String> =
        origins.into_iter().map(|(from, n)| if several { format!("{n} {from}") } else { from }).collect();
    match &lost {
        Some(lost) if several => parts.push(format!("{} missing", lost.files)),
        Some(_) => parts.push(MISSING.into()),
        None => {}
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

fn count(counts: &mut Vec<(String, usize)>, text: String) {
    match counts.iter_mut().find(|(known, _)| *known == text) {
        Some((_, n)) => *n += 1,
        None => counts.push((text, 1)),
    }
}

fn summary(missing: &[Missing<'_>]) -> String {
    let mut text = String::from("\nMissing:\n");
    for Missing { entry, files, example, problems } in missing {
        let what = match entry.files.len() {
            1 => example.display().to_string(),
            all => format!("{files} of {all} files, such as {}", example.display()),
        };
        let _ = writeln!(text, "  {:<20} {what}", entry.name);
        // More than a few different ones say nothing more.
        for (problem, n) in problems.iter().take(4) {
            let times = if *n > 1 { format!(" ({n} files)") } else { String::new() };
            let _ = writeln!(text, "  {:20} - {problem}{times}", "");
        }
        let _ = writeln!(text, "  {:20} cannot run: {}", "", entry.consequence());
    }
    text
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
