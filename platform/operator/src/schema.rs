//! From the types' JSON Schema to what Kubernetes calls structural, and the rules (CEL) for what a schema cannot say.
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::schema::OptionalEnum;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// A rule: where it stands (as a JSON pointer below the spec's schema), what must hold, what is said when it does not.
pub type Rule = (&'static str, &'static str, &'static str);

/// Rules of a Function.
pub const FUNCTION: &[Rule] = &[
    (
        "",
        "[has(self.operation), has(self.image), has(self.command)].filter(x, x).size() == 1",
        "name exactly one program: set one of operation, image or command",
    ),
    (
        "",
        "!has(self.imagePullSecrets) || self.imagePullSecrets.size() == 0 || has(self.image)",
        "imagePullSecrets: there is no image to pull; set image as well",
    ),
    (
        "/properties/concurrency",
        "!has(self.target) || !has(self.limit) || self.target <= self.limit",
        "target is over limit: lower target or raise limit",
    ),
    (
        "/properties/scale",
        "!has(self.min) || !has(self.max) || self.min <= self.max",
        "min is over max: lower min or raise max",
    ),
    (
        "",
        "!has(self.scale) || !has(self.scale.fallback) || (has(self.resources) && has(self.resources.gpu) && self.resources.gpu > 0)",
        "scale.fallback has no effect without GPUs: set resources.gpu, or leave it out",
    ),
    (
        "/properties/traffic",
        "self.size() == 0 || self.map(t, has(t.percent) ? t.percent : 0).sum() == 100",
        "the percents do not add up to 100",
    ),
    (
        "/properties/env/items",
        "self.name != 'PORT' && !self.name.startsWith('IMAGEFLOW_')",
        "the platform sets PORT and IMAGEFLOW_*",
    ),
    (
        "/properties/env/items",
        "!has(self.valueFrom) || (has(self.valueFrom.secretKeyRef) != has(self.valueFrom.configMapKeyRef) && (!has(self.value) || self.value == ''))",
        "valueFrom: name one of secretKeyRef and configMapKeyRef, and no value beside it",
    ),
];
/// Rules of a Flow.
pub const FLOW: &[Rule] = &[(
    "/properties/steps",
    "self.all(s, self.exists_one(t, t.name == s.name))",
    "two steps have the same name",
)];
/// Rules of a Trigger.
pub const TRIGGER: &[Rule] = &[(
    "",
    "has(self.flow) != has(self.function)",
    "name exactly one of flow and function",
)];
/// Rules of a Revision.
pub const REVISION: &[Rule] = &[("", "self == oldSelf", "a revision never changes: change its function")];

/// Longest list and text where the types say none: the API server wants bounds to know what a rule costs.
const MOST_ITEMS: u64 = 200;
const MOST_TEXT: u64 = 4096;
/// Names of functions, flows and triggers are 50 long at most; those of revisions end in a number.
const MOST_NAME: u64 = 50;

/// Conditions as Kubernetes has them: one of each type, merged by it.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "type": "string" },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string" },
                "message": { "type": "string" },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64" },
            },
        },
    })
}

/// The schema of a type, without references.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    let mut schema = settings
        .with_transform(OptionalEnum)
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    if let Some(object) = schema.as_object_mut() {
        object.remove("components");
    }
    structural(&mut schema);
    schema
}

/// Puts the schemas of spec and status into a definition, and the rules into the schemas.
pub fn finish(
    crd: CustomResourceDefinition,
    spec: &Value,
    status: Option<&Value>,
    rules: &[Rule],
) -> CustomResourceDefinition {
    let read = serde_json::to_value(&crd).ok().and_then(|mut value| {
        let kind = value.pointer("/spec/names/kind")?.as_str()?.to_owned();
        let mut root = json!({
            "type": "object", "required": ["spec"],
            "properties": {
                "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "metadata": { "type": "object" }, "spec": spec,
            },
        });
        if let Some(status) = status {
            root["properties"]["status"] = status.clone();
        }
        if kind != "Revision" {
            root["x-kubernetes-validations"] = json!([{
                "rule": format!("self.metadata.name.size() <= {MOST_NAME} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"),
                "message": format!("the name has up to {MOST_NAME} characters of a-z, 0-9 and '-', begins with a letter and ends with a letter or digit"),
            }]);
        }
        for (at, rule, message) in rules {
            let place = root.pointer_mut(&format!("/properties/spec{at}"))?.as_object_mut()?;
            let all = place.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
            all.as_array_mut()?.push(json!({ "rule": rule, "message": message }));
        }
        *value.pointer_mut("/spec/versions/0")?.as_object_mut()?.entry("schema").or_insert(Value::Null) =
            json!({ "openAPIV3Schema": root });
        serde_json::from_value(value).map_err(|error| tracing::error!(%error, kind, "a definition is wrong")).ok()
    });
    read.unwrap_or(crd)
}

/// What a structural schema may not have goes; what the API server needs comes.
fn structural(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    // Unknown fields are the API server's to find: kubectl has it refuse them.
    object.remove("$schema");
    object.remove("title");
    let typed = object.get("type").and_then(Value::as_str).map(str::to_owned);
    match object.get("additionalProperties") {
        Some(Value::Bool(false)) => drop(object.remove("additionalProperties")),
        Some(Value::Bool(true)) => free(object),
        _ => {}
    }
    if object.get("type").is_some_and(Value::is_array) {
        either(object);
    }
    variants(object);
    if typed.as_deref() == Some("array") && !object.contains_key("maxItems") {
        object.insert("maxItems".to_owned(), json!(MOST_ITEMS));
    }
    if typed.as_deref() == Some("string") && !["maxLength", "enum", "format"].iter().any(|k| object.contains_key(*k)) {
        object.insert("maxLength".to_owned(), json!(MOST_TEXT));
    }
    if object
        .get("format")
        .is_some_and(|f| matches!(f.as_str(), Some("uint32" | "uint8" | "uint16" | "uint64" | "uint")))
    {
        object.insert("format".to_owned(), json!("int64"));
    }
    // A value of any kind.
    if object
        .keys()
        .all(|k| matches!(k.as_str(), "description" | "default" | "nullable"))
    {
        object.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
    }
    for key in ["properties", "patternProperties"] {
        if let Some(properties) = object.get_mut(key).and_then(Value::as_object_mut) {
            properties.values_mut().for_each(structural);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            structural(inner);
        }
    }
}

/// An enum whose variants are objects with one field each: one object that has one of the fields. An enum of texts whose variants
/// are described: a text.
fn variants(object: &mut Map<String, Value>) {
    let Some(Value::Array(all)) = object.remove("oneOf").or_else(|| object.remove("anyOf")) else {
        return;
    };
    let texts: Option<Vec<Value>> = all
        .iter()
        .map(|v| {
            v.get("const")
                .cloned()
                .or_else(|| v.get("enum")?.as_array()?.first().cloned())
        })
        .collect();
    if let Some(texts) = texts {
        object.insert("type".to_owned(), json!("string"));
        object.insert("enum".to_owned(), json!(texts));
        return;
    }
    let mut properties = Map::new();
    for variant in &all {
        for (name, schema) in variant
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            properties.insert(name.clone(), schema.clone());
        }
    }
    let choice: Vec<Value> = properties.keys().map(|name| json!({ "required": [name] })).collect();
    object.insert("type".to_owned(), json!("object"));
    object.insert("properties".to_owned(), properties.into());
    object.insert("oneOf".to_owned(), choice.into());
}

/// An object with any fields.
fn free(object: &mut Map<String, Value>) {
    object.remove("additionalProperties");
    object.insert("type".to_owned(), json!("object"));
    object.insert("x-kubernetes-preserve-unknown-fields".to_owned(), json!(true));
}

/// A text or a number, as quantities are; a text that may be absent.
fn either(object: &mut Map<String, Value>) {
    let types: Vec<String> = object
        .get("type")
        .and_then(Value::as_array)
        .map(|all| all.iter().filter_map(|t| Some(t.as_str()?.to_owned())).collect())
        .unwrap_or_default();
    let rest: Vec<&String> = types.iter().filter(|t| *t != "null").collect();
    if rest.len() < types.len() {
        object.insert("nullable".to_owned(), json!(true));
    }
    match rest.as_slice() {
        [one] => drop(object.insert("type".to_owned(), json!(one))),
        _ => {
            object.remove("type");
            object.remove("pattern");
            object.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
        }
    }
}
