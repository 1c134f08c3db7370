//! The default folder of weights.

use std::{env, path::PathBuf};

/// System-wide folders of weights, the administrator's first.
pub const SYSTEM_MODELS: [&str; 2] = ["/usr/local/share/facepipe/models", "/usr/share/facepipe/models"];

/// Returns the folder of weights for programs that were given none: the first that exists of `models` in the current folder,
/// `share/facepipe/models` beside the program's `bin`, and [`SYSTEM_MODELS`]; else `models`.
#[must_use]
pub fn default_models_dir() -> PathBuf {
    let here = PathBuf::from("models");
    let program = env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.parent()?.join("share/facepipe/models")));
    let [administrator, distribution] = SYSTEM_MODELS.map(PathBuf::from);
    // For a program in /usr/bin, the folder beside it is the distribution's, which comes after the administrator's.
    let beside = beside.filter(|beside| *beside != distribution);
    first_folder([Some(here.clone()), beside, Some(administrator), Some(distribution)]).unwrap_or(here)
}

fn first_folder(folders: impl IntoIterator<Item = Option<PathBuf>>) -> Option<PathBuf> {
    folders.into_iter().flatten().find(|folder| folder.is_dir())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_existing_folder_is_chosen() {
        let root = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| root.path().join(name));
        fs::write(&a, "a file").unwrap();
        fs::create_dir(&b).unwrap();
        fs::create_dir(&c).unwrap();
        assert_eq!(first_folder([Some(a.clone()), None, Some(b.clone()), Some(c)]), Some(b));
        assert_eq!(first_folder([Some(a), None]), None);
    }
}
