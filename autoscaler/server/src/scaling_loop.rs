//! One task that owns all of the autoscaler's state.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::future::join_all;
use imageflow_decider::slots::{Claim, Turn, share, wanted};
use imageflow_decider::{Decision, Memory, Observation, PolicyConfig, Reason, decide};
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::{broadcast, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::autoscaler::{Parts, Settings, Shared};
use crate::inputs::{FunctionLoad, FunctionScaling, Functions, Replicas, RevisionPods, StatsSource, StoredDecision};
use crate::split::split;
use crate::store::Store;

mod told;

use told::{publish, publish_gone, publish_start, record, with_causes};

/// The work of one function, all its revisions together.
#[derive(Debug, Clone, Default)]
struct Load {
    held: u32,
    held_batch: u32,
    lent: u32,
    in_flight: u32,
    completed: u64,
    calls: u64,
    service_ms_sum: u64,
    backlog: Option<u64>,
    partial: bool,
    oldest_ms: Option<u64>,
    expected: u32,
    by_revision: BTreeMap<RevisionName, u64>,
}

/// What is kept of one function from look to look.
#[derive(Debug, Default)]
struct Known {
    memory: Memory,
    /// Completions that were collected while another function was decided on.
    completed: u64,
    calls: u64,
    service_ms_sum: u64,
    /// Why nothing changed, the last time it was noted.
    staying: Option<std::mem::Discriminant<Reason>>,
    scale_failed: bool,
    /// The number that was told last, after cards were shared.
    desired: Option<u32>,
    turn: Turn,
    /// Until when starts of pods were learned from, ms since 1970.
    started_ms: Option<i64>,
}

/// A function without any work.
static IDLE: Load = Load {
    held: 0,
    held_batch: 0,
    lent: 0,
    in_flight: 0,
    completed: 0,
    calls: 0,
    service_ms_sum: 0,
    backlog: Some(0),
    partial: false,
    oldest_ms: None,
    expected: 0,
    by_revision: BTreeMap::new(),
};

/// What was decided on one function.
struct Decided {
    name: FunctionName,
    function: Arc<FunctionScaling>,
    config: PolicyConfig,
    seen: Observation,
    decision: Decision,
}

impl Known {
    /// Pods that became ready since the last look, how long they took together, ms, and how much of that until they had nodes.
    /// What was there at the first look may have been started by somebody else.
    fn starts(&mut self, pods: &[RevisionPods]) -> (u64, u64, u64) {
        let all = || pods.iter().flat_map(|p| &p.starts);
        let newest = all().map(|s| s.ready_ms).max().unwrap_or(0);
        let until = *self.started_ms.get_or_insert(newest);
        self.started_ms = Some(until.max(newest));
        let new = all().filter(|s| s.ready_ms > until);
        new.fold((0, 0, 0), |(pods, sum, scheduling), start| {
            publish_start(start);
            let until_node = start.scheduling_ms.unwrap_or(0);
            (pods + 1, sum + start.took_ms, scheduling + until_node)
        })
    }
}

impl Decided {
    /// What it asks for of the GPU cards.
    fn claim(&self, turn: Turn) -> Claim {
        let scale = &self.function.scale;
        Claim {
            wanted: wanted(&self.seen, &self.decision, scale.replicas.unwrap_or(scale.min)),
            cards: self.function.resources.gpu,
            weight: scale.weight,
            priority: scale.priority,
            working: self.seen.has_work(),
            ready: self.seen.ready > 0,
            start_ms: self.decision.figures.start_ms as u64,
            turn,
            fallback: scale.fallback.is_some(),
        }
    }
}

/// One call to the pod host.
struct Act {
    function: FunctionName,
    revision: RevisionName,
    replicas: u32,
}

/// Work of a function that has no card.
struct Lent {
    /// Who does it.
    to: FunctionName,
    held: u32,
    backlog: u64,
    oldest_ms: Option<u64>,
}

/// What there is at one moment.
struct Look {
    loads: HashMap<FunctionName, Load>,
    pods: HashMap<FunctionName, Vec<RevisionPods>>,
}

pub struct ScalingLoop<C> {
    functions: watch::Receiver<Arc<Functions>>,
    stats: Arc<dyn StatsSource>,
    replicas: Arc<dyn Replicas>,
    pokes: broadcast::Receiver<FunctionName>,
    settings: Settings,
    shared: Arc<Mutex<Shared>>,
    store: Store,
    clock: C,
    known: HashMap<FunctionName, Known>,
    /// Functions with work or pods; no other is looked at.
    active: HashSet<FunctionName>,
    /// Work of functions that have no card, with who does it meanwhile.
    lent: BTreeMap<FunctionName, Lent>,
    /// Those that are to be looked at later although they have neither, by when, ms since 1970: work is expected then.
    later: BTreeMap<i64, HashSet<FunctionName>>,
}

impl<C: Fn() -> i64 + Send> ScalingLoop<C> {
    pub fn new(parts: Parts, settings: Settings, shared: Arc<Mutex<Shared>>, store: Store, clock: C) -> Self {
        let Parts {
            functions,
            stats,
            replicas,
            learned,
            pokes,
            ..
        } = parts;
        let known = learned
            .into_iter()
            .map(|(function, memory)| {
                (
                    function,
                    Known {
                        memory: memory.learned(),
                        ..Known::default()
                    },
                )
            })
            .collect();
        Self {
            functions,
            stats,
            replicas,
            pokes,
            settings,
            shared,
            store,
            clock,
            known,
            active: HashSet::new(),
            lent: BTreeMap::new(),
            later: BTreeMap::new(),
        }
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let replicas = Arc::clone(&self.replicas);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = replicas.seen() => {}
        }
        let mut tick = tokio::time::interval(self.settings.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut poked, mut sources) = (true, true);
        self.functions_changed();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                poke = self.pokes.recv(), if poked => match poke {
                    Ok(function) => self.on_poke(function).await,
                    // Some pokes are lost: look at everything.
                    Err(broadcast::error::RecvError::Lagged(_)) => self.on_tick().await,
                    Err(broadcast::error::RecvError::Closed) => poked = false,
                },
                changed = self.functions.changed(), if sources => match changed {
                    Ok(()) => {
                        self.functions_changed();
                        self.on_tick().await;
                    }
                    Err(_) => sources = false,
                },
                _ = tick.tick() => self.on_tick().await,
            }
        }
    }

    /// Functions that have pods without any work must be looked at; of all others nothing is kept up.
    fn functions_changed(&mut self) {
        let functions = Arc::clone(&self.functions.borrow_and_update());
        self.active.extend(
            functions
                .iter()
                .filter(|(_, f)| f.always_on())
                .map(|(name, _)| name.clone()),
        );
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        self.lent.retain(|name, lent| {
            let function = functions.get(name).filter(|f| f.resources.gpu > 0);
            function.is_some_and(|f| f.scale.fallback.as_ref() == Some(&lent.to))
        });
        self.known.retain(|name, _| {
            let there = functions.contains_key(name);
            if !there {
                shared.history.forget(name);
                shared.desired.remove(name);
                publish_gone(name);
                self.store.forget(name);
            }
            there
        });
    }

    async fn on_tick(&mut self) {
        let look = self.look();
        let told = look.loads.iter().filter(|(_, load)| load.is_news());
        self.active.extend(told.map(|(name, _)| name.clone()));
        self.active.extend(look.pods.keys().cloned());
        let still = self.later.split_off(&((self.clock)() + 1));
        self.active
            .extend(std::mem::replace(&mut self.later, still).into_values().flatten());
        let names = self.active.clone();
        self.decide_all(names, &HashSet::new(), &look).await;
    }

    async fn on_poke(&mut self, first: FunctionName) {
        let mut names = HashSet::from([first]);
        while let Ok(more) = self.pokes.try_recv() {
            names.insert(more);
        }
        let look = self.look();
        self.active.extend(names.iter().cloned());
        let poked = names.clone();
        if self.replicas.gpus().is_some() && names.iter().any(|name| self.cards_of(name) > 0) {
            // What one gets of the cards is what others give up.
            let others = self.active.iter().filter(|name| self.cards_of(name) > 0);
            names.extend(others.cloned().collect::<Vec<_>>());
        }
        self.decide_all(names, &poked, &look).await;
    }

    /// GPU cards of one pod of a function.
    fn cards_of(&self, name: &FunctionName) -> u32 {
        self.functions.borrow().get(name).map_or(0, |f| f.resources.gpu)
    }

    async fn decide_all(&mut self, names: HashSet<FunctionName>, poked: &HashSet<FunctionName>, look: &Look) {
        let begun = Instant::now();
        let mut acts = Vec::new();
        let mut decided = Vec::new();
        for name in names {
            match self.functions.borrow().get(&name).cloned() {
                Some(function) => decided.push((name, function)),
                None => {
                    self.active.remove(&name);
                    let pods = look.pods.get(&name).map(Vec::as_slice).unwrap_or_default();
                    acts.extend(pods.iter().map(|p| act(&name, &p.revision, 0)));
                }
            }
        }
        // The order decides between equals: it must not be that of a hash.
        decided.sort_by(|a, b| a.0.cmp(&b.0));
        let (with_cards, mut others): (Vec<_>, Vec<_>) = decided.into_iter().partition(|(_, f)| f.resources.gpu > 0);
        let decide = |this: &mut Self, all: Vec<(FunctionName, Arc<FunctionScaling>)>| -> Vec<Decided> {
            let each = all.into_iter().map(|(name, function)| {
                let poked = poked.contains(&name);
                this.decide_one(name, function, look, poked)
            });
            each.collect()
        };
        let mut decided = decide(self, with_cards);
        self.share_cards(&mut decided);
        // Who stands in has more to do by what was lent just now.
        for name in self.lend(&mut decided, look) {
            let function = self.functions.borrow().get(&name).cloned();
            if let Some(function) = function.filter(|_| !others.iter().any(|(other, _)| *other == name)) {
                others.push((name, function));
            }
        }
        decided.extend(decide(self, others));
        for one in &decided {
            acts.extend(self.settle(one, look));
        }
        let cause = if poked.is_empty() { "tick" } else { "poke" };
        metrics::histogram!("imageflow_scaling_decision_seconds", "cause" => cause)
            .record(begun.elapsed().as_secs_f64());
        self.act(acts).await;
    }

    fn look(&mut self) -> Look {
        let mut loads: HashMap<FunctionName, Load> = HashMap::new();
        for one in self.stats.collect() {
            let load = loads.entry(one.function.clone()).or_default();
            load.add(one);
        }
        let functions = self.functions.borrow().clone();
        // What is still under way of a function that was deleted is nothing to remember.
        for (function, load) in loads.iter().filter(|(function, _)| functions.contains_key(*function)) {
            // Kept for the next decision on it, which may not be now: a poke decides on one function only.
            let known = self.known.entry(function.clone()).or_default();
            known.completed = known.completed.saturating_add(load.completed);
            known.calls = known.calls.saturating_add(load.calls);
            known.service_ms_sum = known.service_ms_sum.saturating_add(load.service_ms_sum);
        }
        let mut pods: HashMap<FunctionName, Vec<RevisionPods>> = HashMap::new();
        for one in self.replicas.pods() {
            pods.entry(one.function.clone()).or_default().push(one);
        }
        Look { loads, pods }
    }

    fn decide_one(&mut self, name: FunctionName, function: Arc<FunctionScaling>, look: &Look, poked: bool) -> Decided {
        let pods = look.pods.get(&name).map(Vec::as_slice).unwrap_or_default();
        let load = look.loads.get(&name).unwrap_or(&IDLE);
        let known = self.known.entry(name.clone()).or_default();
        let (started, start_ms_sum, scheduling_ms_sum) = known.starts(pods);
        let mut seen = Observation {
            now_ms: (self.clock)(),
            ready: pods.iter().map(|p| p.ready).sum(),
            starting: pods.iter().map(|p| p.starting).sum(),
            held: load.held.saturating_add(load.lent),
            held_batch: load.held_batch,
            in_flight: load.in_flight,
            backlog: load.backlog,
            partial: load.partial,
            oldest_ms: load.oldest_ms,
            completed: std::mem::take(&mut known.completed),
            service_ms_sum: std::mem::take(&mut known.service_ms_sum),
            calls: std::mem::take(&mut known.calls),
            started,
            start_ms_sum,
            scheduling_ms_sum,
            expected: load.expected,
            partitions: Vec::new(),
        };
        let there = seen.ready.saturating_add(seen.starting);
        if poked && there == 0 && !seen.has_work() && seen.expected == 0 {
            // The poke says that somebody waits, and may be faster than the count of who waits.
            seen.held = 1;
        }
        let mut stands_in = Vec::new();
        for (of, lent) in self.lent.iter().filter(|(_, lent)| lent.to == name) {
            seen.held = seen.held.saturating_add(lent.held);
            seen.backlog = seen.backlog.map(|own| own.saturating_add(lent.backlog));
            seen.oldest_ms = seen.oldest_ms.max(lent.oldest_ms);
            let items = u64::from(lent.held).saturating_add(lent.backlog);
            if items > 0 {
                stands_in.push(Reason::StandsIn {
                    of: of.to_string(),
                    items,
                });
            }
        }
        let window_ms = u64::try_from(self.settings.window.as_millis()).unwrap_or(u64::MAX);
        let config = function.policy(window_ms);
        let (memory, mut decision) = decide(&config, &known.memory, &seen);
        decision.reasons.extend(stands_in);
        known.memory = memory;
        Decided {
            name,
            function,
            config,
            seen,
            decision,
        }
    }

    /// Gives each function that wants GPU cards its share of those there are.
    fn share_cards(&mut self, decided: &mut [Decided]) {
        let Some(cards) = self.replicas.gpus() else { return };
        let mut with_cards: Vec<&mut Decided> = decided.iter_mut().filter(|d| d.function.resources.gpu > 0).collect();
        let claims: Vec<Claim> = with_cards
            .iter()
            .map(|d| d.claim(self.known.get(&d.name).map(|k| k.turn).unwrap_or_default()))
            .collect();
        metrics::gauge!("imageflow_scaling_gpu_cards").set(f64::from(cards));
        let Some(now_ms) = with_cards.first().map(|d| d.seen.now_ms) else {
            return;
        };
        let granted = share(cards, &claims, now_ms);
        for ((one, claim), granted) in with_cards.iter_mut().zip(&claims).zip(granted) {
            if let Some(known) = self.known.get_mut(&one.name) {
                known.turn.note(granted, claim, now_ms);
            }
            one.decision.grant(granted, claim.wanted, cards);
        }
    }

    /// Has the work of those that got no card done by who stands in for them. Returns who has more or less to do than before.
    fn lend(&mut self, decided: &mut [Decided], look: &Look) -> Vec<FunctionName> {
        let mut changed = Vec::new();
        for one in decided {
            let Some(to) = one.function.scale.fallback.clone() else {
                continue;
            };
            let without = one.decision.desired == 0 && one.seen.has_work();
            // Those who are served there already are in that one's own numbers.
            let served = look.loads.get(&one.name).map_or(0, |load| load.lent);
            let lent = without.then(|| Lent {
                to: to.clone(),
                held: one.seen.held.saturating_sub(served),
                backlog: one.seen.backlog.unwrap_or(0),
                oldest_ms: one.seen.oldest_ms,
            });
            if without {
                one.decision.reasons.push(Reason::HandedOver { to: to.to_string() });
            }
            let before = match lent {
                Some(lent) => self.lent.insert(one.name.clone(), lent),
                None => self.lent.remove(&one.name),
            };
            if without || before.is_some() {
                changed.push(to);
            }
        }
        changed
    }

    /// Tells what was decided and says what is to be done.
    fn settle(&mut self, one: &Decided, look: &Look) -> Vec<Act> {
        let Decided {
            name,
            function,
            seen,
            decision,
            ..
        } = one;
        let there = seen.ready.saturating_add(seen.starting);
        publish(name, seen, decision);
        let Some(known) = self.known.get_mut(name) else {
            return Vec::new();
        };
        let before = known.desired.replace(decision.desired).unwrap_or(there);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if worth_a_note(known, before, decision) {
            let record = record(one, before);
            self.store.put(StoredDecision {
                record: record.clone(),
                memory: known.memory.clone().learned(),
            });
            tracing::debug!(function = %name, from = before, to = decision.desired, reasons = ?record.reasons, "scaling");
            shared.history.push(record);
        }
        if decision.desired == 0 && there == 0 && !seen.has_work() && seen.backlog.is_some() {
            self.active.remove(name);
            if let Some(at) = decision.look_again_ms {
                self.later.entry(at).or_default().insert(name.clone());
            }
        }
        shared.desired.insert(name.clone(), decision.desired);
        shared.active = self.active.len();
        drop(shared);
        let pods = look.pods.get(name).map(Vec::as_slice).unwrap_or_default();
        let load = look.loads.get(name).unwrap_or(&IDLE);
        acts(name, function, load, pods, decision.desired)
    }

    async fn act(&mut self, acts: Vec<Act>) {
        let limit = self.settings.scale_timeout;
        let replicas = &self.replicas;
        let done = join_all(acts.iter().map(|a| async move {
            match tokio::time::timeout(limit, replicas.scale(&a.function, &a.revision, a.replicas)).await {
                Ok(result) => result.map_err(|e| with_causes(&e)),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        }))
        .await;
        for (a, result) in acts.iter().zip(done) {
            let Some(known) = self.known.get_mut(&a.function) else {
                continue;
            };
            if let Err(error) = &result {
                metrics::counter!("imageflow_scaling_errors_total", "function" => a.function.to_string()).increment(1);
                // Told once; it is tried again at each look.
                if !known.scale_failed {
                    tracing::warn!(revision = %a.revision, replicas = a.replicas, error, "pods could not be scaled");
                }
            }
            known.scale_failed = result.is_err();
        }
    }
}

impl Load {
    /// Whether there is more to it than that its backlog is not known, which a function without pods shares with thousands.
    fn is_news(&self) -> bool {
        let now = [self.held, self.held_batch, self.lent, self.in_flight, self.expected];
        self.backlog.is_some() || self.completed > 0 || now.into_iter().any(|count| count > 0)
    }

    fn add(&mut self, one: FunctionLoad) {
        self.held = self.held.saturating_add(one.held);
        self.held_batch = self.held_batch.saturating_add(one.held_batch);
        self.lent = self.lent.saturating_add(one.lent);
        self.in_flight = self.in_flight.saturating_add(one.in_flight);
        self.completed = self.completed.saturating_add(one.completed_since);
        self.calls = self.calls.saturating_add(one.calls_since);
        self.service_ms_sum = self.service_ms_sum.saturating_add(one.service_ms_sum);
        // `None` of one part does not hide what another knows.
        self.backlog = self.backlog.max(one.backlog);
        self.partial |= one.partial;
        self.oldest_ms = self.oldest_ms.max(one.oldest_ms);
        self.expected = self.expected.saturating_add(one.expected);
        if let Some(revision) = one.revision {
            *self.by_revision.entry(revision).or_default() +=
                u64::from(one.held) + u64::from(one.held_batch) + u64::from(one.in_flight);
        }
    }
}

/// The calls that make the pods what was decided. Compared with what is there, not with what was asked for before: so a
/// host that forgot, or refused, is asked again.
fn acts(name: &FunctionName, function: &FunctionScaling, load: &Load, pods: &[RevisionPods], desired: u32) -> Vec<Act> {
    // Of what waits for a slot the revision is known; the rest of the backlog will come by the traffic.
    let unbound = load.backlog.unwrap_or(0).saturating_sub(u64::from(load.held_batch));
    let mut wanted = split(desired, &function.revisions, &load.by_revision, unbound);
    for one in pods {
        wanted.entry(one.revision.clone()).or_insert(0);
    }
    let there = |revision: &RevisionName| {
        pods.iter()
            .find(|p| &p.revision == revision)
            .map_or(0, |p| p.ready.saturating_add(p.starting))
    };
    wanted
        .iter()
        .filter(|(r, n)| there(r) != **n)
        .map(|(revision, n)| act(name, revision, *n))
        .collect()
}

fn act(function: &FunctionName, revision: &RevisionName, replicas: u32) -> Act {
    Act {
        function: function.clone(),
        revision: revision.clone(),
        replicas,
    }
}

/// A change is always worth a note; staying is when its reason is new.
fn worth_a_note(known: &mut Known, before: u32, decision: &Decision) -> bool {
    let staying = decision
        .reasons
        .iter()
        .rev()
        .find(|r| r.explains_staying())
        .map(std::mem::discriminant);
    let new = staying.is_some() && staying != known.staying;
    known.staying = staying;
    before != decision.desired || new
}
