//! From a model's name to its file: `auto`, a detector of `models/manifest.toml`, or a path.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{DetectorError, search};

/// Frames at least this wide get the 640x480 model from `auto`: a face of 60 pixels in a 1080p frame would be 10
/// pixels wide in a 320x240 input, which is as small as the model can see.
const WIDE_FRAME: u32 = 1280;

/// Where a distribution's package would put the models.
const SYSTEM_MODELS: &str = "/usr/share/facepipe/models";

const MANIFEST: &str = include_str!("../../../models/manifest.toml");

/// A face detector listed in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// The name by which it is asked for, for example `rfb-320`.
    pub name: String,
    /// The file's name in the models folder.
    pub file: String,
    /// What it is for, in a few words.
    pub purpose: String,
}

/// Finds the file of a model.
///
/// `name_or_path` is `auto` (`rfb-640` where `frame_width` is at least 1280 pixels, else `rfb-320`), a detector's
/// name in the manifest, or a path, which is recognised by a separator or by its ending `.onnx`.
///
/// Named models are looked for in `$FACEPIPE_MODELS`; in `models/` below each of `hints`, the program's folder and
/// up to three folders above each; in `./models`; in `/usr/share/facepipe/models`.
///
/// # Errors
///
/// [`DetectorError::UnknownModel`] for a name that the manifest lacks, [`DetectorError::ModelMissing`] where the
/// file is nowhere.
pub fn resolve(
    name_or_path: &str,
    frame_width: Option<u32>,
    hints: &[PathBuf],
) -> Result<PathBuf, DetectorError> {
    let name = match name_or_path {
        "auto" if frame_width.is_some_and(|width| width >= WIDE_FRAME) => "rfb-640",
        "auto" => "rfb-320",
        other => other,
    };
    let known = known();
    if let Some(model) = known.iter().find(|model| model.name == name) {
        return find(model, hints);
    }
    let path = Path::new(name);
    if path.components().count() > 1 || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
        if path.is_file() {
            return Ok(path.to_path_buf());
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

/// The face detectors of the manifest, in its order.
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
    // The manifest is part of the program; a test proves that it parses.
    let manifest = toml::from_str(MANIFEST).unwrap_or(Manifest { file: Vec::new() });
    let detectors = manifest.file.into_iter().filter(|entry| entry.kind == "detector");
    detectors.map(|e| KnownModel { name: e.name, file: e.file, purpose: e.purpose }).collect()
}

fn find(model: &KnownModel, hints: &[PathBuf]) -> Result<PathBuf, DetectorError> {
    let mut folders: Vec<PathBuf> = search::path_variable("FACEPIPE_MODELS").into_iter().collect();
    folders.extend(search::folders(hints).iter().map(|folder| folder.join("models")));
    folders.push(PathBuf::from("models"));
    folders.push(PathBuf::from(SYSTEM_MODELS));
    folders.iter().map(|folder| folder.join(&model.file)).find(|path| path.is_file()).ok_or_else(|| {
        DetectorError::ModelMissing {
            name: model.name.clone(),
            file: model.file.clone(),
            searched: search::listed(&folders),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_lists_the_three_detectors_and_nothing_else() {
        let names: Vec<String> = known().into_iter().map(|model| model.name).collect();
        assert_eq!(names, ["rfb-320", "rfb-640", "slim-320"]);
    }

    #[test]
    fn a_model_that_is_nowhere_is_named_with_its_file_the_folders_and_the_remedy() {
        let model = KnownModel {
            name: "rfb-320".to_owned(),
            file: "no-such-file.onnx".to_owned(),
            purpose: String::new(),
        };
        let message = find(&model, &[PathBuf::from("/opt/plugins")]).unwrap_err().to_string();
        for part in [
            "model rfb-320 is not installed",
            "no no-such-file.onnx in",
            "/opt/plugins/models, /opt/models, /models",
            SYSTEM_MODELS,
            "Run `facepipe models fetch`",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}
