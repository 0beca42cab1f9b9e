//! The log on a real Kafka: the suite of every event log on one node, and what only a cluster can show on three.

#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod kafka {
    pub mod cluster;
    pub mod details;
    pub mod secure;
    pub mod settings;
    pub mod subject;
}
