//! Principals and tokens. Tokens are stored as digests alone.

use diesel::prelude::*;
use facepipe_shared::hex;

use super::{
    AnyConnection, Database,
    schema::{access_state, access_tokens, principals},
};
use crate::{
    access::{Digest, PrincipalKind, PrincipalRecord, Scope, Scopes, TokenRecord, TokenUse, token_lifetime},
    domain::{Micros, now},
    store::StoreError,
};

/// The one row of the state.
const SLOT: i32 = 1;
/// A replaced token ends at most so long after the one that replaced it was made: 30 days and twice the slack.
const LONGEST_OVERLAP: Micros = 30 * 86_400 * 1_000_000 + 2 * SLACK;
/// The time within a transaction between two looks at the clock, at most.
const SLACK: Micros = 60_000_000;

/// Everything that the database knows of access, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAccess {
    /// Grows with each change.
    pub revision: i64,
    /// Whether there are principals, also of kinds that only a newer version knows.
    pub has_principals: bool,
    /// By name, without those of unknown kinds.
    pub principals: Vec<PrincipalRecord>,
    /// By id.
    pub tokens: Vec<TokenRecord>,
}

/// A principal to be added.
#[derive(Debug, Clone)]
pub struct NewPrincipal {
    /// What it is.
    pub kind: PrincipalKind,
    /// Unique.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// The only camera that it may upload for; `None` for any.
    pub camera_id: Option<String>,
    /// Whether answers to its images have names of people.
    pub may_see_names: bool,
}

/// A token to be added.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// What it is for.
    pub name: String,
    /// SHA-256 of the token.
    pub digest: Digest,
    /// Fewer scopes than the principal's; `None` for all of them.
    pub scopes: Option<Scopes>,
    /// When it stops being accepted.
    pub expires_at: Micros,
}

/// A change of a principal; `None` leaves a value as it is.
#[derive(Debug, Clone, Default)]
pub struct PrincipalChange {
    /// The name.
    pub name: Option<String>,
    /// The scopes.
    pub scopes: Option<Scopes>,
    /// The camera; the inner `None` is for any.
    pub camera_id: Option<Option<String>>,
    /// Whether answers to its images have names of people.
    pub may_see_names: Option<bool>,
    /// Whether its tokens are refused.
    pub disabled: Option<bool>,
}

#[derive(Queryable)]
struct PrincipalRow {
    id: i64,
    kind: String,
    name: String,
    scopes: String,
    camera_id: Option<String>,
    may_see_names: bool,
    disabled: bool,
    created_at: Micros,
}

#[derive(Queryable)]
struct TokenRow {
    id: i64,
    principal_id: i64,
    name: String,
    digest: String,
    scopes: Option<String>,
    created_at: Micros,
    expires_at: Micros,
    last_used_at: Option<Micros>,
    last_used_address: Option<String>,
}

impl TryFrom<PrincipalRow> for PrincipalRecord {
    type Error = StoreError;

    fn try_from(row: PrincipalRow) -> Result<Self, StoreError> {
        let PrincipalRow { id, kind, name, scopes, camera_id, may_see_names, disabled, created_at } = row;
        let kind = PrincipalKind::of_row(&kind)
            .ok_or_else(|| StoreError::Damaged(format!("principal {id} has the kind {kind:?}")))?;
        let scopes = scopes_of(&scopes);
        Ok(Self { id, kind, name, scopes, camera_id, may_see_names, disabled, created_at })
    }
}

impl TryFrom<TokenRow> for TokenRecord {
    type Error = StoreError;

    fn try_from(row: TokenRow) -> Result<Self, StoreError> {
        let digest = digest_from_hex(&row.digest)
            .ok_or_else(|| StoreError::Damaged(format!("the digest of token {}", row.id)))?;
        Ok(Self {
            id: row.id,
            principal_id: row.principal_id,
            name: row.name,
            digest,
            scopes: row.scopes.as_deref().map(scopes_of),
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            last_used_address: row.last_used_address,
        })
    }
}

/// Reads a list of scopes without those that only a newer version knows.
fn scopes_of(text: &str) -> Scopes {
    text.split(',').filter_map(|name| name.parse::<Scope>().ok()).collect()
}

fn digest_from_hex(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    let pairs = text.as_bytes().as_chunks::<2>();
    if !pairs.1.is_empty() || pairs.0.len() != digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs.0) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

impl Database {
    /// Reads the revision of principals and tokens.
    ///
    /// # Errors
    /// The database fails.
    pub async fn access_revision(&self) -> Result<i64, StoreError> {
        self.read(revision).await
    }

    /// Reads all principals and tokens.
    ///
    /// # Errors
    /// The database fails.
    pub async fn stored_access(&self) -> Result<StoredAccess, StoreError> {
        self.read(|connection| {
            let rows: Vec<PrincipalRow> = principals::table.order(principals::name).load(connection)?;
            let tokens: Vec<TokenRow> = access_tokens::table.order(access_tokens::id).load(connection)?;
            let stored = rows.len();
            let (known, unknown): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| PrincipalKind::of_row(&row.kind).is_some());
            for PrincipalRow { id, kind, .. } in &unknown {
                tracing::warn!(
                    id,
                    kind,
                    "a principal of a kind that only a newer version knows has no access here"
                );
            }
            Ok(StoredAccess {
                revision: revision(connection)?,
                has_principals: stored > 0,
                principals: known.into_iter().map(PrincipalRecord::try_from).collect::<Result<_, _>>()?,
                tokens: tokens.into_iter().map(TokenRecord::try_from).collect::<Result<_, _>>()?,
            })
        })
        .await
    }

    /// Reads a principal and its tokens.
    ///
    /// # Errors
    /// [`StoreError::PrincipalNotFound`].
    pub async fn principal(&self, id: i64) -> Result<(PrincipalRecord, Vec<TokenRecord>), StoreError> {
        self.read(move |connection| {
            let principal = find_principal(connection, id)?;
            let tokens: Vec<TokenRow> = access_tokens::table
                .filter(access_tokens::principal_id.eq(id))
                .order(access_tokens::id)
                .load(connection)?;
            Ok((principal, tokens.into_iter().map(TokenRecord::try_from).collect::<Result<_, _>>()?))
        })
        .await
    }

    /// Adds a principal, with a token where one is given.
    ///
    /// # Errors
    /// [`StoreError::PrincipalExists`].
    pub async fn add_principal(
        &self,
        new: NewPrincipal,
        token: Option<NewToken>,
    ) -> Result<(PrincipalRecord, Option<TokenRecord>), StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            refuse_name(connection, &new.name, None)?;
            let id = next_id(connection, Counter::Principal)?;
            let NewPrincipal { kind, name, scopes, camera_id, may_see_names } = new.clone();
            let record = PrincipalRecord {
                id,
                kind,
                name,
                scopes,
                camera_id,
                may_see_names,
                disabled: false,
                created_at: now(),
            };
            diesel::insert_into(principals::table)
                .values((
                    principals::id.eq(id),
                    principals::kind.eq(kind.name()),
                    principals::name.eq(&record.name),
                    principals::scopes.eq(scopes.to_string()),
                    principals::camera_id.eq(&record.camera_id),
                    principals::may_see_names.eq(may_see_names),
                    principals::disabled.eq(false),
                    principals::created_at.eq(record.created_at),
                ))
                .execute(connection)?;
            let token = token.as_ref().map(|token| insert_token(connection, id, token)).transpose()?;
            Ok((record, token))
        })
        .await
    }

    /// Changes a principal.
    ///
    /// # Errors
    /// [`StoreError::PrincipalNotFound`], [`StoreError::PrincipalExists`] for a name that another one has.
    pub async fn change_principal(&self, id: i64, change: PrincipalChange) -> Result<(), StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let old = find_principal(connection, id)?;
            let change = change.clone();
            // As it is stored: this version may not know all of them.
            let stored: String = principals::table.find(id).select(principals::scopes).first(connection)?;
            let scopes = change.scopes.map_or(stored, |scopes| scopes.to_string());
            let new = PrincipalRecord {
                name: change.name.unwrap_or(old.name),
                camera_id: change.camera_id.unwrap_or(old.camera_id),
                may_see_names: change.may_see_names.unwrap_or(old.may_see_names),
                disabled: change.disabled.unwrap_or(old.disabled),
                ..old
            };
            refuse_name(connection, &new.name, Some(id))?;
            diesel::update(principals::table.find(id))
                .set((
                    principals::name.eq(&new.name),
                    principals::scopes.eq(scopes),
                    principals::camera_id.eq(&new.camera_id),
                    principals::may_see_names.eq(new.may_see_names),
                    principals::disabled.eq(new.disabled),
                ))
                .execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Removes a principal with its tokens.
    ///
    /// # Errors
    /// [`StoreError::PrincipalNotFound`].
    pub async fn remove_principal(&self, id: i64) -> Result<(), StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            find_principal(connection, id)?;
            diesel::delete(access_tokens::table.filter(access_tokens::principal_id.eq(id)))
                .execute(connection)?;
            diesel::delete(principals::table.find(id)).execute(connection)?;
            Ok(())
        })
        .await
    }

    /// Adds a token of a principal.
    ///
    /// # Errors
    /// [`StoreError::PrincipalNotFound`].
    pub async fn add_token(&self, principal: i64, token: NewToken) -> Result<TokenRecord, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            find_principal(connection, principal)?;
            insert_token(connection, principal, &token)
        })
        .await
    }

    /// Adds a token with the digest `digest`, which has the name and scopes of the token `id` and lives as long, or by default
    /// if that one was replaced before, unless `expires_at` is given; the old one expires after `overlap` at the latest. Returns the old one and the new one.
    ///
    /// # Errors
    /// [`StoreError::TokenNotFound`].
    pub async fn rotate_token(
        &self,
        id: i64,
        digest: Digest,
        overlap: Micros,
        expires_at: Option<Micros>,
    ) -> Result<(TokenRecord, TokenRecord), StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let (old, now) = (find_token(connection, id)?, now());
            let lifetime = if was_replaced(connection, &old)? {
                // Its end was brought forward.
                let kind = find_principal(connection, old.principal_id)?.kind;
                Micros::try_from(token_lifetime(kind).as_micros()).unwrap_or(Micros::MAX)
            } else {
                old.expires_at.saturating_sub(old.created_at)
            };
            let new = NewToken {
                name: old.name.clone(),
                digest,
                scopes: old.scopes,
                expires_at: expires_at.unwrap_or(now.saturating_add(lifetime)),
            };
            let new = insert_token(connection, old.principal_id, &new)?;
            // As they are stored: this version may not know all of them.
            let scopes: Option<String> =
                access_tokens::table.find(id).select(access_tokens::scopes).first(connection)?;
            diesel::update(access_tokens::table.find(new.id))
                .set(access_tokens::scopes.eq(scopes))
                .execute(connection)?;
            let old = TokenRecord { expires_at: old.expires_at.min(now.saturating_add(overlap)), ..old };
            diesel::update(access_tokens::table.find(id))
                .set(access_tokens::expires_at.eq(old.expires_at))
                .execute(connection)?;
            Ok((old, new))
        })
        .await
    }

    /// Removes a token. Returns the id of its principal.
    ///
    /// # Errors
    /// [`StoreError::TokenNotFound`].
    pub async fn revoke_token(&self, id: i64) -> Result<i64, StoreError> {
        self.write(move |connection| {
            lock(connection)?;
            let token = find_token(connection, id)?;
            diesel::delete(access_tokens::table.find(id)).execute(connection)?;
            Ok(token.principal_id)
        })
        .await
    }

    /// Removes the tokens that expired before `before`. Returns how many.
    ///
    /// # Errors
    /// The database fails.
    pub async fn remove_expired_tokens(&self, before: Micros) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let expired: Option<i64> = access_tokens::table
                .filter(access_tokens::expires_at.lt(before))
                .select(access_tokens::id)
                .first(connection)
                .optional()?;
            if expired.is_none() {
                return Ok(0);
            }
            lock(connection)?;
            Ok(diesel::delete(access_tokens::table.filter(access_tokens::expires_at.lt(before)))
                .execute(connection)?)
        })
        .await
    }

    /// Stores the last uses of tokens, where they are later than those that are stored.
    ///
    /// # Errors
    /// The database fails.
    pub async fn store_token_uses(&self, uses: Vec<(i64, TokenUse)>) -> Result<(), StoreError> {
        self.write(move |connection| {
            for (id, TokenUse { at, address }) in &uses {
                let older =
                    access_tokens::last_used_at.is_null().or(access_tokens::last_used_at.lt(Some(*at)));
                diesel::update(access_tokens::table.filter(access_tokens::id.eq(*id)).filter(older))
                    .set((
                        access_tokens::last_used_at.eq(Some(*at)),
                        access_tokens::last_used_address.eq(address),
                    ))
                    .execute(connection)?;
            }
            Ok(())
        })
        .await
    }
}

/// The counters of ids.
#[derive(Clone, Copy)]
enum Counter {
    Principal,
    Token,
}

fn revision(connection: &mut AnyConnection) -> Result<i64, StoreError> {
    Ok(access_state::table.find(SLOT).select(access_state::revision).first(connection)?)
}

/// Counts a change, which makes transactions that change access wait for each other.
fn lock(connection: &mut AnyConnection) -> Result<(), StoreError> {
    diesel::update(access_state::table.find(SLOT))
        .set(access_state::revision.eq(access_state::revision + 1))
        .execute(connection)?;
    Ok(())
}

/// Returns an id that no row had before. The state is locked.
fn next_id(connection: &mut AnyConnection, counter: Counter) -> Result<i64, StoreError> {
    let state = access_state::table.find(SLOT);
    let last: i64 = match counter {
        Counter::Principal => state.select(access_state::last_principal).first(connection)?,
        Counter::Token => state.select(access_state::last_token).first(connection)?,
    };
    let next = last + 1;
    match counter {
        Counter::Principal => {
            diesel::update(state).set(access_state::last_principal.eq(next)).execute(connection)?
        }
        Counter::Token => diesel::update(state).set(access_state::last_token.eq(next)).execute(connection)?,
    };
    Ok(next)
}

fn find_principal(connection: &mut AnyConnection, id: i64) -> Result<PrincipalRecord, StoreError> {
    let row: Option<PrincipalRow> = principals::table.find(id).first(connection).optional()?;
    row.ok_or(StoreError::PrincipalNotFound)?.try_into()
}

fn find_token(connection: &mut AnyConnection, id: i64) -> Result<TokenRecord, StoreError> {
    let row: Option<TokenRow> = access_tokens::table.find(id).first(connection).optional()?;
    row.ok_or(StoreError::TokenNotFound)?.try_into()
}

/// Returns whether a token was replaced by another one that is still there: a later one of the same name and scopes, made
/// when the old one's end was brought forward.
fn was_replaced(connection: &mut AnyConnection, old: &TokenRecord) -> Result<bool, StoreError> {
    let rows: Vec<TokenRow> = access_tokens::table
        .filter(access_tokens::principal_id.eq(old.principal_id))
        .filter(access_tokens::id.gt(old.id))
        .filter(access_tokens::name.eq(&old.name))
        .load(connection)?;
    Ok(rows.iter().any(|row| {
        row.scopes.as_deref().map(scopes_of) == old.scopes
            && (0..=LONGEST_OVERLAP)
                .contains(&old.expires_at.saturating_sub(row.created_at).saturating_add(SLACK))
    }))
}

fn refuse_name(connection: &mut AnyConnection, name: &str, own: Option<i64>) -> Result<(), StoreError> {
    let holder: Option<i64> = principals::table
        .filter(principals::name.eq(name))
        .select(principals::id)
        .first(connection)
        .optional()?;
    match holder {
        Some(id) if Some(id) != own => Err(StoreError::PrincipalExists),
        _ => Ok(()),
    }
}

fn insert_token(
    connection: &mut AnyConnection,
    principal_id: i64,
    token: &NewToken,
) -> Result<TokenRecord, StoreError> {
    let NewToken { name, digest, scopes, expires_at } = token.clone();
    let record = TokenRecord {
        id: next_id(connection, Counter::Token)?,
        principal_id,
        name,
        digest,
        scopes,
        created_at: now(),
        expires_at,
        last_used_at: None,
        last_used_address: None,
    };
    diesel::insert_into(access_tokens::table)
        .values((
            access_tokens::id.eq(record.id),
            access_tokens::principal_id.eq(principal_id),
            access_tokens::name.eq(&record.name),
            access_tokens::digest.eq(hex(&digest)),
            access_tokens::scopes.eq(scopes.map(|scopes| scopes.to_string())),
            access_tokens::created_at.eq(record.created_at),
            access_tokens::expires_at.eq(expires_at),
        ))
        .execute(connection)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest: Digest = std::array::from_fn(|at| u8::try_from(at * 7).unwrap());
        assert_eq!(digest_from_hex(&hex(&digest)), Some(digest));
        for damaged in ["", "0", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(digest_from_hex(damaged), None, "{damaged}");
        }
    }
}
