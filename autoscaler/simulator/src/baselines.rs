//! What our law is held against, besides Knative's and KEDA's, which are laws of the decider.

mod fixed;
mod numaflow;
mod oracle;

pub use fixed::Fixed;
pub use numaflow::{Numaflow, NumaflowConfig};
pub use oracle::oracle;
