//! Finds pictures in folders, and reports all other files.

mod heic;
mod kind;

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::Serialize;
use walkdir::{DirEntry, WalkDir};

pub use self::kind::{Kind, Remedy};
use crate::exit::Failure;

/// Thumbnails and metadata of NAS systems (Synology, QNAP), macOS archives and Windows, in lower case. Names with a leading
/// dot are skipped too.
const SYSTEM_FILES: [&str; 13] = [
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@sharebin",
    "#recycle",
    "#snapshot",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
];

/// A skipped file with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub file: String,
    pub reason: String,
    /// Advice on it.
    #[serde(skip)]
    pub remedy: Option<Remedy>,
}

impl PassedOver {
    /// Records that `file` was skipped for `reason`.
    pub fn new(file: &Path, reason: impl Into<String>) -> Self {
        Self { file: file.display().to_string(), reason: reason.into(), remedy: None }
    }
}

#[derive(Debug, Default)]
pub struct FolderContents {
    /// Pictures at any depth, ordered by path.
    pub pictures: Vec<PathBuf>,
    /// Files that are no pictures, and unreadable files and folders.
    pub passed_over: Vec<PassedOver>,
    /// Number of hidden and system files and folders.
    pub hidden: usize,
}

/// Contents of a folder with one subfolder per person.
#[derive(Debug, Default)]
pub struct PersonFolders {
    /// Pictures by person; empty for a folder without pictures.
    pub pictures: BTreeMap<String, Vec<PathBuf>>,
    /// Files that are no pictures, are unreadable, or are in nobody's folder.
    pub passed_over: Vec<PassedOver>,
    /// Number of hidden and system files and folders.
    pub hidden: usize,
}

/// Finds the pictures in a folder at any depth, regardless of file names. Links are followed; hidden and system files are
/// skipped.
///
/// # Errors
/// The folder is missing or cannot be read.
pub fn in_folder(folder: &Path) -> Result<FolderContents, Failure> {
    let mut found = FolderContents::default();
    found.hidden = walk(folder, |file, passed_over| match passed_over {
        None => found.pictures.push(file.to_owned()),
        Some(passed_over) => found.passed_over.push(passed_over),
    })?;
    Ok(found)
}

/// Finds the pictures in a folder with one subfolder per person. Every subfolder is a person; files beside them are skipped.
///
/// # Errors
/// The folder is missing or cannot be read, or there is no folder in it.
pub fn in_person_folders(folder: &Path) -> Result<PersonFolders, Failure> {
    let mut people = PersonFolders::default();
    for entry in fs::read_dir(folder).map_err(|error| read_error(folder, &error))?.flatten() {
        let name = entry.file_name();
        if !entry.path().is_dir() || is_system_file(&name.to_string_lossy()) {
            continue;
        }
        if let Ok(name) = name.into_string() {
            people.pictures.insert(name, Vec::new());
        }
    }
    people.hidden = walk(folder, |file, passed_over| {
        let mut parts = file.strip_prefix(folder).unwrap_or(file).components();
        let (person, is_in_a_folder) = (parts.next(), parts.next().is_some());
        let name = person.and_then(|person| person.as_os_str().to_str());
        let passed_over = match (passed_over, name.and_then(|name| people.pictures.get_mut(name))) {
            (Some(passed_over), _) => passed_over,
            (None, Some(pictures)) if is_in_a_folder => return pictures.push(file.to_owned()),
            (None, _) if is_in_a_folder => {
                PassedOver::new(file, "the name of a person's folder must be valid UTF-8")
            }
            (None, _) => PassedOver::new(file, "lies in nobody's folder"),
        };
        people.passed_over.push(passed_over);
    })?;
    if people.pictures.is_empty() {
        print_skipped(&people.passed_over, people.hidden);
        return Err(Failure::input(folder.display(), "no folder in it (expected one for each person)"));
    }
    Ok(people)
}

/// Finds the people with pictures, and the names of those without. Prints advice on skipped files but leaves listing them to
/// the caller.
///
/// # Errors
/// See [`in_person_folders`]; or nobody has a picture.
pub fn people(folder: &Path) -> Result<(PersonFolders, Vec<String>), Failure> {
    let mut people = in_person_folders(folder)?;
    if people.pictures.values().all(Vec::is_empty) {
        return people.report_skipped(folder).map(|people| (people, Vec::new()));
    }
    print_advice(&people.passed_over, people.hidden);
    let without = people.pictures.extract_if(.., |_, pictures| pictures.is_empty());
    let without = without.map(|(name, _)| name).collect();
    Ok((people, without))
}

impl FolderContents {
    /// Prints the skipped files.
    ///
    /// # Errors
    /// There is no picture.
    pub fn report_skipped(self, folder: &Path) -> Result<Self, Failure> {
        print_skipped(&self.passed_over, self.hidden);
        if self.pictures.is_empty() {
            return Err(no_picture(folder, &self.passed_over));
        }
        Ok(self)
    }
}

impl PersonFolders {
    /// Prints the skipped files.
    ///
    /// # Errors
    /// Nobody has a picture.
    pub fn report_skipped(self, folder: &Path) -> Result<Self, Failure> {
        print_skipped(&self.passed_over, self.hidden);
        if self.pictures.values().all(Vec::is_empty) {
            return Err(no_picture(folder, &self.passed_over));
        }
        Ok(self)
    }
}

/// Reads a picture for the backend; converts HEIC to JPEG.
///
/// # Errors
/// The file cannot be read, or is HEIC that cannot be decoded.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let bytes = fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    match kind::from_head(&bytes) {
        Kind::Heic => heic::to_jpeg(&bytes),
        _ => Ok(bytes),
    }
}

/// Determines the kind of a file.
///
/// # Errors
/// The file cannot be read.
pub fn kind_of(file: &Path) -> std::io::Result<Kind> {
    kind::from_file(file)
}

/// Prints skipped files and advice to standard error.
fn print_skipped(passed_over: &[PassedOver], hidden: usize) {
    for PassedOver { file, reason, .. } in passed_over {
        eprintln!("{file}: passed over: {reason}");
    }
    print_advice(passed_over, hidden);
}

/// Prints advice on skipped files and the number of hidden ones to standard error.
fn print_advice(passed_over: &[PassedOver], hidden: usize) {
    let mut remedies: Vec<Remedy> = passed_over.iter().filter_map(|passed_over| passed_over.remedy).collect();
    remedies.sort_unstable();
    remedies.dedup();
    for remedy in remedies {
        eprintln!("{}", remedy.advice());
    }
    if hidden > 0 {
        eprintln!(
            "Left out: {hidden} hidden or system files and folders (.thumbnails, @eaDir, Thumbs.db, …)"
        );
    }
}

fn no_picture(folder: &Path, passed_over: &[PassedOver]) -> Failure {
    let why = match passed_over.len() {
        0 => "no picture in it".to_owned(),
        count => format!("no picture in it; passed over: {count}"),
    };
    Failure::input(folder.display(), why)
}

fn read_error(folder: &Path, error: &std::io::Error) -> Failure {
    let why = match error.kind() {
        ErrorKind::NotFound => "no such folder".to_owned(),
        ErrorKind::NotADirectory => "is not a folder".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    Failure::input(folder.display(), why)
}

fn is_system_file(name: &str) -> bool {
    name.starts_with('.') || SYSTEM_FILES.contains(&name.to_lowercase().as_str())
}

/// Passes each file below a folder to `take`, ordered by path, with a reason if it is no picture or cannot be read. Returns
/// the number of hidden files and folders.
fn walk(folder: &Path, mut take: impl FnMut(&Path, Option<PassedOver>)) -> Result<usize, Failure> {
    fs::read_dir(folder).map_err(|error| read_error(folder, &error))?;
    let mut hidden = 0;
    let mut visible = |entry: &DirEntry| {
        let visible = entry.depth() == 0 || !is_system_file(&entry.file_name().to_string_lossy());
        hidden += usize::from(!visible);
        visible
    };
    let entries = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    for entry in entries.into_iter().filter_entry(&mut visible) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => take(entry.path(), inspect(&entry)),
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                // A link fails on its target before its name is filtered.
                if path.file_name().is_some_and(|name| is_system_file(&name.to_string_lossy())) {
                    continue;
                }
                take(&path, Some(PassedOver::new(&path, walk_error(&error))));
            }
        }
    }
    Ok(hidden)
}

/// Returns why a file is no picture; none if it is one.
fn inspect(entry: &DirEntry) -> Option<PassedOver> {
    let path = entry.path();
    if !entry.file_type().is_file() {
        return Some(PassedOver::new(path, "is no file, but a pipe, a socket or a device"));
    }
    match kind::from_file(path) {
        Ok(Kind::Picture | Kind::Heic) => None,
        Ok(Kind::Other { what, remedy }) => Some(PassedOver { remedy, ..PassedOver::new(path, what) }),
        Err(error) => Some(PassedOver::new(path, format!("cannot be read: {error}"))),
    }
}

fn walk_error(error: &walkdir::Error) -> String {
    if let Some(ancestor) = error.loop_ancestor() {
        return format!("is a link to {}, which contains it", ancestor.display());
    }
    match error.io_error() {
        Some(error) if error.kind() == ErrorKind::NotFound => "is a link to nothing".into(),
        Some(error) => format!("cannot be read: {error}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0\x00\x10JFIF\0";

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("folders");
            fs::write(file, content).expect("a file");
        }
        folder
    }

    fn names(folder: &Path, files: &[PathBuf]) -> Vec<String> {
        files.iter().map(|p| p.strip_prefix(folder).expect("below").display().to_string()).collect()
    }

    #[test]
    fn pictures_are_found_by_their_content_at_any_depth_in_order() {
        let folder = folder(&[
            ("b/deep/2.PNG", b"\x89PNG\r\n\x1a\n"),
            ("a.jfif", JPEG),
            ("b/without-extension", JPEG),
            ("b/1.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
            ("b/3.jpg", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif"),
            ("b/4.jpg", b"II*\0\x08\0\0\0"),
            ("notes.txt", b"text"),
        ]);
        let found = in_folder(folder.path()).expect("found");
        assert_eq!(
            names(folder.path(), &found.pictures),
            ["a.jfif", "b/1.jpg", "b/deep/2.PNG", "b/without-extension"]
        );
        let told: Vec<_> = found.passed_over.iter().map(|p| (p.reason.as_str(), p.remedy)).collect();
        assert_eq!(
            told,
            [
                ("AVIF", Some(Remedy::Convert)),
                ("TIFF or a camera's raw picture", Some(Remedy::Convert)),
                ("text, no picture", None)
            ]
        );
        let (people, without) = super::people(folder.path()).expect("people");
        assert_eq!(people.pictures["b"], found.pictures[1..], "a picture in nobody's folder is nobody's");
        let nobodys: Vec<_> = people.passed_over.iter().map(|p| p.reason.as_str()).collect();
        assert_eq!(nobodys[0], "lies in nobody's folder");
        assert_eq!(nobodys.len(), 4, "{nobodys:?}");
        assert!(without.is_empty());
    }

    #[test]
    fn system_files_are_counted_and_skipped() {
        let folder = folder(&[
            ("ann/1.jpg", JPEG),
            ("ann/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", JPEG),
            ("ann/.thumbnails/1.jpg", JPEG),
            ("ann/._1.jpg", b"\0\x05\x16\x07"),
            ("ann/.DS_Store", b"\0\0\0\x01Bud1"),
            ("ann/Thumbs.db", b"\xd0\xcf\x11\xe0"),
            ("__MACOSX/ann/._1.jpg", b"\0\x05\x16\x07"),
            ("@eaDir/ann/1.jpg", JPEG),
        ]);
        let people = in_person_folders(folder.path())
            .expect("people")
            .report_skipped(folder.path())
            .expect("pictures");
        assert_eq!(people.pictures.keys().collect::<Vec<_>>(), ["ann"]);
        assert_eq!(names(folder.path(), &people.pictures["ann"]), ["ann/1.jpg"]);
        assert_eq!((people.hidden, people.passed_over), (7, vec![]));
    }

    #[test]
    fn broken_and_cyclic_links_are_skipped_alone() {
        let folder = folder(&[("ann/2.jpg", JPEG), ("bob/1.jpg", JPEG), ("eve/notes.txt", b"text")]);
        let at = |name: &str| folder.path().join(name);
        symlink("/nonexistent/1.jpg", at("ann/1.jpg")).expect("a link");
        symlink("..", at("ann/back")).expect("a link");
        symlink(at("bob"), at("robert")).expect("a link");
        symlink("/nonexistent", at("zoe")).expect("a link");
        std::os::unix::net::UnixListener::bind(at("bob/socket")).expect("a socket");
        let (people, without) = super::people(folder.path()).expect("people");
        assert_eq!(without, ["eve"]);
        assert_eq!(people.pictures.keys().collect::<Vec<_>>(), ["ann", "bob", "robert"]);
        assert!(people.pictures.values().all(|pictures| pictures.len() == 1), "{people:?}");
        let told: Vec<String> = people
            .passed_over
            .iter()
            .map(|p| {
                format!(
                    "{}: {}",
                    Path::new(&p.file).strip_prefix(folder.path()).expect("below").display(),
                    p.reason
                )
            })
            .collect();
        assert_eq!(told.len(), 6, "{told:?}");
        assert_eq!(told[0], "ann/1.jpg: is a link to nothing");
        assert!(told[1].starts_with("ann/back: is a link to "), "{told:?}");
        assert_eq!(told[2], "bob/socket: is no file, but a pipe, a socket or a device");
        assert_eq!(told[3], "eve/notes.txt: text, no picture");
        assert!(told[4].starts_with("robert/socket: "), "{told:?}");
        assert_eq!(told[5], "zoe: is a link to nothing");
    }

    #[test]
    fn a_missing_and_an_empty_folder_are_named() {
        let folder = folder(&[("file", b"x")]);
        let refused = |path: &Path| {
            in_folder(path).and_then(|found| found.report_skipped(path)).expect_err("refused").to_string()
        };
        let missing = refused(&folder.path().join("nowhere"));
        assert!(missing.contains("nowhere") && missing.contains("no such folder"), "{missing}");
        let file = refused(&folder.path().join("file"));
        assert!(file.contains("is not a folder"), "{file}");
        let empty = refused(folder.path());
        assert!(empty.contains("no picture in it; passed over: 1"), "{empty}");
        let nobody = in_person_folders(folder.path()).expect_err("refused").to_string();
        assert!(nobody.contains("no folder in it"), "{nobody}");
    }
}
