//! Stores decisions beside the loop: a slow log delays no decision.
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::inputs::{DecisionSink, StoredDecision};

/// Decisions that may wait to be stored.
const WAITING: usize = 256;

/// The loop's end of the store.
pub struct Store {
    waiting: mpsc::Sender<StoredDecision>,
}

/// The end that writes; its task is owned by the autoscaler.
pub struct Writer {
    waiting: mpsc::Receiver<StoredDecision>,
    sink: Arc<dyn DecisionSink>,
}

pub fn store(sink: Arc<dyn DecisionSink>) -> (Store, Writer) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (
        Store { waiting: sender },
        Writer {
            waiting: receiver,
            sink,
        },
    )
}

impl Store {
    /// Hands a decision over. When too many wait it is left out: the next of the same function replaces it anyway.
    pub fn put(&self, decision: StoredDecision) {
        if let Err(refused) = self.waiting.try_send(decision) {
            metrics::counter!("imageflow_scaling_decisions_not_stored_total").increment(1);
            tracing::warn!(error = %refused, "scaling decision is not stored, too many wait");
        }
    }
}

impl Writer {
    /// Stores until the loop has ended and nothing waits any more.
    pub async fn run(mut self) {
        while let Some(decision) = self.waiting.recv().await {
            let function = decision.record.function.clone();
            if let Err(error) = self.sink.store(decision).await {
                metrics::counter!("imageflow_scaling_decisions_not_stored_total").increment(1);
                tracing::warn!(%function, error = &error as &dyn std::error::Error, "scaling decision is not stored");
            }
        }
    }
}
