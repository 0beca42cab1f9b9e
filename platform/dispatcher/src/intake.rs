//! Where work leaves the log: one consumer over all work topics, a tracker for each partition, lazy commits.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use imageflow_delivery::Delivery;
use imageflow_eventlog::{
    Assignment, Consumer, ConsumerConfig, ConsumerEvent, EventLog, LogError, Record, Rejoin, TopicPartition, Topics,
};
use imageflow_objects::ObjectStore;
use imageflow_process::overdue;
use imageflow_resources::{ResourceStore, Seen};
use imageflow_types::function::Ordering;
use imageflow_types::work::DeadLetter;
use imageflow_types::{FunctionName, StepRequest, topics};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backlog::Backlogs;
use crate::commits::Commits;
use crate::delay::{self, Delays};
use crate::letters;
use crate::stop::Stop;
use crate::tracker::Tracker;
use crate::turns::{Standing, Turns};
use crate::unread::Count;
use crate::work::{self, Context};

mod counts;
mod leaving;

/// Object metadata by which the platform marks what it wrote: the run.
pub const METADATA_RUN: &str = "imageflow-run";

/// Settings of a dispatcher.
#[derive(Debug, Clone)]
pub struct DispatcherConfig {
    /// Name in the consumer group, stable over a restart.
    pub member: String,
    /// Records of one partition that may be open at a time; at this many the partition is paused.
    pub window: usize,
    /// Records that may be open in all partitions together: with many functions at work each has its share of them. An open record
    /// takes some 5 KB.
    pub most_open: usize,
    /// How far reading may be ahead of the commit, which waits for the slowest step: what is done beyond it is read again after a
    /// restart (not done again), stays in the log, and is in the lag that others see. It takes no memory, and little less would
    /// have one slow step stop the others of its partition.
    pub most_ahead: usize,
    /// Longest time that something done stays uncommitted.
    pub commit_every: Duration,
    /// How long what is with a pod may take to finish when its partition goes to another dispatcher, or at the end. A partition is
    /// to be given back within the session timeout, of which brokers take no less than 6 s.
    pub drain: Duration,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            member: "dispatcher-0".to_owned(),
            window: 340,
            most_open: 2_048,
            most_ahead: 100_000,
            commit_every: Duration::from_millis(200),
            drain: Duration::from_secs(5),
        }
    }
}

/// What a dispatcher is made of.
pub struct Dispatcher {
    /// Settings.
    pub config: DispatcherConfig,
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The object store.
    pub objects: Arc<dyn ObjectStore>,
    /// The resources.
    pub resources: Arc<ResourceStore>,
    /// The way to pods.
    pub delivery: Arc<Delivery>,
    /// Where backlogs are kept for others to read.
    pub backlogs: Arc<Backlogs>,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
}

/// Why a dispatcher ended.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// The log failed in a way that does not pass.
    #[error("the dispatcher cannot go on: {0}")]
    Log(#[from] LogError),
}

/// How often it is counted what is not read, and looked whether a partition has ended behind its last record.
const REFRESH: Duration = Duration::from_millis(500);
/// How often another partition is let in where one has brought nothing.
const TURN: Duration = Duration::from_millis(100);
/// Before it joins anew; twice as long each time, while it does not last.
const REJOIN_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

struct Partition {
    tracker: Tracker,
    function: FunctionName,
    stop: Stop,
    /// Steps that have a task. Not all that are open do: some wait behind others of their key, and some could not be reported.
    running: usize,
    paused: bool,
    /// What the log held behind its position, when that was counted since it is paused.
    unread: Option<u64>,
    /// Ordered delivery: keys with work, and what waits behind them.
    keys: HashSet<bytes::Bytes>,
    behind: VecDeque<(Record, StepRequest)>,
}

struct Finished {
    at: TopicPartition,
    offset: i64,
    /// The key that it took, by which others may wait behind it.
    key: Option<bytes::Bytes>,
    function: FunctionName,
    step: Option<StepId>,
    done: bool,
}

/// What is to be done with a record.
enum Job {
    Do(StepRequest),
    /// The same, with the key of its record, which it took.
    DoInOrder(StepRequest, bytes::Bytes),
    /// It is no step.
    Keep(Box<DeadLetter>),
}

/// What the backlog needs to forget a step.
struct StepId {
    requested_ms: i64,
    next: Vec<FunctionName>,
}

struct Intake {
    context: Arc<Context>,
    config: DispatcherConfig,
    partitions: HashMap<TopicPartition, Partition>,
    turns: Turns,
    count: Count,
    /// Functions of which it was said that the log holds more.
    told: HashSet<FunctionName>,
    commits: Commits,
    tasks: JoinSet<Finished>,
    dirty: bool,
}

impl Dispatcher {
    /// Works until `stop`. What is done by then is committed; what is not is left for the next one.
    ///
    /// # Errors
    /// [`DispatcherError`] when the log fails for good.
    pub async fn run(self, stop: CancellationToken) -> Result<(), DispatcherError> {
        let context = Context {
            log: self.log,
            objects: self.objects,
            resources: self.resources,
            delivery: self.delivery,
            backlogs: self.backlogs,
            clock: self.clock,
            waits: Arc::default(),
        };
        let context = Arc::new(context);
        tokio::select! {
            ended = Self::sessions(&context, &self.config, &stop) => ended,
            never = context.waits.tell() => match never {},
        }
    }

    /// Session after session, until `stop`.
    async fn sessions(
        context: &Arc<Context>,
        config: &DispatcherConfig,
        stop: &CancellationToken,
    ) -> Result<(), DispatcherError> {
        let mut rejoin = Rejoin::default();
        let mut pause = REJOIN_PAUSE;
        loop {
            let begun = Instant::now();
            match Self::session(context, config, stop).await {
                Err(DispatcherError::Log(error)) if rejoin.may(&error, Instant::now().into_std()) => {
                    tracing::warn!(%error, "the dispatcher was displaced in its group; it joins anew");
                }
                // An outage passes, however long it takes.
                Err(DispatcherError::Log(error)) if error.is_retryable() => {
                    tracing::warn!(%error, "the dispatcher cannot go on yet; it joins anew");
                }
                result => return result,
            }
            if begun.elapsed() > LONGEST_PAUSE {
                pause = REJOIN_PAUSE;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// As a member of its groups, until `stop` or until it is no member any more.
    async fn session(
        context: &Arc<Context>,
        config: &DispatcherConfig,
        stop: &CancellationToken,
    ) -> Result<(), DispatcherError> {
        let own = [delay::topic()];
        tokio::select! {
            ensured = context.log.ensure_topics_of_any_count(&own) => ensured?,
            // Without brokers it takes half a minute.
            () = stop.cancelled() => return Ok(()),
        }
        let topics = Topics::Pattern(topics::WORK_PREFIX.to_owned());
        let group = ConsumerConfig::new(topics::GROUP_DISPATCHER, config.member.clone(), topics);
        let mut consumer = context.log.consumer(group).await?;
        let reading = context.backlogs.reading();
        let mut intake = Intake {
            context: context.clone(),
            config: config.clone(),
            partitions: HashMap::new(),
            turns: Turns::new(config.window, config.most_open),
            count: Count::new(context.log.clone()),
            told: HashSet::new(),
            commits: Commits::default(),
            tasks: JoinSet::new(),
            dirty: false,
        };
        // If one of them cannot go on, the other must not go on alone.
        let stop = stop.child_token();
        let _both = stop.clone().drop_guard();
        let delays = async {
            let result = Delays::new(context, config.drain).run(&config.member, &stop).await;
            stop.cancel();
            result
        };
        let takes = async {
            let result = intake.run(consumer.as_mut(), &stop).await;
            // Before what was read is forgotten.
            drop(reading);
            stop.cancel();
            // Who is no member any more has nothing to finish: others do the same steps by now.
            let lost = result.is_err();
            intake
                .partitions
                .values_mut()
                .for_each(|partition| partition.paused = false);
            intake.forget_unread();
            let all: Vec<TopicPartition> = intake.partitions.keys().cloned().collect();
            intake.drain(&all, std::future::ready(lost)).await;
            let committed = tokio::select! {
                committed = intake.commit(consumer.as_mut()) => committed,
                () = overdue(&stop) => Ok(()),
            };
            let closed = consumer.close().await;
            result.and(committed)?;
            Ok(closed?)
        };
        let (result, delayed) = tokio::join!(takes, delays);
        result.and(delayed)
    }
}

impl Intake {
    async fn run(&mut self, consumer: &mut dyn Consumer, stop: &CancellationToken) -> Result<(), DispatcherError> {
        let mut commit_at: Option<Instant> = None;
        let [mut refresh, mut turn] = [REFRESH, TURN].map(|period| {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks
        });
        loop {
            let due = commit_at.unwrap_or_else(Instant::now);
            let most = self.turns.at_once();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(finished) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.settle(finished);
                    // Steps end in bursts: what else has ended needs no round of its own.
                    while let Some(finished) = self.tasks.try_join_next() {
                        self.settle(finished);
                    }
                    self.resume(consumer);
                }
                () = tokio::time::sleep_until(due), if commit_at.is_some() => {
                    self.commit(consumer).await?;
                    commit_at = None;
                }
                _ = refresh.tick() => {
                    // Not as soon as the last partition is read again: under load it is full a moment later.
                    self.forget_unread();
                    self.begin_count();
                    // A marker behind the last record may become known after all of them were committed.
                    self.dirty = true;
                }
                counted = self.count.next(), if self.count.is_under_way() => self.counted(consumer, counted)?,
                _ = turn.tick(), if self.turns.is_anyone_waiting() => self.resume(consumer),
                events = consumer.poll(most) => {
                    for event in events? {
                        match event {
                            ConsumerEvent::Assigned(assigned) => self.assign(assigned),
                            ConsumerEvent::Revoked(revoked) => self.revoke(consumer, &revoked).await?,
                            ConsumerEvent::Records(records) => self.take(consumer, records),
                        }
                    }
                }
            }
            if self.dirty && commit_at.is_none() {
                commit_at = Some(Instant::now() + self.config.commit_every);
            }
        }
    }

    fn assign(&mut self, assigned: Vec<Assignment>) {
        for assignment in assigned {
            let Some(function) = topics::function_of_work(&assignment.topic) else {
                continue;
            };
            let (start, metadata) = assignment
                .committed
                .map_or((0, String::new()), |c| (c.offset, c.metadata));
            let at = TopicPartition::new(assignment.topic, assignment.partition);
            self.turns.add(&function, at.clone());
            let partition = Partition {
                tracker: Tracker::new(start, &metadata),
                function,
                stop: Stop::default(),
                running: 0,
                paused: false,
                unread: None,
                keys: HashSet::new(),
                behind: VecDeque::new(),
            };
            self.partitions.insert(at, partition);
        }
    }

    fn take(&mut self, consumer: &mut dyn Consumer, records: Vec<Record>) {
        for record in records {
            let at = TopicPartition::new(record.topic.clone(), record.partition);
            let Some(partition) = self.partitions.get_mut(&at) else {
                continue;
            };
            self.dirty = true;
            if !partition.tracker.take(record.offset) {
                continue;
            }
            self.begin(&at, record);
            let Some(partition) = self.partitions.get(&at) else {
                continue;
            };
            let open = partition.load(&self.config);
            let function = partition.function.clone();
            for at in self.turns.took(&function, &at, open) {
                consumer.pause(&at.topic, at.partition);
                if let Some(partition) = self.partitions.get_mut(&at) {
                    (partition.paused, partition.unread) = (true, None);
                }
            }
        }
    }

    /// Begins the work on a record, or has it wait behind others of its key.
    fn begin(&mut self, at: &TopicPartition, record: Record) {
        let Some(partition) = self.partitions.get_mut(at) else {
            return;
        };
        // Only the router writes here. What it cannot have written is kept for people and passed by.
        let read = match &record.value {
            None => Err("it has no value".to_owned()),
            Some(value) => serde_json::from_slice::<StepRequest>(value).map_err(|e| e.to_string()),
        };
        let step = match read {
            Ok(step) => step,
            Err(why) => {
                let now_ms = (self.context.clock)();
                let letter = letters::unreadable(&record, partition.function.as_str(), "step", why, now_ms);
                let job = Job::Keep(Box::new(letter));
                return start(&mut self.tasks, &self.context, partition, at.clone(), record, job);
            }
        };
        self.context.backlogs.taken(&partition.function, step.requested_ms);
        for function in self.context.backlogs.announce(&step.next) {
            self.context.delivery.announce(function);
        }
        let job = match &record.key {
            Some(key) if is_ordered(&self.context, &partition.function) => {
                if !partition.keys.insert(key.clone()) {
                    return partition.behind.push_back((record, step));
                }
                Job::DoInOrder(step, key.clone())
            }
            _ => Job::Do(step),
        };
        start(&mut self.tasks, &self.context, partition, at.clone(), record, job);
    }

    fn settle(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => {
                tracing::error!(%error, "a task ended unexpectedly");
                return;
            }
        };
        if let Some(step) = &finished.step {
            self.context.backlogs.finished(&finished.function, step.requested_ms);
            self.context.backlogs.announced(&step.next);
        }
        self.turns.ended(&finished.function);
        let Some(partition) = self.partitions.get_mut(&finished.at) else {
            return;
        };
        partition.running -= 1;
        if !finished.done {
            // Its key stays taken: nothing goes before those that wait behind it.
            return;
        }
        partition.tracker.done(finished.offset);
        self.dirty = true;
        let Some(key) = finished.key else { return };
        let next = partition
            .behind
            .iter()
            .position(|(record, _)| record.key.as_ref() == Some(&key));
        match next.and_then(|i| partition.behind.remove(i)) {
            Some((record, step)) => {
                let job = Job::DoInOrder(step, key);
                start(&mut self.tasks, &self.context, partition, finished.at, record, job);
            }
            None => {
                partition.keys.remove(&key);
            }
        }
    }

    fn resume(&mut self, consumer: &mut dyn Consumer) {
        if !self.turns.is_anyone_waiting() {
            return;
        }
        let partitions = &self.partitions;
        let standing = |at: &TopicPartition| {
            let known = partitions.get(at).map(|partition| Standing {
                open: partition.load(&self.config),
                unread: partition.unread,
            });
            known.unwrap_or_default()
        };
        for at in self.turns.let_in(Instant::now(), standing) {
            consumer.resume(&at.topic, at.partition);
            if let Some(partition) = self.partitions.get_mut(&at) {
                partition.paused = false;
            }
        }
    }

    async fn commit(&mut self, consumer: &mut dyn Consumer) -> Result<(), DispatcherError> {
        let trackers = self.partitions.iter_mut().map(|(at, p)| (at, &mut p.tracker));
        self.dirty = !self.commits.store(consumer, trackers.collect()).await?;
        Ok(())
    }
}

impl Partition {
    /// Records that are open, as the turns count them: reading that is too far ahead of the commit is as good as a full window.
    fn load(&self, config: &DispatcherConfig) -> usize {
        match self.tracker.ahead() < config.most_ahead {
            true => self.tracker.open(),
            false => usize::MAX,
        }
    }
}

/// Whether steps of one key go one after another. A function that is not seen yet may want that, and its steps are begun before
/// it is.
fn is_ordered(context: &Context, function: &FunctionName) -> bool {
    let catalog = context.resources.snapshot();
    catalog
        .functions
        .get(function)
        .is_none_or(|f| f.spec().delivery.ordering == Ordering::Key)
}

fn start(
    tasks: &mut JoinSet<Finished>,
    context: &Arc<Context>,
    partition: &mut Partition,
    at: TopicPartition,
    record: Record,
    job: Job,
) {
    let (context, stop) = (context.clone(), partition.stop.clone());
    let function = partition.function.clone();
    let (step, key) = match job {
        Job::Do(step) => (Ok(step), None),
        Job::DoInOrder(step, key) => (Ok(step), Some(key)),
        Job::Keep(letter) => (Err(letter), None),
    };
    // Who made the work had seen the function, this view has not: it is behind.
    let unseen = match &step {
        Ok(step) if !work::is_known(&context, step) => Seen::by_writer(&record.headers),
        _ => None,
    };
    let said = delay::seen_by_writer(&record);
    // What the step was read from is not kept beside it.
    let offset = record.offset;
    drop(record);
    partition.running += 1;
    // A task's own memory is aligned to cache lines, which is dear to allocate for something as large as this.
    tasks.spawn(Box::pin(async move {
        let (step, ended) = match step {
            Ok(step) => {
                let id = StepId {
                    requested_ms: step.requested_ms,
                    next: step.next.clone(),
                };
                let seen = match unseen {
                    Some(seen) => stop.before(context.resources.catch_up(&seen)).await,
                    None => Ok(()),
                };
                let ended = match seen {
                    Ok(()) => work::perform(&context, step, said, &stop).await,
                    Err(given_up) => Err(given_up),
                };
                (Some(id), ended)
            }
            Err(letter) => (None, work::keep(&context, *letter, &stop).await),
        };
        Finished {
            at,
            offset,
            key,
            function,
            step,
            done: ended.is_ok(),
        }
    }));
}
