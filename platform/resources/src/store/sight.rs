//! How much of the resources this process shows, and whether that is enough.
use std::time::Duration;

use imageflow_types::topics;

use super::ResourceStore;
use crate::seen::Seen;

/// How far behind a view may be before it is told, and asked whether it can ever be there.
const LATE: Duration = Duration::from_secs(2);

impl ResourceStore {
    /// How much of the resources [`snapshot`](Self::snapshot) shows. Written beside a record that depends on them, under
    /// [`topics::SEEN`].
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen::of(&self.progress.borrow())
    }

    /// Waits until [`snapshot`](Self::snapshot) shows as much as somebody else has seen. Not for what a topic that was made anew
    /// does not hold any more.
    pub async fn catch_up(&self, with: &Seen) {
        let mut progress = self.progress.clone();
        loop {
            let there = progress.wait_for(|done| with.is_in(done));
            // It has ended with the platform, or it is there.
            let Err(_late) = tokio::time::timeout(LATE, there).await else {
                return;
            };
            match self.log.watermarks(topics::RESOURCES).await {
                Ok(ends) if !with.is_in(&ends.iter().map(|w| (w.partition, w.high)).collect()) => {
                    tracing::warn!(%with, "somebody has seen resources that are not there: the topic was made anew");
                    return;
                }
                Ok(_) => tracing::warn!(%with, "the view of the resources is behind, and work waits for it"),
                Err(error) => {
                    tracing::warn!(%with, %error, "the view of the resources is behind, and work waits for it")
                }
            }
        }
    }
}
