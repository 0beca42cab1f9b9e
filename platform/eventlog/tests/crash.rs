//! A process that writes is killed at random moments; what it was told is durable must be there, and whole.

#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog, NewRecord, OffsetCommit, Record, TopicSpec, Transaction};
use rand::Rng;

const FOLDER: &str = "IMAGEFLOW_TEST_CRASH_FOLDER";
const ROUND: &str = "IMAGEFLOW_TEST_CRASH_ROUND";
const ROUNDS: u32 = 8;
const PARTITIONS: u32 = 3;
/// Records of one call, which must all be there or none.
const CALL: usize = 5;

async fn open(folder: &Path) -> Arc<Embedded> {
    let log = Embedded::open(EmbeddedConfig {
        reserve_bytes: 0,
        ..EmbeddedConfig::new(folder)
    })
    .await
    .unwrap();
    let topics = [
        TopicSpec::new("calls", PARTITIONS),
        TopicSpec::new("steps", 1),
        TopicSpec::compacted("state", 1),
    ];
    log.ensure_topics(&topics).await.unwrap();
    log
}

fn acknowledge(what: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {what}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what the killed process runs.
#[tokio::test]
async fn writer_to_be_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let round = std::env::var(ROUND).unwrap();
    let log = open(Path::new(&folder)).await;
    let producers = (0..4).map(|task| {
        let (log, round) = (log.clone(), round.clone());
        tokio::spawn(async move {
            for i in 0.. {
                let id = format!("{round}-{task}-{i}");
                let records = (0..CALL).map(|_| NewRecord::new("calls").value(id.clone()));
                log.produce(records.collect()).await.unwrap();
                acknowledge(&format!("call {id}"));
            }
        })
    });
    let producers: Vec<_> = producers.collect();
    // Consume, change, produce, as the router does: step n is finished when offset n + 1 is committed.
    let mut steps = log.transactional("router").await.unwrap();
    let mut next = log.watermarks("steps").await.unwrap()[0].high;
    loop {
        let transaction = Transaction {
            records: vec![
                NewRecord::new("steps").value(next.to_string()),
                NewRecord::new("state").key("run").value(next.to_string()),
            ],
            offsets: vec![OffsetCommit::new("steps", 0, next + 1).metadata(next.to_string())],
            group: "router".into(),
            ..Transaction::default()
        };
        steps.commit(transaction).await.unwrap();
        acknowledge(&format!("step {next}"));
        next += 1;
        assert!(producers.iter().all(|p| !p.is_finished()));
    }
}

async fn all(log: &Embedded, topic: &str) -> Vec<Record> {
    let mut records = Vec::new();
    for marks in log.watermarks(topic).await.unwrap() {
        let mut from = marks.low;
        while from < marks.high {
            let some = log.read(topic, marks.partition, from, 1000).await.unwrap();
            let Some(last) = some.last() else { break };
            from = last.offset + 1;
            records.extend(some);
        }
    }
    records
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_and_whole_after_kills_at_random_moments() {
    let folder = tempfile::tempdir().unwrap();
    let (mut calls, mut last_step) = (Vec::new(), -1);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_to_be_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut until_kill = rand::rng().random_range(1..400);
        // After the kill the pipe still holds acknowledgements: they count as well.
        while let Some(Ok(line)) = lines.next() {
            if let Some(id) = line.strip_prefix("ack call ") {
                calls.push(id.to_owned());
            } else if let Some(step) = line.strip_prefix("ack step ") {
                last_step = step.parse().unwrap();
            } else {
                continue;
            }
            until_kill -= 1;
            if until_kill == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(until_kill <= 0, "the writer ended by itself");

        let log = open(folder.path()).await;
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for record in all(&log, "calls").await {
            *found.entry(text(&record)).or_default() += 1;
        }
        assert!(found.values().all(|count| *count == CALL), "a call was written in part");
        for id in &calls {
            assert!(found.contains_key(id), "call {id} was acknowledged and is lost");
        }
        let steps: Vec<i64> = all(&log, "steps")
            .await
            .iter()
            .map(|r| text(r).parse().unwrap())
            .collect();
        let done = steps.len() as i64;
        assert_eq!(steps, (0..done).collect::<Vec<_>>());
        assert!(done > last_step, "step {last_step} was acknowledged, there are {done}");
        let state: Vec<String> = all(&log, "state").await.iter().map(text).collect();
        let expected = OffsetCommit::new("steps", 0, done).metadata((done - 1).to_string());
        if done > 0 {
            assert_eq!(state, [(done - 1).to_string()]);
            assert_eq!(
                log.committed("router", "steps").await.unwrap(),
                vec![(0, Some(expected))]
            );
        }
        for marks in log.watermarks("calls").await.unwrap() {
            let count = all(&log, "calls")
                .await
                .iter()
                .filter(|r| r.partition == marks.partition)
                .count();
            assert_eq!(marks.high, count as i64, "offsets have no gaps");
        }
        log.close().await.unwrap();
    }
    assert!(!calls.is_empty());
}
