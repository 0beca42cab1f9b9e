//! Arguments of `imageflow serve`.
use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::stores::{KafkaArgs, S3Args, TelemetryArgs};

/// One role of the platform as a process of its own, on Kafka and an S3 server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The role
    #[command(subcommand)]
    pub role: Role,
}

/// A role.
#[derive(Debug, Clone, Subcommand)]
pub enum Role {
    /// Matches triggers and moves runs on; several routers share the runs
    #[command(
        after_help = "Example:\n  imageflow serve router --member router-1 --kafka localhost:9092 --s3 http://localhost:9000"
    )]
    Router(RouterArgs),
}

/// `imageflow serve router`
#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    /// Its name among the routers, the same after a restart: a second one of the name ends the first
    #[arg(long, value_name = "NAME")]
    pub member: String,
    /// Address of /healthz/live, /healthz/ready and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub admin_listen: SocketAddr,
    /// Run each step of a flow as a request of its own
    #[arg(long)]
    pub no_fuse: bool,
    #[command(flatten)]
    pub kafka: KafkaArgs,
    #[command(flatten)]
    pub s3: S3Args,
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}
