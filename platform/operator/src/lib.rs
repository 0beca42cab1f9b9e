//! Kubernetes controllers. Functions become Revisions, Deployments and what belongs to them (`functions`), all resources are
//! mirrored into the topic that the other services read (`mirror`), and changes by the platform's own API go to the custom
//! resources (`authority`). Everything is level-triggered: what is there is compared with what is wanted, and only a difference is
//! written.

mod authority;
mod context;
pub mod crd;
mod forgotten;
mod functions;
mod mirror;
pub mod objects;
mod readable;
#[cfg(test)]
mod scenarios;
mod schema;
mod status;
mod told;
mod watched;

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use imageflow_resources::ResourceStore;
use kube::client::ClientBuilder;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Client, Config, Resource};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tower::limit::GlobalConcurrencyLimitLayer;

pub use authority::KubeAuthority;
use context::{Context, ReconcileError};
use crd::{Flow, Function, Trigger};
pub use objects::{Master, Settings};
use readable::readable;
use watched::{Children, function_of, watched, without_spec};

/// Reconciles at once, of each kind: they wait for the API server and the log most of their time, and what waits together is
/// written together.
const CONCURRENCY: u16 = 128;
/// Requests at once. Each has a connection of its own with some 50 KB of buffers, and more of them are no faster.
const REQUESTS: usize = 16;

/// A client for the operator, by the cluster's own settings of a pod or by `KUBECONFIG`.
///
/// # Errors
/// Without such settings, or with wrong ones.
pub async fn client() -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let builder = ClientBuilder::try_from(Config::infer().await?)?;
    Ok(builder.with_layer(&GlobalConcurrencyLimitLayer::new(REQUESTS)).build())
}

/// The controllers of a namespace.
pub struct Operator {
    /// The API server.
    pub client: Client,
    /// What functions share.
    pub settings: Settings,
    /// The mirror.
    pub store: Arc<ResourceStore>,
    /// Name of this process, in events.
    pub member: String,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
}

impl Operator {
    /// Reconciles until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let namespace = self.settings.namespace.clone();
        let client = self.client.clone();
        let (deployments, deployment_events) = watched(&client, &namespace, |_| {});
        let (services, service_events) = watched(&client, &namespace, |_| {});
        let (budgets, budget_events) = watched(&client, &namespace, |_| {});
        let (policies, policy_events) = watched(&client, &namespace, |_| {});
        let (revisions, revision_events) = watched(&client, &namespace, |_| {});
        let (pods, pod_events) = watched(&client, &namespace, without_spec);
        let children = Children {
            deployments,
            services,
            budgets,
            policies,
            revisions,
            pods,
            listed: OnceCell::new(),
        };
        let context = Context::new(
            self.client,
            self.settings,
            self.store,
            children,
            &self.member,
            self.clock,
        );
        let context = Arc::new(context);
        let config = || controller::Config::default().concurrency(CONCURRENCY);

        let (reader, known) = readable(&client, &namespace, self.clock);
        let functions = Controller::for_stream(known, reader)
            .with_config(config())
            .trigger_backoff(AtOnce)
            .watches_stream(deployment_events, to_function(&namespace))
            .watches_stream(service_events, to_function(&namespace))
            .watches_stream(budget_events, to_function(&namespace))
            .watches_stream(policy_events, to_function(&namespace))
            .watches_stream(revision_events, to_function(&namespace))
            .watches_stream(pod_events, to_function(&namespace))
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(functions::reconcile, functions::again, context.clone());
        let (reader, known) = readable(&client, &namespace, self.clock);
        let flows = Controller::for_stream(known, reader)
            .with_config(config())
            .trigger_backoff(AtOnce)
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(mirror::reconcile::<Flow>, functions::again, context.clone());
        let (reader, known) = readable(&client, &namespace, self.clock);
        let triggers = Controller::for_stream(known, reader)
            .with_config(config())
            .trigger_backoff(AtOnce)
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(mirror::reconcile::<Trigger>, functions::again, context.clone());
        let forgetting = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = forgotten::keep(&context) => {}
            }
        };
        tokio::join!(
            drain("function", functions),
            drain("flow", flows),
            drain("trigger", triggers),
            forgetting,
        );
    }
}

/// Each watch of a function's controller waits by itself after an error. The controller's own wait would hold up all of them, and
/// grows with the errors of each: by the default an API server that was away for 4 s cost minutes.
struct AtOnce;

impl Iterator for AtOnce {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for AtOnce {
    fn reset(&mut self) {}
}

fn to_function<K: Resource<DynamicType = ()>>(
    namespace: &str,
) -> impl Fn(K) -> Option<ObjectRef<Function>> + Send + Sync + 'static + use<K> {
    let namespace = namespace.to_owned();
    move |object| function_of(&object, &namespace)
}

type Done<K> = Result<(ObjectRef<K>, Action), controller::Error<ReconcileError, watcher::Error>>;

async fn drain<K: Resource<DynamicType = ()>>(kind: &'static str, results: impl Stream<Item = Done<K>>) {
    results
        .for_each(async |result| {
            let outcome = match &result {
                Ok(_) => "done",
                // It was deleted in between, or has been told by the reconcile itself.
                Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => "failed",
                Err(error) => {
                    tracing::warn!(%error, kind, "the operator does not see the cluster for now");
                    "unseen"
                }
            };
            metrics::counter!("imageflow_operator_reconciles_total", "kind" => kind, "outcome" => outcome).increment(1);
        })
        .await;
}
