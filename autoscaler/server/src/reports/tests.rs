use imageflow_delivery::{
    Announcer, BacklogSource, Class, Delivery, DeliveryConfig, Demand, FunctionBacklog, Reporter as Sender,
};
use imageflow_pods::PodState;
use imageflow_pods::testing::FakeHost;
use imageflow_proto::peer::Peer;
use imageflow_types::function::{Concurrency, FunctionSpec};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;

use super::*;
use crate::inputs::FunctionScaling;

fn names() -> (FunctionName, RevisionName) {
    let function = FunctionName::new("resize").unwrap();
    let revision = RevisionName::of(&function, 1);
    (function, revision)
}

fn functions() -> Functions {
    let spec = FunctionSpec::of_operation("resize");
    let scaling = FunctionScaling {
        scale: spec.scale,
        concurrency: Concurrency::default(),
        batch: 1,
        resources: spec.resources,
        revisions: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
    };
    let other = FunctionName::new("blur").unwrap();
    [(names().0, Arc::new(scaling.clone())), (other, Arc::new(scaling))].into()
}

fn state(now: Instant) -> State {
    State {
        connections: 0,
        reporters: HashMap::new(),
        done: HashMap::new(),
        settled: now + SETTLE,
    }
}

fn report(reporter: &str, sequence: u64, functions: Vec<v1::FunctionStats>) -> v1::StatsReport {
    v1::StatsReport {
        schema_version: 1,
        reporter: reporter.to_owned(),
        sequence,
        functions,
        consumes_work: reporter.starts_with('d'),
        ..v1::StatsReport::default()
    }
}

fn working(in_flight: u32, completed_total: u64) -> v1::FunctionStats {
    let (function, revision) = names();
    v1::FunctionStats {
        function: function.to_string(),
        revision: revision.to_string(),
        in_flight,
        completed_total,
        service_ms_total: completed_total as f64 * 10.0,
        ..v1::FunctionStats::default()
    }
}

fn waiting(backlog: u64, backlog_age_ms: u64) -> v1::FunctionStats {
    v1::FunctionStats {
        function: names().0.to_string(),
        backlog,
        backlog_age_ms,
        ..v1::FunctionStats::default()
    }
}

/// Of all that was collected: in flight, completed, their time, backlog, age of the oldest.
fn sum(loads: &[FunctionLoad]) -> (u32, u64, u64, Option<u64>, Option<u64>) {
    let mine: Vec<_> = loads.iter().filter(|l| l.function == names().0).collect();
    (
        mine.iter().map(|l| l.in_flight).sum(),
        mine.iter().map(|l| l.completed_since).sum(),
        mine.iter().map(|l| l.service_ms_sum).sum(),
        mine.iter().filter_map(|l| l.backlog).max(),
        mine.iter().filter_map(|l| l.oldest_ms).max(),
    )
}

#[tokio::test(start_paused = true)]
async fn what_several_report_is_added_up_and_totals_are_counted_once() {
    let (start, all) = (Instant::now(), functions());
    let mut state = state(start);
    state
        .take(1, report("d1", 1, vec![working(2, 5), waiting(30, 700)]), start)
        .unwrap();
    state
        .take(2, report("d2", 1, vec![working(1, 1), waiting(12, 900)]), start)
        .unwrap();
    state
        .take(3, report("gateway", 9, vec![working(4, 100)]), start)
        .unwrap();
    let later = start + SETTLE;
    // The gateway was there before us: what it had done by then is not news.
    assert_eq!(sum(&state.collect(&all, later)), (7, 6, 60, Some(42), Some(900)));
    state.take(1, report("d1", 2, vec![working(0, 8)]), later).unwrap();
    state
        .take(3, report("gateway", 10, vec![working(0, 101)]), later)
        .unwrap();
    assert_eq!(sum(&state.collect(&all, later)), (1, 4, 40, Some(12), Some(900)));
    // A restart begins from 0.
    state.take(4, report("d1", 1, vec![working(1, 2)]), later).unwrap();
    assert_eq!(sum(&state.collect(&all, later)).1, 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_consumer_and_until_its_group_has_settled_a_backlog_is_not_known() {
    let (start, all) = (Instant::now(), functions());
    let mut state = state(start);
    let known = |state: &mut State, now| {
        let loads = state.collect(&all, now);
        let unknown = loads.iter().filter(|l| l.backlog.is_none()).count();
        assert!(unknown == 0 || unknown == all.len(), "{loads:?}");
        unknown == 0
    };
    state.take(1, report("gateway", 1, vec![]), start).unwrap();
    assert!(!known(&mut state, start + SETTLE), "no consumer");
    state.take(2, report("d1", 1, vec![]), start + SETTLE).unwrap();
    assert!(!known(&mut state, start + SETTLE));
    let settled = start + SETTLE * 2;
    assert!(known(&mut state, settled));
    state.take(3, report("d2", 1, vec![]), settled).unwrap();
    assert!(!known(&mut state, settled), "partitions move to the new one");
    let settled = settled + SETTLE;
    state.leave(3, settled);
    assert!(!known(&mut state, settled), "its partitions are nobody's");
    assert!(known(&mut state, settled + SETTLE));
    state.leave(2, settled + SETTLE);
    assert!(!known(&mut state, settled + SETTLE * 9), "the last one");
}

#[tokio::test(start_paused = true)]
async fn what_one_consumer_knows_while_partitions_move_is_a_part() {
    let (start, all) = (Instant::now(), functions());
    let mut state = state(start);
    let part = |state: &mut State, now| {
        let loads = state.collect(&all, now);
        let mine = loads.into_iter().find(|l| l.function == names().0).unwrap();
        (mine.backlog, mine.partial)
    };
    state.take(1, report("d1", 1, vec![waiting(5, 10)]), start).unwrap();
    state.take(2, report("d2", 1, vec![waiting(7, 10)]), start).unwrap();
    assert_eq!(part(&mut state, start), (Some(12), true));
    let settled = start + SETTLE;
    assert_eq!(part(&mut state, settled), (Some(12), false));
    state.leave(2, settled);
    assert_eq!(part(&mut state, settled), (Some(5), true));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_cannot_read_for_a_while_has_no_empty_backlog() {
    let (start, all) = (Instant::now(), functions());
    let mut state = state(start);
    let backlog = |state: &mut State, now| {
        let loads = state.collect(&all, now);
        loads.iter().find(|l| l.function == names().0).map(|l| l.backlog)
    };
    state.take(1, report("d1", 1, vec![waiting(5, 10)]), start).unwrap();
    let outage = start + SETTLE;
    assert_eq!(backlog(&mut state, outage), Some(Some(5)));
    let mut blind = report("d1", 2, vec![]);
    blind.consumes_work = false;
    state.take(1, blind, outage).unwrap();
    assert_eq!(backlog(&mut state, outage + SETTLE * 9), Some(None));
    let over = outage + SETTLE * 9;
    state.take(1, report("d1", 3, vec![]), over).unwrap();
    assert_eq!(backlog(&mut state, over), Some(None), "it reads, but not yet all");
    assert_eq!(backlog(&mut state, over + SETTLE), None, "nothing waits");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_made_again_is_not_ended_by_the_end_of_the_old_one() {
    let (start, all) = (Instant::now(), functions());
    let mut state = state(start);
    state.take(1, report("d1", 1, vec![working(2, 5)]), start).unwrap();
    state.take(2, report("d1", 2, vec![working(3, 6)]), start).unwrap();
    state.leave(1, start);
    let loads = state.collect(&all, start + SETTLE);
    assert_eq!((sum(&loads).0, sum(&loads).1), (3, 6));
}

struct Waits(Mutex<Vec<FunctionBacklog>>);

impl BacklogSource for Waits {
    fn backlogs(&self) -> Vec<FunctionBacklog> {
        self.0.lock().unwrap().clone()
    }
    fn reads(&self) -> bool {
        !self.0.lock().unwrap().is_empty()
    }
}

#[tokio::test]
async fn a_reporter_is_heard_over_a_real_connection() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (_keep, functions) = watch::channel(Arc::new(functions()));
    let reports = Reports::new(functions, stop.clone());
    let mut pokes = reports.pokes();
    let server = tonic::transport::Server::builder()
        .add_service(reports.service())
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    tasks.spawn(async move { server.await.unwrap() });

    let host = Arc::new(FakeHost::default());
    let delivery = Delivery::start(DeliveryConfig::default(), host.clone(), &tasks, &stop);
    let (function, revision) = names();
    let backlog = FunctionBacklog {
        function: function.clone(),
        waiting: 3,
        oldest_ms: Some(1_000),
        expected: 2,
    };
    let announcer = Announcer::default();
    let router = Sender {
        name: "router/r1".to_owned(),
        peer: Peer::new(url.clone(), None),
        pokes: announcer.pokes(),
        delivery: None,
        backlogs: None,
        clock: || 1_250,
    };
    let sender = Sender {
        name: "d1".to_owned(),
        peer: Peer::new(url, None),
        pokes: delivery.pokes(),
        delivery: Some(delivery.clone()),
        backlogs: Some(Arc::new(Waits(Mutex::new(vec![backlog])))),
        clock: || 1_250,
    };
    let end = stop.clone();
    tasks.spawn(async move { sender.run(end).await.unwrap() });
    let end = stop.clone();
    tasks.spawn(async move { router.run(end).await.unwrap() });
    let deadline = Instant::now() + PATIENCE;
    let held = {
        let (function, revision) = (function.clone(), revision.clone());
        async move {
            let slot = delivery.acquire(&function, &revision, Class::Batch, Demand::One, deadline);
            slot.await.unwrap()
        }
    };
    let held = tokio::spawn(held);
    assert_eq!(timeout(PATIENCE, pokes.recv()).await.unwrap().unwrap(), function);
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while sum(&reports.collect()).3 != Some(3) {
        assert!(Instant::now() < deadline);
        ticks.tick().await;
    }
    assert_eq!(sum(&reports.collect()).4, Some(250));
    let mut bound = reports.collect().into_iter().filter(|load| load.held_batch > 0);
    let bound: Vec<_> = bound.by_ref().map(|load| (load.revision, load.held_batch)).collect();
    assert_eq!(bound, [(Some(names().1), 1)], "which pod it waits for is told");
    assert_eq!(reports.collect().iter().map(|load| load.expected).sum::<u32>(), 2);
    host.add(&function, "127.0.0.1:1".parse().unwrap(), PodState::Ready);
    let slot = held.await.unwrap();
    while sum(&reports.collect()).0 != 1 {
        assert!(Instant::now() < deadline);
        ticks.tick().await;
    }
    drop(slot);
    // One that only announces; it takes no work, so nothing is unsettled by it.
    let announced = FunctionName::new("upscale").unwrap();
    announcer.announce(&announced, Instant::now());
    assert_eq!(timeout(PATIENCE, pokes.recv()).await.unwrap().unwrap(), announced);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
