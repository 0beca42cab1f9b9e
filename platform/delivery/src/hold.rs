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

/// So many others get a place before the next who wants a pod alone has his turn, if so many wait: after the loss of a pod there may
/// be a row of them, and where there is one pod only, all others wait for each.
const BEFORE_ALONE: u32 = 3;

/// The waiters of one revision, first come first served within their class.
///
/// Who wants a pod alone stands in a line of his own. A pod with room for others is of no use to him, so those behind him need not
/// wait; but while they keep all pods busy he would wait for ever. So when it is his turn one pod, the one with the fewest requests,
/// is [kept](Self::keeps_a_pod) from the others, who go to the other pods. Which one that is may change, but only to one with still
/// fewer requests, and nothing is added to it: it will be empty when its requests end.
#[derive(Default)]
pub(crate) struct Hold {
    interactive: VecDeque<Waiter>,
    batch: VecDeque<Waiter>,
    alone: VecDeque<(Class, Waiter)>,
    since_batch: u32,
    since_alone: u32,
}

impl Hold {
    pub(crate) fn push(&mut self, class: Class, waiter: Waiter) {
        match (waiter.demand, class) {
            (Demand::Alone, _) => self.alone.push_back((class, waiter)),
            (Demand::One, Class::Interactive) => self.interactive.push_back(waiter),
            (Demand::One, Class::Batch) => self.batch.push_back(waiter),
        }
    }

    /// How many of a class wait. Callers that have gone are not counted.
    pub(crate) fn waiting(&self, class: Class) -> usize {
        let queue = match class {
            Class::Interactive => &self.interactive,
            Class::Batch => &self.batch,
        };
        let alone = self
            .alone
            .iter()
            .filter(|(of, _)| *of == class)
            .map(|(_, waiter)| waiter);
        queue.iter().chain(alone).filter(|w| !w.grant.is_closed()).count()
    }

    /// Whether nobody waits. Callers that have gone are dropped up to the first that has not: with thousands of waiters
    /// a look at each of them for every request would cost more than the requests.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.drop_gone();
        self.alone.is_empty() && self.nobody_shares()
    }

    /// Whether the turn is on one who wants a pod alone, so that a pod is to be kept from the others until it is empty.
    pub(crate) fn keeps_a_pod(&mut self) -> bool {
        self.drop_gone();
        !self.alone.is_empty() && (self.since_alone >= BEFORE_ALONE || self.nobody_shares())
    }

    fn nobody_shares(&self) -> bool {
        self.interactive.is_empty() && self.batch.is_empty()
    }

    fn drop_gone(&mut self) {
        for queue in [&mut self.interactive, &mut self.batch] {
            while queue.front().is_some_and(|w| w.grant.is_closed()) {
                queue.pop_front();
            }
        }
        while self.alone.front().is_some_and(|(_, w)| w.grant.is_closed()) {
            self.alone.pop_front();
        }
    }

    /// Who is next, for whom `fits` says that there is a place. Skips callers that have gone.
    pub(crate) fn next(&mut self, fits: impl Fn(Demand) -> bool) -> Option<(Class, Waiter)> {
        // When it is not his turn the others are asked alone: if there is no place for one of them, no pod is empty.
        if self.keeps_a_pod() && fits(Demand::Alone) {
            self.since_alone = 0;
            return self.alone.pop_front();
        }
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
            if !queue.is_empty() && fits(Demand::One) {
                let waiter = queue.pop_front()?;
                self.since_alone = (self.since_alone + 1).min(BEFORE_ALONE);
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
        self.alone.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter() -> (Waiter, oneshot::Receiver<Slot>) {
        who_wants(Demand::One)
    }

    fn who_wants(demand: Demand) -> (Waiter, oneshot::Receiver<Slot>) {
        let (grant, receiver) = oneshot::channel();
        (Waiter { demand, grant }, receiver)
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

    /// A pod was lost with many requests, there is one pod, and calls keep coming.
    #[test]
    fn a_row_of_those_who_want_a_pod_alone_leaves_their_share_to_both_classes() {
        let mut hold = Hold::default();
        let mut keep = Vec::new();
        for _ in 0..9 {
            for (class, demand) in [
                (Class::Batch, Demand::Alone),
                (Class::Interactive, Demand::One),
                (Class::Batch, Demand::One),
            ] {
                let (waiter, receiver) = who_wants(demand);
                keep.push(receiver);
                hold.push(class, waiter);
            }
        }
        assert_eq!((hold.waiting(Class::Interactive), hold.waiting(Class::Batch)), (9, 18));
        let order: Vec<(Class, Demand)> = std::iter::from_fn(|| hold.next(|_| true))
            .map(|(class, waiter)| (class, waiter.demand))
            .collect();
        let turns = |wanted| order[..16].iter().filter(|turn| **turn == wanted).count();
        assert_eq!(turns((Class::Batch, Demand::Alone)), 4);
        assert_eq!(turns((Class::Batch, Demand::One)), 3);
        assert_eq!(turns((Class::Interactive, Demand::One)), 9);
        assert_eq!(order.len(), 27);
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
