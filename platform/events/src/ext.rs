//! Extensions and event types of the platform, and what outside events may not say.
use cloudevents::event::ExtensionValue;
use cloudevents::{AttributesReader, Event};

/// The run an event belongs to.
pub const RUN: &str = "imageflowrun";
/// The step or fused steps, joined with `+`.
pub const STEP: &str = "imageflowstep";
/// Number of the attempt, from 1.
pub const ATTEMPT: &str = "imageflowattempt";
/// Headers that the GET of `dataref` must carry: base64url of [`InputTarget`](crate::invocation::InputTarget).
pub const INPUT: &str = "imageflowinput";
/// Where the result goes: base64url of [`OutputTarget`](crate::invocation::OutputTarget).
pub const OUTPUT: &str = "imageflowoutput";
/// Marks events of objects that the platform wrote.
pub const WRITTEN_BY: &str = "imageflowwrittenby";
/// URL of the data when it is not in the event (claim check).
pub const DATAREF: &str = "dataref";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Key that keeps events in order.
pub const PARTITION_KEY: &str = "partitionkey";

/// Where the delivery of a dead letter failed, as Knative says it.
pub const KNATIVE_ERROR_DEST: &str = "knativeerrordest";
/// The HTTP status with which it failed.
pub const KNATIVE_ERROR_CODE: &str = "knativeerrorcode";
/// Why it failed, in short.
pub const KNATIVE_ERROR_DATA: &str = "knativeerrordata";

/// Prefix of extensions that only the platform sets.
pub const PREFIX: &str = "imageflow";
/// Prefix of event types that only the platform raises.
pub const TYPE_PREFIX: &str = "dev.imageflow.";

/// An object was created in a bucket.
pub const TYPE_OBJECT_CREATED: &str = "dev.imageflow.object.created";
/// An object was removed from a bucket.
pub const TYPE_OBJECT_REMOVED: &str = "dev.imageflow.object.removed";
/// A step is to be done.
pub const TYPE_STEP_REQUESTED: &str = "dev.imageflow.step.requested";
/// A step was done.
pub const TYPE_STEP_COMPLETED: &str = "dev.imageflow.step.completed";
/// A step waits in the topic of its function.
pub const TYPE_WORK: &str = "dev.imageflow.work";
/// Work could not be done.
pub const TYPE_DEAD_LETTER: &str = "dev.imageflow.dead-letter";
/// A dead letter was sent again.
pub const TYPE_LETTER_REPLAYED: &str = "dev.imageflow.dead-letter.replayed";

/// What was wrong with an outside event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// It claims a type of ours.
    #[error(
        "events of type \"{0}\" are raised by the platform only: use a type that does not start with {TYPE_PREFIX}"
    )]
    ReservedType(String),
    /// It asks us to fetch from somewhere.
    #[error("a dataref is not taken from outside: put the data into a bucket and refer to bucket and key in the data")]
    ForeignDataRef,
}

/// Makes an event from outside safe: strips our extensions, refuses our types and foreign references.
/// Returns the names of what was stripped.
///
/// # Errors
/// [`Untrusted`] when it must be refused as a whole.
pub fn sanitise(event: &mut Event) -> Result<Vec<String>, Untrusted> {
    if event.ty().to_ascii_lowercase().starts_with(TYPE_PREFIX) {
        return Err(Untrusted::ReservedType(event.ty().to_owned()));
    }
    if event.extension(DATAREF).is_some() {
        return Err(Untrusted::ForeignDataRef);
    }
    let forged: Vec<String> = event
        .iter_extensions()
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.to_ascii_lowercase().starts_with(PREFIX))
        .collect();
    for name in &forged {
        event.remove_extension(name);
    }
    Ok(forged)
}

/// An extension as text.
#[must_use]
pub fn text(event: &Event, name: &str) -> Option<String> {
    event.extension(name).map(|value| match value {
        ExtensionValue::String(text) => text.clone(),
        ExtensionValue::Boolean(flag) => flag.to_string(),
        ExtensionValue::Integer(number) => number.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudevents::{EventBuilder, EventBuilderV10};

    fn event(ty: &str) -> Event {
        EventBuilderV10::new()
            .id("1")
            .source("urn:test")
            .ty(ty)
            .build()
            .unwrap()
    }

    #[test]
    fn forged_extensions_are_stripped_and_reserved_types_refused() {
        let mut forged = event("com.example.upload");
        forged.set_extension("imageflowrun", "run-1");
        forged.set_extension("colour", "red");
        assert_eq!(sanitise(&mut forged).unwrap(), ["imageflowrun"]);
        assert!(forged.extension("imageflowrun").is_none() && forged.extension("colour").is_some());
        let refused = sanitise(&mut event("dev.imageflow.object.created")).unwrap_err();
        assert!(matches!(refused, Untrusted::ReservedType(_)));
        let mut fetch = event("com.example.upload");
        fetch.set_extension("dataref", "http://127.0.0.1:1/");
        assert_eq!(sanitise(&mut fetch).unwrap_err(), Untrusted::ForeignDataRef);
    }
}
