//! The CloudEvent as ImageFlow uses it: HTTP and Kafka protocol bindings on the CloudEvents SDK, our extensions,
//! W3C trace context, and what the platform says to a function pod. Light, because every pod links it.

pub mod attributes;
mod content;
pub mod ext;
pub mod http;
pub mod invocation;
pub mod object;
pub mod record;
mod structured;
pub mod trace;
pub mod work;

pub use cloudevents::{AttributesReader, AttributesWriter, Data, Event, EventBuilder, EventBuilderV10};
pub use content::Content;

/// Most bytes of one event, attributes and data (the size of a Kafka record by default).
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// Most bytes of data that an event carries through the platform: its run holds them as long as it is known.
pub const MAX_INLINE_BYTES: usize = 64 * 1024;

/// Why something is not a CloudEvent that we take.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The SDK refused it.
    #[error("not a valid CloudEvent: {0}")]
    Invalid(#[source] cloudevents::message::Error),
    /// A header or attribute breaks a rule.
    #[error("not a valid CloudEvent: attribute \"{name}\" {why}")]
    Attribute {
        /// The attribute.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// Over [`attributes::MOST_EXTENSIONS`].
    #[error(
        "not a valid CloudEvent: it has more than {} extensions",
        attributes::MOST_EXTENSIONS
    )]
    TooManyExtensions,
    /// Over [`attributes::MOST_BYTES`].
    #[error(
        "not a valid CloudEvent: its attributes and extensions have {bytes} bytes, names and values together, more than {}",
        attributes::MOST_BYTES
    )]
    AttributesTooLarge {
        /// Their size.
        bytes: usize,
    },
    /// The body is not the JSON that it should be.
    #[error("not a valid CloudEvent: the body is not {expected}: {source}")]
    Json {
        /// What it should be.
        expected: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// Neither `ce-` headers nor a CloudEvents media type.
    #[error(
        "not a CloudEvent: send ce-specversion, ce-id, ce-source and ce-type headers (binary), or content-type application/cloudevents+json (structured) or application/cloudevents-batch+json (batch)"
    )]
    NoEvent,
    /// Over [`MAX_EVENT_BYTES`], or where it is to be kept over [`MAX_INLINE_BYTES`].
    #[error(
        "the event's data has {bytes} bytes, more than {most}: put them into a bucket and refer to them by bucket and key"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
}

/// The data of an event as JSON, when it is JSON.
#[must_use]
pub fn json_data(event: &Event) -> Option<serde_json::Value> {
    match event.data()? {
        Data::Json(value) => Some(value.clone()),
        Data::Binary(bytes) => serde_json::from_slice(bytes).ok(),
        Data::String(text) => serde_json::from_str(text).ok(),
    }
}

/// An event in the JSON format. Data that came as bytes (in binary mode it always does) stands under `data` when it is JSON
/// or text, as its media type says; without one it is JSON. All else stays base64.
///
/// # Errors
/// When the event cannot be written as JSON.
pub fn json_event(event: &Event) -> Result<serde_json::Value, serde_json::Error> {
    let mut value = serde_json::to_value(event)?;
    let Some(Data::Binary(bytes)) = event.data() else {
        return Ok(value);
    };
    let data = match Content::of(event.datacontenttype()) {
        Content::Json => serde_json::from_slice(bytes).ok(),
        Content::Text => String::from_utf8(bytes.clone()).ok().map(serde_json::Value::String),
        Content::Bytes => None,
    };
    if let (Some(fields), Some(data)) = (value.as_object_mut(), data) {
        fields.remove("data_base64");
        fields.insert("data".to_owned(), data);
    }
    Ok(value)
}

/// The data of an event as bytes; JSON is written out.
#[must_use]
pub fn data_bytes(event: &Event) -> Vec<u8> {
    match event.data() {
        None => Vec::new(),
        Some(Data::Binary(bytes)) => bytes.clone(),
        Some(Data::String(text)) => text.clone().into_bytes(),
        Some(Data::Json(value)) => value.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_binary_mode_is_json_or_text_by_its_media_type_and_all_else_stays_as_it_came() {
        let of = |media: Option<&str>, bytes: &[u8]| {
            let mut event = EventBuilderV10::new().id("1").source("/s").ty("t").build().unwrap();
            event.set_data_unchecked(bytes.to_vec());
            event.set_datacontenttype(media.map(str::to_owned));
            let value = json_event(&event).unwrap();
            (value["data"].clone(), value["data_base64"].clone())
        };
        use serde_json::{Value::Null, json};
        assert_eq!(of(None, b"{\"n\":1}"), (json!({"n": 1}), Null));
        assert_eq!(
            of(Some("application/ld+json; charset=utf-8"), b"[1]"),
            (json!([1]), Null)
        );
        assert_eq!(of(Some("text/plain"), b"5"), (json!("5"), Null));
        assert_eq!(of(Some("image/png"), b"5"), (Null, json!("NQ==")));
        assert_eq!(of(Some("application/json"), b"{"), (Null, json!("ew==")));
    }
}
