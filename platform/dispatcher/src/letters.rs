//! What cannot be read becomes a dead letter that keeps its bytes, so that nothing is lost.
use imageflow_eventlog::{NewRecord, Record};
use imageflow_events::work::{self, Raw, letter_headers};
use imageflow_types::topics;
use imageflow_types::work::{DeadLetter, StepError};

use crate::outcome::cut;

/// Of a record that is not `what` it should be. `function` is `-` where
/// it is not known.
pub(crate) fn unreadable(record: &Record, function: &str, what: &str, why: String, now_ms: i64) -> DeadLetter {
    // A parser quotes what it does not understand: that may be all of the record, which is kept as it is.
    let why = cut(why);
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

/// The letter of something so large that its bytes, as JSON, do not fit into a record. They stay in their topic. None when it is
/// that already.
pub(crate) fn shortened(letter: &DeadLetter) -> Option<DeadLetter> {
    letter.event.as_ref()?;
    Some(DeadLetter {
        event: None,
        error: StepError {
            message: cut(letter.error.message.clone()),
            ..letter.error.clone()
        },
        ..letter.clone()
    })
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

#[cfg(test)]
mod tests {
    use imageflow_eventlog::MAX_RECORD_BYTES;
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_letter_that_does_not_fit_does_when_it_is_shortened() {
        let mut value = serde_json::to_vec(&Value::from("x".repeat(MAX_RECORD_BYTES - 2))).unwrap();
        value.truncate(MAX_RECORD_BYTES);
        let record_of = |value: Vec<u8>| Record {
            topic: "imageflow.work.outline".to_owned(),
            partition: 0,
            offset: 7,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: 0,
        };
        let why = serde_json::from_slice::<u32>(&value).unwrap_err().to_string();
        let letter = unreadable(&record_of(value), "outline", "step", why.clone(), 0);
        assert!(letter.error.message.len() < 1_200, "{}", letter.error.message.len());
        let mut of_others = letter;
        of_others.error.message = why;
        let shorter = shortened(&of_others).unwrap();
        assert!(record(&of_others).unwrap().size() > MAX_RECORD_BYTES);
        assert!(record(&shorter).unwrap().size() < 4_096);
        assert_eq!(shortened(&shorter), None);
    }
}
