//! A dispatcher with all that it needs: the real event log, resources, delivery and object store, and a pod that the
//! test plays.
mod log;
mod pod;
mod store;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imageflow_delivery::{Delivery, DeliveryConfig};
use imageflow_dispatcher::backlog::Backlog;
use imageflow_dispatcher::{Backlogs, Dispatcher, DispatcherConfig, DispatcherError};
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, NewRecord, TopicSpec, partition_for_key};
use imageflow_objects::ObjectStore;
use imageflow_pods::PodState;
use imageflow_pods::testing::FakeHost;
use imageflow_resources::{Operations, ResourceStore, StoreConfig};
use imageflow_types::manifest::Resource;
use imageflow_types::names::{FunctionName, RevisionName, RunId, StepName};
use imageflow_types::work::{DeadLetter, Input, ObjectRef, OutputRef, StageStep, StepResult};
use imageflow_types::{RunEvent, StepRequest, topics};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::log::{Entry, Spy, commits};
pub use self::pod::{Call, PodServer, body, broken, problem, replied, send, status};
pub use self::store::Switch;

/// The function of the tests.
pub const FUNCTION: &str = "outline";
/// A safety net, not a measure: nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened in {PATIENCE:?}"),
    }
}

pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

pub fn function() -> FunctionName {
    FunctionName::new(FUNCTION).unwrap()
}

/// The work topic of the tests.
pub fn work() -> String {
    topics::work(&function())
}

/// A step of a run of that name.
pub fn step(name: &str) -> StepRequest {
    let function = function();
    StepRequest {
        run: RunId::derive(&["test", name]),
        stage: 0,
        revision: RevisionName::of(&function, 1),
        steps: vec![StageStep {
            name: StepName::new("only").unwrap(),
            function: function.clone(),
            operation: None,
            params: serde_json::Map::new(),
        }],
        function,
        input: Input::Object(ObjectRef {
            bucket: topics::BUCKET_RAW.to_owned(),
            key: "photo.png".to_owned(),
            etag: "never-asked-for".to_owned(),
            size: 3,
            content_type: Some("image/png".to_owned()),
        }),
        output: OutputRef {
            bucket: topics::BUCKET_PROCESSED.to_owned(),
            key: format!("out/{name}.png"),
            intermediate: false,
        },
        attempts: Vec::new(),
        next: Vec::new(),
        requested_ms: 1_000,
        traceparent: None,
    }
}

/// All but the dispatcher.
pub struct World {
    folder: TempDir,
    pub log: Arc<Spy>,
    pub store: Arc<Switch>,
    pub resources: Arc<ResourceStore>,
    pub pod: PodServer,
    pub host: Arc<FakeHost>,
    pub backlogs: Arc<Backlogs>,
    pub delivery: Arc<Delivery>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl World {
    /// An empty platform with one function, of one ready pod.
    pub async fn new() -> Self {
        Self::with(json!({"retry": 3, "backoffDelay": "20ms"})).await
    }

    /// The same with this delivery policy.
    pub async fn with(delivery: Value) -> Self {
        let world = Self::without_pod(json!({"delivery": delivery})).await;
        world.host.add(&function(), world.pod.addr, PodState::Ready);
        world
    }

    /// An empty platform with one function of this spec, and no pod.
    pub async fn without_pod(spec: Value) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Switch::start(&folder.path().join("objects")).await;
        for bucket in [topics::BUCKET_RAW, topics::BUCKET_PROCESSED] {
            store.ensure_bucket(bucket).await.unwrap();
        }
        let world = Self::open(folder, Arc::new(store), PodServer::start().await).await;
        world.apply(&function(), spec).await;
        world
    }

    /// The same with memory for so many bytes of answers.
    pub fn with_room_for_answers(mut self, bytes: usize) -> Self {
        let config = DeliveryConfig {
            max_answers_bytes: bytes,
            ..DeliveryConfig::default()
        };
        self.delivery = Delivery::start(config, self.host.clone(), &self.tasks, &self.stop);
        self
    }

    /// Applies a function of this spec.
    pub async fn apply(&self, function: &FunctionName, mut spec: Value) {
        spec["command"] = json!(["/bin/true"]);
        spec["concurrency"] = json!({"limit": 16});
        let function = json!({
            "apiVersion": "imageflow.dev/v1alpha1",
            "kind": "Function",
            "metadata": {"name": function.as_str()},
            "spec": spec,
        });
        self.resources
            .apply(Resource::from_value(function).unwrap())
            .await
            .unwrap();
    }

    /// One more function, of the same pod.
    pub async fn another(&self, name: &str) -> FunctionName {
        let function = FunctionName::new(name).unwrap();
        self.apply(&function, json!({})).await;
        self.host.add(&function, self.pod.addr, PodState::Ready);
        function
    }

    async fn open(folder: TempDir, store: Arc<Switch>, pod: PodServer) -> Self {
        let log = Embedded::open(EmbeddedConfig::new(folder.path().join("log"))).await;
        let log = Spy::new(log.unwrap());
        log.ensure_topics(&[TopicSpec::new(topics::RUN_EVENTS, topics::PARTITIONS)])
            .await
            .unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        // What a test has a step wait for is not given up because the test was slow to make it.
        let config = StoreConfig {
            late: Duration::from_secs(60),
            ..StoreConfig::new(now_ms)
        };
        let resources = ResourceStore::open(log.clone(), Operations::default(), config, &tasks, &stop).await;
        let host = Arc::new(FakeHost::default());
        let delivery = Delivery::start(DeliveryConfig::default(), host.clone(), &tasks, &stop);
        Self {
            folder,
            log,
            store,
            resources: resources.unwrap(),
            pod,
            host,
            backlogs: Arc::default(),
            delivery,
            tasks,
            stop,
        }
    }

    /// Closes the log and opens it again, as a new process does. The journal is new, too.
    pub async fn reopen(self) -> Self {
        self.stop.cancel();
        self.tasks.close();
        within("the tasks end", self.tasks.wait()).await;
        self.log.inner.close().await.unwrap();
        let world = Self::open(self.folder, self.store, self.pod).await;
        world.host.add(&function(), world.pod.addr, PodState::Ready);
        world
    }

    /// Puts a step into a partition of the function's work topic, as the router does.
    pub async fn give(&self, step: &StepRequest, partition: u32) {
        self.give_raw(step.run.as_str(), serde_json::to_vec(step).unwrap(), partition)
            .await;
    }

    pub async fn give_raw(&self, key: &str, value: Vec<u8>, partition: u32) {
        let record = NewRecord::new(work()).key(key.to_owned()).value(value);
        self.log.produce(vec![record.partition(partition)]).await.unwrap();
    }

    /// Puts a step of the function into its first partition, by a router that had seen so much of the resources.
    pub async fn give_as_of(&self, step: &StepRequest, seen: &str) {
        let record = NewRecord::new(work()).key(step.run.as_str().to_owned());
        let record = record.value(serde_json::to_vec(step).unwrap());
        let record = record.header(topics::SEEN, seen.to_owned()).partition(0);
        self.log.produce(vec![record]).await.unwrap();
    }

    /// What somebody has seen whose view shows one change more of the function than this one.
    pub fn seen_with_one_more(&self) -> String {
        let at = partition_for_key(format!("Function/{FUNCTION}").as_bytes(), topics::FEW_PARTITIONS);
        let seen = self.resources.seen().to_string();
        let of_function = |pair: &str| pair.strip_prefix(&format!("{at}:"))?.parse::<i64>().ok();
        let next = seen.split(' ').find_map(of_function).unwrap();
        format!("{at}:{}", next + 1)
    }

    /// Waits until a step behind those that were given is done, and they are not: one for which nobody waits, of a function that
    /// is not there.
    pub async fn passed_by(&self) {
        let last = step("passes-by");
        self.give(&last, 0).await;
        assert!(matches!(self.log.end(&last.run).await, RunEvent::StageFailed { .. }));
        let beyond = |journal: &[Entry]| {
            let commits = commits(journal, &work(), 0);
            commits.iter().any(|commit| !commit.metadata.is_empty()).then_some(())
        };
        self.log.until("a commit of what is done beyond", beyond).await;
    }

    /// Puts steps of a function into a partition of its topic, all at once: who reads finds none or all of them.
    pub async fn give_all(&self, function: &FunctionName, steps: &[StepRequest], partition: u32) {
        let record = |step: &StepRequest| {
            let step = StepRequest {
                function: function.clone(),
                revision: RevisionName::of(function, 1),
                ..step.clone()
            };
            let record = NewRecord::new(topics::work(function)).key(step.run.as_str().to_owned());
            record.value(serde_json::to_vec(&step).unwrap()).partition(partition)
        };
        self.log.produce(steps.iter().map(record).collect()).await.unwrap();
    }

    /// Makes the topic of delays, as a dispatcher does.
    pub async fn make_delays(&self) {
        let topic = TopicSpec::new(topics::DELAY, topics::FEW_PARTITIONS).retention(Duration::from_secs(24 * 3600));
        self.log.ensure_topics(&[topic]).await.unwrap();
    }

    /// Makes the topic of dead letters, as the router does.
    pub async fn make_dead_letters(&self) {
        let topic = TopicSpec::new(topics::DEAD_LETTERS, topics::PARTITIONS);
        self.log.ensure_topics(&[topic]).await.unwrap();
    }

    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        for partition in 0..topics::PARTITIONS {
            for record in self.log.read(topics::DEAD_LETTERS, partition, 0, 100).await.unwrap() {
                letters.push(serde_json::from_slice(&record.value.unwrap()).unwrap());
            }
        }
        letters
    }

    /// The result of a step that must have been completed.
    pub async fn completed(&self, step: &StepRequest) -> StepResult {
        match self.log.end(&step.run).await {
            RunEvent::StageCompleted { result, stage, .. } => {
                assert_eq!(stage, step.stage);
                result
            }
            other => panic!("not completed: {other:?}"),
        }
    }

    /// Waits until a function has so many records that are not read. The log is counted again and again meanwhile.
    pub async fn unread(&self, function: &FunctionName, unread: u64) {
        let what = format!("{unread} of {function} are not read");
        let counted = |_: &[Entry]| (self.backlogs.get(function).unread == unread).then_some(());
        self.log.until(&what, counted).await;
    }

    /// Nothing waits and nothing works.
    pub fn assert_idle(&self) {
        assert_eq!(self.backlogs.get(&function()), Backlog::default());
        assert_eq!(self.backlogs.expected(), []);
    }

    /// Starts a dispatcher.
    pub fn dispatch(&self) -> Running {
        self.dispatch_with(DispatcherConfig::default(), self.backlogs.clone())
    }

    /// Starts a dispatcher that waits for nothing when it is to end.
    pub fn dispatch_hasty(&self) -> Running {
        let config = DispatcherConfig {
            drain: Duration::ZERO,
            ..DispatcherConfig::default()
        };
        self.dispatch_with(config, self.backlogs.clone())
    }

    /// Starts a dispatcher of another name, with backlogs of its own, that waits for nothing when it is to end.
    pub fn dispatch_as(&self, member: &str) -> Running {
        let config = DispatcherConfig {
            member: member.to_owned(),
            drain: Duration::ZERO,
            ..DispatcherConfig::default()
        };
        self.dispatch_with(config, Arc::default())
    }

    pub fn dispatch_with(&self, config: DispatcherConfig, backlogs: Arc<Backlogs>) -> Running {
        let dispatcher = Dispatcher {
            config: DispatcherConfig {
                commit_every: Duration::from_millis(5),
                ..config
            },
            log: self.log.clone(),
            objects: self.store.clone(),
            resources: self.resources.clone(),
            delivery: self.delivery.clone(),
            backlogs,
            clock: now_ms,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(dispatcher.run(stop.clone()));
        Running { stop, task }
    }
}

/// A dispatcher that runs.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), DispatcherError>>,
}

impl Running {
    /// Stops it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        within("the dispatcher stops", self.task).await.unwrap().unwrap();
    }
}
