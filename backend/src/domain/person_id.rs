//! Opaque ids of people, for URLs and wherever else a name must not appear.

use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

/// The id of a person: a UUID that stays the same when the person is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersonId(Uuid);

impl PersonId {
    /// Generates the id of a new person.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Derives the id of a person who was added, at `created_at` microseconds since 1970, before people had ids. It is a
    /// function of the row, so that it is the same after an older backup was restored.
    pub fn from_row(row: i64, created_at: i64) -> Self {
        let digest = Sha256::new()
            .chain_update(b"facepipe/person/")
            .chain_update(row.to_le_bytes())
            .chain_update(created_at.to_le_bytes())
            .finalize();
        let mut bytes = [0; 16];
        for (byte, of_digest) in bytes.iter_mut().zip(digest) {
            *byte = of_digest;
        }
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// Parses the hyphenated form, in lower or upper case. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let hyphenated = text.len() == 36;
        Uuid::try_parse(text).ok().filter(|_| hyphenated).map(Self)
    }
}

impl fmt::Display for PersonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_through_text() {
        let id = PersonId::new();
        assert_eq!(PersonId::parse(&id.to_string()), Some(id));
        assert_eq!(PersonId::parse(&id.to_string().to_uppercase()), Some(id));
        for other in
            ["", "7", "Ada", "{018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c}", "018f4c9a7b1e7c3d9a2f5d6e7f8a9b0c"]
        {
            assert_eq!(PersonId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_id_derived_from_a_row_is_stable() {
        assert_eq!(
            PersonId::from_row(7, 1_714_555_800_000_000),
            PersonId::from_row(7, 1_714_555_800_000_000)
        );
        assert_ne!(PersonId::from_row(7, 1), PersonId::from_row(8, 1));
        assert_ne!(PersonId::from_row(7, 1), PersonId::from_row(7, 2));
        let written = PersonId::from_row(7, 1).to_string();
        assert_eq!((written.len(), &written[14..15]), (36, "8"), "{written}");
    }
}
