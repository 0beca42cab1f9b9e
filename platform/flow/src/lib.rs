//! What a flow means. [`compile()`] checks its graph and turns it into a plan of stages;
//! [`advance()`] moves a run through its plan, one event at a time.
//!
//! Pure: no I/O, no clock, no tokio. Time comes in as an argument, and what is to be done goes out as effects,
//! so that the router can put state and effects into one transaction.

pub mod advance;
pub mod compile;
mod graph;
mod output;

pub use advance::{Effect, advance, refused, start};
pub use compile::{FunctionLookup, FunctionView, MAX_STEPS, check, choose, compile, function_flow, pick};
pub use output::event_output_ref;
