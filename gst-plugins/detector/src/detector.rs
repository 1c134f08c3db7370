//! The detector of one stream: its sampler, and its selection among the boxes of a network that streams share.

use std::{fmt, fs, path::PathBuf, str::FromStr};

use crate::{
    Detection, DetectorError, Family, Frame, Sampler,
    engine::{EngineHandle, Model, Network},
    mtcnn::{self, SearchParams},
    nms::Selection,
    onnx_strip, runtime,
};

/// Finds faces in the frames of one stream. Detectors with the same model and execution settings share their networks within a
/// process: there are as many networks as can run at a time, however many streams there are.
///
/// `Send`, so it can move to a streaming thread; a frame needs `&mut self`, because buffers are reused.
#[derive(Debug)]
pub struct Detector {
    engine: EngineHandle,
    family: Family,
    sampler: Sampler,
    selection: Selection,
    min_face_size: u32,
    candidates: Vec<Detection>,
    faces: Vec<Detection>,
}

/// The configuration of a detector.
#[derive(Debug, Clone)]
pub struct DetectorConfig {
    /// The ONNX file, or `pnet.pt` of MTCNN next to the files of its other two networks, see
    /// [`models::resolve`](crate::models::resolve). No default.
    pub model: PathBuf,
    /// Threads that work on one frame, at least 1. Default 1.
    pub threads: usize,
    /// Where the network runs. Default [`ExecutionProvider::Cpu`].
    pub execution_provider: ExecutionProvider,
    /// Candidates must score higher, 0 to 1. Default 0.6.
    pub score_threshold: f32,
    /// Of two boxes that overlap by more than this IoU (0 to 1), the one with the lower score is dropped. Default 0.3.
    pub nms_threshold: f32,
    /// Maximum number of faces per frame, those with the highest scores; 0 (default) for all.
    pub max_faces: usize,
    /// The smallest face that MTCNN finds, square pixels, at least 12; its run time is proportional to the inverse square. 0
    /// (default): 1/27 of the frame's shorter side, at least 20. Ignored by the other detectors.
    pub min_face_size: u32,
    /// Folder in which TensorRT keeps the engine that it builds for the model, which takes minutes the first time; created
    /// if missing. `None` (default): the engine is built at every start.
    pub engine_cache: Option<PathBuf>,
    /// Folders near which the ONNX Runtime library may be (such as a plugin's own), see [`runtime::load`]. Ignored once the
    /// library is loaded.
    pub library_hints: Vec<PathBuf>,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            threads: 1,
            execution_provider: ExecutionProvider::Cpu,
            score_threshold: 0.6,
            nms_threshold: 0.3,
            max_faces: 0,
            min_face_size: 0,
            engine_cache: None,
            library_hints: Vec::new(),
        }
    }
}

/// Where the network runs. An unavailable provider is an error; there is no silent fallback to the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ExecutionProvider {
    /// ONNX Runtime's own kernels.
    #[default]
    Cpu,
    /// NVIDIA CUDA.
    Cuda,
    /// NVIDIA TensorRT; parts of a network that it does not support run on CUDA.
    TensorRt,
    /// Intel OpenVINO.
    OpenVino,
}

impl ExecutionProvider {
    /// All providers, `cpu` first.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Cuda, Self::TensorRt, Self::OpenVino];

    /// Returns the name used in configuration: `cpu`, `cuda`, `tensorrt`, `openvino`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::OpenVino => "openvino",
        }
    }
}

impl fmt::Display for ExecutionProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ExecutionProvider {
    type Err = DetectorError;

    fn from_str(name: &str) -> Result<Self, DetectorError> {
        Self::ALL.into_iter().find(|provider| provider.name() == name).ok_or_else(|| {
            DetectorError::InvalidConfig {
                field: "execution-provider",
                value: name.to_owned(),
                limit: "expected cpu, cuda, tensorrt or openvino",
            }
        })
    }
}

/// Far above any Ultra-Light model (1.6 MB), far below what would exhaust an edge box.
const MAX_MODEL_BYTES: u64 = 256 << 20;

impl Detector {
    /// Loads ONNX Runtime (once per process) and the model.
    ///
    /// # Errors
    ///
    /// [`DetectorError`], all variants but `InvalidFrame`, `Inference` and `UnknownModel`.
    pub fn open(config: &DetectorConfig) -> Result<Self, DetectorError> {
        let selection = Selection {
            score_threshold: checked_ratio("score-threshold", config.score_threshold)?,
            nms_threshold: checked_ratio("nms-threshold", config.nms_threshold)?,
            max_faces: config.max_faces,
        };
        if config.threads == 0 || config.threads > 1024 {
            return Err(DetectorError::InvalidConfig {
                field: "threads",
                value: config.threads.to_string(),
                limit: "expected 1 to 1024",
            });
        }
        let family = Family::of(&config.model);
        let provider = config.execution_provider;
        if family == Family::Mtcnn && provider != ExecutionProvider::Cpu {
            return Err(DetectorError::InvalidConfig {
                field: "execution-provider",
                value: provider.to_string(),
                limit: "expected cpu, since the model is mtcnn, whose first network has inputs of many sizes; \
                        accelerators run rfb-320, rfb-640 and slim-320",
            });
        }
        let model = match family {
            Family::UltraLight => Model::UltraLight(read_model(config)?),
            Family::Mtcnn => Model::Mtcnn(mtcnn::read_models(config)?),
        };
        let runtime = runtime::load(&config.library_hints)?;
        if !runtime.has(provider) {
            let reason = format!("{} was built without it", runtime.path().display());
            return Err(DetectorError::ProviderUnavailable { provider, reason });
        }
        if let Some(folder) = &config.engine_cache {
            make_private(folder).map_err(|e| DetectorError::InvalidConfig {
                field: "engine-cache",
                value: format!("{}, which cannot be created ({e})", folder.display()),
                limit: "expected a folder that can be written to",
            })?;
        }
        let engine = EngineHandle::acquire(runtime, config, model)?;
        // The input of MTCNN depends on the frame.
        let (width, height) = engine.input_size().unwrap_or((16, 16));
        Ok(Self {
            engine,
            family,
            sampler: Sampler::new(width, height),
            selection,
            min_face_size: config.min_face_size,
            candidates: Vec::new(),
            faces: Vec::new(),
        })
    }

    /// Returns width and height of the network's input in pixels, to which a frame is stretched. `None` for MTCNN, whose input
    /// depends on the frame.
    pub fn input_size(&self) -> Option<(usize, usize)> {
        self.engine.input_size()
    }

    /// Returns the kind of network that it runs.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Sets the smallest face that MTCNN finds, from the next frame on, see [`DetectorConfig::min_face_size`].
    pub const fn set_min_face_size(&mut self, pixels: u32) {
        self.min_face_size = pixels;
    }

    /// Sets the score threshold from the next frame on.
    ///
    /// # Errors
    ///
    /// [`DetectorError::InvalidConfig`] outside 0 to 1.
    pub fn set_score_threshold(&mut self, threshold: f32) -> Result<(), DetectorError> {
        self.selection.score_threshold = checked_ratio("score-threshold", threshold)?;
        Ok(())
    }

    /// Sets the IoU threshold of non-maximum suppression from the next frame on.
    ///
    /// # Errors
    ///
    /// [`DetectorError::InvalidConfig`] outside 0 to 1.
    pub fn set_nms_threshold(&mut self, threshold: f32) -> Result<(), DetectorError> {
        self.selection.nms_threshold = checked_ratio("nms-threshold", threshold)?;
        Ok(())
    }

    /// Sets the maximum number of faces from the next frame on, 0 for all.
    pub const fn set_max_faces(&mut self, max_faces: usize) {
        self.selection.max_faces = max_faces;
    }

    /// Returns the faces of a frame, highest score first, in pixels of the frame, not clipped.
    ///
    /// # Errors
    ///
    /// [`DetectorError::Inference`] where ONNX Runtime fails.
    pub fn detect(&mut self, frame: &Frame<'_>) -> Result<Vec<Detection>, DetectorError> {
        #[expect(clippy::cast_precision_loss, reason = "sides are at most 32,768 pixels")]
        let size = (frame.width() as f32, frame.height() as f32);
        let Self { engine, sampler, selection, candidates, faces, .. } = self;
        let search =
            SearchParams { min_face_size: self.min_face_size, score_threshold: selection.score_threshold };
        engine.with_network(|network| match network {
            Network::UltraLight(network) => network.run(
                |input| sampler.sample(frame, input),
                |scores, boxes| selection.select(scores, boxes, size, candidates, faces),
            ),
            Network::Mtcnn(cascade) => {
                cascade.find(frame, sampler, search, candidates)?;
                selection.keep(candidates, faces);
                Ok(())
            }
        })?;
        Ok(self.faces.clone())
    }
}

/// Creates a folder that others cannot write to, since its contents are executed.
fn make_private(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn checked_ratio(field: &'static str, value: f32) -> Result<f32, DetectorError> {
    // A NaN is in no range.
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(DetectorError::InvalidConfig { field, value: value.to_string(), limit: "expected 0 to 1" })
}

/// Reads the model, without the weights in its list of inputs.
fn read_model(config: &DetectorConfig) -> Result<Vec<u8>, DetectorError> {
    let path = &config.model;
    let unreadable = |source| DetectorError::ModelUnreadable { path: path.clone(), source };
    let corrupt = |reason| DetectorError::ModelCorrupt { path: path.clone(), reason };
    let bytes = fs::metadata(path)
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(config),
            _ => unreadable(e),
        })?
        .len();
    if bytes > MAX_MODEL_BYTES {
        return Err(corrupt(format!("it has {bytes} bytes, at most {MAX_MODEL_BYTES} are read")));
    }
    let model = fs::read(path).map_err(unreadable)?;
    onnx_strip::strip(&model).map_err(|e| corrupt(e.to_string()))
}

fn missing(config: &DetectorConfig) -> DetectorError {
    let path = &config.model;
    DetectorError::ModelMissing {
        name: path.display().to_string(),
        file: path.file_name().unwrap_or_default().display().to_string(),
        searched: path.parent().unwrap_or(path).display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ort::value::Tensor;

    use super::*;
    use crate::engine;

    /// The published file and the stripped one compute the same function.
    #[test]
    fn a_stripped_model_has_the_outputs_of_the_published_one() {
        let hints = [facepipe_test_support::workspace_root()];
        let runtime = match runtime::load(&hints) {
            Ok(runtime) => runtime,
            Err(error) => return facepipe_test_support::skip(&error.to_string()),
        };
        for file in ["version-RFB-320", "version-slim-320", "version-RFB-640"] {
            let path = facepipe_test_support::require!(&format!("models/{file}.onnx"));
            let config = DetectorConfig { model: path.clone(), ..DetectorConfig::default() };
            let published = fs::read(&path).unwrap();
            let stripped = read_model(&config).unwrap();
            assert!(stripped.len() < published.len(), "{file} lists its weights as inputs");

            let answers = [published, stripped].map(|model| {
                let mut session = engine::build_session(runtime, &config, &model).unwrap();
                let (width, height) = engine::input_size(&config, session.inputs()).unwrap();
                // A pattern in -1 to 1 with edges in both directions.
                let pixels = (0..3 * width * height)
                    .map(|i| ((i % 97) as f32 / 48.0 - 1.0) * ((i / width) % 61) as f32 / 61.0)
                    .collect::<Vec<f32>>();
                let input = Tensor::from_array(([1, 3, height, width], pixels)).unwrap();
                let outputs = session.run(ort::inputs![&input]).unwrap();
                outputs
                    .iter()
                    .map(|(name, value)| {
                        (name.to_owned(), value.try_extract_tensor::<f32>().unwrap().1.to_vec())
                    })
                    .collect::<Vec<_>>()
            });
            let [published, stripped] = answers;
            assert_eq!(published.len(), 2);
            for ((name, expected), (stripped_name, got)) in published.iter().zip(&stripped) {
                assert_eq!(name, stripped_name);
                assert_eq!(expected.len(), got.len());
                for (expected, got) in expected.iter().zip(got) {
                    assert!((expected - got).abs() < 1e-4, "{file} {name}: {got}, expected {expected}");
                }
            }
        }
    }
}
