//! Names of topics, consumer groups and buckets. One place, so that no two services spell them differently.
use crate::names::FunctionName;

/// CloudEvents from outside.
pub const EVENTS: &str = "imageflow.events";
/// The router's input: run requested, step completed or failed, cancel.
pub const RUN_EVENTS: &str = "imageflow.run-events";
/// State of each run after each transaction (compacted).
pub const RUNS: &str = "imageflow.runs";
/// Resources as applied (compacted).
pub const RESOURCES: &str = "imageflow.resources";
/// Learned sketches and last decisions (compacted).
pub const SCALING: &str = "imageflow.scaling";
/// How far the events of each bucket's objects are known to be told (compacted).
pub const MARKS: &str = "imageflow.marks";
/// Steps that are tried again, but not for a while.
pub const DELAY: &str = "imageflow.delay";
/// Notifications of an external S3 server, as it sends them.
pub const OBJECT_NOTIFICATIONS: &str = "imageflow.object-notifications";
/// Work that could not be done.
pub const DEAD_LETTERS: &str = "imageflow.dead-letters";
/// Header of a record that depends on resources: how much of them its writer had seen.
pub const SEEN: &str = "imageflow-resources-seen";
/// Prefix of every work topic.
pub const WORK_PREFIX: &str = "imageflow.work.";

/// The group of all dispatchers.
pub const GROUP_DISPATCHER: &str = "imageflow-dispatcher";
/// The group of those who hold delayed steps.
pub const GROUP_DELAY: &str = "imageflow-delay";
/// The group of those who turn notifications into events.
pub const GROUP_NOTIFICATIONS: &str = "imageflow-notifications";
/// The group of all routers.
pub const GROUP_ROUTER: &str = "imageflow-router";

/// Where images arrive.
pub const BUCKET_RAW: &str = "raw-images";
/// Where results land.
pub const BUCKET_PROCESSED: &str = "processed-images";
/// Logs and archives.
pub const BUCKET_LOGS: &str = "system-logs";

/// Partitions of the platform's own topics.
pub const PARTITIONS: u32 = 12;
/// Partitions of topics that get a record for a change or a far retry, not for each event, when they are made. A broker looks at
/// each partition with each fetch of a copy, so those that are seldom written to cost the busy ones.
pub const FEW_PARTITIONS: u32 = 3;
/// Partitions of a work topic.
pub const WORK_PARTITIONS: u32 = 6;

/// The work topic of a function.
#[must_use]
pub fn work(function: &FunctionName) -> String {
    format!("{WORK_PREFIX}{function}")
}

/// The function whose work topic it is.
#[must_use]
pub fn function_of_work(topic: &str) -> Option<FunctionName> {
    FunctionName::new(topic.strip_prefix(WORK_PREFIX)?).ok()
}
