//! What cannot be read becomes a dead letter that keeps its bytes, so that nothing is lost.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use imageflow_eventlog::{NewRecord, Record};
use imageflow_events::work::letter_headers;
use imageflow_types::work::{DeadLetter, StepError};
use imageflow_types::{ErrorCode, topics};
use serde_json::{Value, json};

/// Of a record that is not `what` it should be, in the same form as the router's of an event that is none. `function` is `-` where
/// it is not known.
pub(crate) fn unreadable(record: &Record, function: &str, what: &str, why: &str, now_ms: i64) -> DeadLetter {
    let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
    let headers: Vec<Value> = record
        .headers
        .iter()
        .map(|(name, value)| json!([name, exact(value)]))
        .collect();
    tracing::error!(topic, partition, offset, "a record is no {what}: {why}");
    metrics::counter!("imageflow_function_unreadable_total").increment(1);
    DeadLetter {
        id: format!("record-{topic}-{partition}-{offset}"),
        run: None,
        function: function.to_owned(),
        error: StepError {
            code: ErrorCode::MalformedEvent,
            message: format!("partition {partition}, offset {offset} of {topic} is no {what}: {why}"),
            status: None,
            step: None,
        },
        attempts: Vec::new(),
        request: None,
        event: Some(json!({
            "key": record.key.as_deref().map(exact),
            "headers": headers,
            "value": record.value.as_deref().map(exact),
        })),
        at_ms: now_ms,
    }
}

/// Bytes as text, and as `{"base64": ...}` where they are none.
fn exact(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// The letter of something so large that its bytes, as JSON, do not fit into a record. They stay in their topic.
pub(crate) fn without_bytes(letter: &DeadLetter) -> DeadLetter {
    DeadLetter {
        event: None,
        ..letter.clone()
    }
}

/// The record of a letter.
pub(crate) fn record(letter: &DeadLetter) -> Option<NewRecord> {
    match serde_json::to_vec(letter) {
        Ok(value) => {
            let mut record = NewRecord::new(topics::DEAD_LETTERS)
                .key(letter.function.clone())
                .value(value);
            record.headers = letter_headers(letter);
            Some(record)
        }
        Err(error) => {
            tracing::error!(%error, letter.id, "a dead letter cannot be written");
            None
        }
    }
}
