//! The object store. [`ObjectStore`] is the contract, [`S3Store`] speaks to any S3 server, [`EmbeddedS3`] is one in this
//! process. What is written or removed through the embedded one is durable before its listener hears of it, and the listener
//! has taken it before the client is told that it is done.

#[cfg(feature = "test-util")]
pub mod conformance;
mod embedded;
mod error;
mod names;
pub mod notifications;
mod presign;
mod s3;
mod signed;
mod store;

pub use embedded::{
    ChangeKind, EmbeddedS3, EmbeddedS3Config, EmbeddedS3Error, ListenerError, ObjectChange, ObjectListener,
};
pub use error::ObjectError;
pub use s3::{CaBundle, CaError, RetryBudget, S3Config, S3Store};
pub use signed::SignedUrl;
pub use store::{BodyError, ObjectBody, ObjectInfo, ObjectStore, PutOptions, check_bucket, check_key};
