//! Answers.
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use imageflow_types::{ErrorCode, Problem};
use serde::Serialize;

use crate::REFUSED_HEADER;
use crate::admission::Refusal;

pub(crate) type Body = tonic::body::Body;

pub(crate) fn full(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    // A media type that is no header value is not said at all.
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

pub(crate) fn with_headers(headers: HeaderMap, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body)));
    *response.headers_mut() = headers;
    response
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    full(
        status,
        "application/json",
        serde_json::to_vec(value).unwrap_or_default(),
    )
}

pub(crate) fn problem(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = full(
        status,
        "application/problem+json",
        serde_json::to_vec(problem).unwrap_or_default(),
    );
    if let Some(seconds) = problem.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

pub(crate) fn refusal_problem(refusal: Refusal) -> Problem {
    let detail = match refusal {
        Refusal::Concurrency => "the pod is at its concurrency limit; try again or another pod",
        Refusal::Draining => "the pod is shutting down; try another pod",
    };
    Problem::new(ErrorCode::Unavailable, detail).retry_after(1)
}

pub(crate) fn refused(refusal: Refusal) -> Response<Body> {
    let mut response = problem(&refusal_problem(refusal));
    response
        .headers_mut()
        .insert(REFUSED_HEADER, HeaderValue::from_static(refusal.reason()));
    response
}
