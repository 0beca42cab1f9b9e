//! Flows and Triggers: nothing is made for them, they are checked and mirrored for the services that work by them.
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use imageflow_types::ErrorCode;
use imageflow_types::manifest::{API_VERSION, Document, Kind, Metadata, Resource};
use imageflow_types::names::{FlowName, InvalidName, TriggerName};
use k8s_openapi::NamespaceResourceScope;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::{Context, Result, ready};
use crate::crd::{Flow, Trigger};
use crate::functions::{FINALIZER, is_told, keep, release};

/// A look without a cause.
const RESYNC: Duration = Duration::from_secs(600);
/// Until one that refers to what is not there is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// A kind that is only mirrored.
pub trait Mirrored:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + Debug
    + Send
    + Sync
    + 'static
{
    /// Which kind.
    const KIND: Kind;
    /// As the other services read it.
    ///
    /// # Errors
    /// When its name cannot be one of this kind.
    fn resource(&self) -> std::result::Result<Resource, InvalidName>;
    /// Its status as JSON.
    fn said(&self) -> Value;
}

impl Mirrored for Flow {
    const KIND: Kind = Kind::Flow;
    fn resource(&self) -> std::result::Result<Resource, InvalidName> {
        let name = FlowName::new(self.name_any())?;
        Ok(Resource::Flow(document(self, name, self.spec.0.clone())))
    }
    fn said(&self) -> Value {
        json!(self.status)
    }
}

impl Mirrored for Trigger {
    const KIND: Kind = Kind::Trigger;
    fn resource(&self) -> std::result::Result<Resource, InvalidName> {
        let name = TriggerName::new(self.name_any())?;
        Ok(Resource::Trigger(document(self, name, self.spec.0.clone())))
    }
    fn said(&self) -> Value {
        json!(self.status)
    }
}

fn document<K: kube::Resource, N, S>(object: &K, name: N, spec: S) -> Document<N, S> {
    let mut metadata = Metadata::named(name);
    metadata.labels.clone_from(object.labels());
    Document {
        api_version: API_VERSION.to_owned(),
        metadata,
        spec,
    }
}

/// Brings the mirror to where the spec says.
///
/// # Errors
/// [`crate::context::ReconcileError`]: it is tried again.
pub async fn reconcile<K: Mirrored>(object: Arc<K>, context: Arc<Context>) -> Result<Action> {
    if object.meta().deletion_timestamp.is_some() {
        return removed(&*object, &context).await;
    }
    let resource = match object.resource() {
        Ok(resource) => resource,
        Err(error) => return refused(&*object, &context, &error.to_string()).await,
    };
    keep(&*object, &context).await?;
    match context.store.mirror(resource).await {
        Ok(_) => {
            say(&*object, &context, true, "Mirrored", "").await?;
            Ok(Action::requeue(RESYNC))
        }
        Err(problem) if matches!(problem.code, ErrorCode::InvalidArgument | ErrorCode::NotFound) => {
            // What it refers to may come; until then the last good one stands.
            refused(&*object, &context, &problem.to_string()).await
        }
        Err(problem) => Err(problem.into()),
    }
}

async fn refused<K: Mirrored>(object: &K, context: &Context, message: &str) -> Result<Action> {
    if !is_told(&object.said(), "Invalid", message) {
        context
            .tell(object, true, "Invalid", "Validate", message.to_owned())
            .await;
    }
    say(object, context, false, "Invalid", message).await?;
    Ok(Action::requeue(LOOK_AGAIN))
}

async fn removed<K: Mirrored>(object: &K, context: &Context) -> Result<Action> {
    if !object.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(Action::await_change());
    }
    match context.store.unmirror(K::KIND, &object.name_any()).await {
        Ok(()) => {}
        Err(problem) if problem.code == ErrorCode::NotFound => {}
        Err(problem) if problem.code == ErrorCode::Conflict => {
            if !is_told(&object.said(), "InUse", &problem.detail) {
                context
                    .tell(object, true, "InUse", "Delete", problem.detail.clone())
                    .await;
            }
            say(object, context, false, "InUse", &problem.detail).await?;
            return Ok(Action::requeue(LOOK_AGAIN));
        }
        Err(problem) => return Err(problem.into()),
    }
    release(object, context).await?;
    Ok(Action::await_change())
}

async fn say<K: Mirrored>(object: &K, context: &Context, is: bool, reason: &str, message: &str) -> Result<()> {
    let now = object.said();
    let generation = object.meta().generation.unwrap_or(0);
    let conditions = ready(&now, is, reason, message, generation, (context.clock)());
    let wanted = json!({ "observedGeneration": generation, "conditions": conditions });
    context.status(object, &now, wanted).await
}
