//! Ends of partitions and commits of groups, many in one request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Handle;
use super::context::{Context, lock};
use super::failure::{code, failed, is_unknown_topic, storage};
use super::topics::LOOK_AGAIN;
use crate::error::{LogError, Result};
use crate::types::{OffsetCommit, TopicPartition, Watermarks};

/// Clients kept to ask for the commits of a group: making one costs a connection to its coordinator.
const ASKERS: usize = 8;

const ASK_AGAIN: Duration = Duration::from_millis(50);
/// So long a client's word is taken that a topic does not exist which others describe.
const BELIEVED: Duration = Duration::from_secs(2);

/// So long a client has for its answer until a new one asks as well.
pub const SOON: Duration = Duration::from_secs(3);

/// So long an answer is waited for that explains why there was none to another question.
const HELD_FOR: Duration = Duration::from_secs(2);

/// Why brokers do not tell what a group committed.
pub fn held(group: &str) -> String {
    format!(
        "a transaction with offsets of the group {group} has not ended; should that last longer than the transaction.timeout.ms \
         of its producer, brokers have lost its end: docs/guide.md says what to do (KAFKA-20734)"
    )
}

/// A client that asks, and is in no group.
pub type Asker = Arc<BaseConsumer<Context>>;

/// Which end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The first record held.
    First,
    /// Past the last record that can be read: those of open transactions are not there yet.
    Next,
}

pub fn list(partitions: &[TopicPartition], offset: Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for at in partitions {
        list.add_partition_offset(&at.topic, at.partition.cast_signed(), offset)?;
    }
    Ok(list)
}

/// The ends of partitions, in their order; `None` for one that does not exist (any more).
pub fn ends(
    client: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    end: End,
    timeout: Duration,
) -> Result<Vec<Option<i64>>, KafkaError> {
    let which = match end {
        End::First => Offset::Beginning,
        End::Next => Offset::End,
    };
    found(client, partitions, which, timeout)
}

/// The first offsets whose records are no older than a time (ms since 1970), in the order of the partitions; the ends of
/// those that have no such record; `None` for one that does not exist (any more).
pub fn at_time(
    client: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    ms: i64,
    timeout: Duration,
) -> Result<Vec<Option<i64>>, KafkaError> {
    // Before the question: what comes meanwhile is young.
    let nexts = ends(client, partitions, End::Next, timeout)?;
    let firsts = found(client, partitions, Offset::Offset(ms), timeout)?;
    let both = firsts.into_iter().zip(nexts);
    Ok(both
        .map(|(first, next)| Some(first.unwrap_or(i64::MAX).min(next?)))
        .collect())
}

/// What a question for offsets finds.
fn found(
    client: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    which: Offset,
    timeout: Duration,
) -> Result<Vec<Option<i64>>, KafkaError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let failure = match client.offsets_for_times(list(partitions, which)?, left) {
            Ok(answer) => match read(&answer, partitions) {
                Ok(offsets) => return Ok(offsets),
                Err(error) => error,
            },
            // One topic that is gone fails the whole question.
            Err(error) if code(&error).is_some_and(is_unknown_topic) => {
                let topic = |at: &TopicPartition| at.topic == partitions[0].topic;
                let (first, rest): (Vec<_>, Vec<_>) = partitions.iter().cloned().partition(topic);
                if rest.is_empty() {
                    return Ok(vec![None; partitions.len()]);
                }
                // They come by topic, so their order stays.
                let mut all = found(client, &first, which, left)?;
                all.extend(found(client, &rest, which, left)?);
                return Ok(all);
            }
            Err(error) => error,
        };
        if left.is_zero() {
            return Err(failure);
        }
        // Leaders move: the question is put again, to whom it is for by then.
        drop(client.poll(ASK_AGAIN));
    }
}

/// Offsets in an answer, in the order of the partitions.
fn read(answer: &TopicPartitionList, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, KafkaError> {
    let offset = |at: &TopicPartition| {
        let Some(element) = answer.find_partition(&at.topic, at.partition.cast_signed()) else {
            return Ok(None);
        };
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => Ok(Some(offset)),
            (Err(error), _) if !code(&error).is_some_and(is_unknown_topic) => Err(error),
            _ => Ok(None),
        }
    };
    partitions.iter().map(offset).collect()
}

/// What the group of `client` committed, in the order of the partitions.
pub fn commits(
    client: &BaseConsumer<Context>,
    partitions: &[TopicPartition],
    timeout: Duration,
) -> Result<Vec<Option<OffsetCommit>>, KafkaError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let answer = client.committed_offsets(list(partitions, Offset::Invalid)?, timeout)?;
    let mut found = Vec::with_capacity(partitions.len());
    for at in partitions {
        let Some(element) = answer.find_partition(&at.topic, at.partition.cast_signed()) else {
            found.push(None);
            continue;
        };
        match element.error() {
            Ok(()) => {}
            Err(error) if code(&error).is_some_and(is_unknown_topic) => {}
            Err(error) => return Err(error),
        }
        found.push(match element.offset() {
            Offset::Offset(offset) => {
                Some(OffsetCommit::new(&at.topic, at.partition, offset).metadata(element.metadata()))
            }
            _ => None,
        });
    }
    Ok(found)
}

impl Handle {
    async fn partitions(&self, topic: &str) -> Result<Vec<TopicPartition>> {
        let count = self.topic(topic).await?.partitions;
        Ok((0..count).map(|p| TopicPartition::new(topic, p)).collect())
    }

    /// The client that asks for a group; the one used longest ago makes room.
    pub fn asker(&self, group: &str) -> Result<Asker> {
        let mut askers = lock(&self.askers);
        if let Some(i) = askers.iter().position(|(name, _)| name == group) {
            let found = askers.remove(i);
            askers.push(found.clone());
            return Ok(found.1);
        }
        if askers.len() >= ASKERS {
            let (_, old) = askers.remove(0);
            self.retire(move || drop(old));
        }
        let made = self.make_asker(group)?;
        askers.push((group.to_owned(), made.clone()));
        Ok(made)
    }

    pub fn make_asker(&self, group: &str) -> Result<Asker> {
        let context = Context {
            group: Some(group.into()),
            ..self.context()
        };
        let made = self.config.consumer(group).create_with_context(context);
        let made: BaseConsumer<Context> = made.map_err(|e| storage("making a client", e, None))?;
        Ok(Arc::new(made))
    }

    /// Both ends of each partition of a topic.
    pub async fn marks(&self, topic: &str) -> Result<Vec<Watermarks>> {
        let mut doubt = Doubt::new(self);
        loop {
            let partitions = self.partitions(topic).await?;
            let (lows, highs) = self.both_ends(doubt.client.clone(), partitions).await?;
            let both = lows.into_iter().zip(highs).zip(0..);
            let marks = both.map(|((low, high), partition)| {
                let (low, high) = (low?, high?);
                Some(Watermarks { partition, low, high })
            });
            if let Some(marks) = marks.collect::<Option<Vec<_>>>() {
                return Ok(marks);
            }
            doubt.settle(self, topic).await?;
        }
    }

    /// Both ends of one partition.
    pub async fn ends_of(&self, at: &TopicPartition) -> Result<(i64, i64)> {
        let mut doubt = Doubt::new(self);
        loop {
            self.topic(&at.topic).await?.check(&at.topic, at.partition)?;
            let (lows, highs) = self.both_ends(doubt.client.clone(), vec![at.clone()]).await?;
            if let Some(both) = lows[0].zip(highs[0]) {
                return Ok(both);
            }
            doubt.settle(self, &at.topic).await?;
        }
    }

    async fn both_ends(
        &self,
        client: Asker,
        partitions: Vec<TopicPartition>,
    ) -> Result<(Vec<Option<i64>>, Vec<Option<i64>>)> {
        self.ask("asking for offsets", client, move |client, timeout| {
            let lows = ends(client, &partitions, End::First, timeout)?;
            Ok((lows, ends(client, &partitions, End::Next, timeout)?))
        })
        .await
    }

    /// The client that asks, and is in no group.
    pub fn meta(&self) -> Asker {
        lock(&self.meta).0.clone()
    }

    /// Puts a question by a client and, when that has no answer soon, by a new one as well: librdkafka forgets brokers that
    /// were away, and a client may wait for one of them that it does not find again.
    pub async fn ask<T: Send + 'static>(
        &self,
        context: &'static str,
        client: Asker,
        question: impl Fn(&Asker, Duration) -> Result<T, KafkaError> + Send + Sync + 'static,
    ) -> Result<T> {
        let question = Arc::new(question);
        let put = |client: Asker, timeout: Duration| {
            let question = question.clone();
            tokio::task::spawn_blocking(move || question(&client, timeout))
        };
        let (begun, third) = (Instant::now(), self.config.request_timeout / 3);
        let mut first = put(client.clone(), third);
        let soon = tokio::time::timeout(SOON.min(third), &mut first).await;
        let mut waiting = soon.is_err();
        if let Ok(answer) = soon {
            match answer.map_err(|e| LogError::storage(context, e))? {
                Err(error) if code(&error) == Some(RDKafkaErrorCode::OperationTimedOut) => {}
                answer => return answer.map_err(|e| storage(context, e, self.told.last_error())),
            }
        }
        self.check_open()?;
        tracing::warn!(context, "no answer; a new client asks");
        let mut second = put(self.renew(&client, begun)?, third * 2);
        self.retire(move || drop(client));
        let answer = loop {
            tokio::select! {
                late = &mut first, if waiting => match late {
                    Ok(Ok(late)) => return Ok(late),
                    _ => waiting = false,
                },
                answer = &mut second => break answer.map_err(|e| LogError::storage(context, e))?,
            }
        };
        match answer {
            // A new client is refused at once by a broker that does not know its new part yet.
            Err(error) if waiting => match first.await {
                Ok(Ok(late)) => Ok(late),
                _ => Err(error),
            },
            answer => answer,
        }
        .map_err(|e| storage(context, e, self.told.last_error()))
    }

    /// A client in the place of one that got no answer to a question of then.
    fn renew(&self, old: &Asker, begun: Instant) -> Result<Asker> {
        let Some(group) = &old.context().group else {
            // The common one even when it was another that got no answer: all that are as old know the same brokers.
            return self.renew_meta(begun);
        };
        let mut askers = lock(&self.askers);
        let known = askers.iter().position(|(_, asker)| Arc::ptr_eq(asker, old));
        let gone = known.map(|i| askers.remove(i).1);
        drop(askers);
        self.retire(move || drop(gone));
        // One that made room meanwhile, or was renewed by somebody else, is not there.
        self.asker(group)
    }

    /// A client that asks and is in no group, and is no older than that.
    pub fn renew_meta(&self, begun: Instant) -> Result<Asker> {
        let mut meta = lock(&self.meta);
        if meta.1 > begun {
            return Ok(meta.0.clone());
        }
        let made = self.config.asking().create_with_context(self.context());
        let new: Asker = Arc::new(made.map_err(|e| storage("making a client", e, None))?);
        let (gone, _) = std::mem::replace(&mut *meta, (new.clone(), Instant::now()));
        drop(meta);
        self.retire(move || drop(gone));
        Ok(new)
    }

    pub async fn commits_of(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>> {
        let found = self.commits_on(group, self.partitions(topic).await?).await?;
        Ok((0..).zip(found).collect())
    }

    /// What a group committed, in the order of the partitions.
    pub async fn commits_on(&self, group: &str, partitions: Vec<TopicPartition>) -> Result<Vec<Option<OffsetCommit>>> {
        let asked = partitions.clone();
        let question = move |client: &Asker, timeout| commits(client, &asked, timeout);
        let answer = self.ask("asking for commits", self.asker(group)?, question).await;
        if answer.is_err() && self.is_held(group, partitions).await {
            return Err(failed("asking for commits", held(group)));
        }
        answer
    }

    /// Whether brokers do not tell what a group committed because a transaction with a part of it has not ended: what would be
    /// there without that they tell. New clients ask: another may only wait for a broker that is gone.
    pub async fn is_held(&self, group: &str, partitions: Vec<TopicPartition>) -> bool {
        let told = |isolation: &str| {
            let (mut config, partitions, context) = (self.config.consumer(group), partitions.clone(), self.context());
            config.set("isolation.level", isolation);
            let ask = move || -> Result<(), KafkaError> {
                let client: BaseConsumer<Context> = config.create_with_context(context)?;
                commits(&client, &partitions, HELD_FOR).map(drop)
            };
            tokio::task::spawn_blocking(ask)
        };
        let (committed, all) = tokio::join!(told("read_committed"), told("read_uncommitted"));
        !matches!(committed, Ok(Ok(()))) && matches!(all, Ok(Ok(())))
    }

    pub async fn lag_of(&self, group: &str, topic: &str) -> Result<u64> {
        let commits = self.commits_of(group, topic).await?;
        let marks = self.marks(topic).await?;
        if commits.len() != marks.len() {
            return Err(failed("asking for the lag", "the topic was made anew meanwhile"));
        }
        let lag = commits.iter().zip(&marks).map(|((_, commit), marks)| {
            let from = commit.as_ref().map_or(marks.low, |c| c.offset).max(marks.low);
            u64::try_from(marks.high - from).unwrap_or(0)
        });
        Ok(lag.sum())
    }
}

/// A topic that has no ends, and yet a description. A broker that starts, or has lost its controllers, answers out of old
/// metadata, and a client believes it for a while: when that lasts, a new client is asked.
struct Doubt {
    begun: Instant,
    client: Asker,
    believed_until: Instant,
}

impl Doubt {
    fn new(handle: &Handle) -> Self {
        Self {
            begun: Instant::now(),
            client: handle.meta(),
            believed_until: Instant::now() + BELIEVED,
        }
    }

    /// Returns when it is to be asked again.
    ///
    /// # Errors
    /// `UnknownTopic` when it has no description, too; `Storage` when the answers contradict each other to the end.
    async fn settle(&mut self, handle: &Handle, topic: &str) -> Result<()> {
        handle.forget(topic);
        handle.topic(topic).await?;
        if self.begun.elapsed() > handle.config.request_timeout {
            let why = format!("the brokers do not agree whether there is a topic {topic}");
            return Err(failed("asking for offsets", why));
        }
        if Instant::now() > self.believed_until {
            tracing::warn!(
                topic,
                "brokers contradict each other on whether it exists; a new client asks"
            );
            self.client = handle.make_asker(&format!("{}-reader", handle.config.client_id))?;
            self.believed_until = Instant::now() + BELIEVED;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        Ok(())
    }
}
