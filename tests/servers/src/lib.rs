//! Real servers for tests: fetched once into the cache folder, started on free loopback ports, always stopped.
//! With `IMAGEFLOW_SERVERS_HOST` they listen on that address of this machine instead: pods of a cluster reach them there.

pub mod connect;
pub mod kafka;
pub mod policies;
mod process;
pub mod proxy;
pub mod s3;
pub mod tls;

/// Where the servers listen.
pub(crate) fn host() -> String {
    std::env::var("IMAGEFLOW_SERVERS_HOST").unwrap_or_else(|_| "127.0.0.1".to_owned())
}
