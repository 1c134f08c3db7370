//! Finds and loads the ONNX Runtime library, once per process.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use ort::{
    environment::Environment,
    ep::{self, ExecutionProvider as _},
};

use crate::{DetectorError, ExecutionProvider, search_paths};

/// The loaded ONNX Runtime. There is one per process, and it stays loaded until the process ends.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    path: PathBuf,
}

/// ONNX Runtime allows one environment per process, and a loaded library cannot be replaced.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Loads the library, or returns the one that is loaded already (whatever the hints).
///
/// Search order: the file named by `ORT_DYLIB_PATH`, and then nothing else; `libonnxruntime.so*` in each of `hints`,
/// the program's folder and up to three parents of each, and in `.runtime/` and `lib/facepipe/` below them, newest version
/// first;
/// the system's library path. The first library that loads is taken. World-writable folders are skipped, since anybody could
/// place a library there and run code in this process.
///
/// # Errors
///
/// [`DetectorError::RuntimeMissing`] where no library is found, or none that is new enough;
/// [`DetectorError::RuntimeFailed`] where it loads but does not start.
pub fn load(hints: &[PathBuf]) -> Result<&'static Runtime, DetectorError> {
    static LOADING: Mutex<()> = Mutex::new(());

    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    // The lock guards no data, so a poisoned one is harmless.
    let _guard = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = open_first(&candidates(hints))?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

impl Runtime {
    /// Returns the file that was loaded, or its bare name if the system's loader found it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the library's build information: version, commit, compiler flags.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// Returns whether the library was built with this provider. The machine may still lack what the provider needs.
    pub fn has(&self, provider: ExecutionProvider) -> bool {
        let available = match provider {
            ExecutionProvider::Cpu => ep::CPU::is_available(),
            ExecutionProvider::Cuda => ep::CUDA::is_available(),
            ExecutionProvider::TensorRt => ep::TensorRT::is_available(),
            ExecutionProvider::OpenVino => ep::OpenVINO::is_available(),
        };
        available.unwrap_or(false)
    }

    pub(crate) const fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// A library, and whether it is safe to load.
#[derive(Debug)]
struct Candidate {
    path: PathBuf,
    safe: bool,
}

fn candidates(hints: &[PathBuf]) -> Vec<Candidate> {
    if let Some(path) = search_paths::path_variable("ORT_DYLIB_PATH") {
        return vec![Candidate { path, safe: true }];
    }
    let name = library_name();
    let mut found = below(search_paths::folders(hints), &name);
    // Bare names are resolved by the system's loader.
    found.extend([name.clone(), name + ".1"].map(|name| Candidate { path: name.into(), safe: true }));
    found
}

/// Returns the libraries of these folders and of the subfolders in which set-up and packages install one.
fn below(folders: Vec<PathBuf>, name: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for folder in folders {
        for subfolder in [folder.join(".runtime"), folder.join("lib/facepipe"), folder] {
            let safe = !is_world_writable(&subfolder);
            found.extend(libraries(&subfolder, name).into_iter().map(|path| Candidate { path, safe }));
        }
    }
    found
}

/// Returns `libonnxruntime.so` on Linux.
fn library_name() -> String {
    format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// Returns the libraries in one folder, newest first; `libonnxruntime.so` without a version comes last.
fn libraries(folder: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let file = entry.file_name();
            let version = file.to_str()?.strip_prefix(name)?;
            let version = match version.strip_prefix('.') {
                None if version.is_empty() => Vec::new(),
                None => return None,
                Some(numbers) => numbers.split('.').map(str::parse).collect::<Result<_, _>>().ok()?,
            };
            Some((version, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}

#[cfg(unix)]
fn is_world_writable(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(folder).is_ok_and(|data| data.permissions().mode() & 0o002 != 0)
}

#[cfg(not(unix))]
fn is_world_writable(_folder: &Path) -> bool {
    false
}

fn open_first(candidates: &[Candidate]) -> Result<Runtime, DetectorError> {
    let mut tried = Vec::new();
    for Candidate { path, safe } in candidates {
        if !safe {
            tried.push(format!("{} lies in a folder that anybody may write to", path.display()));
            continue;
        }
        // `init_from` returns errors where `ort`'s own lazy loading would panic.
        match ort::init_from(path) {
            Ok(builder) => {
                let environment =
                    builder.with_name("facepipe").with_telemetry(false).build().map_err(|e| {
                        DetectorError::RuntimeFailed { path: path.clone(), reason: e.to_string() }
                    })?;
                return Ok(Runtime { environment, path: path.clone() });
            }
            Err(error) => tried.push(reason(path, &error)),
        }
    }
    Err(DetectorError::RuntimeMissing { tried: tried.join("; ") })
}

fn reason(path: &Path, error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::BadVersion { version_str, .. } => {
            format!("{} is version {version_str}, which is too old", path.display())
        }
        ort::LoadDynamicError::MissingApi { .. } => {
            format!("{} is not an ONNX Runtime library", path.display())
        }
        ort::LoadDynamicError::Dlopen { error, .. } => {
            format!("{} does not load ({error})", path.display())
        }
        ort::LoadDynamicError::InvalidVersionString => {
            format!("{} does not tell its version", path.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_comes_first_and_provider_libraries_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["so", "so.1.9.0", "so.1.23.2", "so.1", "so.1.23.2.part", "so.old"];
        for file in files {
            fs::write(folder.path().join(format!("libonnxruntime.{file}")), "").unwrap();
        }
        fs::write(folder.path().join("libonnxruntime_providers_cuda.so"), "").unwrap();
        let names: Vec<String> = libraries(folder.path(), "libonnxruntime.so")
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "libonnxruntime.so.1.23.2",
                "libonnxruntime.so.1.9.0",
                "libonnxruntime.so.1",
                "libonnxruntime.so"
            ]
        );
    }

    #[test]
    fn a_packaged_library_is_found_from_the_folders_of_plugins_and_programs() {
        let prefix = tempfile::tempdir().unwrap();
        let library = prefix.path().join("lib/facepipe/libonnxruntime.so.1.23.2");
        for folder in ["lib/facepipe", "lib/x86_64-linux-gnu/gstreamer-1.0", "lib/gstreamer-1.0", "bin"] {
            fs::create_dir_all(prefix.path().join(folder)).unwrap();
        }
        fs::write(&library, "").unwrap();
        for hint in ["lib/x86_64-linux-gnu/gstreamer-1.0", "lib/gstreamer-1.0", "bin"] {
            let found = below(search_paths::folders(&[prefix.path().join(hint)]), "libonnxruntime.so");
            assert!(found.iter().any(|candidate| candidate.path == library), "{hint}: {found:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn libraries_in_world_writable_folders_are_skipped() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so");
        fs::write(&library, "").unwrap();
        for (mode, expected) in [(0o777, false), (0o755, true)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(!is_world_writable(folder.path()), expected, "mode {mode:o}");
        }
        let refused = open_first(&[Candidate { path: library.clone(), safe: false }]).unwrap_err();
        assert!(refused.to_string().contains("lies in a folder that anybody may write to"), "{refused}");
    }
}
