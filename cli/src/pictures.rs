//! Pictures in folders: which files are taken for one, and in which order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use walkdir::{DirEntry, WalkDir};

use crate::exit::Failure;

/// Names of files that are taken for pictures: the formats that the backend reads.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// Whether the name of a file says that it is a picture.
pub fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    EXTENSIONS.contains(&extension.as_str())
}

/// All pictures below `folder`, at any depth, in the order of their paths. Hidden files and folders are left out;
/// links are followed.
///
/// # Errors
/// The folder is missing, a part of it cannot be read, or there is no picture in it.
pub fn below(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    exists(folder)?;
    let visible = |entry: &DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_str().is_some_and(|name| name.starts_with('.'))
    };
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter().filter_entry(visible)
    {
        let entry = entry.map_err(|error| Failure::input(folder.display(), error))?;
        if entry.file_type().is_file() && is_picture(entry.path()) {
            found.push(entry.into_path());
        }
    }
    if found.is_empty() {
        let looked_for = EXTENSIONS.join(", ");
        return Err(Failure::input(
            folder.display(),
            format_args!("no picture in it (looked for {looked_for})"),
        ));
    }
    Ok(found)
}

/// The folders right in `folder`, each with the name that it gives to a person, in the order of their names.
///
/// # Errors
/// The folder is missing or cannot be read, a name is not valid UTF-8, or there is no folder in it.
pub fn people(folder: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    exists(folder)?;
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).min_depth(1).max_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|error| Failure::input(folder.display(), error))?;
        let name = entry.file_name().to_str().map(str::to_owned);
        if !entry.file_type().is_dir() || name.as_deref().is_some_and(|name| name.starts_with('.')) {
            continue;
        }
        let Some(name) = name else {
            return Err(Failure::input(
                entry.path().display(),
                "the name of a person's folder must be valid UTF-8",
            ));
        };
        found.push((name, entry.into_path()));
    }
    if found.is_empty() {
        return Err(Failure::input(folder.display(), "no folder in it (expected one for each person)"));
    }
    Ok(found)
}

fn exists(folder: &Path) -> Result<(), Failure> {
    if folder.is_dir() {
        return Ok(());
    }
    let why = if folder.exists() { "is not a folder" } else { "no such folder" };
    Err(Failure::input(folder.display(), why))
}

/// The pictures of each person, `<folder>/<name>/…`, at any depth. Pictures right in the folder are nobody's and are
/// left out.
///
/// # Errors
/// As [`below`]; a name is not valid UTF-8, or no folder in it has a picture.
pub fn by_person(folder: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>, Failure> {
    let mut people: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in below(folder)? {
        let mut parts = file.strip_prefix(folder).unwrap_or(&file).components();
        let (Some(name), Some(_)) = (parts.next(), parts.next()) else { continue };
        let Some(name) = name.as_os_str().to_str() else {
            return Err(Failure::input(file.display(), "the name of a person's folder must be valid UTF-8"));
        };
        people.entry(name.to_owned()).or_default().push(file);
    }
    if people.is_empty() {
        return Err(Failure::input(
            folder.display(),
            "no folder in it has a picture (expected <name>/*.jpg)",
        ));
    }
    Ok(people)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pictures_are_found_at_any_depth_in_order_and_hidden_ones_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("b/deep")).expect("folders");
        fs::create_dir_all(folder.path().join(".thumbnails")).expect("folders");
        for name in ["b/deep/2.PNG", "a.jpeg", "b/1.jpg", "notes.txt", ".thumbnails/x.jpg", ".y.jpg"] {
            fs::write(folder.path().join(name), b"x").expect("a file");
        }
        let found = below(folder.path()).expect("pictures");
        let names: Vec<_> = found.iter().map(|p| p.strip_prefix(folder.path()).expect("below")).collect();
        assert_eq!(names, ["a.jpeg", "b/1.jpg", "b/deep/2.PNG"].map(Path::new));
        let people = people(folder.path()).expect("people");
        assert_eq!(people.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b"]);
        let theirs = by_person(folder.path()).expect("people");
        assert_eq!(theirs.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(theirs["b"], found[1..], "a picture that is in nobody's folder is nobody's");
    }

    #[test]
    fn a_missing_and_an_empty_folder_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = below(&folder.path().join("nowhere")).expect_err("missing").to_string();
        assert!(missing.contains("nowhere") && missing.contains("no such folder"), "{missing}");
        let empty = below(folder.path()).expect_err("empty").to_string();
        assert!(empty.contains("no picture"), "{empty}");
    }
}
