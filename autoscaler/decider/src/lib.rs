//! How many pods a function wants, and why. See the crate's `README.md` for the problem, the wanted properties and the law.
//!
//! Pure: no I/O, no clock. What is learned lives in [`Memory`], which the caller keeps and stores.

pub mod decide;
pub mod explain;
mod keep_warm;
pub mod load;
pub mod memory;
pub mod policy;
pub mod reason;
mod service;
pub mod slots;

pub use decide::{Decision, Figures, Observation, decide};
pub use explain::{Explanation, explain};
pub use memory::Memory;
pub use policy::{PolicyConfig, PolicyKind};
pub use reason::Reason;
