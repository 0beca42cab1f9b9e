//! `flows` and `triggers`.
use serde_json::Value;

use super::apply::delete_one;
use crate::args::manage::{NamedArgs, NamedCommand};
use crate::client::encode;
use crate::error::CliError;
use crate::output::{Context, at};
use crate::render;

/// `imageflow flows`
///
/// # Errors
/// What the platform says.
pub async fn flows(cx: &mut Context, args: NamedArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(NamedCommand::List) {
        NamedCommand::List => {
            let items = cx.client.items("/v1/flows").await?;
            cx.list(
                &items,
                |i| at(i, "/metadata/name"),
                &["name", "steps", "output", "generation"],
                |i| {
                    let names = render::flow_steps(i)
                        .map(|s| at(s, "/name"))
                        .collect::<Vec<_>>()
                        .join(", ");
                    vec![
                        at(i, "/metadata/name"),
                        names,
                        at(i, "/spec/output/bucket"),
                        at(i, "/metadata/generation"),
                    ]
                },
            )
        }
        NamedCommand::Describe { name } => {
            let flow: Value = cx.client.get_json(format!("/v1/flows/{}", encode(&name))).await?;
            if cx.structured(&flow)? {
                Ok(())
            } else {
                cx.line(render::flow_tree(&flow))
            }
        }
        NamedCommand::Delete { name } => delete_one(cx, "flows", &name).await,
    }
}

/// `imageflow triggers`
///
/// # Errors
/// What the platform says.
pub async fn triggers(cx: &mut Context, args: NamedArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(NamedCommand::List) {
        NamedCommand::List => {
            let items = cx.client.items("/v1/triggers").await?;
            cx.list(
                &items,
                |i| at(i, "/metadata/name"),
                &["name", "starts", "filters"],
                |i| {
                    let starts = match (at(i, "/spec/flow").as_str(), at(i, "/spec/function").as_str()) {
                        ("-", function) => format!("function/{function}"),
                        (flow, _) => flow.to_owned(),
                    };
                    vec![at(i, "/metadata/name"), starts, render::filters(i)]
                },
            )
        }
        NamedCommand::Describe { name } => {
            let trigger: Value = cx.client.get_json(format!("/v1/triggers/{}", encode(&name))).await?;
            if cx.structured(&trigger)? {
                Ok(())
            } else {
                cx.line(render::yaml(&trigger))
            }
        }
        NamedCommand::Delete { name } => delete_one(cx, "triggers", &name).await,
    }
}
