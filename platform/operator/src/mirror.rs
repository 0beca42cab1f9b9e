//! Flows and Triggers: nothing is made for them, they are checked and mirrored for the services that work by them.
use std::sync::Arc;
use std::time::Duration;

use imageflow_types::ErrorCode;
use imageflow_types::manifest::{API_VERSION, Document, Metadata, Resource};
use imageflow_types::names::{FlowName, InvalidName, TriggerName};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::context::{Context, Result, annotations_of};
use crate::crd::{Flow, Trigger};
use crate::told::{Told, complain, keep, removed, say};

/// A look without a cause.
const RESYNC: Duration = Duration::from_secs(600);

/// A kind that is only mirrored.
pub trait Mirrored: Told {
    /// As the other services read it.
    ///
    /// # Errors
    /// When its name cannot be one of this kind.
    fn resource(&self) -> std::result::Result<Resource, InvalidName>;
}

impl Mirrored for Flow {
    fn resource(&self) -> std::result::Result<Resource, InvalidName> {
        let name = FlowName::new(self.name_any())?;
        Ok(Resource::Flow(document(self, name, self.spec.0.clone())))
    }
}

impl Mirrored for Trigger {
    fn resource(&self) -> std::result::Result<Resource, InvalidName> {
        let name = TriggerName::new(self.name_any())?;
        Ok(Resource::Trigger(document(self, name, self.spec.0.clone())))
    }
}

fn document<K: kube::Resource, N, S>(object: &K, name: N, spec: S) -> Document<N, S> {
    let mut metadata = Metadata::named(name);
    metadata.labels.clone_from(object.labels());
    metadata.annotations = annotations_of(object);
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
        Err(error) => return complain(&*object, &context, "Validate", "Invalid", &error.to_string()).await,
    };
    keep(&*object, &context).await?;
    match context.store.mirror(resource).await {
        Ok(_) => {
            say(&*object, &context, true, "Mirrored", "").await?;
            Ok(Action::requeue(RESYNC))
        }
        Err(problem) if matches!(problem.code, ErrorCode::InvalidArgument | ErrorCode::NotFound) => {
            // What it refers to may come; until then the last good one stands.
            complain(&*object, &context, "Validate", "Invalid", &problem.to_string()).await
        }
        Err(problem) => Err(problem.into()),
    }
}
