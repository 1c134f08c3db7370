//! Who makes a request.

use facepipe_shared::hex;
use sha2::{Digest as _, Sha256};

use super::{
    Digest, Role,
    scopes::{Scope, Scopes},
};
use crate::domain::Micros;

/// Begins the idempotency keys of stored principals.
pub const OWN_KEY: char = '\u{1}';

/// The kind of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// A camera or edge node of the database.
    Camera,
    /// A person, or a program that acts for people, of the database.
    Person,
    /// A token of the token file.
    File,
    /// Everybody, on a server that needs no token.
    Local,
    /// A request without a valid token, to a route that needs none.
    Anonymous,
}

impl PrincipalKind {
    /// The kinds of rows.
    pub const STORED: [Self; 2] = [Self::Camera, Self::Person];

    /// Returns the name in the API and in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Camera => "camera",
            Self::Person => "person",
            Self::File => "file",
            Self::Local => "local",
            Self::Anonymous => "anonymous",
        }
    }

    /// Returns the kind of a row.
    pub fn of_row(name: &str) -> Option<Self> {
        Self::STORED.into_iter().find(|kind| kind.name() == name)
    }
}

/// Identifies a principal: shares of the server are counted by it. All tokens of a stored principal have the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PrincipalKey {
    /// The id of a stored principal.
    Stored(i64),
    /// The first bytes of the digest of a token of the token file.
    File(u64),
    /// Everybody, on a server that needs no token.
    Local,
    /// Requests without a valid token.
    Anonymous,
}

/// Who makes a request, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The id of a stored principal.
    pub id: Option<i64>,
    /// What it is.
    pub kind: PrincipalKind,
    /// The name, for people who administer the server.
    pub name: String,
    /// What it may do with the token of the request.
    pub scopes: Scopes,
    /// The only camera that it may upload for; `None` for any.
    pub camera_id: Option<String>,
    /// Whether answers to its images have names of people.
    pub may_see_names: bool,
    /// The id of the stored token of the request.
    pub token: Option<i64>,
    key: PrincipalKey,
}

impl Principal {
    /// Returns the principal of every request to a server without tokens.
    pub fn local() -> Self {
        Self::unnamed(PrincipalKind::Local, PrincipalKey::Local, Scopes::ADMIN)
    }

    /// Returns the principal of requests without a valid token to routes that need none.
    pub fn anonymous() -> Self {
        Self::unnamed(PrincipalKind::Anonymous, PrincipalKey::Anonymous, Scopes::NONE)
    }

    fn unnamed(kind: PrincipalKind, key: PrincipalKey, scopes: Scopes) -> Self {
        let may_see_names = !scopes.is_empty();
        Self {
            id: None,
            kind,
            name: kind.name().into(),
            scopes,
            camera_id: None,
            may_see_names,
            token: None,
            key,
        }
    }

    /// Returns the principal of a token of the token file. Its name has the first digits of the token's digest: lines move.
    pub fn of_file(role: Role, digest: &Digest) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        let short = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let (of, scopes) = match role {
            Role::Camera => ("camera", [Scope::Upload, Scope::Recognise].into_iter().collect()),
            Role::Admin => ("admin", Scopes::ADMIN),
        };
        Self {
            id: None,
            kind: PrincipalKind::File,
            name: format!("{of} of the token file ({:08x})", short >> 32),
            scopes,
            camera_id: None,
            may_see_names: true,
            token: None,
            key: PrincipalKey::File(short),
        }
    }

    /// Returns the principal of a row, with all of its scopes.
    pub fn of_record(record: &PrincipalRecord) -> Self {
        Self {
            id: Some(record.id),
            kind: record.kind,
            name: record.name.clone(),
            scopes: record.scopes,
            camera_id: record.camera_id.clone(),
            may_see_names: record.may_see_names,
            token: None,
            key: PrincipalKey::Stored(record.id),
        }
    }

    /// Returns the principal as it is with one of its tokens.
    #[must_use]
    pub fn with_token(&self, token: &TokenRecord) -> Self {
        let scopes = token.scopes.map_or(self.scopes, |scopes| self.scopes.restricted_to(scopes));
        Self { scopes, token: Some(token.id), ..self.clone() }
    }

    /// Returns the form in which its idempotency keys are stored. Stored principals have keys of their own: no other can send
    /// this form, since keys have no control characters.
    pub fn own_key(&self, key: &str) -> String {
        let Some(id) = self.id else { return key.to_owned() };
        let digest = Sha256::new().chain_update(id.to_string()).chain_update(b"/").chain_update(key);
        format!("{OWN_KEY}{}", hex(&digest.finalize()))
    }

    /// Returns the key that identifies it.
    pub fn key(&self) -> PrincipalKey {
        self.key
    }
}

/// A stored principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalRecord {
    /// Never given to another one.
    pub id: i64,
    /// What it is, one of [`PrincipalKind::STORED`].
    pub kind: PrincipalKind,
    /// Unique.
    pub name: String,
    /// What it may do.
    pub scopes: Scopes,
    /// The only camera that it may upload for; `None` for any.
    pub camera_id: Option<String>,
    /// Whether answers to its images have names of people.
    pub may_see_names: bool,
    /// Whether its tokens are refused.
    pub disabled: bool,
    /// When it was added.
    pub created_at: Micros,
}

/// A stored token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Never given to another one.
    pub id: i64,
    /// The principal's id.
    pub principal_id: i64,
    /// What it is for.
    pub name: String,
    /// SHA-256 of the token.
    pub digest: Digest,
    /// Fewer scopes than the principal's; `None` for all of them.
    pub scopes: Option<Scopes>,
    /// When it was made.
    pub created_at: Micros,
    /// When it stops being accepted.
    pub expires_at: Micros,
    /// The minute in which it was used last.
    pub last_used_at: Option<Micros>,
    /// The address that used it last.
    pub last_used_address: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_principals_apart_and_not_their_tokens() {
        let record = PrincipalRecord {
            id: 7,
            kind: PrincipalKind::Camera,
            name: "gate-1".into(),
            scopes: "upload,read".parse().unwrap(),
            camera_id: Some("gate-1".into()),
            may_see_names: false,
            disabled: false,
            created_at: 0,
        };
        let token = |id, scopes: Option<&str>| TokenRecord {
            id,
            principal_id: 7,
            name: String::new(),
            digest: [0; 32],
            scopes: scopes.map(|scopes| scopes.parse().unwrap()),
            created_at: 0,
            expires_at: 1,
            last_used_at: None,
            last_used_address: None,
        };
        let principal = Principal::of_record(&record);
        let (one, other) =
            (principal.with_token(&token(1, None)), principal.with_token(&token(2, Some("read"))));
        assert_eq!((one.key(), one.token), (other.key(), Some(1)));
        assert_eq!((one.scopes.to_string(), other.scopes.to_string()), ("upload,read".into(), "read".into()));
        let file = |digest: u8| Principal::of_file(Role::Camera, &[digest; 32]).key();
        assert_eq!(file(1), file(1));
        let keys = [one.key(), file(1), file(2), Principal::local().key(), Principal::anonymous().key()];
        assert_eq!(std::collections::HashSet::from(keys).len(), keys.len());
    }
}
