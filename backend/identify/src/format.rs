//! The stored form of a model, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `FPMODEL\0` |
//! | 2 | format version |
//! | 8 | length of the payload |
//! | n | payload, see [`Model::to_bytes`](crate::Model::to_bytes) |
//! | 32 | SHA-256 of everything before |

use sha2::{Digest, Sha256};

use crate::{IdentifyError, matrix::Matrix};

/// The highest format version that [`Model::from_bytes`](crate::Model::from_bytes) reads; it also reads all lower ones.
/// [`Model::to_bytes`](crate::Model::to_bytes) writes the lowest version that can represent the model, so that older builds
/// can read it where possible: 1 by [`Solver::Smo`](crate::Solver::Smo), 2 by
/// [`Solver::DualCoordinateDescent`](crate::Solver::DualCoordinateDescent), 3 of [`NearestMean`](crate::NearestMean).
pub const FORMAT_VERSION: u16 = 3;

const MAGIC: &[u8; 8] = b"FPMODEL\0";
const DIGEST_LENGTH: usize = 32;

/// Wraps a payload with magic, version, length and checksum.
pub(crate) fn seal(version: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAGIC.len() + 2 + 8 + payload.len() + DIGEST_LENGTH);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(payload);
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    out
}

/// Checks magic, version, length and checksum of sealed bytes, and returns the payload.
pub(crate) fn unseal(bytes: &[u8]) -> Result<&[u8], IdentifyError> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len()).ok() != Some(MAGIC.as_slice()) {
        return Err(corrupt("no facepipe model (it does not start with FPMODEL)"));
    }
    // The version is checked before the checksum, which other versions may compute otherwise; its error is also more
    // useful.
    let found = reader.u16()?;
    if !(1..=FORMAT_VERSION).contains(&found) {
        return Err(IdentifyError::Version { found, supported: FORMAT_VERSION });
    }
    let declared = reader.u64()?;
    let payload_and_digest = reader.rest();
    let expected = usize::try_from(declared).ok().and_then(|n| n.checked_add(DIGEST_LENGTH));
    if expected != Some(payload_and_digest.len()) {
        return Err(IdentifyError::Corrupt(format!(
            "{} bytes follow the header, which declares {declared} and {DIGEST_LENGTH} of checksum: cut off or damaged",
            payload_and_digest.len()
        )));
    }
    let split = payload_and_digest.len() - DIGEST_LENGTH;
    let (payload, digest) = payload_and_digest.split_at(split);
    let covered = bytes.len() - DIGEST_LENGTH;
    if Sha256::digest(bytes.get(..covered).unwrap_or_default()).as_slice() != digest {
        return Err(corrupt("the checksum does not match: damaged"));
    }
    Ok(payload)
}

/// Appends a length-prefixed (`u16`) string of at most 65,535 bytes; names are checked to be far shorter.
pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes().get(..usize::from(length)).unwrap_or_default());
}

/// Appends numbers without a length.
pub(crate) fn put_f32s(out: &mut Vec<u8>, values: &[f32]) {
    let start = out.len();
    out.resize(start + size_of_val(values), 0);
    let (to, _) = out.get_mut(start..).unwrap_or_default().as_chunks_mut::<4>();
    for (to, value) in to.iter_mut().zip(values) {
        *to = value.to_le_bytes();
    }
}

/// Reads values from the front of a payload. Every read checks the remaining length, so no length in the bytes is trusted.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], IdentifyError> {
        let (front, back) = self.bytes.split_at_checked(length).ok_or_else(|| {
            IdentifyError::Corrupt(format!("cut off: {length} bytes expected, {} left", self.bytes.len()))
        })?;
        self.bytes = back;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], IdentifyError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, IdentifyError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, IdentifyError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, IdentifyError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a `u32` that counts something in memory.
    pub(crate) fn count(&mut self) -> Result<usize, IdentifyError> {
        usize::try_from(self.u32()?).map_err(|_| corrupt("a count exceeds this machine's address space"))
    }

    fn u64(&mut self) -> Result<u64, IdentifyError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a finite double.
    pub(crate) fn f64(&mut self) -> Result<f64, IdentifyError> {
        let value = f64::from_le_bytes(self.array()?);
        if value.is_finite() { Ok(value) } else { Err(corrupt("a number is not finite")) }
    }

    /// Fills `to` with finite singles.
    pub(crate) fn f32s(&mut self, to: &mut [f32]) -> Result<(), IdentifyError> {
        read_f32s(self.take(size_of_val(to))?, to)
    }

    /// Reads a matrix of finite singles.
    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Result<Matrix, IdentifyError> {
        // The bytes are taken before memory is allocated for them.
        let length = rows.checked_mul(columns).and_then(|count| count.checked_mul(4));
        let bytes = self.take(length.ok_or_else(|| corrupt("a length is impossible"))?)?;
        let mut matrix = Matrix::zeros(rows, columns);
        for (to, from) in matrix.iter_mut().zip(bytes.chunks_exact((columns * 4).max(1))) {
            read_f32s(from, to)?;
        }
        Ok(matrix)
    }

    /// Returns the number of bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, IdentifyError> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(usize::from(length))?).map_err(|_| corrupt("a name is not UTF-8"))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn finish(self) -> Result<(), IdentifyError> {
        match self.bytes.len() {
            0 => Ok(()),
            n => Err(IdentifyError::Corrupt(format!("{n} bytes too many"))),
        }
    }
}

fn read_f32s(bytes: &[u8], to: &mut [f32]) -> Result<(), IdentifyError> {
    for (to, from) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = f32::from_le_bytes(*from);
    }
    if to.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(corrupt("a number is not finite")) }
}

pub(crate) fn corrupt(problem: &str) -> IdentifyError {
    IdentifyError::Corrupt(problem.into())
}
