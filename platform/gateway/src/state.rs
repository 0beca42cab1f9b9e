//! What every handler needs.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imageflow_delivery::Delivery;
use imageflow_eventlog::{EventLog, LogError, NewRecord, Record};
use imageflow_objects::ObjectStore;
use imageflow_pods::PodHost;
use imageflow_resources::{ResourceStore, ViewError};
use imageflow_types::scaling::DecisionRecord;
use imageflow_types::{ErrorCode, FunctionName, Problem, RunId, RunState, topics};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Auth;
use crate::bodies::Room;
use crate::letters_view::LettersView;
use crate::reconcile::{Reconciler, watched};
use crate::runs_view::RunsView;

/// What the autoscaler says of a function.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// The function.
    pub function: FunctionName,
    /// Pods wanted.
    pub desired: u32,
    /// Pods ready.
    pub ready: u32,
    /// Decisions, newest first.
    pub decisions: Vec<DecisionRecord>,
}

/// Explains scaling; the autoscaler is behind it.
pub trait ScalingView: Send + Sync + 'static {
    /// What there is to say of a function.
    fn explain(&self, function: &FunctionName) -> Scaling;
}

/// How much work waits; the dispatcher is behind it.
pub trait BacklogView: Send + Sync + 'static {
    /// Records of a function that are not with a pod.
    fn backlog(&self, function: &FunctionName) -> u64;
}

/// Settings.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Most bytes of an image or another body.
    pub max_body_bytes: usize,
    /// Most bytes of the bodies of all requests under way, those that wait for a pod too; more get 429.
    pub max_bodies_bytes: usize,
    /// Most records that may wait for a function; more work gets 429.
    pub max_backlog: u64,
    /// Share of the log's limit at which new work gets 429, so that work under way can end.
    pub max_log_fraction: f64,
    /// Who may do what.
    pub auth: Auth,
    /// URL of this API, as told to people.
    pub api_url: String,
    /// URL of the S3 server, as told to people.
    pub s3_url: String,
    /// When the platform started, ms since 1970.
    pub started_ms: i64,
    /// Between two reconciles of buckets and events; zero for none.
    pub reconcile_every: Duration,
}

/// What the gateway is made of.
pub struct GatewayDeps {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The object store.
    pub objects: Arc<dyn ObjectStore>,
    /// The resources.
    pub resources: Arc<ResourceStore>,
    /// The way to pods.
    pub delivery: Arc<Delivery>,
    /// The pods.
    pub pods: Arc<dyn PodHost>,
    /// Explains scaling.
    pub scaling: Arc<dyn ScalingView>,
    /// How much work waits.
    pub backlog: Arc<dyn BacklogView>,
    /// Prometheus text of the process.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
}

/// The gateway's state, shared by all handlers.
pub struct Gateway {
    pub(crate) deps: GatewayDeps,
    pub(crate) config: GatewayConfig,
    pub(crate) room: Room,
    pub(crate) runs: RunsView,
    pub(crate) letters: LettersView,
    /// The buckets that triggers read when it was opened.
    pub(crate) watched_at_start: BTreeSet<String>,
    /// Opened by whoever needs it first.
    pub(crate) reconciler: Mutex<Option<Reconciler>>,
    pub(crate) stop: CancellationToken,
}

impl Gateway {
    /// Opens the views. Their tasks belong to `tasks` and end with `stop`.
    ///
    /// # Errors
    /// When the event log cannot be read.
    pub async fn open(
        deps: GatewayDeps,
        config: GatewayConfig,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, ViewError> {
        let runs = RunsView::open(&deps.log, tasks, stop).await?;
        let letters = LettersView::open(&deps.log, tasks, stop).await?;
        let watched_at_start = watched(&deps.resources.snapshot()).into_iter().cloned().collect();
        Ok(Arc::new(Self {
            deps,
            room: Room::new(config.max_bodies_bytes),
            config,
            runs,
            letters,
            watched_at_start,
            reconciler: Mutex::new(None),
            stop: stop.clone(),
        }))
    }

    /// The runs as they stand.
    #[must_use]
    pub const fn runs(&self) -> &RunsView {
        &self.runs
    }

    /// One run, as far as it is known.
    pub(crate) async fn run(&self, run: &RunId) -> Result<Option<RunState>, Problem> {
        self.runs.get(run).await.map_err(|e| log_problem(&e))
    }

    pub(crate) fn now_ms(&self) -> i64 {
        (self.deps.clock)()
    }

    /// Waits so long, but not beyond the platform's own end: a drain must not take as long as the most patient caller.
    pub(crate) async fn within<T>(&self, patience: Duration, wait: impl Future<Output = Option<T>>) -> Option<T> {
        tokio::select! {
            biased;
            found = wait => found,
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep(patience) => None,
        }
    }

    /// Writes what the resources make work of. A caller who was told that they are there is to find that router and dispatcher
    /// know them.
    pub(crate) async fn write(&self, mut records: Vec<NewRecord>) -> Result<(), Problem> {
        let seen = self.deps.resources.seen().to_string();
        for record in &mut records {
            record.headers.push((topics::SEEN.to_owned(), seen.clone().into()));
        }
        let written = self.deps.log.produce(records).await;
        written.map(drop).map_err(|e| log_problem(&e))
    }

    /// Refuses new work before the log is full: what is under way needs room to end.
    pub(crate) async fn check_room(&self) -> Result<(), Problem> {
        let usage = self.deps.log.usage().await.map_err(|e| log_problem(&e))?;
        let (Some(bytes), Some(limit)) = (usage.bytes, usage.limit) else {
            return Ok(());
        };
        if bytes as f64 > limit as f64 * self.config.max_log_fraction {
            let detail = format!("the event log holds {bytes} of {limit} bytes; new work is taken when some is done");
            return Err(Problem::new(ErrorCode::Overloaded, detail).retry_after(5));
        }
        Ok(())
    }

    /// Refuses work for a function that has too much of it.
    pub(crate) fn check_backlog(&self, function: &FunctionName) -> Result<(), Problem> {
        let waiting = self.deps.backlog.backlog(function);
        if waiting >= self.config.max_backlog {
            let detail = format!("{waiting} requests wait for function {function} already");
            return Err(Problem::new(ErrorCode::Overloaded, detail).retry_after(5));
        }
        Ok(())
    }
}

/// The record at a place of the log; none when retention or compaction has taken it.
pub async fn record_at(
    log: &dyn EventLog,
    topic: &str,
    partition: u32,
    offset: i64,
) -> Result<Option<Record>, LogError> {
    match log.read(topic, partition, offset, 1).await {
        Ok(records) => Ok(records.into_iter().find(|record| record.offset == offset)),
        Err(LogError::OffsetOutOfRange { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An error of the log as callers see it.
pub fn log_problem(error: &LogError) -> Problem {
    let code = match error {
        LogError::Full { .. } => ErrorCode::StorageFull,
        LogError::RecordTooLarge { .. } => ErrorCode::TooLarge,
        _ => ErrorCode::Unavailable,
    };
    let problem = Problem::new(code, error.to_string());
    if code.retryable() {
        problem.retry_after(5)
    } else {
        problem
    }
}
