//! CloudEvents in the Kafka protocol binding: `ce_` headers (binary) or a JSON value (structured).
use bytes::Bytes;
use cloudevents::binding::http::to_event;
use cloudevents::event::Data;
use cloudevents::{AttributesReader, Event};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::{Content, EventError, data_bytes, ext, json_data};

/// What the name of an attribute's header begins with.
const PREFIX: &str = "ce_";
/// What the media type of a structured event begins with.
const STRUCTURED_PREFIX: &str = "application/cloudevents";
/// Headers of an event that has as many extensions as it may: besides them the attributes of CloudEvents, and what
/// [`check`](crate::attributes::check) does not count.
const MOST_HEADERS: usize = crate::attributes::MOST_EXTENSIONS + 16;

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

/// Reads an event from key, headers and value of a record.
///
/// # Errors
/// [`EventError`] when it is no event.
pub fn read(key: Option<&[u8]>, headers: &[(String, Bytes)], value: Option<&Bytes>) -> Result<Event, EventError> {
    let content_type = headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case("content-type"))
        .map(|(_, v)| String::from_utf8_lossy(v));
    let body = value.cloned().unwrap_or_default();
    let announced = content_type.as_deref().is_some_and(is_structured);
    let mut event = if announced {
        structured(&body, None)?
    } else if is_bare_structured(headers, &body) {
        structured(&body, content_type.as_deref())?
    } else {
        binary(headers, &body)?
    };
    crate::attributes::check(&event)?;
    take_key(&mut event, key);
    Ok(event)
}

fn is_structured(media_type: &str) -> bool {
    let start = media_type.as_bytes().get(..STRUCTURED_PREFIX.len());
    start.is_some_and(|s| s.eq_ignore_ascii_case(STRUCTURED_PREFIX.as_bytes()))
}

/// An event as JSON; `data_type` is the media type of its data where it does not say so itself.
fn structured(body: &Bytes, data_type: Option<&str>) -> Result<Event, EventError> {
    let mut event: Value = serde_json::from_slice(body).map_err(|source| EventError::Json {
        expected: "an event",
        source,
    })?;
    if let (Value::Object(fields), Some(data_type)) = (&mut event, data_type) {
        fields.entry("datacontenttype").or_insert_with(|| data_type.into());
    }
    crate::structured::read(event)
}

/// The Python SDK writes an event as JSON with the media type of its data in place of the event's; before its version 1.13
/// the event itself then lacks it.
fn is_bare_structured(headers: &[(String, Bytes)], body: &Bytes) -> bool {
    #[derive(serde::Deserialize)]
    struct Marked {
        #[serde(rename = "specversion")]
        _specversion: serde::de::IgnoredAny,
    }
    !headers.iter().any(|(name, _)| name.starts_with(PREFIX)) && serde_json::from_slice::<Marked>(body).is_ok()
}

/// The Python SDK carries the extension as the record's key alone. Where it is absent, the platform's own key is the id.
fn take_key(event: &mut Event, key: Option<&[u8]>) {
    let key = key.and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
    if !key.is_empty() && key != event.id() && event.extension(ext::PARTITION_KEY).is_none() {
        event.set_extension(ext::PARTITION_KEY, key.to_owned());
    }
}

fn binary(headers: &[(String, Bytes)], body: &Bytes) -> Result<Event, EventError> {
    // The SDK's HTTP reader does the work: same attributes, other prefix; bytes beyond ASCII travel encoded.
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value);
        let (header, text) = match name.strip_prefix(PREFIX) {
            Some(attribute) => (
                HeaderName::try_from(format!("ce-{attribute}")),
                crate::attributes::encode(&text).into_owned(),
            ),
            None if name.eq_ignore_ascii_case("content-type") => (Ok(CONTENT_TYPE), text.into_owned()),
            None => continue,
        };
        if let (Ok(header), Ok(value)) = (header, HeaderValue::try_from(text)) {
            // A map of headers that is full panics.
            let inserted = map.try_insert(header, value);
            if inserted.is_err() || map.len() > MOST_HEADERS {
                return Err(EventError::TooManyExtensions);
            }
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
    let media_type = event.datacontenttype();
    let json = media_type.is_some() && Content::of(media_type) == Content::Json;
    if json && let Some(value) = json_data(event) {
        event.set_data_unchecked(Data::Json(value));
    }
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
        let back = read(None, &headers, value.as_ref()).unwrap();
        assert_eq!((back.id(), back.subject()), ("1", Some("Grüße 100%.jpg")));
        assert_eq!(back.data(), Some(&Data::Json(serde_json::json!({"a": 1}))));
        let structured = [(
            "content-type".to_owned(),
            Bytes::from_static(b"Application/CloudEvents+JSON"),
        )];
        let json = Bytes::from(serde_json::to_vec(&event).unwrap());
        assert_eq!(read(None, &structured, Some(&json)).unwrap().id(), "1");
        assert!(read(None, &[], None).unwrap_err().to_string().contains("specversion"));
    }

    #[test]
    fn what_is_percent_encoded_stays_as_it_is() {
        let source = "https://shop.example/a%20b?q=%2Fx";
        let event = EventBuilderV10::new()
            .id("50%25")
            .source(source)
            .ty("t")
            .build()
            .unwrap();
        let (headers, value) = write(&event);
        let back = read(None, &headers, value.as_ref()).unwrap();
        assert_eq!((back.id(), back.source().to_string().as_str()), ("50%25", source));
    }

    #[test]
    fn an_event_that_is_announced_as_its_data_and_keyed_alone_is_read() {
        let plain = [("content-type".to_owned(), Bytes::from_static(b"text/plain"))];
        let own =
            br#"{"specversion":"1.0","id":"1","source":"urn:t","type":"t","datacontenttype":"text/plain","data":"ab"}"#;
        let value = Bytes::from_static(br#"{"specversion":"1.0","id":"1","source":"urn:t","type":"t","data":"ab"}"#);
        for value in [&value, &Bytes::from_static(own)] {
            let event = read(Some(b"order"), &plain, Some(value)).unwrap();
            let expected = (Some("text/plain"), Some(&Data::String("ab".into())));
            assert_eq!((event.datacontenttype(), event.data()), expected);
            assert_eq!(ext::text(&event, ext::PARTITION_KEY).unwrap(), "order");
        }
        // The id as the key says nothing.
        let event = read(Some(b"1"), &plain, Some(&value)).unwrap();
        assert!(event.extension(ext::PARTITION_KEY).is_none());
    }

    #[test]
    fn more_extensions_than_a_map_of_headers_holds_are_refused() {
        let required = ["specversion", "id", "source", "type"].map(|n| (format!("ce_{n}"), Bytes::from_static(b"1.0")));
        let headers = |count: usize| {
            let more = (0..count).map(|n| (format!("ce_x{n}"), Bytes::from_static(b"1")));
            required.iter().cloned().chain(more).collect::<Vec<_>>()
        };
        for count in [crate::attributes::MOST_EXTENSIONS + 1, 25_000] {
            let error = read(None, &headers(count), None).unwrap_err();
            assert!(matches!(error, EventError::TooManyExtensions), "{error:?}");
        }
        let event = read(None, &headers(crate::attributes::MOST_EXTENSIONS), None).unwrap();
        assert_eq!(event.iter_extensions().count(), crate::attributes::MOST_EXTENSIONS);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let structured = [(
            "content-type".to_owned(),
            Bytes::from_static(b"application/cloudevents+json"),
        )];
        for value in [
            "{",
            "[]",
            r#"{"specversion":"1.0","id":"","source":"urn:t","type":"t"}"#,
            r#"{"specversion":"9.9","id":"1","source":"urn:t","type":"t"}"#,
            r#"{"id":"1","source":"urn:t","type":"t"}"#,
        ] {
            let value = Bytes::from_static(value.as_bytes());
            assert!(read(None, &structured, Some(&value)).is_err(), "{value:?}");
            assert!(read(None, &[], Some(&value)).is_err(), "{value:?}");
        }
        let headers = ["specversion", "id", "source", "type"].map(|n| (format!("ce_{n}"), Bytes::from_static(b"9.9")));
        assert!(read(None, &headers, None).is_err());
    }
}
