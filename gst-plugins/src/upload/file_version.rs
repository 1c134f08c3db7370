//! How a watched file is seen to have changed.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, time::SystemTime};

/// Changes when a file is written or replaced: time of modification, size, inode.
pub(super) type FileVersion = (SystemTime, u64, u64);

/// Returns the current version of a file.
pub(super) fn file_version(path: &Path) -> io::Result<FileVersion> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len(), metadata.ino()))
}
