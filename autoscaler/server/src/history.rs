//! The last decisions of each function, for whoever asks why.
use std::collections::{HashMap, VecDeque};

use imageflow_types::FunctionName;
use imageflow_types::scaling::DecisionRecord;

/// Decisions kept of one function.
pub const KEPT_PER_FUNCTION: usize = 200;
/// Decisions kept of all, about: with many functions each keeps fewer.
const KEPT_IN_ALL: usize = 40_000;

/// A ring of decisions for each function.
#[derive(Debug, Default)]
pub struct History {
    rings: HashMap<FunctionName, VecDeque<DecisionRecord>>,
}

impl History {
    pub fn push(&mut self, record: DecisionRecord) {
        let cap = (KEPT_IN_ALL / (self.rings.len() + 1)).clamp(5, KEPT_PER_FUNCTION);
        let ring = self.rings.entry(record.function.clone()).or_default();
        ring.push_back(record);
        let over = ring.len().saturating_sub(cap);
        ring.drain(..over);
    }

    /// Newest first.
    pub fn of(&self, function: &FunctionName) -> Vec<DecisionRecord> {
        self.rings
            .get(function)
            .map(|ring| ring.iter().rev().cloned().collect())
            .unwrap_or_default()
    }

    pub fn forget(&mut self, function: &FunctionName) {
        self.rings.remove(function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_are_kept_and_the_newest_comes_first() {
        let function = FunctionName::new("f").unwrap();
        let mut history = History::default();
        for at_ms in 0..500 {
            history.push(DecisionRecord {
                at_ms,
                to: 1,
                ..DecisionRecord::of(function.clone())
            });
        }
        let kept = history.of(&function);
        assert_eq!((kept.len(), kept[0].at_ms), (KEPT_PER_FUNCTION, 499));
    }
}
