//! CloudEvents over HTTP: binary, structured and batch mode.
use std::borrow::Cow;

use bytes::Bytes;
use cloudevents::binding::http::to_event;
use cloudevents::{AttributesReader, Event};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::{EventError, MAX_EVENT_BYTES, attributes, data_bytes};

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
                .map(|value| {
                    serde_json::from_value(value).map_err(|source| EventError::Json {
                        expected: "an event",
                        source,
                    })
                })
                .collect::<Result<Vec<Event>, _>>()?
        }
        Mode::Structured => {
            let event = serde_json::from_slice(body).map_err(|source| EventError::Json {
                expected: "an event",
                source,
            })?;
            vec![event]
        }
        Mode::Binary => {
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
            let mut event = to_event(headers, body.to_vec()).map_err(EventError::Invalid)?;
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
    Some(attributes::decode(text))
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
