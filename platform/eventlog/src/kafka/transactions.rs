//! Records and offsets together: one transactional producer for each id.

mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::Mutex;

use self::worker::Worker;
use super::Handle;
use super::failure::{code, failed, is_fenced, is_not_member, is_unknown_topic, storage};
use super::group::{check_metadata, commit_list, not_assigned};
use super::produce::{Batch, Producer};
use crate::error::{LogError, Result};
use crate::log::TransactionalProducer;
use crate::types::{Position, Transaction};

/// Longest that the end of a transaction is asked for again before its outcome is left open.
const COMMIT_FOR: Duration = Duration::from_secs(60);

pub struct KafkaTransactions {
    handle: Arc<Handle>,
    id: String,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// None after a transaction whose outcome was left open: a new one ends it.
    worker: Option<Worker>,
    fenced: bool,
}

/// Offsets in the name of a group.
struct Offsets {
    list: TopicPartitionList,
    group: ConsumerGroupMetadata,
}

/// How a transaction went wrong.
enum Failure {
    /// Nothing of it took effect.
    Aborted(KafkaError),
    /// The offsets were refused, and nothing of it took effect.
    Offsets(KafkaError),
    /// It may or may not have taken effect.
    Open(KafkaError),
}

impl KafkaTransactions {
    pub async fn take_over(handle: Arc<Handle>, id: &str) -> Result<Self> {
        let worker = init(&handle, id).await?;
        Ok(Self {
            handle,
            id: id.to_owned(),
            inner: Arc::new(Mutex::new(Inner {
                worker: Some(worker),
                fenced: false,
            })),
        })
    }

    fn fenced(&self) -> LogError {
        LogError::Fenced { id: self.id.clone() }
    }

    /// The offsets of a transaction in the name of the member that holds them, or of nobody.
    async fn offsets(&self, transaction: &Transaction) -> Result<Option<Offsets>> {
        let (offsets, group) = (&transaction.offsets, &transaction.group);
        check_metadata(offsets)?;
        if offsets.is_empty() {
            return Ok(None);
        }
        for offset in offsets {
            self.handle
                .topic(&offset.topic)
                .await?
                .check(&offset.topic, offset.partition)?;
        }
        let metadata = if transaction.member.is_empty() {
            self.handle.asker(group)?.group_metadata()
        } else {
            let member = self.handle.member_of(group, &transaction.member, offsets)?;
            member.and_then(|m| m.consumer.group_metadata())
        };
        let metadata = metadata.ok_or_else(|| failed("committing a transaction", "the group is not known"))?;
        let list = commit_list(offsets).map_err(|e| storage("committing a transaction", e, None))?;
        Ok(Some(Offsets { list, group: metadata }))
    }

    fn explain(&self, failure: Failure, transaction: &Transaction, batch: &Batch) -> LogError {
        let open = matches!(failure, Failure::Open(_));
        let error = match failure {
            Failure::Offsets(error) => {
                if let (Some(code), Some(first)) = (code(&error), transaction.offsets.first())
                    && is_not_member(code)
                {
                    return not_assigned(&transaction.group, first);
                }
                error
            }
            Failure::Aborted(error) => {
                // Often one record is the reason.
                if let Err(error) = batch.positions(&self.handle, &transaction.records)
                    && !matches!(error, LogError::Storage { .. })
                {
                    return error;
                }
                error
            }
            Failure::Open(error) => error,
        };
        match code(&error) {
            Some(code) if is_unknown_topic(code) => {
                for record in &transaction.records {
                    self.handle.forget(&record.topic);
                }
            }
            _ => {}
        }
        if open {
            return LogError::Unresolved {
                id: self.id.clone(),
                source: error.into(),
            };
        }
        storage("committing a transaction", error, self.handle.told.last_error())
    }
}

/// A new producer for the id, with whatever an older one left open ended.
async fn init(handle: &Arc<Handle>, id: &str) -> Result<Worker> {
    let made = handle.config.producer(Some(id)).create_with_context(handle.context());
    let made: Producer = made.map_err(|e| storage("making a producer", e, None))?;
    let (producer, timeout) = (Arc::new(made), handle.config.request_timeout);
    let (initialised, deadline) = (producer.clone(), Instant::now() + COMMIT_FOR);
    super::blocking("taking over a transactional id", move || {
        loop {
            match initialised.init_transactions(timeout) {
                // Its coordinator may be on its way to another broker.
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                result => return result,
            }
        }
    })
    .await?;
    Worker::start(producer)
}

#[async_trait]
impl TransactionalProducer for KafkaTransactions {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<Position>> {
        self.handle.check_open()?;
        // A dropped call goes on by itself; the next one waits for it.
        let mut inner = self.inner.clone().lock_owned().await;
        if inner.fenced {
            return Err(self.fenced());
        }
        self.handle.check_records(&transaction.records).await?;
        let offsets = self.offsets(&transaction).await?;
        if transaction.records.is_empty() && offsets.is_none() {
            return Ok(Vec::new());
        }
        if inner.worker.is_none() {
            inner.worker = Some(init(&self.handle, &self.id).await?);
        }
        let batch = Batch::new(transaction.records.len());
        let (handle, filled, records) = (self.handle.clone(), batch.clone(), transaction.records.clone());
        let done = tokio::spawn(async move {
            let result = match &inner.worker {
                Some(worker) => worker.transact(records, offsets, filled).await,
                None => Err(Failure::Open(KafkaError::Canceled)),
            };
            let fatal = inner.worker.as_ref().and_then(Worker::fatal_error);
            let first = match &result {
                Err(Failure::Open(error)) => code(error),
                _ => None,
            };
            if result.is_err() && (fatal.is_some_and(is_fenced) || first.is_some_and(is_fenced)) {
                inner.fenced = true;
            }
            if (inner.fenced || fatal.is_some() || matches!(result, Err(Failure::Open(_))))
                && let Some(worker) = inner.worker.take()
            {
                handle.retire(move || drop(worker));
            }
            (result, inner.fenced)
        });
        let (result, fenced) = done
            .await
            .map_err(|e| LogError::storage("committing a transaction", e))?;
        match result {
            Ok(()) => {
                // Committed means delivered, but the last deliveries may still be on their way to us.
                batch.wait().await;
                batch.positions(&self.handle, &transaction.records)
            }
            Err(_) if fenced => Err(self.fenced()),
            Err(failure) => Err(self.explain(failure, &transaction, &batch)),
        }
    }
}

impl Drop for KafkaTransactions {
    fn drop(&mut self) {
        let inner = self.inner.clone();
        self.handle.retire(move || drop(inner));
    }
}
