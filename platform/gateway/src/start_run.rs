//! Starting a run by HTTP: an image, or a reference to one.
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderMap, StatusCode};
use imageflow_eventlog::NewRecord;
use imageflow_resources::Catalog;
use imageflow_types::names::RunId;
use imageflow_types::work::{Input, RunEvent, RunRequest, Target};
use imageflow_types::{ErrorCode, FunctionName, Problem, RunState, RunStatus, topics};
use serde_json::json;

use crate::bodies::Content;
use crate::inputs::Given;
use crate::params::{check_values, of_query};
use crate::problem::Answer;
use crate::read::{flag, header, trace};
use crate::runs::output_of;
use crate::state::Gateway;

/// How long a caller without `Prefer: wait` waits for the router to take the run.
const ROUTER_PATIENCE: Duration = Duration::from_secs(5);
/// Longest that a caller may wait for a run.
const LONGEST_WAIT: u64 = 300;
/// Longest `Idempotency-Key`, bytes.
const LONGEST_KEY: usize = 255;

/// `POST /v1/flows/{name}/runs`.
pub async fn flow(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    Content(body): Content,
) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let flow = catalog.flow(&name)?;
    let target = Target::Flow(flow.metadata.name.clone());
    let functions = flow.spec.steps.iter().map(|s| s.function.clone()).collect();
    let asked = Asked {
        target,
        buckets: flow.spec.buckets.clone(),
        functions,
    };
    start(&gateway, &catalog, asked, raw.as_deref(), &headers, body).await
}

/// `POST /v1/functions/{name}/runs`.
pub async fn function(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    Content(body): Content,
) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let function = catalog.function(&name)?.document.metadata.name.clone();
    let target = Target::Function(function.clone());
    let buckets = imageflow_types::flow::default_buckets();
    let asked = Asked {
        target,
        buckets,
        functions: vec![function],
    };
    start(&gateway, &catalog, asked, raw.as_deref(), &headers, body).await
}

struct Asked {
    target: Target,
    buckets: Vec<String>,
    functions: Vec<FunctionName>,
}

/// The caller's key. One that cannot be told from another must not quietly stand for none: the retry would make a second run.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value.to_str().ok().filter(|k| !k.is_empty() && k.len() <= LONGEST_KEY);
    let rule = format!("Idempotency-Key: is not 1 to {LONGEST_KEY} visible ASCII characters");
    key.map(Some)
        .ok_or_else(|| Problem::new(ErrorCode::InvalidArgument, rule))
}

async fn start(
    gateway: &Gateway,
    catalog: &Catalog,
    asked: Asked,
    raw: Option<&str>,
    headers: &HeaderMap,
    body: Bytes,
) -> Answer {
    let (run, known) = match idempotency_key(headers)? {
        Some(key) => {
            let run = RunId::derive(&["idempotency", &asked.target.to_string(), key]);
            let known = gateway.run(&run).await?;
            (run, known)
        }
        None => (RunId::derive(&["request", &uuid::Uuid::new_v4().to_string()]), None),
    };
    // A run that is there is no new work, whatever became of its object or of the function's parameters since.
    if known.is_none() {
        gateway.check_room().await?;
        for function in &asked.functions {
            gateway.check_backlog(function)?;
        }
    }
    let (given, mut params) = Given::read(headers, body)?;
    for (name, value) in of_query(catalog, &asked.target, &run, raw)? {
        if params.contains_key(&name) {
            let detail = format!("params.{name}: is in the query and in the body; give it once");
            return Err(Problem::new(ErrorCode::InvalidArgument, detail).into());
        }
        params.insert(name, value);
    }
    if known.is_none() {
        // Before an image is stored: what is refused leaves nothing behind.
        check_values(catalog, &asked.target, &run, &params)?;
    }
    let input = match (given, &known) {
        (Given::Place(place), Some(known)) => place.of_run(&known.request).ok_or_else(|| used(&run, "input"))?,
        (Given::Place(place), None) => place.pinned(gateway, &asked.target, &asked.buckets).await?,
        (Given::Image(image), Some(known)) => image.of_run(&known.request).ok_or_else(|| used(&run, "image"))?,
        (Given::Image(image), None) => image.store(gateway, &run).await?,
    };
    let request = RunRequest {
        run,
        target: asked.target,
        trigger: None,
        input: Input::Object(input),
        params,
        fuse: flag(raw, "fuse", true),
        requested_ms: gateway.now_ms(),
        traceparent: Some(trace(headers)),
    };
    match known {
        Some(known) => check_same(&known, &request)?,
        None => {
            let wish = vec![wish(request.clone())?];
            gateway.write(wish).await?;
        }
    }
    answer(gateway, &request, headers).await
}

fn used(run: &RunId, what: &str) -> Problem {
    let detail = format!("Idempotency-Key: it was used for run {run} with another {what}; use a new key");
    Problem::new(ErrorCode::Conflict, detail)
}

/// A run that is there under the caller's key must be the one asked for. It may be another's: of two requests with one key, sent
/// at once, the router takes the first.
fn check_same(known: &RunState, asked: &RunRequest) -> Result<(), Problem> {
    if !same_place(&known.request.input, &asked.input) {
        return Err(used(&asked.run, "input"));
    }
    // One that was refused for its size is kept without them.
    let is_cut = known.status == RunStatus::Failed && known.plan.stages.is_empty() && known.request.params.is_empty();
    if known.request.params != asked.params && !is_cut {
        return Err(used(&asked.run, "params"));
    }
    if known.request.fuse != asked.fuse {
        return Err(used(&asked.run, "fuse"));
    }
    Ok(())
}

/// Whether two inputs are the same object. Its bytes may have changed between two requests: the run has those of the first. Where
/// the request brings the bytes, they are in the key.
fn same_place(one: &Input, other: &Input) -> bool {
    match (one, other) {
        (Input::Object(one), Input::Object(other)) => one.bucket == other.bucket && one.key == other.key,
        _ => one == other,
    }
}

/// The record of the wish for a run.
pub fn wish(request: RunRequest) -> Result<NewRecord, Problem> {
    let key = request.run.to_string();
    let value = serde_json::to_vec(&RunEvent::Requested(request))
        .map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
    Ok(NewRecord::new(topics::RUN_EVENTS).key(key).value(value))
}

/// `Prefer: wait` (60 s) or `wait=N`.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let prefer = header(headers, "prefer")?;
    prefer
        .split([',', ';'])
        .map(str::trim)
        .find_map(|preference| match preference.split_once('=') {
            None if preference == "wait" => Some(Duration::from_secs(60)),
            Some(("wait", seconds)) => seconds
                .parse::<u64>()
                .ok()
                .map(|s| Duration::from_secs(s.min(LONGEST_WAIT))),
            _ => None,
        })
}

async fn answer(gateway: &Gateway, request: &RunRequest, headers: &HeaderMap) -> Answer {
    let run = &request.run;
    let patience = wait(headers);
    if let Some(patience) = patience
        && gateway.within(patience, gateway.runs.finished(run)).await.is_some()
        && let Some(state) = gateway.run(run).await?
    {
        check_same(&state, request)?;
        let wants_image = header(headers, ACCEPT.as_str()).is_some_and(|a| a.starts_with("image/"));
        return if wants_image {
            output_of(gateway, &state, None).await
        } else {
            Ok(Json(state).into_response())
        };
    }
    // The wish is durable; the router takes it in a moment. A caller gets the run itself, unless the router is behind.
    let started = gateway.within(ROUTER_PATIENCE, gateway.runs.started(run)).await;
    let state = match started {
        Some(_) => gateway.run(run).await?,
        None => None,
    };
    let body = match state {
        Some(state) => {
            check_same(&state, request)?;
            Json(state).into_response()
        }
        None => Json(json!({"run": run, "status": "running"})).into_response(),
    };
    let mut response: Response = (StatusCode::ACCEPTED, body).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/runs/{run}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefer_is_read_as_the_specification_says() {
        let asked = |text: &'static str| {
            wait(
                &[("prefer".parse().unwrap(), HeaderValue::from_static(text))]
                    .into_iter()
                    .collect(),
            )
        };
        assert_eq!(asked("wait=5"), Some(Duration::from_secs(5)));
        assert_eq!(asked("respond-async, wait"), Some(Duration::from_secs(60)));
        assert_eq!(asked("wait=100000"), Some(Duration::from_secs(LONGEST_WAIT)));
        assert_eq!(asked("return=minimal"), None);
    }
}
