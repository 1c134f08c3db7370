//! Divides pictures into gallery and probes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::analysis::{AnalysisResult, EmbeddedFace};
use crate::{
    exit::Failure,
    pictures::{self, PassedOver, PersonFolders},
    seeded_rng::SeededRng,
};

/// Default number of gallery pictures per person.
const SHOTS: u16 = 5;

/// Role of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Gallery,
    Probe,
    /// The person's first usable pictures are gallery, the others probes.
    FirstAreGallery,
}

/// The pictures of an evaluation.
#[derive(Debug)]
pub struct Layout {
    pictures: Vec<Picture>,
    /// Files that are no pictures.
    passed_over: Vec<PassedOver>,
    shots: usize,
}

/// A picture with its person and role.
#[derive(Debug)]
pub struct Picture {
    pub file: PathBuf,
    person: String,
    role: Role,
}

/// A face with its true name.
#[derive(Debug)]
pub struct LabelledFace {
    pub file: PathBuf,
    pub person: String,
    /// The analysed face.
    pub face: EmbeddedFace,
}

/// Gallery, probes and unusable files.
#[derive(Debug, Default)]
pub struct Assignment {
    /// Pictures with a main face.
    pub gallery: Vec<LabelledFace>,
    /// Pictures with at least one face, of the people of the gallery and of strangers.
    pub probes: Vec<LabelledFace>,
    /// Files that are no pictures, and pictures that are unreadable, without a face, or unusable for the gallery.
    pub passed_over: Vec<PassedOver>,
    /// Number of files considered.
    pub pictures: usize,
}

impl Layout {
    /// Reads the folders without decoding pictures.
    ///
    /// # Errors
    /// A folder is missing or empty, or an option does not apply.
    pub fn read(
        folder: &Path,
        shots: Option<u16>,
        strangers: Option<u16>,
        seed: u64,
    ) -> Result<Self, Failure> {
        let [gallery, probe] = ["gallery", "probe"].map(|name| folder.join(name));
        match (gallery.is_dir(), probe.is_dir()) {
            (true, true) => {
                for (option, given) in [("--shots", shots), ("--strangers", strangers)] {
                    if given.is_some() {
                        let why = format!("{} has a gallery and probes of its own", folder.display());
                        return Err(Failure::Usage(format!("{option}: {why}")));
                    }
                }
                let (mut enrolled, mut probes) = (people(&gallery)?, people(&probe)?);
                let mut passed_over = std::mem::take(&mut enrolled.passed_over);
                passed_over.append(&mut probes.passed_over);
                let mut pictures = roles(enrolled.pictures, |_| Role::Gallery);
                pictures.extend(roles(probes.pictures, |_| Role::Probe));
                Ok(Self { pictures, passed_over, shots: usize::MAX })
            }
            (true, false) => {
                Err(Failure::input(probe.display(), "no such folder (the pictures to search for)"))
            }
            (false, true) => Err(Failure::input(gallery.display(), "no such folder (the pictures to enrol)")),
            (false, false) => {
                let PersonFolders { pictures: people, passed_over, .. } = people(folder)?;
                let strangers = usize::from(strangers.unwrap_or_default());
                if strangers >= people.len() {
                    return Err(Failure::Usage(format!(
                        "--strangers {strangers}: there are {} people, at most {} can be left out",
                        people.len(),
                        people.len() - 1
                    )));
                }
                let mut names: Vec<String> = people.keys().cloned().collect();
                SeededRng::new(seed, 0).shuffle(&mut names);
                let strangers: BTreeSet<String> = names.into_iter().take(strangers).collect();
                let role = |person: &str| {
                    if strangers.contains(person) { Role::Probe } else { Role::FirstAreGallery }
                };
                Ok(Self { pictures: roles(people, role), passed_over, shots: shots.unwrap_or(SHOTS).into() })
            }
        }
    }

    /// Returns all pictures, ordered by person and file name.
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    /// Assigns the final roles by the analysed faces; `results` is in the order of [`Self::pictures`].
    pub fn assign(self, results: Vec<AnalysisResult>) -> Assignment {
        let mut assignment = Assignment {
            pictures: self.pictures.len() + self.passed_over.len(),
            passed_over: self.passed_over,
            ..Assignment::default()
        };
        // Gallery pictures per person of the gallery.
        let mut enrolled: BTreeMap<String, usize> = BTreeMap::new();
        for (Picture { file, person, role }, result) in self.pictures.into_iter().zip(results) {
            let already = match role {
                Role::Probe => 0,
                Role::Gallery | Role::FirstAreGallery => *enrolled.entry(person.clone()).or_default(),
            };
            let face = match result {
                Ok(face) => face,
                Err(passed_over) => {
                    assignment.passed_over.push(passed_over);
                    continue;
                }
            };
            let faces = face.in_picture;
            if role == Role::Gallery && faces != 1 {
                let reason = format!("{faces} faces, a picture of the gallery must have a main one");
                assignment.passed_over.push(PassedOver::new(&file, reason));
                continue;
            }
            let into_gallery = match role {
                Role::Gallery => true,
                Role::FirstAreGallery => faces == 1 && already < self.shots,
                Role::Probe => false,
            };
            if into_gallery {
                enrolled.insert(person.clone(), already + 1);
                assignment.gallery.push(LabelledFace { file, person, face });
            } else {
                assignment.probes.push(LabelledFace { file, person, face });
            }
        }
        // People who could not be enrolled are no strangers: their probes are dropped.
        let lost = assignment.probes.extract_if(.., |probe| enrolled.get(&probe.person) == Some(&0));
        let why = "no picture of this person could be enrolled";
        assignment.passed_over.extend(lost.map(|probe| PassedOver::new(&probe.file, why)));
        assignment
    }
}

/// Returns the people with pictures; there must be one.
fn people(folder: &Path) -> Result<PersonFolders, Failure> {
    let (mut people, without) = pictures::people(folder)?;
    for name in without {
        let why = "no picture in this person's folder";
        people.passed_over.push(PassedOver::new(&folder.join(name), why));
    }
    Ok(people)
}

fn roles(people: BTreeMap<String, Vec<PathBuf>>, role: impl Fn(&str) -> Role) -> Vec<Picture> {
    let pictures = people.into_iter().flat_map(|(person, files)| {
        let role = role(&person);
        files.into_iter().map(move |file| Picture { file, person: person.clone(), role })
    });
    pictures.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Creates files with these names that look like pictures.
    fn tree(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, b"\xff\xd8\xff\xe0").unwrap();
        }
        folder
    }

    fn with(in_picture: usize) -> AnalysisResult {
        Ok(EmbeddedFace { in_picture, embedding: vec![1.0] })
    }

    fn without() -> AnalysisResult {
        Err(PassedOver::new(Path::new("x"), "no face in it"))
    }

    fn named(pictures: &[LabelledFace]) -> Vec<&str> {
        pictures.iter().map(|p| p.file.file_stem().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn the_first_pictures_with_one_face_are_the_gallery() {
        let folder = tree(&["a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "b/5.jpg", "b/6.jpg"]);
        let layout = Layout::read(folder.path(), Some(2), None, 1).unwrap();
        let assignment = layout.assign(vec![with(2), with(1), without(), with(1), with(1), with(3)]);
        assert_eq!(named(&assignment.gallery), ["2", "4", "5"]);
        assert_eq!(named(&assignment.probes), ["1", "6"]);
        assert_eq!((assignment.passed_over.len(), assignment.pictures), (1, 6));
    }

    #[test]
    fn non_pictures_and_people_without_pictures_are_listed() {
        let folder = tree(&["a/1.jpg", "b/2.jpg"]);
        fs::write(folder.path().join("b/2.jpg"), "notes").unwrap();
        let assignment = Layout::read(folder.path(), None, None, 1).unwrap().assign(vec![with(1)]);
        assert_eq!(named(&assignment.gallery), ["1"]);
        let told: Vec<&str> = assignment.passed_over.iter().map(|p| p.reason.as_str()).collect();
        assert_eq!(told, ["text, no picture", "no picture in this person's folder"]);
    }

    #[test]
    fn strangers_are_not_enrolled_and_depend_on_the_seed() {
        let folder = tree(&["a/1.jpg", "b/2.jpg", "c/3.jpg", "d/4.jpg", "e/5.jpg", "f/6.jpg"]);
        let strangers = |seed| {
            let layout = Layout::read(folder.path(), None, Some(3), seed).unwrap();
            let assignment = layout.assign((0..6).map(|_| with(1)).collect());
            assert_eq!((assignment.gallery.len(), assignment.probes.len()), (3, 3));
            named(&assignment.probes).join(" ")
        };
        assert_eq!(strangers(1), strangers(1));
        assert!((2..20).any(|seed| strangers(seed) != strangers(1)));
        let error = Layout::read(folder.path(), None, Some(6), 1).unwrap_err().to_string();
        assert!(error.contains("--strangers 6") && error.contains("at most 5"), "{error}");
    }

    #[test]
    fn separate_gallery_and_probe_folders_are_used_as_given() {
        let folder =
            tree(&["gallery/a/1.jpg", "gallery/b/2.jpg", "probe/a/3.jpg", "probe/b/4.jpg", "probe/c/5.jpg"]);
        let layout = Layout::read(folder.path(), None, None, 1).unwrap();
        // No photograph of b can be enrolled, so its probe does not count; c is a stranger.
        let assignment = layout.assign(vec![with(1), with(2), with(1), with(1), with(1)]);
        assert_eq!(named(&assignment.gallery), ["1"]);
        assert_eq!(named(&assignment.probes), ["3", "5"]);
        let reasons: Vec<&str> = assignment.passed_over.iter().map(|p| p.reason.as_str()).collect();
        assert!(reasons[0].contains("2 faces") && reasons[1].contains("could be enrolled"), "{reasons:?}");
        let error = Layout::read(folder.path(), Some(1), None, 1).unwrap_err().to_string();
        assert!(error.contains("--shots"), "{error}");
        fs::remove_dir_all(folder.path().join("probe")).unwrap();
        let error = Layout::read(folder.path(), None, None, 1).unwrap_err().to_string();
        assert!(error.contains("probe: no such folder"), "{error}");
    }
}
