//! How much work there is: arrivals, requests at work, callers among them, and cold starts, each as a mean in which what is old
//! counts less. All are learned from one observation to the next.
use serde::{Deserialize, Serialize};

/// Arrivals are smoothed over this time, ms.
const SLOW_MS: f64 = 10_000.0;
/// And over this one, to see a rise soon, ms.
const FAST_MS: f64 = 5_000.0;
/// Requests at work are smoothed over this time, ms.
const BUSY_MS: f64 = 30_000.0;
/// A rise shows when it is so many standard deviations of a Poisson stream.
const SIGNIFICANT: f64 = 3.0;
/// Taken for a cold start until one was seen, ms.
const PRIOR_START_MS: f64 = 1_000.0;
/// How much of the old mean each newer start, or completion, leaves.
const START_KEPT: f64 = 0.8;
const CALLS_KEPT: f64 = 0.98;
/// No cold start counts for more, ms.
const LONGEST_START_MS: f64 = 600_000.0;
/// No way to a node counts for more, ms: what is longer is waiting for room, and a pod kept warm would only have another wait.
const LONGEST_SCHEDULING_MS: f64 = 5_000.0;

/// Means of one function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Load {
    /// Arrivals per second, slow; may be a little under zero by the jitter of its sources.
    pub slow: f64,
    /// The same, fast.
    pub fast: f64,
    /// Requests at work.
    pub busy: f64,
    /// Share of callers among the completions, 0 to 1.
    pub callers: f64,
    /// Of a cold start, from having a node to being ready, ms; 0 when no start was seen.
    pub start_ms: f64,
    /// Of a cold start, from being asked for to having a node, ms.
    pub scheduling_ms: f64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            slow: 0.0,
            fast: 0.0,
            busy: 0.0,
            // Until it is known somebody waits.
            callers: 1.0,
            start_ms: 0.0,
            scheduling_ms: 0.0,
        }
    }
}

fn towards(mean: f64, value: f64, weight: f64) -> f64 {
    let next = mean + weight * (value - mean);
    if next.is_finite() { next } else { 0.0 }
}

impl Load {
    /// What survives a stop: what the function is like, not how much it has to do.
    #[must_use]
    pub fn learned(&self) -> Self {
        Self {
            callers: self.callers,
            start_ms: self.start_ms,
            scheduling_ms: self.scheduling_ms,
            ..Self::default()
        }
    }

    /// So many arrivals within a time.
    pub(crate) fn arrived(&mut self, arrivals: f64, time_ms: f64) {
        let time_ms = time_ms.max(1.0);
        let rate = arrivals / (time_ms / 1_000.0);
        self.slow = towards(self.slow, rate, 1.0 - (-time_ms / SLOW_MS).exp());
        self.fast = towards(self.fast, rate, 1.0 - (-time_ms / FAST_MS).exp());
    }

    /// So many requests were at work for a time.
    pub(crate) fn worked(&mut self, in_flight: u32, time_ms: f64) {
        self.busy = towards(self.busy, f64::from(in_flight), 1.0 - (-time_ms / BUSY_MS).exp());
    }

    /// So many completions, of which so many were callers'.
    pub(crate) fn completed(&mut self, completed: u64, calls: u64) {
        if completed > 0 {
            let share = calls.min(completed) as f64 / completed as f64;
            let weight = 1.0 - CALLS_KEPT.powf((completed as f64).min(1_000.0));
            self.callers = towards(self.callers, share, weight);
        }
    }

    /// So many pods became ready, after so long in all, and so much of that until they had nodes.
    pub(crate) fn started(&mut self, pods: u64, sum_ms: u64, scheduling_sum_ms: u64) {
        if pods > 0 {
            let each = |sum_ms: u64| sum_ms as f64 / pods as f64;
            let start = each(sum_ms.saturating_sub(scheduling_sum_ms)).clamp(1.0, LONGEST_START_MS);
            let scheduling = each(scheduling_sum_ms).min(LONGEST_SCHEDULING_MS);
            let known = match self.start_ms > 0.0 {
                true => (self.start_ms, self.scheduling_ms),
                false => (start, scheduling),
            };
            let weight = 1.0 - START_KEPT.powf((pods as f64).min(100.0));
            self.start_ms = towards(known.0, start, weight);
            self.scheduling_ms = towards(known.1, scheduling, weight);
        }
    }

    /// How long a cold start takes, ms.
    #[must_use]
    pub fn start_estimate_ms(&self) -> f64 {
        if self.start_ms > 0.0 {
            self.scheduling_ms + self.start_ms
        } else {
            PRIOR_START_MS
        }
    }

    /// Arrivals per second: the slow mean, or for callers the fast one when it is higher by more than chance. Records wait in the
    /// backlog, which shows a rise by itself.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let (slow, fast) = (self.slow.max(0.0), self.fast.max(0.0));
        // A mean over so long has about so many arrivals, and a Poisson stream deviates by their root.
        let chance = SIGNIFICANT * (slow.max(fast) / (2.0 * FAST_MS / 1_000.0)).sqrt();
        let rise = if fast > slow + chance { fast - slow } else { 0.0 };
        slow + self.callers * rise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_shows_within_seconds_and_noise_does_not() {
        let mut load = Load::default();
        for i in 0..600 {
            load.arrived(if i % 2 == 0 { 14.0 } else { 26.0 }, 1_000.0);
        }
        assert!((load.rate() - 20.0).abs() < 1.0, "{}", load.rate());
        for _ in 0..3 {
            load.arrived(100.0, 1_000.0);
        }
        assert!(load.rate() > 50.0, "{}", load.rate());
        for _ in 0..60 {
            load.arrived(0.0, 1_000.0);
        }
        assert!(load.rate() < 10.0, "{}", load.rate());
    }

    #[test]
    fn starts_and_callers_are_means_of_what_was_seen() {
        let mut load = Load::default();
        assert_eq!(load.start_estimate_ms(), 1_000.0);
        load.started(1, 600, 0);
        assert_eq!(load.start_estimate_ms(), 600.0);
        load.started(10, 20_000, 0);
        assert!((1_500.0..2_000.0).contains(&load.start_estimate_ms()));
        let mut waited = Load::default();
        waited.started(2, 2 * 90_500, 2 * 90_000);
        assert_eq!(
            (waited.start_ms, waited.scheduling_ms),
            (500.0, LONGEST_SCHEDULING_MS),
            "the rest was waiting for room"
        );
        assert_eq!(load.callers, 1.0);
        load.completed(500, 0);
        assert!(load.callers < 0.01);
    }
}
