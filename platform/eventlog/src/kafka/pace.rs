//! Who writes a record at a time, thousands of times a second, has each of them cost a request to a broker, that broker two
//! requests to its copies, and every reader a fetch. From a certain rate on such records leave together, a few milliseconds
//! later; below it none waits.
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::context::lock;

/// How long records gather.
const WINDOW: Duration = Duration::from_millis(10);
/// So many records in a window and the one before it are worth the wait: 1,000 a second.
const CROWD: usize = 20;
/// A batch of so many is a crowd by itself.
const BATCH: usize = 64;

/// The rate of what is written.
#[derive(Debug)]
pub struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    begun: Instant,
    now: usize,
    before: usize,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(State {
            begun: now,
            now: 0,
            before: 0,
        }))
    }

    /// When the records of a call are to leave; `None` for at once.
    pub fn leave(&self, records: usize, now: Instant) -> Option<Instant> {
        let mut state = lock(&self.0);
        let age = now.saturating_duration_since(state.begun);
        if age >= WINDOW {
            state.before = if age < 2 * WINDOW { state.now } else { 0 };
            (state.begun, state.now) = (now, 0);
        }
        state.now = state.now.saturating_add(records);
        let crowd = state.now.saturating_add(state.before) >= CROWD;
        (crowd && records < BATCH).then(|| state.begun + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_records_wait_only_while_there_are_many() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        let at = |ms: u64| begun + Duration::from_millis(ms);
        // One each 5 ms.
        for ms in (0..100).step_by(5) {
            assert_eq!(pace.leave(1, at(ms)), None, "at {ms} ms");
        }
        // One each half millisecond: once that is seen, all of a window leave together.
        let waits: Vec<_> = (0..200_u64)
            .map(|n| pace.leave(1, begun + Duration::from_micros(100_000 + n * 500)))
            .collect();
        assert_eq!(waits[0], None);
        let ends: std::collections::BTreeSet<_> = waits[40..].iter().map(|w| w.unwrap()).collect();
        assert!((7..=9).contains(&ends.len()), "{ends:?}");
        // It is quiet again.
        assert_eq!(pace.leave(1, at(300)), None);
    }

    #[test]
    fn a_batch_leaves_at_once_whatever_the_rate() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        assert_eq!(pace.leave(500, begun), None);
        assert_eq!(pace.leave(1, begun), Some(begun + WINDOW));
        assert_eq!(pace.leave(500, begun), None);
    }
}
