//! Arguments of `imageflow up`.
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::stores::{KafkaArgs, S3Args, TelemetryArgs};

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
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000", conflicts_with = "url")]
    pub s3_listen: SocketAddr,
    /// Most bytes the event log may take; 0 is no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "kafka")]
    pub log_limit_bytes: u64,
    /// Most bytes the object store may take; 0 is no limit
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "url")]
    pub object_limit_bytes: u64,
    #[command(flatten)]
    pub s3: S3Args,
    #[command(flatten)]
    pub kafka: KafkaArgs,
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
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
}

impl UpArgs {
    /// Where everything durable is kept, given a way to read the environment.
    #[must_use]
    pub fn data_dir(&self, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
        data_dir(self.data_dir.as_ref(), env)
    }
}

/// Where everything durable is kept: as given, else as the XDG specification has it.
#[must_use]
pub fn data_dir(given: Option<&PathBuf>, env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(dir) = given {
        return dir.clone();
    }
    // The XDG specification has relative and empty values ignored.
    let xdg = env("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let base = xdg.or_else(|| Some(PathBuf::from(env("HOME")?).join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from(".")).join("imageflow")
}
