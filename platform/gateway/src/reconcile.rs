//! Objects whose event was never raised: the put was durable, and the platform died before its event was. Such a put was not
//! acknowledged, and an external store may lose notifications. Run ids are derived, so telling an object twice makes no second run
//! while its run is remembered; what the log holds an event of is told by nobody again ([`crate::told`]).
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::IntoResponse;
use imageflow_eventlog::{FollowEvent, LogError, NewRecord, Start, TopicSpec};
use imageflow_events::{AttributesReader, Event, attributes, ext};
use imageflow_objects::{ChangeKind, ObjectError, ObjectInfo};
use imageflow_resources::Catalog;
use imageflow_types::trigger::TriggerSpec;
use imageflow_types::{ErrorCode, ObjectRef, Problem, RunId, topics};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::listener::{INTERNAL, event_of, tell};
use crate::problem::{Answer, object_problem};
use crate::read::flag;
use crate::state::{Gateway, log_problem};
use crate::told::Told;

/// Objects of one page.
const PAGE: usize = 1000;
/// Objects that could not be looked at now, after which the rest of a bucket waits for the next pass: then it is the store that
/// fails, and asking it for thousands more takes long and finds nothing.
const MOST_FAULTS: usize = 10;
/// The clocks of store and platform may differ so much, and an event may take so long after its object.
const SLACK_MS: i64 = 5 * 60 * 1000;

/// So long after the mark of its bucket an object that we may not look at keeps the mark where it is: a policy that was forgotten
/// is mended by then, and one that is meant must not have all passes look back for ever.
const DENIED_MS: i64 = 24 * 3600 * 1000;

/// So long a reconcile by hand waits for one that is under way, which may take an hour.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many times what the lists of a pass took is the rest after it, at least.
const REST: u32 = 9;

/// How long to wait after a pass. S3 can list a bucket only from its first object on, whatever the mark: so a pass over large
/// buckets takes its time and costs the store's, and all lists together a tenth of the time at most. What waits for the log
/// costs the store nothing, and when brokers are away there is the more to find.
pub(crate) fn rest(period: Duration, listed: Duration) -> Duration {
    period.max(listed.saturating_mul(REST))
}

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
    /// The buckets that triggers read, as it knew them last.
    watched: BTreeSet<String>,
    listed: Duration,
}

/// What a pass over all buckets came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Events raised.
    pub raised: usize,
    /// Buckets that could not be looked at to their end: their marks stay, and the next pass looks again.
    pub behind: usize,
}

impl Reconciler {
    /// Reads how far earlier ones came.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn open(gateway: &Gateway) -> Result<Self, LogError> {
        let log = &gateway.deps.log;
        log.ensure_topics(&[TopicSpec::compacted(topics::MARKS, 1)]).await?;
        let mut marks = HashMap::new();
        let mut follower = log.follow(topics::MARKS, Start::Earliest).await?;
        while let FollowEvent::Records(records) = follower.next().await? {
            for record in records {
                let bucket = record.key.as_deref().map(String::from_utf8_lossy);
                let mark = record.value.as_deref().map(serde_json::from_slice::<Mark>);
                match (bucket, mark) {
                    (Some(bucket), Some(Ok(mark))) => {
                        marks.insert(bucket.into_owned(), mark.told_ms);
                    }
                    (Some(bucket), None) => {
                        marks.remove(bucket.as_ref());
                    }
                    _ => {}
                }
            }
        }
        // From then on, however late it is opened.
        let watched = gateway.watched_at_start.clone();
        Ok(Self {
            listed: Duration::ZERO,
            marks,
            watched,
        })
    }

    /// The one that is open, else one that is opened now.
    ///
    /// # Errors
    /// When the log fails.
    pub(crate) async fn opened<'a>(slot: &'a mut Option<Self>, gateway: &Gateway) -> Result<&'a mut Self, LogError> {
        match slot {
            Some(open) => Ok(open),
            None => Ok(slot.insert(Self::open(gateway).await?)),
        }
    }

    /// A bucket that a trigger reads from now on is told from now on, and one that none reads any more has no mark that a later
    /// trigger would be told from. Called as soon as the triggers change: what is put between that and the mark, and whose event
    /// is lost, is found only within [`SLACK_MS`].
    pub(crate) async fn follow(&mut self, gateway: &Gateway) -> Result<(), Problem> {
        let catalog = gateway.deps.resources.snapshot();
        let now = watched(&catalog);
        let begun: Vec<&String> = now.iter().copied().filter(|b| !self.watched.contains(*b)).collect();
        for bucket in begun {
            self.move_mark(gateway, bucket, gateway.now_ms()).await?;
        }
        let over: Vec<String> = self.marks.keys().filter(|b| !now.contains(b)).cloned().collect();
        for bucket in over {
            let record = NewRecord::new(topics::MARKS).key(bucket.clone());
            let written = gateway.deps.log.produce(vec![record]).await;
            written.map_err(|e| log_problem(&e))?;
            self.marks.remove(&bucket);
        }
        if now.len() != self.watched.len() || !now.iter().all(|b| self.watched.contains(*b)) {
            self.watched = now.into_iter().cloned().collect();
        }
        Ok(())
    }

    /// How long the store took to list all buckets in the last pass.
    #[must_use]
    pub fn listed(&self) -> Duration {
        self.listed
    }

    /// Raises the events of the objects that a trigger wants and no run knows. What is wrong with one bucket keeps it from no other.
    pub async fn run(&mut self, gateway: &Gateway) -> Pass {
        let catalog = gateway.deps.resources.snapshot();
        let buckets = watched(&catalog);
        let mut pass = Pass::default();
        self.listed = Duration::ZERO;
        if let Err(problem) = self.follow(gateway).await {
            tracing::warn!(%problem, "buckets were not reconciled, the next pass looks again");
            metrics::counter!("imageflow_storage_reconciles_failed_total").increment(1);
            pass.behind = buckets.len();
            return pass;
        }
        for bucket in buckets {
            let begun_ms = gateway.now_ms();
            let found = self.bucket(gateway, &catalog, bucket, false).await;
            pass.raised += found.raised;
            self.listed += found.listed;
            let moved = match found.fault {
                Some(problem) => self.keep_mark(gateway, bucket).await.and(Err(problem)),
                None => self.move_mark(gateway, bucket, begun_ms).await,
            };
            if let Err(problem) = moved {
                tracing::warn!(bucket, %problem, "a bucket was not reconciled to its end, the next pass looks again");
                metrics::counter!("imageflow_storage_reconciles_failed_total").increment(1);
                pass.behind += 1;
            }
        }
        pass
    }

    /// A bucket without a mark is looked at from the platform's start on: after a restart that would be too late for what was
    /// put before it.
    async fn keep_mark(&mut self, gateway: &Gateway, bucket: &str) -> Result<(), Problem> {
        if self.marks.contains_key(bucket) {
            return Ok(());
        }
        self.move_mark(gateway, bucket, gateway.config.started_ms).await
    }

    async fn move_mark(&mut self, gateway: &Gateway, bucket: &str, told_ms: i64) -> Result<(), Problem> {
        let value = json!(Mark { schema: 1, told_ms }).to_string();
        let record = NewRecord::new(topics::MARKS).key(bucket.to_owned()).value(value);
        let written = gateway.deps.log.produce(vec![record]).await;
        written.map_err(|e| log_problem(&e))?;
        self.marks.insert(bucket.to_owned(), told_ms);
        Ok(())
    }

    /// One bucket, when somebody asks for it. The mark stays where it is: it is for the passes over all buckets to move.
    async fn asked(&mut self, gateway: &Gateway, bucket: &str, all: bool) -> Result<Found, Problem> {
        self.follow(gateway).await?;
        let catalog = gateway.deps.resources.snapshot();
        let mut found = self.bucket(gateway, &catalog, bucket, all).await;
        found.fault.take().map_or(Ok(found), Err)
    }

    /// With `all`, objects older than the mark, too, and those whose event was raised without a run.
    async fn bucket(&mut self, gateway: &Gateway, catalog: &Catalog, bucket: &str, all: bool) -> Found {
        let mark = self.marks.get(bucket).copied().unwrap_or(gateway.config.started_ms);
        let since_ms = mark - SLACK_MS;
        let patient = gateway.now_ms() - mark < DENIED_MS;
        let mut told = (!all).then(|| Told::since(since_ms - SLACK_MS));
        let (mut found, mut faults) = (Found::default(), 0);
        let mut after: Option<String> = None;
        loop {
            if gateway.stop.is_cancelled() {
                found.fault = Some(stops());
                return found;
            }
            // A pass may take an hour, and a trigger that comes meanwhile is told from its own begin on.
            if let Err(problem) = self.follow(gateway).await {
                found.fault = Some(problem);
                return found;
            }
            let begun = tokio::time::Instant::now();
            let page = gateway.deps.objects.list(bucket, "", after.as_deref(), PAGE).await;
            found.listed += begun.elapsed();
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    found.fault = Some(object_problem(&error));
                    return found;
                }
            };
            let Some(last) = page.last() else {
                return found;
            };
            // Seen: versitygw 1.8.0 lists a key with U+FFFE as another one, which it then goes on from for ever.
            if after.as_ref() == Some(&last.key) {
                let detail = format!("the store lists \"{}\" again and again, and none after it", last.key);
                found.fault = Some(Problem::new(ErrorCode::Unavailable, detail));
                return found;
            }
            after = Some(last.key.clone());
            for info in page {
                let internal = INTERNAL.iter().any(|prefix| info.key.starts_with(prefix));
                let recent = info.last_modified_ms >= since_ms;
                if internal || !(recent || all) {
                    continue;
                }
                found.looked_at += 1;
                let fault = match look(gateway, catalog, told.as_mut(), &info).await {
                    Ok(raised) => {
                        metrics::counter!("imageflow_storage_reconcile_raised_total").increment(u64::from(raised));
                        found.raised += usize::from(raised);
                        continue;
                    }
                    Err(Fault::Denied(problem)) if !patient => Fault::Never(problem.to_string()),
                    Err(fault) => fault,
                };
                match fault {
                    // It stays as it is, whoever looks, and must not hide what comes after it.
                    Fault::Never(why) => {
                        tracing::warn!(bucket, key = info.key, why, "the reconcile leaves out an object");
                        metrics::counter!("imageflow_storage_reconcile_skipped_total").increment(1);
                        found.skipped += 1;
                    }
                    Fault::Denied(problem) => {
                        tracing::warn!(bucket, key = info.key, %problem, "an object may not be looked at");
                        found.fault = Some(problem);
                    }
                    Fault::Object(problem) => {
                        tracing::warn!(bucket, key = info.key, %problem, "an object cannot be looked at now");
                        found.fault = Some(problem);
                        faults += 1;
                        if faults == MOST_FAULTS {
                            return found;
                        }
                    }
                    Fault::Platform(problem) => {
                        found.fault = Some(problem);
                        return found;
                    }
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
    /// How long the store took to list it.
    listed: Duration,
    /// Objects that cannot be looked at, ever.
    skipped: usize,
    /// Why the bucket is to be looked at again: some of it was not.
    fault: Option<Problem>,
}

/// Why an object was not looked at.
enum Fault {
    /// It cannot be.
    Never(String),
    /// We may not, which somebody may change.
    Denied(Problem),
    /// The object store cannot tell of it now.
    Object(Problem),
    /// Nothing can be told now, of no object.
    Platform(Problem),
}

/// The buckets from which triggers may read.
pub(crate) fn watched(catalog: &Catalog) -> BTreeSet<&String> {
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
    let found = tokio::select! {
        biased;
        () = gateway.stop.cancelled() => Err(stops()),
        found = by_hand(&gateway, &bucket, all) => found,
    };
    let Found {
        looked_at,
        raised,
        skipped,
        ..
    } = found?;
    let answer = json!({"bucket": bucket, "lookedAt": looked_at, "raised": raised, "skipped": skipped});
    Ok(Json(answer).into_response())
}

async fn by_hand(gateway: &Gateway, bucket: &str, all: bool) -> Result<Found, Problem> {
    let turn = tokio::time::timeout(PATIENCE, gateway.reconciler.lock()).await;
    let Ok(mut reconciler) = turn else {
        let detail = "another reconcile is under way and takes long: ask again when it has ended";
        return Err(Problem::new(ErrorCode::Unavailable, detail).retry_after(60));
    };
    let open = Reconciler::opened(&mut reconciler, gateway).await;
    let open = open.map_err(|e| log_problem(&e))?;
    open.asked(gateway, bucket, all).await
}

/// What a reconcile comes to that the end of the platform cuts short.
fn stops() -> Problem {
    Problem::new(ErrorCode::Unavailable, "the platform stops: ask again when it is back").retry_after(5)
}

fn event(info: &ObjectInfo) -> Result<Option<(ObjectRef, Event)>, Fault> {
    event_of(info.clone(), ChangeKind::Created, None).map_err(|e| Fault::Never(e.to_string()))
}

/// Whether a trigger takes the object's event and no run of it is known.
fn wanted(gateway: &Gateway, catalog: &Catalog, object: &ObjectRef, takes: impl Fn(&TriggerSpec) -> bool) -> bool {
    catalog.triggers.iter().any(|(name, trigger)| {
        let run = RunId::derive(&["trigger", name.as_str(), &object.bucket, &object.key, &object.etag]);
        takes(&trigger.spec) && gateway.runs.head(&run).is_none()
    })
}

/// Whether a trigger takes an event, by the rule of the router.
fn takes(trigger: &TriggerSpec, event: &Event) -> bool {
    let ours = event.extension(ext::WRITTEN_BY).is_some();
    (!ours || trigger.platform_objects) && trigger.matches(|attribute| attributes::get(event, attribute))
}

/// The same of an event made from a listing, which does not tell who wrote the object.
fn may_take(trigger: &TriggerSpec, event: &Event) -> bool {
    let depends = Cell::new(false);
    let matches = trigger.matches(|attribute| {
        depends.set(depends.get() || attribute == ext::WRITTEN_BY);
        attributes::get(event, attribute)
    });
    matches || (depends.get() && trigger.platform_objects)
}

/// Raises the object's event when it is wanted and the log does not hold it. Whether it was raised.
async fn look(
    gateway: &Gateway,
    catalog: &Catalog,
    told: Option<&mut Told>,
    listed: &ObjectInfo,
) -> Result<bool, Fault> {
    let Some((object, event)) = event(listed)? else {
        return Ok(false);
    };
    if !wanted(gateway, catalog, &object, |trigger| may_take(trigger, &event)) {
        return Ok(false);
    }
    if let Some(told) = told {
        let held = told.holds(gateway.deps.log.as_ref(), event.id()).await;
        if held.map_err(|e| Fault::Platform(log_problem(&e)))? {
            return Ok(false);
        }
    }
    raise(gateway, catalog, &object).await
}

async fn raise(gateway: &Gateway, catalog: &Catalog, object: &ObjectRef) -> Result<bool, Fault> {
    gateway.check_room().await.map_err(Fault::Platform)?;
    let info = match gateway.deps.objects.head(&object.bucket, &object.key).await {
        Ok(info) => info,
        Err(error) if error.is_retryable() => return Err(Fault::Object(object_problem(&error))),
        Err(error @ ObjectError::AccessDenied { .. }) => return Err(Fault::Denied(object_problem(&error))),
        Err(error) => return Err(Fault::Never(error.to_string())),
    };
    let Some(info) = info.filter(|i| i.etag == object.etag) else {
        return Ok(false);
    };
    let Some((object, event)) = event(&info)? else {
        return Ok(false);
    };
    // What the platform wrote itself starts nothing, unless a trigger wants it. Pods put by signed URL, past the platform: of
    // that an external store's notification is the only word, and it may be lost like any other.
    if !wanted(gateway, catalog, &object, |trigger| takes(trigger, &event)) {
        return Ok(false);
    }
    let told = tell(
        gateway.deps.log.as_ref(),
        &gateway.deps.resources.seen(),
        &object,
        event,
    )
    .await;
    told.map_err(|e| Fault::Platform(log_problem(&e)))?;
    tracing::info!(
        bucket = object.bucket,
        key = object.key,
        "the event of an object was raised by the reconcile"
    );
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_a_tenth_of_the_time_at_most() {
        let minute = Duration::from_secs(60);
        for (took_s, rest_s) in [(0, 60), (1, 60), (6, 60), (7, 63), (600, 5400)] {
            let rest = rest(minute, Duration::from_secs(took_s));
            assert_eq!(rest, Duration::from_secs(rest_s), "{took_s}");
        }
        assert_eq!(rest(minute, Duration::MAX), Duration::MAX);
    }
}
