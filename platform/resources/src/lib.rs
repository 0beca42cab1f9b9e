//! Where Functions, Flows, Triggers and Revisions are kept and watched: the compacted topic `imageflow.resources`
//! is the truth, [`Catalog`] is what it says now. [`TableView`] is the same for any compacted topic.

mod catalog;
mod seen;
mod store;
mod view;
mod writer;

pub use catalog::{Catalog, FunctionEntry, Operations, Route};
pub use seen::{NotSeen, Seen};
pub use store::{Applied, Authority, Outcome, ResourceStore, StoreConfig};
pub use view::{Table, TableView, ViewError};
