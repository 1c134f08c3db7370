//! Where weights lie when nobody says so.

use std::{env, path::PathBuf};

/// Where weights lie that serve the whole machine: first what its administrator put there.
pub const SYSTEM_MODELS: [&str; 2] = ["/usr/local/share/facepipe/models", "/usr/share/facepipe/models"];

/// The folder of weights where nobody names one: `models` in the current folder; `share/facepipe/models` beside the `bin` in
/// which the program lies; those of [`SYSTEM_MODELS`]. Of these the first that there is, else `models`.
#[must_use]
pub fn default_models_dir() -> PathBuf {
    let here = PathBuf::from("models");
    let program = env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.parent()?.join("share/facepipe/models")));
    let [administrator, distribution] = SYSTEM_MODELS.map(PathBuf::from);
    // Of a program in /usr/bin, what is beside is the distribution's.
    let beside = beside.filter(|beside| *beside != distribution);
    first([Some(here.clone()), beside, Some(administrator), Some(distribution)]).unwrap_or(here)
}

fn first(folders: impl IntoIterator<Item = Option<PathBuf>>) -> Option<PathBuf> {
    folders.into_iter().flatten().find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_folder_that_is_there_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
        fs::write(&a, "a file").unwrap();
        fs::create_dir(&b).unwrap();
        fs::create_dir(&c).unwrap();
        assert_eq!(first([Some(a.clone()), None, Some(b.clone()), Some(c)]), Some(b));
        assert_eq!(first([Some(a), None]), None);
    }
}
