//! Events of objects: what the object store tells becomes `dev.imageflow.object.created` in the log.
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_eventlog::{EventLog, LogError};
use imageflow_events::object::{object_event, removal_event};
use imageflow_events::{Event, EventError, ext};
use imageflow_objects::{ChangeKind, ListenerError, ObjectChange, ObjectInfo, ObjectListener};
use imageflow_process::trace::onward;
use imageflow_resources::{ResourceStore, Seen};
use imageflow_types::{ObjectRef, topics};
use tracing::Instrument;

use crate::events::to_record;

/// Metadata by which the platform marks what it wrote itself.
pub const METADATA_RUN: &str = "imageflow-run";
/// Keys of the platform's own business: what a run brought itself, and what steps hand on.
pub const INTERNAL: [&str; 2] = [".inputs/", ".steps/"];

/// Raises the events of an object store.
pub struct ObjectEvents {
    log: Arc<dyn EventLog>,
    resources: Arc<ResourceStore>,
}

impl ObjectEvents {
    /// Into this log. Whoever was told that a trigger is there, and then puts an object, finds that the router knows it: the
    /// events say how much these resources show.
    #[must_use]
    pub fn new(log: Arc<dyn EventLog>, resources: Arc<ResourceStore>) -> Self {
        Self { log, resources }
    }
}

#[async_trait]
impl ObjectListener for ObjectEvents {
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError> {
        self.on_told(change, None).await
    }

    async fn on_told(&self, change: ObjectChange, occurrence: Option<&str>) -> Result<(), ListenerError> {
        if let Some((object, event)) = event_of(change.info, change.kind, occurrence)? {
            tell(self.log.as_ref(), &self.resources.seen(), &object, event).await?;
        }
        Ok(())
    }
}

/// The event of an object; none where it is the platform's own business.
pub(crate) fn event_of(
    info: ObjectInfo,
    kind: ChangeKind,
    occurrence: Option<&str>,
) -> Result<Option<(ObjectRef, Event)>, EventError> {
    let run = info.metadata.get(METADATA_RUN).cloned();
    let sidecar = run.is_some() && info.key.ends_with(".json");
    if sidecar || INTERNAL.iter().any(|prefix| info.key.starts_with(prefix)) {
        return Ok(None);
    }
    let object = ObjectRef {
        bucket: info.bucket,
        key: info.key,
        etag: info.etag,
        size: info.size,
        content_type: info.content_type,
    };
    let event = match (kind, occurrence) {
        (ChangeKind::Removed, Some(occurrence)) => removal_event(&object, occurrence, run.as_deref())?,
        _ => object_event(&object, kind == ChangeKind::Created, run.as_deref())?,
    };
    Ok(Some((object, event)))
}

/// Makes an event durable. Here a trace begins: whoever put the object had no way to name one.
pub(crate) async fn tell(
    log: &dyn EventLog,
    seen: &Seen,
    object: &ObjectRef,
    mut event: Event,
) -> Result<(), LogError> {
    let span = tracing::info_span!(
        "object",
        otel.kind = "producer",
        bucket = object.bucket,
        key = object.key
    );
    event.set_extension(ext::TRACEPARENT, onward(&span, None).to_string());
    let mut record = to_record(&event);
    record.headers.push((topics::SEEN.to_owned(), seen.to_string().into()));
    log.produce(vec![record]).instrument(span).await?;
    Ok(())
}
