//! What an operation is: a name, a schema of its parameters, and a step made of them.
use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::assets::Assets;
use crate::catalog::catalog;
use crate::error::{OpError, nearest};
use crate::limits::Limits;
use crate::picture::{Picture, Size, Source};
use crate::state::Choice;

/// One catalogue entry.
pub struct Operation {
    /// What steps call it.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Not for listings.
    pub hidden: bool,
    make_schema: fn() -> Value,
    make_step: fn(&Value) -> Result<Box<dyn Step>, OpError>,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Schemas of the whole catalogue: each call checks its parameters against them.
static SCHEMAS: LazyLock<HashMap<&'static str, Value>> =
    LazyLock::new(|| catalog().iter().map(|o| (o.name, (o.make_schema)())).collect());

impl Operation {
    pub(crate) const fn of<P: Parameters>() -> Self {
        Self {
            name: P::NAME,
            summary: P::SUMMARY,
            hidden: P::HIDDEN,
            make_schema: schema_of::<P>,
            make_step: step_of::<P>,
        }
    }

    /// JSON Schema (2020-12) of its parameters, with ranges, defaults and descriptions.
    #[must_use]
    pub fn schema(&self) -> Value {
        (self.make_schema)()
    }

    /// Checks `params` (an object, or null for none) and makes the step.
    ///
    /// # Errors
    /// [`OpError::UnknownParameter`] with the nearest name, [`OpError::BadParameter`] with what would be right.
    pub fn prepare(&self, params: &Value) -> Result<Box<dyn Step>, OpError> {
        (self.make_step)(params)
    }
}

/// The typed parameters of an operation; they are the step itself.
pub trait Parameters: DeserializeOwned + JsonSchema + Step + 'static {
    /// What steps call the operation.
    const NAME: &'static str;
    /// One line for people.
    const SUMMARY: &'static str;
    /// Not for listings.
    const HIDDEN: bool = false;

    /// Checks what the schema cannot say: how parameters go together. Types and ranges are checked before.
    ///
    /// # Errors
    /// [`OpError::BadParameter`].
    fn validate(&self) -> Result<(), OpError> {
        Ok(())
    }
}

/// What a step changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Nothing: bytes that see only such steps stay as they are.
    Nothing,
    /// How the result is encoded or described, and no pixel of a picture without alpha.
    Output,
    /// Pixels.
    Pixels,
}

/// What a run knows beside the picture.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) assets: &'a Assets,
    pub(crate) limits: &'a Limits,
    pub(crate) choice: Choice,
    /// The EXIF orientation of the first input.
    pub(crate) orientation: u8,
    pub(crate) data: Map<String, Value>,
}

/// An operation with its parameters.
pub trait Step: fmt::Debug + Send + Sync {
    /// What it changes.
    fn touch(&self) -> Touch {
        Touch::Pixels
    }

    /// Notes what it has to say about the result: called before [`apply`](Self::apply), perhaps without any pixel decoded.
    fn note(&self, _context: &mut Context<'_>) {}

    /// How many times smaller the result is at least, for a step that can begin with a JPEG decoded at a fraction.
    fn shrinks(&self, _full: Size) -> Option<f64> {
        None
    }

    /// Begins with what [`shrinks`](Self::shrinks) asked for.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn start(&self, source: Source, context: &Context<'_>) -> Result<Picture, OpError> {
        self.apply(source.orientation.apply(source.stored), context)
    }

    /// Makes the new picture of the old one.
    ///
    /// # Errors
    /// Parameters that do not fit this picture, a result over the limits.
    fn apply(&self, picture: Picture, context: &Context<'_>) -> Result<Picture, OpError>;
}

fn schema_of<P: Parameters>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let simplify = RecursiveTransform(|schema: &mut Schema| simplify(schema));
    let mut generator = settings.with_transform(simplify).into_generator();
    let mut schema = generator.root_schema_for::<P>();
    schema.insert("title".to_owned(), P::NAME.into());
    if schema.get("properties").is_none() {
        // Without it a reader cannot tell "none" from "not said".
        schema.insert("properties".to_owned(), Value::Object(Map::new()));
    }
    schema.to_value()
}

/// Turns the union of constants that a documented enum becomes into a plain `enum`, with what each means in the description:
/// validators then name the right values, and a form needs no special case. Line breaks of the source become spaces.
fn simplify(schema: &mut Schema) {
    let (mut names, mut meanings) = (Vec::new(), Vec::new());
    for union in ["anyOf", "oneOf"] {
        collect(schema.get(union), &mut names, &mut meanings);
    }
    if !names.is_empty() {
        let optional = schema.get("anyOf").is_some();
        schema.remove("anyOf");
        schema.remove("oneOf");
        let kind = if optional {
            serde_json::json!(["string", "null"])
        } else {
            "string".into()
        };
        if optional {
            names.push(Value::Null);
        }
        schema.insert("type".to_owned(), kind);
        schema.insert("enum".to_owned(), names.into());
    }
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let meanings = if meanings.is_empty() {
        String::new()
    } else {
        format!("{}.", meanings.join(", "))
    };
    let text = [text, &meanings]
        .into_iter()
        .filter(|t| !t.is_empty())
        .collect::<Vec<_>>()
        .join(" Values: ");
    if !text.is_empty() {
        schema.insert("description".to_owned(), text.replace('\n', " ").into());
    }
}

fn collect(union: Option<&Value>, names: &mut Vec<Value>, meanings: &mut Vec<String>) {
    for member in union.and_then(Value::as_array).into_iter().flatten() {
        if let Some(Value::String(name)) = member.get("const") {
            let meaning = member["description"].as_str().unwrap_or_default().trim_end_matches('.');
            names.push(name.as_str().into());
            meanings.push(format!("{name} ({meaning})"));
        }
        collect(member.get("oneOf"), names, meanings);
    }
}

fn step_of<P: Parameters>(params: &Value) -> Result<Box<dyn Step>, OpError> {
    let none = Map::new();
    let given = match params {
        Value::Object(given) => given,
        Value::Null => &none,
        other => {
            return Err(OpError::parameter(
                P::NAME,
                "params",
                other,
                "give an object of parameters",
            ));
        }
    };
    if let Some(properties) = SCHEMAS.get(P::NAME).and_then(|s| s["properties"].as_object()) {
        check_names(P::NAME, properties, given)?;
        check_values(P::NAME, properties, given)?;
    }
    let made: Result<P, _> = serde_path_to_error::deserialize(Value::Object(given.clone()));
    let step = made.map_err(|error| {
        let field = error.path().to_string();
        let value = given.get(&field).cloned().unwrap_or_default();
        OpError::parameter(P::NAME, field, value, error.into_inner().to_string())
    })?;
    step.validate()?;
    Ok(Box::new(step))
}

fn check_names(
    operation: &'static str,
    properties: &Map<String, Value>,
    given: &Map<String, Value>,
) -> Result<(), OpError> {
    match given.keys().find(|name| !properties.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(OpError::UnknownParameter {
            operation,
            name: name.clone(),
            nearest: nearest(name, properties.keys().map(String::as_str)),
        }),
    }
}

/// Ranges and names stand once, in the schema: serde does not read ranges, and its words for names are longer.
fn check_values(
    operation: &'static str,
    properties: &Map<String, Value>,
    given: &Map<String, Value>,
) -> Result<(), OpError> {
    for (name, value) in given {
        let wrong = properties.get(name).and_then(|property| match value {
            Value::Number(number) => out_of_range(property, number.as_f64()?),
            Value::String(text) => not_a_member(property, text),
            _ => None,
        });
        if let Some(expected) = wrong {
            return Err(OpError::parameter(operation, name, value, expected));
        }
    }
    Ok(())
}

fn out_of_range(property: &Value, number: f64) -> Option<String> {
    let (low, high) = (&property["minimum"], &property["maximum"]);
    let below = low.as_f64().is_some_and(|low| number < low);
    let above = high.as_f64().is_some_and(|high| number > high);
    (below || above).then(|| match (low.is_null(), high.is_null()) {
        (false, false) => format!("give {low} to {high}"),
        (false, true) => format!("give {low} or more"),
        _ => format!("give {high} or less"),
    })
}

fn not_a_member(property: &Value, text: &str) -> Option<String> {
    let members: Vec<&str> = property["enum"].as_array()?.iter().filter_map(Value::as_str).collect();
    if members.contains(&text) {
        return None;
    }
    let list = members.join(", ");
    Some(match nearest(text, members.into_iter()) {
        Some(near) => format!("did you mean \"{near}\"? It is one of {list}"),
        None => format!("give one of {list}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{OpErrorKind, find};

    fn refusal(operation: &str, params: Value) -> String {
        let error = find(operation).unwrap().prepare(&params).unwrap_err();
        assert_eq!(error.kind(), OpErrorKind::BadParameter);
        error.to_string()
    }

    #[test]
    fn every_schema_is_closed_and_says_what_each_parameter_is() {
        for operation in catalog() {
            let schema = operation.schema();
            assert_eq!(schema["type"], "object", "{operation:?}");
            assert_eq!(schema["additionalProperties"], false, "{operation:?}");
            assert!(schema["description"].is_string(), "{operation:?}");
            for (name, property) in schema["properties"].as_object().unwrap() {
                assert!(
                    property["type"].is_string() || property["type"].is_array(),
                    "{operation:?}.{name}: {property}"
                );
                assert!(property["description"].is_string(), "{operation:?}.{name}: {property}");
                let required = schema["required"].as_array().is_some_and(|r| r.contains(&json!(name)));
                assert!(
                    required || property.get("default").is_some(),
                    "{operation:?}.{name}: {property}"
                );
            }
        }
    }

    #[test]
    fn ranges_stand_in_the_schema_and_are_checked() {
        let schema = find("resize").unwrap().schema();
        let width = &schema["properties"]["width"];
        assert_eq!(
            (&width["minimum"], &width["maximum"]),
            (&json!(1), &json!(16384)),
            "{width}"
        );
        for (operation, params, part) in [
            ("resize", json!({"width": 0}), "resize.width = 0: give 1 to 16384"),
            ("resize", json!({"width": -5}), "resize.width = -5: give 1 to 16384"),
            ("resize", json!({"width": 100_000}), "give 1 to 16384"),
            ("blur", json!({"sigma": 0.1}), "blur.sigma = 0.1: give 0.3 to 200"),
            (
                "convert",
                json!({"quality": 101}),
                "convert.quality = 101: give 1 to 100",
            ),
            ("watermark", json!({"image": "logo", "opacity": 2}), "give 0"),
        ] {
            let message = refusal(operation, params);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn unknown_names_get_the_nearest_and_wrong_types_are_named() {
        let message = refusal("resize", json!({"widht": 5}));
        assert!(
            message.contains("\"widht\"") && message.contains("\"width\""),
            "{message}"
        );
        let message = refusal("resize", json!({"zzz": 5}));
        assert!(
            message.contains("\"zzz\"") && !message.contains("did you mean"),
            "{message}"
        );
        let message = refusal("resize", json!({"width": 5, "fit": "covr"}));
        assert!(
            message.starts_with("resize.fit = \"covr\"") && message.contains("cover"),
            "{message}"
        );
        assert!(refusal("resize", json!({"width": "5"})).starts_with("resize.width = \"5\""));
        assert!(refusal("rotate", json!({"angle": 9, "background": "mauve"})).contains("#rrggbb"));
        assert!(refusal("resize", json!([1])).contains("object"));
        assert!(refusal("resize", json!({})).contains("width"));
        for field in ["fit", "background", "width"] {
            let mut params = json!({"width": 5});
            params[field] = "!".repeat(5000).into();
            let message = refusal("resize", params);
            assert!(message.len() < 400, "{message}");
        }
    }

    #[test]
    fn operations_without_needed_parameters_take_null_and_an_empty_object() {
        for name in ["autorotate", "flip", "blur", "sharpen", "grayscale", "noop"] {
            find(name).unwrap().prepare(&Value::Null).unwrap();
            find(name).unwrap().prepare(&json!({})).unwrap();
        }
    }
}
