//! Newline-delimited JSON that goes on as things change, until the caller leaves, the run ends or the platform stops.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::Stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use imageflow_eventlog::LogError;
use imageflow_types::{RunId, RunState};
use serde::Serialize;
use tokio::sync::watch;

use crate::runs_view::{Head, RunQuery};
use crate::state::Gateway;

/// Bytes after which lines are sent before more are made: of 10,000 runs a watch must not hold the states all at once.
const CHUNK_BYTES: usize = 256 << 10;

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

/// What was read. A watch that cannot go on ends, and the caller asks again.
fn read(state: Result<Option<RunState>, LogError>) -> Result<Option<RunState>, ()> {
    state.map_err(|error| tracing::warn!(%error, "a watch of runs ends, the event log cannot be read"))
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
                    if gateway.runs.head(&run)?.version + 1 > seen {
                        let state = read(gateway.runs.get(&run).await).ok()??;
                        let (next, done) = (state.version + 1, state.status.is_final());
                        return Some((Ok(line(&state).into()), (gateway, changed, next, done)));
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
    let watch = Watch {
        changed: gateway.runs.changed(),
        gateway,
        asked,
        seen: HashMap::new(),
        due: VecDeque::new(),
    };
    lines(futures::stream::unfold(watch, |mut watch| async move {
        let news = watch.next().await?;
        Some((Ok(news), watch))
    }))
}

/// A watch of several runs.
struct Watch {
    gateway: Arc<Gateway>,
    asked: RunQuery,
    changed: watch::Receiver<u64>,
    /// The version of each run of the list that was told, or is due.
    seen: HashMap<RunId, u64>,
    /// Runs that are to be told, in this order.
    due: VecDeque<RunId>,
}

impl Watch {
    /// The next lines; none when there will be no more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let mut news = Vec::new();
            while news.len() < CHUNK_BYTES
                && let Some(run) = self.due.pop_front()
            {
                let runs = &self.gateway.runs;
                // It may have changed while others were told.
                let Some(held) = runs.held(&run).filter(|held| self.asked.takes(&held.head)) else {
                    continue;
                };
                if let Some(state) = read(runs.state(&held).await).ok()? {
                    news.extend(line(&state));
                    self.seen.insert(run, state.version);
                }
            }
            if !news.is_empty() {
                return Some(news.into());
            }
            self.changed.borrow_and_update();
            self.due = changes(&self.gateway.runs.heads(&self.asked), &mut self.seen);
            if self.due.is_empty() {
                tokio::select! {
                    () = self.gateway.stop.cancelled() => return None,
                    more = self.changed.changed() => more.ok()?,
                }
            }
        }
    }
}

/// Runs of a list, newest first, that are not as they were seen; the oldest of them first. They are seen then, and what is not in
/// the list any more is forgotten.
fn changes(list: &[Arc<Head>], seen: &mut HashMap<RunId, u64>) -> VecDeque<RunId> {
    let mut due = VecDeque::new();
    for head in list.iter().rev() {
        if seen.get(&head.run) != Some(&head.version) {
            seen.insert(head.run.clone(), head.version);
            due.push_back(head.run.clone());
        }
    }
    if seen.len() > list.len() {
        let listed: HashSet<&RunId> = list.iter().map(|head| &head.run).collect();
        seen.retain(|run, _| listed.contains(run));
    }
    due
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn list(range: std::ops::Range<u64>) -> Vec<Arc<Head>> {
        let head = |n: u64| Arc::new(Head::of(RunId::derive(&[&n.to_string()]), n));
        range.rev().map(head).collect()
    }

    #[test]
    fn a_watch_tells_what_is_new_and_forgets_what_left_the_list() {
        let mut seen = HashMap::new();
        let first = list(1..4);
        let oldest_first: Vec<RunId> = first.iter().rev().map(|head| head.run.clone()).collect();
        assert_eq!(changes(&first, &mut seen), oldest_first);
        assert!(changes(&first, &mut seen).is_empty());
        let mut later = first.clone();
        later[1] = Arc::new(Head::of(first[1].run.clone(), 9));
        assert_eq!(changes(&later, &mut seen), std::slice::from_ref(&first[1].run));
        assert!(changes(&later[..2], &mut seen).is_empty());
        assert_eq!(
            changes(&later, &mut seen),
            std::slice::from_ref(&first[2].run),
            "it is back"
        );
    }

    /// Each change of a run looks at the whole list of each watch, and nothing else has its turn meanwhile. By the square of the
    /// list this is five thousand million steps.
    #[test]
    fn what_a_change_costs_grows_with_the_list_not_with_its_square() {
        const RUNS: u64 = 100_000;
        let (mut seen, begun) = (HashMap::new(), Instant::now());
        assert_eq!(changes(&list(0..RUNS), &mut seen).len(), 100_000);
        assert_eq!(changes(&list(1..RUNS + 1), &mut seen).len(), 1);
        assert_eq!(seen.len(), 100_000);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
