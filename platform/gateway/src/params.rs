//! Parameters of a call: checked before it costs anything.
use imageflow_resources::Catalog;
use imageflow_types::work::Target;
use imageflow_types::{ErrorCode, FieldError, FieldErrors, FunctionSpec, Problem, RunId, names, schema};
use serde_json::{Map, Value, json};

use crate::read::pairs;

/// What a query says of the run itself and not of its work.
const FUSE: &str = "fuse";
/// Below it every whole number is a float of its own.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// Parameters of a run. They go over those that the revision it gets has by itself.
pub fn check_values(
    catalog: &Catalog,
    target: &Target,
    run: &RunId,
    params: &Map<String, Value>,
) -> Result<(), Problem> {
    let Target::Function(name) = target else {
        let detail = "params: a flow has them at its steps; send none";
        let none = params.is_empty();
        return none
            .then_some(())
            .ok_or_else(|| Problem::new(ErrorCode::InvalidArgument, detail));
    };
    let template = &catalog.revision_of_run(name, run)?.template;
    let Some(parameters) = catalog.parameters(template) else {
        return Ok(());
    };
    let mut merged = template.params.clone();
    merged.extend(params.clone());
    let faults = schema::check(&parameters, &Value::Object(merged));
    Ok(FieldErrors(faults.into_iter().map(|f| f.under("params")).collect()).into_result()?)
}

/// Parameters that a run is given in its query, beside `fuse`: those of an invocation, with the types that the function's
/// parameters have. A flow has its parameters at its steps, so there any other name is a slip.
pub fn of_query(
    catalog: &Catalog,
    target: &Target,
    run: &RunId,
    raw: Option<&str>,
) -> Result<Map<String, Value>, Problem> {
    let given: Vec<_> = pairs(raw).into_iter().filter(|(name, _)| name != FUSE).collect();
    let Target::Function(name) = target else {
        let faults = given.iter().map(|(name, _)| {
            let fault = FieldError::new(name, "is not known here");
            match names::nearest(name, [FUSE]) {
                Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
                None => fault.remedy(format!("known is {FUSE}; a flow has parameters at its steps")),
            }
        });
        FieldErrors(faults.collect()).into_result()?;
        return Ok(Map::new());
    };
    if let Some((name, _)) = given.iter().find(|(name, _)| name == "tag") {
        let fault = FieldError::new(name, "is not known here: a run goes where the traffic goes");
        return Err(FieldErrors::from(fault.remedy("to call the revision of a tag, invoke it")).into());
    }
    let template = &catalog.revision_of_run(name, run)?.template;
    check_names(catalog, template, given.iter().map(|(name, _)| name.as_str()))?;
    let parameters = catalog.parameters(template).unwrap_or_default();
    let mut params = Map::new();
    for (name, text) in given {
        if params.contains_key(&name) {
            let fault = FieldError::new(name, "is given twice").remedy("give it once");
            return Err(FieldErrors::from(fault).into());
        }
        let value = typed(&parameters, &name, text);
        params.insert(name, value);
    }
    Ok(params)
}

/// A text as the first type that the parameter can be. What fits none stays the nearest, for the check of values to tell.
fn typed(parameters: &Value, name: &str, text: String) -> Value {
    let Some(property) = parameters.pointer("/properties").and_then(|p| p.get(name)) else {
        return Value::String(text);
    };
    let json: Option<Value> = serde_json::from_str(&text).ok();
    let Some(json) = json.filter(|v| !v.is_string() && !v.is_null()) else {
        return Value::String(text);
    };
    // A schema takes 5.0 for an integer, programs do not.
    let whole = json.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < MOST_EXACT);
    let json = whole.map_or(json, |n| Value::from(n as i64));
    // The property alone, with what its references may point at.
    let mut alone = json!({"type": "object", "properties": {name: property}});
    for shared in ["$defs", "definitions"] {
        if let Some(defined) = parameters.get(shared) {
            alone[shared] = defined.clone();
        }
    }
    let fits = |value: &Value| schema::check(&alone, &json!({name: value})).is_empty();
    let plain = Value::String(text);
    if !fits(&json) && fits(&plain) { plain } else { json }
}

/// Parameters of an invocation. They arrive as text, so only their names can be checked by the schema here: a slip shall cost
/// no cold start. Values are the pod's to check, by the same schema.
pub fn check_names<'a>(
    catalog: &Catalog,
    spec: &FunctionSpec,
    given: impl Iterator<Item = &'a str>,
) -> Result<(), Problem> {
    let parameters = catalog.parameters(spec);
    let closed = |p: &Value| p.get("additionalProperties") == Some(&Value::Bool(false));
    let Some(parameters) = parameters.filter(closed) else {
        return Ok(());
    };
    let known = schema::property_names(&parameters);
    let unknown = given.filter(|name| !known.contains(name));
    let faults = unknown.map(|name| {
        let fault = FieldError::new(name, "is not a parameter of this function");
        match names::nearest(name, known.iter().copied()) {
            Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
            None => fault.remedy(format!("known are {}", known.join(", "))),
        }
    });
    Ok(FieldErrors(faults.collect()).into_result()?)
}
