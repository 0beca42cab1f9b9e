//! The resources as Kubernetes knows them: the types of `imageflow-types`, so the same YAML is for the API, the CLI and kubectl.
use imageflow_types::function::FunctionSpec;
use imageflow_types::names::FunctionName;
use imageflow_types::{FlowSpec, TriggerSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::schema;

/// The group of all kinds.
pub const GROUP: &str = "imageflow.dev";

/// A function.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "imageflow.dev",
    version = "v1alpha1",
    kind = "Function",
    plural = "functions",
    shortname = "fn",
    category = "imageflow",
    namespaced,
    schema = "disabled",
    status = "FunctionStatus",
    scale(
        spec_replicas_path = ".spec.scale.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name":"Program","type":"string","jsonPath":".status.program"}"#,
    printcolumn = r#"{"name":"Revision","type":"string","jsonPath":".status.latestRevision"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.replicas"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(transparent)]
pub struct FunctionResource(pub FunctionSpec);

/// A flow of functions.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "imageflow.dev",
    version = "v1alpha1",
    kind = "Flow",
    plural = "flows",
    category = "imageflow",
    namespaced,
    schema = "disabled",
    status = "MirrorStatus",
    printcolumn = r#"{"name":"Steps","type":"string","jsonPath":".spec.steps[*].name"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(transparent)]
pub struct FlowResource(pub FlowSpec);

/// What starts a flow or a function.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "imageflow.dev",
    version = "v1alpha1",
    kind = "Trigger",
    plural = "triggers",
    category = "imageflow",
    namespaced,
    schema = "disabled",
    status = "MirrorStatus",
    printcolumn = r#"{"name":"Flow","type":"string","jsonPath":".spec.flow"}"#,
    printcolumn = r#"{"name":"Function","type":"string","jsonPath":".spec.function"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(transparent)]
pub struct TriggerResource(pub TriggerSpec);

/// What the pods of a function are, fixed at the moment it was applied.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "imageflow.dev",
    version = "v1alpha1",
    kind = "Revision",
    plural = "revisions",
    shortname = "rev",
    category = "imageflow",
    namespaced,
    schema = "disabled",
    printcolumn = r#"{"name":"Function","type":"string","jsonPath":".spec.function"}"#,
    printcolumn = r#"{"name":"Number","type":"integer","jsonPath":".spec.number"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct RevisionResource {
    /// The function.
    pub function: FunctionName,
    /// Counted from 1 for each function.
    pub number: u32,
    /// SHA-256 of the template: equal digests do the same work.
    pub digest: String,
    /// The function's spec without scale, delivery and traffic.
    pub template: FunctionSpec,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
}

/// How a function is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// The generation of the spec that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// What it runs, in a word: the operation or the image.
    #[serde(default)]
    pub program: String,
    /// The newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<String>,
    /// Pods of all revisions.
    #[serde(default)]
    pub replicas: i32,
    /// Those of them that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Selects the pods.
    #[serde(default)]
    pub selector: String,
    /// Ready, with the reason.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How a flow or a trigger is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// The generation of the spec that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready, with the reason.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// The definitions of all kinds, as the API server takes them.
#[must_use]
pub fn definitions() -> [CustomResourceDefinition; 4] {
    use schema::{FLOW, FUNCTION, REVISION, TRIGGER, finish, of};
    [
        finish(
            Function::crd(),
            &of::<FunctionResource>(),
            Some(&of::<FunctionStatus>()),
            FUNCTION,
        ),
        finish(Flow::crd(), &of::<FlowResource>(), Some(&of::<MirrorStatus>()), FLOW),
        finish(
            Trigger::crd(),
            &of::<TriggerResource>(),
            Some(&of::<MirrorStatus>()),
            TRIGGER,
        ),
        finish(Revision::crd(), &of::<RevisionResource>(), None, REVISION),
    ]
}

/// The definitions as files: name and YAML.
///
/// # Errors
/// When one cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, String> {
    let file = |crd: CustomResourceDefinition| {
        let name = format!("{}.yaml", crd.metadata.name.clone().unwrap_or_default());
        let value: Value = serde_json::to_value(&crd).map_err(|e| e.to_string())?;
        let text = serde_saphyr::to_string(&value).map_err(|e| e.to_string())?;
        let head =
            "# Made by `cargo run -p imageflow-operator --bin crdgen` from the types; a test fails on a difference.\n";
        Ok((name, format!("{head}{text}")))
    };
    definitions().into_iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_definitions_are_what_the_types_say() {
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let folder = Path::new(&here).join("../../manifests/crds");
        for (name, text) in files().unwrap() {
            let kept = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
            assert!(
                kept == text,
                "manifests/crds/{name} is out of date: run cargo run -p imageflow-operator --bin crdgen"
            );
        }
    }
}
