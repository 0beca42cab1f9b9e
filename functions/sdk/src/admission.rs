//! Who may come in: the concurrency limit and the drain.
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// The right to do one call. Clones share it: it is given back when the last is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    _held: Arc<OwnedSemaphorePermit>,
}

/// Why a call was not admitted. Not an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Concurrency,
    Draining,
}

impl Refusal {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Draining => "draining",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    draining: watch::Sender<bool>,
}

impl Admission {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit as usize)),
            limit,
            draining: watch::Sender::new(false),
        }
    }

    /// A permit now, or why not.
    pub(crate) fn try_admit(&self) -> Result<Permit, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        let held = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| Refusal::Concurrency)?;
        Ok(Permit { _held: Arc::new(held) })
    }

    /// A permit when one is free. For callers that are held back by the wait, such as a stream.
    pub(crate) async fn admit(&self) -> Result<Permit, Refusal> {
        tokio::select! {
            biased;
            () = self.drained() => Err(Refusal::Draining),
            held = Arc::clone(&self.permits).acquire_owned() => match held {
                Ok(held) => Ok(Permit { _held: Arc::new(held) }),
                Err(_) => Err(Refusal::Draining),
            },
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Admits nobody from now on.
    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Waits until the drain begins.
    pub(crate) async fn drained(&self) {
        let mut draining = self.draining.subscribe();
        // The sender is `self`, so it outlives the wait.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Waits until nobody holds a permit. Call after [`drain`](Self::drain).
    pub(crate) async fn idle(&self) {
        let _ = self.permits.acquire_many(self.limit).await;
    }

    /// Permits held now.
    pub(crate) fn in_flight(&self) -> u32 {
        self.limit
            .saturating_sub(u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_refuses_new_calls_and_waits_for_the_held_ones() {
        let admission = Admission::new(2);
        let first = admission.try_admit().unwrap();
        let second = admission.try_admit().unwrap();
        assert_eq!(admission.try_admit().unwrap_err(), Refusal::Concurrency);
        drop(second);
        admission.drain();
        assert_eq!(admission.try_admit().unwrap_err(), Refusal::Draining);
        assert_eq!(admission.admit().await.unwrap_err(), Refusal::Draining);
        let copy = first.clone();
        drop(first);
        assert_eq!(admission.in_flight(), 1);
        tokio::select! {
            biased;
            () = admission.idle() => panic!("a permit is still held"),
            () = std::future::ready(()) => {}
        }
        drop(copy);
        admission.idle().await;
    }
}
