//! The state of each file on disk, as `facepipe models list` and `verify` print it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{
    Folders,
    check::{State, check},
    manifest::{Asset, Entry, Kind, Manifest},
};

/// An entry and its state, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    name: &'a str,
    kind: Kind,
    licence: &'a str,
    purpose: &'a str,
    pub required: bool,
    optional: bool,
    /// Entries that it can replace.
    fallback_for: &'a [String],
    /// The name of its replacement while it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stood_in_by: Option<String>,
    pub state: &'static str,
    files: Vec<FileRow<'a>>,
}

#[derive(Debug, Serialize)]
struct FileRow<'a> {
    path: PathBuf,
    bytes: Option<u64>,
    /// None where no hash is pinned.
    sha256: Option<&'a str>,
    /// Sources in the order in which they are tried.
    sources: Vec<String>,
    state: &'static str,
    /// Hash of the file, if computed and right.
    #[serde(skip_serializing_if = "Option::is_none")]
    found_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// State of an entry or file: complete and right.
pub const PRESENT: &str = "present";
/// State: not there.
pub const MISSING: &str = "missing";
/// State: there, with other contents.
pub const WRONG: &str = "wrong";
/// State of an entry: some files are missing.
const INCOMPLETE: &str = "incomplete";

impl Folders {
    /// Returns the state of each entry; `inspect` judges a file.
    pub fn rows<'a>(
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

    /// Returns the replacement of an entry: a complete fallback, or the one that `stood_in_by` names.
    pub fn stand_in<'a>(
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

    /// Returns the state of one entry.
    pub fn row<'a>(&self, entry: &'a Entry, inspect: fn(&Path, &Asset) -> State) -> Row<'a> {
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
    /// Returns whether a file is in this state.
    pub fn has(&self, state: &str) -> bool {
        self.files.iter().any(|file| file.state == state)
    }

    fn count(&self, state: &str) -> usize {
        self.files.iter().filter(|file| file.state == state).count()
    }

    fn pinned(&self) -> bool {
        self.files.iter().all(|file| file.sha256.is_some())
    }

    /// Formats the state: `present`, `87 of 100`, `missing, hash not pinned`.
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

/// Judges a file by its size alone.
pub fn by_size(path: &Path, asset: &Asset) -> State {
    match (std::fs::metadata(path), asset.expected.bytes) {
        (Err(_), _) => State::Missing,
        (Ok(found), Some(bytes)) if found.len() != bytes => {
            State::Wrong { problem: format!("expected {bytes} bytes, found {}", found.len()) }
        }
        (Ok(_), _) => State::Right { sha256: String::new() },
    }
}

/// Judges a file by size and hash.
pub fn by_content(path: &Path, asset: &Asset) -> State {
    check(path, &asset.expected).unwrap_or_else(|e| State::Wrong { problem: format!("cannot be read: {e}") })
}

/// Formats the rows as JSON.
pub fn as_json(rows: &[Row<'_>]) -> Result<String> {
    Ok(serde_json::to_string_pretty(rows)? + "\n")
}

/// Formats the rows for `models list`.
pub fn list(rows: &[Row<'_>]) -> String {
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

/// Formats the rows for `models verify`.
pub fn verified(rows: &[Row<'_>]) -> String {
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
