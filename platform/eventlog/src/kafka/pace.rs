//! Who writes a record at a time, thousands of times a second, has each of them cost a request to a broker, that broker two
//! requests to its copies, and every reader a fetch. From a certain rate on such records leave together, a few milliseconds
//! later and not before those in front of them have arrived; below it none waits.
//!
//! The second is for librdkafka, too: while a request of an idempotent producer is on its way, records that wait behind it in
//! its own queue have its thread look for room without a pause (half of a platform's CPU under load).
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::context::lock;

/// How long records gather.
const WINDOW: Duration = Duration::from_millis(20);
/// So many records in a window and the one before it are worth the wait: 1,000 a second.
const CROWD: usize = 40;
/// A batch of so many is a crowd by itself.
const BATCH: usize = 64;
/// Longest that records wait for those in front of them: a broker that is gone is not to hold up what the others take.
const PATIENCE: Duration = Duration::from_millis(100);

/// The rate of what is written, and what is on its way.
#[derive(Debug)]
pub struct Pace {
    state: Mutex<State>,
    landed: Notify,
}

#[derive(Debug)]
struct State {
    begun: Instant,
    now: usize,
    before: usize,
    /// The window of those on their way, and how many calls they are.
    flight: (Instant, usize),
}

/// A call whose records are on their way, until this is dropped.
#[derive(Debug)]
pub struct Flight<'a>(&'a Pace);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let landed = {
            let mut state = lock(&self.0.state);
            state.flight.1 -= 1;
            state.flight.1 == 0
        };
        if landed {
            self.0.landed.notify_waiters();
        }
    }
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                begun: now,
                now: 0,
                before: 0,
                flight: (now, 0),
            }),
            landed: Notify::new(),
        }
    }

    /// Waits until the records of a call may leave. Dropped when they have arrived.
    pub async fn turn(&self, records: usize) -> Option<Flight<'_>> {
        if records >= BATCH {
            self.leave(records, Instant::now());
            return None;
        }
        let Some(window) = self.leave(records, Instant::now()) else {
            return Some(self.board(None));
        };
        let leave = window + WINDOW;
        tokio::time::sleep_until(leave).await;
        let landed = self.landed.notified();
        tokio::pin!(landed);
        landed.as_mut().enable();
        if !self.may_board(window) {
            // Too late is as good: then they leave although others are on their way.
            let _ = tokio::time::timeout_at(leave + PATIENCE, landed).await;
        }
        Some(self.board(Some(window)))
    }

    /// Whether nobody else is on the way, but those of the same window.
    fn may_board(&self, window: Instant) -> bool {
        let (of, calls) = lock(&self.state).flight;
        calls == 0 || of == window
    }

    fn board(&self, window: Option<Instant>) -> Flight<'_> {
        let mut state = lock(&self.state);
        state.flight = (window.unwrap_or(state.flight.0), state.flight.1 + 1);
        Flight(self)
    }

    /// The beginning of the window in which the records of a call gather; `None` when they leave at once.
    fn leave(&self, records: usize, now: Instant) -> Option<Instant> {
        let mut state = lock(&self.state);
        let age = now.saturating_duration_since(state.begun);
        if age >= WINDOW {
            state.before = if age < 2 * WINDOW { state.now } else { 0 };
            (state.begun, state.now) = (now, 0);
        }
        state.now = state.now.saturating_add(records);
        let crowd = state.now.saturating_add(state.before) >= CROWD;
        (crowd && records < BATCH).then_some(state.begun)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::poll;

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
        let begins: std::collections::BTreeSet<_> = waits[80..].iter().map(|w| w.unwrap()).collect();
        assert!((3..=4).contains(&begins.len()), "{begins:?}");
        // It is quiet again.
        assert_eq!(pace.leave(1, at(300)), None);
    }

    #[test]
    fn a_batch_leaves_at_once_whatever_the_rate() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        assert_eq!(pace.leave(500, begun), None);
        assert_eq!(pace.leave(1, begun), Some(begun));
        assert_eq!(pace.leave(500, begun), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_waits_for_the_one_in_front_of_it_but_not_for_long() {
        let pace = Pace::new(Instant::now());
        let mut flights = Vec::new();
        for _ in 1..CROWD {
            flights.push(pace.turn(1).await);
        }
        tokio::time::advance(WINDOW).await;
        let mut next = std::pin::pin!(pace.turn(1));
        assert!(poll!(next.as_mut()).is_pending());
        tokio::time::advance(WINDOW * 2).await;
        assert!(poll!(next.as_mut()).is_pending(), "others are on their way");
        flights.clear();
        let Poll::Ready(flight) = poll!(next) else {
            panic!("they have arrived");
        };
        let mut late = std::pin::pin!(pace.turn(CROWD));
        assert!(poll!(late.as_mut()).is_pending());
        tokio::time::advance(WINDOW).await;
        assert!(poll!(late.as_mut()).is_pending());
        tokio::time::advance(PATIENCE).await;
        assert!(poll!(late).is_ready(), "what does not arrive holds nobody up for ever");
        drop(flight);
    }
}
