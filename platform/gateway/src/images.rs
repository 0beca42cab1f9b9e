//! Objects by HTTP, for those without an S3 client.
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue};
use imageflow_objects::{ObjectInfo, PutOptions};
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::json;

use crate::inputs::sniff;
use crate::problem::{Answer, object_problem};
use crate::read::{number, query};
use crate::state::Gateway;

/// `POST /v1/images?key=NAME`: into `raw-images`, as an S3 client would.
pub async fn upload(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery, body: Bytes) -> Answer {
    gateway.check_room().await?;
    let key = query(raw.as_deref(), "key").filter(|k| !k.is_empty());
    let key = key.ok_or_else(|| Problem::new(ErrorCode::InvalidArgument, "key: is missing; write ?key=NAME"))?;
    if key.starts_with('.') {
        return Err(Problem::new(ErrorCode::InvalidArgument, "key: must not start with a dot").into());
    }
    let (content_type, _) = sniff(&body)?;
    let options = PutOptions {
        content_type: Some(content_type.to_owned()),
        ..PutOptions::default()
    };
    let info = gateway
        .deps
        .objects
        .put(topics::BUCKET_RAW, &key, body, options)
        .await
        .map_err(|e| object_problem(&e))?;
    Ok((StatusCode::CREATED, Json(info)).into_response())
}

/// `GET /v1/images`.
pub async fn list(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let raw = raw.as_deref();
    let bucket = query(raw, "bucket").unwrap_or_else(|| topics::BUCKET_RAW.to_owned());
    let prefix = query(raw, "prefix").unwrap_or_default();
    let after = query(raw, "after");
    let limit = number(raw, "limit", 100, 1..=1000)?;
    let items = gateway
        .deps
        .objects
        .list(&bucket, &prefix, after.as_deref(), limit)
        .await;
    Ok(Json(json!({"items": items.map_err(|e| object_problem(&e))?})).into_response())
}

/// `GET /v1/images/{bucket}/{key}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path((bucket, key)): Path<(String, String)>) -> Answer {
    let (info, body) = gateway
        .deps
        .objects
        .get(&bucket, &key, None)
        .await
        .map_err(|e| object_problem(&e))?;
    Ok(image(info, body))
}

/// An object as an answer.
pub fn image(info: ObjectInfo, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    let told = [
        (CONTENT_TYPE, info.content_type),
        (ETAG, Some(format!("\"{}\"", info.etag))),
    ];
    for (name, value) in told {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// `DELETE /v1/images/{bucket}/{key}`.
pub async fn delete(State(gateway): State<Arc<Gateway>>, Path((bucket, key)): Path<(String, String)>) -> Answer {
    gateway
        .deps
        .objects
        .delete(&bucket, &key)
        .await
        .map_err(|e| object_problem(&e))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
