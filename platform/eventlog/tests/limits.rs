//! What only the embedded log does: retention, its limits, its lock, a full disk.

#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use imageflow_eventlog::{
    Cleanup, ConsumerConfig, ConsumerEvent, Embedded, EmbeddedConfig, EventLog, LogError, NewRecord, OffsetCommit,
    Start, TopicSpec, Topics, Transaction,
};

const HOUR_MS: i64 = 3_600_000;

struct Timed {
    log: Arc<Embedded>,
    now_ms: Arc<AtomicI64>,
    _folder: tempfile::TempDir,
}

async fn timed(change: impl FnOnce(&mut EmbeddedConfig)) -> Timed {
    let folder = tempfile::tempdir().unwrap();
    let now_ms = Arc::new(AtomicI64::new(HOUR_MS));
    let mut config = EmbeddedConfig {
        reserve_bytes: 0,
        ..EmbeddedConfig::new(folder.path())
    };
    let clock = now_ms.clone();
    config.clock = Arc::new(move || clock.load(Ordering::Relaxed));
    change(&mut config);
    Timed {
        log: Embedded::open(config).await.unwrap(),
        now_ms,
        _folder: folder,
    }
}

impl Timed {
    async fn create(&self, cleanup: Cleanup) {
        self.log
            .ensure_topics(&[TopicSpec {
                name: "t".into(),
                partitions: 1,
                cleanup,
            }])
            .await
            .unwrap();
    }

    async fn put(&self, count: usize, bytes: usize) -> Result<(), LogError> {
        let record = || NewRecord::new("t").key("k").value(vec![1; bytes]);
        self.log.produce((0..count).map(|_| record()).collect()).await.map(drop)
    }

    async fn commit(&self, group: &str, offset: i64) -> Result<(), LogError> {
        let mut producer = self.log.transactional("committer").await?;
        let offsets = vec![OffsetCommit::new("t", 0, offset)];
        producer
            .commit(Transaction {
                offsets,
                group: group.into(),
                ..Default::default()
            })
            .await
            .map(drop)
    }

    async fn used(&self) -> u64 {
        self.log.usage().await.unwrap().bytes.unwrap()
    }

    /// Ends of the only partition.
    async fn ends(&self) -> (i64, i64) {
        let marks = self.log.watermarks("t").await.unwrap();
        (marks[0].low, marks[0].high)
    }

    async fn retain(&self) {
        self.log
            .run_retention(self.now_ms.load(Ordering::Relaxed))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn retention_deletes_what_is_old_but_never_what_a_known_group_has_not_committed() {
    let t = timed(|_| {}).await;
    t.create(Cleanup::Delete {
        retention: Some(Duration::from_secs(3600)),
        retention_bytes: None,
    })
    .await;
    t.put(2500, 10).await.unwrap();
    t.now_ms.fetch_add(HOUR_MS, Ordering::Relaxed);
    t.put(10, 10).await.unwrap();
    t.commit("slow", 100).await.unwrap();
    t.commit("fast", 2510).await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (100, 2510), "the slow group holds it");
    assert_eq!(t.log.read("t", 0, 0, 1).await.unwrap()[0].offset, 100);
    // A member that has committed nothing yet holds everything, also after it left.
    let member = t
        .log
        .consumer(ConsumerConfig::new("new", "m", Topics::Pattern("t".into())))
        .await
        .unwrap();
    t.commit("slow", 2505).await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (100, 2510));
    member.close().await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (100, 2510));
    t.log.delete_group("new").await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (2500, 2510), "the last ten are young");
    assert_eq!(t.log.lag("nobody", "t").await.unwrap(), 10);
}

#[tokio::test]
async fn retention_by_size_keeps_the_newest_records() {
    let t = timed(|_| {}).await;
    t.create(Cleanup::Delete {
        retention: None,
        retention_bytes: Some(50_000),
    })
    .await;
    t.put(100, 1000).await.unwrap();
    t.retain().await;
    let (low, high) = t.ends().await;
    let used = t.used().await;
    assert!((40_000..=50_000).contains(&used), "{used}");
    assert!(low > 40 && high == 100);
}

#[tokio::test]
async fn a_full_log_refuses_records_whole_takes_commits_and_goes_on_when_it_was_drained() {
    let t = timed(|config| config.limit_bytes = Some(100_000)).await;
    t.create(Cleanup::Delete {
        retention: Some(Duration::from_secs(1)),
        retention_bytes: None,
    })
    .await;
    t.put(90, 1000).await.unwrap();
    let before = t.log.usage().await.unwrap();
    match t.put(20, 1000).await {
        Err(error @ LogError::Full { used, limit: 100_000 }) => {
            assert!(Some(used) == before.bytes && error.is_retryable());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        (t.ends().await, t.log.usage().await.unwrap()),
        ((0, 90), before),
        "not even a part was written"
    );
    t.put(1, 1000).await.unwrap();
    t.commit("g", 91).await.unwrap();
    t.now_ms.fetch_add(HOUR_MS, Ordering::Relaxed);
    t.retain().await;
    assert_eq!(t.used().await, 0);
    t.put(20, 1000).await.unwrap();
    assert_eq!(t.ends().await, (91, 111));
}

#[tokio::test]
async fn a_nearly_full_log_lets_go_of_what_was_consumed_and_of_nothing_else() {
    let t = timed(|config| config.limit_bytes = Some(100_000)).await;
    t.create(Cleanup::Delete {
        retention: Some(Duration::from_secs(24 * 3600)),
        retention_bytes: None,
    })
    .await;
    t.put(50, 1000).await.unwrap();
    t.commit("g", 40).await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (0, 50), "there is room");
    t.put(40, 1000).await.unwrap();
    t.commit("late", 30).await.unwrap();
    t.retain().await;
    let (low, high) = t.ends().await;
    assert!((10..=30).contains(&low) && high == 90, "{low}");
    t.put(20, 1000).await.unwrap();
    t.retain().await;
    assert_eq!(t.ends().await, (30, 110), "the slowest group keeps the rest");
}

#[tokio::test]
async fn a_compacted_topic_holds_one_record_of_a_key_and_tombstones_go_in_the_end() {
    let t = timed(|_| {}).await;
    t.create(Cleanup::Compact).await;
    t.put(1, 1000).await.unwrap();
    let one = t.used().await;
    t.put(50, 1000).await.unwrap();
    t.put(1, 1000).await.unwrap();
    assert_eq!(t.used().await, one);
    let read = t.log.read("t", 0, 0, 100).await.unwrap();
    assert_eq!(read.iter().map(|r| r.offset).collect::<Vec<_>>(), [51]);
    t.log.produce(vec![NewRecord::tombstone("t", "k")]).await.unwrap();
    t.retain().await;
    assert_eq!(
        t.log.read("t", 0, 0, 100).await.unwrap().len(),
        1,
        "followers that are behind must see it"
    );
    t.now_ms.fetch_add(25 * HOUR_MS, Ordering::Relaxed);
    t.retain().await;
    assert_eq!(t.log.read("t", 0, 0, 100).await.unwrap(), vec![]);
    assert_eq!((t.used().await, t.ends().await), (0, (0, 53)));
}

#[tokio::test]
async fn a_folder_has_one_log_and_is_free_after_close() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        reserve_bytes: 0,
        ..EmbeddedConfig::new(folder.path())
    };
    let first = Embedded::open(config.clone()).await.unwrap();
    match Embedded::open(config.clone()).await {
        Err(LogError::InUse { path }) => assert_eq!(path, folder.path()),
        other => panic!("{:?}", other.err()),
    }
    first.close().await.unwrap();
    Embedded::open(config).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn closing_ends_everyone_who_waits() {
    let t = timed(|_| {}).await;
    t.create(Cleanup::Compact).await;
    let mut consumer = t
        .log
        .consumer(ConsumerConfig::new("g", "m", Topics::one("t")))
        .await
        .unwrap();
    assert!(matches!(
        consumer.poll(1).await.unwrap()[..],
        [ConsumerEvent::Assigned(_)]
    ));
    let mut follower = t.log.follow("t", Start::Earliest).await.unwrap();
    follower.next().await.unwrap();
    let (polled, followed, closed) = tokio::join!(consumer.poll(1), follower.next(), t.log.close());
    closed.unwrap();
    assert!(matches!(polled, Err(LogError::Closed)));
    assert!(matches!(followed, Err(LogError::Closed)));
    assert!(matches!(t.put(1, 1).await, Err(LogError::Closed)));
    assert!(matches!(t.log.topics().await, Err(LogError::Closed)));
    t.log.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_member_that_stopped_polling_loses_its_partition_after_the_session_timeout() {
    let t = timed(|_| {}).await;
    t.log.ensure_topics(&[TopicSpec::new("two", 2)]).await.unwrap();
    let mut stuck = t
        .log
        .consumer(ConsumerConfig::new("g", "stuck", Topics::one("two")))
        .await
        .unwrap();
    stuck.poll(1).await.unwrap();
    let start = tokio::time::Instant::now();
    let mut next = t
        .log
        .consumer(ConsumerConfig::new("g", "next", Topics::one("two")))
        .await
        .unwrap();
    let events = next.poll(1).await.unwrap();
    let [ConsumerEvent::Assigned(got)] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(start.elapsed() >= Duration::from_secs(15));
    let zombie = stuck.commit(vec![OffsetCommit::new("two", got[0].partition, 0)]).await;
    assert!(matches!(zombie, Err(LogError::NotAssigned { .. })));
    assert!(matches!(stuck.poll(1).await.unwrap()[..], [ConsumerEvent::Revoked(_)]));
}

#[tokio::test]
async fn many_topics_are_cheap_and_a_record_finds_its_member_among_them() {
    let t = timed(|_| {}).await;
    let specs: Vec<_> = (0..5000).map(|i| TopicSpec::new(format!("work.{i}"), 6)).collect();
    t.log.ensure_topics(&specs).await.unwrap();
    let pattern = Topics::Pattern("work.".into());
    let mut consumer = t.log.consumer(ConsumerConfig::new("g", "m", pattern)).await.unwrap();
    t.log
        .produce(vec![NewRecord::new("work.4321").key("k").value("v")])
        .await
        .unwrap();
    let mut assigned = 0;
    loop {
        for event in consumer.poll(10).await.unwrap() {
            match event {
                ConsumerEvent::Assigned(some) => assigned += some.len(),
                ConsumerEvent::Records(records) => {
                    assert_eq!((assigned, records[0].topic.as_str()), (30_000, "work.4321"));
                    return;
                }
                ConsumerEvent::Revoked(lost) => panic!("{lost:?}"),
            }
        }
    }
}

/// A small disk of its own for a test; `None` where it may not be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .output();
        mounted.is_ok_and(|out| out.status.success()).then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Two ways to meet the end of a disk: seen before (`reserve` left), and met while the store itself writes.
#[tokio::test]
async fn a_full_disk_loses_nothing_and_writing_goes_on_when_there_is_room_again() {
    for reserve_bytes in [24 << 20, 0] {
        let Some(disk) = SmallDisk::mount(96) else {
            println!("skipped: mounting a tmpfs is not allowed here");
            return;
        };
        let ballast = disk.path().join("ballast");
        std::fs::write(&ballast, vec![0; 40 << 20]).unwrap();
        let config = EmbeddedConfig {
            reserve_bytes,
            ..EmbeddedConfig::new(disk.path().join("log"))
        };
        let log = Embedded::open(config.clone()).await.unwrap();
        log.ensure_topics(&[TopicSpec::new("t", 1)]).await.unwrap();
        let put = || log.produce(vec![NewRecord::new("t").value(vec![3; 500_000])]);
        let mut acknowledged = Vec::new();
        loop {
            match put().await {
                Ok(positions) => acknowledged.push(positions[0].offset),
                Err(LogError::Full { .. }) => break,
                Err(error) => panic!("after {} records: {error:?}", acknowledged.len()),
            }
            assert!(acknowledged.len() < 200, "the disk never filled up");
        }
        let commit = Transaction {
            offsets: vec![OffsetCommit::new("t", 0, 1)],
            group: "g".into(),
            ..Default::default()
        };
        // Without a reserve both the producer's fence and the commit may meet the end of the disk.
        let committed = match log.transactional("c").await {
            Ok(mut producer) => producer.commit(commit).await,
            Err(error) => Err(error),
        };
        assert!(
            reserve_bytes == 0 || committed.is_ok(),
            "commits have a reserve: {committed:?}"
        );
        std::fs::remove_file(&ballast).unwrap();
        acknowledged.push(put().await.unwrap()[0].offset);
        log.close().await.unwrap();
        let log = Embedded::open(config).await.unwrap();
        for offset in acknowledged {
            assert_eq!(log.read("t", 0, offset, 1).await.unwrap()[0].offset, offset);
        }
        log.close().await.unwrap();
    }
}
