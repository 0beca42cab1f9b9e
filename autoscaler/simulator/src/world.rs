//! The world: requests come, pods start, work and end on nodes with limited room, and a policy is asked once a second, and at once
//! when work meets zero pods. One run is a pure function of workload, policy and seed.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use imageflow_decider::Observation;
use imageflow_decider::policy::lag::Partition;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

use crate::metrics::{Counted, Figures, REVERSAL_MS};
use crate::policy::{Look, Policy};
use crate::workload::{Kind, Ms, Workload};

/// Between two looks.
const TICK: Ms = 1_000;
/// From work that meets zero pods to the decision.
const WAKE: Ms = 5;
/// Attempts of a request that fails, and the first pause between them, which doubles.
const ATTEMPTS: u32 = 5;
const BACK_OFF: Ms = 1_000;
/// The world's begin, ms since 1970.
const BEGIN_MS: i64 = 1_700_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A cold start is over.
    Ready(usize),
    /// A pod has done with a request: pod, request.
    Done(usize, usize),
    /// A request is tried again.
    Again(usize),
    /// Work met zero pods.
    Wake(u32),
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No node has room.
    Pending,
    Starting,
    Ready,
    /// Ends with its last request.
    Draining,
    Gone,
}

#[derive(Debug)]
struct Pod {
    function: u32,
    state: State,
    in_flight: u32,
    on_node: Ms,
}

#[derive(Debug, Default)]
struct Running {
    waiting: VecDeque<usize>,
    stuck: VecDeque<usize>,
    pods: Vec<usize>,
    in_flight: u32,
    /// Steps under way whose results it will work on.
    expected: u32,
    /// Records by partition: come, done.
    partitions: Vec<(i64, i64)>,
    // Since the last look:
    completed: u64,
    service_sum: u64,
    started: u64,
    start_sum: u64,
    desired: u32,
    /// When the number last changed, and whether up.
    changed: Option<(Ms, bool)>,
    woken: bool,
}

/// A world and its state.
pub struct World<'a> {
    load: &'a Workload,
    now: Ms,
    events: BinaryHeap<Reverse<(Ms, u64, Event)>>,
    sequence: u64,
    functions: Vec<Running>,
    pods: Vec<Pod>,
    attempts: Vec<u32>,
    cold: Vec<Ms>,
    pending: VecDeque<usize>,
    room: u32,
    cards: u32,
    /// Functions that must be looked at each second.
    active: BTreeSet<u32>,
    /// Those that a policy wants to look at later.
    later: BTreeMap<Ms, BTreeSet<u32>>,
    chance: ChaCha8Rng,
    counted: Counted,
}

/// Lets a policy have a load. The seed is that of cold starts.
pub fn run(load: &Workload, policy: &mut dyn Policy, seed: u64) -> Figures {
    let mut world = World::new(load, seed);
    world.go(policy);
    Figures::of(load, &world.counted)
}

impl<'a> World<'a> {
    fn new(load: &'a Workload, seed: u64) -> Self {
        let running = || Running {
            partitions: vec![(0, 0); usize::from(load.partitions.max(1))],
            ..Running::default()
        };
        let always = load.functions.iter().zip(0..).filter(|(f, _)| f.bounds.0 > 0);
        Self {
            load,
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            functions: load.functions.iter().map(|_| running()).collect(),
            pods: Vec::new(),
            attempts: vec![0; load.requests.len()],
            cold: Vec::new(),
            pending: VecDeque::new(),
            room: load.room,
            cards: load.gpus,
            active: always.map(|(_, i)| i).collect(),
            later: BTreeMap::new(),
            chance: ChaCha8Rng::seed_from_u64(seed),
            counted: Counted::new(load),
        }
    }

    fn at(&mut self, time: Ms, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn go(&mut self, policy: &mut dyn Policy) {
        self.at(0, Event::Tick);
        let mut next = 0;
        loop {
            let arrival = self.load.requests.get(next).map(|r| r.at);
            let event = self.events.peek().map(|Reverse((time, ..))| *time);
            match (arrival, event) {
                (Some(at), due) if due.is_none_or(|due| at <= due) && at < self.load.duration => {
                    self.now = at;
                    self.arrive(next, policy);
                    next += 1;
                }
                (_, Some(at)) if at < self.load.duration => {
                    self.now = at;
                    if let Some(Reverse((_, _, event))) = self.events.pop() {
                        self.happen(event, policy);
                    }
                }
                _ => break,
            }
        }
        self.now = self.load.duration;
        for pod in 0..self.pods.len() {
            self.leave(pod);
        }
    }

    fn happen(&mut self, event: Event, policy: &mut dyn Policy) {
        match event {
            Event::Ready(pod) => {
                if self.pods[pod].state == State::Starting {
                    self.pods[pod].state = State::Ready;
                    let cold = self.cold[pod];
                    let function = &mut self.functions[self.pods[pod].function as usize];
                    (function.started, function.start_sum) = (function.started + 1, function.start_sum + cold);
                    self.dispatch(self.pods[pod].function);
                }
            }
            Event::Done(pod, request) => self.done(pod, request, policy),
            Event::Again(request) => self.queue(request, policy),
            Event::Wake(function) => {
                self.functions[function as usize].woken = false;
                self.ask(&[function], policy);
            }
            Event::Tick => {
                self.unstick();
                let due: Vec<Ms> = self.later.range(..=self.now).map(|(at, _)| *at).collect();
                for at in due {
                    self.active.extend(self.later.remove(&at).into_iter().flatten());
                }
                let functions: Vec<u32> = self.active.iter().copied().collect();
                self.ask(&functions, policy);
                self.at(self.now + TICK, Event::Tick);
            }
        }
    }

    fn arrive(&mut self, request: usize, policy: &mut dyn Policy) {
        let one = self.load.requests[request];
        self.functions[one.function as usize].partitions[usize::from(one.partition)].0 += 1;
        self.counted.came[request] = Some(self.now);
        self.queue(request, policy);
        if let Some(next) = one.next {
            let function = self.load.requests[next as usize].function;
            self.functions[function as usize].expected += 1;
            self.active.insert(function);
            self.wake(function, policy);
        }
    }

    fn queue(&mut self, request: usize, policy: &mut dyn Policy) {
        let one = self.load.requests[request];
        let is_stuck = self.is_stuck() && one.partition == 0;
        let function = &mut self.functions[one.function as usize];
        if is_stuck {
            function.stuck.push_back(request);
        } else {
            function.waiting.push_back(request);
        }
        self.active.insert(one.function);
        self.dispatch(one.function);
        self.wake(one.function, policy);
    }

    /// Who listens is told of work that meets zero pods.
    fn wake(&mut self, index: u32, policy: &dyn Policy) {
        let function = &mut self.functions[index as usize];
        if function.pods.is_empty() && !function.woken && policy.wakes() {
            function.woken = true;
            self.at(self.now + WAKE, Event::Wake(index));
        }
    }

    fn is_stuck(&self) -> bool {
        self.load.stuck.is_some_and(|(from, to)| (from..to).contains(&self.now))
    }

    fn unstick(&mut self) {
        if self.is_stuck() {
            return;
        }
        for index in 0..self.functions.len() {
            let function = &mut self.functions[index];
            if !function.stuck.is_empty() {
                let mut stuck = std::mem::take(&mut function.stuck);
                function.waiting.append(&mut stuck);
                self.dispatch(index as u32);
            }
        }
    }

    /// Gives waiting requests to the ready pods with the least work.
    fn dispatch(&mut self, function: u32) {
        let limit = self.load.functions[function as usize].concurrency;
        while !self.functions[function as usize].waiting.is_empty() {
            let ready = self.functions[function as usize].pods.iter().copied();
            let free = ready
                .filter(|pod| self.pods[*pod].state == State::Ready && self.pods[*pod].in_flight < limit)
                .min_by_key(|pod| (self.pods[*pod].in_flight, *pod));
            let Some(pod) = free else { return };
            let running = &mut self.functions[function as usize];
            let Some(request) = running.waiting.pop_front() else {
                return;
            };
            running.in_flight += 1;
            self.pods[pod].in_flight += 1;
            let service = self.load.requests[request].service;
            self.at(self.now + service, Event::Done(pod, request));
        }
    }

    fn done(&mut self, pod: usize, request: usize, policy: &mut dyn Policy) {
        let one = self.load.requests[request];
        self.pods[pod].in_flight -= 1;
        let function = &mut self.functions[one.function as usize];
        function.in_flight -= 1;
        function.completed += 1;
        function.service_sum += one.service;
        self.attempts[request] += 1;
        let attempts = self.attempts[request];
        if attempts <= one.fails && attempts < ATTEMPTS {
            let pause = BACK_OFF << (attempts - 1).min(10);
            self.at(self.now + pause, Event::Again(request));
        } else {
            function.partitions[usize::from(one.partition)].1 += 1;
            if attempts > one.fails {
                self.counted.ended[request] = Some(self.now);
            }
            if let Some(next) = one.next {
                let next = next as usize;
                self.functions[self.load.requests[next].function as usize].expected -= 1;
                if attempts > one.fails {
                    self.arrive(next, policy);
                }
            }
        }
        if self.pods[pod].state == State::Draining && self.pods[pod].in_flight == 0 {
            self.leave(pod);
        }
        self.dispatch(one.function);
    }

    fn observe(&mut self, index: u32) -> Observation {
        let blind = (self.load.blind.iter()).any(|(from, to)| (*from..*to).contains(&self.now));
        let kind = self.load.functions[index as usize].kind;
        let count = |state: State| {
            let pods = self.functions[index as usize].pods.iter();
            u32::try_from(pods.filter(|pod| self.pods[**pod].state == state).count()).unwrap_or(u32::MAX)
        };
        let (ready, starting) = (count(State::Ready), count(State::Starting) + count(State::Pending));
        let function = &mut self.functions[index as usize];
        let waiting = function.waiting.len() + function.stuck.len();
        let oldest = function.waiting.iter().chain(&function.stuck).next();
        let oldest_ms = oldest.and_then(|request| Some(self.now - self.counted.came[*request]?));
        let (held, backlog) = match kind {
            Kind::Interactive => (u32::try_from(waiting).unwrap_or(u32::MAX), 0),
            Kind::Batch => (0, waiting as u64),
        };
        let calls = if kind == Kind::Interactive {
            function.completed
        } else {
            0
        };
        let partitions = function.partitions.iter().map(|(end, done)| Partition {
            committed: Some(*done),
            end: *end,
        });
        Observation {
            now_ms: BEGIN_MS + i64::try_from(self.now).unwrap_or(i64::MAX),
            ready,
            starting,
            held,
            held_batch: match kind {
                Kind::Interactive => 0,
                Kind::Batch => u32::try_from(function.waiting.len()).unwrap_or(u32::MAX),
            },
            in_flight: function.in_flight,
            backlog: (!blind).then_some(backlog),
            partial: false,
            oldest_ms: oldest_ms.filter(|_| kind == Kind::Batch),
            completed: std::mem::take(&mut function.completed),
            service_ms_sum: std::mem::take(&mut function.service_sum),
            calls,
            started: std::mem::take(&mut function.started),
            start_ms_sum: std::mem::take(&mut function.start_sum),
            // What waits for a card has not begun to start.
            scheduling_ms_sum: 0,
            expected: function.expected,
            partitions: partitions.collect(),
        }
    }

    fn ask(&mut self, functions: &[u32], policy: &mut dyn Policy) {
        let mut functions = functions.to_vec();
        let with_cards = |index: &u32| self.load.functions[*index as usize].cards > 0;
        if functions.iter().any(with_cards) {
            // What one gets of the cards is what others give up.
            let others: Vec<u32> = self.active.iter().copied().filter(with_cards).collect();
            functions.extend(others);
            functions.sort_unstable();
            functions.dedup();
        }
        let looks: Vec<Look> = functions
            .into_iter()
            .map(|function| Look {
                function,
                seen: self.observe(function),
            })
            .collect();
        let answers = policy.decide(&looks);
        // First those that give up room, then those that take it.
        let mut order: Vec<usize> = (0..looks.len()).collect();
        order.sort_by_key(|i| answers[*i].0 > self.live(looks[*i].function));
        for i in order {
            let (function, (desired, again_ms)) = (looks[i].function, answers[i]);
            self.note(function, desired);
            self.scale(function, desired);
            let running = &self.functions[function as usize];
            let busy =
                !running.waiting.is_empty() || !running.stuck.is_empty() || running.in_flight + running.expected > 0;
            if desired == 0 && !busy && running.pods.is_empty() {
                self.active.remove(&function);
                if let Some(at) = again_ms.and_then(|at| Ms::try_from(at - BEGIN_MS).ok()) {
                    self.later.entry(at.max(self.now + 1)).or_default().insert(function);
                }
            }
        }
    }

    fn live(&self, function: u32) -> u32 {
        let pods = self.functions[function as usize].pods.iter();
        let live = pods.filter(|pod| !matches!(self.pods[**pod].state, State::Draining | State::Gone));
        u32::try_from(live.count()).unwrap_or(u32::MAX)
    }

    fn note(&mut self, function: u32, desired: u32) {
        let running = &mut self.functions[function as usize];
        if running.desired == desired {
            return;
        }
        let up = desired > running.desired;
        running.desired = desired;
        self.counted.changes += 1;
        if running
            .changed
            .is_some_and(|(at, was_up)| was_up != up && self.now - at < REVERSAL_MS)
        {
            self.counted.reversals += 1;
        }
        running.changed = Some((self.now, up));
    }

    fn scale(&mut self, function: u32, desired: u32) {
        let live = self.live(function);
        for _ in live..desired {
            self.create(function);
        }
        for _ in desired..live {
            let pods = self.functions[function as usize].pods.iter().copied();
            let goes = pods
                .filter(|pod| !matches!(self.pods[*pod].state, State::Draining | State::Gone))
                .min_by_key(|pod| {
                    let order = match self.pods[*pod].state {
                        State::Pending => 0,
                        State::Starting => 1,
                        _ => 2,
                    };
                    (order, self.pods[*pod].in_flight, Reverse(*pod))
                });
            let Some(pod) = goes else { return };
            if self.pods[pod].in_flight == 0 {
                self.leave(pod);
            } else {
                self.pods[pod].state = State::Draining;
            }
        }
    }

    fn create(&mut self, function: u32) {
        let (median, sigma) = self.load.functions[function as usize].cold;
        let cold = LogNormal::new(median.max(1.0).ln(), sigma).map_or(1.0, |law| law.sample(&mut self.chance));
        self.cold.push(cold.max(1.0) as Ms);
        self.pods.push(Pod {
            function,
            state: State::Pending,
            in_flight: 0,
            on_node: 0,
        });
        let pod = self.pods.len() - 1;
        self.functions[function as usize].pods.push(pod);
        self.pending.push_back(pod);
        self.counted.starts += 1;
        self.place();
    }

    /// Gives pending pods the room that is free, as a scheduler does: in order, but one that does not fit blocks no other.
    fn place(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for pod in pending {
            let cards = self.load.functions[self.pods[pod].function as usize].cards;
            if self.pods[pod].state != State::Pending {
                continue;
            }
            if self.room == 0 || cards > self.cards {
                self.pending.push_back(pod);
                continue;
            }
            (self.room, self.cards) = (self.room - 1, self.cards - cards);
            (self.pods[pod].state, self.pods[pod].on_node) = (State::Starting, self.now);
            self.at(self.now + self.cold[pod], Event::Ready(pod));
        }
    }

    fn leave(&mut self, pod: usize) {
        let Pod {
            function,
            state,
            on_node,
            ..
        } = self.pods[pod];
        if state == State::Gone {
            return;
        }
        self.pods[pod].state = State::Gone;
        self.functions[function as usize].pods.retain(|p| *p != pod);
        if state != State::Pending {
            let cards = self.load.functions[function as usize].cards;
            let time = self.now - on_node;
            self.counted.pod_ms += time;
            self.counted.gpu_ms += time * u64::from(cards);
            (self.room, self.cards) = (self.room + 1, self.cards + cards);
            if self.now < self.load.duration {
                self.place();
            }
        }
    }
}
