//! `events` and `dead-letters`.
use std::path::Path;

use http::Method;
use serde_json::{Value, json};

use super::files;
use crate::args::work::{DeadLettersArgs, DeadLettersCommand, EventsArgs, EventsCommand, SendArgs};
use crate::client::{Call, encode, query};
use crate::error::CliError;
use crate::output::{Context, age, at};
use crate::render;

/// The body of `events send` and its content type.
fn event(args: &SendArgs) -> Result<(&'static str, Value), CliError> {
    if let Some(file) = &args.file {
        let event: Value = parse(&files::read_text(file)?, &file.display().to_string())?;
        let kind = if event.is_array() {
            "application/cloudevents-batch+json"
        } else {
            "application/cloudevents+json"
        };
        return Ok((kind, event));
    }
    let id = args.id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let mut event = json!({"specversion": "1.0", "id": id, "source": args.source, "type": args.kind});
    if let Some(subject) = &args.subject {
        event["subject"] = json!(subject);
    }
    if let Some(data) = &args.data {
        event["datacontenttype"] = json!("application/json");
        event["data"] = match data.strip_prefix('@') {
            Some(file) => parse(&files::read_text(Path::new(file))?, file)?,
            None => parse(data, "--data")?,
        };
    }
    Ok(("application/cloudevents+json", event))
}

fn parse(text: &str, origin: &str) -> Result<Value, CliError> {
    serde_json::from_str(text).map_err(|e| CliError::Usage(format!("{origin} is not JSON: {e}")))
}

/// `imageflow events`
///
/// # Errors
/// An event that is not JSON, or what the platform says.
pub async fn events(cx: &mut Context, args: EventsArgs) -> Result<(), CliError> {
    let EventsCommand::Send(args) = args.command;
    let (kind, event) = event(&args)?;
    cx.client
        .bytes(Call::new(Method::POST, "/v1/events").body(kind, event.to_string()))
        .await?;
    match event.as_array() {
        Some(batch) => cx.line(format!("{} events accepted", batch.len())),
        None => cx.line(format!("event {} accepted", at(&event, "/id"))),
    }
}

/// `imageflow dead-letters`
///
/// # Errors
/// What the platform says.
pub async fn dead_letters(cx: &mut Context, args: DeadLettersArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(DeadLettersCommand::List {
        function: None,
        limit: 50,
    }) {
        DeadLettersCommand::List { function, limit } => {
            let limit = limit.to_string();
            let query = query(&[("function", function.as_deref()), ("limit", Some(&limit))]);
            let items = cx.client.items(format!("/v1/dead-letters{query}")).await?;
            let now = cx.now_ms;
            cx.list(
                &items,
                |i| at(i, "/id"),
                &["id", "function", "code", "attempts", "age", "error"],
                |i| {
                    let attempts = i.get("attempts").and_then(Value::as_array).map_or(0, Vec::len);
                    let age = i
                        .get("atMs")
                        .and_then(Value::as_i64)
                        .map_or_else(|| "-".to_owned(), |at| age(now, at));
                    vec![
                        at(i, "/id"),
                        at(i, "/function"),
                        at(i, "/error/code"),
                        attempts.to_string(),
                        age,
                        at(i, "/error/message"),
                    ]
                },
            )
        }
        DeadLettersCommand::Show { id } => {
            let letter: Value = cx.client.get_json(format!("/v1/dead-letters/{}", encode(&id))).await?;
            if cx.structured(&letter)? {
                Ok(())
            } else {
                cx.line(render::yaml(&letter))
            }
        }
        DeadLettersCommand::Replay { id, function, .. } => {
            let path = match &id {
                Some(id) => format!("/v1/dead-letters/{}/replay", encode(id)),
                None => format!("/v1/dead-letters/replay{}", query(&[("function", function.as_deref())])),
            };
            let answer: Value = cx.client.json(Call::new(Method::POST, path)).await?;
            if cx.structured(&answer)? {
                return Ok(());
            }
            let what = id.unwrap_or_else(|| "all".to_owned());
            match answer.get("items").and_then(Value::as_array).map(Vec::len) {
                Some(count) => cx.line(format!("{what}: {count} replayed")),
                None => cx.line(format!("{what} replayed")),
            }
        }
    }
}
