//! Files that only the server's user may read: pictures, embeddings, models and the database.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

/// Permissions of the group and of others.
const OF_OTHERS: u32 = 0o077;

/// Has this process create all files and folders from now on for its own user alone, whatever umask it was started with.
pub fn create_privately() {
    // SAFETY: `umask` has no memory to misuse, and cannot fail.
    unsafe { libc::umask(OF_OTHERS) };
}

/// What [`mend`] did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mended {
    /// Files and folders that others could read or change before.
    mended: usize,
    /// Those of another user, which cannot be changed.
    refused: usize,
}

/// Takes all rights on files of earlier starts, and on folders and what is in them, from other users. The folder that the
/// data folder itself is may have files of others, and stays as it is.
pub fn mend_in_background(paths: Vec<PathBuf>, stop: CancellationToken) {
    tokio::task::spawn_blocking(move || {
        let mut done = Mended::default();
        for path in paths {
            if let Err(error) = mend(&path, &stop, &mut done) {
                tracing::warn!(path = %path.display(), %error, "cannot see who may read the files there");
            }
        }
        let Mended { mended, refused } = done;
        if mended > 0 {
            tracing::info!(
                mended,
                "took files of pictures, embeddings and models from other users of this machine"
            );
        }
        if refused > 0 {
            tracing::warn!(
                refused,
                "other users may read files that belong to another user than the server's: chown and chmod them"
            );
        }
    });
}

fn mend(path: &Path, stop: &CancellationToken, done: &mut Mended) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    // Links are not followed.
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if gone(&error) => return Ok(()),
        metadata => metadata?,
    };
    if metadata.is_symlink() || stop.is_cancelled() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    if mode & OF_OTHERS != 0 {
        match fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7700)) {
            Ok(()) => done.mended += 1,
            Err(error) if gone(&error) => return Ok(()),
            Err(_) => done.refused += 1,
        }
    }
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            // Such as `lost+found`: what is beside it is mended all the same.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                done.refused += 1;
                return Ok(());
            }
            Err(error) if gone(&error) => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            mend(&entry?.path(), stop, done)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_of_others_are_left_alone_and_the_rest_is_private() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let inside = folder.path().join("blobs/people/1");
        fs::create_dir_all(&inside).unwrap();
        for (file, mode) in [("a", 0o644), ("b", 0o600), ("c", 0o777)] {
            fs::write(inside.join(file), "face").unwrap();
            fs::set_permissions(inside.join(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        for folder in [&inside, &folder.path().join("blobs/people"), &folder.path().join("blobs")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let outside = elsewhere.path().join("outside");
        fs::write(&outside, "").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(elsewhere.path(), inside.join("link")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let mut done = Mended::default();
        let stop = CancellationToken::new();
        for path in [folder.path().join("blobs"), folder.path().join("missing")] {
            mend(&path, &stop, &mut done).unwrap();
        }
        assert_eq!(done, Mended { mended: 5, refused: 0 });
        assert_eq!(
            [inside.clone(), inside.join("a"), inside.join("b"), inside.join("c"), outside]
                .map(|path| mode(&path)),
            [0o700, 0o600, 0o600, 0o700, 0o644]
        );
    }
}
