//! The HTTP door: `/v1` for people and programs, the ingress of CloudEvents, and the events of objects.
//!
//! Nothing is acknowledged before it is durable: 202 means that the event log has it.

mod apply;
pub mod auth;
mod bodies;
mod connections;
mod dead_letters;
mod events;
mod functions;
mod images;
mod inputs;
mod invoke;
mod letters_view;
mod listener;
mod logs;
mod notifications;
mod params;
mod problem;
mod read;
mod reconcile;
mod runs;
mod runs_view;
mod scaling;
mod server;
mod start_run;
mod state;
mod status;
mod stream;
mod told;

pub use connections::HttpLimits;
pub use listener::ObjectEvents;
pub use notifications::Notifications;
pub use reconcile::{Pass, Reconciler};
pub use runs_view::RunsView;
pub use server::{GatewayError, serve};
pub use state::{BacklogView, Gateway, GatewayConfig, GatewayDeps, Scaling, ScalingView};
