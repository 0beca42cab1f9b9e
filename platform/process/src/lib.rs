//! The shell of every service: logs to standard error, spans to OTLP when asked for, metrics as Prometheus text, signals, limits.

mod admin;
mod door;
mod files;
mod keys;
mod serve;
mod signals;
mod telemetry;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod trace;

pub use admin::{Readiness, serve_admin};
pub use door::{Allowed, Door, KeysNeeded, ServiceRole, serve_open, serve_roles};
pub use files::raise_open_files;
pub use keys::{KeyFileError, KeyRole, Keys};
pub use signals::{Stop, ended, on_signals, overdue};
pub use telemetry::{LogFormat, Telemetry, TelemetryConfig, TelemetryError};
