//! Slots: which pod takes the next request.
mod acquire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use imageflow_pods::{PodHost, PodId, PodState, PodTable};
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answers::Answers;
use crate::hold::{Class, Demand, Hold};
use crate::stand_in::Lent;
use crate::stats::RevisionStats;

/// Settings of the delivery.
#[derive(Debug, Clone)]
pub struct DeliveryConfig {
    /// Most interactive callers that wait for one function; more get 429.
    pub max_held: usize,
    /// Most bytes of an answer.
    pub max_answer_bytes: usize,
    /// Most bytes of all answers that are under way, but for small ones; more wait at their pods. Half of what a dispatcher may
    /// have of memory, and a quarter of a gateway's, half of which is for requests: 256 MiB.
    pub max_answers_bytes: usize,
    /// After so many failed starts in a row, with no pod ready, waiting callers are told.
    pub start_failures: u32,
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            max_held: 1_000,
            max_answer_bytes: 64 << 20,
            max_answers_bytes: 256 << 20,
            start_failures: 3,
        }
    }
}

struct Endpoint {
    revision: RevisionName,
    addr: std::net::SocketAddr,
    limit: u32,
    in_flight: u32,
    accepting: bool,
    /// What tells one life of the pod from the next.
    restarts: u32,
    /// A request was lost with it: it is asked nothing until then, or until it has started again.
    distrusted: Option<Instant>,
    crowd: Arc<AtomicU32>,
}

#[derive(Default)]
struct Queue {
    function: Option<FunctionName>,
    hold: Hold,
    /// Pods that are starting or ready: when none, a waiter pokes the autoscaler.
    coming: u32,
    failure: Option<String>,
    completed: u64,
    calls: u64,
    service: Duration,
}

#[derive(Default)]
struct State {
    endpoints: HashMap<PodId, Endpoint>,
    queues: HashMap<RevisionName, Queue>,
    /// Callers of a revision that another function serves.
    lent: HashMap<RevisionName, (FunctionName, u32)>,
    closing: bool,
}

/// Delivers invocations to pods. Cheap to share.
pub struct Delivery {
    pub(crate) config: DeliveryConfig,
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    pub(crate) answers: Answers,
    host: Arc<dyn PodHost>,
    table: watch::Receiver<Arc<PodTable>>,
    state: Mutex<State>,
    pokes: broadcast::Sender<FunctionName>,
    /// A pod is distrusted from now on.
    distrusted: Notify,
}

/// So long a pod that lost a request is not asked, unless it starts again before. Its end is seen by its callers before its
/// host tells of it: what met it in between would be lost as well, and blamed for it.
const DISTRUST: Duration = Duration::from_secs(1);

/// A place at a pod, given back when dropped.
pub struct Slot {
    delivery: Weak<Delivery>,
    pub(crate) pod: PodId,
    pub(crate) addr: std::net::SocketAddr,
    revision: RevisionName,
    class: Class,
    weight: u32,
    cold: bool,
    /// How many requests the pod held when the first of them was lost with this life of it; 0 while none was.
    crowd: Arc<AtomicU32>,
    /// Whose caller it serves, when not its own function's.
    lent: Option<Lent>,
}

impl Slot {
    pub(crate) fn on_behalf(mut self, lent: Option<Lent>) -> Self {
        self.lent = lent;
        self
    }

    /// Whether the caller had to wait for a pod to start.
    #[must_use]
    pub const fn cold(&self) -> bool {
        self.cold
    }

    /// The pod.
    #[must_use]
    pub const fn pod(&self) -> &PodId {
        &self.pod
    }

    /// The revision.
    #[must_use]
    pub const fn revision(&self) -> &RevisionName {
        &self.revision
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.upgrade() {
            delivery.release(&self.pod, &self.revision, self.weight);
        }
    }
}

impl Delivery {
    /// Starts to follow the host's pods, in a task of `tasks` until `stop`.
    pub fn start(
        config: DeliveryConfig,
        host: Arc<dyn PodHost>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        let (pokes, _) = broadcast::channel(1024);
        let mut table = host.watch();
        let delivery = Arc::new(Self {
            answers: Answers::new(config.max_answers_bytes, config.max_answer_bytes),
            config,
            client,
            host,
            table: table.clone(),
            state: Mutex::default(),
            pokes,
            distrusted: Notify::new(),
        });
        let (shared, stop) = (delivery.clone(), stop.clone());
        tasks.spawn(async move {
            loop {
                let now = table.borrow_and_update().clone();
                let again = shared.follow(&now, Instant::now());
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = table.changed() => if changed.is_err() { break },
                    () = shared.distrusted.notified() => {}
                    () = at(again) => {}
                }
            }
            shared.close();
        });
        delivery
    }

    /// Functions for which work met no pod: the autoscaler's poke.
    #[must_use]
    pub fn pokes(&self) -> broadcast::Receiver<FunctionName> {
        self.pokes.subscribe()
    }

    /// Work for a function is on its way: the autoscaler is poked when it has no pod.
    pub fn announce(&self, function: &FunctionName) {
        if self.table.borrow().count(function) == (0, 0) {
            // Nobody listens while the platform starts; the tick finds it then.
            let _ = self.pokes.send(function.clone());
        }
    }

    /// Numbers of every revision that has any, and starts the next period.
    #[must_use]
    pub fn collect(&self) -> Vec<RevisionStats> {
        metrics::gauge!("imageflow_function_answers_free_bytes").set(self.room_for_answers() as f64);
        let mut state = self.lock();
        let mut in_flight: HashMap<RevisionName, u32> = HashMap::new();
        for endpoint in state.endpoints.values() {
            *in_flight.entry(endpoint.revision.clone()).or_default() += endpoint.in_flight;
        }
        let mut all = Vec::new();
        for (revision, queue) in &mut state.queues {
            let Some(function) = &queue.function else { continue };
            all.push(RevisionStats {
                function: function.clone(),
                revision: revision.clone(),
                held: u32::try_from(queue.hold.waiting(Class::Interactive)).unwrap_or(u32::MAX),
                held_batch: u32::try_from(queue.hold.waiting(Class::Batch)).unwrap_or(u32::MAX),
                lent: 0,
                in_flight: in_flight.get(revision).copied().unwrap_or(0),
                completed: std::mem::take(&mut queue.completed),
                calls: std::mem::take(&mut queue.calls),
                service: std::mem::take(&mut queue.service),
            });
        }
        for (revision, (function, callers)) in &state.lent {
            match all.iter_mut().find(|stats| &stats.revision == revision) {
                Some(stats) => stats.lent = *callers,
                None => all.push(RevisionStats {
                    function: function.clone(),
                    revision: revision.clone(),
                    held: 0,
                    held_batch: 0,
                    lent: *callers,
                    in_flight: 0,
                    completed: 0,
                    calls: 0,
                    service: Duration::ZERO,
                }),
            }
        }
        // A revision without pods, waiters or news is forgotten: thousands may come and go.
        state.queues.retain(|revision, queue| {
            queue.coming > 0 || !queue.hold.is_empty() || in_flight.get(revision).is_some_and(|n| *n > 0)
        });
        all
    }

    /// Bytes that answers may still take of `max_answers_bytes` before one waits.
    #[must_use]
    pub fn room_for_answers(&self) -> usize {
        self.answers.free()
    }

    pub(crate) fn table(&self) -> watch::Receiver<Arc<PodTable>> {
        self.table.clone()
    }

    /// Somebody else serves one more caller of a revision, or one less.
    pub(crate) fn lent(&self, revision: &RevisionName, more: Option<&FunctionName>) {
        let mut state = self.lock();
        if let Some(function) = more {
            let lent = state.lent.entry(revision.clone());
            lent.or_insert_with(|| (function.clone(), 0)).1 += 1;
        } else if let Some((_, callers)) = state.lent.get_mut(revision) {
            *callers -= 1;
            if *callers == 0 {
                state.lent.remove(revision);
            }
        }
    }

    pub(crate) fn completed(&self, slot: &Slot, service: Duration) {
        let mut state = self.lock();
        let queue = state.queues.entry(slot.revision.clone()).or_default();
        queue.completed += 1;
        queue.calls += u64::from(slot.class == Class::Interactive);
        queue.service += service;
    }

    /// How many other requests were lost with this one. The first that notices counts; what it holds is given back
    /// before the others notice.
    pub(crate) fn beside(&self, slot: &Slot) -> u32 {
        let now = self.lock().endpoints.get(&slot.pod).map_or(0, |e| e.in_flight);
        let crowd = slot.crowd.fetch_max(now, Ordering::Relaxed).max(now);
        crowd.saturating_sub(slot.weight)
    }

    /// Whether other processes give requests to the pods of a revision.
    pub(crate) fn is_shared(&self, revision: &RevisionName) -> bool {
        self.table.borrow().sharers.get(revision).is_some_and(|n| *n > 1)
    }

    /// The pod is not to be asked for a while, unless it starts again.
    pub(crate) fn distrust(&self, slot: &Slot) {
        if let Some(endpoint) = self.lock().endpoints.get_mut(&slot.pod)
            // Else it has started again since.
            && endpoint.addr == slot.addr
        {
            endpoint.accepting = false;
            endpoint.distrusted = Some(Instant::now() + DISTRUST);
        }
        self.distrusted.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can panic half-way through a change of two fields that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at the accepting pod with the fewest requests, other than the one that is kept.
    fn place(
        self: &Arc<Self>,
        state: &mut State,
        revision: &RevisionName,
        (class, demand): (Class, Demand),
        cold: bool,
        kept: Option<&PodId>,
    ) -> Option<Slot> {
        let (pod, endpoint) = state
            .endpoints
            .iter_mut()
            .filter(|(id, e)| &e.revision == revision && fits(id, e, demand, kept))
            .min_by_key(|(_, e)| e.in_flight)?;
        let weight = match demand {
            Demand::One => 1,
            Demand::Alone => endpoint.limit,
        };
        endpoint.in_flight += weight;
        self.host.set_load(pod, endpoint.in_flight);
        Some(Slot {
            delivery: Arc::downgrade(self),
            pod: pod.clone(),
            addr: endpoint.addr,
            revision: revision.clone(),
            class,
            weight,
            cold,
            crowd: endpoint.crowd.clone(),
            lent: None,
        })
    }

    fn release(self: &Arc<Self>, pod: &PodId, revision: &RevisionName, weight: u32) {
        let mut state = self.lock();
        if let Some(endpoint) = state.endpoints.get_mut(pod) {
            endpoint.in_flight = endpoint.in_flight.saturating_sub(weight);
            self.host.set_load(pod, endpoint.in_flight);
        }
        self.grant(&mut state, revision, false);
    }

    /// Gives free places to those who wait.
    fn grant(self: &Arc<Self>, state: &mut State, revision: &RevisionName, cold: bool) {
        loop {
            let Some(queue) = state.queues.get_mut(revision) else {
                return;
            };
            let endpoints = &state.endpoints;
            let kept = queue
                .hold
                .keeps_a_pod()
                .then(|| emptiest(endpoints, revision))
                .flatten();
            let free = |demand| {
                endpoints
                    .iter()
                    .any(|(id, e)| &e.revision == revision && fits(id, e, demand, kept.as_ref()))
            };
            let Some((class, waiter)) = queue.hold.next(free) else {
                return;
            };
            let Some(slot) = self.place(state, revision, (class, waiter.demand), cold, kept.as_ref()) else {
                return;
            };
            if let Err(mut slot) = waiter.grant.send(slot) {
                // The caller went away in this moment. Undo by hand: its drop would lock again.
                slot.delivery = Weak::new();
                if let Some(endpoint) = state.endpoints.get_mut(&slot.pod) {
                    endpoint.in_flight = endpoint.in_flight.saturating_sub(slot.weight);
                }
            }
        }
    }

    /// Takes the host's pods over; says when a distrusted one is to be looked at again.
    fn follow(self: &Arc<Self>, table: &PodTable, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        let known: Vec<PodId> = state.endpoints.keys().cloned().collect();
        for gone in known.iter().filter(|id| !table.pods.contains_key(*id)) {
            if let Some(endpoint) = state.endpoints.remove(gone) {
                endpoint.crowd.fetch_max(endpoint.in_flight, Ordering::Relaxed);
            }
        }
        let mut fresh: Vec<RevisionName> = Vec::new();
        for (id, pod) in &table.pods {
            let ready = matches!(pod.state, PodState::Ready);
            if !ready {
                if let Some(endpoint) = state.endpoints.get_mut(id) {
                    endpoint.accepting = false;
                }
                continue;
            }
            let share = table.share(pod);
            let endpoint = state.endpoints.entry(id.clone()).or_insert_with(|| Endpoint {
                revision: pod.revision.clone(),
                addr: pod.addr,
                limit: share,
                in_flight: 0,
                accepting: false,
                restarts: pod.restarts,
                distrusted: None,
                crowd: Arc::default(),
            });
            let again = (endpoint.addr, endpoint.restarts) != (pod.addr, pod.restarts);
            (endpoint.addr, endpoint.restarts) = (pod.addr, pod.restarts);
            if again || endpoint.distrusted.is_some_and(|until| until <= now) {
                endpoint.distrusted = None;
                // Those before keep theirs: an answer that one of them still gets does not make the others fewer.
                endpoint.crowd = Arc::default();
            }
            let accepting = endpoint.distrusted.is_none();
            if accepting && (!endpoint.accepting || endpoint.limit < share) {
                fresh.push(pod.revision.clone());
            }
            endpoint.accepting = accepting;
            endpoint.limit = share;
        }
        for (revision, queue) in &mut state.queues {
            (queue.coming, queue.failure) = standing(table, revision, self.config.start_failures);
            if queue.failure.is_some() {
                queue.hold.drain();
            }
        }
        for revision in fresh {
            self.grant(&mut state, &revision, true);
        }
        state.endpoints.values().filter_map(|e| e.distrusted).min()
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        for queue in state.queues.values_mut() {
            queue.hold.drain();
        }
    }
}

/// Returns then; never without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// How the pods of a revision stand: how many start or are ready, and why none does, when that is so.
fn standing(table: &PodTable, revision: &RevisionName, start_failures: u32) -> (u32, Option<String>) {
    let (mut coming, mut ready, mut failure) = (0, false, None);
    for pod in table.pods.values().filter(|pod| &pod.revision == revision) {
        match &pod.state {
            PodState::Starting => coming += 1,
            PodState::Ready => (coming, ready) = (coming + 1, true),
            PodState::BackOff {
                reason, failed_starts, ..
            } => {
                coming += 1;
                if *failed_starts >= start_failures {
                    failure = Some(reason);
                }
            }
            // A cluster keeps an evicted pod for hours. Why that one ended says nothing about how the next will start.
            PodState::Draining | PodState::Failed { .. } => {}
        }
    }
    (coming, failure.filter(|_| !ready).cloned())
}

/// Whether a pod has a place for a request, when one is kept from those who would share it.
fn fits(id: &PodId, endpoint: &Endpoint, demand: Demand, kept: Option<&PodId>) -> bool {
    endpoint.accepting
        && match demand {
            Demand::One => endpoint.in_flight < endpoint.limit && kept != Some(id),
            Demand::Alone => endpoint.in_flight == 0,
        }
}

/// The pod that will most likely be the first without requests.
fn emptiest(endpoints: &HashMap<PodId, Endpoint>, revision: &RevisionName) -> Option<PodId> {
    let accepting = endpoints.iter().filter(|(_, e)| &e.revision == revision && e.accepting);
    // Of equals always the same one.
    let (id, _) = accepting.min_by_key(|(id, e)| (e.in_flight, *id))?;
    Some(id.clone())
}

#[cfg(test)]
mod tests;
