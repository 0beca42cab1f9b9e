//! The dispatcher as a service: real log, resources, delivery and object store; the test plays the pod.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#[path = "service/attempts.rs"]
mod attempts;
#[path = "service/counts.rs"]
mod counts;
#[path = "service/delays.rs"]
mod delays;
#[path = "service/moves.rs"]
mod moves;
#[path = "service/order.rs"]
mod order;
#[path = "service/outages.rs"]
mod outages;
#[path = "service/panics.rs"]
mod panics;
#[path = "service/results.rs"]
mod results;
mod support;
#[path = "service/waits.rs"]
mod waits;

use bytes::Bytes;
use imageflow_dispatcher::DispatcherConfig;
use imageflow_eventlog::OffsetCommit;
use imageflow_objects::ObjectStore;
use imageflow_types::{ErrorCode, FunctionName, RunEvent, StepRequest, topics};
use serde_json::{Value, json};
use support::{Entry, FUNCTION, World, body, commits, function, status, step, work};

#[tokio::test]
async fn an_offset_is_committed_only_after_its_completion_is_in_the_run_events() {
    let world = World::new().await;
    let (first, second) = (step("first"), step("second"));
    world.log.hold(&first.run);
    let running = world.dispatch();
    world.give(&first, 0).await;
    world.pod.call().await.answer(status(202, ""));
    world
        .log
        .until("the report waits", |journal| {
            let holds = |e: &Entry| matches!(e, Entry::Holding(run) if *run == first.run);
            journal.iter().any(holds).then_some(())
        })
        .await;
    // Another step of the partition is done meanwhile: it is committed beyond the first one's offset, which stays.
    world.give(&second, 0).await;
    world.pod.call().await.answer(status(202, ""));
    world
        .log
        .until("the second is committed as done beyond the first", |journal| {
            let beyond = commits(journal, &work(), 0)
                .into_iter()
                .find(|c| !c.metadata.is_empty());
            beyond.map(|c| assert_eq!(c.offset, 0))
        })
        .await;
    assert!(world.log.reports(&first.run).is_empty());
    world.log.release(&first.run);
    world.log.committed(&work(), 0, 2).await;
    let journal = world.log.journal();
    let completed = |event: &RunEvent| matches!(event, RunEvent::StageCompleted { run, .. } if *run == first.run);
    let reported = |e: &Entry| matches!(e, Entry::Reported(event) if completed(event));
    let committing = |e: &Entry| matches!(e, Entry::Committing(offsets) if offsets.iter().any(|o| o.offset > 0));
    let reported = journal.iter().position(reported).unwrap();
    let committing = journal.iter().position(committing).unwrap();
    assert!(reported < committing, "{journal:?}");
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_report_that_cannot_be_written_is_written_later_and_only_then_committed() {
    let world = World::new().await;
    let step = step("a");
    world.log.refuse(1);
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 1).await;
    assert_eq!(world.log.reports(&step.run).len(), 1);
    running.stop().await;
    assert!(world.pod.is_quiet().await, "a report that fails is no new attempt");
    world.assert_idle();
}

#[tokio::test]
async fn what_finished_out_of_order_is_not_delivered_again_after_a_restart() {
    let world = World::new().await;
    let (slow, fast) = (step("slow"), step("fast"));
    let running = world.dispatch_hasty();
    world.give(&slow, 0).await;
    world.give(&fast, 0).await;
    let (slow_call, fast_call) = world.pod.two(&slow.run, &fast.run).await;
    fast_call.answer(status(202, ""));
    world.completed(&fast).await;
    running.stop().await;
    slow_call.abandoned().await;
    let kept = world.log.kept(&work(), 0).await.unwrap();
    assert_eq!(kept.offset, 0, "offsets are committed in order");
    assert!(!kept.metadata.is_empty(), "what is done beyond goes with the commit");
    let world = world.reopen().await;
    let running = world.dispatch();
    let call = world.pod.call().await;
    assert_eq!((&call.run, call.attempt), (&slow.run, 1));
    call.answer(status(202, ""));
    world.completed(&slow).await;
    assert_eq!(world.log.committed(&work(), 0, 2).await.metadata, "");
    running.stop().await;
    assert!(world.pod.is_quiet().await, "the finished one was delivered again");
    assert!(world.log.reports(&fast.run).is_empty());
    world.assert_idle();
}

#[tokio::test]
async fn while_the_object_store_is_down_steps_wait_and_nothing_is_lost() {
    // Without a single retry: an attempt would end the step.
    let world = World::with(json!({"retry": 0})).await;
    let step = step("a");
    world.store.down(true);
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.store.refused(2).await;
    assert!(world.pod.is_quiet().await, "no URL could be signed");
    assert_eq!(world.backlogs.get(&function()).waiting, 1);
    world.store.down(false);
    let call = world.pod.call().await;
    assert_eq!(call.attempt, 1);
    // It goes down again between the answer and the writing of it: what the pod did is done again, no attempt is counted.
    world.store.down(true);
    call.answer(body("image/png", b"lost"));
    world.store.refused(3).await;
    assert!(world.log.reports(&step.run).is_empty());
    assert_eq!(world.log.kept(&work(), 0).await.map_or(0, |c| c.offset), 0);
    world.store.down(false);
    let call = world.pod.call().await;
    assert_eq!(call.attempt, 1);
    call.answer(body("image/png", b"kept"));
    world.completed(&step).await;
    let (_, bytes) = world
        .store
        .get(topics::BUCKET_PROCESSED, &step.output.key, None)
        .await
        .unwrap();
    assert_eq!(bytes, Bytes::from_static(b"kept"));
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_partition_that_is_full_is_paused_and_goes_on_when_half_is_done() {
    let world = World::new().await;
    let config = DispatcherConfig {
        window: 2,
        ..DispatcherConfig::default()
    };
    let running = world.dispatch_with(config, world.backlogs.clone());
    let steps: Vec<StepRequest> = (0..10).map(|n| step(&format!("s{n}"))).collect();
    for step in &steps {
        world.give(step, 0).await;
    }
    for _ in &steps {
        world.pod.call().await.answer(status(202, ""));
    }
    world.log.committed(&work(), 0, 10).await;
    for step in &steps {
        assert_eq!(world.log.reports(&step.run).len(), 1);
    }
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn reading_gets_only_so_far_ahead_of_a_slow_step() {
    let world = World::new().await;
    let config = DispatcherConfig {
        window: 2,
        most_ahead: 4,
        ..DispatcherConfig::default()
    };
    let slow = step("slow");
    world.give(&slow, 0).await;
    let steps: Vec<StepRequest> = (0..10).map(|n| step(&format!("s{n}"))).collect();
    for step in &steps {
        world.give(step, 0).await;
    }
    let running = world.dispatch_with(config, world.backlogs.clone());
    let (slow_call, call) = world.pod.two(&slow.run, &steps[0].run).await;
    call.answer(status(202, ""));
    for _ in 1..3 {
        world.pod.call().await.answer(status(202, ""));
    }
    // What is not read is counted because the partition is paused, though the window is not full.
    let mut known = 0;
    for _ in 0..2 {
        let counts = |journal: &[Entry]| journal.iter().filter(|e| matches!(e, Entry::Counted(true))).count();
        known = world
            .log
            .until("another count", |journal| Some(counts(journal)).filter(|n| *n > known))
            .await;
    }
    assert!(world.pod.is_quiet().await, "it is read on");
    slow_call.answer(status(202, ""));
    for _ in 3..10 {
        world.pod.call().await.answer(status(202, ""));
    }
    world.log.committed(&work(), 0, 11).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_log_that_takes_less_metadata_gets_less() {
    let world = World::new().await;
    world.log.limit_metadata(0);
    let (slow, fast) = (step("slow"), step("fast"));
    let running = world.dispatch();
    world.give(&slow, 0).await;
    world.give(&fast, 0).await;
    let (slow_call, fast_call) = world.pod.two(&slow.run, &fast.run).await;
    fast_call.answer(status(202, ""));
    world
        .log
        .until("a commit that is too large", |journal| {
            let large =
                |e: &Entry| matches!(e, Entry::Committing(offsets) if offsets.iter().any(|o| !o.metadata.is_empty()));
            journal.iter().any(large).then_some(())
        })
        .await;
    slow_call.answer(status(202, ""));
    assert_eq!(world.log.committed(&work(), 0, 2).await.metadata, "");
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_work_record_that_cannot_be_read_is_kept_as_a_dead_letter_before_it_is_passed_by() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give_raw("x", b"no step".to_vec(), 0).await;
    world.give_raw("y", vec![0xff, 0], 0).await;
    world.give_raw("z", vec![0xff; 900_000], 0).await;
    // As long as a record may be, and quoted by who does not understand it.
    let text = format!("\"{}\"", "x".repeat(1024 * 1024 - 3));
    world.give_raw("q", text.into_bytes(), 0).await;
    world.give(&step, 0).await;
    // It holds up nothing while it cannot be kept, but is not passed by: there is no topic for it yet.
    world.pod.call().await.answer(status(202, ""));
    world
        .log
        .until("the step is committed as done beyond", |journal| {
            let beyond = |c: &OffsetCommit| c.offset == 0 && !c.metadata.is_empty();
            commits(journal, &work(), 0).iter().any(beyond).then_some(())
        })
        .await;
    world.make_dead_letters().await;
    world.log.committed(&work(), 0, 5).await;
    let mut letters = world.dead_letters().await;
    letters.sort_by(|one, other| one.id.cmp(&other.id));
    let [text, bytes, large, quoted] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!(text.id, format!("record-{}-0-0", work()));
    assert_eq!(
        (text.function.as_str(), text.error.code),
        (FUNCTION, ErrorCode::MalformedEvent)
    );
    assert!(text.error.message.contains("is no step"), "{text:?}");
    let kept = |value: Value, key: &str| Some(json!({"key": key, "headers": [], "value": value}));
    assert_eq!(text.event, kept(json!("no step"), "x"));
    assert_eq!(bytes.event, kept(json!({"base64": "/wA="}), "y"));
    assert_eq!(large.event, None, "as base64 it does not fit into a record");
    assert_eq!(quoted.event, None, "with its quotes escaped it does not");
    assert!(quoted.error.message.contains("is no step"), "{quoted:?}");
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn what_follows_in_the_flow_is_announced_when_a_step_comes_and_expected_until_it_is_done() {
    let world = World::new().await;
    let mut pokes = world.delivery.pokes();
    let next: FunctionName = "upscale".parse().unwrap();
    let step = StepRequest {
        next: vec![next.clone()],
        ..step("a")
    };
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    assert_eq!(pokes.recv().await.unwrap(), next, "it has no pod yet");
    assert_eq!(world.backlogs.expected(), [(next, 1)]);
    call.answer(status(202, ""));
    world.completed(&step).await;
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    world.assert_idle();
}
