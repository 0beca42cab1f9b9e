//! Query parameters as the JSON that the function's schema asks for.
use imageflow_types::names::nearest;
use imageflow_types::schema::property_names;
use imageflow_types::{FieldError, FieldErrors, Problem};
use serde_json::{Map, Value};

/// The parameters of a query string, each converted to the type that `schema` gives it. A schema that lists no properties
/// takes everything as text. Where the schema allows null and no free text, an empty value and `null` are null: so a caller
/// takes back what the function sets by default.
///
/// # Errors
/// A [`Problem`] that names each parameter which is unknown (with the nearest right one), given twice or of another type.
pub fn params_from_query(schema: &Value, query: &str) -> Result<Map<String, Value>, Problem> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let open = properties.is_none()
        || schema
            .get("additionalProperties")
            .is_some_and(|open| *open != Value::Bool(false));
    let mut params = Map::new();
    let mut faults = Vec::new();
    for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
        if params.contains_key(name.as_ref()) {
            faults.push(FieldError::new(name, "is given twice").remedy("give it once"));
            continue;
        }
        match properties.and_then(|known| known.get(name.as_ref())) {
            Some(property) => match convert(schema, property, &text) {
                Ok(value) => drop(params.insert(name.into_owned(), value)),
                Err(fault) => faults.push(fault.under(&name)),
            },
            None if open => drop(params.insert(name.into_owned(), Value::String(text.into_owned()))),
            None => faults.push(unknown(schema, &name)),
        }
    }
    FieldErrors(faults).into_result()?;
    Ok(params)
}

fn unknown(schema: &Value, name: &str) -> FieldError {
    let known = property_names(schema);
    let fault = FieldError::new(name, "is not a parameter of this function");
    match nearest(name, known.iter().copied()) {
        Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
        None if known.is_empty() => fault.remedy("it takes none"),
        None => fault.remedy(format!("known are {}", known.join(", "))),
    }
}

fn convert(root: &Value, property: &Value, text: &str) -> Result<Value, FieldError> {
    let mut kinds = Vec::new();
    types(root, property, 0, &mut kinds);
    if matches!(text, "" | "null") && kinds.contains(&"null") && !kinds.contains(&"string") {
        return Ok(Value::Null);
    }
    for kind in &kinds {
        let parsed: Option<Value> = match *kind {
            "integer" => text.parse::<i64>().ok().map(Value::from),
            "number" => text.parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::from),
            "boolean" => text.parse::<bool>().ok().map(Value::from),
            "array" => serde_json::from_str(text).ok().filter(Value::is_array),
            "object" => serde_json::from_str(text).ok().filter(Value::is_object),
            _ => None,
        };
        if let Some(value) = parsed {
            return Ok(value);
        }
    }
    if kinds.is_empty() || kinds.contains(&"string") || kinds.contains(&CHOICE) {
        return Ok(Value::String(text.to_owned()));
    }
    kinds.retain(|kind| *kind != "null");
    let wanted = kinds.join(" or ");
    Err(FieldError::new(
        "",
        format!(
            "\"{}\" is not of the type {wanted}",
            text.chars().take(80).collect::<String>()
        ),
    ))
}

/// In place of "string" where only certain texts are allowed.
const CHOICE: &str = "choice";

/// The types that a schema allows, through `$ref` and unions. An enumeration allows the types of its members.
fn types<'s>(root: &'s Value, schema: &'s Value, depth: u8, out: &mut Vec<&'s str>) {
    // A schema may refer to itself; parameters that are worth a query value do not nest this far.
    const DEEPEST: u8 = 8;
    if depth > DEEPEST {
        return;
    }
    if let Some(target) = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.strip_prefix('#'))
        && let Some(target) = root.pointer(target)
    {
        types(root, target, depth + 1, out);
    }
    let (listed, constant) = (schema.get("enum").and_then(Value::as_array), schema.get("const"));
    let closed = listed.is_some() || constant.is_some();
    let mut push = |kind: &'s str| out.push(if closed && kind == "string" { CHOICE } else { kind });
    match schema.get("type") {
        Some(Value::String(kind)) => push(kind.as_str()),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).for_each(push),
        _ => {}
    }
    for union in ["anyOf", "oneOf", "allOf"] {
        for member in schema.get(union).and_then(Value::as_array).into_iter().flatten() {
            types(root, member, depth + 1, out);
        }
    }
    for member in listed.into_iter().flatten().chain(constant) {
        out.push(match member {
            Value::String(_) => CHOICE,
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::Null => "null",
            _ => continue,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type":"object","additionalProperties":false,"properties":{
            "width":{"type":["integer","null"]},"sigma":{"type":"number"},"tile":{"type":"boolean"},
            "fit":{"anyOf":[{"$ref":"#/$defs/Fit"},{"type":"null"}]},"regions":{"type":"array"},
            "background":{"type":"string"},"label":{"type":["string","null"]},
            "format":{"type":["string","null"],"enum":["png","webp",null]}},
            "$defs":{"Fit":{"oneOf":[{"const":"cover"},{"type":"string","enum":["contain"]}]}}})
    }

    #[test]
    fn values_take_the_types_of_the_schema() {
        let query = "width=40&sigma=1.5&tile=true&fit=cover&regions=%5B1%2C2%5D&background=%23fff";
        let params = params_from_query(&schema(), query).unwrap();
        let expected = json!({"width":40,"sigma":1.5,"tile":true,"fit":"cover","regions":[1,2],"background":"#fff"});
        assert_eq!(Value::Object(params), expected);
    }

    #[test]
    fn an_empty_value_or_null_takes_a_parameter_back_unless_it_is_a_text() {
        let params = params_from_query(&schema(), "width=&fit=&format=&label=&background=").unwrap();
        let expected = json!({"width":null,"fit":null,"format":null,"label":"","background":""});
        assert_eq!(Value::Object(params), expected);
        let params = params_from_query(&schema(), "width=null&format=null&label=null").unwrap();
        assert_eq!(
            Value::Object(params),
            json!({"width":null,"format":null,"label":"null"})
        );
        let problem = params_from_query(&schema(), "sigma=&tile=null").unwrap_err();
        assert!(
            problem.detail.contains("sigma: \"\"") && problem.detail.contains("tile: \"null\""),
            "{}",
            problem.detail
        );
    }

    #[test]
    fn every_wrong_parameter_is_named_with_the_nearest_right_one() {
        let problem = params_from_query(&schema(), "widht=1&sigma=much&tile=1&background=a&background=b").unwrap_err();
        assert_eq!(problem.status, 400);
        for part in [
            "widht",
            "did you mean \"width\"?",
            "sigma: \"much\"",
            "tile: \"1\"",
            "background: is given twice",
        ] {
            assert!(problem.detail.contains(part), "{part} in {}", problem.detail);
        }
        assert_eq!(problem.errors.len(), 4);
    }

    #[test]
    fn a_schema_without_properties_takes_text() {
        let params = params_from_query(&json!({"type":"object"}), "a=1&b=x+y").unwrap();
        assert_eq!(Value::Object(params), json!({"a":"1","b":"x y"}));
    }
}
