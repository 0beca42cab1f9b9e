//! The gateway over a real socket: with an embedded event log, an object store in memory, and pods that the tests play.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod access;
mod bad_input;
mod connections;
mod dead_letters;
mod events;
mod invoke;
mod keys;
mod many_runs;
mod notifications;
mod objects;
mod reconcile;
mod resources;
mod runs;
mod store;
mod support;
