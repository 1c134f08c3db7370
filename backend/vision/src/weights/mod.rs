//! Files of weights, by their content: PyTorch's `.pt` in both its forms, safetensors, and ONNX.
//!
//! A file of weights comes from elsewhere and is not trusted: nothing in it is executed, no length in it is believed
//! before it has been held against the bytes that are there, and what it may make us allocate is bounded.

pub mod onnx;
mod torch;

use std::{collections::HashMap, fs, io::Read, path::Path};

use candle_core::{DType, Device, Tensor};

use crate::{ModelError, layers::Engine};

/// The largest file that is read: 1 GiB. Inception-ResNet v1's has 107 MB.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// The most that the tensors of one file may need together, as 32-bit floats: 1 GiB.
pub const MAX_TENSOR_BYTES: u64 = 1 << 30;

/// Named tensors, all 32-bit floats. Those of other kinds (counters) are left out.
#[derive(Debug)]
pub struct Weights {
    origin: String,
    tensors: HashMap<String, Tensor>,
    engine: Engine,
}

impl Weights {
    /// Reads a `.pt` (zip, or the older form without) or safetensors file.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Unreadable`], or [`ModelError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_bytes(&read_file(path)?, &path.display().to_string())
    }

    /// As [`Self::read`], of bytes that are there already; `origin` names them in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Malformed`].
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, ModelError> {
        let tensors = match bytes {
            [b'P', b'K', 3, 4, ..] => torch::read_zip(bytes),
            [0x80, 2, ..] => torch::read_legacy(bytes),
            // Eight bytes of length, then a JSON object.
            [_, _, _, _, _, _, _, _, b'{', ..] => read_safetensors(bytes),
            _ => Err("it is neither a PyTorch state dict nor safetensors".to_owned()),
        };
        let tensors =
            tensors.map_err(|reason| ModelError::Malformed { origin: origin.to_owned(), reason })?;
        Self::from_tensors(tensors, origin)
    }

    /// Takes tensors that are there already; `origin` names them in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Layout`] where candle cannot make 32-bit floats of one.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        origin: &str,
    ) -> Result<Self, ModelError> {
        let tensors = tensors
            .into_iter()
            .filter(|(_, tensor)| tensor.dtype().is_float())
            .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self { origin: origin.to_owned(), tensors, engine: Engine::Own })
    }

    /// Has the networks that are made of these weights run by candle's own operations on `device`, rather than by the
    /// kernels of this crate on the processor: on `Device::new_cuda(0)?`, which there is with the feature `cuda`. On
    /// `Device::Cpu` they give the same and take several times as long.
    #[must_use]
    pub fn on(mut self, device: &Device) -> Self {
        self.engine = Engine::Candle(device.clone());
        self
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tensor called `name`, if it has the shape that is wanted.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoTensor`], [`ModelError::TensorShape`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let (origin, name) = (self.origin.clone(), name.to_owned());
        match self.tensors.get(&name) {
            Some(tensor) if tensor.dims() == shape => Ok(tensor.clone()),
            Some(tensor) => {
                let found = tensor.dims().to_vec();
                Err(ModelError::TensorShape { origin, name, expected: shape.to_vec(), found })
            }
            None => Err(ModelError::NoTensor { origin, name }),
        }
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// The whole of a file of at most [`MAX_FILE_BYTES`].
fn read_file(path: &Path) -> Result<Vec<u8>, ModelError> {
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing { path: path.to_owned() },
        _ => ModelError::Unreadable { path: path.to_owned(), source },
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(ModelError::Malformed { origin: path.display().to_string(), reason });
    }
    Ok(bytes)
}

fn read_safetensors(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    // Its header is bounded, and its tensors may not overlap, so they need no more than the file has.
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| e.to_string())?;
    Ok(tensors.into_iter().collect())
}

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// Whole numbers or truth values, of this many bytes: no weights, passed over.
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

    /// A tensor of this kind out of little-endian bytes; `None` for what holds no weights.
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

/// Elements in a tensor of `shape`, if its bytes as 32-bit floats still fit into `budget`, which they are taken from.
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
