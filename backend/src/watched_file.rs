//! Files that may change while the server runs. They are checked every second: that also works on network file systems and
//! for mounted secrets, where notifications of changes do not arrive.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

/// The interval between checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Permissions of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;

/// Time of modification, length, inode and time of change of a file: changes when it is written or replaced, or gets other
/// permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileVersion {
    modified: SystemTime,
    length: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileVersion {
    /// Returns the version of a file. Determine it before reading: a write in the meantime changes it again.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            modified: metadata.modified()?,
            length: metadata.len(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Returns whether a file's mode allows anything to users who are neither its owner nor in its group.
pub fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS != 0)
}

/// Calls `check` every second until `stop` is set, on a thread that may block, with what the last call returned.
pub async fn watch<T: Default + Send + 'static>(
    check: impl Fn(T) -> T + Clone + Send + 'static,
    stop: CancellationToken,
) {
    let mut last = T::default();
    while !stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(CHECK_INTERVAL) => (),
            () = stop.cancelled() => break,
        }
        let check = check.clone();
        // A check that was interrupted is repeated.
        last = tokio::task::spawn_blocking(move || check(last)).await.unwrap_or_default();
    }
}
