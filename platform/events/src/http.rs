//! CloudEvents over HTTP: binary, structured and batch mode.
use std::borrow::Cow;

use bytes::Bytes;
use cloudevents::binding::http::to_event;
use cloudevents::{AttributesReader, Event};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::{EventError, MAX_EVENT_BYTES, attributes, data_bytes, structured};

/// Media type of one event as JSON.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// Media type of several events as a JSON array.
pub const BATCH: &str = "application/cloudevents-batch+json";
/// Most events of one batch.
pub const MAX_BATCH: usize = 1000;

/// How a request carries events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Attributes in `ce-` headers.
    Binary,
    /// One event as JSON.
    Structured,
    /// Several events as JSON.
    Batch,
}

/// How a request carries events; `None` when it does not.
#[must_use]
pub fn mode(headers: &HeaderMap) -> Option<Mode> {
    let media = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let essence = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        BATCH => Some(Mode::Batch),
        STRUCTURED => Some(Mode::Structured),
        _ if headers.contains_key("ce-specversion") => Some(Mode::Binary),
        _ => None,
    }
}

/// Reads the events of a request.
///
/// # Errors
/// [`EventError`] with the attribute or place at fault. A batch is taken whole or not at all.
pub fn read(headers: &HeaderMap, body: &Bytes) -> Result<Vec<Event>, EventError> {
    let events = match mode(headers).ok_or(EventError::NoEvent)? {
        Mode::Batch => {
            let values: Vec<serde_json::Value> = serde_json::from_slice(body).map_err(|source| EventError::Json {
                expected: "a JSON array of events",
                source,
            })?;
            if values.len() > MAX_BATCH {
                return Err(EventError::Attribute {
                    name: "batch".into(),
                    why: "has more than 1000 events",
                });
            }
            values
                .into_iter()
                .map(structured::read)
                .collect::<Result<Vec<Event>, _>>()?
        }
        Mode::Structured => {
            let event = serde_json::from_slice(body).map_err(|source| EventError::Json {
                expected: "an event",
                source,
            })?;
            vec![structured::read(event)?]
        }
        Mode::Binary => {
            let headers = unquoted(headers);
            // The SDK would meet these with a panic or a vague word.
            for name in ["ce-id", "ce-source", "ce-type"] {
                let value = headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
                if value.is_empty() {
                    return Err(EventError::Attribute {
                        name: name[3..].to_owned(),
                        why: "is missing or empty",
                    });
                }
            }
            let mut event = to_event(headers.as_ref(), body.to_vec()).map_err(EventError::Invalid)?;
            attributes::decode_percent(&mut event);
            vec![event]
        }
    };
    for event in &events {
        attributes::check(event)?;
        let bytes = data_bytes(event).len();
        if bytes > MAX_EVENT_BYTES {
            return Err(EventError::TooLarge {
                bytes,
                most: MAX_EVENT_BYTES,
            });
        }
    }
    Ok(events)
}

/// Headers whose attributes are without double quotes: the SDK would take these for a part of what it reads.
fn unquoted(headers: &HeaderMap) -> Cow<'_, HeaderMap> {
    let is_quoted = |name: &HeaderName, value: &HeaderValue| {
        name.as_str().starts_with("ce-") && value.as_bytes().starts_with(b"\"")
    };
    if !headers.iter().any(|(name, value)| is_quoted(name, value)) {
        return Cow::Borrowed(headers);
    }
    let mut headers = headers.clone();
    for (name, value) in &mut headers {
        let plain = match value.to_str() {
            Ok(text) if is_quoted(name, value) => HeaderValue::try_from(attributes::unquote(text).as_ref()),
            _ => continue,
        };
        if let Ok(plain) = plain {
            *value = plain;
        }
    }
    Cow::Owned(headers)
}

/// Writes an event in binary mode.
///
/// # Errors
/// [`EventError::Attribute`] when an extension's name is no header name.
pub fn write_binary(event: &Event) -> Result<(HeaderMap, Bytes), EventError> {
    let mut headers = HeaderMap::new();
    headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
    for (name, value) in event.iter() {
        let text = value.to_string();
        let (header, text) = match name {
            "specversion" => continue,
            "datacontenttype" => (CONTENT_TYPE, text),
            _ => {
                let header = HeaderName::try_from(format!("ce-{name}")).map_err(|_| EventError::Attribute {
                    name: name.to_owned(),
                    why: "is not a header name",
                })?;
                (header, attributes::encode(&text).into_owned())
            }
        };
        let value = HeaderValue::try_from(text).map_err(|_| EventError::Attribute {
            name: name.to_owned(),
            why: "is not a header value",
        })?;
        headers.insert(header, value);
    }
    if !headers.contains_key(CONTENT_TYPE) && event.data().is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    Ok((headers, data_bytes(event).into()))
}

/// The type of a request or answer in binary mode, when what every event must have is there. Whoever takes events of one
/// type only reads what it needs of them by [`attribute`], and is spared the event as a whole.
#[must_use]
pub fn binary_type(headers: &HeaderMap) -> Option<&str> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
    };
    let whole = mode(headers) == Some(Mode::Binary)
        && text("ce-specversion") == Some("1.0")
        && text("ce-id").is_some()
        && text("ce-source").is_some();
    text("ce-type").filter(|_| whole)
}

/// One attribute or extension of a request in binary mode, by the name of its header (`ce-id`).
#[must_use]
pub fn attribute<'a>(headers: &'a HeaderMap, header: &str) -> Option<Cow<'a, str>> {
    let text = headers.get(header)?.to_str().ok()?;
    Some(attributes::decode_header(text))
}

/// Headers of an event in binary mode, of its attributes by the names of their headers.
///
/// # Errors
/// [`EventError::Attribute`] when the media type is no header value.
pub fn binary_headers<'a>(
    content_type: &str,
    attributes: impl IntoIterator<Item = (&'static str, &'a str)>,
) -> Result<HeaderMap, EventError> {
    let fault = |name: &str| EventError::Attribute {
        name: name.to_owned(),
        why: "is not a header value",
    };
    let attributes = attributes.into_iter();
    let mut headers = HeaderMap::with_capacity(attributes.size_hint().0 + 2);
    headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
    let media = HeaderValue::try_from(content_type).map_err(|_| fault("datacontenttype"))?;
    headers.insert(CONTENT_TYPE, media);
    for (name, text) in attributes {
        let value = HeaderValue::try_from(attributes::encode(text).as_ref()).map_err(|_| fault(name))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

/// Writes an event in structured mode.
///
/// # Errors
/// [`EventError::Json`] when the data cannot be written as JSON.
pub fn write_structured(event: &Event) -> Result<(HeaderMap, Bytes), EventError> {
    let body = serde_json::to_vec(event).map_err(|source| EventError::Json {
        expected: "an event as JSON",
        source,
    })?;
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/cloudevents+json; charset=utf-8"),
    );
    Ok((headers, body.into()))
}

/// The key that keeps an event's order: its `partitionkey`, else its id.
#[must_use]
pub fn partition_key(event: &Event) -> String {
    crate::ext::text(event, crate::ext::PARTITION_KEY).unwrap_or_else(|| event.id().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudevents::{EventBuilder, EventBuilderV10};

    fn sample() -> Event {
        EventBuilderV10::new()
            .id("e 1")
            .source("urn:test:ü")
            .ty("com.example.upload")
            .subject("raw-images/Grüße 1.jpg")
            .extension("colour", "red \"x\"")
            .data("application/json", serde_json::json!({"a": 1}))
            .build()
            .unwrap()
    }

    #[test]
    fn an_event_reads_back_from_both_modes() {
        let event = sample();
        for written in [write_binary(&event).unwrap(), write_structured(&event).unwrap()] {
            let back = read(&written.0, &written.1).unwrap().remove(0);
            assert_eq!(back.id(), "e 1");
            assert_eq!(back.subject(), Some("raw-images/Grüße 1.jpg"));
            assert_eq!(crate::ext::text(&back, "colour").unwrap(), "red \"x\"");
            assert_eq!(crate::json_data(&back), Some(serde_json::json!({"a": 1})));
        }
    }

    #[test]
    fn headers_written_by_hand_are_those_of_an_event_and_read_back_by_hand() {
        let attributes = [
            ("ce-id", "e 1"),
            ("ce-source", "urn:test"),
            ("ce-type", "com.example.upload"),
        ];
        let subject = [("ce-subject", "raw-images/Grüße 1.jpg")];
        let headers = binary_headers("application/json", attributes.into_iter().chain(subject)).unwrap();
        let event = read(&headers, &Bytes::from_static(b"{}")).unwrap().remove(0);
        assert_eq!((event.id(), event.ty()), ("e 1", "com.example.upload"));
        assert_eq!(event.subject(), Some("raw-images/Grüße 1.jpg"));
        assert_eq!(binary_type(&headers), Some("com.example.upload"));
        assert_eq!(attribute(&headers, "ce-subject").unwrap(), "raw-images/Grüße 1.jpg");
        for required in ["ce-specversion", "ce-id", "ce-source", "ce-type"] {
            let mut torn = headers.clone();
            torn.remove(required);
            assert_eq!(binary_type(&torn), None, "{required}");
        }
        assert!(binary_headers("a\nb", attributes).is_err());
    }

    #[test]
    fn values_in_double_quotes_are_read_as_what_they_quote() {
        let time = "2026-11-24T12:00:00Z";
        let headers = [
            ("ce-specversion", r#""1.0""#),
            ("ce-id", r#""a \"b\" \\ c%20d""#),
            ("ce-source", r#""urn:test:%C3%BC""#),
            ("ce-type", r#""com.example.upload""#),
            ("ce-time", r#""2026-11-24T12:00:00Z""#),
            ("ce-dataschema", r#""https://schemas.example/a""#),
            ("ce-colour", r#""%22red%22""#),
            ("ce-half", r#""red"#),
            ("ce-two", r#""a" "b""#),
            ("ce-open", r#""a\""#),
        ];
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let event = read(&headers, &Bytes::new()).unwrap().remove(0);
        assert_eq!((event.id(), event.ty()), (r#"a "b" \ c d"#, "com.example.upload"));
        assert_eq!(event.source(), "urn:test:%C3%BC");
        assert_eq!(event.time().map(|t| t.to_rfc3339()), Some(time.replace('Z', "+00:00")));
        assert_eq!(event.dataschema().unwrap().as_str(), "https://schemas.example/a");
        let extension = |name: &str| crate::ext::text(&event, name).unwrap();
        assert_eq!(extension("colour"), r#""red""#, "once");
        assert_eq!(
            (extension("half"), extension("two")),
            (r#""red"#.into(), r#""a" "b""#.into())
        );
        assert_eq!(extension("open"), r#""a\""#);
        assert_eq!(attribute(&headers, "ce-id").unwrap(), event.id());
        assert_eq!(attribute(&headers, "ce-colour").unwrap(), r#""red""#);
        let mut nothing = headers.clone();
        nothing.insert("ce-id", HeaderValue::from_static("\"\""));
        assert!(
            read(&nothing, &Bytes::new())
                .unwrap_err()
                .to_string()
                .contains("\"id\"")
        );
    }

    fn structured_of(extensions: impl IntoIterator<Item = (String, String)>) -> Result<Event, EventError> {
        let mut event = serde_json::json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "t"});
        for (name, value) in extensions {
            event[name] = value.into();
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED));
        Ok(read(&headers, &Bytes::from(event.to_string()))?.remove(0))
    }

    #[test]
    fn an_event_has_no_more_extensions_than_its_record_may() {
        let extensions = |count: usize| (0..count).map(|n| (format!("x{n}"), "1".to_owned()));
        let error = structured_of(extensions(25_000)).unwrap_err().to_string();
        assert!(error.contains("more than 100 extensions"), "{error}");
        assert!(structured_of(extensions(attributes::MOST_EXTENSIONS + 1)).is_err());
        // The gateway adds the trace to what has none, and the router reads the same event.
        let mut event = structured_of(extensions(attributes::MOST_EXTENSIONS)).unwrap();
        event.set_extension(crate::ext::TRACEPARENT, "00-a-b-01");
        let (headers, value) = crate::record::write(&event);
        assert!(crate::record::read(None, &headers, value.as_ref()).is_ok());
    }

    #[test]
    fn names_and_values_of_extensions_have_bounds() {
        let longest = "x".repeat(attributes::LONGEST_NAME);
        assert!(structured_of([(longest.clone(), "1".to_owned())]).is_ok());
        let debezium = "iodebeziumtxdatacollectionorder";
        assert!(structured_of([(debezium.to_owned(), "1".to_owned())]).is_ok());
        let error = structured_of([(format!("{longest}x"), "1".to_owned())]).unwrap_err();
        assert!(error.to_string().contains("64 characters"), "{error}");
        let large = |count: usize| (0..count).map(|n| (format!("x{n}"), "1".repeat(8 * 1024)));
        assert!(structured_of(large(7)).is_ok());
        let error = structured_of(large(8)).unwrap_err();
        assert!(
            matches!(error, EventError::AttributesTooLarge { bytes } if bytes > 65_536),
            "{error}"
        );
    }

    #[test]
    fn a_batch_is_taken_whole_or_not_at_all() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(BATCH));
        let good = serde_json::json!([sample(), sample()]).to_string();
        assert_eq!(read(&headers, &good.into()).unwrap().len(), 2);
        let bad = serde_json::json!([sample(), {"specversion":"1.0","id":"2","type":"x"}]).to_string();
        assert!(read(&headers, &bad.into()).unwrap_err().to_string().contains("source"));
    }

    #[test]
    fn malformed_events_name_the_attribute() {
        let (mut headers, body) = write_binary(&sample()).unwrap();
        headers.remove("ce-id");
        assert!(read(&headers, &body).unwrap_err().to_string().contains("\"id\""));
        headers.insert("ce-id", HeaderValue::from_static("1"));
        headers.insert("ce-specversion", HeaderValue::from_static("9.9"));
        assert!(read(&headers, &body).is_err());
        assert!(matches!(read(&HeaderMap::new(), &body), Err(EventError::NoEvent)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED));
        assert!(matches!(
            read(&headers, &Bytes::from_static(b"{")),
            Err(EventError::Json { .. })
        ));
    }
}
