//! Runs as they stand, from the compacted topic: what lists, progress and waiting callers read.
use std::collections::{BTreeMap, HashMap};
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
    /// By creation and id: newest last.
    order: BTreeMap<(i64, RunId), ()>,
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
                self.order.insert((state.created_ms, state.run.clone()), ());
                self.by_id.insert(state.run.clone(), Arc::new(state));
                if self.by_id.len() > MOST
                    && let Some(((_, oldest), ())) = self.order.pop_first()
                {
                    self.by_id.remove(&oldest);
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
            self.order.remove(&(state.created_ms, run.clone()));
        }
    }
}

/// Which runs.
#[derive(Debug, Clone, Default)]
pub struct RunQuery {
    /// Of this flow, or `function/NAME`.
    pub flow: Option<String>,
    /// In this state.
    pub status: Option<RunStatus>,
    /// Older than this one.
    pub after: Option<RunId>,
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
            let from = query
                .after
                .as_ref()
                .and_then(|id| runs.by_id.get(id))
                .map(|s| (s.created_ms, s.run.clone()));
            let newest_first = runs
                .order
                .keys()
                .rev()
                .skip_while(|key| from.as_ref().is_some_and(|from| *key >= from));
            newest_first
                .filter_map(|(_, id)| runs.by_id.get(id))
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
