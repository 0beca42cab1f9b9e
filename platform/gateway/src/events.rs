//! Where CloudEvents come in: binary, structured and batch. 202 means that the log has them.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use imageflow_eventlog::NewRecord;
use imageflow_events::{Event, EventError, MAX_INLINE_BYTES, data_bytes, ext, record};
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::json;

use crate::problem::Answer;
use crate::read::trace;
use crate::state::Gateway;

/// `POST /v1/events`.
pub async fn post(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Bytes) -> Answer {
    gateway.check_room().await?;
    let mut events = imageflow_events::http::read(&headers, &body).map_err(|e| event_problem(&e))?;
    let mut records = Vec::with_capacity(events.len());
    for event in &mut events {
        let bytes = data_bytes(event).len();
        if bytes > MAX_INLINE_BYTES {
            return Err(event_problem(&EventError::TooLarge {
                bytes,
                most: MAX_INLINE_BYTES,
            })
            .into());
        }
        let forged = ext::sanitise(event).map_err(|e| Problem::new(ErrorCode::MalformedEvent, e.to_string()))?;
        if !forged.is_empty() {
            tracing::debug!(?forged, "extensions of the platform were taken off an outside event");
        }
        if event.extension(ext::TRACEPARENT).is_none() {
            event.set_extension(ext::TRACEPARENT, trace(&headers));
        }
        records.push(to_record(event));
    }
    let count = records.len();
    gateway.write(records).await?;
    metrics::counter!("imageflow_api_events_total").increment(count as u64);
    Ok(accepted(count))
}

fn accepted(count: usize) -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({"accepted": count}))).into_response()
}

/// The record of an event in `imageflow.events`.
pub fn to_record(event: &Event) -> NewRecord {
    let (headers, value) = record::write(event);
    let mut record = NewRecord::new(topics::EVENTS).key(imageflow_events::http::partition_key(event));
    record.headers = headers;
    record.value = value;
    record
}

fn event_problem(error: &EventError) -> Problem {
    let code = match error {
        EventError::TooLarge { .. } => ErrorCode::TooLarge,
        _ => ErrorCode::MalformedEvent,
    };
    Problem::new(code, error.to_string())
}
