//! How much of the resources this process shows, and whether that is enough.
use imageflow_eventlog::LogError;
use imageflow_types::topics;

use super::ResourceStore;
use crate::seen::Seen;

impl ResourceStore {
    /// How much of the resources [`snapshot`](Self::snapshot) shows. Written beside a record that depends on them, under
    /// [`topics::SEEN`].
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen::of(&self.progress.borrow())
    }

    /// Waits until [`snapshot`](Self::snapshot) shows as much as somebody else has seen. Not for what the topic does not hold any
    /// more: the last record of a partition is gone when it was a tombstone and old, and all are when the topic was made anew.
    pub async fn catch_up(&self, with: &Seen) {
        let mut progress = self.progress.clone();
        let mut with = with.clone();
        loop {
            let there = progress.wait_for(|done| with.is_in(done));
            // It has ended with the platform, or it is there.
            let Err(_late) = tokio::time::timeout(self.config.late, there).await else {
                return;
            };
            tracing::warn!(%with, "the view of the resources is behind, and work waits for it");
            let behind = with.beyond(&progress.borrow());
            for (partition, from, next) in behind {
                match self.log.read(topics::RESOURCES, partition, from, 1).await {
                    Ok(records) if records.first().is_some_and(|r| r.offset < next) => {}
                    Ok(_) | Err(LogError::OffsetOutOfRange { .. } | LogError::UnknownPartition { .. }) => {
                        tracing::info!(
                            partition,
                            from,
                            next,
                            "what somebody has seen of the resources is not held any more"
                        );
                        with.forget(partition);
                    }
                    Err(error) => tracing::warn!(partition, %error, "the resources cannot be read"),
                }
            }
        }
    }
}
