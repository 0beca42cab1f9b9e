//! Objects whose event was never raised: the put was durable, and the platform died before its event was. Such a put was not
//! acknowledged, and an external store may lose notifications. Run ids are derived, so telling an object twice makes no second run.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::IntoResponse;
use imageflow_eventlog::{EventLog, FollowEvent, LogError, NewRecord, Start, TopicSpec};
use imageflow_events::object::object_event;
use imageflow_events::{AttributesReader, Event, attributes};
use imageflow_resources::Catalog;
use imageflow_types::{ErrorCode, ObjectRef, Problem, RunId, topics};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::events::to_record;
use crate::listener::{INTERNAL, METADATA_RUN};
use crate::problem::{Answer, object_problem};
use crate::read::flag;
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

    /// The one that is open, else one that is opened now.
    ///
    /// # Errors
    /// When the log fails.
    pub(crate) async fn opened<'a>(
        slot: &'a mut Option<Self>,
        log: &Arc<dyn EventLog>,
    ) -> Result<&'a mut Self, LogError> {
        match slot {
            Some(open) => Ok(open),
            None => Ok(slot.insert(Self::open(log).await?)),
        }
    }

    /// Raises the events of the objects that a trigger wants and no run knows. Returns how many.
    ///
    /// # Errors
    /// When the object store or the log fails; the next pass goes on.
    pub async fn run(&mut self, gateway: &Gateway) -> Result<usize, Problem> {
        let catalog = gateway.deps.resources.snapshot();
        let (mut raised, mut told) = (0, HashSet::new());
        for bucket in watched(&catalog) {
            let begun_ms = gateway.now_ms();
            let found = self.bucket(gateway, &catalog, bucket, false).await?;
            raised += found.raised;
            told.extend(found.told);
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

    /// One bucket, when somebody asks for it. The mark stays where it is: it is for the passes over all buckets to move.
    async fn asked(&mut self, gateway: &Gateway, bucket: &str, all: bool) -> Result<Found, Problem> {
        let catalog = gateway.deps.resources.snapshot();
        let found = self.bucket(gateway, &catalog, bucket, all).await?;
        self.told.extend(found.told.iter().cloned());
        Ok(found)
    }

    /// With `all`, objects older than the mark, too, and those whose event was raised without a run.
    async fn bucket(&self, gateway: &Gateway, catalog: &Catalog, bucket: &str, all: bool) -> Result<Found, Problem> {
        let mark = self.marks.get(bucket).copied().unwrap_or(gateway.config.started_ms);
        let since_ms = mark - SLACK_MS;
        let mut found = Found::default();
        let mut after: Option<String> = None;
        loop {
            let page = gateway.deps.objects.list(bucket, "", after.as_deref(), PAGE).await;
            let page = page.map_err(|e| object_problem(&e))?;
            let Some(last) = page.last() else {
                return Ok(found);
            };
            after = Some(last.key.clone());
            for info in page {
                let internal = INTERNAL.iter().any(|prefix| info.key.starts_with(prefix));
                let recent = info.last_modified_ms >= since_ms;
                if internal || !(recent || all) {
                    continue;
                }
                found.looked_at += 1;
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
                let known = !all && self.told.contains(event.id());
                let raised = !known && raise(gateway, object).await?;
                found.raised += usize::from(raised);
                // Of older ones the next pass over all buckets does not ask again.
                if recent && (known || raised) {
                    found.told.insert(event.id().to_owned());
                }
            }
        }
    }
}

/// What a pass over a bucket came to.
#[derive(Default)]
struct Found {
    looked_at: usize,
    raised: usize,
    told: HashSet<String>,
}

/// The buckets from which triggers may read.
fn watched(catalog: &Catalog) -> BTreeSet<&String> {
    catalog.triggers.values().flat_map(|t| &t.spec.buckets).collect()
}

/// `POST /v1/buckets/{bucket}/reconcile`: now, and with `?all=true` from the first object on. One pass is under way at a time.
pub async fn post(State(gateway): State<Arc<Gateway>>, Path(bucket): Path<String>, RawQuery(raw): RawQuery) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let watched = watched(&catalog);
    if !watched.contains(&bucket) {
        let names: Vec<&str> = watched.iter().map(|b| b.as_str()).collect();
        let detail = match names.is_empty() {
            true => format!("no trigger reads bucket \"{bucket}\", because there is no trigger"),
            false => format!(
                "no trigger reads bucket \"{bucket}\", only {}; add it to spec.buckets of the trigger that is to read it",
                names.join(", ")
            ),
        };
        return Err(Problem::new(ErrorCode::NotFound, detail).into());
    }
    let all = flag(raw.as_deref(), "all", false);
    let mut reconciler = gateway.reconciler.lock().await;
    let found = Reconciler::opened(&mut reconciler, &gateway.deps.log)
        .await
        .map_err(|e| log_problem(&e))?
        .asked(&gateway, &bucket, all)
        .await?;
    let answer = json!({"bucket": bucket, "lookedAt": found.looked_at, "raised": found.raised});
    Ok(Json(answer).into_response())
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
