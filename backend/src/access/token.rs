//! Tokens that the server makes: `fp_`, 32 random bytes in hexadecimal digits, and 8 check digits, by which a mistyped
//! token is found without the database.

use std::time::Duration;

use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::PrincipalKind;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// The prefix, by which people and scanners for leaked secrets recognise a token.
const PREFIX: &str = "fp_";
/// Random bytes: too many to guess.
const RANDOM_BYTES: usize = 32;
/// Bytes that the check digits stand for.
const CHECK_BYTES: usize = 4;

/// How long a token of a camera is valid unless somebody says otherwise.
const CAMERA_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a token of a person or program is valid unless somebody says otherwise.
const PERSON_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Returns how long a token of a principal of this kind is valid unless somebody says otherwise.
pub fn token_lifetime(kind: PrincipalKind) -> Duration {
    if kind == PrincipalKind::Camera { CAMERA_LIFETIME } else { PERSON_LIFETIME }
}

/// Makes a token of cryptographically secure random bytes.
pub fn new_token() -> String {
    let body = format!("{PREFIX}{}", hex(&rand::random::<[u8; RANDOM_BYTES]>()));
    format!("{body}{}", check_digits(&body))
}

/// Returns the digest by which a token is known.
pub fn digest_of(token: impl AsRef<[u8]>) -> Digest {
    Sha256::digest(token).into()
}

/// Returns whether a text claims to be a token of this form.
pub fn has_prefix(token: &str) -> bool {
    token.starts_with(PREFIX)
}

/// Returns whether a token's length and check digits are right.
pub fn is_well_formed(token: &str) -> bool {
    let length = PREFIX.len() + 2 * (RANDOM_BYTES + CHECK_BYTES);
    token.len() == length
        && token
            .split_at_checked(length - 2 * CHECK_BYTES)
            .is_some_and(|(body, check)| bool::from(check_digits(body).as_bytes().ct_eq(check.as_bytes())))
}

/// Returns the first digits of the digest of a token's beginning.
fn check_digits(body: &str) -> String {
    hex(Sha256::digest(body).first_chunk::<CHECK_BYTES>().unwrap_or(&[0; CHECK_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_another_one_and_a_typo_is_found() {
        let token = new_token();
        assert_eq!((token.len(), &token[..3]), (75, "fp_"));
        assert!(is_well_formed(&token) && has_prefix(&token) && token != new_token());
        for at in 3..token.len() {
            let mut mistyped = token.clone();
            let other = if &token[at..=at] == "0" { "1" } else { "0" };
            mistyped.replace_range(at..=at, other);
            assert!(!is_well_formed(&mistyped), "{at}");
        }
        for wrong in ["", "fp_", &token[1..], &token[..74], &format!("{token}0"), &token.to_uppercase()] {
            assert!(!is_well_formed(wrong), "{wrong}");
        }
        assert!(!is_well_formed(&format!("fp_{}ß", &token[5..])));
    }
}
