//! Functions, flows and triggers as they are, with what the platform knows of them.
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use imageflow_pods::PodState;
use imageflow_resources::{Catalog, FunctionEntry};
use imageflow_types::Problem;
use imageflow_types::manifest::Resource;
use serde_json::{Value, json};

use crate::problem::Answer;
use crate::state::Gateway;

fn document(resource: Resource) -> Value {
    serde_json::to_value(resource).unwrap_or_default()
}

fn function(gateway: &Gateway, catalog: &Catalog, entry: &FunctionEntry, whole: bool) -> Value {
    let name = &entry.document.metadata.name;
    let mut value = document(Resource::Function(entry.document.clone()));
    let table = gateway.deps.pods.watch().borrow().clone();
    let (ready, starting) = table.count(name);
    let mut status = json!({
        "latestRevision": entry.latest().map(|r| &r.name),
        "pods": {"ready": ready, "starting": starting},
        "url": format!("{}/v1/functions/{name}/invoke", gateway.config.api_url),
        "backlog": gateway.deps.backlog.backlog(name),
    });
    if whole {
        let routes = entry.routes();
        let revisions: Vec<Value> = entry
            .revisions
            .iter()
            .rev()
            .map(|revision| {
                let route = routes.iter().find(|r| r.revision.name == revision.name);
                json!({
                    "name": revision.name, "createdMs": revision.created_ms,
                    "percent": route.map_or(0, |r| r.percent), "tag": route.and_then(|r| r.tag),
                })
            })
            .collect();
        let failing = table
            .pods
            .values()
            .filter(|p| &p.function == name)
            .find_map(|p| match &p.state {
                PodState::BackOff { reason, .. } | PodState::Failed { reason } => Some(reason.clone()),
                _ => None,
            });
        status["revisions"] = revisions.into();
        status["parameters"] = catalog.parameters(entry.spec()).unwrap_or_default();
        status["problem"] = failing.into();
        status["podList"] = table
            .pods
            .values()
            .filter(|p| &p.function == name)
            .map(|p| serde_json::to_value(p).unwrap_or_default())
            .collect::<Vec<_>>()
            .into();
        status["lastDecision"] =
            serde_json::to_value(gateway.deps.scaling.explain(name).decisions.first()).unwrap_or_default();
    }
    value["status"] = status;
    value
}

/// `GET /v1/functions`.
pub async fn list(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let items: Vec<Value> = catalog
        .functions
        .values()
        .map(|f| function(&gateway, &catalog, f, false))
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}

/// `GET /v1/functions/{name}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let entry = catalog.function(&name)?;
    Ok(Json(function(&gateway, &catalog, entry, true)).into_response())
}

/// `GET /v1/flows`.
pub async fn flows(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let items: Vec<Value> = catalog
        .flows
        .values()
        .map(|f| document(Resource::Flow((**f).clone())))
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}

/// `GET /v1/flows/{name}`.
pub async fn flow(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let flow = catalog.flow(&name)?;
    Ok(Json(document(Resource::Flow((**flow).clone()))).into_response())
}

/// `GET /v1/triggers`.
pub async fn triggers(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let items: Vec<Value> = catalog
        .triggers
        .values()
        .map(|t| document(Resource::Trigger((**t).clone())))
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}

/// `GET /v1/triggers/{name}`.
pub async fn trigger(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let found = catalog.triggers.iter().find(|(n, _)| n.as_str() == name);
    let (_, trigger) = found.ok_or_else(|| {
        Problem::not_found(
            "trigger",
            &name,
            catalog.triggers.keys().map(imageflow_types::TriggerName::as_str),
        )
    })?;
    Ok(Json(document(Resource::Trigger((**trigger).clone()))).into_response())
}

/// `GET /v1/operations`.
pub async fn operations(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let items: Vec<Value> = catalog
        .operations
        .names()
        .into_iter()
        .map(|name| {
            let schema = catalog.operations.schema(name).cloned().unwrap_or_default();
            json!({"name": name, "summary": schema.get("description").cloned().unwrap_or_default(), "schema": schema})
        })
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}
