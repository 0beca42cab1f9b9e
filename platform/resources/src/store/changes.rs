//! Changes, one after the other. Those that wait together are written together: a transaction of the log costs much more than
//! a record in it.
use std::sync::Arc;
use std::time::{Duration, Instant};

use imageflow_eventlog::{EventLog, FollowEvent, LogError, NewRecord, Start};
use imageflow_types::{ErrorCode, Problem, topics};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{CatalogTable, log_problem, take, view_problem};
use crate::catalog::Catalog;
use crate::view::TableView;
use crate::writer::Writer;

/// So often others may come first before a change is given up.
const MOST_FENCED: u32 = 20;
/// Changes in one transaction.
pub const MOST_AT_ONCE: usize = 256;
/// Longest pause after a transaction.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Changes that may wait; who comes later waits to be let in.
pub const MOST_WAITING: usize = 512;

/// What a change works out from what is there: a record, unless nothing changes, and the answer.
pub type Worked<T> = Result<(Option<NewRecord>, T), Problem>;

/// A change that waits for its turn.
pub trait Change: Send {
    /// Works it out. It is done again when another process came first.
    fn work_out(&mut self, catalog: &Catalog) -> Option<NewRecord>;
    /// Answers who asked for it, with the error of writing it if there was one.
    fn answer(self: Box<Self>, written: Result<(), Problem>);
}

struct Asked<T, F> {
    work_out: F,
    answer: Option<Result<T, Problem>>,
    to: oneshot::Sender<Result<T, Problem>>,
}

impl<T: Send, F: FnMut(&Catalog) -> Worked<T> + Send> Change for Asked<T, F> {
    fn work_out(&mut self, catalog: &Catalog) -> Option<NewRecord> {
        let (record, answer) = match (self.work_out)(catalog) {
            Ok((record, answer)) => (record, Ok(answer)),
            Err(problem) => (None, Err(problem)),
        };
        self.answer = Some(answer);
        record
    }

    fn answer(self: Box<Self>, written: Result<(), Problem>) {
        let answer = match (written, self.answer) {
            // What is wrong with it is so whether the others could be written or not.
            (_, Some(Err(problem))) | (Err(problem), _) => Err(problem),
            (Ok(()), Some(answer)) => answer,
            (Ok(()), None) => Err(ended()),
        };
        // Who does not wait any more does not want to know.
        let _ = self.to.send(answer);
    }
}

/// Has a change made, with nothing of others in between.
///
/// # Errors
/// Its own problem, or that the log is full or down.
pub async fn ask<T: Send + 'static>(
    queue: &mpsc::Sender<Box<dyn Change>>,
    work_out: impl FnMut(&Catalog) -> Worked<T> + Send + 'static,
) -> Result<T, Problem> {
    let (to, answer) = oneshot::channel();
    let asked = Asked {
        work_out,
        answer: None,
        to,
    };
    queue.send(Box::new(asked)).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())?
}

fn ended() -> Problem {
    Problem::new(ErrorCode::Unavailable, "the platform is shutting down").retry_after(1)
}

/// Who makes the changes of this process.
pub struct Changer {
    pub log: Arc<dyn EventLog>,
    pub writer: Writer,
    pub view: TableView<CatalogTable>,
    pub catalog: watch::Receiver<Arc<Catalog>>,
}

impl Changer {
    /// Makes changes until `stop`. Those that were let in by then are answered.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Change>>, stop: CancellationToken) {
        let mut waiting = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                some = queue.recv_many(&mut waiting, MOST_AT_ONCE) => {
                    if some == 0 {
                        return;
                    }
                }
            }
            let (begun, some) = (Instant::now(), waiting.len());
            self.make(std::mem::take(&mut waiting)).await;
            if some > 1 {
                // Many change something: as long as this one took, others gather for the next, or each would bring two or three.
                let pause = begun.elapsed().min(LONGEST_PAUSE);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
        queue.close();
        while let Some(change) = queue.recv().await {
            change.answer(Err(ended()));
        }
    }

    async fn make(&mut self, mut changes: Vec<Box<dyn Change>>) {
        match self.write(&mut changes).await {
            Err(problem) if problem.code == ErrorCode::TooLarge && changes.len() > 1 => {
                // It is one of them: the others are well.
                for change in changes {
                    let mut alone = [change];
                    let written = self.write(&mut alone).await;
                    let [change] = alone;
                    change.answer(written);
                }
            }
            written => changes.into_iter().for_each(|change| change.answer(written.clone())),
        }
    }

    /// Works changes out, each on what those before it leave, and writes them. Returns when the view shows them.
    async fn write(&mut self, changes: &mut [Box<dyn Change>]) -> Result<(), Problem> {
        for _ in 0..MOST_FENCED {
            let mut catalog = self.begin().await.map_err(log_problem)?;
            let mut records = Vec::new();
            for change in &mut *changes {
                if let Some(record) = change.work_out(&catalog) {
                    take(
                        Arc::make_mut(&mut catalog),
                        record.key.as_deref(),
                        record.value.as_deref(),
                    );
                    records.push(record);
                }
            }
            if records.is_empty() {
                return Ok(());
            }
            let (begun, count) = (Instant::now(), records.len());
            match self.writer.write(records).await {
                Ok(positions) => {
                    let written = begun.elapsed();
                    let seen = self.view.reached(&positions).await.map_err(|e| view_problem(&e));
                    tracing::debug!(count, ?written, seen = ?begun.elapsed(), "changes of resources are there");
                    metrics::histogram!("imageflow_resources_commit_seconds").record(begun.elapsed().as_secs_f64());
                    return seen;
                }
                Err(LogError::Fenced { .. }) => tracing::debug!("another process changed resources; once more"),
                Err(error) => return Err(log_problem(error)),
            }
        }
        let detail = "other processes change resources all the time; try again";
        Err(Problem::new(ErrorCode::Unavailable, detail).retry_after(1))
    }

    /// What there is, with the right to change it.
    async fn begin(&mut self) -> Result<Arc<Catalog>, LogError> {
        if self.writer.holds() {
            // Nobody else wrote since our last change, which the view has seen.
            return Ok(self.catalog.borrow().clone());
        }
        self.writer.take().await?;
        let read = self.read().await;
        if read.is_err() {
            self.writer.give_up();
        }
        read.map(Arc::new)
    }

    /// All of the topic, whatever the view has seen of it.
    async fn read(&mut self) -> Result<Catalog, LogError> {
        let mut catalog = Catalog {
            operations: self.catalog.borrow().operations.clone(),
            ..Catalog::default()
        };
        let mut follower = self.log.follow(topics::RESOURCES, Start::Earliest).await?;
        while let FollowEvent::Records(records) = follower.next().await? {
            for record in &records {
                take(&mut catalog, record.key.as_deref(), record.value.as_deref());
            }
        }
        Ok(catalog)
    }
}
