//! Objects whose event was never raised: the put was durable, and the platform died before its event was. Such a put was not
//! acknowledged, and an external store may lose notifications. Run ids are derived, so telling an object twice makes no second run.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use imageflow_eventlog::{EventLog, FollowEvent, LogError, NewRecord, Start, TopicSpec};
use imageflow_events::object::object_event;
use imageflow_events::{AttributesReader, Event, attributes};
use imageflow_resources::Catalog;
use imageflow_types::{ErrorCode, ObjectRef, Problem, RunId, topics};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::events::to_record;
use crate::listener::{INTERNAL, METADATA_RUN};
use crate::problem::object_problem;
use crate::state::{Gateway, log_problem};

/// Objects of one page.
const PAGE: usize = 1000;
/// The clocks of store and platform may differ so much, and an event may take so long after its object.
const SLACK_MS: i64 = 5 * 60 * 1000;

/// Up to when the objects of a bucket are told: older ones are not looked at again. Without it a new trigger would be told every
/// object that was ever put, and a run forgotten long ago would be made anew.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    schema: u32,
    told_ms: i64,
}

/// Finds what was not told, bucket by bucket.
pub struct Reconciler {
    marks: HashMap<String, i64>,
    /// Events raised since the mark: one whose run was refused would be raised, and refused, at every pass.
    told: HashSet<String>,
}

impl Reconciler {
    /// Reads how far earlier ones came.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn open(log: &Arc<dyn EventLog>) -> Result<Self, LogError> {
        log.ensure_topics(&[TopicSpec::compacted(topics::MARKS, 1)]).await?;
        let mut marks = HashMap::new();
        let mut follower = log.follow(topics::MARKS, Start::Earliest).await?;
        while let FollowEvent::Records(records) = follower.next().await? {
            for record in records {
                let bucket = record.key.as_deref().map(String::from_utf8_lossy);
                let mark = record.value.as_deref().map(serde_json::from_slice::<Mark>);
                if let (Some(bucket), Some(Ok(mark))) = (bucket, mark) {
                    marks.insert(bucket.into_owned(), mark.told_ms);
                }
            }
        }
        Ok(Self {
            marks,
            told: HashSet::new(),
        })
    }

    /// Raises the events of the objects that a trigger wants and no run knows. Returns how many.
    ///
    /// # Errors
    /// When the object store or the log fails; the next pass goes on.
    pub async fn run(&mut self, gateway: &Gateway) -> Result<usize, Problem> {
        let catalog = gateway.deps.resources.snapshot();
        let buckets: BTreeSet<&String> = catalog.triggers.values().flat_map(|t| &t.spec.buckets).collect();
        let (mut raised, mut told) = (0, HashSet::new());
        for bucket in buckets {
            let begun_ms = gateway.now_ms();
            let mark = self.marks.get(bucket).copied().unwrap_or(gateway.config.started_ms);
            raised += self
                .bucket(gateway, &catalog, bucket, mark - SLACK_MS, &mut told)
                .await?;
            let value = json!(Mark {
                schema: 1,
                told_ms: begun_ms
            })
            .to_string();
            let record = NewRecord::new(topics::MARKS).key(bucket.clone()).value(value);
            gateway
                .deps
                .log
                .produce(vec![record])
                .await
                .map_err(|e| log_problem(&e))?;
            self.marks.insert(bucket.clone(), begun_ms);
        }
        self.told = told;
        Ok(raised)
    }

    async fn bucket(
        &self,
        gateway: &Gateway,
        catalog: &Catalog,
        bucket: &str,
        since_ms: i64,
        told: &mut HashSet<String>,
    ) -> Result<usize, Problem> {
        let mut raised = 0;
        let mut after: Option<String> = None;
        loop {
            let page = gateway.deps.objects.list(bucket, "", after.as_deref(), PAGE).await;
            let page = page.map_err(|e| object_problem(&e))?;
            let Some(last) = page.last() else {
                return Ok(raised);
            };
            after = Some(last.key.clone());
            for info in page {
                let internal = INTERNAL.iter().any(|prefix| info.key.starts_with(prefix));
                if internal || info.last_modified_ms < since_ms {
                    continue;
                }
                let object = ObjectRef {
                    bucket: info.bucket,
                    key: info.key,
                    etag: info.etag,
                    size: info.size,
                    content_type: None,
                };
                let event = event_of(&object)?;
                if !wanted(gateway, catalog, &object, &event) {
                    continue;
                }
                if self.told.contains(event.id()) || raise(gateway, object).await? {
                    raised += usize::from(!self.told.contains(event.id()));
                    told.insert(event.id().to_owned());
                }
            }
        }
    }
}

fn event_of(object: &ObjectRef) -> Result<Event, Problem> {
    object_event(object, true, None).map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))
}

/// Whether a trigger matches the object's event and no run of it is known.
fn wanted(gateway: &Gateway, catalog: &Catalog, object: &ObjectRef, event: &Event) -> bool {
    catalog.triggers.iter().any(|(name, trigger)| {
        let run = RunId::derive(&["trigger", name.as_str(), &object.bucket, &object.key, &object.etag]);
        trigger.spec.matches(|attribute| attributes::get(event, attribute)) && gateway.runs.get(&run).is_none()
    })
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
    let event = event_of(&object)?;
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
