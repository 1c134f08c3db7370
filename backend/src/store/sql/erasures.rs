//! The ledger of erasures in the database: the rows that an older backup must not bring back.

use std::collections::HashSet;

use diesel::prelude::*;
use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

use super::{AnyConnection, Database, schema::erasures};
use crate::{
    domain::{Micros, now},
    store::StoreError,
};

/// Identifies a row among all rows that a deployment ever has, also after a restore has reset the sequence of ids,
/// independently of the person's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowIdentity {
    /// A person.
    Person {
        /// Row id.
        id: i64,
        /// The time of enrolment.
        created_at: Micros,
    },
    /// An enrolled image.
    Image {
        /// UUID.
        id: String,
    },
    /// A cluster of unknown faces, or one that was merged into it.
    Unknown {
        /// UUID.
        id: String,
    },
}

impl RowIdentity {
    /// Returns the SHA-256 digest with a salt, hexadecimal.
    pub fn digest(&self, salt: &str) -> String {
        let hash = Sha256::new().chain_update(salt);
        let hash = match self {
            Self::Person { id, created_at } => hash
                .chain_update(b"/person/")
                .chain_update(id.to_le_bytes())
                .chain_update(created_at.to_le_bytes()),
            Self::Image { id } => hash.chain_update(b"/image/").chain_update(id),
            Self::Unknown { id } => hash.chain_update(b"/unknown/").chain_update(id),
        };
        hex(&hash.finalize())
    }
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Queryable)]
pub struct Erasure {
    /// [`RowIdentity::digest`] of the erased row.
    pub digest: String,
    /// The salt, hexadecimal. A deployment has one, unless two processes wrote its first entries at the same time.
    pub salt: String,
    /// The time of the erasure.
    pub erased_at: Micros,
}

impl Database {
    /// Returns all entries of the ledger.
    ///
    /// # Errors
    /// The database fails.
    pub async fn erasures(&self) -> Result<Vec<Erasure>, StoreError> {
        self.read(|connection| Ok(erasures::table.load::<Erasure>(connection)?)).await
    }

    /// Adds the entries that are missing.
    ///
    /// # Errors
    /// The database fails.
    pub async fn add_erasures(&self, entries: Vec<Erasure>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let there: Vec<String> = erasures::table.select(erasures::digest).load(connection)?;
            let there: HashSet<String> = there.into_iter().collect();
            for entry in entries.iter().filter(|entry| !there.contains(&entry.digest)) {
                insert(connection, entry)?;
            }
            Ok(())
        })
        .await
    }
}

/// Adds an erasure to the ledger; part of the transaction that erases.
pub(super) fn record_erasure(
    connection: &mut AnyConnection,
    erased: &RowIdentity,
) -> Result<Erasure, StoreError> {
    let used: Option<String> = erasures::table
        .order(erasures::erased_at.desc())
        .select(erasures::salt)
        .first(connection)
        .optional()?;
    let salt = used.unwrap_or_else(|| hex(&rand::random::<[u8; 32]>()));
    let entry = Erasure { digest: erased.digest(&salt), salt, erased_at: now() };
    // The entry exists where an erasure is reapplied after a restore.
    let there: Option<Erasure> = erasures::table.find(&entry.digest).first(connection).optional()?;
    match there {
        Some(there) => Ok(there),
        None => {
            insert(connection, &entry)?;
            Ok(entry)
        }
    }
}

fn insert(connection: &mut AnyConnection, entry: &Erasure) -> Result<(), StoreError> {
    diesel::insert_into(erasures::table)
        .values((
            erasures::digest.eq(&entry.digest),
            erasures::salt.eq(&entry.salt),
            erasures::erased_at.eq(entry.erased_at),
        ))
        .execute(connection)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_stable_and_differ_by_row_and_salt() {
        let person = RowIdentity::Person { id: 3, created_at: 1_700_000_000_000_000 };
        // The ledger of every deployment has digests of this form: sha256("aa" "/person/" 3i64 1700000000000000i64).
        assert_eq!(person.digest("aa"), "95c6655c8afe5f4f48e31158ab111b34e39803f20d802f99b015450587ca2bee");
        let others = [
            person.digest("ab"),
            RowIdentity::Person { id: 4, created_at: 1_700_000_000_000_000 }.digest("aa"),
            RowIdentity::Person { id: 3, created_at: 1_700_000_000_000_001 }.digest("aa"),
            RowIdentity::Image { id: "3".into() }.digest("aa"),
            RowIdentity::Unknown { id: "3".into() }.digest("aa"),
        ];
        let distinct: HashSet<&String> = others.iter().collect();
        assert!(distinct.len() == 5 && !distinct.contains(&person.digest("aa")), "{others:?}");
    }
}
