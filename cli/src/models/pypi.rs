//! Python packages. Wheels are downloaded by pip. Source packages are not, since `pip download` runs their `setup.py` and no
//! downloaded code may run here: they are found through the simple repository API (PEP 503 and 691) of the index that pip is
//! configured for, and downloaded like any other file.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use super::{
    check::{State, check},
    download::Downloader,
    manifest::{Expected, Package, Pin},
    packages::only_file,
    progress::Progress,
    registry_client,
};

/// pip's default index.
const INDEX: &str = "https://pypi.org/simple/";
/// Linux platform tags that today's distributions support, newest first.
const PLATFORMS: [&str; 3] = ["manylinux_2_28", "manylinux_2_27", "manylinux2014"];
/// Python version for which wheels are requested; irrelevant for the library inside.
const PYTHON_VERSION: &str = "3.12";
/// Accepted formats of an index, JSON preferred.
const ACCEPTED: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
/// Maximum size of an index page; some have several megabytes.
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// pip's settings, read on first use.
#[derive(Default)]
pub struct Pypi {
    settings: Option<Settings>,
}

/// The settings of pip that locate packages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settings {
    index: Option<String>,
    extra_indexes: Vec<String>,
    find_links: Vec<String>,
    no_index: bool,
    proxy: bool,
}

impl Pypi {
    /// Downloads a wheel into `folder` with pip. `arch` is the architecture of a platform wheel.
    ///
    /// # Errors
    /// pip fails, or its index cannot be reached.
    pub fn wheel(
        &mut self,
        package: &Package,
        arch: Option<&str>,
        downloader: &mut Downloader,
        folder: &Path,
    ) -> Result<PathBuf, String> {
        let failed = |problem: String| format!("pip, {}: {problem}", package.spec);
        let settings = self.settings();
        let index = settings.index.as_deref().unwrap_or(INDEX);
        let reachable =
            if settings.proxy || settings.no_index { Ok(()) } else { downloader.check_reachable(index) };
        if let Err(problem) = &reachable
            && settings.find_links.is_empty()
            && settings.extra_indexes.is_empty()
        {
            return Err(failed(problem.clone()));
        }
        let (out, temporary) = (folder.join("out"), folder.join("tmp"));
        for folder in [&out, &temporary] {
            fs::create_dir(folder).map_err(|e| failed(e.to_string()))?;
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]);
        pip.args(["--no-deps", "--only-binary=:all:", "--retries", "1", "--timeout", "15"]);
        if reachable.is_err() && settings.extra_indexes.is_empty() {
            // Only the find-links folders are left.
            pip.arg("--no-index");
        }
        pip.arg("--dest").arg(&out);
        if let Some(arch) = arch {
            for platform in PLATFORMS {
                pip.args(["--platform", &format!("{platform}_{arch}")]);
            }
            pip.args(["--python-version", PYTHON_VERSION, "--implementation", "cp"]);
        }
        // pip downloads there, which shows the progress.
        pip.arg(&package.spec).env("TMPDIR", &temporary);

        let mut progress = Progress::new(format!("the wheel {} with pip", package.spec), package.bytes);
        let output = registry_client::run(pip, folder, Some(&mut progress));
        let success = output.as_ref().is_ok_and(|output| output.success);
        progress.end(success);
        let output = output.map_err(failed)?;
        if !success {
            let line = output.err.lines().rev().find(|line| !line.trim().is_empty());
            let line = line.unwrap_or("no reason given").trim().to_owned();
            return Err(match reachable {
                Err(problem) => failed(format!("{line}; {problem}")),
                Ok(()) => failed(line),
            });
        }
        only_file(&out).map_err(failed)
    }

    /// Downloads a source package into `folder` and verifies its hash.
    ///
    /// # Errors
    /// No index has it, or it differs from the pinned one.
    pub fn sdist(
        &mut self,
        package: &Package,
        downloader: &mut Downloader,
        folder: &Path,
    ) -> Result<PathBuf, String> {
        let failed = |problem: String| format!("{package}: {problem}");
        let sha256 = match &package.pin {
            Some(Pin::Sha256(hash)) => Some(hash.clone()),
            _ => None,
        };
        let expected = Expected { sha256, bytes: package.bytes };
        let settings = self.settings();
        for folder in &settings.find_links {
            if let Some(file) = in_folder(Path::new(folder), package)
                && let Ok(State::Right { .. }) = check(&file, &expected)
            {
                return Ok(file);
            }
        }
        if settings.no_index {
            return Err(failed("pip is configured to ask no index, and its folders lack it".into()));
        }
        let mut problems = Vec::new();
        let own = settings.index.as_deref().unwrap_or(INDEX);
        for index in std::iter::once(own).chain(settings.extra_indexes.iter().map(String::as_str)) {
            match from_index(index, package, &expected, downloader, folder) {
                Ok(file) => return Ok(file),
                Err(problem) => problems.push(problem),
            }
        }
        Err(failed(problems.join("; ")))
    }

    fn settings(&mut self) -> Settings {
        self.settings.get_or_insert_with(Settings::from_pip).clone()
    }
}

impl Settings {
    /// Reads the settings that pip merges from its files and the environment; without pip, only the environment.
    fn from_pip() -> Self {
        let output =
            Command::new("python3").args(["-m", "pip", "config", "list"]).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Self::parse(&String::from_utf8_lossy(&output.stdout)),
            _ => Self::from_environment(),
        }
    }

    fn from_environment() -> Self {
        let lines = env::vars().filter_map(|(name, value)| {
            let key = name.strip_prefix("PIP_")?.to_ascii_lowercase().replace('_', "-");
            Some(format!(":env:.{key}='{value}'\n"))
        });
        Self::parse(&lines.collect::<String>())
    }

    /// Parses the lines of `pip config list`, `<section>.<key>='<value>'`. Command sections override the global one, the
    /// environment overrides both.
    fn parse(list: &str) -> Self {
        let get = |key: &str| {
            [":env:", "download", "global"].into_iter().find_map(|section| {
                let start = format!("{section}.{key}=");
                let value = list.lines().find_map(|line| line.strip_prefix(&start))?.trim();
                let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'));
                let value = quote.map_or(value, |quote| value.trim_matches(quote));
                // Multiple values are separated by newlines, printed as \n.
                Some(value.replace("\\n", " ")).filter(|value| !value.trim().is_empty())
            })
        };
        let words = |key: &str| {
            get(key).map(|v| v.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
        };
        let is_on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str());
        Self {
            index: get("index-url"),
            extra_indexes: words("extra-index-url"),
            find_links: words("find-links"),
            no_index: get("no-index").is_some_and(is_on),
            proxy: get("proxy").is_some(),
        }
    }
}

/// Finds the source package in a find-links folder.
fn in_folder(folder: &Path, package: &Package) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| is_sdist(name, package))
    })
}

/// Downloads a source package through an index.
fn from_index(
    index: &str,
    package: &Package,
    expected: &Expected,
    downloader: &mut Downloader,
    folder: &Path,
) -> Result<PathBuf, String> {
    let page = format!("{}/{}/", index.trim_end_matches('/'), normalized(&package.name));
    let (page, content_type, text) = downloader.text(&page, ACCEPTED, MAX_INDEX_BYTES)?;
    let files = if content_type.contains("json") { json(&text)? } else { html(&text) };
    let host = page.host_str().unwrap_or("the index").to_owned();
    let Some((name, address)) = files.into_iter().find(|(name, _)| is_sdist(name, package)) else {
        return Err(format!("{host}: has no source package of this version"));
    };
    let mut url = page.join(&address).map_err(|e| format!("{host}: {address}: {e}"))?;
    url.set_fragment(None);
    let target = folder.join("sdist");
    downloader.download(url.as_str(), &name, &target, expected)?;
    match check(&target, expected).map_err(|e| e.to_string())? {
        State::Right { .. } => Ok(target),
        State::Wrong { problem } => Err(format!("{host}: {problem}")),
        State::Missing => Err(format!("{host}: nothing arrived")),
    }
}

/// Returns whether the file name is that of the source package at this version.
fn is_sdist(file: &str, package: &Package) -> bool {
    let Some((name, version)) = file.strip_suffix(".tar.gz").and_then(|stem| stem.rsplit_once('-')) else {
        return false;
    };
    version == package.version && normalized(name) == normalized(&package.name)
}

/// Normalises a package name (PEP 503): lower case, and one hyphen per run of `-`, `_` and `.`.
fn normalized(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// Parses file names and addresses of a JSON index (PEP 691).
fn json(text: &str) -> Result<Vec<(String, String)>, String> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: String,
        url: String,
    }
    let page: Page = serde_json::from_str(text).map_err(|e| format!("the index cannot be read: {e}"))?;
    Ok(page.files.into_iter().map(|file| (file.filename, file.url)).collect())
}

/// Parses file names and addresses of an HTML index (PEP 503): text and target of its anchors.
fn html(text: &str) -> Vec<(String, String)> {
    let anchors = text.split("<a ").skip(1);
    anchors
        .filter_map(|anchor| {
            let (attributes, rest) = anchor.split_once('>')?;
            let (name, _) = rest.split_once("</a>")?;
            let (_, address) = attributes.split_once("href=")?;
            let quote = address.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let address = address.get(1..)?.split(quote).next()?;
            Some((name.trim().to_owned(), address.replace("&amp;", "&")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::manifest::Registry;

    #[test]
    fn pip_settings_have_pips_precedence() {
        let list = "global.index-url='https://a/simple'\ndownload.index-url='https://b/simple/'\n\
                    global.find-links='\\n/one\\n/two'\n:env:.no-index='1'\ninstall.proxy='x'\n";
        let settings = Settings::parse(list);
        assert_eq!(settings.index.as_deref(), Some("https://b/simple/"));
        assert_eq!(settings.find_links, ["/one", "/two"]);
        assert!(settings.no_index && !settings.proxy);
        let over = Settings::parse(&format!("{list}:env:.index-url='https://c'\n"));
        assert_eq!(over.index.as_deref(), Some("https://c"));
        assert_eq!(Settings::parse(""), Settings::default());
    }

    #[test]
    fn source_packages_are_matched_by_name_and_version() {
        let package = Package {
            registry: Registry::Sdist,
            spec: "face_recognition==1.3.0".into(),
            name: "face_recognition".into(),
            version: "1.3.0".into(),
            pin: None,
            bytes: None,
        };
        for (file, is) in [
            ("face_recognition-1.3.0.tar.gz", true),
            ("Face-Recognition-1.3.0.tar.gz", true),
            ("face_recognition-1.3.0-py2.py3-none-any.whl", false),
            ("face_recognition-1.3.tar.gz", false),
            ("face_recognition_models-1.3.0.tar.gz", false),
        ] {
            assert_eq!(is_sdist(file, &package), is, "{file}");
        }
    }

    #[test]
    fn an_index_in_html_is_read_like_one_in_json() {
        let page = "<!DOCTYPE html><html><body><h1>Links</h1>\n<a href=\"../../x-1.0.tar.gz?a=1&amp;b=2#sha256=00\" \
                    data-requires-python=\"&gt;=3\">x-1.0.tar.gz</a><br/>\n<a\nhref='y'>not ours</a></body></html>";
        assert_eq!(html(page), [("x-1.0.tar.gz".into(), "../../x-1.0.tar.gz?a=1&b=2#sha256=00".into())]);
        let same = r#"{"meta":{"api-version":"1.1"},"files":[{"filename":"x-1.0.tar.gz","url":"../x","hashes":{}}]}"#;
        assert_eq!(json(same), Ok(vec![("x-1.0.tar.gz".into(), "../x".into())]));
    }
}
