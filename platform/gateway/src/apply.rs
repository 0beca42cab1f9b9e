//! Applying and deleting resources.
use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use imageflow_resources::{Applied, Catalog, FunctionEntry};
use imageflow_types::manifest::{Kind, Resource};
use imageflow_types::names::{FunctionName, RevisionName};
use imageflow_types::{ErrorCode, Problem, Revision};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bodies::Content;
use crate::problem::Answer;
use crate::read::{flag, json as read_json};
use crate::state::Gateway;

/// Most documents of one apply.
const MOST: usize = 6_000;
/// So many are kept at once: what waits together is written together.
const AT_ONCE: usize = 64;

/// `POST /v1/apply`: all documents are checked, then kept: functions first (those that name a fallback after it), then flows, then
/// triggers.
pub async fn apply(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery, Content(body): Content) -> Answer {
    let text =
        std::str::from_utf8(&body).map_err(|_| Problem::new(ErrorCode::InvalidArgument, "the body is not UTF-8"))?;
    let resources = documents(text)?;
    if resources.is_empty() || resources.len() > MOST {
        let detail = format!("the body has {} documents; send 1 to {MOST}", resources.len());
        return Err(Problem::new(ErrorCode::InvalidArgument, detail).into());
    }
    if flag(raw.as_deref(), "dryRun", false) {
        let items: Vec<Value> = checked(&gateway, resources)?
            .iter()
            .map(|r| json!({"kind": r.kind(), "name": r.name(), "outcome": "checked"}))
            .collect();
        return Ok(Json(json!({"items": items})).into_response());
    }
    let kept = gateway.apply_all(resources).await?;
    let items: Vec<Value> = kept.iter().map(outcome).collect();
    Ok(Json(json!({"items": items})).into_response())
}

impl Gateway {
    /// Checks all resources, then keeps them: what is referred to goes before what refers to it.
    ///
    /// # Errors
    /// What is wrong with one of them, and none is kept; or what kept one from being kept, when those before it are.
    pub async fn apply_all(&self, resources: Vec<Resource>) -> Result<Vec<Applied>, Problem> {
        let mut applied = Vec::with_capacity(resources.len());
        for together in independent(checked(self, resources)?) {
            let kept = together.into_iter().map(|one| self.deps.resources.apply(one));
            let mut kept = futures::stream::iter(kept).buffered(AT_ONCE);
            while let Some(one) = kept.try_next().await? {
                applied.push(one);
            }
        }
        Ok(applied)
    }
}

/// The resources in the order in which they are kept, if all of them can be.
fn checked(gateway: &Gateway, mut resources: Vec<Resource>) -> Result<Vec<Resource>, Problem> {
    resources.sort_by_key(class);
    check_all(gateway, &resources)?;
    Ok(resources)
}

/// What goes first: nothing refers to what comes later.
fn class(resource: &Resource) -> (Kind, bool) {
    let refers = matches!(resource, Resource::Function(document) if document.spec.scale.fallback.is_some());
    (resource.kind(), refers)
}

/// Sorted resources in groups of which none refers to another, nor has the name of another.
fn independent(resources: Vec<Resource>) -> Vec<Vec<Resource>> {
    let mut groups: Vec<Vec<Resource>> = Vec::new();
    let mut names = HashSet::new();
    for resource in resources {
        let name = resource.name().to_owned();
        match groups.last_mut() {
            Some(group) if class(&group[0]) == class(&resource) && !names.contains(&name) => group.push(resource),
            _ => {
                names.clear();
                groups.push(vec![resource]);
            }
        }
        names.insert(name);
    }
    groups
}

/// YAML documents, or JSON: one object or an array of them.
fn documents(text: &str) -> Result<Vec<Resource>, Problem> {
    if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text)
            .map_err(|e| Problem::new(ErrorCode::InvalidArgument, format!("the body is not a JSON array: {e}")))?;
        return Ok(values.into_iter().map(Resource::from_value).collect::<Result<_, _>>()?);
    }
    Ok(Resource::from_yaml(text)?)
}

/// Checks each against the catalog as it will be when those before it are applied, so that a file is taken whole or not at all.
fn check_all(gateway: &Gateway, resources: &[Resource]) -> Result<(), Problem> {
    let mut catalog = Catalog::clone(&gateway.deps.resources.snapshot());
    for resource in resources {
        gateway
            .deps
            .resources
            .check(resource, &catalog)
            .map_err(|mut problem| {
                problem.detail = format!("{} {}: {}", resource.kind(), resource.name(), problem.detail);
                problem
            })?;
        match resource.clone() {
            Resource::Function(document) => {
                let name = document.metadata.name.clone();
                let revisions = match catalog.functions.get(&name) {
                    Some(before) => before.revisions.clone(),
                    None => vec![Revision::new(&name, 1, &document.spec, gateway.now_ms())],
                };
                catalog
                    .functions
                    .insert(name, Arc::new(FunctionEntry { document, revisions }));
            }
            Resource::Flow(document) => {
                catalog.flows.insert(document.metadata.name.clone(), Arc::new(document));
            }
            Resource::Trigger(document) => {
                catalog
                    .triggers
                    .insert(document.metadata.name.clone(), Arc::new(document));
            }
        }
    }
    Ok(())
}

fn outcome(applied: &Applied) -> Value {
    json!({
        "kind": applied.resource.kind(), "name": applied.resource.name(),
        "outcome": applied.outcome, "revision": applied.revision,
    })
}

async fn put(gateway: &Gateway, kind: Kind, name: &str, body: &Bytes) -> Answer {
    let text =
        std::str::from_utf8(body).map_err(|_| Problem::new(ErrorCode::InvalidArgument, "the body is not UTF-8"))?;
    let mut resources = Resource::from_yaml(text).map_err(Problem::from)?;
    let one = resources
        .pop()
        .filter(|r| resources.is_empty() && r.kind() == kind && r.name() == name);
    let resource = one.ok_or_else(|| {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("the body is not one {kind} with metadata.name {name}"),
        )
    })?;
    Ok(Json(outcome(&gateway.deps.resources.apply(resource).await?)).into_response())
}

async fn delete(gateway: &Gateway, kind: Kind, name: &str) -> Answer {
    gateway.deps.resources.delete(kind, name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

type Shared = State<Arc<Gateway>>;

/// `PUT /v1/functions/{name}`.
pub async fn put_function(State(gateway): Shared, Path(name): Path<String>, Content(body): Content) -> Answer {
    put(&gateway, Kind::Function, &name, &body).await
}

/// `PUT /v1/flows/{name}`.
pub async fn put_flow(State(gateway): Shared, Path(name): Path<String>, Content(body): Content) -> Answer {
    put(&gateway, Kind::Flow, &name, &body).await
}

/// `PUT /v1/triggers/{name}`.
pub async fn put_trigger(State(gateway): Shared, Path(name): Path<String>, Content(body): Content) -> Answer {
    put(&gateway, Kind::Trigger, &name, &body).await
}

/// `DELETE /v1/functions/{name}`.
pub async fn delete_function(State(gateway): Shared, Path(name): Path<String>) -> Answer {
    delete(&gateway, Kind::Function, &name).await
}

/// `DELETE /v1/flows/{name}`.
pub async fn delete_flow(State(gateway): Shared, Path(name): Path<String>) -> Answer {
    delete(&gateway, Kind::Flow, &name).await
}

/// `DELETE /v1/triggers/{name}`.
pub async fn delete_trigger(State(gateway): Shared, Path(name): Path<String>) -> Answer {
    delete(&gateway, Kind::Trigger, &name).await
}

/// The revision that has the traffic after a rollback.
fn routed(applied: &Applied) -> Option<&RevisionName> {
    match &applied.resource {
        Resource::Function(document) => document.spec.traffic.first()?.revision.as_ref(),
        Resource::Flow(_) | Resource::Trigger(_) => None,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    #[serde(default)]
    to: Option<RevisionName>,
}

/// `POST /v1/functions/{name}/rollback`.
pub async fn rollback(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    Content(body): Content,
) -> Answer<Response> {
    let to = if body.is_empty() {
        None
    } else {
        read_json::<Rollback>(&body)?.to
    };
    let catalog = gateway.deps.resources.snapshot();
    let function: FunctionName = catalog.function(&name)?.document.metadata.name.clone();
    let applied = gateway.deps.resources.rollback(&function, to.as_ref()).await?;
    Ok(
        Json(json!({"outcome": applied.outcome, "revision": routed(&applied), "resource": applied.resource}))
            .into_response(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refers_to_another_comes_after_it_and_the_same_name_in_its_order() {
        let text = "
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: a }
spec: { filters: [ { exact: { type: t } } ], function: b }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: fast }
spec: { operation: resize, resources: { gpu: 1 }, scale: { fallback: b } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: b }
spec: { operation: resize }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: c }
spec: { operation: resize }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: b }
spec: { operation: resize, timeout: 5s }
";
        let mut resources = documents(text).unwrap();
        resources.sort_by_key(class);
        let groups = independent(resources);
        let names: Vec<Vec<&str>> = groups.iter().map(|g| g.iter().map(Resource::name).collect()).collect();
        assert_eq!(names, [vec!["b", "c"], vec!["b"], vec!["fast"], vec!["a"]]);
    }
}
