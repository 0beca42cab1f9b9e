//! Resources as people write them: YAML or JSON documents with apiVersion, kind, metadata and spec.
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::field::{FieldError, FieldErrors};
use crate::flow::FlowSpec;
use crate::function::FunctionSpec;
use crate::names::{FlowName, FunctionName, TriggerName, nearest};
use crate::schema;
use crate::trigger::TriggerSpec;

/// The only version of the resources so far.
pub const API_VERSION: &str = "imageflow.dev/v1alpha1";

/// The kinds of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A function.
    Function,
    /// A flow of functions.
    Flow,
    /// What starts a flow.
    Trigger,
}

impl Kind {
    /// All kinds, in the order in which they depend on each other.
    pub const ALL: [Self; 3] = [Self::Function, Self::Flow, Self::Trigger];

    /// The kind as written in a document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Function => "Function",
            Self::Flow => "Flow",
            Self::Trigger => "Trigger",
        }
    }

    /// JSON Schema of the kind's spec.
    #[must_use]
    pub fn spec_schema(self) -> Value {
        let schema = match self {
            Self::Function => schemars::schema_for!(FunctionSpec),
            Self::Flow => schemars::schema_for!(FlowSpec),
            Self::Trigger => schemars::schema_for!(TriggerSpec),
        };
        schema.to_value()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name, labels and what the platform adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata<N> {
    /// The name.
    pub name: N,
    /// Labels, for people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, for people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How often the spec changed, counted by the platform from 1.
    #[serde(default)]
    pub generation: u64,
}

impl<N> Metadata<N> {
    /// Metadata with nothing but a name.
    pub fn named(name: N) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            generation: 0,
        }
    }
}

/// A resource: one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[expect(
    clippy::large_enum_variant,
    reason = "resources are few; a box would show in every match"
)]
pub enum Resource {
    /// A function.
    Function(Document<FunctionName, FunctionSpec>),
    /// A flow.
    Flow(Document<FlowName, FlowSpec>),
    /// A trigger.
    Trigger(Document<TriggerName, TriggerSpec>),
}

/// The rest of a document beside its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<N, S> {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Name and labels.
    pub metadata: Metadata<N>,
    /// What is wanted.
    pub spec: S,
}

impl<N, S> Document<N, S> {
    /// A document with a name and a spec.
    pub fn new(name: N, spec: S) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            metadata: Metadata::named(name),
            spec,
        }
    }
}

impl Resource {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Function(_) => Kind::Function,
            Self::Flow(_) => Kind::Flow,
            Self::Trigger(_) => Kind::Trigger,
        }
    }

    /// The name as text.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Function(d) => d.metadata.name.as_str(),
            Self::Flow(d) => d.metadata.name.as_str(),
            Self::Trigger(d) => d.metadata.name.as_str(),
        }
    }

    /// How often the spec changed.
    pub fn generation_mut(&mut self) -> &mut u64 {
        match self {
            Self::Function(d) => &mut d.metadata.generation,
            Self::Flow(d) => &mut d.metadata.generation,
            Self::Trigger(d) => &mut d.metadata.generation,
        }
    }

    /// Reads one document; every unknown field, wrong type and value out of range is named.
    ///
    /// # Errors
    /// All faults that the schema and the types can see. Whether names refer to something is the caller's to check.
    pub fn from_value(value: Value) -> Result<Self, FieldErrors> {
        let Value::Object(document) = &value else {
            return Err(FieldError::new("", "is not a document with apiVersion, kind, metadata and spec").into());
        };
        let kind = check_head(document)?;
        let spec = document
            .get("spec")
            .cloned()
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let mut faults: Vec<FieldError> = schema::check(&kind.spec_schema(), &spec)
            .into_iter()
            .map(|f| f.under("spec"))
            .collect();
        check_metadata(document.get("metadata"), &mut faults);
        FieldErrors(faults).into_result()?;
        // Each document by its own type: behind the tagged enum the path of a fault would be lost.
        Ok(match kind {
            Kind::Function => Self::Function(typed(value)?),
            Kind::Flow => Self::Flow(typed(value)?),
            Kind::Trigger => Self::Trigger(typed(value)?),
        })
    }

    /// Reads all documents of a YAML (or JSON) text.
    ///
    /// # Errors
    /// The faults of the first document that has any, or where the text is not YAML.
    pub fn from_yaml(text: &str) -> Result<Vec<Self>, FieldErrors> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|e| FieldError::new("", format!("is not YAML: {e}")))?;
        let mut out = Vec::with_capacity(documents.len());
        for (i, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
            let label = label_of(&document, i);
            out.push(Self::from_value(document).map_err(|errors| {
                FieldErrors(
                    errors
                        .0
                        .into_iter()
                        .map(|mut e| {
                            e.message = format!("{} (in {label})", e.message);
                            e
                        })
                        .collect(),
                )
            })?);
        }
        Ok(out)
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, FieldErrors> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        FieldError::new(
            if path == "." { String::new() } else { path },
            e.into_inner().to_string(),
        )
        .into()
    })
}

fn label_of(document: &Value, index: usize) -> String {
    match (
        document.get("kind").and_then(Value::as_str),
        document.pointer("/metadata/name").and_then(Value::as_str),
    ) {
        (Some(kind), Some(name)) => format!("{kind} {name}"),
        _ => format!("document {}", index + 1),
    }
}

fn check_head(document: &serde_json::Map<String, Value>) -> Result<Kind, FieldErrors> {
    const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
    let mut faults = Vec::new();
    for key in document.keys().filter(|k| !FIELDS.contains(&k.as_str())) {
        let fault = FieldError::new(key.clone(), "is not a field of a document");
        faults.push(match nearest(key, FIELDS) {
            Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
            None => fault,
        });
    }
    if document.get("apiVersion").and_then(Value::as_str) != Some(API_VERSION) {
        faults.push(
            FieldError::new("apiVersion", "is missing or unknown").remedy(format!("write apiVersion: {API_VERSION}")),
        );
    }
    let given = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == given);
    if kind.is_none() {
        let names = Kind::ALL.map(Kind::as_str);
        faults.push(FieldError::new("kind", format!("\"{given}\" is not a kind")).remedy(
            match nearest(given, names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write one of {}", names.join(", ")),
            },
        ));
    }
    match kind {
        Some(kind) if faults.is_empty() => Ok(kind),
        _ => Err(FieldErrors(faults)),
    }
}

fn check_metadata(metadata: Option<&Value>, faults: &mut Vec<FieldError>) {
    const FIELDS: [&str; 4] = ["name", "labels", "annotations", "generation"];
    let Some(Value::Object(metadata)) = metadata else {
        faults.push(FieldError::new("metadata.name", "is missing").remedy("write metadata: { name: ... }"));
        return;
    };
    if !metadata.contains_key("name") {
        faults.push(FieldError::new("metadata.name", "is missing"));
    }
    for key in metadata.keys().filter(|k| !FIELDS.contains(&k.as_str())) {
        let fault = FieldError::new(format!("metadata.{key}"), "is not a field of metadata");
        faults.push(match nearest(key, FIELDS) {
            Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
            None => fault,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: &str =
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: resize }\nspec:\n  operation: resize\n";

    #[test]
    fn the_example_of_the_design_reads() {
        let text = format!(
            "{FUNCTION}  resources: {{ cpu: 500m, memory: 256Mi, gpu: 0 }}\n  concurrency: {{ target: 2, limit: 4 }}\n  batch: {{ max: 1, wait: 0ms }}\n  scale: {{ min: 0, max: 20, drainTarget: 10s, keepWarm: {{ min: 10s, max: 10m }}, policy: imageflow }}\n  env: [ {{ name: QUALITY, value: high }} ]\n  timeout: 30s\n  delivery: {{ retry: 5, backoff: exponential, backoffDelay: 200ms, ordering: unordered }}\n  traffic: [ {{ revision: resize-00002, percent: 90 }}, {{ revision: resize-00003, percent: 10, tag: canary }} ]\n---\napiVersion: imageflow.dev/v1alpha1\nkind: Flow\nmetadata: {{ name: product }}\nspec:\n  steps:\n    - {{ name: upright, function: autorotate }}\n    - {{ name: thumb, function: resize, after: [upright], params: {{ width: 256 }} }}\n---\napiVersion: imageflow.dev/v1alpha1\nkind: Trigger\nmetadata: {{ name: on-upload }}\nspec:\n  filters: [ {{ exact: {{ type: dev.imageflow.object.created }} }}, {{ prefix: {{ subject: raw-images/ }} }} ]\n  flow: product\n"
        );
        let all = Resource::from_yaml(&text).unwrap();
        assert_eq!(all.iter().map(Resource::kind).collect::<Vec<_>>(), Kind::ALL);
        let json = serde_json::to_value(&all[0]).unwrap();
        assert_eq!(Resource::from_value(json).unwrap(), all[0]);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path_and_the_nearest() {
        let text = format!("{FUNCTION}  scale: {{ mix: 3 }}\n");
        let error = Resource::from_yaml(&text).unwrap_err().to_string();
        assert!(
            error.contains("spec.scale.mix") && error.contains("did you mean \"min\""),
            "{error}"
        );
        assert!(error.contains("in Function resize"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_and_a_wrong_kind_are_named() {
        let error = Resource::from_yaml(&format!("{FUNCTION}  scale: {{ max: 100000 }}\n"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("spec.scale.max") && error.contains("1000"), "{error}");
        let error = Resource::from_yaml(&FUNCTION.replace("Function", "Functon"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean \"Function\""), "{error}");
        let error = Resource::from_yaml("a: [").unwrap_err().to_string();
        assert!(error.contains("is not YAML"), "{error}");
    }

    #[test]
    fn a_bad_name_or_duration_gives_the_rule() {
        let error = Resource::from_yaml(&FUNCTION.replace("resize }", "Resize_ }"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("metadata.name") && error.contains("a-z, 0-9"), "{error}");
        let error = Resource::from_yaml(&format!("{FUNCTION}  timeout: soon\n"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("spec.timeout"), "{error}");
    }
}
