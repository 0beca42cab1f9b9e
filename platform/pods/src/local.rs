//! Pods as processes of this machine.
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{LogLine, LogQuery, PodError, PodHost, PodProvisioner, PodSpec};
use crate::orphans::{self, Process, Record};
use crate::pod::{Phases, Pod, PodId, PodState, PodTable};

pub mod cgroups;
pub mod lines;
mod ports;
mod probe;
mod run;
mod warden;

pub use cgroups::Enforcement;

/// Longest that the end of the host waits: the longest drain and some more. What is left then is the warden's.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(35);

/// Settings of a local host.
#[derive(Debug, Clone)]
pub struct LocalHostConfig {
    /// Folder for what must survive us: the record by which leftovers are found. One host at a time has it.
    pub state_dir: PathBuf,
    /// Program and arguments of the warden; the platform's id is added. It calls `warden_main` with it.
    /// Empty: no warden, leftovers are ended by the next host of the folder.
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
    /// Forgotten once its last pod is gone.
    removed: bool,
}

#[derive(Default)]
struct State {
    revisions: HashMap<RevisionName, Revision>,
    loads: HashMap<PodId, u32>,
    lines: HashMap<FunctionName, lines::Kept>,
    created: u64,
    closing: bool,
}

/// Runs pods as processes.
pub struct LocalHost {
    config: LocalHostConfig,
    platform: String,
    cgroups: Option<cgroups::Cgroups>,
    ports: ports::Ports,
    state: Mutex<State>,
    table: watch::Sender<Arc<PodTable>>,
    lines: broadcast::Sender<LogLine>,
    /// What the warden and the next host will read.
    record: Mutex<Record>,
    recorded: Notify,
    tasks: TaskTracker,
    /// Ends the warden and the writer of the record, after the last pod.
    end: CancellationToken,
    keepers: Mutex<Vec<JoinHandle<()>>>,
    /// Held until the end of the shutdown: the next host of the folder ends all pods that it finds recorded there.
    lock: File,
}

/// Takes the folder for one host. Children do not inherit the file, so pods and warden hold nobody up.
fn take_lock(state_dir: &Path) -> Result<File, PodError> {
    let fail = |source| PodError::Start {
        what: "the lock of its folder",
        source,
    };
    let file = File::create(state_dir.join(".lock")).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PodError::InUse(state_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(fail(source)),
    }
}

impl LocalHost {
    /// Ends what an earlier host of the folder left, starts the warden, and is ready for pods. Inside a runtime.
    ///
    /// # Errors
    /// `InUse` when another host has the folder; `Start` when it cannot be written or the warden cannot be started.
    pub fn start(config: LocalHostConfig) -> Result<Arc<Self>, PodError> {
        let fail = |what| move |source| PodError::Start { what, source };
        std::fs::create_dir_all(&config.state_dir).map_err(fail("its folder"))?;
        let lock = take_lock(&config.state_dir)?;
        let left = orphans::take_over(&config.state_dir).map_err(fail("the pods of an earlier one"))?;
        if left > 0 {
            tracing::info!(left, "pods of an earlier platform were ended");
        }
        let id = uuid::Uuid::new_v4();
        let platform = id.simple().to_string();
        let cgroups = cgroups::Cgroups::open(&platform);
        let record = Record {
            platform: platform.clone(),
            process: i32::try_from(std::process::id()).ok().and_then(Process::of),
            cgroups: cgroups.as_ref().map(cgroups::Cgroups::dirs).unwrap_or_default(),
            ..Record::default()
        };
        record
            .write(&config.state_dir)
            .map_err(fail("the record of its pods"))?;
        let warden = warden::spawn(&config, &platform).map_err(fail("its warden"))?;
        let host = Arc::new(Self {
            config,
            platform,
            cgroups,
            ports: ports::Ports::new(id.as_fields().0),
            state: Mutex::default(),
            table: watch::channel(Arc::default()).0,
            lines: broadcast::channel(1024).0,
            record: Mutex::new(record),
            recorded: Notify::new(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            keepers: Mutex::default(),
            lock,
        });
        tracing::info!(limits = ?host.enforcement(), "pods are local processes");
        let mut keepers = vec![tokio::spawn(warden::keep_record(host.clone()))];
        if let Some(warden) = warden {
            keepers.push(tokio::spawn(warden::keep(host.clone(), warden)));
        }
        *host.keepers.lock().unwrap_or_else(PoisonError::into_inner) = keepers;
        Ok(host)
    }

    /// What holds pods to their `resources` on this machine.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        self.cgroups
            .as_ref()
            .map_or(Enforcement::Rlimits, cgroups::Cgroups::enforcement)
    }

    /// Drains all pods and waits for their end, for at most 35 s.
    pub async fn shutdown(&self) {
        {
            let mut state = self.lock();
            state.closing = true;
            for replica in state.revisions.values().flat_map(|r| r.replicas.values()) {
                replica.stop.cancel();
            }
        }
        self.tasks.close();
        if tokio::time::timeout(LONGEST_SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some pods did not end, they are left to the warden");
        }
        self.end.cancel();
        let keepers = std::mem::take(&mut *self.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        for keeper in keepers {
            if let Err(error) = keeper.await {
                tracing::error!(%error, "a task of the pod host ended unexpectedly");
            }
        }
        for dir in self.cgroups.iter().flat_map(cgroups::Cgroups::dirs) {
            cgroups::remove_tree(&dir);
        }
        // Not left to the end of the file: a child that is just being started shares it for a moment.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the folder of pods is not free before this process ends");
        }
    }

    fn load(&self, pod: &PodId) -> u32 {
        self.lock().loads.get(pod).copied().unwrap_or(0)
    }

    fn note(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
        self.recorded.notify_one();
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
        self.forget(&mut state, &spec.revision);
        drop(state);
        self.change(|table| {
            table.pods.remove(id);
        });
    }

    /// Drops a revision that was removed, once its last pod is gone, and the lines with the function's last one.
    fn forget(&self, state: &mut State, revision: &RevisionName) {
        let gone = state
            .revisions
            .get(revision)
            .is_some_and(|r| r.removed && r.replicas.is_empty());
        let Some(gone) = gone.then(|| state.revisions.remove(revision)).flatten() else {
            return;
        };
        let function = &gone.spec.function;
        if !state.revisions.values().any(|r| &r.spec.function == function) {
            state.lines.remove(function);
        }
    }

    fn keep_line(&self, line: LogLine) {
        let mut state = self.lock();
        let lines = state.lines.entry(line.function.clone()).or_default();
        lines.push(line.clone(), self.config.kept_lines);
        drop(state);
        // Nobody follows: the line is kept all the same.
        let _ = self.lines.send(line);
    }
}

/// The trait's methods are on the shared handle, because pods outlive a call.
#[async_trait]
impl PodHost for Arc<LocalHost> {
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

    fn set_load(&self, pod: &PodId, requests: u32) {
        // A request may end after its pod: that must not be remembered for ever.
        if self.table.borrow().pods.contains_key(pod) {
            self.lock().loads.insert(pod.clone(), requests);
        }
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

#[async_trait]
impl PodProvisioner for Arc<LocalHost> {
    async fn apply(&self, spec: PodSpec) -> Result<(), PodError> {
        if spec.command.is_empty() {
            return Err(PodError::NoProgram(spec.revision));
        }
        let mut state = self.lock();
        let spec = Arc::new(spec);
        match state.revisions.get_mut(&spec.revision) {
            Some(revision) => {
                revision.spec = spec;
                revision.removed = false;
            }
            None => {
                let revision = Revision {
                    spec: spec.clone(),
                    replicas: HashMap::new(),
                    removed: false,
                };
                state.revisions.insert(spec.revision.clone(), revision);
            }
        }
        Ok(())
    }

    async fn remove(&self, revision: &RevisionName) -> Result<(), PodError> {
        self.scale(revision, 0).await?;
        let mut state = self.lock();
        if let Some(entry) = state.revisions.get_mut(revision) {
            entry.removed = true;
        }
        self.forget(&mut state, revision);
        Ok(())
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
