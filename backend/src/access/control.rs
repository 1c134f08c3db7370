//! Authentication: determines the principal of a token. Knows the tokens of the token file and those of the database,
//! as they were last read.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use super::{
    Digest, Principal, PrincipalKind, PrincipalRecord, TokenFile, TokenRecord, digest_of, has_prefix,
    is_well_formed,
};
use crate::domain::{Micros, now};

/// The resolution of a token's last use.
const MINUTE: Micros = 60_000_000;

/// Why a request's token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// No token.
    #[error("this server needs a token that it knows, as `Authorization: Bearer <token>`")]
    Missing,
    /// An unknown token, or a revoked one.
    #[error(
        "this server needs a token that it knows, as `Authorization: Bearer <token>`: this one is unknown, or was revoked"
    )]
    Unknown,
    /// A client certificate, without a token, that names no camera of this server.
    #[error(
        "the client's certificate names no camera of this server, and there is no token: its subjectAltName must have the \
         URI urn:facepipe:camera:<name of the camera's principal>"
    )]
    UnknownCertificate,
    /// A token with wrong check digits.
    #[error(
        "the token is mistyped or cut off: its check digits do not match, or it does not have 75 characters"
    )]
    Malformed,
    /// A token that was valid once.
    #[error("the token has expired: an administrator can make another one (`facepipe access token`)")]
    Expired,
    /// A token of a principal that is disabled.
    #[error(
        "the camera or person whom this token belongs to is disabled: an administrator can enable it again"
    )]
    Disabled,
}

impl TokenProblem {
    /// Returns the name for programs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::UnknownCertificate => "unknown_certificate",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Disabled => "disabled",
        }
    }
}

/// The last use of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// The minute.
    pub at: Micros,
    /// The client's address; `None` if the connection has none.
    pub address: Option<String>,
}

/// The principals and tokens of the database at one revision.
#[derive(Default)]
struct Stored {
    revision: Option<i64>,
    has_principals: bool,
    /// Those that are not disabled.
    principals: HashMap<i64, Arc<Principal>>,
    tokens: HashMap<Digest, StoredToken>,
}

struct StoredToken {
    principal: Arc<Principal>,
    id: i64,
    expires_at: Micros,
    disabled: bool,
}

/// Decides which principal makes a request.
pub struct AccessControl {
    file: Option<Arc<TokenFile>>,
    stored: RwLock<Arc<Stored>>,
    /// Never unset: a server that needed tokens does not become open because the last one was removed.
    needs_token: AtomicBool,
    insecure: bool,
    local: Arc<Principal>,
    anonymous: Arc<Principal>,
    /// Uses that are not written yet, by the token's id.
    uses: Mutex<HashMap<i64, TokenUse>>,
    /// When the database was read last.
    read_at: AtomicI64,
    /// Held while the database is read, so that a slower reader does not replace what a faster one has read later.
    reading: tokio::sync::Mutex<()>,
}

impl AccessControl {
    /// Makes the access control of a server, with its token file; `insecure` says that the operator wants a server without
    /// tokens to take requests from anywhere.
    pub fn new(file: Option<Arc<TokenFile>>, insecure: bool) -> Self {
        Self {
            needs_token: AtomicBool::new(file.is_some()),
            file,
            stored: RwLock::default(),
            insecure,
            local: Arc::new(Principal::local()),
            anonymous: Arc::new(Principal::anonymous()),
            uses: Mutex::default(),
            read_at: AtomicI64::new(now()),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the token file.
    pub fn file(&self) -> Option<&Arc<TokenFile>> {
        self.file.as_ref()
    }

    /// Returns whether requests need a token: there is a token file, or the database has or had a principal since the start.
    pub fn needs_token(&self) -> bool {
        self.needs_token.load(Ordering::Acquire)
    }

    /// Returns whether requests have to come from this machine, since none needs a token.
    pub fn is_for_this_machine_only(&self) -> bool {
        !self.needs_token() && !self.insecure
    }

    /// Returns the principal of a request without a valid token to a route that needs none.
    pub fn anonymous(&self) -> Arc<Principal> {
        Arc::clone(&self.anonymous)
    }

    /// Returns the principal of a token, and notes its use. On a server without tokens, everybody is [`Principal::local`].
    ///
    /// # Errors
    /// [`TokenProblem`].
    pub fn authenticate(
        &self,
        token: Option<&str>,
        address: Option<IpAddr>,
    ) -> Result<Arc<Principal>, TokenProblem> {
        if !self.needs_token() {
            return Ok(Arc::clone(&self.local));
        }
        let token = token.ok_or(TokenProblem::Missing)?;
        if let Some(principal) = self.file.as_ref().and_then(|file| file.principal_of(token)) {
            return Ok(principal);
        }
        if !has_prefix(token) {
            return Err(TokenProblem::Unknown);
        }
        let (stored, now) = (self.stored(), now());
        let token = stored.tokens.get(&digest_of(token)).ok_or_else(|| {
            if is_well_formed(token) { TokenProblem::Unknown } else { TokenProblem::Malformed }
        })?;
        if token.disabled {
            return Err(TokenProblem::Disabled);
        }
        if token.expires_at <= now {
            return Err(TokenProblem::Expired);
        }
        self.note_use(token.id, now, address);
        Ok(Arc::clone(&token.principal))
    }

    /// Returns the principal of a camera whose client certificate has its name.
    ///
    /// # Errors
    /// There is no such camera, or it is disabled.
    pub fn authenticate_certificate(&self, name: &str) -> Result<Arc<Principal>, TokenProblem> {
        if !self.needs_token() {
            return Ok(Arc::clone(&self.local));
        }
        let principal =
            self.principal_named(name).filter(|principal| principal.kind == PrincipalKind::Camera);
        principal.ok_or(TokenProblem::UnknownCertificate)
    }

    /// Returns a stored principal with all of its scopes, by id; `None` if it was removed or is disabled. For means of
    /// authentication other than tokens, whose rows refer to the principal's.
    pub fn principal(&self, id: i64) -> Option<Arc<Principal>> {
        self.stored().principals.get(&id).cloned()
    }

    /// Returns a principal as [`principal`](Self::principal) does, by name.
    pub fn principal_named(&self, name: &str) -> Option<Arc<Principal>> {
        self.stored().principals.values().find(|principal| principal.name == name).cloned()
    }

    /// Returns the revision of the database that is known, `None` before it was read.
    pub fn revision(&self) -> Option<i64> {
        self.stored().revision
    }

    /// Returns whether the database has principals.
    pub fn has_principals(&self) -> bool {
        self.stored().has_principals
    }

    /// Waits until no other task reads the database for [`replace`](Self::replace).
    pub async fn begin_reading(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// Replaces the known state of the database. `has_principals` also counts principals of kinds that only a newer version
    /// knows, which have no access here.
    pub fn replace(
        &self,
        revision: i64,
        has_principals: bool,
        principals: &[PrincipalRecord],
        tokens: &[TokenRecord],
    ) {
        let of_id: HashMap<i64, &PrincipalRecord> =
            principals.iter().map(|record| (record.id, record)).collect();
        let token = |token: &TokenRecord| {
            let record = of_id.get(&token.principal_id)?;
            let principal = Arc::new(Principal::of_record(record).with_token(token));
            let (id, expires_at, disabled) = (token.id, token.expires_at, record.disabled);
            Some((token.digest, StoredToken { principal, id, expires_at, disabled }))
        };
        let enabled = principals.iter().filter(|record| !record.disabled);
        let stored = Stored {
            revision: Some(revision),
            has_principals,
            principals: enabled.map(|record| (record.id, Arc::new(Principal::of_record(record)))).collect(),
            tokens: tokens.iter().filter_map(token).collect(),
        };
        *self.stored.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stored);
        if has_principals {
            self.require_tokens();
        }
    }

    /// Requires tokens from now on.
    pub fn require_tokens(&self) {
        self.needs_token.store(true, Ordering::Release);
    }

    /// Notes that the database was read.
    pub fn note_read(&self) {
        self.read_at.store(now(), Ordering::Relaxed);
    }

    /// Returns when the database was read last.
    pub fn read_at(&self) -> Micros {
        self.read_at.load(Ordering::Relaxed)
    }

    /// Removes and returns the uses of tokens that are not written yet and that `may_write` selects.
    pub fn take_uses(&self, may_write: impl Fn(i64) -> bool) -> Vec<(i64, TokenUse)> {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        uses.extract_if(|token, _| may_write(*token)).collect()
    }

    fn note_use(&self, token: i64, now: Micros, address: Option<IpAddr>) {
        let used = TokenUse {
            at: now - now.rem_euclid(MINUTE),
            address: address.map(|address| address.to_canonical().to_string()),
        };
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).insert(token, used);
    }

    fn stored(&self) -> Arc<Stored> {
        Arc::clone(&self.stored.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{PrincipalKind, new_token};

    fn record(id: i64, disabled: bool) -> PrincipalRecord {
        PrincipalRecord {
            id,
            kind: PrincipalKind::Person,
            name: format!("person {id}"),
            scopes: "read".parse().unwrap(),
            camera_id: None,
            may_see_names: true,
            disabled,
            created_at: 0,
        }
    }

    fn token_record(id: i64, principal_id: i64, token: &str, expires_at: Micros) -> TokenRecord {
        TokenRecord {
            id,
            principal_id,
            name: String::new(),
            digest: digest_of(token),
            scopes: None,
            created_at: 0,
            expires_at,
            last_used_at: None,
            last_used_address: None,
        }
    }

    #[test]
    fn a_token_is_accepted_until_it_expires_or_its_principal_is_disabled() {
        let control = AccessControl::new(None, false);
        assert_eq!(control.authenticate(None, None).unwrap().kind, PrincipalKind::Local);
        let [good, expired, disabled] = [(); 3].map(|()| new_token());
        let later = now() + 1_000_000_000;
        control.replace(
            3,
            true,
            &[record(1, false), record(2, true)],
            &[
                token_record(10, 1, &good, later),
                token_record(11, 1, &expired, now() - 1),
                token_record(12, 2, &disabled, later),
            ],
        );
        assert!(control.needs_token());
        let problem = |token: Option<&str>| control.authenticate(token, None).map(|_| ()).unwrap_err();
        assert_eq!(control.authenticate(Some(&good), None).unwrap().token, Some(10));
        assert_eq!(problem(None), TokenProblem::Missing);
        assert_eq!(problem(Some(&expired)), TokenProblem::Expired);
        assert_eq!(problem(Some(&disabled)), TokenProblem::Disabled);
        assert_eq!(problem(Some(&new_token())), TokenProblem::Unknown);
        assert_eq!(problem(Some(&good[..70])), TokenProblem::Malformed);
        assert_eq!(problem(Some("0123456789abcdef")), TokenProblem::Unknown);
        assert_eq!(control.principal(1).unwrap().name, "person 1");
        assert_eq!(control.principal_named("person 1").unwrap().id, Some(1));
        assert!(control.principal(2).is_none() && control.principal_named("person 2").is_none());
    }

    #[test]
    fn a_server_that_needed_tokens_never_becomes_open() {
        let control = AccessControl::new(None, false);
        assert!(control.is_for_this_machine_only());
        control.replace(1, true, &[record(1, false)], &[]);
        control.replace(2, false, &[], &[]);
        assert_eq!(control.authenticate(None, None), Err(TokenProblem::Missing));
    }

    #[test]
    fn the_last_use_of_a_token_has_the_minute_and_the_address() {
        let control = AccessControl::new(None, false);
        let token = new_token();
        control.replace(1, true, &[record(1, false)], &[token_record(10, 1, &token, Micros::MAX)]);
        for address in ["10.0.0.1", "::ffff:10.0.0.2"] {
            control.authenticate(Some(&token), Some(address.parse().unwrap())).unwrap();
        }
        assert!(control.take_uses(|_| false).is_empty());
        let uses = control.take_uses(|token| token == 10);
        let [(10, TokenUse { at, address })] = uses.as_slice() else { panic!("{uses:?}") };
        assert_eq!((at % MINUTE, address.as_deref()), (0, Some("10.0.0.2")));
        assert!(control.take_uses(|_| true).is_empty());
    }
}
