//! The API calls of this program. A test checks each against the OpenAPI document.

use reqwest::Method;

/// Method and path template of a call, as in the OpenAPI document.
#[derive(Debug)]
pub struct Operation {
    /// HTTP method.
    pub method: Method,
    /// Path with a `{…}` segment for each value.
    pub path: &'static str,
}

macro_rules! operations {
    ($($name:ident: $method:ident $path:literal,)*) => {
        $(
            #[doc = concat!("`", stringify!($method), " ", $path, "`")]
            pub const $name: Operation = Operation { method: Method::$method, path: $path };
        )*
        #[cfg(test)]
        pub const ALL: &[&Operation] = &[$(&$name),*];
    };
}

operations! {
    ACCESS_TOKENS: GET "/access/principals/{principal_id}/tokens",
    ADD_PRINCIPAL: POST "/access/principals",
    ADD_TOKEN: POST "/access/principals/{principal_id}/tokens",
    CHANGE_PRINCIPAL: PATCH "/access/principals/{principal_id}",
    PRINCIPALS: GET "/access/principals",
    REMOVE_PRINCIPAL: DELETE "/access/principals/{principal_id}",
    REVOKE_TOKEN: DELETE "/access/tokens/{token_id}",
    ROTATE_TOKEN: POST "/access/tokens/{token_id}/rotate",
    ACTIVATE_MODEL: POST "/model/{version}/activate",
    ADD_IMAGE: POST "/people/{person_id}/images",
    ADD_PERSON: POST "/people",
    ADD_TO_COHORT: PUT "/cohort",
    AUDIT: GET "/audit",
    VERIFY_AUDIT: GET "/audit/verify",
    CAMERAS: GET "/cameras",
    CANCEL_JOB: DELETE "/jobs/{job_id}",
    COHORT: GET "/cohort",
    DATASET: GET "/dataset",
    DELETE_MODEL: DELETE "/model/{version}",
    DETECTION: GET "/database/detections/{detection_id}",
    DETECTIONS: GET "/database/detections",
    ERASE_IMAGE: DELETE "/images/{image_id}",
    ERASE_COHORT: DELETE "/cohort",
    ERASE_DETECTION: DELETE "/database/detections/{detection_id}",
    ERASE_UNKNOWN: DELETE "/unknowns/{unknown_id}",
    IGNORE_UNKNOWN: POST "/unknowns/{unknown_id}/ignore",
    NAME_UNKNOWN: POST "/unknowns/{unknown_id}/name",
    PROPOSALS: GET "/proposals",
    ACCEPT_PROPOSALS: POST "/proposals/accept",
    REFUSE_PROPOSALS: POST "/proposals/refuse",
    SEARCH_PAST: POST "/people/{person_id}/search-past",
    MERGE_UNKNOWNS: POST "/unknowns/{unknown_id}/merge",
    RECLUSTER_UNKNOWNS: POST "/unknowns/recluster",
    SPLIT_UNKNOWN: POST "/unknowns/{unknown_id}/split",
    STOP_IGNORING_UNKNOWN: DELETE "/unknowns/{unknown_id}/ignore",
    UNKNOWN: GET "/unknowns/{unknown_id}",
    UNKNOWNS: GET "/unknowns",
    ERASE_PERSON: DELETE "/people/{person_id}",
    GENERATE_EMBEDDINGS: POST "/model/generate-emb",
    GET_RESULTS: POST "/face-recognition/get-results",
    IMAGE: GET "/images/{image_id}",
    JOB: GET "/jobs/{job_id}",
    JOBS: GET "/jobs",
    FIND_PERSON: POST "/people/search",
    LAST_KNOWN_LOCATION: GET "/people/{person_id}/last-known-location",
    MODEL: GET "/model/{version}",
    MODELS: GET "/model",
    OPTIMIZED_TRAIN: POST "/model/optimized-train",
    PERSON_IMAGES: GET "/people/{person_id}",
    DRY_RUN: POST "/face-recognition/dry-run",
    RENAME_PERSON: PATCH "/people/{person_id}",
    SIGHTINGS: GET "/database/sightings",
    STORE_RESULTS: POST "/face-recognition/store-results",
    TRACK: GET "/people/{person_id}/track",
    TRAIN: POST "/model/train",
    VERIFY: POST "/face-recognition/verify",
}
