//! What the decider remembers of a function between decisions. Small, versioned, stored as JSON.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::decide::Observation;
use crate::keep_warm::{Cost, Pauses, Plan};
use crate::load::Load;
use crate::policy::PolicyConfig;
use crate::policy::kpa::KpaState;
use crate::policy::lag::LagState;
use crate::service::ServiceTime;

/// Version of the shape of [`Memory`].
pub const MEMORY_SCHEMA: u32 = 2;

/// Work that waits beside free slots for so long is work that no pod can get, ms.
const UNREACHED_MS: u64 = 5_000;
/// So many cold starts' time is the patience on the way down, within bounds, ms.
const PATIENCE: f64 = 2.0;
const LEAST_PATIENCE_MS: f64 = 4_000.0;
/// What a second of a caller's waiting costs, in pod-seconds.
const WAITING: f64 = 2.0;
/// After so long without a look (asleep at zero, or a restart), rate and progress of before say nothing, ms.
const LONGEST_GAP_MS: f64 = 60_000.0;
/// At most so many steps of the window are kept; neighbours are merged to the careful side.
const MAX_RECENT: usize = 64;

/// What is remembered of one function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// [`MEMORY_SCHEMA`]; a memory of another version is not used.
    pub schema: u32,
    /// The last answer.
    pub desired: Option<u32>,
    /// Service time, learned.
    pub service: ServiceTime,
    /// Pauses between work, learned.
    pub pauses: Pauses,
    /// When the last observation was learned from, ms since 1970.
    pub seen_ms: Option<i64>,
    /// Arrivals, requests at work, callers and cold starts, learned.
    pub load: Load,
    /// When the arrivals were brought up to date, ms since 1970.
    pub rate_ms: Option<i64>,
    /// Records that waited although slots were free: no pod gets them.
    pub unreached: u64,
    /// Since when records wait beside free slots, ms since 1970, and the fewest of them.
    pub beside_ms: Option<i64>,
    /// Fewest records in that time.
    pub beside: u64,
    /// Most pods that the work asked for since the last pause, and the mean of that.
    pub peak: u32,
    /// The mean of it over the last pauses.
    pub peaks: f64,
    /// Pieces of work at that time.
    pub items: u64,
    /// Completions since that time.
    pub completed: u64,
    /// Last time with a completion, or with nothing in flight, ms since 1970.
    pub progress_ms: Option<i64>,
    /// In flight at the last observation.
    pub in_flight: u32,
    /// Since when there has been no work, ms since 1970.
    pub idle_ms: Option<i64>,
    /// What the law asked for lately: (ms since 1970, pods), pods falling.
    pub recent: VecDeque<(i64, u32)>,
    /// What another law than ours remembers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
}

/// What one of the other laws remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Peer {
    /// Knative's.
    Kpa(Box<KpaState>),
    /// KEDA's.
    Lag(Box<LagState>),
}

impl Peer {
    fn learned(self) -> Option<Self> {
        let Self::Kpa(state) = self else { return None };
        (state.initialised > 0).then(|| Self::Kpa(Box::new(state.learned())))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            schema: MEMORY_SCHEMA,
            desired: None,
            service: ServiceTime::default(),
            pauses: Pauses::default(),
            seen_ms: None,
            load: Load::default(),
            rate_ms: None,
            unreached: 0,
            beside_ms: None,
            beside: 0,
            peak: 0,
            peaks: 0.0,
            items: 0,
            completed: 0,
            progress_ms: None,
            in_flight: 0,
            idle_ms: None,
            recent: VecDeque::new(),
            peer: None,
        }
    }
}

impl Memory {
    /// What is worth keeping when the decider was away: what was learned, not what was under way.
    #[must_use]
    pub fn learned(self) -> Self {
        if self.schema != MEMORY_SCHEMA {
            return Self::default();
        }
        Self {
            service: self.service,
            pauses: self.pauses,
            load: self.load.learned(),
            peaks: self.peaks,
            // A revision begins once, not after each restart.
            peer: self.peer.and_then(Peer::learned),
            ..Self::default()
        }
    }

    /// Takes in what an observation teaches. The same moment teaches once.
    pub(crate) fn learn(&mut self, config: &PolicyConfig, seen: &Observation) {
        if self.schema != MEMORY_SCHEMA {
            *self = Self {
                desired: self.desired,
                ..Self::default()
            };
        }
        let now = seen.now_ms;
        if self.seen_ms.is_some_and(|before| now <= before) {
            return;
        }
        let since = self.seen_ms.map_or(0.0, |before| elapsed(before, now));
        self.service.add(seen.completed, seen.service_ms_sum, since);
        if since > LONGEST_GAP_MS {
            self.load = self.load.learned();
            (self.rate_ms, self.completed, self.in_flight) = (None, 0, 0);
        }
        self.load
            .started(seen.started, seen.start_ms_sum, seen.scheduling_ms_sum);
        self.load.completed(seen.completed, seen.calls);
        self.load.worked(seen.in_flight, since);
        self.learn_rate(seen);
        self.learn_unreached(config, seen);
        if seen.completed > 0 || seen.in_flight == 0 || self.in_flight == 0 {
            self.progress_ms = Some(now);
        }
        self.in_flight = seen.in_flight;
        self.learn_pauses(config, seen);
        self.seen_ms = Some(now);
    }

    fn learn_rate(&mut self, seen: &Observation) {
        self.completed = self.completed.saturating_add(seen.completed);
        // An unknown backlog says nothing of arrivals: wait for the next known one, over the longer time.
        let Some(items) = seen.items() else { return };
        if let Some(before) = self.rate_ms {
            let time = elapsed(before, seen.now_ms).max(1.0);
            let arrived = self.completed as f64 + items as f64 - self.items as f64;
            self.load.arrived(arrived, time);
        }
        self.rate_ms = Some(seen.now_ms);
        self.items = items;
        self.completed = 0;
    }

    fn learn_pauses(&mut self, config: &PolicyConfig, seen: &Observation) {
        // What is announced is work on its way: a pause ends with it.
        if (seen.has_work() || seen.completed > 0 || seen.expected > 0)
            && let Some(since) = self.idle_ms.take()
        {
            self.pauses
                .add(elapsed_ms(since, seen.now_ms), self.cold_start(config), config);
            let weight = if self.peaks == 0.0 { 1.0 } else { 0.3 };
            self.peaks += weight * (f64::from(self.peak.max(1)) - self.peaks);
            self.peak = 0;
        }
        if seen.items() == Some(0) && seen.expected == 0 && self.idle_ms.is_none() {
            self.idle_ms = Some(seen.now_ms);
        }
    }

    /// Records beside free slots for some time are not delivered, for whatever reason: more pods would not change that.
    fn learn_unreached(&mut self, config: &PolicyConfig, seen: &Observation) {
        let Some(backlog) = seen.whole_backlog() else { return };
        // A pod has free slots that are not for everybody: each of those who share it fills its part only, and what waits for a slot
        // beside them is work for another pod.
        let backlog = backlog.saturating_sub(u64::from(seen.held_batch));
        if backlog < self.unreached {
            // Fewer wait than could not be reached: they are reached now.
            self.unreached = 0;
        }
        let slots = u64::from(seen.ready) * u64::from(config.target.max(1));
        if seen.ready == 0 || backlog == 0 || u64::from(seen.in_flight) >= slots {
            self.beside_ms = None;
            return;
        }
        match self.beside_ms {
            None => (self.beside_ms, self.beside) = (Some(seen.now_ms), backlog),
            Some(since) => {
                self.beside = self.beside.min(backlog);
                if elapsed_ms(since, seen.now_ms) >= UNREACHED_MS {
                    self.unreached = self.unreached.max(self.beside);
                    (self.beside_ms, self.beside) = (Some(seen.now_ms), backlog);
                }
            }
        }
    }

    /// What a cold start costs.
    fn cold_start(&self, config: &PolicyConfig) -> Cost {
        let start_ms = self.load.start_estimate_ms();
        // Those who come together wait together: as many as the pods that they needed, but for the first, were for.
        let together = 1.0 + (self.peaks - 1.0).max(0.0) * f64::from(config.target.max(1));
        let callers = self.load.callers * together;
        Cost {
            start_ms,
            waiting_ms: WAITING * callers * start_ms,
        }
    }

    /// What to do in a pause.
    pub(crate) fn plan(&self, config: &PolicyConfig) -> Plan {
        self.pauses.plan(self.cold_start(config), config)
    }

    /// How long more pods than needed are kept, ms: what several cold starts cost, and at most what the owner allows.
    pub(crate) fn patience_ms(&self, config: &PolicyConfig) -> u64 {
        let start = self.load.start_estimate_ms() * (1.0 + WAITING * self.load.callers);
        let patience = (PATIENCE * start).max(LEAST_PATIENCE_MS) as u64;
        patience.min(config.window_ms)
    }

    /// How long there has been no work, ms.
    pub(crate) fn idle_for(&self, now_ms: i64) -> u64 {
        self.idle_ms.map_or(0, |since| elapsed_ms(since, now_ms))
    }

    /// How long nothing completed although work was in flight, ms.
    pub(crate) fn stalled_for(&self, seen: &Observation) -> u64 {
        if seen.in_flight == 0 {
            0
        } else {
            self.progress_ms.map_or(0, |since| elapsed_ms(since, seen.now_ms))
        }
    }

    /// Notes what the law asks for and gives back the most it asked for within the window.
    pub(crate) fn most_within(&mut self, window_ms: u64, now_ms: i64, pods: u32) -> u32 {
        while self.recent.back().is_some_and(|(_, p)| *p <= pods) {
            self.recent.pop_back();
        }
        self.recent.push_back((now_ms, pods));
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| elapsed_ms(*at, now_ms) > window_ms)
        {
            self.recent.pop_front();
        }
        if self.recent.len() > MAX_RECENT {
            // Keep the larger number for the longer time: too careful rather than too hasty.
            if let (Some((_, most)), Some(next)) = (self.recent.pop_front(), self.recent.front_mut()) {
                next.1 = most;
            }
        }
        self.recent.front().map_or(pods, |(_, most)| (*most).max(pods))
    }
}

fn elapsed_ms(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

fn elapsed(from: i64, to: i64) -> f64 {
    elapsed_ms(from, to) as f64
}
