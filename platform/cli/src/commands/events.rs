//! `events` and `dead-letters`.
use std::path::Path;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::files;
use crate::args::Format;
use crate::args::work::{DeadLettersArgs, DeadLettersCommand, EventsArgs, EventsCommand, LettersFilter, SendArgs};
use crate::client::{Call, encode, query, taken};
use crate::error::CliError;
use crate::output::{Context, age, at};
use crate::render;

/// How long one call of a replay of all may take; it goes through thousands of them.
const REPLAY: Duration = Duration::from_secs(300);

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
        filter: LettersFilter::default(),
        limit: 50,
    }) {
        DeadLettersCommand::List { filter, limit } => {
            let asked = filter.query();
            let items = cx.client.pages("/v1/dead-letters", &asked, limit as usize).await?;
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
        DeadLettersCommand::Replay { id: Some(id), .. } => {
            let path = format!("/v1/dead-letters/{}/replay", encode(&id));
            let answer: Value = cx.client.json(Call::new(Method::POST, path)).await?;
            if cx.structured(&answer)? {
                return Ok(());
            }
            let text = replayed(&answer, cx.format);
            cx.line(text)
        }
        DeadLettersCommand::Replay { filter, .. } => replay_all(cx, &filter).await,
    }
}

/// What a letter became.
fn replayed(answer: &Value, format: Format) -> String {
    let id = at(answer, "/id");
    match answer.get("run").and_then(Value::as_str) {
        _ if format == Format::Name => id,
        Some(run) => format!("{id} replayed as {run}"),
        None => format!("{id} replayed, its event is sent again"),
    }
}

/// The platform takes so many at a time; it is asked to go on until it comes to the last.
async fn replay_all(cx: &mut Context, filter: &LettersFilter) -> Result<(), CliError> {
    let asked = filter.query();
    let (mut items, mut refused, mut after) = (Vec::new(), Vec::<Value>::new(), None::<String>);
    let mut told = Ok(());
    loop {
        let place = [("after", after.as_deref())];
        let path = format!("/v1/dead-letters/replay{}", query(&[&asked[..], &place].concat()));
        let call = Call::new(Method::POST, path).timeout(REPLAY);
        let mut answer: Value = cx.client.json(call).await?;
        let now = taken(&mut answer, "items");
        refused.extend(taken(&mut answer, "refused"));
        after = answer.get("next").and_then(Value::as_str).map(str::to_owned);
        if !matches!(cx.format, Format::Json | Format::Yaml) {
            let text: Vec<String> = now.iter().map(|i| replayed(i, cx.format)).collect();
            if !text.is_empty() {
                // Those that follow are replayed whether or not anybody reads on.
                let told_now = cx.line(text.join("\n"));
                told = told.and(told_now);
            }
        }
        items.extend(now);
        if after.is_none() {
            break;
        }
    }
    let (done, left) = (items.len(), refused.len());
    if !cx.structured(&json!({"replayed": done, "items": items, "refused": refused}))? {
        for letter in &refused {
            cx.note(format!("{} not replayed: {}", at(letter, "/id"), at(letter, "/detail")));
        }
        cx.note(format!("{done} replayed, {left} refused"));
    }
    match left {
        0 => told,
        _ => Err(CliError::Failed(format!(
            "{left} of {} cannot be replayed",
            done + left
        ))),
    }
}
