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
use imageflow_events::ext::TRACEPARENT;
use imageflow_events::trace::TraceParent;
use imageflow_objects::{ObjectError, PutOptions, check_key};
use imageflow_resources::Catalog;
use imageflow_types::names::RunId;
use imageflow_types::work::{Input, RunEvent, RunRequest, Target};
use imageflow_types::{ErrorCode, FunctionName, ObjectRef, Problem, schema, topics};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::listener::METADATA_RUN;
use crate::problem::{Answer, json as read_json, object_problem, query};
use crate::runs::output_of;
use crate::state::{Gateway, log_problem};

/// How long a caller without `Prefer: wait` waits for the router to take the run.
const ROUTER_PATIENCE: Duration = Duration::from_secs(5);
/// Longest that a caller may wait for a run.
const LONGEST_WAIT: u64 = 300;
/// Longest `Idempotency-Key`, bytes.
const LONGEST_KEY: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    input: Place,
    #[serde(default)]
    params: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    bucket: String,
    key: String,
}

/// `POST /v1/flows/{name}/runs`.
pub async fn flow(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
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
    body: Bytes,
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

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok())
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
    gateway.check_room().await?;
    for function in &asked.functions {
        gateway.check_backlog(function)?;
    }
    let run = match idempotency_key(headers)? {
        Some(key) => RunId::derive(&["idempotency", &asked.target.to_string(), key]),
        None => RunId::derive(&["request", &uuid::Uuid::new_v4().to_string()]),
    };
    let is_json = header(headers, "content-type").is_some_and(|t| t.starts_with("application/json"));
    let (input, params) = if is_json {
        let reference: Reference = read_json(&body)?;
        (referred(gateway, &asked, &reference.input).await?, reference.params)
    } else {
        (brought(gateway, &run, body).await?, Map::new())
    };
    check_params(catalog, &asked.target, &params)?;
    if let Some(known) = gateway.runs.get(&run) {
        if known.request.input != Input::Object(input) {
            let detail = format!("the Idempotency-Key was used for run {run} with another input: use a new key");
            return Err(Problem::new(ErrorCode::Conflict, detail).into());
        }
    } else {
        let parent = header(headers, TRACEPARENT).and_then(TraceParent::parse);
        let request = RunRequest {
            run: run.clone(),
            target: asked.target,
            trigger: None,
            input: Input::Object(input),
            params,
            fuse: query(raw, "fuse").is_none_or(|v| v != "false"),
            requested_ms: gateway.now_ms(),
            traceparent: Some(
                parent
                    .map_or_else(TraceParent::generate, TraceParent::child)
                    .to_string(),
            ),
        };
        want(gateway, request).await?;
    }
    answer(gateway, &run, headers).await
}

/// Writes the wish for a run; it is durable when this returns.
pub async fn want(gateway: &Gateway, request: RunRequest) -> Result<(), Problem> {
    let key = request.run.to_string();
    let value = serde_json::to_vec(&RunEvent::Requested(request))
        .map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
    let record = NewRecord::new(topics::RUN_EVENTS).key(key).value(value);
    gateway
        .deps
        .log
        .produce(vec![record])
        .await
        .map_err(|e| log_problem(&e))?;
    Ok(())
}

fn check_params(catalog: &Catalog, target: &Target, params: &Map<String, Value>) -> Result<(), Problem> {
    match target {
        Target::Flow(_) if !params.is_empty() => Err(Problem::new(
            ErrorCode::InvalidArgument,
            "params: a flow has them at its steps; send none",
        )),
        Target::Flow(_) => Ok(()),
        Target::Function(name) => {
            let spec = catalog.function(name.as_str())?.spec();
            let Some(parameters) = catalog.parameters(spec) else {
                return Ok(());
            };
            let mut merged = spec.params.clone();
            merged.extend(params.clone());
            let faults = schema::check(&parameters, &Value::Object(merged));
            Ok(imageflow_types::FieldErrors(faults.into_iter().map(|f| f.under("params")).collect()).into_result()?)
        }
    }
}

/// An object that is there already, pinned to the bytes it has now.
async fn referred(gateway: &Gateway, asked: &Asked, place: &Place) -> Result<ObjectRef, Problem> {
    if !asked.buckets.contains(&place.bucket) {
        let allowed = asked.buckets.join(", ");
        let detail = format!(
            "input.bucket: {} may not read \"{}\", only {allowed}",
            asked.target, place.bucket
        );
        return Err(Problem::new(ErrorCode::Forbidden, detail));
    }
    check_key(&place.key).map_err(|e| object_problem(&e))?;
    let info = gateway
        .deps
        .objects
        .head(&place.bucket, &place.key)
        .await
        .map_err(|e| object_problem(&e))?;
    let info = info.ok_or_else(|| {
        Problem::new(
            ErrorCode::NotFound,
            format!("there is no object {}/{}", place.bucket, place.key),
        )
    })?;
    Ok(ObjectRef {
        bucket: info.bucket,
        key: info.key,
        etag: info.etag,
        size: info.size,
        content_type: info.content_type,
    })
}

/// An image in the body: stored under its content's digest, marked as the run's own so that it starts nothing else.
async fn brought(gateway: &Gateway, run: &RunId, body: Bytes) -> Result<ObjectRef, Problem> {
    let (content_type, extension) = sniff(&body)?;
    let bucket = topics::BUCKET_RAW;
    let key = format!(".inputs/{}.{extension}", &hex::encode(Sha256::digest(&body))[..32]);
    let size = body.len() as u64;
    let options = PutOptions {
        content_type: Some(content_type.to_owned()),
        metadata: [(METADATA_RUN.to_owned(), run.to_string())].into(),
        if_none_match: true,
    };
    let etag = match gateway.deps.objects.put(bucket, &key, body, options).await {
        Ok(info) => info.etag,
        Err(ObjectError::AlreadyExists { .. }) => {
            let info = gateway
                .deps
                .objects
                .head(bucket, &key)
                .await
                .map_err(|e| object_problem(&e))?;
            info.map(|i| i.etag)
                .ok_or_else(|| Problem::new(ErrorCode::Unavailable, "the input vanished: try again"))?
        }
        Err(error) => return Err(object_problem(&error)),
    };
    Ok(ObjectRef {
        bucket: bucket.to_owned(),
        key,
        etag,
        size,
        content_type: Some(content_type.to_owned()),
    })
}

/// Media type and extension by the first bytes.
pub fn sniff(body: &[u8]) -> Result<(&'static str, &'static str), Problem> {
    match body {
        [0xff, 0xd8, 0xff, ..] => Ok(("image/jpeg", "jpg")),
        [0x89, b'P', b'N', b'G', ..] => Ok(("image/png", "png")),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(("image/webp", "webp")),
        [] => Err(Problem::new(
            ErrorCode::InvalidArgument,
            "the body is empty: send an image, or JSON with input.bucket and input.key",
        )),
        _ => Err(Problem::new(
            ErrorCode::UnsupportedFormat,
            "the body is no image that can be read: send JPEG, PNG or WebP",
        )),
    }
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

/// Waits so long, but not beyond the platform's own end: a drain must not take as long as the most patient caller.
async fn within<T>(gateway: &Gateway, patience: Duration, wait: impl Future<Output = Option<T>>) -> Option<T> {
    tokio::select! {
        biased;
        found = wait => found,
        () = gateway.stop.cancelled() => None,
        () = tokio::time::sleep(patience) => None,
    }
}

async fn answer(gateway: &Gateway, run: &RunId, headers: &HeaderMap) -> Answer {
    let patience = wait(headers);
    if let Some(patience) = patience
        && let Some(state) = within(gateway, patience, gateway.runs.finished(run)).await
    {
        let wants_image = header(headers, ACCEPT.as_str()).is_some_and(|a| a.starts_with("image/"));
        return if wants_image {
            output_of(gateway, &state, None).await
        } else {
            Ok(Json(&*state).into_response())
        };
    }
    // The wish is durable; the router takes it in a moment. A caller gets the run itself, unless the router is behind.
    let state = within(gateway, ROUTER_PATIENCE, gateway.runs.started(run)).await;
    let body = match state {
        Some(state) => Json(&*state).into_response(),
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
