//! The server of a function pod (DESIGN 4.3). A program implements [`Function`] and calls [`run`]; the SDK does the rest
//! on one port: CloudEvents over HTTP/1.1 and h2c, plain image invocation, gRPC `FunctionService` and health, fetching
//! input and storing output by signed URLs, the concurrency limit, time limit, metrics, traces and drain.
//!
//! ```no_run
//! use imageflow_sdk::{Call, Content, Function, Reply};
//! use imageflow_types::Problem;
//!
//! struct Echo;
//! impl Function for Echo {
//!     fn handle(&self, call: Call) -> Result<Reply, Problem> {
//!         Ok(Reply { output: call.input, ..Reply::default() })
//!     }
//! }
//!
//! fn main() -> Result<(), imageflow_sdk::SdkError> {
//!     imageflow_sdk::run(Echo, &|name| std::env::var(name).ok())
//! }
//! ```

mod admission;
mod announce;
mod app;
mod config;
mod error;
mod event;
mod function;
mod grpc;
mod intake;
mod metrics;
mod plain;
mod query;
mod response;
mod route;
mod server;
mod telemetry;
mod transfer;

pub use config::{Announce, Config};
pub use error::{ConfigError, SdkError};
pub use function::{Call, Content, Function, Reply};
pub use query::params_from_query;
pub use server::{run, serve};

/// How environment variables are looked up: by name, `None` when not set.
pub type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Header of an answer that says the request was not admitted, so no attempt was made; its value is the reason.
pub const REFUSED_HEADER: &str = "imageflow-refused";
