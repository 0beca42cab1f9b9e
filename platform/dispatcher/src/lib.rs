//! Takes work off the log, brings it to pods, and reports what came of it to the router, which alone ends a step.
//!
//! ```text
//! imageflow.work.*  ──► intake (tracker per partition) ──► work (attempts, retries) ──► delivery ──► pod
//!        ▲                    │ commit, lazily                    │
//!        └────────────────────┘                                   └──► imageflow.run-events, durable before done
//! ```
//! Shutdown, or a partition that goes to another dispatcher: the intake stops taking, what waits is given up at once, what is with
//! a pod may finish for some seconds (then it is given up, too: its offset stays uncommitted), what is done is committed.

pub mod backlog;
pub mod backoff;
mod commits;
mod delay;
mod intake;
mod letters;
mod outcome;
mod report;
mod request;
mod stop;
mod stored;
pub mod tracker;
mod turns;
mod unread;
mod waits;
mod work;

pub use backlog::Backlogs;
pub use intake::{Dispatcher, DispatcherConfig, DispatcherError};
