//! Where CloudEvents come in: binary, structured and batch. 202 means that the log has them.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode};
use imageflow_eventlog::NewRecord;
use imageflow_events::http::{BATCH, Mode, mode, write_structured};
use imageflow_events::{Event, EventError, MAX_INLINE_BYTES, data_bytes, ext, record};
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::json;

use crate::bodies::Content;
use crate::problem::Answer;
use crate::read::trace;
use crate::state::Gateway;

/// `POST /v1/events`.
pub async fn post(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, Content(body): Content) -> Answer {
    gateway.check_room().await?;
    let mut events = from_outside(&headers, &body)?;
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

/// The events of a request, as the platform takes them from those who are not part of it: none of its own types, and nothing that
/// only it may say. To a pod a step is what the platform asks for: it fetches from where the step says, with the headers that the
/// step says, and puts the result there.
fn from_outside(headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, Problem> {
    let mut events = imageflow_events::http::read(headers, body).map_err(|e| event_problem(&e))?;
    for event in &mut events {
        let forged = ext::sanitise(event).map_err(|e| Problem::new(ErrorCode::MalformedEvent, e.to_string()))?;
        if !forged.is_empty() {
            tracing::debug!(?forged, "extensions of the platform were taken off an outside event");
        }
    }
    Ok(events)
}

/// What of a caller's request goes to a pod: its media type and body. Events go as they were read here, so that no two readers
/// find different ones in the same bytes.
pub fn for_pod(headers: &HeaderMap, body: Bytes) -> Result<(HeaderValue, Bytes), Problem> {
    let written = match mode(headers) {
        None => None,
        Some(Mode::Binary) => {
            // The attributes are in headers, which go to no pod; the data may be an image, larger than an event's.
            let mut attributes = headers.clone();
            attributes.remove(CONTENT_TYPE);
            from_outside(&attributes, &Bytes::new())?;
            None
        }
        Some(Mode::Structured) => {
            let events = from_outside(headers, &body)?;
            let event = events.first().ok_or_else(|| event_problem(&EventError::NoEvent))?;
            let (headers, body) = write_structured(event).map_err(|e| event_problem(&e))?;
            headers.get(CONTENT_TYPE).cloned().map(|media| (media, body))
        }
        Some(Mode::Batch) => {
            let events = serde_json::to_vec(&from_outside(headers, &body)?);
            let events = events.map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
            Some((HeaderValue::from_static(BATCH), events.into()))
        }
    };
    Ok(written.unwrap_or_else(|| {
        let plain = HeaderValue::from_static("application/octet-stream");
        (headers.get(CONTENT_TYPE).cloned().unwrap_or(plain), body)
    }))
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
