//! How the result is written.
pub(crate) mod convert;
pub(crate) mod noop;
