//! Where replicas live. [`PodHost`] is the contract; [`LocalHost`] runs them as processes on this machine (Linux).

mod host;
mod local;
mod orphans;
mod pod;

pub use host::{LogLine, LogQuery, PodError, PodHost, PodSpec, Stream};
pub use local::{Enforcement, LocalHost, LocalHostConfig};
pub use orphans::warden_main;
pub use pod::{Phases, Pod, PodId, PodState, PodTable};
