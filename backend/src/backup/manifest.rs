//! The manifest of a backup, and the verification of a backup against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    path::Path,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::files::{self, Checksum};

/// The format version that this program writes, and the greatest that it reads.
pub const FORMAT: u32 = 1;
const MANIFEST: &str = "backup.json";
const SUMS: &str = "SHA256SUMS";

/// `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format version; 1.
    pub format: u32,
    /// The version of the program that wrote it.
    pub program: String,
    /// The time of the backup, RFC 3339.
    pub created_at: String,
    /// The database's engine: `sqlite`, `postgresql` or `mysql`.
    pub engine: String,
    /// The versions of the database's migrations, in order.
    pub schema: Vec<String>,
    /// The file of the database.
    pub database: String,
    /// Enrolled images.
    pub images: usize,
    /// Trained models.
    pub models: usize,
    /// Entries of the ledger of erasures.
    pub erasures: usize,
    /// Bytes of database and blobs.
    pub bytes: u64,
}

/// The part of the manifest that every format version has.
#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

/// Writes manifest and checksums. Returns the SHA-256 of the latter.
pub fn write(
    folder: &Path,
    manifest: &Manifest,
    mut sums: BTreeMap<String, Checksum>,
) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(manifest)?;
    text.push('\n');
    files::write(&folder.join(MANIFEST), text.as_bytes())?;
    sums.insert(MANIFEST.into(), Checksum::of(text.as_bytes()));
    let lines: String = sums.iter().map(|(name, sum)| format!("{}  {name}\n", sum.sha256)).collect();
    files::write(&folder.join(SUMS), lines.as_bytes())?;
    Ok(Checksum::of(lines.as_bytes()).sha256)
}

/// Reads the manifest of a backup and verifies all its files.
///
/// # Errors
/// The folder is no backup, has a newer format, or is damaged.
pub fn read_verified(folder: &Path) -> anyhow::Result<Manifest> {
    let text = match fs::read(folder.join(MANIFEST)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            anyhow::bail!(
                "{} is no backup: there is no {MANIFEST} in it. One that was broken off never gets its name",
                folder.display()
            )
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let damaged = |what: String| {
        anyhow::anyhow!("the backup {} is damaged: {what}. Restore another one", folder.display())
    };
    let AnyFormat { format } = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("{MANIFEST} cannot be read ({error})")))?;
    anyhow::ensure!(
        format <= FORMAT,
        "the backup {} is of form {format}, and facepipe-backend {} reads up to {FORMAT}: restore it with the version \
         that wrote it or a later one",
        folder.display(),
        env!("CARGO_PKG_VERSION")
    );
    let lines = fs::read_to_string(folder.join(SUMS))
        .map_err(|error| damaged(format!("{SUMS} cannot be read ({error})")))?;
    let mut named = BTreeSet::new();
    for line in lines.split_terminator('\n') {
        let (sha256, name) = line
            .split_once("  ")
            .filter(|(sha256, _)| sha256.len() == 64)
            .ok_or_else(|| damaged(format!("{SUMS} has a line that names no file")))?;
        let path = files::below(folder, name)?;
        if !path.is_file() {
            return Err(damaged(format!("{name} is missing")));
        }
        if Checksum::of_file(&path)?.sha256 != sha256 {
            return Err(damaged(format!("{name} is not what was written")));
        }
        named.insert(name.to_owned());
    }
    for file in files::all_below(folder)? {
        let name = file.to_string_lossy();
        if name != SUMS && !named.contains(&*name) {
            return Err(damaged(format!("{name} is not named in {SUMS}")));
        }
    }
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| damaged(format!("{MANIFEST} cannot be read ({error})")))?;
    let below = |prefix: &str| named.iter().filter(|name| name.starts_with(prefix)).count();
    let counted = (below("blobs/people/"), below("blobs/models/"), below("blobs/erasures/"));
    if counted != (manifest.images, manifest.models, manifest.erasures) || !named.contains(&manifest.database)
    {
        return Err(damaged(format!("{SUMS} does not name all that {MANIFEST} counts")));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut sums = BTreeMap::new();
        for (name, bytes) in
            [("database.sqlite", "rows"), ("blobs/people/1/a", "picture"), ("blobs/erasures/0f", "{}")]
        {
            files::write(&folder.path().join(name), bytes.as_bytes()).unwrap();
            sums.insert(name.to_owned(), Checksum::of(bytes.as_bytes()));
        }
        let manifest = Manifest {
            format: FORMAT,
            program: "0.1.0".into(),
            created_at: "2025-01-31T00:00:00Z".into(),
            engine: "sqlite".into(),
            schema: vec!["20250101000000".into()],
            database: "database.sqlite".into(),
            images: 1,
            models: 0,
            erasures: 1,
            bytes: 13,
        };
        write(folder.path(), &manifest, sums).unwrap();
        assert_eq!(read_verified(folder.path()).unwrap(), manifest);
        folder
    }

    #[test]
    fn every_modification_of_a_backup_is_detected() {
        type Change = fn(&Path);
        let changes: [(Change, &str); 9] = [
            (
                |folder| fs::write(folder.join("database.sqlite"), "row").unwrap(),
                "database.sqlite is not what",
            ),
            (
                |folder| fs::write(folder.join("blobs/people/1/a"), "Picture").unwrap(),
                "blobs/people/1/a is not",
            ),
            (
                |folder| fs::remove_file(folder.join("blobs/people/1/a")).unwrap(),
                "blobs/people/1/a is missing",
            ),
            (
                |folder| fs::write(folder.join("blobs/people/1/b"), "").unwrap(),
                "blobs/people/1/b is not named",
            ),
            (|folder| fs::remove_file(folder.join(SUMS)).unwrap(), "SHA256SUMS cannot be read"),
            (|folder| fs::remove_file(folder.join(MANIFEST)).unwrap(), "is no backup"),
            (
                |folder| {
                    let text = fs::read_to_string(folder.join(MANIFEST)).unwrap();
                    fs::write(folder.join(MANIFEST), text.replace("20250101", "20240101")).unwrap();
                },
                "backup.json is not what was written",
            ),
            (
                |folder| {
                    let text = fs::read_to_string(folder.join(SUMS)).unwrap();
                    fs::write(folder.join(SUMS), &text[..text.len() - 40]).unwrap();
                },
                "is damaged",
            ),
            (
                // A file and its line.
                |folder| {
                    let text = fs::read_to_string(folder.join(SUMS)).unwrap();
                    let kept: Vec<&str> = text.lines().filter(|line| !line.ends_with("0f")).collect();
                    fs::write(folder.join(SUMS), kept.join("\n") + "\n").unwrap();
                    fs::remove_file(folder.join("blobs/erasures/0f")).unwrap();
                },
                "does not name all that backup.json counts",
            ),
        ];
        for (change, told) in changes {
            let folder = written();
            change(folder.path());
            let error = read_verified(folder.path()).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST), "{\"format\": 2, \"unheard_of\": true}").unwrap();
        let error = read_verified(folder.path()).unwrap_err().to_string();
        assert!(error.contains("of form 2") && error.contains("reads up to 1"), "{error}");
    }

    #[test]
    fn a_path_outside_the_backup_is_refused() {
        let folder = written();
        let text = fs::read_to_string(folder.path().join(SUMS)).unwrap();
        let line = format!("{}  ../elsewhere\n", "0".repeat(64));
        fs::write(folder.path().join(SUMS), text + &line).unwrap();
        let error = read_verified(folder.path()).unwrap_err().to_string();
        assert!(error.contains("../elsewhere"), "{error}");
    }
}
