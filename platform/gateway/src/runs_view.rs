//! Runs as they stand, from the compacted topic: what lists, progress and waiting callers read.
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use imageflow_eventlog::{EventLog, Record};
use imageflow_resources::{Table, TableView, ViewError};
use imageflow_types::work::Target;
use imageflow_types::{RunId, RunState, RunStatus, topics};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs held in memory; of more, the oldest are forgotten (they stay in the log).
const MOST: usize = 10_000;

/// A run as it was written. Its state is made of that when somebody looks: most runs come and go unseen, and to make it
/// costs more than all else that this view does.
struct Held {
    head: Head,
    value: Bytes,
    state: OnceLock<Option<Arc<RunState>>>,
}

/// As much of a state as lists are found by.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    run: RunId,
    status: RunStatus,
    created_ms: i64,
    request: HeadRequest,
}

#[derive(Deserialize)]
struct HeadRequest {
    target: Target,
}

impl Held {
    fn read(value: &Bytes) -> Result<Self, serde_json::Error> {
        Ok(Self {
            head: serde_json::from_slice(value)?,
            value: value.clone(),
            state: OnceLock::new(),
        })
    }

    fn state(&self) -> Option<Arc<RunState>> {
        let read = || match serde_json::from_slice(&self.value) {
            Ok(state) => Some(Arc::new(state)),
            Err(error) => {
                tracing::error!(%error, run = %self.head.run, "a run cannot be read");
                None
            }
        };
        self.state.get_or_init(read).clone()
    }
}

#[derive(Default)]
struct Runs {
    by_id: HashMap<RunId, Arc<Held>>,
    order: BTreeSet<RunCursor>,
    changed: watch::Sender<u64>,
}

impl Table for Runs {
    fn apply(&mut self, record: &Record) {
        let key = record
            .key
            .as_ref()
            .and_then(|k| std::str::from_utf8(k).ok())
            .and_then(|k| RunId::parse(k).ok());
        let held = record.value.as_ref().map(Held::read);
        match (key, held) {
            (Some(run), None) => self.forget(&run),
            (_, Some(Ok(held))) => {
                self.order.insert(held.head.cursor());
                self.by_id.insert(held.head.run.clone(), Arc::new(held));
                if self.by_id.len() > MOST
                    && let Some(oldest) = self.order.pop_first()
                {
                    self.by_id.remove(&oldest.run);
                }
            }
            (_, Some(Err(error))) => tracing::error!(%error, "a run cannot be read"),
            (None, None) => {}
        }
    }

    fn applied(&mut self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Runs {
    fn forget(&mut self, run: &RunId) {
        if let Some(held) = self.by_id.remove(run) {
            self.order.remove(&held.head.cursor());
        }
    }

    fn find<'a>(&'a self, query: &'a RunQuery) -> impl Iterator<Item = &'a Arc<Held>> {
        let end = query.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let newest_first = self.order.range((Bound::Unbounded, end)).rev();
        let held = newest_first.filter_map(|place| self.by_id.get(&place.run));
        held.filter(|held| query.takes(&held.head)).take(query.limit)
    }
}

impl Head {
    fn cursor(&self) -> RunCursor {
        RunCursor {
            created_ms: self.created_ms,
            run: self.run.clone(),
        }
    }
}

/// Where a run is among all of them: newest last. It stays the same place when the run is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunCursor {
    created_ms: i64,
    run: RunId,
}

impl RunCursor {
    /// The place of a run.
    #[must_use]
    pub fn of(state: &RunState) -> Self {
        Self {
            created_ms: state.created_ms,
            run: state.run.clone(),
        }
    }

    /// Reads what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (created_ms, run) = text.split_once('.')?;
        Some(Self {
            created_ms: created_ms.parse().ok()?,
            run: RunId::parse(run).ok()?,
        })
    }
}

impl std::fmt::Display for RunCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_ms, self.run)
    }
}

/// Which runs.
#[derive(Debug, Clone, Default)]
pub struct RunQuery {
    /// Of this flow, or `function/NAME`.
    pub flow: Option<String>,
    /// In this state.
    pub status: Option<RunStatus>,
    /// Older than what is or was here.
    pub after: Option<RunCursor>,
    /// At most so many.
    pub limit: usize,
}

impl RunQuery {
    fn takes(&self, head: &Head) -> bool {
        let flow = self.flow.as_ref();
        self.status.is_none_or(|status| head.status == status)
            && flow.is_none_or(|flow| head.request.target.to_string() == *flow)
    }
}

/// Runs as they stand.
pub struct RunsView {
    view: TableView<Runs>,
    changed: watch::Receiver<u64>,
}

impl RunsView {
    /// Reads all runs and follows them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(
        log: &Arc<dyn EventLog>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, ViewError> {
        let runs = Runs::default();
        let changed = runs.changed.subscribe();
        Ok(Self {
            view: TableView::open(log, topics::RUNS, runs, tasks, stop).await?,
            changed,
        })
    }

    /// One run.
    #[must_use]
    pub fn get(&self, run: &RunId) -> Option<Arc<RunState>> {
        // States are made outside the table's lock, here and below.
        self.view.read(|runs| runs.by_id.get(run).cloned())?.state()
    }

    /// Runs, newest first.
    #[must_use]
    pub fn list(&self, query: &RunQuery) -> Vec<Arc<RunState>> {
        let held = self.view.read(|runs| runs.find(query).cloned().collect::<Vec<_>>());
        held.iter().filter_map(|held| held.state()).collect()
    }

    /// How many runs a list would hold.
    #[must_use]
    pub fn count(&self, query: &RunQuery) -> usize {
        self.view.read(|runs| runs.find(query).count())
    }

    /// Tells that something changed.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Waits until a run is there. Cancel it to give up.
    pub async fn started(&self, run: &RunId) -> Option<Arc<RunState>> {
        self.when(run, |_| true).await
    }

    /// Waits until a run is there and final. Cancel it to give up.
    pub async fn finished(&self, run: &RunId) -> Option<Arc<RunState>> {
        self.when(run, |state| state.status.is_final()).await
    }

    async fn when(&self, run: &RunId, there: impl Fn(&RunState) -> bool) -> Option<Arc<RunState>> {
        let mut changed = self.changed();
        loop {
            changed.borrow_and_update();
            if let Some(state) = self.get(run).filter(|s| there(s)) {
                return Some(state);
            }
            changed.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(value: &serde_json::Value) -> Record {
        Record {
            topic: topics::RUNS.to_owned(),
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: Some(Bytes::from(value["run"].as_str().unwrap().to_owned())),
            headers: Vec::new(),
            value: Some(value.to_string().into()),
        }
    }

    #[test]
    fn runs_are_found_by_their_head_and_read_whole_when_asked_for() {
        let mut runs = Runs::default();
        let state = |cause: &str, status: &str, at: i64, target: serde_json::Value| {
            let run = RunId::derive(&[cause]);
            let request = json!({"run": run, "target": target, "input": {"event": {"id": "1"}}, "requestedMs": at});
            json!({"schema": 1, "run": run, "status": status, "request": request, "plan": {"stages": [], "bucket": "b"},
                "steps": [], "createdMs": at, "updatedMs": at, "version": 1})
        };
        let states = [
            state("a", "running", 1, json!({"flow": "f"})),
            state("b", "succeeded", 2, json!({"function": "resize"})),
            state("a", "succeeded", 1, json!({"flow": "f"})),
        ];
        states.iter().for_each(|state| runs.apply(&record(state)));
        // What is no state any more is not shown, and what is no JSON is not even held.
        let mut broken = state("c", "running", 3, json!({"flow": "f"}));
        broken["steps"] = json!(7);
        runs.apply(&record(&broken));
        let found = |query: RunQuery| -> Vec<RunId> {
            let states = runs.find(&query).filter_map(|held| held.state());
            states.map(|state| state.run.clone()).collect()
        };
        let all = RunQuery {
            limit: 10,
            ..RunQuery::default()
        };
        let (a, b) = (RunId::derive(&["a"]), RunId::derive(&["b"]));
        assert_eq!(found(all.clone()), [b.clone(), a.clone()], "newest first, each once");
        let flow = Some("f".to_owned());
        let ended = Some(RunStatus::Succeeded);
        assert_eq!(
            found(RunQuery {
                flow,
                status: ended,
                ..all.clone()
            }),
            std::slice::from_ref(&a)
        );
        let flow = Some("function/resize".to_owned());
        assert_eq!(found(RunQuery { flow, ..all.clone() }), std::slice::from_ref(&b));
        let after = Some(runs.by_id[&b].head.cursor());
        assert_eq!(found(RunQuery { after, ..all }), [a]);
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = RunCursor {
            created_ms: 1_700_000_000_123,
            run: RunId::derive(&["x"]),
        };
        assert_eq!(RunCursor::parse(&cursor.to_string()), Some(cursor));
        for wrong in ["run-1", "x.run-1", "1.", "1.Run"] {
            assert_eq!(RunCursor::parse(wrong), None, "{wrong}");
        }
    }
}
