//! Runs as they stand, from the compacted topic: what lists, progress and waiting callers read.
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use imageflow_eventlog::{EventLog, Record};
use imageflow_resources::{Table, TableView, ViewError};
use imageflow_types::{RunId, RunState, RunStatus, topics};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs held in memory; of more, the oldest are forgotten (they stay in the log).
const MOST: usize = 10_000;

#[derive(Default)]
struct Runs {
    by_id: HashMap<RunId, Arc<RunState>>,
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
        let state = record.value.as_ref().map(|v| serde_json::from_slice::<RunState>(v));
        match (key, state) {
            (Some(run), None) => self.forget(&run),
            (_, Some(Ok(state))) => {
                self.order.insert(RunCursor::of(&state));
                self.by_id.insert(state.run.clone(), Arc::new(state));
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
        if let Some(state) = self.by_id.remove(run) {
            self.order.remove(&RunCursor::of(&state));
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
        self.view.read(|runs| runs.by_id.get(run).cloned())
    }

    /// Runs, newest first.
    #[must_use]
    pub fn list(&self, query: &RunQuery) -> Vec<Arc<RunState>> {
        self.view.read(|runs| {
            let end = query.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let newest_first = runs.order.range((Bound::Unbounded, end)).rev();
            newest_first
                .filter_map(|place| runs.by_id.get(&place.run))
                .filter(|s| query.status.is_none_or(|status| s.status == status))
                .filter(|s| {
                    query
                        .flow
                        .as_ref()
                        .is_none_or(|flow| s.request.target.to_string() == *flow)
                })
                .take(query.limit)
                .cloned()
                .collect()
        })
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
