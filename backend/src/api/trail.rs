//! Records calls in the audit log. An act has a row before it begins, and is refused where that cannot be written; its
//! outcome is a second row. A look has one row, before the response leaves.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix_web::{
    Error, HttpMessage as _,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{StatusCode, header},
    middleware::Next,
    web,
};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use super::{
    State,
    admission::client_address,
    routes::{self, without_patterns},
};
use crate::{
    access::{Principal, PrincipalKind, Scope},
    audit::AuditError,
    domain::{
        AuditAction, AuditEntry, AuditObject, AuditObjectKind, AuditOutcome, FaceId, PersonId, PersonRef,
        UnknownId, now,
    },
    error::ApiError,
    metrics::known_method,
    request_id::RequestId,
};

/// The subject of a call.
#[derive(Debug, Clone, Default)]
struct Subject {
    object: Option<AuditObject>,
    person: Option<PersonId>,
    /// Whether the response shows nobody.
    is_empty: bool,
}

tokio::task_local! {
    static SUBJECT: Rc<RefCell<Subject>>;
}

fn set(subject: Subject) {
    // Without a subject, the call is not recorded.
    let _ = SUBJECT.try_with(|current| *current.borrow_mut() = subject);
}

/// Notes that the call is about a person, if its address does not name the person.
pub fn is_about_person(id: PersonId) {
    set(Subject { object: Some(AuditObject::person(id)), ..Subject::default() });
}

/// Notes that the call is about an image of a person.
pub fn is_about_image(id: &str, person: PersonId) {
    let object = AuditObject { kind: AuditObjectKind::Image, id: id.to_owned() };
    set(Subject { object: Some(object), person: Some(person), is_empty: false });
}

/// Notes the person that the object of the address belongs to.
pub fn belongs_to(person: PersonId) {
    let _ = SUBJECT.try_with(|current| current.borrow_mut().person = Some(person));
}

/// Notes that the response shows nobody, as most responses to a client that polls for news do: such a call leaves no
/// row.
pub fn shows_nobody() {
    let _ = SUBJECT.try_with(|current| current.borrow_mut().is_empty = true);
}

/// Records a call whose route has an action.
///
/// # Errors
/// Those of the request.
pub async fn record(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<EitherBody<impl MessageBody>>, Error> {
    let Some((state, call)) = audited(&request) else {
        return Ok(next.call(request).await?.map_into_left_body());
    };
    let subject = subject_of(&state, &request).await;
    if !call.action.only_reads() {
        let begun = call.entry(AuditOutcome::Begun, None, subject.clone());
        if let Err(error) = state.audit.append(begun).await {
            // Returns a response, not an error: the outer middleware logs responses.
            return Ok(request.error_response(refused(error)).map_into_right_body());
        }
    }
    let said = Rc::new(RefCell::new(subject));
    let outcome = SUBJECT.scope(Rc::clone(&said), next.call(request)).await;
    let status = match &outcome {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let subject = said.take();
    if subject.is_empty && status.is_success() && call.action == AuditAction::Look {
        return Ok(outcome?.map_into_left_body());
    }
    let call = match &outcome {
        Ok(response) if call.action == AuditAction::Look && is_table(response) => {
            Call { action: AuditAction::Export, ..call }
        }
        _ => call,
    };
    let ended = call.entry(AuditOutcome::of_status(status.as_u16()), Some(status), subject);
    let written = state.audit.append(ended).await;
    let response = outcome?;
    match written {
        // Only a look that succeeded is refused: an error shows nothing, and an act is done, with a row about its
        // beginning.
        Err(error) if call.action.only_reads() && !is_failure(status) => {
            Ok(response.error_response(refused(error)).map_into_right_body())
        }
        _ => Ok(response.map_into_left_body()),
    }
}

/// Records refusals: responses 401 and 403 of all routes.
///
/// # Errors
/// Those of the request.
pub async fn record_refusals(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<State>>().cloned();
    let response = next.call(request).await?;
    let status = response.status();
    if let Some(state) = state
        && state.audit.is_on()
        && matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    {
        let request = response.request();
        let address = Some(client_address(request, &state).to_string());
        let principal = request.extensions().get::<Arc<Principal>>().cloned();
        let principal = principal.unwrap_or_else(|| state.access.anonymous());
        let pattern = request.match_pattern();
        let path = pattern.map_or_else(|| "-".to_owned(), |pattern| without_patterns(&pattern));
        let method = super::head::sent_method(request);
        // Clients choose other methods, which may be long: they would not fit the column.
        let route = format!("{} {path}", known_method(&method).unwrap_or("OTHER"));
        let call = Call { action: AuditAction::Refuse, principal, address, route };
        state.audit.refuse(call.entry(AuditOutcome::Refused, Some(status), Subject::default()));
    }
    Ok(response)
}

/// A call that is recorded.
struct Call {
    action: AuditAction,
    principal: Arc<Principal>,
    address: Option<String>,
    route: String,
}

impl Call {
    fn entry(&self, outcome: AuditOutcome, status: Option<StatusCode>, subject: Subject) -> AuditEntry {
        // The list of principals has a person's name, as long as the person exists.
        let is_machine = matches!(self.principal.kind, PrincipalKind::Camera | PrincipalKind::File);
        AuditEntry {
            at: now(),
            principal_kind: self.principal.kind.name(),
            principal_id: self.principal.id,
            principal_name: Some(self.principal.name.clone()).filter(|_| is_machine),
            address: self.address.clone(),
            action: self.action,
            route: self.route.clone(),
            object: subject.object,
            person: subject.person,
            request_id: RequestId::current().map(|id| id.to_string()),
            outcome,
            status: status.map(|status| status.as_u16()),
            calls: 1,
        }
    }
}

/// Returns the recorded call of a request; `None` of one that leaves no trail.
fn audited(request: &ServiceRequest) -> Option<(web::Data<State>, Call)> {
    let state = request.app_data::<web::Data<State>>()?;
    let principal = request.extensions().get::<Arc<Principal>>().cloned()?;
    if !state.audit.is_on() {
        return None;
    }
    let route = routes::matching(request.match_info().unprocessed())?;
    let method = routes::method_of(route, request.method())?;
    let action = method.audit?;
    if action == AuditAction::Recognise && is_camera(&principal, method.scope) {
        return None;
    }
    let address = Some(client_address(request.request(), state).to_string());
    let route = format!("{} {}", method.name.to_uppercase(), route.plain_path());
    Some((state.clone(), Call { action, principal, address, route }))
}

/// Returns whether a principal recognises faces as a camera does, with nobody looking at the response. `scope` is that
/// of the call.
fn is_camera(principal: &Principal, scope: Option<Scope>) -> bool {
    match principal.kind {
        PrincipalKind::Camera => true,
        PrincipalKind::File => !principal.scopes.allows(Scope::Admin),
        // Without tokens, uploads come from cameras.
        PrincipalKind::Local => scope == Some(Scope::Upload),
        PrincipalKind::Person | PrincipalKind::Anonymous => false,
    }
}

/// Reads the object of a request from its address.
async fn subject_of(state: &State, request: &ServiceRequest) -> Subject {
    let mut subject = Subject::default();
    let parameters = routes::matching_with_parameters(request.match_info().unprocessed());
    for (name, value) in parameters.map(|(_, parameters)| parameters).unwrap_or_default() {
        let Ok(value) = percent_decode_str(&value).decode_utf8() else { continue };
        if name == "id" {
            subject.person = person_named(state, value.into_owned()).await;
        } else {
            subject.object = object_of(&name, &value);
        }
    }
    let query = request.query_string();
    if subject.object.is_none() {
        // The address names the person, who is the object.
        subject.object = subject.person.take().map(AuditObject::person);
    }
    if subject.object.is_none() && !query.is_empty() {
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "person_id" => subject.person = PersonId::parse(&value),
                "person" => subject.person = person_named(state, value.into_owned()).await,
                _ => (),
            }
        }
        subject.object = Some(AuditObject { kind: AuditObjectKind::Query, id: query.to_owned() });
    }
    subject
}

async fn person_named(state: &State, name: String) -> Option<PersonId> {
    let name = FaceId::try_from(name).ok()?;
    state.database.person(&PersonRef::FaceId(name)).await.ok().map(|person| person.id)
}

/// Returns the object of a parameter of a path, if its value can be one.
fn object_of(parameter: &str, value: &str) -> Option<AuditObject> {
    let number = || value.parse::<i64>().ok().map(|number| number.to_string());
    let uuid = || Uuid::try_parse(value).ok().map(|id| id.hyphenated().to_string());
    let (kind, id) = match parameter {
        "person_id" => (AuditObjectKind::Person, PersonId::parse(value).map(|id| id.to_string())),
        "image_id" => (AuditObjectKind::Image, uuid()),
        "detection_id" => (AuditObjectKind::Detection, number()),
        "unknown_id" => (AuditObjectKind::Unknown, UnknownId::parse(value).map(|id| id.to_string())),
        "version" => (AuditObjectKind::Model, number()),
        "job_id" => (AuditObjectKind::Job, uuid()),
        "principal_id" | "principal" => (AuditObjectKind::Principal, number()),
        _ => return None,
    };
    Some(AuditObject { kind, id: id? })
}

fn is_table<B>(response: &ServiceResponse<B>) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    media.is_some_and(|media| media.starts_with("text/csv"))
}

fn is_failure(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn refused(error: AuditError) -> ApiError {
    match error {
        AuditError::Unreachable(cause) => ApiError::DatabaseUnavailable(cause),
        AuditError::Failed(cause) => ApiError::AuditUnavailable(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_paths_have_one_spelling_and_nothing_else_is_one() {
        let id = "018F4C9A-7B1E-7C3D-9A2F-5D6E7F8A9B0C";
        for (parameter, value, expected) in [
            ("person_id", id, Some(("person", id.to_lowercase()))),
            ("unknown_id", id, Some(("unknown", id.to_lowercase()))),
            ("image_id", id, Some(("image", id.to_lowercase()))),
            ("version", "007", Some(("model", "7".to_owned()))),
            ("detection_id", "7\0", None),
            ("image_id", "../secret", None),
            ("person_id", "Ada", None),
            ("file", "x", None),
        ] {
            let found = object_of(parameter, value).map(|object| (object.kind.name(), object.id));
            assert_eq!(found, expected, "{parameter} {value}");
        }
    }
}
