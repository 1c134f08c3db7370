//! `facepipe models fetch`: fetches the selected entries and their fallbacks, and reports missing files.

use std::process::ExitCode;

use indicatif::HumanBytes;

use super::{
    Folders, Set,
    convert::convert_fetched,
    fetch::Fetcher,
    manifest::{Entry, Kind, Manifest},
    report::{self, MissingEntry},
    status::{MISSING, by_size},
};

/// Exit code where the npm client is needed.
const LACKS_NPM: u8 = 8;

/// The selection of `fetch`.
pub struct Request<'a> {
    /// Names and kinds that were given.
    pub names: &'a [String],
    /// The set to fetch where nothing is named.
    pub set: Set,
}

impl Request<'_> {
    /// Returns whether the entry was given by its name or file name.
    pub fn names(&self, entry: &Entry) -> bool {
        self.names.iter().any(|name| entry.is_named(name))
    }

    /// Returns whether a fallback may replace the entry: not if it was named, or if the set includes fallbacks anyway.
    fn takes_fallbacks(&self, entry: &Entry) -> bool {
        self.set == Set::Default && !self.names(entry)
    }

    /// Returns the fallbacks of missing entries that are not among `wanted`, without repetition.
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

/// Fetches the entries and their fallbacks, converts weights for the server, prints the result, and returns the exit code.
pub fn fetch(manifest: &Manifest, wanted: &[&Entry], folders: &Folders, request: &Request<'_>) -> ExitCode {
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
    // Converts unselected weights, too, such as an optional embedder's that an earlier version fetched.
    let has_networks = wanted.iter().any(|entry| matches!(entry.kind, Kind::Embedder | Kind::Mtcnn));
    let converted = !has_networks || convert_fetched(&folders.dir);
    if missing.is_empty() {
        return if converted { ExitCode::SUCCESS } else { ExitCode::FAILURE };
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
    if !converted || missing.iter().any(is_error) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Fetches an entry's files and prints a line. Returns its missing files.
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

fn count_up(counts: &mut Vec<(String, usize)>, text: String) {
    match counts.iter_mut().find(|(known, _)| *known == text) {
        Some((_, n)) => *n += 1,
        None => counts.push((text, 1)),
    }
}
