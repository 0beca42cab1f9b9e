//! `scaling`.
use std::time::Duration;

use serde_json::Value;

use crate::args::manage::{ScalingArgs, ScalingCommand};
use crate::client::encode;
use crate::error::CliError;
use crate::output::{Context, at};
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
                        at(i, "/last/reasons/0"),
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
            cx.line(format!(
                "{function}: {} pods wanted, {} ready",
                at(&first, "/desired"),
                at(&first, "/ready")
            ))?;
            let mut seen = print_after(cx, &first, i64::MIN)?;
            if !watch {
                return Ok(());
            }
            let mut every = tokio::time::interval(Duration::from_secs(1));
            loop {
                every.tick().await;
                let now: Value = cx.client.get_json(path.clone()).await?;
                seen = print_after(cx, &now, seen)?;
            }
        }
    }
}

/// Prints the decisions after a time, oldest first, so that a watch reads downwards; the time of the last.
fn print_after(cx: &mut Context, state: &Value, after: i64) -> Result<i64, CliError> {
    let mut last = after;
    let decisions = state
        .get("decisions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for decision in decisions.iter().rev() {
        let at_ms = decision.get("atMs").and_then(Value::as_i64).unwrap_or_default();
        if at_ms > after {
            cx.line(render::decision(decision))?;
            last = last.max(at_ms);
        }
    }
    Ok(last)
}
