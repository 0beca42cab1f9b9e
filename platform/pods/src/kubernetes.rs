//! Pods of a Kubernetes namespace. The operator makes a Deployment for each revision; here its number of pods is set, and the
//! pods are watched themselves, not EndpointSlices: those tell less (no phases, no reasons) and later.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use imageflow_types::RevisionName;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{LogLine, LogQuery, PodError, PodHost};
use crate::pod::{PodId, PodTable};

mod announce;
pub mod lease;
mod logs;
mod nodes;
mod seen;
mod table;

use seen::Seen;
pub use table::{FUNCTION_LABEL, FUNCTION_PORT, LIMIT_ANNOTATION, REVISION_LABEL};

/// Who writes the number of pods, as the API server keeps it.
pub const FIELD_MANAGER: &str = "imageflow-autoscaler";
/// Says which pods a Deployment takes away first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Lower than that of any pod that was not chosen, which is 0.
const CHOSEN_COST: &str = "-1000";
/// Calls to the API at once when pods are chosen to go.
const CALLS_AT_ONCE: usize = 8;
/// Longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the API server is, as messages name it.
const SERVER: &str = "the Kubernetes API";

/// Settings of a Kubernetes host.
pub struct KubernetesConfig {
    /// The API server.
    pub client: kube::Client,
    /// Where the functions' Deployments and pods are.
    pub namespace: String,
    /// Where pods announce themselves, with the key of which each revision's is made; `None`: the API's word alone counts.
    pub announcements: Option<(TcpListener, Vec<u8>)>,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
}

/// Runs no pods itself: asks Kubernetes for them.
pub struct KubernetesHost {
    client: kube::Client,
    namespace: String,
    clock: fn() -> i64,
    seen: Mutex<Seen>,
    table: watch::Sender<Arc<PodTable>>,
    /// Whether the pods have been listed once.
    listed: watch::Sender<bool>,
    expiring: Notify,
    lines: broadcast::Sender<LogLine>,
    lines_wanted: Notify,
}

impl KubernetesHost {
    /// Watches the pods in tasks of `tasks` until `stop`. Inside a runtime.
    pub fn start(config: KubernetesConfig, tasks: &TaskTracker, stop: &CancellationToken) -> Arc<Self> {
        let host = Arc::new(Self {
            client: config.client,
            namespace: config.namespace,
            clock: config.clock,
            seen: Mutex::default(),
            table: watch::channel(Arc::default()).0,
            listed: watch::channel(false).0,
            expiring: Notify::new(),
            lines: broadcast::channel(1024).0,
            lines_wanted: Notify::new(),
        });
        let until = |work: futures::future::BoxFuture<'static, ()>| {
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = work => {}
                }
            });
        };
        until(Box::pin(keep_watching(host.clone())));
        until(Box::pin(keep_expiring(host.clone())));
        until(Box::pin(nodes::keep_watching(host.clone())));
        until(Box::pin(logs::keep(host.clone())));
        if let Some((listener, master)) = config.announcements {
            let gate = announce::Gate::new(master);
            tasks.spawn(announce::serve(host.clone(), gate, listener, stop.clone()));
        }
        host
    }

    /// Whether the pods have been seen, now and after each change.
    #[must_use]
    pub fn listed(&self) -> watch::Receiver<bool> {
        self.listed.subscribe()
    }

    fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> Api<KubePod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Changes what is known and shows what comes of it.
    fn change<T>(&self, change: impl FnOnce(&mut Seen, i64) -> T) -> T {
        let now_ms = self.now_ms();
        let (answer, table) = {
            let mut seen = self.lock();
            let answer = change(&mut seen, now_ms);
            (answer, seen.table(now_ms))
        };
        self.table.send_if_modified(|shown| {
            let changed = **shown != table;
            if changed {
                *shown = Arc::new(table);
            }
            changed
        });
        self.expiring.notify_one();
        answer
    }

    fn announced(&self, pod: PodId, revision: RevisionName, addr: std::net::SocketAddr) {
        self.change(|seen, now_ms| seen.announce(pod, revision, addr, now_ms));
    }

    fn see(&self, event: watcher::Event<KubePod>) {
        if let watcher::Event::InitApply(pod) = event {
            // The table is shown when the list is complete.
            let now_ms = self.now_ms();
            return self.lock().apply(&pod, true, now_ms);
        }
        let complete = matches!(event, watcher::Event::InitDone);
        self.change(|seen, now_ms| match event {
            watcher::Event::Init => seen.list(),
            watcher::Event::InitDone => seen.listed(),
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => seen.apply(&pod, false, now_ms),
            watcher::Event::Delete(pod) => seen.delete(&pod),
        });
        if complete {
            self.listed.send_replace(true);
        }
    }

    /// Tells the Deployment's controller whom to take.
    async fn mark(&self, going: &[PodId]) {
        let pods = self.pods();
        let cost = json!({ "metadata": { "annotations": { DELETION_COST: CHOSEN_COST } } });
        let marked = futures::stream::iter(going.to_vec()).for_each_concurrent(CALLS_AT_ONCE, |id| {
            let (pods, cost) = (pods.clone(), cost.clone());
            async move {
                // Without the mark another pod may go, which ends its work first as well.
                let (params, patch) = (written_by_us(), Patch::Merge(&cost));
                if let Err(error) = pods.patch_metadata(id.as_str(), &params, &patch).await {
                    tracing::debug!(pod = %id, %error, "a pod could not be chosen to go");
                }
            }
        });
        if tokio::time::timeout(CALL_TIMEOUT, marked).await.is_err() {
            tracing::warn!("the API server is slow; other pods may go than those with the least work");
        }
    }
}

fn written_by_us() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Watches the pods. While the API server is away the last table stands.
async fn keep_watching(host: Arc<KubernetesHost>) {
    let config = watcher::Config::default().labels(FUNCTION_LABEL);
    let events = watcher(host.pods(), config).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut away = false;
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                if std::mem::take(&mut away) {
                    tracing::info!("the pods are watched again");
                }
                host.see(event);
            }
            Ok(None) => return,
            Err(error) if away => tracing::debug!(%error, "the pods are not watched"),
            Err(error) => {
                away = true;
                tracing::warn!(%error, namespace = host.namespace, "the pods are not watched for now; it is tried again");
            }
        }
    }
}

/// Takes back what was not confirmed in time.
async fn keep_expiring(host: Arc<KubernetesHost>) {
    loop {
        let next = host.lock().next_expiry_ms();
        let wait = next.map(|at| Duration::from_millis(u64::try_from(at - host.now_ms()).unwrap_or(0)));
        tokio::select! {
            () = host.expiring.notified() => continue,
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
        host.change(Seen::expire);
    }
}

#[async_trait]
impl PodHost for KubernetesHost {
    async fn scale(&self, revision: &RevisionName, replicas: u32) -> Result<(), PodError> {
        let unreachable = |why: String| PodError::Unreachable {
            url: SERVER.to_owned(),
            why,
        };
        let going = self.change(|seen, now_ms| seen.choose(revision, replicas, now_ms));
        if replicas > 0 && !going.is_empty() {
            self.mark(&going).await;
        }
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let params = written_by_us();
        let scaled = deployments.patch_scale(revision.as_str(), &params, &patch);
        let scaled = match tokio::time::timeout(CALL_TIMEOUT, scaled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(PodError::UnknownRevision(revision.clone())),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!("no answer within {CALL_TIMEOUT:?}"))),
        };
        if scaled.is_err() {
            self.change(|seen, _| seen.keep(&going));
        }
        scaled
    }

    fn set_load(&self, pod: &PodId, requests: u32) {
        self.lock().load(pod, requests);
    }

    fn watch(&self) -> watch::Receiver<Arc<PodTable>> {
        self.table.subscribe()
    }

    async fn logs(&self, query: LogQuery) -> Result<Vec<LogLine>, PodError> {
        logs::last(self, &query).await
    }

    fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        let lines = self.lines.subscribe();
        self.lines_wanted.notify_one();
        lines
    }
}
