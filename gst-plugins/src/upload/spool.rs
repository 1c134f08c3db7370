//! The spool: a bounded queue of crops on disk, for outages of the backend. Plain, blocking file access; the uploader gives
//! it a thread of its own.
//!
//! By hand: disk queues of libraries are logs of segments that are read in order of insertion. Crops must be listed in
//! order of capture, deleted and evicted one by one, quarantined when damaged, and readable by nobody else.
//!
//! Each crop is a file `<captured at>-<key>.crop` in one folder: microseconds since 1970 in 18 digits and the key in
//! hexadecimal, so that names sort in order of capture. It is written under a temporary name, synced and renamed, and the
//! folder is synced after each group, so that neither `kill -9` nor a power failure leaves half a crop or loses one that
//! [`Spool::store`] has accepted. Its content:
//!
//! ```text
//! facepipe-crop 1 <CRC-32 of all that follows, hexadecimal> <length of the metadata>\n
//! <the metadata, JSON><the image>
//! ```
//!
//! Faces are biometric data: the folder is 0700, the files are 0600.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use facepipe_detector::BoundingBox;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Camera, Crop};
use crate::{crop::Encoding, roi::CropArea};

const MAGIC: &str = "facepipe-crop 1 ";
const CROP: &str = ".crop";
const TEMPORARY: &str = ".tmp";
const DAMAGED: &str = ".damaged";
const LOCK: &str = ".lock";

/// Larger files (bytes) are not crops.
const MAX_FILE: u64 = 64 << 20;

/// Where the spool is, and how large it may grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The folder; created if it is missing.
    pub folder: PathBuf,
    /// Maximum size of all files in it, bytes.
    pub max_bytes: u64,
}

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder cannot be created, read or written.
    #[error("spool-dir `{}` cannot be used: {error}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// Other users could read the crops.
    #[error(
        "spool-dir `{}` is open to other users (mode {mode:04o}), and faces are biometric data: `chmod 700` it, or \
         name a folder that doesn't exist yet",
        folder.display()
    )]
    AccessibleToOthers {
        /// The folder.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Other users could read the crops, and the mount ignores modes.
    #[error(
        "spool-dir `{}` is on a mount without permission bits{}: all of it is open to other users (mode {mode:04o}) \
         whatever chmod says, and faces are biometric data; mount it with the options uid=USER,umask=0077 (vfat, \
         exfat, ntfs) or uid=USER,dir_mode=0700,file_mode=0600 (cifs), or name a folder on a disk with permission bits",
        folder.display(),
        filesystem.as_deref().map(|name| format!(" ({name})")).unwrap_or_default()
    )]
    ModesUnsupported {
        /// The folder.
        folder: PathBuf,
        /// Its permission bits, which the mount gives to everything.
        mode: u32,
        /// The type of the file system, if known.
        filesystem: Option<String>,
    },
    /// Another element uses it.
    #[error("spool-dir `{}` is in use by another facesink-http: give each a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
}

/// Identifies a spooled crop; sorts in order of capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpoolId {
    /// Microseconds since 1970-01-01 UTC; 0 for what is before.
    captured_at: u64,
    key: Uuid,
}

/// A spooled crop, and how often it was sent in this run.
#[derive(Debug, Clone)]
pub struct SpoolEntry {
    /// The crop.
    pub crop: Crop,
    /// Requests that it was part of.
    pub attempts: u32,
    /// How many of them the backend answered with 500.
    pub internal_errors: u32,
    /// It was on the spool when the spool was opened.
    pub earlier_run: bool,
}

/// What the spool contains, and what it lost since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolCounts {
    /// Crops on disk.
    pub files: u64,
    /// Crops on disk that are not claimed.
    pub unclaimed: u64,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Crops written.
    pub stored: u64,
    /// Crops dropped for newer ones.
    pub dropped: u64,
    /// Files quarantined because they are damaged.
    pub damaged: u64,
}

/// Returns why a folder that others can access is rejected.
fn accessible_to_others(folder: &Path, mode: u32, modes_are_kept: bool) -> SpoolError {
    let folder = folder.to_owned();
    if modes_are_kept {
        return SpoolError::AccessibleToOthers { folder, mode };
    }
    let filesystem = fs::canonicalize(&folder)
        .and_then(|folder| Ok(filesystem_type(&fs::read_to_string("/proc/self/mountinfo")?, &folder)))
        .unwrap_or_default();
    SpoolError::ModesUnsupported { folder, mode, filesystem }
}

/// Returns true if a file in the folder has the mode that it is created with; mounts of vfat, exfat, NTFS and CIFS give all
/// files the same. Also true if no file can be created: the folder is somebody else's.
fn keeps_modes(folder: &Path) -> bool {
    let probe = folder.join(format!(".{}{TEMPORARY}", Uuid::now_v7().simple()));
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&probe);
    let mode = made.and_then(|file| Ok(file.metadata()?.mode()));
    // A file that could not be created cannot be removed.
    let _ = fs::remove_file(&probe);
    mode.map_or(true, |mode| mode & 0o077 == 0)
}

/// Returns the type of the file system that a folder is on, from the text of `/proc/self/mountinfo`.
fn filesystem_type(mounts: &str, folder: &Path) -> Option<String> {
    let kind = |line: &str| {
        // 36 35 98:0 /root /mount/point options - type source options
        let (mount, rest) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?.replace("\\040", " ");
        folder
            .starts_with(&point)
            .then(|| (point.len(), rest.split(' ').next().unwrap_or_default().to_owned()))
    };
    // Of two mounts on one point, the later hides the earlier.
    mounts.lines().filter_map(kind).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// Why [`Spool::store`] failed, and how far it came.
#[derive(Debug)]
pub struct StoreError {
    /// Number of crops on disk, from the first.
    pub stored: usize,
    /// What went wrong.
    pub error: io::Error,
}

#[derive(Debug, Clone, Copy)]
struct FileEntry {
    bytes: u64,
    attempts: u32,
    internal_errors: u32,
    earlier_run: bool,
}

/// An open spool. Only one at a time can be open on a folder.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    /// To sync the names in it.
    handle: File,
    max_bytes: u64,
    /// Released when closed.
    _lock: File,
    unclaimed: BTreeMap<SpoolId, FileEntry>,
    /// Being sent: never dropped.
    claimed: HashMap<SpoolId, FileEntry>,
    /// Damaged files, which are evicted first.
    quarantined: VecDeque<(PathBuf, u64)>,
    bytes: u64,
    stored: u64,
    dropped: u64,
    damaged: u64,
}

impl Spool {
    /// Creates the folder if it is missing, and checks that it is fit for a spool.
    ///
    /// # Errors
    ///
    /// The folder cannot be created or read, or is open to other users.
    pub fn check(folder: &Path) -> Result<(), SpoolError> {
        Self::prepare(folder).map(drop)
    }

    /// Returns true if the folder was created.
    fn prepare(folder: &Path) -> Result<bool, SpoolError> {
        let failed = |error| SpoolError::Folder { folder: folder.to_owned(), error };
        let made = match fs::metadata(folder) {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
                true
            }
            Err(error) => return Err(failed(error)),
        };
        let mode = fs::metadata(folder).map_err(failed)?.mode() & 0o7777;
        // An existing folder may be anybody's, even /tmp: its mode must not be changed.
        if mode & 0o077 != 0 {
            return Err(accessible_to_others(folder, mode, !made && keeps_modes(folder)));
        }
        Ok(made)
    }

    /// Opens the folder, creates it if it is missing, and finds the crops of earlier runs.
    ///
    /// # Errors
    ///
    /// The folder cannot be created, read or written, is open to other users, or in use.
    pub fn open(config: &SpoolConfig) -> Result<Self, SpoolError> {
        let folder = config.folder.clone();
        let failed = |error| SpoolError::Folder { folder: folder.clone(), error };
        let made = Self::prepare(&folder)?;
        let handle = File::open(&folder).map_err(failed)?;
        if made && let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse { folder }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut spool = Self {
            folder: folder.clone(),
            handle,
            max_bytes: config.max_bytes,
            _lock: lock,
            unclaimed: BTreeMap::new(),
            claimed: HashMap::new(),
            quarantined: VecDeque::new(),
            bytes: 0,
            stored: 0,
            dropped: 0,
            damaged: 0,
        };
        spool.scan().map_err(failed)?;
        spool.evict_until_fits(0);
        Ok(spool)
    }

    /// Lists the files of earlier runs; foreign files stay as they are.
    fn scan(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let metadata = match entry.metadata() {
                Ok(metadata) if metadata.is_file() => metadata,
                _ => continue,
            };
            if let Some(id) = name.strip_suffix(CROP).and_then(SpoolId::parse) {
                let entry =
                    FileEntry { bytes: metadata.len(), attempts: 0, internal_errors: 0, earlier_run: true };
                self.bytes = self.bytes.saturating_add(entry.bytes);
                self.unclaimed.insert(id, entry);
            } else if has_suffix(name, TEMPORARY) {
                // Not finished: its crop was never reported as stored.
                let _ = fs::remove_file(entry.path());
            } else if has_suffix(name, DAMAGED) {
                self.bytes = self.bytes.saturating_add(metadata.len());
                self.quarantined.push_back((entry.path(), metadata.len()));
            }
        }
        Ok(())
    }

    /// Writes crops. When this returns, they survive a power failure. The oldest on disk are dropped if space is needed.
    ///
    /// # Errors
    ///
    /// Writing failed after some of the crops.
    pub fn store(&mut self, crops: &[SpoolEntry]) -> Result<(), StoreError> {
        let mut stored = 0;
        let mut failure = None;
        for spooled in crops {
            match self.write(spooled) {
                Ok(()) => stored += 1,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        // The names of those that were written count even if a later one failed.
        if let Err(error) = self.handle.sync_all() {
            return Err(StoreError { stored, error });
        }
        match failure {
            None => Ok(()),
            Some(error) => Err(StoreError { stored, error }),
        }
    }

    fn write(&mut self, spooled: &SpoolEntry) -> io::Result<()> {
        let id = SpoolId::of(&spooled.crop);
        if self.unclaimed.contains_key(&id) || self.claimed.contains_key(&id) {
            return Ok(());
        }
        let content = encode(&spooled.crop)?;
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if !self.evict_until_fits(bytes) {
            self.dropped += 1;
            return Ok(());
        }
        let path = self.path(id);
        let temporary = path.with_added_extension("tmp");
        let written = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        let SpoolEntry { attempts, internal_errors, earlier_run, .. } = *spooled;
        self.unclaimed.insert(id, FileEntry { bytes, attempts, internal_errors, earlier_run });
        self.bytes = self.bytes.saturating_add(bytes);
        self.stored += 1;
        Ok(())
    }

    /// Drops files until so many more bytes fit; returns false if they never will.
    fn evict_until_fits(&mut self, bytes: u64) -> bool {
        while self.bytes.saturating_add(bytes) > self.max_bytes {
            if let Some((path, size)) = self.quarantined.pop_front() {
                let _ = fs::remove_file(path);
                self.bytes = self.bytes.saturating_sub(size);
            } else if bytes <= self.max_bytes
                && let Some((id, entry)) = self.unclaimed.pop_first()
            {
                let _ = fs::remove_file(self.path(id));
                self.bytes = self.bytes.saturating_sub(entry.bytes);
                self.dropped += 1;
            } else {
                return false;
            }
        }
        true
    }

    /// Reads the oldest crops, at most `count`, for sending. They stay on disk until they are [deleted](Self::delete), but
    /// are not returned again. A damaged file is quarantined and counted.
    pub fn claim(&mut self, count: usize) -> Vec<(SpoolId, SpoolEntry)> {
        let mut found = Vec::new();
        while found.len() < count {
            let Some((id, entry)) = self.unclaimed.pop_first() else { break };
            match read(&self.path(id), id) {
                Ok(crop) => {
                    self.claimed.insert(id, entry);
                    let FileEntry { attempts, internal_errors, earlier_run, .. } = entry;
                    found.push((id, SpoolEntry { crop, attempts, internal_errors, earlier_run }));
                }
                Err(_) => self.quarantine(id, entry),
            }
        }
        found
    }

    fn quarantine(&mut self, id: SpoolId, entry: FileEntry) {
        self.damaged += 1;
        let path = self.path(id);
        let aside = path.with_added_extension("damaged");
        if fs::rename(&path, &aside).is_ok() {
            self.quarantined.push_back((aside, entry.bytes));
        } else {
            // It is gone, or cannot be renamed: either way it is no longer counted.
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }

    /// Deletes claimed crops that are settled. If a power failure restores a file, the backend recognises its key.
    pub fn delete(&mut self, ids: &[SpoolId]) {
        for id in ids {
            if let Some(entry) = self.claimed.remove(id) {
                let _ = fs::remove_file(self.path(*id));
                self.bytes = self.bytes.saturating_sub(entry.bytes);
            }
        }
    }

    /// Returns what it contains and lost.
    pub fn counts(&self) -> SpoolCounts {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let unclaimed = count(self.unclaimed.len());
        SpoolCounts {
            files: unclaimed.saturating_add(count(self.claimed.len())),
            unclaimed,
            bytes: self.bytes,
            stored: self.stored,
            dropped: self.dropped,
            damaged: self.damaged,
        }
    }

    fn path(&self, id: SpoolId) -> PathBuf {
        self.folder.join(id.file_name())
    }
}

impl SpoolId {
    pub(super) fn of(crop: &Crop) -> Self {
        let microseconds = crop.captured_at.unix_timestamp_nanos() / 1000;
        Self { captured_at: u64::try_from(microseconds.max(0)).unwrap_or(u64::MAX), key: crop.key }
    }

    fn file_name(self) -> String {
        format!("{:018}-{}{CROP}", self.captured_at, self.key.simple())
    }

    fn parse(stem: &str) -> Option<Self> {
        let (captured_at, key) = stem.split_once('-')?;
        if captured_at.len() < 18 || key.len() != 32 {
            return None;
        }
        Some(Self { captured_at: captured_at.parse().ok()?, key: Uuid::try_parse(key).ok()? })
    }
}

/// Returns true if a name is that of a crop's file with this suffix.
fn has_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).and_then(|name| name.strip_suffix(CROP)).and_then(SpoolId::parse).is_some()
}

/// Metadata of a crop in its file.
#[derive(Serialize, Deserialize)]
struct Metadata {
    key: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    captured_at: OffsetDateTime,
    camera_id: String,
    location: String,
    media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    track_id: Option<i32>,
    /// Absent from files of versions without runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounding_box: Option<[u32; 4]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    area: Option<Area>,
    /// Size of the image.
    bytes: usize,
}

/// Area of a crop in its file: left, top, right and bottom in pixels of the frame, width and height of the crop in its own pixels.
#[derive(Serialize, Deserialize)]
struct Area {
    bounding_box: [u32; 4],
    picture: [u32; 2],
}

fn encode(crop: &Crop) -> io::Result<Vec<u8>> {
    let mut content = serde_json::to_vec(&Metadata {
        key: crop.key,
        captured_at: crop.captured_at,
        camera_id: crop.camera.id.clone(),
        location: crop.camera.location.clone(),
        media_type: crop.encoding.media_type().to_owned(),
        track_id: crop.track_id,
        run_id: crop.run_id,
        bounding_box: crop.bounding_box.map(|face| face.edges()),
        area: crop.area.map(|area| Area {
            bounding_box: area.bounding_box.edges(),
            picture: [area.picture_width, area.picture_height],
        }),
        bytes: crop.image.len(),
    })?;
    let metadata = content.len();
    content.extend_from_slice(&crop.image);
    let mut file = format!("{MAGIC}{:08x} {metadata}\n", crc32fast::hash(&content)).into_bytes();
    file.append(&mut content);
    Ok(file)
}

fn read(path: &Path, id: SpoolId) -> io::Result<Crop> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(damaged());
    }
    let file = Bytes::from(fs::read(path)?);
    let line_end = file.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
    let line = file.get(..line_end).and_then(|line| str::from_utf8(line).ok()).ok_or_else(damaged)?;
    let (checksum, length) =
        line.strip_prefix(MAGIC).and_then(|rest| rest.split_once(' ')).ok_or_else(damaged)?;
    let checksum = u32::from_str_radix(checksum, 16).map_err(|_| damaged())?;
    let length: usize = length.parse().map_err(|_| damaged())?;
    let content = file.slice(line_end + 1..);
    if length > content.len() || crc32fast::hash(&content) != checksum {
        return Err(damaged());
    }
    let image = content.slice(length..);
    let metadata: Metadata = serde_json::from_slice(&content.slice(..length))?;
    let encoding = Encoding::from_media_type(&metadata.media_type).ok_or_else(damaged)?;
    if metadata.bytes != image.len() || metadata.key != id.key {
        return Err(damaged());
    }
    Ok(Crop {
        image,
        encoding,
        camera: Arc::new(Camera { id: metadata.camera_id, location: metadata.location }),
        captured_at: metadata.captured_at,
        track_id: metadata.track_id,
        run_id: metadata.run_id,
        bounding_box: metadata.bounding_box.map(BoundingBox::from),
        area: metadata.area.map(|Area { bounding_box, picture: [picture_width, picture_height] }| CropArea {
            bounding_box: bounding_box.into(),
            picture_width,
            picture_height,
        }),
        key: metadata.key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accessible_folder_is_rejected_with_advice_for_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        assert!(keeps_modes(folder.path()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the probe file is removed");
        let open = accessible_to_others(folder.path(), 0o755, true).to_string();
        assert!(open.contains("chmod 700") && open.contains("0755"), "{open}");
        let no_modes = accessible_to_others(folder.path(), 0o755, false).to_string();
        assert!(no_modes.contains("umask=0077") && no_modes.contains("whatever chmod says"), "{no_modes}");
        assert!(!no_modes.contains("`chmod 700`"), "{no_modes}");
    }

    #[test]
    fn the_innermost_mount_determines_the_file_system() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      40 21 8:17 / /media/usb\\040stick rw,nosuid shared:5 - vfat /dev/sdb1 rw,uid=1000\n\
                      41 21 0:40 / /media rw - tmpfs tmpfs rw\n";
        let kind = |folder: &str| filesystem_type(mounts, Path::new(folder));
        assert_eq!(kind("/media/usb stick/spool").as_deref(), Some("vfat"));
        assert_eq!(kind("/media/other").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/var/spool").as_deref(), Some("ext4"));
        assert_eq!(filesystem_type("", Path::new("/var")), None);
    }
}
