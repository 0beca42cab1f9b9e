//! What pods wrote.
use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use imageflow_pods::LogQuery;
use imageflow_types::names::RevisionName;
use imageflow_types::{ErrorCode, Problem};
use tokio::sync::broadcast::error::RecvError;

use crate::problem::Answer;
use crate::read::{flag, number, query};
use crate::state::Gateway;
use crate::stream::{line, lines};

/// `GET /v1/functions/{name}/logs`.
pub async fn get(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>, RawQuery(raw): RawQuery) -> Answer {
    let raw = raw.as_deref();
    let function = gateway
        .deps
        .resources
        .snapshot()
        .function(&name)?
        .document
        .metadata
        .name
        .clone();
    let revision = query(raw, "revision").map(RevisionName::new).transpose();
    let revision = revision.map_err(|e| Problem::new(ErrorCode::InvalidArgument, e.to_string()))?;
    let wanted = LogQuery {
        function,
        revision,
        tail: number(raw, "tail", 100, 1..=10_000)?,
    };
    let follow = flag(raw, "follow", false);
    // Followed from before the kept ones are read, so that no line falls between.
    let receiver = gateway.deps.pods.follow_logs();
    let kept = gateway.deps.pods.logs(wanted.clone()).await;
    let kept = kept.map_err(|e| Problem::new(ErrorCode::Unavailable, e.to_string()))?;
    let first: Vec<u8> = kept.iter().flat_map(line).collect();
    let last_ms = kept.last().map_or(i64::MIN, |l| l.at_ms);
    let start = (gateway, receiver, Some(first));
    Ok(lines(futures::stream::unfold(
        start,
        move |(gateway, mut receiver, first)| {
            let wanted = wanted.clone();
            async move {
                if let Some(first) = first {
                    return Some((Ok(first.into()), (gateway, receiver, None)));
                }
                if !follow {
                    return None;
                }
                loop {
                    let next = tokio::select! {
                        () = gateway.stop.cancelled() => return None,
                        next = receiver.recv() => next,
                    };
                    match next {
                        Ok(l)
                            if l.function == wanted.function
                                && l.at_ms >= last_ms
                                && wanted.revision.as_ref().is_none_or(|r| *r == l.revision) =>
                        {
                            return Some((Ok(line(&l).into()), (gateway, receiver, None)));
                        }
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return None,
                    }
                }
            }
        },
    )))
}
