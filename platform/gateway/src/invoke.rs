//! Image in, image out: a call straight to a pod, held while one starts.
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request};
use imageflow_events::ext::TRACEPARENT;
use imageflow_events::trace::TraceParent;
use imageflow_types::schema;
use imageflow_types::{ErrorCode, FieldErrors, Problem};

use crate::problem::{Answer, pairs, query};
use crate::state::Gateway;

/// Marks an answer as the pod's own: it goes to the caller as it is.
#[derive(Debug, Clone, Copy)]
pub struct FromPod;

/// What is passed on of a pod's answer.
const PASSED: [HeaderName; 2] = [CONTENT_TYPE, RETRY_AFTER];

/// `POST /v1/functions/{name}/invoke`.
pub async fn invoke(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let begun = Instant::now();
    let catalog = gateway.deps.resources.snapshot();
    let entry = catalog.function(&name)?;
    let function = entry.document.metadata.name.clone();
    let tag = query(raw.as_deref(), "tag");
    let pick = u64::from(uuid::Uuid::new_v4().as_u128() as u32);
    let revision = entry.route(tag.as_deref(), pick)?.clone();
    // Names are checked here so that a slip costs no cold start; values are the pod's to check, by the same schema.
    if let Some(parameters) = catalog.parameters(entry.spec()) {
        check_names(&parameters, raw.as_deref())?;
    }
    let query: Vec<String> = raw
        .as_deref()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("tag="))
        .map(str::to_owned)
        .collect();
    let uri = format!("/?{}", query.join("&"));
    let parent = headers
        .get(TRACEPARENT)
        .and_then(|v| v.to_str().ok())
        .and_then(TraceParent::parse);
    let trace = parent
        .map_or_else(TraceParent::generate, TraceParent::child)
        .to_string();
    let content_type = headers
        .get(CONTENT_TYPE)
        .cloned()
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let request = || {
        let mut request = Request::new(body.clone());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = uri.parse().unwrap_or_default();
        request.headers_mut().insert(CONTENT_TYPE, content_type.clone());
        if let Ok(value) = HeaderValue::try_from(&trace) {
            request.headers_mut().insert(TRACEPARENT, value);
        }
        request
    };
    let timeout = revision.template.timeout.0;
    let answer = gateway
        .deps
        .delivery
        .call(&function, &revision.name, timeout, request)
        .await;
    let (answer, cold) = answer.map_err(|e| Problem::from(&e))?;
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::from(body));
    response.extensions_mut().insert(FromPod);
    *response.status_mut() = parts.status;
    for name in PASSED {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let told = [
        ("imageflow-revision", revision.name.to_string()),
        ("imageflow-cold-start", cold.to_string()),
        (
            "server-timing",
            format!("total;dur={:.1}", begun.elapsed().as_secs_f64() * 1000.0),
        ),
        ("traceparent", trace),
    ];
    for (name, value) in told {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Unknown parameter names, with the nearest right one. Values arrive as text, so only names can be checked by the schema here.
fn check_names(parameters: &serde_json::Value, raw: Option<&str>) -> Result<(), Problem> {
    let known = schema::property_names(parameters);
    let open = parameters.get("additionalProperties") != Some(&serde_json::Value::Bool(false));
    if open {
        return Ok(());
    }
    let unknown = pairs(raw)
        .into_iter()
        .filter(|(name, _)| name != "tag" && !known.contains(&name.as_str()));
    let faults = unknown
        .map(|(name, _)| {
            let fault = imageflow_types::FieldError::new(name.clone(), "is not a parameter of this function");
            match imageflow_types::names::nearest(&name, known.iter().copied()) {
                Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
                None => fault.remedy(format!("known are {}", known.join(", "))),
            }
        })
        .collect();
    FieldErrors(faults).into_result().map_err(|faults| {
        let mut problem = Problem::from(faults);
        problem.code = ErrorCode::InvalidArgument;
        problem
    })
}
