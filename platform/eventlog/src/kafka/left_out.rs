//! Topics that a group exists for and none of its members was given.
//!
//! The leader of a group asks the group's coordinator how many partitions the topics have that the members named. A broker
//! that does not know a new topic yet, although another one told a member of it, so has nothing of it assigned; and librdkafka
//! (2.12) leaves it at that, for what the members know changes no more. On brokers that have just started it happens about once
//! in thirty times. So a member looks at what came of a rebalance, and has the group assign anew what was left out.
//!
//! What goes from one member to another is assigned to nobody either, until the one who has it has finished and joins again: so
//! what a member said it had when it last joined is on its way, however long that takes.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;

use super::offsets::Asker;
use crate::types::Topics;

/// From a rebalance to the look at it, and between two looks: by then each member has heard of a new topic by itself
/// (`topic.metadata.refresh.interval.ms`) and asked for the rebalance that follows. What waits for another member to let go may
/// take far longer.
pub const PAUSE: Duration = Duration::from_secs(2);
/// Looks at a rebalance: a topic may be so new that its own rebalance is yet to come.
const LOOKS: u32 = 2;

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Look at the group.
    Look,
    /// Subscribe to everything again.
    Widen,
}

/// What a look has shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The topics that the group is to have.
    pub topics: Vec<String>,
    /// Those of them of which no partition is assigned to anybody, or was when its members joined last. One with some is on its
    /// way from one member to another: to have that assigned anew would take it back, and the rest from those who work on it.
    pub left_out: Vec<String>,
}

/// Decides when a member looks at its group, and what it does about what it saw.
#[derive(Debug, Default)]
pub struct Watch {
    /// Rebalances that this member heard of.
    heard: u64,
    /// Since the last rebalance, look or change; none when there is nothing to wait for.
    since: Option<Instant>,
    looks: u32,
    suspects: Vec<String>,
    narrowed: bool,
}

impl Watch {
    pub fn next(&mut self, heard: u64, now: Instant) -> Step {
        if heard != self.heard {
            self.heard = heard;
            self.begin(now);
        }
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) < PAUSE)
        {
            return Step::Nothing;
        }
        if self.narrowed {
            self.narrowed = false;
            self.begin(now);
            return Step::Widen;
        }
        self.since = Some(now);
        Step::Look
    }

    fn begin(&mut self, now: Instant) {
        self.since = Some(now);
        self.looks = 0;
        self.suspects.clear();
    }

    /// Takes what was seen, and says which topics are to be subscribed to for a while, so that those left out are new to the
    /// group when they come back: librdkafka joins again only when its list of topics changes. A look that began before the last
    /// rebalance that was `heard` of says nothing of what came of it.
    pub fn saw(&mut self, began: u64, heard: u64, seen: Seen) -> Option<Vec<String>> {
        if began != heard {
            return None;
        }
        self.looks += 1;
        let again = seen.left_out.iter().any(|topic| self.suspects.contains(topic));
        if again {
            self.narrowed = true;
            let Seen { mut topics, left_out } = seen;
            topics.retain(|topic| !left_out.contains(topic));
            return Some(topics);
        }
        if seen.left_out.is_empty() || self.looks >= LOOKS {
            self.since = None;
        }
        self.suspects = seen.left_out;
        None
    }
}

/// Looks at a group; nothing while it rebalances.
pub fn look(asker: &Asker, group: &str, topics: &Topics, timeout: Duration) -> Result<Option<Seen>, KafkaError> {
    let metadata = asker.fetch_metadata(None, timeout)?;
    let groups = asker.fetch_group_list(Some(group), timeout)?;
    let Some(group) = groups.groups().iter().find(|found| found.name() == group) else {
        return Ok(None);
    };
    if group.state() != "Stable" {
        return Ok(None);
    }
    let mut placed = HashSet::new();
    for member in group.members() {
        // What cannot be read says nothing, so nothing can be said of the whole either.
        let read = read_assigned(member.assignment().unwrap_or_default(), &mut placed)
            .and_then(|()| read_owned(member.metadata().unwrap_or_default(), &mut placed));
        if read.is_none() {
            return Ok(None);
        }
    }
    let mut seen = Seen::default();
    for topic in metadata.topics() {
        let name = topic.name();
        let wanted = match topics {
            Topics::Names(names) => names.iter().any(|wanted| wanted == name),
            Topics::Pattern(prefix) => name.starts_with(prefix),
        };
        if wanted && topic.error().is_none() && !topic.partitions().is_empty() {
            seen.topics.push(name.to_owned());
            if !placed.contains(name) {
                seen.left_out.push(name.to_owned());
            }
        }
    }
    Ok(Some(seen))
}

/// Adds the topics of which an assignment has partitions: `ConsumerProtocolAssignment` of Kafka's protocol, a version (int16)
/// and an array of topics with partitions. Counts and lengths are big-endian: int16 of strings, int32 of all else.
fn read_assigned(mut assignment: &[u8], topics: &mut HashSet<String>) -> Option<()> {
    // A member that was given nothing ever has not even a version.
    if assignment.is_empty() {
        return Some(());
    }
    let bytes = &mut assignment;
    let _version: [u8; 2] = take(bytes)?;
    read_topics(bytes, topics)
}

/// Adds the topics of which a member had partitions when it joined: `ConsumerProtocolSubscription`, a version, an array of the
/// names it subscribes to, bytes of the assignor's own, and from version 1 on an array of topics with partitions.
fn read_owned(mut subscription: &[u8], topics: &mut HashSet<String>) -> Option<()> {
    if subscription.is_empty() {
        return Some(());
    }
    let bytes = &mut subscription;
    let version = i16::from_be_bytes(take(bytes)?);
    for _ in 0..i32::from_be_bytes(take(bytes)?) {
        read_string(bytes)?;
    }
    // -1 is none.
    let own = i32::from_be_bytes(take(bytes)?).max(0);
    *bytes = bytes.get(usize::try_from(own).ok()?..)?;
    if version < 1 {
        return Some(());
    }
    read_topics(bytes, topics)
}

/// Topics with partitions: an array of a string and an array of partitions (int32) each.
fn read_topics(bytes: &mut &[u8], topics: &mut HashSet<String>) -> Option<()> {
    for _ in 0..i32::from_be_bytes(take(bytes)?) {
        let name = read_string(bytes)?;
        let partitions = usize::try_from(i32::from_be_bytes(take(bytes)?)).ok()?;
        *bytes = bytes.get(partitions.checked_mul(4)?..)?;
        if partitions > 0 {
            topics.insert(std::str::from_utf8(name).ok()?.to_owned());
        }
    }
    Some(())
}

fn read_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(i16::from_be_bytes(take(bytes)?)).ok()?;
    let (string, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(string)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(topics: &[&str], left_out: &[&str]) -> Seen {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Seen {
            topics: owned(topics),
            left_out: owned(left_out),
        }
    }

    #[test]
    fn what_two_looks_find_left_out_is_left_out_of_the_subscription_for_a_while() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |pauses: u32| start + PAUSE * pauses;
        assert_eq!(watch.next(0, at(9)), Step::Nothing, "it is in no group yet");
        let start = at(9);
        let at = |pauses: u32| start + PAUSE * pauses;
        assert_eq!(watch.next(1, at(0)), Step::Nothing);
        assert_eq!(watch.next(1, at(1)), Step::Look);
        assert_eq!(watch.saw(1, 1, seen(&["a", "b"], &["b"])), None, "it may be on its way");
        assert_eq!(watch.next(1, at(1)), Step::Nothing);
        assert_eq!(watch.next(1, at(2)), Step::Look);
        assert_eq!(watch.saw(1, 1, seen(&["a", "b"], &["b"])), Some(vec!["a".to_owned()]));
        // The group tells of that change.
        assert_eq!(watch.next(2, at(2)), Step::Nothing);
        assert_eq!(watch.next(2, at(3)), Step::Widen);
        assert_eq!(watch.next(3, at(3)), Step::Nothing);
        assert_eq!(watch.next(3, at(4)), Step::Look);
        assert_eq!(watch.saw(3, 3, seen(&["a", "b"], &[])), None);
        assert_eq!(
            watch.next(3, at(99)),
            Step::Nothing,
            "all is well until the next rebalance"
        );
    }

    #[test]
    fn a_topic_that_came_with_the_first_look_waits_for_its_own_rebalance() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |pauses: u32| start + PAUSE * pauses;
        assert_eq!(watch.next(1, at(0)), Step::Nothing);
        assert_eq!(watch.next(1, at(1)), Step::Look);
        assert_eq!(watch.saw(1, 1, seen(&["a"], &["a"])), None);
        assert_eq!(watch.next(2, at(2)), Step::Nothing, "a rebalance begins anew");
        assert_eq!(watch.next(2, at(3)), Step::Look);
        assert_eq!(watch.saw(2, 2, seen(&["a", "b"], &["b"])), None);
        // Without a look at the group, because no broker answered, it is asked again.
        assert_eq!(watch.next(2, at(4)), Step::Look);
        assert_eq!(watch.next(2, at(5)), Step::Look);
    }

    #[test]
    fn a_look_from_before_a_rebalance_says_nothing_of_what_came_of_it() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let at = |pauses: u32| start + PAUSE * pauses;
        assert_eq!(watch.next(1, at(0)), Step::Nothing);
        assert_eq!(watch.next(1, at(1)), Step::Look);
        assert_eq!(watch.saw(1, 1, seen(&["a", "b"], &["b"])), None);
        assert_eq!(watch.next(1, at(2)), Step::Look);
        // The group assigned it while the second look was under way.
        assert_eq!(watch.saw(1, 2, seen(&["a", "b"], &["b"])), None);
        assert_eq!(watch.next(2, at(2)), Step::Nothing);
        assert_eq!(watch.next(2, at(3)), Step::Look);
        assert_eq!(watch.saw(2, 2, seen(&["a", "b"], &[])), None);
    }

    /// Topics with so many partitions each.
    fn array(topics: &[(&str, u8)]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, u8::try_from(topics.len()).unwrap()];
        for (name, partitions) in topics {
            bytes.extend([0, u8::try_from(name.len()).unwrap()]);
            bytes.extend(name.as_bytes());
            bytes.extend([0, 0, 0, *partitions]);
            bytes.extend((0..*partitions).flat_map(|n| [0, 0, 0, n]));
        }
        bytes
    }

    #[test]
    fn an_assignment_is_read() {
        let mut topics = HashSet::new();
        let mut bytes = [vec![0, 3], array(&[("work.a", 2), ("work.b", 0)])].concat();
        let end = bytes.len();
        bytes.extend([0xff; 4]);
        assert_eq!(read_assigned(&bytes, &mut topics), Some(()));
        assert_eq!(read_assigned(&[], &mut topics), Some(()));
        assert_eq!(topics, HashSet::from(["work.a".to_owned()]));
        for cut in 1..end {
            assert_eq!(read_assigned(&bytes[..cut], &mut HashSet::new()), None, "{cut} bytes");
        }
    }

    #[test]
    fn what_a_member_had_when_it_joined_is_read() {
        let subscribed = [0, 0, 0, 1, 0, 3, b'a', b'.', b'b'];
        let owned = array(&[("work.a", 1), ("work.b", 0)]);
        // What follows from version 2 on is of no concern.
        for (version, own, rest) in [
            (1, vec![0, 0, 0, 2, 7, 7], vec![]),
            (3, vec![0xff; 4], vec![0, 0, 0, 9]),
        ] {
            let bytes = [&[0, version], &subscribed[..], &own, &owned, &rest].concat();
            let mut topics = HashSet::new();
            assert_eq!(read_owned(&bytes, &mut topics), Some(()));
            assert_eq!(topics, HashSet::from(["work.a".to_owned()]));
            for cut in 1..bytes.len() - rest.len() {
                assert_eq!(read_owned(&bytes[..cut], &mut HashSet::new()), None, "{cut} bytes");
            }
        }
        let old = [&[0, 0], &subscribed[..], &[0; 4]].concat();
        assert_eq!(
            read_owned(&old, &mut HashSet::new()),
            Some(()),
            "version 0 does not tell"
        );
        assert_eq!(read_owned(&[], &mut HashSet::new()), Some(()));
    }
}
