//! `runs`.
use http::Method;
use imageflow_types::{RunState, RunStatus};
use serde_json::{Value, json};

use super::follow;
use crate::args::Format;
use crate::args::work::{RunsArgs, RunsCommand, RunsFilter};
use crate::client::{Call, encode, query};
use crate::error::CliError;
use crate::output::{Context, age, at};
use crate::render;

/// How many runs a list has when nobody says.
const LISTED: u32 = 50;
/// How many of the newest runs are watched when nobody says: as many as the platform takes, as a run that is not among them
/// changes unseen.
const WATCHED: u32 = 10_000;

/// `imageflow runs`
///
/// # Errors
/// What the platform says.
pub async fn runs(cx: &mut Context, args: RunsArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(RunsCommand::List(args.filter)) {
        RunsCommand::List(filter) if filter.watch => watch(cx, &filter).await,
        RunsCommand::List(filter) => list(cx, &filter).await,
        RunsCommand::Describe { id, watch } => describe(cx, &id, watch).await,
        RunsCommand::Cancel { id } => {
            cx.client
                .bytes(Call::new(Method::POST, format!("/v1/runs/{}/cancel", encode(&id))))
                .await?;
            if cx.structured(&json!({"run": id, "outcome": "cancelled"}))? {
                return Ok(());
            }
            match cx.format {
                Format::Name => cx.line(id),
                _ => cx.line(format!("run/{id} cancelled")),
            }
        }
    }
}

async fn list(cx: &mut Context, filter: &RunsFilter) -> Result<(), CliError> {
    let most = filter.limit.unwrap_or(LISTED) as usize;
    let asked = [("flow", filter.flow.as_deref()), ("status", filter.status.as_deref())];
    let items = cx.client.pages("/v1/runs", &asked, most).await?;
    let now = cx.now_ms;
    cx.list(
        &items,
        |i| at(i, "/run"),
        &["run", "target", "status", "steps", "age", "ms"],
        |i| {
            match serde_json::from_value::<RunState>(i.clone()) {
                Ok(run) => {
                    let (over, all) = render::ended(&run);
                    vec![
                        run.run.to_string(),
                        run.request.target.to_string(),
                        run.status.as_str().to_owned(),
                        format!("{over}/{all}"),
                        age(now, run.created_ms),
                        (run.updated_ms - run.created_ms).to_string(),
                    ]
                }
                // A later version of the platform: what can be told is told.
                Err(_) => vec![at(i, "/run"), "-".to_owned(), at(i, "/status")],
            }
        },
    )
}

async fn watch(cx: &mut Context, filter: &RunsFilter) -> Result<(), CliError> {
    let limit = filter.limit.unwrap_or(WATCHED).to_string();
    let pairs = [
        ("watch", Some("true")),
        ("flow", filter.flow.as_deref()),
        ("status", filter.status.as_deref()),
        ("limit", Some(limit.as_str())),
    ];
    let mut lines = cx.client.lines(format!("/v1/runs{}", query(&pairs))).await?;
    while let Some(value) = lines.next::<Value>().await? {
        let text = match (cx.format, serde_json::from_value::<RunState>(value.clone())) {
            (Format::Yaml, _) => format!("---\n{}", render::yaml(&value)),
            (Format::Json, _) | (_, Err(_)) => value.to_string(),
            (Format::Name, Ok(run)) => run.run.to_string(),
            (_, Ok(run)) => {
                format!(
                    "{} {} {}  {}",
                    run.run,
                    run.request.target,
                    run.status.as_str(),
                    render::progress(&run)
                )
            }
        };
        cx.line(text)?;
    }
    Ok(())
}

async fn describe(cx: &mut Context, id: &str, watch: bool) -> Result<(), CliError> {
    let run = if watch {
        let client = cx.client.clone();
        let silent = matches!(cx.format, Format::Json | Format::Yaml);
        follow::to_end(&client, id, false, |state| {
            if !silent && !state.status.is_final() {
                cx.note(format!("{}  {}", state.status.as_str(), render::progress(state)));
            }
        })
        .await?
    } else {
        cx.client.run(id).await?
    };
    if !cx.structured(&run)? {
        let text = render::run(&run, cx.color);
        cx.line(text)?;
    }
    match run.status {
        RunStatus::Failed if watch => Err(CliError::Failed(format!("run {id} failed"))),
        RunStatus::Cancelled if watch => Err(CliError::Failed(format!("run {id} was cancelled"))),
        _ => Ok(()),
    }
}
