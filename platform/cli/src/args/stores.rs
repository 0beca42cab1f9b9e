//! Arguments that the platform and its single roles share: where events and objects are kept, what is told of the work.
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use imageflow_types::topics;

/// Kafka in place of the embedded event log.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Kafka brokers to use in place of the embedded event log, such as `localhost:9092`; name and password for SASL are
    /// `IMAGEFLOW_KAFKA_USERNAME` and `IMAGEFLOW_KAFKA_PASSWORD`
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// Copies of each partition of the topics that are created
    #[arg(
        long = "kafka-replication",
        value_name = "N",
        default_value_t = 3,
        requires = "kafka"
    )]
    pub replication: u16,
    /// Partitions of the work topic of a new function: so many dispatchers can share its work. They do not bound its pods, and one
    /// is enough for many functions with little work each; a topic that is there keeps its own
    #[arg(long = "kafka-work-partitions", value_name = "N", default_value_t = topics::WORK_PARTITIONS,
          value_parser = clap::value_parser!(u32).range(1..=1000), requires = "kafka")]
    pub work_partitions: u32,
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

/// An S3 server in place of the embedded one.
#[derive(Debug, Clone, Args)]
pub struct S3Args {
    /// S3 server to use in place of the embedded one, such as `http://localhost:9000`; its credentials are
    /// `IMAGEFLOW_S3_ACCESS_KEY` and `IMAGEFLOW_S3_SECRET_KEY`
    #[arg(long = "s3", value_name = "URL")]
    pub url: Option<String>,
    /// Region of the S3 server
    #[arg(
        long = "s3-region",
        value_name = "REGION",
        default_value = "us-east-1",
        requires = "url"
    )]
    pub region: String,
    /// The S3 server wants the bucket in the host name
    #[arg(long = "s3-virtual-hosts", requires = "url")]
    pub virtual_hosts: bool,
    /// PEM file of the authorities that sign the S3 server's certificate, in place of the system's. A function that fetches from
    /// it wants them as well: name the file in the variable `SSL_CERT_FILE` of its `spec.env`
    #[arg(id = "s3_ca", long = "s3-ca", value_name = "FILE", requires = "url")]
    pub ca: Option<PathBuf>,
    /// Whether a checksum goes with everything that is written or only with what must have one: for servers that refuse the header
    #[arg(long = "s3-checksums", value_enum, default_value_t = Checksums::WhenSupported, requires = "url")]
    pub checksums: Checksums,
}

/// When a checksum goes with a request, by the words of the AWS tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checksums {
    /// Wherever S3 knows one.
    WhenSupported,
    /// Where S3 asks for one.
    WhenRequired,
}

/// What is told of the work.
#[derive(Debug, Clone, Args)]
pub struct TelemetryArgs {
    /// Where traces go, such as `http://127.0.0.1:4317`
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Lowest level that is logged, or a filter such as `info,imageflow_router=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "IMAGEFLOW_LOG")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// As the flag of all commands has it.
    #[arg(skip)]
    pub no_color: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
