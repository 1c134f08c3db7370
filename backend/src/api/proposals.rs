//! `/proposals`: unknown faces of the past that may be of people who were enrolled later.

use actix_web::web;
use paperclip::actix::{Apiv2Schema, api_v2_operation};
use serde::{Deserialize, Serialize};

use super::{
    State,
    detections::{Detection, person_of},
    page::{self, LIST_LIMIT, PageMeta, limit_of},
    rfc3339,
    unknowns::ensure_number,
};
use crate::{
    domain::{self, PersonId, PersonRef},
    error::ApiError,
    store::sql::{Judged, ProposalFilter, SelectedProposals},
    unknowns,
};

/// Query of the list.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct ProposalsQuery {
    /// Only of the person with this Face ID.
    person: Option<String>,
    /// Only of the person with this id: instead of `person`, so that no name stands in an address.
    person_id: Option<String>,
    /// Only the open ones (`proposed`, the default), or only those that were `refused`.
    decided: Option<String>,
    /// Entries of a page, 100 by default.
    limit: Option<String>,
    /// `next_cursor` of the page before, with otherwise the same query.
    cursor: Option<String>,
}

/// A page of proposals.
#[derive(Serialize, Apiv2Schema)]
pub struct Proposals {
    /// The oldest first.
    proposals: Vec<Proposal>,
    meta: PageMeta,
}

/// An unknown face that may be of a person who was enrolled later.
#[derive(Serialize, Apiv2Schema)]
pub struct Proposal {
    /// What accepting and refusing takes.
    #[openapi(example = "17")]
    proposal_id: i64,
    /// The person, as `/people/{person_id}` takes it.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: String,
    /// The name under which the person is enrolled.
    #[openapi(example = "Ada Lovelace")]
    face_id: String,
    /// `proposed` or `refused`.
    #[openapi(example = "proposed")]
    decided: &'static str,
    /// Cosine of the face to the person's mean embedding.
    #[openapi(minimum = -1, maximum = 1, example = "0.8125")]
    score: f32,
    /// The model that found it.
    #[openapi(minimum = 1, example = "7")]
    model_version: i64,
    /// When it was made.
    #[openapi(example = "2024-05-06T07:08:09Z")]
    created_at: String,
    /// The unknown face.
    detection: Detection,
}

/// Which proposals are accepted or refused: `proposals`, or all of `person_id`.
#[derive(Deserialize, Apiv2Schema)]
#[serde(deny_unknown_fields)]
pub struct ProposalSelection {
    /// Their ids, 1 to 10000.
    #[openapi(example = "17")]
    proposals: Option<Vec<i64>>,
    /// The person whose open proposals are meant.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    person_id: Option<String>,
    /// With `person_id`: only those with this score or a higher one.
    #[openapi(minimum = -1, maximum = 1, example = "0.5")]
    min_score: Option<f32>,
}

/// How many proposals were accepted or refused.
#[derive(Serialize, Apiv2Schema)]
pub struct JudgedProposals {
    /// Accepted or refused.
    #[openapi(minimum = 0, example = "17")]
    proposals: usize,
    /// Ids that are of no open proposal: accepted or refused before, or the face or the person was erased.
    #[openapi(minimum = 0, example = "0")]
    not_found: usize,
}

/// Maximum number of ids in a call.
const MAX_IDS: usize = 10_000;

/// Proposals, the oldest first
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<ProposalsQuery>,
) -> Result<web::Json<Proposals>, ApiError> {
    let ProposalsQuery { person, person_id, decided, limit, cursor } = query.into_inner();
    let refused = match decided.as_deref() {
        None | Some("proposed") => false,
        Some("refused") => true,
        Some(other) => {
            return Err(ApiError::InvalidQuery(format!(
                "decided is {other:?}, it must be \"proposed\" or \"refused\""
            )));
        }
    };
    let limit = limit.map_or(Ok(LIST_LIMIT), limit_of)?;
    let filter = ProposalFilter { person: person_of(person, person_id)?, refused };
    let scope = format!("proposals {filter:?}");
    let position = |text: String| {
        let position = page::position_of(&text, &scope);
        position.and_then(|row| i64::try_from(row).ok()).ok_or(ApiError::InvalidCursor)
    };
    let after = cursor.map(position).transpose()?.unwrap_or(0);
    // One row more shows whether there is a next page.
    let rows = state.database.proposals(filter, after, i64::from(limit) + 1).await?;
    let (rows, more) = page::cut(rows, limit);
    let last = rows.last().filter(|_| more);
    let next_cursor = last.map(|row| page::cursor_of(u128::from(row.id.cast_unsigned()), &scope));
    let proposals = rows.into_iter().map(Proposal::try_from).collect::<Result<_, _>>()?;
    Ok(web::Json(Proposals { proposals, meta: PageMeta { next_cursor } }))
}

/// Accepts proposals
///
/// Their detections get the name, and leave their groups of unknown faces.
#[api_v2_operation]
pub async fn accept(
    state: web::Data<State>,
    body: web::Json<ProposalSelection>,
) -> Result<web::Json<JudgedProposals>, ApiError> {
    judge(&state, body.into_inner(), true).await
}

/// Refuses proposals
///
/// They are not made again.
#[api_v2_operation]
pub async fn refuse(
    state: web::Data<State>,
    body: web::Json<ProposalSelection>,
) -> Result<web::Json<JudgedProposals>, ApiError> {
    judge(&state, body.into_inner(), false).await
}

async fn judge(
    state: &State,
    selection: ProposalSelection,
    accept: bool,
) -> Result<web::Json<JudgedProposals>, ApiError> {
    let invalid = |field: &str, reason: String| ApiError::InvalidField { field: field.into(), reason };
    let ProposalSelection { proposals, person_id, min_score } = selection;
    let selected = match (proposals, person_id) {
        (Some(ids), None) => {
            ensure_number("proposals", ids.len(), MAX_IDS)?;
            if min_score.is_some() {
                return Err(invalid("min_score", "goes with person_id: leave it out".into()));
            }
            SelectedProposals::Ids(ids)
        }
        (None, Some(id)) => {
            let min_score = min_score.unwrap_or(-1.0);
            if !(-1.0..=1.0).contains(&min_score) {
                return Err(invalid("min_score", format!("is {min_score}, it must be from -1 to 1")));
            }
            let person = PersonId::parse(&id).ok_or(ApiError::PersonNotFound)?;
            SelectedProposals::Of(PersonRef::Id(person), min_score)
        }
        (Some(_), Some(_)) => {
            let reason = "is given beside person_id: leave out one or the other";
            return Err(invalid("proposals", reason.into()));
        }
        (None, None) => {
            let reason = "is missing: give the ids of proposals, or person_id for all of a person";
            return Err(invalid("proposals", reason.into()));
        }
    };
    let Judged { proposals, missing, blobs } = state.database.judge_proposals(selected, accept).await?;
    unknowns::delete_blobs(&state.blobs, &blobs).await;
    if accept && proposals > 0 {
        // The embeddings of accepted faces are gone.
        state.database.scrub_journal_of_detections().await?;
    }
    Ok(web::Json(JudgedProposals { proposals, not_found: missing }))
}

impl TryFrom<domain::Proposal> for Proposal {
    type Error = ApiError;

    fn try_from(row: domain::Proposal) -> Result<Self, ApiError> {
        Ok(Self {
            proposal_id: row.id,
            person_id: row.person.id.to_string(),
            face_id: row.person.face_id,
            decided: if row.refused { "refused" } else { "proposed" },
            score: row.score,
            model_version: row.model_version,
            created_at: rfc3339(row.created_at)?,
            detection: row.detection.try_into()?,
        })
    }
}
