//! Who writes a record at a time, thousands of times a second, has each of them cost a request to a broker, that broker two
//! requests to its copies, and every reader a fetch. From a certain rate on such records gather: they leave together, a few
//! milliseconds later and not before those in front of them have arrived. Below it none waits.
//!
//! Together means by one hand, for librdkafka's sake: records of a partition that come while a request with others of it is on its
//! way have its thread look for room without a pause (a third of a dispatcher's CPU under load).
use std::sync::{Arc, Mutex};
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

/// The rate of what is written, what gathers, and what is on its way.
#[derive(Debug)]
pub struct Pace<T> {
    state: Mutex<State<T>>,
    landed: Notify,
}

#[derive(Debug)]
struct State<T> {
    /// Of the window in which records are counted.
    begun: Instant,
    now: usize,
    before: usize,
    /// What gathers. When anything does, somebody is to see it off.
    gathered: Vec<T>,
    /// Calls that left alone, and departures, that have not arrived.
    flying: usize,
}

/// What is on its way, until this is dropped.
#[derive(Debug)]
pub struct Flight<T>(Arc<Pace<T>>);

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        let landed = {
            let mut state = lock(&self.0.state);
            state.flying -= 1;
            state.flying == 0
        };
        if landed {
            self.0.landed.notify_waiters();
        }
    }
}

/// When a call may write.
#[derive(Debug)]
pub enum Turn<T> {
    /// Now. What is large enough holds nobody up.
    Now(Option<Flight<T>>),
    /// It gathers with others, whom the caller is to see off: it is the first of them.
    First,
    /// It gathers.
    Later,
}

impl<T> Pace<T> {
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                begun: now,
                now: 0,
                before: 0,
                gathered: Vec::new(),
                flying: 0,
            }),
            landed: Notify::new(),
        })
    }

    /// Asks for a call with so many records, which is taken when it gathers.
    pub fn turn(self: &Arc<Self>, call: T, records: usize, now: Instant) -> Turn<T> {
        let mut state = lock(&self.state);
        let age = now.saturating_duration_since(state.begun);
        if age >= WINDOW {
            state.before = if age < 2 * WINDOW { state.now } else { 0 };
            (state.begun, state.now) = (now, 0);
        }
        state.now = state.now.saturating_add(records);
        if records >= BATCH {
            return Turn::Now(None);
        }
        if state.now.saturating_add(state.before) < CROWD {
            state.flying += 1;
            return Turn::Now(Some(Flight(self.clone())));
        }
        state.gathered.push(call);
        if state.gathered.len() == 1 {
            Turn::First
        } else {
            Turn::Later
        }
    }

    /// Waits until what gathers may leave; for whoever was the first.
    pub async fn gather(&self) {
        let leave = Instant::now() + WINDOW;
        tokio::time::sleep_until(leave).await;
        let landed = self.landed.notified();
        tokio::pin!(landed);
        landed.as_mut().enable();
        if lock(&self.state).flying > 0 {
            // Too late is as good: then they leave although others are on their way.
            let _ = tokio::time::timeout_at(leave + PATIENCE, landed).await;
        }
    }

    /// Those that have gathered.
    pub fn depart(self: &Arc<Self>) -> (Vec<T>, Flight<T>) {
        let mut state = lock(&self.state);
        state.flying += 1;
        (std::mem::take(&mut state.gathered), Flight(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::poll;

    use super::*;

    fn is_now(turn: &Turn<()>) -> bool {
        matches!(turn, Turn::Now(_))
    }

    #[test]
    fn single_records_wait_only_while_there_are_many() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        let at = |ms: u64| begun + Duration::from_millis(ms);
        // One each 5 ms.
        for ms in (0..100).step_by(5) {
            assert!(is_now(&pace.turn((), 1, at(ms))), "at {ms} ms");
        }
        // One each half millisecond: once that is seen, they gather.
        let turns: Vec<_> = (0..200_u64)
            .map(|n| pace.turn((), 1, begun + Duration::from_micros(100_000 + n * 500)))
            .collect();
        assert!(is_now(&turns[0]));
        let first = turns.iter().position(|turn| matches!(turn, Turn::First)).unwrap();
        assert!(first < 80 && turns[first + 1..].iter().all(|turn| matches!(turn, Turn::Later)));
        assert_eq!(pace.depart().0.len(), 200 - first);
        // It is quiet again.
        assert!(is_now(&pace.turn((), 1, at(300))));
    }

    #[test]
    fn a_batch_leaves_at_once_whatever_the_rate() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        assert!(matches!(pace.turn((), 500, begun), Turn::Now(None)));
        assert!(matches!(pace.turn((), 1, begun), Turn::First));
        assert!(matches!(pace.turn((), 500, begun), Turn::Now(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_gathers_waits_for_what_is_in_front_of_it_but_not_for_long() {
        let begun = Instant::now();
        let pace = Pace::new(begun);
        let mut flights: Vec<_> = (1..CROWD).map(|_| pace.turn((), 1, begun)).collect();
        assert!(matches!(pace.turn((), 1, begun), Turn::First));
        let mut gather = std::pin::pin!(pace.gather());
        assert!(poll!(gather.as_mut()).is_pending());
        tokio::time::advance(WINDOW * 2).await;
        assert!(poll!(gather.as_mut()).is_pending(), "others are on their way");
        assert!(
            matches!(pace.turn((), CROWD, Instant::now()), Turn::Later),
            "who comes meanwhile goes with them"
        );
        flights.clear();
        assert!(poll!(gather).is_ready(), "they have arrived");
        let (gathered, flight) = pace.depart();
        assert_eq!(gathered.len(), 2);
        assert!(matches!(pace.turn((), CROWD, Instant::now()), Turn::First));
        let mut late = std::pin::pin!(pace.gather());
        assert!(poll!(late.as_mut()).is_pending());
        tokio::time::advance(WINDOW).await;
        assert!(poll!(late.as_mut()).is_pending());
        tokio::time::advance(PATIENCE).await;
        assert!(
            poll!(late) == Poll::Ready(()),
            "what does not arrive holds nobody up for ever"
        );
        drop(flight);
    }
}
