//! Objects by HTTP, for those without an S3 client.
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue};
use imageflow_objects::{BodyError, ObjectBody, PutOptions};
use imageflow_types::{ErrorCode, Problem, topics};
use serde_json::{Map, json};

use crate::bodies::Content;
use crate::inputs::sniff;
use crate::problem::{Answer, object_problem};
use crate::read::{number, query};
use crate::state::Gateway;

/// Most objects that a store lists at once.
const MOST: usize = 1000;

/// `POST /v1/images?key=NAME`: into `raw-images`, as an S3 client would.
pub async fn upload(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery, Content(body): Content) -> Answer {
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

/// `GET /v1/images`, in the order of keys; `next` of the answer, given as `after`, is the next page.
pub async fn list(State(gateway): State<Arc<Gateway>>, RawQuery(raw): RawQuery) -> Answer {
    let raw = raw.as_deref();
    let bucket = query(raw, "bucket").unwrap_or_else(|| topics::BUCKET_RAW.to_owned());
    let prefix = query(raw, "prefix").unwrap_or_default();
    let after = query(raw, "after");
    let limit = number(raw, "limit", 100, 1..=MOST)?;
    // One more than the page holds tells whether there is another. The largest page has no room for it: the one after may be empty.
    let asked = (limit + 1).min(MOST);
    let objects = &gateway.deps.objects;
    let items = objects.list(&bucket, &prefix, after.as_deref(), asked).await;
    let mut items = items.map_err(|e| object_problem(&e))?;
    let more = items.len() == asked;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| json!(last.key));
    let mut page = Map::from_iter([("items".to_owned(), json!(items))]);
    page.extend(next.map(|next| ("next".to_owned(), next)));
    Ok(Json(page).into_response())
}

/// `GET /v1/images/{bucket}/{key}`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path((bucket, key)): Path<(String, String)>) -> Answer {
    image(&gateway, (&bucket, &key), None).await
}

/// An object as an answer, piece by piece: it may be larger than all that is kept in memory.
pub async fn image(gateway: &Gateway, (bucket, key): (&str, &str), if_match: Option<&str>) -> Answer {
    let object = gateway.deps.objects.get_stream(bucket, key, if_match).await;
    let (info, body) = object.map_err(|e| object_problem(&e))?;
    // What fails before there is anything to send is told in words.
    let pieces = opened(body).await.map_err(|e| broken(e.as_ref()))?;
    let name = format!("{bucket}/{key}");
    let pieces = pieces.inspect_err(move |error| {
        tracing::warn!(object = name, %error, "an object broke off, and the answer with it");
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_LENGTH, info.size.into());
    let told = [
        (CONTENT_TYPE, info.content_type),
        (ETAG, Some(format!("\"{}\"", info.etag))),
    ];
    for (name, value) in told {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Each piece when the next is there, the last when the body has ended well: the store knows only then whether the bytes are
/// those that were put, and a caller who has all of them does not hear that they are not.
async fn opened(mut body: ObjectBody) -> Result<impl Stream<Item = Result<Bytes, BodyError>>, BodyError> {
    let first = body.try_next().await?;
    let mut pieces = Box::pin(stream::try_unfold((first, body), |(held, mut body)| async move {
        let Some(held) = held else { return Ok(None) };
        let next = body.try_next().await?;
        Ok(Some((held, (next, body))))
    }));
    let ready = pieces.try_next().await?;
    Ok(stream::iter(ready.map(Ok)).chain(pieces))
}

/// A body of which nothing was sent yet.
fn broken(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Problem {
    match error.downcast_ref() {
        Some(error) => object_problem(error),
        None => Problem::new(ErrorCode::Unavailable, error.to_string()),
    }
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
