//! Records and offsets together or not at all.

use super::Subject;
use super::support::{Member, Must, fail, name, record, topic, until_both, values, within};
use crate::{LogError, MAX_RECORD_BYTES, NewRecord, OffsetCommit, Topics, Transaction};

/// Both topics and the offsets change together, and readers see it.
pub async fn a_transaction_writes_records_and_offsets_together(subject: &mut dyn Subject) {
    let (input, output) = (topic(subject, "tx-in", 1).await, topic(subject, "tx-out", 2).await);
    let log = subject.log();
    log.produce(vec![record(&input, "k", "in")]).await.must("produce");
    let mut worker = Member::join(subject, "tx-group", "w", Topics::one(&input)).await;
    worker.until("input", |m| m.records.len() == 1).await;
    let mut producer = log.transactional(&name(subject, "tx")).await.must("transactional");
    let transaction = Transaction {
        records: vec![
            record(&output, "a", "1").partition(0),
            record(&output, "b", "2").partition(1),
        ],
        offsets: vec![OffsetCommit::new(&input, 0, 1).metadata("m")],
        group: name(subject, "tx-group"),
        member: "w".to_owned(),
    };
    let positions = producer.commit(transaction).await.must("commit");
    assert_eq!(
        positions.iter().map(|p| (p.partition, p.offset)).collect::<Vec<_>>(),
        [(0, 0), (1, 0)]
    );
    assert_eq!(log.lag(&name(subject, "tx-group"), &input).await.must("lag"), 0);
    let mut reader = Member::join(subject, "tx-readers", "r", Topics::one(&output)).await;
    reader.until("output", |m| m.records.len() == 2).await;
    let mut seen = values(&reader.records);
    seen.sort();
    assert_eq!(seen, ["1", "2"]);
}

/// One record that is refused takes the others and the offsets with it; the producer goes on.
pub async fn a_refused_transaction_leaves_nothing(subject: &mut dyn Subject) {
    let (input, output) = (
        topic(subject, "refused-in", 1).await,
        topic(subject, "refused-out", 1).await,
    );
    let (log, group) = (subject.log(), name(subject, "refused-group"));
    log.produce(vec![record(&input, "k", "in")]).await.must("produce");
    let mut producer = log.transactional(&name(subject, "refused")).await.must("transactional");
    let large = NewRecord::new(&output).value(vec![0; MAX_RECORD_BYTES + 1]);
    let refused = Transaction {
        records: vec![record(&output, "k", "half"), large],
        offsets: vec![OffsetCommit::new(&input, 0, 1)],
        group: group.clone(),
        ..Transaction::default()
    };
    assert!(matches!(
        producer.commit(refused).await,
        Err(LogError::RecordTooLarge { .. })
    ));
    assert_eq!(log.lag(&group, &input).await.must("lag"), 1);
    let whole = Transaction {
        records: vec![record(&output, "k", "whole")],
        ..Transaction::default()
    };
    producer.commit(whole).await.must("commit");
    let mut reader = Member::join(subject, "refused-readers", "r", Topics::one(&output)).await;
    reader.until("output", |m| !m.records.is_empty()).await;
    assert_eq!(values(&reader.records), ["whole"]);
}

/// Taking over an id stops the older producer for good, also while it is in use.
pub async fn an_older_transactional_producer_is_fenced(subject: &mut dyn Subject) {
    let (topic, log) = (topic(subject, "fenced", 1).await, subject.log());
    let (id, other_id) = (name(subject, "fenced"), name(subject, "bystander"));
    let write = |value: &str| Transaction {
        records: vec![record(&topic, "k", value)],
        ..Transaction::default()
    };
    let mut old = log.transactional(&id).await.must("transactional");
    let mut other = log.transactional(&other_id).await.must("transactional");
    old.commit(write("1")).await.must("commit");
    let mut new = log.transactional(&id).await.must("transactional");
    for _ in 0..2 {
        match old.commit(write("zombie")).await {
            Err(error @ LogError::Fenced { .. }) => assert!(!error.is_retryable()),
            result => fail(&format!("{result:?}")),
        }
        new.commit(write("2")).await.must("commit");
    }
    other.commit(write("3")).await.must("commit");
    let mut reader = Member::join(subject, "fenced-readers", "r", Topics::one(&topic)).await;
    reader.until("output", |m| m.records.len() == 4).await;
    assert_eq!(values(&reader.records), ["1", "2", "2", "3"]);
}

/// A worker whose partition went to another one cannot finish the step in its place.
pub async fn a_transaction_of_a_member_that_lost_the_partition_is_refused(subject: &mut dyn Subject) {
    let (input, output) = (topic(subject, "lost-in", 2).await, topic(subject, "lost-out", 1).await);
    let log = subject.log();
    log.produce((0..2).map(|p| record(&input, "k", "in").partition(p)).collect())
        .await
        .must("produce");
    let mut a = Member::join(subject, "lost-group", "a", Topics::one(&input)).await;
    a.until("input", |m| m.records.len() == 2).await;
    let mut b = Member::join(subject, "lost-group", "b", Topics::one(&input)).await;
    until_both(&mut a, &mut b, "sharing", |a, b| a.held.len() == 1 && b.held.len() == 1).await;
    let step = |member: &str, partition: u32| Transaction {
        records: vec![record(&output, "k", member)],
        offsets: vec![OffsetCommit::new(&input, partition, 1)],
        group: name(subject, "lost-group"),
        member: member.to_owned(),
    };
    let lost = a.revoked[0].partition;
    let mut producer = log.transactional(&name(subject, "lost-tx")).await.must("transactional");
    match producer.commit(step("a", lost)).await {
        Err(LogError::NotAssigned { partition, .. }) => assert_eq!(partition, lost),
        result => fail(&format!("{result:?}")),
    }
    producer.commit(step("b", lost)).await.must("commit of the owner");
    // A commit is durable before its mark is in each partition, so who looks at once may see nothing yet.
    let mut reader = Member::join(subject, "lost-readers", "r", Topics::one(&output)).await;
    reader.until("output", |m| !m.records.is_empty()).await;
    assert_eq!(values(&reader.records), ["b"]);
}

/// Committing the positions after the last record leaves no lag, whatever a transaction puts behind it.
pub async fn after_a_transactional_burst_the_lag_is_zero(subject: &mut dyn Subject) {
    let (topic, log) = (topic(subject, "burst", 2).await, subject.log());
    let group = name(subject, "burst-group");
    let mut reader = Member::join(subject, "burst-group", "r", Topics::one(&topic)).await;
    let mut producer = log.transactional(&name(subject, "burst")).await.must("transactional");
    for i in 0..20 {
        let records = (0..2)
            .map(|p| record(&topic, "k", &i.to_string()).partition(p))
            .collect();
        producer
            .commit(Transaction {
                records,
                ..Transaction::default()
            })
            .await
            .must("commit");
    }
    assert!(log.lag(&group, &topic).await.must("lag") >= 40);
    reader.until("the burst", |m| m.records.len() == 40).await;
    within("no lag", async {
        loop {
            let position = |p| Some(OffsetCommit::new(&topic, p, reader.consumer.position(&topic, p)?));
            let commits = (0..2).filter_map(position).collect();
            reader.consumer.commit(commits).await.must("commit");
            if log.lag(&group, &topic).await.must("lag") == 0 {
                return;
            }
            // A poll moves the position past markers even when no record comes.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(50), reader.poll()).await;
        }
    })
    .await;
}
