use std::collections::BTreeMap;

use async_trait::async_trait;
use imageflow_types::RevisionName;
use imageflow_types::function::{Concurrency, Resources, Scale};

use super::*;
use crate::inputs::*;

type Pods = BTreeMap<RevisionName, u32>;

/// Work as the test says; keeps completions until they are collected, as the real one does.
#[derive(Default)]
struct FakeStats(Mutex<Vec<FunctionLoad>>);

impl StatsSource for FakeStats {
    fn collect(&self) -> Vec<FunctionLoad> {
        let mut loads = self.0.lock().unwrap();
        let now = loads.clone();
        loads
            .iter_mut()
            .for_each(|l| (l.completed_since, l.service_ms_sum) = (0, 0));
        now
    }
}

/// Pods that are ready the moment they are asked for.
struct FakeReplicas {
    gpus: Option<u32>,
    pods: watch::Sender<Pods>,
    failing: Mutex<u32>,
    seen: watch::Sender<bool>,
}

#[async_trait]
impl Replicas for FakeReplicas {
    async fn scale(&self, _: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError> {
        let mut failing = self.failing.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            return Err(ScaleError {
                revision: revision.clone(),
                replicas,
                source: "no room".into(),
            });
        }
        drop(failing);
        self.pods.send_modify(|pods| {
            pods.insert(revision.clone(), replicas);
            pods.retain(|_, n| *n > 0);
        });
        Ok(())
    }
    async fn seen(&self) {
        self.seen.subscribe().wait_for(|seen| *seen).await.unwrap();
    }
    fn gpus(&self) -> Option<u32> {
        self.gpus
    }
    fn pods(&self) -> Vec<RevisionPods> {
        let pods = self.pods.borrow();
        pods.iter()
            .map(|(revision, ready)| RevisionPods {
                function: name(revision.as_str().rsplit_once('-').unwrap().0),
                revision: revision.clone(),
                ready: *ready,
                starting: 0,
                starts: Vec::new(),
            })
            .collect()
    }
}

#[derive(Default)]
struct FakeSink(Mutex<Vec<StoredDecision>>, watch::Sender<Vec<FunctionName>>);

#[async_trait]
impl DecisionSink for FakeSink {
    async fn store(&self, decision: StoredDecision) -> Result<(), StoreError> {
        self.0.lock().unwrap().push(decision);
        Ok(())
    }
    async fn forget(&self, function: &FunctionName) -> Result<(), StoreError> {
        self.1.send_modify(|gone| gone.push(function.clone()));
        Ok(())
    }
}

fn name(text: &str) -> FunctionName {
    FunctionName::new(text).unwrap()
}

fn revision(function: &str, number: u32) -> RevisionName {
    RevisionName::of(&name(function), number)
}

fn scaling(function: &str, percents: &[u32]) -> Arc<FunctionScaling> {
    let revisions = percents.iter().zip(1..).map(|(percent, n)| RevisionShare {
        revision: revision(function, n),
        percent: *percent,
    });
    Arc::new(FunctionScaling {
        batch: 1,
        scale: Scale::default(),
        concurrency: Concurrency::default(),
        resources: Resources::default(),
        revisions: revisions.collect(),
        annotations: BTreeMap::new(),
    })
}

fn load(function: &str, backlog: Option<u64>) -> FunctionLoad {
    FunctionLoad {
        backlog,
        ..FunctionLoad::of(name(function))
    }
}

struct World {
    autoscaler: Autoscaler,
    functions: watch::Sender<Arc<Functions>>,
    stats: Arc<FakeStats>,
    replicas: Arc<FakeReplicas>,
    sink: Arc<FakeSink>,
    pokes: broadcast::Sender<FunctionName>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    pods: watch::Receiver<Pods>,
}

impl World {
    fn of(functions: Vec<(&str, Arc<FunctionScaling>)>) -> Self {
        Self::knowing(functions, HashMap::new(), None)
    }

    fn knowing(
        functions: Vec<(&str, Arc<FunctionScaling>)>,
        learned: HashMap<FunctionName, Memory>,
        gpus: Option<u32>,
    ) -> Self {
        let all: Functions = functions.into_iter().map(|(function, f)| (name(function), f)).collect();
        let (functions, functions_seen) = watch::channel(Arc::new(all));
        let (pods, pods_seen) = watch::channel(Pods::new());
        let (stats, sink) = (Arc::new(FakeStats::default()), Arc::new(FakeSink::default()));
        let replicas = Arc::new(FakeReplicas {
            gpus,
            pods,
            failing: Mutex::new(0),
            seen: watch::channel(true).0,
        });
        let (pokes, poked) = broadcast::channel(8);
        let stop = CancellationToken::new();
        let parts = Parts {
            functions: functions_seen,
            stats: Arc::<FakeStats>::clone(&stats),
            replicas: Arc::<FakeReplicas>::clone(&replicas),
            sink: Arc::<FakeSink>::clone(&sink),
            learned,
            pokes: poked,
        };
        let (autoscaler, task) = Autoscaler::spawn(parts, Settings::default(), stop.clone());
        Self {
            autoscaler,
            functions,
            stats,
            replicas,
            sink,
            pokes,
            stop,
            task,
            pods: pods_seen,
        }
    }

    fn work(&self, loads: Vec<FunctionLoad>) {
        *self.stats.0.lock().unwrap() = loads;
    }

    /// Waits until a revision has so many pods; gives back how long it took.
    async fn until(&mut self, revision: &RevisionName, pods: u32) -> Duration {
        let from = Instant::now();
        let reached = self.pods.wait_for(|p| p.get(revision).copied().unwrap_or(0) == pods);
        let result = tokio::time::timeout(Duration::from_secs(3_600), reached)
            .await
            .map(|r| r.is_ok());
        assert_eq!(
            result,
            Ok(true),
            "{revision} never has {pods}: {:?}",
            *self.pods.borrow()
        );
        from.elapsed()
    }

    async fn end(self) -> Vec<StoredDecision> {
        self.stop.cancel();
        self.task.await.unwrap();
        let stored = self.sink.0.lock().unwrap();
        stored.clone()
    }
}

/// Lets this much time pass on the clock of the tests, which stands still otherwise: every look that falls into it is taken. For
/// what must not happen meanwhile, of which no state tells, and for bounds.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_poke_gives_a_pod_at_once_even_before_the_waiting_is_counted() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    // The first look comes at once; after it, no time passes until the poke.
    tokio::time::advance(Duration::from_millis(1)).await;
    tokio::task::yield_now().await;
    world.pokes.send(name("blur")).unwrap();
    assert!(world.until(&revision("blur", 1), 1).await < Duration::from_millis(2));
    assert_eq!(world.autoscaler.desired(&name("blur")), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_come_with_the_backlog_and_go_after_it_and_every_change_says_why() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    let mut busy = load("blur", Some(1_000));
    (busy.completed_since, busy.service_ms_sum) = (100, 10_000);
    world.work(vec![busy]);
    world.until(&revision("blur", 1), 5).await;
    world.work(Vec::new());
    let took = world.until(&revision("blur", 1), 0).await;
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    pass(Duration::from_secs(2)).await;
    assert_eq!(world.autoscaler.active(), 0);

    let decisions = world.autoscaler.decisions(&name("blur"));
    let steps: Vec<(u32, u32)> = decisions.iter().rev().map(|d| (d.from, d.to)).collect();
    assert_eq!(steps, [(0, 5), (5, 5), (5, 0)], "up, kept warm, gone");
    assert!(
        decisions[2].reasons[0].contains("1000 waiting x 100 ms"),
        "{:?}",
        decisions[2].reasons
    );
    assert_eq!(decisions[2].inputs["backlog"], 1_000);
    assert_eq!(decisions[2].inputs["serviceMs"], 100.0);
    let stored = world.end().await;
    assert_eq!(stored.len(), 3, "what was decided is stored before the task ends");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_backlog_keeps_the_pods() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    let mut busy = load("blur", Some(1_000));
    (busy.completed_since, busy.service_ms_sum) = (100, 10_000);
    world.work(vec![busy]);
    world.until(&revision("blur", 1), 5).await;
    world.work(vec![load("blur", None)]);
    pass(Duration::from_secs(3_600)).await;
    assert_eq!(world.pods.borrow()[&revision("blur", 1)], 5);
    let newest = &world.autoscaler.decisions(&name("blur"))[0];
    assert_eq!(newest.reasons, ["the backlog is not known: 5 kept"]);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_not_seen_yet_are_not_taken_for_none() {
    let world = World::of(vec![("blur", scaling("blur", &[100]))]);
    world.replicas.seen.send_replace(false);
    world.work(vec![load("blur", None)]);
    world.pokes.send(name("blur")).unwrap();
    pass(Duration::from_secs(60)).await;
    assert!(world.autoscaler.decisions(&name("blur")).is_empty());
    // The host answers: there were pods all the time.
    world.replicas.pods.send_replace(Pods::from([(revision("blur", 1), 3)]));
    world.replicas.seen.send_replace(true);
    pass(Duration::from_secs(60)).await;
    assert_eq!(world.pods.borrow()[&revision("blur", 1)], 3);
}

#[tokio::test(start_paused = true)]
async fn completions_collected_for_another_function_are_not_lost() {
    let mut blur = FunctionScaling::clone(&scaling("blur", &[100]));
    blur.scale.max = 7;
    let mut world = World::of(vec![("blur", Arc::new(blur)), ("crop", scaling("crop", &[100]))]);
    world.work(vec![load("blur", Some(1))]);
    world.until(&revision("blur", 1), 1).await;
    let mut done = load("blur", Some(0));
    (done.in_flight, done.completed_since, done.service_ms_sum) = (1, 10, 70_000);
    world.work(vec![done]);
    // This look takes the completions of blur out of the source.
    world.pokes.send(name("crop")).unwrap();
    world.until(&revision("crop", 1), 1).await;
    world.work(vec![load("blur", Some(20))]);
    world.until(&revision("blur", 1), 7).await;
    let decision = &world.autoscaler.decisions(&name("blur"))[0];
    assert_eq!(decision.inputs["serviceMs"], 7_000.0);
}

#[tokio::test(start_paused = true)]
async fn each_revision_gets_its_part_and_one_without_work_or_traffic_loses_its_pods() {
    let mut world = World::of(vec![("blur", scaling("blur", &[80, 20]))]);
    let mut busy = load("blur", Some(1_000));
    (busy.completed_since, busy.service_ms_sum) = (100, 10_000);
    world.work(vec![busy]);
    world.until(&revision("blur", 1), 4).await;
    world.until(&revision("blur", 2), 1).await;
    // All traffic goes to a third revision; the first still has a run, the second has none.
    let mut next = (*scaling("blur", &[0, 0, 100])).clone();
    next.revisions.drain(..2);
    world
        .functions
        .send_modify(|all| *all = Arc::new(HashMap::from([(name("blur"), Arc::new(next.clone()))])));
    let mut old = load("blur", Some(1_000));
    (old.revision, old.in_flight) = (Some(revision("blur", 1)), 1);
    world.work(vec![old]);
    world.until(&revision("blur", 3), 4).await;
    world.until(&revision("blur", 1), 1).await;
    world.until(&revision("blur", 2), 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_bound_to_a_canary_gets_a_pod_of_it() {
    let mut world = World::of(vec![("blur", scaling("blur", &[90, 10]))]);
    let waits = FunctionLoad {
        revision: Some(revision("blur", 2)),
        held_batch: 1,
        ..load("blur", Some(1))
    };
    world.work(vec![waits]);
    world.until(&revision("blur", 2), 1).await;
    assert_eq!(world.pods.borrow().len(), 1, "{:?}", *world.pods.borrow());
    assert_eq!(
        world.autoscaler.desired(&name("blur")),
        1,
        "it is part of the backlog, and no work beside it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_is_asked_again() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    *world.replicas.failing.lock().unwrap() = 3;
    world.work(vec![load("blur", Some(1))]);
    let took = world.until(&revision("blur", 1), 1).await;
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn thousands_at_zero_are_not_looked_at_and_a_minimum_needs_no_work() {
    let names: Vec<String> = (0..5_000).map(|i| format!("f{i}")).collect();
    let mut all: Vec<(&str, Arc<FunctionScaling>)> = names.iter().map(|n| (n.as_str(), scaling(n, &[100]))).collect();
    let mut pinned = (*scaling("f7", &[100])).clone();
    pinned.scale.min = 2;
    all[7].1 = Arc::new(pinned);
    let mut world = World::of(all);
    world.until(&revision("f7", 1), 2).await;
    pass(Duration::from_secs(5)).await;
    assert_eq!(world.autoscaler.active(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_without_known_backlogs_is_no_news_of_thousands_at_zero() {
    let names: Vec<String> = (0..5_000).map(|i| format!("f{i}")).collect();
    let all = names.iter().map(|n| (n.as_str(), scaling(n, &[100]))).collect();
    let mut world = World::of(all);
    let unknown = |work: &dyn Fn(&str) -> Option<u64>| names.iter().map(|n| load(n, work(n))).collect();
    world.work(unknown(&|_| None));
    pass(Duration::from_secs(5)).await;
    assert_eq!(world.autoscaler.active(), 0);
    world.work(unknown(&|function| (function == "f7").then_some(1)));
    world.until(&revision("f7", 1), 1).await;
    assert_eq!(world.autoscaler.active(), 1);
    // Looked at because of its pod, and at zero again it is none the less one of many.
    world.work(unknown(&|_| None));
    pass(Duration::from_secs(5)).await;
    let stored = world.end().await;
    assert!(stored.iter().all(|s| s.record.function == name("f7")));
}

#[tokio::test(start_paused = true)]
async fn a_function_that_is_deleted_loses_its_pods() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    world.work(vec![load("blur", Some(1))]);
    world.until(&revision("blur", 1), 1).await;
    world.functions.send_modify(|all| *all = Arc::default());
    world.until(&revision("blur", 1), 0).await;
    assert!(world.autoscaler.decisions(&name("blur")).is_empty());
    // What is left of its work brings nothing of it back.
    pass(Duration::from_secs(5)).await;
    world.functions.send_modify(|all| *all = Arc::default());
    let sink = Arc::clone(&world.sink);
    world.end().await;
    assert_eq!(
        *sink.1.borrow(),
        [name("blur")],
        "what was stored of it is removed, once"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_of_a_function_that_was_deleted_meanwhile_is_removed_after_the_start() {
    let learned = HashMap::from([(name("blur"), Memory::default()), (name("crop"), Memory::default())]);
    let world = World::knowing(vec![("crop", scaling("crop", &[100]))], learned, None);
    let mut gone = world.sink.1.subscribe();
    gone.wait_for(|gone| !gone.is_empty()).await.unwrap();
    assert_eq!(*gone.borrow(), [name("blur")]);
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_is_stored_and_known_after_a_restart() {
    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    let mut busy = load("blur", Some(10));
    (busy.completed_since, busy.service_ms_sum) = (100, 200_000);
    world.work(vec![busy]);
    world.until(&revision("blur", 1), 1).await;
    let stored = world.end().await;
    let json = serde_json::to_string(&stored[0]).unwrap();
    let back: StoredDecision = serde_json::from_str(&json).unwrap();

    let learned = HashMap::from([(name("blur"), back.memory)]);
    let mut world = World::knowing(vec![("blur", scaling("blur", &[100]))], learned, None);
    // 2 s each: 30 in 10 s are 6 slots, 3 pods, in the very first decision.
    world.work(vec![load("blur", Some(30))]);
    assert_eq!(world.until(&revision("blur", 1), 3).await, Duration::ZERO);
    assert_eq!(world.autoscaler.decisions(&name("blur")).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_one_card_everybody_has_a_turn_and_who_is_idle_gives_it_up_at_once() {
    let with_card = |function: &str| {
        let mut one = FunctionScaling::clone(&scaling(function, &[100]));
        one.resources.gpu = 1;
        (name(function).to_string(), Arc::new(one))
    };
    let (a, b) = (with_card("a"), with_card("b"));
    let functions = vec![(a.0.as_str(), a.1), (b.0.as_str(), b.1)];
    let mut world = World::knowing(functions, HashMap::new(), Some(1));
    world.work(vec![load("a", Some(50))]);
    world.until(&revision("a", 1), 1).await;
    // Both want many: the one that waits has the card after a turn, and then the other again.
    world.work(vec![load("a", Some(50)), load("b", Some(50))]);
    let took = world.until(&revision("b", 1), 1).await;
    assert!((29..35).contains(&took.as_secs()), "{took:?}");
    assert_eq!(world.pods.borrow().get(&revision("a", 1)), None, "there is one card");
    let told = &world.autoscaler.decisions(&name("a"))[0];
    assert_eq!((told.from, told.to), (1, 0));
    let why = told.reasons.last().unwrap();
    assert!(why.ends_with("asked for, its share of the 1 GPU cards is 0"), "{why}");
    let took = world.until(&revision("a", 1), 1).await;
    assert!((29..35).contains(&took.as_secs()), "{took:?}");
    // Its turn has just begun, but it has nothing to do any more.
    world.work(vec![load("b", Some(50))]);
    let took = world.until(&revision("b", 1), 1).await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_stands_ready_for_what_a_flow_will_bring_and_a_free_card_is_given_to_it() {
    let mut one = FunctionScaling::clone(&scaling("upscale", &[100]));
    one.resources.gpu = 1;
    let functions = vec![("upscale", Arc::new(one))];
    let mut world = World::knowing(functions, HashMap::new(), Some(1));
    let coming = |expected| FunctionLoad {
        expected,
        ..load("upscale", Some(0))
    };
    world.work(vec![coming(3)]);
    world.pokes.send(name("upscale")).unwrap();
    assert_eq!(world.until(&revision("upscale", 1), 1).await, Duration::ZERO);
    let told = &world.autoscaler.decisions(&name("upscale"))[0];
    assert_eq!(told.reasons, ["from steps before it in a flow: 3 on the way"]);
    assert!(told.inputs.contains_key("expected"));
    // It stays for as long as they take, and for what it is worth to wait after that.
    let gone = tokio::time::timeout(Duration::from_secs(600), world.until(&revision("upscale", 1), 0)).await;
    assert!(gone.is_err());
    world.work(vec![]);
    let took = world.until(&revision("upscale", 1), 0).await;
    assert!((1..60).contains(&took.as_secs()), "{took:?}");
}

/// One card for two functions: the one that names somebody to stand in lets the other have it, and its work is done on CPUs until
/// the card is free.
#[tokio::test(start_paused = true)]
async fn work_without_a_card_is_done_by_who_stands_in() {
    let on_card = |function: &str, fallback: Option<&str>| {
        let mut one = (*scaling(function, &[100])).clone();
        one.resources.gpu = 1;
        one.scale.fallback = fallback.map(name);
        Arc::new(one)
    };
    let functions = vec![
        ("upscale", on_card("upscale", Some("upscale-cpu"))),
        ("denoise", on_card("denoise", None)),
        ("upscale-cpu", scaling("upscale-cpu", &[100])),
    ];
    let mut world = World::knowing(functions, HashMap::new(), Some(1));
    world.work(vec![load("upscale", Some(40)), load("denoise", Some(40))]);
    world.until(&revision("denoise", 1), 1).await;
    world.until(&revision("upscale-cpu", 1), 1).await;
    assert!(!world.pods.borrow().contains_key(&revision("upscale", 1)));
    let told = &world.autoscaler.decisions(&name("upscale"))[0];
    assert_eq!(
        told.reasons.last().unwrap(),
        "no GPU card for it, so upscale-cpu does its work meanwhile"
    );
    let stands = &world.autoscaler.decisions(&name("upscale-cpu"))[0];
    assert_eq!(
        stands.reasons.last().unwrap(),
        "40 pieces of work are those of upscale, which has no GPU card"
    );
    // The other one is done.
    world.work(vec![load("upscale", Some(40))]);
    world.until(&revision("upscale", 1), 1).await;
    world.until(&revision("upscale-cpu", 1), 0).await;
}

/// A client made from KEDA's contract, over a real connection.
#[tokio::test]
async fn keda_gets_the_pods_that_the_law_wants() {
    use imageflow_proto::externalscaler::external_scaler_client::ExternalScalerClient;
    use imageflow_proto::externalscaler::{GetMetricsRequest, ScaledObjectRef};

    let mut world = World::of(vec![("blur", scaling("blur", &[100]))]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let keda = crate::Keda::service(
        world.autoscaler.clone(),
        world.functions.subscribe(),
        world.stop.clone(),
    );
    let router = tonic::service::Routes::new(keda).prepare().into_axum_router();
    let stop = world.stop.clone();
    let served = tokio::spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    });
    let mut client = ExternalScalerClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let asked = |function: &str| ScaledObjectRef {
        name: "any".into(),
        namespace: "any".into(),
        scaler_metadata: [("function".to_owned(), function.to_owned())].into(),
    };
    assert!(!client.is_active(asked("blur")).await.unwrap().into_inner().result);
    let mut changes = client.stream_is_active(asked("blur")).await.unwrap().into_inner();
    assert!(!changes.message().await.unwrap().unwrap().result);
    let spec = client.get_metric_spec(asked("blur")).await.unwrap().into_inner();
    assert_eq!(
        (
            spec.metric_specs[0].metric_name.as_str(),
            spec.metric_specs[0].target_size
        ),
        ("imageflow-pods", 1)
    );

    let mut busy = load("blur", Some(1_000));
    (busy.completed_since, busy.service_ms_sum) = (100, 10_000);
    world.work(vec![busy]);
    world.until(&revision("blur", 1), 5).await;
    assert!(changes.message().await.unwrap().unwrap().result, "it is told at once");
    let request = GetMetricsRequest {
        scaled_object_ref: Some(asked("blur")),
        metric_name: "imageflow-pods".into(),
    };
    let metrics = client.get_metrics(request).await.unwrap().into_inner();
    assert_eq!(
        metrics.metric_values[0].metric_value,
        i64::from(world.autoscaler.desired(&name("blur")))
    );
    assert!(metrics.metric_values[0].metric_value >= 5);

    assert_eq!(
        client.is_active(asked("crop")).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    let nobody = client.is_active(ScaledObjectRef::default()).await.unwrap_err();
    assert!(nobody.message().contains("function"), "{nobody}");
    world.stop.cancel();
    drop((client, changes));
    served.await.unwrap().unwrap();
}
