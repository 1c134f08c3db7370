//! Extracts one file from a package: wheels are zip archives, npm packages and Python source packages gzipped tar archives.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Maximum size of an extracted member, so that no archive fills the disk.
const MAX_MEMBER_BYTES: u64 = 1 << 30;

/// Writes the member of a wheel to `target`.
///
/// # Errors
/// The archive is damaged or lacks the member, or `target` cannot be written.
pub fn from_zip(archive: &Path, member: &str, target: &Path) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| e.to_string())?;
    let content = archive.by_name(member).map_err(|e| format!("{member}: {e}"))?;
    write(content, member, target)
}

/// Writes the member of a `.tar.gz` to `target`. Links are not followed.
///
/// # Errors
/// As [`from_zip`].
pub fn from_tar_gz(archive: &Path, member: &str, target: &Path) -> Result<(), String> {
    let file = File::open(archive).map_err(|e| e.to_string())?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(io::BufReader::new(file)));
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path_bytes();
        if entry.header().entry_type().is_file() && *path == *member.as_bytes() {
            return write(entry, member, target);
        }
    }
    Err(format!("{member}: not in the archive"))
}

fn write(content: impl Read, member: &str, target: &Path) -> Result<(), String> {
    let mut out = File::create(target).map_err(|e| format!("cannot write {}: {e}", target.display()))?;
    let written =
        io::copy(&mut content.take(MAX_MEMBER_BYTES + 1), &mut out).map_err(|e| format!("{member}: {e}"))?;
    if written > MAX_MEMBER_BYTES {
        return Err(format!("{member}: larger than {MAX_MEMBER_BYTES} bytes"));
    }
    Ok(())
}
