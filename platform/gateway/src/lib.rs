//! The HTTP door: `/v1` for people and programs, the ingress of CloudEvents, and the events of objects.
//!
//! Nothing is acknowledged before it is durable: 202 means that the event log has it.

mod apply;
pub mod auth;
mod dead_letters;
mod events;
mod functions;
mod images;
mod invoke;
mod listener;
mod logs;
mod problem;
mod reconcile;
mod runs;
mod runs_view;
mod scaling;
mod server;
mod start_run;
mod state;
mod status;
mod stream;

pub use listener::ObjectEvents;
pub use reconcile::reconcile;
pub use runs_view::RunsView;
pub use server::{GatewayError, serve};
pub use state::{BacklogView, Gateway, GatewayConfig, GatewayDeps, Scaling, ScalingView};
