//! The free space of the disks that this process writes to.

use std::path::PathBuf;

/// A folder that this process writes to.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Its name in the metrics.
    pub name: &'static str,
    /// Its path.
    pub path: PathBuf,
}

/// A folder's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that this process may still write, without those that are kept for root.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

impl Folder {
    /// Returns its disk; `None` if there is no such folder.
    pub fn disk(&self) -> Option<Disk> {
        let disk = rustix::fs::statvfs(&self.path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        (disk.f_blocks > 0).then(|| Disk { free: bytes(disk.f_bavail), size: bytes(disk.f_blocks) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_disk_and_nothing_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder { name: "data", path: folder.path().to_owned() }.disk().unwrap();
        assert!(0 < disk.free && disk.free <= disk.size, "{disk:?}");
        let said =
            std::process::Command::new("df").args(["-B1", "--output=size"]).arg(folder.path()).output();
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        assert_eq!(said.split_whitespace().last().unwrap(), disk.size.to_string());
        assert_eq!(Folder { name: "data", path: folder.path().join("none") }.disk(), None);
    }
}
