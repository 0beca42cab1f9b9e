//! Text drawn from what the API answers. Pure: no I/O, time comes as an argument.
use imageflow_types::{RunState, StepState, StepStatus};
use serde_json::Value;

use crate::output::{at, prose, size, table};

/// The time of day (UTC) of milliseconds since the epoch.
#[must_use]
pub fn clock(ms: i64) -> String {
    let (s, ms) = (ms.div_euclid(1000).rem_euclid(86_400), ms.rem_euclid(1000));
    format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

/// A value as YAML, for things that have no drawing of their own.
#[must_use]
pub fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).map_or_else(|_| value.to_string(), |text| text.trim_end().to_owned())
}

/// The steps of a flow document.
pub fn flow_steps(flow: &Value) -> impl Iterator<Item = &Value> {
    flow.pointer("/spec/steps")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// A flow with its steps as a tree; a step hangs below the one it comes after.
#[must_use]
pub fn flow_tree(flow: &Value) -> String {
    let steps: Vec<&Value> = flow_steps(flow).collect();
    let mut lines = vec![format!(
        "flow {} → {}",
        at(flow, "/metadata/name"),
        at(flow, "/spec/output/bucket")
    )];
    branch(&steps, None, "", &mut lines);
    lines.join("\n")
}

fn branch(steps: &[&Value], parent: Option<&str>, indent: &str, lines: &mut Vec<String>) {
    let after = |step: &Value| step.pointer("/after/0").and_then(Value::as_str).map(str::to_owned);
    let children: Vec<_> = steps.iter().filter(|s| after(s).as_deref() == parent).collect();
    for (i, step) in children.iter().enumerate() {
        let (corner, down) = if i + 1 == children.len() {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let name = at(step, "/name");
        let params = step.get("params").and_then(Value::as_object).into_iter().flatten();
        let params: String = params.map(|(k, v)| format!(" {k}={}", at(v, ""))).collect();
        lines.push(format!("{indent}{corner}{name}: {}{params}", at(step, "/function")));
        // A step that comes after itself would never end; no valid flow has one, but this only draws.
        if lines.len() <= steps.len() {
            branch(steps, Some(&name), &format!("{indent}{down}"), lines);
        }
    }
}

/// The filters of a trigger in few words; all must match.
#[must_use]
pub fn filters(trigger: &Value) -> String {
    let filters = trigger.pointer("/spec/filters").and_then(Value::as_array);
    let mut out = vec![];
    for (dialect, attributes) in filters.into_iter().flatten().filter_map(Value::as_object).flatten() {
        for (name, value) in attributes.as_object().into_iter().flatten() {
            let value = at(value, "");
            out.push(match dialect.as_str() {
                "exact" => format!("{name}={value}"),
                "prefix" => format!("{name}={value}*"),
                "suffix" => format!("{name}=*{value}"),
                other => format!("{other} {name}={value}"),
            });
        }
    }
    if out.is_empty() { "-".to_owned() } else { out.join(", ") }
}

/// As much of a text as a list has room for.
#[must_use]
pub fn first_sentence(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    // A point after which a word with a capital comes: not that of "Rec. 709".
    let mut ends = line.match_indices(". ").map(|(at, _)| at);
    let end = ends.find(|at| line[at + 2..].starts_with(char::is_uppercase));
    end.map_or(line, |at| &line[..at]).trim_end_matches('.').to_owned()
}

/// What a function runs.
#[must_use]
pub fn program(function: &Value) -> String {
    if let Some(operation) = function.pointer("/spec/operation").and_then(Value::as_str) {
        return operation.to_owned();
    }
    match function.pointer("/spec/command").and_then(Value::as_array) {
        Some(words) => words.iter().map(|w| at(w, "")).collect::<Vec<_>>().join(" "),
        None => at(function, "/spec/image"),
    }
}

/// The pods of a function, ready and starting.
#[must_use]
pub fn pods(function: &Value) -> String {
    let count = |what: &str| {
        function
            .pointer(&format!("/status/pods/{what}"))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    match (count("ready"), count("starting")) {
        (ready, 0) => ready.to_string(),
        (ready, starting) => format!("{ready} (+{starting} starting)"),
    }
}

/// A function with its revisions and parameters.
#[must_use]
pub fn function(function: &Value, color: bool) -> String {
    let pairs = [
        ("function", at(function, "/metadata/name")),
        ("program", program(function)),
        ("url", at(function, "/status/url")),
        ("pods", pods(function)),
        (
            "scale",
            format!(
                "{} to {}",
                at(function, "/spec/scale/min"),
                at(function, "/spec/scale/max")
            ),
        ),
        (
            "resources",
            format!(
                "{} cpu, {} memory",
                at(function, "/spec/resources/cpu"),
                at(function, "/spec/resources/memory")
            ),
        ),
        ("latest", at(function, "/status/latestRevision")),
    ];
    let params = function
        .pointer("/spec/params")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let params: Vec<String> = params.map(|(k, v)| format!("{k}={}", at(v, ""))).collect();
    let waiting = function.pointer("/status/backlog").and_then(Value::as_u64).unwrap_or(0);
    let some = [
        ("params", params.join(" "), !params.is_empty()),
        ("waiting", format!("{waiting} requests"), waiting > 0),
    ];
    let some = some.into_iter().filter_map(|(k, v, there)| there.then_some((k, v)));
    let mut out: Vec<String> = pairs
        .into_iter()
        .chain(some)
        .map(|(k, v)| format!("{:<11}{v}", format!("{k}:")))
        .collect();
    if let Some(problem) = function.pointer("/status/problem").and_then(Value::as_str) {
        out.push(format!("problem:   {problem}"));
    }
    if let Some(last) = function.pointer("/status/lastDecision").filter(|d| d.is_object()) {
        out.push(format!("scaling:   {} {}", moment(last), summary(last)));
    }
    if let Some(revisions) = function.pointer("/status/revisions").and_then(Value::as_array) {
        let rows = revisions.iter().map(|r| {
            let percent = r
                .get("percent")
                .map_or_else(|| "-".to_owned(), |p| format!("{}%", at(p, "")));
            vec![at(r, "/name"), percent, at(r, "/tag")]
        });
        out.push(String::new());
        out.push(table(&["revision", "traffic", "tag"], rows, color));
    }
    if let Some(schema) = function
        .pointer("/status/parameters")
        .filter(|s| s.get("properties").is_some())
    {
        out.push(String::new());
        out.push(parameters(schema, color));
    }
    out.join("\n")
}

/// The parameters of a JSON schema as a table.
#[must_use]
pub fn parameters(schema: &Value, color: bool) -> String {
    let Some(properties) = schema
        .get("properties")
        .and_then(Value::as_object)
        .filter(|p| !p.is_empty())
    else {
        return "no parameters".to_owned();
    };
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let rows = properties.iter().map(|(name, property)| {
        // What is defined elsewhere in the schema is followed once: operations do not nest deeper.
        let target = property
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|r| schema.pointer(r.strip_prefix('#')?));
        let described = target.unwrap_or(property);
        let default = match property.get("default") {
            Some(value) if !value.is_null() => at(value, ""),
            _ if required.contains(&name.as_str()) => "(required)".to_owned(),
            _ => "-".to_owned(),
        };
        let about = [property, described]
            .iter()
            .find_map(|p| p.get("description")?.as_str())
            .unwrap_or("");
        vec![
            name.clone(),
            values(described),
            default,
            about.lines().next().unwrap_or("").to_owned(),
        ]
    });
    prose(
        &["parameter", "values", "default", "about"],
        rows.collect::<Vec<_>>(),
        color,
    )
}

/// What a property takes, in few words.
fn values(property: &Value) -> String {
    let list = |values: &Vec<Value>| values.iter().map(|v| at(v, "")).collect::<Vec<_>>().join("|");
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return list(values);
    }
    if let Some(options) = property
        .get("oneOf")
        .or_else(|| property.get("anyOf"))
        .and_then(Value::as_array)
    {
        let options = options
            .iter()
            .map(|o| o.get("const").map_or_else(|| values(o), |c| at(c, "")));
        return options.filter(|o| o != "null").collect::<Vec<_>>().join("|");
    }
    let kind = match property.get("type") {
        Some(Value::Array(kinds)) => list(&kinds.iter().filter(|k| *k != "null").cloned().collect()),
        _ => at(property, "/type"),
    };
    match (property.get("minimum"), property.get("maximum")) {
        (Some(min), Some(max)) => format!("{kind} {min}..{max}"),
        (Some(min), None) => format!("{kind} from {min}"),
        (None, Some(max)) => format!("{kind} to {max}"),
        (None, None) => kind,
    }
}

/// How a function is scaled: the numbers, the last decision in a sentence, and what would change it.
#[must_use]
pub fn scaling(function: &str, state: &Value) -> String {
    let mut text = format!(
        "{function}: {} pods wanted, {} ready",
        at(state, "/desired"),
        at(state, "/ready")
    );
    if let Some(last) = state.pointer("/decisions/0") {
        text.push_str(&format!("\n{}", summary(last)));
    }
    if let Some(change) = state.pointer("/decisions/0/change").and_then(Value::as_str) {
        text.push_str(&format!("\nnext: {change}"));
    }
    text
}

/// When a decision of the autoscaler was made.
#[must_use]
pub fn moment(decision: &Value) -> String {
    clock(decision.get("atMs").and_then(Value::as_i64).unwrap_or_default())
}

/// A decision in one sentence; nothing when there is none.
#[must_use]
pub fn summary(decision: &Value) -> String {
    decision.get("summary").map_or_else(String::new, |said| at(said, ""))
}

/// One step, for a line of progress: `resize 12.0 ms cold`, or `resize reused` where it had nothing to do.
#[must_use]
pub fn step(step: &StepState) -> String {
    let mut out = format!("{} ", step.name);
    if step.reused && step.status == StepStatus::Succeeded {
        out.push_str("reused");
        return out;
    }
    match (step.status, step.service_ms) {
        (StepStatus::Succeeded, Some(ms)) => out.push_str(&format!("{ms:.1} ms")),
        (status, _) => out.push_str(status.as_str()),
    }
    if step.cold {
        out.push_str(" cold");
    }
    out
}

/// All steps of a run in one line.
#[must_use]
pub fn progress(run: &RunState) -> String {
    run.steps.iter().map(step).collect::<Vec<_>>().join(" · ")
}

/// How many steps of a run have ended, and of how many.
#[must_use]
pub fn ended(run: &RunState) -> (u64, u64) {
    let over = |s: &&StepState| {
        matches!(
            s.status,
            StepStatus::Succeeded | StepStatus::Failed | StepStatus::Skipped
        )
    };
    (run.steps.iter().filter(over).count() as u64, run.steps.len() as u64)
}

/// A run with its steps, results and error.
#[must_use]
pub fn run(run: &RunState, color: bool) -> String {
    let mut out = vec![
        format!("run:     {}", run.run),
        format!("target:  {}", run.request.target),
        format!("status:  {}", run.status.as_str()),
        format!("started: {} UTC", clock(run.created_ms)),
        format!("took:    {} ms", run.updated_ms - run.created_ms),
        String::new(),
    ];
    let rows = run.steps.iter().map(|s| {
        let result = s.output.as_ref().map_or_else(
            || "-".to_owned(),
            |o| format!("{}/{} ({})", o.bucket, o.key, size(o.size)),
        );
        let start = match (s.cold, s.reused) {
            (_, true) => "reused",
            (true, _) => "cold",
            _ => "",
        };
        vec![
            s.name.to_string(),
            s.status.as_str().to_owned(),
            s.service_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
            s.attempts.len().to_string(),
            start.to_owned(),
            result,
        ]
    });
    out.push(table(
        &["step", "status", "ms", "failed tries", "start", "result"],
        rows,
        color,
    ));
    if let Some((step, error)) = run.error() {
        out.push(format!("\n{step}: {} ({})", error.message, error.code.slug()));
    }
    out.join("\n")
}

#[cfg(test)]
pub(crate) mod tests;
