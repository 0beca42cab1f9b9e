//! What could not be done, and doing it again. An index says where letters are, each is read from the log when it is asked for.
//! A replay is recorded beside its letter, so that listings show it once and a repeat makes no second run.
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::IntoResponse;
use http::StatusCode;
use imageflow_eventlog::NewRecord;
use imageflow_events::work::replayed_headers;
use imageflow_types::names::{RunId, nearest};
use imageflow_types::work::DeadLetter;
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::{Map, Value, json};

use crate::events::to_record;
use crate::letters_view::{Cursor, Place, REPLAYED, Which};
use crate::problem::Answer;
use crate::read::{PAGE_BYTES, number, only, query, time};
use crate::start_run::wish;
use crate::state::{Gateway, log_problem, record_at};

/// Letters sent again by one request at most; with more of them, the answer says where the next goes on.
const REPLAYED_AT_ONCE: usize = 10_000;
/// Letters sent again by one write.
const BATCH: usize = 100;
/// Newest letters among which the one that was meant is looked for.
const NEAR: usize = 1000;

/// Query parameters that say which letters are meant.
const FILTERS: [&str; 4] = ["function", "code", "since", "until"];

/// Which letters a query means.
fn which(gateway: &Gateway, raw: Option<&str>) -> Result<Which, Problem> {
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidArgument, detail);
    let code = query(raw, "code").map(|text| {
        let slugs = || ErrorCode::ALL.iter().map(|code| code.slug());
        let known = ErrorCode::ALL.iter().find(|code| code.slug() == text).copied();
        known.ok_or_else(|| {
            let hint = nearest(&text, slugs()).map_or_else(
                || format!("write one of {}", slugs().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean \"{near}\"?"),
            );
            invalid(format!("code: \"{text}\" is no error code: {hint}"))
        })
    });
    let now_ms = gateway.now_ms();
    let which = Which {
        function: query(raw, "function"),
        code: code.transpose()?,
        since_ms: time(raw, "since", now_ms)?,
        until_ms: time(raw, "until", now_ms)?,
    };
    match (which.since_ms, which.until_ms) {
        (Some(since), Some(until)) if since >= until => Err(invalid("since is not before until".to_owned())),
        _ => Ok(which),
    }
}

/// The place after which a page or a replay goes on.
fn after(raw: Option<&str>) -> Result<Option<Cursor>, Problem> {
    let after = query(raw, "after").map(|text| {
        let detail = format!("after: \"{text}\" is no place in the list; write what \"next\" of the page before says");
        Cursor::parse(&text).ok_or_else(|| Problem::new(ErrorCode::InvalidArgument, detail))
    });
    after.transpose()
}

/// A letter and its size in the log; none when retention has taken it.
async fn read(gateway: &Gateway, place: &Place) -> Result<Option<(DeadLetter, usize)>, Problem> {
    let log = gateway.deps.log.as_ref();
    let record = record_at(log, topics::DEAD_LETTERS, place.partition, place.offset).await;
    let Some(value) = record.map_err(|e| log_problem(&e))?.and_then(|r| r.value) else {
        return Ok(None);
    };
    match serde_json::from_slice(&value) {
        Ok(letter) => Ok(Some((letter, value.len()))),
        Err(error) => {
            tracing::error!(%error, id = place.cursor.id(), "a dead letter cannot be read");
            Ok(None)
        }
    }
}

/// `GET /v1/dead-letters`, newest first; `next` of the answer, given as `after`, is the next page.
pub async fn list(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let raw = raw.as_deref();
    only(raw, &[&FILTERS[..], &["limit", "after"]].concat())?;
    let which = which(&gateway, raw)?;
    let limit = number(raw, "limit", 100, 1..=1000)?;
    let after = after(raw)?;
    // One more than the page holds tells whether there is another page.
    let places = gateway.letters.newest(&which, after.as_ref(), limit + 1);
    let (mut items, mut bytes, mut next) = (Vec::new(), 0, None);
    for (n, place) in places.iter().enumerate() {
        if n == limit || bytes >= PAGE_BYTES {
            next = n.checked_sub(1).map(|last| places[last].cursor.to_string());
            break;
        }
        if let Some((letter, size)) = read(&gateway, place).await? {
            bytes += size;
            items.push(letter);
        }
    }
    let mut page = Map::from_iter([("items".to_owned(), json!(items))]);
    page.extend(next.map(|next| ("next".to_owned(), json!(next))));
    Ok(Json(page).into_response())
}

async fn find(gateway: &Gateway, id: &str) -> Result<DeadLetter, Problem> {
    if let Some(place) = gateway.letters.find(id)
        && let Some((letter, _)) = read(gateway, &place).await?
    {
        return Ok(letter);
    }
    let known = gateway.letters.newest(&Which::default(), None, NEAR);
    Err(Problem::not_found(
        "dead letter",
        id,
        known.iter().map(|place| place.cursor.id()),
    ))
}

/// `GET /v1/dead-letters/{id}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    Ok(Json(find(&gateway, &id).await?).into_response())
}

/// `POST /v1/dead-letters/{id}/replay`.
pub async fn replay(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    gateway.check_room().await?;
    let again = Again::of(&gateway, find(&gateway, &id).await?)?;
    let answer = again.answer.clone();
    write(&gateway, vec![again]).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// `POST /v1/dead-letters/replay`: oldest first. Letters that hold nothing to send stay, and are named in `refused`; `next` of the
/// answer, given as `after`, goes on behind them.
pub async fn replay_all(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let raw = raw.as_deref();
    only(raw, &[&FILTERS[..], &["limit", "after"]].concat())?;
    let which = which(&gateway, raw)?;
    let limit = number(raw, "limit", REPLAYED_AT_ONCE, 1..=REPLAYED_AT_ONCE)?;
    let mut places = gateway.letters.oldest(&which, after(raw)?.as_ref(), limit + 1);
    let more = places.len() > limit;
    places.truncate(limit);
    let next = places.last().filter(|_| more).map(|last| last.cursor.to_string());
    let (mut items, mut refused) = (Vec::new(), Vec::new());
    for batch in places.chunks(BATCH) {
        gateway.check_room().await?;
        let mut again = Vec::new();
        for place in batch {
            let Some((letter, _)) = read(&gateway, place).await? else {
                continue;
            };
            match Again::of(&gateway, letter) {
                Ok(letter) => again.push(letter),
                Err(problem) => refused.push(json!({"id": place.cursor.id(), "detail": problem.detail})),
            }
        }
        items.extend(again.iter().map(|a| a.answer.clone()));
        write(&gateway, again).await?;
    }
    let mut answer = json!({"replayed": items.len(), "items": items, "refused": refused, "more": more});
    if let Some(next) = next {
        answer["next"] = json!(next);
    }
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// A letter on its way back.
struct Again {
    wish: NewRecord,
    mark: NewRecord,
    answer: Value,
}

impl Again {
    fn of(gateway: &Gateway, letter: DeadLetter) -> Result<Self, Problem> {
        let (wish, answer) = match (letter.request, letter.event) {
            (Some(mut request), _) => {
                // Of the run and not of the letter: each branch that fails leaves one, and all of them ask for one run.
                request.run = RunId::derive(&["replay", request.run.as_str()]);
                request.requested_ms = gateway.now_ms();
                let answer = json!({"id": letter.id, "run": request.run});
                (wish(request)?, answer)
            }
            (None, Some(event)) => {
                let mut event: imageflow_events::Event = serde_json::from_value(event).map_err(|e| {
                    let detail = format!(
                        "dead letter {} holds a record that is no event ({e}); write it anew as a CloudEvent",
                        letter.id
                    );
                    Problem::new(ErrorCode::Conflict, detail)
                })?;
                // Another id, else the trigger takes it for the one it has seen.
                imageflow_events::AttributesWriter::set_id(&mut event, format!("replay-{}", letter.id));
                (to_record(&event), json!({"id": letter.id, "event": "sent again"}))
            }
            (None, None) => {
                let detail = format!("dead letter {} holds nothing to send again", letter.id);
                return Err(Problem::new(ErrorCode::Conflict, detail));
            }
        };
        let mut mark = NewRecord::new(topics::DEAD_LETTERS).key(letter.function).value("{}");
        mark.headers = replayed_headers(&letter.id, gateway.now_ms());
        let mark = mark.header(REPLAYED, letter.id);
        Ok(Self { wish, mark, answer })
    }
}

/// The wishes first, the marks after: a crash between the two leaves the letters in the list, and the runs' derived ids keep a
/// second replay from doubling them.
async fn write(gateway: &Gateway, again: Vec<Again>) -> Result<(), Problem> {
    if again.is_empty() {
        return Ok(());
    }
    let (wishes, marks) = again.into_iter().map(|a| (a.wish, a.mark)).unzip();
    let log = &gateway.deps.log;
    gateway.write(wishes).await?;
    let marked = log.produce(marks).await.map_err(|e| log_problem(&e))?;
    // The replay is durable even if the index ends with the platform before it knows.
    if let Err(error) = gateway.letters.reached(&marked).await {
        tracing::debug!(%error, "letters were replayed, and the index did not see it");
    }
    Ok(())
}
