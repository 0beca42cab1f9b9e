//! Topics: made, checked, listed and deleted by the cluster's admin API.

mod settings;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaRespErr;

use self::settings::{HEARD_AFTER, IN_SYNC, cleanup, differs, settings, unseen, value};
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
/// So long after a topic was made brokers may not know it. They tell each other in milliseconds, but not while they start.
const NEW_FOR: Duration = Duration::from_secs(20);
/// Between two looks at whether a change has reached the brokers.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

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

/// A topic that is there: its specification, the fewest copies of a partition, its settings.
type Existing = (TopicSpec, usize, ConfigResource);
/// Topics that are missing, and those whose retention is to change.
type Compared<'a> = (Vec<&'a TopicSpec>, Vec<(&'a TopicSpec, &'a ConfigResource)>);

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
        let begun = Instant::now();
        let deadline = begun + self.config.request_timeout;
        let topic = loop {
            let metadata = self.metadata(Some(name)).await?;
            let topic = metadata.topics().first().ok_or_else(unknown)?;
            match topic.error() {
                None if !topic.partitions().is_empty() => {
                    let partitions = u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX);
                    if let Some(described) = self.describe(&[name]).await?.first() {
                        let compacted = cleanup(described) == Cleanup::Compact;
                        break Topic { partitions, compacted };
                    }
                    let until = if self.is_new(name) {
                        deadline
                    } else {
                        begun + HEARD_AFTER
                    };
                    if Instant::now() > until {
                        return Err(unseen(name));
                    }
                }
                Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) if !self.is_new(name) => {
                    return Err(unknown());
                }
                error if Instant::now() > deadline => {
                    return Err(failed("asking for a topic", format!("{name}: {error:?}")));
                }
                // Just made: its partitions have no leaders yet.
                _ => {}
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        self.remember(name, topic);
        Ok(topic)
    }

    pub(super) fn remember(&self, name: &str, topic: Topic) {
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
        let described = self.describe_shown(&names).await?;
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
        let (missing, changed) = self.compare(specs, &existing)?;
        let there = self.create(&missing).await?;
        self.alter(&changed).await?;
        self.meet(&there).await?;
        self.appear(&missing).await?;
        let mut ensured = lock(&self.ensured);
        ensured.retain(|_, since| since.elapsed() < NEW_FOR);
        ensured.extend(specs.iter().map(|spec| (spec.name.clone(), Instant::now())));
        Ok(())
    }

    /// Checks the topics that are there against what is wanted. Returns those that are missing, and those whose retention
    /// differs.
    fn compare<'a>(&self, specs: &'a [TopicSpec], existing: &'a [Existing]) -> Result<Compared<'a>> {
        let (mut missing, mut changed) = (Vec::new(), Vec::new());
        for spec in specs {
            let Some((found, copies, resource)) = existing.iter().find(|(e, ..)| e.name == spec.name) else {
                missing.push(spec);
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
            if differs(&spec.cleanup, resource).is_some() {
                changed.push((spec, resource));
            }
            for less in less_safe(&self.config, *copies, value(resource, IN_SYNC)) {
                // It is theirs to decide who made it, but not unseen.
                tracing::warn!(topic = spec.name, "the topic is less safe than is configured: {less}");
            }
        }
        Ok((missing, changed))
    }

    /// Checks those that were there when they were to be made: another process was faster than we, or than the brokers that
    /// we had asked.
    async fn meet(&self, there: &[TopicSpec]) -> Result<()> {
        let deadline = Instant::now() + self.config.request_timeout;
        while !there.is_empty() {
            let existing = self.existing(Some(there)).await?;
            let (missing, changed) = self.compare(there, &existing)?;
            match missing.first() {
                None => return self.alter(&changed).await,
                Some(spec) if Instant::now() > deadline => return Err(unseen(&spec.name)),
                Some(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
        Ok(())
    }

    /// Whether a topic was made or checked just now: then a broker that does not know it has not heard of it yet.
    pub fn is_new(&self, name: &str) -> bool {
        lock(&self.ensured)
            .get(name)
            .is_some_and(|since| since.elapsed() < NEW_FOR)
    }

    /// Makes topics. Returns those that were there already.
    async fn create(&self, specs: &[&TopicSpec]) -> Result<Vec<TopicSpec>> {
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
        let mut there = Vec::new();
        if topics.is_empty() {
            return Ok(there);
        }
        let made = self.admin.create_topics(&topics, &self.admin_options()).await;
        for result in made.map_err(|e| storage("making topics", e, self.told.last_error()))? {
            match result {
                Ok(_) => {}
                Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    there.extend(specs.iter().find(|spec| spec.name == topic).map(|spec| (*spec).clone()));
                }
                // To whom it may not be shown, one that is there looks like one that is missing.
                Err((topic, RDKafkaErrorCode::TopicAuthorizationFailed)) => {
                    let why = format!("the user needs Create on topic {topic}, or DescribeConfigs where it is there");
                    return Err(failed("making topics", why));
                }
                Err((topic, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    let copies = self.config.replication;
                    let why = format!("topic {topic} with {copies} copies needs at least {copies} brokers");
                    return Err(failed("making topics", why));
                }
                Err((topic, code)) => return Err(failed("making topics", format!("topic {topic}: {code}"))),
            }
        }
        Ok(there)
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
