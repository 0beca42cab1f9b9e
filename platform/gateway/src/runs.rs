//! Runs as they stand, their results, and their end by request.
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use imageflow_eventlog::NewRecord;
use imageflow_types::work::RunEvent;
use imageflow_types::{ErrorCode, Problem, RunId, RunState, RunStatus, topics};
use serde_json::json;

use crate::images::image;
use crate::problem::Answer;
use crate::read::{PAGE_BYTES, flag, number, query};
use crate::runs_view::{Head, RunCursor, RunQuery};
use crate::state::{Gateway, log_problem};
use crate::stream;

/// Longest that a watch waits for its run to begin, in seconds.
const LONGEST_WAIT: usize = 60;

fn run_id(text: &str) -> Result<RunId, Problem> {
    RunId::parse(text).map_err(|e| Problem::new(ErrorCode::NotFound, e.to_string()))
}

async fn found(gateway: &Gateway, text: &str) -> Result<RunState, Problem> {
    let state = gateway.run(&run_id(text)?).await?;
    state.ok_or_else(|| Problem::not_found("run", text, []))
}

/// What a watch of a run that did not come gets.
fn missing(gateway: &Gateway, id: &str, waited: usize) -> Problem {
    if gateway.stop.is_cancelled() {
        return Problem::new(
            ErrorCode::Unavailable,
            "the platform stops: watch again when it is back",
        )
        .retry_after(5);
    }
    let mut problem = Problem::not_found("run", id, []);
    if waited < LONGEST_WAIT {
        problem.detail = format!(
            "{}; to wait for it to begin write ?watch=true&wait={LONGEST_WAIT}",
            problem.detail
        );
    }
    problem
}

/// The place after which a page begins: what `next` of the page before says, or a run that is known.
fn place(gateway: &Gateway, text: &str) -> Result<RunCursor, Problem> {
    if let Some(place) = RunCursor::parse(text) {
        return Ok(place);
    }
    let known = RunId::parse(text).ok().and_then(|run| gateway.runs.head(&run));
    known.map(|head| head.cursor()).ok_or_else(|| {
        let detail = format!("after: there is no run \"{text}\" any more; write what \"next\" of the page before says");
        Problem::new(ErrorCode::InvalidArgument, detail)
    })
}

fn run_query(gateway: &Gateway, raw: Option<&str>) -> Result<RunQuery, Problem> {
    let status = query(raw, "status").map(|text| {
        serde_json::from_value(json!(text)).map_err(|_| {
            let known = "running, succeeded, failed, cancelled";
            Problem::new(
                ErrorCode::InvalidArgument,
                format!("status: \"{text}\" is none of {known}"),
            )
        })
    });
    Ok(RunQuery {
        flow: query(raw, "flow"),
        status: status.transpose()?,
        after: query(raw, "after").map(|t| place(gateway, &t)).transpose()?,
        limit: number(raw, "limit", 100, 1..=10_000)?,
    })
}

/// `GET /v1/runs`, newest first; `next` of the answer, given as `after`, is the next page. A page of large states ends before
/// its limit.
pub async fn list(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let mut asked = run_query(&gateway, raw.as_deref())?;
    if flag(raw.as_deref(), "watch", false) {
        return Ok(stream::runs(gateway, asked));
    }
    // One more than the page holds tells whether there is another page.
    let limit = asked.limit;
    asked.limit += 1;
    let found = gateway.runs.list(&asked);
    // Written run by run: as values all of them together would be several times as large.
    let (mut page, mut last, mut next) = (b"{\"items\":[".to_vec(), None::<&Head>, None);
    let begun = page.len();
    for (n, held) in found.iter().enumerate() {
        if n == limit || page.len() >= PAGE_BYTES {
            next = last.map(Head::cursor);
            break;
        }
        last = Some(&held.head);
        let Some(state) = gateway.runs.state(held).await.map_err(|e| log_problem(&e))? else {
            continue;
        };
        if page.len() > begun {
            page.push(b',');
        }
        serde_json::to_writer(&mut page, &state).map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
    }
    page.push(b']');
    if let Some(next) = next {
        page.extend(format!(",\"next\":\"{next}\"").bytes());
    }
    page.push(b'}');
    let mut response = Response::new(Body::from(page));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// `GET /v1/runs/{id}`, with `?watch=true` as it changes. A caller that watches may know the id before the run is there
/// (ids derive from their cause), and says by `wait=SECONDS` for how long to expect it.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, RawQuery(raw): RawQuery) -> Answer {
    if flag(raw.as_deref(), "watch", false) {
        let run = run_id(&id)?;
        let seconds = number(raw.as_deref(), "wait", 0, 0..=LONGEST_WAIT)?;
        let patience = Duration::from_secs(seconds as u64);
        if gateway.within(patience, gateway.runs.started(&run)).await.is_none() {
            return Err(missing(&gateway, &id, seconds).into());
        }
        return Ok(stream::run(gateway, run));
    }
    Ok(Json(found(&gateway, &id).await?).into_response())
}

/// `POST /v1/runs/{id}/cancel`.
pub async fn cancel(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    let run = run_id(&id)?;
    let known = gateway.runs.head(&run);
    let status = known.ok_or_else(|| Problem::not_found("run", &id, []))?.status;
    if status.is_final() {
        let detail = format!("run {id} has ended already: {}", status.as_str());
        return Err(Problem::new(ErrorCode::Conflict, detail).into());
    }
    let event = RunEvent::Cancel {
        run: run.clone(),
        at_ms: gateway.now_ms(),
    };
    let value = serde_json::to_vec(&event).map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
    let record = NewRecord::new(topics::RUN_EVENTS).key(run.to_string()).value(value);
    gateway
        .deps
        .log
        .produce(vec![record])
        .await
        .map_err(|e| log_problem(&e))?;
    Ok((StatusCode::ACCEPTED, Json(json!({"run": id, "cancelling": true}))).into_response())
}

/// `GET /v1/runs/{id}/output`.
pub async fn output(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    let state = found(&gateway, &id).await?;
    output_of(&gateway, &state, None).await
}

/// `GET /v1/runs/{id}/output/{step}`.
pub async fn step_output(State(gateway): State<Arc<Gateway>>, Path((id, step)): Path<(String, String)>) -> Answer {
    let state = found(&gateway, &id).await?;
    output_of(&gateway, &state, Some(&step)).await
}

/// The image that a run or one of its steps made; of a run with several results the last.
pub async fn output_of(gateway: &Gateway, state: &RunState, step: Option<&str>) -> Answer {
    if step.is_none() && matches!(state.status, RunStatus::Failed | RunStatus::Cancelled) {
        let problem = match state.error() {
            Some((step, error)) => Problem::new(
                error.code,
                format!("run {}: step {step} failed: {}", state.run, error.message),
            ),
            None => Problem::new(
                ErrorCode::Cancelled,
                format!("run {} was {}", state.run, state.status.as_str()),
            ),
        };
        return Err(problem.into());
    }
    let output = match step {
        None => state.results().last().map(|(_, output)| output),
        Some(name) => {
            let found = state.steps.iter().find(|s| s.name.as_str() == name);
            let names = state.steps.iter().map(|s| s.name.as_str());
            found
                .ok_or_else(|| Problem::not_found("step", name, names))?
                .output
                .as_ref()
        }
    };
    let output = output.ok_or_else(|| {
        Problem::new(
            ErrorCode::NotFound,
            format!("run {} ({}) has no such output", state.run, state.status.as_str()),
        )
    })?;
    let mut response = image(gateway, (&output.bucket, &output.key), Some(&output.etag)).await?;
    if let Ok(value) = HeaderValue::try_from(state.run.as_str()) {
        response.headers_mut().insert("imageflow-run", value);
    }
    Ok(response)
}
