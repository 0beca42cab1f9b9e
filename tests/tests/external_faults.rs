//! Brokers, the S3 server and the platform die or stand still while photos come: each photo has one run and one result.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use imageflow_objects::ObjectStore;
use imageflow_servers::proxy::{Fault, Proxy};
use imageflow_tests::external::{World, calls, noted, photo, put, report, until};
use imageflow_tests::{Api, Platform};
use imageflow_types::topics;
use rand::seq::IndexedRandom;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Photos of each part of a scene: before the fault, during it and after it.
const PART: usize = 20;
/// Results that are there when the fault comes, so that it comes in the middle of the work.
const WARM: usize = 3;
/// Longest wait for anything. An event that the S3 server could not tell is found by a reconcile, once a minute.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long a client waits for an answer before it asks again.
const ANSWER: Duration = Duration::from_secs(8);
/// The least that brokers take: a platform that stands still for longer is taken for dead.
const SESSION: &str = "consumer.session.timeout.ms=6000";
/// The groups of the platform's consumers.
const GROUPS: [&str; 4] = [
    "imageflow-dispatcher",
    "imageflow-delay",
    "imageflow-notifications",
    "imageflow-router",
];

/// How photos come.
#[derive(Clone)]
enum Client {
    /// To the S3 server, which tells the platform.
    Puts(Arc<dyn ObjectStore>),
    /// To the API, each with a key of its own.
    Runs(Arc<Api>),
}

impl Client {
    /// Sends a photo once. What went wrong, when it may not have arrived: it is to be sent again then.
    async fn send(&self, number: usize) -> Result<(), String> {
        match self {
            Self::Puts(objects) => put(objects.as_ref(), number).await.map_err(|e| e.to_string()),
            Self::Runs(api) => {
                let key = format!("photo-{number}");
                let headers = [("content-type", "image/png"), ("idempotency-key", key.as_str())];
                let sent = api.try_send(Method::POST, "/v1/flows/two/runs", &headers, photo(number));
                let answer = sent.await.ok_or("no answer")?;
                let said = String::from_utf8_lossy(answer.body()).into_owned();
                match answer.status().as_u16() {
                    202 => Ok(()),
                    503 => Err(said),
                    status => panic!("photo {number}: {status}: {said}"),
                }
            }
        }
    }
}

/// Clients that send their photo when they may, until it has arrived.
struct Feed {
    may: Arc<Semaphore>,
    arrived: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Feed {
    fn start(client: &Client, numbers: std::ops::Range<usize>) -> Self {
        let mut feed = Self {
            may: Arc::new(Semaphore::new(0)),
            arrived: Arc::default(),
            refused: Arc::default(),
            clients: JoinSet::new(),
        };
        for number in numbers {
            let (client, may) = (client.clone(), feed.may.clone());
            let (arrived, refused) = (feed.arrived.clone(), feed.refused.clone());
            feed.clients.spawn(async move {
                may.acquire().await.unwrap().forget();
                let deadline = Instant::now() + PATIENCE;
                let mut ticks = tokio::time::interval(Duration::from_millis(300));
                loop {
                    ticks.tick().await;
                    let sent = tokio::time::timeout(ANSWER, client.send(number)).await;
                    let Err(why) = sent.unwrap_or_else(|_| Err(format!("no answer in {ANSWER:?}"))) else {
                        break;
                    };
                    refused.fetch_add(1, Ordering::SeqCst);
                    assert!(Instant::now() < deadline, "photo {number} did not arrive: {why}");
                }
                arrived.fetch_add(1, Ordering::SeqCst);
            });
        }
        feed
    }

    fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    async fn all_arrived(&mut self) {
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

/// What goes wrong. `IMAGEFLOW_FAULTS` names those that are played, by words of their names, parted by commas; else all are.
#[derive(Debug, Clone, Copy)]
enum Scene {
    PodKilled,
    BrokerKilled,
    NotifiedBrokerKilled,
    ControllerKilled,
    TwoBrokersKilled,
    BrokersRestartedInTurn,
    BrokerStandsStill,
    S3ServerKilled,
    S3ServerUnwell,
    PlatformKilled,
    PlatformStandsStill,
}

impl Scene {
    const ALL: [Self; 11] = [
        Self::PodKilled,
        Self::BrokerKilled,
        Self::ControllerKilled,
        Self::TwoBrokersKilled,
        Self::BrokersRestartedInTurn,
        Self::BrokerStandsStill,
        Self::S3ServerKilled,
        Self::S3ServerUnwell,
        Self::PlatformKilled,
        Self::PlatformStandsStill,
        // The last: what the server tells after it is not what it was before.
        Self::NotifiedBrokerKilled,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::PodKilled => "a pod is killed",
            Self::BrokerKilled => "a broker is killed",
            Self::NotifiedBrokerKilled => "the S3 server cannot tell",
            Self::ControllerKilled => "the controller is killed",
            Self::TwoBrokersKilled => "two brokers are killed",
            Self::BrokersRestartedInTurn => "the brokers are restarted in turn",
            Self::BrokerStandsStill => "a broker stands still",
            Self::S3ServerKilled => "the S3 server is killed",
            Self::S3ServerUnwell => "the S3 server refuses and is slow",
            Self::PlatformKilled => "the platform is killed",
            Self::PlatformStandsStill => "the platform stands still",
        }
    }

    fn chosen() -> Vec<Self> {
        let Ok(words) = std::env::var("IMAGEFLOW_FAULTS") else {
            return Self::ALL.to_vec();
        };
        let wanted = |scene: &Self| words.split(',').any(|word| scene.name().contains(word.trim()));
        let chosen: Vec<Self> = Self::ALL.into_iter().filter(wanted).collect();
        assert!(!chosen.is_empty(), "IMAGEFLOW_FAULTS={words}: no fault has such a name");
        chosen
    }
}

/// Where a scene plays.
struct Stage {
    world: World,
    /// Between the platform and the S3 server; other clients go to the server itself.
    proxy: Proxy,
    platform: Option<Platform>,
    scene: &'static str,
    begun: Instant,
    /// Photos of earlier scenes.
    before: usize,
    /// Where pods note their calls.
    calls: TempDir,
    /// Calls of earlier scenes that were done before.
    repeated: usize,
    feed: Feed,
}

impl Stage {
    fn platform(&self) -> &Platform {
        self.platform.as_ref().unwrap()
    }

    async fn runs_now(&self) -> Vec<Value> {
        let mut list = self.platform().api.get("/v1/runs?limit=10000").await;
        let Value::Array(items) = list["items"].take() else {
            panic!("no list of runs: {list}")
        };
        items
    }

    /// Waits until so many photos of this scene have a result, and returns all runs.
    async fn worked(&self, photos: usize) -> Vec<Value> {
        let (all, deadline) = (self.before + photos, Instant::now() + PATIENCE);
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            let runs = self.runs_now().await;
            let open: Vec<&Value> = runs.iter().filter(|run| run["status"] != "succeeded").collect();
            if runs.len() - open.len() >= all {
                return runs;
            }
            let counts = || format!("{}: of {all} photos {} have a run", self.scene, runs.len());
            assert!(Instant::now() < deadline, "{}, without a result: {open:?}", counts());
        }
    }

    /// The first part of the photos comes, and some of it is done.
    async fn begin(&mut self, client: &Client) {
        self.feed = Feed::start(client, self.before..self.before + 3 * PART);
        self.more();
        self.worked(WARM).await;
    }

    /// Another part of the photos comes.
    fn more(&self) {
        self.feed.may.add_permits(PART);
    }

    fn tell(&self, what: &str) {
        println!("{}", self.said(what));
    }

    fn said(&self, what: &str) -> String {
        format!("{:>6.1} s  {}: {what}", self.begun.elapsed().as_secs_f64(), self.scene)
    }

    /// The last part comes; all of them were worked on, once.
    async fn end(&mut self) {
        self.more();
        self.feed.all_arrived().await;
        self.tell("all photos have arrived");
        let runs = self.worked(3 * PART).await;
        self.before += 3 * PART;
        let mut of_photo: BTreeMap<&str, usize> = BTreeMap::new();
        for run in &runs {
            assert_eq!(run["status"], "succeeded", "{}: {run}", self.scene);
            let key = run["request"]["input"]["object"]["key"].as_str().unwrap();
            *of_photo.entry(key).or_default() += 1;
        }
        assert_eq!(of_photo.len(), self.before, "{}: each photo has a run", self.scene);
        let twice: Vec<_> = of_photo.iter().filter(|(_, runs)| **runs != 1).collect();
        assert!(twice.is_empty(), "{}: more than one run: {twice:?}", self.scene);
        let results = self.world.results().await;
        assert_eq!(results.len(), self.before, "{}: one result a photo", self.scene);
        let letters = self.platform().api.get("/v1/dead-letters").await;
        assert_eq!(letters["items"], json!([]), "{}", self.scene);
        let calls = calls(self.calls.path());
        assert_eq!(calls.len(), self.before, "{}: each photo was called", self.scene);
        let repeated = calls.values().map(|times| times - 1).sum::<usize>();
        let now = repeated - std::mem::replace(&mut self.repeated, repeated);
        let done = format!(
            "done, {} sent again, {now} of {} calls done twice",
            self.feed.refused(),
            3 * PART
        );
        report(&self.said(&done));
    }

    /// The processes that do the calls that are noted: each notes its own in a file of its name.
    fn pods(&self) -> Vec<Pid> {
        let files = std::fs::read_dir(self.calls.path()).unwrap();
        let named =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().file_stem()?.to_str()?.parse().ok();
        let alive = |pid: &i32| std::path::Path::new(&format!("/proc/{pid}/exe")).exists();
        files
            .filter_map(named)
            .filter(alive)
            .filter_map(Pid::from_raw)
            .collect()
    }

    fn runs(&self) -> Client {
        Client::Runs(Arc::new(self.platform().api.clone()))
    }

    fn puts(&self) -> Client {
        Client::Puts(self.world.objects.clone())
    }

    /// Objects of which nobody had told, and the reconcile has.
    async fn found(&self) -> f64 {
        let api = &self.platform().api;
        api.metric("imageflow_storage_reconcile_raised_total", &[]).await
    }

    /// Brokers that are not the controller.
    fn followers(&self) -> Vec<usize> {
        let controller = self.world.controller();
        (0..3).filter(|node| *node != controller).collect()
    }

    async fn play(&mut self, scene: Scene) {
        (self.scene, self.begun) = (scene.name(), Instant::now());
        match scene {
            Scene::PodKilled => self.a_pod_is_killed().await,
            Scene::BrokerKilled => self.a_broker_is_killed().await,
            Scene::NotifiedBrokerKilled => self.the_s3_server_cannot_tell().await,
            Scene::ControllerKilled => self.the_controller_is_killed().await,
            Scene::TwoBrokersKilled => self.two_brokers_are_killed().await,
            Scene::BrokersRestartedInTurn => self.the_brokers_are_restarted_in_turn().await,
            Scene::BrokerStandsStill => self.a_broker_stands_still().await,
            Scene::S3ServerKilled => self.the_s3_server_is_killed().await,
            Scene::S3ServerUnwell => self.the_s3_server_is_unwell().await,
            Scene::PlatformKilled => self.the_platform_is_killed().await,
            Scene::PlatformStandsStill => self.the_platform_stands_still().await,
        }
    }

    async fn a_pod_is_killed(&mut self) {
        self.begin(&self.runs()).await;
        self.more();
        until("there is a pod", PATIENCE, async || !self.pods().is_empty()).await;
        let pods = self.pods();
        for pod in &pods {
            // One may have ended by itself meanwhile.
            let _gone = kill_process(*pod, Signal::KILL);
        }
        self.tell(&format!("pods {pods:?} are gone with what they had in hand"));
        self.worked(2 * PART).await;
        self.end().await;
    }

    async fn a_broker_is_killed(&mut self) {
        self.begin(&self.runs()).await;
        let node = *self.followers().choose(&mut rand::rng()).unwrap();
        self.more();
        self.world.cluster.kill(node).unwrap();
        self.tell(&format!("broker {node} is gone"));
        self.worked(2 * PART).await;
        self.tell("the other two have done their part");
        self.world.cluster.restart(node).await.unwrap();
        self.end().await;
    }

    /// The broker that it tells of most objects is gone: what is put then is found by the reconcile.
    async fn the_s3_server_cannot_tell(&mut self) {
        self.begin(&self.puts()).await;
        let before = self.found().await;
        // Which that is depends on the faults before this one: who was away leads nothing when it comes back.
        let node = self.world.leader_of(topics::OBJECT_NOTIFICATIONS);
        self.world.cluster.kill(node).unwrap();
        self.more();
        self.tell(&format!("broker {node} is gone"));
        self.worked(2 * PART).await;
        let found = self.found().await - before;
        self.tell(&format!("the reconcile has found {found} photos"));
        assert!(found >= 1.0, "nobody told of them, and the reconcile did not find them");
        self.world.cluster.restart(node).await.unwrap();
        self.end().await;
    }

    async fn the_controller_is_killed(&mut self) {
        self.begin(&self.puts()).await;
        let node = self.world.controller();
        self.more();
        self.world.cluster.kill(node).unwrap();
        self.tell(&format!("broker {node} is gone"));
        self.worked(2 * PART).await;
        self.tell("the other two have done their part");
        self.world.cluster.restart(node).await.unwrap();
        self.end().await;
    }

    async fn two_brokers_are_killed(&mut self) {
        self.begin(&self.runs()).await;
        until("the first part", PATIENCE, async || self.feed.arrived() == PART).await;
        let nodes: Vec<usize> = (0..3)
            .collect::<Vec<_>>()
            .choose_multiple(&mut rand::rng(), 2)
            .copied()
            .collect();
        for node in &nodes {
            self.world.cluster.kill(*node).unwrap();
        }
        self.tell(&format!("brokers {nodes:?} are gone"));
        self.more();
        until("nothing is taken", PATIENCE, async || self.feed.refused() > 0).await;
        assert_eq!(self.feed.arrived(), PART, "one copy is not enough to take a photo");
        self.tell("work stands still");
        let (one, two) = (
            self.world.cluster.restart(nodes[0]),
            self.world.cluster.restart(nodes[1]),
        );
        let (one, two) = tokio::join!(one, two);
        one.and(two).unwrap();
        self.tell("the brokers are back");
        self.end().await;
    }

    async fn the_brokers_are_restarted_in_turn(&mut self) {
        self.begin(&self.runs()).await;
        for node in 0..3 {
            self.feed.may.add_permits(PART / 2);
            self.world.cluster.stop(node).await.unwrap();
            self.tell(&format!("broker {node} has ended"));
            self.world.cluster.restart(node).await.unwrap();
            self.tell(&format!("broker {node} is back"));
        }
        self.end().await;
    }

    async fn a_broker_stands_still(&mut self) {
        self.begin(&self.runs()).await;
        let node = *self.followers().choose(&mut rand::rng()).unwrap();
        let fenced = format!("Fencing broker {}", node + 1);
        let before = self.world.told(&fenced);
        self.more();
        self.world.cluster.pause(node).unwrap();
        self.tell(&format!("broker {node} stands still"));
        until("the broker's session is over", PATIENCE, async || {
            self.world.told(&fenced) > before
        })
        .await;
        self.tell("its session is over");
        self.worked(2 * PART).await;
        self.tell("the other two have done their part");
        self.world.cluster.resume(node).unwrap();
        self.end().await;
    }

    async fn the_s3_server_is_killed(&mut self) {
        self.begin(&self.puts()).await;
        self.more();
        self.world.server.kill();
        // All of this part may have been quicker.
        self.feed.may.add_permits(1);
        until("a put fails", PATIENCE, async || self.feed.refused() > 0).await;
        self.tell("it is gone");
        self.world.server.restart().await.unwrap();
        self.end().await;
    }

    async fn the_s3_server_is_unwell(&mut self) {
        self.begin(&self.puts()).await;
        let before = self.proxy.seen("/");
        self.proxy.fail("/", usize::MAX, Fault::Unavailable);
        self.more();
        until("it refuses", PATIENCE, async || self.proxy.seen("/") >= before + 60).await;
        self.tell("it has refused 60 requests");
        self.proxy.heal();
        let before = self.proxy.seen("/");
        self.proxy.fail("/", usize::MAX, Fault::Delay(Duration::from_secs(2)));
        until("it is slow", PATIENCE, async || self.proxy.seen("/") >= before + 40).await;
        self.tell("it was slow with 40 requests");
        self.proxy.heal();
        self.end().await;
    }

    async fn the_platform_is_killed(&mut self) {
        self.begin(&self.puts()).await;
        self.more();
        self.platform.take().unwrap().kill();
        self.platform = Some(self.world.platform_via(&self.proxy.url, &["--kafka-set", SESSION]));
        self.tell("it is back");
        self.end().await;
    }

    async fn the_platform_stands_still(&mut self) {
        self.platform.take().unwrap().stop();
        self.platform = Some(self.world.platform_via(&self.proxy.url, &["--kafka-set", SESSION]));
        self.begin(&self.puts()).await;
        let gone = |group: &str| self.world.told(&format!("in group {group} has failed"));
        let before = GROUPS.map(gone);
        self.more();
        self.platform().pause();
        until("its sessions are over", PATIENCE, async || {
            GROUPS.iter().zip(before).all(|(group, before)| gone(group) > before)
        })
        .await;
        self.tell("its sessions are over");
        self.platform().resume();
        self.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_or_stands_still_each_photo_has_one_run_and_one_result() {
    let Some(world) = World::start().await else { return };
    let proxy = Proxy::start(&world.server.url()).await;
    let platform = world.platform_via(&proxy.url, &[]);
    let calls = tempfile::tempdir().unwrap();
    platform.api.apply(&noted(calls.path())).await;
    let nothing = Feed::start(&Client::Puts(world.objects.clone()), 0..0);
    let mut stage = Stage {
        world,
        proxy,
        platform: Some(platform),
        scene: "",
        begun: Instant::now(),
        before: 0,
        calls,
        repeated: 0,
        feed: nothing,
    };
    for scene in Scene::chosen() {
        stage.play(scene).await;
    }
    stage.world.results_are_right(&stage.runs_now().await).await;
    stage.platform.take().unwrap().stop();
}
