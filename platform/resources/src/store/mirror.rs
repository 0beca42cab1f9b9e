//! Where something else has the resources, as the API server of Kubernetes has: the topic mirrors it.
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_types::Problem;
use imageflow_types::manifest::{Kind, Resource};

use super::changes::ask;
use super::{Applied, Kept, Outcome, ResourceStore, SCHEMA, check, log_problem};
use crate::catalog::{Catalog, FunctionEntry};

/// Who has the resources.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// Keeps a resource that was checked. Returns when the mirror shows it, or why it cannot.
    ///
    /// # Errors
    /// A problem that names the field, or that the authority is down.
    async fn apply(&self, resource: Resource) -> Result<Applied, Problem>;
    /// Deletes a resource. Returns when the mirror does not show it any more.
    ///
    /// # Errors
    /// Not found, a conflict, or that the authority is down.
    async fn delete(&self, kind: Kind, name: &str) -> Result<(), Problem>;
}

impl ResourceStore {
    /// From now on changes go to the authority, which mirrors them here.
    pub fn answer_to(&self, authority: Arc<dyn Authority>) {
        if self.authority.set(authority).is_err() {
            tracing::error!("the resources have an authority already");
        }
    }

    /// Keeps a function with revisions that are decided elsewhere. Writes nothing when it is like that already.
    ///
    /// # Errors
    /// A problem with every fault found, or that the log is full or down.
    pub async fn mirror_function(&self, entry: FunctionEntry) -> Result<Outcome, Problem> {
        let name = entry.document.metadata.name.clone();
        let images = self.config.images;
        let function = name.clone();
        let change = move |catalog: &Catalog| {
            // Its traffic goes to the revisions that come with it.
            let mut with = catalog.clone();
            with.functions.insert(function.clone(), Arc::new(entry.clone()));
            check(&Resource::Function(entry.document.clone()), &with, images)?;
            let kept = Kept {
                schema: SCHEMA,
                resource: Resource::Function(entry.document.clone()),
                revisions: entry.revisions.clone(),
            };
            let before = catalog.functions.get(&function);
            let outcome = match before {
                None => Outcome::Created,
                Some(before) if **before == entry => Outcome::Unchanged,
                Some(_) => Outcome::Configured,
            };
            let record = (outcome != Outcome::Unchanged).then(|| kept.record()).transpose()?;
            Ok((record, outcome))
        };
        let now = self.snapshot();
        if !now.functions.contains_key(&name) {
            change(&now)?;
            self.make_topic(&name).await.map_err(log_problem)?;
        }
        ask(&self.queue, change).await
    }

    /// Keeps a flow or a trigger that is decided elsewhere. Writes nothing when it is like that already.
    ///
    /// # Errors
    /// A problem with every fault found, or that the log is full or down.
    pub async fn mirror(&self, resource: Resource) -> Result<Applied, Problem> {
        self.keep(resource).await
    }

    /// Deletes a resource that was deleted elsewhere.
    ///
    /// # Errors
    /// Not found, or a conflict naming what refers to it.
    pub async fn unmirror(&self, kind: Kind, name: &str) -> Result<(), Problem> {
        self.remove(kind, name).await
    }
}
