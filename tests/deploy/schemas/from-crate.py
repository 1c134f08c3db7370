"""Writes JSON schemas of custom resources, from the Rust types that kopium made of their published definitions (the crates
kcr_…; README.md has the versions): `from-crate.py REGISTRY_SRC_FOLDER`. Fields that a type does not have are
refused, as the API server refuses them."""

import json
import re
import sys
from pathlib import Path

KINDS = {
    "Cluster": ("kcr_postgresql_cnpg_io", "clusters"),
    "PodMonitor": ("kcr_monitoring_coreos_com", "podmonitors"),
    "PrometheusRule": ("kcr_monitoring_coreos_com", "prometheusrules"),
    "Issuer": ("kcr_cert_manager_io", "issuers"),
}
SIMPLE = {
    "String": {"type": "string"},
    "bool": {"type": "boolean"},
    "i32": {"type": "integer"},
    "i64": {"type": "integer"},
    "u32": {"type": "integer", "minimum": 0},
    "f64": {"type": "number"},
    "IntOrString": {"type": ["integer", "string"]},
    # Of Kubernetes itself or free.
    "Condition": {"type": "object"},
    "serde_json::Value": {},
}


def blocks(text):
    """Each `pub struct` or `pub enum` with its lines."""
    for match in re.finditer(r"^pub (struct|enum) (\w+) \{\n(.*?)^\}", text, re.M | re.S):
        yield match[1], match[2], match[3]


def schema(kind, type_):
    if match := re.fullmatch(r"Option<(.*)>", type_):
        return schema(kind, match[1])
    if match := re.fullmatch(r"Vec<(.*)>", type_):
        return {"type": "array", "items": schema(kind, match[1])}
    if match := re.fullmatch(r"BTreeMap<String, (.*)>", type_):
        return {"type": "object", "additionalProperties": schema(kind, match[1])}
    return SIMPLE.get(type_) or {"$ref": f"#/definitions/{type_}"}


def convert(kind, text):
    group, version = re.search(r'#\[kube\(group = "([^"]+)", version = "([^"]+)"', text).groups()
    definitions = {}
    for what, name, body in blocks(text):
        body = re.sub(r"^\s*///.*\n", "", body, flags=re.M)
        if what == "enum":
            values = re.findall(r'(?:#\[serde\(rename = "([^"]*)"\)\]\s*)?^\s+(\w+),$', body, re.M)
            definitions[name] = {"enum": [renamed or plain for renamed, plain in values]}
            continue
        properties, required = {}, []
        for attributes, field, type_ in re.findall(r"((?:^\s*#\[.*\]\n)*)^\s*pub (\S+): (.*),$", body, re.M):
            renamed = re.search(r'rename = "([^"]+)"', attributes)
            key = renamed[1] if renamed else field.removeprefix("r#")
            properties[key] = schema(kind, type_)
            if not type_.startswith("Option<"):
                required.append(key)
        definitions[name] = {"type": "object", "properties": properties, "additionalProperties": False, "required": required}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "apiVersion": {"const": f"{group}/{version}"},
            "kind": {"const": kind},
            "metadata": {"type": "object"},
            "spec": {"$ref": f"#/definitions/{kind}Spec"},
        },
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "definitions": definitions,
    }


def reachable(whole):
    """Without the types that a specification does not use, such as those of its status."""
    found, todo = {}, [f"{whole['properties']['kind']['const']}Spec"]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = whole["definitions"][name]
            todo += re.findall(r'"#/definitions/(\w+)"', json.dumps(found[name]))
    return whole | {"definitions": dict(sorted(found.items()))}


for kind, (crate, module) in KINDS.items():
    (source,) = Path(sys.argv[1]).glob(f"{crate}-*/src/v1/{module}.rs")
    text = json.dumps(reachable(convert(kind, source.read_text())), separators=(",", ":"))
    Path(__file__).with_name(f"{kind}.json").write_text(text + "\n")
