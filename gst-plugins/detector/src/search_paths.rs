//! The folders in which models and the ONNX Runtime library are searched when no path is given.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Number of parent folders that are searched: enough to reach the root of a checkout from `target/debug/deps`.
const ANCESTORS: usize = 3;

/// Returns each hint, then the folder of the running program, each followed by up to three parents; no folder twice.
pub(crate) fn folders(hints: &[PathBuf]) -> Vec<PathBuf> {
    let program = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let mut found: Vec<PathBuf> = Vec::new();
    for start in hints.iter().chain(&program) {
        for folder in start.ancestors().take(1 + ANCESTORS) {
            if !folder.as_os_str().is_empty() && !found.iter().any(|known| known == folder) {
                found.push(folder.to_path_buf());
            }
        }
    }
    found
}

/// Returns the variable's value; `None` if it is unset or empty.
pub(crate) fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Lists paths for a message.
pub(crate) fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
