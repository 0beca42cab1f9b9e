//! `scaling`.
use std::time::Duration;

use serde_json::Value;

use crate::args::Format;
use crate::args::manage::{ScalingArgs, ScalingCommand};
use crate::client::encode;
use crate::error::CliError;
use crate::output::{Context, at, prose};
use crate::render;

mod simulate;

/// `imageflow scaling`
///
/// # Errors
/// What the platform says.
pub async fn scaling(cx: &mut Context, args: ScalingArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(ScalingCommand::List) {
        ScalingCommand::List => {
            let items = cx.client.items("/v1/scaling").await?;
            cx.list(
                &items,
                |i| at(i, "/function"),
                &["function", "desired", "ready", "backlog", "last decision"],
                |i| {
                    vec![
                        at(i, "/function"),
                        at(i, "/desired"),
                        at(i, "/ready"),
                        at(i, "/backlog"),
                        render::summary(i.pointer("/decisions/0").unwrap_or(&Value::Null)),
                    ]
                },
            )
        }
        ScalingCommand::Simulate(args) => simulate::simulate(cx, &args),
        ScalingCommand::Explain { function, watch } => {
            let path = format!("/v1/scaling/{}", encode(&function));
            let first: Value = cx.client.get_json(path.clone()).await?;
            if !watch && cx.structured(&first)? {
                return Ok(());
            }
            if !matches!(cx.format, Format::Json | Format::Yaml) {
                cx.line(render::scaling(&function, &first))?;
            }
            let decisions = decisions(&first);
            if !watch {
                let rows = decisions.iter().map(|d| vec![render::moment(d), render::summary(d)]);
                return match decisions.is_empty() {
                    true => Ok(()),
                    false => cx.line(format!("\n{}", prose(&["time", "decision"], rows, cx.color))),
                };
            }
            let mut seen = print_after(cx, &decisions, i64::MIN)?;
            let mut every = tokio::time::interval(Duration::from_secs(1));
            loop {
                every.tick().await;
                let now: Value = cx.client.get_json(path.clone()).await?;
                seen = print_after(cx, &self::decisions(&now), seen)?;
            }
        }
    }
}

/// The decisions, newest first.
fn decisions(state: &Value) -> Vec<Value> {
    let all = state.get("decisions").and_then(Value::as_array);
    all.cloned().unwrap_or_default()
}

/// Prints the decisions after a time, oldest first, so that a watch reads downwards; the time of the last. As JSON they are an
/// object a line, as YAML a document each.
fn print_after(cx: &mut Context, decisions: &[Value], after: i64) -> Result<i64, CliError> {
    let mut last = after;
    for decision in decisions.iter().rev() {
        let at_ms = decision.get("atMs").and_then(Value::as_i64).unwrap_or_default();
        if at_ms > after {
            cx.line(match cx.format {
                Format::Json => decision.to_string(),
                Format::Yaml => format!("---\n{}", render::yaml(decision)),
                _ => format!("{}  {}", render::moment(decision), render::summary(decision)),
            })?;
            last = last.max(at_ms);
        }
    }
    Ok(last)
}
