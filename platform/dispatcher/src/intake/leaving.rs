//! How work ends whose partition goes to another dispatcher, or whose dispatcher ends.
use imageflow_eventlog::{Consumer, LogError, TopicPartition};

use super::{DispatcherError, Intake};

impl Intake {
    /// Gives partitions back before the next poll: what is with a pod is waited for, the rest is given up, what is done is
    /// committed.
    pub(super) async fn revoke(
        &mut self,
        consumer: &mut dyn Consumer,
        revoked: &[TopicPartition],
    ) -> Result<(), DispatcherError> {
        let mut done = Vec::new();
        for at in revoked {
            if let Some(partition) = self.partitions.get_mut(at) {
                self.turns.remove(&partition.function, at);
                partition.paused = false;
                done.push(self.commits.now(consumer, at, &partition.tracker));
            }
        }
        self.forget_unread();
        // Only a commit tells whether they are still here, or were lost and others have them by now.
        let lost = async { matches!(consumer.commit(done).await, Err(LogError::NotAssigned { .. })) };
        self.drain(revoked, lost).await;
        self.commit(consumer).await?;
        for at in revoked {
            self.partitions.remove(at);
        }
        self.resume(consumer);
        Ok(())
    }

    /// Ends the work on partitions: nothing is begun any more, and what is with a pod may finish, unless they turn out to be lost
    /// or it takes too long. Nothing is polled meanwhile, also for partitions that stay.
    pub(super) async fn drain(&mut self, partitions: &[TopicPartition], lost: impl Future<Output = bool>) {
        for at in partitions {
            if let Some(partition) = self.partitions.get(at) {
                partition.stop.gentle.cancel();
            }
            self.forget_behind(at);
        }
        if self.running(partitions) == 0 {
            return;
        }
        let over = tokio::time::sleep(self.config.drain);
        tokio::pin!(over, lost);
        let (mut known, mut cut) = (false, false);
        while self.running(partitions) > 0 {
            tokio::select! {
                is_lost = &mut lost, if !known => {
                    known = true;
                    if is_lost {
                        self.give_up(partitions);
                    }
                }
                Some(finished) = self.tasks.join_next() => self.settle(finished),
                () = &mut over, if !cut => {
                    cut = true;
                    self.give_up(partitions);
                }
                else => break,
            }
        }
        if !known {
            // It is a commit: the next one does not overtake it.
            lost.await;
        }
    }

    fn give_up(&self, partitions: &[TopicPartition]) {
        for partition in partitions.iter().filter_map(|at| self.partitions.get(at)) {
            partition.stop.now();
        }
    }

    /// Steps of these partitions that have a task.
    fn running(&self, partitions: &[TopicPartition]) -> usize {
        let known = partitions.iter().filter_map(|at| self.partitions.get(at));
        known.map(|partition| partition.running).sum()
    }

    /// What waits behind others of its key has no task that could end.
    fn forget_behind(&mut self, at: &TopicPartition) {
        let Some(partition) = self.partitions.get_mut(at) else {
            return;
        };
        for (_, step) in partition.behind.drain(..) {
            self.turns.ended(&partition.function);
            self.context.backlogs.finished(&partition.function, step.requested_ms);
            self.context.backlogs.announced(&step.next);
        }
    }
}
