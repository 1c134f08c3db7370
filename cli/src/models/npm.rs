//! Downloads npm packages with `npm pack`, which knows the user's registry, proxy and token. Nothing is installed and no
//! package script is run.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest, Sha512};

use super::{
    download::Downloader,
    manifest::{Package, Pin},
    packages::only_file,
    progress::Progress,
    registry_client,
};

/// The npm client, looked up on first use.
#[derive(Default)]
pub struct Npm {
    /// The registry to check first, or why npm cannot be used.
    found: Option<Result<Option<String>, String>>,
    absent: bool,
}

impl Npm {
    /// Returns whether npm was needed and is not installed.
    pub fn is_absent(&self) -> bool {
        self.absent
    }

    /// Downloads a package into `folder` and verifies its integrity.
    ///
    /// # Errors
    /// npm is not installed or fails, or the package differs from the pinned one.
    pub fn pack(
        &mut self,
        package: &Package,
        downloader: &mut Downloader,
        folder: &Path,
    ) -> Result<PathBuf, String> {
        let failed = |problem: String| format!("npm, {}: {problem}", package.spec);
        if let Some(registry) = self.registry(folder).map_err(failed)? {
            downloader.check_reachable(&registry).map_err(failed)?;
        }
        let (cache, out) = (folder.join("cache"), folder.join("out"));
        fs::create_dir(&out).map_err(|e| failed(e.to_string()))?;
        let mut npm = npm(folder);
        npm.args(["pack", "--ignore-scripts", "--loglevel=error", "--no-audit", "--no-fund"]);
        npm.args(["--no-update-notifier", "--fetch-retries=1", "--fetch-retry-mintimeout=500"]);
        npm.args(["--fetch-retry-maxtimeout=2000", "--pack-destination"]).arg(&out);
        // A separate cache, which shows the progress.
        npm.arg("--cache").arg(&cache).arg("--").arg(&package.spec);

        let mut progress = Progress::new(format!("{} with npm", package.spec), package.bytes);
        let output = registry_client::run(npm, folder, Some(&mut progress));
        let success = output.as_ref().is_ok_and(|output| output.success);
        progress.end(success);
        let output = output.map_err(failed)?;
        if !success {
            return Err(failed(error_summary(&output.err)));
        }
        let file = only_file(&out).map_err(failed)?;
        if let Some(Pin::Sha512(expected)) = &package.pin {
            let content = fs::read(&file).map_err(|e| failed(e.to_string()))?;
            let found = Sha512::digest(&content);
            if found.as_slice() != expected.as_slice() {
                let (expected, found) = (Pin::integrity(expected), Pin::integrity(&found));
                return Err(failed(format!("expected integrity {expected}, found {found}")));
            }
        }
        // The cache, some megabytes, is not needed any more.
        let _ = fs::remove_dir_all(&cache);
        Ok(file)
    }

    /// Returns npm's registry if it can be checked directly; none behind a proxy configured only in npm.
    fn registry(&mut self, folder: &Path) -> Result<Option<String>, String> {
        if let Some(found) = &self.found {
            return found.clone();
        }
        let found = match Command::new("npm").arg("--version").stdin(Stdio::null()).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.absent = true;
                Err("the npm client is not installed (`apt-get install npm`, or scripts/packages.sh npm in a \
                     clone)"
                    .into())
            }
            Err(error) => Err(format!("npm cannot be started: {error}")),
            Ok(_) => Ok(configured(folder)),
        };
        self.found.insert(found).clone()
    }
}

/// Creates an npm command in a folder without project settings.
fn npm(folder: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(folder);
    npm
}

/// Returns npm's registry unless only npm knows the proxy to it.
fn configured(folder: &Path) -> Option<String> {
    let get = |key: &str| {
        let output = npm(folder).args(["config", "get", key]).stdin(Stdio::null()).output().ok()?;
        let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (!value.is_empty() && value != "null" && value != "undefined").then_some(value)
    };
    let registry = get("registry").filter(|url| url.starts_with("http"))?;
    // Proxies of the environment apply to us too, those of npm's configuration do not.
    let in_environment = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    let shared = ["https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"].into_iter().any(in_environment);
    (shared || (get("https-proxy").is_none() && get("proxy").is_none())).then_some(registry)
}

/// Extracts code and first descriptive line of npm's error output.
fn error_summary(stderr: &str) -> String {
    let lines = stderr.lines().filter_map(|line| {
        ["npm error ", "npm ERR! "].into_iter().find_map(|prefix| line.strip_prefix(prefix)).map(str::trim)
    });
    let (mut code, mut words) = (None, None);
    for line in lines {
        let first_word = line.split(' ').next().unwrap_or_default();
        let is_detail =
            matches!(first_word, "errno" | "syscall" | "404") || line.starts_with("A complete log");
        match line.strip_prefix("code ") {
            Some(value) => code = code.or(Some(value)),
            None if is_detail || line.is_empty() => {}
            None => words = words.or(Some(line)),
        }
    }
    let last = || stderr.lines().rev().map(str::trim).find(|line| !line.is_empty());
    match (code, words) {
        (Some(code), Some(words)) => format!("{code}: {words}"),
        (Some(code), None) => code.to_owned(),
        (None, words) => words.or_else(last).unwrap_or("no reason given").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npm_errors_become_one_line_with_their_code() {
        let old = "npm ERR! code ENOTFOUND\nnpm ERR! syscall getaddrinfo\nnpm ERR! errno ENOTFOUND\n\
                   npm ERR! network request failed\nnpm ERR! A complete log of this run can be found in: x\n";
        assert_eq!(error_summary(old), "ENOTFOUND: network request failed");
        let new = "npm error code E404\nnpm error 404 Not Found - GET http://127.0.0.1:1/x\nnpm error 404\n";
        assert_eq!(error_summary(new), "E404");
        assert_eq!(error_summary("segmentation fault\n"), "segmentation fault");
        assert_eq!(error_summary(""), "no reason given");
    }
}
