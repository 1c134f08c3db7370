//! `face_recognition_model.bin` of the npm package `@vladmandic/face-api` 1.7.15: dlib's face recognition network, quantised.

mod layout;

use candle_core::{Device, Result, Tensor};
use facepipe_shared::hex;
use sha2::{Digest, Sha256};

use layout::{CONVOLUTIONS, FC_STORAGE};

/// SHA-256 of the only file that [`layout`] describes.
const SHA256: &str = "b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589";

/// The file's name in errors.
const PACKAGE: &str = "face_recognition_model.bin of the npm package @vladmandic/face-api 1.7.15";

/// The encoding of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Storage {
    /// One byte per value: `min + scale * byte`.
    Quantized { scale: f64, min: f64 },
    /// Little-endian 32-bit floats.
    Float,
}

impl Storage {
    const fn bytes(self) -> usize {
        match self {
            Self::Quantized { .. } => 1,
            Self::Float => 4,
        }
    }

    fn tensor(self, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "single precision is what the networks compute in"
        )]
        let values: Vec<f32> = match self {
            Self::Quantized { scale, min } => {
                bytes.iter().map(|&byte| (min + scale * f64::from(byte)) as f32).collect()
            }
            Self::Float => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// Returns the name, shape and encoding of each tensor, in the order of the file. Weights are
/// `[rows, columns, in, out]` or `[in, out]`.
fn tensors() -> impl Iterator<Item = (String, Vec<usize>, Storage)> {
    let parts = ["conv.weight", "conv.bias", "scale.weight", "scale.bias"];
    let convolutions = CONVOLUTIONS.into_iter().flat_map(move |stored| {
        parts.into_iter().zip(stored.storage).enumerate().map(move |(part, (name, storage))| {
            let filters = vec![stored.side, stored.side, stored.c_in, stored.c_out];
            let shape = if part == 0 { filters } else { vec![stored.c_out] };
            (format!("{}.{name}", stored.name.replace('/', ".")), shape, storage)
        })
    });
    convolutions.chain([("fc.weight".to_owned(), vec![256, 128], FC_STORAGE)])
}

/// Decodes the file to tensors in PyTorch's layout: weights as `[out, in, rows, columns]` or `[out, in]`. Any other file is an
/// error: its values mean nothing without the scales that belong to it.
pub(super) fn read(bytes: &[u8]) -> std::result::Result<Vec<(String, Tensor)>, String> {
    let size: usize =
        tensors().map(|(_, shape, storage)| shape.iter().product::<usize>() * storage.bytes()).sum();
    if bytes.len() != size {
        let cut = if bytes.len() < size { "; it was cut off, or is another" } else { "" };
        return Err(format!("it has {} bytes, {PACKAGE} has {size}{cut}", bytes.len()));
    }
    let found = hex(&Sha256::digest(bytes));
    if found != SHA256 {
        return Err(format!(
            "it is damaged or another: its SHA-256 is {found}, that of {PACKAGE} is {SHA256}"
        ));
    }
    let mut rest = bytes;
    let mut read = Vec::new();
    for (name, shape, storage) in tensors() {
        let length = shape.iter().product::<usize>() * storage.bytes();
        let (values, after) =
            rest.split_at_checked(length).ok_or_else(|| format!("it ends in tensor `{name}`"))?;
        let tensor = storage.tensor(values, &shape).and_then(|tensor| pytorch_layout(&tensor));
        read.push((name, tensor.map_err(|error| error.to_string())?));
        rest = after;
    }
    Ok(read)
}

fn pytorch_layout(tensor: &Tensor) -> Result<Tensor> {
    match tensor.rank() {
        4 => tensor.permute((3, 2, 0, 1))?.contiguous(),
        2 => tensor.t()?.contiguous(),
        _ => Ok(tensor.clone()),
    }
}
