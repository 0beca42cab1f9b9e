//! Consumer groups.

use std::collections::BTreeSet;
use std::future::Future;
use std::task::Poll;

use super::Subject;
use super::support::{Member, Must, fail, name, record, topic, until_both, values, within};
use crate::{ConsumerConfig, LogError, MAX_COMMIT_METADATA_BYTES, OffsetCommit, Start, TopicPartition, Topics};

fn batch(topic: &str, from: u32, to: u32) -> Vec<crate::NewRecord> {
    (from..to)
        .map(|i| record(topic, &i.to_string(), &i.to_string()))
        .collect()
}

/// Two members hold all partitions, none of them twice, and each record reaches exactly one.
pub async fn members_share_the_partitions_of_a_group(subject: &mut dyn Subject) {
    let topic = topic(subject, "shared", 4).await;
    let mut a = Member::join(subject, "shared-group", "a", Topics::one(&topic)).await;
    let mut b = Member::join(subject, "shared-group", "b", Topics::one(&topic)).await;
    until_both(&mut a, &mut b, "sharing", |a, b| a.held.len() == 2 && b.held.len() == 2).await;
    assert!(a.held.keys().all(|tp| !b.held.contains_key(tp)));
    subject.log().produce(batch(&topic, 0, 100)).await.must("produce");
    until_both(&mut a, &mut b, "reading", |a, b| {
        a.records.len() + b.records.len() >= 100
    })
    .await;
    let mut seen = values(&[a.records, b.records].concat());
    seen.sort_by_key(|v| v.parse::<u32>().unwrap_or_default());
    assert_eq!(seen, (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
}

/// The owner may commit after it was told; the next owner gets that commit with its metadata and starts there.
pub async fn a_revoked_partition_is_handed_over_with_its_commit(subject: &mut dyn Subject) {
    let topic = topic(subject, "handed", 2).await;
    let load = |p: u32| (0..4).map(move |i| (p, i));
    let records = load(0)
        .chain(load(1))
        .map(|(p, i)| record(&topic, "k", &format!("{p}-{i}")).partition(p));
    subject.log().produce(records.collect()).await.must("produce");
    let mut a = Member::join(subject, "handed-group", "a", Topics::one(&topic)).await;
    a.until("reading all", |a| a.records.len() == 8).await;
    assert!(a.held.values().all(Option::is_none), "nothing was committed yet");
    let mut b = Member::join(subject, "handed-group", "b", Topics::one(&topic)).await;
    until_both(&mut a, &mut b, "revocation", |a, _| !a.revoked.is_empty()).await;
    let lost = a.revoked[0].partition;
    let commit = OffsetCommit::new(&topic, lost, 3).metadata("done: 0, 1, 2");
    a.commit(commit.clone()).await;
    until_both(&mut a, &mut b, "assignment", |_, b| !b.records.is_empty()).await;
    assert_eq!(b.held.get(&TopicPartition::new(&topic, lost)), Some(&Some(commit)));
    assert_eq!(values(&b.records), [format!("{lost}-3")]);
}

/// Closing hands over without waiting for a session to time out.
pub async fn a_closed_member_leaves_its_partitions_to_the_others(subject: &mut dyn Subject) {
    let topic = topic(subject, "closed", 2).await;
    let mut a = Member::join(subject, "closed-group", "a", Topics::one(&topic)).await;
    let mut b = Member::join(subject, "closed-group", "b", Topics::one(&topic)).await;
    until_both(&mut a, &mut b, "sharing", |a, b| a.held.len() == 1 && b.held.len() == 1).await;
    within("closing", a.consumer.close()).await.must("close");
    b.until("taking over", |b| b.held.len() == 2).await;
}

/// A partition that was given up, and metadata that is too long, are refused, and nothing is stored.
pub async fn only_the_owner_of_a_partition_commits_it(subject: &mut dyn Subject) {
    let topic = topic(subject, "owned", 2).await;
    subject
        .log()
        .produce((0..2).map(|p| record(&topic, "k", "v").partition(p)).collect())
        .await
        .must("produce");
    let mut a = Member::join(subject, "owned-group", "a", Topics::one(&topic)).await;
    a.until("assignment", |a| a.held.len() == 2).await;
    let long = OffsetCommit::new(&topic, 0, 1).metadata("x".repeat(MAX_COMMIT_METADATA_BYTES + 1));
    assert!(matches!(
        a.consumer.commit(vec![long]).await,
        Err(LogError::MetadataTooLarge { .. })
    ));
    let mut b = Member::join(subject, "owned-group", "b", Topics::one(&topic)).await;
    until_both(&mut a, &mut b, "sharing", |a, b| a.held.len() == 1 && b.held.len() == 1).await;
    let commits = vec![OffsetCommit::new(&topic, 0, 1), OffsetCommit::new(&topic, 1, 1)];
    match a.consumer.commit(commits).await {
        Err(LogError::NotAssigned { .. }) => {}
        other => fail(&format!("{other:?}")),
    }
    let stored = subject
        .log()
        .committed(&name(subject, "owned-group"), &topic)
        .await
        .must("committed");
    assert_eq!(stored, vec![(0, None), (1, None)]);
}

/// Topics that match and are created later are read from their first record.
pub async fn a_pattern_picks_up_new_topics(subject: &mut dyn Subject) {
    let first = topic(subject, "work.one", 1).await;
    let mut a = Member::join(subject, "work-group", "a", Topics::Pattern(name(subject, "work."))).await;
    subject
        .log()
        .produce(vec![record(&first, "k", "1")])
        .await
        .must("produce");
    a.until("the first topic", |a| a.records.len() == 1).await;
    let second = topic(subject, "work.two", 2).await;
    let other = topic(subject, "other", 1).await;
    let records = vec![record(&second, "k", "2"), record(&other, "k", "no")];
    subject.log().produce(records).await.must("produce");
    a.until("the second topic", |a| a.records.len() == 2).await;
    assert_eq!(values(&a.records), ["1", "2"]);
    assert_eq!(a.held.len(), 3);
    subject.log().delete_topic(&second).await.must("delete");
    a.until("the end of the second topic", |a| a.held.len() == 1).await;
}

/// Nothing of a paused partition is delivered; after resume all of it is.
pub async fn a_paused_partition_waits_for_resume(subject: &mut dyn Subject) {
    let topic = topic(subject, "paused", 2).await;
    let mut a = Member::join(subject, "paused-group", "a", Topics::one(&topic)).await;
    a.until("assignment", |a| a.held.len() == 2).await;
    a.consumer.pause(&topic, 0);
    let records = (0..20).map(|i| record(&topic, "k", &i.to_string()).partition(i % 2));
    subject.log().produce(records.collect()).await.must("produce");
    a.until("the other partition", |a| a.records.len() >= 10).await;
    assert!(a.records.iter().all(|r| r.partition == 1));
    a.consumer.resume(&topic, 0);
    a.until("both partitions", |a| a.records.len() == 20).await;
    assert_eq!(a.consumer.position(&topic, 0), Some(10));
}

/// Polls that are dropped at any moment lose and repeat nothing.
pub async fn a_dropped_poll_loses_nothing(subject: &mut dyn Subject) {
    let topic = topic(subject, "dropped", 3).await;
    let mut a = Member::join(subject, "dropped-group", "a", Topics::one(&topic)).await;
    let log = subject.log();
    let produce = async {
        for i in 0..50 {
            log.produce(batch(&topic, i * 4, i * 4 + 4)).await.must("produce");
        }
    };
    let consume = async {
        while a.records.len() < 200 {
            let mut polled = Box::pin(a.consumer.poll(3));
            let events = std::future::poll_fn(|cx| match polled.as_mut().poll(cx) {
                Poll::Ready(events) => Poll::Ready(Some(events)),
                Poll::Pending => Poll::Ready(None),
            })
            .await;
            drop(polled);
            match events {
                Some(events) => a.note(events.must("poll")),
                None => tokio::task::yield_now().await,
            }
        }
    };
    within("reading all", async { tokio::join!(produce, consume) }).await;
    let distinct: BTreeSet<String> = values(&a.records).into_iter().collect();
    assert_eq!((a.records.len(), distinct.len()), (200, 200));
}

/// `Start::Latest` skips what is there, but not what the group had committed before.
pub async fn latest_starts_after_what_is_there(subject: &mut dyn Subject) {
    let topic = topic(subject, "latest", 1).await;
    subject.log().produce(batch(&topic, 0, 3)).await.must("produce");
    let latest = |group: &str| ConsumerConfig {
        start: Start::Latest,
        ..ConsumerConfig::new(name(subject, group), "a", Topics::one(&topic))
    };
    let mut a = Member::join_as(subject, latest("latest-group")).await;
    a.until("assignment", |a| a.held.len() == 1).await;
    subject.log().produce(batch(&topic, 3, 5)).await.must("produce");
    a.until("the new records", |a| a.records.len() == 2).await;
    assert_eq!(values(&a.records), ["3", "4"]);
    a.commit(OffsetCommit::new(&topic, 0, 4)).await;
    within("closing", a.consumer.close()).await.must("close");
    let mut again = Member::join_as(subject, latest("latest-group")).await;
    again.until("the committed place", |a| !a.records.is_empty()).await;
    assert_eq!(values(&again.records), ["4"]);
}

/// Groups read the same records each; a deleted one starts anew.
pub async fn groups_are_independent_and_can_be_deleted(subject: &mut dyn Subject) {
    let topic = topic(subject, "groups", 1).await;
    subject.log().produce(batch(&topic, 0, 5)).await.must("produce");
    let mut a = Member::join(subject, "groups-a", "m", Topics::one(&topic)).await;
    let mut b = Member::join(subject, "groups-b", "m", Topics::one(&topic)).await;
    a.until("a", |m| m.records.len() == 5).await;
    b.until("b", |m| m.records.len() == 5).await;
    a.commit(OffsetCommit::new(&topic, 0, 5)).await;
    b.commit(OffsetCommit::new(&topic, 0, 2)).await;
    let (log, a_name, b_name) = (subject.log(), name(subject, "groups-a"), name(subject, "groups-b"));
    assert_eq!(log.lag(&a_name, &topic).await.must("lag"), 0);
    assert_eq!(log.lag(&b_name, &topic).await.must("lag"), 3);
    assert!(matches!(
        log.delete_group(&a_name).await,
        Err(LogError::GroupInUse { .. })
    ));
    within("closing", a.consumer.close()).await.must("close");
    log.delete_group(&a_name).await.must("delete_group");
    assert_eq!(log.lag(&a_name, &topic).await.must("lag"), 5);
    assert_eq!(log.lag(&b_name, &topic).await.must("lag"), 3);
}
