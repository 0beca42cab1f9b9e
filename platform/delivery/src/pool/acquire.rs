//! How a caller gets its slot: at once, or out of the hold.
use std::sync::Arc;

use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Delivery, Queue, Slot, standing};
use crate::error::DeliveryError;
use crate::hold::{Class, Demand, Waiter};

enum Entered {
    Served(Slot),
    Waits(oneshot::Receiver<Slot>),
}

/// Somebody in the hold, until he is served or goes away.
struct Turn<'a> {
    delivery: &'a Arc<Delivery>,
    revision: &'a RevisionName,
    demand: Demand,
    grant: oneshot::Receiver<Slot>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A pod may have been kept for him. No other who goes makes room for anybody.
        if self.demand == Demand::Alone {
            self.grant.close();
            self.delivery.grant(&mut self.delivery.lock(), self.revision, false);
        }
    }
}

impl Delivery {
    /// Waits for a place at a pod of the revision.
    ///
    /// # Errors
    /// `Overloaded`, `NoSlot` at the deadline, `StartFailed`, `Closing`.
    pub async fn acquire(
        self: &Arc<Self>,
        function: &FunctionName,
        revision: &RevisionName,
        class: Class,
        demand: Demand,
        deadline: Instant,
    ) -> Result<Slot, DeliveryError> {
        let begun = Instant::now();
        loop {
            let mut turn = match self.enter(function, revision, class, demand)? {
                Entered::Served(slot) => return Ok(slot),
                Entered::Waits(grant) => Turn {
                    delivery: self,
                    revision,
                    demand,
                    grant,
                },
            };
            match tokio::time::timeout_at(deadline, &mut turn.grant).await {
                Ok(Ok(slot)) => return Ok(slot),
                // The pods failed to start. A pod may be ready by now, and then there is no reason to be told.
                Ok(Err(_)) => self.sent_away(function, revision)?,
                Err(_) => {
                    return Err(DeliveryError::NoSlot {
                        function: function.clone(),
                        waited: begun.elapsed(),
                    });
                }
            }
        }
    }

    /// A place at once, or one in the hold.
    fn enter(
        self: &Arc<Self>,
        function: &FunctionName,
        revision: &RevisionName,
        class: Class,
        demand: Demand,
    ) -> Result<Entered, DeliveryError> {
        let mut state = self.lock();
        if state.closing {
            return Err(DeliveryError::Closing);
        }
        // A queue is forgotten when nobody waits: a new one must learn how its pods stand, for the table may not
        // change again.
        let queue = state.queues.entry(revision.clone()).or_insert_with(|| {
            let (coming, failure) = standing(&self.table.borrow(), revision, self.config.start_failures);
            Queue {
                coming,
                failure,
                ..Queue::default()
            }
        });
        queue.function = Some(function.clone());
        if let Some(reason) = &queue.failure {
            // Poke again: it is the autoscaler that keeps trying to start pods while there is work.
            let _ = self.pokes.send(function.clone());
            return Err(DeliveryError::StartFailed {
                function: function.clone(),
                reason: reason.clone(),
            });
        }
        if class == Class::Interactive {
            let held = queue.hold.waiting(Class::Interactive);
            if held >= self.config.max_held {
                return Err(DeliveryError::Overloaded {
                    function: function.clone(),
                    held,
                });
            }
        }
        let first = queue.hold.is_empty();
        if first && let Some(slot) = self.place(&mut state, revision, (class, demand), false, None) {
            return Ok(Entered::Served(slot));
        }
        let (grant, receiver) = oneshot::channel();
        let queue = state.queues.entry(revision.clone()).or_default();
        queue.hold.push(class, Waiter { demand, grant });
        if queue.coming == 0 {
            // Nobody listens while the platform starts; the tick finds the waiter then.
            let _ = self.pokes.send(function.clone());
        }
        // Those before may wait for what this one can do without.
        self.grant(&mut state, revision, false);
        Ok(Entered::Waits(receiver))
    }

    /// Why the hold sent a waiter away, when that is still so.
    fn sent_away(&self, function: &FunctionName, revision: &RevisionName) -> Result<(), DeliveryError> {
        let state = self.lock();
        if state.closing {
            return Err(DeliveryError::Closing);
        }
        match state.queues.get(revision).and_then(|queue| queue.failure.clone()) {
            Some(reason) => Err(DeliveryError::StartFailed {
                function: function.clone(),
                reason,
            }),
            None => Ok(()),
        }
    }
}
