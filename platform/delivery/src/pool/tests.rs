use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use http::{Request, Response};
use hyper::service::service_fn;
use imageflow_pods::Pod;
use imageflow_pods::testing::FakeHost;
use tokio::task::JoinHandle;

use super::*;
use crate::Target;
use crate::error::DeliveryError;

fn names() -> (FunctionName, RevisionName) {
    let function = FunctionName::new("resize").unwrap();
    let revision = RevisionName::of(&function, 1);
    (function, revision)
}

fn own<'a>(function: &'a FunctionName, revision: &'a RevisionName) -> Target<'a> {
    Target {
        function,
        revision,
        stand_in: None,
    }
}

fn pod(id: &str, addr: std::net::SocketAddr, limit: u32, state: PodState) -> Pod {
    let (function, revision) = names();
    Pod::new(PodId::new(id), function, revision, addr, limit, state)
}

/// As many failed starts as end the patience of those who wait.
fn never_started() -> PodState {
    PodState::BackOff {
        until_ms: 0,
        failed_starts: DeliveryConfig::default().start_failures,
        reason: "no such program".into(),
    }
}

struct World {
    delivery: Arc<Delivery>,
    host: Arc<FakeHost>,
    stop: CancellationToken,
}

impl World {
    fn new(config: DeliveryConfig) -> Self {
        let host = Arc::new(FakeHost::default());
        let stop = CancellationToken::new();
        let delivery = Delivery::start(config, host.clone(), &TaskTracker::new(), &stop);
        Self { delivery, host, stop }
    }

    fn pods(&self, pods: impl IntoIterator<Item = Pod>) {
        let pods: BTreeMap<PodId, Pod> = pods.into_iter().map(|p| (p.id.clone(), p)).collect();
        self.host.table.send_replace(Arc::new(PodTable {
            pods,
            ..PodTable::default()
        }));
    }

    async fn acquire(&self, class: Class, demand: Demand) -> Result<Slot, DeliveryError> {
        let (function, revision) = names();
        let deadline = Instant::now() + Duration::from_secs(5);
        self.delivery
            .acquire(&function, &revision, class, demand, deadline)
            .await
    }

    /// Somebody who waits in a task of his own.
    fn spawn(&self, class: Class, demand: Demand, patience: Duration) -> JoinHandle<Result<Slot, DeliveryError>> {
        let delivery = self.delivery.clone();
        tokio::spawn(async move {
            let (function, revision) = names();
            let deadline = Instant::now() + patience;
            delivery.acquire(&function, &revision, class, demand, deadline).await
        })
    }

    /// Lets all others get as far as they can, and says how many calls and how many events are held then.
    async fn held(&self) -> (u32, u32) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let all = self.delivery.collect();
        all.first().map_or((0, 0), |stats| (stats.held, stats.held_batch))
    }
}

const PATIENT: Duration = Duration::from_secs(50);

const NOWHERE: std::net::SocketAddr = std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

#[tokio::test(start_paused = true)]
async fn a_request_is_held_until_a_pod_is_ready_and_pokes_once_there_is_none() {
    let world = World::new(DeliveryConfig::default());
    let mut pokes = world.delivery.pokes();
    let waiting = world.spawn(Class::Interactive, Demand::One, PATIENT);
    assert_eq!(pokes.recv().await.unwrap(), names().0);
    assert_eq!(world.delivery.collect()[0].held, 1);
    world.pods([pod("a", NOWHERE, 1, PodState::Ready)]);
    let slot = waiting.await.unwrap().unwrap();
    assert!(slot.cold());
    assert_eq!(world.delivery.collect()[0].in_flight, 1);
    drop(slot);
    assert_eq!(world.delivery.collect()[0].in_flight, 0);
    assert!(!world.acquire(Class::Batch, Demand::One).await.unwrap().cold());
}

#[tokio::test(start_paused = true)]
async fn no_pod_in_time_and_too_many_waiting_are_told() {
    let world = World::new(DeliveryConfig {
        max_held: 0,
        ..DeliveryConfig::default()
    });
    let error = world.acquire(Class::Interactive, Demand::One).await.err().unwrap();
    assert!(matches!(error, DeliveryError::Overloaded { .. }));
    let error = world.acquire(Class::Batch, Demand::One).await.err().unwrap();
    assert!(matches!(error, DeliveryError::NoSlot { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_free_too_late_is_not_asked() {
    let world = World::new(DeliveryConfig::default());
    world.pods([pod("a", NOWHERE, 1, PodState::Ready)]);
    let (function, revision) = names();
    let asked = AtomicU32::new(0);
    let request = || {
        asked.fetch_add(1, Ordering::SeqCst);
        Request::new(Bytes::new())
    };
    let called = world
        .delivery
        .call(own(&function, &revision), Duration::ZERO, request)
        .await;
    assert!(matches!(called, Err(DeliveryError::NoSlot { .. })), "{called:?}");
    assert_eq!(asked.into_inner(), 0);
}

#[tokio::test(start_paused = true)]
async fn alone_means_that_no_other_request_is_with_the_pod() {
    let world = World::new(DeliveryConfig::default());
    world.pods([pod("a", NOWHERE, 3, PodState::Ready)]);
    let one = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let alone = world.acquire(Class::Batch, Demand::Alone);
    tokio::pin!(alone);
    assert!(
        tokio::time::timeout(Duration::from_millis(10), &mut alone)
            .await
            .is_err()
    );
    drop(one);
    let alone = alone.await.unwrap();
    let another = world.acquire(Class::Batch, Demand::One);
    tokio::pin!(another);
    assert!(
        tokio::time::timeout(Duration::from_millis(10), &mut another)
            .await
            .is_err()
    );
    drop(alone);
    another.await.unwrap();
}

/// With one pod, which all others must leave to it, and with two.
#[tokio::test(start_paused = true)]
async fn who_wants_a_pod_alone_gets_one_although_others_never_stop() {
    for pods in 1..=2_u32 {
        let world = World::new(DeliveryConfig::default());
        world.pods(
            ["a", "b"][..pods as usize]
                .iter()
                .map(|id| pod(id, NOWHERE, 2, PodState::Ready)),
        );
        let mut busy = std::collections::VecDeque::new();
        for _ in 0..2 * pods {
            busy.push_back(world.acquire(Class::Interactive, Demand::One).await.unwrap());
        }
        let mut waiting: Vec<_> = (0..2)
            .map(|_| world.spawn(Class::Interactive, Demand::One, PATIENT))
            .collect();
        assert_eq!(world.held().await, (2, 0));
        let alone = world.spawn(Class::Batch, Demand::Alone, PATIENT);
        let behind = world.spawn(Class::Batch, Demand::One, PATIENT);
        assert_eq!(world.held().await, (2, 2));
        // As often as an answer comes, there is another call.
        for _ in 0..20 {
            drop(busy.pop_front());
            world.held().await;
            while let Some(served) = waiting.iter().position(JoinHandle::is_finished) {
                busy.push_back(waiting.swap_remove(served).await.unwrap().unwrap());
                waiting.push(world.spawn(Class::Interactive, Demand::One, PATIENT));
            }
            if alone.is_finished() {
                break;
            }
        }
        assert!(alone.is_finished(), "with {pods} pods");
        let alone = alone.await.unwrap().unwrap();
        assert!(busy.iter().all(|slot| slot.pod != alone.pod), "it has its pod alone");
        drop((alone, busy, waiting));
        behind.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_pod_alone_holds_nobody_up_whom_another_pod_can_take() {
    let world = World::new(DeliveryConfig::default());
    world.pods(["a", "b"].map(|id| pod(id, NOWHERE, 4, PodState::Ready)));
    let first = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let second = world.acquire(Class::Batch, Demand::One).await.unwrap();
    assert_ne!(first.pod, second.pod);
    let alone = world.spawn(Class::Batch, Demand::Alone, PATIENT);
    assert_eq!(world.held().await, (0, 1));
    let mut others = Vec::new();
    for class in [Class::Interactive, Class::Batch, Class::Batch, Class::Interactive] {
        others.push(world.acquire(class, Demand::One).await.unwrap());
    }
    assert_eq!(world.held().await, (0, 1));
    drop((first, second, others));
    alone.await.unwrap().unwrap();
}

/// One goes at the end of his patience, one for another reason.
#[tokio::test(start_paused = true)]
async fn the_pod_that_was_kept_for_one_who_went_takes_others_at_once() {
    for stays in [true, false] {
        let world = World::new(DeliveryConfig::default());
        world.pods([pod("a", NOWHERE, 8, PodState::Ready)]);
        let _busy = world.acquire(Class::Batch, Demand::One).await.unwrap();
        let begun = Instant::now();
        let alone = world.spawn(Class::Batch, Demand::Alone, PATIENT / 2);
        assert_eq!(world.held().await, (0, 1));
        let calls: Vec<_> = (0..5)
            .map(|_| world.spawn(Class::Interactive, Demand::One, PATIENT))
            .collect();
        let (held, events) = world.held().await;
        assert!(held > 0 && events == 1, "it is kept");
        if stays {
            assert!(alone.await.unwrap().is_err());
            assert_eq!(begun.elapsed(), PATIENT / 2);
        } else {
            alone.abort();
        }
        assert_eq!(world.held().await, (0, 0));
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }
}

/// Its callers see a pod's end before its host: another request must not meet the same end, and be blamed for it.
#[tokio::test(start_paused = true)]
async fn a_pod_that_lost_a_request_is_asked_again_when_it_has_started_again_or_after_a_while() {
    let world = World::new(DeliveryConfig::default());
    let first = pod("a", NOWHERE, 1, PodState::Ready);
    world.pods([first.clone()]);
    let lost = world.acquire(Class::Batch, Demand::One).await.unwrap();
    world.delivery.distrust(&lost);
    drop(lost);
    let next = world.acquire(Class::Batch, Demand::Alone);
    tokio::pin!(next);
    let early = tokio::time::timeout(DISTRUST / 2, &mut next).await;
    assert!(early.is_err(), "it is as it was");
    // The host tells of another pod, and of this one what it told before.
    world.pods([first.clone(), pod("b", NOWHERE, 1, PodState::Starting)]);
    let early = tokio::time::timeout(DISTRUST / 4, &mut next).await;
    assert!(early.is_err(), "it is as it was");
    let begun = Instant::now();
    world.pods([Pod { restarts: 1, ..first }]);
    let slot = next.await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(10), "it has started again");

    world.delivery.distrust(&slot);
    drop(slot);
    let begun = Instant::now();
    let slot = world.acquire(Class::Batch, Demand::One).await.unwrap();
    assert!(begun.elapsed() >= DISTRUST, "nobody said that it died");
    // Of an end that was before its last start nothing follows.
    let before = Slot {
        delivery: Weak::new(),
        pod: slot.pod.clone(),
        addr: std::net::SocketAddr::new(NOWHERE.ip(), 2),
        revision: slot.revision.clone(),
        class: Class::Batch,
        weight: 1,
        cold: false,
        crowd: Arc::default(),
        lent: None,
    };
    world.delivery.distrust(&before);
    drop(slot);
    let begun = Instant::now();
    world.acquire(Class::Batch, Demand::One).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_lost_with_a_pod_is_told_how_many_were_until_it_has_started_again() {
    let world = World::new(DeliveryConfig::default());
    let first = pod("a", NOWHERE, 3, PodState::Ready);
    world.pods([first.clone()]);
    let mut slots = Vec::new();
    for _ in 0..3 {
        slots.push(world.acquire(Class::Batch, Demand::One).await.unwrap());
    }
    while let Some(slot) = slots.pop() {
        assert_eq!(world.delivery.beside(&slot), 2);
        world.delivery.distrust(&slot);
    }
    world.pods([Pod { restarts: 1, ..first }]);
    let slot = world.acquire(Class::Batch, Demand::One).await.unwrap();
    assert_eq!(world.delivery.beside(&slot), 0);
}

#[tokio::test(start_paused = true)]
async fn who_shares_a_pod_with_others_gives_it_its_share_only() {
    let world = World::new(DeliveryConfig::default());
    let (_, revision) = names();
    let one = pod("a", NOWHERE, 3, PodState::Ready);
    let table = |sharers: u32| {
        Arc::new(PodTable {
            pods: [(one.id.clone(), one.clone())].into(),
            sharers: [(revision.clone(), sharers)].into(),
            ..PodTable::default()
        })
    };
    world.host.table.send_replace(table(2));
    let _first = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let _second = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let third = world.acquire(Class::Batch, Demand::One);
    tokio::pin!(third);
    let early = tokio::time::timeout(Duration::from_millis(10), &mut third).await;
    assert!(early.is_err(), "two of three slots are its share");
    world.host.table.send_replace(table(1));
    third.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pods_that_never_start_fail_the_waiting_with_the_reason() {
    let world = World::new(DeliveryConfig::default());
    world.pods([pod("a", NOWHERE, 1, PodState::Starting)]);
    let waiting = world.spawn(Class::Batch, Demand::One, PATIENT);
    assert_eq!(world.held().await, (0, 1));
    world.pods([pod("a", NOWHERE, 1, never_started())]);
    let error = waiting.await.unwrap().err().unwrap();
    assert!(error.to_string().contains("no such program"), "{error}");
    assert_eq!(error.code(), imageflow_types::ErrorCode::StartFailed);
}

/// Told that the platform closes, a step waited for that for ever.
#[tokio::test(start_paused = true)]
async fn who_looks_when_the_failure_is_over_waits_on() {
    let world = World::new(DeliveryConfig::default());
    world.pods([pod("a", NOWHERE, 1, PodState::Starting)]);
    let first = world.spawn(Class::Batch, Demand::One, PATIENT);
    let second = world.spawn(Class::Batch, Demand::One, PATIENT);
    assert_eq!(world.held().await, (0, 2));
    // Both are sent away, and before they look the pod is given up and its queue forgotten.
    let table = |pods: &[Pod]| PodTable {
        pods: pods.iter().map(|p| (p.id.clone(), p.clone())).collect(),
        ..PodTable::default()
    };
    let failed = table(&[pod("a", NOWHERE, 1, never_started())]);
    world.delivery.follow(&failed, Instant::now());
    world.pods([]);
    world.delivery.follow(&table(&[]), Instant::now());
    assert!(world.delivery.collect().iter().all(|stats| stats.held_batch == 0));
    let mut pokes = world.delivery.pokes();
    assert_eq!(world.held().await, (0, 2));
    assert_eq!(pokes.try_recv().unwrap(), names().0, "a pod is asked for");
    // Again, and before they look another pod is ready.
    world.delivery.follow(&failed, Instant::now());
    let ready = pod("b", NOWHERE, 1, PodState::Ready);
    world
        .delivery
        .follow(&table(std::slice::from_ref(&ready)), Instant::now());
    world.pods([ready]);
    drop(first.await.unwrap().unwrap());
    drop(second.await.unwrap().unwrap());
    // To close is another thing.
    let slot = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let third = world.spawn(Class::Batch, Demand::One, PATIENT);
    assert_eq!(world.held().await, (0, 1));
    world.stop.cancel();
    let error = third.await.unwrap().err().unwrap();
    assert!(matches!(error, DeliveryError::Closing), "{error}");
    drop(slot);
}

/// Kubernetes keeps the pods that it evicted: with one of them about, every later cold start failed at once.
#[tokio::test(start_paused = true)]
async fn an_evicted_pod_does_not_fail_who_waits_for_the_next() {
    let world = World::new(DeliveryConfig::default());
    let evicted = pod(
        "a",
        NOWHERE,
        1,
        PodState::Failed {
            reason: "Evicted".into(),
        },
    );
    let mut pokes = world.delivery.pokes();
    world.pods([evicted.clone()]);
    let waiting = world.spawn(Class::Interactive, Demand::One, PATIENT);
    assert_eq!(pokes.recv().await.unwrap(), names().0, "a pod is asked for");
    assert_eq!(world.held().await, (1, 0));
    let starting = pod("b", NOWHERE, 1, PodState::Starting);
    world.pods([evicted.clone(), starting.clone()]);
    let another = world.spawn(Class::Interactive, Demand::One, PATIENT);
    assert_eq!(world.held().await, (2, 0));
    world.pods([
        evicted,
        Pod {
            state: PodState::Ready,
            ..starting
        },
    ]);
    drop(waiting.await.unwrap().unwrap());
    another.await.unwrap().unwrap();
}

/// A pod that answers its first request so and the others so.
async fn server(answer: fn(bool) -> Response<Full<Bytes>>) -> (std::net::SocketAddr, Arc<AtomicU32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicU32::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            let service = service_fn(move |_: Request<hyper::body::Incoming>| {
                let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
                async move { Ok::<_, Infallible>(answer(first)) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    (addr, seen)
}

/// Refuses the first request and answers the second.
fn refusing(first: bool) -> Response<Full<Bytes>> {
    let response = Response::builder();
    let response = if first {
        response.status(503).header("imageflow-refused", "concurrency")
    } else {
        response.status(200)
    };
    response.body(Full::new(Bytes::from_static(b"ok"))).unwrap()
}

#[tokio::test]
async fn a_refusal_is_no_attempt_and_is_tried_again() {
    let world = World::new(DeliveryConfig::default());
    let (addr, seen) = server(refusing).await;
    world.pods([pod("a", addr, 2, PodState::Ready)]);
    let (function, revision) = names();
    let request = || Request::post("/x?y=1").body(Bytes::new()).unwrap();
    let (answer, _) = world
        .delivery
        .call(own(&function, &revision), Duration::from_secs(5), request)
        .await
        .unwrap();
    assert_eq!((answer.status().as_u16(), seen.load(Ordering::SeqCst)), (200, 2));
    assert_eq!(world.delivery.collect()[0].completed, 1);
    world.stop.cancel();
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_is_no_attempt() {
    let world = World::new(DeliveryConfig::default());
    world.pods([pod("a", NOWHERE, 2, PodState::Ready)]);
    let slot = world.acquire(Class::Batch, Demand::One).await.unwrap();
    let request = Request::post("/").body(Bytes::new()).unwrap();
    let error = world
        .delivery
        .send(&slot, request, Duration::from_secs(5))
        .await
        .err()
        .unwrap();
    assert!(!error.is_attempt(), "{error}");
}

#[tokio::test]
async fn a_call_whose_answer_finds_no_room_is_no_attempt() {
    const LARGE: usize = 100 << 10;
    let room = 2 * LARGE - 1024;
    let world = World::new(DeliveryConfig {
        max_answers_bytes: room,
        ..DeliveryConfig::default()
    });
    let (addr, _) = server(|_| Response::new(Full::from(vec![7; LARGE]))).await;
    world.pods([pod("a", addr, 2, PodState::Ready)]);
    let send = || {
        let (slot, delivery) = (world.spawn(Class::Batch, Demand::One, PATIENT), world.delivery.clone());
        let request = Request::post("/").body(Bytes::new()).unwrap();
        tokio::spawn(async move { delivery.send(&slot.await.unwrap().unwrap(), request, PATIENT).await })
    };
    let first = send().await.unwrap().unwrap();
    assert_eq!(world.delivery.room_for_answers(), room - LARGE);
    let second = send();
    // Who waits has what there is.
    while world.delivery.room_for_answers() > 0 && !second.is_finished() {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(PATIENT).await;
    let error = second.await.unwrap().err().unwrap();
    assert!(
        matches!(error, DeliveryError::NoRoom(_)) && !error.is_attempt(),
        "{error}"
    );
    assert_eq!(world.delivery.room_for_answers(), room - LARGE);
    tokio::time::resume();
    drop(first);
    assert_eq!(send().await.unwrap().unwrap().body().len(), LARGE);
    assert_eq!(world.delivery.room_for_answers(), room);
}

/// A GPU function without a pod: its callers go to who stands in for it as soon as that one has a pod, and it keeps asking for its
/// own all the same; with a pod of its own on its way nobody is sent elsewhere any more.
#[tokio::test(start_paused = true)]
async fn who_has_no_pod_is_served_by_who_stands_in() {
    let world = World::new(DeliveryConfig::default());
    let other = FunctionName::new("resize-cpu").unwrap();
    let other = (other.clone(), RevisionName::of(&other, 1));
    let cpu = |id: &str| {
        Pod::new(
            PodId::new(id),
            other.0.clone(),
            other.1.clone(),
            NOWHERE,
            4,
            PodState::Ready,
        )
    };
    let call = |class| {
        let (delivery, other) = (world.delivery.clone(), other.clone());
        tokio::spawn(async move {
            let (function, revision) = names();
            let target = Target {
                stand_in: Some(&other),
                ..own(&function, &revision)
            };
            let deadline = Instant::now() + Duration::from_secs(5);
            delivery.acquire_for(target, class, Demand::One, deadline).await
        })
    };
    let waits = || {
        let all = world.delivery.collect();
        let mine = all.into_iter().find(|stats| stats.revision == names().1);
        mine.map_or((0, 0), |stats| (stats.held, stats.lent))
    };
    let mut pokes = world.delivery.pokes();
    let waiting = call(Class::Interactive);
    assert_eq!(pokes.recv().await.unwrap(), names().0, "its own pods are asked for");
    world.pods([cpu("c")]);
    let slot = waiting.await.unwrap().unwrap();
    assert_eq!((slot.revision(), waits()), (&other.1, (0, 1)));
    let batch = call(Class::Batch).await.unwrap().unwrap();
    assert_eq!(
        (batch.revision(), waits()),
        (&other.1, (0, 1)),
        "a record counts in its own topic"
    );
    drop((slot, batch));
    assert_eq!(waits(), (0, 0));
    // Its own pod starts: callers wait for that one.
    world.pods([cpu("c"), pod("a", NOWHERE, 1, PodState::Starting)]);
    let waiting = call(Class::Interactive);
    while waits() != (1, 0) {
        tokio::task::yield_now().await;
    }
    world.pods([cpu("c"), pod("a", NOWHERE, 1, PodState::Ready)]);
    assert_eq!(waiting.await.unwrap().unwrap().revision(), &names().1);
}
