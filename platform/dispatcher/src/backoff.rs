//! How long to wait before the next attempt.
use std::time::Duration;

use imageflow_types::function::{Backoff, Delivery};

/// Longest wait between two attempts.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// The wait after attempt `attempt` (from 1). `jitter` is a random number in 0..1: the wait is spread over its upper half,
/// so that work that failed together does not come back together. What the function asked for by Retry-After is a minimum.
#[must_use]
pub fn wait(policy: &Delivery, attempt: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let base = policy.backoff_delay.0;
    let grown = match policy.backoff {
        Backoff::Exponential => base.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX)),
        Backoff::Linear => base.saturating_mul(attempt),
    };
    let capped = grown.min(LONGEST);
    let spread = capped.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
    retry_after.map_or(spread, |asked| spread.max(asked.min(LONGEST)))
}

/// The wait when a pod does not get at the object store that we do get at, after `times` such waits in a row: from half a
/// second, doubling, at most 30 s. None after some five minutes: it is an attempt then, for what a foreign function says of
/// the store need not be true.
#[must_use]
pub fn for_storage(times: u32) -> Option<Duration> {
    const TIMES: u32 = 15;
    let grown = Duration::from_millis(500).saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
    (times < TIMES).then(|| grown.min(Duration::from_secs(30)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use imageflow_types::HumanDuration;

    #[test]
    fn a_pod_without_the_store_waits_five_minutes_before_that_is_an_attempt() {
        let waits: Vec<Duration> = (0..).map_while(for_storage).collect();
        assert_eq!(waits[..3], [500, 1000, 2000].map(Duration::from_millis));
        assert!(waits.is_sorted() && waits[14] == Duration::from_secs(30));
        let all: Duration = waits.iter().sum();
        assert!((300..320).contains(&all.as_secs()), "{all:?}");
        assert_eq!(for_storage(u32::MAX), None);
    }

    #[test]
    fn waits_double_within_their_spread_up_to_the_longest() {
        let policy = Delivery {
            backoff_delay: HumanDuration::from_millis(200),
            ..Delivery::default()
        };
        assert_eq!(wait(&policy, 1, None, 1.0), Duration::from_millis(200));
        assert_eq!(wait(&policy, 1, None, 0.0), Duration::from_millis(100));
        assert_eq!(wait(&policy, 4, None, 1.0), Duration::from_millis(1600));
        assert_eq!(wait(&policy, 40, None, 1.0), LONGEST);
        assert_eq!(
            wait(&policy, 1, Some(Duration::from_secs(3)), 0.5),
            Duration::from_secs(3)
        );
        let linear = Delivery {
            backoff: Backoff::Linear,
            ..policy
        };
        assert_eq!(wait(&linear, 3, None, 1.0), Duration::from_millis(600));
    }
}
