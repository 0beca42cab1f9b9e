//! The mean service time of a function, learned from completions. Little's law needs the mean, not a quantile.
use serde::{Deserialize, Serialize};

/// Taken for the service time until something completed, ms.
pub const PRIOR_MS: f64 = 100.0;
/// Completions after which the estimate is trusted.
const TRUSTED: u64 = 3;
/// The weight of what is old halves in this time, ms.
const HALF_LIFE_MS: f64 = 60_000.0;
/// Weight that age does not take away: one cold, slow completion after a night must not count for everything.
const KEPT_WEIGHT: f64 = 10.0;
/// Weight at most: newer completions always show.
const MAX_WEIGHT: f64 = 1_000.0;
/// No service time is longer, ms: an hour is the longest timeout.
const MAX_MS: f64 = 3_600_000.0;

/// A mean in which what is old counts less.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceTime {
    /// Mean, ms.
    pub mean_ms: f64,
    /// How much the mean weighs against new completions.
    pub weight: f64,
    /// Completions seen in all.
    pub samples: u64,
}

impl ServiceTime {
    /// Adds completions and the sum of their service times, `since_ms` after the last.
    pub fn add(&mut self, completed: u64, sum_ms: u64, since_ms: f64) {
        if completed == 0 {
            return;
        }
        let mean = (sum_ms as f64 / completed as f64).min(MAX_MS);
        let kept = self.weight.min(KEPT_WEIGHT);
        let old = (self.weight * 0.5_f64.powf(since_ms / HALF_LIFE_MS)).max(kept);
        let new = (completed as f64).min(MAX_WEIGHT);
        self.mean_ms = (old * self.mean_ms + new * mean) / (old + new);
        self.weight = (old + new).min(MAX_WEIGHT);
        self.samples = self.samples.saturating_add(completed);
        if !self.mean_ms.is_finite() || !self.weight.is_finite() {
            *self = Self::default();
        }
    }

    /// Whether enough completed to rely on the mean.
    #[must_use]
    pub const fn trusted(&self) -> bool {
        self.samples >= TRUSTED
    }

    /// The mean, or the prior when nothing completed, ms; never under 0.1.
    #[must_use]
    pub fn estimate_ms(&self) -> f64 {
        if self.samples == 0 {
            PRIOR_MS
        } else {
            self.mean_ms.clamp(0.1, MAX_MS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_a_change_within_a_few_half_lives() {
        let mut service = ServiceTime::default();
        for _ in 0..600 {
            service.add(10, 1_000, 1_000.0);
        }
        assert!((service.estimate_ms() - 100.0).abs() < 1.0);
        for _ in 0..240 {
            service.add(10, 5_000, 1_000.0);
        }
        assert!(service.estimate_ms() > 450.0, "{}", service.estimate_ms());
    }

    #[test]
    fn one_slow_completion_after_a_night_does_not_count_for_everything() {
        let mut service = ServiceTime::default();
        service.add(100, 1_000, 0.0);
        service.add(1, 2_000, 8.0 * 3_600_000.0);
        assert!(service.estimate_ms() < 250.0, "{}", service.estimate_ms());
    }
}
