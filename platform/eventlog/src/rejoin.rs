//! Whether a member that was displaced in its group joins it anew.
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::LogError;

/// So often within [`WITHIN`] a member joins its group anew; then somebody else must have its name.
const MOST: usize = 10;
const WITHIN: Duration = Duration::from_secs(600);

/// Counts how often a member was displaced. Another process of its name is one reason, and then one of the two must give
/// way; its own earlier wish to join is another, when brokers die meanwhile, and then it has only to join again.
#[derive(Debug, Default)]
pub struct Rejoin(VecDeque<Instant>);

impl Rejoin {
    /// Whether the error is that the member was displaced, and it should join anew.
    pub fn may(&mut self, error: &LogError, now: Instant) -> bool {
        if !matches!(error, LogError::Fenced { .. }) {
            return false;
        }
        let old = |at: &Instant| now.saturating_duration_since(*at) >= WITHIN;
        while self.0.front().is_some_and(old) {
            self.0.pop_front();
        }
        if self.0.len() >= MOST {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_displaced_again_and_again_gives_way_and_one_that_rarely_is_goes_on_for_ever() {
        let fenced = LogError::Fenced { id: "a".to_owned() };
        let begun = Instant::now();
        let second = |s| begun + Duration::from_secs(s);
        let mut rejoin = Rejoin::default();
        assert!(!rejoin.may(&LogError::Closed, begun));
        let times = (0..20).filter(|s| rejoin.may(&fenced, second(*s))).count();
        assert_eq!(times, MOST);
        assert!(rejoin.may(&fenced, second(600)), "the first is long ago");
        assert!(!rejoin.may(&fenced, second(600)));
        assert!((2..100).all(|hour| rejoin.may(&fenced, second(hour * 3600))));
    }
}
