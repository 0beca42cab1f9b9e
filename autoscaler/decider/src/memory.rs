//! What the decider remembers of a function between decisions. Small, versioned, stored as JSON.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::decide::Observation;
use crate::keep_warm::Pauses;
use crate::policy::PolicyConfig;
use crate::service::ServiceTime;

/// Version of the shape of [`Memory`].
pub const MEMORY_SCHEMA: u32 = 1;

/// Arrivals are smoothed over this time, ms.
const RATE_WINDOW_MS: f64 = 30_000.0;
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
    /// Arrivals per second, smoothed. May be a little under zero by the jitter of its sources.
    pub rate: f64,
    /// When the rate was brought up to date, ms since 1970.
    pub rate_ms: Option<i64>,
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
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            schema: MEMORY_SCHEMA,
            desired: None,
            service: ServiceTime::default(),
            pauses: Pauses::default(),
            seen_ms: None,
            rate: 0.0,
            rate_ms: None,
            items: 0,
            completed: 0,
            progress_ms: None,
            in_flight: 0,
            idle_ms: None,
            recent: VecDeque::new(),
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
            (self.rate, self.rate_ms, self.completed, self.in_flight) = (0.0, None, 0, 0);
        }
        self.learn_rate(seen);
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
            let weight = 1.0 - (-time / RATE_WINDOW_MS).exp();
            self.rate += weight * (arrived / (time / 1000.0) - self.rate);
            if !self.rate.is_finite() {
                self.rate = 0.0;
            }
        }
        self.rate_ms = Some(seen.now_ms);
        self.items = items;
        self.completed = 0;
    }

    fn learn_pauses(&mut self, config: &PolicyConfig, seen: &Observation) {
        if (seen.has_work() || seen.completed > 0)
            && let Some(since) = self.idle_ms.take()
        {
            self.pauses.add(elapsed_ms(since, seen.now_ms), config);
        }
        if seen.items() == Some(0) && self.idle_ms.is_none() {
            self.idle_ms = Some(seen.now_ms);
        }
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
