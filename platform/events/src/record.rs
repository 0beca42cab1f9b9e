//! CloudEvents in the Kafka protocol binding: `ce_` headers (binary) or a JSON value (structured).
use bytes::Bytes;
use cloudevents::binding::http::to_event;
use cloudevents::event::Data;
use cloudevents::{AttributesReader, Event};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::{EventError, data_bytes, json_data};

/// Headers and value of a record.
pub type RecordParts = (Vec<(String, Bytes)>, Option<Bytes>);

/// Writes an event in binary mode. Kafka's headers are bytes, so nothing is percent-encoded.
#[must_use]
pub fn write(event: &Event) -> RecordParts {
    let mut headers = vec![("ce_specversion".to_owned(), Bytes::from_static(b"1.0"))];
    for (name, value) in event.iter() {
        let header = match name {
            "specversion" => continue,
            "datacontenttype" => "content-type".to_owned(),
            _ => format!("ce_{name}"),
        };
        headers.push((header, value.to_string().into()));
    }
    let value = event.data().map(|_| data_bytes(event).into());
    (headers, value)
}

/// Reads an event from headers and value of a record.
///
/// # Errors
/// [`EventError`] when it is no event.
pub fn read(headers: &[(String, Bytes)], value: Option<&Bytes>) -> Result<Event, EventError> {
    let content_type = headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case("content-type"))
        .map(|(_, v)| v);
    let body = value.cloned().unwrap_or_default();
    if content_type.is_some_and(|v| v.starts_with(b"application/cloudevents")) {
        return serde_json::from_slice(&body).map_err(|source| EventError::Json {
            expected: "an event",
            source,
        });
    }
    // The SDK's HTTP reader does the work: same attributes, other prefix; bytes beyond ASCII travel encoded.
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value);
        let (header, text) = match name.strip_prefix("ce_") {
            Some(attribute) => (
                HeaderName::try_from(format!("ce-{attribute}")),
                crate::attributes::encode(&text),
            ),
            None if name.eq_ignore_ascii_case("content-type") => (Ok(CONTENT_TYPE), text.into_owned()),
            None => continue,
        };
        if let (Ok(header), Ok(value)) = (header, HeaderValue::try_from(text)) {
            map.insert(header, value);
        }
    }
    for required in ["ce-specversion", "ce-id", "ce-source", "ce-type"] {
        if !map.contains_key(required) {
            return Err(EventError::Attribute {
                name: required[3..].to_owned(),
                why: "is missing",
            });
        }
    }
    let mut event = to_event(&map, body.to_vec()).map_err(EventError::Invalid)?;
    as_json(&mut event);
    crate::attributes::decode_percent(&mut event);
    Ok(event)
}

/// The SDK's reader takes every body for bytes, which whoever writes the event on as JSON would write as base64.
fn as_json(event: &mut Event) {
    let json = event.datacontenttype().is_some_and(is_json);
    if json && let Some(value) = json_data(event) {
        event.set_data_unchecked(Data::Json(value));
    }
}

fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudevents::{EventBuilder, EventBuilderV10};

    #[test]
    fn an_event_reads_back_from_a_record() {
        let event = EventBuilderV10::new()
            .id("1")
            .source("urn:test")
            .ty("com.example.upload")
            .subject("Grüße 100%.jpg")
            .extension("traceparent", "00-a-b-01")
            .data("application/json", serde_json::json!({"a": 1}))
            .build()
            .unwrap();
        let (headers, value) = write(&event);
        assert!(
            headers
                .iter()
                .any(|(n, v)| n == "ce_subject" && v == "Grüße 100%.jpg".as_bytes())
        );
        let back = read(&headers, value.as_ref()).unwrap();
        assert_eq!((back.id(), back.subject()), ("1", Some("Grüße 100%.jpg")));
        assert_eq!(back.data(), Some(&Data::Json(serde_json::json!({"a": 1}))));
        let structured = [(
            "content-type".to_owned(),
            Bytes::from_static(b"application/cloudevents+json"),
        )];
        let json = Bytes::from(serde_json::to_vec(&event).unwrap());
        assert_eq!(read(&structured, Some(&json)).unwrap().id(), "1");
        assert!(read(&[], None).unwrap_err().to_string().contains("specversion"));
    }
}
