//! Checks a value against a JSON Schema and tells faults as people need them: the path, the rule, the nearest name.
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use crate::field::FieldError;
use crate::names::nearest;

/// All faults of `value` by `schema`; empty when it is valid. A schema that is itself not valid is one fault.
#[must_use]
pub fn check(schema: &Value, value: &Value) -> Vec<FieldError> {
    let validator = match jsonschema::validator_for(schema) {
        Ok(validator) => validator,
        Err(error) => return vec![FieldError::new("", format!("the schema itself is not valid: {error}"))],
    };
    validator
        .iter_errors(value)
        .flat_map(|error| explain(schema, &error))
        .collect()
}

/// Names of the parameters that a schema knows, for messages.
#[must_use]
pub fn property_names(schema: &Value) -> Vec<&str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|p| p.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

fn explain(schema: &Value, error: &jsonschema::ValidationError<'_>) -> Vec<FieldError> {
    let path = dotted(&error.instance_path().to_string());
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|name| {
                let known = object_schema(schema, &error.schema_path().to_string());
                let names = known.map(property_names).unwrap_or_default();
                let fault = FieldError::new(name.clone(), "is not known here").under(&path);
                match nearest(name, names.iter().copied()) {
                    Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
                    None if names.is_empty() => fault.remedy("it takes none"),
                    None => fault.remedy(format!("known are {}", names.join(", "))),
                }
            })
            .collect(),
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            vec![FieldError::new(name, "is missing").under(&path)]
        }
        ValidationErrorKind::Enum { options } => {
            let given = error.instance().as_str().unwrap_or_default();
            let names: Vec<&str> = options
                .as_array()
                .map(|a| a.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            let remedy = match nearest(given, names.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"? It is one of {}", names.join(", ")),
                None => format!("write one of {}", names.join(", ")),
            };
            vec![FieldError::new(path, format!("{} is not allowed", short(error.instance()))).remedy(remedy)]
        }
        _ => vec![FieldError::new(path, cut(&error.to_string()))],
    }
}

/// The sub-schema whose `additionalProperties` refused: the schema path without its last part, through `$ref`.
fn object_schema<'s>(root: &'s Value, schema_path: &str) -> Option<&'s Value> {
    let parent = schema_path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut at = root;
    for part in parent.split('/').filter(|p| !p.is_empty()) {
        if part == "$ref" {
            let target = at.get("$ref")?.as_str()?.strip_prefix('#')?;
            at = root.pointer(target)?;
            continue;
        }
        let key = part.replace("~1", "/").replace("~0", "~");
        at = match at {
            Value::Object(map) => map.get(&key)?,
            Value::Array(list) => list.get(key.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(at)
}

/// `/steps/1/params` as `steps[1].params`.
fn dotted(pointer: &str) -> String {
    let mut out = String::new();
    for part in pointer.split('/').filter(|p| !p.is_empty()) {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("[{part}]"));
        } else {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&part.replace("~1", "/").replace("~0", "~"));
        }
    }
    out
}

fn short(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_path_rule_and_nearest() {
        let schema = serde_json::json!({"type":"object","additionalProperties":false,"required":["width"],
            "properties":{"width":{"type":"integer","minimum":1},"fit":{"enum":["cover","contain"]},"in":{"$ref":"#/$defs/a"}},
            "$defs":{"a":{"type":"object","additionalProperties":false,"properties":{"depth":{"type":"integer"}}}}});
        let faults = check(&schema, &serde_json::json!({"widht":3,"fit":"covr","in":{"dept":1}}));
        let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(
            text.contains("widht: is not known here; did you mean \"width\"?"),
            "{text}"
        );
        assert!(
            text.contains("fit: \"covr\" is not allowed; did you mean \"cover\"?"),
            "{text}"
        );
        assert!(
            text.contains("in.dept: is not known here; did you mean \"depth\"?"),
            "{text}"
        );
        assert!(text.contains("width: is missing"), "{text}");
        assert!(check(&schema, &serde_json::json!({"width":3})).is_empty());
    }
}
