//! The API's document, OpenAPI 3.0: from the handlers' types by paperclip, and from the tables in `calls.rs` where
//! types cannot say it. What paperclip loses or cannot express is mended in this folder and nowhere else.

mod calls;
mod page;
mod schemas;

pub use page::{page, serve};

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{App, ResponseError as _};
use paperclip::{
    actix::{Mountable as _, OpenApiExt as _, OperationModifier, web},
    v2::{
        models::{
            DataType, DataTypeFormat, DefaultApiRaw, DefaultOperationRaw, DefaultSchemaRaw, MediaRange,
        },
        schema::{Apiv2Errors, Apiv2Schema, TypedData},
    },
};
use serde_json::{Map, Value, json};

use self::calls::{CALLS, Call};
use super::{
    form::{Form, ImagePart, TextPart},
    roles::role_of,
};
use crate::{
    config::ServerRole,
    error::{ApiError, ErrorBody},
};

const MULTIPART: &str = "multipart/form-data";
const JSON: &str = "application/json";

/// What the document calls the way in which tokens are sent.
const TOKEN: &str = "token";
/// What the document calls the answers to requests whose token does not do.
const UNAUTHORIZED: &str = "Unauthorized";
const FORBIDDEN: &str = "Forbidden";

/// The API's document as `/openapi.json` serves it: OpenAPI 3.0, JSON, everything in alphabetical order.
pub fn document() -> String {
    document_at(None, false)
}

/// The document of a server that its clients find at a URL, without a `/` at its end, and that may have the guide.
pub fn document_at(public_url: Option<&str>, has_guide: bool) -> String {
    let (mut document, _) = build();
    if let Some(document) = document.as_object_mut() {
        if let Some(url) = public_url {
            let server = json!({ "url": url, "description": "The server that this document is from." });
            document.insert("servers".into(), json!([server]));
        }
        if has_guide {
            let url = format!("{}/docs/guide/", public_url.unwrap_or_default());
            let guide = "elements, pipelines, programs, deployment and operation";
            // Swagger UI shows no external documentation of a document whose own address is relative.
            let description = format!("{}\n\n**The [guide]({url})** has {guide}.", calls::DESCRIPTION);
            if let Some(info) = document.get_mut("info").and_then(Value::as_object_mut) {
                info.insert("description".into(), description.into());
            }
            document.insert(
                "externalDocs".into(),
                json!({ "url": url, "description": format!("The guide: {guide}") }),
            );
        }
    }
    document.sort_all_objects();
    // A Value can always be written.
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    format!("{text}\n")
}

// The errors of each call stand in the table: a type would add all of them to every call.
impl Apiv2Errors for ApiError {}

impl<T> Apiv2Schema for Form<T> {}

/// A form is a body with a media type of its own, which Swagger 2 does not have: there, a form is a list of
/// parameters, of which the conversion loses arrays of files and what is required.
impl<T: Apiv2Schema> OperationModifier for Form<T> {
    fn update_parameter(operation: &mut DefaultOperationRaw) {
        web::Json::<T>::update_parameter(operation);
        operation.consumes = MULTIPART.parse().ok().map(|media| BTreeSet::from([MediaRange(media)]));
    }

    fn update_definitions(definitions: &mut BTreeMap<String, DefaultSchemaRaw>) {
        web::Json::<T>::update_definitions(definitions);
    }
}

impl TypedData for ImagePart {
    fn data_type() -> DataType {
        DataType::File
    }

    fn format() -> Option<DataTypeFormat> {
        Some(DataTypeFormat::Binary)
    }
}

impl TypedData for TextPart {
    fn data_type() -> DataType {
        DataType::String
    }
}

/// The document, and what is wrong with it: a test finds nothing.
fn build() -> (Value, Vec<String>) {
    let mut problems = Vec::new();
    let mut swagger = collect();
    swagger.definitions = schemas::give_names(swagger.definitions, &mut problems);
    let raw = swagger.definitions.clone();
    let forms = forms(&swagger);
    let converted = convert(swagger);

    let schemas = converted.pointer("/components/schemas").and_then(Value::as_object).cloned();
    let schemas = schemas::finish(&raw, schemas.unwrap_or_default(), &mut problems);
    let mut builder = Builder {
        schemas,
        forms,
        parameters: calls::parameters().into_iter().collect(),
        headers: calls::headers().into_iter().collect(),
        used: BTreeSet::new(),
        problems,
    };
    let paths = builder.paths(converted.get("paths"));
    let responses = json!({
        "NotFound": builder.errors(&[ApiError::NotFound]),
        "MethodNotAllowed":
            builder.errors(&[ApiError::MethodNotAllowed { method: "PUT".into(), allowed: "GET, HEAD, POST".into() }]),
        UNAUTHORIZED: builder.errors(&[ApiError::Unauthorized]),
        FORBIDDEN: builder.errors(&[ApiError::Forbidden]),
    });
    builder.check_used();
    let document = json!({
        "openapi": "3.0.3",
        "info": {
            "title": "facepipe",
            "version": env!("CARGO_PKG_VERSION"),
            "description": calls::DESCRIPTION,
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "servers": [{ "url": "/", "description": "The server that this document is from." }],
        "tags": calls::TAGS
            .iter()
            .map(|(name, description)| json!({ "name": name, "description": description }))
            .collect::<Value>(),
        "paths": paths,
        "security": [{ TOKEN: [] }],
        "components": {
            "schemas": builder.schemas,
            "responses": responses,
            "securitySchemes": { TOKEN: calls::token_scheme() },
        },
    });
    (document, builder.problems)
}

/// What paperclip knows of the routes, as Swagger 2.
fn collect() -> DefaultApiRaw {
    let mut api = DefaultApiRaw::default();
    // Only an App hands out what routes are put into; this one serves nobody.
    drop(App::new().configure(|config| {
        let mut config = web::ServiceConfig::from(config);
        super::routes(&mut config);
        api.definitions = config.definitions();
        config.update_operations(&mut api.paths);
    }));
    calls::TYPES.iter().for_each(|define| define(&mut api.definitions));
    api
}

/// Route and method of the calls that take a form: the conversion calls every body JSON.
fn forms(swagger: &DefaultApiRaw) -> BTreeSet<(String, String)> {
    let mut forms = BTreeSet::new();
    for (route, item) in &swagger.paths {
        let takes_form = item.methods.iter().filter(|(_, operation)| operation.consumes.is_some());
        forms.extend(takes_form.map(|(method, _)| (route.clone(), method.to_string().to_lowercase())));
    }
    forms
}

/// Swagger 2 as OpenAPI 3.
fn convert(swagger: DefaultApiRaw) -> Value {
    let mut converted = Value::Null;
    drop(App::new().wrap_api_with_spec(swagger).with_raw_json_spec_v3(|app, document| {
        converted = document;
        app
    }));
    converted
}

struct Builder {
    schemas: Map<String, Value>,
    /// Route and method of the calls with a form.
    forms: BTreeSet<(String, String)>,
    parameters: BTreeMap<&'static str, Value>,
    headers: BTreeMap<&'static str, Value>,
    /// Parameters and headers that a call has.
    used: BTreeSet<String>,
    problems: Vec<String>,
}

impl Builder {
    fn paths(&mut self, converted: Option<&Value>) -> Value {
        let mut described: BTreeMap<(String, String), &Call> =
            CALLS.iter().map(|call| ((call.method.to_lowercase(), call.path.to_owned()), call)).collect();
        let mut paths = Map::new();
        for (route, item) in converted.and_then(Value::as_object).into_iter().flatten() {
            let path = without_patterns(route);
            let mut operations = Map::new();
            for (method, raw) in item.as_object().into_iter().flatten() {
                match described.remove(&(method.clone(), path.clone())) {
                    Some(call) => {
                        let takes_form = self.forms.contains(&(route.clone(), method.clone()));
                        operations.insert(method.clone(), self.operation(call, raw, takes_form));
                    }
                    None if raw.is_object() => {
                        self.problems
                            .push(format!("{method} {path} is a route that the table of calls lacks"));
                    }
                    // Of a path itself, not of a method.
                    None => (),
                }
            }
            paths.insert(path, operations.into());
        }
        for (method, path) in described.into_keys() {
            self.problems.push(format!("{method} {path} is in the table of calls, and no route"));
        }
        paths.into()
    }

    fn operation(&mut self, call: &Call, raw: &Value, takes_form: bool) -> Value {
        let place = format!("{} {}", call.method, call.path);
        if !calls::TAGS.iter().any(|(tag, _)| *tag == call.tag) {
            self.problems.push(format!("{place} has a tag that is none: {}", call.tag));
        }
        let mut operation = Map::new();
        operation.insert("operationId".into(), operation_id(call.method, call.path).into());
        operation.insert("tags".into(), json!([call.tag]));
        match raw.get("summary").and_then(Value::as_str) {
            Some(summary) => drop(operation.insert("summary".into(), flowing(summary).into())),
            None => self.problems.push(format!("the handler of {place} has no doc comment")),
        }
        let mut description = raw.get("description").and_then(Value::as_str).map(flowing).unwrap_or_default();
        if let Some(body) = raw.get("requestBody") {
            if call.method == "GET" {
                description.push_str(
                    "\n\nThe request's body is the form that POST takes: OpenAPI has no place for the body of a GET, \
                     and browsers send none.",
                );
            } else {
                operation.insert("requestBody".into(), self.request_body(call, &place, body, takes_form));
            }
        }
        if !description.is_empty() {
            operation.insert("description".into(), description.trim().into());
        }
        let parameters: Vec<Value> = raw
            .get("parameters")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|parameter| self.parameter(&place, parameter))
            .collect();
        if !parameters.is_empty() {
            operation.insert("parameters".into(), parameters.into());
        }
        operation.insert("responses".into(), self.responses(call, &place, raw.get("responses")));
        if call.open {
            operation.insert("security".into(), json!([]));
        }
        operation.into()
    }

    fn parameter(&mut self, place: &str, raw: &Value) -> Value {
        let name = raw.get("name").and_then(Value::as_str).unwrap_or_default();
        let mut parameter = json!({
            "name": name,
            "in": raw.get("in"),
            "required": raw.get("required").and_then(Value::as_bool).unwrap_or_default(),
        });
        if let Some(description) = raw.get("description").and_then(Value::as_str)
            && let Some(parameter) = parameter.as_object_mut()
        {
            parameter.insert("description".into(), flowing(description).into());
        }
        self.used.insert(name.to_owned());
        match (self.parameters.get(name).and_then(Value::as_object), parameter.as_object_mut()) {
            // What stands at the type of a query goes before what the table says of the same name in paths.
            (Some(more), Some(parameter)) => {
                for (key, value) in more {
                    parameter.entry(key.as_str()).or_insert_with(|| value.clone());
                }
            }
            _ => self
                .problems
                .push(format!("the parameter {name} of {place} is not in the table of parameters")),
        }
        if parameter.get("description").is_none() {
            self.problems.push(format!("the parameter {name} of {place} has no description"));
        }
        parameter
    }

    fn request_body(&mut self, call: &Call, place: &str, raw: &Value, takes_form: bool) -> Value {
        let schema = raw.pointer("/content/application~1json/schema").cloned().unwrap_or_default();
        let Some((name, form)) = schemas::referred(&schema, &self.schemas) else {
            self.problems.push(format!("the body of {place} is of no named type"));
            return Value::Null;
        };
        if !takes_form {
            let example = schemas::example(&name, &schema, &self.schemas, &mut self.problems);
            return json!({ "required": true, "content": { JSON: { "schema": schema, "example": example } } });
        }
        let mut schema = schema;
        if !call.required.is_empty() {
            let mut form = form.clone();
            if let Some(required) = form.get_mut("required").and_then(Value::as_array_mut) {
                required.extend(call.required.iter().map(|field| json!(field)));
            }
            schema = form;
        }
        json!({ "required": true, "content": { MULTIPART: { "schema": schema } } })
    }

    fn responses(&mut self, call: &Call, place: &str, raw: Option<&Value>) -> Value {
        let mut responses = Map::new();
        for (status, answer) in raw.and_then(Value::as_object).into_iter().flatten() {
            responses.insert(status.clone(), self.answer(call, place, status, answer));
        }
        let mut by_status: BTreeMap<u16, Vec<ApiError>> = BTreeMap::new();
        for sample in call.errors.iter().copied().flatten() {
            let error = sample();
            by_status.entry(error.status_code().as_u16()).or_default().push(error);
        }
        let served_by = role_of(call.path);
        let other = match served_by {
            ServerRole::All => None,
            ServerRole::Recognize => Some(ServerRole::Manage),
            ServerRole::Manage => Some(ServerRole::Recognize),
        };
        if let Some(role) = other {
            let error = ApiError::OtherRole { role: role.as_str(), served_by: served_by.as_str() };
            by_status.entry(error.status_code().as_u16()).or_default().push(error);
        }
        for (status, errors) in by_status {
            responses.insert(status.to_string(), self.errors(&errors));
        }
        if !call.open {
            for (status, name) in [("401", UNAUTHORIZED), ("403", FORBIDDEN)] {
                let reference = json!({ "$ref": format!("#/components/responses/{name}") });
                responses.insert(status.into(), reference);
            }
        }
        responses.into()
    }

    fn answer(&mut self, call: &Call, place: &str, status: &str, raw: &Value) -> Value {
        let is_status = |number: u16| number.to_string() == status;
        let mut description = raw.get("description").cloned().unwrap_or_default();
        let mut content = Map::new();
        for (media, body) in raw.get("content").and_then(Value::as_object).into_iter().flatten() {
            let schema = body.get("schema").cloned().unwrap_or_default();
            let described = schemas::referred(&schema, &self.schemas).map_or(&schema, |(_, schema)| schema);
            if let Some(text) = described.get("description").and_then(Value::as_str) {
                description = flowing(text).into();
            }
            let mut body = json!({ "schema": schema });
            if media == JSON {
                let example = schemas::example(place, &schema, &self.schemas, &mut self.problems);
                body = json!({ "schema": schema, "example": example });
            }
            content.insert(media.clone(), body);
        }
        for (_, media, example) in call.also.iter().filter(|(number, ..)| is_status(*number)) {
            content
                .insert((*media).to_owned(), json!({ "schema": { "type": "string" }, "example": example }));
        }
        let names = call.headers.iter().filter(|(number, _)| is_status(*number)).map(|(_, name)| *name);
        let headers = self.headers(names);
        let mut response = Map::new();
        response.insert("description".into(), description);
        if !content.is_empty() {
            response.insert("content".into(), content.into());
        }
        if !headers.is_empty() {
            response.insert("headers".into(), headers.into());
        }
        let mut links = Map::new();
        for link in call.links.iter().filter(|link| is_status(link.status)) {
            let (method, path) = link.to;
            if !CALLS.iter().any(|call| (call.method, call.path) == link.to) {
                self.problems.push(format!("{place} leads to {method} {path}, which is no call"));
            }
            let operation = operation_id(method, path);
            let parameters: Map<String, Value> =
                link.parameters.iter().map(|(name, place)| ((*name).to_owned(), json!(place))).collect();
            links.insert(operation.clone(), json!({ "operationId": operation, "parameters": parameters }));
        }
        if !links.is_empty() {
            response.insert("links".into(), links.into());
        }
        response.into()
    }

    /// The errors of one status.
    fn errors(&mut self, errors: &[ApiError]) -> Value {
        let status = errors.first().map_or(0, |error| error.status_code().as_u16());
        let mut examples = Map::new();
        let mut lines = Vec::new();
        for error in errors {
            lines.push(format!("`{}`: {error}", error.code()));
            examples.insert(error.code().to_owned(), json!({ "value": ErrorBody { error: error.detail() } }));
        }
        let codes: Vec<&str> = examples.keys().map(String::as_str).collect();
        let code = json!({ "type": "string", "enum": codes });
        let description = match lines.as_slice() {
            [line] => line.clone(),
            lines => format!("- {}", lines.join("\n- ")),
        };
        let schema = json!({ "allOf": [
            { "$ref": "#/components/schemas/Error" },
            { "type": "object", "properties": { "error": { "type": "object", "properties": { "code": code } } } },
        ] });
        let mut response = json!({
            "description": description,
            "content": { JSON: { "schema": schema, "examples": examples } },
        });
        let names =
            calls::ERROR_HEADERS.iter().filter(|(number, _)| *number == status).map(|(_, name)| *name);
        let headers = self.headers(names);
        if !headers.is_empty()
            && let Some(response) = response.as_object_mut()
        {
            response.insert("headers".into(), headers.into());
        }
        response
    }

    fn headers(&mut self, names: impl Iterator<Item = &'static str>) -> Map<String, Value> {
        let mut headers = Map::new();
        for name in names {
            self.used.insert(name.to_owned());
            match self.headers.get(name) {
                Some(header) => drop(headers.insert(name.to_owned(), header.clone())),
                None => self.problems.push(format!("the header {name} is not in the table of headers")),
            }
        }
        headers
    }

    fn check_used(&mut self) {
        let tables = self.parameters.keys().chain(self.headers.keys());
        let unused = tables.filter(|name| !self.used.contains(**name));
        self.problems.extend(unused.map(|name| format!("no call has the parameter or header {name}")));
    }
}

/// A route's path without the regular expressions of its parameters.
fn without_patterns(path: &str) -> String {
    let (mut plain, mut in_braces, mut in_pattern) = (String::new(), false, false);
    for character in path.chars() {
        match character {
            '{' => in_braces = true,
            '}' => (in_braces, in_pattern) = (false, false),
            ':' if in_braces => in_pattern = true,
            _ => (),
        }
        if !in_pattern {
            plain.push(character);
        }
    }
    plain
}

/// `post_dataset_id_image`: unique, since method and path are.
fn operation_id(method: &str, path: &str) -> String {
    let path = if path == "/" { "root" } else { path };
    let words: Vec<String> = format!("{method} {path}")
        .to_lowercase()
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    words.join("_")
}

/// The text of a doc comment with its paragraphs in a line each.
fn flowing(text: &str) -> String {
    let mut paragraphs = vec![String::new()];
    for line in text.lines().map(str::trim) {
        match paragraphs.last_mut() {
            Some(paragraph) if !line.is_empty() => {
                if !paragraph.is_empty() {
                    paragraph.push(' ');
                }
                paragraph.push_str(line);
            }
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_whole_and_nothing_else() {
        let (_, problems) = build();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn every_error_is_one_of_a_call() {
        let (document, _) = build();
        let text = document.to_string();
        // The arms of `ApiError::code`.
        let codes = include_str!("../../error.rs")
            .lines()
            .map(|line| line.rsplit("=> ").next().unwrap_or_default().trim().trim_end_matches(','))
            .filter_map(|arm| arm.strip_prefix('"')?.strip_suffix('"'))
            .filter(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            .collect::<Vec<_>>();
        assert!(codes.len() > 25, "{codes:?}");
        let missing: Vec<_> = codes.iter().filter(|code| !text.contains(&format!("\"{code}\":{{"))).collect();
        assert!(missing.is_empty(), "no call names the errors {missing:?}");
    }

    #[test]
    fn patterns_of_paths_are_no_part_of_them() {
        assert_eq!(without_patterns("/a:b/{id:[^/]*}/c/{d}"), "/a:b/{id}/c/{d}");
    }
}
