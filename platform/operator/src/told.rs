//! What all kinds share: they stay until the other services have forgotten them, and their status says what is wrong with them.
use std::fmt::Debug;
use std::time::Duration;

use imageflow_types::ErrorCode;
use imageflow_types::manifest::Kind;
use k8s_openapi::NamespaceResourceScope;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::{Context, Result, count_write, ready};
use crate::crd::{Flow, Function, Trigger};
use crate::objects::FIELD_MANAGER;

/// Keeps a resource there until the other services have forgotten it.
const FINALIZER: &str = "imageflow.dev/mirror";
/// Until a resource that is wrong or in use is looked at again: what it refers to may have come or gone.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// A kind of ours with a status.
pub trait Told:
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
    /// Its status as JSON.
    fn said(&self) -> Value;
}

impl Told for Function {
    const KIND: Kind = Kind::Function;
    fn said(&self) -> Value {
        json!(self.status)
    }
}

impl Told for Flow {
    const KIND: Kind = Kind::Flow;
    fn said(&self) -> Value {
        json!(self.status)
    }
}

impl Told for Trigger {
    const KIND: Kind = Kind::Trigger;
    fn said(&self) -> Value {
        json!(self.status)
    }
}

/// Has a resource stay until it was taken out of the store.
pub async fn keep<K: Told>(object: &K, context: &Context) -> Result<()> {
    if is_kept(object) {
        return Ok(());
    }
    finalizers(object, context, |all| all.push(FINALIZER.to_owned())).await
}

fn is_kept<K: Told>(object: &K) -> bool {
    object.finalizers().iter().any(|f| f == FINALIZER)
}

async fn finalizers<K: Told>(object: &K, context: &Context, change: impl FnOnce(&mut Vec<String>)) -> Result<()> {
    let mut all = object.finalizers().to_vec();
    change(&mut all);
    // With the version that was seen: a finalizer of somebody else that came meanwhile is not lost.
    let patch = json!({ "metadata": { "finalizers": all, "resourceVersion": object.resource_version() } });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    context
        .api::<K>()
        .patch(&object.name_any(), &params, &Patch::Merge(&patch))
        .await?;
    count_write("Finalizers");
    Ok(())
}

/// Takes a resource that is to go out of the store, and then lets it go. One that others need stays, and says so.
pub async fn removed<K: Told>(object: &K, context: &Context) -> Result<Action> {
    if !is_kept(object) {
        return Ok(Action::await_change());
    }
    match context.store.unmirror(K::KIND, &object.name_any()).await {
        Ok(()) => {}
        Err(problem) if problem.code == ErrorCode::NotFound => {}
        Err(problem) if problem.code == ErrorCode::Conflict => {
            return complain(object, context, "Delete", "InUse", &problem.detail).await;
        }
        Err(problem) => return Err(problem.into()),
    }
    context.forget(object);
    // What was made for it goes by its owner.
    finalizers(object, context, |all| all.retain(|f| f != FINALIZER)).await?;
    Ok(Action::await_change())
}

/// Says what is wrong with a resource: in an event the first time, and in its status.
pub async fn complain<K: Told>(
    object: &K,
    context: &Context,
    action: &str,
    reason: &str,
    message: &str,
) -> Result<Action> {
    let now = object.said();
    let told = now["conditions"].as_array();
    let is_told = told.is_some_and(|all| all.iter().any(|c| c["reason"] == reason && c["message"] == message));
    if !is_told {
        context.tell(object, true, reason, action, message.to_owned()).await;
    }
    say(object, context, false, reason, message).await?;
    Ok(Action::requeue(LOOK_AGAIN))
}

/// Sets the condition Ready.
pub async fn say<K: Told>(object: &K, context: &Context, is: bool, reason: &str, message: &str) -> Result<()> {
    let now = object.said();
    let generation = object.meta().generation.unwrap_or(0);
    let conditions = ready(&now, is, reason, message, generation, (context.clock)());
    let wanted = json!({ "observedGeneration": generation, "conditions": conditions });
    context.status(object, &now, wanted).await
}
