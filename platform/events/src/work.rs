//! What the platform itself writes into its topics, as CloudEvents: the value of the record is the data, and the headers say
//! the rest in binary mode, so that any SDK reads it.
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cloudevents::event::ExtensionValue;
use cloudevents::{AttributesWriter, Event};
use imageflow_types::work::{DeadLetter, Input, StepError, StepRequest, Target};
use imageflow_types::{ErrorCode, topics};
use serde_json::{Value, json};

use crate::{ext, record};

/// Headers of a record.
pub type Headers = Vec<(String, Bytes)>;

/// Most bytes of a failure's message in an extension, as with Knative. The data has all of it. Of what is wrong with a record that
/// cannot be read there is no more in the data either: a parser quotes what it does not understand, and the record is kept beside it.
const LONGEST_MESSAGE: usize = 1024;

/// Headers of a step's record in `imageflow.work.<function>`, whose value is the [`StepRequest`].
#[must_use]
pub fn step_headers(step: &StepRequest) -> Headers {
    let names: Vec<&str> = step.steps.iter().map(|s| s.name.as_str()).collect();
    let attempt = step.attempts.len() + 1;
    let id = format!("{}/{}/{attempt}", step.run, step.stage);
    headers(
        (&id, ext::TYPE_WORK, &of_run(step.run.as_str())),
        (&step.input, step.requested_ms),
        vec![
            (ext::PARTITION_KEY, step.run.to_string().into()),
            (ext::RUN, step.run.to_string().into()),
            (ext::STEP, names.join("+").into()),
            (ext::ATTEMPT, (attempt as i64).into()),
        ],
        step.traceparent.as_deref(),
    )
}

/// A record as it stands in the log.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a [(String, Bytes)],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// The dead letter of a record that cannot be read. It keeps all bytes: as text, and as `{"base64": ...}` where they are none.
/// `function` is `-` where it is not known; `why` goes on after the name of the topic.
#[must_use]
pub fn unreadable(raw: Raw<'_>, function: &str, why: &str, now_ms: i64) -> DeadLetter {
    let Raw {
        topic,
        partition,
        offset,
        ..
    } = raw;
    let headers = raw.headers.iter().map(|(name, value)| json!([name, exact(value)]));
    DeadLetter {
        id: match topic == topics::EVENTS {
            true => format!("record-{partition}-{offset}"),
            false => format!("record-{topic}-{partition}-{offset}"),
        },
        run: None,
        function: function.to_owned(),
        error: StepError {
            code: ErrorCode::MalformedEvent,
            message: format!("partition {partition}, offset {offset} of {topic} {}", start(why)),
            status: None,
            step: None,
        },
        attempts: Vec::new(),
        request: None,
        event: Some(json!({
            "key": raw.key.map(exact),
            "headers": headers.collect::<Vec<_>>(),
            "value": raw.value.map(exact),
        })),
        at_ms: now_ms,
    }
}

fn exact(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

/// Headers of a record in `imageflow.dead-letters`, whose value is the [`DeadLetter`]. Who knows Knative's dead letters finds
/// where, with which status and why the delivery failed; the original event is in the data.
#[must_use]
pub fn letter_headers(letter: &DeadLetter) -> Headers {
    let request = letter.request.as_ref();
    let source = letter
        .run
        .as_ref()
        .map_or_else(|| ROUTER.to_owned(), |run| of_run(run.as_str()));
    let event = letter.event.clone().map(Input::Event);
    let nothing = Input::Event(Value::Null);
    let input = request.map(|r| &r.input).or(event.as_ref()).unwrap_or(&nothing);
    let destination = match request.map(|r| &r.target) {
        Some(Target::Flow(flow)) if letter.function == NO_FUNCTION => format!("/imageflow/flows/{flow}"),
        _ if letter.function == NO_FUNCTION => ROUTER.to_owned(),
        _ => format!("/imageflow/functions/{}", letter.function),
    };
    let status = letter.error.status.unwrap_or(letter.error.code.http());
    let mut extensions: Vec<(&str, ExtensionValue)> = vec![
        (ext::PARTITION_KEY, letter.function.clone().into()),
        (ext::KNATIVE_ERROR_DEST, destination.into()),
        (ext::KNATIVE_ERROR_CODE, i64::from(status).into()),
        (ext::KNATIVE_ERROR_DATA, one_line(&letter.error.message).into()),
    ];
    extensions.extend(letter.run.as_ref().map(|run| (ext::RUN, run.to_string().into())));
    extensions.extend(
        letter
            .error
            .step
            .as_ref()
            .map(|step| (ext::STEP, step.to_string().into())),
    );
    headers(
        (&letter.id, ext::TYPE_DEAD_LETTER, &source),
        (input, letter.at_ms),
        extensions,
        request.and_then(|r| r.traceparent.as_deref()),
    )
}

/// Headers of the record that says that the letter of an id was sent again.
#[must_use]
pub fn replayed_headers(id: &str, at_ms: i64) -> Headers {
    let nothing = Input::Event(Value::Null);
    let id = format!("{id}/replayed");
    headers(
        (&id, ext::TYPE_LETTER_REPLAYED, ROUTER),
        (&nothing, at_ms),
        Vec::new(),
        None,
    )
}

/// Stands for the function of a letter that reached none.
const NO_FUNCTION: &str = "-";
/// Source of what belongs to no run.
const ROUTER: &str = "/imageflow/router";

fn of_run(run: &str) -> String {
    format!("/imageflow/runs/{run}")
}

fn headers(
    (id, ty, source): (&str, &str, &str),
    (input, at_ms): (&Input, i64),
    extensions: Vec<(&str, ExtensionValue)>,
    traceparent: Option<&str>,
) -> Headers {
    let mut event = Event::default();
    event.set_id(id);
    event.set_type(ty);
    event.set_source(source);
    event.set_time(Some(UNIX_EPOCH + Duration::from_millis(at_ms.try_into().unwrap_or(0))));
    event.set_subject(match input {
        Input::Object(object) => Some(format!("{}/{}", object.bucket, object.key)),
        Input::Event(event) => event.get("subject").and_then(Value::as_str).map(str::to_owned),
    });
    event.set_datacontenttype(Some("application/json"));
    for (name, value) in extensions {
        event.set_extension(name, value);
    }
    if let Some(traceparent) = traceparent {
        event.set_extension(ext::TRACEPARENT, traceparent.to_owned());
    }
    record::write(&event).0
}

/// The start of a message. Records of others hold what would end a header's line.
fn one_line(message: &str) -> String {
    start(message).replace(char::is_control, " ")
}

fn start(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST_MESSAGE)]
}

#[cfg(test)]
mod tests {
    use cloudevents::AttributesReader;
    use serde_json::json;

    use super::*;

    fn read(headers: &Headers) -> Event {
        record::read(None, headers, Some(&Bytes::from_static(b"{}"))).unwrap()
    }

    fn letter(content: Value) -> DeadLetter {
        let mut letter = json!({"id": "dl-1", "function": "resize", "error": {"code": "unprocessable", "message": "m"},
            "atMs": 1_700_000_000_123_i64});
        letter
            .as_object_mut()
            .unwrap()
            .extend(content.as_object().unwrap().clone());
        serde_json::from_value(letter).unwrap()
    }

    #[test]
    fn a_letter_says_what_knative_says() {
        let message = format!("a\nb{}", "ü".repeat(1000));
        let error = json!({"code": "function-failed", "message": message, "status": 500, "step": "thumb"});
        let request = json!({"run": "run-1", "target": {"flow": "thumbs"}, "requestedMs": 1,
            "input": {"object": {"bucket": "raw-images", "key": "a b", "etag": "e"}}});
        let event = read(&letter_headers(&letter(
            json!({"run": "run-1", "error": error, "request": request}),
        )));
        let text = |name: &str| ext::text(&event, name).unwrap_or_default();
        assert_eq!((event.id(), event.ty()), ("dl-1", ext::TYPE_DEAD_LETTER));
        assert_eq!(
            (event.source().as_str(), event.subject()),
            ("/imageflow/runs/run-1", Some("raw-images/a b"))
        );
        assert_eq!(event.time().unwrap().timestamp_millis(), 1_700_000_000_123);
        assert_eq!(text(ext::KNATIVE_ERROR_DEST), "/imageflow/functions/resize");
        assert_eq!(
            (text(ext::KNATIVE_ERROR_CODE).as_str(), text(ext::STEP).as_str()),
            ("500", "thumb")
        );
        let data = text(ext::KNATIVE_ERROR_DATA);
        assert!(data.starts_with("a bü") && data.len() <= LONGEST_MESSAGE, "{data}");
    }

    #[test]
    fn what_a_parser_quotes_of_a_record_is_not_in_its_letter_twice() {
        let value = "ü".repeat(1 << 19);
        let raw = Raw {
            topic: "imageflow.work.resize",
            partition: 0,
            offset: 7,
            key: None,
            headers: &[],
            value: Some(value.as_bytes()),
        };
        let letter = unreadable(raw, "resize", &format!("is no work: string \"{value}\""), 0);
        assert!(letter.error.message.len() < 2 * LONGEST_MESSAGE);
        assert_eq!(letter.event.unwrap()["value"], json!(value), "once, and whole");
    }

    #[test]
    fn a_letter_that_reached_no_function_names_what_was_asked() {
        let event = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "a", "subject": "s"});
        let read = read(&letter_headers(&letter(json!({"function": "-", "event": event}))));
        assert_eq!((read.source().as_str(), read.subject()), (ROUTER, Some("s")));
        assert_eq!(ext::text(&read, ext::KNATIVE_ERROR_DEST).unwrap(), ROUTER);
        // The status that the code stands for, when no function answered one.
        assert_eq!(ext::text(&read, ext::KNATIVE_ERROR_CODE).unwrap(), "422");
    }
}
