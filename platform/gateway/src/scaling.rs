//! Why there are as many pods as there are.
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::problem::Answer;
use crate::state::Gateway;

/// `GET /v1/scaling`.
pub async fn list(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let items: Vec<Value> = catalog
        .functions
        .keys()
        .map(|name| {
            let scaling = gateway.deps.scaling.explain(name);
            json!({
                "function": name, "desired": scaling.desired, "ready": scaling.ready,
                "backlog": gateway.deps.backlog.backlog(name), "decisions": scaling.decisions.first().into_iter().collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}

/// `GET /v1/scaling/{function}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let function = &catalog.function(&name)?.document.metadata.name;
    Ok(Json(gateway.deps.scaling.explain(function)).into_response())
}
