//! A router with the real event log and resources, and an object store that knows what the test says.
mod log;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, NewRecord};
use imageflow_events::{Event, EventBuilder, EventBuilderV10};
use imageflow_objects::{ObjectError, ObjectInfo, ObjectStore, PutOptions, SignedUrl};
use imageflow_resources::{Operations, ResourceStore, StoreConfig};
use imageflow_router::{Router, RouterConfig, RouterError};
use imageflow_types::manifest::Resource;
use imageflow_types::{FunctionName, RunEvent, RunId, topics};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::log::{Spy, written};

/// When everything here happens.
pub const NOW_MS: i64 = 1_750_000_000_000;
/// The type of the outside events that the trigger `on-upload` takes.
pub const UPLOADED: &str = "com.example.uploaded";
/// The key of an object at which a look-up panics, and with it who asks.
pub const POISON: &str = "poison.png";
/// A safety net, not a measure: nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened in {PATIENCE:?}"),
    }
}

/// Objects by bucket and key, behind a switch.
pub struct Objects {
    known: Mutex<BTreeMap<(String, String), ObjectInfo>>,
    down: watch::Sender<bool>,
    refused: watch::Sender<u32>,
}

impl Objects {
    /// An object that is there.
    pub fn add(&self, key: &str, etag: &str) {
        let info = ObjectInfo {
            bucket: topics::BUCKET_RAW.to_owned(),
            key: key.to_owned(),
            etag: etag.to_owned(),
            size: 3,
            content_type: Some("image/png".to_owned()),
            version: None,
            metadata: BTreeMap::new(),
            last_modified_ms: NOW_MS,
        };
        let at = (info.bucket.clone(), info.key.clone());
        self.known.lock().unwrap().insert(at, info);
    }

    pub fn down(&self, down: bool) {
        self.down.send_replace(down);
    }

    /// Waits until it was asked in vain so often.
    pub async fn refused(&self, times: u32) {
        let mut refused = self.refused.subscribe();
        let seen = within("a look-up in the store that is down", refused.wait_for(|n| *n >= times)).await;
        drop(seen.unwrap());
    }
}

fn unavailable<T>() -> Result<T, ObjectError> {
    Err(ObjectError::Unavailable {
        source: "the router has no business with this".into(),
    })
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put(&self, _: &str, _: &str, _: Bytes, _: PutOptions) -> Result<ObjectInfo, ObjectError> {
        unavailable()
    }
    async fn get(&self, _: &str, _: &str, _: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        unavailable()
    }
    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        assert_ne!(key, POISON, "a test's poison");
        if *self.down.borrow() {
            self.refused.send_modify(|n| *n += 1);
            return unavailable();
        }
        let at = (bucket.to_owned(), key.to_owned());
        Ok(self.known.lock().unwrap().get(&at).cloned())
    }
    async fn delete(&self, _: &str, _: &str) -> Result<(), ObjectError> {
        unavailable()
    }
    async fn list(&self, _: &str, _: &str, _: Option<&str>, _: usize) -> Result<Vec<ObjectInfo>, ObjectError> {
        unavailable()
    }
    async fn ensure_bucket(&self, _: &str) -> Result<(), ObjectError> {
        unavailable()
    }
    async fn sign_get(&self, _: &str, _: &str, _: Option<&str>, _: Duration) -> Result<SignedUrl, ObjectError> {
        unavailable()
    }
    async fn sign_put(
        &self,
        _: &str,
        _: &str,
        _: &BTreeMap<String, String>,
        _: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        unavailable()
    }
}

/// All but the router.
pub struct World {
    folder: TempDir,
    pub log: Arc<Spy>,
    pub objects: Arc<Objects>,
    pub resources: Arc<ResourceStore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Functions of which was told that they are about to get work.
    pub announced: Arc<Mutex<Vec<FunctionName>>>,
}

impl World {
    /// Functions `outline` and `soften`, a flow `sketch` of both in that order, a trigger `on-upload` for it.
    pub async fn new() -> Self {
        let objects = Arc::new(Objects {
            known: Mutex::default(),
            down: watch::channel(false).0,
            refused: watch::channel(0).0,
        });
        let world = Self::open(TempDir::new().unwrap(), objects).await;
        for name in ["outline", "soften"] {
            world.apply("Function", name, json!({"command": ["/bin/true"]})).await;
        }
        let steps = json!([
            {"name": "lines", "function": "outline"},
            {"name": "smooth", "function": "soften", "after": ["lines"]},
        ]);
        world.apply("Flow", "sketch", json!({"steps": steps})).await;
        let filters = json!([{"exact": {"type": UPLOADED}}]);
        world
            .apply("Trigger", "on-upload", json!({"filters": filters, "flow": "sketch"}))
            .await;
        world
    }

    async fn open(folder: TempDir, objects: Arc<Objects>) -> Self {
        let log = Embedded::open(EmbeddedConfig::new(folder.path().join("log"))).await;
        let log = Spy::new(log.unwrap());
        log.ensure_topics(&Router::topics()).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        // What a test has an event wait for is not given up because the test was slow to make it.
        let config = StoreConfig {
            late: Duration::from_secs(60),
            ..StoreConfig::new(|| NOW_MS)
        };
        let resources = ResourceStore::open(log.clone(), Operations::default(), config, &tasks, &stop).await;
        Self {
            folder,
            log,
            objects,
            resources: resources.unwrap(),
            tasks,
            stop,
            announced: Arc::default(),
        }
    }

    /// Closes the log and opens it again, as a new process does. The journal is new, too.
    pub async fn reopen(self) -> Self {
        self.stop.cancel();
        self.tasks.close();
        within("the tasks end", self.tasks.wait()).await;
        self.log.inner.close().await.unwrap();
        Self::open(self.folder, self.objects).await
    }

    pub async fn apply(&self, kind: &str, name: &str, spec: Value) {
        let document = json!({
            "apiVersion": "imageflow.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        });
        self.resources
            .apply(Resource::from_value(document).unwrap())
            .await
            .unwrap();
    }

    /// Puts events into one partition, as the gateway does.
    pub async fn events(&self, events: &[&Event]) {
        let records = events.iter().map(|event| {
            let (headers, value) = imageflow_events::record::write(event);
            let record = NewRecord::new(topics::EVENTS).key("k").partition(0);
            let record = headers
                .into_iter()
                .fold(record, |r, (name, value)| r.header(name, value));
            match value {
                Some(value) => record.value(value),
                None => record,
            }
        });
        self.log.produce(records.collect()).await.unwrap();
    }

    /// Reports what happened to a run, as the dispatcher does.
    pub async fn report(&self, event: &RunEvent) {
        let value = serde_json::to_vec(event).unwrap();
        let key = event.run().as_str().to_owned();
        let record = NewRecord::new(topics::RUN_EVENTS).key(key).value(value);
        self.log.produce(vec![record]).await.unwrap();
    }

    /// Starts a router.
    pub fn route(&self) -> Running {
        self.route_as(&RouterConfig::default().member)
    }

    /// Starts a router of this name.
    pub fn route_as(&self, member: &str) -> Running {
        let router = Router {
            config: RouterConfig {
                member: member.to_owned(),
                ..RouterConfig::default()
            },
            log: self.log.clone(),
            objects: self.objects.clone(),
            resources: self.resources.clone(),
            clock: || NOW_MS,
            announce: {
                let announced = self.announced.clone();
                Some(Arc::new(move |function| {
                    announced.lock().unwrap().push(function.clone());
                }))
            },
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(router.run(stop.clone()));
        Running { stop, task }
    }
}

/// A router that runs.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), RouterError>>,
}

impl Running {
    /// Stops it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        within("the router stops", self.task).await.unwrap().unwrap();
    }

    /// Does something that needs the router to go on.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            ended = &mut self.task => panic!("the router ended: {ended:?}"),
            done = work => done,
        }
    }

    /// How it ends by itself.
    pub async fn ended(self) -> Result<(), RouterError> {
        within("the router ends", self.task).await.unwrap()
    }
}

/// An outside event that refers to an object in the bucket for raw images.
pub fn uploaded(id: &str, key: &str) -> Event {
    uploaded_data(id, json!({"bucket": topics::BUCKET_RAW, "key": key}))
}

/// An outside event with this data.
pub fn uploaded_data(id: &str, data: Value) -> Event {
    EventBuilderV10::new()
        .id(id)
        .source("urn:test:camera")
        .ty(UPLOADED)
        .data("application/json", data)
        .build()
        .unwrap()
}

/// The run that the trigger makes of an object.
pub fn run_of(trigger: &str, key: &str, etag: &str) -> RunId {
    RunId::derive(&["trigger", trigger, topics::BUCKET_RAW, key, etag])
}

/// A stage's success, its result in the bucket for results.
pub fn completed(run: &RunId, stage: u32, key: &str) -> RunEvent {
    let output = json!({"bucket": topics::BUCKET_PROCESSED, "key": key, "etag": format!("etag-of-{key}"), "size": 5,
        "contentType": "image/png"});
    let result = json!({"output": output, "data": {"n": stage}, "serviceMs": 3});
    RunEvent::StageCompleted {
        run: run.clone(),
        stage,
        result: serde_json::from_value(result).unwrap(),
        at_ms: NOW_MS,
    }
}
