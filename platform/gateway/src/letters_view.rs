//! Where each dead letter is in the log: what lists and replays look up, so that no request reads the topic as a whole.
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use imageflow_eventlog::{EventLog, Position, Record};
use imageflow_resources::{Table, TableView, ViewError};
use imageflow_types::{ErrorCode, topics};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Header of the record that says that a letter was replayed.
pub const REPLAYED: &str = "imageflow_replayed";
/// Letters known at once, of some 250 bytes each; of more, the oldest are not listed (they stay in the log).
const MOST: usize = 100_000;

/// Where a letter is among all of them: newest last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    at_ms: i64,
    id: String,
}

impl Cursor {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (at_ms, id) = text.split_once('.')?;
        Some(Self {
            at_ms: at_ms.parse().ok()?,
            id: id.to_owned(),
        })
    }

    /// The letter's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.at_ms, self.id)
    }
}

/// A letter that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where it is among all letters.
    pub cursor: Cursor,
    /// Partition of the topic.
    pub partition: u32,
    /// Offset in the partition.
    pub offset: i64,
}

/// Which letters are meant: all of them, unless it says more.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Of this function.
    pub function: Option<String>,
    /// With this error.
    pub code: Option<ErrorCode>,
    /// From then on, ms since 1970.
    pub since_ms: Option<i64>,
    /// Before then.
    pub until_ms: Option<i64>,
}

impl Which {
    /// Where they can be in the order of all letters, after `after` and before `before`.
    fn range(&self, after: Option<&Cursor>, before: Option<&Cursor>) -> (Bound<Cursor>, Bound<Cursor>) {
        // No id comes before the empty one.
        let at = |at_ms: i64| Cursor {
            at_ms,
            id: String::new(),
        };
        let until = self.until_ms.map(at);
        let end = [before, until.as_ref()].into_iter().flatten().min();
        let start = match (self.since_ms.map(at), after.cloned()) {
            (Some(since), Some(after)) if after < since => Bound::Included(since),
            (_, Some(after)) => Bound::Excluded(after),
            (Some(since), None) => Bound::Included(since),
            (None, None) => Bound::Unbounded,
        };
        // A range that ends before it starts is a panic, not an empty one.
        let start = match (start, end) {
            (Bound::Included(at) | Bound::Excluded(at), Some(end)) if at >= *end => Bound::Included(end.clone()),
            (start, _) => start,
        };
        (start, end.cloned().map_or(Bound::Unbounded, Bound::Excluded))
    }

    fn is(&self, held: &Held) -> bool {
        self.function.as_ref().is_none_or(|f| *f == held.function) && self.code.is_none_or(|code| code == held.code)
    }
}

struct Held {
    partition: u32,
    offset: i64,
    function: String,
    code: ErrorCode,
    /// It is kept nevertheless: told again, it must not come back.
    replayed: bool,
}

/// As much of a letter as the index needs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    id: String,
    function: String,
    error: HeadError,
    at_ms: i64,
}

#[derive(Deserialize)]
struct HeadError {
    code: ErrorCode,
}

#[derive(Default)]
struct Letters {
    at_ms: HashMap<String, i64>,
    order: BTreeMap<Cursor, Held>,
}

impl Table for Letters {
    fn apply(&mut self, record: &Record) {
        if let Some(id) = record.header(REPLAYED) {
            let id = String::from_utf8_lossy(id).into_owned();
            if let Some(&at_ms) = self.at_ms.get(&id)
                && let Some(held) = self.order.get_mut(&Cursor { at_ms, id })
            {
                held.replayed = true;
            }
            return;
        }
        match record.value.as_ref().map(|v| serde_json::from_slice::<Head>(v)) {
            // Told again (after a crash, by a reconcile) it is the same letter.
            Some(Ok(head)) if self.at_ms.contains_key(&head.id) => {}
            Some(Ok(head)) => self.insert(head, record, MOST),
            Some(Err(error)) => tracing::error!(%error, offset = record.offset, "a dead letter cannot be read"),
            None => {}
        }
    }
}

impl Letters {
    fn insert(&mut self, head: Head, record: &Record, most: usize) {
        let held = Held {
            partition: record.partition,
            offset: record.offset,
            function: head.function,
            code: head.error.code,
            replayed: false,
        };
        self.at_ms.insert(head.id.clone(), head.at_ms);
        let cursor = Cursor {
            at_ms: head.at_ms,
            id: head.id,
        };
        self.order.insert(cursor, held);
        if self.order.len() > most
            && let Some((oldest, _)) = self.order.pop_first()
        {
            self.at_ms.remove(&oldest.id);
        }
    }

    fn there<'a>(
        &'a self,
        which: &'a Which,
        after: Option<&Cursor>,
        before: Option<&Cursor>,
    ) -> impl DoubleEndedIterator<Item = Place> + 'a {
        self.order
            .range(which.range(after, before))
            .filter(|(_, held)| !held.replayed && which.is(held))
            .map(|(cursor, held)| place(cursor, held))
    }
}

fn place(cursor: &Cursor, held: &Held) -> Place {
    Place {
        cursor: cursor.clone(),
        partition: held.partition,
        offset: held.offset,
    }
}

/// The letters that were not replayed.
pub struct LettersView {
    view: TableView<Letters>,
}

impl LettersView {
    /// Reads the topic once and follows it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(
        log: &Arc<dyn EventLog>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, ViewError> {
        let view = TableView::open(log, topics::DEAD_LETTERS, Letters::default(), tasks, stop).await?;
        Ok(Self { view })
    }

    /// At most so many letters, newest first, older than `after`.
    pub fn newest(&self, which: &Which, after: Option<&Cursor>, limit: usize) -> Vec<Place> {
        self.view
            .read(|letters| letters.there(which, None, after).rev().take(limit).collect())
    }

    /// At most so many letters, oldest first, newer than `after`.
    pub fn oldest(&self, which: &Which, after: Option<&Cursor>, limit: usize) -> Vec<Place> {
        self.view
            .read(|letters| letters.there(which, after, None).take(limit).collect())
    }

    /// One letter.
    pub fn find(&self, id: &str) -> Option<Place> {
        self.view.read(|letters| {
            let cursor = Cursor {
                at_ms: *letters.at_ms.get(id)?,
                id: id.to_owned(),
            };
            let held = letters.order.get(&cursor).filter(|held| !held.replayed)?;
            Some(place(&cursor, held))
        })
    }

    /// Waits until the view knows what was written at `positions`.
    ///
    /// # Errors
    /// When it never will, because the platform stops.
    pub async fn reached(&self, positions: &[Position]) -> Result<(), ViewError> {
        self.view.reached(positions).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> Record {
        Record {
            topic: topics::DEAD_LETTERS.to_owned(),
            partition: 0,
            offset,
            timestamp_ms: 0,
            key: None,
            headers: Vec::new(),
            value: None,
        }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let cursor = Cursor {
            at_ms: -5,
            id: "l.1".to_owned(),
        };
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(Cursor::parse("l-1"), None);
        assert_eq!(Cursor::parse("x.l-1"), None);
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let mut letters = Letters::default();
        for (offset, at_ms) in [(0, 30), (1, 10), (2, 20)] {
            let head = Head {
                id: format!("l-{at_ms}"),
                function: "f".to_owned(),
                error: HeadError {
                    code: ErrorCode::Timeout,
                },
                at_ms,
            };
            letters.insert(head, &record(offset), 2);
        }
        assert_eq!(ids(&letters, &Which::default(), None), ["l-20", "l-30"]);
        assert_eq!(letters.at_ms.len(), 2);
    }

    fn ids(letters: &Letters, which: &Which, before: Option<&Cursor>) -> Vec<String> {
        letters.there(which, None, before).map(|p| p.cursor.id).collect()
    }

    #[test]
    fn letters_are_found_by_error_and_time() {
        let mut letters = Letters::default();
        for (offset, code) in [
            (1, ErrorCode::Timeout),
            (2, ErrorCode::Internal),
            (3, ErrorCode::Timeout),
        ] {
            let head = Head {
                id: format!("l-{offset}"),
                function: "f".to_owned(),
                error: HeadError { code },
                at_ms: offset * 10,
            };
            letters.insert(head, &record(offset), MOST);
        }
        let code = |code| Which {
            code: Some(code),
            ..Which::default()
        };
        assert_eq!(ids(&letters, &code(ErrorCode::Timeout), None), ["l-1", "l-3"]);
        let between = |since_ms, until_ms| Which {
            since_ms,
            until_ms,
            ..Which::default()
        };
        for (since, until, expected) in [
            (Some(20), None, &["l-2", "l-3"][..]),
            (None, Some(20), &["l-1"]),
            (Some(10), Some(30), &["l-1", "l-2"]),
            (Some(20), Some(20), &[]),
            (Some(30), Some(10), &[]),
            (Some(31), None, &[]),
        ] {
            assert_eq!(
                ids(&letters, &between(since, until), None),
                expected,
                "{since:?} {until:?}"
            );
        }
        for (after, expected) in [
            ("10.l-1", &["l-2", "l-3"][..]),
            ("20.l-2", &["l-3"]),
            ("5.l-0", &["l-2", "l-3"]),
            ("90.l-9", &[]),
        ] {
            let (after, which) = (Cursor::parse(after), between(Some(20), Some(90)));
            let found: Vec<_> = letters
                .there(&which, after.as_ref(), None)
                .map(|p| p.cursor.id)
                .collect();
            assert_eq!(found, expected, "{after:?}");
        }
        let third = Cursor::parse("30.l-3");
        assert_eq!(ids(&letters, &between(Some(20), Some(90)), third.as_ref()), ["l-2"]);
        let before_all = Cursor::parse("5.l-0");
        assert_eq!(ids(&letters, &between(Some(20), None), before_all.as_ref()), [""; 0]);
    }
}
