//! Names of folders beside those of people: file systems and the server may write the same name in different ways.

use std::collections::HashMap;

use caseless::Caseless as _;
use unicode_normalization::UnicodeNormalization as _;

/// The people whom the server knows, to be found by what a folder is called.
pub struct NameIndex {
    /// By what all ways to write a name have in common.
    names: HashMap<String, Vec<String>>,
}

impl NameIndex {
    /// Of these people.
    pub fn new(people: impl IntoIterator<Item = String>) -> Self {
        let mut names: HashMap<String, Vec<String>> = HashMap::new();
        for name in people {
            names.entry(key(&name)).or_default().push(name);
        }
        Self { names }
    }

    /// The Face ID that a folder's name is, if anybody has it: in the same letters before any other way to write it.
    pub fn face_id(&self, folder: &str) -> Option<&str> {
        let names = self.names.get(&key(folder))?;
        names.iter().find(|name| *name == folder).or(names.first()).map(String::as_str)
    }
}

/// Without regard to Unicode's forms of normalisation, which macOS chooses otherwise than Linux, to the case of letters
/// and to white space around the name.
fn key(name: &str) -> String {
    name.trim().nfkd().default_case_fold().nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_the_person_of_the_same_name_however_it_is_written() {
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
