//! Converts published weights to the safetensors that `facepipe-vision` reads: PyTorch's `.pt` in both its formats, ONNX, and
//! dlib's network as an npm package has it.
//!
//! The readers are used where weights are converted, by `facepipe models`, and by tests; the server has none of them.
//! A file of weights is not trusted: nothing in it is executed, every length is checked against the file before it is used, and
//! allocations are bounded.

mod dlib;
mod folder;
mod onnx;
mod torch;

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use facepipe_vision::weights::Weights;

pub use facepipe_vision::weights::MAX_FILE_BYTES;
pub use folder::{Conversion, ConvertedFile, LOCK_FILE, convert_folder};

/// The most that the tensors of one file may need together, as 32-bit floats: 1 GiB.
pub const MAX_TENSOR_BYTES: u64 = 1 << 30;

/// Why a file of weights could not be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The published file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The safetensors cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file has an unknown format, is damaged, or exceeds a limit.
    #[error("{origin} is not a usable file of weights: {reason}")]
    Malformed {
        /// The file, or the name given for the bytes.
        origin: String,
        /// The problem and its position.
        reason: String,
    },
}

/// Reads a file of weights: `.pt` (zip, or the legacy format), `.onnx`, dlib's `.bin`, or safetensors. Returns its tensors by name
/// as 32-bit floats; those that are not floats (counters) are left out.
///
/// # Errors
///
/// [`ConvertError::Unreadable`], or [`ConvertError::Malformed`].
pub fn read(path: &Path) -> Result<HashMap<String, Tensor>, ConvertError> {
    let bytes = read_file(path)?;
    let format = Format::of(&bytes).or_else(|| Format::of_extension(path));
    from_format(format, &bytes, &path.display().to_string())
}

/// Reads weights as [`read`] does, from the bytes of a file in any format but dlib's, which its bytes do not identify;
/// `origin` names them in errors.
///
/// # Errors
///
/// [`ConvertError::Malformed`].
pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<HashMap<String, Tensor>, ConvertError> {
    from_format(Format::of(bytes), bytes, origin)
}

fn from_format(
    format: Option<Format>,
    bytes: &[u8],
    origin: &str,
) -> Result<HashMap<String, Tensor>, ConvertError> {
    let tensors = match format {
        Some(Format::TorchZip) => torch::read_zip(bytes),
        Some(Format::TorchLegacy) => torch::read_legacy(bytes),
        Some(Format::Onnx) => onnx::read(bytes),
        Some(Format::Dlib) => dlib::read(bytes),
        Some(Format::Safetensors) => read_safetensors(bytes),
        None => Err("it is neither a PyTorch state dict, nor ONNX, nor safetensors".to_owned()),
    };
    let floats = tensors.and_then(|tensors| {
        tensors
            .into_iter()
            .filter(|(_, tensor)| tensor.dtype().is_float())
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32).map_err(|e| e.to_string())?)))
            .collect()
    });
    floats.map_err(|reason| ConvertError::Malformed { origin: origin.to_owned(), reason })
}

/// Converts the published file `from` to the safetensors `to`. Writes `to` atomically, with the permissions and the modification
/// time of `from`, by which [`is_converted`] recognises its source.
///
/// # Errors
///
/// Those of [`read`]; [`ConvertError::Unwritable`].
pub fn convert(from: &Path, to: &Path) -> Result<(), ConvertError> {
    // The times are read before the tensors: a file that is replaced meanwhile has another time.
    let original = fs::metadata(from).map_err(|source| unreadable(from, source))?;
    let tensors = read(from)?;
    let unwritable = |source: io::Error| ConvertError::Unwritable { path: to.to_owned(), source };
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

/// Gives a written file the times and permissions of the original, and syncs it to the disk. The safetensors library makes files
/// that only their owner may read, while a server usually has a user of its own.
fn finish(part: &Path, original: &fs::Metadata) -> io::Result<()> {
    let file = fs::File::options().write(true).open(part)?;
    file.set_modified(original.modified()?)?;
    file.set_permissions(original.permissions())?;
    file.sync_all()
}

/// Returns whether `safetensors` was made of `published` by [`convert`], is whole, and the published file has not changed since.
pub fn is_converted(published: &Path, safetensors: &Path) -> bool {
    let modified = |file: &Path| file.metadata().and_then(|file| file.modified()).ok();
    let is_current = modified(published).is_some_and(|time| modified(safetensors) == Some(time));
    // Reading a mapped file compares the header with the length.
    is_current && Weights::read(safetensors).is_ok()
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

    /// Returns the format that a file's extension stands for, where its bytes do not say.
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

fn unreadable(path: &Path, source: io::Error) -> ConvertError {
    ConvertError::Unreadable { path: path.to_owned(), source }
}

/// Returns the whole of a file of at most [`MAX_FILE_BYTES`].
fn read_file(path: &Path) -> Result<Vec<u8>, ConvertError> {
    let file = fs::File::open(path).map_err(|source| unreadable(path, source))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(ConvertError::Malformed { origin: path.display().to_string(), reason });
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

    /// Returns a tensor of this kind out of little-endian bytes; `None` for elements that are not weights.
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
