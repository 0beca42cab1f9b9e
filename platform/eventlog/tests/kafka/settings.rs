//! What topics are set to, whoever makes them and whoever may not change them.

use std::error::Error as _;
use std::time::Duration;

use futures::future::join_all;
use imageflow_eventlog::{Cleanup, EventLog, Kafka, KafkaConfig, LogError, TopicSpec};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

use super::subject::{config, shared};

/// Topics that are made by all at once, and those before them that are there.
const NEW: usize = 4;
const OLD: usize = 12;
/// Those who make them, each a few questions later than the one before: some of them see a topic made between two of theirs.
const MAKERS: usize = 16;
const ROUNDS: usize = 3;

/// The settings that were given to a topic.
async fn given(admin: &AdminClient<DefaultClientContext>, topic: &str) -> Vec<String> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let answers = admin.describe_configs(&asked, &AdminOptions::new()).await.unwrap();
    let resource = answers.into_iter().next().unwrap().unwrap();
    let own = resource
        .entries
        .into_iter()
        .filter(|entry| entry.source == ConfigSource::DynamicTopic);
    own.map(|entry| entry.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_two_processes_make_at_once_keep_their_settings() {
    let Some(cluster) = shared().await else { return };
    let open = async || Kafka::open(config(&cluster, 1)).await.unwrap();
    let (one, other) = (open().await, open().await);
    let admin: AdminClient<_> = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap())
        .create()
        .unwrap();
    let old: Vec<_> = (0..OLD).map(|n| TopicSpec::new(format!("raced-old-{n}"), 1)).collect();
    one.ensure_topics(&old).await.unwrap();
    for round in 0..ROUNDS {
        let new = (0..NEW).map(|n| match n % 2 {
            0 => TopicSpec::compacted(format!("raced-{round}-{n}"), 1),
            _ => TopicSpec::new(format!("raced-{round}-{n}"), 1),
        });
        let new: Vec<_> = new.collect();
        let all = [&old[..], &new[..]].concat();
        let make = async |n: usize| {
            let log = if n.is_multiple_of(2) { &one } else { &other };
            for _ in 0..n {
                log.watermarks(&old[0].name).await.unwrap();
            }
            log.ensure_topics(if n == 0 { &new } else { &all }).await
        };
        for made in join_all((0..MAKERS).map(make)).await {
            made.unwrap();
        }
        for spec in &new {
            let given = given(&admin, &spec.name).await;
            for name in ["min.insync.replicas", "max.message.bytes", "cleanup.policy"] {
                assert!(given.iter().any(|given| given == name), "{}: {given:?}", spec.name);
            }
        }
    }
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn a_change_that_the_brokers_refuse_is_an_error() {
    let Some(cluster) = shared().await else { return };
    let soon = KafkaConfig {
        request_timeout: Duration::from_secs(20),
        ..config(&cluster, 1)
    };
    let log = Kafka::open(soon).await.unwrap();
    let bounded = |bytes: u64| TopicSpec {
        cleanup: Cleanup::Delete {
            retention: None,
            retention_bytes: Some(bytes),
        },
        ..TopicSpec::new("refused-change", 1)
    };
    log.ensure_topics(&[bounded(1000)]).await.unwrap();
    // More than the number that a broker keeps it in.
    let refused = log.ensure_topics(&[bounded(u64::MAX)]).await.unwrap_err();
    let why = refused.source().map(ToString::to_string).unwrap_or_default();
    assert!(
        matches!(refused, LogError::Storage { .. }) && refused.is_retryable(),
        "{refused:?}"
    );
    for named in ["refused-change", "retention.bytes", "AlterConfigs"] {
        assert!(why.contains(named), "{why}");
    }
    let topics = log.topics().await.unwrap();
    assert!(topics.contains(&bounded(1000)), "it keeps what it had");
    log.close().await;
}
