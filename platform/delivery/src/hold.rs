//! Who holds a request while a pod starts: one bounded queue a revision, two classes, fair shares.
use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::pool::Slot;

/// What kind of caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits for the answer.
    Interactive,
    /// An event; it can wait.
    Batch,
}

/// How much of a pod a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// One of its slots.
    One,
    /// The whole pod: a request that may have brought a pod down is tried alone.
    Alone,
}

pub(crate) struct Waiter {
    pub(crate) demand: Demand,
    pub(crate) grant: oneshot::Sender<Slot>,
}

/// Of this many grants in a row one goes to batch, so that a stream of calls cannot starve events.
const BATCH_SHARE: u32 = 4;

/// The waiters of one revision, first come first served within their class.
#[derive(Default)]
pub(crate) struct Hold {
    interactive: VecDeque<Waiter>,
    batch: VecDeque<Waiter>,
    since_batch: u32,
}

impl Hold {
    pub(crate) fn push(&mut self, class: Class, waiter: Waiter) {
        match class {
            Class::Interactive => self.interactive.push_back(waiter),
            Class::Batch => self.batch.push_back(waiter),
        }
    }

    /// How many of a class wait. Callers that have gone are not counted.
    pub(crate) fn waiting(&self, class: Class) -> usize {
        let queue = match class {
            Class::Interactive => &self.interactive,
            Class::Batch => &self.batch,
        };
        queue.iter().filter(|w| !w.grant.is_closed()).count()
    }

    /// Whether nobody waits. Callers that have gone are dropped up to the first that has not: with thousands of waiters
    /// a look at each of them for every request would cost more than the requests.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.drop_gone();
        self.interactive.is_empty() && self.batch.is_empty()
    }

    fn drop_gone(&mut self) {
        for queue in [&mut self.interactive, &mut self.batch] {
            while queue.front().is_some_and(|w| w.grant.is_closed()) {
                queue.pop_front();
            }
        }
    }

    /// Who is next, for whom `fits` says that there is a place. Skips callers that have gone.
    pub(crate) fn next(&mut self, fits: impl Fn(Demand) -> bool) -> Option<(Class, Waiter)> {
        self.drop_gone();
        let batch_turn = self.since_batch + 1 >= BATCH_SHARE;
        let order = if batch_turn {
            [Class::Batch, Class::Interactive]
        } else {
            [Class::Interactive, Class::Batch]
        };
        for class in order {
            let queue = match class {
                Class::Interactive => &mut self.interactive,
                Class::Batch => &mut self.batch,
            };
            if queue.front().is_some_and(|w| fits(w.demand)) {
                let waiter = queue.pop_front()?;
                self.since_batch = if class == Class::Batch {
                    0
                } else {
                    (self.since_batch + 1).min(BATCH_SHARE)
                };
                return Some((class, waiter));
            }
        }
        None
    }

    pub(crate) fn drain(&mut self) {
        self.interactive.clear();
        self.batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter() -> (Waiter, oneshot::Receiver<Slot>) {
        let (grant, receiver) = oneshot::channel();
        (
            Waiter {
                demand: Demand::One,
                grant,
            },
            receiver,
        )
    }

    #[test]
    fn interactive_goes_first_but_batch_keeps_a_quarter() {
        let mut hold = Hold::default();
        let mut keep = Vec::new();
        for class in [Class::Interactive, Class::Batch].into_iter().cycle().take(16) {
            let (waiter, receiver) = waiter();
            keep.push(receiver);
            hold.push(class, waiter);
        }
        let order: Vec<Class> = std::iter::from_fn(|| hold.next(|_| true).map(|(class, _)| class)).collect();
        assert_eq!(order[..3], [Class::Interactive; 3]);
        assert_eq!(order[..8].iter().filter(|c| **c == Class::Batch).count(), 2);
        assert_eq!(order.len(), 16);
    }

    #[test]
    fn callers_that_have_gone_are_skipped() {
        let mut hold = Hold::default();
        let (gone, receiver) = waiter();
        hold.push(Class::Interactive, gone);
        drop(receiver);
        let (here, _receiver) = waiter();
        hold.push(Class::Batch, here);
        assert_eq!(hold.waiting(Class::Interactive), 0);
        assert_eq!(hold.next(|_| true).map(|(c, _)| c), Some(Class::Batch));
        assert!(hold.is_empty());
    }
}
