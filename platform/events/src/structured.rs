//! Events in the JSON format: structured and batch mode, over HTTP and Kafka.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloudevents::Event;
use cloudevents::event::Data;
use serde_json::{Map, Value};

use crate::{Content, EventError};

/// The event that a JSON value is.
pub(crate) fn read(mut value: Value) -> Result<Event, EventError> {
    // The SDK goes by how a media type begins and ends: it would refuse an object as `Application/JSON`, and take the text of
    // `application/jsonl` for a JSON string. In version 0.3 data says by another attribute how it is encoded.
    let data = match &mut value {
        Value::Object(fields) if fields.get("specversion").and_then(Value::as_str) == Some("1.0") => take_data(fields)?,
        _ => None,
    };
    let mut event: Event = serde_json::from_value(value).map_err(|source| EventError::Json {
        expected: "an event",
        source,
    })?;
    if let Some(data) = data {
        event.set_data_unchecked(data);
    }
    Ok(event)
}

fn take_data(fields: &mut Map<String, Value>) -> Result<Option<Data>, EventError> {
    let fault = |name: &str, why| {
        let name = name.to_owned();
        Err(EventError::Attribute { name, why })
    };
    let content = Content::of(fields.get("datacontenttype").and_then(Value::as_str));
    let data = fields.remove("data");
    match (data, fields.remove("data_base64").filter(|value| !value.is_null())) {
        (None, None) => Ok(None),
        (Some(value), None) if content == Content::Json => Ok(Some(Data::Json(value))),
        (Some(Value::Null), None) => Ok(None),
        (Some(Value::String(text)), None) => Ok(Some(Data::String(text))),
        (Some(_), None) => fault("data", "is not a string, as it must be unless datacontenttype is JSON"),
        (None | Some(Value::Null), Some(Value::String(text))) => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Some(of_bytes(bytes, content))),
            Err(_) => fault("data_base64", "is not base64"),
        },
        (None | Some(Value::Null), Some(_)) => fault("data_base64", "is not a string"),
        (Some(_), Some(_)) => fault("data", "stands beside data_base64"),
    }
}

fn of_bytes(bytes: Vec<u8>, content: Content) -> Data {
    let json = (content == Content::Json).then(|| serde_json::from_slice(&bytes).ok());
    match json.flatten() {
        Some(value) => Data::Json(value),
        None => Data::Binary(bytes),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
    use serde_json::json;

    use super::*;
    use crate::{http as over_http, json_event, record};

    /// As a record of the log has it, of an event that came by HTTP.
    fn logged(event: &Value) -> Result<Event, EventError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(over_http::STRUCTURED));
        let event = over_http::read(&headers, &Bytes::from(event.to_string()))?.remove(0);
        let (headers, value) = record::write(&event);
        record::read(None, &headers, value.as_ref())
    }

    fn event(media_type: &str, name: &str, data: &Value) -> Value {
        json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "t", "datacontenttype": media_type, name: data})
    }

    #[test]
    fn data_comes_through_the_log_as_its_media_type_says() {
        let object = json!({"a": [1, "ü"]});
        for media_type in ["application/ld+json; charset=utf-8", "Application/JSON"] {
            let back = json_event(&logged(&event(media_type, "data", &object)).unwrap()).unwrap();
            assert_eq!((&back["data"], &back["data_base64"]), (&object, &Value::Null));
            assert_eq!(back["datacontenttype"], media_type);
            let base64 = json!(STANDARD.encode(object.to_string()));
            let back = json_event(&logged(&event(media_type, "data_base64", &base64)).unwrap()).unwrap();
            assert_eq!(back["data"], object);
        }
        let lines = "{\"a\":1}\n{\"a\":2}\n";
        for media_type in ["application/jsonl", "application/json-seq"] {
            let back = json_event(&logged(&event(media_type, "data", &json!(lines))).unwrap()).unwrap();
            assert_eq!(back["data_base64"], json!(STANDARD.encode(lines)), "to the byte");
            assert_eq!(back["datacontenttype"], media_type);
        }
    }

    #[test]
    fn data_that_is_not_what_its_media_type_says_is_refused_by_name() {
        let both = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "t", "data": "a", "data_base64": "YQ=="});
        for (value, name) in [
            (event("application/jsonl", "data", &json!({"a": 1})), "\"data\""),
            (
                event("image/png", "data_base64", &json!("not base64")),
                "\"data_base64\"",
            ),
            (event("image/png", "data_base64", &json!(5)), "\"data_base64\""),
            (both, "\"data\""),
        ] {
            let error = logged(&value).unwrap_err().to_string();
            assert!(error.contains(name), "{value}: {error}");
        }
        let none = logged(&event("image/png", "data", &Value::Null)).unwrap();
        assert!(none.data().is_none());
    }

    #[test]
    fn data_of_version_0_3_is_encoded_as_another_attribute_says() {
        let old = json!({"specversion": "0.3", "id": "1", "source": "urn:t", "type": "t",
            "datacontenttype": "image/png", "datacontentencoding": "base64", "data": "YQ=="});
        assert_eq!(logged(&old).unwrap().data(), Some(&Data::Binary(b"a".to_vec())));
    }
}
