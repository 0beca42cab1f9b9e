//! What the whole-system tests share: a platform as a real process, an HTTP client, pictures.
//! A failure here is a failure of the test, so everything panics with what it was about.
#![expect(clippy::expect_used, reason = "test support: a panic is the failure of a test")]

pub mod decisions;
pub mod external;
pub mod figures;
pub mod http;
pub mod kubectl;
pub mod pictures;
pub mod platform;
pub mod role;
pub mod roles;

pub use http::Api;
pub use platform::Platform;
