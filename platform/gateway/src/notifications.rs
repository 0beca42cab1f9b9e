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
        self.log.ensure_topics(&[Self::topic()]).await?;
        let mut rejoin = Rejoin::default();
        loop {
            match self.session(&stop).await {
                Err(error) if rejoin.may(&error, Instant::now()) => {
                    tracing::warn!(%error, "displaced in the group of those who read notifications; it joins anew");
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

    /// With what the store knows of the object: few servers tell the metadata, by which our own objects are known from others'.
    /// None when there is nothing to raise.
    async fn completed(&self, mut change: Notification) -> Result<Option<Notification>, ObjectError> {
        if change.kind == ChangeKind::Removed {
            return Ok(Some(change));
        }
        let info = match self.objects.head(&change.info.bucket, &change.info.key).await {
            Ok(info) => info,
            Err(error) if error.is_retryable() => return Err(error),
            // Its run ends with an error that somebody sees.
            Err(error) => {
                tracing::warn!(bucket = change.info.bucket, key = change.info.key, %error, "a new object cannot be looked at, its event is raised as it was told");
                return Ok(Some(change));
            }
        };
        let told = change.info.etag.as_str();
        match info {
            Some(info) if told.is_empty() || told == info.etag => change.info = info,
            // What it was cannot be known any more, nor can anything be done with it.
            None if told.is_empty() => return Ok(None),
            // Overwritten or removed since, as can happen behind any event: a run of it ends as `input-changed`, and what
            // is there now has an event of its own.
            _ => {}
        }
        Ok(Some(change))
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
