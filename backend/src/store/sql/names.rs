//! Finds people by name or id, and keeps names unique by keys.
//!
//! `people.face_key` is the key of a person's Face ID ([`FaceId::key`]) and unique. People who were enrolled before the
//! present rule and whose names are equal by it are all kept: the oldest has the key, the others have the key with a suffix
//! and are found by the exact text of their name.

use std::collections::{HashMap, HashSet};

use diesel::{
    prelude::*,
    result::{DatabaseErrorKind, Error},
};
use unicode_normalization::UnicodeNormalization as _;

use super::{
    AnyConnection, Database,
    schema::{leases, people},
};
use crate::{
    domain::{
        FaceId, InvalidFaceId, Micros, Person, PersonId, PersonRef, SameName,
        face_id::{self, MAX_CHARACTERS},
    },
    store::StoreError,
};

/// Separates the key of an older person from the row id. No Face ID contains it.
const SHARED: char = '\u{1}';
/// The character after [`SHARED`].
const AFTER_SHARED: char = '\u{2}';

/// The row of `leases` that a migration of names locks. Never held as a lease.
const LOCK: &str = "names";

/// How often a migration of names is tried while people are being added.
const MAX_ATTEMPTS: u32 = 8;

/// A person to look for, as statements need it.
#[derive(Debug, Clone)]
pub(super) enum PersonKey {
    Name(Name),
    Id(PersonId),
}

/// A Face ID as rows have it.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub face_id: String,
    pub key: String,
}

/// The numbers of names that were changed by the present rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameChanges {
    /// People whose Face ID was normalised or trimmed.
    pub normalised: usize,
    /// Those of them who got a number after their name, since another person has the same one.
    pub numbered: usize,
    /// People who keep a name that equals an older person's by the rule.
    pub sharing: usize,
}

/// The columns of a person for a migration of names.
type Row = (i64, String, Micros, Option<String>, Option<String>);

/// The new values of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    row: i64,
    face_id: String,
    key: String,
    id: String,
}

impl Database {
    pub(super) fn name(&self, id: &FaceId) -> Name {
        Name { face_id: id.to_string(), key: id.key(self.same_name) }
    }

    pub(super) fn sought(&self, who: &PersonRef) -> PersonKey {
        match who {
            PersonRef::FaceId(id) => PersonKey::Name(self.name(id)),
            PersonRef::Id(id) => PersonKey::Id(*id),
        }
    }

    /// Gives every person a normalised name, a key by the present rule and an id, where they lack one or the rule has
    /// changed. Atomic and idempotent; several processes may do it at the same time. Returns the numbers of changed names.
    ///
    /// # Errors
    /// The database fails.
    pub async fn migrate_names(&self) -> Result<NameChanges, StoreError> {
        let rule = self.same_name;
        // Mostly there is nothing to do.
        let done = self.read(move |connection| Ok(plan(&rows(connection)?, rule).0.is_empty())).await?;
        if done {
            return Ok(NameChanges::default());
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.write(move |connection| complete(connection, rule)).await {
                // A person was added meanwhile with a name that was intended for a row.
                Err(StoreError::Database(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)))
                    if attempt < MAX_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
    }
}

fn rows(connection: &mut AnyConnection) -> Result<Vec<Row>, StoreError> {
    Ok(people::table
        .select((people::id, people::face_id, people::created_at, people::face_key, people::public_id))
        .order(people::id)
        .load(connection)?)
}

fn complete(connection: &mut AnyConnection, rule: SameName) -> Result<NameChanges, StoreError> {
    // Writing first acquires the lock before any read, on every engine.
    diesel::update(leases::table.find(LOCK)).set(leases::expires_at.eq(0)).execute(connection)?;
    let rows = rows(connection)?;
    let (changes, renamed) = plan(&rows, rule);
    // Keys may move between rows, so all are cleared first.
    for change in &changes {
        let none: Option<String> = None;
        diesel::update(people::table.find(change.row)).set(people::face_key.eq(none)).execute(connection)?;
    }
    for Change { row, face_id, key, id } in changes {
        let complete =
            (people::face_id.eq(face_id), people::face_key.eq(Some(key)), people::public_id.eq(Some(id)));
        diesel::update(people::table.find(row)).set(complete).execute(connection)?;
    }
    Ok(renamed)
}

/// Plans the changes to the rows, which are sorted by row id, the oldest first.
fn plan(rows: &[Row], rule: SameName) -> (Vec<Change>, NameChanges) {
    let mut renamed = NameChanges::default();
    let normal: Vec<String> = rows.iter().map(|(row, face_id, ..)| normalised(*row, face_id)).collect();
    // A name that needs no change is kept, so that looking for it finds the same person as before.
    let mut taken: HashSet<String> = rows
        .iter()
        .zip(&normal)
        .filter(|((_, old, ..), new)| old == *new)
        .map(|(_, new)| new.clone())
        .collect();
    let mut names = Vec::with_capacity(rows.len());
    for ((_, old, ..), new) in rows.iter().zip(normal) {
        if *old == new {
            names.push(new);
            continue;
        }
        renamed.normalised += 1;
        let free = if taken.contains(&new) {
            renamed.numbered += 1;
            numbered(&new, &taken)
        } else {
            new
        };
        taken.insert(free.clone());
        names.push(free);
    }
    // The oldest of the people with equal names has the key, also if the rule has changed.
    let mut holders: HashMap<String, i64> = HashMap::new();
    let keys: Vec<String> = names.iter().map(|name| face_id::key(name, rule)).collect();
    for ((row, ..), key) in rows.iter().zip(&keys) {
        holders.entry(key.clone()).or_insert(*row);
    }
    let mut changes = Vec::new();
    for (((row, old_name, created_at, old_key, old_id), face_id), key) in rows.iter().zip(names).zip(keys) {
        let key = if holders.get(&key) == Some(row) {
            key
        } else {
            renamed.sharing += 1;
            format!("{key}{SHARED}{row}")
        };
        let id = old_id.clone().unwrap_or_else(|| PersonId::from_row(*row, *created_at).to_string());
        if *old_name != face_id || old_key.as_ref() != Some(&key) || old_id.is_none() {
            changes.push(Change { row: *row, face_id, key, id });
        }
    }
    (changes, renamed)
}

/// Returns the normalised Face ID of a row.
fn normalised(row: i64, old: &str) -> String {
    match FaceId::try_from(old.to_owned()) {
        Ok(id) => id.to_string(),
        // Nothing visible: the name is made up.
        Err(InvalidFaceId::Empty) => format!("unnamed {row}"),
        // Earlier versions rejected such names, too, except for those that grow when normalised.
        Err(_) => old.to_owned(),
    }
}

/// Appends the first number that makes the name unique.
fn numbered(name: &str, taken: &HashSet<String>) -> String {
    let mut number = 2_u32;
    loop {
        let end = format!(" ({number})");
        let begin: String = name.chars().take(MAX_CHARACTERS.saturating_sub(end.len())).collect();
        let free: String = format!("{}{end}", begin.trim_end()).nfc().collect();
        if !taken.contains(&free) {
            return free;
        }
        number = number.saturating_add(1);
    }
}

/// Returns the key of the older person, where a key has a suffix.
pub(super) fn shared_key(key: &str) -> Option<&str> {
    key.split_once(SHARED).map(|(shared, _)| shared)
}

/// Gives a key that is free to the oldest of the people who have it with a suffix.
pub(super) fn promote_next_holder(
    connection: &mut AnyConnection,
    key: Option<&str>,
) -> Result<(), StoreError> {
    let Some(key) = key.filter(|key| shared_key(key).is_none()) else { return Ok(()) };
    let held: i64 = people::table.filter(people::face_key.eq(key)).count().get_result(connection)?;
    if held > 0 {
        return Ok(());
    }
    let next: Option<i64> = people::table
        .filter(people::face_key.gt(format!("{key}{SHARED}")))
        .filter(people::face_key.lt(format!("{key}{AFTER_SHARED}")))
        .order(people::id)
        .select(people::id)
        .first(connection)
        .optional()?;
    if let Some(next) = next {
        diesel::update(people::table.find(next)).set(people::face_key.eq(Some(key))).execute(connection)?;
    }
    Ok(())
}

/// Finds a person. An exact match of the name takes precedence over one by the rule.
pub(super) fn find(connection: &mut AnyConnection, sought: &PersonKey) -> Result<Option<Person>, StoreError> {
    match sought {
        PersonKey::Name(name) => {
            let found = people::table
                .filter(people::face_key.eq(&name.key).or(people::face_id.eq(&name.face_id)))
                .select((people::id, people::face_id, people::created_at, people::public_id))
                .load::<PersonColumns>(connection)?;
            let exact = found.iter().position(|(_, face_id, ..)| *face_id == name.face_id);
            Ok(found.into_iter().nth(exact.unwrap_or(0)).map(person_of))
        }
        PersonKey::Id(id) => {
            let columns = (people::id, people::face_id, people::created_at, people::public_id);
            let found = people::table
                .filter(people::public_id.eq(id.to_string()))
                .select(columns)
                .first::<PersonColumns>(connection)
                .optional()?;
            if let Some(found) = found {
                return Ok(Some(person_of(found)));
            }
            // A server of the previous version enrols people without an id.
            let without = people::table
                .filter(people::public_id.is_null())
                .select(columns)
                .load::<PersonColumns>(connection)?;
            Ok(without.into_iter().map(person_of).find(|person| person.id == *id))
        }
    }
}

/// Row id, Face ID, time of enrolment, public id.
pub(super) type PersonColumns = (i64, String, Micros, Option<String>);

pub(super) fn person_of((row, face_id, created_at, id): PersonColumns) -> Person {
    Person { row, id: person_id(row, created_at, id.as_deref()), face_id }
}

/// Returns the public id of a row, derived from the row where it has none yet.
pub(super) fn person_id(row: i64, created_at: Micros, id: Option<&str>) -> PersonId {
    id.and_then(PersonId::parse).unwrap_or_else(|| PersonId::from_row(row, created_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: SameName = SameName::IgnoringCase;

    fn old(row: i64, face_id: &str) -> Row {
        (row, face_id.to_owned(), row * 1000, None, None)
    }

    /// Returns the rows after the planned changes.
    fn carried_out(rows: &[Row], rule: SameName) -> Vec<Row> {
        let (changes, _) = plan(rows, rule);
        let mut rows = rows.to_vec();
        for change in changes {
            let row = rows.iter_mut().find(|(row, ..)| *row == change.row).unwrap();
            (row.1, row.3, row.4) = (change.face_id, Some(change.key), Some(change.id));
        }
        rows
    }

    fn names(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|(_, face_id, ..)| face_id.as_str()).collect()
    }

    #[test]
    fn rows_from_before_the_uniqueness_rule_get_keys_and_ids_once() {
        let rows = [old(1, "Ann"), old(2, "Bob Lee"), old(3, "Jos\u{e9}")];
        let (changes, renamed) = plan(&rows, RULE);
        assert_eq!((changes.len(), renamed), (3, NameChanges::default()));
        let rows = carried_out(&rows, RULE);
        assert_eq!(names(&rows), ["Ann", "Bob Lee", "Jos\u{e9}"]);
        assert_eq!(rows[1].3.as_deref(), Some("bob lee"));
        assert_eq!(rows[1].4, Some(PersonId::from_row(2, 2000).to_string()));
        assert_eq!(plan(&rows, RULE).0, []);
    }

    #[test]
    fn names_that_become_identical_are_numbered_and_unchanged_names_win() {
        let hangul = "\u{1100}\u{1175}\u{11b7}";
        let rows = [
            old(1, hangul),
            old(2, " ann"),
            old(3, "\u{ae40}"),
            old(4, "ann"),
            old(5, "ann "),
            old(6, "   "),
        ];
        let (changes, renamed) = plan(&rows, RULE);
        assert_eq!(changes.len(), 6);
        assert_eq!(renamed, NameChanges { normalised: 4, numbered: 3, sharing: 0 });
        let rows = carried_out(&rows, RULE);
        assert_eq!(names(&rows), ["\u{ae40} (2)", "ann (2)", "\u{ae40}", "ann", "ann (3)", "unnamed 6"]);
        assert_eq!(rows.iter().map(|row| row.3.clone()).collect::<HashSet<_>>().len(), 6);
        assert_eq!(plan(&rows, RULE).0, []);
    }

    #[test]
    fn a_numbered_name_stays_within_the_length_limit() {
        let long = "x".repeat(64);
        let rows = carried_out(&[old(1, &long), old(2, &format!("{long} "))], RULE);
        assert_eq!(names(&rows), [long.as_str(), &format!("{} (2)", "x".repeat(60))]);
    }

    #[test]
    fn names_differing_in_case_stay_and_the_oldest_holds_the_key() {
        let rows = [old(1, "Ann"), old(2, "ann"), old(3, "ANN")];
        let (_, renamed) = plan(&rows, RULE);
        assert_eq!(renamed, NameChanges { sharing: 2, ..NameChanges::default() });
        let rows = carried_out(&rows, RULE);
        assert_eq!(names(&rows), ["Ann", "ann", "ANN"]);
        assert_eq!(rows[0].3.as_deref(), Some("ann"));
        assert_eq!(rows[2].3.as_deref().and_then(shared_key), Some("ann"));
        assert_eq!(plan(&rows, RULE).0, []);
        // Another rule, and back.
        let minding = carried_out(&rows, SameName::MindingCase);
        assert_eq!(
            minding.iter().map(|row| row.3.as_deref().unwrap()).collect::<Vec<_>>(),
            ["Ann", "ann", "ANN"]
        );
        assert_eq!(carried_out(&minding, RULE), rows);
    }
}
