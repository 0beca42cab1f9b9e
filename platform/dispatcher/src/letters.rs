//! What cannot be read becomes a dead letter that keeps its bytes, so that nothing is lost.
use imageflow_eventlog::{NewRecord, Record};
use imageflow_events::work::{self, Raw, letter_headers};
use imageflow_types::topics;
use imageflow_types::work::DeadLetter;

/// Of a record that is not `what` it should be. `function` is `-` where
/// it is not known.
pub(crate) fn unreadable(record: &Record, function: &str, what: &str, why: &str, now_ms: i64) -> DeadLetter {
    let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
    tracing::error!(topic, partition, offset, "a record is no {what}: {why}");
    metrics::counter!("imageflow_function_unreadable_total").increment(1);
    let raw = Raw {
        topic,
        partition,
        offset,
        key: record.key.as_deref(),
        headers: &record.headers,
        value: record.value.as_deref(),
    };
    work::unreadable(raw, function, &format!("is no {what}: {why}"), now_ms)
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
