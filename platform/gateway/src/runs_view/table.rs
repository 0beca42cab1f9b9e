//! What is known of each run: of all that the router keeps what lists find them by, and of the newest the whole state.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imageflow_eventlog::Record;
use imageflow_resources::Table;
use imageflow_types::run::KEPT_RUNS;
use imageflow_types::work::Target;
use imageflow_types::{RunId, RunState, RunStatus};
use serde::Deserialize;
use tokio::sync::watch;

/// How much is held in memory. What is not is in the log, where each run's last state stays as long as the run is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Ended runs with their states.
    pub held: usize,
    /// Bytes of all states, also of live runs: a state may have 1 MiB, and the backlog of one function 100,000 runs.
    pub bytes: usize,
    /// Ended runs, of some 400 bytes each.
    pub ended: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            held: 10_000,
            bytes: 64 << 20,
            // The router deletes them a batch at a time: for a moment there are more than it keeps, and one that the router
            // knows must be known here, or a repeat under its key would wait for a run that nobody makes.
            ended: KEPT_RUNS + KEPT_RUNS / 10,
        }
    }
}

/// As much of a state as lists are found by, and as tells what is new.
#[derive(Debug)]
pub(crate) struct Head {
    pub run: RunId,
    pub status: RunStatus,
    pub created_ms: i64,
    pub version: u64,
    /// A flow, or `function/NAME`.
    target: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    run: RunId,
    status: RunStatus,
    created_ms: i64,
    version: u64,
    request: WrittenRequest,
}

#[derive(Deserialize)]
struct WrittenRequest {
    target: Target,
}

impl Head {
    fn read(value: &[u8]) -> Result<Self, serde_json::Error> {
        let written: Written = serde_json::from_slice(value)?;
        Ok(Self {
            run: written.run,
            status: written.status,
            created_ms: written.created_ms,
            version: written.version,
            target: written.request.target.to_string(),
        })
    }

    /// One for tests of what reads no more of it.
    #[cfg(test)]
    pub fn of(run: RunId, version: u64) -> Self {
        Self {
            run,
            status: RunStatus::Running,
            created_ms: 0,
            version,
            target: String::new(),
        }
    }

    /// Where the run is among all of them.
    pub fn cursor(&self) -> RunCursor {
        RunCursor {
            created_ms: self.created_ms,
            run: self.run.clone(),
        }
    }
}

/// A run: what it is found by, where its state is in the log, and its bytes when they are in memory. A state is made of them when
/// somebody looks: most runs come and go unseen, and to make it costs more than all else that this view does.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub head: Arc<Head>,
    /// Partition and offset.
    pub at: (u32, i64),
    pub value: Option<Bytes>,
}

impl Held {
    fn size(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    /// The state that is written so. None when it is not this run's, or cannot be read.
    pub fn state(&self, value: &[u8]) -> Option<RunState> {
        match serde_json::from_slice::<RunState>(value) {
            Ok(state) => Some(state).filter(|state| state.run == self.head.run),
            Err(error) => {
                tracing::error!(%error, run = %self.head.run, "a run cannot be read");
                None
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Runs {
    limits: Limits,
    by_id: HashMap<RunId, Held>,
    /// Lists go through it at each change, and look up no more than they show.
    order: BTreeMap<RunCursor, Arc<Head>>,
    /// How many have ended.
    ended: usize,
    /// Those whose bytes are in memory: ended ones, and live ones.
    ended_held: BTreeSet<RunCursor>,
    live_held: BTreeSet<RunCursor>,
    /// Bytes of these.
    bytes: usize,
    pub changed: watch::Sender<u64>,
}

impl Table for Runs {
    fn apply(&mut self, record: &Record) {
        let Some(value) = &record.value else {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            if let Some(run) = key.and_then(|key| RunId::parse(key).ok()) {
                self.forget(&run);
            }
            return;
        };
        match Head::read(value) {
            Ok(head) => self.put(Held {
                head: Arc::new(head),
                at: (record.partition, record.offset),
                value: Some(value.clone()),
            }),
            Err(error) => tracing::error!(%error, "a run cannot be read"),
        }
    }

    fn applied(&mut self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Runs {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub fn get(&self, run: &RunId) -> Option<&Held> {
        self.by_id.get(run)
    }

    /// How many have not ended.
    pub fn live(&self) -> usize {
        self.by_id.len() - self.ended
    }

    /// Those of a query, newest first.
    pub fn find<'a>(&'a self, query: &'a RunQuery) -> impl Iterator<Item = &'a Held> {
        self.heads(query).filter_map(|head| self.by_id.get(&head.run))
    }

    /// What they are found by.
    pub fn heads<'a>(&'a self, query: &'a RunQuery) -> impl Iterator<Item = &'a Arc<Head>> {
        let end = query.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let newest_first = self.order.range((Bound::Unbounded, end)).rev();
        let heads = newest_first.map(|(_, head)| head);
        heads.filter(|head| query.takes(head)).take(query.limit)
    }

    fn put(&mut self, held: Held) {
        let (cursor, ended) = (held.head.cursor(), held.head.status.is_final());
        self.bytes += held.size();
        let head = held.head.clone();
        let before = self.by_id.insert(cursor.run.clone(), held);
        let stays = before.as_ref().is_some_and(|before| {
            before.head.created_ms == cursor.created_ms && before.head.status.is_final() == ended
        });
        if let Some(before) = before {
            self.bytes -= before.size();
            if !stays {
                self.unlist(&before.head);
            }
        }
        if !stays {
            self.ended += usize::from(ended);
        }
        self.order.insert(cursor.clone(), head);
        match ended {
            true => self.ended_held.insert(cursor),
            false => self.live_held.insert(cursor),
        };
        self.make_room();
    }

    fn forget(&mut self, run: &RunId) {
        if let Some(held) = self.by_id.remove(run) {
            self.bytes -= held.size();
            self.unlist(&held.head);
        }
    }

    fn unlist(&mut self, head: &Head) {
        let cursor = head.cursor();
        self.order.remove(&cursor);
        match head.status.is_final() {
            true => {
                self.ended -= 1;
                self.ended_held.remove(&cursor)
            }
            false => self.live_held.remove(&cursor),
        };
    }

    /// The oldest states go from memory, those of live runs last. A live run itself is never forgotten: somebody waits for it,
    /// or will want to end it.
    fn make_room(&mut self) {
        while (self.ended_held.len() > self.limits.held || self.bytes > self.limits.bytes)
            && let Some(oldest) = self.ended_held.pop_first()
        {
            self.let_go(&oldest);
        }
        while self.bytes > self.limits.bytes
            && let Some(oldest) = self.live_held.pop_first()
        {
            self.let_go(&oldest);
        }
        if self.ended > self.limits.ended {
            let oldest = self.order.values().find(|head| head.status.is_final()).cloned();
            if let Some(oldest) = oldest {
                self.forget(&oldest.run);
            }
        }
    }

    fn let_go(&mut self, place: &RunCursor) {
        if let Some(held) = self.by_id.get_mut(&place.run) {
            self.bytes -= held.size();
            held.value = None;
        }
    }
}

/// Where a run is among all of them: newest last. It stays the same place when the run is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunCursor {
    created_ms: i64,
    run: RunId,
}

impl RunCursor {
    /// Reads what `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (created_ms, run) = text.split_once('.')?;
        Some(Self {
            created_ms: created_ms.parse().ok()?,
            run: RunId::parse(run).ok()?,
        })
    }
}

impl std::fmt::Display for RunCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_ms, self.run)
    }
}

/// Which runs.
#[derive(Debug, Clone, Default)]
pub struct RunQuery {
    /// Of this flow, or `function/NAME`.
    pub flow: Option<String>,
    /// In this state.
    pub status: Option<RunStatus>,
    /// Older than what is or was here.
    pub after: Option<RunCursor>,
    /// At most so many.
    pub limit: usize,
}

impl RunQuery {
    pub(crate) fn takes(&self, head: &Head) -> bool {
        self.status.is_none_or(|status| head.status == status)
            && self.flow.as_ref().is_none_or(|flow| head.target == *flow)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{record, state};
    use super::*;
    use serde_json::json;

    fn all() -> RunQuery {
        RunQuery {
            limit: usize::MAX,
            ..RunQuery::default()
        }
    }

    fn found(runs: &Runs, query: &RunQuery) -> Vec<RunId> {
        runs.find(query).map(|held| held.head.run.clone()).collect()
    }

    fn id(cause: &str) -> RunId {
        RunId::derive(&[cause])
    }

    /// A table that has taken these states: cause, status, and when the run was made.
    fn table(limits: Limits, states: &[(&str, &str, i64)]) -> Runs {
        let mut runs = Runs::new(limits);
        for (offset, (cause, status, at_ms)) in (0..).zip(states) {
            runs.apply(&record(offset, &state(cause, status, *at_ms)));
        }
        runs
    }

    /// Those whose states are in memory, newest first.
    fn held(runs: &Runs) -> Vec<RunId> {
        let query = all();
        let held = runs.find(&query).filter(|held| held.value.is_some());
        held.map(|held| held.head.run.clone()).collect()
    }

    #[test]
    fn runs_are_found_by_what_they_are_of_and_how_they_stand() {
        let mut runs = table(Limits::default(), &[("a", "running", 1)]);
        let mut other = state("b", "succeeded", 2);
        other["request"]["target"] = json!({"function": "resize"});
        runs.apply(&record(1, &other));
        runs.apply(&record(2, &state("a", "succeeded", 1)));
        // What is no state is not held.
        runs.apply(&record(3, &json!({"run": "run-x", "status": "running"})));
        assert_eq!(found(&runs, &all()), [id("b"), id("a")], "newest first, each once");
        let of = |flow: &str, status| RunQuery {
            flow: Some(flow.to_owned()),
            status,
            ..all()
        };
        assert_eq!(found(&runs, &of("f", Some(RunStatus::Succeeded))), [id("a")]);
        assert_eq!(found(&runs, &of("function/resize", None)), [id("b")]);
        let after = runs.get(&id("b")).map(|held| held.head.cursor());
        assert_eq!(found(&runs, &RunQuery { after, ..all() }), [id("a")]);
    }

    #[test]
    fn of_live_runs_none_is_forgotten_however_many_come_after_it() {
        let limits = Limits {
            ended: 2,
            ..Limits::default()
        };
        let mut runs = table(
            limits,
            &[
                ("slow", "running", 1),
                ("a", "succeeded", 2),
                ("b", "failed", 3),
                ("c", "succeeded", 4),
            ],
        );
        assert_eq!(found(&runs, &all()), [id("c"), id("b"), id("slow")]);
        assert_eq!(runs.live(), 1);
        runs.apply(&record(4, &state("slow", "succeeded", 1)));
        assert_eq!(found(&runs, &all()), [id("c"), id("b")], "then it is the oldest");
        assert_eq!(runs.live(), 0);
    }

    #[test]
    fn what_the_router_keeps_is_known_here() {
        let limits = Limits::default();
        assert!(limits.ended >= KEPT_RUNS + KEPT_RUNS / 100, "{limits:?}");
    }

    #[test]
    fn of_ended_runs_the_newest_are_in_memory() {
        let limits = Limits {
            held: 1,
            ..Limits::default()
        };
        let mut states = vec![
            ("a", "running", 1),
            ("b", "succeeded", 3),
            ("c", "succeeded", 2),
            ("d", "running", 4),
        ];
        assert_eq!(held(&table(limits, &states)), [id("d"), id("b"), id("a")]);
        states.push(("d", "failed", 4));
        let runs = table(limits, &states);
        assert_eq!(held(&runs), [id("d"), id("a")]);
        assert_eq!(found(&runs, &all()).len(), 4);
    }

    #[test]
    fn states_in_memory_have_so_many_bytes_at_most_and_those_of_live_runs_go_last() {
        let size = state("a", "succeeded", 1).to_string().len();
        let limits = Limits {
            bytes: 2 * size + size / 2,
            ..Limits::default()
        };
        let states = [
            ("a", "running", 1),
            ("b", "succeeded", 2),
            ("c", "running", 3),
            ("d", "running", 4),
        ];
        assert_eq!(held(&table(limits, &states[..2])), [id("b"), id("a")]);
        assert_eq!(held(&table(limits, &states[..3])), [id("c"), id("a")]);
        let mut runs = table(limits, &states);
        assert_eq!(held(&runs), [id("d"), id("c")]);
        assert_eq!(found(&runs, &all()).len(), 4);
        for cause in ["a", "b", "c", "d", "c"] {
            let mut gone = record(9, &state(cause, "running", 0));
            gone.value = None;
            runs.apply(&gone);
        }
        assert_eq!(
            (runs.bytes, runs.by_id.len(), runs.order.len(), runs.ended),
            (0, 0, 0, 0)
        );
        assert!(runs.ended_held.is_empty() && runs.live_held.is_empty());
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = RunCursor {
            created_ms: 1_700_000_000_123,
            run: RunId::derive(&["x"]),
        };
        assert_eq!(RunCursor::parse(&cursor.to_string()), Some(cursor));
        for wrong in ["run-1", "x.run-1", "1.", "1.Run"] {
            assert_eq!(RunCursor::parse(wrong), None, "{wrong}");
        }
    }
}
