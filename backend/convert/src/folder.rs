//! Converts a folder of published files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use facepipe_vision::weights::{published_files, safetensors_path};

use crate::{ConvertError, convert, is_converted};

/// Lock file by which processes that write weights into one folder take turns, `facepipe models fetch` among them.
pub const LOCK_FILE: &str = ".fetch.lock";

/// A published file of a folder and the outcome of its conversion.
#[derive(Debug)]
pub struct ConvertedFile {
    /// Path of the published file.
    pub published: PathBuf,
    /// Path of the safetensors made of it.
    pub safetensors: PathBuf,
    /// How its conversion ended.
    pub outcome: Result<Conversion, ConvertError>,
}

/// The outcome of a successful conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// Its safetensors were written.
    Converted,
    /// Its safetensors were there, and were made of this file.
    AlreadyThere,
}

/// Converts every published file of the server's networks in `from` to safetensors in `to`, which may be the same folder and is made
/// where it is missing. Files whose safetensors [`is_converted`] finds current are left as they are. Processes that write into one
/// folder take turns. Returns a line per published file; none where `from` has none.
///
/// # Errors
///
/// [`ConvertError::Unwritable`] of the folder `to`.
pub fn convert_folder(from: &Path, to: &Path) -> Result<Vec<ConvertedFile>, ConvertError> {
    let files: Vec<(PathBuf, PathBuf)> = published_files()
        .into_iter()
        .map(|name| (from.join(name), safetensors_path(to, name)))
        .filter(|(published, _)| published.is_file())
        .collect();
    let done = |(published, safetensors): (PathBuf, PathBuf), outcome| ConvertedFile {
        published,
        safetensors,
        outcome,
    };
    // A folder that needs no conversion is not written to: it may be read-only.
    if files.iter().all(|(published, safetensors)| is_converted(published, safetensors)) {
        return Ok(files.into_iter().map(|file| done(file, Ok(Conversion::AlreadyThere))).collect());
    }
    let unwritable = |source| ConvertError::Unwritable { path: to.to_owned(), source };
    fs::create_dir_all(to).map_err(unwritable)?;
    // Held until the end of this function.
    let lock = fs::File::options().create(true).append(true).open(to.join(LOCK_FILE)).map_err(unwritable)?;
    lock.lock().map_err(unwritable)?;
    let outcomes = files.into_iter().map(|(published, safetensors)| {
        let outcome = if is_converted(&published, &safetensors) {
            Ok(Conversion::AlreadyThere)
        } else {
            convert(&published, &safetensors).map(|()| Conversion::Converted)
        };
        done((published, safetensors), outcome)
    });
    Ok(outcomes.collect())
}
