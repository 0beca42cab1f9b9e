//! Newline-delimited JSON that goes on as things change, until the caller leaves, the run ends or the platform stops.
use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use imageflow_types::RunId;
use serde::Serialize;

use crate::runs_view::RunQuery;
use crate::state::Gateway;

/// A response of lines.
pub fn lines(stream: impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// One value as a line.
pub fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A run that is known, each time it changes, until it is final or forgotten.
pub fn run(gateway: Arc<Gateway>, run: RunId) -> Response {
    let changed = gateway.runs.changed();
    let start = (gateway, changed, 0_u64, false);
    lines(futures::stream::unfold(
        start,
        move |(gateway, mut changed, seen, done)| {
            let run = run.clone();
            async move {
                if done {
                    return None;
                }
                loop {
                    changed.borrow_and_update();
                    let state = gateway.runs.get(&run)?;
                    if state.version + 1 > seen {
                        let (next, done) = (state.version + 1, state.status.is_final());
                        return Some((Ok(line(&*state).into()), (gateway, changed, next, done)));
                    }
                    tokio::select! {
                        () = gateway.stop.cancelled() => return None,
                        more = changed.changed() => more.ok()?,
                    }
                }
            }
        },
    ))
}

/// All runs of a query, each time one changes.
pub fn runs(gateway: Arc<Gateway>, asked: RunQuery) -> Response {
    let changed = gateway.runs.changed();
    let start = (gateway, changed, HashMap::<RunId, u64>::new());
    lines(futures::stream::unfold(
        start,
        move |(gateway, mut changed, mut seen)| {
            let asked = asked.clone();
            async move {
                loop {
                    changed.borrow_and_update();
                    let mut news = Vec::new();
                    let now = gateway.runs.list(&asked);
                    for state in now.iter().rev() {
                        if seen.get(&state.run) != Some(&state.version) {
                            seen.insert(state.run.clone(), state.version);
                            news.extend(line(&**state));
                        }
                    }
                    seen.retain(|run, _| now.iter().any(|s| &s.run == run));
                    if !news.is_empty() {
                        return Some((Ok(news.into()), (gateway, changed, seen)));
                    }
                    tokio::select! {
                        () = gateway.stop.cancelled() => return None,
                        more = changed.changed() => more.ok()?,
                    }
                }
            }
        },
    ))
}
