//! The thread that carries out the transactions of one producer.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use tokio::sync::oneshot;

use super::{COMMIT_FOR, Failure, Offsets};
use crate::error::{LogError, Result as LogResult};
use crate::kafka::context::lock;
use crate::kafka::produce::{Batch, Producer, send_blocking};
use crate::types::NewRecord;

/// Time limit of one call of librdkafka.
const STEP: Duration = Duration::from_secs(30);
/// Time limit for the records of a transaction to arrive and for adding offsets, of which that has the least in any case; and how
/// long after it the call is taken for one that never returns.
const OFFSETS_FOR: Duration = Duration::from_secs(10);
const OFFSETS_LEAST: Duration = Duration::from_secs(5);
const OFFSETS_GRACE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks whether all records of a transaction have arrived.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

struct Job {
    records: Vec<NewRecord>,
    offsets: Option<Offsets>,
    batch: Arc<Batch>,
    done: oneshot::Sender<Result<(), Failure>>,
}

/// A producer with a thread of its own. librdkafka asks the coordinator of a group for as long as that takes, whatever
/// time limit it was given (its issues 5456 and 5511): where that coordinator died and was forgotten the call does not
/// return until another broker comes or goes. Nothing can end such a call, so its thread and its producer are left to it,
/// and a new producer of the same id ends the transaction.
pub struct Worker {
    producer: Arc<Producer>,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// By when the call has to end that is adding offsets now.
    due: Arc<Mutex<Option<Instant>>>,
}

impl Worker {
    pub fn start(producer: Arc<Producer>) -> LogResult<Self> {
        let (jobs, queue) = sync_channel::<Job>(1);
        let (due, shared) = (Arc::<Mutex<Option<Instant>>>::default(), producer.clone());
        let noted = due.clone();
        let work = move || {
            for job in queue {
                let result = run(&shared, &job.records, job.offsets.as_ref(), &job.batch, &noted);
                // Nobody waits for one that was given up.
                let _given_up = job.done.send(result);
            }
        };
        let thread = std::thread::Builder::new().name("eventlog-kafka-txn".to_owned());
        let thread = thread
            .spawn(work)
            .map_err(|e| LogError::storage("making a producer", e))?;
        Ok(Self {
            producer,
            jobs: Some(jobs),
            thread: Some(thread),
            due,
        })
    }

    /// The fatal error of the producer, if it had one.
    pub fn fatal_error(&self) -> Option<RDKafkaErrorCode> {
        self.producer.client().fatal_error().map(|(code, _)| code)
    }

    /// Carries out one transaction; the next one may be given when this returns.
    pub async fn transact(
        &self,
        records: Vec<NewRecord>,
        offsets: Option<Offsets>,
        batch: Arc<Batch>,
    ) -> Result<(), Failure> {
        let (done, mut answer) = oneshot::channel();
        let job = Job {
            records,
            offsets,
            batch,
            done,
        };
        let ended = || Failure::Open(KafkaError::Canceled);
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.try_send(job).map_err(|_| ended())?;
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                answer = &mut answer => return answer.map_err(|_| ended())?,
                _ = look.tick() => {}
            }
            if self.is_stuck(Instant::now()) {
                tracing::warn!(
                    "librdkafka does not come back from adding offsets to a transaction: a new producer takes over"
                );
                metrics::counter!("imageflow_eventlog_kafka_stuck_total", "what" => "transaction").increment(1);
                return Err(Failure::Open(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut)));
            }
        }
    }

    fn is_stuck(&self, now: Instant) -> bool {
        lock(&self.due).is_some_and(|due| now > due + OFFSETS_GRACE)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let stuck = self.is_stuck(Instant::now());
        if let Some(thread) = self.thread.take().filter(|_| !stuck) {
            // A panic in there was reported by its own thread.
            let _ended = thread.join();
        }
    }
}

/// One transaction from begin to end.
fn run(
    producer: &Producer,
    records: &[NewRecord],
    offsets: Option<&Offsets>,
    batch: &Arc<Batch>,
    due: &Mutex<Option<Instant>>,
) -> Result<(), Failure> {
    producer.begin_transaction().map_err(Failure::Aborted)?;
    let sent = send_blocking(producer, records, batch).map_err(Failure::Aborted);
    // Before the offsets: what comes first in a transaction is refused until the markers of the one before are written, and
    // offsets would be tried again after 100 ms only, records after 20. And before the commit: the binding's flush, with
    // which that begins, looks each 100 ms.
    let flushed = Instant::now() + OFFSETS_FOR;
    while sent.is_ok() && producer.in_flight_count() > 0 && Instant::now() < flushed {
        producer.poll(FLUSH_LOOK);
    }
    let sent = sent.and_then(|()| match offsets {
        Some(offsets) => {
            let now = Instant::now();
            let limit = flushed.saturating_duration_since(now).max(OFFSETS_LEAST);
            *lock(due) = Some(now + limit);
            let result = producer.send_offsets_to_transaction(&offsets.list, &offsets.group, limit);
            *lock(due) = None;
            result.map_err(Failure::Offsets)
        }
        None => Ok(()),
    });
    let deadline = Instant::now() + COMMIT_FOR;
    let ended = sent.and_then(|()| {
        loop {
            match producer.commit_transaction(STEP) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() || error.is_fatal() => {
                    return Err(Failure::Aborted(KafkaError::Transaction(error)));
                }
                // The same call goes on where it was.
                Err(error) if Instant::now() > deadline => return Err(Failure::Open(error)),
                Err(_) => {}
            }
        }
    });
    match ended {
        Err(failure @ (Failure::Aborted(_) | Failure::Offsets(_))) => match producer.abort_transaction(STEP) {
            Ok(()) => Err(failure),
            // Fenced, most likely, which the caller sees; else the next transaction begins with a new producer.
            Err(error) => {
                tracing::debug!(%error, "a transaction could not be aborted");
                match failure {
                    Failure::Aborted(error) | Failure::Offsets(error) | Failure::Open(error) => {
                        Err(Failure::Open(error))
                    }
                }
            }
        },
        other => other,
    }
}
