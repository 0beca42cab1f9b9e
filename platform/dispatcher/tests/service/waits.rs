//! What is to be written waits for the log, and that is told.
use imageflow_types::topics;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::delays::delay;
use crate::support::{Entry, World, commits, status, step, within, work};

const GAUGE: &str = "imageflow_function_write_waits_seconds ";

/// Seconds that something waits as it is told; none when that is not told.
fn waits(metrics: &PrometheusHandle) -> Option<f64> {
    let text = metrics.render();
    text.lines().find_map(|line| line.strip_prefix(GAUGE)?.parse().ok())
}

async fn told(metrics: &PrometheusHandle, what: &str, is: impl Fn(f64) -> bool) {
    let told = async {
        while !waits(metrics).is_some_and(&is) {
            tokio::task::yield_now().await;
        }
    };
    within(what, told).await;
}

#[tokio::test]
async fn while_no_dead_letter_can_be_written_its_record_stays_and_the_wait_is_told() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    world.make_dead_letters().await;
    world.log.shut(Some(topics::DEAD_LETTERS));
    let running = world.dispatch();
    told(&metrics, "nothing waits", |seconds| seconds == 0.0).await;
    let last = step("a");
    world.give_raw("x", b"no step".to_vec(), 0).await;
    world.give(&last, 0).await;
    world.pod.call().await.answer(status(202, ""));
    world.completed(&last).await;
    // Longer than the pause between two tries: they are one wait.
    told(&metrics, "a letter waits", |seconds| seconds > 1.0).await;
    let tries = world.log.journal().iter().filter(|e| matches!(e, Entry::Shut)).count();
    assert!(tries > 1, "{tries}");
    assert!(commits(&world.log.journal(), &work(), 0).iter().all(|c| c.offset == 0));
    assert!(world.dead_letters().await.is_empty());
    world.log.shut(None);
    world.log.committed(&work(), 0, 2).await;
    assert_eq!(world.dead_letters().await.len(), 1);
    told(&metrics, "nothing waits any more", |seconds| seconds == 0.0).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_delayed_step_that_cannot_be_handed_back_is_told_until_the_dispatcher_ends() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    world.log.shut(Some(&work()));
    delay(&world, &step("a"), 0, 0).await;
    let running = world.dispatch_hasty();
    told(&metrics, "a step waits", |seconds| seconds > 1.0).await;
    running.stop().await;
    assert_eq!(waits(&metrics), Some(0.0), "another one waits for it by now");
}
