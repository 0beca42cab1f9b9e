//! `operations` and `status`.
use imageflow_types::Problem;
use serde_json::Value;

use crate::args::manage::OperationsArgs;
use crate::error::CliError;
use crate::output::{Context, at};
use crate::render;

/// `imageflow operations`
///
/// # Errors
/// What the platform says, or that there is no such operation.
pub async fn operations(cx: &mut Context, args: OperationsArgs) -> Result<(), CliError> {
    let items = cx.client.items("/v1/operations").await?;
    let Some(name) = args.name else {
        return cx.list(
            &items,
            |i| at(i, "/name"),
            &["name", "summary"],
            |i| vec![at(i, "/name"), render::first_sentence(&at(i, "/summary"))],
        );
    };
    let Some(operation) = items.iter().find(|i| at(i, "/name") == name) else {
        let known: Vec<String> = items.iter().map(|i| at(i, "/name")).collect();
        return Err(Problem::not_found("operation", &name, known.iter().map(String::as_str)).into());
    };
    if cx.structured(operation)? {
        return Ok(());
    }
    let text = render::parameters(operation.get("schema").unwrap_or(&Value::Null), cx.color);
    cx.line(format!("{name}: {}\n\n{text}", at(operation, "/summary")))
}

/// `imageflow status`
///
/// # Errors
/// What the platform says.
pub async fn status(cx: &mut Context) -> Result<(), CliError> {
    let status: Value = cx.client.get_json("/v1/status").await?;
    if cx.structured(&status)? {
        Ok(())
    } else {
        cx.line(render::yaml(&status))
    }
}
