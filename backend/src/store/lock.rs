//! Ensures that one server at a time uses an embedded database and its data folder. The lock is a `flock`: it ends with
//! the process that holds it, so that nothing has to be cleaned up after a crash. The file names the holder, for the
//! message to a second server.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The lock of a data folder.
const FOLDER_LOCK: &str = "server.lock";
/// The extension of a database's lock.
const DATABASE_LOCK: &str = "lock";
/// Bytes that are read of a lock file at most.
const MAX_FILE_BYTES: u64 = 4096;

/// The locks of a running server, released when dropped.
#[derive(Debug)]
pub struct ServerLock {
    files: Vec<File>,
    since: OffsetDateTime,
}

impl ServerLock {
    /// Locks a SQLite database and the data folder, which it creates where it is missing.
    ///
    /// # Errors
    /// Another process holds one of the locks (the message names it), or a file cannot be created.
    pub fn take(database: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        for folder in [Some(data_dir), database.parent()].into_iter().flatten() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let mut lock = Self { files: Vec::new(), since: OffsetDateTime::now_utc() };
        let paths = Self::files(database, data_dir);
        for (path, what) in paths.into_iter().zip([data_dir, database]) {
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("cannot open the lock {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => (),
                Err(TryLockError::WouldBlock) => anyhow::bail!(
                    "{} is in use by {}, and SQLite serves one server at a time. Stop that one first, give this one another \
                     --data-dir and database, or have both share PostgreSQL or MySQL (setting database_url)",
                    what.display(),
                    holder(&mut file)
                ),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    tracing::warn!(path = %path.display(), "this file system has no locks: a second server will not be refused");
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            lock.files.push(file);
        }
        lock.write(None)?;
        Ok(lock)
    }

    /// Returns the lock files: of the data folder, then of the database.
    pub fn files(database: &Path, data_dir: &Path) -> [PathBuf; 2] {
        [data_dir.join(FOLDER_LOCK), database_lock(database)]
    }

    /// Records the URL of the server, for the message to a second one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_url(&mut self, url: &str) -> anyhow::Result<()> {
        self.write(Some(url))
    }

    fn write(&mut self, url: Option<&str>) -> anyhow::Result<()> {
        let mut text = format!("pid {}\nhost {}\n", std::process::id(), host());
        if let Ok(since) = self.since.replace_nanosecond(0).unwrap_or(self.since).format(&Rfc3339) {
            text += &format!("since {since}\n");
        }
        if let Some(url) = url {
            text += &format!("url {url}\n");
        }
        let written = self.files.iter_mut().try_for_each(|file| replace(file, &text));
        written.context("cannot record the holder in the lock file of the data folder")
    }
}

impl Drop for ServerLock {
    fn drop(&mut self) {
        // The files stay: removing one could remove the lock of the next server.
        for file in &mut self.files {
            let _ = replace(file, "");
            let _ = file.unlock();
        }
    }
}

/// Returns the lock file of a database: beside the file that symbolic links lead to.
fn database_lock(database: &Path) -> PathBuf {
    let canonical = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = canonical.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(DATABASE_LOCK);
    canonical.with_file_name(name)
}

fn replace(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())
}

/// Describes the holder of a lock, from its file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES).read_to_string(&mut text);
    let said = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.map(|value| value.replace(|c: char| c.is_control(), " "))
    };
    let Some(pid) = read.ok().and_then(|_| said("pid")) else {
        return "another facepipe-backend, which does not say which process it is".into();
    };
    let host = said("host").map_or(String::new(), |host| format!(" on {host}"));
    let since = said("since").map_or(String::new(), |since| format!(", running since {since}"));
    let url = said("url").map_or(String::new(), |url| format!(", at {url}"));
    format!("the facepipe-backend with process id {pid}{host}{since}{url}")
}

fn host() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_details_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("facepipe.db");
        let mut first = ServerLock::take(&database, folder.path()).unwrap();
        let told = ServerLock::take(&database, folder.path()).unwrap_err().to_string();
        assert!(told.contains(&format!("process id {} on ", std::process::id())), "{told}");
        assert!(told.contains("running since 2") && !told.contains("http://"), "{told}");
        first.set_url("http://127.0.0.1:8080").unwrap();
        let told = ServerLock::take(&database, folder.path()).unwrap_err().to_string();
        assert!(told.contains("at http://127.0.0.1:8080,") && told.contains("--data-dir"), "{told}");
        drop(first);
        drop(ServerLock::take(&database, folder.path()).unwrap());
    }

    #[test]
    fn neither_the_folder_nor_the_database_is_shared() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let database = one.path().join("facepipe.db");
        fs::write(&database, "").unwrap();
        let _first = ServerLock::take(&database, one.path()).unwrap();
        let link = other.path().join("link.db");
        std::os::unix::fs::symlink(&database, &link).unwrap();
        for (database, data_dir) in
            [(&database, other.path()), (&link, other.path()), (&other.path().join("x.db"), one.path())]
        {
            let told = ServerLock::take(database, data_dir).unwrap_err().to_string();
            assert!(told.contains("process id"), "{told}");
        }
        ServerLock::take(&other.path().join("x.db"), other.path()).unwrap();
    }

    #[test]
    fn an_anonymous_holder_still_blocks_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join(FOLDER_LOCK)).unwrap();
        file.lock().unwrap();
        let told = ServerLock::take(&folder.path().join("x.db"), folder.path()).unwrap_err().to_string();
        assert!(told.contains("does not say which process"), "{told}");
    }
}
