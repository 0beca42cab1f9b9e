//! Who does the work of a function that has no pods at all: a GPU function that waits for a card may name one that works on CPUs.
use std::sync::{Arc, Weak};

use imageflow_pods::{PodState, PodTable};
use imageflow_types::{FunctionName, RevisionName};
use tokio::time::Instant;

use crate::error::DeliveryError;
use crate::hold::{Class, Demand};
use crate::pool::{Delivery, Slot};

/// Where work goes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The function.
    pub function: &'a FunctionName,
    /// Its revision.
    pub revision: &'a RevisionName,
    /// Who stands in while the function has no pod, none on its way included, and the other one has: the autoscaler starts pods
    /// of the other one when it has no card to give.
    pub stand_in: Option<&'a (FunctionName, RevisionName)>,
}

/// A caller whom another function serves: the one that was asked for still has somebody waiting, or it would never ask for a card.
pub(crate) struct Lent {
    delivery: Weak<Delivery>,
    revision: RevisionName,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.upgrade() {
            delivery.lent(&self.revision, None);
        }
    }
}

fn stands_in(table: &PodTable, function: &FunctionName, (_, other): &(FunctionName, RevisionName)) -> bool {
    table.count(function) == (0, 0)
        && (table.pods.values()).any(|pod| &pod.revision == other && matches!(pod.state, PodState::Ready))
}

impl Delivery {
    /// Waits for a place at a pod of the target, or of who stands in for it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_for(
        self: &Arc<Self>,
        target: Target<'_>,
        class: Class,
        demand: Demand,
        deadline: Instant,
    ) -> Result<Slot, DeliveryError> {
        let Target { function, revision, .. } = target;
        let Some(other) = target.stand_in else {
            return self.acquire(function, revision, class, demand, deadline).await;
        };
        let mut table = self.table();
        loop {
            let stands = stands_in(&table.borrow_and_update(), function, other);
            let lent = (stands && class == Class::Interactive).then(|| {
                self.lent(revision, Some(function));
                Lent {
                    delivery: Arc::downgrade(self),
                    revision: revision.clone(),
                }
            });
            let (function_now, revision_now) = if stands {
                (&other.0, &other.1)
            } else {
                (function, revision)
            };
            tokio::select! {
                slot = self.acquire(function_now, revision_now, class, demand, deadline) => {
                    return slot.map(|slot| slot.on_behalf(lent));
                }
                changed = table.wait_for(|now| stands_in(now, function, other) != stands) => if changed.is_err() {
                    return Err(DeliveryError::Closing);
                }
            }
        }
    }
}
