//! Matches folder names with Face IDs, which may be spelled differently (Unicode normalisation, case).

use std::collections::HashMap;

use caseless::Caseless as _;
use unicode_normalization::UnicodeNormalization as _;

/// Index of enrolled people by folder name.
pub struct NameIndex {
    /// Face IDs by normalised name.
    names: HashMap<String, Vec<String>>,
}

impl NameIndex {
    /// Indexes these people.
    pub fn new(people: impl IntoIterator<Item = String>) -> Self {
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for name in people {
            names.entry(key(&name)).or_default().push(name);
        }
        Self { names }
    }

    /// Returns the Face ID of a folder name, preferring an exact match.
    pub fn face_id(&self, folder: &str) -> Option<&str> {
        let names = self.names.get(&key(folder))?;
        names.iter().find(|name| *name == folder).or(names.first()).map(String::as_str)
    }
}

/// Normalises Unicode form (macOS and Linux differ), case and surrounding white space.
fn key(name: &str) -> String {
    name.trim().nfkd().default_case_fold().nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_match_face_ids_across_spellings() {
        let names = NameIndex::new(["Jos\u{e9}", "\u{ae40}", "Ann", "ann"].map(str::to_owned));
        for (folder, face_id) in [
            ("Jose\u{301}", Some("Jos\u{e9}")),
            ("jos\u{e9} ", Some("Jos\u{e9}")),
            ("\u{1100}\u{1175}\u{11b7}", Some("\u{ae40}")),
            ("ann", Some("ann")),
            ("Ann", Some("Ann")),
            ("ANN", Some("Ann")),
            ("Jose", None),
        ] {
            assert_eq!(names.face_id(folder), face_id, "{folder:?}");
        }
    }
}
