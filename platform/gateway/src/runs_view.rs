//! Runs as they stand, from the compacted topic: what lists, progress and waiting callers read.
mod table;

use std::sync::Arc;

use bytes::Bytes;
use imageflow_eventlog::{EventLog, LogError};
use imageflow_resources::{TableView, ViewError};
use imageflow_types::{RunId, RunState, topics};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use table::{Head, Held};
pub use table::{RunCursor, RunQuery};

use crate::state::record_at;
use table::{Limits, Runs};

/// Runs as they stand.
pub struct RunsView {
    log: Arc<dyn EventLog>,
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
        Self::with(Limits::default(), log, tasks, stop).await
    }

    async fn with(
        limits: Limits,
        log: &Arc<dyn EventLog>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, ViewError> {
        let runs = Runs::new(limits);
        let changed = runs.changed.subscribe();
        Ok(Self {
            log: log.clone(),
            view: TableView::open(log, topics::RUNS, runs, tasks, stop).await?,
            changed,
        })
    }

    /// One run, from memory or from the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn get(&self, run: &RunId) -> Result<Option<RunState>, LogError> {
        loop {
            let Some(held) = self.held(run) else { return Ok(None) };
            if let Some(value) = self.value(&held).await? {
                return Ok(held.state(&value));
            }
            // Compaction took it because there is a newer one, or because the run was deleted.
            if self.held(run).is_none_or(|now| now.at == held.at) {
                return Ok(None);
            }
        }
    }

    /// The state of a run that was found; none when the log has another in its place.
    pub(crate) async fn state(&self, held: &Held) -> Result<Option<RunState>, LogError> {
        let value = self.value(held).await?;
        Ok(value.and_then(|value| held.state(&value)))
    }

    async fn value(&self, held: &Held) -> Result<Option<Bytes>, LogError> {
        if let Some(value) = &held.value {
            return Ok(Some(value.clone()));
        }
        let (partition, offset) = held.at;
        let record = record_at(self.log.as_ref(), topics::RUNS, partition, offset).await?;
        Ok(record.and_then(|record| record.value))
    }

    /// What is known of a run.
    pub(crate) fn held(&self, run: &RunId) -> Option<Held> {
        self.view.read(|runs| runs.get(run).cloned())
    }

    /// What a run is found by.
    pub(crate) fn head(&self, run: &RunId) -> Option<Arc<Head>> {
        self.view.read(|runs| runs.get(run).map(|held| held.head.clone()))
    }

    /// Runs, newest first.
    pub(crate) fn list(&self, query: &RunQuery) -> Vec<Held> {
        self.view.read(|runs| runs.find(query).cloned().collect())
    }

    /// What runs are found by, newest first.
    pub(crate) fn heads(&self, query: &RunQuery) -> Vec<Arc<Head>> {
        self.view.read(|runs| runs.heads(query).cloned().collect())
    }

    /// How many have not ended.
    #[must_use]
    pub fn live(&self) -> usize {
        self.view.read(Runs::live)
    }

    /// Tells that something changed.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Waits until a run is there. Cancel it to give up.
    pub(crate) async fn started(&self, run: &RunId) -> Option<Arc<Head>> {
        self.when(run, |_| true).await
    }

    /// Waits until a run is there and final. Cancel it to give up.
    pub(crate) async fn finished(&self, run: &RunId) -> Option<Arc<Head>> {
        self.when(run, |head| head.status.is_final()).await
    }

    async fn when(&self, run: &RunId, there: impl Fn(&Head) -> bool) -> Option<Arc<Head>> {
        let mut changed = self.changed();
        loop {
            changed.borrow_and_update();
            if let Some(head) = self.head(run).filter(|head| there(head)) {
                return Some(head);
            }
            changed.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use imageflow_eventlog::{Embedded, EmbeddedConfig, NewRecord, Record, TopicSpec};
    use serde_json::{Value, json};

    use super::*;

    /// A state as the router writes it.
    pub(super) fn state(cause: &str, status: &str, created_ms: i64) -> Value {
        let run = RunId::derive(&[cause]);
        let request =
            json!({"run": run, "target": {"flow": "f"}, "input": {"event": {"id": "1"}}, "requestedMs": created_ms});
        json!({"schema": 1, "run": run, "status": status, "request": request, "plan": {"stages": [], "bucket": "b"},
            "steps": [], "createdMs": created_ms, "updatedMs": created_ms, "version": 1})
    }

    pub(super) fn record(offset: i64, state: &Value) -> Record {
        Record {
            topic: topics::RUNS.to_owned(),
            partition: 0,
            offset,
            timestamp_ms: 0,
            key: Some(Bytes::from(state["run"].as_str().unwrap().to_owned())),
            headers: Vec::new(),
            value: Some(state.to_string().into()),
        }
    }

    async fn write(view: &RunsView, key: &Value, value: Option<&Value>) {
        let mut record = NewRecord::new(topics::RUNS).key(key.as_str().unwrap().to_owned());
        record.value = value.map(|value| value.to_string().into());
        let written = view.log.produce(vec![record]).await.unwrap();
        view.view.reached(&written).await.unwrap();
    }

    #[tokio::test]
    async fn a_run_that_is_not_in_memory_is_read_from_the_log_until_it_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Embedded::open(EmbeddedConfig::new(folder.path())).await.unwrap();
        let topic = TopicSpec::compacted(topics::RUNS, topics::PARTITIONS);
        log.ensure_topics(&[topic]).await.unwrap();
        let limits = Limits {
            held: 1,
            ..Limits::default()
        };
        let stop = CancellationToken::new();
        let view = RunsView::with(limits, &log, &TaskTracker::new(), &stop).await.unwrap();
        let states = [state("old", "failed", 1), state("new", "succeeded", 2)];
        for state in &states {
            write(&view, &state["run"], Some(state)).await;
        }
        let old = RunId::derive(&["old"]);
        let before = view.held(&old).unwrap();
        assert!(before.value.is_none(), "there is room for one");
        assert!(view.finished(&old).await.is_some());
        let read = view.get(&old).await.unwrap().unwrap();
        assert_eq!((read.run, read.status.as_str()), (old.clone(), "failed"));
        let all = RunQuery {
            limit: 10,
            ..RunQuery::default()
        };
        for held in view.list(&all) {
            assert_eq!(view.state(&held).await.unwrap().unwrap().run, held.head.run);
        }
        write(&view, &states[0]["run"], None).await;
        assert!(view.get(&old).await.unwrap().is_none());
        // Where it was there may be another's record one day, after a topic was made anew.
        let mut misplaced = before;
        misplaced.at = view.held(&RunId::derive(&["new"])).unwrap().at;
        assert!(view.state(&misplaced).await.unwrap().is_none());
        stop.cancel();
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Embedded::open(EmbeddedConfig::new(folder.path())).await.unwrap();
        let topic = TopicSpec::compacted(topics::RUNS, topics::PARTITIONS);
        log.ensure_topics(&[topic]).await.unwrap();
        let stop = CancellationToken::new();
        let view = RunsView::open(&log, &TaskTracker::new(), &stop).await.unwrap();
        let mut broken = state("c", "running", 3);
        broken["steps"] = json!(7);
        write(&view, &broken["run"], Some(&broken)).await;
        assert!(view.get(&RunId::derive(&["c"])).await.unwrap().is_none());
        stop.cancel();
    }
}
