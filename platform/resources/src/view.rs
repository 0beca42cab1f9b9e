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
        let (shared, stop, name, log) = (table.clone(), stop.clone(), topic.to_owned(), log.clone());
        tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = follower.next() => event,
                };
                match event {
                    Ok(FollowEvent::Records(records)) => take(&shared, &sender, &records),
                    Ok(FollowEvent::CaughtUp) => {}
                    Err(LogError::Closed) => return,
                    Err(error) => {
                        tracing::error!(topic = name, %error, "a view of the event log is behind");
                        match again(&log, &name, &stop).await {
                            // From the begin: to take a record twice changes nothing in a table of last values.
                            Some(anew) => follower = anew,
                            None => return,
                        }
                    }
                }
            }
        });
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

/// A follower in place of one that failed, as soon as the log gives one. `None` when it is to stop.
async fn again(log: &Arc<dyn EventLog>, topic: &str, stop: &CancellationToken) -> Option<Box<dyn Follower>> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(PAUSE) => {}
        }
        match log.follow(topic, Start::Earliest).await {
            Ok(follower) => return Some(follower),
            Err(LogError::Closed) => return None,
            Err(error) => tracing::debug!(topic, %error, "the view cannot be followed yet"),
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
