//! Checks a file on disk against the manifest.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use facepipe_shared::hex;
use sha2::{Digest, Sha256};

use super::manifest::Expected;

/// State of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is no file.
    Missing,
    /// The expected file or, without a pinned hash, one of the right format.
    Right {
        /// Its hash, lower-case hexadecimal.
        sha256: String,
    },
    /// A different file.
    Wrong {
        /// Expected and found value.
        problem: String,
    },
}

/// First bytes of torch files: a zip archive since 1.6, before that a pickle that starts with a magic number
/// (protocol 2, then the ten-byte integer 0x1950a86a20f9469cfc6c).
const TORCH_HEADS: [&[u8]; 2] = [b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"];

/// Byte of a safetensors file after the eight bytes of its header length.
const SAFETENSORS_HEAD: u8 = b'{';

/// Compares size and hash or, without a pinned hash, the first bytes of the file.
pub fn check(path: &Path, expected: &Expected) -> io::Result<State> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Missing),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?.len();
    if let Some(bytes) = expected.bytes
        && bytes != found
    {
        return Ok(State::Wrong { problem: format!("expected {bytes} bytes, found {found}") });
    }

    let mut hasher = Sha256::new();
    let mut head = Vec::new();
    let mut block = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut block)?;
        let read = block.get(..length).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        if head.is_empty() {
            head = read.iter().copied().take(16).collect();
        }
        hasher.update(read);
    }
    let sha256 = hex(&hasher.finalize());

    Ok(match &expected.sha256 {
        Some(pinned) if *pinned != sha256 => {
            State::Wrong { problem: format!("expected sha256 {pinned}, found {sha256}") }
        }
        None if !is_weights(&head) => State::Wrong {
            problem: format!("expected a torch or safetensors file, found another kind ({found} bytes)"),
        },
        _ => State::Right { sha256 },
    })
}

fn is_weights(head: &[u8]) -> bool {
    TORCH_HEADS.iter().any(|torch| head.starts_with(torch)) || head.get(8) == Some(&SAFETENSORS_HEAD)
}
