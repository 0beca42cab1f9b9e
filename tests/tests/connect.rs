//! The archive: the configuration of manifests/kafka in a real Connect worker, on a real broker and a real S3 server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use imageflow_eventlog::{EventLog, Kafka, KafkaConfig, TopicSpec};
use imageflow_objects::{ObjectStore, S3Config, S3Store};
use imageflow_router::Router;
use imageflow_servers::connect::Worker;
use imageflow_servers::kafka::Cluster;
use imageflow_servers::s3::{S3Options, S3Server};
use imageflow_tests::Api;
use imageflow_tests::external::until;
use imageflow_tests::http::json;
use imageflow_types::topics;
use rdkafka::producer::Producer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

#[path = "connect/support.rs"]
mod support;

use support::{Archive, Archived, Place, connector, producer, properties, send, sink, text};

const ARCHIVED: [&str; 3] = [topics::EVENTS, topics::RUNS, topics::DEAD_LETTERS];
/// Records of each part of the scene.
const PART: usize = 240;
/// Longest wait for anything. A worker that was killed is missed by its groups after 6 s and replaced 10 s after that.
const PATIENCE: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(60);
/// Where the manifest has the credentials.
const CREDENTIALS: &str = "/mnt/archive-s3";
const NAME: &str = "imageflow-archive";
/// What Connect calls the group of that connector; the rights of its user name it too.
const GROUP: &str = "connect-imageflow-archive";
/// Between two looks at the bucket.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[test]
fn the_manifests_archive_what_the_platform_writes_and_hold_no_credentials() {
    let config = connector();
    assert_eq!(config["topics"], ARCHIVED.join(","));
    assert_eq!(config["aws.s3.bucket.name"], topics::BUCKET_LOGS);
    assert_eq!(config["consumer.override.isolation.level"], "read_committed");
    assert_eq!(config["errors.tolerance"], "none");
    for name in ["aws.access.key.id", "aws.secret.access.key"] {
        assert!(
            config[name].starts_with(&format!("${{directory:{CREDENTIALS}:")),
            "{name}"
        );
    }
    assert_eq!(
        properties("archive/worker.properties")["config.providers.directory.param.allowed.paths"],
        CREDENTIALS
    );
    let all = text("archive/connect.yaml");
    assert!(
        all.contains(&format!("mountPath: {CREDENTIALS}")),
        "the worker has its credentials"
    );
    assert!(
        all.contains(&format!("/connectors/{NAME}/config")),
        "the connector has its name"
    );
    // What its user may do is what it reads, and the group that Connect gives it.
    let users = text("users.sh");
    assert!(users.contains(&format!("for topic in {}; do", ARCHIVED.join(" "))));
    assert!(users.contains(&format!("--group {GROUP} ")));
}

/// The servers, and the archive between them.
struct World {
    worker: Worker,
    connect: Api,
    server: S3Server,
    objects: Arc<dyn ObjectStore>,
    cluster: Cluster,
    archive: Archive,
    /// What was written.
    sent: BTreeMap<Place, Archived>,
    /// The start of the newest hour that records have.
    hour: i64,
    /// The files of the Secret.
    credentials: tempfile::TempDir,
}

impl World {
    /// Starts all of it but the connector; `None` when servers are left out.
    async fn start() -> Option<Self> {
        let cluster = Cluster::for_test(1).await?;
        let server = S3Server::for_test(S3Options::default()).await?;
        make_topics(&cluster.bootstrap()).await;
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join("access-key"), server.access_key()).unwrap();
        std::fs::write(credentials.path().join("secret-key"), server.secret_key()).unwrap();
        let folder = credentials.path().display().to_string();
        let config = worker_config(&cluster.bootstrap(), &folder);
        let worker = Worker::start(cluster.libs(), &sink(), &config).await.unwrap();
        let config = S3Config::new(server.url(), server.access_key(), server.secret_key());
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        Some(Self {
            connect: Api::new(&worker.url()),
            worker,
            objects: Arc::new(S3Store::new(config)),
            server,
            cluster,
            archive: Archive::default(),
            sent: BTreeMap::new(),
            hour: i64::try_from(now.as_secs() / 3600 * 3600 * 1000).unwrap() - 3_600_000,
            credentials,
        })
    }

    /// The connector as the manifest has it, but for what must differ here.
    fn connector(&self) -> Value {
        let mut config = connector();
        let class = "dev.imageflow.archive.ArchiveSinkConnector";
        config.insert("connector.class".to_owned(), class.to_owned());
        config.insert("aws.s3.endpoint".to_owned(), self.server.url());
        for name in ["aws.access.key.id", "aws.secret.access.key"] {
            let folder = self.credentials.path().display().to_string();
            config.insert(name.to_owned(), config[name].replace(CREDENTIALS, &folder));
        }
        json!({ "name": NAME, "config": config })
    }

    async fn post(&self, connector: &Value) -> (u16, Value) {
        let headers = [("content-type", "application/json")];
        let path = "/connectors";
        let answer = self
            .connect
            .send(Method::POST, path, &headers, connector.to_string())
            .await;
        (answer.status().as_u16(), json(&answer))
    }

    /// Writes records of these numbers to all topics.
    async fn write(&mut self, numbers: std::ops::Range<usize>) {
        let producer = producer(&self.cluster.bootstrap(), None);
        for number in numbers {
            let topic = ARCHIVED[number % ARCHIVED.len()];
            let record = Archived::example(topic, number, self.hour);
            let place = send(&producer, topic, &record).await;
            self.sent.insert(place, record);
        }
    }

    /// The same all at once: within milliseconds, before any of them can be archived.
    async fn write_at_once(&mut self, numbers: std::ops::Range<usize>) {
        let producer = producer(&self.cluster.bootstrap(), None);
        let mut sent = JoinSet::new();
        for number in numbers {
            let topic = ARCHIVED[number % ARCHIVED.len()];
            let (producer, record) = (producer.clone(), Archived::example(topic, number, self.hour));
            sent.spawn(async move { (send(&producer, topic, &record).await, record) });
        }
        self.sent.extend(sent.join_all().await);
    }

    /// Two transactions on the topic of runs: one is taken back.
    async fn write_in_transactions(&mut self) {
        let producer = producer(&self.cluster.bootstrap(), Some("router"));
        for committed in [true, false] {
            producer.begin_transaction().unwrap();
            for number in 1..20 {
                let record = Archived::example(topics::RUNS, number, self.hour);
                let place = send(&producer, topics::RUNS, &record).await;
                if committed {
                    self.sent.insert(place, record);
                }
            }
            let end = || match committed {
                true => producer.commit_transaction(ANSWER),
                false => producer.abort_transaction(ANSWER),
            };
            tokio::task::block_in_place(end).unwrap();
        }
    }

    /// How many of the records that were written the archive has now.
    async fn look(&mut self) -> usize {
        self.archive.look(self.objects.as_ref()).await;
        self.archive.has(self.sent.keys())
    }

    /// Waits until the archive has all that was written.
    async fn archived(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut ticks = tokio::time::interval(LOOK_AGAIN);
        loop {
            ticks.tick().await;
            let found = self.look().await;
            if found == self.sent.len() {
                return;
            }
            let all = self.sent.len();
            assert!(
                Instant::now() < deadline,
                "{what}: {found} of {all}: {}",
                self.end_of_log()
            );
        }
    }

    /// Waits until the connector has committed past all that was written: it must be in the bucket then, for good.
    async fn committed(&self) {
        let log = Kafka::open(KafkaConfig::new(self.cluster.bootstrap())).await.unwrap();
        until("all is committed", PATIENCE, || async {
            let mut offsets = BTreeMap::new();
            for topic in ARCHIVED {
                for (partition, commit) in log.committed(GROUP, topic).await.unwrap() {
                    let partition = i32::try_from(partition).unwrap();
                    offsets.insert((topic.to_owned(), partition), commit.map_or(0, |c| c.offset));
                }
            }
            let mut places = self.sent.keys();
            places.all(|(topic, partition, offset)| offsets[&(topic.clone(), *partition)] > *offset)
        })
        .await;
        log.close().await;
    }

    /// Waits until the worker has told of another fault with these words, and still works.
    async fn told(&self, words: &str, before: usize) {
        let told = || std::future::ready(self.worker.log().matches(words).count() > before);
        until(words, PATIENCE, told).await;
        let status = self.connect.get(&format!("/connectors/{NAME}/status")).await;
        let tasks = status["tasks"].as_array().unwrap();
        assert!(tasks.iter().all(|task| task["state"] == "RUNNING"), "{status}");
    }

    fn end_of_log(&self) -> String {
        let log = self.worker.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// The worker as the manifest has it, but for what must differ with one small broker and no hours to wait.
fn worker_config(bootstrap: &str, credentials: &str) -> BTreeMap<String, String> {
    let mut config = properties("archive/worker.properties");
    let mut set = |name: &str, value: &str| config.insert(name.to_owned(), value.to_owned());
    set("bootstrap.servers", bootstrap);
    for storage in ["config", "offset", "status"] {
        set(&format!("{storage}.storage.replication.factor"), "1");
    }
    set("config.providers.directory.param.allowed.paths", credentials);
    set("offset.flush.interval.ms", "300");
    // The least that the broker takes: who is killed is missed after 6 s.
    for prefix in ["", "consumer."] {
        set(&format!("{prefix}session.timeout.ms"), "6000");
        set(&format!("{prefix}heartbeat.interval.ms"), "2000");
    }
    config
}

/// Makes the topics as the platform makes them.
async fn make_topics(bootstrap: &str) {
    let mut config = KafkaConfig::new(bootstrap.to_owned());
    config.replication = 1;
    config.min_in_sync = 1;
    let log = Kafka::open(config).await.unwrap();
    let archived = |spec: &TopicSpec| ARCHIVED.contains(&spec.name.as_str());
    let specs: Vec<TopicSpec> = Router::topics().into_iter().filter(archived).collect();
    assert_eq!(specs.len(), ARCHIVED.len());
    log.ensure_topics(&specs).await.unwrap();
    log.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_archived_once_and_unchanged_whatever_dies() {
    let Some(mut world) = World::start().await else { return };

    // A setting that the published connector would pass over or that was never tried is refused.
    let mut wrong = world.connector();
    wrong["config"]["file.max.recods"] = json!("5");
    let (status, said) = world.post(&wrong).await;
    assert!(
        status == 400 && said["message"].as_str().unwrap().contains("file.max.recods"),
        "{said}"
    );

    // The bucket is not there yet: nothing is lost, and the tasks go on when it comes.
    let (status, said) = world.post(&world.connector()).await;
    assert_eq!(status, 201, "{said}");
    world.write(0..PART).await;
    world.write_in_transactions().await;
    world.told("NoSuchBucket", 0).await;
    world.objects.ensure_bucket(topics::BUCKET_LOGS).await.unwrap();
    world.archived("after the bucket came").await;

    // The server goes away and comes back.
    let failures = "rewinding to last committed offsets";
    let before = world.worker.log().matches(failures).count();
    world.server.kill();
    world.write(PART..2 * PART).await;
    world.told(failures, before).await;
    world.server.restart().await.unwrap();
    world.archived("after the server came back").await;

    // The worker is killed while records come, when some of them are archived and some are not.
    let before = world.sent.len();
    let mut next = 2 * PART;
    while world.look().await == before {
        assert!(next < 100 * PART, "nothing is archived: {}", world.end_of_log());
        world.write(next..next + PART / 10).await;
        next += PART / 10;
    }
    // It stands still meanwhile: else it may be quicker than what is to come too late for it.
    let worker = world
        .worker
        .pid()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    world.write_at_once(next..next + PART).await;
    world.worker.kill();
    let found = world.look().await;
    assert!(
        (before + 1..world.sent.len()).contains(&found),
        "{found} of {}",
        world.sent.len()
    );
    world.write(next + PART..next + 2 * PART).await;
    world.worker.restart().await.unwrap();
    world.archived("after the worker was killed").await;

    world.committed().await;
    world.worker.kill();
    world.look().await;
    let archived = world.archive.records();
    for (place, found) in &archived {
        let sent = world.sent.get(place);
        let sent = sent.unwrap_or_else(|| panic!("{place:?} was not written for good: {found:?}"));
        assert_eq!(found, &[sent], "{place:?}");
    }
    assert_eq!(archived.len(), world.sent.len());
}
