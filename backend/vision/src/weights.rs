//! Weights of networks: safetensors, read through a [`VarBuilder`]. Published files, such as PyTorch's `.pt`, are converted once by
//! `facepipe models fetch` or `facepipe models convert`, and are not read here.
//!
//! A file of weights is not trusted: every length is checked against the file before it is used.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Error, Shape, Tensor, safetensors::MmapedSafetensors};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use crate::{EmbedderKind, ModelError, Mtcnn};

/// The largest file that is read: 1 GiB. Inception-ResNet v1's has 107 MB.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// The extension of the files that are read.
pub const SAFETENSORS: &str = "safetensors";

/// Named tensors, all 32-bit floats. Those of other types (counters) are left out.
#[derive(Debug)]
pub struct Weights {
    origin: String,
    tensors: Tensors,
}

enum Tensors {
    Held(HashMap<String, Tensor>),
    /// In a file that is mapped into memory: a tensor takes memory only while a network is built from it.
    Mapped(MmapedSafetensors),
}

impl fmt::Debug for Tensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(tensors) => f.debug_set().entries(tensors.keys()).finish(),
            Self::Mapped(_) => f.write_str("a mapped file"),
        }
    }
}

impl Weights {
    /// Maps a safetensors file into memory for as long as the weights live. It must not be written to meanwhile; replace the file by
    /// renaming another.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Unreadable`], or [`ModelError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let origin = path.display().to_string();
        let malformed = |reason| ModelError::Malformed { origin: origin.clone(), reason };
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned(), published: None },
            _ => ModelError::Unreadable { path: path.to_owned(), source },
        };
        let file = fs::File::open(path).map_err(unreadable)?;
        let mut start = Vec::new();
        (&file).take(9).read_to_end(&mut start).map_err(unreadable)?;
        // The length of the header, at most 100 MB, and the JSON object that it is.
        if !matches!(*start, [_, _, _, _, 0, 0, 0, 0, b'{']) {
            return Err(malformed("it is not a safetensors file".to_owned()));
        }
        if file.metadata().map_err(unreadable)?.len() > MAX_FILE_BYTES {
            return Err(malformed(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        // SAFETY: the file is not written to while it is mapped, which the documentation above demands; the programs of this
        // project replace files of weights by renaming.
        let mapped = unsafe { MmapedSafetensors::new(path) };
        let mapped = mapped.map_err(|error| malformed(error.to_string()))?;
        Ok(Self { origin, tensors: Tensors::Mapped(mapped) })
    }

    /// Reads the safetensors in `models_dir` that the file `published` is converted to.
    ///
    /// # Errors
    ///
    /// Those of [`find`] and [`Self::read`].
    pub(crate) fn installed(models_dir: &Path, published: &str) -> Result<Self, ModelError> {
        Self::read(&find(models_dir, published)?)
    }

    /// Builds it from tensors in memory; `origin` names them in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Layout`] where candle cannot convert one to 32-bit floats.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        origin: &str,
    ) -> Result<Self, ModelError> {
        let tensors = tensors
            .into_iter()
            .filter(|(_, tensor)| tensor.dtype().is_float())
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self { origin: origin.to_owned(), tensors: Tensors::Held(tensors) })
    }

    /// Returns a builder for `candle_nn` modules on `device`.
    pub fn var_builder(&self, device: &Device) -> VarBuilder<'_> {
        VarBuilder::from_backend(Box::new(TensorSource(self)), DType::F32, device.clone())
    }

    /// Returns the error of a module that was built from these weights.
    pub(crate) fn error(&self, error: Error) -> ModelError {
        let origin = self.origin.clone();
        match error {
            Error::CannotFindTensor { path: name } => ModelError::NoTensor { origin, name },
            Error::UnexpectedShape { msg: name, expected, got } => {
                let (expected, found) = (expected.into_dims(), got.into_dims());
                ModelError::TensorShape { origin, name, expected, found }
            }
            Error::WithBacktrace { inner, .. }
            | Error::WithPath { inner, .. }
            | Error::Context { inner, .. } => self.error(*inner),
            other => ModelError::Layout(other),
        }
    }

    /// Returns the tensor `name`, which must have this shape.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoTensor`], [`ModelError::TensorShape`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let (origin, name) = (self.origin.clone(), name.to_owned());
        let wrong_shape = |name, found: &[usize]| {
            let (expected, found) = (shape.to_vec(), found.to_vec());
            Err(ModelError::TensorShape { origin: self.origin.clone(), name, expected, found })
        };
        match &self.tensors {
            Tensors::Held(tensors) => match tensors.get(&name) {
                Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
                Some(tensor) => wrong_shape(name, tensor.dims()),
                None => Err(ModelError::NoTensor { origin, name }),
            },
            Tensors::Mapped(file) => match file.get(&name).map(|view| view.shape().to_vec()) {
                Ok(found) if found != shape => wrong_shape(name, &found),
                Ok(_) => match file.load(&name, &Device::Cpu)? {
                    tensor if tensor.dtype().is_float() => Ok(tensor.to_dtype(DType::F32)?),
                    _ => Err(ModelError::NoTensor { origin, name }),
                },
                Err(_) => Err(ModelError::NoTensor { origin, name }),
            },
        }
    }

    /// Returns the names of all tensors, in no particular order; of a mapped file also those that are not floats.
    pub fn names(&self) -> Vec<String> {
        match &self.tensors {
            Tensors::Held(tensors) => tensors.keys().cloned().collect(),
            Tensors::Mapped(file) => file.tensors().into_iter().map(|(name, _)| name).collect(),
        }
    }
}

/// Weights as a source of a [`VarBuilder`]. Its errors are those that [`Weights::error`] understands.
struct TensorSource<'a>(&'a Weights);

impl SimpleBackend for TensorSource<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self.0.get(name, shape.dims()) {
            Ok(tensor) => tensor.to_dtype(dtype)?.to_device(device),
            Err(ModelError::NoTensor { name, .. }) => Err(Error::CannotFindTensor { path: name }),
            Err(ModelError::TensorShape { name, expected, found, .. }) => {
                Err(Error::UnexpectedShape { msg: name, expected: expected.into(), got: found.into() })
            }
            Err(other) => Err(Error::msg(other)),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        // Every layer states the shapes of its tensors.
        Err(Error::CannotFindTensor { path: name.to_owned() })
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match &self.0.tensors {
            Tensors::Held(tensors) => tensors.contains_key(name),
            Tensors::Mapped(file) => file.get(name).is_ok(),
        }
    }
}

/// Returns the names of the published files of all networks, which are converted to the safetensors of the same names.
pub fn published_files() -> [&'static str; 6] {
    let [pnet, rnet, onet] = Mtcnn::PUBLISHED_FILES;
    let [inception_resnet_v1, mobilefacenet, dlib_resnet] =
        EmbedderKind::ALL.map(EmbedderKind::published_file);
    [pnet, rnet, onet, inception_resnet_v1, mobilefacenet, dlib_resnet]
}

/// Returns the path of the safetensors in `models_dir` that the file `published` is converted to, whether they exist or not.
pub fn safetensors_path(models_dir: &Path, published: &str) -> PathBuf {
    models_dir.join(published).with_extension(SAFETENSORS)
}

/// Finds the safetensors in `models_dir` that the file `published` is converted to.
///
/// # Errors
///
/// [`ModelError::Unconverted`] where only the published file is there; [`ModelError::Missing`] where neither is.
pub fn find(models_dir: &Path, published: &str) -> Result<PathBuf, ModelError> {
    let path = safetensors_path(models_dir, published);
    if path.exists() {
        return Ok(path);
    }
    let original = models_dir.join(published);
    Err(if original.exists() {
        ModelError::Unconverted { published: original, path, models_dir: models_dir.to_owned() }
    } else {
        ModelError::Missing { path, published: Some(published.to_owned()) }
    })
}

/// Returns whether the file `published` in `models_dir` is newer than its safetensors, which are then of an earlier file.
pub fn is_outdated(models_dir: &Path, published: &str) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let safetensors = modified(&safetensors_path(models_dir, published));
    let published = modified(&models_dir.join(published));
    published.zip(safetensors).is_some_and(|(published, safetensors)| published > safetensors)
}
