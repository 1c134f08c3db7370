//! Resolves a model's name to its file: `auto`, a detector of `models/manifest.toml`, `mtcnn`, or a path.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{DetectorError, mtcnn, search_paths};

/// `auto` takes the 640x480 model for frames at least this wide: a face of 60 pixels in a 1080p frame would be 10 pixels wide in
/// a 320x240 input, which is the smallest that the model can detect.
const WIDE_FRAME: u32 = 1280;

/// Folders of models for the whole machine: first those that its administrator installed.
pub const SYSTEM_MODELS: [&str; 2] = ["/usr/local/share/facepipe/models", "/usr/share/facepipe/models"];

/// The backend's detector at the edge.
const MTCNN: &str = "mtcnn";

const MANIFEST: &str = include_str!("../../../models/manifest.toml");

/// The kind of network that a detector runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// One network for the whole frame, stretched to its input.
    UltraLight,
    /// Three networks; the first searches the frame at many sizes. Several times the work, on the CPU only.
    Mtcnn,
}

impl Family {
    /// Returns the family of a model's file: `pnet.pt` is MTCNN's, all others are Ultra-Light.
    pub fn of(file: &Path) -> Self {
        if mtcnn::is_first_file(file) { Self::Mtcnn } else { Self::UltraLight }
    }

    /// Returns the default score threshold of faces. MTCNN's scores are closer to 0 and 1.
    pub const fn score_threshold(self) -> f32 {
        match self {
            Self::UltraLight => 0.6,
            Self::Mtcnn => 0.9,
        }
    }

    /// Returns the default score threshold of candidates.
    pub const fn low_score_threshold(self) -> f32 {
        match self {
            Self::UltraLight => 0.3,
            Self::Mtcnn => 0.5,
        }
    }
}

/// A face detector listed in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// Its name, for example `rfb-320`.
    pub name: String,
    /// The names of its files in the models folder, at least one. The first represents all of them.
    pub files: Vec<String>,
    /// Its purpose, in a few words.
    pub purpose: String,
}

/// The chosen file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The file.
    pub path: PathBuf,
    /// The model's name, if it was found by name.
    pub name: Option<String>,
    /// The model that `auto` prefers, if that is not installed.
    pub instead_of: Option<String>,
}

/// Returns the models in the order of preference of `auto`, for frames with this longer side in square pixels. It takes the first
/// that is installed.
///
/// MTCNN finds nearly what `rfb-640` finds, for a multiple of the work; the smaller networks miss small faces.
pub fn auto_order(longer_side: Option<u32>) -> [&'static str; 4] {
    if longer_side.is_some_and(|side| side >= WIDE_FRAME) {
        ["rfb-640", MTCNN, "rfb-320", "slim-320"]
    } else {
        ["rfb-320", "slim-320", "rfb-640", MTCNN]
    }
}

/// Finds the file of a model.
///
/// `name_or_path` is `auto` (the first of [`auto_order`] that is installed), a detector's name in the manifest, `mtcnn`, or a
/// path, which is recognised by a separator or by its ending `.onnx` or `.pt`.
///
/// Named models are searched in `$FACEPIPE_MODELS`; in `models/` and `share/facepipe/models/` below each of `hints`, the
/// program's folder and up to three parents of each; in `./models`; in [`SYSTEM_MODELS`].
///
/// # Errors
///
/// [`DetectorError::UnknownModel`] for a name that the manifest lacks, [`DetectorError::ModelMissing`] where the
/// file is nowhere; for `auto`, where none of the detectors is installed.
pub fn resolve(
    name_or_path: &str,
    longer_side: Option<u32>,
    hints: &[PathBuf],
) -> Result<PathBuf, DetectorError> {
    choose(name_or_path, longer_side, hints).map(|choice| choice.path)
}

/// Resolves as [`resolve`] does, and also returns what was chosen.
///
/// # Errors
///
/// As [`resolve`].
pub fn choose(
    name_or_path: &str,
    longer_side: Option<u32>,
    hints: &[PathBuf],
) -> Result<Choice, DetectorError> {
    let name = name_or_path;
    let known = known();
    if name == "auto" {
        return choose_first(&auto_order(longer_side), &known, &model_folders(hints));
    }
    if let Some(model) = known.iter().find(|model| model.name == name) {
        let path = find(model, &model_folders(hints))?;
        return Ok(Choice { path, name: Some(model.name.clone()), instead_of: None });
    }
    let path = Path::new(name);
    let is_model = |e: &std::ffi::OsStr| e.eq_ignore_ascii_case("onnx") || e.eq_ignore_ascii_case("pt");
    if path.components().count() > 1 || path.extension().is_some_and(is_model) {
        if path.is_file() {
            return Ok(Choice { path: path.to_path_buf(), name: None, instead_of: None });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Err(DetectorError::ModelMissing {
            name: name.to_owned(),
            file: path.file_name().unwrap_or(path.as_os_str()).display().to_string(),
            searched: folder.display().to_string(),
        });
    }
    let names: Vec<&str> = known.iter().map(|model| model.name.as_str()).collect();
    Err(DetectorError::UnknownModel { name: name.to_owned(), known: format!("auto, {}", names.join(", ")) })
}

/// Returns the first of these models that is installed.
fn choose_first(order: &[&str], known: &[KnownModel], folders: &[PathBuf]) -> Result<Choice, DetectorError> {
    let mut first_error = None;
    let mut instead_of = None;
    for &name in order {
        let Some(model) = known.iter().find(|model| model.name == name) else { continue };
        match find(model, folders) {
            Ok(path) => return Ok(Choice { path, name: Some(name.to_owned()), instead_of }),
            Err(error) => {
                instead_of.get_or_insert_with(|| name.to_owned());
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error
        .unwrap_or_else(|| DetectorError::UnknownModel { name: "auto".to_owned(), known: order.join(", ") }))
}

/// Returns the face detectors of the manifest, in its order, and MTCNN, whose three files the backend needs as well.
pub fn known() -> Vec<KnownModel> {
    #[derive(Deserialize)]
    struct Manifest {
        file: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        file: String,
        kind: String,
        purpose: String,
    }
    // The manifest is compiled in; a test checks that it parses.
    let manifest = toml::from_str(MANIFEST).unwrap_or(Manifest { file: Vec::new() });
    let detectors = manifest.file.into_iter().filter(|entry| entry.kind == "detector");
    let detectors = detectors.map(|e| KnownModel { name: e.name, files: vec![e.file], purpose: e.purpose });
    let mtcnn = KnownModel {
        name: MTCNN.to_owned(),
        files: mtcnn::FILES.map(str::to_owned).to_vec(),
        purpose: "face detector of the backend, at the edge: where no Ultra-Light model is available"
            .to_owned(),
    };
    detectors.chain([mtcnn]).collect()
}

/// Returns the folders in which models are searched, in order.
fn model_folders(hints: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = search_paths::path_variable("FACEPIPE_MODELS").into_iter().collect();
    for folder in search_paths::folders(hints) {
        let shared = folder.join("share/facepipe/models");
        folders.push(folder.join("models"));
        // Messages need not name it where it does not exist.
        folders.extend(Some(shared).filter(|shared| shared.is_dir()));
    }
    folders.push(PathBuf::from("models"));
    folders.extend(SYSTEM_MODELS.map(PathBuf::from));
    folders
}

/// Returns the first file of a model in the first folder that has all its files.
fn find(model: &KnownModel, folders: &[PathBuf]) -> Result<PathBuf, DetectorError> {
    let lacking = |folder: &PathBuf| model.files.iter().find(|file| !folder.join(file).is_file());
    let first = model.files.first().map(String::as_str).unwrap_or_default();
    if let Some(folder) = folders.iter().find(|folder| lacking(folder).is_none()) {
        return Ok(folder.join(first));
    }
    // If a folder has some of the files, the others are missing there.
    let part = folders.iter().find_map(|folder| {
        let file = lacking(folder)?;
        (model.files.iter().any(|file| folder.join(file).is_file())).then_some((file, folder))
    });
    let (file, searched) = part.map_or_else(
        || (first, search_paths::listed(folders)),
        |(file, folder)| (file.as_str(), folder.display().to_string()),
    );
    Err(DetectorError::ModelMissing { name: model.name.clone(), file: file.to_owned(), searched })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_lists_the_three_detectors_and_the_files_of_mtcnn() {
        let names: Vec<String> = known().into_iter().map(|model| model.name).collect();
        assert_eq!(names, ["rfb-320", "rfb-640", "slim-320", "mtcnn"]);
        for file in mtcnn::FILES {
            assert!(MANIFEST.contains(&format!("file = \"{file}\"\nkind = \"mtcnn\"")), "{file}");
        }
        for side in [None, Some(640), Some(1920)] {
            let mut order = auto_order(side).map(str::to_owned);
            order.sort();
            assert_eq!(order, ["mtcnn", "rfb-320", "rfb-640", "slim-320"], "auto knows all of them");
        }
    }

    #[test]
    fn auto_takes_the_first_installed_model_and_names_the_preferred_one() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().join("nothing"), folder.path().to_path_buf()];
        let choose = |side| choose_first(&auto_order(Some(side)), &known(), &folders);
        let error = choose(1920).unwrap_err().to_string();
        assert!(error.contains("model rfb-640 is not installed: no version-RFB-640.onnx in"), "{error}");

        for file in ["pnet.pt", "rnet.pt"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        assert!(choose(1920).is_err(), "an incomplete model does not count");
        let error = find(&known()[3], &folders).unwrap_err().to_string();
        let expected = format!("model mtcnn is not installed: no onet.pt in {}", folder.path().display());
        assert!(error.contains(&expected), "{error}");

        std::fs::write(folder.path().join("onet.pt"), "").unwrap();
        let chosen = choose(1920).unwrap();
        assert_eq!(chosen.path, folder.path().join("pnet.pt"));
        assert_eq!((chosen.name.as_deref(), chosen.instead_of.as_deref()), (Some("mtcnn"), Some("rfb-640")));
        assert_eq!(Family::of(&chosen.path), Family::Mtcnn);

        std::fs::write(folder.path().join("version-slim-320.onnx"), "").unwrap();
        let chosen = |side| choose(side).unwrap().name.unwrap();
        assert_eq!((chosen(1920).as_str(), chosen(640).as_str()), ("mtcnn", "slim-320"));
        std::fs::write(folder.path().join("version-RFB-640.onnx"), "").unwrap();
        assert_eq!(choose(1920).unwrap().instead_of, None);
    }

    #[test]
    fn models_next_to_an_installed_plugin_are_found() {
        let prefix = tempfile::tempdir().unwrap();
        let models = prefix.path().join("share/facepipe/models");
        std::fs::create_dir_all(&models).unwrap();
        std::fs::write(models.join("only-here.onnx"), "").unwrap();
        let model = KnownModel {
            name: "rfb-320".to_owned(),
            files: vec!["only-here.onnx".to_owned()],
            purpose: String::new(),
        };
        let found = find(&model, &model_folders(&[prefix.path().join("lib/gstreamer-1.0")]));
        assert_eq!(found.unwrap(), models.join("only-here.onnx"));
    }

    #[test]
    fn the_error_for_a_missing_model_names_file_folders_and_remedy() {
        let model = KnownModel {
            name: "rfb-320".to_owned(),
            files: vec!["no-such-file.onnx".to_owned()],
            purpose: String::new(),
        };
        let message = find(&model, &model_folders(&[PathBuf::from("/opt/plugins")])).unwrap_err().to_string();
        for part in [
            "model rfb-320 is not installed",
            "no no-such-file.onnx in",
            "/opt/plugins/models, /opt/models, /models",
            "/usr/local/share/facepipe/models, /usr/share/facepipe/models",
            "Run `facepipe models fetch`",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}
