//! Where events and objects are kept: embedded, or in servers that are there already.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, Kafka, KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism};
use imageflow_gateway::ObjectEvents;
use imageflow_objects::{
    CaBundle, ChangeKind, EmbeddedS3, EmbeddedS3Config, ObjectBody, ObjectChange, ObjectError, ObjectInfo,
    ObjectListener, ObjectStore, PutOptions, S3Config, S3Store, SignedUrl,
};
use imageflow_resources::ResourceStore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::failed;
use super::platform::{chain, limit, now_ms};
use crate::args::stores::{Checksums, KafkaArgs, S3Args};
use crate::args::up::UpArgs;
use crate::error::CliError;

/// The credentials of the local mode, which binds loopback only.
const LOCAL_CREDENTIALS: (&str, &str) = ("imageflow", "imageflow-local");

/// The event log, and how to close it.
pub enum Log {
    Embedded(Arc<Embedded>),
    Kafka(Arc<Kafka>),
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

impl Log {
    pub async fn open(args: &UpArgs, data: &Path) -> Result<Self, CliError> {
        if args.kafka.kafka.is_some() {
            return Self::kafka(&args.kafka).await;
        }
        let config = EmbeddedConfig {
            limit_bytes: limit(args.log_limit_bytes),
            ..EmbeddedConfig::new(data.join("log"))
        };
        let log = Embedded::open(config).await;
        log.map(Self::Embedded)
            .map_err(|e| failed("the event log cannot be opened")(chain(&e)))
    }

    pub async fn kafka(args: &KafkaArgs) -> Result<Self, CliError> {
        let bootstrap = args.kafka.clone().unwrap_or_default();
        let mut config = KafkaConfig::new(bootstrap);
        config.replication = args.replication;
        config.min_in_sync = args.replication.saturating_sub(1).max(1);
        config.sasl = sasl(args)?;
        config.tls = args.tls.then(|| KafkaTls {
            ca: args.ca.clone(),
            ..KafkaTls::default()
        });
        for setting in &args.settings {
            let Some((name, value)) = setting.split_once('=') else {
                return Err(CliError::Usage(format!(
                    "--kafka-set: \"{setting}\" is not NAME=VALUE, for example --kafka-set producer.linger.ms=20"
                )));
            };
            config = config.setting(name, value);
        }
        let kafka = Kafka::open(config).await;
        kafka
            .map(Self::Kafka)
            .map_err(|e| failed("Kafka cannot be used")(chain(&e)))
    }

    pub fn shared(&self) -> Arc<dyn EventLog> {
        match self {
            Self::Embedded(log) => log.clone(),
            Self::Kafka(log) => log.clone(),
        }
    }

    /// Deletes from Kafka what is old and was read by all, until `stop`. The embedded log does so by itself.
    pub fn keep_retention(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        if let Self::Kafka(log) = self {
            let (log, stop) = (log.clone(), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(log.keep_retention(now_ms)).await });
        }
    }

    pub async fn close(self) {
        match self {
            Self::Embedded(log) => {
                if let Err(error) = log.close().await {
                    tracing::error!(%error, "the event log was not closed in order");
                }
            }
            Self::Kafka(log) => log.close().await,
        }
    }
}

/// Name and password come by the environment, where no list of processes shows them.
fn sasl(args: &KafkaArgs) -> Result<Option<KafkaSasl>, CliError> {
    let Some(username) = env("IMAGEFLOW_KAFKA_USERNAME") else {
        return Ok(None);
    };
    let password = env("IMAGEFLOW_KAFKA_PASSWORD").ok_or_else(|| {
        CliError::Usage("IMAGEFLOW_KAFKA_USERNAME is set, so set IMAGEFLOW_KAFKA_PASSWORD, too".to_owned())
    })?;
    let mechanism = match args.sasl_mechanism.as_str() {
        "SCRAM-SHA-256" => SaslMechanism::ScramSha256,
        "PLAIN" => SaslMechanism::Plain,
        _ => SaslMechanism::ScramSha512,
    };
    Ok(Some(KafkaSasl {
        mechanism,
        username,
        password,
    }))
}

/// The object store with what its users are told.
pub struct Objects {
    pub url: String,
    pub access_key: String,
    pub secret_key: String,
    /// Whether the credentials are the user's.
    pub own_credentials: bool,
    pub store: Arc<dyn ObjectStore>,
    /// The server, where it is ours.
    pub embedded: Option<EmbeddedS3>,
}

fn credentials() -> (Option<String>, Option<String>) {
    (env("IMAGEFLOW_S3_ACCESS_KEY"), env("IMAGEFLOW_S3_SECRET_KEY"))
}

impl Objects {
    /// A server that is there already.
    pub fn external(args: &S3Args, log: &Arc<dyn EventLog>, resources: &Arc<ResourceStore>) -> Result<Self, CliError> {
        let (Some(access_key), Some(secret_key)) = credentials() else {
            return Err(CliError::Usage(
                "--s3: set IMAGEFLOW_S3_ACCESS_KEY and IMAGEFLOW_S3_SECRET_KEY for the server".to_owned(),
            ));
        };
        let url = args.url.clone().unwrap_or_default();
        let read = |path| CaBundle::read(path).map_err(|e| CliError::Usage(format!("--s3-ca: {}", chain(&e))));
        let ca = args.ca.as_ref().map(read);
        let config = S3Config {
            region: args.region.clone(),
            path_style: !args.virtual_hosts,
            ca: ca.transpose()?,
            checksums: args.checksums == Checksums::WhenSupported,
            ..S3Config::new(url.clone(), access_key.clone(), secret_key.clone())
        };
        let inner: Arc<dyn ObjectStore> = Arc::new(S3Store::new(config));
        let events = ObjectEvents::new(log.clone(), resources.clone());
        Ok(Self {
            url,
            access_key,
            secret_key,
            own_credentials: true,
            store: Arc::new(Told { inner, events }),
            embedded: None,
        })
    }

    pub async fn open(
        args: &UpArgs,
        data: &Path,
        log: &Arc<dyn EventLog>,
        resources: &Arc<ResourceStore>,
    ) -> Result<Self, CliError> {
        if args.s3.url.is_some() {
            return Self::external(&args.s3, log, resources);
        }
        let (access_key, secret_key, own_credentials) = match credentials() {
            (Some(access), Some(secret)) => (access, secret, true),
            _ if args.s3_listen.ip().is_loopback() => {
                (LOCAL_CREDENTIALS.0.to_owned(), LOCAL_CREDENTIALS.1.to_owned(), false)
            }
            _ => {
                return Err(CliError::Usage(format!(
                    "--s3-listen: {} is not loopback, so set IMAGEFLOW_S3_ACCESS_KEY and IMAGEFLOW_S3_SECRET_KEY, or listen on 127.0.0.1",
                    args.s3_listen
                )));
            }
        };
        let embedded = EmbeddedS3::start(EmbeddedS3Config {
            root: data.join("objects"),
            listen: args.s3_listen,
            credentials: (access_key.clone(), secret_key.clone()),
            limit_bytes: limit(args.object_limit_bytes),
            max_object_bytes: 1 << 30,
            on_durable: Arc::new(ObjectEvents::new(log.clone(), resources.clone())),
        })
        .await
        .map_err(|e| failed("the S3 server")(chain(&e)))?;
        let url = format!("http://{}", embedded.addr());
        let store = S3Store::new(S3Config::new(url.clone(), access_key.clone(), secret_key.clone()));
        Ok(Self {
            url,
            access_key,
            secret_key,
            own_credentials,
            store: Arc::new(store),
            embedded: Some(embedded),
        })
    }
}

/// An external store. What is put through us is told before it is answered, as the embedded server does; what others put is told
/// by the server's notifications, or found by the reconcile.
struct Told {
    inner: Arc<dyn ObjectStore>,
    events: ObjectEvents,
}

impl Told {
    async fn tell(&self, info: ObjectInfo) -> Result<(), ObjectError> {
        let change = ObjectChange {
            kind: ChangeKind::Created,
            info,
            sequence: 0,
        };
        let told = self.events.on_durable(change).await;
        told.map_err(|source| ObjectError::Unavailable { source })
    }
}

#[async_trait]
impl ObjectStore for Told {
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError> {
        let info = self.inner.put(bucket, key, body, options).await?;
        self.tell(info.clone()).await?;
        Ok(info)
    }

    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        self.inner.get(bucket, key, if_match).await
    }

    async fn put_stream(
        &self,
        bucket: &str,
        key: &str,
        body: ObjectBody,
        options: PutOptions,
    ) -> Result<ObjectInfo, ObjectError> {
        let info = self.inner.put_stream(bucket, key, body, options).await?;
        self.tell(info.clone()).await?;
        Ok(info)
    }

    async fn get_stream(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
    ) -> Result<(ObjectInfo, ObjectBody), ObjectError> {
        self.inner.get_stream(bucket, key, if_match).await
    }

    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.inner.head(bucket, key).await
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        // The server tells of it, with no ETag by which its event and one of ours could be known for the same.
        self.inner.delete(bucket, key).await
    }

    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start_after: Option<&str>,
        max: usize,
    ) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.inner.list(bucket, prefix, start_after, max).await
    }

    async fn ensure_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        self.inner.ensure_bucket(bucket).await
    }

    async fn sign_get(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.inner.sign_get(bucket, key, if_match, life).await
    }

    async fn sign_put(
        &self,
        bucket: &str,
        key: &str,
        metadata: &std::collections::BTreeMap<String, String>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.inner.sign_put(bucket, key, metadata, life).await
    }
}
