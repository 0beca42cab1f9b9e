//! Which records of a partition are done, when they finish in any order and offsets are committed in order.
//!
//! What is complete beyond the committed offset travels in the commit's metadata, so that a restart or a rebalance
//! redoes only what was unfinished. The text is versioned base64 (no NUL) of run lengths, and is left out when it
//! would pass [`MAX_METADATA`].
use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Longest metadata that is committed, in bytes: Kafka's default limit is 4,096, other fields leave some room.
pub const MAX_METADATA: usize = 4_000;

/// Version of the metadata's shape, as its first characters.
const VERSION: &str = "1:";

/// A commit: the next offset to read and what is done beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The next offset to read.
    pub offset: i64,
    /// What is done beyond it; empty when nothing is or when it would be too long.
    pub metadata: String,
    /// True when there was more to say than fits.
    pub truncated: bool,
}

/// Progress in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracker {
    /// Everything below is done.
    committed: i64,
    /// Highest offset seen plus one.
    next: i64,
    /// Offsets taken and not done.
    open: BTreeSet<i64>,
    /// Offsets done although an earlier one is not.
    beyond: BTreeSet<i64>,
    /// The last commit that was made.
    last: Option<(i64, String)>,
}

impl Tracker {
    /// From what was committed before, if anything. `start` is where reading begins.
    #[must_use]
    pub fn new(start: i64, metadata: &str) -> Self {
        let beyond: BTreeSet<i64> = decode(start, metadata).unwrap_or_default();
        Self {
            committed: start,
            next: start,
            open: BTreeSet::new(),
            beyond,
            last: Some((start, metadata.to_owned())),
        }
    }

    /// Takes a record that was read. False when it was done before: then there is nothing to do.
    pub fn take(&mut self, offset: i64) -> bool {
        self.next = self.next.max(offset + 1);
        if offset < self.committed || self.beyond.contains(&offset) {
            self.settle();
            return false;
        }
        self.open.insert(offset)
    }

    /// Marks a record as done.
    pub fn done(&mut self, offset: i64) {
        if self.open.remove(&offset) {
            self.beyond.insert(offset);
        }
        self.settle();
    }

    /// Records taken and not done.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Records done beyond the offset that would be committed.
    #[must_use]
    pub fn done_beyond(&self) -> usize {
        self.beyond.len()
    }

    /// What to commit; `None` when nothing changed.
    #[must_use]
    pub fn commit(&self, position: Option<i64>) -> Option<Commit> {
        let now = self.now(position);
        let is_last = |(offset, metadata): &(i64, String)| *offset == now.offset && *metadata == now.metadata;
        (!self.last.as_ref().is_some_and(is_last)).then_some(now)
    }

    /// The state, whether it changed or not. `position` is where the consumer reads next: markers that follow the last record
    /// are committed past.
    #[must_use]
    pub fn now(&self, position: Option<i64>) -> Commit {
        let mut offset = self.committed;
        if self.open.is_empty() && self.beyond.range(self.next..).next().is_none() {
            offset = offset.max(self.next).max(position.unwrap_or(0));
        }
        let metadata = encode(offset, self.beyond.range(offset..));
        let truncated = metadata.len() > MAX_METADATA;
        let metadata = if truncated { String::new() } else { metadata };
        Commit {
            offset,
            metadata,
            truncated,
        }
    }

    /// Remembers that a commit was made.
    pub fn committed(&mut self, commit: &Commit) {
        self.last = Some((commit.offset, commit.metadata.clone()));
    }

    /// Moves up to the first record that is not done. Offsets that never came (compaction, markers) do not hold it up.
    fn settle(&mut self) {
        self.committed = self.open.first().copied().unwrap_or(self.next).max(self.committed);
        self.beyond = self.beyond.split_off(&self.committed);
    }
}

/// Run lengths from `offset`: done, not done, done..., as LEB128 numbers. Starts with the count not done.
fn encode<'a>(offset: i64, done: impl Iterator<Item = &'a i64>) -> String {
    let mut bytes = Vec::new();
    let mut at = offset;
    let mut run: Option<(i64, i64)> = None;
    let mut write = |from: i64, to: i64, at: &mut i64| {
        leb128(&mut bytes, from - *at);
        leb128(&mut bytes, to - from);
        *at = to;
    };
    for &offset in done {
        run = match run {
            Some((from, to)) if to == offset => Some((from, to + 1)),
            Some((from, to)) => {
                write(from, to, &mut at);
                Some((offset, offset + 1))
            }
            None => Some((offset, offset + 1)),
        };
    }
    if let Some((from, to)) = run {
        write(from, to, &mut at);
    }
    if bytes.is_empty() {
        String::new()
    } else {
        format!("{VERSION}{}", STANDARD_NO_PAD.encode(bytes))
    }
}

fn decode(offset: i64, metadata: &str) -> Option<BTreeSet<i64>> {
    // A newer version's text is not understood: then what it says is redone, which is safe.
    let bytes = STANDARD_NO_PAD.decode(metadata.strip_prefix(VERSION)?).ok()?;
    let mut numbers = Vec::new();
    let (mut value, mut shift) = (0_i64, 0);
    for byte in bytes {
        value |= i64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte & 0x80 == 0 {
            numbers.push(value);
            (value, shift) = (0, 0);
        }
        if shift > 35 {
            return None;
        }
    }
    let mut done = BTreeSet::new();
    let mut at = offset;
    for pair in numbers.chunks_exact(2) {
        let from = at.checked_add(pair[0])?;
        at = from.checked_add(pair[1])?;
        if pair[1] > 1_000_000 {
            return None;
        }
        done.extend(from..at);
    }
    Some(done)
}

fn leb128(out: &mut Vec<u8>, value: i64) {
    let mut rest = value.unsigned_abs();
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        if rest == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_commit_waits_for_the_oldest_and_remembers_the_rest() {
        let mut tracker = Tracker::new(10, "");
        assert!((10..15).all(|o| tracker.take(o)));
        tracker.done(12);
        tracker.done(13);
        let commit = tracker.commit(None).unwrap();
        assert_eq!(commit.offset, 10);
        let mut again = Tracker::new(commit.offset, &commit.metadata);
        let redo: Vec<i64> = (10..15).filter(|o| again.take(*o)).collect();
        assert_eq!(redo, [10, 11, 14]);
        for offset in redo {
            again.done(offset);
        }
        assert_eq!(again.commit(None).unwrap().offset, 15);
    }

    #[test]
    fn an_idle_partition_is_committed_past_the_markers_at_its_end() {
        let mut tracker = Tracker::new(0, "");
        tracker.take(0);
        assert!(tracker.commit(Some(3)).is_none(), "work is open");
        tracker.done(0);
        let commit = tracker.commit(Some(3)).unwrap();
        assert_eq!(commit.offset, 3);
        tracker.committed(&commit);
        assert!(tracker.commit(Some(3)).is_none(), "nothing changed");
    }

    #[test]
    fn metadata_that_would_be_too_long_is_left_out() {
        let mut tracker = Tracker::new(0, "");
        for offset in 0..10_000 {
            tracker.take(offset);
        }
        for offset in (1..10_000).step_by(2) {
            tracker.done(offset);
        }
        let commit = tracker.commit(None).unwrap_or_else(|| Commit {
            offset: 0,
            metadata: String::new(),
            truncated: true,
        });
        assert!(commit.truncated && commit.metadata.is_empty());
    }

    #[test]
    fn foreign_metadata_is_ignored() {
        for text in ["", "2:abc", "1:***", "x", "1://///////w"] {
            assert!(Tracker::new(5, text).take(5), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_restart_redoes_exactly_what_was_not_done(order in Just((0_i64..60).collect::<Vec<_>>()).prop_shuffle(), cut in 0_usize..60, start in 0_i64..1_000_000) {
            let mut tracker = Tracker::new(start, "");
            for offset in 0..60 {
                prop_assert!(tracker.take(start + offset));
            }
            for offset in &order[..cut] {
                tracker.done(start + offset);
            }
            let commit = tracker.commit(None).unwrap_or(Commit { offset: start, metadata: String::new(), truncated: false });
            prop_assert!(commit.metadata.is_ascii() && !commit.metadata.contains('\0'));
            let mut again = Tracker::new(commit.offset, &commit.metadata);
            let redo: BTreeSet<i64> = (commit.offset..start + 60).filter(|o| again.take(*o)).collect();
            let undone: BTreeSet<i64> = order[cut..].iter().map(|o| start + o).collect();
            prop_assert_eq!(redo, undone);
        }
    }
}
