//! How to reach a cluster, and which settings of librdkafka may be changed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::{MAX_RECORD_BYTES, types::ConsumerConfig};

/// Least `message.timeout.ms`: a broker that was killed is missed after 9 s, its successor found after 14 s.
const MIN_MESSAGE_TIMEOUT_MS: u64 = 60_000;
/// Most `transaction.timeout.ms` that a broker takes by default (`transaction.max.timeout.ms`).
const MAX_TRANSACTION_TIMEOUT_MS: u64 = 900_000;
/// Most `topic.metadata.refresh.interval.ms`: new topics are to be seen within 2 s.
const MAX_METADATA_REFRESH_MS: u64 = 1_000;
/// A record with what a batch puts around it.
const MAX_MESSAGE_BYTES: usize = MAX_RECORD_BYTES + 64 * 1024;
/// Least session timeout that a broker takes by default (`group.min.session.timeout.ms`).
const MIN_SESSION: Duration = Duration::from_secs(6);
/// Longest silence of a consumer that is not asked for records; its partitions go to others then.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// Other names of settings that have one of ours: librdkafka would take either value when it is given both.
const ALIASES: &[(&str, &str)] = &[
    ("compression.codec", "compression.type"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("sasl.mechanisms", "sasl.mechanism"),
    ("delivery.timeout.ms", "message.timeout.ms"),
];

/// What nobody may change: the guarantees of [`EventLog`](crate::EventLog) rest on it.
const FIXED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set KafkaConfig::bootstrap"),
    ("metadata.broker.list", "set KafkaConfig::bootstrap"),
    ("enable.idempotence", "a retry would write a record twice"),
    ("acks", "a record would be lost with its broker"),
    ("request.required.acks", "a record would be lost with its broker"),
    ("retries", "a record would be given up before its time"),
    ("message.send.max.retries", "a record would be given up before its time"),
    (
        "delivery.report.only.error",
        "who writes waits for the word that it was written",
    ),
    ("max.in.flight", "records of a key could be swapped"),
    (
        "max.in.flight.requests.per.connection",
        "records of a key could be swapped",
    ),
    ("partitioner", "runs would leave the partition of their state"),
    ("enable.auto.commit", "work would be forgotten before it is done"),
    ("auto.commit.enable", "work would be forgotten before it is done"),
    ("enable.auto.offset.store", "work would be forgotten before it is done"),
    ("isolation.level", "records of transactions that failed would be read"),
    ("enable.partition.eof", "idle functions would keep a backlog"),
    ("auto.offset.reset", "set ConsumerConfig::start"),
    (
        "allow.auto.create.topics",
        "topics would get counts that break the order of keys",
    ),
    ("group.id", "set ConsumerConfig::group"),
    ("group.instance.id", "set ConsumerConfig::member"),
    (
        "group.protocol",
        "revoked partitions are handed over by the classic protocol",
    ),
    (
        "partition.assignment.strategy",
        "others would stop all partitions to move one",
    ),
    ("transactional.id", "it is the id given to EventLog::transactional"),
];

/// TLS to the brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaTls {
    /// PEM file of the authorities that sign the brokers' certificates; `None` for those of the system.
    pub ca: Option<PathBuf>,
    /// PEM files of our own certificate and its key, where the brokers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether the certificate must name the broker's host. `false` is for tests only.
    pub verify_host: bool,
}

impl Default for KafkaTls {
    fn default() -> Self {
        Self {
            ca: None,
            identity: None,
            verify_host: true,
        }
    }
}

/// How a password is shown to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
    /// PLAIN: the password itself, so only with TLS.
    Plain,
}

impl SaslMechanism {
    fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::Plain => "PLAIN",
        }
    }
}

/// Name and password. `Debug` shows the name only.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSasl {
    /// How the password is shown.
    pub mechanism: SaslMechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for KafkaSasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How a cluster is reached and used.
///
/// `settings` reaches every setting of librdkafka (its `CONFIGURATION.md` lists them). A plain name counts for all
/// clients; `producer.` or `consumer.` before it for those only, and wins: `producer.linger.ms`, `consumer.fetch.max.bytes`.
/// What is given there replaces ours, except for what the guarantees rest on: naming one of those is an error.
/// Two have bounds: `message.timeout.ms` (`delivery.timeout.ms`) at least 60000, `topic.metadata.refresh.interval.ms` at most
/// 1000 for consumers.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port` of some brokers, with commas between them.
    pub bootstrap: String,
    /// Name that the brokers write into their logs.
    pub client_id: String,
    /// Copies of each partition of the topics that are created. 3 outlives the loss of a broker.
    pub replication: u16,
    /// Copies that must have a record before it counts as written; at most `replication`.
    pub min_in_sync: u16,
    /// TLS; `None` for none.
    pub tls: Option<KafkaTls>,
    /// Name and password; `None` for none.
    pub sasl: Option<KafkaSasl>,
    /// Longest wait for an answer to a question about topics, offsets or groups.
    pub request_timeout: Duration,
    /// Settings of librdkafka by name. They may hold passwords, so `Debug` shows their names only.
    pub settings: BTreeMap<String, String>,
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("replication", &self.replication)
            .field("min_in_sync", &self.min_in_sync)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("request_timeout", &self.request_timeout)
            .field("settings", &self.settings.keys())
            .finish()
    }
}

impl KafkaConfig {
    /// A cluster of at least three brokers, without TLS and passwords.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            client_id: "imageflow".to_owned(),
            replication: 3,
            min_in_sync: 2,
            tls: None,
            sasl: None,
            request_timeout: Duration::from_secs(30),
            settings: BTreeMap::new(),
        }
    }

    /// The same with one more setting of librdkafka.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Checks what can be checked without a broker.
    ///
    /// # Errors
    /// [`KafkaOpenError`], with the name of what cannot be.
    pub fn check(&self) -> Result<(), KafkaOpenError> {
        let refuse = |key: &str, why: &str| {
            Err(KafkaOpenError::Setting {
                key: key.to_owned(),
                why: why.to_owned(),
            })
        };
        if self.replication == 0 || self.min_in_sync == 0 || self.min_in_sync > self.replication {
            return refuse("min_in_sync", "it must be from 1 to the replication");
        }
        for (key, value) in &self.settings {
            let name = ["producer.", "consumer."]
                .iter()
                .find_map(|side| key.strip_prefix(side))
                .unwrap_or(key);
            if let Some((_, why)) = FIXED.iter().find(|(fixed, _)| *fixed == name) {
                return refuse(key, why);
            }
            let number = value.trim().parse::<u64>().ok();
            match name {
                // 0 is for ever.
                "message.timeout.ms" | "delivery.timeout.ms"
                    if number.is_some_and(|ms| ms != 0 && ms < MIN_MESSAGE_TIMEOUT_MS) =>
                {
                    return refuse(key, "below 60000 the loss of a broker would fail records");
                }
                "topic.metadata.refresh.interval.ms"
                    if !key.starts_with("producer.")
                        && !number.is_some_and(|ms| (10..=MAX_METADATA_REFRESH_MS).contains(&ms)) =>
                {
                    return refuse(key, "above 1000 new functions would wait for their first event");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", &self.client_id)
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            // The default of 10 s would add itself to the return of a broker.
            .set("reconnect.backoff.max.ms", "1000")
            .set("message.max.bytes", MAX_MESSAGE_BYTES.to_string());
        config.set(
            "security.protocol",
            match (&self.tls, &self.sasl) {
                (None, None) => "plaintext",
                (Some(_), None) => "ssl",
                (None, Some(_)) => "sasl_plaintext",
                (Some(_), Some(_)) => "sasl_ssl",
            },
        );
        if let Some(tls) = &self.tls {
            if let Some(ca) = &tls.ca {
                config.set("ssl.ca.location", ca.display().to_string());
            }
            if let Some((certificate, key)) = &tls.identity {
                config.set("ssl.certificate.location", certificate.display().to_string());
                config.set("ssl.key.location", key.display().to_string());
            }
            let check = if tls.verify_host { "https" } else { "none" };
            config.set("ssl.endpoint.identification.algorithm", check);
        }
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanism", sasl.mechanism.name());
            config.set("sasl.username", &sasl.username);
            config.set("sasl.password", &sasl.password);
        }
        config
    }

    /// The caller's settings, those of one side last.
    fn overlay(&self, config: &mut ClientConfig, side: &str) {
        let is_sided = |key: &str| key.starts_with("producer.") || key.starts_with("consumer.");
        let ours = |name| {
            ALIASES
                .iter()
                .find(|(alias, _)| *alias == name)
                .map_or(name, |(_, ours)| *ours)
        };
        for (key, value) in self.settings.iter().filter(|(key, _)| !is_sided(key)) {
            config.set(ours(key), value);
        }
        for (key, value) in &self.settings {
            if let Some(name) = key.strip_prefix(side) {
                config.set(ours(name), value);
            }
        }
    }

    /// Of the client that asks about topics and groups.
    pub(super) fn admin(&self) -> ClientConfig {
        let mut config = self.client();
        self.overlay(&mut config, "producer.");
        config
    }

    /// Of the client that asks for offsets, and is in no group.
    pub(super) fn asking(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("isolation.level", "read_committed");
        self.overlay(&mut config, "consumer.");
        config
    }

    /// Of a producer.
    pub(super) fn producer(&self, transactional: Option<&str>) -> ClientConfig {
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", MIN_MESSAGE_TIMEOUT_MS.to_string())
            // Waiting for company costs each lonely record that long; under load batches fill by themselves.
            .set("linger.ms", "1")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "65536");
        self.overlay(&mut config, "producer.");
        if let Some(id) = transactional {
            config.set("transactional.id", id);
            let number = |config: &ClientConfig, key| config.get(key).and_then(|v| v.trim().parse::<u64>().ok());
            let message = number(&config, "message.timeout.ms");
            // As long as a record may take, for as long as brokers allow; a dead producer's records hold up readers for that time.
            if config.get("transaction.timeout.ms").is_none() {
                let timeout = message.unwrap_or_default();
                let timeout = timeout.clamp(MIN_MESSAGE_TIMEOUT_MS, MAX_TRANSACTION_TIMEOUT_MS);
                config.set("transaction.timeout.ms", timeout.to_string());
            }
            // No record may outlast its transaction, so neither for ever. What is no number is librdkafka's to refuse.
            if let (Some(message), Some(whole)) = (message, number(&config, "transaction.timeout.ms"))
                && (message == 0 || message > whole)
            {
                config.set("message.timeout.ms", whole.to_string());
            }
        }
        config
    }

    /// Of a client that follows all partitions of a topic. None is ever paused, so a fetch may wait long: an idle follower
    /// costs a request a second and broker, and still hears of a record at once. But it hears of the end of a partition when a
    /// fetch brings nothing: until it has `caught_up` no fetch waits for long.
    pub(super) fn follower(&self, group: &str, caught_up: bool) -> ClientConfig {
        let wait = if caught_up { "1000" } else { "10" };
        self.reading(group, &[("fetch.wait.max.ms", wait)])
    }

    /// Of a client that only asks for what `group` committed, or reads what it is told to.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        self.reading(group, &[])
    }

    /// Of a member of a group.
    pub(super) fn member(&self, member: &ConsumerConfig) -> ClientConfig {
        let session = member.session_timeout.max(MIN_SESSION);
        let poll = MAX_POLL_INTERVAL.max(session).as_millis().to_string();
        let mut config = self.reading(
            &member.group,
            &[
                // A rebalance is learned of by a heartbeat: the default of 3 s would be a part of every one.
                ("heartbeat.interval.ms", "500"),
                ("max.poll.interval.ms", &poll),
                ("session.timeout.ms", &session.as_millis().to_string()),
                ("topic.blacklist", "^__"),
                // A member may have thousands of partitions with a backlog each: what is read ahead of one is small, but enough for
                // the time in which a fetch for idle ones of the same broker waits. A record larger than a fetch is fetched
                // nevertheless.
                ("fetch.message.max.bytes", "65536"),
                ("queued.min.messages", "64"),
            ],
        );
        config
            .set("group.instance.id", &member.member)
            .set("partition.assignment.strategy", "cooperative-sticky");
        config
    }

    /// Of a client that reads, with defaults of its own.
    fn reading(&self, group: &str, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("topic.metadata.refresh.interval.ms", "1000")
            // A fetch that waits delays the first one of a partition that is resumed meanwhile.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.message.max.bytes", MAX_MESSAGE_BYTES.to_string())
            .set("fetch.max.bytes", (8 * 1024 * 1024).to_string())
            // What is read ahead, of each partition; above it the next look is soon, not after a second.
            .set("queued.min.messages", "1000")
            .set("queued.max.messages.kbytes", "1024")
            .set("fetch.queue.backoff.ms", "10");
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        self.overlay(&mut config, "consumer.");
        config
    }
}

/// Why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KafkaOpenError {
    /// A setting that must stay as it is, or has a value that cannot be.
    #[error("the Kafka setting {key} cannot be as it is given: {why}")]
    Setting {
        /// Its name.
        key: String,
        /// Why not.
        why: String,
    },
    /// librdkafka refuses a setting: an unknown name, or a value that it does not take.
    #[error("Kafka client: {0}")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No broker answered.
    #[error("no Kafka broker at {bootstrap} answered: {why}")]
    Unreachable {
        /// Where it was asked.
        bootstrap: String,
        /// What was last said.
        why: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl KafkaOpenError {
    pub(super) fn client(error: rdkafka::error::KafkaError) -> Self {
        Self::Client(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_safety_needs_is_refused_by_name() {
        for (key, value) in [
            ("enable.idempotence", "false"),
            ("producer.acks", "1"),
            ("delivery.report.only.error", "true"),
            ("producer.delivery.report.only.error", "true"),
            ("consumer.isolation.level", "read_uncommitted"),
            ("partitioner", "random"),
            ("message.timeout.ms", "5000"),
            ("consumer.topic.metadata.refresh.interval.ms", "60000"),
            ("topic.metadata.refresh.interval.ms", "-1"),
        ] {
            match KafkaConfig::new("b:1").setting(key, value).check() {
                Err(KafkaOpenError::Setting { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
        let none_in_sync = KafkaConfig {
            min_in_sync: 4,
            ..KafkaConfig::new("b:1")
        };
        assert!(none_in_sync.check().is_err());
    }

    #[test]
    fn other_settings_pass_through_to_their_side() {
        let config = KafkaConfig::new("b:1")
            .setting("linger.ms", "7")
            .setting("producer.linger.ms", "9")
            .setting("consumer.fetch.wait.max.ms", "250")
            .setting("message.timeout.ms", "300000")
            .setting("heartbeat.interval.ms", "1500");
        config.check().unwrap();
        assert_eq!(config.producer(None).get("linger.ms"), Some("9"));
        assert_eq!(config.producer(None).get("message.timeout.ms"), Some("300000"));
        assert_eq!(config.producer(None).get("fetch.wait.max.ms"), None);
        let member = ConsumerConfig::new("g", "m", crate::Topics::one("t"));
        let member = config.member(&member);
        assert_eq!(member.get("linger.ms"), Some("7"));
        assert_eq!(member.get("fetch.wait.max.ms"), Some("250"));
        assert_eq!(member.get("heartbeat.interval.ms"), Some("1500"));
        assert_eq!(member.get("group.instance.id"), Some("m"));
    }

    /// So long a topic may be there before they hear of it; with the rebalance that follows it is to be within 2 s.
    #[test]
    fn who_reads_looks_for_new_topics_every_second() {
        let config = KafkaConfig::new("b:1");
        let member = ConsumerConfig::new("g", "m", crate::Topics::Pattern("t".to_owned()));
        for client in [config.member(&member), config.follower("g", true)] {
            let made = client.create_native_config().unwrap();
            assert_eq!(made.get("topic.metadata.refresh.interval.ms").unwrap(), "1000");
        }
    }

    #[test]
    fn a_setting_by_another_name_takes_the_place_of_ours() {
        let config = KafkaConfig::new("b:1")
            .setting("producer.compression.codec", "zstd")
            .setting("queue.buffering.max.ms", "7")
            .setting("consumer.max.partition.fetch.bytes", "4096");
        config.check().unwrap();
        let producer = config.producer(None);
        let member = config.member(&ConsumerConfig::new("g", "m", crate::Topics::one("t")));
        // What librdkafka itself has in the end.
        let has = |config: &ClientConfig, key: &str| config.create_native_config().unwrap().get(key).unwrap();
        assert_eq!(has(&producer, "compression.codec"), "zstd");
        assert_eq!(has(&producer, "queue.buffering.max.ms"), "7");
        assert_eq!(has(&member, "fetch.message.max.bytes"), "4096");
        assert_eq!(has(&member, "queue.buffering.max.ms"), "7");
    }

    #[test]
    fn a_producer_writes_each_record_once_on_all_copies_and_compressed() {
        let made = KafkaConfig::new("b:1").producer(None).create_native_config().unwrap();
        for (key, value) in [
            ("enable.idempotence", "true"),
            ("request.required.acks", "-1"),
            ("compression.codec", "lz4"),
            ("message.timeout.ms", "60000"),
        ] {
            assert_eq!(made.get(key).unwrap(), value, "{key}");
        }
    }

    #[test]
    fn a_transactional_producer_can_be_made_with_every_timeout_of_records_that_is_taken() {
        for (settings, expected) in [
            (&[][..], ("60000", "60000")),
            (&[("message.timeout.ms", "300000")], ("300000", "300000")),
            (&[("producer.delivery.timeout.ms", "300000")], ("300000", "300000")),
            // For ever, and longer than brokers take.
            (&[("message.timeout.ms", "0")], ("60000", "60000")),
            (&[("message.timeout.ms", "3600000")], ("900000", "900000")),
            (
                &[("message.timeout.ms", "300000"), ("transaction.timeout.ms", "90000")],
                ("90000", "90000"),
            ),
            (&[("transaction.timeout.ms", "90000")], ("60000", "90000")),
        ] {
            let new = KafkaConfig::new("b:1");
            let config = settings
                .iter()
                .fold(new, |config, (key, value)| config.setting(*key, *value));
            config.check().unwrap();
            let made = config.producer(Some("id"));
            let timeouts = ["message.timeout.ms", "transaction.timeout.ms"].map(|key| made.get(key).unwrap());
            assert_eq!((timeouts[0], timeouts[1]), expected, "{settings:?}");
            made.create::<rdkafka::producer::BaseProducer>().unwrap();
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut config = KafkaConfig::new("b:1").setting("ssl.key.password", "hush");
        config.sasl = Some(KafkaSasl {
            mechanism: SaslMechanism::ScramSha512,
            username: "u".to_owned(),
            password: "hush".to_owned(),
        });
        config.tls = Some(KafkaTls::default());
        assert!(!format!("{config:?}").contains("hush"));
        assert_eq!(config.admin().get("security.protocol"), Some("sasl_ssl"));
        assert_eq!(config.admin().get("sasl.mechanism"), Some("SCRAM-SHA-512"));
    }

    /// What rdkafka shows of a configuration, it shows without secrets: a client made of that is let in nowhere.
    #[test]
    fn every_client_has_the_secrets() {
        let mut config = KafkaConfig::new("b:1").setting("ssl.key.password", "of the key");
        config.sasl = Some(KafkaSasl {
            mechanism: SaslMechanism::ScramSha512,
            username: "u".to_owned(),
            password: "hush".to_owned(),
        });
        let member = ConsumerConfig::new("g", "m", crate::Topics::one("t"));
        for client in [
            config.admin(),
            config.asking(),
            config.producer(None),
            config.producer(Some("id")),
            config.consumer("g"),
            config.member(&member),
        ] {
            assert_eq!(client.get("sasl.password"), Some("hush"));
            assert_eq!(client.get("ssl.key.password"), Some("of the key"));
        }
    }
}
