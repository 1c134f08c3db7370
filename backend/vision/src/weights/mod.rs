//! Files of weights. Networks read safetensors, through a [`VarBuilder`]; [`convert`] makes these of the published files:
//! PyTorch's `.pt` in both its formats, ONNX, and dlib's network as an npm package has it. Published files are also read
//! directly, at the cost of a conversion in memory at each start.
//!
//! A file of weights is not trusted: nothing in it is executed, every length is checked against the file before it is used,
//! and allocations are bounded.

mod dlib;
mod onnx;
mod torch;

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Error, Shape, Tensor, safetensors::MmapedSafetensors};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use crate::ModelError;

/// The largest file that is read: 1 GiB. Inception-ResNet v1's has 107 MB.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// The most that the tensors of one file may need together, as 32-bit floats: 1 GiB.
pub const MAX_TENSOR_BYTES: u64 = 1 << 30;

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
    /// Reads a safetensors file, or a published file of weights: `.pt` (zip, or the legacy format), `.onnx`, or dlib's `.bin`.
    /// Safetensors are mapped into memory for as long as the weights live, and must not be written to meanwhile; replace the file
    /// by renaming another.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Unreadable`], or [`ModelError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let origin = path.display().to_string();
        let file = open(path)?;
        let mut start = Vec::new();
        (&file).take(9).read_to_end(&mut start).map_err(|e| unreadable(path, e))?;
        let format = Format::of(&start);
        if format != Some(Format::Safetensors) {
            let format = format.or_else(|| Format::of_extension(path));
            return Self::from_format(format, &read_file(path)?, &origin);
        }
        let size = file.metadata().map_err(|e| unreadable(path, e))?.len();
        if size > MAX_FILE_BYTES {
            return Err(too_large(path));
        }
        // SAFETY: the file is not written to while it is mapped, which the documentation above demands; the programs of this
        // project replace files of weights by renaming.
        let mapped = unsafe { MmapedSafetensors::new(path) };
        let mapped =
            mapped.map_err(|e| ModelError::Malformed { origin: origin.clone(), reason: e.to_string() })?;
        Ok(Self { origin, tensors: Tensors::Mapped(mapped) })
    }

    /// As [`Self::read`], from the bytes of a `.pt`, ONNX or safetensors file; `origin` names them in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Malformed`].
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, ModelError> {
        Self::from_format(Format::of(bytes), bytes, origin)
    }

    fn from_format(format: Option<Format>, bytes: &[u8], origin: &str) -> Result<Self, ModelError> {
        let tensors = match format {
            Some(Format::TorchZip) => torch::read_zip(bytes),
            Some(Format::TorchLegacy) => torch::read_legacy(bytes),
            Some(Format::Onnx) => onnx::read(bytes),
            Some(Format::Dlib) => dlib::read(bytes),
            Some(Format::Safetensors) => read_safetensors(bytes),
            None => Err("it is neither a PyTorch state dict, nor ONNX, nor safetensors".to_owned()),
        };
        let tensors =
            tensors.map_err(|reason| ModelError::Malformed { origin: origin.to_owned(), reason })?;
        Self::from_tensors(tensors, origin)
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

/// Returns the safetensors that [`convert`] made beside a published file, if they are whole and the published file has not
/// changed since.
pub fn converted(published: &Path) -> Option<PathBuf> {
    let safetensors = published.with_extension("safetensors");
    let modified = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    let is_current = modified(published).is_some_and(|time| modified(&safetensors) == Some(time));
    // Of a mapped file, this compares the header with the length.
    (is_current && Weights::read(&safetensors).is_ok()).then_some(safetensors)
}

/// Returns the file to read in `models_dir`: the [`converted`] one, else the published one, and safetensors alone if the
/// published file is missing.
pub(crate) fn weights_file(models_dir: &Path, published: &str) -> PathBuf {
    let published = models_dir.join(published);
    let safetensors = published.with_extension("safetensors");
    if !published.is_file() && safetensors.is_file() {
        return safetensors;
    }
    converted(&published).unwrap_or(published)
}

/// Converts the published file `from` to safetensors, which are mapped into memory, where other formats are converted at every
/// start. `to` is written atomically, with the permissions of `from`, and with its time of modification, by which
/// [`converted`] knows what it was made of.
///
/// # Errors
///
/// Those of [`Weights::read`]; [`ModelError::Unwritable`].
pub fn convert(from: &Path, to: &Path) -> Result<(), ModelError> {
    // Before the tensors: a file that is replaced meanwhile has another time.
    let original = fs::metadata(from).map_err(|error| unreadable(from, error))?;
    let weights = Weights::read(from)?;
    let Tensors::Held(tensors) = weights.tensors else { return Ok(()) };
    let unwritable = |source: io::Error| ModelError::Unwritable { path: to.to_owned(), source };
    let part = to.with_extension(format!("{}.part", std::process::id()));
    let written = candle_core::safetensors::save(&tensors, &part)
        .map_err(|error| unwritable(io::Error::other(error.to_string())))
        .and_then(|()| finish(&part, &original).map_err(unwritable))
        .and_then(|()| fs::rename(&part, to).map_err(unwritable));
    if written.is_err() {
        // A partial file is useless; a failure to remove it adds nothing to the first error.
        let _ = fs::remove_file(&part);
    }
    written
}

/// Gives a written file what it has from the original, and puts it on the disk. The safetensors library makes files that only
/// their owner may read, while a server usually has a user of its own.
fn finish(part: &Path, original: &fs::Metadata) -> io::Result<()> {
    let file = fs::File::options().write(true).open(part)?;
    file.set_modified(original.modified()?)?;
    file.set_permissions(original.permissions())?;
    file.sync_all()
}

/// The format of a file of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    TorchZip,
    TorchLegacy,
    Onnx,
    Dlib,
}

impl Format {
    /// Recognises a format by the first nine bytes of a file.
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [b'P', b'K', 3, 4, ..] => Some(Self::TorchZip),
            // A pickle of protocol 2.
            [0x80, 2, ..] => Some(Self::TorchLegacy),
            // The length of the header, at most 100 MB, and the JSON object that it is.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Some(Self::Safetensors),
            // Field 1, the version of the format, which writers put first.
            [0x08, ..] => Some(Self::Onnx),
            _ => None,
        }
    }

    /// The format that a file's extension stands for, where its bytes do not say.
    fn of_extension(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            // dlib's file has no signature; its reader accepts that one file only, by its hash.
            "bin" => Some(Self::Dlib),
            // The fields may come in any order.
            "onnx" => Some(Self::Onnx),
            _ => None,
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> ModelError {
    match source.kind() {
        io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        _ => ModelError::Unreadable { path: path.to_owned(), source },
    }
}

fn too_large(path: &Path) -> ModelError {
    let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
    ModelError::Malformed { origin: path.display().to_string(), reason }
}

fn open(path: &Path) -> Result<fs::File, ModelError> {
    fs::File::open(path).map_err(|e| unreadable(path, e))
}

/// Returns the whole of a file of at most [`MAX_FILE_BYTES`].
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, ModelError> {
    let mut bytes = Vec::new();
    open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(path));
    }
    Ok(bytes)
}

fn read_safetensors(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    // Its header is bounded, and its tensors may not overlap, so they need no more than the file has.
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| e.to_string())?;
    Ok(tensors.into_iter().collect())
}

/// The type of the elements of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// Integers or booleans of this many bytes: not weights, skipped.
    Other(usize),
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(bytes) => bytes,
        }
    }

    /// Returns a tensor of this kind out of little-endian bytes; `None` for what holds no weights.
    fn tensor(self, bytes: &[u8], shape: &[usize]) -> Result<Option<Tensor>, String> {
        let dtype = match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Other(_) => return Ok(None),
        };
        Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu).map(Some).map_err(|e| e.to_string())
    }
}

/// Returns the number of elements of a tensor of `shape`, and subtracts their size as 32-bit floats from `budget`.
fn reserve(budget: &mut u64, shape: &[usize]) -> Result<usize, String> {
    if shape.contains(&0) {
        return Err(format!("it has the shape {shape:?}"));
    }
    let elements = shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side as u64));
    match elements.and_then(|n| n.checked_mul(4)).and_then(|bytes| budget.checked_sub(bytes)) {
        Some(left) => {
            let taken = (*budget - left) / 4;
            *budget = left;
            usize::try_from(taken).map_err(|e| e.to_string())
        }
        None => Err(format!("its tensors need more than {MAX_TENSOR_BYTES} bytes")),
    }
}
