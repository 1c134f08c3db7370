//! Writes files atomically: a file is there complete, or as it was before.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use crate::exit::Failure;

/// Readable by the owner only, for files with personal data.
pub const PRIVATE: u32 = 0o600;

/// Readable by everybody, as far as the umask permits.
pub const SHARED: u32 = 0o666;

/// Returns the folder of a file.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file atomically; `mode` are its permissions, reduced by the umask.
///
/// # Errors
/// The file cannot be written (the message names it); the old file, if any, is kept.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    replace_with(path, mode, |file| file.write_all(content))
}

fn replace_with(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), Failure> {
    let replaced = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".facepipe-").permissions(Permissions::from_mode(mode));
        // Dropping it removes the partial file.
        let mut draft = builder.tempfile_in(folder_of(path))?;
        write(draft.as_file_mut())?;
        draft.persist(path)?;
        Ok(())
    };
    replaced().map_err(|error| Failure::output(path.display(), error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        let on_a_full_disk = |file: &mut File| {
            file.write_all(b"<html>")?;
            // Fails as on a full disk.
            fs::write("/dev/full", b"</html>")
        };
        let names = || -> Vec<_> {
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let error = replace_with(&path, SHARED, on_a_full_disk).unwrap_err().to_string();
        assert!(error.contains("report.html: cannot be written: No space left on device"), "{error}");
        assert_eq!(names(), Vec::<std::ffi::OsString>::new());

        replace(&path, b"whole", PRIVATE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        replace_with(&path, SHARED, on_a_full_disk).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(), ["report.html"]);
    }
}
