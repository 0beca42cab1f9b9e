//! One node shared by all cases, and one of its own for each case that ends the log as a crash would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use imageflow_eventlog::conformance::Subject;
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, Kafka, KafkaConfig};
use imageflow_servers::kafka::Cluster;
use tokio::sync::OnceCell;

/// It ends with this process: a static is never dropped, but its guard notices.
static SHARED: OnceCell<Option<Arc<Cluster>>> = OnceCell::const_new();

pub fn config(cluster: &Cluster, copies: u16) -> KafkaConfig {
    KafkaConfig {
        replication: copies,
        min_in_sync: copies.div_ceil(2),
        ..KafkaConfig::new(cluster.bootstrap())
    }
}

/// A log on one node.
struct OnKafka {
    cluster: Arc<Cluster>,
    log: Option<Arc<Kafka>>,
    prefix: String,
    /// Whether a crash is one of the broker too.
    kill: bool,
}

impl OnKafka {
    async fn open(cluster: Arc<Cluster>, kill: bool) -> Self {
        static SUBJECTS: AtomicU32 = AtomicU32::new(0);
        let log = Some(Kafka::open(config(&cluster, 1)).await.unwrap());
        Self {
            cluster,
            log,
            prefix: format!("s{}-", SUBJECTS.fetch_add(1, Ordering::Relaxed)),
            kill,
        }
    }
}

#[async_trait]
impl Subject for OnKafka {
    fn log(&self) -> Arc<dyn EventLog> {
        self.log.clone().unwrap()
    }

    async fn crash(&mut self) {
        self.log = None;
        if self.kill {
            self.cluster.restart(0).await.unwrap();
        }
        self.log = Some(Kafka::open(config(&self.cluster, 1)).await.unwrap());
    }

    fn prefix(&self) -> String {
        self.prefix.clone()
    }
}

/// Where servers are skipped: the suite makes a test of each case and each needs some log.
struct Instead {
    log: Arc<Embedded>,
    folder: tempfile::TempDir,
}

impl Instead {
    async fn open(folder: tempfile::TempDir) -> Self {
        let config = EmbeddedConfig {
            reserve_bytes: 0,
            ..EmbeddedConfig::new(folder.path())
        };
        let log = Embedded::open(config).await.unwrap();
        Self { log, folder }
    }
}

#[async_trait]
impl Subject for Instead {
    fn log(&self) -> Arc<dyn EventLog> {
        self.log.clone()
    }

    async fn crash(&mut self) {
        self.log.close().await.unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        *self = Self::open(folder).await;
    }
}

/// Forwards to what there is.
struct Either(Box<dyn Subject>);

#[async_trait]
impl Subject for Either {
    fn log(&self) -> Arc<dyn EventLog> {
        self.0.log()
    }

    async fn crash(&mut self) {
        self.0.crash().await;
    }

    fn prefix(&self) -> String {
        self.0.prefix()
    }
}

async fn on(cluster: Option<Arc<Cluster>>, kill: bool) -> Either {
    Either(match cluster {
        Some(cluster) => Box::new(OnKafka::open(cluster, kill).await),
        None => Box::new(Instead::open(tempfile::tempdir().unwrap()).await),
    })
}

/// The node that is shared; `None` where servers are skipped.
pub async fn shared() -> Option<Arc<Cluster>> {
    let start = || async { Cluster::for_test(1).await.map(Arc::new) };
    SHARED.get_or_init(start).await.clone()
}

async fn on_kafka() -> Either {
    on(shared().await, false).await
}

async fn on_its_own() -> Either {
    on(Cluster::for_test(1).await.map(Arc::new), true).await
}

imageflow_eventlog::conformance!(on_kafka);

/// A crash of the broker itself, which a case that shares it cannot have.
mod the_broker_is_killed {
    use super::on_its_own;

    imageflow_eventlog::conformance! { on_its_own:
        what_was_acknowledged_survives_a_crash,
        a_compacted_topic_shows_the_latest_value_of_each_key,
    }
}
