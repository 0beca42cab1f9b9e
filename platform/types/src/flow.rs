//! The Flow resource: steps and what each comes after.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{FunctionName, StepName};

/// What a Flow says. Its graph is checked by the flow compiler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowSpec {
    /// The steps, in any order.
    #[schemars(length(min = 1, max = 100))]
    pub steps: Vec<FlowStep>,
    /// Where results go.
    #[serde(default)]
    pub output: FlowOutput,
    /// Buckets that inputs of this flow may come from.
    #[serde(default = "default_buckets")]
    pub buckets: Vec<String>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowStep {
    /// Its name, unique in the flow.
    pub name: StepName,
    /// The function that does it.
    pub function: FunctionName,
    /// The step whose result it works on; none means the run's input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<StepName>,
    /// Parameters for the function, by its schema.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FlowOutput {
    /// The bucket.
    pub bucket: String,
}

impl Default for FlowOutput {
    fn default() -> Self {
        Self {
            bucket: crate::topics::BUCKET_PROCESSED.to_owned(),
        }
    }
}

/// Buckets that inputs may come from unless the resource says otherwise.
#[must_use]
pub fn default_buckets() -> Vec<String> {
    vec![crate::topics::BUCKET_RAW.to_owned()]
}
