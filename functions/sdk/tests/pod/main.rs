//! A pod as its callers see it: a real server on a free port, and an object store made of hyper beside it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]
mod calls;
mod events;
mod grpc;
mod limits;
mod python;
mod support;
