//! Tests the client against the OpenAPI document: every call is in it, and every response is parsed completely.

use std::{fs, path::Path};

use serde::Serialize;
use serde_json::Value;
use url::Url;

use super::{transport::address, *};

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the document")).expect("JSON")
}

/// Returns the document's description of a call.
fn described<'a>(document: &'a Value, operation: &Operation) -> &'a Value {
    let method = operation.method.as_str().to_ascii_lowercase();
    let described = &document["paths"][operation.path][&method];
    assert!(described.is_object(), "{} {} is not in the document", operation.method, operation.path);
    described
}

/// Parses the example response of a call as `T` and serialises it again; nothing may be lost.
fn parse_completely<T: DeserializeOwned + Serialize>(document: &Value, operation: &Operation, status: &str) {
    let content = &described(document, operation)["responses"][status]["content"]["application/json"];
    let example = &content["example"];
    assert!(example.is_object(), "{} {status} has no example", operation.path);
    let read: T = serde_json::from_value(example.clone())
        .unwrap_or_else(|error| panic!("the example of {} cannot be read: {error}", operation.path));
    let written = serde_json::to_value(&read).expect("JSON");
    assert_eq!(&rounded(&written), &rounded(example), "{}", operation.path);
}

/// Rounds numbers to four decimals: an f32 has more digits when written as an f64.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(format!("{:.4}", number.as_f64().expect("a number"))),
        Value::Array(values) => values.iter().map(rounded).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), rounded(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_call_is_in_the_document() {
    let document = document();
    for operation in operation::ALL {
        described(&document, operation);
    }
}

#[test]
fn no_path_contains_a_name() {
    for operation in operation::ALL {
        assert!(!operation.path.contains("{id}"), "{}", operation.path);
    }
}

#[test]
fn responses_are_parsed_completely() {
    let document = document();
    parse_completely::<Dataset>(&document, &operation::DATASET, "200");
    parse_completely::<PersonImages>(&document, &operation::PERSON_IMAGES, "200");
    parse_completely::<NamedPerson>(&document, &operation::ADD_PERSON, "201");
    parse_completely::<NamedPerson>(&document, &operation::RENAME_PERSON, "200");
    parse_completely::<NamedPerson>(&document, &operation::FIND_PERSON, "200");
    parse_completely::<AddedImage>(&document, &operation::ADD_IMAGE, "201");
    parse_completely::<ImageDetails>(&document, &operation::IMAGE, "200");
    parse_completely::<Results>(&document, &operation::GET_RESULTS, "200");
    parse_completely::<Verification>(&document, &operation::VERIFY, "200");
    parse_completely::<Job>(&document, &operation::JOB, "200");
    parse_completely::<Job>(&document, &operation::OPTIMIZED_TRAIN, "202");
    parse_completely::<Jobs>(&document, &operation::JOBS, "200");
    parse_completely::<Models>(&document, &operation::MODELS, "200");
    parse_completely::<Model>(&document, &operation::MODEL, "200");
    parse_completely::<Model>(&document, &operation::ACTIVATE_MODEL, "200");
    parse_completely::<Detection>(&document, &operation::DETECTION, "200");
    parse_completely::<Detections>(&document, &operation::DETECTIONS, "200");
    parse_completely::<Sightings>(&document, &operation::SIGHTINGS, "200");
    parse_completely::<Track>(&document, &operation::TRACK, "200");
    parse_completely::<LastKnownLocation>(&document, &operation::LAST_KNOWN_LOCATION, "200");
    parse_completely::<AddedToCohort>(&document, &operation::ADD_TO_COHORT, "200");
    parse_completely::<Cohort>(&document, &operation::COHORT, "200");
    parse_completely::<ErasedFromCohort>(&document, &operation::ERASE_COHORT, "200");
    parse_completely::<Unknowns>(&document, &operation::UNKNOWNS, "200");
    parse_completely::<UnknownDetails>(&document, &operation::UNKNOWN, "200");
    parse_completely::<Unknown>(&document, &operation::MERGE_UNKNOWNS, "200");
    parse_completely::<Unknown>(&document, &operation::IGNORE_UNKNOWN, "200");
    parse_completely::<Unknown>(&document, &operation::STOP_IGNORING_UNKNOWN, "200");
    parse_completely::<SplitUnknown>(&document, &operation::SPLIT_UNKNOWN, "201");
    parse_completely::<NamedUnknown>(&document, &operation::NAME_UNKNOWN, "200");
    parse_completely::<Proposals>(&document, &operation::PROPOSALS, "200");
    parse_completely::<JudgedProposals>(&document, &operation::ACCEPT_PROPOSALS, "200");
    parse_completely::<JudgedProposals>(&document, &operation::REFUSE_PROPOSALS, "200");
    parse_completely::<Job>(&document, &operation::SEARCH_PAST, "202");
    parse_completely::<Job>(&document, &operation::RECLUSTER_UNKNOWNS, "202");
    parse_completely::<Principals>(&document, &operation::PRINCIPALS, "200");
    parse_completely::<AddedPrincipal>(&document, &operation::ADD_PRINCIPAL, "201");
    parse_completely::<Principal>(&document, &operation::CHANGE_PRINCIPAL, "200");
    parse_completely::<AccessTokens>(&document, &operation::ACCESS_TOKENS, "200");
    parse_completely::<IssuedToken>(&document, &operation::ADD_TOKEN, "201");
    parse_completely::<RotatedToken>(&document, &operation::ROTATE_TOKEN, "201");
    parse_completely::<AuditEntries>(&document, &operation::AUDIT, "200");
    parse_completely::<AuditVerification>(&document, &operation::VERIFY_AUDIT, "200");
    parse_completely::<Cameras>(&document, &operation::CAMERAS, "200");
}

#[test]
fn form_fields_are_in_the_document() {
    let document = document();
    let fields = |form: &str| document["components"]["schemas"][form]["properties"].clone();
    for name in ["image", "camera_id", "location", "key"] {
        assert!(fields("RecognitionForm")[name].is_object(), "{name}");
    }
    for name in ["image", "box", "face"] {
        assert!(fields("EnrolmentForm")[name].is_object(), "{name}");
        assert!(fields("VerificationForm")[name].is_object(), "{name}");
    }
    assert!(fields("CohortForm")["image"].is_object());
    assert!(fields("Renaming")["face_id"].is_object());
    assert!(fields("UnknownsToMerge")["unknown_ids"].is_object());
    assert!(fields("DetectionsToSplit")["detections"].is_object());
    let named = fields("UnknownName");
    assert!(named["face_id"].is_object() && named["add_to_existing"].is_object());
    let selected = fields("ProposalSelection");
    assert!(["proposals", "person_id", "min_score"].iter().all(|field| selected[field].is_object()));
    assert!(fields("PersonName")["face_id"].is_object());
    for name in ["kind", "name", "scopes", "camera_id", "any_camera", "may_see_names", "token"] {
        assert!(fields("NewPrincipal")[name].is_object(), "{name}");
    }
    for name in ["name", "scopes", "camera_id", "any_camera", "may_see_names", "disabled"] {
        assert!(fields("PrincipalUpdate")[name].is_object(), "{name}");
    }
    assert!(["name", "scopes", "expires_at"].iter().all(|name| fields("NewToken")[name].is_object()));
    assert!(["overlap_s", "expires_at"].iter().all(|name| fields("Rotation")[name].is_object()));
}

#[test]
fn ids_are_percent_encoded_as_one_path_segment() {
    let server = Url::parse("https://example.org/faces/").expect("an address");
    let url = address(&server, &operation::PERSON_IMAGES, &["Ada / Lovelace?"], &[("to", "a+b".into())]);
    assert_eq!(url.as_str(), "https://example.org/faces/people/Ada%20%2F%20Lovelace%3F?to=a%2Bb");
}

#[test]
fn an_invalid_address_is_named() {
    for wrong in ["127.0.0.1:8080", "ftp://example.org", "http://"] {
        let error = Client::new(&Settings::new(wrong)).expect_err("refused").to_string();
        assert!(error.contains("--server") && error.contains(wrong), "{error}");
    }
}
