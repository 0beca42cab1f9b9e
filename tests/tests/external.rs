//! The main job on three Kafka brokers and a real S3 server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use imageflow_eventlog::{EventLog, Kafka, KafkaConfig, TopicSpec};
use imageflow_objects::{ObjectStore, PutOptions, S3Config, S3Store};
use imageflow_servers::kafka::Cluster;
use imageflow_servers::s3::{EventTarget, S3Options, S3Server};
use imageflow_tests::http::json;
use imageflow_tests::{Platform, pictures};
use imageflow_types::topics;
use serde_json::Value;

const RESOURCES: &str = r"
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

const PHOTOS: usize = 12;

struct World {
    cluster: Cluster,
    server: S3Server,
    objects: S3Store,
    folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Option<Self> {
        let cluster = Cluster::for_test(3).await?;
        // versitygw does not start without its topic.
        let log = Kafka::open(KafkaConfig::new(cluster.bootstrap())).await.unwrap();
        let topic = TopicSpec::new(topics::OBJECT_NOTIFICATIONS, topics::PARTITIONS);
        log.ensure_topics(&[topic.retention(Duration::from_secs(7 * 24 * 3600))])
            .await
            .unwrap();
        log.close().await;
        let events = EventTarget::Kafka {
            bootstrap: cluster.bootstrap().split(',').next()?.to_owned(),
            topic: "imageflow.object-notifications".into(),
        };
        let options = S3Options {
            events: Some(events),
            ..S3Options::default()
        };
        let server = S3Server::for_test(options).await?;
        let config = S3Config::new(server.url(), server.access_key(), server.secret_key());
        Some(Self {
            cluster,
            objects: S3Store::new(config),
            server,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn platform(&self) -> Platform {
        let (bootstrap, url) = (self.cluster.bootstrap(), self.server.url());
        let args = ["--kafka", &bootstrap, "--s3", &url];
        let env = [
            ("IMAGEFLOW_S3_ACCESS_KEY", self.server.access_key()),
            ("IMAGEFLOW_S3_SECRET_KEY", self.server.secret_key()),
        ];
        Platform::start_with(self.folder.path(), &args, &env)
    }

    /// As any S3 client does: the platform hears of it from the server.
    async fn put(&self, number: usize) {
        let body = pictures::png(64, 48, number as u32);
        let options = PutOptions {
            content_type: Some("image/png".into()),
            ..PutOptions::default()
        };
        let key = format!("in/photo {number}.png");
        self.objects
            .put("raw-images", &key, body.into(), options)
            .await
            .unwrap();
    }
}

fn runs(list: &Value) -> BTreeMap<String, String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|run| {
            let key = run["request"]["input"]["object"]["key"].as_str().unwrap();
            (key.to_owned(), run["status"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_becomes_results_on_kafka_and_s3_and_over_a_kill_none_is_lost_or_made_twice() {
    let Some(world) = World::start().await else { return };
    let platform = world.platform();
    platform.api.apply(RESOURCES).await;
    for number in 0..PHOTOS / 2 {
        world.put(number).await;
    }
    let all_succeeded = |count: usize| {
        move |list: &Value| {
            let runs = runs(list);
            runs.len() == count && runs.values().all(|status| status == "succeeded")
        }
    };
    platform.api.until("/v1/runs", all_succeeded(PHOTOS / 2)).await;
    for number in PHOTOS / 2..PHOTOS {
        world.put(number).await;
    }
    // In the middle of the work; the brokers hold the rest.
    platform.kill();

    let platform = world.platform();
    let list = platform.api.until("/v1/runs", all_succeeded(PHOTOS)).await;
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), PHOTOS, "one run a photo: {list}");
    for run in items {
        let id = run["run"].as_str().unwrap();
        let result = platform
            .api
            .send(Method::GET, &format!("/v1/runs/{id}/output"), &[], "")
            .await;
        assert_eq!(result.status(), 200, "{}", json(&result));
    }
    let results = world
        .objects
        .list("processed-images", "two/", None, 1000)
        .await
        .unwrap();
    let images = results.iter().filter(|o| !o.key.ends_with(".json")).count();
    assert_eq!(images, PHOTOS, "one result a photo, besides its data: {results:?}");
    assert_eq!(
        platform.api.get("/v1/dead-letters").await["items"],
        serde_json::json!([])
    );
    platform.stop();
}
