//! The side that has the pods.
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imageflow_proto::v1;
use imageflow_proto::v1::pod_service_server::{PodService, PodServiceServer};
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{MAX_MESSAGE_BYTES, line_to_message, to_message};
use crate::host::{LogLine, LogQuery, PodError, PodHost};
use crate::pod::{PodId, PodTable};

/// A caller that says nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(10);
/// So long after its last request a caller still shares the pods: loads come and go faster than shares should.
const SHARES_FOR: Duration = Duration::from_secs(10);
/// Most lines of one answer.
const MAX_LINES: u32 = 10_000;

#[derive(Default)]
struct Caller {
    loads: HashMap<PodId, u32>,
    shares: HashMap<RevisionName, Instant>,
}

#[derive(Default)]
struct Callers {
    next: u64,
    all: HashMap<u64, Caller>,
}

struct Shared {
    host: Arc<dyn PodHost>,
    stop: CancellationToken,
    callers: Mutex<Callers>,
    sharers: watch::Sender<Arc<BTreeMap<RevisionName, u32>>>,
}

/// Serves a pod host to the roles that are other processes.
#[derive(Clone)]
pub struct PodServer(Arc<Shared>);

impl PodServer {
    /// A service over `host`; its streams end with `stop`.
    pub fn service(host: Arc<dyn PodHost>, stop: CancellationToken) -> PodServiceServer<Self> {
        let shared = Shared {
            host,
            stop,
            callers: Mutex::default(),
            sharers: watch::channel(Arc::default()).0,
        };
        PodServiceServer::new(Self(Arc::new(shared))).max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>) -> Seat {
        let mut callers = self.lock();
        callers.next += 1;
        let id = callers.next;
        callers.all.insert(id, Caller::default());
        Seat {
            shared: self.clone(),
            id,
        }
    }

    /// Tells the host the sum of what all callers have with these pods.
    fn tell(&self, callers: &Callers, pods: impl Iterator<Item = PodId>) {
        for pod in pods {
            let loads = callers.all.values().filter_map(|c| c.loads.get(&pod));
            self.host.set_load(&pod, loads.sum());
        }
    }

    fn share(&self, callers: &mut Callers, now: Instant) {
        let mut sharers: BTreeMap<RevisionName, u32> = BTreeMap::new();
        for caller in callers.all.values_mut() {
            caller.shares.retain(|_, since| now - *since < SHARES_FOR);
            for revision in caller.shares.keys() {
                *sharers.entry(revision.clone()).or_default() += 1;
            }
        }
        sharers.retain(|_, n| *n > 1);
        self.sharers.send_if_modified(|known| {
            let changed = **known != sharers;
            if changed {
                *known = Arc::new(sharers);
            }
            changed
        });
    }
}

/// A caller's place. What it had with the pods is forgotten when it goes.
struct Seat {
    shared: Arc<Shared>,
    id: u64,
}

impl Seat {
    fn heard(&self, message: v1::PodLoads, now: Instant) {
        let table = self.shared.host.watch().borrow().clone();
        let mut callers = self.shared.lock();
        let Some(caller) = callers.all.get_mut(&self.id) else {
            return;
        };
        let mut told = Vec::with_capacity(message.requests.len());
        for (id, requests) in message.requests {
            let id = PodId::new(id);
            if requests == 0 {
                caller.loads.remove(&id);
            } else if table.pods.contains_key(&id) {
                caller.loads.insert(id.clone(), requests);
            }
            told.push(id);
        }
        caller.loads.retain(|id, _| table.pods.contains_key(id));
        let busy = caller.loads.keys().filter_map(|id| table.pods.get(id));
        caller.shares.extend(busy.map(|pod| (pod.revision.clone(), now)));
        self.shared.tell(&callers, told.into_iter());
        self.shared.share(&mut callers, now);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut callers = self.shared.lock();
        let Some(caller) = callers.all.remove(&self.id) else {
            return;
        };
        self.shared.tell(&callers, caller.loads.into_keys());
        self.shared.share(&mut callers, Instant::now());
    }
}

/// What one caller of Follow sees.
struct Follow {
    seat: Seat,
    inbound: Streaming<v1::PodLoads>,
    table: watch::Receiver<Arc<PodTable>>,
    sharers: watch::Receiver<Arc<BTreeMap<RevisionName, u32>>>,
    silent_since: Instant,
    first: bool,
}

impl Follow {
    /// The next table, or the end.
    async fn next(&mut self) -> Option<v1::PodTable> {
        while !std::mem::take(&mut self.first) {
            tokio::select! {
                () = self.seat.shared.stop.cancelled() => return None,
                heard = self.inbound.message() => {
                    let message = heard.ok().flatten()?;
                    self.silent_since = Instant::now();
                    self.seat.heard(message, self.silent_since);
                }
                () = tokio::time::sleep_until(self.silent_since + SILENCE) => return None,
                changed = self.table.changed() => {
                    changed.ok()?;
                    break;
                }
                changed = self.sharers.changed() => {
                    changed.ok()?;
                    break;
                }
            }
        }
        let table = self.table.borrow_and_update().clone();
        let sharers = self.sharers.borrow_and_update().clone();
        Some(to_message(&table, &sharers))
    }
}

fn name<T, E: std::fmt::Display>(field: &str, parsed: Result<T, E>) -> Result<T, Status> {
    parsed.map_err(|e| Status::invalid_argument(format!("{field}: {e}")))
}

fn status(error: &PodError) -> Status {
    let text = error.to_string();
    match error {
        PodError::UnknownRevision(_) => Status::not_found(text),
        PodError::NoProgram(_) => Status::failed_precondition(text),
        PodError::Start { .. } | PodError::InUse(_) => Status::internal(text),
        PodError::Closing | PodError::Unreachable { .. } => Status::unavailable(text),
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PodService for PodServer {
    type FollowStream = Answers<v1::PodTable>;

    async fn follow(&self, request: Request<Streaming<v1::PodLoads>>) -> Result<Response<Self::FollowStream>, Status> {
        let follow = Follow {
            seat: self.0.join(),
            inbound: request.into_inner(),
            table: self.0.host.watch(),
            sharers: self.0.sharers.subscribe(),
            silent_since: Instant::now(),
            first: true,
        };
        let tables = futures::stream::unfold(follow, async |mut follow| {
            let table = follow.next().await?;
            Some((Ok(table), follow))
        });
        Ok(Response::new(Box::pin(tables)))
    }

    async fn scale(&self, request: Request<v1::ScaleRequest>) -> Result<Response<v1::ScaleReply>, Status> {
        let request = request.into_inner();
        let revision = name("revision", RevisionName::new(request.revision))?;
        let scaled = self.0.host.scale(&revision, request.replicas).await;
        scaled.map_err(|e| status(&e))?;
        Ok(Response::new(v1::ScaleReply {}))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<v1::LogsReply>, Status> {
        let request = request.into_inner();
        let revision = match request.revision.as_str() {
            "" => None,
            given => Some(name("revision", RevisionName::new(given))?),
        };
        let query = LogQuery {
            function: name("function", FunctionName::new(request.function))?,
            revision,
            tail: request.tail.min(MAX_LINES) as usize,
        };
        let lines = self.0.host.logs(query).await.map_err(|e| status(&e))?;
        Ok(Response::new(v1::LogsReply {
            lines: lines.iter().map(line_to_message).collect(),
        }))
    }

    type FollowLogsStream = Answers<v1::PodLogLine>;

    async fn follow_logs(&self, _: Request<v1::FollowLogsRequest>) -> Result<Response<Self::FollowLogsStream>, Status> {
        let start = (self.0.host.follow_logs(), self.0.stop.clone());
        let lines = futures::stream::unfold(start, async |(mut lines, stop)| {
            let line = next_line(&mut lines, &stop).await?;
            Some((Ok(line_to_message(&line)), (lines, stop)))
        });
        Ok(Response::new(Box::pin(lines)))
    }
}

async fn next_line(lines: &mut broadcast::Receiver<LogLine>, stop: &CancellationToken) -> Option<LogLine> {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return None,
            next = lines.recv() => next,
        };
        match next {
            Ok(line) => return Some(line),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
