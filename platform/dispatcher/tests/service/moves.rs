//! Work whose dispatcher ends, or whose partition goes to another one.
use std::time::Duration;

use imageflow_dispatcher::DispatcherConfig;
use imageflow_pods::PodState;
use imageflow_types::{RunEvent, StepRequest, topics};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Call, Running, World, function, status, step, within, work};

const HALF: u32 = topics::WORK_PARTITIONS / 2;
/// What a patient dispatcher waits for what is with a pod: far longer than anything here takes on a machine that is busy.
const DRAIN: Duration = Duration::from_secs(60);

fn dispatch_patient(world: &World) -> Running {
    let config = DispatcherConfig {
        drain: DRAIN,
        ..DispatcherConfig::default()
    };
    world.dispatch_with(config, world.backlogs.clone())
}

#[tokio::test]
async fn a_step_under_way_at_shutdown_is_finished() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    tokio::join!(running.stop(), async { call.answer(status(202, "")) });
    assert_eq!(world.log.reports(&step.run).len(), 1);
    assert_eq!(world.log.kept(&work(), 0).await.map(|c| c.offset), Some(1));
    world.assert_idle();
}

#[tokio::test]
async fn a_step_that_takes_longer_than_the_shutdown_stays_uncommitted_and_is_delivered_again() {
    let world = World::new().await;
    let (long, done) = (step("long"), step("done"));
    let running = world.dispatch_hasty();
    world.give(&long, 0).await;
    world.give(&done, 1).await;
    let (long_call, done_call) = world.pod.two(&long.run, &done.run).await;
    done_call.answer(status(202, ""));
    world.completed(&done).await;
    running.stop().await;
    long_call.abandoned().await;
    assert!(world.log.reports(&long.run).is_empty());
    assert_eq!(world.log.kept(&work(), 0).await.map_or(0, |c| c.offset), 0);
    assert_eq!(world.log.kept(&work(), 1).await.map_or(0, |c| c.offset), 1);
    let world = world.reopen().await;
    let running = world.dispatch();
    let again = world.pod.call().await;
    assert_eq!((&again.run, again.attempt), (&long.run, 1));
    again.answer(status(202, ""));
    world.completed(&long).await;
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    assert!(world.pod.is_quiet().await);
}

#[tokio::test]
async fn what_waits_for_a_pod_or_its_next_attempt_is_given_up_at_once() {
    let world = World::without_pod(json!({"delivery": {"retry": 1, "backoffDelay": "1h", "ordering": "key"}})).await;
    let mut pokes = world.delivery.pokes();
    let running = dispatch_patient(&world);
    world.give(&step("waits"), 0).await;
    within("a poke", pokes.recv()).await.unwrap();
    let begun = Instant::now();
    running.stop().await;
    assert!(begun.elapsed() < DRAIN / 2, "{:?}", begun.elapsed());
    world.assert_idle();
    world.host.add(&function(), world.pod.addr, PodState::Ready);
    let running = dispatch_patient(&world);
    world.pod.call().await.answer(status(503, "later"));
    let failed = |event: &RunEvent| matches!(event, RunEvent::AttemptFailed { .. });
    let attempt = |_: &[_]| world.log.reports(&step("waits").run).iter().any(failed).then_some(());
    world.log.until("the failed attempt", attempt).await;
    let begun = Instant::now();
    running.stop().await;
    assert!(begun.elapsed() < DRAIN / 2, "{:?}", begun.elapsed());
    world.assert_idle();
}

/// The next so many calls.
async fn calls(world: &World, count: u32) -> Vec<Call> {
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(world.pod.call().await);
    }
    calls
}

fn first(partition: u32) -> StepRequest {
    step(&format!("p{partition}"))
}

/// Two steps of one key in every partition.
async fn fill(world: &World) {
    for partition in 0..topics::WORK_PARTITIONS {
        let second = StepRequest {
            stage: 1,
            ..first(partition)
        };
        world.give(&first(partition), partition).await;
        world.give(&second, partition).await;
    }
}

/// Everything was done once.
async fn assert_all_done(world: &World) {
    for partition in 0..topics::WORK_PARTITIONS {
        world.log.committed(&work(), partition, 2).await;
        // A machine that is busy may have one take so long that its start is reported, too.
        let reports = world.log.reports(&first(partition).run).into_iter();
        let ended = reports.filter(|event| matches!(event, RunEvent::StageCompleted { .. }));
        assert_eq!(ended.count(), 2);
    }
}

/// A second dispatcher joins while steps are under way, `at_once` of the two in each partition. In the half that moves they are
/// finished first, by the one that began them; the rest goes on unanswered meanwhile.
async fn finish_what_moves(world: World, at_once: u32) {
    let running = world.dispatch();
    fill(&world).await;
    let before = calls(&world, 2 * HALF * at_once).await;
    let second = world.dispatch_as("dispatcher-1");
    let revoked = world.log.revoked(&work(), HALF as usize).await;
    let moves = |call: &Call| revoked.iter().any(|partition| first(*partition).run == call.run);
    let (moved, stayed): (Vec<Call>, Vec<Call>) = before.into_iter().partition(moves);
    assert_eq!((moved.len(), stayed.len()), (stayed.len(), moved.len()));
    for call in moved {
        call.answer(status(202, ""));
    }
    // Of the partitions that moved, what was not begun: the other one has it.
    for call in calls(&world, HALF * (2 - at_once)).await {
        assert!(moves(&call), "{}", call.run);
        call.answer(status(202, ""));
    }
    for partition in &revoked {
        world.log.committed(&work(), *partition, 2).await;
    }
    for call in stayed {
        call.answer(status(202, ""));
    }
    for call in calls(&world, HALF * (2 - at_once)).await {
        call.answer(status(202, ""));
    }
    assert_all_done(&world).await;
    running.stop().await;
    second.stop().await;
    assert!(world.pod.is_quiet().await, "something was called twice");
    world.assert_idle();
}

#[tokio::test]
async fn a_second_dispatcher_takes_half_of_the_partitions_when_what_was_under_way_in_them_is_done() {
    finish_what_moves(World::new().await, 2).await;
}

#[tokio::test]
async fn ordered_steps_move_to_a_second_dispatcher_while_others_go_on() {
    finish_what_moves(World::with(json!({"ordering": "key"})).await, 1).await;
}

/// What was under way in the half that moves is given up, and delivered by the other.
async fn assert_given_up(world: &World, before: Vec<Call>) {
    let moved = calls(world, 2 * HALF).await;
    let (gone, stayed): (Vec<Call>, Vec<Call>) = before.into_iter().partition(|c| moved.iter().any(|m| m.run == c.run));
    assert_eq!((gone.len(), stayed.len()), (moved.len(), moved.len()));
    for call in gone {
        call.abandoned().await;
    }
    // Those of the partitions that stayed are with the pod, and no others.
    let backlog = world.backlogs.get(&function());
    assert_eq!((backlog.waiting, backlog.working), (0, u64::from(2 * HALF)));
    for call in stayed.into_iter().chain(moved) {
        call.answer(status(202, ""));
    }
    assert_all_done(world).await;
}

#[tokio::test]
async fn what_takes_too_long_in_a_partition_that_moves_is_given_up() {
    let world = World::new().await;
    let running = world.dispatch_hasty();
    fill(&world).await;
    let before = calls(&world, 4 * HALF).await;
    let second = world.dispatch_as("dispatcher-1");
    assert_given_up(&world, before).await;
    running.stop().await;
    second.stop().await;
    assert!(world.pod.is_quiet().await);
    world.assert_idle();
}

#[tokio::test]
async fn what_is_under_way_in_partitions_that_were_lost_is_given_up_at_once() {
    let world = World::new().await;
    let running = dispatch_patient(&world);
    fill(&world).await;
    let before = calls(&world, 4 * HALF).await;
    world.log.lose(true);
    let begun = Instant::now();
    let second = world.dispatch_as("dispatcher-1");
    world.log.revoked(&work(), HALF as usize).await;
    let moved = world.pod.call().await;
    assert!(begun.elapsed() < DRAIN / 2, "{:?}", begun.elapsed());
    world.log.lose(false);
    drop((before, moved));
    running.stop().await;
    second.stop().await;
}
