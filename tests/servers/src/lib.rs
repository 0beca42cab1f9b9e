//! Real servers for tests: fetched once into the cache folder, started on free loopback ports, always stopped.

pub mod kafka;
pub mod s3;
