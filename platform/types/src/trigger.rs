//! The Trigger resource: which events start which flow.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::field::{FieldError, FieldErrors};
use crate::names::{FlowName, FunctionName};

/// What a Trigger says: all filters must match; exactly one of `flow` and `function` is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TriggerSpec {
    /// CloudEvents Subscriptions filter dialects; all must match.
    #[schemars(length(min = 1, max = 50))]
    pub filters: Vec<Filter>,
    /// The flow to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowName>,
    /// The function to run, as a flow of one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// Parameters for `function`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Buckets that an event may refer to.
    #[serde(default = "crate::flow::default_buckets")]
    pub buckets: Vec<String>,
    /// Also match events of objects that the platform itself wrote. Off, so that a flow cannot start itself.
    #[serde(default)]
    pub platform_objects: bool,
}

/// One filter dialect with attribute and value pairs; all pairs must match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Filter {
    /// The attribute is exactly the value.
    Exact(BTreeMap<String, String>),
    /// The attribute starts with the value.
    Prefix(BTreeMap<String, String>),
    /// The attribute ends with the value.
    Suffix(BTreeMap<String, String>),
}

impl Filter {
    /// Whether an event matches; `attribute` looks an attribute or extension up.
    pub fn matches(&self, attribute: impl Fn(&str) -> Option<String>) -> bool {
        let (pairs, test): (_, fn(&str, &str) -> bool) = match self {
            Self::Exact(pairs) => (pairs, |value, wanted| value == wanted),
            Self::Prefix(pairs) => (pairs, |value, wanted| value.starts_with(wanted)),
            Self::Suffix(pairs) => (pairs, |value, wanted| value.ends_with(wanted)),
        };
        !pairs.is_empty()
            && pairs
                .iter()
                .all(|(name, wanted)| attribute(name).is_some_and(|v| test(&v, wanted)))
    }

    fn pairs(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Exact(pairs) | Self::Prefix(pairs) | Self::Suffix(pairs) => pairs,
        }
    }
}

impl TriggerSpec {
    /// Whether an event matches all filters.
    pub fn matches(&self, attribute: impl Fn(&str) -> Option<String>) -> bool {
        self.filters.iter().all(|f| f.matches(&attribute))
    }

    /// Checks what the schema cannot say.
    ///
    /// # Errors
    /// Every fault found, each with its field.
    pub fn validate(&self) -> Result<(), FieldErrors> {
        let mut faults = Vec::new();
        if self.flow.is_some() == self.function.is_some() {
            faults.push(FieldError::new("spec", "name exactly one of flow and function"));
        }
        if self.flow.is_some() && !self.params.is_empty() {
            faults.push(
                FieldError::new("spec.params", "are for function only").remedy("set them at the steps of the flow"),
            );
        }
        for (i, filter) in self.filters.iter().enumerate() {
            for (name, value) in filter.pairs() {
                // The CloudEvents rule for attribute names; an upper-case letter would never match.
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                    faults.push(FieldError::new(
                        format!("spec.filters[{i}]"),
                        format!("\"{name}\" is not an attribute name: a-z and 0-9 only"),
                    ));
                }
                if value.is_empty() {
                    faults.push(FieldError::new(format!("spec.filters[{i}].{name}"), "is empty"));
                }
            }
            if filter.pairs().is_empty() {
                faults.push(FieldError::new(
                    format!("spec.filters[{i}]"),
                    "names no attribute, so it never matches",
                ));
            }
        }
        FieldErrors(faults).into_result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Option<String> {
        match name {
            "type" => Some("dev.imageflow.object.created".into()),
            "subject" => Some("raw-images/a.jpg".into()),
            _ => None,
        }
    }

    fn filters(json: &str) -> Vec<Filter> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn all_filters_and_all_pairs_must_match() {
        let yes = filters(
            r#"[{"exact":{"type":"dev.imageflow.object.created"}},{"prefix":{"subject":"raw-images/"}},{"suffix":{"subject":".jpg"}}]"#,
        );
        assert!(yes.iter().all(|f| f.matches(event)));
        let no = filters(r#"[{"exact":{"type":"dev.imageflow.object.created","missing":"x"}}]"#);
        assert!(!no[0].matches(event));
    }

    #[test]
    fn a_trigger_without_a_target_is_refused() {
        let spec: TriggerSpec = serde_json::from_str(r#"{"filters":[{"exact":{"Type":"x"}}]}"#).unwrap();
        let text = spec.validate().unwrap_err().to_string();
        assert!(
            text.contains("exactly one of flow and function") && text.contains("\"Type\""),
            "{text}"
        );
    }
}
