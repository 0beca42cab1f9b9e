//! Stores how far trackers are: those that changed, in one commit.
use imageflow_eventlog::{Consumer, LogError, OffsetCommit, TopicPartition};

use crate::tracker::{MAX_METADATA, Tracker};

/// Metadata that is shorter is not worth another try.
const LEAST_METADATA: usize = 64;

/// What is known of commits.
pub(crate) struct Commits {
    /// Longest metadata that the log takes: brokers may be set to less than Kafka's default.
    longest: usize,
}

impl Default for Commits {
    fn default() -> Self {
        Self { longest: MAX_METADATA }
    }
}

impl Commits {
    /// The state of a partition, whether it changed or not.
    pub(crate) fn now(&self, consumer: &dyn Consumer, at: &TopicPartition, tracker: &Tracker) -> OffsetCommit {
        let now = tracker.now(consumer.position(&at.topic, at.partition), self.longest);
        OffsetCommit::new(&at.topic, at.partition, now.offset).metadata(now.metadata)
    }

    /// Stores what changed. False when it is to be tried again: what is not stored is done once more, harmlessly.
    pub(crate) async fn store(
        &mut self,
        consumer: &mut dyn Consumer,
        mut trackers: Vec<(&TopicPartition, &mut Tracker)>,
    ) -> Result<bool, LogError> {
        loop {
            let mut changed = Vec::new();
            for (at, tracker) in &mut trackers {
                let position = consumer.position(&at.topic, at.partition);
                if let Some(commit) = tracker.commit(position, self.longest) {
                    changed.push((*at, tracker, commit));
                }
            }
            if changed.is_empty() {
                return Ok(true);
            }
            let offsets = changed
                .iter()
                .map(|(at, _, c)| OffsetCommit::new(&at.topic, at.partition, c.offset).metadata(&c.metadata))
                .collect();
            match consumer.commit(offsets).await {
                Ok(()) => {
                    for (_, tracker, commit) in changed {
                        let short = u64::from(commit.truncated);
                        metrics::counter!("imageflow_function_plain_commits_total").increment(short);
                        tracker.committed(&commit);
                    }
                    return Ok(true);
                }
                Err(error @ LogError::MetadataTooLarge { .. }) if self.longest > 0 => {
                    self.longest = match self.longest / 2 {
                        ..LEAST_METADATA => 0,
                        half => half,
                    };
                    tracing::warn!(%error, longest = self.longest, "the log takes less with a commit: less is said");
                }
                // The assignment changed meanwhile: the next poll tells. None of this commit is stored, also of partitions
                // that stay.
                Err(LogError::NotAssigned { .. }) => return Ok(false),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "commit failed, it is tried again");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
