//! Checks responses against the API's document: those to all calls that the tests make with [`crate::helpers::Server`].
//! A response may have nothing that the document lacks.

use std::sync::LazyLock;

use reqwest::Method;
use serde_json::Value;

use crate::helpers::ApiResponse;

pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&facepipe_backend::openapi_document()).unwrap());

/// Panics where the response deviates from the document.
#[track_caller]
pub fn check(method: &Method, path: &str, answer: &ApiResponse) {
    let response = response(method, path, answer);
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let required = header["required"] == true;
        assert!(!required || answer.headers.contains_key(name), "{method} {path}: no header {name}");
    }
    for name in ["allow", "location", "retry-after", "server-timing", "www-authenticate", "x-next-cursor"] {
        let documented = response["headers"]
            .as_object()
            .is_some_and(|headers| headers.keys().any(|documented| documented.eq_ignore_ascii_case(name)));
        assert!(documented || !answer.headers.contains_key(name), "{method} {path}: the header {name}");
    }
    let Some(content) = response["content"].as_object() else {
        assert!(answer.body.is_null(), "{method} {path}: a body {}", answer.body);
        return;
    };
    let media = answer.headers["content-type"].to_str().unwrap().split(';').next().unwrap();
    assert!(content.contains_key(media), "{method} {path}: the content type {media}");
    if let Err(mistake) = conform(&content[media]["schema"], &answer.body) {
        panic!("{method} {path}: {mistake} in {}", answer.body);
    }
}

fn response(method: &Method, path: &str, answer: &ApiResponse) -> &'static Value {
    let path_only = path.split('?').next().unwrap();
    let matches = |pattern: &str| {
        let (pattern, path): (Vec<_>, Vec<_>) =
            (pattern.split('/').collect(), path_only.split('/').collect());
        pattern.len() == path.len()
            && pattern
                .iter()
                .zip(&path)
                .all(|(pattern, segment)| pattern.starts_with('{') || pattern == segment)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let mut found: Vec<_> = paths.iter().filter(|(pattern, _)| matches(pattern)).collect();
    // A path without parameters is the better match.
    found.sort_by_key(|(pattern, _)| pattern.matches('{').count());
    let operation = found.first().map(|(_, item)| &item[method.as_str().to_lowercase()]);
    let general = &DOCUMENT["components"]["responses"];
    match operation {
        // Pages for browsers are not in the document.
        None | Some(Value::Null) if answer.status == 405 => &general["MethodNotAllowed"],
        None | Some(Value::Null) if answer.status == 401 => &general["Unauthorized"],
        None | Some(Value::Null) if answer.status == 403 => &general["Forbidden"],
        None | Some(Value::Null) => {
            assert_eq!(answer.status, 404, "{method} {path} is not in the document");
            &general["NotFound"]
        }
        Some(operation) => {
            let response = resolve(&operation["responses"][answer.status.as_str()]);
            assert!(response.is_object(), "{method} {path}: the status {} of {}", answer.status, answer.body);
            response
        }
    }
}

/// Checks a value against its schema; knows the keywords of the document. By hand, since the crate `jsonschema` brings 19
/// packages and knows neither `nullable` of OpenAPI 3.0 nor that an undocumented field is an error.
fn conform(schema: &'static Value, value: &Value) -> Result<(), String> {
    let schema = resolve(schema);
    if value.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        conform(part, value)?;
    }
    if let Some(forms) = schema["anyOf"].as_array() {
        let mistakes: Vec<_> = forms.iter().filter_map(|form| conform(form, value).err()).collect();
        return if mistakes.len() < forms.len() { Ok(()) } else { Err(mistakes.join("; ")) };
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        return Err(format!("{value} is none of {values:?}"));
    }
    let number = value.as_f64().unwrap_or_default();
    if schema["minimum"].as_f64().is_some_and(|limit| number < limit)
        || schema["maximum"].as_f64().is_some_and(|limit| number > limit)
    {
        return Err(format!("{value} is out of its range"));
    }
    match (schema["type"].as_str(), value) {
        (None, _) | (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => Ok(()),
        (Some("number"), Value::Number(_)) => Ok(()),
        (Some("integer"), Value::Number(number)) if number.is_i64() => Ok(()),
        (Some("array"), Value::Array(items)) => {
            items.iter().try_for_each(|item| conform(&schema["items"], item))
        }
        (Some("object"), Value::Object(fields)) => {
            for required in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(required.as_str().unwrap()) {
                    return Err(format!("{required} is missing"));
                }
            }
            let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
            for (name, field) in fields {
                match properties.get(name) {
                    Some(property) => {
                        conform(property, field).map_err(|mistake| format!("{name}: {mistake}"))?;
                    }
                    // A part of an `allOf` describes some of the fields.
                    None if schema.get("description").is_none() => (),
                    None => return Err(format!("{name} is unknown")),
                }
            }
            Ok(())
        }
        (Some(wanted), other) => Err(format!("{other} is no {wanted}")),
    }
}

fn resolve(schema: &'static Value) -> &'static Value {
    match schema["$ref"].as_str() {
        Some(reference) => DOCUMENT.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

#[test]
fn deviations_from_the_document_are_detected() {
    let schema = &DOCUMENT["components"]["schemas"]["Prediction"];
    let good = serde_json::json!({ "label": "Ada", "confidence": 0.5 });
    assert_eq!(conform(schema, &good), Ok(()));
    for (wrong, mistake) in [
        (serde_json::json!({ "label": "Ada" }), "missing"),
        (serde_json::json!({ "label": null, "confidence": 0.5 }), "no string"),
        (serde_json::json!({ "label": "Ada", "confidence": 1.5 }), "range"),
        (serde_json::json!({ "label": "Ada", "confidence": 0.5, "more": 1 }), "unknown"),
    ] {
        let told = conform(schema, &wrong).unwrap_err();
        assert!(told.contains(mistake), "{told}");
    }
}
