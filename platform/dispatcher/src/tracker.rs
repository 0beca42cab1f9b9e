//! Which records of a partition are done, when they finish in any order and offsets are committed in order.
//!
//! What is complete beyond the committed offset travels in the commit's metadata, so that a restart or a rebalance
//! redoes only what was unfinished. The text is versioned base64 (no NUL) of run lengths. Where that is longer than a commit
//! takes, it says as much as fits, from the start.
//!
//! Records come in the order of their offsets, so all that was passed and is not open is done, or never was: what is kept, and
//! what is written, grows with what is open and not with what is done.
use std::collections::{BTreeMap, BTreeSet};

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
    /// What is done beyond it, as far as it fits; empty when nothing is.
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
    /// Offsets taken and not done. All others from `committed` to `next` are done.
    open: BTreeSet<i64>,
    /// What was done before this tracker began, as ends of runs by their starts.
    before: BTreeMap<i64, i64>,
    /// The last commit that was made.
    last: Option<(i64, String)>,
}

impl Tracker {
    /// From what was committed before, if anything. `start` is where reading begins.
    #[must_use]
    pub fn new(start: i64, metadata: &str) -> Self {
        Self {
            committed: start,
            next: start,
            open: BTreeSet::new(),
            before: decode(start, metadata).unwrap_or_default(),
            last: Some((start, metadata.to_owned())),
        }
    }

    /// Takes a record that was read. False when it was taken or done before: then there is nothing to do.
    pub fn take(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return false;
        }
        self.next = offset + 1;
        let run = self.before.range(..=offset).next_back();
        let is_new = run.is_none_or(|(_, to)| *to <= offset);
        if is_new {
            self.open.insert(offset);
        }
        self.settle();
        is_new
    }

    /// Marks a record as done.
    pub fn done(&mut self, offset: i64) {
        self.open.remove(&offset);
        self.settle();
    }

    /// Records taken and not done.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// How far reading is ahead of the offset that would be committed: a restart reads so many records again, though it does
    /// again only those that are open, and so many stay in the log.
    #[must_use]
    pub fn ahead(&self) -> usize {
        usize::try_from(self.next - self.committed).unwrap_or(0)
    }

    /// What to commit, with metadata of at most so many bytes; `None` when nothing changed.
    #[must_use]
    pub fn commit(&self, position: Option<i64>, longest: usize) -> Option<Commit> {
        let now = self.now(position, longest);
        let is_last = |(offset, metadata): &(i64, String)| *offset == now.offset && *metadata == now.metadata;
        (!self.last.as_ref().is_some_and(is_last)).then_some(now)
    }

    /// The state, whether it changed or not. `position` is where the consumer reads next: markers that follow the last record
    /// are committed past.
    #[must_use]
    pub fn now(&self, position: Option<i64>, longest: usize) -> Commit {
        let mut offset = self.committed;
        if self.open.is_empty() && self.before.values().all(|to| *to <= self.next) {
            offset = offset.max(self.next).max(position.unwrap_or(0));
        }
        let (metadata, truncated) = encode(offset, self.runs(offset), longest);
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

    /// What is done from an offset on: between what is open, and then what was done before and is not read again yet.
    fn runs(&self, from: i64) -> impl Iterator<Item = (i64, i64)> {
        let starts = std::iter::once(from).chain(self.open.iter().map(|open| open + 1));
        let ends = self.open.iter().copied().chain([self.next]);
        let before = self.before.iter().map(|(from, to)| (*from.max(&self.next), *to));
        starts.zip(ends).chain(before).filter(|(from, to)| from < to)
    }

    /// Moves up to the first record that is not done. Offsets that never came (compaction, markers) do not hold it up.
    fn settle(&mut self) {
        self.committed = self.open.first().copied().unwrap_or(self.next).max(self.committed);
        while let Some(run) = self.before.first_entry().filter(|run| *run.get() <= self.next) {
            run.remove();
        }
    }
}

/// Run lengths from `offset`: not done, done, not done..., as LEB128 numbers; runs in their order. With whether some were left out.
fn encode(offset: i64, runs: impl Iterator<Item = (i64, i64)>, longest: usize) -> (String, bool) {
    let mut bytes = Vec::new();
    let mut at = offset;
    let mut runs = runs.peekable();
    while let Some((from, mut to)) = runs.next() {
        // Two that touch are one.
        while let Some((_, end)) = runs.next_if(|(next, _)| *next == to) {
            to = end;
        }
        let before = bytes.len();
        leb128(&mut bytes, from - at);
        leb128(&mut bytes, to - from);
        if VERSION.len() + (bytes.len() * 4).div_ceil(3) > longest {
            bytes.truncate(before);
            return (text(&bytes), true);
        }
        at = to;
    }
    (text(&bytes), false)
}

fn text(bytes: &[u8]) -> String {
    match bytes {
        [] => String::new(),
        bytes => format!("{VERSION}{}", STANDARD_NO_PAD.encode(bytes)),
    }
}

fn decode(offset: i64, metadata: &str) -> Option<BTreeMap<i64, i64>> {
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
    let mut done = BTreeMap::new();
    let mut at = offset;
    for pair in numbers.chunks_exact(2) {
        let from = at.checked_add(pair[0])?;
        at = from.checked_add(pair[1])?;
        done.insert(from, at);
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
        let commit = tracker.commit(None, MAX_METADATA).unwrap();
        assert_eq!(commit.offset, 10);
        let mut again = Tracker::new(commit.offset, &commit.metadata);
        let redo: Vec<i64> = (10..15).filter(|o| again.take(*o)).collect();
        assert_eq!(redo, [10, 11, 14]);
        for offset in redo {
            again.done(offset);
        }
        assert_eq!(again.commit(None, MAX_METADATA).unwrap().offset, 15);
    }

    #[test]
    fn an_idle_partition_is_committed_past_the_markers_at_its_end() {
        let mut tracker = Tracker::new(0, "");
        tracker.take(0);
        assert!(tracker.commit(Some(3), MAX_METADATA).is_none(), "work is open");
        tracker.done(0);
        let commit = tracker.commit(Some(3), MAX_METADATA).unwrap();
        assert_eq!(commit.offset, 3);
        tracker.committed(&commit);
        assert!(tracker.commit(Some(3), MAX_METADATA).is_none(), "nothing changed");
    }

    #[test]
    fn of_metadata_that_would_be_too_long_the_start_is_kept() {
        let mut tracker = Tracker::new(0, "");
        assert!((0..10_000).all(|o| tracker.take(o)));
        (1..10_000).step_by(2).for_each(|o| tracker.done(o));
        let commit = tracker.commit(None, MAX_METADATA).unwrap();
        assert!(commit.truncated && (MAX_METADATA - 4..=MAX_METADATA).contains(&commit.metadata.len()));
        let mut again = Tracker::new(commit.offset, &commit.metadata);
        let redo: Vec<i64> = (0..10_000).filter(|o| again.take(*o)).collect();
        // A run takes two bytes.
        let kept = i64::try_from((MAX_METADATA - VERSION.len()) * 3 / 4 / 2).unwrap();
        let expected: Vec<i64> = (0..10_000).filter(|o| o % 2 == 0 || *o >= 2 * kept).collect();
        assert_eq!(redo, expected);
        assert_eq!(tracker.commit(None, 0), None, "without metadata it is what it was");
    }

    #[test]
    fn what_is_done_beyond_takes_no_room_however_much_it_is() {
        let mut tracker = Tracker::new(0, "");
        for offset in 0..1_000_000 {
            tracker.take(offset);
            if offset % 100_000 != 0 {
                tracker.done(offset);
            }
        }
        assert_eq!((tracker.open(), tracker.ahead()), (10, 1_000_000));
        let commit = tracker.commit(None, MAX_METADATA).unwrap();
        assert!(!commit.truncated && commit.metadata.len() < 60, "{}", commit.metadata);
        let mut again = Tracker::new(0, &commit.metadata);
        let redo: Vec<i64> = (0..1_000_000).filter(|o| again.take(*o)).collect();
        assert!(redo.iter().all(|o| o % 100_000 == 0) && redo.len() == 10, "{redo:?}");
    }

    #[test]
    fn what_was_done_before_is_still_known_while_it_is_not_read_again() {
        let mut tracker = Tracker::new(0, "");
        assert!((0..9).all(|o| tracker.take(o)));
        [2, 3, 6, 7].iter().for_each(|o| tracker.done(*o));
        let commit = tracker.commit(None, MAX_METADATA).unwrap();
        let mut again = Tracker::new(0, &commit.metadata);
        again.committed(&commit);
        assert_eq!(again.commit(Some(0), MAX_METADATA), None, "nothing changed");
        // In the middle of a run, and with the record before it done.
        let redo: Vec<i64> = (0..3).filter(|o| again.take(*o)).collect();
        redo.iter().for_each(|o| again.done(*o));
        let commit = again.commit(Some(3), MAX_METADATA).unwrap();
        assert_eq!((redo, commit.offset), (vec![0, 1], 3));
        let mut third = Tracker::new(commit.offset, &commit.metadata);
        let redo: Vec<i64> = (3..9).filter(|o| third.take(*o)).collect();
        assert_eq!(redo, [4, 5, 8]);
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
            let commit = tracker.commit(None, MAX_METADATA).unwrap_or(Commit { offset: start, metadata: String::new(), truncated: false });
            prop_assert!(commit.metadata.is_ascii() && !commit.metadata.contains('\0'));
            let mut again = Tracker::new(commit.offset, &commit.metadata);
            let redo: BTreeSet<i64> = (commit.offset..start + 60).filter(|o| again.take(*o)).collect();
            let undone: BTreeSet<i64> = order[cut..].iter().map(|o| start + o).collect();
            prop_assert_eq!(redo, undone);
        }
    }
}
