//! Arguments of `imageflow up`.
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The whole platform in one process.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  imageflow up\n  imageflow up --apply examples/flows.yaml\n  imageflow up --demo pictures --once"
)]
pub struct UpArgs {
    /// Where everything durable is kept; default `$XDG_DATA_HOME/imageflow` or `~/.local/share/imageflow`
    #[arg(long, value_name = "DIR", env = "IMAGEFLOW_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the HTTP API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Address of the S3 API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    pub s3_listen: SocketAddr,
    /// Most bytes the event log may take; 0 is no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub log_limit_bytes: u64,
    /// Most bytes the object store may take; 0 is no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub object_limit_bytes: u64,
    /// S3 server to use in place of the embedded one, such as `http://localhost:9000`; its credentials are
    /// `IMAGEFLOW_S3_ACCESS_KEY` and `IMAGEFLOW_S3_SECRET_KEY`
    #[arg(long, value_name = "URL", conflicts_with_all = ["s3_listen", "object_limit_bytes"])]
    pub s3: Option<String>,
    /// Region of the S3 server
    #[arg(long, value_name = "REGION", default_value = "us-east-1", requires = "s3")]
    pub s3_region: String,
    /// The S3 server wants the bucket in the host name
    #[arg(long, requires = "s3")]
    pub s3_virtual_hosts: bool,
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// Where traces go, such as `http://127.0.0.1:4317`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// File with API keys and their roles; without one, everybody who reaches the address is admin
    #[arg(long, value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// Manifests to apply once it is ready
    #[arg(long, value_name = "FILE")]
    pub apply: Vec<PathBuf>,
    /// Run each step of a flow as a request of its own
    #[arg(long)]
    pub no_fuse: bool,
    /// Apply the samples of a folder (functions.yaml, flow.yaml) and put its photos/ into raw-images
    #[arg(long, value_name = "DIR")]
    pub demo: Option<PathBuf>,
    /// Stop when the work given by --demo is done
    #[arg(long, requires = "demo")]
    pub once: bool,
    /// Lowest level that is logged, or a filter such as `info,imageflow_router=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "IMAGEFLOW_LOG")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Kafka in place of the embedded event log.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Kafka brokers to use in place of the embedded event log, such as `localhost:9092`; name and password for SASL are
    /// `IMAGEFLOW_KAFKA_USERNAME` and `IMAGEFLOW_KAFKA_PASSWORD`
    #[arg(long, value_name = "HOST:PORT,...", conflicts_with = "log_limit_bytes")]
    pub kafka: Option<String>,
    /// Copies of each partition of the topics that are created
    #[arg(
        long = "kafka-replication",
        value_name = "N",
        default_value_t = 3,
        requires = "kafka"
    )]
    pub replication: u16,
    /// Reach the brokers by TLS
    #[arg(long = "kafka-tls", requires = "kafka")]
    pub tls: bool,
    /// PEM file of the authorities that sign the brokers' certificates
    #[arg(long = "kafka-ca", value_name = "FILE", requires = "tls")]
    pub ca: Option<PathBuf>,
    /// How the password is shown to the brokers
    #[arg(long = "kafka-sasl", value_name = "MECHANISM", default_value = "SCRAM-SHA-512",
          value_parser = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"], requires = "kafka")]
    pub sasl_mechanism: String,
    /// One more setting of librdkafka, such as `producer.linger.ms=20`; may be given several times
    #[arg(long = "kafka-set", value_name = "NAME=VALUE", requires = "kafka")]
    pub settings: Vec<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl UpArgs {
    /// Where everything durable is kept, given a way to read the environment.
    #[must_use]
    pub fn data_dir(&self, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
        if let Some(dir) = &self.data_dir {
            return dir.clone();
        }
        // The XDG specification has relative and empty values ignored.
        let xdg = env("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let base = xdg.or_else(|| Some(PathBuf::from(env("HOME")?).join(".local/share")));
        base.unwrap_or_else(|| PathBuf::from(".")).join("imageflow")
    }
}
