//! Events of objects: what the object store tells becomes `dev.imageflow.object.created` in the log.
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_eventlog::EventLog;
use imageflow_events::ext;
use imageflow_events::object::object_event;
use imageflow_objects::{ChangeKind, ListenerError, ObjectChange, ObjectListener};
use imageflow_process::trace::onward;
use imageflow_types::ObjectRef;
use tracing::Instrument;

use crate::events::to_record;

/// Metadata by which the platform marks what it wrote itself.
pub const METADATA_RUN: &str = "imageflow-run";
/// Keys of the platform's own business: what a run brought itself, and what steps hand on.
pub const INTERNAL: [&str; 2] = [".inputs/", ".steps/"];

/// Raises the events of an object store.
pub struct ObjectEvents {
    log: Arc<dyn EventLog>,
}

impl ObjectEvents {
    /// Into this log.
    #[must_use]
    pub fn new(log: Arc<dyn EventLog>) -> Self {
        Self { log }
    }
}

#[async_trait]
impl ObjectListener for ObjectEvents {
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError> {
        let info = change.info;
        let run = info.metadata.get(METADATA_RUN);
        let sidecar = run.is_some() && info.key.ends_with(".json");
        if sidecar || INTERNAL.iter().any(|prefix| info.key.starts_with(prefix)) {
            return Ok(());
        }
        let object = ObjectRef {
            bucket: info.bucket,
            key: info.key,
            etag: info.etag,
            size: info.size,
            content_type: info.content_type,
        };
        let mut event = object_event(&object, change.kind == ChangeKind::Created, run.map(String::as_str))?;
        // Here a trace begins: whoever put the object had no way to name one.
        let span = tracing::info_span!(
            "object",
            otel.kind = "producer",
            bucket = object.bucket,
            key = object.key
        );
        event.set_extension(ext::TRACEPARENT, onward(&span, None).to_string());
        self.log.produce(vec![to_record(&event)]).instrument(span).await?;
        Ok(())
    }
}
