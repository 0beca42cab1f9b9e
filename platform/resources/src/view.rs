//! A table kept up to date from a compacted topic.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imageflow_eventlog::{EventLog, FollowEvent, Follower, LogError, Position, Record, Start};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Before a view that failed is followed anew.
const PAUSE: Duration = Duration::from_secs(1);

/// What a view does with each record. Called in the order of each partition.
pub trait Table: Send + 'static {
    /// Takes one record; a record without a value is a tombstone of its key.
    fn apply(&mut self, record: &Record);
    /// Called after each batch: the moment to tell watchers.
    fn applied(&mut self) {}
}

/// Why a view could not be made or waited for.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The event log failed.
    #[error("the view of {topic} cannot be read: {source}")]
    Log {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: LogError,
    },
    /// The view has ended, because the platform is shutting down or the log failed.
    #[error("the view of {topic} has ended")]
    Ended {
        /// The topic.
        topic: String,
    },
}

/// A table and how far it has read.
pub struct TableView<T> {
    topic: String,
    table: Arc<Mutex<T>>,
    /// Next offset by partition; sent after the table has changed.
    progress: watch::Receiver<HashMap<u32, i64>>,
}

impl<T: Table> TableView<T> {
    /// Reads the whole topic, then follows it in a task of `tasks` until `stop`.
    ///
    /// # Errors
    /// When the topic cannot be read.
    pub async fn open(
        log: &Arc<dyn EventLog>,
        topic: &str,
        table: T,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, ViewError> {
        let fail = |source| ViewError::Log {
            topic: topic.to_owned(),
            source,
        };
        let mut follower = log.follow(topic, Start::Earliest).await.map_err(fail)?;
        let table = Arc::new(Mutex::new(table));
        let (sender, progress) = watch::channel(HashMap::new());
        while let FollowEvent::Records(records) = follower.next().await.map_err(fail)? {
            take(&table, &sender, &records);
        }
        let source = Source {
            log: log.clone(),
            topic: topic.to_owned(),
            stop: stop.clone(),
        };
        tasks.spawn(source.keep(follower, table.clone(), sender));
        Ok(Self {
            topic: topic.to_owned(),
            table,
            progress,
        })
    }

    /// Looks at the table. Keep it short: the follower waits.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&lock(&self.table))
    }

    /// How far it has read, now and after each batch: the next offset by partition.
    pub fn progress(&self) -> watch::Receiver<HashMap<u32, i64>> {
        self.progress.clone()
    }

    /// Waits until the view has taken what was written at `positions`.
    ///
    /// # Errors
    /// [`ViewError::Ended`] when it never will.
    pub async fn reached(&self, positions: &[Position]) -> Result<(), ViewError> {
        let mut progress = self.progress.clone();
        let there = |done: &HashMap<u32, i64>| {
            positions
                .iter()
                .filter(|p| p.topic == self.topic)
                .all(|p| done.get(&p.partition).is_some_and(|next| *next > p.offset))
        };
        match progress.wait_for(there).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ViewError::Ended {
                topic: self.topic.clone(),
            }),
        }
    }
}

/// Where a view comes from.
struct Source {
    log: Arc<dyn EventLog>,
    topic: String,
    stop: CancellationToken,
}

impl Source {
    /// Keeps a table up to date until it is to stop.
    async fn keep<T: Table>(
        self,
        mut follower: Box<dyn Follower>,
        table: Arc<Mutex<T>>,
        progress: watch::Sender<HashMap<u32, i64>>,
    ) {
        // What of a follower's records the table has already.
        let mut known = HashMap::new();
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled() => return,
                event = follower.next() => event,
            };
            match event {
                Ok(FollowEvent::Records(mut records)) => {
                    records.retain(|r| known.get(&r.partition).is_none_or(|next| r.offset >= *next));
                    take(&table, &progress, &records);
                }
                Ok(FollowEvent::CaughtUp) => {}
                Err(LogError::Closed) => return,
                Err(error) => {
                    tracing::error!(topic = self.topic, %error, "a view of the event log is behind");
                    let read = progress.borrow().clone();
                    let Some((anew, same)) = self.again(&read).await else {
                        return;
                    };
                    // A topic has earlier values of a key as well: taken twice, the table would show the past.
                    (follower, known) = (anew, if same { read } else { HashMap::new() });
                }
            }
        }
    }

    /// A follower in place of one that failed, as soon as the log gives one, and whether its topic is the one that was read so
    /// far: one that was made anew ends before that. `None` when it is to stop.
    async fn again(&self, read: &HashMap<u32, i64>) -> Option<(Box<dyn Follower>, bool)> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(PAUSE) => {}
            }
            let followed = match self.log.follow(&self.topic, Start::Earliest).await {
                Ok(follower) => self.log.watermarks(&self.topic).await.map(|ends| (follower, ends)),
                Err(error) => Err(error),
            };
            match followed {
                Ok((follower, ends)) => {
                    let end = |partition| ends.iter().find(|w| w.partition == partition).map_or(0, |w| w.high);
                    return Some((follower, read.iter().all(|(at, next)| *next <= end(*at))));
                }
                Err(LogError::Closed) => return None,
                Err(error) => tracing::debug!(topic = self.topic, %error, "the view cannot be followed yet"),
            }
        }
    }
}

fn take<T: Table>(table: &Arc<Mutex<T>>, progress: &watch::Sender<HashMap<u32, i64>>, records: &[Record]) {
    let mut guard = lock(table);
    for record in records {
        guard.apply(record);
    }
    // Watchers are told before those who wait for a position: what they look at then is new.
    guard.applied();
    drop(guard);
    progress.send_modify(|done| {
        for record in records {
            done.insert(record.partition, record.offset + 1);
        }
    });
}

/// A panic in `apply` leaves a table that is at worst behind, never half a record: go on with it.
fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use imageflow_eventlog::{Embedded, EmbeddedConfig, NewRecord, TopicSpec};

    struct Failing;

    #[async_trait]
    impl Follower for Failing {
        async fn next(&mut self) -> Result<FollowEvent, LogError> {
            Err(LogError::UnknownTopic { topic: "t".into() })
        }
    }

    #[derive(Default)]
    struct Shown(Vec<String>);

    impl Table for Shown {
        fn apply(&mut self, record: &Record) {
            let value = record.value.as_deref().unwrap_or_default();
            self.0.push(String::from_utf8_lossy(value).into_owned());
        }
    }

    /// The values that a view shows that had read two of three records, when its follower failed.
    async fn shown_after(read: i64) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Embedded::open(EmbeddedConfig::new(dir.path())).await.unwrap();
        log.ensure_topics(&[TopicSpec::new("t", 1)]).await.unwrap();
        for value in ["first", "second", "third"] {
            let record = NewRecord::new("t").key("same").value(value);
            log.produce(vec![record]).await.unwrap();
        }
        let source = Source {
            log,
            topic: "t".into(),
            stop: CancellationToken::new(),
        };
        let table = Arc::new(Mutex::new(Shown::default()));
        let (sender, mut progress) = watch::channel(HashMap::from([(0, read)]));
        let stop = source.stop.clone();
        let keeping = tokio::spawn(source.keep(Box::new(Failing), table.clone(), sender));
        progress.wait_for(|done| done[&0] == 3).await.unwrap();
        stop.cancel();
        keeping.await.unwrap();
        std::mem::take(&mut lock(&table).0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_that_is_followed_anew_does_not_show_the_past() {
        assert_eq!(shown_after(2).await, ["third"]);
        // A topic that ends before what was read is another one.
        assert_eq!(shown_after(9).await, ["first", "second", "third"]);
    }
}
