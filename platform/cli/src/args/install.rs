//! Arguments of `imageflow install` and `imageflow doctor`.
use std::path::PathBuf;

use clap::Args;
use imageflow_types::HumanDuration;

/// `imageflow install`
#[derive(Debug, Args)]
#[command(
    after_help = "The manifests are in this program; KUBECONFIG says which cluster. Keys are made once and kept in Secrets:\n  kubectl -n imageflow-backend get secret imageflow-admin-key -o jsonpath='{.data.key}' | base64 -d\n\nExamples:\n  imageflow install --overlay k3s\n  imageflow install --overlay cluster --kafka 10.77.0.1:9092 --s3 http://10.77.0.1:9000 --dry-run"
)]
pub struct InstallArgs {
    /// Which overlay of the manifests
    #[arg(long, value_name = "NAME", default_value = "k3s")]
    pub overlay: String,
    /// Take the manifests from this folder, not from this program
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Kafka brokers, in place of what the overlay says
    #[arg(long, value_name = "HOST:PORT,...")]
    pub kafka: Option<String>,
    /// S3 server, in place of what the overlay says; its credentials are IMAGEFLOW_S3_ACCESS_KEY and IMAGEFLOW_S3_SECRET_KEY,
    /// unless their Secrets are there
    #[arg(long, value_name = "URL")]
    pub s3: Option<String>,
    /// The API server checks everything and keeps nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Longest wait until all is healthy
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub timeout: HumanDuration,
}

/// `imageflow doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub system: super::serve::SystemNamespaceArgs,
    #[command(flatten)]
    pub functions: super::serve::NamespaceArgs,
    /// How results are printed.
    #[command(flatten)]
    pub out: super::OutputArgs,
}
