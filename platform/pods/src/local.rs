//! Pods as processes of this machine.
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use imageflow_types::{FunctionName, RevisionName};
use tokio::process::{Child, Command};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{LogLine, LogQuery, PodError, PodHost, PodSpec};
use crate::orphans;
use crate::pod::{Phases, Pod, PodId, PodState, PodTable};

mod lines;
mod probe;
mod run;

/// Settings of a local host.
#[derive(Debug, Clone)]
pub struct LocalHostConfig {
    /// Folder for what must survive us: the id by which leftovers are found.
    pub state_dir: PathBuf,
    /// Program and arguments of the warden; the platform's id is added. It calls `warden_main`.
    pub warden: Vec<String>,
    /// Lines kept of each function.
    pub kept_lines: usize,
    /// Longest that a pod may take to be ready.
    pub start_timeout: Duration,
}

impl LocalHostConfig {
    /// Defaults: 1,000 lines, 30 s.
    #[must_use]
    pub const fn new(state_dir: PathBuf, warden: Vec<String>) -> Self {
        Self {
            state_dir,
            warden,
            kept_lines: 1000,
            start_timeout: Duration::from_secs(30),
        }
    }
}

struct Replica {
    stop: CancellationToken,
    created: u64,
}

struct Revision {
    spec: Arc<PodSpec>,
    replicas: HashMap<PodId, Replica>,
}

#[derive(Default)]
struct State {
    revisions: HashMap<RevisionName, Revision>,
    loads: HashMap<PodId, u32>,
    lines: HashMap<FunctionName, VecDeque<LogLine>>,
    created: u64,
    closing: bool,
}

/// Runs pods as processes.
pub struct LocalHost {
    config: LocalHostConfig,
    platform: String,
    state: Mutex<State>,
    table: watch::Sender<Arc<PodTable>>,
    lines: broadcast::Sender<LogLine>,
    tasks: TaskTracker,
    /// Ends when we do, by whatever death; its end of the pipe is how it knows.
    warden: Mutex<Option<Child>>,
}

impl LocalHost {
    /// Ends what an earlier host of the folder left, starts the warden, and is ready for pods.
    ///
    /// # Errors
    /// `Start` when the folder cannot be written or the warden cannot be started.
    pub fn start(config: LocalHostConfig) -> Result<Arc<Self>, PodError> {
        let fail = |what| move |source| PodError::Start { what, source };
        std::fs::create_dir_all(&config.state_dir).map_err(fail("its folder"))?;
        let platform = uuid::Uuid::new_v4().simple().to_string();
        let left = orphans::take_over(&config.state_dir, &platform).map_err(fail("the pods of an earlier one"))?;
        if left > 0 {
            tracing::info!(left, "pods of an earlier platform were ended");
        }
        let warden = match config.warden.split_first() {
            None => None,
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&platform).env_clear().stdin(Stdio::piped());
                command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
                Some(command.spawn().map_err(fail("its warden"))?)
            }
        };
        tracing::info!("pods are local processes; memory is limited by RLIMIT_DATA, open files by RLIMIT_NOFILE");
        Ok(Arc::new(Self {
            config,
            platform,
            state: Mutex::default(),
            table: watch::channel(Arc::default()).0,
            lines: broadcast::channel(1024).0,
            tasks: TaskTracker::new(),
            warden: Mutex::new(warden),
        }))
    }

    /// Drains all pods and waits for their end.
    pub async fn shutdown(&self) {
        {
            let mut state = self.lock();
            state.closing = true;
            for replica in state.revisions.values().flat_map(|r| r.replicas.values()) {
                replica.stop.cancel();
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
        let warden = self.warden.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut warden) = warden {
            // Its input ends with this, and so does it.
            drop(warden.stdin.take());
            let _ = warden.wait().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut PodTable)) {
        self.table.send_modify(|table| change(Arc::make_mut(table)));
    }

    fn spawn_replica(self: &Arc<Self>, state: &mut State, revision: &RevisionName) {
        state.created += 1;
        let created = state.created;
        let Some(entry) = state.revisions.get_mut(revision) else {
            return;
        };
        let spec = entry.spec.clone();
        let id = PodId::new(format!(
            "{revision}-{}",
            &uuid::Uuid::new_v4().simple().to_string()[..8]
        ));
        let stop = CancellationToken::new();
        entry.replicas.insert(
            id.clone(),
            Replica {
                stop: stop.clone(),
                created,
            },
        );
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut pod = Pod::new(
            id.clone(),
            spec.function.clone(),
            spec.revision.clone(),
            nowhere,
            spec.concurrency_limit,
            PodState::Starting,
        );
        pod.phases = Phases {
            asked_ms: now_ms(),
            ..Phases::default()
        };
        self.change(|table| {
            table.pods.insert(id.clone(), pod);
        });
        let host = self.clone();
        self.tasks
            .spawn(async move { run::replica(&host, &spec, &id, &stop).await });
    }

    /// A replica's task has ended.
    fn gone(&self, spec: &PodSpec, id: &PodId) {
        let mut state = self.lock();
        state.loads.remove(id);
        if let Some(revision) = state.revisions.get_mut(&spec.revision) {
            revision.replicas.remove(id);
        }
        drop(state);
        self.change(|table| {
            table.pods.remove(id);
        });
    }

    fn keep_line(&self, line: LogLine) {
        let mut state = self.lock();
        let lines = state.lines.entry(line.function.clone()).or_default();
        if lines.len() >= self.config.kept_lines {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        drop(state);
        // Nobody follows: the line is kept all the same.
        let _ = self.lines.send(line);
    }
}

/// The trait's methods are on the shared handle, because pods outlive a call.
#[async_trait]
impl PodHost for Arc<LocalHost> {
    async fn apply(&self, spec: PodSpec) -> Result<(), PodError> {
        if spec.command.is_empty() {
            return Err(PodError::NoProgram(spec.revision));
        }
        let mut state = self.lock();
        let spec = Arc::new(spec);
        match state.revisions.get_mut(&spec.revision) {
            Some(revision) => revision.spec = spec,
            None => {
                state.revisions.insert(
                    spec.revision.clone(),
                    Revision {
                        spec,
                        replicas: HashMap::new(),
                    },
                );
            }
        }
        Ok(())
    }

    async fn scale(&self, revision: &RevisionName, replicas: u32) -> Result<(), PodError> {
        let mut state = self.lock();
        if state.closing {
            return Err(PodError::Closing);
        }
        let entry = state
            .revisions
            .get(revision)
            .ok_or_else(|| PodError::UnknownRevision(revision.clone()))?;
        let mut live: Vec<(u32, u64, PodId)> = entry
            .replicas
            .iter()
            .filter(|(_, r)| !r.stop.is_cancelled())
            .map(|(id, r)| {
                (
                    state.loads.get(id).copied().unwrap_or(0),
                    u64::MAX - r.created,
                    id.clone(),
                )
            })
            .collect();
        let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
        for _ in live.len()..wanted {
            self.spawn_replica(&mut state, revision);
        }
        live.sort_unstable();
        let surplus = live.len().saturating_sub(wanted);
        if let Some(entry) = state.revisions.get(revision) {
            for (_, _, id) in live.iter().take(surplus) {
                if let Some(replica) = entry.replicas.get(id) {
                    replica.stop.cancel();
                }
            }
        }
        Ok(())
    }

    async fn remove(&self, revision: &RevisionName) -> Result<(), PodError> {
        self.scale(revision, 0).await?;
        let mut state = self.lock();
        if state.revisions.get(revision).is_some_and(|r| r.replicas.is_empty()) {
            state.revisions.remove(revision);
        }
        Ok(())
    }

    fn set_load(&self, pod: &PodId, requests: u32) {
        self.lock().loads.insert(pod.clone(), requests);
    }

    fn watch(&self) -> watch::Receiver<Arc<PodTable>> {
        self.table.subscribe()
    }

    async fn logs(&self, query: LogQuery) -> Result<Vec<LogLine>, PodError> {
        let state = self.lock();
        let Some(lines) = state.lines.get(&query.function) else {
            return Ok(Vec::new());
        };
        let wanted = lines
            .iter()
            .filter(|l| query.revision.as_ref().is_none_or(|r| r == &l.revision));
        let wanted: Vec<LogLine> = wanted.cloned().collect();
        Ok(wanted[wanted.len().saturating_sub(query.tail)..].to_vec())
    }

    fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        self.lines.subscribe()
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
