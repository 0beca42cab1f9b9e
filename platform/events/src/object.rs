//! Events about objects, and the object that an event refers to.
use cloudevents::{AttributesReader, Event, EventBuilder, EventBuilderV10};
use imageflow_types::names::digest;
use imageflow_types::work::ObjectRef;

use crate::{EventError, ext, json_data};

/// The event of a created (or removed) object. Its id is derived from bucket, key and ETag, so that telling it twice is one event.
/// `written_by` is the run that wrote the object, when the platform itself did.
///
/// # Errors
/// [`EventError::Attribute`] when the names cannot stand in an event.
pub fn object_event(object: &ObjectRef, created: bool, written_by: Option<&str>) -> Result<Event, EventError> {
    let ty = if created {
        ext::TYPE_OBJECT_CREATED
    } else {
        ext::TYPE_OBJECT_REMOVED
    };
    let mut builder = EventBuilderV10::new()
        .id(&digest(&["object-event", ty, &object.bucket, &object.key, &object.etag])[..32])
        .source(format!("/imageflow/buckets/{}", object.bucket))
        .ty(ty)
        .subject(format!("{}/{}", object.bucket, object.key))
        .extension(ext::PARTITION_KEY, format!("{}/{}", object.bucket, object.key));
    if let Some(run) = written_by {
        builder = builder.extension(ext::WRITTEN_BY, run.to_owned());
    }
    let data = serde_json::to_value(object).unwrap_or_default();
    builder
        .data("application/json", data)
        .build()
        .map_err(|_| EventError::Attribute {
            name: "subject".into(),
            why: "cannot stand in an event",
        })
}

/// The object that an event refers to: `bucket` and `key` (and `etag`) in its JSON data.
#[must_use]
pub fn referred_object(event: &Event) -> Option<(String, String, Option<String>)> {
    let data = json_data(event)?;
    let text = |name: &str| data.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    Some((text("bucket")?, text("key")?, text("etag")))
}

/// The pinned object of an event that the platform itself raised.
#[must_use]
pub fn own_object(event: &Event) -> Option<ObjectRef> {
    if event.ty() != ext::TYPE_OBJECT_CREATED {
        return None;
    }
    serde_json::from_value(json_data(event)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_object_makes_the_same_event() {
        let object = ObjectRef {
            bucket: "raw-images".into(),
            key: "a b.jpg".into(),
            etag: "e1".into(),
            size: 3,
            content_type: None,
        };
        let event = object_event(&object, true, None).unwrap();
        assert_eq!(event.id(), object_event(&object, true, Some("run-1")).unwrap().id());
        assert_eq!(own_object(&event).unwrap(), object);
        let other = ObjectRef {
            etag: "e2".into(),
            ..object
        };
        assert_ne!(event.id(), object_event(&other, true, None).unwrap().id());
    }
}
