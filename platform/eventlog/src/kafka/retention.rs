//! Records go away by age here too, and never before they were read: Kafka's own retention knows no readers, so it is
//! switched off, and we delete what is old below the commits of every group.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::Offset;

use super::Handle;
use super::failure::{failed, storage};
use super::offsets::{End, at_time, ends, list};
use super::topics::millis;
use crate::error::{LogError, Result};
use crate::types::{Cleanup, TopicPartition, TopicSpec};

/// What the names of the platform's topics begin with: of others nothing is ours to delete.
const OURS: &str = "imageflow.";
/// Partitions of one question or one deletion.
const AT_ONCE: usize = 1000;

/// A partition that may be shortened.
struct Candidate {
    at: TopicPartition,
    low: i64,
    /// Past its records that are old enough.
    old: i64,
}

/// The first offset that has to stay. `commits` has what each group that ever committed on the topic committed on this
/// partition. A topic that nobody has read keeps everything: its reader may not have begun yet.
fn floor(low: i64, commits: &[Option<i64>]) -> i64 {
    let committed = commits.iter().map(|commit| commit.unwrap_or(low));
    committed.min().unwrap_or(low)
}

/// It may have read our topics, and not all of them: without its word nothing is deleted. Mostly it may not be looked at.
fn untold(group: &str, error: LogError) -> LogError {
    match error {
        LogError::Closed => error,
        error => {
            let source = error.source().map(|e| format!(": {e}")).unwrap_or_default();
            let why = format!(
                "how far the group \"{group}\" has read is not known ({error}{source}); if the brokers have ACLs, this user needs Describe on every group"
            );
            failed("asking for commits", why)
        }
    }
}

impl Handle {
    /// Deletes what is older than its topic's retention and below the commits of every group. Returns how many partitions
    /// were shortened.
    pub async fn run_retention(&self, now_ms: i64) -> Result<usize> {
        let mut candidates = self.candidates(now_ms).await?;
        candidates.retain(|c| c.old > c.low);
        if candidates.is_empty() {
            return Ok(0);
        }
        let read = self.read_by_groups(&candidates).await?;
        let mut shortened = Vec::new();
        for candidate in candidates {
            let none = Vec::new();
            let commits = read.get(&candidate.at).unwrap_or(&none);
            let until = candidate.old.min(floor(candidate.low, commits));
            if until > candidate.low {
                shortened.push((candidate.at, until));
            }
        }
        for chunk in shortened.chunks(AT_ONCE) {
            self.delete_before(chunk).await?;
        }
        Ok(shortened.len())
    }

    /// The partitions of topics with a retention: where they begin, and where what is old ends.
    async fn candidates(&self, now_ms: i64) -> Result<Vec<Candidate>> {
        let mut by_age: BTreeMap<Duration, Vec<TopicPartition>> = BTreeMap::new();
        for TopicSpec {
            name,
            partitions,
            cleanup,
        } in self.list().await?
        {
            let Cleanup::Delete {
                retention: Some(age), ..
            } = cleanup
            else {
                continue;
            };
            if !name.starts_with(OURS) {
                continue;
            }
            let all = (0..partitions).map(|p| TopicPartition::new(&name, p));
            by_age.entry(age).or_default().extend(all);
        }
        let mut found = Vec::new();
        for (age, partitions) in by_age {
            let before = now_ms.saturating_sub(i64::try_from(millis(age)).unwrap_or(i64::MAX));
            if before < 0 {
                continue;
            }
            for chunk in partitions.chunks(AT_ONCE) {
                let asked = chunk.to_vec();
                let (lows, olds) = self
                    .ask("asking for offsets", self.meta(), move |client, timeout| {
                        let lows = ends(client, &asked, End::First, timeout)?;
                        Ok((lows, at_time(client, &asked, before, timeout)?))
                    })
                    .await?;
                // One that has just gone is left out.
                let known = chunk.iter().cloned().zip(lows).zip(olds);
                found.extend(known.filter_map(|((at, low), old)| {
                    Some(Candidate {
                        at,
                        low: low?,
                        old: old?,
                    })
                }));
            }
        }
        Ok(found)
    }

    /// What each group that has committed on a topic has committed on its partitions.
    async fn read_by_groups(&self, candidates: &[Candidate]) -> Result<BTreeMap<TopicPartition, Vec<Option<i64>>>> {
        let groups = self
            .ask("asking for the groups", self.meta(), |client, timeout| {
                let groups = client.client().fetch_group_list(None, timeout)?;
                Ok(groups.groups().iter().map(|g| g.name().to_owned()).collect::<Vec<_>>())
            })
            .await?;
        let partitions: Vec<TopicPartition> = candidates.iter().map(|c| c.at.clone()).collect();
        let mut all: BTreeMap<TopicPartition, Vec<Option<i64>>> = BTreeMap::new();
        for group in groups {
            let mut found = Vec::with_capacity(partitions.len());
            for chunk in partitions.chunks(AT_ONCE) {
                let read = self.commits_on(&group, chunk.to_vec()).await;
                let read = read.map_err(|e| untold(&group, e))?;
                found.extend(read.into_iter().map(|commit| commit.map(|c| c.offset)));
            }
            let mut reads: Vec<&str> = Vec::new();
            for (at, _) in partitions.iter().zip(&found).filter(|(_, commit)| commit.is_some()) {
                if reads.last() != Some(&at.topic.as_str()) {
                    reads.push(&at.topic);
                }
            }
            for (at, commit) in partitions.iter().zip(&found) {
                if reads.contains(&at.topic.as_str()) {
                    all.entry(at.clone()).or_default().push(*commit);
                }
            }
        }
        Ok(all)
    }

    async fn delete_before(&self, partitions: &[(TopicPartition, i64)]) -> Result<()> {
        let fail = |e| storage("deleting old records", e, self.told.last_error());
        let ats: Vec<TopicPartition> = partitions.iter().map(|(at, _)| at.clone()).collect();
        let mut offsets = list(&ats, Offset::Invalid).map_err(fail)?;
        for (at, until) in partitions {
            offsets
                .set_partition_offset(&at.topic, at.partition.cast_signed(), Offset::Offset(*until))
                .map_err(fail)?;
        }
        let answer = self.admin.delete_records(&offsets, &self.admin_options()).await;
        for element in answer.map_err(fail)?.elements() {
            if let Err(error) = element.error() {
                let why = format!("{} {}: {error}", element.topic(), element.partition());
                return Err(failed("deleting old records", why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_reader_holds_a_partition_and_one_that_never_read_it_holds_all_of_it() {
        assert_eq!(floor(5, &[Some(9), Some(7)]), 7);
        assert_eq!(floor(5, &[Some(9), None]), 5);
        assert_eq!(floor(5, &[]), 5);
    }
}
