//! How the steps of a partition are told to end.
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The work was given up, because the platform stops or the partition was revoked. Its record stays undone.
pub(crate) struct GivenUp;

/// In two words: first that nothing is begun any more, then that all is given up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    /// What waits for a pod, or for its next attempt, is given up. What is with a pod may finish.
    pub(crate) gentle: CancellationToken,
    /// All is given up.
    pub(crate) hard: CancellationToken,
}

impl Stop {
    /// Both at once.
    pub(crate) fn now(&self) {
        self.gentle.cancel();
        self.hard.cancel();
    }

    /// Waits, unless nothing is to be begun any more.
    pub(crate) async fn pause(&self, time: Duration) -> Result<(), GivenUp> {
        self.before(tokio::time::sleep(time)).await
    }

    /// Waits for something, unless nothing is to be begun any more.
    pub(crate) async fn before(&self, what: impl Future<Output = ()>) -> Result<(), GivenUp> {
        tokio::select! {
            () = what => Ok(()),
            () = self.gentle.cancelled() => Err(GivenUp),
        }
    }
}
