//! What keeps a pod from serving.
use std::net::SocketAddr;

/// An environment variable that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable}=\"{value}\" {why}")]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it and what to write.
    pub why: String,
}

/// Why a pod ended otherwise than by draining.
#[derive(Debug, thiserror::Error)]
pub enum SdkError {
    /// The environment is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The runtime or its signal handlers could not be made.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}
