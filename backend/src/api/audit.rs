//! `/audit`: the audit log.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    State,
    page::{self, LIST_LIMIT, PageMeta, limit_of},
    parse_time, rfc3339,
};
use crate::{
    domain::{AuditAction, AuditFilter, AuditRow, Micros, PrincipalFilter},
    error::ApiError,
};

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only entries of this time or later, RFC 3339. A `+` is sent as `%2B`.
    since: Option<String>,
    /// Only entries before this time, RFC 3339.
    until: Option<String>,
    /// Only entries of this action.
    action: Option<String>,
    /// Only those of the principal with this id, with this name (cameras and tokens of the file), or of this kind.
    principal: Option<String>,
    /// Only those about the object with this id or keyed hash, or about what belongs to the person with this id or hash.
    object: Option<String>,
    /// `newest`, the default, or `oldest`: which entry is first.
    order: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// A page of the audit log.
#[derive(Serialize, Apiv2Schema)]
pub struct AuditEntries {
    /// In the order of `order`.
    entries: Vec<AuditEntry>,
    meta: PageMeta,
}

/// An entry of the audit log.
#[derive(Serialize, Apiv2Schema)]
pub struct AuditEntry {
    /// Counts from 1 without a gap.
    #[openapi(example = "42")]
    id: i64,
    /// When the call was made.
    #[openapi(example = "2024-05-06T07:08:09.25Z")]
    at: String,
    principal: AuditPrincipal,
    /// The client's address. Null where the server did it by itself.
    #[openapi(example = "203.0.113.7")]
    address: Option<String>,
    /// What was done: `look`, `recognise`, `search`, `enrol`, `change`, `erase`, `export`, `train`, `activate`, `operate`,
    /// `access`, `refuse`, or `trim`, by which the server removed old entries.
    #[openapi(example = "look")]
    action: String,
    /// Method and path, without what the call was made with.
    #[openapi(example = "GET /people/{person_id}")]
    route: String,
    /// What it was about. Null where it was about nothing in particular.
    object: Option<AuditObject>,
    /// The request's id, as in `X-Request-Id`. Null where the entry stands for several calls, or for none.
    #[openapi(example = "0190f5a2-7c1e-7b6e-9a51-3d1c5b0f8e11")]
    request_id: Option<String>,
    /// `begun` of an act that begins, whose end is another entry; else `done`, `refused` or `failed`.
    #[openapi(example = "done")]
    outcome: String,
    /// The status of the response. Null of an act that begins.
    #[openapi(example = "200")]
    status: Option<i32>,
    /// For how many calls the entry stands: more than one where calls were refused again and again.
    #[openapi(minimum = 0, example = "1")]
    calls: i64,
    /// `hash` of the entry before. Empty of the first one.
    #[openapi(example = "5f3c1d0e9b8a7f6e5d4c3b2a19080706f5e4d3c2b1a09f8e7d6c5b4a39281706")]
    previous_hash: String,
    /// SHA-256, hexadecimal, of `previous_hash` and of the entry as the page about the audit log says.
    #[openapi(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    hash: String,
}

/// Who made a call.
#[derive(Serialize, Apiv2Schema)]
pub struct AuditPrincipal {
    /// `camera` or `person`; `file` of a token of the token file, `local` on a server without tokens, `anonymous` without a
    /// valid token, `server` of the server itself.
    #[openapi(example = "person")]
    kind: String,
    /// The id of a camera or person. Null of others.
    #[openapi(example = "7")]
    id: Option<i64>,
    /// The name, as it was then of a camera or token, as it is now of a person. Null of others, and of a person who is no
    /// longer there.
    #[openapi(example = "Front desk")]
    name: Option<String>,
}

/// What a call was about.
#[derive(Serialize, Apiv2Schema)]
pub struct AuditObject {
    /// `person`, `image`, `detection`, `unknown`, `model`, `job`, `principal`, `query` of a list with a query, or `log` of
    /// entries that were removed.
    #[openapi(example = "person")]
    kind: String,
    /// Its id. Null once it is erased, and of a query.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    id: Option<String>,
    /// HMAC-SHA-256 of kind and id with a key of this deployment, hexadecimal: the same in all entries about it.
    #[openapi(example = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")]
    hash: String,
    /// The hash of the person whom it belongs to or who was searched for. Null where that is nobody, nobody in particular, or
    /// the object itself.
    #[openapi(example = "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9")]
    person_hash: Option<String>,
}

/// The result of a check of the audit log.
#[derive(Serialize, Apiv2Schema)]
pub struct AuditVerification {
    /// Whether all entries are as they were written.
    #[openapi(example = "true")]
    intact: bool,
    /// Entries that were checked and are intact.
    #[openapi(minimum = 0, example = "42")]
    entries: i64,
    /// The first broken entry. Null where there is none.
    broken: Option<BrokenEntry>,
    /// The last entry that was removed for its age. Null where none was.
    #[openapi(example = "17")]
    trimmed_up_to: Option<i64>,
    /// The last entry. Null of an empty log.
    #[openapi(example = "59")]
    last_id: Option<i64>,
    /// Its hash: noted elsewhere, it shows later whether the log was written again from the beginning. Null of an empty log.
    #[openapi(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    last_hash: Option<String>,
}

/// A broken entry.
#[derive(Serialize, Apiv2Schema)]
pub struct BrokenEntry {
    /// Its id.
    #[openapi(example = "41")]
    id: i64,
    /// `missing`; `content`, where it is not what its hash is of; `link`, where it does not follow the one before; `object`,
    /// where the id is not what the object's hash is of; `end`, where it is not the last one that was written; `beginning`,
    /// where the log does not begin where it says.
    #[openapi(example = "content")]
    fault: String,
}

/// The audit log, the newest entry first
///
/// Who looked at whom, and who enrolled, erased, exported, trained, activated, changed access or was refused. Reading it
/// leaves an entry, too.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<AuditQuery>,
) -> Result<web::Json<AuditEntries>, ApiError> {
    let AuditQuery { since, until, action, principal, object, order, limit, cursor } = query.into_inner();
    let (since, until) = (time_of("since", since)?, time_of("until", until)?);
    let limit = limit.map_or(Ok(LIST_LIMIT), limit_of)?;
    let filter = AuditFilter {
        since,
        until,
        action: action.map(action_of).transpose()?,
        principal: principal.map(|text| match text.parse() {
            Ok(id) => PrincipalFilter::Id(id),
            Err(_) => PrincipalFilter::Name(text),
        }),
        object,
    };
    let oldest_first = match order.as_deref() {
        None | Some("newest") => false,
        Some("oldest") => true,
        Some(other) => {
            return Err(ApiError::InvalidQuery(format!(
                "order is {other:?}, it must be \"newest\" or \"oldest\""
            )));
        }
    };
    let scope = format!("audit {oldest_first} {filter:?}");
    let position = |text: String| {
        let position = page::position_of(&text, &scope).and_then(|position| i64::try_from(position).ok());
        position.ok_or(ApiError::InvalidCursor)
    };
    let after = cursor.map(position).transpose()?;
    // One row more shows whether there is a next page.
    let rows = state.database.audit_rows(filter, oldest_first, after, i64::from(limit) + 1).await?;
    let (rows, more) = page::cut(rows, limit);
    let last = rows.last().filter(|_| more).and_then(|row| u128::try_from(row.id).ok());
    let next_cursor = last.map(|id| page::cursor_of(id, &scope));
    let entries = rows.into_iter().map(|row| AuditEntry::of(&state, row)).collect::<Result<_, _>>()?;
    Ok(web::Json(AuditEntries { entries, meta: PageMeta { next_cursor } }))
}

/// Checks that the audit log is as it was written
///
/// Reads all of it. Names the first entry that was changed, removed or inserted.
#[api_v2_operation]
pub async fn verify(state: web::Data<State>) -> Result<web::Json<AuditVerification>, ApiError> {
    let report = state.database.check_audit().await?;
    let chain = report.chain;
    Ok(web::Json(AuditVerification {
        intact: report.broken.is_none(),
        entries: report.rows,
        broken: report.broken.map(|(id, fault)| BrokenEntry { id, fault: fault.name().into() }),
        trimmed_up_to: Some(chain.trimmed_id).filter(|id| *id > 0),
        last_id: Some(chain.last_id).filter(|id| *id > 0),
        last_hash: Some(chain.last_hash).filter(|hash| !hash.is_empty()),
    }))
}

impl AuditEntry {
    fn of(state: &State, row: AuditRow) -> Result<Self, ApiError> {
        let (object_id, object_hash, person_hash) = (row.object_id, row.object_hash, row.person_hash);
        let now_named = || row.principal_id.and_then(|id| Some(state.access.principal(id)?.name.clone()));
        Ok(Self {
            id: row.id,
            at: rfc3339(row.at)?,
            principal: AuditPrincipal {
                name: row.principal_name.clone().or_else(now_named),
                kind: row.principal_kind,
                id: row.principal_id,
            },
            address: row.address,
            action: row.action,
            route: row.route,
            object: row.object_kind.map(|kind| AuditObject {
                kind,
                id: object_id,
                hash: object_hash.unwrap_or_default(),
                person_hash,
            }),
            request_id: row.request_id,
            outcome: row.outcome,
            status: row.status,
            calls: row.calls,
            previous_hash: row.previous_hash,
            hash: row.hash,
        })
    }
}

fn time_of(name: &str, text: Option<String>) -> Result<Option<Micros>, ApiError> {
    let parse = |text: String| {
        parse_time(&text).map_err(|reason| {
            ApiError::InvalidQuery(format!("{name} is {text:?}, which {reason} (a + is sent as %2B)"))
        })
    };
    text.map(parse).transpose()
}

fn action_of(text: String) -> Result<AuditAction, ApiError> {
    AuditAction::ALL.into_iter().find(|action| action.name() == text).ok_or_else(|| {
        let all = AuditAction::ALL.map(AuditAction::name).join(", ");
        ApiError::InvalidQuery(format!("action is {text:?}, it must be one of {all}"))
    })
}
