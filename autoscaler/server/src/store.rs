//! Stores decisions beside the loop: a slow log delays no decision.
use std::sync::Arc;

use tokio::sync::mpsc;

use imageflow_types::FunctionName;

use crate::inputs::{DecisionSink, StoredDecision};

/// Decisions that may wait to be stored.
const WAITING: usize = 256;

/// One change of what is stored.
enum Change {
    Decided(Box<StoredDecision>),
    Gone(FunctionName),
}

/// The loop's end of the store.
pub struct Store {
    waiting: mpsc::Sender<Change>,
}

/// The end that writes; its task is owned by the autoscaler.
pub struct Writer {
    waiting: mpsc::Receiver<Change>,
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
        self.change(Change::Decided(Box::new(decision)));
    }

    /// Has what is stored of a function removed. When too many wait that is left to the next start.
    pub fn forget(&self, function: &FunctionName) {
        self.change(Change::Gone(function.clone()));
    }

    fn change(&self, change: Change) {
        if let Err(refused) = self.waiting.try_send(change) {
            metrics::counter!("imageflow_scaling_decisions_not_stored_total").increment(1);
            tracing::warn!(error = %refused, "scaling decision is not stored, too many wait");
        }
    }
}

impl Writer {
    /// Stores until the loop has ended and nothing waits any more.
    pub async fn run(mut self) {
        while let Some(change) = self.waiting.recv().await {
            let (function, stored) = match change {
                Change::Decided(decision) => (decision.record.function.clone(), self.sink.store(*decision).await),
                Change::Gone(function) => {
                    let gone = self.sink.forget(&function).await;
                    (function, gone)
                }
            };
            if let Err(error) = stored {
                metrics::counter!("imageflow_scaling_decisions_not_stored_total").increment(1);
                tracing::warn!(%function, error = &error as &dyn std::error::Error, "scaling decision is not stored");
            }
        }
    }
}
