//! The one place that calls the backend: a method per call of the API.

mod error;
mod operation;
#[cfg(test)]
mod tests;
mod transport;
mod types;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use self::{
    error::ClientError,
    transport::{REQUEST_TIMEOUT, RETRY_LIMIT, Settings},
    types::{
        AccessToken, AccessTokens, AddedImage, AddedPrincipal, AddedToCohort, AuditEntries, AuditEntry,
        AuditVerification, Cameras, Cohort, CohortOutcome, Conflict, ConflictingImage, Dataset, DatasetEntry,
        Decision, Detection, Detections, EnrolledFace, EnrolmentWarning, ErasedFromCohort, ErrorDetail,
        ErrorRate, Face, FaceQuality, Image, ImageDetails, IssuedToken, Job, JobStatus, Jobs,
        JudgedProposals, LastKnownLocation, Model, ModelCalibration, ModelWarning, Models, NamedPerson,
        NamedUnknown, PersonImages, Principal, Principals, Proposals, Results, RotatedToken, Sighting,
        Sightings, SplitUnknown, Track, Unknown, UnknownDetails, Unknowns, Verification,
    },
};
use self::{
    operation::Operation,
    transport::{Body, Part, Transport},
};
use crate::exit::Failure;

/// A client of one backend. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    /// Ids of people by name. Names go into bodies, never into addresses, which proxies log.
    ids: Arc<Mutex<HashMap<String, String>>>,
}

/// A recognition call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognition<'a> {
    /// Recognises faces.
    GetResults,
    /// Recognises faces and stores a detection of each.
    StoreResults {
        camera_id: &'a str,
        /// The camera's location.
        location: &'a str,
    },
}

/// Which face of an image is enrolled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FaceChoice {
    /// The main one.
    Main,
    /// The one of this position among the boxes of the error `several_faces`, from 0.
    Number(u32),
    /// The one at this place: left, top, right, bottom in pixels.
    Box([f32; 4]),
}

/// Entries of the largest page.
const LARGEST_PAGE: &str = "1000";

/// Every call fails with a [`ClientError`] if the server cannot be reached or refuses the request.
impl Client {
    /// Creates a client; nothing is sent yet.
    ///
    /// # Errors
    /// The address is invalid, or the certificates cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self { transport: Transport::new(settings)?, ids: Arc::default() })
    }

    /// Returns the server's address, for messages.
    pub fn address(&self) -> String {
        self.transport.address()
    }

    /// Returns all enrolled people.
    pub async fn dataset(&self) -> Result<Dataset, ClientError> {
        let page = async |cursor: Option<String>| {
            let mut query = vec![("limit", LARGEST_PAGE.to_owned())];
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            self.transport.call::<Dataset>(&operation::DATASET, &[], &query, Body::Nothing).await
        };
        let mut all = page(None).await?;
        while let Some(cursor) = all.meta.next_cursor.take() {
            let next = page(Some(cursor)).await?;
            all.people.extend(next.people);
            all.meta = next.meta;
        }
        all.people.sort_by(|one, other| one.face_id.cmp(&other.face_id));
        Ok(all)
    }

    /// Adds a person. Returns false if there is one of this name.
    pub async fn add_person(&self, id: &str) -> Result<bool, ClientError> {
        let name = Body::Json(json!({ "face_id": id }));
        match self.transport.call::<NamedPerson>(&operation::ADD_PERSON, &[], &[], name).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("person_exists") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the images of a person; none if there is no such person.
    pub async fn person_images(&self, id: &str) -> Result<Option<PersonImages>, ClientError> {
        none_if(
            "person_not_found",
            self.call_for_person(&operation::PERSON_IMAGES, id, &[], Body::Nothing).await,
        )
    }

    /// Enrols the chosen face of an image.
    ///
    /// # Errors
    /// `no_face`, `several_faces`, `duplicate_image`, … if the server cannot use the image.
    pub async fn add_image(
        &self,
        id: &str,
        image: Bytes,
        face: FaceChoice,
    ) -> Result<AddedImage, ClientError> {
        let mut parts = vec![("image", Part::Image(image))];
        match face {
            FaceChoice::Main => {}
            FaceChoice::Number(number) => parts.push(("face", Part::Text(number.to_string()))),
            FaceChoice::Box(corners) => {
                parts.push(("box", Part::Text(corners.map(|corner| corner.to_string()).join(","))));
            }
        }
        self.call_for_person(&operation::ADD_IMAGE, id, &[], Body::Form(parts)).await
    }

    /// Returns an image's person and metadata; none if there is no such image.
    pub async fn image(&self, id: &str) -> Result<Option<ImageDetails>, ClientError> {
        none_if("image_not_found", self.transport.call(&operation::IMAGE, &[id], &[], Body::Nothing).await)
    }

    /// Erases an image. Returns false if there is no such image.
    pub async fn erase_image(&self, id: &str) -> Result<bool, ClientError> {
        let answer = self.transport.send(&operation::ERASE_IMAGE, &[id], &[], Body::Nothing).await;
        Ok(none_if("image_not_found", answer)?.is_some())
    }

    pub async fn rename_person(&self, id: &str, new: &str) -> Result<NamedPerson, ClientError> {
        let name = Body::Json(json!({ "face_id": new }));
        let renamed = self.call_for_person(&operation::RENAME_PERSON, id, &[], name).await?;
        self.forget_id(id);
        Ok(renamed)
    }

    pub async fn erase_person(&self, id: &str) -> Result<(), ClientError> {
        let person = self.person_id(id).await?;
        self.transport.send(&operation::ERASE_PERSON, &[&person], &[], Body::Nothing).await?;
        self.forget_id(id);
        Ok(())
    }

    /// Recognises the faces of an image, each with at most `top_k` predictions (the server's default if none). With
    /// `StoreResults`, `key` makes repetitions idempotent.
    pub async fn recognize(
        &self,
        call: Recognition<'_>,
        image: Bytes,
        key: Option<&str>,
        top_k: Option<u8>,
    ) -> Result<Results, ClientError> {
        let mut parts = vec![("image", Part::Image(image))];
        parts.extend(top_k.map(|top_k| ("top_k", Part::Text(top_k.to_string()))));
        let operation = match call {
            Recognition::GetResults => &operation::GET_RESULTS,
            Recognition::StoreResults { camera_id, location } => {
                parts.push(("camera_id", Part::Text(camera_id.into())));
                parts.push(("location", Part::Text(location.into())));
                if let Some(key) = key {
                    parts.push(("key", Part::Text(key.into())));
                }
                &operation::STORE_RESULTS
            }
        };
        self.transport.call(operation, &[], &[], Body::Form(parts)).await
    }

    /// Sends an image that the server reads and discards, to measure transport alone.
    pub async fn dry_run(&self, image: Bytes) -> Result<(), ClientError> {
        let form = Body::Form(vec![("image", Part::Image(image))]);
        self.transport.send(&operation::DRY_RUN, &[], &[], form).await?;
        Ok(())
    }

    /// Compares the main faces of two images.
    pub async fn verify(&self, first: Bytes, second: Bytes) -> Result<Verification, ClientError> {
        let form = Body::Form(vec![("image", Part::Image(first)), ("image", Part::Image(second))]);
        self.transport.call(&operation::VERIFY, &[], &[], form).await
    }

    /// Adds pictures of strangers to the cohort.
    pub async fn add_to_cohort(&self, images: Vec<Bytes>) -> Result<AddedToCohort, ClientError> {
        let form = Body::Form(images.into_iter().map(|image| ("image", Part::Image(image))).collect());
        self.transport.call(&operation::ADD_TO_COHORT, &[], &[], form).await
    }

    /// Returns the size of the cohort and the sources of its members.
    pub async fn cohort(&self) -> Result<Cohort, ClientError> {
        self.transport.call(&operation::COHORT, &[], &[], Body::Nothing).await
    }

    /// Erases the part of the cohort that the query selects; without one, all of it.
    pub async fn erase_cohort(&self, query: &[(&str, String)]) -> Result<ErasedFromCohort, ClientError> {
        self.transport.call(&operation::ERASE_COHORT, &[], query, Body::Nothing).await
    }

    /// Starts a training on the stored embeddings or, if `full`, from the images.
    pub async fn train(&self, full: bool) -> Result<Job, ClientError> {
        let operation = if full { &operation::TRAIN } else { &operation::OPTIMIZED_TRAIN };
        self.transport.call(operation, &[], &[], Body::Nothing).await
    }

    /// Starts recomputing all embeddings.
    pub async fn generate_embeddings(&self) -> Result<Job, ClientError> {
        self.transport.call(&operation::GENERATE_EMBEDDINGS, &[], &[], Body::Nothing).await
    }

    /// Returns a page of jobs, newest first.
    pub async fn jobs(&self, query: &[(&str, String)]) -> Result<Jobs, ClientError> {
        self.transport.call(&operation::JOBS, &[], query, Body::Nothing).await
    }

    /// Returns a job with its progress.
    pub async fn job(&self, id: &str) -> Result<Job, ClientError> {
        self.transport.call(&operation::JOB, &[id], &[], Body::Nothing).await
    }

    pub async fn cancel_job(&self, id: &str) -> Result<Job, ClientError> {
        self.transport.call(&operation::CANCEL_JOB, &[id], &[], Body::Nothing).await
    }

    /// Returns all models, newest first.
    pub async fn models(&self) -> Result<Models, ClientError> {
        self.transport.call(&operation::MODELS, &[], &[], Body::Nothing).await
    }

    /// Returns a model.
    pub async fn model(&self, version: u64) -> Result<Model, ClientError> {
        self.transport.call(&operation::MODEL, &[&version.to_string()], &[], Body::Nothing).await
    }

    /// Activates a trained model.
    pub async fn activate_model(&self, version: u64) -> Result<Model, ClientError> {
        self.transport.call(&operation::ACTIVATE_MODEL, &[&version.to_string()], &[], Body::Nothing).await
    }

    /// Deletes an inactive model.
    ///
    /// # Errors
    /// `model_active` for the active model.
    pub async fn delete_model(&self, version: u64) -> Result<(), ClientError> {
        self.transport.send(&operation::DELETE_MODEL, &[&version.to_string()], &[], Body::Nothing).await?;
        Ok(())
    }

    /// Returns a detection; none if there is no such detection.
    pub async fn detection(&self, id: i64) -> Result<Option<Detection>, ClientError> {
        let answer = self.transport.call(&operation::DETECTION, &[&id.to_string()], &[], Body::Nothing).await;
        none_if("detection_not_found", answer)
    }

    /// Erases a detection. Returns false if there is no such detection.
    pub async fn erase_detection(&self, id: i64) -> Result<bool, ClientError> {
        let answer =
            self.transport.send(&operation::ERASE_DETECTION, &[&id.to_string()], &[], Body::Nothing).await;
        Ok(none_if("detection_not_found", answer)?.is_some())
    }

    /// Returns a page of sightings. `person` in the query is a Face ID.
    ///
    /// # Errors
    /// `person_not_found`.
    pub async fn sightings(&self, query: &[(&str, String)]) -> Result<Sightings, ClientError> {
        let query = self.with_person_id(query).await?;
        self.transport.call(&operation::SIGHTINGS, &[], &query, Body::Nothing).await
    }

    /// Returns a page of the audit log.
    pub async fn audit(&self, query: &[(&str, String)]) -> Result<AuditEntries, ClientError> {
        self.transport.call(&operation::AUDIT, &[], query, Body::Nothing).await
    }

    /// Checks the audit log.
    pub async fn verify_audit(&self) -> Result<AuditVerification, ClientError> {
        self.transport.call(&operation::VERIFY_AUDIT, &[], &[], Body::Nothing).await
    }

    /// Returns a page of detections. `person` in the query is a Face ID.
    pub async fn detections(&self, query: &[(&str, String)]) -> Result<Detections, ClientError> {
        let query = self.with_person_id(query).await?;
        self.transport.call(&operation::DETECTIONS, &[], &query, Body::Nothing).await
    }

    /// Replaces a Face ID in a query by the person's id.
    async fn with_person_id<'a>(
        &self,
        query: &[(&'a str, String)],
    ) -> Result<Vec<(&'a str, String)>, ClientError> {
        let mut query = query.to_vec();
        for (name, value) in &mut query {
            if *name == "person" {
                (*name, *value) = ("person_id", self.person_id(value).await?);
            }
        }
        Ok(query)
    }

    /// Returns a page of a person's detections in order of time; none if there is no such person.
    pub async fn track(&self, id: &str, query: &[(&str, String)]) -> Result<Option<Track>, ClientError> {
        none_if("person_not_found", self.call_for_person(&operation::TRACK, id, query, Body::Nothing).await)
    }

    /// Returns where a person was seen last; none if never seen.
    ///
    /// # Errors
    /// `person_not_found` for an unknown name.
    pub async fn last_known_location(&self, id: &str) -> Result<Option<LastKnownLocation>, ClientError> {
        let seen = self.call_for_person(&operation::LAST_KNOWN_LOCATION, id, &[], Body::Nothing).await;
        none_if("never_seen", seen)
    }

    /// Returns a page of unknown people.
    pub async fn unknowns(&self, query: &[(&str, String)]) -> Result<Unknowns, ClientError> {
        self.transport.call(&operation::UNKNOWNS, &[], query, Body::Nothing).await
    }

    /// Returns an unknown person with a page of detections; none if there is no such person.
    pub async fn unknown(
        &self,
        id: &str,
        query: &[(&str, String)],
    ) -> Result<Option<UnknownDetails>, ClientError> {
        let answer = self.transport.call(&operation::UNKNOWN, &[id], query, Body::Nothing).await;
        none_if("unknown_not_found", answer)
    }

    /// Merges groups of unknown faces into one.
    pub async fn merge_unknowns(&self, into: &str, others: &[String]) -> Result<Unknown, ClientError> {
        let body = Body::Json(json!({ "unknown_ids": others }));
        self.transport.call(&operation::MERGE_UNKNOWNS, &[into], &[], body).await
    }

    /// Moves detections of a group of unknown faces to a new one.
    pub async fn split_unknown(&self, id: &str, detections: &[i64]) -> Result<SplitUnknown, ClientError> {
        let body = Body::Json(json!({ "detections": detections }));
        self.transport.call(&operation::SPLIT_UNKNOWN, &[id], &[], body).await
    }

    /// Makes an unknown person an enrolled one.
    pub async fn name_unknown(
        &self,
        id: &str,
        name: &str,
        add_to_existing: bool,
    ) -> Result<NamedUnknown, ClientError> {
        let body = Body::Json(json!({ "face_id": name, "add_to_existing": add_to_existing }));
        self.transport.call(&operation::NAME_UNKNOWN, &[id], &[], body).await
    }

    /// Starts searching stored unknown faces for a person.
    pub async fn search_past(&self, person_id: &str) -> Result<Job, ClientError> {
        self.transport.call(&operation::SEARCH_PAST, &[person_id], &[], Body::Nothing).await
    }

    /// Returns a page of proposals.
    pub async fn proposals(&self, query: &[(&str, String)]) -> Result<Proposals, ClientError> {
        self.transport.call(&operation::PROPOSALS, &[], query, Body::Nothing).await
    }

    /// Accepts or refuses proposals by id.
    pub async fn judge_proposals(&self, ids: &[i64], accept: bool) -> Result<JudgedProposals, ClientError> {
        let operation = if accept { &operation::ACCEPT_PROPOSALS } else { &operation::REFUSE_PROPOSALS };
        self.transport.call(operation, &[], &[], Body::Json(json!({ "proposals": ids }))).await
    }

    /// Accepts or refuses all open proposals of a person with at least the score `min_score`.
    pub async fn judge_proposals_of(
        &self,
        person_id: &str,
        min_score: Option<f32>,
        accept: bool,
    ) -> Result<JudgedProposals, ClientError> {
        let operation = if accept { &operation::ACCEPT_PROPOSALS } else { &operation::REFUSE_PROPOSALS };
        let body = match min_score {
            None => json!({ "person_id": person_id }),
            Some(min_score) => json!({ "person_id": person_id, "min_score": min_score }),
        };
        self.transport.call(operation, &[], &[], Body::Json(body)).await
    }

    /// Hides an unknown person from lists, or shows them again.
    pub async fn ignore_unknown(&self, id: &str, ignored: bool) -> Result<Unknown, ClientError> {
        let operation = if ignored { &operation::IGNORE_UNKNOWN } else { &operation::STOP_IGNORING_UNKNOWN };
        self.transport.call(operation, &[id], &[], Body::Nothing).await
    }

    /// Erases an unknown person. Returns false if there is no such person.
    pub async fn erase_unknown(&self, id: &str) -> Result<bool, ClientError> {
        let answer = self.transport.send(&operation::ERASE_UNKNOWN, &[id], &[], Body::Nothing).await;
        Ok(none_if("unknown_not_found", answer)?.is_some())
    }

    /// Starts grouping all unknown faces together again.
    pub async fn recluster_unknowns(&self) -> Result<Job, ClientError> {
        self.transport.call(&operation::RECLUSTER_UNKNOWNS, &[], &[], Body::Nothing).await
    }

    /// Returns everybody who has access.
    pub async fn principals(&self) -> Result<Principals, ClientError> {
        self.transport.call(&operation::PRINCIPALS, &[], &[], Body::Nothing).await
    }

    /// Gives access to a camera, person or program.
    pub async fn add_principal(&self, new: Value) -> Result<AddedPrincipal, ClientError> {
        self.transport.call(&operation::ADD_PRINCIPAL, &[], &[], Body::Json(new)).await
    }

    /// Changes what a camera, person or program may do.
    pub async fn change_principal(&self, id: i64, change: Value) -> Result<Principal, ClientError> {
        self.transport.call(&operation::CHANGE_PRINCIPAL, &[&id.to_string()], &[], Body::Json(change)).await
    }

    /// Takes access away from a camera, person or program.
    pub async fn remove_principal(&self, id: i64) -> Result<(), ClientError> {
        self.transport.send(&operation::REMOVE_PRINCIPAL, &[&id.to_string()], &[], Body::Nothing).await?;
        Ok(())
    }

    /// Returns the tokens of a camera, person or program.
    pub async fn access_tokens(&self, principal: i64) -> Result<AccessTokens, ClientError> {
        self.transport.call(&operation::ACCESS_TOKENS, &[&principal.to_string()], &[], Body::Nothing).await
    }

    /// Makes a token.
    pub async fn add_token(&self, principal: i64, new: Value) -> Result<IssuedToken, ClientError> {
        self.transport.call(&operation::ADD_TOKEN, &[&principal.to_string()], &[], Body::Json(new)).await
    }

    /// Replaces a token by a new one.
    pub async fn rotate_token(&self, id: i64, rotation: Value) -> Result<RotatedToken, ClientError> {
        self.transport.call(&operation::ROTATE_TOKEN, &[&id.to_string()], &[], Body::Json(rotation)).await
    }

    /// Revokes a token. Returns false if there is no such token.
    pub async fn revoke_token(&self, id: i64) -> Result<bool, ClientError> {
        let answer =
            self.transport.send(&operation::REVOKE_TOKEN, &[&id.to_string()], &[], Body::Nothing).await;
        Ok(none_if("token_not_found", answer)?.is_some())
    }

    /// Returns every camera that has a detection.
    pub async fn cameras(&self) -> Result<Cameras, ClientError> {
        self.transport.call(&operation::CAMERAS, &[], &[], Body::Nothing).await
    }

    /// Returns the id of a person, cached until it proves stale.
    pub async fn person_id(&self, name: &str) -> Result<String, ClientError> {
        if let Some(id) = self.ids.lock().ok().and_then(|ids| ids.get(name).cloned()) {
            return Ok(id);
        }
        let body = Body::Json(json!({ "face_id": name }));
        let person: NamedPerson = self.transport.call(&operation::FIND_PERSON, &[], &[], body).await?;
        let id = person.person_id.unwrap_or_default();
        if let Ok(mut ids) = self.ids.lock() {
            ids.insert(name.to_owned(), id.clone());
        }
        Ok(id)
    }

    /// Drops a cached id.
    fn forget_id(&self, name: &str) {
        if let Ok(mut ids) = self.ids.lock() {
            ids.remove(name);
        }
    }

    /// Makes a call whose path has the id of a person.
    async fn call_for_person<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        name: &str,
        query: &[(&str, String)],
        body: Body,
    ) -> Result<T, ClientError> {
        let id = self.person_id(name).await?;
        match self.transport.call(operation, &[&id], query, body.clone()).await {
            // Erased, and perhaps enrolled again under the same name, since the id was cached.
            Err(error) if error.code() == Some("person_not_found") => {
                self.forget_id(name);
                let id = self.person_id(name).await?;
                self.transport.call(operation, &[&id], query, body).await
            }
            answer => answer,
        }
    }
}

/// Converts the error with this code into none.
fn none_if<T>(missing: &str, answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some(missing) => Ok(None),
        Err(error) => Err(error),
    }
}
