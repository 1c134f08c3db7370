//! Schemas of the document from paperclip's: moves named types to definitions, and restores limits, null and examples,
//! which the conversion to OpenAPI 3 loses.

use std::collections::{BTreeMap, BTreeSet};

use paperclip::v2::models::DefaultSchemaRaw;
use serde_json::{Map, Value, json};

use super::{calls, flowing};

const COMPONENTS: &str = "#/components/schemas/";

/// Moves every schema of a named type to the definitions and leaves a reference: paperclip repeats nested types wherever
/// they occur.
pub fn give_names(
    definitions: BTreeMap<String, DefaultSchemaRaw>,
    problems: &mut Vec<String>,
) -> BTreeMap<String, DefaultSchemaRaw> {
    let mut found = Vec::new();
    for (name, mut schema) in definitions {
        move_nested(&mut schema, &mut found);
        found.push(Found { name, of_field: false, schema });
    }
    // A field's description replaces its type's, so other places come first.
    found.sort_by_key(|found| found.of_field);
    let mut named: BTreeMap<String, DefaultSchemaRaw> = BTreeMap::new();
    for Found { name, of_field, schema } in found {
        match named.get(&name) {
            None => {
                if of_field {
                    problems
                        .push(format!("{name} is the type of fields only: it belongs to TYPES in calls.rs"));
                }
                named.insert(name, schema);
            }
            Some(known) if shape(known) == shape(&schema) => (),
            Some(_) => {
                problems.push(format!("two types are called {name}: rename one with #[openapi(rename)]"))
            }
        }
    }
    named
}

struct Found {
    name: String,
    of_field: bool,
    schema: DefaultSchemaRaw,
}

fn move_nested(schema: &mut DefaultSchemaRaw, found: &mut Vec<Found>) {
    for property in schema.properties.values_mut() {
        move_named(property, true, found);
    }
    if let Some(items) = schema.items.as_deref_mut() {
        move_named(items, false, found);
    }
}

fn move_named(schema: &mut DefaultSchemaRaw, of_field: bool, found: &mut Vec<Found>) {
    move_nested(schema, found);
    let Some(name) = schema.name.take() else { return };
    let reference = DefaultSchemaRaw {
        reference: Some(format!("#/definitions/{name}")),
        description: schema.description.clone().filter(|_| of_field),
        example: schema.example.clone().filter(|_| of_field),
        ..DefaultSchemaRaw::default()
    };
    let schema = std::mem::replace(schema, reference);
    found.push(Found { name, of_field, schema });
}

/// Returns the part of a schema that is the same wherever the type occurs: all but a field's description and example.
fn shape(schema: &DefaultSchemaRaw) -> Option<Value> {
    let schema = DefaultSchemaRaw { description: None, example: None, ..schema.clone() };
    serde_json::to_value(schema).ok()
}

/// Restores what the conversion lost, and applies the amendments.
pub fn finish(
    raw: &BTreeMap<String, DefaultSchemaRaw>,
    mut converted: Map<String, Value>,
    problems: &mut Vec<String>,
) -> Map<String, Value> {
    for (name, raw_schema) in raw {
        if let Some(schema) = converted.get_mut(name) {
            finish_type(name, raw_schema, schema, raw, problems);
        }
    }
    amend(&mut converted, problems);
    converted.values_mut().for_each(unwrap_lines);
    converted
}

fn finish_type(
    name: &str,
    raw: &DefaultSchemaRaw,
    schema: &mut Value,
    all: &BTreeMap<String, DefaultSchemaRaw>,
    problems: &mut Vec<String>,
) {
    if raw.description.is_none() {
        problems.push(format!("{name} has no doc comment"));
    }
    let mut required: BTreeSet<&str> = raw.required.iter().map(String::as_str).collect();
    for (property, raw_property) in &raw.properties {
        let Some(value) = schema.get_mut("properties").and_then(|all| all.get_mut(property)) else {
            continue;
        };
        let target = raw_property.reference.as_deref().and_then(|r| r.rsplit('/').next());
        let own = target.and_then(|target| all.get(target)).and_then(|schema| schema.description.as_deref());
        let description = raw_property.description.as_deref().or(own);
        let Some(description) = description else {
            problems.push(format!("{name}.{property} has no doc comment"));
            continue;
        };
        limit(raw_property, value);
        if target.is_some() && (own != Some(description) || raw_property.example.is_some()) {
            // Nothing may stand beside a reference.
            let mut beside = Map::from_iter([("description".to_owned(), description.into())]);
            beside.extend(raw_property.example.clone().map(|example| ("example".to_owned(), example)));
            beside.insert("allOf".into(), json!([value.clone()]));
            *value = beside.into();
        }
        if !required.contains(property.as_str()) && says_null(description) {
            required.insert(property);
            if let Some(value) = value.as_object_mut() {
                value.insert("nullable".into(), true.into());
            }
        }
        if calls::OFTEN_ABSENT.contains(&(name, property.as_str())) {
            required.remove(property.as_str());
        }
    }
    if let Some(schema) = schema.as_object_mut() {
        if required.is_empty() {
            schema.remove("required");
        } else {
            schema.insert("required".into(), required.into_iter().collect());
        }
    }
}

fn unwrap_lines(schema: &mut Value) {
    for (key, value) in schema.as_object_mut().into_iter().flatten() {
        match value {
            Value::String(text) if key == "description" => *text = flowing(text),
            nested => unwrap_lines(nested),
        }
    }
}

/// Returns whether a field's doc comment says when it is null, in a sentence that begins with this word: an empty field
/// is null unless serde leaves it out.
fn says_null(description: &str) -> bool {
    description.starts_with("Null ") || description.contains(". Null ")
}

fn limit(raw: &DefaultSchemaRaw, schema: &mut Value) {
    // Converts through text, so that whole numbers have no fraction and 0.1 does not become the f64 nearest to the f32.
    let number = |limit: f32| serde_json::from_str::<Value>(&limit.to_string()).ok();
    let Some(schema) = schema.as_object_mut() else { return };
    for (name, value) in [("minimum", raw.minimum), ("maximum", raw.maximum)] {
        if let Some(value) = value.and_then(number) {
            schema.insert(name.into(), value);
        }
    }
}

fn amend(schemas: &mut Map<String, Value>, problems: &mut Vec<String>) {
    for (wanted, property, changes) in calls::amendments() {
        let mut hits = 0;
        for (_, schema) in schemas.iter_mut().filter(|(name, _)| wanted == "*" || *name == wanted) {
            let place = match property {
                "" => Some(schema),
                property => schema.get_mut("properties").and_then(|all| all.get_mut(property)),
            };
            let place = place.filter(|place| wanted != "*" || place.get("type") == Some(&json!("string")));
            if let Some(place) = place.and_then(Value::as_object_mut) {
                hits += 1;
                merge(place, &changes);
            }
        }
        if hits == 0 {
            problems.push(format!("the amendment of {wanted}.{property} finds nothing to amend"));
        }
    }
    for (name, property) in calls::OFTEN_ABSENT {
        if schemas.get(*name).and_then(|schema| schema.pointer(&format!("/properties/{property}"))).is_none()
        {
            problems.push(format!("{name}.{property} is often absent, and does not exist at all"));
        }
    }
}

fn merge(into: &mut Map<String, Value>, changes: &Value) {
    for (key, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            into.remove(key);
        } else {
            into.insert(key.clone(), value.clone());
        }
    }
}

/// Returns the name in a reference, and the schema of that name.
pub fn referred<'v>(schema: &Value, schemas: &'v Map<String, Value>) -> Option<(String, &'v Value)> {
    let name = schema.get("$ref")?.as_str()?.strip_prefix(COMPONENTS)?;
    Some((name.to_owned(), schemas.get(name)?))
}

/// Returns an example of a schema, assembled from the examples of its fields. `place` names it in problems.
pub fn example(
    place: &str,
    schema: &Value,
    schemas: &Map<String, Value>,
    problems: &mut Vec<String>,
) -> Value {
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    if let Some((name, schema)) = referred(schema, schemas) {
        return example(&name, schema, schemas, problems);
    }
    if let Some(schema) = schema.pointer("/allOf/0").or(schema.pointer("/anyOf/0")) {
        return example(place, schema, schemas, problems);
    }
    if let Some(first) = schema.pointer("/enum/0") {
        return first.clone();
    }
    if let Some(items) = schema.get("items") {
        return json!([example(place, items, schemas, problems)]);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        problems.push(format!("{place} has no example"));
        return Value::Null;
    };
    properties
        .iter()
        .filter(|(property, _)| !calls::OFTEN_ABSENT.contains(&(place, property.as_str())))
        .map(|(property, schema)| {
            (property.clone(), example(&format!("{place}.{property}"), schema, schemas, problems))
        })
        .collect()
}
