//! Retries that are far off leave the work topic, and come back.
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use imageflow_eventlog::{EventLog, NewRecord, OffsetCommit, TopicSpec};
use imageflow_types::manifest::Kind;
use imageflow_types::work::{Attempt, Delayed, StepError};
use imageflow_types::{ErrorCode, FunctionName, RunEvent, StepRequest, topics};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Entry, FUNCTION, World, commits, now_ms, status, step, work};

fn come_again(seconds: &'static str) -> axum::response::Response {
    let mut answer = status(503, "");
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    answer
}

#[tokio::test]
async fn a_step_that_waits_long_holds_no_offset_and_keeps_its_attempts_over_a_restart() {
    let world = World::with(json!({"retry": 1})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let asked = Instant::now();
    world.pod.call().await.answer(come_again("5"));
    world.log.committed(&work(), 0, 1).await;
    world.assert_idle();
    running.stop().await;

    let world = world.reopen().await;
    let running = world.dispatch();
    let call = world.pod.call().await;
    assert!(call.at - asked >= Duration::from_secs(5), "{:?}", call.at - asked);
    assert_eq!(call.attempt, 2);
    call.answer(status(503, ""));
    let RunEvent::StageFailed { attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!(attempts.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2]);
    running.stop().await;
}

#[tokio::test]
async fn a_step_whose_function_went_away_meanwhile_fails() {
    let world = World::with(json!({"retry": 1})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(come_again("5"));
    world.log.committed(&work(), 0, 1).await;
    world.resources.delete(Kind::Function, FUNCTION).await.unwrap();
    assert!(matches!(world.log.end(&step.run).await, RunEvent::StageFailed { .. }));
    running.stop().await;
}

#[tokio::test]
async fn a_step_that_has_grown_too_large_to_leave_waits_where_it_is() {
    let world = World::with(json!({"retry": 2})).await;
    let mut step = step("a");
    // One more does not fit beside it.
    let error = StepError {
        code: ErrorCode::FunctionFailed,
        message: "x".repeat(1024 * 1024 - 1_500),
        status: None,
        step: None,
    };
    step.attempts.push(Attempt {
        number: 1,
        at_ms: 0,
        error,
    });
    let running = world.dispatch();
    world.give(&step, 0).await;
    let asked = Instant::now();
    let mut answer = come_again("5");
    *answer.body_mut() = "y".repeat(1_000).into();
    world.pod.call().await.answer(answer);
    let call = tokio::select! {
        call = world.pod.call() => call,
        event = world.log.end(&step.run) => panic!("it ended: {event:?}"),
    };
    assert!(call.at - asked >= Duration::from_secs(5), "{:?}", call.at - asked);
    assert_eq!(call.attempt, 3);
    call.answer(status(202, ""));
    world.completed(&step).await;
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_delayed_step_that_does_not_fit_into_the_work_topic_fails_with_its_attempts() {
    let world = World::new().await;
    let mut step = step("a");
    let error = StepError {
        code: ErrorCode::FunctionFailed,
        message: String::new(),
        status: None,
        step: None,
    };
    step.attempts.push(Attempt {
        number: 1,
        at_ms: 0,
        error,
    });
    // Fits into the topic of delays, but in that of its function it has more headers.
    let delayed = |step: &StepRequest| {
        let step = step.clone();
        serde_json::to_vec(&Delayed { due_ms: 0, step }).unwrap()
    };
    let room = 1024 * 1024 - 1 - delayed(&step).len();
    step.attempts[0].error.message = "x".repeat(room);
    delay_raw(&world, delayed(&step), 0).await;
    let running = world.dispatch();
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert!(error.message.contains("does not fit"), "{error:?}");
    assert_eq!(attempts.len(), 1);
    world.log.committed(topics::DELAY, 0, 1).await;
    running.stop().await;
}

/// Headers of the first record of a topic, once there is one.
async fn first_headers(world: &World, topic: &str) -> Vec<(String, Bytes)> {
    let partitions = world.log.watermarks(topic).await.unwrap().len();
    for partition in 0..u32::try_from(partitions).unwrap() {
        if let Some(record) = world.log.read(topic, partition, 0, 1).await.unwrap().pop() {
            return record.headers;
        }
    }
    panic!("{topic} holds nothing")
}

#[tokio::test]
async fn what_the_writer_of_a_step_had_seen_stays_with_it_while_it_waits() {
    let world = World::with(json!({"retry": 1})).await;
    let seen = (topics::SEEN.to_owned(), Bytes::from(world.resources.seen().to_string()));
    let first = step("first");
    let record = NewRecord::new(work())
        .key(first.run.as_str().to_owned())
        .value(serde_json::to_vec(&first).unwrap())
        .header(topics::SEEN, seen.1.clone())
        .partition(0);
    world.log.produce(vec![record]).await.unwrap();
    let running = world.dispatch();
    world.pod.call().await.answer(come_again("3600"));
    world.log.committed(&work(), 0, 1).await;
    assert!(first_headers(&world, topics::DELAY).await.contains(&seen));
    running.stop().await;

    let world = World::new().await;
    let due = serde_json::to_vec(&Delayed {
        due_ms: 0,
        step: step("due"),
    });
    world.make_delays().await;
    let record = NewRecord::new(topics::DELAY)
        .value(due.unwrap())
        .header(topics::SEEN, seen.1.clone());
    world.log.produce(vec![record.key("x").partition(0)]).await.unwrap();
    let running = world.dispatch();
    world.pod.call().await.answer(status(202, ""));
    assert!(first_headers(&world, &work()).await.contains(&seen));
    running.stop().await;
}

/// Has a step wait, in a partition of the topic of delays.
pub async fn delay(world: &World, step: &StepRequest, due_ms: i64, partition: u32) {
    let value = serde_json::to_vec(&Delayed {
        due_ms,
        step: step.clone(),
    });
    delay_raw(world, value.unwrap(), partition).await;
}

async fn delay_raw(world: &World, value: Vec<u8>, partition: u32) {
    world.make_delays().await;
    let record = NewRecord::new(topics::DELAY).key("x").value(value).partition(partition);
    world.log.produce(vec![record]).await.unwrap();
}

#[tokio::test]
async fn a_topic_that_takes_nothing_does_not_hold_up_the_retries_of_others() {
    let world = World::new().await;
    let other: FunctionName = "other".parse().unwrap();
    let topic = topics::work(&other);
    world.log.ensure_topics(&[TopicSpec::new(&topic, 1)]).await.unwrap();
    world.log.shut(Some(&topic));
    let shut = StepRequest {
        function: other,
        ..step("shut")
    };
    delay(&world, &shut, 0, 0).await;
    let running = world.dispatch();
    let tried = async |times: usize| {
        let tries = |journal: &[Entry]| journal.iter().filter(|e| matches!(e, Entry::Shut)).count();
        let enough = |journal: &[Entry]| (tries(journal) >= times).then_some(());
        world.log.until("tries in vain", enough).await;
    };
    tried(1).await;
    delay(&world, &step("a"), 0, 0).await;
    world.pod.call().await.answer(status(202, ""));
    world.completed(&step("a")).await;
    // It is come back to, again and again.
    tried(3).await;
    world.log.shut(None);
    // There is no such function: its step fails as soon as it is there.
    assert!(matches!(world.log.end(&shut.run).await, RunEvent::StageFailed { .. }));
    world.log.committed(topics::DELAY, 0, 2).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_step_whose_partition_went_and_came_back_is_handed_back_once() {
    let world = World::new().await;
    // Not before all of them have moved to the second and back, on a machine that is busy, too.
    let due_ms = now_ms() + 6_000;
    let steps: Vec<StepRequest> = (0..6).map(|n| step(&format!("s{n}"))).collect();
    for (step, partition) in steps.iter().zip((0..topics::FEW_PARTITIONS).cycle()) {
        delay(&world, step, due_ms, partition).await;
    }
    let running = world.dispatch();
    world
        .log
        .until("all wait", |journal| {
            let read = journal.iter().map(|e| if let Entry::Delays(n) = e { *n } else { 0 });
            (read.sum::<usize>() >= steps.len()).then_some(())
        })
        .await;
    let second = world.dispatch_as("dispatcher-1");
    world.log.revoked(topics::DELAY, 1).await;
    second.stop().await;
    let completed = async {
        for step in &steps {
            world.completed(step).await;
        }
    };
    let answers = async {
        loop {
            // Should the second have been at work on one when it ended, nobody waits for that answer: it comes again.
            world.pod.call().await.offer(status(202, ""));
        }
    };
    tokio::select! {
        () = completed => {}
        () = answers => {}
    }
    for partition in 0..topics::FEW_PARTITIONS {
        world.log.committed(topics::DELAY, partition, 2).await;
    }
    let marks = world.log.watermarks(&work()).await.unwrap();
    assert_eq!(marks.iter().map(|m| m.high).sum::<i64>(), 6, "some came back twice");
    running.stop().await;
}

#[tokio::test]
async fn a_delayed_step_that_cannot_be_read_is_kept_as_a_dead_letter() {
    let world = World::new().await;
    delay_raw(&world, b"no step".to_vec(), 0).await;
    delay(&world, &step("a"), 0, 0).await;
    let running = world.dispatch();
    world.pod.call().await.answer(status(202, ""));
    world.completed(&step("a")).await;
    world.make_dead_letters().await;
    world.log.committed(topics::DELAY, 0, 2).await;
    let letters = world.dead_letters().await;
    let event = json!({"key": "x", "headers": [], "value": "no step"});
    assert_eq!((letters.len(), letters[0].event.clone()), (1, Some(event)));
    running.stop().await;
}

#[tokio::test]
async fn what_a_commit_at_a_rebalance_did_not_store_is_stored_later() {
    let world = World::new().await;
    // Steps of a function that is not there: each ends with a report, which the test holds.
    let nowhere: FunctionName = "nowhere".parse().unwrap();
    let of_partition = |partition: u32| StepRequest {
        function: nowhere.clone(),
        ..step(&format!("p{partition}"))
    };
    world.make_delays().await;
    for partition in 0..topics::FEW_PARTITIONS {
        world.log.hold(&of_partition(partition).run);
        delay(&world, &of_partition(partition), 0, partition).await;
    }
    let running = world.dispatch();
    world
        .log
        .until("all are on their way", |journal| {
            let holding = journal.iter().filter(|e| matches!(e, Entry::Holding(_)));
            (holding.count() == topics::FEW_PARTITIONS as usize).then_some(())
        })
        .await;
    // Something behind one of them is committed: by then nothing else is left to commit.
    let free = StepRequest {
        function: nowhere.clone(),
        ..step("free")
    };
    delay(&world, &free, 0, 0).await;
    world
        .log
        .until("a commit of what is done beyond", |journal| {
            let commits = commits(journal, topics::DELAY, 0);
            commits.iter().any(|c| !c.metadata.is_empty()).then_some(())
        })
        .await;
    let second = world.dispatch_as("dispatcher-1");
    let moved = world.log.revoked(topics::DELAY, 1).await;
    let stay: Vec<u32> = (0..topics::FEW_PARTITIONS).filter(|at| !moved.contains(at)).collect();
    world.log.lose(true);
    // While it waits for those that move, those that stay are written.
    for at in &stay {
        world.log.release(&of_partition(*at).run);
        world.log.end(&of_partition(*at).run).await;
    }
    let tries = |journal: &[Entry]| {
        let committing = journal.iter().filter_map(|entry| match entry {
            Entry::Committing(offsets) => Some(offsets),
            _ => None,
        });
        let of_delays = |offsets: &&Vec<OffsetCommit>| offsets.iter().any(|o| o.topic == topics::DELAY);
        committing.filter(of_delays).count()
    };
    let before = tries(&world.log.journal());
    for at in &moved {
        world.log.release(&of_partition(*at).run);
    }
    world
        .log
        .until("the commit of the rebalance", |journal| {
            (tries(journal) > before).then_some(())
        })
        .await;
    world.log.lose(false);
    for at in stay {
        world.log.committed(topics::DELAY, at, 1).await;
    }
    running.stop().await;
    second.stop().await;
}
