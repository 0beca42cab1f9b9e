//! The right to change resources, which one process has at a time: a change is checked against what is there, so nothing may
//! come between. The transactional id of the log is that right: who takes it over fences who had it.
use std::sync::Arc;

use imageflow_eventlog::{EventLog, LogError, NewRecord, Position, Transaction, TransactionalProducer};

const ID: &str = "imageflow-resources";

/// Writes changes.
pub struct Writer {
    log: Arc<dyn EventLog>,
    producer: Option<Box<dyn TransactionalProducer>>,
}

impl Writer {
    pub const fn new(log: Arc<dyn EventLog>) -> Self {
        Self { log, producer: None }
    }

    /// Whether nobody took the right over, as far as is known: a write tells.
    pub const fn holds(&self) -> bool {
        self.producer.is_some()
    }

    /// Takes the right over. Others may have made changes before that.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn take(&mut self) -> Result<(), LogError> {
        self.producer = Some(self.log.transactional(ID).await?);
        Ok(())
    }

    /// What is there could not be read, so nothing can be changed.
    pub fn give_up(&mut self) {
        self.producer = None;
    }

    /// Writes changes, durably, all or none. After an error it is not known whether others have the right, so it is taken anew.
    ///
    /// # Errors
    /// `Fenced` when another process took the right over: nothing was written. Others when the log fails.
    pub async fn write(&mut self, records: Vec<NewRecord>) -> Result<Vec<Position>, LogError> {
        let unheld = || LogError::Fenced { id: ID.to_owned() };
        let mut producer = self.producer.take().ok_or_else(unheld)?;
        let positions = producer
            .commit(Transaction {
                records,
                ..Transaction::default()
            })
            .await?;
        self.producer = Some(producer);
        Ok(positions)
    }
}
