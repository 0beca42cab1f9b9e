//! How long the last pod is kept without work, learned from the pauses between work.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::policy::PolicyConfig;

/// So many pauses are remembered.
const KEPT: usize = 32;
/// From so many on they are relied upon.
const ENOUGH: usize = 5;
/// Shorter pauses are only the time between two looks, ms.
const SHORTEST_MS: u64 = 1_000;

/// The last pauses, ms, oldest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pauses(VecDeque<u64>);

/// A time to keep warm and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeepWarm {
    /// How long, ms.
    pub keep_ms: u64,
    /// The pause that 9 of 10 did not exceed, ms, when enough are known.
    pub usual_pause_ms: Option<u64>,
}

impl Pauses {
    /// Adds a pause, ms.
    pub fn add(&mut self, pause_ms: u64, config: &PolicyConfig) {
        // One over the maximum says all there is to say: a night and a week are alike.
        let longest = config.keep_warm_max_ms.saturating_add(1).max(SHORTEST_MS);
        if pause_ms < SHORTEST_MS {
            return;
        }
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(pause_ms.min(longest));
    }

    /// How long to keep the last pod, by the pauses so far.
    #[must_use]
    pub fn keep_warm(&self, config: &PolicyConfig) -> KeepWarm {
        let (least, most) = (
            config.keep_warm_min_ms.min(config.keep_warm_max_ms),
            config.keep_warm_max_ms,
        );
        if self.0.len() < ENOUGH {
            return KeepWarm {
                keep_ms: least,
                usual_pause_ms: None,
            };
        }
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 9).div_ceil(10).saturating_sub(1);
        let usual = sorted.get(rank).copied().unwrap_or(least);
        // A tenth more, or the pod would go in the very moment in which the work comes.
        let keep_ms = if usual <= most {
            (usual.saturating_add(usual / 10)).clamp(least, most)
        } else {
            least
        };
        KeepWarm {
            keep_ms,
            usual_pause_ms: Some(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(pauses: &[u64]) -> u64 {
        let config = PolicyConfig::default();
        let mut memory = Pauses::default();
        pauses.iter().for_each(|p| memory.add(*p, &config));
        memory.keep_warm(&config).keep_ms
    }

    #[test]
    fn a_pod_outlasts_the_usual_pause_but_is_not_kept_for_pauses_it_cannot_outlast() {
        assert_eq!(learned(&[60_000; 4]), 10_000, "too few to rely on");
        assert_eq!(learned(&[60_000; 20]), 66_000);
        assert_eq!(learned(&[3_000; 20]), 10_000, "never under the minimum");
        assert_eq!(learned(&[599_000; 20]), 600_000, "never over the maximum");
        assert_eq!(learned(&[3_600_000; 20]), 10_000, "an hour is over the maximum");
    }

    #[test]
    fn old_pauses_are_forgotten() {
        let mut pauses = vec![60_000; 40];
        pauses.extend([3_600_000; 32]);
        assert_eq!(learned(&pauses), 10_000);
    }
}
