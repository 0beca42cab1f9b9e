//! What a pod's answer means.
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use http::{HeaderValue, Response};
use imageflow_events::http::Mode;
use imageflow_events::invocation::StepReply;
use imageflow_events::{AttributesReader, Content, Data, Event, data_bytes, ext, json_data};
use imageflow_types::error::http_status_retries;
use imageflow_types::names::StepName;
use imageflow_types::work::StepError;
use imageflow_types::{ErrorCode, Problem};
use serde_json::Value;

use crate::backoff::LONGEST;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The pod did the whole of it, result stored.
    Replied(StepReply),
    /// A foreign function gave data only.
    Data(Value),
    /// A foreign function answered with the result itself: it is to be stored.
    Body {
        /// The result.
        body: Bytes,
        /// Its media type.
        content_type: String,
    },
    /// The pod did not get at the object store: no fault of the function.
    NoStorage {
        /// Why.
        error: StepError,
    },
    /// It failed.
    Failed {
        /// Why.
        error: StepError,
        /// Whether another attempt may succeed.
        retry: bool,
        /// What the function asked for.
        retry_after: Option<Duration>,
    },
}

/// Longest message that is kept of an error, in characters. Parsers quote what they do not understand, which may be all that a
/// function said, and it is in the report twice: as the last attempt, too.
const LONGEST_MESSAGE: usize = 1024;

/// Reads an answer by the contract and, for errors, the Knative status table. It came at `now_ms`, ms since 1970.
#[must_use]
pub fn read(response: Response<Bytes>, now_ms: i64) -> Outcome {
    let status = response.status();
    if !status.is_success() {
        return failure(&response, now_ms);
    }
    let (parts, body) = response.into_parts();
    if imageflow_events::http::binary_type(&parts.headers) == Some(ext::TYPE_STEP_COMPLETED) {
        // Of the answer of our own SDK the data is all that counts.
        return of_reply(serde_json::from_slice(&body));
    }
    if let Some(mode) = imageflow_events::http::mode(&parts.headers) {
        return of_event(mode, &parts.headers, body);
    }
    if body.is_empty() {
        return Outcome::Data(Value::Null);
    }
    let content_type = media_type(&parts.headers).unwrap_or(OCTETS).to_owned();
    Outcome::Body { body, content_type }
}

/// What bytes are of which nothing is said.
const OCTETS: &str = "application/octet-stream";

fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE).map(HeaderValue::to_str)?.ok()?;
    Some(text).filter(|text| !text.is_empty())
}

/// A foreign function answered with an event.
fn of_event(mode: Mode, headers: &HeaderMap, body: Bytes) -> Outcome {
    let media_type = media_type(headers);
    // A picture is stored as it is, so it may be larger than the data of an event.
    let apart = mode == Mode::Binary && !body.is_empty() && Content::of(media_type) == Content::Bytes;
    let nothing = Bytes::new();
    let read = imageflow_events::http::read(headers, if apart { &nothing } else { &body });
    match read.map(|events| events.into_iter().next()) {
        Ok(_) if apart => Outcome::Body {
            body,
            content_type: media_type.unwrap_or(OCTETS).to_owned(),
        },
        Ok(Some(event)) => replied(event),
        Ok(None) => Outcome::Data(Value::Null),
        Err(error) => failed(
            ErrorCode::FunctionFailed,
            format!("its answer is no event: {error}"),
            false,
        ),
    }
}

fn replied(event: Event) -> Outcome {
    if event.ty() == ext::TYPE_STEP_COMPLETED {
        return of_reply(serde_json::from_value(json_data(&event).unwrap_or(Value::Null)));
    }
    let Some(data) = event.data() else {
        return Outcome::Data(Value::Null);
    };
    let media_type = event.datacontenttype();
    let value = match (Content::of(media_type), data) {
        (Content::Json, _) => match json_data(&event) {
            None if media_type.is_some() => {
                let message = "the data of its answer is not JSON, which its datacontenttype says it is".to_owned();
                return failed(ErrorCode::FunctionFailed, message, false);
            }
            value => value,
        },
        (Content::Text, Data::String(text)) => Some(Value::String(text.clone())),
        (Content::Text, Data::Binary(bytes)) => String::from_utf8(bytes.clone()).ok().map(Value::String),
        _ => None,
    };
    match value {
        Some(value) => Outcome::Data(value),
        None => Outcome::Body {
            body: data_bytes(&event).into(),
            content_type: media_type.unwrap_or(OCTETS).to_owned(),
        },
    }
}

fn of_reply(reply: Result<StepReply, serde_json::Error>) -> Outcome {
    match reply {
        Ok(reply) => Outcome::Replied(reply),
        Err(error) => failed(
            ErrorCode::FunctionFailed,
            format!("its answer cannot be read: {error}"),
            false,
        ),
    }
}

fn failed(code: ErrorCode, message: String, retry: bool) -> Outcome {
    Outcome::Failed {
        error: plain(code, message),
        retry,
        retry_after: None,
    }
}

/// An error that is nobody's answer.
pub(crate) fn plain(code: ErrorCode, message: String) -> StepError {
    StepError {
        code,
        message: cut(message),
        status: None,
        step: None,
    }
}

/// The start of a message.
pub(crate) fn cut(message: String) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((at, _)) => format!("{}...", &message[..at]),
        None => message,
    }
}

fn failure(response: &Response<Bytes>, now_ms: i64) -> Outcome {
    let status = response.status().as_u16();
    let problem: Option<Problem> = serde_json::from_slice(response.body()).ok();
    let step = problem_step(response.body());
    let (code, message) = match problem {
        Some(problem) => (problem.code, problem.to_string()),
        None => {
            let text = String::from_utf8_lossy(response.body());
            let text = text.trim();
            let said = if text.is_empty() {
                String::new()
            } else {
                format!(": {text}")
            };
            (code_of(status), format!("the function answered {status}{said}"))
        }
    };
    let error = StepError {
        status: Some(status),
        step,
        ..plain(code, message)
    };
    if code == ErrorCode::StorageUnavailable {
        return Outcome::NoStorage { error };
    }
    Outcome::Failed {
        error,
        retry: http_status_retries(status),
        retry_after: retry_after(response, now_ms),
    }
}

/// A catalogue pod names the step of a fused stage that failed.
fn problem_step(body: &Bytes) -> Option<StepName> {
    let value: Value = serde_json::from_slice(body).ok()?;
    StepName::new(value.get("step")?.as_str()?).ok()
}

const fn code_of(status: u16) -> ErrorCode {
    match status {
        401 => ErrorCode::Unauthenticated,
        403 => ErrorCode::Forbidden,
        404 => ErrorCode::NotFound,
        408 | 504 => ErrorCode::Timeout,
        409 => ErrorCode::Conflict,
        413 => ErrorCode::TooLarge,
        415 => ErrorCode::UnsupportedFormat,
        422 => ErrorCode::Unprocessable,
        429 => ErrorCode::Overloaded,
        400..=499 => ErrorCode::InvalidArgument,
        _ => ErrorCode::FunctionFailed,
    }
}

/// Seconds, or the date of HTTP: then until that, and not at all when it is over.
fn retry_after(response: &Response<Bytes>, now_ms: i64) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let now = UNIX_EPOCH + Duration::from_millis(now_ms.try_into().unwrap_or(0));
            let until = httpdate::parse_http_date(text).ok()?;
            until.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_500;

    fn answer(status: u16, content_type: &str, body: &str) -> Response<Bytes> {
        Response::builder()
            .status(status)
            .header(CONTENT_TYPE, content_type)
            .header(RETRY_AFTER, "7")
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap()
    }

    #[test]
    fn a_server_error_retries_and_a_bad_picture_does_not() {
        let Outcome::Failed {
            error,
            retry,
            retry_after,
        } = read(answer(503, "text/plain", "busy"), NOW_MS)
        else {
            panic!()
        };
        assert!(retry && error.message.contains("503: busy") && retry_after == Some(Duration::from_secs(7)));
        let problem = serde_json::to_string(&Problem::new(ErrorCode::Unprocessable, "the JPEG is truncated")).unwrap();
        let Outcome::Failed { error, retry, .. } = read(answer(422, "application/problem+json", &problem), NOW_MS)
        else {
            panic!()
        };
        assert!(!retry && error.code == ErrorCode::Unprocessable && error.message == "the JPEG is truncated");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let asks = |text: &str| {
            let mut answer = answer(503, "text/plain", "busy");
            answer.headers_mut().insert(RETRY_AFTER, text.parse().unwrap());
            match read(answer, NOW_MS) {
                Outcome::Failed { retry_after, .. } => retry_after.map(|wait| wait.as_millis()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(asks(" 7 "), Some(7_000));
        assert_eq!(
            asks("Tue, 14 Nov 2023 22:13:27 GMT"),
            Some(6_500),
            "NOW_MS is 22:13:20.5"
        );
        assert_eq!(
            asks("Tuesday, 14-Nov-23 22:13:27 GMT"),
            Some(6_500),
            "an old form that is to be read"
        );
        assert_eq!(asks("Tue, 14 Nov 2023 22:13:19 GMT"), Some(0));
        assert_eq!(
            asks("Fri, 14 Nov 2053 22:13:19 GMT"),
            Some(3_600_000),
            "no longer than any wait"
        );
        assert_eq!((asks("soon"), asks("-1")), (None, None));
    }

    /// An answer that is an event in binary mode.
    fn binary(content_type: Option<&str>, body: &[u8]) -> Response<Bytes> {
        let mut event = answer(200, content_type.unwrap_or_default(), "");
        if content_type.is_none() {
            event.headers_mut().remove(CONTENT_TYPE);
        }
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "urn:x"),
            ("ce-type", "com.example.done"),
        ] {
            event.headers_mut().insert(name, value.parse().unwrap());
        }
        *event.body_mut() = Bytes::copy_from_slice(body);
        event
    }

    /// An answer that is an event in structured mode, with these fields besides.
    fn structured(fields: serde_json::Value) -> Response<Bytes> {
        let mut event = json!({"specversion": "1.0", "id": "1", "source": "urn:x", "type": "com.example.done"});
        event
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        answer(200, "application/cloudevents+json", &event.to_string())
    }

    #[test]
    fn foreign_answers_are_understood() {
        assert_eq!(read(answer(202, "text/plain", ""), NOW_MS), Outcome::Data(Value::Null));
        assert!(matches!(
            read(answer(200, "image/png", "x"), NOW_MS),
            Outcome::Body { .. }
        ));
        let body_of = |content_type: &str, body: &[u8]| Outcome::Body {
            body: Bytes::copy_from_slice(body),
            content_type: content_type.to_owned(),
        };
        let png: &[u8] = b"\x89PNG\xff";
        let large = vec![0xff; imageflow_events::MAX_EVENT_BYTES + 1];
        for (answer, outcome) in [
            (structured(json!({"data": {"n": 1}})), Outcome::Data(json!({"n": 1}))),
            (structured(json!({})), Outcome::Data(Value::Null)),
            (
                structured(json!({"datacontenttype": "text/plain", "data": "5"})),
                Outcome::Data(json!("5")),
            ),
            (
                structured(json!({"datacontenttype": "image/png", "data_base64": "iVBORw=="})),
                body_of("image/png", b"\x89PNG"),
            ),
            (
                structured(json!({"datacontenttype": "application/jsonl", "data": "1\n2\n"})),
                body_of("application/jsonl", b"1\n2\n"),
            ),
            (binary(Some("image/png"), png), body_of("image/png", png)),
            (binary(Some("image/png"), &large), body_of("image/png", &large)),
            (binary(Some("image/png"), b""), Outcome::Data(Value::Null)),
            (
                binary(Some("application/ld+json; charset=utf-8"), b"[1]"),
                Outcome::Data(json!([1])),
            ),
            (binary(None, b"[1]"), Outcome::Data(json!([1]))),
            (binary(None, png), body_of("application/octet-stream", png)),
            (binary(Some("text/plain"), "ü5".as_bytes()), Outcome::Data(json!("ü5"))),
            (
                binary(Some("text/plain; charset=latin1"), b"\xfc5"),
                body_of("text/plain; charset=latin1", b"\xfc5"),
            ),
        ] {
            assert_eq!(read(answer, NOW_MS), outcome);
        }
        let mut nameless = binary(Some("image/png"), png);
        nameless.headers_mut().remove("ce-id");
        for refused in [
            answer(200, "application/cloudevents+json", "{"),
            nameless,
            binary(Some("application/json"), b"{"),
        ] {
            let outcome = read(refused, NOW_MS);
            assert!(matches!(outcome, Outcome::Failed { retry: false, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn what_a_function_said_is_not_quoted_in_full() {
        let text = "x".repeat(1_000_000);
        let reply = format!(r#""{text}""#);
        let mut completed = answer(200, "application/json", &reply);
        let event = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "urn:x"),
            ("ce-type", ext::TYPE_STEP_COMPLETED),
        ];
        for (name, value) in event {
            completed.headers_mut().insert(name, value.parse().unwrap());
        }
        let structured = |data: &str, ty: &str| {
            let event = format!(r#"{{"specversion":"1.0","id":"1","source":"urn:x","type":"{ty}","data":"{data}"}}"#);
            answer(200, "application/cloudevents+json", &event)
        };
        let answers = [
            answer(503, "text/plain", &text),
            completed,
            structured(&text, ext::TYPE_STEP_COMPLETED),
            answer(
                200,
                "application/cloudevents+json",
                &format!(r#"{{"specversion":"{text}"}}"#),
            ),
        ];
        for answer in answers {
            let Outcome::Failed { error, .. } = read(answer, NOW_MS) else {
                panic!()
            };
            assert!(
                error.message.ends_with("...") && error.message.len() < 1_100,
                "{error:?}"
            );
        }
    }
}
