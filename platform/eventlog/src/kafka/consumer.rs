//! A member of a group: partitions with a queue each, read in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

use super::Handle;
use super::context::{Context, Rebalance, lock};
use super::failure::{code, storage};
use super::group::Membership;
use super::left_out::{self, Seen, Step, Watch};
use super::offsets::{Asker, End, SOON, commits, ends, held};
use super::reading::{Polled, READ_BYTES, TICK, record_bytes, take};
use crate::error::{LogError, Result};
use crate::log::Consumer;
use crate::types::{
    Assignment, ConsumerConfig, ConsumerEvent, OffsetCommit, Record, Start, TopicPartition, Topics, validate_topic_name,
};

/// So long a paused partition keeps what was read ahead. Who pauses because its hands are full resumes in a moment, and
/// would fetch up to 1,000 records again for each handful that it takes; one that stays paused is to hold no memory.
const KEPT_AHEAD: Duration = Duration::from_secs(1);

/// Pause before what a new partition needs is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Partitions whose queue became non-empty, in that order. Each is in it once.
type Ready = Arc<Mutex<VecDeque<u64>>>;

struct Place {
    at: TopicPartition,
    queue: PartitionQueue<Context>,
    /// Whether it is among the ready ones.
    queued: Arc<AtomicBool>,
    next: Option<i64>,
    paused: Option<Paused>,
}

/// A partition that is not read for a while.
#[derive(Clone, Copy)]
struct Paused {
    since: Instant,
    /// Whether librdkafka knows: then it has dropped what it had read ahead.
    told: bool,
}

/// Where reading of a new partition begins.
struct Begin {
    at: TopicPartition,
    committed: Option<OffsetCommit>,
    next: Option<i64>,
}

type Resolving = JoinHandle<Result<Vec<Begin>, KafkaError>>;

/// New partitions, and the question where they are.
struct Assigning {
    partitions: Vec<TopicPartition>,
    asked: Option<Resolving>,
    /// Whether it was asked in vain.
    again: bool,
    begun: Instant,
}

/// A look at the group.
struct Looking {
    /// Rebalances heard of when it began.
    began: u64,
    seen: JoinHandle<Result<Option<Seen>, KafkaError>>,
}

pub struct KafkaConsumer {
    handle: Arc<Handle>,
    config: ConsumerConfig,
    member: Arc<Membership>,
    places: HashMap<u64, Place>,
    ids: HashMap<TopicPartition, u64>,
    last_id: u64,
    ready: Ready,
    /// Partitions that were paused a short while ago, the first one first.
    pausing: VecDeque<(Instant, u64)>,
    assigning: Option<Assigning>,
    watch: Watch,
    looking: Option<Looking>,
    closed: bool,
}

/// The subscription in librdkafka's words: names, or a regular expression.
fn subscription(topics: &Topics) -> Result<Vec<String>> {
    match topics {
        Topics::Names(names) => {
            names.iter().try_for_each(|name| validate_topic_name(name))?;
            Ok(names.clone())
        }
        Topics::Pattern(prefix) => {
            // Of what a name may have, only the dot means something else in a regular expression.
            if !prefix.is_empty() {
                validate_topic_name(&format!("{prefix}x"))?;
            }
            Ok(vec![format!("^{}", prefix.replace('.', "\\."))])
        }
    }
}

impl KafkaConsumer {
    pub fn join(handle: Arc<Handle>, config: ConsumerConfig) -> Result<Self> {
        let topics = subscription(&config.topics)?;
        let context = Context::default();
        let told = context.told.clone();
        let made = handle.config.member(&config).create_with_context(context);
        let mut made: BaseConsumer<Context> = made.map_err(|e| storage("making a consumer", e, None))?;
        let woken = told.clone();
        made.set_nonempty_callback(move || woken.wake.notify_one());
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        made.subscribe(&names).map_err(|e| storage("subscribing", e, None))?;
        let member = Membership::new(&config, told, Arc::new(made));
        handle.register(&member);
        Ok(Self {
            handle,
            config,
            member,
            places: HashMap::new(),
            ids: HashMap::new(),
            last_id: 0,
            ready: Ready::default(),
            pausing: VecDeque::new(),
            assigning: None,
            watch: Watch::default(),
            looking: None,
            closed: false,
        })
    }

    fn place(&self, topic: &str, partition: u32) -> Option<&Place> {
        self.places.get(self.ids.get(&TopicPartition::new(topic, partition))?)
    }

    fn one(topic: &str, partition: u32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition.cast_signed());
        list
    }

    /// Forgets what was given up: by the call that told of it, or because nobody came back in time.
    fn forget_released(&mut self) {
        let member = &self.member;
        if !member.has_given_up() {
            return;
        }
        self.places.retain(|_, place| member.holds(&place.at));
        let places = &self.places;
        self.ids.retain(|_, id| places.contains_key(id));
    }

    /// Serves what is told besides records. Records come by the queues of their partitions.
    fn serve(&self) -> Result<()> {
        loop {
            match take(&self.member.told, || self.member.consumer.poll(Duration::ZERO)) {
                Polled::Nothing => break,
                Polled::Failed(error) if code(&error) == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                    return Err(storage("reading", error, self.member.told.last_error()));
                }
                // Topics that are not there yet, brokers that are away: librdkafka goes on by itself.
                Polled::Failed(error) => tracing::debug!(%error, self.member.group, "consumer"),
                // Of a partition that was given up, which another one reads by now.
                Polled::Record(_) | Polled::End(..) => {}
            }
        }
        match self.member.consumer.client().fatal_error() {
            None => Ok(()),
            Some((RDKafkaErrorCode::FencedInstanceId, _)) => Err(LogError::Fenced {
                id: self.member.member.clone(),
            }),
            Some((code, why)) => Err(storage("reading", KafkaError::Global(code), Some(why))),
        }
    }

    /// Sees to it that the group assigns every topic that it is for.
    async fn look_after(&mut self) -> Result<()> {
        let heard = self.member.told.rebalances();
        if let Some(Looking { began, seen }) = self.looking.take_if(|looking| looking.seen.is_finished()) {
            match seen.await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(seen))) => {
                    let left_out = seen.left_out.join(", ");
                    if let Some(rest) = self.watch.saw(began, heard, seen) {
                        tracing::warn!(
                            self.config.group,
                            left_out,
                            "the group assigned none of these topics: it is made to do so"
                        );
                        metrics::counter!("imageflow_eventlog_kafka_stuck_total", "what" => "assignment").increment(1);
                        self.subscribe(&rest)?;
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, self.config.group, "looking at the group"),
                Err(error) => return Err(LogError::storage("looking at the group", error)),
            }
        }
        match self.watch.next(heard, Instant::now()) {
            Step::Nothing => {}
            Step::Look if self.looking.is_some() => {}
            Step::Look => {
                let (asker, config) = (self.handle.meta(), &self.config);
                let (group, topics) = (config.group.clone(), config.topics.clone());
                let timeout = self.handle.config.request_timeout / 3;
                let look = move || left_out::look(&asker, &group, &topics, timeout);
                let seen = tokio::task::spawn_blocking(look);
                self.looking = Some(Looking { began: heard, seen });
            }
            Step::Widen => self.subscribe(&subscription(&self.config.topics)?)?,
        }
        Ok(())
    }

    fn subscribe(&self, topics: &[String]) -> Result<()> {
        // A name that no topic has, for there is no subscription to nothing that does not leave the group.
        let none = format!("{}.none", self.config.group);
        let names: Vec<&str> = match topics {
            [] => vec![&none],
            topics => topics.iter().map(String::as_str).collect(),
        };
        let subscribed = self.member.consumer.subscribe(&names);
        subscribed.map_err(|e| storage("subscribing", e, None))
    }

    /// The next change of assignment. Whatever is dropped while it waits goes on at the next call.
    async fn rebalance(&mut self) -> Result<Option<ConsumerEvent>> {
        loop {
            if self.assigning.is_some() {
                return Ok(Some(self.take_over().await?));
            }
            match self.member.told.next_rebalance() {
                None => return Ok(None),
                Some(Rebalance::Assign(partitions)) => {
                    self.assigning = Some(Assigning {
                        partitions,
                        asked: None,
                        again: false,
                        begun: Instant::now(),
                    });
                }
                Some(Rebalance::Revoke { partitions, lost }) => {
                    let known: Vec<_> = partitions
                        .iter()
                        .filter(|at| self.ids.contains_key(at))
                        .cloned()
                        .collect();
                    self.member.revoke(partitions, lost);
                    if !known.is_empty() {
                        return Ok(Some(ConsumerEvent::Revoked(known)));
                    }
                    self.member.release();
                }
            }
        }
    }

    /// Finds out where the new partitions are, and takes them over.
    async fn take_over(&mut self) -> Result<ConsumerEvent> {
        loop {
            let Some(assigning) = &mut self.assigning else {
                return Err(LogError::Closed);
            };
            let asked = match &mut assigning.asked {
                Some(asked) => asked,
                none => {
                    // The first question is the member's own: it has its coordinator. One that got no answer soon may wait
                    // for brokers that are gone; then a new client asks.
                    let third = self.handle.config.request_timeout / 3;
                    let (reads, ends, timeout) = if assigning.again {
                        let new = self.handle.make_asker(&self.member.group)?;
                        (new.clone(), new, third)
                    } else {
                        (self.member.consumer.clone(), self.handle.meta(), third.min(SOON))
                    };
                    let start = self.config.start;
                    let partitions = assigning.partitions.clone();
                    none.insert(tokio::task::spawn_blocking(move || {
                        begin(&reads, &ends, partitions, start, timeout)
                    }))
                }
            };
            let answer = asked.await;
            assigning.asked = None;
            let again = std::mem::replace(&mut assigning.again, true);
            match answer {
                Ok(Ok(begins)) => {
                    self.assigning = None;
                    return self.assign(begins);
                }
                Ok(Err(error)) if !again => {
                    tracing::info!(%error, group = self.member.group, "new partitions have no offsets yet; a new client asks");
                    // That one may wait for the same broker, and is asked for all that follows.
                    if code(&error) == Some(RDKafkaErrorCode::OperationTimedOut) {
                        self.handle.renew_meta(assigning.begun)?;
                    }
                }
                Ok(Err(error)) => {
                    let (group, partitions) = (&self.member.group, assigning.partitions.clone());
                    let is_held = self.handle.is_held(group, partitions).await;
                    let why = if is_held { held(group) } else { error.to_string() };
                    tracing::warn!(error = why, group, "new partitions wait for their offsets");
                }
                Err(error) => return Err(LogError::storage("taking partitions over", error)),
            }
            tokio::time::sleep(ASK_AGAIN).await;
            self.handle.check_open()?;
        }
    }

    fn assign(&mut self, begins: Vec<Begin>) -> Result<ConsumerEvent> {
        let fail = |e| storage("taking partitions over", e, None);
        let mut list = TopicPartitionList::with_capacity(begins.len());
        for begin in &begins {
            let offset = begin.next.map_or(Offset::Beginning, Offset::Offset);
            list.add_partition_offset(&begin.at.topic, begin.at.partition.cast_signed(), offset)
                .map_err(fail)?;
            // Before it is assigned: then no record can come by the common queue.
            self.split(begin)?;
        }
        self.member.consumer.incremental_assign(&list).map_err(fail)?;
        self.member.hold(begins.iter().map(|b| b.at.clone()));
        let assignments = begins.into_iter().map(|begin| Assignment {
            topic: begin.at.topic,
            partition: begin.at.partition,
            committed: begin.committed,
        });
        Ok(ConsumerEvent::Assigned(assignments.collect()))
    }

    /// Gives a partition a queue of its own. So a busy partition starves no other one, and the end of a partition,
    /// which comes without its topic, is known to be its own.
    fn split(&mut self, begin: &Begin) -> Result<()> {
        let (topic, partition) = (&begin.at.topic, begin.at.partition.cast_signed());
        let mut queue = self
            .member
            .consumer
            .split_partition_queue(topic, partition)
            .ok_or_else(|| {
                super::failure::failed("taking partitions over", format!("no queue for {topic} {partition}"))
            })?;
        self.last_id += 1;
        let id = self.last_id;
        let queued = Arc::new(AtomicBool::new(true));
        lock(&self.ready).push_back(id);
        let (told, ready, flag) = (self.member.told.clone(), self.ready.clone(), queued.clone());
        queue.set_nonempty_callback(move || {
            if !flag.swap(true, Ordering::AcqRel) {
                lock(&ready).push_back(id);
            }
            told.wake.notify_one();
        });
        self.ids.insert(begin.at.clone(), id);
        let place = Place {
            at: begin.at.clone(),
            queue,
            queued,
            next: begin.next,
            paused: None,
        };
        self.places.insert(id, place);
        Ok(())
    }

    /// Lets go of what was read ahead of partitions that stay paused.
    fn stop_reading_ahead(&mut self) {
        while let Some((since, id)) = self
            .pausing
            .front()
            .copied()
            .filter(|(at, _)| at.elapsed() >= KEPT_AHEAD)
        {
            self.pausing.pop_front();
            let Some(place) = self.places.get_mut(&id) else {
                continue;
            };
            let Some(paused) = place.paused.as_mut().filter(|paused| paused.since == since) else {
                continue;
            };
            paused.told = true;
            let (topic, partition) = (&place.at.topic, place.at.partition);
            if let Err(error) = self.member.consumer.pause(&Self::one(topic, partition)) {
                tracing::warn!(%error, topic, partition, "a partition could not be paused");
                continue;
            }
            // What was read ahead is void from here on. librdkafka frees it when somebody looks.
            if let Polled::Record(record) = take(&self.member.told, || place.queue.poll(Duration::ZERO)) {
                tracing::error!(topic, partition, record.offset, "a paused partition gave a record");
            }
        }
    }

    fn make_ready(&self, id: u64, place: &Place) {
        if !place.queued.swap(true, Ordering::AcqRel) {
            lock(&self.ready).push_back(id);
        }
    }

    /// Takes records from the partitions in turn. Nothing in it waits, so nothing that was taken can be dropped.
    fn drain(&mut self, max: usize) -> Vec<Record> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        // Each of those that are ready now has one turn.
        let turns = lock(&self.ready).len();
        for _ in 0..turns {
            if records.len() >= max || bytes >= READ_BYTES {
                break;
            }
            let Some(id) = lock(&self.ready).pop_front() else { break };
            let Some(place) = self.places.get_mut(&id) else {
                continue;
            };
            // Before the look: what comes in after it makes the partition ready again.
            place.queued.store(false, Ordering::Release);
            if place.paused.is_some() {
                continue;
            }
            let emptied = loop {
                if records.len() >= max || bytes >= READ_BYTES {
                    break false;
                }
                match take(&self.member.told, || place.queue.poll(Duration::ZERO)) {
                    Polled::Record(record) => {
                        place.next = Some(record.offset + 1);
                        bytes += record_bytes(&record);
                        records.push(record);
                    }
                    Polled::End(_, end) => place.next = Some(place.next.map_or(end, |next| next.max(end))),
                    Polled::Failed(error) => tracing::debug!(%error, place.at.topic, place.at.partition, "reading"),
                    Polled::Nothing => break true,
                }
            };
            if !emptied && !place.queued.swap(true, Ordering::AcqRel) {
                lock(&self.ready).push_back(id);
            }
        }
        records
    }
}

/// Where reading of partitions begins: at the commit, or else at the end that is asked for.
fn begin(
    reads: &Asker,
    asker: &Asker,
    partitions: Vec<TopicPartition>,
    start: Start,
    timeout: Duration,
) -> Result<Vec<Begin>, KafkaError> {
    let committed = commits(reads, &partitions, timeout)?;
    let fresh: Vec<TopicPartition> = partitions
        .iter()
        .zip(&committed)
        .filter(|(_, commit)| commit.is_none())
        .map(|(at, _)| at.clone())
        .collect();
    let end = match start {
        Start::Earliest => End::First,
        Start::Latest => End::Next,
    };
    let mut ends = ends(asker, &fresh, end, timeout)?.into_iter();
    let begins = partitions.into_iter().zip(committed).map(|(at, committed)| {
        let next = match &committed {
            Some(commit) => Some(commit.offset),
            None => ends.next().flatten(),
        };
        Begin { at, committed, next }
    });
    Ok(begins.collect())
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn poll(&mut self, max: usize) -> Result<Vec<ConsumerEvent>> {
        self.member.release();
        self.forget_released();
        loop {
            self.handle.check_open()?;
            self.serve()?;
            self.look_after().await?;
            self.stop_reading_ahead();
            if let Some(event) = self.rebalance().await? {
                return Ok(vec![event]);
            }
            let records = self.drain(max.max(1));
            if !records.is_empty() {
                return Ok(vec![ConsumerEvent::Records(records)]);
            }
            tokio::select! {
                () = self.member.told.wake.notified() => {}
                // By polls librdkafka sees that this member is alive.
                () = tokio::time::sleep(TICK) => {}
                () = self.handle.closed.cancelled() => {}
            }
        }
    }

    async fn commit(&mut self, offsets: Vec<OffsetCommit>) -> Result<()> {
        self.handle.check_open()?;
        self.member.commit(offsets).await
    }

    fn position(&self, topic: &str, partition: u32) -> Option<i64> {
        let place = self.place(topic, partition)?;
        place.next.filter(|_| self.member.holds(&place.at))
    }

    fn pause(&mut self, topic: &str, partition: u32) {
        let Some(id) = self.ids.get(&TopicPartition::new(topic, partition)) else {
            return;
        };
        let Some(place) = self.places.get_mut(id) else { return };
        if place.paused.is_none() {
            let since = Instant::now();
            place.paused = Some(Paused { since, told: false });
            self.pausing.push_back((since, *id));
        }
    }

    fn resume(&mut self, topic: &str, partition: u32) {
        let Some(id) = self.ids.get(&TopicPartition::new(topic, partition)).copied() else {
            return;
        };
        let Some(place) = self.places.get_mut(&id) else { return };
        let told = place.paused.take().is_some_and(|paused| paused.told);
        if told && let Err(error) = self.member.consumer.resume(&Self::one(topic, partition)) {
            tracing::warn!(%error, topic, partition, "a partition could not be resumed");
        }
        if let Some(place) = self.places.get(&id) {
            self.make_ready(id, place);
        }
        self.member.told.wake.notify_one();
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        super::end(self.leaving()).await;
        Ok(())
    }
}

impl KafkaConsumer {
    /// The work of leaving the group, which blocks.
    fn leaving(&mut self) -> impl FnOnce() + Send + 'static {
        self.closed = true;
        self.ids.clear();
        // The queues keep the client alive.
        let places = std::mem::take(&mut self.places);
        let (member, resolving) = (self.member.clone(), self.assigning.take());
        move || {
            if let Some(Assigning { partitions, .. }) = resolving {
                // Asked for and not answered yet: librdkafka waits for that before it leaves.
                member.assign_none(&partitions);
            }
            member.leave();
            drop(places);
            drop(member);
        }
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        if !self.closed {
            let leave = self.leaving();
            self.handle.retire(leave);
        }
    }
}
