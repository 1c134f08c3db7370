//! SHA-256 in hexadecimal.

use facepipe_shared::hex;
use sha2::{Digest, Sha256};

/// Returns the SHA-256 of `bytes` as 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
