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
    event(object, ty, &object.etag, written_by)
}

/// The event of an object whose removal another server told. Servers tell no ETag of what is gone, or for every removal the
/// same one, so the id is derived from what tells this removal of the key from its others.
///
/// # Errors
/// As [`object_event`].
pub fn removal_event(object: &ObjectRef, occurrence: &str, written_by: Option<&str>) -> Result<Event, EventError> {
    event(object, ext::TYPE_OBJECT_REMOVED, occurrence, written_by)
}

fn event(object: &ObjectRef, ty: &str, which: &str, written_by: Option<&str>) -> Result<Event, EventError> {
    let mut builder = EventBuilderV10::new()
        .id(&digest(&["object-event", ty, &object.bucket, &object.key, which])[..32])
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

    fn object() -> ObjectRef {
        ObjectRef {
            bucket: "raw-images".into(),
            key: "a b.jpg".into(),
            etag: "e1".into(),
            size: 3,
            content_type: None,
        }
    }

    #[test]
    fn a_removal_is_the_same_event_whenever_it_is_told_and_no_other() {
        let gone = ObjectRef {
            etag: String::new(),
            ..object()
        };
        let first = removal_event(&gone, "1", None).unwrap();
        assert_eq!(first.ty(), ext::TYPE_OBJECT_REMOVED);
        assert_eq!(first.id(), removal_event(&gone, "1", None).unwrap().id());
        assert_ne!(first.id(), removal_event(&gone, "2", None).unwrap().id());
        assert_eq!(first.subject(), Some("raw-images/a b.jpg"));
    }

    #[test]
    fn the_same_object_makes_the_same_event() {
        let object = object();
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
