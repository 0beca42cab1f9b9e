//! Notifications of an external S3 server: `imageflow.object-notifications` holds them as the server sent them, and each becomes
//! the event that the embedded server would have raised.
use std::sync::Arc;
use std::time::{Duration, Instant};

use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, EventLog, LogError, OffsetCommit, Record, Rejoin, TopicSpec, Topics,
};
use imageflow_objects::notifications::{Notification, NotificationError, parse};
use imageflow_objects::{ChangeKind, ObjectError, ObjectListener, ObjectStore};
use imageflow_process::overdue;
use imageflow_types::topics;
use tokio_util::sync::CancellationToken;

const BATCH: usize = 256;
/// Pause before the object store or the log is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Turns notifications into events.
pub struct Notifications {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The object store, to complete what the server does not tell.
    pub objects: Arc<dyn ObjectStore>,
    /// Who raises the events.
    pub events: Arc<dyn ObjectListener>,
    /// Name in the consumer group, stable over a restart.
    pub member: String,
}

impl Notifications {
    /// The topic that the server is to send to.
    #[must_use]
    pub fn topic() -> TopicSpec {
        TopicSpec::new(topics::OBJECT_NOTIFICATIONS, topics::PARTITIONS).retention(Duration::from_secs(7 * 24 * 3600))
    }

    /// Works until `stop`.
    ///
    /// # Errors
    /// When the log fails for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LogError> {
        let mut rejoin = Rejoin::default();
        loop {
            match self.session(&stop).await {
                Err(error) if rejoin.may(&error, Instant::now()) => {
                    tracing::warn!(%error, "displaced in the group of those who read notifications; it joins anew");
                }
                // An outage passes, however long it takes, and the API has other things to do.
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "notifications wait; their reader joins anew");
                }
                ended => return ended,
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// As a member of the group, until `stop` or until it is no member any more.
    async fn session(&self, stop: &CancellationToken) -> Result<(), LogError> {
        let own = [Self::topic()];
        tokio::select! {
            ensured = self.log.ensure_topics(&own) => ensured?,
            // Without brokers it takes half a minute.
            () = stop.cancelled() => return Ok(()),
        }
        let names = Topics::Names(vec![topics::OBJECT_NOTIFICATIONS.to_owned()]);
        let group = ConsumerConfig::new(topics::GROUP_NOTIFICATIONS, self.member.clone(), names);
        let mut consumer = self.log.consumer(group).await?;
        loop {
            let events = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                events = consumer.poll(BATCH) => events?,
            };
            for event in events {
                let ConsumerEvent::Records(records) = event else {
                    continue;
                };
                for record in &records {
                    if !self.take(record, stop).await {
                        return consumer.close().await;
                    }
                }
                tokio::select! {
                    committed = self.commit(consumer.as_mut(), &records) => committed?,
                    () = overdue(stop) => {}
                }
            }
        }
        consumer.close().await
    }

    /// Raises the events of one message. False when it was stopped before they were durable.
    async fn take(&self, record: &Record, stop: &CancellationToken) -> bool {
        // What cannot be read stays in the topic, and what it told of is found by the reconcile.
        let unreadable = |error: NotificationError| {
            tracing::error!(partition = record.partition, offset = record.offset, %error, "a notification cannot be read");
            metrics::counter!("imageflow_storage_notifications_unreadable_total").increment(1);
        };
        let changes = match parse(record.value.as_deref().unwrap_or_default()) {
            Ok(changes) => changes,
            Err(error) => {
                unreadable(error);
                return true;
            }
        };
        for change in changes {
            let change = match change {
                Ok(change) => change,
                Err(error) => {
                    unreadable(error);
                    continue;
                }
            };
            loop {
                let raised = tokio::select! {
                    raised = self.raise(change.clone(), record.offset) => raised,
                    () = overdue(stop) => return false,
                };
                let Err(error) = raised else { break };
                tracing::warn!(%error, "a notification waits");
                tokio::select! {
                    () = stop.cancelled() => return false,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
        true
    }

    async fn raise(&self, change: Notification, offset: i64) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(change) = self.completed(change).await? else {
            return Ok(());
        };
        let sequence = u64::try_from(offset).unwrap_or_default();
        let occurrence = change.occurrence();
        self.events
            .on_told(change.into_change(sequence), occurrence.as_deref())
            .await
    }

    /// As the store knows the object: few servers tell the metadata, by which our own objects are known from others', and names
    /// that are told are not always right (seen: versitygw 1.8.0 under load, with a part of another request where the bucket
    /// belongs). None when there is nothing to work on.
    async fn completed(&self, mut change: Notification) -> Result<Option<Notification>, ObjectError> {
        if change.kind == ChangeKind::Removed {
            let gone = change.is_complete() || self.is_gone(&change).await?;
            return Ok(gone.then_some(change));
        }
        let (bucket, key) = (&change.info.bucket, &change.info.key);
        match self.objects.head(bucket, key).await {
            // Overwritten since, maybe: then it is the event that its own notification raises, and what it was before could
            // not be read any more.
            Ok(Some(info)) => {
                change.info = info;
                Ok(Some(change))
            }
            Ok(None) => {
                tracing::debug!(bucket, key, "a new object is gone");
                Ok(None)
            }
            Err(error) if error.is_retryable() => Err(error),
            // If it is there, the reconcile finds it.
            Err(error) => {
                tracing::error!(bucket, key, %error, "a new object cannot be looked at");
                metrics::counter!("imageflow_storage_notifications_unreadable_total").increment(1);
                Ok(None)
            }
        }
    }

    /// Whether there is no object any more after one of its versions was removed. When it cannot be looked at, it counts as gone:
    /// nothing else tells of a removal.
    async fn is_gone(&self, removed: &Notification) -> Result<bool, ObjectError> {
        let (bucket, key) = (&removed.info.bucket, &removed.info.key);
        match self.objects.head(bucket, key).await {
            Ok(there) => Ok(there.is_none()),
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => {
                tracing::warn!(bucket, key, %error, "an object of which a version was removed cannot be looked at");
                Ok(true)
            }
        }
    }

    async fn commit(&self, consumer: &mut dyn Consumer, records: &[Record]) -> Result<(), LogError> {
        let mut offsets: Vec<OffsetCommit> = Vec::new();
        for record in records {
            offsets.retain(|o| o.partition != record.partition);
            let next = consumer.position(&record.topic, record.partition);
            offsets.push(OffsetCommit::new(
                &record.topic,
                record.partition,
                next.unwrap_or(record.offset + 1),
            ));
        }
        match consumer.commit(offsets).await {
            // Told twice it is the same event, so the same run.
            Err(LogError::NotAssigned { .. }) => Ok(()),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "notifications are not committed yet");
                Ok(())
            }
            result => result,
        }
    }
}
