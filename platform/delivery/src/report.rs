//! Tells an autoscaler in another process what is held, under way and waiting here.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use imageflow_proto::peer::{Peer, PeerError, Trouble};
use imageflow_proto::v1;
use imageflow_proto::v1::stats_service_client::StatsServiceClient;
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::pool::Delivery;
use crate::stats::RevisionStats;

/// Version of the reports.
pub const SCHEMA: u32 = 1;
/// Between two reports when there is something new; a poke is told at once.
const EVERY: Duration = Duration::from_millis(500);
/// Between two reports when there is not.
const ALIVE: Duration = Duration::from_secs(2);
/// First pause before a broken connection is made again; it doubles up to `ALIVE`.
const AGAIN: Duration = Duration::from_millis(50);
/// Revisions whose totals are remembered; more than that begins anew, which the other side takes for a restart.
const MOST_TOTALS: usize = 50_000;

/// What waits of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionBacklog {
    /// The function.
    pub function: FunctionName,
    /// Records of its work topic that no pod has yet.
    pub waiting: u64,
    /// When the oldest was asked for, ms since 1970.
    pub oldest_ms: Option<i64>,
    /// Steps under way whose results it will work on.
    pub expected: u32,
}

/// Who reads work topics, and so knows what waits there.
pub trait BacklogSource: Send + Sync + 'static {
    /// Every function of which something waits, or for which something is on its way.
    fn backlogs(&self) -> Vec<FunctionBacklog>;

    /// Whether it reads them now. While it does not, as in an outage of the log, a function that is not listed may have any backlog.
    fn reads(&self) -> bool;
}

/// Reports to the autoscaler.
pub struct Reporter {
    /// Name among all reporters, stable over a restart.
    pub name: String,
    /// The autoscaler.
    pub peer: Peer,
    /// Functions to be decided on at once, as [`Delivery::pokes`] or [`Announcer::pokes`](crate::Announcer::pokes) has them.
    pub pokes: broadcast::Receiver<FunctionName>,
    /// What is held and under way; `None` for one that brings nothing to pods.
    pub delivery: Option<Arc<Delivery>>,
    /// What waits in topics; `None` for one that reads none.
    pub backlogs: Option<Arc<dyn BacklogSource>>,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
}

#[derive(Default)]
struct Totals {
    completed: HashMap<RevisionName, (u64, u64, Duration)>,
    sequence: u64,
}

impl Reporter {
    /// Reports until `stop`; connections that break are made again.
    ///
    /// # Errors
    /// [`PeerError`] for an address or a key that can never work.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), PeerError> {
        let client = StatsServiceClient::new(self.peer.channel()?);
        let (mut totals, mut pause, mut trouble) = (Totals::default(), AGAIN, Trouble::default());
        loop {
            let (begun, sent) = (Instant::now(), totals.sequence);
            let ended = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ended = self.report(client.clone(), &mut totals) => ended,
            };
            // One that takes long to be refused was not there.
            if begun.elapsed() > ALIVE && totals.sequence > sent {
                pause = AGAIN;
                trouble.over();
            }
            let why = ended.as_ref().err().map_or("it ended the connection", Status::message);
            if trouble.is_news(why, std::time::Instant::now()) {
                tracing::warn!(
                    autoscaler = self.peer.url(),
                    why,
                    "the autoscaler does not hear of the work here; it is tried again"
                );
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(ALIVE),
            }
        }
    }

    async fn report(
        &mut self,
        mut client: StatsServiceClient<imageflow_proto::peer::PeerChannel>,
        totals: &mut Totals,
    ) -> Result<(), Status> {
        let (reports, outbound) = mpsc::channel(1);
        let mut acks = client.report(ReceiverStream::new(outbound)).await?.into_inner();
        let mut told = Instant::now() - ALIVE;
        let mut last = (Vec::new(), false);
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut poked = Vec::new();
            tokio::select! {
                ack = acks.message() => match ack? {
                    Some(_) => continue,
                    None => return Ok(()),
                },
                poke = self.pokes.recv() => match poke {
                    Ok(function) => poked.push(function),
                    Err(RecvError::Lagged(_)) => continue,
                    Err(RecvError::Closed) => return Ok(()),
                },
                _ = every.tick() => {}
            }
            while let Ok(function) = self.pokes.try_recv() {
                poked.push(function);
            }
            poked.sort_unstable();
            poked.dedup();
            let functions = self.functions(totals);
            // Asked when what waits was listed: it is said before the list is emptied that it is not read any more.
            let reads = self.backlogs.as_ref().is_some_and(|backlogs| backlogs.reads());
            let now = (functions, reads);
            if poked.is_empty() && now == last && told.elapsed() < ALIVE {
                continue;
            }
            totals.sequence += 1;
            let report = v1::StatsReport {
                schema_version: SCHEMA,
                reporter: self.name.clone(),
                sequence: totals.sequence,
                at_ms: (self.clock)(),
                functions: now.0.clone(),
                pokes: poked.iter().map(ToString::to_string).collect(),
                consumes_work: reads,
            };
            (last, told) = (now, Instant::now());
            if reports.send(report).await.is_err() {
                return Ok(());
            }
        }
    }

    fn functions(&self, totals: &mut Totals) -> Vec<v1::FunctionStats> {
        let stats = self
            .delivery
            .as_ref()
            .map_or_else(Vec::new, |delivery| delivery.collect());
        let mut functions: Vec<_> = stats.into_iter().map(|stats| totals.add(stats)).collect();
        let now_ms = (self.clock)();
        let backlogs = self.backlogs.as_ref().map_or_else(Vec::new, |b| b.backlogs());
        functions.extend(backlogs.into_iter().map(|one| {
            v1::FunctionStats {
                function: one.function.to_string(),
                backlog: one.waiting,
                backlog_age_ms: one
                    .oldest_ms
                    .map_or(0, |since| u64::try_from(now_ms - since).unwrap_or(0)),
                expected: one.expected,
                ..v1::FunctionStats::default()
            }
        }));
        functions.sort_by(|a, b| (&a.function, &a.revision).cmp(&(&b.function, &b.revision)));
        functions
    }
}

impl Totals {
    fn add(&mut self, stats: RevisionStats) -> v1::FunctionStats {
        if self.completed.len() >= MOST_TOTALS {
            self.completed.clear();
        }
        let (completed, calls, service) = self.completed.entry(stats.revision.clone()).or_default();
        *completed += stats.completed;
        *calls += stats.calls;
        *service += stats.service;
        v1::FunctionStats {
            function: stats.function.to_string(),
            revision: stats.revision.to_string(),
            held: stats.held,
            held_batch: stats.held_batch,
            lent: stats.lent,
            in_flight: stats.in_flight,
            completed_total: *completed,
            calls_total: *calls,
            service_ms_total: service.as_secs_f64() * 1000.0,
            ..v1::FunctionStats::default()
        }
    }
}
