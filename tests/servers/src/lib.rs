//! Real servers for tests: fetched once into the cache folder, started on free loopback ports, always stopped.

pub mod connect;
pub mod kafka;
mod process;
pub mod proxy;
pub mod s3;
