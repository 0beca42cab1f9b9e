//! The contract of a pod host.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use imageflow_types::function::Resources;
use imageflow_types::{FunctionName, RevisionName};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::pod::{PodId, PodTable};

/// What the pods of a revision are.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSpec {
    /// The function.
    pub function: FunctionName,
    /// The revision.
    pub revision: RevisionName,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment beside what the host sets (`PORT`, `IMAGEFLOW_BIND`, `IMAGEFLOW_POD`, `IMAGEFLOW_PLATFORM_ID`).
    pub env: Vec<(String, String)>,
    /// What one pod may use.
    pub resources: Resources,
    /// How many requests one pod takes at a time.
    pub concurrency_limit: u32,
    /// Longest time of one request: how long a drain waits.
    pub timeout: Duration,
}

/// Why a pod host refused.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No spec was applied for the revision.
    #[error("revision {0} is not known to the pod host")]
    UnknownRevision(RevisionName),
    /// The spec has no program.
    #[error("revision {0} names no program that this pod host can run")]
    NoProgram(RevisionName),
    /// A program or file that the host itself needs.
    #[error("the pod host cannot start: {what}: {source}")]
    Start {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder is another host's: to take it over would end the pods of that one.
    #[error("{} is in use by another pod host: end that one, or give this one a folder of its own with --data-dir", .0.display())]
    InUse(PathBuf),
    /// The host is shutting down.
    #[error("the pod host is shutting down")]
    Closing,
    /// The process that has the pods did not answer.
    #[error("the pod host at {url} did not answer: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// What went wrong.
        why: String,
    },
}

/// Which of a pod's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a pod wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When, ms since 1970.
    pub at_ms: i64,
    /// The function.
    pub function: FunctionName,
    /// The revision.
    pub revision: RevisionName,
    /// The pod.
    pub pod: String,
    /// The stream.
    pub stream: Stream,
    /// The line without its end.
    pub text: String,
}

/// Which lines.
#[derive(Debug, Clone)]
pub struct LogQuery {
    /// Of this function.
    pub function: FunctionName,
    /// Of this revision only.
    pub revision: Option<RevisionName>,
    /// The last so many.
    pub tail: usize,
}

/// Pods as those see them who give them work, count them or read what they wrote: here, or behind the network.
#[async_trait]
pub trait PodHost: Send + Sync + 'static {
    /// How many pods of a revision there shall be. Returns when it is noted; the table shows what comes of it. Pods with the
    /// least load are drained first, of those the newest.
    ///
    /// # Errors
    /// `UnknownRevision`, `Closing`, `Unreachable`.
    async fn scale(&self, revision: &RevisionName, replicas: u32) -> Result<(), PodError>;
    /// How many requests a pod holds, for the choice of whom to drain.
    fn set_load(&self, pod: &PodId, requests: u32);
    /// The pods, now and after each change.
    fn watch(&self) -> watch::Receiver<Arc<PodTable>>;
    /// Lines that pods wrote, oldest first. Kept are the last of each function.
    ///
    /// # Errors
    /// `Closing`, `Unreachable`.
    async fn logs(&self, query: LogQuery) -> Result<Vec<LogLine>, PodError>;
    /// Lines as they are written. A slow reader misses some.
    fn follow_logs(&self) -> broadcast::Receiver<LogLine>;
}

/// Makes pods: told what those of each revision are.
#[async_trait]
pub trait PodProvisioner: PodHost {
    /// Tells what the pods of a revision are. Repeating it is harmless; pods that run are not touched.
    ///
    /// # Errors
    /// `NoProgram`.
    async fn apply(&self, spec: PodSpec) -> Result<(), PodError>;
    /// Drains all pods of a revision and forgets it.
    ///
    /// # Errors
    /// `UnknownRevision`.
    async fn remove(&self, revision: &RevisionName) -> Result<(), PodError>;
}
