//! Counts what topics hold, beside the intake: a partition without a leader takes half a minute to say so, and meanwhile work goes
//! on, and so do the counts of the other topics.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use imageflow_eventlog::{EventLog, LogError, Watermarks};

/// Topics asked about at a time. Those that have not answered since the last round take no place: however many they are, they hold
/// up no other.
const AT_A_TIME: usize = 8;

/// What a topic holds.
pub(crate) type Counted = (String, Result<Vec<Watermarks>, LogError>);

/// The counts that are under way.
pub(crate) struct Count {
    log: Arc<dyn EventLog>,
    asked: FuturesUnordered<BoxFuture<'static, Counted>>,
    /// The topics that are asked about, each with the round in which that began.
    under_way: HashMap<String, u64>,
    /// Those that are not yet.
    next: VecDeque<String>,
    round: u64,
}

impl Count {
    pub(crate) fn new(log: Arc<dyn EventLog>) -> Self {
        Self {
            log,
            asked: FuturesUnordered::new(),
            under_way: HashMap::new(),
            next: VecDeque::new(),
            round: 0,
        }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Begins to count those that are not under way.
    pub(crate) fn begin(&mut self, topics: HashSet<String>) {
        self.round += 1;
        for topic in topics {
            if !self.under_way.contains_key(&topic) && !self.next.contains(&topic) {
                self.next.push_back(topic);
            }
        }
        self.ask();
    }

    /// The next topic that was counted; none when none is under way. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Counted> {
        let counted = self.asked.next().await?;
        self.under_way.remove(&counted.0);
        self.ask();
        Some(counted)
    }

    fn ask(&mut self) {
        let of_this_round = self.under_way.values().filter(|round| **round == self.round);
        let places = AT_A_TIME.saturating_sub(of_this_round.count());
        for topic in self.next.drain(..places.min(self.next.len())) {
            self.under_way.insert(topic.clone(), self.round);
            let log = self.log.clone();
            let ask = async move {
                let marks = log.watermarks(&topic).await;
                (topic, marks)
            };
            self.asked.push(ask.boxed());
        }
    }
}
