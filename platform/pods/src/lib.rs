//! Where replicas live. [`PodHost`] is the contract; [`LocalHost`] runs them as processes on this machine (Linux),
//! [`kubernetes::KubernetesHost`] asks a cluster for them, [`RemoteHost`] is the host of another process, which serves it by [`PodServer`].

mod host;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod local;
mod orphans;
mod pod;
mod remote;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;

pub use host::{LogLine, LogQuery, PodError, PodHost, PodProvisioner, PodSpec, Stream};
pub use local::{Enforcement, LocalHost, LocalHostConfig};
pub use orphans::warden_main;
pub use pod::{Phases, Pod, PodId, PodState, PodTable};
pub use remote::{PodServer, RemoteConfig, RemoteHost};
