//! Objects whose event was never raised: the put was durable, and the platform died before its event was. Such a put was not
//! acknowledged, and an external store may lose notifications. Run ids are derived, so telling an object twice makes no second run.
use std::collections::BTreeSet;

use imageflow_events::attributes;
use imageflow_events::object::object_event;
use imageflow_types::{ObjectRef, Problem, RunId};

use crate::events::to_record;
use crate::listener::{INTERNAL, METADATA_RUN};
use crate::problem::object_problem;
use crate::state::{Gateway, log_problem};

/// Objects of one page.
const PAGE: usize = 1000;

/// Raises the events of all objects that a trigger wants and no run knows. Returns how many.
///
/// # Errors
/// When the object store or the log fails; the next reconcile goes on.
pub async fn reconcile(gateway: &Gateway) -> Result<usize, Problem> {
    let catalog = gateway.deps.resources.snapshot();
    let buckets: BTreeSet<&str> = catalog
        .triggers
        .values()
        .flat_map(|t| t.spec.buckets.iter().map(String::as_str))
        .collect();
    let mut raised = 0;
    for bucket in buckets {
        let mut after: Option<String> = None;
        loop {
            let page = gateway.deps.objects.list(bucket, "", after.as_deref(), PAGE).await;
            let page = page.map_err(|e| object_problem(&e))?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for info in page {
                if INTERNAL.iter().any(|prefix| info.key.starts_with(prefix)) {
                    continue;
                }
                let object = ObjectRef {
                    bucket: info.bucket,
                    key: info.key,
                    etag: info.etag,
                    size: info.size,
                    content_type: None,
                };
                if !wanted(gateway, &catalog, &object)? {
                    continue;
                }
                raised += usize::from(raise(gateway, object).await?);
            }
        }
    }
    Ok(raised)
}

/// Whether a trigger matches the object's event and no run of it is known.
fn wanted(gateway: &Gateway, catalog: &imageflow_resources::Catalog, object: &ObjectRef) -> Result<bool, Problem> {
    let event = object_event(object, true, None)
        .map_err(|e| Problem::new(imageflow_types::ErrorCode::Internal, e.to_string()))?;
    Ok(catalog.triggers.iter().any(|(name, trigger)| {
        let run = RunId::derive(&["trigger", name.as_str(), &object.bucket, &object.key, &object.etag]);
        trigger.spec.matches(|attribute| attributes::get(&event, attribute)) && gateway.runs.get(&run).is_none()
    }))
}

async fn raise(gateway: &Gateway, object: ObjectRef) -> Result<bool, Problem> {
    gateway.check_room().await?;
    let info = gateway
        .deps
        .objects
        .head(&object.bucket, &object.key)
        .await
        .map_err(|e| object_problem(&e))?;
    let Some(info) = info.filter(|i| i.etag == object.etag) else {
        return Ok(false);
    };
    // What the platform wrote itself starts nothing, unless a trigger wants it: then its event was raised by the put.
    if info.metadata.contains_key(METADATA_RUN) {
        return Ok(false);
    }
    let object = ObjectRef {
        content_type: info.content_type,
        ..object
    };
    let event = object_event(&object, true, None)
        .map_err(|e| Problem::new(imageflow_types::ErrorCode::Internal, e.to_string()))?;
    gateway
        .deps
        .log
        .produce(vec![to_record(&event)])
        .await
        .map_err(|e| log_problem(&e))?;
    tracing::info!(
        bucket = object.bucket,
        key = object.key,
        "the event of an object was raised by the reconcile"
    );
    Ok(true)
}
