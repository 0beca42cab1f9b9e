//! What a scale decision says of itself, as API and CLI show it.
use serde::{Deserialize, Serialize};

use crate::names::FunctionName;

/// One decision of the autoscaler with what it was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// The function.
    pub function: FunctionName,
    /// When, ms since 1970.
    pub at_ms: i64,
    /// Pods wanted before.
    pub from: u32,
    /// Pods wanted now.
    pub to: u32,
    /// Why, in order of weight; for people.
    pub reasons: Vec<String>,
    /// Everything that went in: names and numbers, with units in the names.
    pub inputs: serde_json::Map<String, serde_json::Value>,
}
