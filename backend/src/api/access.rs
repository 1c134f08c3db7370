//! `/access`: cameras, people and programs that may use the server, and their tokens.

use std::{collections::HashMap, time::Duration};

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    ListMeta, State,
    auth::Caller,
    parse_time,
    recognition::{MAX_CHARACTERS, characters},
    response::{JsonResponse, NoContent},
    rfc3339,
};
use crate::{
    access::{
        Principal as Requester, PrincipalKind, PrincipalRecord, Scope, Scopes, TokenRecord, digest_of,
        new_token, token_lifetime,
    },
    domain::{Micros, now},
    error::ApiError,
    store::{
        access_follower,
        sql::{self, PrincipalChange, StoredAccess},
    },
};

/// Maximum time for which a token is made.
const MAX_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// How long a replaced token stays valid, seconds.
const OVERLAP_S: u64 = 24 * 3600;
/// Maximum time for which a replaced token stays valid, seconds.
const MAX_OVERLAP_S: u64 = 30 * 24 * 3600;

/// A camera, person or program that gets access.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct NewPrincipal {
    /// `camera` for a camera or edge node, `person` for a person or a program.
    #[openapi(example = "camera")]
    kind: String,
    /// What it is called, unique: 1 to 200 characters, no control characters.
    #[openapi(example = "gate-1")]
    name: String,
    /// What it may do: `upload` for a camera by default, `read` for a person.
    #[openapi(example = "upload")]
    scopes: Option<Vec<String>>,
    /// The only camera that it may upload for: for a camera its name by default, for a person any camera.
    #[openapi(example = "gate-1")]
    camera_id: Option<String>,
    /// Whether a camera may upload for any `camera_id`: an edge node with several cameras.
    #[openapi(example = "false")]
    any_camera: Option<bool>,
    /// Whether responses to its images name people: not for a camera by default.
    #[openapi(example = "false")]
    may_see_names: Option<bool>,
    /// Its first token, which the response has.
    token: Option<NewToken>,
}

/// A token to be made.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for: at most 200 characters, no control characters.
    #[openapi(example = "box at the gate")]
    name: Option<String>,
    /// Fewer scopes than the principal's.
    #[openapi(example = "upload")]
    scopes: Option<Vec<String>>,
    /// When it expires, RFC 3339, within ten years: in a year for a camera by default, in 90 days for a person.
    #[openapi(example = "2034-05-06T07:08:09Z")]
    expires_at: Option<String>,
}

/// What to change of a principal.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct PrincipalUpdate {
    /// What it is called, unique: 1 to 200 characters, no control characters.
    #[openapi(example = "gate-1")]
    name: Option<String>,
    /// What it may do.
    #[openapi(example = "upload")]
    scopes: Option<Vec<String>>,
    /// The only camera that it may upload for.
    #[openapi(example = "gate-1")]
    camera_id: Option<String>,
    /// With true, it may upload for any camera.
    #[openapi(example = "false")]
    any_camera: Option<bool>,
    /// Whether responses to its images name people.
    #[openapi(example = "false")]
    may_see_names: Option<bool>,
    /// Whether its tokens are refused.
    #[openapi(example = "false")]
    disabled: Option<bool>,
}

/// How a token is replaced.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Seconds for which the old token stays valid, unless it expires before: a day by default, 30 days at most.
    #[openapi(minimum = 0, maximum = 2592000, example = "3600")]
    overlap_s: Option<u64>,
    /// When the new one expires, RFC 3339, within ten years: after as long as the old one was made for by default.
    #[openapi(example = "2034-05-06T07:08:09Z")]
    expires_at: Option<String>,
}

/// A camera, person or program that has access.
#[derive(Serialize, Apiv2Schema)]
pub struct Principal {
    /// Its id.
    #[openapi(minimum = 1, example = "7")]
    principal_id: i64,
    /// `camera` or `person`.
    #[openapi(example = "camera")]
    kind: &'static str,
    /// What it is called.
    #[openapi(example = "gate-1")]
    name: String,
    /// What it may do.
    #[openapi(example = "upload")]
    scopes: Vec<&'static str>,
    /// The only camera that it may upload for. Null for any.
    #[openapi(example = "gate-1")]
    camera_id: Option<String>,
    /// Whether responses to its images name people.
    #[openapi(example = "false")]
    may_see_names: bool,
    /// Whether its tokens are refused.
    #[openapi(example = "false")]
    disabled: bool,
    /// When it was added.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
    /// Tokens that have not expired.
    #[openapi(minimum = 0, example = "1")]
    tokens: usize,
    /// The minute in which one of its tokens was used last. Null where none was.
    #[openapi(example = "2024-05-06T07:08:00Z")]
    last_used_at: Option<String>,
}

/// All principals.
#[derive(Serialize, Apiv2Schema)]
pub struct Principals {
    /// By name.
    principals: Vec<Principal>,
    meta: ListMeta,
}

/// A token, without the token itself, which nobody can read again.
#[derive(Serialize, Apiv2Schema)]
pub struct AccessToken {
    /// Its id.
    #[openapi(minimum = 1, example = "17")]
    token_id: i64,
    /// Whose it is.
    #[openapi(minimum = 1, example = "7")]
    principal_id: i64,
    /// What it is for.
    #[openapi(example = "box at the gate")]
    name: String,
    /// What it allows, as long as its principal has these scopes.
    #[openapi(example = "upload")]
    scopes: Vec<&'static str>,
    /// When it was made.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
    /// When it expires or expired.
    #[openapi(example = "2034-05-06T07:08:09Z")]
    expires_at: String,
    /// The minute in which it was used last. Null where it was not.
    #[openapi(example = "2024-05-06T07:08:00Z")]
    last_used_at: Option<String>,
    /// The address that it was used from, the client's where a trusted proxy says it. Null where it was not used.
    #[openapi(example = "203.0.113.7")]
    last_used_address: Option<String>,
}

/// The tokens of a principal.
#[derive(Serialize, Apiv2Schema)]
pub struct AccessTokens {
    /// The oldest first.
    tokens: Vec<AccessToken>,
    meta: ListMeta,
}

/// A new token. It is shown this once.
#[derive(Serialize, Apiv2Schema)]
pub struct IssuedToken {
    /// The token, for `Authorization: Bearer`.
    #[openapi(example = "fp_6f1c0d9e8b7a695847362514031211100f0e0d0c0b0a09080706050403020100a1b2c3d4")]
    token: String,
    #[serde(flatten)]
    details: AccessToken,
}

/// A principal that was added.
#[derive(Serialize, Apiv2Schema)]
pub struct AddedPrincipal {
    principal: Principal,
    /// Its first token. Null where the request wanted none.
    token: Option<IssuedToken>,
}

/// A token that was replaced, and the new one.
#[derive(Serialize, Apiv2Schema)]
pub struct RotatedToken {
    /// The new one.
    new: IssuedToken,
    /// The replaced one, with the time until which it is valid.
    old: AccessToken,
}

/// Everybody who has access, by name
#[api_v2_operation]
pub async fn list(state: web::Data<State>) -> Result<web::Json<Principals>, ApiError> {
    let StoredAccess { principals, tokens, .. } = state.database.stored_access().await?;
    let mut entries = Vec::with_capacity(principals.len());
    let mut of_principals: HashMap<i64, Vec<&TokenRecord>> = HashMap::new();
    for token in &tokens {
        of_principals.entry(token.principal_id).or_default().push(token);
    }
    for record in principals {
        let own = of_principals.remove(&record.id).unwrap_or_default();
        entries.push(Principal::new(record, &own)?);
    }
    let meta = ListMeta { total: entries.len() };
    Ok(web::Json(Principals { principals: entries, meta }))
}

/// Gives access to a camera, person or program
///
/// On a server without tokens, the first principal must have the scope `admin` and get a token; from then on, every request
/// needs one.
#[api_v2_operation]
pub async fn add(
    state: web::Data<State>,
    Caller(requester): Caller,
    body: web::Json<NewPrincipal>,
) -> Result<JsonResponse<AddedPrincipal, 201>, ApiError> {
    let NewPrincipal { kind, name, scopes, camera_id, any_camera, may_see_names, token } = body.into_inner();
    let kind = PrincipalKind::of_row(&kind).ok_or_else(|| {
        let sent: String = kind.chars().take(32).collect();
        invalid("kind", format!("is {sent:?}, it must be \"camera\" or \"person\""))
    })?;
    let is_camera = kind == PrincipalKind::Camera;
    let name = named("name", name)?;
    let default = if is_camera { Scope::Upload } else { Scope::Read };
    let scopes = scopes.map_or_else(|| Ok([default].into_iter().collect()), |scopes| scopes_of(&scopes))?;
    let camera_id = match camera_of(camera_id, any_camera)? {
        None if is_camera => Some(name.clone()),
        chosen => chosen.flatten(),
    };
    let issued = token.map(|token| token.issue(kind, scopes)).transpose()?;
    if !state.access.needs_token() {
        let administers = issued.as_ref().is_some_and(|(_, token)| {
            token.scopes.map_or(scopes, |of_token| scopes.restricted_to(of_token)).contains(Scope::Admin)
        });
        if !administers {
            return Err(ApiError::FirstPrincipal);
        }
    }
    let may_see_names = may_see_names.unwrap_or(!is_camera);
    let (secret, token) = issued.unzip();
    let new = sql::NewPrincipal { kind, name, scopes, camera_id, may_see_names };
    let (record, token) = state.database.add_principal(new, token).await?;
    changed(&state, &requester, record.id, "a principal was added").await;
    let own: Vec<&TokenRecord> = token.iter().collect();
    let principal = Principal::new(record.clone(), &own)?;
    let token = secret.zip(token).map(|(secret, token)| IssuedToken::new(secret, token, record.scopes));
    Ok(JsonResponse::new(AddedPrincipal { principal, token: token.transpose()? }))
}

/// A camera, person or program that has access
#[api_v2_operation]
pub async fn get(state: web::Data<State>, path: web::Path<String>) -> Result<web::Json<Principal>, ApiError> {
    let (record, tokens) = state.database.principal(principal_id(&path)?).await?;
    Ok(web::Json(Principal::new(record, &tokens.iter().collect::<Vec<_>>())?))
}

/// Changes what a camera, person or program may do
///
/// Its tokens stay; they allow what both the token and the principal may do.
#[api_v2_operation]
pub async fn change(
    state: web::Data<State>,
    Caller(requester): Caller,
    path: web::Path<String>,
    body: web::Json<PrincipalUpdate>,
) -> Result<web::Json<Principal>, ApiError> {
    let PrincipalUpdate { name, scopes, camera_id, any_camera, may_see_names, disabled } = body.into_inner();
    let change = PrincipalChange {
        name: name.map(|name| named("name", name)).transpose()?,
        scopes: scopes.as_deref().map(scopes_of).transpose()?,
        camera_id: camera_of(camera_id, any_camera)?,
        may_see_names,
        disabled,
    };
    let id = principal_id(&path)?;
    state.database.change_principal(id, change).await?;
    changed(&state, &requester, id, "a principal was changed").await;
    let (record, tokens) = state.database.principal(id).await?;
    Ok(web::Json(Principal::new(record, &tokens.iter().collect::<Vec<_>>())?))
}

/// Takes access away from a camera, person or program, with all of its tokens
///
/// Every server refuses them within two seconds.
#[api_v2_operation]
pub async fn remove(
    state: web::Data<State>,
    Caller(requester): Caller,
    path: web::Path<String>,
) -> Result<NoContent, ApiError> {
    let id = principal_id(&path)?;
    state.database.remove_principal(id).await?;
    changed(&state, &requester, id, "a principal was removed").await;
    Ok(NoContent::new())
}

/// The tokens of a camera, person or program
#[api_v2_operation]
pub async fn tokens(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<AccessTokens>, ApiError> {
    let (record, tokens) = state.database.principal(principal_id(&path)?).await?;
    let tokens: Vec<AccessToken> =
        tokens.into_iter().map(|token| AccessToken::new(token, record.scopes)).collect::<Result<_, _>>()?;
    let meta = ListMeta { total: tokens.len() };
    Ok(web::Json(AccessTokens { tokens, meta }))
}

/// Makes a token
///
/// The response shows it this once: the server keeps a digest only.
#[api_v2_operation]
pub async fn add_token(
    state: web::Data<State>,
    Caller(requester): Caller,
    path: web::Path<String>,
    body: web::Json<NewToken>,
) -> Result<JsonResponse<IssuedToken, 201>, ApiError> {
    let id = principal_id(&path)?;
    let (record, _) = state.database.principal(id).await?;
    let (secret, token) = body.into_inner().issue(record.kind, record.scopes)?;
    let token = state.database.add_token(id, token).await?;
    changed(&state, &requester, id, "a token was made").await;
    Ok(JsonResponse::new(IssuedToken::new(secret, token, record.scopes)?))
}

/// Revokes a token
///
/// Every server refuses it within two seconds.
#[api_v2_operation]
pub async fn revoke(
    state: web::Data<State>,
    Caller(requester): Caller,
    path: web::Path<String>,
) -> Result<NoContent, ApiError> {
    let id = token_id(&path)?;
    let principal = state.database.revoke_token(id).await?;
    changed(&state, &requester, principal, "a token was revoked").await;
    Ok(NoContent::new())
}

/// Replaces a token by a new one
///
/// The new one has the same name and scopes. The old one stays valid for the overlap, so that its user can be given the new one.
#[api_v2_operation]
pub async fn rotate(
    state: web::Data<State>,
    Caller(requester): Caller,
    path: web::Path<String>,
    body: web::Json<Rotation>,
) -> Result<JsonResponse<RotatedToken, 201>, ApiError> {
    let Rotation { overlap_s, expires_at } = body.into_inner();
    let overlap_s = overlap_s.unwrap_or(OVERLAP_S);
    if overlap_s > MAX_OVERLAP_S {
        return Err(invalid("overlap_s", format!("is {overlap_s}, it must be 0 to {MAX_OVERLAP_S}")));
    }
    let overlap = micros(Duration::from_secs(overlap_s));
    let expires_at = expires_at.as_deref().map(expiry).transpose()?;
    let id = token_id(&path)?;
    let secret = new_token();
    let (old, new) = state.database.rotate_token(id, digest_of(&secret), overlap, expires_at).await?;
    changed(&state, &requester, old.principal_id, "a token was replaced").await;
    let (record, _) = state.database.principal(old.principal_id).await?;
    Ok(JsonResponse::new(RotatedToken {
        new: IssuedToken::new(secret, new, record.scopes)?,
        old: AccessToken::new(old, record.scopes)?,
    }))
}

impl NewToken {
    /// Makes the token and its row, for a principal of this kind with these scopes.
    fn issue(self, kind: PrincipalKind, of_principal: Scopes) -> Result<(String, sql::NewToken), ApiError> {
        let name = self.name.map(|name| label("name", name)).transpose()?.unwrap_or_default();
        let scopes = self.scopes.as_deref().map(scopes_of).transpose()?;
        if let Some(beyond) =
            scopes.and_then(|scopes| scopes.iter().find(|scope| !of_principal.allows(*scope)))
        {
            let reason = format!("has {:?}, which the token's principal does not have", beyond.name());
            return Err(invalid("scopes", reason));
        }
        let expires_at = match self.expires_at.as_deref() {
            Some(text) => expiry(text)?,
            None => now().saturating_add(micros(token_lifetime(kind))),
        };
        let secret = new_token();
        let digest = digest_of(&secret);
        Ok((secret, sql::NewToken { name, digest, scopes, expires_at }))
    }
}

impl Principal {
    fn new(record: PrincipalRecord, tokens: &[&TokenRecord]) -> Result<Self, ApiError> {
        let now = now();
        let PrincipalRecord { id, kind, name, scopes, camera_id, may_see_names, disabled, created_at } =
            record;
        Ok(Self {
            principal_id: id,
            kind: kind.name(),
            name,
            scopes: names(scopes),
            camera_id,
            may_see_names,
            disabled,
            created_at: rfc3339(created_at)?,
            tokens: tokens.iter().filter(|token| token.expires_at > now).count(),
            last_used_at: tokens
                .iter()
                .filter_map(|token| token.last_used_at)
                .max()
                .map(rfc3339)
                .transpose()?,
        })
    }
}

impl AccessToken {
    fn new(token: TokenRecord, of_principal: Scopes) -> Result<Self, ApiError> {
        Ok(Self {
            token_id: token.id,
            principal_id: token.principal_id,
            name: token.name,
            scopes: names(token.scopes.map_or(of_principal, |scopes| of_principal.restricted_to(scopes))),
            created_at: rfc3339(token.created_at)?,
            expires_at: rfc3339(token.expires_at)?,
            last_used_at: token.last_used_at.map(rfc3339).transpose()?,
            last_used_address: token.last_used_address,
        })
    }
}

impl IssuedToken {
    fn new(token: String, record: TokenRecord, of_principal: Scopes) -> Result<Self, ApiError> {
        Ok(Self { token, details: AccessToken::new(record, of_principal)? })
    }
}

/// Makes a change effective in this process at once, and logs it. Other servers poll for it.
async fn changed(state: &State, requester: &Requester, principal: i64, what: &'static str) {
    tracing::info!(principal, by = requester.id, "{what}");
    if let Err(error) = access_follower::refresh(&state.database, &state.access).await {
        tracing::warn!(%error, "who has access cannot be read again yet");
    }
}

fn names(scopes: Scopes) -> Vec<&'static str> {
    scopes.iter().map(Scope::name).collect()
}

/// Reads the id of a path; no principal has an invalid one.
fn principal_id(path: &str) -> Result<i64, ApiError> {
    path.parse().map_err(|_| ApiError::PrincipalNotFound)
}

/// Reads the id of a path; no token has an invalid one.
fn token_id(path: &str) -> Result<i64, ApiError> {
    path.parse().map_err(|_| ApiError::TokenNotFound)
}

/// Checks a name.
fn named(field: &str, name: String) -> Result<String, ApiError> {
    characters(&name, 1, MAX_CHARACTERS).map_err(|reason| invalid(field, reason))?;
    if name.trim() != name {
        return Err(invalid(field, "begins or ends with white space".into()));
    }
    Ok(name)
}

/// Checks a text that may be empty.
fn label(field: &str, text: String) -> Result<String, ApiError> {
    characters(&text, 0, MAX_CHARACTERS).map_err(|reason| invalid(field, reason))?;
    Ok(text)
}

fn scopes_of(names: &[String]) -> Result<Scopes, ApiError> {
    if names.is_empty() {
        return Err(invalid("scopes", "has no scope: leave it out, or name one or more".into()));
    }
    let scopes: Result<Scopes, _> = names.iter().map(|name| name.parse::<Scope>()).collect();
    scopes.map_err(|error| invalid("scopes", error.to_string()))
}

/// Reads the camera of a request: `None` if the request does not mention it, the inner `None` for any.
fn camera_of(camera_id: Option<String>, any: Option<bool>) -> Result<Option<Option<String>>, ApiError> {
    match (camera_id, any) {
        (Some(_), Some(true)) => {
            Err(invalid("camera_id", "is given beside any_camera: leave out one or the other".into()))
        }
        (Some(camera), _) => Ok(Some(Some(named("camera_id", camera)?))),
        (None, Some(true)) => Ok(Some(None)),
        (None, _) => Ok(None),
    }
}

/// Reads when a token expires.
fn expiry(text: &str) -> Result<Micros, ApiError> {
    let (now, field) = (now(), "expires_at");
    let moment = parse_time(text).map_err(|reason| invalid(field, reason))?;
    if moment <= now {
        return Err(invalid(field, "is not in the future".into()));
    }
    if moment > now.saturating_add(micros(MAX_LIFETIME)) {
        return Err(invalid(field, "is more than ten years (3650 days) ahead".into()));
    }
    Ok(moment)
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

fn invalid(field: &str, reason: String) -> ApiError {
    ApiError::InvalidField { field: field.into(), reason }
}
