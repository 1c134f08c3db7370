//! Pagination: page sizes and cursors.

use paperclip::actix::Apiv2Schema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::ApiError;

/// Maximum number of entries in a page.
pub const MAX_LIMIT: u32 = 1000;
/// Default number of entries in a page.
pub const LIST_LIMIT: u32 = 100;

/// Metadata of a page.
#[derive(Serialize, Apiv2Schema)]
pub struct PageMeta {
    /// The `cursor` of the next page. Null on the last one.
    #[openapi(example = "000617c5a5b3a6d0000000000000002ac3d9f0a1b2c4d5e6")]
    pub next_cursor: Option<String>,
}

/// Reads the page size of a query.
pub fn limit_of(text: String) -> Result<u32, ApiError> {
    // A whole number too large for the type is out of range, not unreadable.
    let digits = text.strip_prefix('-').unwrap_or(&text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ApiError::InvalidQuery(format!("limit is {text:?}, it must be a whole number")));
    }
    match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(ApiError::LimitOutOfRange { limit: text, max: MAX_LIMIT }),
    }
}

/// Cuts rows to a page of `limit`; the caller has read one row more, if there is one. Returns whether there is a next
/// page.
pub fn cut<T>(mut rows: Vec<T>, limit: u32) -> (Vec<T>, bool) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    (rows, more)
}

/// Joins two numbers, 64 bits each, to a position: the key by which a list is ordered, and the row.
pub fn joined(first: i64, second: i64) -> u128 {
    u128::from(first.cast_unsigned()) << 64 | u128::from(second.cast_unsigned())
}

/// Splits a position that [`joined`] returned into its numbers.
#[expect(clippy::cast_possible_truncation, reason = "the other half is cut off")]
pub fn halves(position: u128) -> (i64, i64) {
    (((position >> 64) as u64).cast_signed(), (position as u64).cast_signed())
}

/// Encodes a position: 32 hexadecimal digits, and 16 of a checksum over them and the query, so that a cursor of another
/// query is rejected.
pub fn cursor_of(position: u128, scope: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(format!("{position:032x} {scope}")).into();
    let check = digest.first_chunk().copied().map_or(0, u64::from_be_bytes);
    format!("{position:032x}{check:016x}")
}

/// Returns the position of a cursor that [`cursor_of`] created for the same query; `None` for every other text.
pub fn position_of(cursor: &str, scope: &str) -> Option<u128> {
    let position = u128::from_str_radix(cursor.get(..32)?, 16).ok()?;
    (cursor_of(position, scope) == cursor).then_some(position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_leads_back_to_its_position_in_its_query_only() {
        for position in [0, 1, 1 << 64, u128::MAX] {
            let cursor = cursor_of(position, "a");
            assert_eq!((cursor.len(), position_of(&cursor, "a")), (48, Some(position)));
            assert_eq!(position_of(&cursor, "b"), None);
        }
        for wrong in ["", "x", "\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}\u{e4}", &"0".repeat(48)] {
            assert_eq!(position_of(wrong, "a"), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_two_numbers_are_read_back(first: i64, second: i64) {
            prop_assert_eq!(halves(joined(first, second)), (first, second));
        }

        #[test]
        fn every_cursor_leads_back_to_its_position_in_its_scope_only(
            position: u128,
            scope in ".{0,20}",
            other in ".{0,20}",
        ) {
            let cursor = cursor_of(position, &scope);
            prop_assert_eq!(position_of(&cursor, &scope), Some(position));
            prop_assert_eq!(position_of(&cursor, &other).is_some(), scope == other);
        }

        #[test]
        fn a_modified_cursor_is_refused(position: u128, at in 0_usize..48, digit in "[0-9a-fA-Fg+ ]") {
            let cursor = cursor_of(position, "scope");
            let modified = format!("{}{digit}{}", &cursor[..at], &cursor[at + 1..]);
            prop_assert_eq!(position_of(&modified, "scope").is_some(), modified == cursor);
        }

        #[test]
        fn any_other_text_is_no_cursor(text in "\\PC{0,60}|[0-9a-f]{48}") {
            prop_assert_eq!(position_of(&text, "scope"), None);
        }
    }
}
