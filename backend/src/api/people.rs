//! `/people`: the calls of `/dataset` and `/database` about a person, with an id instead of a name in the address. Proxies
//! and logs record addresses, not bodies.

use actix_web::web;
use paperclip::actix::api_v2_operation;

use super::{
    State,
    database::{self, LastKnownLocation},
    dataset::{
        self, Added, AddedImage, Dataset, EnrolmentForm, PeopleQuery, PersonImages, PersonName, Renaming,
    },
    detections::{self, Track, TrackQuery},
    form::Form,
    model::{self, Started, TrainQuery},
    response::{JsonResponse, NoContent},
    trail,
};
use crate::{
    domain::{PersonId, PersonRef},
    error::ApiError,
};

/// Reads a person's id; nobody has an invalid one.
fn who(path: &str) -> Result<PersonRef, ApiError> {
    PersonId::parse(path).map(PersonRef::Id).ok_or(ApiError::PersonNotFound)
}

/// Everybody, by Face ID
///
/// With `limit` in pages, in the order of enrolment; `conflicts` are on the first one.
#[api_v2_operation]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<PeopleQuery>,
) -> Result<web::Json<Dataset>, ApiError> {
    dataset::everybody(&state, query.into_inner()).await
}

/// Adds a person without images, without a name in the address
#[api_v2_operation]
pub async fn add(
    state: web::Data<State>,
    body: web::Json<PersonName>,
) -> Result<JsonResponse<Added, 201>, ApiError> {
    let name = body.into_inner().checked()?;
    let person = state.database.add_person(&name).await?;
    trail::is_about_person(person.id);
    Ok(JsonResponse::new(person.into()))
}

/// Finds the person with a Face ID, without a name in the address
#[api_v2_operation]
pub async fn search(
    state: web::Data<State>,
    body: web::Json<PersonName>,
) -> Result<web::Json<Added>, ApiError> {
    let name = body.into_inner().checked()?;
    let person = state.database.person(&PersonRef::FaceId(name)).await?;
    trail::is_about_person(person.id);
    Ok(web::Json(person.into()))
}

/// A person and the person's images, the oldest first
#[api_v2_operation]
pub async fn images(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<PersonImages>, ApiError> {
    dataset::images_of(&state, &who(&path)?).await
}

/// Gives a person another Face ID, without a name in the address
///
/// The id stays. Results of the active model and all detections have the new name at once.
#[api_v2_operation]
pub async fn rename(
    state: web::Data<State>,
    path: web::Path<String>,
    body: web::Json<Renaming>,
) -> Result<web::Json<Added>, ApiError> {
    dataset::rename_to(&state, &who(&path)?, body.into_inner()).await
}

/// Erases a person: images, embeddings, name, id
///
/// As `DELETE /dataset/{id}` does.
#[api_v2_operation]
pub async fn erase(state: web::Data<State>, path: web::Path<String>) -> Result<NoContent, ApiError> {
    dataset::erase_whom(&state, &who(&path)?).await
}

/// Enrols an image of a person's face with its embedding, without a name in the address
///
/// As `POST /dataset/{id}/image` does.
#[api_v2_operation]
pub async fn add_image(
    state: web::Data<State>,
    path: web::Path<String>,
    Form(form): Form<EnrolmentForm>,
) -> Result<JsonResponse<AddedImage, 201>, ApiError> {
    dataset::enrol(&state, &who(&path)?, form).await
}

/// Where a person was, in the order of time, without a name in the address
#[api_v2_operation]
pub async fn track(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<TrackQuery>,
) -> Result<web::Json<Track>, ApiError> {
    detections::track_of(&state, who(&path)?, query.into_inner()).await
}

/// Searches stored unknown faces for a person
///
/// Those that the active model knows as this person become proposals (`GET /proposals`): no detection gets a name by itself. One
/// that was refused is not proposed again. After a training it is done for everybody who is new in the model (setting
/// `search_past`). Responds 202 with a queued job, or with `wait=true` 200 with the job and its result.
#[api_v2_operation]
pub async fn search_past(
    state: web::Data<State>,
    path: web::Path<String>,
    query: web::Query<TrainQuery>,
) -> Result<Started, ApiError> {
    model::start_search(&state, &query, &who(&path)?).await
}

/// Where, by which camera and when a person was seen last, without a name in the address
#[api_v2_operation]
pub async fn last_known_location(
    state: web::Data<State>,
    path: web::Path<String>,
) -> Result<web::Json<LastKnownLocation>, ApiError> {
    database::last_location_of(&state, &who(&path)?).await
}
