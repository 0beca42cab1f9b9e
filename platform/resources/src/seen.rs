//! How much of the resources somebody had seen when he wrote a record, so that who reads it has seen as much: without that a role
//! whose view is behind would take a function or a trigger for missing that its caller was told is there.
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use imageflow_types::topics;

/// Next offsets of `imageflow.resources` by partition. As text `0:12 2:7`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen(BTreeMap<u32, i64>);

impl Seen {
    /// Of a view that has come so far.
    #[must_use]
    pub fn of(progress: &HashMap<u32, i64>) -> Self {
        Self(progress.iter().map(|(partition, next)| (*partition, *next)).collect())
    }

    /// What the writer of a record said of it. A program that is not ours says nothing, and means what is there.
    #[must_use]
    pub fn by_writer(headers: &[(String, Bytes)]) -> Option<Self> {
        let (_, said) = headers.iter().find(|(name, _)| name == topics::SEEN)?;
        std::str::from_utf8(said).ok()?.parse().ok()
    }

    /// As much as both.
    pub fn merge(&mut self, other: &Self) {
        for (partition, next) in &other.0 {
            let own = self.0.entry(*partition).or_insert(*next);
            *own = (*own).max(*next);
        }
    }

    /// What a view that has come so far has not seen of it: partition, the next offset of the view, and that of who wrote this.
    pub(crate) fn beyond(&self, progress: &HashMap<u32, i64>) -> Vec<(u32, i64, i64)> {
        let there = |partition| progress.get(partition).copied().unwrap_or(0);
        let of_each = self.0.iter().map(|(at, next)| (*at, there(at), *next));
        of_each.filter(|(_, there, next)| there < next).collect()
    }

    /// Without a partition.
    pub(crate) fn forget(&mut self, partition: u32) {
        self.0.remove(&partition);
    }

    /// Whether a view that has come so far has seen all of it.
    #[must_use]
    pub fn is_in(&self, progress: &HashMap<u32, i64>) -> bool {
        let there = |(partition, next): (&u32, &i64)| progress.get(partition).is_some_and(|done| done >= next);
        self.0.iter().all(there)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (partition, next)) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{partition}:{next}")?;
        }
        Ok(())
    }
}

/// It is not what the platform writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not partition:offset, parted by blanks")]
pub struct NotSeen(String);

impl FromStr for Seen {
    type Err = NotSeen;

    fn from_str(text: &str) -> Result<Self, NotSeen> {
        let pair = |pair: &str| {
            let (partition, next) = pair.split_once(':')?;
            Some((partition.parse().ok()?, next.parse().ok()?))
        };
        let pairs: Option<BTreeMap<u32, i64>> = text.split(' ').filter(|p| !p.is_empty()).map(pair).collect();
        pairs.map(Self).ok_or_else(|| NotSeen(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Seen {
        text.parse().unwrap()
    }

    #[test]
    fn it_is_written_and_read() {
        for text in ["", "0:12", "0:12 2:7"] {
            assert_eq!(seen(text).to_string(), text);
        }
        for wrong in ["0", "0:x", "x:1", "0:1,2:3"] {
            assert!(wrong.parse::<Seen>().is_err(), "{wrong}");
        }
        assert_eq!(Seen::of(&HashMap::from([(2, 7), (0, 12)])).to_string(), "0:12 2:7");
    }

    #[test]
    fn a_view_has_seen_it_when_no_partition_is_behind() {
        let mut wanted = seen("0:12");
        wanted.merge(&seen("0:11 2:7"));
        assert_eq!(wanted, seen("0:12 2:7"));
        assert!(wanted.is_in(&HashMap::from([(0, 12), (1, 3), (2, 9)])));
        assert!(!wanted.is_in(&HashMap::from([(0, 11), (2, 9)])));
        assert!(!wanted.is_in(&HashMap::from([(0, 12)])));
        assert!(seen("").is_in(&HashMap::new()));
    }
}
