//! Files of backups: private to their owner, durable, and published atomically.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Component, Path, PathBuf},
};

use anyhow::Context as _;
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

/// The mode of folders, which contain names, images and embeddings.
const FOLDER_MODE: u32 = 0o700;
/// The mode of files.
const FILE_MODE: u32 = 0o600;

/// Size and SHA-256 of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}

impl Checksum {
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }

    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let read = || -> io::Result<Self> {
            let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
            let mut part = vec![0; 1 << 20];
            loop {
                match file.read(&mut part)? {
                    0 => return Ok(Self { bytes, sha256: hex(&hash.finalize()) }),
                    length => {
                        hash.update(part.get(..length).unwrap_or_default());
                        bytes += length as u64;
                    }
                }
            }
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The folder of a backup to be written.
pub struct Target {
    folder: PathBuf,
}

impl Target {
    /// # Errors
    /// The folder is not empty, or its parent is missing.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let folder = std::path::absolute(folder)?;
        let above = folder.parent().with_context(|| format!("{} is no folder's name", folder.display()))?;
        anyhow::ensure!(
            above.is_dir(),
            "there is no folder {}, in which the backup would lie: make it, or mount it",
            above.display()
        );
        anyhow::ensure!(
            is_empty_or_missing(&folder)?,
            "{} is there already and is not empty: a backup is written into a new folder, such as {}",
            folder.display(),
            folder.join("2025-01-31").display()
        );
        Ok(Self { folder })
    }

    /// Creates the folder under a temporary name.
    pub fn stage(&self) -> anyhow::Result<StagedFolder> {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.folder.file_name().unwrap_or_default());
        name.push(format!(".partial-{}", std::process::id()));
        let path = self.folder.with_file_name(name);
        make_folder(&path)?;
        Ok(StagedFolder { path, target: self.folder.clone(), published: false })
    }
}

/// A folder under a temporary name, removed unless published.
pub struct StagedFolder {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl StagedFolder {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to its final name. The files are synced already; this syncs their directory entries.
    pub fn publish(mut self) -> anyhow::Result<()> {
        each_folder(&self.path, &mut |folder| sync_folder(folder))?;
        fs::rename(&self.path, &self.target)
            .with_context(|| format!("cannot give the folder its name {}", self.target.display()))?;
        self.published = true;
        sync_folder(self.target.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Returns the path of a key below a folder.
///
/// # Errors
/// The key leads out of the folder.
pub fn below(folder: &Path, key: &str) -> anyhow::Result<PathBuf> {
    let relative = Path::new(key);
    let normal = relative.components().all(|part| matches!(part, Component::Normal(_)));
    anyhow::ensure!(normal && !key.is_empty(), "{key:?} is no name of a file in a backup");
    Ok(folder.join(relative))
}

/// Creates a new folder.
pub fn make_folder(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .mode(FOLDER_MODE)
        .create(path)
        .with_context(|| format!("cannot create the folder {}", path.display()))
}

/// Creates a folder and its parents where they are missing.
pub fn make_folders(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
        .with_context(|| format!("cannot create the folder {}", path.display()))
}

/// Writes a new file, creating its folders.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    make_folders(path.parent().unwrap_or(Path::new(".")))?;
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Copies a file to a new path, creating its folders.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    make_folders(to.parent().unwrap_or(Path::new(".")))?;
    let copied = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(to)?;
        io::copy(&mut File::open(from)?, &mut file)?;
        file.sync_all()
    };
    copied().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Makes a file that another program wrote private and syncs it.
pub fn make_private(path: &Path) -> anyhow::Result<()> {
    let closed = || -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
        File::open(path)?.sync_all()
    };
    closed().with_context(|| format!("cannot write {}", path.display()))
}

pub fn make_folder_private(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))
}

pub fn sync_folder(path: &Path) -> anyhow::Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot write the folder {}", path.display()))
}

/// Returns whether a path does not exist, or is a folder that is empty except for `lost+found`.
pub fn is_empty_or_missing(path: &Path) -> anyhow::Result<bool> {
    has_only(path, &["lost+found".into()])
}

/// Returns whether a path does not exist, or is a folder with no other entries than these names.
pub fn has_only(path: &Path, names: &[std::ffi::OsString]) -> anyhow::Result<bool> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    for entry in entries {
        if !names.contains(&entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lists all files below a folder, by relative path.
pub fn all_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    each_folder(folder, &mut |inside| {
        for entry in fs::read_dir(inside)? {
            let path = entry?.path();
            if !path.is_dir() || path.is_symlink() {
                files.push(path.strip_prefix(folder)?.to_owned());
            }
        }
        Ok(())
    })?;
    Ok(files)
}

fn each_folder(folder: &Path, visit: &mut dyn FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    visit(folder)?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            each_folder(&path, visit)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
}

impl Owner {
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let about = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { user: about.uid(), group: about.gid() })
    }
}

/// Makes a file, or a folder and everything below it, private, and for the superuser also changes the owner.
pub fn set_owner(path: &Path, owner: Owner) -> anyhow::Result<()> {
    let about = fs::symlink_metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if about.is_dir() {
        for entry in fs::read_dir(path)? {
            set_owner(&entry?.path(), owner)?;
        }
    }
    let mode = if about.is_dir() { FOLDER_MODE } else { FILE_MODE };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot change the mode of {}", path.display()))?;
    if about.uid() == 0 && owner != (Owner { user: about.uid(), group: about.gid() }) {
        chown(path, Some(owner.user), Some(owner.group))
            .with_context(|| format!("cannot give {} to user {}", path.display(), owner.user))?;
    }
    Ok(())
}
