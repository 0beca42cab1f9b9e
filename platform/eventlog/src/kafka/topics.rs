//! Topics: made, checked, listed and deleted by the cluster's admin API.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaRespErr;

use super::Handle;
use super::config::KafkaConfig;
use super::context::lock;
use super::failure::{code, failed, storage};
use crate::error::{LogError, Result};
use crate::types::{Cleanup, TopicSpec, validate_topic_name};

const MAX_PARTITIONS: u32 = 10_000;
/// How long what is known of a topic is taken for true. Who deletes topics elsewhere is found out by the next write.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// Topics remembered; more than that begins anew.
const MOST_KNOWN: usize = 20_000;
/// So many topics are asked for one by one.
const FEW: usize = 16;
/// Topics of one question about settings.
const ASK_AT_ONCE: usize = 200;
/// Between two looks at whether a change has reached the brokers.
/// So long after a topic was made brokers may not know it. They tell each other in milliseconds, but not while they start.
const NEW_FOR: Duration = Duration::from_secs(20);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A changelog is read whole at each start: its segments are closed, and so compacted, by the hour.
const COMPACTED_SEGMENT_MS: u64 = 3_600_000;

/// Where the age is kept after which records may go.
const AGE: &str = "delete.retention.ms";

/// What the calls on a topic need to know of it.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    pub partitions: u32,
    pub compacted: bool,
}

impl Topic {
    pub fn check(self, topic: &str, partition: u32) -> Result<()> {
        if partition < self.partitions {
            return Ok(());
        }
        Err(LogError::UnknownPartition {
            topic: topic.to_owned(),
            partition,
            partitions: self.partitions,
        })
    }
}

#[derive(Debug, Default)]
pub struct Catalog(HashMap<String, (Topic, Instant)>);

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The settings that a topic is made with.
fn settings(spec: &TopicSpec, config: &KafkaConfig) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("min.insync.replicas", config.min_in_sync.to_string()),
        // A record of the greatest size, with what a batch puts around it.
        ("max.message.bytes", (crate::MAX_RECORD_BYTES + 64 * 1024).to_string()),
    ];
    match &spec.cleanup {
        Cleanup::Delete { .. } => settings.push(("cleanup.policy", "delete".to_owned())),
        Cleanup::Compact => {
            settings.push(("cleanup.policy", "compact".to_owned()));
            settings.push(("segment.ms", COMPACTED_SEGMENT_MS.to_string()));
            settings.push(("min.cleanable.dirty.ratio", "0.2".to_owned()));
        }
    }
    settings.extend(retention(&spec.cleanup));
    settings
}

/// The settings of a topic that follow its retention; -1 is none. Kafka would delete by age what nobody has read, so it is
/// told not to, and [we do](super::retention). The age stands in a setting that has no meaning of its own for a topic that
/// is not compacted.
fn retention(cleanup: &Cleanup) -> Vec<(&'static str, String)> {
    let Cleanup::Delete {
        retention,
        retention_bytes,
    } = cleanup
    else {
        return Vec::new();
    };
    let text = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |v| v.to_string());
    vec![
        ("retention.ms", text(None)),
        (AGE, millis(retention.unwrap_or(Duration::ZERO)).to_string()),
        ("retention.bytes", text(*retention_bytes)),
    ]
}

/// The clean-up that a topic's settings make.
fn cleanup(resource: &ConfigResource) -> Cleanup {
    let value = |name: &str| resource.get(name).and_then(|e| e.value.as_deref());
    if value("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        return Cleanup::Compact;
    }
    // -1 and what is not there are no bound.
    let number = |name: &str| value(name).and_then(|v| v.parse::<u64>().ok());
    let ours = resource
        .get(AGE)
        .filter(|e| e.source == ConfigSource::DynamicTopic)
        .and_then(|e| e.value.as_deref()?.parse::<u64>().ok())
        .filter(|ms| *ms > 0);
    Cleanup::Delete {
        retention: number("retention.ms").or(ours).map(Duration::from_millis),
        retention_bytes: number("retention.bytes"),
    }
}

/// A topic that is there: its specification, the fewest copies of a partition, its settings.
type Existing = (TopicSpec, usize, ConfigResource);

struct Shape {
    partitions: usize,
    /// The fewest that a partition has.
    copies: usize,
}

impl Shape {
    fn of(topic: &MetadataTopic) -> Self {
        let copies = topic.partitions().iter().map(|p| p.replicas().len());
        Self {
            partitions: topic.partitions().len(),
            copies: copies.min().unwrap_or(0),
        }
    }
}

/// In what a topic that others made is less safe than one of ours.
fn less_safe(config: &KafkaConfig, copies: usize, in_sync: Option<&str>) -> Vec<String> {
    let mut less = Vec::new();
    if copies < usize::from(config.replication) {
        less.push(format!("{copies} copies in place of {}", config.replication));
    }
    if let Some(is) = in_sync
        .and_then(|n| n.parse::<u16>().ok())
        .filter(|n| *n < config.min_in_sync)
    {
        less.push(format!("min.insync.replicas {is} in place of {}", config.min_in_sync));
    }
    less
}

fn is_there(topic: &MetadataTopic) -> bool {
    topic.error().is_none() && !topic.partitions().is_empty()
}

impl Handle {
    pub(super) fn admin_options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.config.request_timeout))
            .operation_timeout(Some(self.config.request_timeout))
    }

    /// Metadata of one topic or of all.
    async fn metadata(&self, topic: Option<&str>) -> Result<Metadata> {
        let (admin, timeout, topic) = (
            self.admin.clone(),
            self.config.request_timeout,
            topic.map(str::to_owned),
        );
        super::blocking("asking for metadata", move || {
            admin.inner().fetch_metadata(topic.as_deref(), timeout)
        })
        .await
    }

    async fn describe(&self, topics: &[&str]) -> Result<Vec<ConfigResource>> {
        let mut all = Vec::with_capacity(topics.len());
        for chunk in topics.chunks(ASK_AT_ONCE) {
            let asked: Vec<_> = chunk.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
            let answers = self.admin.describe_configs(&asked, &self.admin_options()).await;
            let answers =
                answers.map_err(|e| storage("asking for the settings of topics", e, self.told.last_error()))?;
            // One that was deleted since is left out.
            all.extend(answers.into_iter().filter_map(Result::ok));
        }
        Ok(all)
    }

    /// What is known of a topic; asked for when it is not.
    pub async fn topic(&self, name: &str) -> Result<Topic> {
        if let Some((topic, since)) = lock(&self.catalog).0.get(name)
            && since.elapsed() < KNOWN_FOR
        {
            return Ok(*topic);
        }
        let unknown = || LogError::UnknownTopic { topic: name.to_owned() };
        // A name that no topic can have is not asked for.
        validate_topic_name(name).map_err(|_| unknown())?;
        let deadline = Instant::now() + self.config.request_timeout;
        let partitions = loop {
            let metadata = self.metadata(Some(name)).await?;
            let topic = metadata.topics().first().ok_or_else(unknown)?;
            match topic.error() {
                None if !topic.partitions().is_empty() => break topic.partitions().len(),
                Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) if !self.is_new(name) => {
                    return Err(unknown());
                }
                error if Instant::now() > deadline => {
                    return Err(failed("asking for a topic", format!("{name}: {error:?}")));
                }
                // Just made: its partitions have no leaders yet.
                _ => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        let described = self.describe(&[name]).await?;
        let described = described.first().ok_or_else(unknown)?;
        let topic = Topic {
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
            compacted: cleanup(described) == Cleanup::Compact,
        };
        self.remember(name, topic);
        Ok(topic)
    }

    fn remember(&self, name: &str, topic: Topic) {
        let mut catalog = lock(&self.catalog);
        if catalog.0.len() >= MOST_KNOWN {
            catalog.0.clear();
        }
        catalog.0.insert(name.to_owned(), (topic, Instant::now()));
    }

    pub fn forget(&self, name: &str) {
        lock(&self.catalog).0.remove(name);
    }

    /// All topics but Kafka's own, with their settings, or those of the wanted that are there.
    async fn existing(&self, wanted: Option<&[TopicSpec]>) -> Result<Vec<Existing>> {
        let (shapes, described) = match wanted {
            Some(specs) if specs.len() <= FEW => self.each(specs).await?,
            _ => self.all(wanted).await?,
        };
        let specs = described.into_iter().filter_map(|resource| {
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                return None;
            };
            let shape = shapes.get(name.as_str())?;
            let spec = TopicSpec {
                name: name.clone(),
                partitions: u32::try_from(shape.partitions).unwrap_or(u32::MAX),
                cleanup: cleanup(&resource),
            };
            Some((spec, shape.copies, resource))
        });
        Ok(specs.collect())
    }

    /// By one look at all topics of the cluster.
    async fn all(&self, wanted: Option<&[TopicSpec]>) -> Result<(HashMap<String, Shape>, Vec<ConfigResource>)> {
        let metadata = self.metadata(None).await?;
        let shapes: HashMap<String, Shape> = metadata
            .topics()
            .iter()
            .filter(|t| is_there(t) && !t.name().starts_with("__"))
            .filter(|t| wanted.is_none_or(|specs| specs.iter().any(|s| s.name == t.name())))
            .map(|t| (t.name().to_owned(), Shape::of(t)))
            .collect();
        let names: Vec<&str> = shapes.keys().map(String::as_str).collect();
        let described = self.describe(&names).await?;
        Ok((shapes, described))
    }

    /// One by one, since with thousands of topics each look at all of them costs the brokers a second. What is not there is not
    /// asked for by name: a broker may be set to make what it is asked for.
    async fn each(&self, specs: &[TopicSpec]) -> Result<(HashMap<String, Shape>, Vec<ConfigResource>)> {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let described = self.describe(&names).await?;
        let mut shapes = HashMap::new();
        for resource in &described {
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            let metadata = self.metadata(Some(name)).await?;
            if let Some(topic) = metadata.topics().first().filter(|topic| is_there(topic)) {
                shapes.insert(name.clone(), Shape::of(topic));
            }
        }
        Ok((shapes, described))
    }

    pub async fn list(&self) -> Result<Vec<TopicSpec>> {
        let mut specs: Vec<_> = self.existing(None).await?.into_iter().map(|(spec, ..)| spec).collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(specs)
    }

    pub async fn ensure(&self, specs: &[TopicSpec]) -> Result<()> {
        for spec in specs {
            validate_topic_name(&spec.name)?;
            if !(1..=MAX_PARTITIONS).contains(&spec.partitions) {
                return Err(LogError::InvalidPartitionCount {
                    topic: spec.name.clone(),
                    partitions: spec.partitions,
                });
            }
        }
        let existing = self.existing(Some(specs)).await?;
        let find = |spec: &TopicSpec| existing.iter().find(|(e, ..)| e.name == spec.name);
        let mut changed = Vec::new();
        for spec in specs {
            let Some((found, copies, resource)) = find(spec) else {
                continue;
            };
            if found.partitions != spec.partitions {
                return Err(LogError::PartitionCountDiffers {
                    topic: spec.name.clone(),
                    existing: found.partitions,
                    wanted: spec.partitions,
                });
            }
            if (found.cleanup == Cleanup::Compact) != (spec.cleanup == Cleanup::Compact) {
                return Err(LogError::CleanupDiffers {
                    topic: spec.name.clone(),
                });
            }
            let value = |name: &str| resource.get(name).and_then(|e| e.value.as_deref());
            if retention(&spec.cleanup)
                .iter()
                .any(|(name, wanted)| value(name) != Some(wanted))
            {
                changed.push((spec, resource));
            }
            for less in less_safe(&self.config, *copies, value("min.insync.replicas")) {
                // It is theirs to decide who made it, but not unseen.
                tracing::warn!(topic = spec.name, "the topic is less safe than is configured: {less}");
            }
        }
        let missing: Vec<&TopicSpec> = specs.iter().filter(|spec| find(spec).is_none()).collect();
        self.create(&missing).await?;
        self.alter(&changed).await?;
        self.appear(&missing).await?;
        let mut ensured = lock(&self.ensured);
        ensured.retain(|_, since| since.elapsed() < NEW_FOR);
        ensured.extend(specs.iter().map(|spec| (spec.name.clone(), Instant::now())));
        Ok(())
    }

    /// Whether a topic was made or checked just now: then a broker that does not know it has not heard of it yet.
    pub fn is_new(&self, name: &str) -> bool {
        lock(&self.ensured)
            .get(name)
            .is_some_and(|since| since.elapsed() < NEW_FOR)
    }

    async fn create(&self, specs: &[&TopicSpec]) -> Result<()> {
        let with: Vec<_> = specs.iter().map(|spec| (*spec, settings(spec, &self.config))).collect();
        let topics: Vec<NewTopic<'_>> = with
            .iter()
            .map(|(spec, settings)| {
                let (count, copies) = (spec.partitions.cast_signed(), i32::from(self.config.replication));
                let topic = NewTopic::new(&spec.name, count, TopicReplication::Fixed(copies));
                settings
                    .iter()
                    .fold(topic, |topic, (name, value)| topic.set(name, value))
            })
            .collect();
        if topics.is_empty() {
            return Ok(());
        }
        let made = self.admin.create_topics(&topics, &self.admin_options()).await;
        for result in made.map_err(|e| storage("making topics", e, self.told.last_error()))? {
            match result {
                // Another process was faster.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    let copies = self.config.replication;
                    let why = format!("topic {topic} with {copies} copies needs at least {copies} brokers");
                    return Err(failed("making topics", why));
                }
                Err((topic, code)) => return Err(failed("making topics", format!("topic {topic}: {code}"))),
            }
        }
        Ok(())
    }

    /// Applies a changed retention. The request replaces all settings of a topic, so it repeats the others.
    async fn alter(&self, changed: &[(&TopicSpec, &ConfigResource)]) -> Result<()> {
        for (spec, resource) in changed {
            let new = retention(&spec.cleanup);
            let kept = resource
                .entries
                .iter()
                .filter(|e| e.source == ConfigSource::DynamicTopic && !new.iter().any(|(name, _)| *name == e.name))
                .filter_map(|e| Some((e.name.as_str(), e.value.as_deref()?)));
            let alter = AlterConfig::new(ResourceSpecifier::Topic(&spec.name));
            let alter = kept.fold(alter, |alter, (name, value)| alter.set(name, value));
            let alter = new.iter().fold(alter, |alter, (name, value)| alter.set(name, value));
            let results = self.admin.alter_configs([&alter], &self.admin_options()).await;
            for result in results.map_err(|e| storage("changing a topic", e, self.told.last_error()))? {
                result.map_err(|(_, code)| failed("changing a topic", format!("topic {}: {code}", spec.name)))?;
            }
        }
        Ok(())
    }

    /// Waits until new topics can be used: each partition has a leader.
    async fn appear(&self, specs: &[&TopicSpec]) -> Result<()> {
        let deadline = Instant::now() + self.config.request_timeout;
        for spec in specs {
            loop {
                let metadata = self.metadata(Some(&spec.name)).await?;
                let leads = |t: &MetadataTopic| {
                    t.error().is_none()
                        && t.partitions().len() == spec.partitions as usize
                        && t.partitions().iter().all(|p| p.leader() >= 0)
                };
                if metadata.topics().first().is_some_and(leads) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(failed("making topics", format!("topic {} has no leaders", spec.name)));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let compacted = spec.cleanup == Cleanup::Compact;
            let partitions = spec.partitions;
            self.remember(&spec.name, Topic { partitions, compacted });
        }
        Ok(())
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        lock(&self.ensured).remove(name);
        let unknown = || LogError::UnknownTopic { topic: name.to_owned() };
        self.topic(name).await?;
        self.forget(name);
        let results = self.admin.delete_topics(&[name], &self.admin_options()).await;
        for result in results.map_err(|e| storage("deleting a topic", e, self.told.last_error()))? {
            match result {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => return Err(unknown()),
                Err((_, code)) => return Err(failed("deleting a topic", format!("topic {name}: {code}"))),
            }
        }
        let deadline = Instant::now() + self.config.request_timeout;
        while self.metadata(Some(name)).await?.topics().first().is_some_and(is_there) {
            if Instant::now() > deadline {
                return Err(failed("deleting a topic", format!("topic {name} is still there")));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let in_use = || LogError::GroupInUse {
            group: group.to_owned(),
        };
        let results = self.admin.delete_groups(&[group], &self.admin_options()).await;
        let failure = match results {
            Ok(results) => results.into_iter().find_map(Result::err).map(|(_, code)| code),
            Err(error) => match code(&error) {
                Some(code) => Some(code),
                None => return Err(storage("deleting a group", error, self.told.last_error())),
            },
        };
        match failure {
            None | Some(RDKafkaErrorCode::GroupIdNotFound) => Ok(()),
            Some(RDKafkaErrorCode::NonEmptyGroup) => Err(in_use()),
            Some(code) => Err(storage(
                "deleting a group",
                KafkaError::AdminOp(code),
                self.told.last_error(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_safe_than_is_configured_is_named() {
        let config = KafkaConfig::new("broker:9092");
        assert_eq!((config.replication, config.min_in_sync), (3, 2));
        assert!(less_safe(&config, 3, Some("2")).is_empty());
        assert!(less_safe(&config, 5, None).is_empty());
        assert_eq!(
            less_safe(&config, 1, Some("1")),
            ["1 copies in place of 3", "min.insync.replicas 1 in place of 2"]
        );
    }
}
