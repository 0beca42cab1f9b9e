//! `scaling simulate`.
use imageflow_autoscaler::{FunctionScaling, Settings};
use imageflow_decider::policy::kpa::KpaConfig;
use imageflow_decider::policy::lag::LagConfig;
use imageflow_decider::{PolicyConfig, PolicyKind};
use imageflow_simulator::baselines::oracle;
use imageflow_simulator::metrics::Figures;
use imageflow_simulator::policy::Told;
use imageflow_simulator::trace;
use imageflow_simulator::workload::{Function, Kind, Workload};
use imageflow_types::function::FunctionSpec;
use imageflow_types::manifest::Document;
use imageflow_types::{FunctionName, Resource};
use serde_json::{Value, json};

use crate::args::manage::SimulateArgs;
use crate::commands::apply::resources;
use crate::commands::files;
use crate::error::CliError;
use crate::output::Context;
use crate::render;

/// How long a caller waits without harm, ms.
const CALLER_PATIENCE_MS: u64 = 1_000;
/// Spread of cold starts around their median.
const SPREAD: f64 = 0.2;

/// Replays the trace under the function's own settings, and beside them the other laws at their defaults and somebody who knows the
/// future.
pub fn simulate(cx: &mut Context, args: &SimulateArgs) -> Result<(), CliError> {
    let document = one(args)?;
    let text = files::read_text(&args.trace)?;
    let requests = trace::read(&text).map_err(|e| CliError::Usage(format!("--trace {}: {e}", args.trace.display())))?;
    let scaling = FunctionScaling {
        scale: document.spec.scale.clone(),
        concurrency: document.spec.concurrency,
        batch: document.spec.batch.max,
        resources: document.spec.resources.clone(),
        revisions: Vec::new(),
        annotations: document.metadata.annotations.clone(),
    };
    let config = scaling.policy(u64::try_from(Settings::default().window.as_millis()).unwrap_or(u64::MAX));
    let kind = if args.callers { Kind::Interactive } else { Kind::Batch };
    let load = trace::load(requests, function(&document, &config, kind, args), args.gpus);
    let (figures, told) = trace::replay(config.clone(), &load);
    let rows = others(&config, &load);
    let name = document.metadata.name.as_str();
    let answer = json!({
        "function": name, "requests": load.requests.len(), "figures": figures,
        "changes": told.iter().map(change).collect::<Vec<Value>>(),
        "others": rows.iter().map(|(law, figures)| json!({ "law": law, "figures": figures })).collect::<Vec<Value>>(),
    });
    if cx.structured(&answer)? {
        return Ok(());
    }
    let what = if args.callers { "calls" } else { "records" };
    cx.line(format!("{name}: {} {what}, nothing was applied\n", load.requests.len()))?;
    let own = std::iter::once(("as in the file".to_owned(), figures)).chain(rows);
    let columns = ["law", "p50", "p95", "p99", "late", "pod-seconds", "starts", "changes"];
    let table = crate::output::table(&columns, own.map(|(law, figures)| row(law, &figures)), cx.color);
    cx.line(table)?;
    cx.line("")?;
    for one in told.iter().take(args.changes) {
        cx.line(format!("{}  {}", render::moment(&change(one)), one.summary))?;
    }
    if told.len() > args.changes {
        cx.line(format!(
            "and {} more changes: --changes {}",
            told.len() - args.changes,
            told.len()
        ))?;
    }
    Ok(())
}

/// The function that is meant.
fn one(args: &SimulateArgs) -> Result<Document<FunctionName, FunctionSpec>, CliError> {
    let documents = resources(std::slice::from_ref(&args.file))?;
    let mut functions: Vec<_> = documents
        .into_iter()
        .filter_map(|resource| match resource {
            Resource::Function(document) => Some(document),
            _ => None,
        })
        .collect();
    let names: Vec<String> = functions.iter().map(|f| f.metadata.name.to_string()).collect();
    let file = args.file.display();
    if let Some(name) = &args.function {
        functions.retain(|f| f.metadata.name.as_str() == name);
        if functions.is_empty() {
            let there = names.join(", ");
            return Err(CliError::Usage(format!(
                "--function: {file} has no function \"{name}\"; it has {there}"
            )));
        }
    }
    match functions.len() {
        1 => Ok(functions.remove(0)),
        0 => Err(CliError::Usage(format!("{file} has no document of kind Function"))),
        _ => Err(CliError::Usage(format!(
            "{file} has several functions: name one with --function ({})",
            names.join(", ")
        ))),
    }
}

fn function(
    document: &Document<FunctionName, FunctionSpec>,
    config: &PolicyConfig,
    kind: Kind,
    args: &SimulateArgs,
) -> Function {
    Function {
        kind,
        concurrency: document.spec.concurrency.target,
        cards: document.spec.resources.gpu,
        bounds: (config.min, config.max),
        cold: (args.cold_start.as_millis() as f64, SPREAD),
        patience: match kind {
            Kind::Interactive => CALLER_PATIENCE_MS,
            Kind::Batch => config.drain_target_ms,
        },
    }
}

fn others(config: &PolicyConfig, load: &Workload) -> Vec<(String, Figures)> {
    let laws = [
        ("imageflow, defaults", PolicyKind::Imageflow),
        ("kpa, defaults", PolicyKind::Kpa(KpaConfig::default())),
        ("lag, defaults", PolicyKind::Lag(LagConfig::default())),
    ];
    let mut rows: Vec<(String, Figures)> = laws
        .into_iter()
        .map(|(name, policy)| {
            let bounds = PolicyConfig {
                policy,
                min: config.min,
                max: config.max,
                ..PolicyConfig::default()
            };
            (name.to_owned(), trace::replay(bounds, load).0)
        })
        .collect();
    rows.push(("knows the future".to_owned(), oracle(load)));
    rows
}

fn change(one: &Told) -> Value {
    json!({ "atMs": one.at, "from": one.from, "to": one.to, "summary": one.summary, "reasons": one.reasons })
}

fn row(law: String, figures: &Figures) -> Vec<String> {
    vec![
        law,
        format!("{} ms", figures.p50_ms),
        format!("{} ms", figures.p95_ms),
        format!("{} ms", figures.p99_ms),
        figures.misses.to_string(),
        format!("{:.0}", figures.pod_seconds),
        figures.starts.to_string(),
        figures.changes.to_string(),
    ]
}
