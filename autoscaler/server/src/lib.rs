//! The autoscaler's loop: observe, decide, act.
//!
//! ```text
//! StatsSource ──loads──┐                       ┌─► Replicas::scale
//! Replicas ────pods────┼─► decide (pure) ──────┼─► history (decisions of a function)
//! functions (watch) ───┘   once a second,      └─► DecisionSink (what was decided and learned)
//! pokes ───────────────────► and at once
//! ```
//! Only functions with work or pods are looked at: thousands at zero cost nothing. One task owns all state; a second one
//! stores decisions, so that a slow log delays no decision. On shutdown the loop ends first, then what is left is stored.

mod autoscaler;
mod history;
pub mod inputs;
mod keda;
mod reports;
mod scaling_loop;
mod split;
mod store;

pub use autoscaler::{Autoscaler, Parts, Settings};
pub use inputs::{
    DecisionSink, FunctionLoad, FunctionScaling, Functions, PodStart, Replicas, RevisionPods, RevisionShare,
    ScaleError, StatsSource, StoreError, StoredDecision,
};
pub use keda::Keda;
pub use reports::Reports;
