//! The work as gateways and dispatchers of other processes report it.
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use imageflow_proto::v1;
use imageflow_proto::v1::stats_service_server::{StatsService, StatsServiceServer};
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::inputs::{FunctionLoad, Functions, StatsSource};

/// Reports of this version and the next are read.
const SCHEMA: u32 = 1;
/// A reporter that says nothing for so long is taken for dead; it reports every 2 s at least.
const SILENCE: Duration = Duration::from_secs(8);
/// After a consumer of work came or went its partitions are nobody's until the group has settled: for so long a backlog that
/// nobody tells is not known, and no pod is taken away.
const SETTLE: Duration = Duration::from_secs(20);
/// So long the totals of a reporter that went are kept, in case that only its connection broke.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Clone, Copy)]
struct Done {
    completed: u64,
    calls: u64,
    service_ms: f64,
}

#[derive(Debug)]
struct Reporter {
    connection: u64,
    consumes_work: bool,
    /// When it went, while it is gone.
    gone: Option<Instant>,
    sequence: u64,
    /// Heard from its first report on, so that a total which is new counts from 0.
    from_start: bool,
    now: Vec<v1::FunctionStats>,
    totals: HashMap<RevisionName, Done>,
}

#[derive(Debug)]
struct State {
    connections: u64,
    reporters: HashMap<String, Reporter>,
    /// Completions since the last collection.
    done: HashMap<(FunctionName, RevisionName), Done>,
    settled: Instant,
}

/// Collects reports.
#[derive(Debug)]
pub struct Reports {
    state: Mutex<State>,
    functions: watch::Receiver<Arc<Functions>>,
    pokes: broadcast::Sender<FunctionName>,
    stop: CancellationToken,
}

impl Reports {
    /// Nothing is reported yet. Inside a runtime; streams end with `stop`.
    #[must_use]
    pub fn new(functions: watch::Receiver<Arc<Functions>>, stop: CancellationToken) -> Arc<Self> {
        let state = State {
            connections: 0,
            reporters: HashMap::new(),
            done: HashMap::new(),
            settled: Instant::now() + SETTLE,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            functions,
            pokes: broadcast::channel(1024).0,
            stop,
        })
    }

    /// The service that reporters call.
    #[must_use]
    pub fn service(self: &Arc<Self>) -> StatsServiceServer<Service> {
        StatsServiceServer::new(Service(self.clone()))
    }

    /// Functions whose work met no pod.
    #[must_use]
    pub fn pokes(&self) -> broadcast::Receiver<FunctionName> {
        self.pokes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn revision(stats: &v1::FunctionStats) -> Result<Option<RevisionName>, Status> {
    match stats.revision.as_str() {
        "" => Ok(None),
        text => RevisionName::new(text)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("functions.revision: {e}"))),
    }
}

fn function(text: &str) -> Result<FunctionName, Status> {
    FunctionName::new(text).map_err(|e| Status::invalid_argument(format!("functions.function: {e}")))
}

impl State {
    /// Takes a report of a connection.
    fn take(&mut self, connection: u64, report: v1::StatsReport, now: Instant) -> Result<(), Status> {
        let fresh = || Reporter {
            connection,
            consumes_work: report.consumes_work,
            gone: None,
            sequence: 0,
            from_start: report.sequence == 1,
            now: Vec::new(),
            totals: HashMap::new(),
        };
        let known = self.reporters.get(&report.reporter).filter(|r| r.gone.is_none());
        if known.is_some_and(|r| r.consumes_work) != report.consumes_work {
            self.settled = now + SETTLE;
        }
        let reporter = self.reporters.entry(report.reporter.clone()).or_insert_with(fresh);
        if report.sequence <= reporter.sequence {
            *reporter = fresh();
        }
        // A second one of the name displaces the first, as in a consumer group.
        (reporter.connection, reporter.sequence, reporter.gone) = (connection, report.sequence, None);
        reporter.consumes_work = report.consumes_work;
        for stats in &report.functions {
            let function = function(&stats.function)?;
            let Some(revision) = revision(stats)? else { continue };
            let total = Done {
                completed: stats.completed_total,
                calls: stats.calls_total,
                service_ms: stats.service_ms_total,
            };
            let before = reporter.totals.insert(revision.clone(), total);
            let before = match before {
                Some(before) if before.completed <= total.completed => before,
                // It forgot, or began.
                Some(_) => Done::default(),
                None if reporter.from_start => Done::default(),
                None => total,
            };
            let done = self.done.entry((function, revision)).or_default();
            done.completed += total.completed - before.completed;
            done.calls += total.calls.saturating_sub(before.calls);
            done.service_ms += (total.service_ms - before.service_ms).max(0.0);
        }
        reporter.now = report.functions;
        Ok(())
    }

    /// A connection has ended.
    fn leave(&mut self, connection: u64, now: Instant) {
        for (name, reporter) in &mut self.reporters {
            if reporter.connection == connection && reporter.gone.is_none() {
                tracing::info!(reporter = name, "a reporter of work went away");
                reporter.gone = Some(now);
                reporter.now.clear();
                if reporter.consumes_work {
                    self.settled = now + SETTLE;
                }
            }
        }
    }

    fn collect(&mut self, functions: &Functions, now: Instant) -> Vec<FunctionLoad> {
        self.reporters
            .retain(|_, r| r.gone.is_none_or(|since| now - since < REMEMBERED));
        let consumers = self.reporters.values().filter(|r| r.gone.is_none() && r.consumes_work);
        let known = consumers.count() > 0 && now >= self.settled;
        let mut loads: HashMap<(FunctionName, Option<RevisionName>), FunctionLoad> = HashMap::new();
        let untold = known.then_some(0);
        let empty = |function: &FunctionName, revision: Option<&RevisionName>| FunctionLoad {
            revision: revision.cloned(),
            backlog: untold,
            ..FunctionLoad::of(function.clone())
        };
        for stats in self.reporters.values().flat_map(|r| &r.now) {
            // What cannot be read was refused when it came.
            let (Ok(function), Ok(revision)) = (function(&stats.function), revision(stats)) else {
                continue;
            };
            let load = loads
                .entry((function.clone(), revision.clone()))
                .or_insert_with(|| empty(&function, revision.as_ref()));
            load.held = load.held.saturating_add(stats.held);
            load.held_batch = load.held_batch.saturating_add(stats.held_batch);
            load.lent = load.lent.saturating_add(stats.lent);
            load.in_flight = load.in_flight.saturating_add(stats.in_flight);
            load.expected = load.expected.saturating_add(stats.expected);
            if stats.backlog > 0 {
                load.backlog = Some(load.backlog.unwrap_or(0).saturating_add(stats.backlog));
                load.partial = !known;
                load.oldest_ms = load.oldest_ms.max(Some(stats.backlog_age_ms));
            }
        }
        for ((function, revision), done) in self.done.drain().filter(|(_, done)| done.completed > 0) {
            let load = loads
                .entry((function.clone(), Some(revision.clone())))
                .or_insert_with(|| empty(&function, Some(&revision)));
            load.completed_since = done.completed;
            load.calls_since = done.calls;
            load.service_ms_sum = done.service_ms.round() as u64;
        }
        if !known {
            for function in functions.keys() {
                let key = (function.clone(), None);
                loads.entry(key).or_insert_with(|| empty(function, None));
            }
        }
        loads.into_values().collect()
    }
}

impl StatsSource for Reports {
    fn collect(&self) -> Vec<FunctionLoad> {
        let functions = self.functions.borrow().clone();
        self.lock().collect(&functions, Instant::now())
    }
}

/// One connection. What it reported is forgotten when it ends.
struct Connection {
    reports: Arc<Reports>,
    id: u64,
    inbound: Streaming<v1::StatsReport>,
}

impl Connection {
    async fn next(&mut self) -> Option<Result<v1::StatsAck, Status>> {
        let heard = tokio::select! {
            () = self.reports.stop.cancelled() => return None,
            heard = tokio::time::timeout(SILENCE, self.inbound.message()) => heard,
        };
        let report = heard.ok()?.ok().flatten()?;
        let sequence = report.sequence;
        if report.schema_version > SCHEMA + 1 {
            let text = format!("reports of version {} are not known here", report.schema_version);
            return Some(Err(Status::failed_precondition(text)));
        }
        let pokes: Result<Vec<_>, _> = report.pokes.iter().map(|name| function(name)).collect();
        let taken = self.reports.lock().take(self.id, report, Instant::now());
        match taken.and(pokes) {
            Ok(pokes) => {
                for function in pokes {
                    // Nobody listens while the autoscaler starts; its tick finds the waiter then.
                    let _ = self.reports.pokes.send(function);
                }
                Some(Ok(v1::StatsAck { sequence }))
            }
            Err(status) => Some(Err(status)),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reports.lock().leave(self.id, Instant::now());
    }
}

/// The gRPC service over [`Reports`].
#[derive(Debug, Clone)]
pub struct Service(Arc<Reports>);

#[tonic::async_trait]
impl StatsService for Service {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::StatsAck, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::StatsReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let id = {
            let mut state = self.0.lock();
            state.connections += 1;
            state.connections
        };
        let connection = Connection {
            reports: self.0.clone(),
            id,
            inbound: request.into_inner(),
        };
        let acks = futures::stream::unfold(connection, async |mut connection| {
            let ack = connection.next().await?;
            Some((ack, connection))
        });
        Ok(Response::new(Box::pin(acks)))
    }
}

#[cfg(test)]
mod tests;
