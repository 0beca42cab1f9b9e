//! Which partitions are read: those with a backlog share what may be open, and where that is little the partitions of one
//! function take turns.
//!
//! A partition that is read has a fetch of its records ahead of it, and a record takes as much memory there as here. So it is
//! the number of partitions read at a time that has to stay small when hundreds have a backlog, not only what each may take.
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use imageflow_eventlog::TopicPartition;
use imageflow_types::FunctionName;
use tokio::time::Instant;

/// The least that a function may have open: less would leave its pods without work between two looks.
const LEAST: usize = 8;
/// A turn is over after so many records: about what one fetch brings.
const TURN: usize = 128;
/// So long one that was let in may take to bring something, before another one of its function is.
const PATIENCE: Duration = Duration::from_millis(100);
/// So many that were let in may be awaited at a time, over all functions: when hundreds of them are let in at once, as when the
/// pods of many functions become ready together, each brings a fetch before the first of them is worked off.
const MOST_AWAITED: usize = 32;
/// So long one is awaited. Brokers that take longer are the bottleneck in any case.
const AWAITED: Duration = Duration::from_secs(1);
/// With so few records left in the log a partition takes no memory worth to wait for. Markers of transactions count as such.
const FEW: u64 = 8;

/// What is known of a partition.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    /// Records that are open.
    pub(crate) open: usize,
    /// Records in the log that were not read, when that was counted since it waits.
    pub(crate) unread: Option<u64>,
}

/// What is open, and who is read.
pub(crate) struct Turns {
    window: usize,
    most_open: usize,
    functions: HashMap<FunctionName, Load>,
    open: usize,
    /// Functions that have something open, or partitions that wait: fast pods have worked off what was open in a moment.
    busy: usize,
}

#[derive(Default)]
struct Load {
    open: usize,
    /// Partitions that are read, and how many records each has brought in its turn.
    reading: Vec<(TopicPartition, usize)>,
    /// Those that are not, the next one first.
    waiting: VecDeque<(TopicPartition, usize)>,
    /// When partitions were let in since something was brought.
    asked: Vec<Instant>,
    /// When one was let in last.
    let_in: Option<Instant>,
}

impl Load {
    fn is_busy(&self) -> bool {
        self.open > 0 || !self.waiting.is_empty()
    }

    fn partitions(&self) -> usize {
        self.reading.len() + self.waiting.len()
    }

    /// Has at most so many waiting partitions read, the next ones of those that may be.
    fn resume(&mut self, most: usize, may: impl Fn(&TopicPartition) -> bool) -> Vec<TopicPartition> {
        let mut resumed = Vec::new();
        let mut left = VecDeque::new();
        while let Some((at, brought)) = self.waiting.pop_front() {
            if resumed.len() < most && may(&at) {
                resumed.push(at.clone());
                self.reading.push((at, brought));
            } else {
                left.push_back((at, brought));
            }
        }
        self.waiting = left;
        resumed
    }

    /// Has a partition wait: as the next one while its turn is not over.
    fn put_off(&mut self, (at, brought): (TopicPartition, usize)) -> TopicPartition {
        match brought {
            1..TURN => self.waiting.push_front((at.clone(), brought)),
            _ => self.waiting.push_back((at.clone(), 0)),
        }
        at
    }
}

impl Turns {
    /// Of partitions that may have `window` records open each and `most_open` together.
    pub(crate) fn new(window: usize, most_open: usize) -> Self {
        Self {
            window,
            most_open,
            functions: HashMap::new(),
            open: 0,
            busy: 0,
        }
    }

    /// A partition is here, and read.
    pub(crate) fn add(&mut self, function: &FunctionName, at: TopicPartition) {
        self.functions
            .entry(function.clone())
            .or_default()
            .reading
            .push((at, 0));
    }

    /// It is not here any more, whatever it has open.
    pub(crate) fn remove(&mut self, function: &FunctionName, at: &TopicPartition) {
        if let Some(load) = self.functions.get_mut(function) {
            let busy = load.is_busy();
            load.reading.retain(|(known, _)| known != at);
            load.waiting.retain(|(known, _)| known != at);
            self.busy -= usize::from(busy && !load.is_busy());
            if load.partitions() == 0 && load.open == 0 {
                self.functions.remove(function);
            }
        }
    }

    /// How many records one look may bring: all of them may be of one partition.
    pub(crate) fn at_once(&self) -> usize {
        self.share(self.busy).min(self.window)
    }

    /// What a function may have open when so many have something.
    fn share(&self, busy: usize) -> usize {
        match self.open < self.most_open {
            true => (self.most_open / busy.max(1)).max(LEAST),
            false => LEAST,
        }
    }

    /// A record was taken from a partition that has so many open now. Returns the partitions that are to be read no more.
    pub(crate) fn took(&mut self, function: &FunctionName, at: &TopicPartition, open: usize) -> Vec<TopicPartition> {
        let share = self.share(self.busy);
        let window = self.window;
        let Some(load) = self.functions.get_mut(function) else {
            return Vec::new();
        };
        self.open += 1;
        self.busy += usize::from(!load.is_busy());
        load.open += 1;
        load.asked.clear();
        let Some(index) = load.reading.iter().position(|(known, _)| known == at) else {
            return Vec::new();
        };
        load.reading[index].1 += 1;
        if load.open < share && open < window {
            return Vec::new();
        }
        let this = load.reading.swap_remove(index);
        let mut others = Vec::new();
        if load.open >= share {
            // One that has brought nothing is at its end, most likely: nothing of it is read ahead. It waits when it does.
            let (brought, nothing) = std::mem::take(&mut load.reading).into_iter().partition(|(_, n)| *n > 0);
            (others, load.reading) = (brought, nothing);
        }
        // This one last: so it is the next one while its turn is not over.
        let waiting = others.into_iter().chain([this]);
        waiting.map(|reading| load.put_off(reading)).collect()
    }

    /// A record of a function is not open any more.
    pub(crate) fn ended(&mut self, function: &FunctionName) {
        if let Some(load) = self.functions.get_mut(function)
            && load.open > 0
        {
            self.open -= 1;
            load.open -= 1;
            self.busy -= usize::from(!load.is_busy());
            if load.partitions() == 0 && load.open == 0 {
                self.functions.remove(function);
            }
        }
    }

    /// The partitions that are to be read again. `standing` tells how one stands.
    pub(crate) fn let_in(
        &mut self,
        now: Instant,
        standing: impl Fn(&TopicPartition) -> Standing,
    ) -> Vec<TopicPartition> {
        let (share, window) = (self.share(self.busy), self.window);
        let mut resumed = Vec::new();
        let mut awaited = 0;
        let mut next = Vec::new();
        for load in self.functions.values_mut() {
            load.asked.retain(|at| now.duration_since(*at) < AWAITED);
            awaited += load.asked.len();
            if load.waiting.is_empty() {
                continue;
            }
            if share >= window.saturating_mul(load.partitions()) {
                resumed.extend(load.resume(usize::MAX, |at| standing(at).open <= window / 2));
                continue;
            }
            if load.open > share / 2 {
                continue;
            }
            resumed.extend(load.resume(usize::MAX, |at| {
                let Standing { open, unread } = standing(at);
                open <= window / 2 && unread.is_some_and(|unread| unread <= FEW)
            }));
            if load.asked.last().is_none_or(|at| now.duration_since(*at) >= PATIENCE) {
                next.push(load);
            }
        }
        // Whoever has waited longest.
        next.sort_unstable_by_key(|load| load.let_in);
        for load in next {
            if awaited >= MOST_AWAITED {
                break;
            }
            let one = load.resume(1, |at| standing(at).open <= window / 2);
            if !one.is_empty() {
                awaited += 1;
                load.asked.push(now);
                load.let_in = Some(now);
                resumed.extend(one);
            }
        }
        self.busy = self.functions.values().filter(|load| load.is_busy()).count();
        resumed
    }

    /// Whether partitions wait.
    pub(crate) fn is_anyone_waiting(&self) -> bool {
        self.functions.values().any(|load| !load.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use imageflow_types::topics;

    use super::*;

    fn name(n: usize) -> FunctionName {
        FunctionName::new(format!("f{n}")).unwrap()
    }

    fn at(n: usize, partition: u32) -> TopicPartition {
        TopicPartition::new(format!("work.f{n}"), partition)
    }

    fn standing(open: usize) -> Standing {
        Standing { open, unread: None }
    }

    /// So many functions with six partitions each.
    fn turns(functions: usize) -> Turns {
        let mut turns = Turns::new(128, 2_048);
        for n in 0..functions {
            (0..6).for_each(|partition| turns.add(&name(n), at(n, partition)));
        }
        turns
    }

    #[test]
    fn a_function_alone_has_a_window_for_each_partition() {
        let mut turns = turns(1);
        for open in 1..128 {
            assert!(turns.took(&name(0), &at(0, 0), open).is_empty(), "{open}");
        }
        assert_eq!(turns.took(&name(0), &at(0, 0), 128), [at(0, 0)]);
        assert!(turns.took(&name(0), &at(0, 1), 1).is_empty());
        assert!(turns.is_anyone_waiting());
        let now = Instant::now();
        assert!(turns.let_in(now, |_| standing(65)).is_empty());
        assert_eq!(turns.let_in(now, |_| standing(64)), [at(0, 0)]);
        assert!(!turns.is_anyone_waiting());
    }

    #[test]
    fn partitions_of_one_of_many_functions_take_turns() {
        let mut turns = turns(64);
        for n in 1..64 {
            turns.took(&name(n), &at(n, 0), 1);
        }
        // 2,048 by 64 functions.
        turns.took(&name(0), &at(0, 5), 1);
        let mut paused = Vec::new();
        let mut open = 1;
        while paused.is_empty() {
            open += 1;
            paused = turns.took(&name(0), &at(0, 3), open);
        }
        assert_eq!(
            (open, paused),
            (32, vec![at(0, 5), at(0, 3)]),
            "the others have nothing"
        );
        assert_eq!(turns.took(&name(0), &at(0, 2), 1), [at(0, 2)], "until they have");
        let now = Instant::now();
        assert!(turns.let_in(now, |_| standing(open)).is_empty());
        (0..17).for_each(|_| turns.ended(&name(0)));
        assert_eq!(turns.let_in(now, |_| standing(16)), [at(0, 2)], "its turn is not over");
        assert!(
            turns.let_in(now, |_| standing(16)).is_empty(),
            "it has brought nothing yet"
        );
        assert_eq!(
            turns.let_in(now + PATIENCE, |_| standing(16)),
            [at(0, 3)],
            "it may be at its end"
        );
        assert!(turns.is_anyone_waiting());
    }

    #[test]
    fn one_whose_turn_is_over_goes_behind_the_others() {
        let mut turns = turns(64);
        for n in 1..64 {
            turns.took(&name(n), &at(n, 0), 1);
        }
        // All six have something: each waits after its first records.
        for partition in 0..6 {
            while turns.took(&name(0), &at(0, partition), 1).is_empty() {}
        }
        (0..37).for_each(|_| turns.ended(&name(0)));
        let mut order = Vec::new();
        let mut now = Instant::now();
        let mut reading = turns.let_in(now, |_| standing(0)).pop().unwrap();
        for _ in 0..40 {
            while turns.took(&name(0), &reading, 1).is_empty() {}
            (0..20).for_each(|_| turns.ended(&name(0)));
            now += PATIENCE;
            reading = turns.let_in(now, |_| standing(0)).pop().unwrap();
            if order.last() != Some(&reading.partition) {
                order.push(reading.partition);
            }
        }
        let all: std::collections::BTreeSet<_> = order.iter().take(6).collect();
        assert_eq!(all.len(), 6, "{order:?}");
    }

    #[test]
    fn of_all_functions_only_so_many_partitions_are_awaited_and_whoever_waited_longest_is_next() {
        let mut turns = turns(64);
        for n in 0..64 {
            for partition in 0..6 {
                while turns.took(&name(n), &at(n, partition), 1).is_empty() {}
            }
        }
        let taken = turns.open;
        (0..64).for_each(|n| (0..taken / 64 + 6).for_each(|_| turns.ended(&name(n))));
        let now = Instant::now();
        let first = turns.let_in(now, |_| standing(0));
        assert_eq!(first.len(), MOST_AWAITED);
        assert!(
            turns.let_in(now + PATIENCE, |_| standing(0)).is_empty(),
            "they are awaited"
        );
        // One of them brings something, and has no claim to be the next again.
        let function = topics::function_of_work(&format!("imageflow.{}", first[0].topic)).unwrap();
        turns.took(&function, &first[0], 1);
        let second = turns.let_in(now + PATIENCE, |_| standing(0));
        assert_eq!(second.len(), 1);
        assert!(first.iter().all(|at| at.topic != second[0].topic), "{second:?}");
        // What has next to nothing left is not worth to wait for.
        let few = |at: &TopicPartition| Standing {
            open: 0,
            unread: Some(if at.partition == 4 { FEW } else { FEW + 1 }),
        };
        let rest = turns.let_in(now + PATIENCE, few);
        assert!(rest.len() >= 60 && rest.iter().all(|at| at.partition == 4), "{rest:?}");
        let third = turns.let_in(now + AWAITED, |_| standing(0));
        assert_eq!(third.len(), MOST_AWAITED - 1, "the first are awaited no more");
    }

    #[test]
    fn the_last_ones_get_the_least_when_all_is_taken() {
        let mut turns = turns(300);
        for n in 0..300 {
            let mut open = 0;
            for partition in 0..6 {
                for of_it in 1.. {
                    open += 1;
                    if turns
                        .took(&name(n), &at(n, partition), of_it)
                        .contains(&at(n, partition))
                    {
                        break;
                    }
                }
            }
            if n == 299 {
                assert_eq!(
                    open,
                    LEAST + 5,
                    "one more of each other partition, which had not been heard of"
                );
            }
        }
        assert!(turns.open <= 2_048 + 768 + 300 * (LEAST + 5), "{}", turns.open);
    }

    #[test]
    fn what_was_given_back_is_forgotten_when_its_records_have_ended() {
        let mut turns = turns(1);
        turns.took(&name(0), &at(0, 0), 1);
        (0..6).for_each(|partition| turns.remove(&name(0), &at(0, partition)));
        assert_eq!((turns.functions.len(), turns.open, turns.busy), (1, 1, 1));
        turns.ended(&name(0));
        assert_eq!((turns.functions.len(), turns.open, turns.busy), (0, 0, 0));
    }
}
