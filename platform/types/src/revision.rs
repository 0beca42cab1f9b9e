//! Revisions: what a function's pods are, fixed at the moment it was applied.
use serde::{Deserialize, Serialize};

use crate::function::FunctionSpec;
use crate::names::{FunctionName, RevisionName, digest};

/// An immutable revision of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// `<function>-<number>`.
    pub name: RevisionName,
    /// The function.
    pub function: FunctionName,
    /// Counted from 1 for each function.
    pub number: u32,
    /// SHA-256 of the template: equal digests do the same work, so results are shared.
    pub digest: String,
    /// The template: the function's spec without scale, delivery and traffic.
    pub template: FunctionSpec,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
}

impl Revision {
    /// Makes the revision of a spec.
    #[must_use]
    pub fn new(function: &FunctionName, number: u32, spec: &FunctionSpec, created_ms: i64) -> Self {
        let template = spec.template();
        Self {
            name: RevisionName::of(function, number),
            function: function.clone(),
            number,
            digest: template_digest(&template),
            template,
            created_ms,
        }
    }
}

/// SHA-256 of a template's JSON, in hex. Serialising our own plain data cannot fail; if it ever did,
/// the digest of the debug text still tells templates apart.
#[must_use]
pub fn template_digest(template: &FunctionSpec) -> String {
    let json = serde_json::to_string(template).unwrap_or_else(|_| format!("{template:?}"));
    digest(&["function-template", &json])
}
