//! Changes that come by the platform's own API: they go to the custom resources, of which the operator makes the mirror.
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use imageflow_resources::{Applied, Authority, Catalog, Outcome, ResourceStore};
use imageflow_types::manifest::{Kind, Resource};
use imageflow_types::{ErrorCode, FieldError, FieldErrors, Problem};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind, Status};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::crd::GROUP;

/// Who writes, as the API server keeps it.
const FIELD_MANAGER: &str = "imageflow-api";
/// Longest wait for the operator.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether an object has changed meanwhile.
const CHANGED: Duration = Duration::from_secs(1);
/// Between two looks at what the operator says.
const LOOK: Duration = Duration::from_millis(200);

/// The custom resources of a namespace.
pub struct KubeAuthority {
    client: Client,
    namespace: String,
    catalog: watch::Receiver<Arc<Catalog>>,
}

impl KubeAuthority {
    /// `store` is the mirror, by which it is seen that a change has arrived.
    #[must_use]
    pub fn new(client: Client, namespace: String, store: &ResourceStore) -> Self {
        Self {
            client,
            namespace,
            catalog: store.watch(),
        }
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(GROUP, "v1alpha1", kind.as_str());
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::from_gvk(&gvk))
    }

    /// Waits until the operator has seen a generation. With what it said, when it refused.
    async fn seen(&self, kind: Kind, name: &str, generation: i64, deadline: Instant) -> Result<(), Problem> {
        let api = self.api(kind);
        let look = async {
            loop {
                let object = api.get(name).await.map_err(|e| problem(&e, kind, name))?;
                let status = &object.data["status"];
                if status["observedGeneration"].as_i64() >= Some(generation) {
                    let conditions = status["conditions"].as_array();
                    let ready = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
                    let refused =
                        ready.filter(|c| matches!(c["reason"].as_str(), Some("Invalid" | "CommandNeedsImage")));
                    return match refused.and_then(|c| c["message"].as_str()) {
                        Some(message) => Err(FieldErrors::from(FieldError::new("spec", message)).into()),
                        None => Ok(()),
                    };
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout_at(deadline, look)
            .await
            .unwrap_or_else(|_| Err(late(kind, name)))
    }

    /// Waits until the mirror is that of an object: until then the platform works by what was before. Whoever has changed the
    /// object meanwhile waits for that change.
    async fn mirrored(&self, kind: Kind, object: &DynamicObject, deadline: Instant) -> Result<(), Problem> {
        let name = object.name_any();
        let mut catalog = self.catalog.clone();
        while Instant::now() < deadline {
            let seen = catalog.wait_for(|catalog| is_mirror(catalog, kind, object));
            match tokio::time::timeout_at(deadline.min(Instant::now() + CHANGED), seen).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => break,
                Err(_) => {}
            }
            let now = self.api(kind).get_metadata(&name).await;
            if now.is_ok_and(|now| now.metadata.generation > object.metadata.generation) {
                return Ok(());
            }
        }
        Err(late(kind, &name))
    }

    async fn gone(&self, kind: Kind, name: &str) -> Result<(), Problem> {
        let mut catalog = self.catalog.clone();
        let gone = catalog.wait_for(|catalog| !has(catalog, kind, name));
        match tokio::time::timeout(PATIENCE, gone).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(late(kind, name)),
        }
    }
}

/// Whether the mirror is that of an object, as the API server keeps it, or of what came after it.
fn is_mirror(catalog: &Catalog, kind: Kind, object: &DynamicObject) -> bool {
    let (name, spec) = (object.name_any(), &object.data["spec"]);
    match kind {
        Kind::Function => catalog.functions.get(name.as_str()).is_some_and(|entry| {
            let generation = object.metadata.generation.unwrap_or(0);
            i64::try_from(entry.document.metadata.generation).unwrap_or(i64::MAX) >= generation
        }),
        // The mirror counts their generations anew.
        Kind::Flow => catalog
            .flows
            .get(name.as_str())
            .is_some_and(|flow| is_spec(&flow.spec, spec)),
        Kind::Trigger => {
            let trigger = catalog.triggers.get(name.as_str());
            trigger.is_some_and(|trigger| is_spec(&trigger.spec, spec))
        }
    }
}

fn is_spec<S: DeserializeOwned + PartialEq>(mirrored: &S, kept: &Value) -> bool {
    // A field of a newer operator's definition, which this gateway does not know: that it is there is all that can be seen.
    S::deserialize(kept).map_or(true, |kept| kept == *mirrored)
}

fn has(catalog: &Catalog, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Function => catalog.functions.contains_key(name),
        Kind::Flow => catalog.flows.contains_key(name),
        Kind::Trigger => catalog.triggers.contains_key(name),
    }
}

fn late(kind: Kind, name: &str) -> Problem {
    let detail = format!(
        "{kind} {name} is kept, but the operator has not taken it over within {} s: see `kubectl -n imageflow-backend logs deploy/imageflow-operator`",
        PATIENCE.as_secs()
    );
    Problem::new(ErrorCode::Unavailable, detail).retry_after(5)
}

/// Whether two states of an object want the same. The generation counts changes of the spec.
fn is_like(one: &DynamicObject, other: &DynamicObject) -> bool {
    one.metadata.generation == other.metadata.generation
        && one.labels() == other.labels()
        && one.annotations() == other.annotations()
}

/// An error of the API server as callers see it.
fn problem(error: &kube::Error, kind: Kind, name: &str) -> Problem {
    let kube::Error::Api(status) = error else {
        return Problem::new(ErrorCode::Unavailable, format!("the Kubernetes API: {error}")).retry_after(2);
    };
    match status.code {
        404 => Problem::not_found(kind.as_str(), name, []),
        409 => Problem::new(ErrorCode::Conflict, status.message.clone()),
        403 => Problem::new(
            ErrorCode::Unavailable,
            format!("the gateway may not write {kind} here: {}", status.message),
        ),
        400 | 422 => FieldErrors(faults(status)).into(),
        _ => Problem::new(
            ErrorCode::Unavailable,
            format!("the Kubernetes API: {}", status.message),
        )
        .retry_after(2),
    }
}

/// The fields that the API server found wrong.
fn faults(status: &Status) -> Vec<FieldError> {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    let mut all: Vec<FieldError> = causes
        .map(|c| FieldError::new(c.field.clone(), c.message.clone()))
        .collect();
    if all.is_empty() {
        all.push(FieldError::new("", status.message.clone()));
    }
    all
}

#[async_trait]
impl Authority for KubeAuthority {
    async fn apply(&self, resource: Resource) -> Result<Applied, Problem> {
        let (kind, name) = (resource.kind(), resource.name().to_owned());
        let api = self.api(kind);
        let fail = |e: &kube::Error| problem(e, kind, &name);
        let before = api.get_opt(&name).await.map_err(|e| fail(&e))?;
        let document = serde_json::to_value(&resource).map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
        let wanted = json!({
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "metadata": {
                "name": name,
                "labels": document["metadata"].get("labels").cloned().unwrap_or_else(|| json!({})),
                "annotations": document["metadata"].get("annotations").cloned().unwrap_or_else(|| json!({})),
            },
            "spec": document["spec"],
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = api
            .patch(&name, &params, &Patch::Apply(&wanted))
            .await
            .map_err(|e| fail(&e))?;
        let generation = applied.metadata.generation.unwrap_or(0);
        let outcome = match &before {
            None => Outcome::Created,
            // Not by the resource version: the operator writes the status meanwhile.
            Some(before) if is_like(before, &applied) => Outcome::Unchanged,
            Some(_) => Outcome::Configured,
        };
        if applied.metadata.deletion_timestamp.is_some() {
            let detail = format!(
                "{kind} {name} is being deleted and takes no changes any more: apply it again when it is gone; its condition Ready says what still needs it"
            );
            return Err(Problem::new(ErrorCode::Conflict, detail));
        }
        let deadline = Instant::now() + PATIENCE;
        self.seen(kind, &name, generation, deadline).await?;
        self.mirrored(kind, &applied, deadline).await?;
        let revision = match kind {
            Kind::Function => {
                let catalog = self.catalog.borrow().clone();
                catalog
                    .function(&name)
                    .ok()
                    .and_then(|f| Some(f.latest()?.name.clone()))
            }
            Kind::Flow | Kind::Trigger => None,
        };
        Ok(Applied {
            outcome,
            resource,
            revision,
        })
    }

    async fn delete(&self, kind: Kind, name: &str) -> Result<(), Problem> {
        let deleted = self.api(kind).delete(name, &DeleteParams::default()).await;
        deleted.map_err(|e| problem(&e, kind, name))?;
        self.gone(kind, name).await
    }
}

#[cfg(test)]
mod tests {
    use imageflow_resources::FunctionEntry;
    use imageflow_types::flow::FlowSpec;
    use imageflow_types::manifest::Document;
    use imageflow_types::names::{FlowName, FunctionName};

    use super::*;

    #[test]
    fn a_mirror_of_before_is_not_taken_for_that_of_a_change() {
        let flow = |function: &str| json!({ "steps": [{ "name": "a", "function": function }] });
        let kept = |generation: i64, function: &str| -> DynamicObject {
            let object = json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": "Flow", "spec": flow(function),
                "metadata": { "name": "one", "generation": generation } });
            serde_json::from_value(object).unwrap()
        };
        let mut catalog = Catalog::default();
        assert!(!is_mirror(&catalog, Kind::Flow, &kept(1, "small")));
        let spec: FlowSpec = serde_json::from_value(flow("small")).unwrap();
        let name = FlowName::new("one").unwrap();
        catalog.flows.insert(name.clone(), Arc::new(Document::new(name, spec)));
        assert!(is_mirror(&catalog, Kind::Flow, &kept(1, "small")));
        assert!(!is_mirror(&catalog, Kind::Flow, &kept(2, "grey")));
        let mut newer = kept(2, "grey");
        newer.data["spec"]["unheardOf"] = json!(true);
        assert!(is_mirror(&catalog, Kind::Flow, &newer), "all that can be seen");

        let name = FunctionName::new("one").unwrap();
        let spec = serde_json::from_value(json!({ "operation": "resize" })).unwrap();
        let mut entry = FunctionEntry {
            document: Document::new(name.clone(), spec),
            revisions: Vec::new(),
        };
        entry.document.metadata.generation = 1;
        catalog.functions.insert(name, Arc::new(entry));
        assert!(is_mirror(&catalog, Kind::Function, &kept(1, "small")));
        assert!(!is_mirror(&catalog, Kind::Function, &kept(2, "small")));
    }

    #[test]
    fn what_the_api_server_finds_wrong_names_its_field() {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Invalid", "code": 422,
            "message": "Function \"resize\" is invalid",
            "details": { "causes": [{ "reason": "FieldValueInvalid", "message": "min is over max", "field": "spec.scale" }] },
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let problem = problem(&kube::Error::Api(Box::new(status)), Kind::Function, "resize");
        assert_eq!(problem.code, ErrorCode::InvalidArgument);
        assert!(problem.to_string().contains("spec.scale"), "{problem}");
    }
}
