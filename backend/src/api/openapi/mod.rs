//! The API's document, OpenAPI 3.0: from the handlers' types by paperclip, from the table of routes, and from the tables
//! in `calls.rs`. What paperclip loses or cannot express is repaired in this folder only.

mod calls;
mod page;
mod schemas;

pub use calls::{
    ACCESS, AUDIT, Call, DATABASE, DATASET, DEBUG, Link, MODEL, RECOGNITION, SERVER, UNKNOWNS, call,
};
pub use page::{page_file, page_root, serve};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

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

use super::{
    form::{Form, ImagePart, TextPart},
    routes::{self, ROUTES, Route, RouteMethod},
};
use crate::{
    access::{Scope, TokenProblem},
    config::ServerRole,
    error::{
        ApiError, ErrorBody,
        examples::{AUDITED, AUDITED_ALONE},
    },
};

const MULTIPART: &str = "multipart/form-data";
const JSON: &str = "application/json";

/// The name of the document's security scheme.
const TOKEN: &str = "token";
/// The names of the document's responses to requests without a sufficient token.
const UNAUTHORIZED: &str = "Unauthorized";
const FORBIDDEN: &str = "Forbidden";

/// Returns the API's document as `/openapi.json` serves it: OpenAPI 3.0, JSON, everything in alphabetical order.
pub fn document() -> String {
    document_at(None, false)
}

/// Returns the document of a server at a public URL, without a `/` at its end, and with or without the guide.
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

// The table of routes has the errors of each call; a type would add all of them to every call.
impl Apiv2Errors for ApiError {}

impl<T> Apiv2Schema for Form<T> {}

/// A form is a body with its own media type, which Swagger 2 does not have: there, a form is a list of parameters, and
/// the conversion loses arrays of files and which ones are required.
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

/// Builds the document and lists its problems; a test checks that there are none.
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
        UNAUTHORIZED: builder.errors(&[ApiError::Unauthorized(TokenProblem::Missing)]),
        FORBIDDEN: builder.errors(&forbidden()),
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

/// Returns the errors of requests that their principal may not make, or nobody.
fn forbidden() -> Vec<ApiError> {
    let only = |scope: Scope| [scope].into_iter().collect();
    vec![
        ApiError::Forbidden { needed: only(Scope::Read), has: only(Scope::Upload) },
        ApiError::ForeignHost,
        ApiError::ForeignOrigin,
    ]
}

/// Collects paperclip's description of the routes, Swagger 2.
fn collect() -> DefaultApiRaw {
    let mut api = DefaultApiRaw::default();
    // Only an App provides the registry of routes; this one serves no requests.
    drop(App::new().configure(|config| {
        let mut config = web::ServiceConfig::from(config);
        routes::register_calls(&mut config);
        api.definitions = config.definitions();
        config.update_operations(&mut api.paths);
    }));
    calls::TYPES.iter().for_each(|define| define(&mut api.definitions));
    api
}

/// Returns path and method of the calls that take a form: the conversion makes every body JSON.
fn forms(swagger: &DefaultApiRaw) -> BTreeSet<(String, String)> {
    let mut forms = BTreeSet::new();
    for (route, item) in &swagger.paths {
        let takes_form = item.methods.iter().filter(|(_, operation)| operation.consumes.is_some());
        forms.extend(takes_form.map(|(method, _)| (route.clone(), method.to_string().to_lowercase())));
    }
    forms
}

/// Converts Swagger 2 to OpenAPI 3.
fn convert(swagger: DefaultApiRaw) -> Value {
    let mut converted = Value::Null;
    drop(App::new().wrap_api_with_spec(swagger).with_raw_json_spec_v3(|app, document| {
        converted = document;
        app
    }));
    converted
}

/// A call's place in the table of routes.
struct Place {
    route: &'static Route,
    method: &'static str,
    scope: Option<Scope>,
    is_audited: bool,
    path: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method.to_uppercase(), self.path)
    }
}

struct Builder {
    schemas: Map<String, Value>,
    /// Path and method of the calls with a form.
    forms: BTreeSet<(String, String)>,
    parameters: BTreeMap<&'static str, Value>,
    headers: BTreeMap<&'static str, Value>,
    /// Parameters and headers that some call has.
    used: BTreeSet<String>,
    problems: Vec<String>,
}

impl Builder {
    fn paths(&mut self, converted: Option<&Value>) -> Value {
        let mut paths = Map::new();
        for route in ROUTES {
            let mut operations = Map::new();
            for RouteMethod { name: method, scope, audit, call } in route.methods {
                let Some(call) = call else { continue };
                let place = Place {
                    route,
                    method,
                    scope: *scope,
                    is_audited: audit.is_some(),
                    path: route.plain_path(),
                };
                let raw = converted.and_then(|paths| paths.get(route.path)?.get(method));
                match raw {
                    Some(raw) => {
                        drop(operations.insert((*method).to_owned(), self.operation(call, &place, raw)))
                    }
                    None => self.problems.push(format!("{place} has no #[api_v2_operation]")),
                }
            }
            if !operations.is_empty() {
                paths.insert(route.plain_path(), operations.into());
            }
        }
        paths.into()
    }

    fn operation(&mut self, call: &Call, place: &Place, raw: &Value) -> Value {
        let takes_form = self.forms.contains(&(place.route.path.to_owned(), place.method.to_owned()));
        if !calls::TAGS.iter().any(|(tag, _)| *tag == call.tag) {
            self.problems.push(format!("{place} has a tag that is none: {}", call.tag));
        }
        let mut operation = Map::new();
        operation.insert("operationId".into(), operation_id(place.method, &place.path).into());
        operation.insert("tags".into(), json!([call.tag]));
        match raw.get("summary").and_then(Value::as_str) {
            Some(summary) => drop(operation.insert("summary".into(), flowing(summary).into())),
            None => self.problems.push(format!("the handler of {place} has no doc comment")),
        }
        let mut description = raw.get("description").and_then(Value::as_str).map(flowing).unwrap_or_default();
        if let Some(body) = raw.get("requestBody") {
            if place.method == "get" {
                description.push_str(
                    "\n\nThe request's body is the form of POST: OpenAPI cannot describe the body of a GET, and browsers \
                     send none.",
                );
            } else {
                operation.insert("requestBody".into(), self.request_body(call, place, body, takes_form));
            }
        }
        if let Some(scope) = place.scope {
            description.push_str(&format!("\n\nScope: `{}`.", scope.name()));
        }
        if !description.is_empty() {
            operation.insert("description".into(), description.trim().into());
        }
        let parameters: Vec<Value> = raw
            .get("parameters")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|parameter| self.parameter(place, parameter))
            .collect();
        if !parameters.is_empty() {
            operation.insert("parameters".into(), parameters.into());
        }
        operation.insert("responses".into(), self.responses(call, place, raw.get("responses")));
        if place.scope.is_none() {
            operation.insert("security".into(), json!([]));
        }
        operation.into()
    }

    fn parameter(&mut self, place: &Place, raw: &Value) -> Value {
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
            // The type of a query overrides the table, which also has the parameters of paths.
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

    fn request_body(&mut self, call: &Call, place: &Place, raw: &Value, takes_form: bool) -> Value {
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

    fn responses(&mut self, call: &Call, place: &Place, raw: Option<&Value>) -> Value {
        let mut responses = Map::new();
        for (status, answer) in raw.and_then(Value::as_object).into_iter().flatten() {
            responses.insert(status.clone(), self.success(call, place, status, answer));
        }
        let mut by_status: BTreeMap<u16, Vec<ApiError>> = BTreeMap::new();
        let mut errors: Vec<ApiError> =
            call.errors.iter().copied().flatten().map(|example| example()).collect();
        if place.is_audited {
            let needs_database = errors.iter().any(|error| matches!(error, ApiError::DatabaseUnavailable(_)));
            let audited = if needs_database { AUDITED } else { AUDITED_ALONE };
            errors.extend(audited.iter().map(|example| example()));
        }
        for error in errors {
            by_status.entry(error.status_code().as_u16()).or_default().push(error);
        }
        let served_by = place.route.role;
        let other = match served_by {
            ServerRole::All => None,
            ServerRole::Recognize => Some(ServerRole::Manage),
            ServerRole::Manage => Some(ServerRole::Recognize),
        };
        if let Some(role) = other {
            let error = ApiError::OtherRole { role: role.as_str(), served_by: served_by.as_str() };
            by_status.entry(error.status_code().as_u16()).or_default().push(error);
        }
        if place.scope.is_some() {
            for (status, name) in [("401", UNAUTHORIZED), ("403", FORBIDDEN)] {
                let reference = json!({ "$ref": format!("#/components/responses/{name}") });
                responses.insert(status.into(), reference);
            }
            if let Some(own) = by_status.get_mut(&403) {
                own.extend(forbidden());
            }
        }
        for (status, errors) in by_status {
            responses.insert(status.to_string(), self.errors(&errors));
        }
        responses.into()
    }

    fn success(&mut self, call: &Call, place: &Place, status: &str, raw: &Value) -> Value {
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
                let example =
                    schemas::example(&place.to_string(), &schema, &self.schemas, &mut self.problems);
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
            let is_call = |route: &&Route| {
                route.plain_path() == path
                    && route.methods.iter().any(|other| other.name.eq_ignore_ascii_case(method))
            };
            if !ROUTES.iter().any(|route| is_call(&route)) {
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

    /// Returns the response with the errors of one status.
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

/// Returns the operation's id, such as `post_dataset_id_image`.
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

/// Joins the lines of each paragraph of a doc comment.
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
    use crate::error::CODES;

    #[test]
    fn every_route_is_described_whole_and_nothing_else() {
        let (_, problems) = build();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn every_error_is_documented_by_a_call() {
        let (document, _) = build();
        let text = document.to_string();
        let missing: Vec<_> = CODES.iter().filter(|code| !text.contains(&format!("\"{code}\":{{"))).collect();
        assert!(missing.is_empty(), "no call names the errors {missing:?}");
    }
}
