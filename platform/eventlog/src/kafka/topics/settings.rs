//! What topics are set to: what they are made with, what is read back of it, and how it is changed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AlterConfig, ConfigResource, ConfigSource, OwnedResourceSpecifier, ResourceSpecifier};

use super::{LOOK_AGAIN, millis};
use crate::error::{LogError, Result};
use crate::kafka::Handle;
use crate::kafka::config::KafkaConfig;
use crate::kafka::failure::{failed, storage};
use crate::types::{Cleanup, TopicSpec};

/// Topics of one question about settings.
const ASK_AT_ONCE: usize = 200;
/// So long a broker may not know a topic that another one knows, when it was not made just now. Longer, and its settings are
/// kept from us.
pub(super) const HEARD_AFTER: Duration = Duration::from_secs(2);
/// A changelog is read whole at each start: its segments are closed, and so compacted, by the hour.
const COMPACTED_SEGMENT_MS: u64 = 3_600_000;

/// Where the age is kept after which records may go.
const AGE: &str = "delete.retention.ms";
/// Every topic has it, of its own or by default.
pub(super) const IN_SYNC: &str = "min.insync.replicas";

/// The settings that a topic is made with.
pub(super) fn settings(spec: &TopicSpec, config: &KafkaConfig) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        (IN_SYNC, config.min_in_sync.to_string()),
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
/// told not to, and [we do](crate::kafka::retention). The age stands in a setting that has no meaning of its own for a topic
/// that is not compacted.
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
pub(super) fn cleanup(resource: &ConfigResource) -> Cleanup {
    if value(resource, "cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        return Cleanup::Compact;
    }
    // -1 and what is not there are no bound.
    let number = |name: &str| value(resource, name).and_then(|v| v.parse::<u64>().ok());
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

pub(super) fn value<'a>(resource: &'a ConfigResource, name: &str) -> Option<&'a str> {
    resource.get(name).and_then(|e| e.value.as_deref())
}

/// A setting in which a topic's retention differs from the one that is wanted, and what it should be.
pub(super) fn differs(wanted: &Cleanup, resource: &ConfigResource) -> Option<(&'static str, String)> {
    let mut settings = retention(wanted).into_iter();
    settings.find(|(name, wanted)| value(resource, name) != Some(wanted))
}

/// Answers that tell something. Of a topic that the broker does not know, or whose settings this user may not see, the binding
/// reports no error but a topic without settings, and there is none.
fn told(answers: impl IntoIterator<Item = ConfigResource>) -> impl Iterator<Item = ConfigResource> {
    answers.into_iter().filter(|resource| !resource.entries.is_empty())
}

/// All settings of a topic once its retention is changed: the request replaces them, so it repeats the others. None when these
/// are not known, for then it would take them back to the brokers' defaults.
fn altered<'a>(new: &'a [(&'static str, String)], now: &'a ConfigResource) -> Option<HashMap<&'a str, &'a str>> {
    now.get(IN_SYNC)?;
    let kept = now.entries.iter().filter(|e| e.source == ConfigSource::DynamicTopic);
    let kept = kept.filter_map(|e| Some((e.name.as_str(), e.value.as_deref()?)));
    Some(
        kept.chain(new.iter().map(|(name, value)| (*name, value.as_str())))
            .collect(),
    )
}

/// The settings of a topic that is there are not shown.
pub(super) fn unseen(topic: &str) -> LogError {
    let why = format!("topic {topic} is there, but no broker shows them: the user needs DescribeConfigs on it");
    failed("asking for the settings of topics", why)
}

impl Handle {
    /// The settings of those that a broker knows and this user may see.
    pub(super) async fn describe(&self, topics: &[&str]) -> Result<Vec<ConfigResource>> {
        let mut all = Vec::with_capacity(topics.len());
        for chunk in topics.chunks(ASK_AT_ONCE) {
            let asked: Vec<_> = chunk.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
            let answers = self.admin.describe_configs(&asked, &self.admin_options()).await;
            let answers =
                answers.map_err(|e| storage("asking for the settings of topics", e, self.told.last_error()))?;
            all.extend(told(answers.into_iter().filter_map(Result::ok)));
        }
        Ok(all)
    }

    /// The settings of topics that a broker has told of: another one may hear of them a little later.
    pub(super) async fn describe_shown(&self, topics: &[&str]) -> Result<Vec<ConfigResource>> {
        let until = Instant::now() + HEARD_AFTER;
        let mut all = self.describe(topics).await?;
        while all.len() < topics.len() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
            let known = by_name(&all);
            let left: Vec<&str> = topics
                .iter()
                .copied()
                .filter(|name| !known.contains_key(name))
                .collect();
            let more = self.describe(&left).await?;
            all.extend(more);
        }
        Ok(all)
    }

    /// Applies a changed retention.
    pub(super) async fn alter(&self, changed: &[(&TopicSpec, &ConfigResource)]) -> Result<()> {
        for (spec, resource) in changed {
            let new = retention(&spec.cleanup);
            let all = altered(&new, resource).ok_or_else(|| unseen(&spec.name))?;
            let alter = AlterConfig::new(ResourceSpecifier::Topic(&spec.name));
            let alter = all
                .into_iter()
                .fold(alter, |alter, (name, value)| alter.set(name, value));
            let results = self.admin.alter_configs([&alter], &self.admin_options()).await;
            for result in results.map_err(|e| storage("changing a topic", e, self.told.last_error()))? {
                result.map_err(|(_, code)| failed("changing a topic", format!("topic {}: {code}", spec.name)))?;
            }
        }
        self.see_altered(changed.iter().map(|(spec, _)| *spec).collect()).await
    }

    /// Waits until the brokers show the changed retention: the binding reports also a change that they refused as made.
    async fn see_altered(&self, mut specs: Vec<&TopicSpec>) -> Result<()> {
        let deadline = Instant::now() + self.config.request_timeout;
        while !specs.is_empty() {
            let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            let described = self.describe(&names).await?;
            let shown = by_name(&described);
            let differing = |spec: &TopicSpec| match shown.get(spec.name.as_str()) {
                Some(resource) => differs(&spec.cleanup, resource),
                None => retention(&spec.cleanup).into_iter().next(),
            };
            specs.retain(|spec| differing(spec).is_some());
            if let Some(spec) = specs.first().filter(|_| Instant::now() > deadline)
                && let Some((name, wanted)) = differing(spec)
            {
                let why = format!(
                    "the brokers did not set {name} of topic {} to {wanted}: the user needs AlterConfigs on the topic, and \
                     their alter.config.policy must allow it",
                    spec.name
                );
                return Err(failed("changing a topic", why));
            }
            if !specs.is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}

fn by_name(described: &[ConfigResource]) -> HashMap<&str, &ConfigResource> {
    let named = described.iter().filter_map(|resource| match &resource.specifier {
        OwnedResourceSpecifier::Topic(name) => Some((name.as_str(), resource)),
        _ => None,
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::ConfigEntry;

    use super::*;

    /// Each setting with whether it is the topic's own.
    fn resource(topic: &str, entries: &[(&str, &str, bool)]) -> ConfigResource {
        let entry = |&(name, value, own): &(&str, &str, bool)| ConfigEntry {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            source: if own {
                ConfigSource::DynamicTopic
            } else {
                ConfigSource::Default
            },
            is_read_only: false,
            is_default: !own,
            is_sensitive: false,
        };
        ConfigResource {
            specifier: OwnedResourceSpecifier::Topic(topic.to_owned()),
            entries: entries.iter().map(entry).collect(),
        }
    }

    #[test]
    fn an_answer_without_settings_is_no_topic() {
        let known = resource("known", &[(IN_SYNC, "1", false)]);
        let unknown = resource("unknown", &[]);
        let names: Vec<_> = told([unknown, known]).map(|resource| resource.specifier).collect();
        assert_eq!(names, [OwnedResourceSpecifier::Topic("known".to_owned())]);
    }

    #[test]
    fn a_change_repeats_what_was_set_and_is_not_made_where_that_is_not_known() {
        let hour = Cleanup::Delete {
            retention: Some(Duration::from_secs(3600)),
            retention_bytes: None,
        };
        let new = retention(&hour);
        assert_eq!(altered(&new, &resource("t", &[])), None);
        let now = resource(
            "t",
            &[
                (IN_SYNC, "2", true),
                ("max.message.bytes", "9", true),
                ("segment.bytes", "7", false),
                ("retention.ms", "-1", true),
                (AGE, "5", true),
            ],
        );
        assert_eq!(differs(&hour, &now), Some((AGE, "3600000".to_owned())));
        let all = altered(&new, &now).unwrap();
        let expected = [
            (IN_SYNC, "2"),
            ("max.message.bytes", "9"),
            ("retention.ms", "-1"),
            (AGE, "3600000"),
            ("retention.bytes", "-1"),
        ];
        assert_eq!(all, HashMap::from(expected));
    }
}
