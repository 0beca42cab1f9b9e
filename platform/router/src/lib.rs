//! Triggers and flow runs: the only caller of the flow state machine, and the only one who ends a step.
//!
//! ```text
//! imageflow.events ─────► triggers ──► run requested ┐
//! imageflow.run-events ──────────────────────────────┴─► advance ──► one transaction:
//!                                   imageflow.runs (state) + imageflow.work.* + imageflow.dead-letters + offsets
//! ```
//! State in memory changes only after its transaction is durable; a batch that cannot be written is tried again whole.

mod batch;
mod room;
mod runs;
mod service;
mod triggers;

pub use service::{Announce, Router, RouterConfig, RouterError};
