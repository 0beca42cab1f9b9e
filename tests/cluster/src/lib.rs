//! A Kubernetes cluster on one machine, for tests: the real servers, built once into the cache folder, and three nodes that
//! are network, mount and process namespaces. See the README beside this crate.

mod binaries;
mod cgroups;
mod cluster;
mod control;
mod machine;
mod node;
mod pki;
mod process;
mod spaces;

use std::io;
use std::path::{Path, PathBuf};

pub use cluster::{Cluster, NodeStatus};
pub use machine::obstacle;
pub use node::{FIRST_ADDRESS, FIRST_NODE, NODES, Node};

/// The image of the program that tests run in pods: see `go/kube/probe`. It is on every node.
pub const PROBE_IMAGE: &str = "imageflow.test/probe:1";

/// Why there is no cluster, or why it does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The machine lacks something that no package brings.
    #[error("this machine cannot run the cluster: {0}")]
    Machine(String),
    /// A program that is needed is missing.
    #[error(
        "the program `{program}` cannot be run; `cargo xtask cluster up` installs what the cluster needs, or names it"
    )]
    Program {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{what} failed: {said}")]
    Failed {
        /// What it was to do.
        what: String,
        /// What it said.
        said: String,
    },
    /// A server of the cluster ended when it should not.
    #[error("{server} ended; the end of its log:\n{log}")]
    Ended {
        /// Its name.
        server: String,
        /// What it wrote last.
        log: String,
    },
    /// An image was not made.
    #[error(transparent)]
    Image(#[from] imageflow_images::ImageError),
    /// Something did not come in time.
    #[error("{what}: not within {seconds} s; the servers' logs are in {}", logs.display())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// Where to look.
        logs: PathBuf,
    },
    /// A file or folder cannot be used.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No home folder, so no cache folder.
    #[error("there is no folder for the cache: set XDG_CACHE_HOME or HOME")]
    NoCache,
    /// A certificate could not be made.
    #[error("a certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// It is not up.
    #[error("the cluster is not up: start it with `cargo xtask cluster up`")]
    Down,
    /// There is no such node.
    #[error("there is no node \"{0}\"")]
    NoNode(String),
}

/// Result of every call here.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// The cause of a failure with a file.
fn file(path: &Path) -> impl FnOnce(io::Error) -> ClusterError {
    let path = path.to_owned();
    move |source| ClusterError::File { path, source }
}

/// Says how it goes: past the capture of the test harness, for it takes its time and somebody may wait.
fn say(what: &str) {
    use io::Write;
    // Nobody may be reading; that is no reason to stop.
    let _told = writeln!(io::stderr(), "cluster: {what}");
}
