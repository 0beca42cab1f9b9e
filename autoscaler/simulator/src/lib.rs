//! A deterministic world around the scaling law: the same requests, pods, nodes and clock for every policy. It answers what a
//! policy would have done with a load, and what that would have cost. No I/O and no wall clock; randomness is seeded.

pub mod baselines;
pub mod chart;
pub mod grid;
pub mod metrics;
pub mod policy;
pub mod report;
pub mod trace;
pub mod workload;
pub mod world;
