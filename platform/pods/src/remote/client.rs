//! The side that sees the pods from another process.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use imageflow_proto::peer::{Peer, PeerChannel, PeerError, Trouble};
use imageflow_proto::v1;
use imageflow_proto::v1::pod_service_client::PodServiceClient;
use imageflow_types::RevisionName;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status, Streaming};

use super::{MAX_MESSAGE_BYTES, SCHEMA, from_message, line_from_message};
use crate::host::{LogLine, LogQuery, PodError, PodHost};
use crate::pod::{PodId, PodTable};

/// Settings of a remote host.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// The process that has the pods.
    pub peer: Peer,
    /// Longest that one call may take.
    pub call_timeout: Duration,
    /// Least time between two reports of loads.
    pub report_every: Duration,
    /// Most time between two reports: the server takes a caller for dead that is silent for 10 s.
    pub alive_every: Duration,
    /// First pause before a broken connection is made again; it doubles up to `alive_every`.
    pub again_after: Duration,
}

impl RemoteConfig {
    /// Defaults: 5 s, 100 ms, 2 s, 50 ms.
    #[must_use]
    pub const fn new(peer: Peer) -> Self {
        Self {
            peer,
            call_timeout: Duration::from_secs(5),
            report_every: Duration::from_millis(100),
            alive_every: Duration::from_secs(2),
            again_after: Duration::from_millis(50),
        }
    }
}

#[derive(Default)]
struct Loads {
    now: HashMap<PodId, u32>,
    untold: HashSet<PodId>,
}

type Client = PodServiceClient<PeerChannel>;

/// Pods of another process. While that does not answer, the last table stands: its pods go on.
pub struct RemoteHost {
    config: RemoteConfig,
    client: Client,
    table: watch::Sender<Arc<PodTable>>,
    loads: Mutex<Loads>,
    changed: Notify,
    lines: broadcast::Sender<LogLine>,
    lines_wanted: Notify,
    connected: watch::Sender<bool>,
}

impl RemoteHost {
    /// Follows the pods in tasks of `tasks` until `stop`. Inside a runtime.
    ///
    /// # Errors
    /// [`PeerError`] for an address or a key that can never work.
    pub fn start(config: RemoteConfig, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Arc<Self>, PeerError> {
        let client = PodServiceClient::new(config.peer.channel()?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let host = Arc::new(Self {
            config,
            client,
            table: watch::channel(Arc::default()).0,
            loads: Mutex::default(),
            changed: Notify::new(),
            lines: broadcast::channel(1024).0,
            lines_wanted: Notify::new(),
            connected: watch::channel(false).0,
        });
        let (shared, end) = (host.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = shared.keep_following() => {}
            }
        });
        let (shared, end) = (host.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = shared.keep_lines() => {}
            }
        });
        Ok(host)
    }

    /// Whether the pods are seen, now and after each change.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Loads> {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_following(&self) {
        let mut pause = self.config.again_after;
        let mut trouble = Trouble::default();
        loop {
            let result = self.follow().await;
            if self.connected.send_replace(false) {
                pause = self.config.again_after;
                trouble.over();
                tracing::warn!(
                    pods = self.config.peer.url(),
                    why = ended(&result),
                    "the pod host went away"
                );
            } else if trouble.is_news(ended(&result), Instant::now()) {
                tracing::warn!(
                    pods = self.config.peer.url(),
                    why = ended(&result),
                    "there is no pod host: all that needs a pod waits; it is tried again"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.config.alive_every);
        }
    }

    async fn follow(&self) -> Result<(), Status> {
        let (reports, outbound) = mpsc::channel(1);
        {
            // The other side knows nothing of us.
            let mut loads = self.lock();
            let all: Vec<PodId> = loads.now.keys().cloned().collect();
            loads.untold.extend(all);
        }
        let mut client = self.client.clone();
        let answer = client.follow(ReceiverStream::new(outbound)).await?;
        let mut tables = answer.into_inner();
        let telling = self.tell(reports);
        tokio::pin!(telling);
        loop {
            tokio::select! {
                table = tables.message() => {
                    let Some(table) = table? else { return Ok(()) };
                    self.take(table);
                }
                () = &mut telling => return Ok(()),
            }
        }
    }

    fn take(&self, message: v1::PodTable) {
        if message.schema_version > SCHEMA + 1 {
            tracing::error!(
                version = message.schema_version,
                "the pod host is of a later version; its table is not read"
            );
            return;
        }
        let table = Arc::new(from_message(message));
        {
            let mut loads = self.lock();
            loads.now.retain(|id, _| table.pods.contains_key(id));
            loads.untold.retain(|id| table.pods.contains_key(id));
        }
        self.table.send_replace(table);
        if !self.connected.send_replace(true) {
            tracing::info!(pods = self.config.peer.url(), "the pod host is there");
        }
    }

    /// Reports loads until the connection ends.
    async fn tell(&self, reports: mpsc::Sender<v1::PodLoads>) {
        loop {
            let requests = {
                let mut loads = self.lock();
                let untold = std::mem::take(&mut loads.untold);
                let load = |id: PodId| (id.to_string(), loads.now.get(&id).copied().unwrap_or(0));
                untold.into_iter().map(load).collect()
            };
            if reports.send(v1::PodLoads { requests }).await.is_err() {
                return;
            }
            tokio::time::sleep(self.config.report_every).await;
            // Ends early when something changed.
            let _ = tokio::time::timeout(self.config.alive_every, self.changed.notified()).await;
        }
    }

    /// Brings lines here for as long as somebody reads them.
    async fn keep_lines(&self) {
        loop {
            self.lines_wanted.notified().await;
            while self.lines.receiver_count() > 0 {
                let mut client = self.client.clone();
                match client.follow_logs(v1::FollowLogsRequest {}).await {
                    Ok(answer) => self.bring(answer.into_inner()).await,
                    Err(status) => tracing::debug!(why = status.message(), "the lines of pods cannot be followed"),
                }
                tokio::time::sleep(self.config.again_after).await;
            }
        }
    }

    async fn bring(&self, mut lines: Streaming<v1::PodLogLine>) {
        while self.lines.receiver_count() > 0 {
            match tokio::time::timeout(self.config.alive_every, lines.message()).await {
                // Nobody wrote: a look at who still reads.
                Err(_) => {}
                Ok(Ok(Some(line))) => {
                    if let Some(line) = line_from_message(line) {
                        // The last reader may have gone in this moment.
                        let _ = self.lines.send(line);
                    }
                }
                Ok(Ok(None) | Err(_)) => return,
            }
        }
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, (Code, PodError)> {
        let unreachable = |why: String| PodError::Unreachable {
            url: self.config.peer.url().to_owned(),
            why,
        };
        let limit = self.config.call_timeout;
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err((status.code(), unreachable(status.message().to_owned()))),
            Err(_) => Err((
                Code::DeadlineExceeded,
                unreachable(format!("no answer within {limit:?}")),
            )),
        }
    }
}

fn ended(result: &Result<(), Status>) -> &str {
    result.as_ref().err().map_or("it ended the connection", Status::message)
}

#[async_trait]
impl PodHost for RemoteHost {
    async fn scale(&self, revision: &RevisionName, replicas: u32) -> Result<(), PodError> {
        let mut client = self.client.clone();
        let request = v1::ScaleRequest {
            revision: revision.to_string(),
            replicas,
        };
        match self.within(client.scale(request)).await {
            Ok(v1::ScaleReply {}) => Ok(()),
            Err((Code::NotFound, _)) => Err(PodError::UnknownRevision(revision.clone())),
            Err((_, error)) => Err(error),
        }
    }

    fn set_load(&self, pod: &PodId, requests: u32) {
        let mut loads = self.lock();
        let before = if requests == 0 {
            loads.now.remove(pod)
        } else {
            loads.now.insert(pod.clone(), requests)
        };
        if before.unwrap_or(0) != requests {
            loads.untold.insert(pod.clone());
            self.changed.notify_one();
        }
    }

    fn watch(&self) -> watch::Receiver<Arc<PodTable>> {
        self.table.subscribe()
    }

    async fn logs(&self, query: LogQuery) -> Result<Vec<LogLine>, PodError> {
        let mut client = self.client.clone();
        let request = v1::LogsRequest {
            function: query.function.to_string(),
            revision: query.revision.map(|r| r.to_string()).unwrap_or_default(),
            tail: u32::try_from(query.tail).unwrap_or(u32::MAX),
        };
        let reply = self.within(client.logs(request)).await.map_err(|(_, error)| error)?;
        Ok(reply.lines.into_iter().filter_map(line_from_message).collect())
    }

    fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        let lines = self.lines.subscribe();
        self.lines_wanted.notify_one();
        lines
    }
}
