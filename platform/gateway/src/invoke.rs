//! Image in, image out: a call straight to a pod, held while one starts.
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Request};
use imageflow_delivery::Target;
use imageflow_events::ext::TRACEPARENT;
use imageflow_types::Problem;

use crate::bodies::Content;
use crate::events::for_pod;
use crate::params::check_names;
use crate::problem::Answer;
use crate::read::{pairs, query, trace};
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
    Content(body): Content,
) -> Answer {
    let begun = Instant::now();
    let catalog = gateway.deps.resources.snapshot();
    let entry = catalog.function(&name)?;
    let function = entry.document.metadata.name.clone();
    let tag = query(raw.as_deref(), "tag");
    let pick = u64::from(uuid::Uuid::new_v4().as_u128() as u32);
    let revision = entry.route(tag.as_deref(), pick)?.clone();
    let given = pairs(raw.as_deref());
    let given = given
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| *name != "tag");
    check_names(&catalog, &revision.template, given)?;
    let query: Vec<String> = raw
        .as_deref()
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty() && !p.starts_with("tag="))
        .map(str::to_owned)
        .collect();
    let uri = format!("/?{}", query.join("&"));
    let trace = trace(&headers);
    let (content_type, body) = for_pod(&headers, body)?;
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
    let stand_in = catalog.stand_in(entry);
    let target = Target {
        function: &function,
        revision: &revision.name,
        stand_in: stand_in.as_ref(),
    };
    let answer = gateway.deps.delivery.call(target, timeout, request).await;
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
