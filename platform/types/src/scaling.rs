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
    /// The decision in one sentence: which term won, and what held it.
    #[serde(default)]
    pub summary: String,
    /// From when on it would be another number, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// Why, in order of weight; for people.
    pub reasons: Vec<String>,
    /// The same for programs: each has a `reason`, and its numbers with units in the names.
    #[serde(default)]
    pub because: Vec<serde_json::Value>,
    /// Everything that went in: names and numbers, with units in the names.
    pub inputs: serde_json::Map<String, serde_json::Value>,
}

impl DecisionRecord {
    /// One of a function that says nothing yet.
    #[must_use]
    pub fn of(function: FunctionName) -> Self {
        Self {
            function,
            at_ms: 0,
            from: 0,
            to: 0,
            summary: String::new(),
            change: None,
            reasons: Vec::new(),
            because: Vec::new(),
            inputs: serde_json::Map::new(),
        }
    }
}
