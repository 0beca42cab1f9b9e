//! A gateway on a socket with all that it needs, and a client.
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use imageflow_delivery::{Delivery, DeliveryConfig};
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, FollowEvent, NewRecord, Record, Start, TopicSpec};
use imageflow_gateway::auth::Auth;
use imageflow_gateway::{
    BacklogView, Gateway, GatewayConfig, GatewayDeps, GatewayError, HttpLimits, Scaling, ScalingView, serve,
};
use imageflow_pods::PodState;
use imageflow_pods::testing::FakeHost;
use imageflow_resources::{Operations, ResourceStore, StoreConfig};
use imageflow_types::{FunctionName, RunEvent, RunState, topics};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::store::MemoryStore;

/// The smallest thing that passes for a PNG by its first bytes.
pub const PNG: &[u8] = b"\x89PNG\r\n\x1a\nnot really";

struct Nothing;

impl ScalingView for Nothing {
    fn explain(&self, function: &FunctionName) -> Scaling {
        Scaling {
            function: function.clone(),
            desired: 0,
            ready: 0,
            decisions: Vec::new(),
        }
    }
}

struct Backlog(u64);

impl BacklogView for Backlog {
    fn backlog(&self, _: &FunctionName) -> u64 {
        self.0
    }
}

/// What a world is made with.
pub struct Setup {
    pub auth: Auth,
    pub backlog: u64,
    pub log_limit: Option<u64>,
    pub max_log_fraction: f64,
    pub limits: HttpLimits,
    pub max_answers_bytes: usize,
    /// Resources that are there when the gateway starts.
    pub resources: &'static str,
    pub started_ms: i64,
    pub reconcile_every: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            auth: Auth::Loopback,
            backlog: 0,
            log_limit: None,
            max_log_fraction: 0.9,
            limits: HttpLimits::default(),
            max_answers_bytes: DeliveryConfig::default().max_answers_bytes,
            resources: "",
            started_ms: 0,
            reconcile_every: Duration::ZERO,
        }
    }
}

pub struct World {
    pub addr: SocketAddr,
    pub log: Arc<dyn EventLog>,
    pub objects: Arc<MemoryStore>,
    pub host: Arc<FakeHost>,
    pub delivery: Arc<Delivery>,
    pub resources: Arc<ResourceStore>,
    pub gateway: Arc<Gateway>,
    pub stop: CancellationToken,
    pub server: JoinHandle<Result<(), GatewayError>>,
    client: Client<HttpConnector, Full<Bytes>>,
    _folder: tempfile::TempDir,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Asserts that it is a problem document with that status, and gives its whole text.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{:?}",
            self.body
        );
        let json = self.json();
        assert_eq!(json["code"], code, "{json}");
        assert_eq!(json["status"], status, "{json}");
        json.to_string()
    }
}

fn operations() -> Operations {
    let schema = |required: Value| {
        json!({
            "type": "object", "additionalProperties": false, "required": required,
            "properties": {"width": {"type": "integer", "minimum": 1, "maximum": 10000}, "height": {"type": "integer"}},
        })
    };
    Operations::new([
        ("resize".to_owned(), schema(json!([]))),
        ("crop".to_owned(), schema(json!(["width"]))),
    ])
}

/// A function, a flow of it, and a trigger of that.
pub const SAMPLE: &str = "
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: resize }
spec: { operation: resize }
---
apiVersion: imageflow.dev/v1alpha1
kind: Flow
metadata: { name: thumbs }
spec: { steps: [ { name: small, function: resize, params: { width: 64 } } ] }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-upload }
spec:
  filters: [ { exact: { type: dev.imageflow.object.created } }, { prefix: { subject: raw-images/ } } ]
  flow: thumbs
";

impl World {
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, setup).await
    }

    pub async fn on(listener: TcpListener, setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig {
            limit_bytes: setup.log_limit,
            reserve_bytes: 0,
            sync: false,
            ..EmbeddedConfig::new(folder.path())
        };
        let log: Arc<dyn EventLog> = Embedded::open(config).await.unwrap();
        let plain = [topics::EVENTS, topics::RUN_EVENTS, topics::DEAD_LETTERS];
        let mut specs: Vec<TopicSpec> = plain.map(|name| TopicSpec::new(name, topics::PARTITIONS)).into();
        specs.push(TopicSpec::compacted(topics::RUNS, topics::PARTITIONS));
        log.ensure_topics(&specs).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let clock: fn() -> i64 = || 1_000;
        let resources = ResourceStore::open(log.clone(), operations(), StoreConfig::new(clock), &tasks, &stop)
            .await
            .unwrap();
        apply(&resources, setup.resources).await;
        let host = Arc::new(FakeHost::default());
        let objects = Arc::new(MemoryStore::default());
        let config = DeliveryConfig {
            max_answers_bytes: setup.max_answers_bytes,
            ..DeliveryConfig::default()
        };
        let delivery = Delivery::start(config, host.clone(), &tasks, &stop);
        let deps = GatewayDeps {
            log: log.clone(),
            objects: objects.clone(),
            resources: resources.clone(),
            delivery: delivery.clone(),
            pods: host.clone(),
            scaling: Arc::new(Nothing),
            backlog: Arc::new(Backlog(setup.backlog)),
            metrics: Arc::new(String::new),
            clock,
        };
        let config = GatewayConfig {
            max_body_bytes: 64 * 1024,
            max_bodies_bytes: 100 * 1024,
            max_backlog: 100,
            max_log_fraction: setup.max_log_fraction,
            auth: setup.auth,
            api_url: "http://127.0.0.1:8000".to_owned(),
            s3_url: "http://127.0.0.1:9000".to_owned(),
            started_ms: setup.started_ms,
            reconcile_every: setup.reconcile_every,
        };
        let gateway = Gateway::open(deps, config, &tasks, &stop).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, gateway.clone(), setup.limits));
        tasks.spawn(router(log.clone(), stop.clone()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            addr,
            log,
            objects,
            host,
            delivery,
            resources,
            gateway,
            stop,
            server,
            client,
            _folder: folder,
        }
    }

    /// With the sample resources, which are there when the gateway starts.
    pub async fn sample() -> Self {
        Self::sample_with(Setup::default()).await
    }

    pub async fn sample_with(setup: Setup) -> Self {
        let resources = SAMPLE;
        Self::with(Setup { resources, ..setup }).await
    }

    pub async fn apply(&self, manifests: &str) {
        apply(&self.resources, manifests).await;
    }

    /// Sends a request and returns before the body has come.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client
            .request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap()
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let (head, body) = self.open(method, path, headers, body).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        self.send(Method::POST, path, headers, body).await
    }

    /// All records of a topic.
    pub async fn records(&self, topic: &str) -> Vec<Record> {
        let mut all = Vec::new();
        for partition in 0..topics::PARTITIONS {
            all.extend(self.log.read(topic, partition, 0, 10_000).await.unwrap());
        }
        all
    }

    pub async fn run_events(&self) -> Vec<RunEvent> {
        let records = self.records(topics::RUN_EVENTS).await;
        records
            .iter()
            .map(|r| serde_json::from_slice(r.value.as_ref().unwrap()).unwrap())
            .collect()
    }

    /// Writes a run's state, as the router does.
    pub async fn write_run(&self, state: &RunState) {
        write_run(&self.log, state).await;
    }

    /// Plays a ready pod of the function's first revision at an address.
    pub fn pod_at(&self, addr: SocketAddr) {
        let function = FunctionName::new("resize").unwrap();
        self.host.add(&function, addr, PodState::Ready);
    }
}

async fn apply(resources: &ResourceStore, manifests: &str) {
    for resource in imageflow_types::Resource::from_yaml(manifests).unwrap() {
        resources.apply(resource).await.unwrap();
    }
}

async fn write_run(log: &Arc<dyn EventLog>, state: &RunState) {
    let value = serde_json::to_vec(state).unwrap();
    let record = NewRecord::new(topics::RUNS).key(state.run.to_string()).value(value);
    log.produce(vec![record]).await.unwrap();
}

/// As much of a router as the gateway needs: takes each run that is wanted, once, and leaves it running.
async fn router(log: Arc<dyn EventLog>, stop: CancellationToken) {
    let mut follower = log.follow(topics::RUN_EVENTS, Start::Earliest).await.unwrap();
    let mut taken = HashSet::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = follower.next() => event.unwrap(),
        };
        let FollowEvent::Records(records) = event else { continue };
        for record in records {
            let event: RunEvent = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
            if let RunEvent::Requested(request) = event
                && taken.insert(request.run.clone())
            {
                write_run(&log, &state(&request, "running", 1)).await;
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A run's state with one step, written by the platform at `version`.
pub fn state(request: &imageflow_types::work::RunRequest, status: &str, version: u64) -> RunState {
    let step_status = if status == "running" { "queued" } else { status };
    serde_json::from_value(json!({
        "schema": 1, "run": request.run, "status": status, "request": request,
        "plan": {"bucket": "processed-images", "stages": [{
            "function": "resize", "revision": "resize-00001", "digest": "d",
            "steps": [{"name": "small", "function": "resize", "operation": "resize", "params": {}}],
        }]},
        "steps": [{"name": "small", "function": "resize", "stage": 0, "status": step_status}],
        "createdMs": 1000, "updatedMs": 1000 + version, "version": version,
    }))
    .unwrap()
}
