//! What could not be done, and doing it again. Letters are read from the log: they are few, and none is ever dropped.
//! A replay is recorded beside its letter, so that listings show it once and a repeat makes no second run.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::IntoResponse;
use http::StatusCode;
use imageflow_eventlog::{FollowEvent, NewRecord, Start};
use imageflow_types::names::RunId;
use imageflow_types::work::DeadLetter;
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::{Value, json};

use crate::events::to_record;
use crate::problem::{Answer, number, query};
use crate::start_run::want;
use crate::state::{Gateway, log_problem};

/// Header of the record that says that a letter was replayed.
const REPLAYED: &str = "imageflow_replayed";

/// All letters that were not replayed, oldest first.
async fn read(gateway: &Gateway) -> Result<Vec<DeadLetter>, Problem> {
    let fail = |e| log_problem(&e);
    let mut letters: HashMap<String, DeadLetter> = HashMap::new();
    let mut replayed: HashSet<String> = HashSet::new();
    let mut follower = gateway
        .deps
        .log
        .follow(topics::DEAD_LETTERS, Start::Earliest)
        .await
        .map_err(fail)?;
    while let FollowEvent::Records(records) = follower.next().await.map_err(fail)? {
        for record in records {
            if let Some(id) = record.header(REPLAYED) {
                replayed.insert(String::from_utf8_lossy(id).into_owned());
            } else if let Some(letter) = record
                .value
                .as_ref()
                .and_then(|v| serde_json::from_slice::<DeadLetter>(v).ok())
            {
                // Told again (after a crash, by a reconcile) it is the same letter.
                letters.entry(letter.id.clone()).or_insert(letter);
            }
        }
    }
    let mut letters: Vec<DeadLetter> = letters.into_values().filter(|l| !replayed.contains(&l.id)).collect();
    letters.sort_by(|a, b| (a.at_ms, &a.id).cmp(&(b.at_ms, &b.id)));
    Ok(letters)
}

/// `GET /v1/dead-letters`.
pub async fn list(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let limit = number(raw.as_deref(), "limit", 100, 10_000)?;
    let function = query(raw.as_deref(), "function");
    let letters = read(&gateway).await?;
    let wanted = letters
        .iter()
        .rev()
        .filter(|l| function.as_ref().is_none_or(|f| *f == l.function));
    let items: Vec<&DeadLetter> = wanted.take(limit).collect();
    Ok(Json(json!({"items": items})).into_response())
}

async fn find(gateway: &Gateway, id: &str) -> Result<DeadLetter, Problem> {
    let letters = read(gateway).await?;
    match letters.iter().find(|l| l.id == id) {
        Some(letter) => Ok(letter.clone()),
        None => Err(Problem::not_found(
            "dead letter",
            id,
            letters.iter().map(|l| l.id.as_str()),
        )),
    }
}

/// `GET /v1/dead-letters/{id}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    Ok(Json(find(&gateway, &id).await?).into_response())
}

/// `POST /v1/dead-letters/{id}/replay`.
pub async fn replay(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    let letter = find(&gateway, &id).await?;
    let answer = replay_one(&gateway, letter).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// `POST /v1/dead-letters/replay`.
pub async fn replay_all(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let function = query(raw.as_deref(), "function");
    let letters = read(&gateway).await?;
    let mut items = Vec::new();
    for letter in letters
        .into_iter()
        .filter(|l| function.as_ref().is_none_or(|f| *f == l.function))
    {
        items.push(replay_one(&gateway, letter).await?);
    }
    Ok((
        StatusCode::ACCEPTED,
        Json(json!({"replayed": items.len(), "items": items})),
    )
        .into_response())
}

/// The wish first, the mark after: a crash between the two leaves the letter in the list, and the run's derived id keeps a
/// second replay from doubling it.
async fn replay_one(gateway: &Gateway, letter: DeadLetter) -> Result<Value, Problem> {
    gateway.check_room().await?;
    let answer = match (letter.request, letter.event) {
        (Some(mut request), _) => {
            request.run = RunId::derive(&["replay", &letter.id]);
            request.requested_ms = gateway.now_ms();
            let run = request.run.clone();
            want(gateway, request).await?;
            json!({"id": letter.id, "run": run})
        }
        (None, Some(event)) => {
            let mut event: imageflow_events::Event = serde_json::from_value(event).map_err(|e| {
                Problem::new(
                    ErrorCode::Internal,
                    format!("the event of the letter cannot be read: {e}"),
                )
            })?;
            // Another id, else the trigger takes it for the one it has seen.
            imageflow_events::AttributesWriter::set_id(&mut event, format!("replay-{}", letter.id));
            gateway
                .deps
                .log
                .produce(vec![to_record(&event)])
                .await
                .map_err(|e| log_problem(&e))?;
            json!({"id": letter.id, "event": "sent again"})
        }
        (None, None) => {
            return Err(Problem::new(
                ErrorCode::Conflict,
                format!("dead letter {} holds nothing to send again", letter.id),
            ));
        }
    };
    let mark = NewRecord::new(topics::DEAD_LETTERS)
        .key(letter.function)
        .header(REPLAYED, letter.id)
        .value("{}");
    gateway
        .deps
        .log
        .produce(vec![mark])
        .await
        .map_err(|e| log_problem(&e))?;
    Ok(answer)
}
