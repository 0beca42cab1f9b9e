//! How one invocation reaches one pod. A caller [acquires](Delivery::acquire) a slot, which waits in the hold queue
//! while there is none (scaling from zero included), signs what it must sign, and [sends](Delivery::send).
//! Interactive callers go before batch, and each class has a share that the other cannot take away.

mod announcer;
mod answers;
mod error;
mod hold;
mod pool;
mod report;
mod send;
mod stand_in;
mod stats;

pub use announcer::Announcer;
pub use error::DeliveryError;
pub use hold::{Class, Demand};
pub use pool::{Delivery, DeliveryConfig, Slot};
pub use report::{BacklogSource, FunctionBacklog, Reporter};
pub use stand_in::Target;
pub use stats::RevisionStats;
