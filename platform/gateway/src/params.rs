//! Parameters of a call: checked before it costs anything.
use imageflow_resources::Catalog;
use imageflow_types::work::Target;
use imageflow_types::{ErrorCode, FieldError, FieldErrors, FunctionSpec, Problem, names, schema};
use serde_json::{Map, Value};

/// Parameters of a run. They go over those that the function has by itself.
pub fn check_values(catalog: &Catalog, target: &Target, params: &Map<String, Value>) -> Result<(), Problem> {
    let Target::Function(name) = target else {
        let detail = "params: a flow has them at its steps; send none";
        let none = params.is_empty();
        return none
            .then_some(())
            .ok_or_else(|| Problem::new(ErrorCode::InvalidArgument, detail));
    };
    let spec = catalog.function(name.as_str())?.spec();
    let Some(parameters) = catalog.parameters(spec) else {
        return Ok(());
    };
    let mut merged = spec.params.clone();
    merged.extend(params.clone());
    let faults = schema::check(&parameters, &Value::Object(merged));
    Ok(FieldErrors(faults.into_iter().map(|f| f.under("params")).collect()).into_result()?)
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
