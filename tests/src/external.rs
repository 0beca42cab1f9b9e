//! The platform on three Kafka brokers and a real S3 server, with a flow for the photos that any S3 client puts there.
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use imageflow_eventlog::{EventLog, Kafka, KafkaConfig, TopicSpec};
use imageflow_objects::{ObjectError, ObjectInfo, ObjectStore, PutOptions, S3Config, S3Store};
use imageflow_servers::kafka::Cluster;
use imageflow_servers::policies::{SERVICES, of_bucket, secret};
use imageflow_servers::s3::{EventTarget, S3Options, S3Server};
use imageflow_types::topics;
use serde_json::Value;
use tokio::time::Instant;

use crate::platform::binary;
use crate::{Platform, pictures};

/// The flow `two` of two functions, and the trigger that starts it for each photo below `raw-images/in/`.
pub const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: small }
spec: { operation: resize, params: { width: 8 }, scale: { max: 2, keepWarm: { min: 300ms, max: 300ms } } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: grey }
spec: { operation: grayscale, scale: { max: 2, keepWarm: { min: 300ms, max: 300ms } } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Flow
metadata: { name: two }
spec:
  steps:
    - { name: first, function: small }
    - { name: second, function: grey, after: [first] }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-upload }
spec:
  filters: [ { exact: { type: dev.imageflow.object.created } }, { prefix: { subject: raw-images/in/ } } ]
  flow: two
";
/// Width of the results of [`RESOURCES`].
pub const RESULT_WIDTH: u32 = 8;

/// Most objects of one page of a list.
const PAGE: usize = 1000;

/// The manifests of the project.
pub fn manifests() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".to_owned());
    PathBuf::from(here).join("../manifests")
}

/// [`RESOURCES`], with a third step beside the others whose pods note in a folder what they are called with.
pub fn noted(calls: &Path) -> String {
    let second = "    - { name: second, function: grey, after: [first] }\n";
    let flow = RESOURCES.replace(second, &format!("{second}    - {{ name: noted, function: noted }}\n"));
    assert_ne!(flow, RESOURCES);
    let (program, calls) = (binary().with_file_name("slow-function"), calls.display());
    format!(
        r"{flow}---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: {{ name: noted }}
spec:
  command: [ {} ]
  env: [ {{ name: SLOW_CALLS, value: {calls} }} ]
  scale: {{ max: 2, keepWarm: {{ min: 300ms, max: 300ms }} }}
",
        program.display()
    )
}

/// Says what a test has counted, also of a test that passes: only what the macros print is kept from view.
pub fn report(line: &str) {
    let written = writeln!(std::io::stdout(), "{line}");
    written.expect("the output takes a line");
}

/// How often each event or picture was called, as the pods of `slow-function` note it in a folder. A picture goes by its digest.
pub fn calls(folder: &Path) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder of calls") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("the calls of a pod");
        for id in text.lines() {
            *all.entry(id.to_owned()).or_default() += 1;
        }
    }
    all
}

/// The servers, and the platform's folder.
pub struct World {
    /// Three brokers.
    pub cluster: Cluster,
    /// The S3 server, which tells the first broker of its objects.
    pub server: S3Server,
    /// A client of the S3 server.
    pub objects: Arc<dyn ObjectStore>,
    folder: tempfile::TempDir,
}

impl World {
    /// Starts the servers; `None` when servers are left out.
    pub async fn start() -> Option<Self> {
        let cluster = Cluster::for_test(3).await?;
        // versitygw does not start without its topic.
        let log = Kafka::open(KafkaConfig::new(cluster.bootstrap())).await;
        let log = log.expect("the brokers answer");
        let topic = TopicSpec::new(topics::OBJECT_NOTIFICATIONS, topics::PARTITIONS);
        log.ensure_topics(&[topic.retention(Duration::from_secs(7 * 24 * 3600))])
            .await
            .expect("the topic is made");
        log.close().await;
        let events = EventTarget::Kafka {
            bootstrap: cluster.bootstrap().split(',').next()?.to_owned(),
            topic: topics::OBJECT_NOTIFICATIONS.to_owned(),
        };
        let options = S3Options {
            events: Some(events),
            ..S3Options::default()
        };
        let server = S3Server::for_test(options).await?;
        let config = S3Config::new(server.url(), server.access_key(), server.secret_key());
        let objects = S3Store::new(config);
        // What the guide asks of who runs roles: the buckets, and an account for each service that may do what it has to.
        for service in SERVICES {
            server.add_user(service, &secret(service)).expect("an account");
        }
        for bucket in [topics::BUCKET_RAW, topics::BUCKET_PROCESSED] {
            objects.ensure_bucket(bucket).await.expect("the bucket is made");
            let policy = of_bucket(&manifests(), bucket).expect("the policies are read");
            let set = objects.set_policy(bucket, &policy.to_string()).await;
            set.expect("the policy is taken");
        }
        Some(Self {
            cluster,
            objects: Arc::new(objects),
            server,
            folder: tempfile::tempdir().expect("a folder"),
        })
    }

    /// Starts the platform, with more arguments.
    pub fn platform(&self, more: &[&str]) -> Platform {
        self.platform_via(&self.server.url(), more)
    }

    /// The same, which finds the S3 server at this URL.
    pub fn platform_via(&self, s3: &str, more: &[&str]) -> Platform {
        let bootstrap = self.cluster.bootstrap();
        let args = [&["--kafka", &bootstrap, "--s3", s3], more].concat();
        let env = [
            ("IMAGEFLOW_S3_ACCESS_KEY", self.server.access_key()),
            ("IMAGEFLOW_S3_SECRET_KEY", self.server.secret_key()),
        ];
        Platform::start_with(self.folder.path(), &args, &env)
    }

    /// The results of the flow `two`, besides their data.
    pub async fn results(&self) -> Vec<ObjectInfo> {
        let mut all: Vec<ObjectInfo> = Vec::new();
        loop {
            let after = all.last().map(|o| o.key.as_str());
            let page = self.objects.list(topics::BUCKET_PROCESSED, "two/", after, PAGE).await;
            let page = page.expect("the results are listed");
            if page.is_empty() {
                all.retain(|o| !o.key.ends_with(".json"));
                return all;
            }
            all.extend(page);
        }
    }

    /// Looks at what the results of these runs are, not only that they are there; and that there are no others.
    pub async fn results_are_right(&self, runs: &[Value]) {
        let mut known = BTreeSet::new();
        for run in runs {
            let output = &run["steps"][1]["output"];
            let text = |name: &str| output[name].as_str().unwrap_or_else(|| panic!("no {name}: {run}"));
            let got = self.objects.get(text("bucket"), text("key"), Some(text("etag"))).await;
            let (_, body) = got.unwrap_or_else(|e| panic!("{e}: {run}"));
            let picture = imageflow_ops::probe(&body, &imageflow_ops::Limits::default());
            let picture = picture.unwrap_or_else(|e| panic!("{e}: {run}"));
            assert_eq!(picture.width, RESULT_WIDTH, "{run}");
            known.insert(text("key").to_owned());
        }
        let stored: BTreeSet<String> = self.results().await.into_iter().map(|o| o.key).collect();
        assert_eq!(stored, known, "each result is that of a run");
    }

    /// The broker that is the active controller, asked of the controllers themselves.
    pub fn controller(&self) -> usize {
        let said = self.tool("MetadataQuorumCommand", &["describe", "--status"]);
        let leader = said.lines().find_map(|line| line.strip_prefix("LeaderId:"));
        let leader: Option<usize> = leader.and_then(|id| id.trim().parse().ok());
        // Ids begin at 1.
        leader.unwrap_or_else(|| panic!("no controller: {said}")) - 1
    }

    /// The broker that leads the most partitions of a topic.
    pub fn leader_of(&self, topic: &str) -> usize {
        let said = self.tool("TopicCommand", &["--describe", "--topic", topic]);
        let leads = |node: &usize| said.matches(&format!("Leader: {}\t", node + 1)).count();
        let most = (0..3).max_by_key(leads).filter(|node| leads(node) > 0);
        most.unwrap_or_else(|| panic!("no leader of {topic}: {said}"))
    }

    /// What a tool of Kafka says.
    fn tool(&self, class: &str, args: &[&str]) -> String {
        let asked = Command::new("java")
            .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(self.cluster.libs().join("*"))
            .arg(format!("org.apache.kafka.tools.{class}"))
            .args(["--bootstrap-server", &self.cluster.bootstrap()])
            .args(args)
            .output()
            .expect("java runs");
        String::from_utf8_lossy(&asked.stdout).into_owned() + &String::from_utf8_lossy(&asked.stderr)
    }

    /// How many lines of the brokers' logs hold these words. A broker that is started again begins its log anew.
    pub fn told(&self, words: &str) -> usize {
        let logs = (1..=3).map(|id| self.cluster.dir().join(format!("node{id}/log")));
        let texts = logs.map(|path| std::fs::read(path).unwrap_or_default());
        texts
            .map(|text| String::from_utf8_lossy(&text).matches(words).count())
            .sum()
    }
}

/// The photo of a number: each is another picture.
pub fn photo(number: usize) -> Vec<u8> {
    // The gradient repeats itself after 256.
    pictures::png(64 + (number / 256) as u32, 48, (number % 256) as u32)
}

/// Puts a photo as any S3 client does: the platform hears of it from the server.
///
/// # Errors
/// As [`ObjectStore::put`].
pub async fn put(objects: &dyn ObjectStore, number: usize) -> Result<(), ObjectError> {
    let options = PutOptions {
        content_type: Some("image/png".into()),
        ..PutOptions::default()
    };
    let key = format!("in/photo {number}.png");
    objects
        .put(topics::BUCKET_RAW, &key, photo(number).into(), options)
        .await?;
    Ok(())
}

/// Looks again and again until `there` says so. For states that only polling can show.
pub async fn until<F: Future<Output = bool>>(what: &str, patience: Duration, mut there: impl FnMut() -> F) {
    let deadline = Instant::now() + patience;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        if there().await {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
    }
}
