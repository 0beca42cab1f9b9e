//! What the autoscaler needs to know of deliveries.
use std::time::Duration;

use imageflow_types::{FunctionName, RevisionName};

/// Numbers of one revision: what is now, and what was done since the last collection.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionStats {
    /// The function.
    pub function: FunctionName,
    /// The revision.
    pub revision: RevisionName,
    /// Interactive callers that wait for a slot.
    pub held: u32,
    /// Batch callers that wait for a slot.
    pub held_batch: u32,
    /// Callers whom another function serves while this one has no pod.
    pub lent: u32,
    /// Requests with a pod.
    pub in_flight: u32,
    /// Requests that a pod answered since the last collection.
    pub completed: u64,
    /// Those of them for which somebody waited.
    pub calls: u64,
    /// Sum of their times with the pod.
    pub service: Duration,
}
