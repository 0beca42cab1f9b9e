//! Whole reconciles against an API server that answers by a script and keeps what it was asked: what is written, in which order, and
//! what is not written when nothing is to do or something fails.
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use imageflow_eventlog::{Embedded, EmbeddedConfig};
use imageflow_resources::{Operations, ResourceStore, StoreConfig};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::crd::{Flow, Function, Revision, Trigger};
use crate::objects::{self, Master, Owner, Settings};
use crate::watched::{Children, Compact};
use crate::{functions, mirror};

mod forgotten;
mod readable;
mod status;

const NAMESPACE: &str = "imageflow-processing";
const MONITORS: &str = "/servicemonitors";

/// What was asked: `POST revisions`, with the body.
#[derive(Debug, Clone)]
struct Asked {
    what: String,
    query: String,
    /// How a patch is meant.
    patch: String,
    body: Value,
}

/// What is answered to some: the method, a part of the path, the status, the body.
type Answer = (Method, &'static str, u16, Value);

#[derive(Default)]
struct ApiServer {
    asked: Mutex<Vec<Asked>>,
    answers: Mutex<Vec<Answer>>,
}

impl ApiServer {
    /// Says it from now on.
    fn answers(&self, method: Method, path: &'static str, status: u16) {
        let reason = if status == 404 { "NotFound" } else { "Because" };
        let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
            "message": "the script says so", "code": status });
        self.answers.lock().unwrap().push((method, path, status, body));
    }

    fn answer(&self, request: &Asked, method: &Method, path: &str) -> (u16, Value) {
        let answers = self.answers.lock().unwrap();
        if let Some((.., status, body)) = answers.iter().find(|(m, p, ..)| m == method && path.contains(p)) {
            return (*status, body.clone());
        }
        if method == Method::GET {
            panic!("nobody said what GET {path} gives");
        }
        // It takes what it is given.
        let mut object = request.body.clone();
        object["metadata"]["name"] = json!(object["metadata"]["name"].as_str().unwrap_or("patched"));
        object["metadata"]["uid"] = json!("uid-of-it");
        object["metadata"]["resourceVersion"] = json!("2");
        // A patch of a part gives the whole object; nobody reads its spec.
        let spec = [
            ("/functions/", json!({})),
            ("/flows/", json!({ "steps": [] })),
            ("/triggers/", json!({ "filters": [] })),
        ];
        if let Some((_, spec)) = spec.into_iter().find(|(kind, _)| path.contains(kind)) {
            object["spec"] = spec;
        }
        (if method == Method::POST { 201 } else { 200 }, object)
    }

    /// All that was asked, but for looks; what it was asked is forgotten.
    fn writes(&self) -> Vec<Asked> {
        let all = std::mem::take(&mut *self.asked.lock().unwrap());
        all.into_iter().filter(|a| !a.what.starts_with("GET")).collect()
    }
}

fn client(server: &Arc<ApiServer>) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let path = head.uri.path().to_owned();
            let namespaced = path.split_once(&format!("/namespaces/{NAMESPACE}/"));
            let (_, rest) = namespaced.unwrap_or(("", &path));
            let asked = Asked {
                what: format!("{} {rest}", head.method),
                query: head.uri.query().unwrap_or_default().to_owned(),
                patch: head
                    .headers
                    .get("content-type")
                    .map_or("", |v| v.to_str().unwrap())
                    .to_owned(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            let (status, body) = server.answer(&asked, &head.method, &path);
            server.asked.lock().unwrap().push(asked);
            let answer = Response::builder()
                .status(status)
                .body(Body::from(body.to_string().into_bytes()));
            answer.map_err(kube::Error::HttpError)
        }
    });
    Client::new(service, NAMESPACE)
}

fn settings() -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        system_namespace: "imageflow-backend".to_owned(),
        function_image: "imageflow/function-cpu:1".to_owned(),
        gpu_function_image: "imageflow/function-gpu:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        announce_url: "http://imageflow-pods.imageflow-backend:7003".to_owned(),
        announce_key: Master(b"the key of the installation".to_vec()),
        otlp_endpoint: String::new(),
    }
}

/// What watches show, as a test fills it.
struct Seen {
    deployments: Writer<Compact<Deployment>>,
    services: Writer<Compact<k8s_openapi::api::core::v1::Service>>,
    budgets: Writer<Compact<k8s_openapi::api::policy::v1::PodDisruptionBudget>>,
    policies: Writer<Compact<k8s_openapi::api::networking::v1::NetworkPolicy>>,
    revisions: Writer<Compact<Revision>>,
    pods: Writer<k8s_openapi::api::core::v1::Pod>,
}

fn store<K>() -> (reflector::Store<K>, Writer<K>)
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let (reader, mut writer) = reflector::store();
    // Listed, and nothing was there.
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    (reader, writer)
}

struct World {
    server: Arc<ApiServer>,
    seen: Seen,
    context: Arc<Context>,
    _folder: tempfile::TempDir,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Embedded::open(EmbeddedConfig::new(folder.path())).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": { "width": { "type": "integer" } } });
        let operations = Operations::new([("resize".to_owned(), schema)]);
        let kept = ResourceStore::open(log, operations, StoreConfig::new(|| 5), &tasks, &stop)
            .await
            .unwrap();
        let server = Arc::new(ApiServer::default());
        let (deployments, of_deployments) = store();
        let (services, of_services) = store();
        let (budgets, of_budgets) = store();
        let (policies, of_policies) = store();
        let (revisions, of_revisions) = store();
        let (pods, of_pods) = store();
        let children = Children {
            deployments,
            services,
            budgets,
            policies,
            revisions,
            pods,
            listed: OnceCell::new(),
        };
        let context = Context::new(client(&server), settings(), kept, children, "operator-1", || 5);
        Self {
            server,
            seen: Seen {
                deployments: of_deployments,
                services: of_services,
                budgets: of_budgets,
                policies: of_policies,
                revisions: of_revisions,
                pods: of_pods,
            },
            context: Arc::new(context),
            _folder: folder,
            stop,
        }
    }

    async fn reconcile(&self, function: &Value) -> Result<(), String> {
        let done = functions::reconcile(Arc::new(object(function.clone())), self.context.clone()).await;
        done.map(drop).map_err(|e| e.to_string())
    }

    /// All that a function has, as the watches would show it.
    fn show_all(&mut self) {
        let name = "thumb".parse().unwrap();
        let of = |kind, name: &str, uid: &str| Owner {
            kind,
            name: name.to_owned(),
            uid: uid.to_owned(),
        };
        let owner = of("Function", "thumb", "uid-1");
        let settings = settings();
        let revision = revision();
        let named = "thumb-00001".parse().unwrap();
        let by = of("Revision", "thumb-00001", "uid-2");
        let deployment = objects::deployment(&name, &named, &revision.spec.template, &by, &settings).unwrap();
        self.seen
            .deployments
            .apply_watcher_event(&Event::Apply(kept(deployment)));
        let service = objects::service(&name, &owner, &settings);
        self.seen.services.apply_watcher_event(&Event::Apply(kept(service)));
        let budget = objects::budget(&name, &owner, &settings);
        self.seen.budgets.apply_watcher_event(&Event::Apply(kept(budget)));
        let policy = objects::network_policy(&name, &owner, &settings);
        self.seen.policies.apply_watcher_event(&Event::Apply(kept(policy)));
        self.seen.revisions.apply_watcher_event(&Event::Apply(kept(revision)));
    }
}

/// As its watch keeps it.
fn kept<K: Serialize>(object: K) -> Compact<K> {
    serde_json::from_value(json!(object)).unwrap()
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A function as a user has just applied it.
fn function() -> Value {
    json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": "Function",
        "metadata": { "name": "thumb", "namespace": NAMESPACE, "uid": "uid-1", "generation": 1, "resourceVersion": "1" },
        "spec": { "operation": "resize", "params": { "width": 8 } } })
}

/// The one that is as it was asked to be.
fn done() -> Value {
    let mut function = function();
    function["metadata"]["finalizers"] = json!(["imageflow.dev/mirror"]);
    function["status"] = json!({ "observedGeneration": 1, "program": "resize", "latestRevision": "thumb-00001", "replicas": 0,
        "readyReplicas": 0, "selector": "imageflow.dev/function=thumb", "conditions": [{ "type": "Ready", "status": "True",
        "reason": "ScaledToZero", "message": "revision thumb-00001 starts with the first request",
        "lastTransitionTime": "1970-01-01T00:00:00Z", "observedGeneration": 1 }] });
    function
}

fn revision() -> Revision {
    let spec: Function = object(function());
    let template = spec.spec.0.template();
    let digest = imageflow_types::revision::template_digest(&template);
    object(json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": "Revision",
        "metadata": { "name": "thumb-00001", "namespace": NAMESPACE, "uid": "uid-2",
            "labels": objects::labels_of(&"thumb".parse().unwrap()) },
        "spec": { "function": "thumb", "number": 1, "digest": digest, "template": template, "createdMs": 5 } }))
}

fn words(writes: &[Asked]) -> Vec<&str> {
    writes.iter().map(|a| a.what.as_str()).collect()
}

/// What the events told of, among other writes.
fn reasons(writes: &[Asked]) -> Vec<&str> {
    let events = writes.iter().filter(|a| a.what == "POST events");
    events.filter_map(|a| a.body["reason"].as_str()).collect()
}

#[tokio::test]
async fn a_new_function_gets_what_it_needs_in_the_order_in_which_it_is_needed() {
    let world = World::new().await;
    world.server.answers(Method::GET, MONITORS, 404);
    world.server.answers(Method::PATCH, MONITORS, 404);
    let mut new = function();
    new["metadata"]["annotations"] = json!({ "autoscaling.knative.dev/target": "8",
        "kubectl.kubernetes.io/last-applied-configuration": "all of it once more" });
    world.reconcile(&new).await.unwrap();
    let mut writes = world.server.writes();
    // What belongs to it is made at once.
    writes[3..8].sort_by(|a, b| a.what.cmp(&b.what));
    assert_eq!(
        words(&writes),
        [
            "PATCH functions/thumb",
            "POST revisions",
            "POST events",
            "PATCH networkpolicies/thumb",
            "PATCH poddisruptionbudgets/thumb",
            "PATCH servicemonitors/thumb",
            "PATCH services/thumb",
            "POST deployments",
            "PATCH functions/thumb/status",
        ]
    );
    assert_eq!(
        writes[0].body["metadata"]["finalizers"],
        json!(["imageflow.dev/mirror"])
    );
    assert_eq!(writes[0].body["metadata"]["resourceVersion"], "1", "by what was seen");
    assert_eq!(writes[1].body["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    assert_eq!(writes[7].body["spec"]["replicas"], 0);
    assert_eq!(writes[7].body["metadata"]["ownerReferences"][0]["kind"], "Revision");
    for apply in &writes[3..7] {
        let query = &apply.query;
        assert!(
            query.contains("fieldManager=imageflow-operator") && query.contains("force=true"),
            "{query}"
        );
    }
    let status = &writes[8].body["status"];
    assert_eq!(
        (&status["observedGeneration"], &status["latestRevision"]),
        (&json!(1), &json!("thumb-00001"))
    );
    assert_eq!(status["conditions"][0]["reason"], "ScaledToZero");
    // The other services know it.
    let catalog = world.context.store.snapshot();
    let known = catalog.function("thumb").unwrap();
    assert_eq!(known.latest().unwrap().name.as_str(), "thumb-00001");
    let annotations = &known.document.metadata.annotations;
    assert_eq!(annotations.len(), 1, "{annotations:?}");
    assert_eq!(annotations["autoscaling.knative.dev/target"], "8");
    // Without Prometheus' operator nobody asks a second time.
    world.reconcile(&function()).await.unwrap();
    assert!(!words(&world.server.writes()).contains(&"PATCH servicemonitors/thumb"));
}

#[tokio::test]
async fn what_is_as_it_should_be_is_not_written_and_what_was_changed_is_put_right() {
    let mut world = World::new().await;
    world.server.answers(Method::GET, MONITORS, 404);
    world.context.no_monitoring();
    world.show_all();
    world.reconcile(&done()).await.unwrap();
    world.reconcile(&done()).await.unwrap();
    assert_eq!(words(&world.server.writes()), Vec::<&str>::new());

    // Somebody has opened the policy and given the Deployment replicas: the one is ours, the other the autoscaler's.
    let mut policy = objects::network_policy(
        &"thumb".parse().unwrap(),
        &Owner {
            kind: "Function",
            name: "thumb".into(),
            uid: "uid-1".into(),
        },
        &settings(),
    );
    policy.spec.as_mut().unwrap().ingress = Some(Vec::new());
    world.seen.policies.apply_watcher_event(&Event::Apply(kept(policy)));
    let live = world
        .context
        .found(&world.context.children.deployments, "thumb-00001")
        .unwrap();
    let mut live = live.value().unwrap();
    live["spec"]["replicas"] = json!(3);
    world.seen.deployments.apply_watcher_event(&Event::Apply(object(live)));
    world.reconcile(&done()).await.unwrap();
    assert_eq!(words(&world.server.writes()), ["PATCH networkpolicies/thumb"]);
}

/// An upgrade of the operator changes what Deployments are that an older one has made.
#[tokio::test]
async fn a_deployment_that_was_made_otherwise_is_replaced_but_for_its_number_of_pods() {
    let mut world = World::new().await;
    world.context.no_monitoring();
    world.show_all();
    let live = world
        .context
        .found(&world.context.children.deployments, "thumb-00001")
        .unwrap();
    let mut live = live.value().unwrap();
    live["spec"]["replicas"] = json!(3);
    live["spec"]["strategy"] = json!({ "type": "Recreate" });
    live["spec"]["template"]["spec"]["containers"][0]["startupProbe"] = json!({ "exec": { "command": ["true"] } });
    world.seen.deployments.apply_watcher_event(&Event::Apply(object(live)));
    world.reconcile(&done()).await.unwrap();
    let writes = world.server.writes();
    assert_eq!(words(&writes), ["PATCH deployments/thumb-00001"]);
    // By an apply the API server would keep the old action of the probe beside the new one, and refuse both.
    assert_eq!(writes[0].patch, "application/merge-patch+json");
    let spec = &writes[0].body["spec"];
    assert!(spec.get("replicas").is_none(), "{spec}");
    assert_eq!(spec["strategy"]["type"], "RollingUpdate");
    let containers = spec["template"]["spec"]["containers"].as_array().unwrap();
    assert!(containers[0]["startupProbe"].get("exec").is_none());
}

#[tokio::test]
async fn a_changed_template_is_a_revision_and_a_changed_scale_is_none() {
    let mut world = World::new().await;
    world.server.answers(Method::GET, MONITORS, 404);
    world.context.no_monitoring();
    world.show_all();
    let mut scaled = done();
    scaled["metadata"]["generation"] = json!(2);
    scaled["spec"]["scale"] = json!({ "max": 3 });
    world.reconcile(&scaled).await.unwrap();
    assert_eq!(words(&world.server.writes()), ["PATCH functions/thumb/status"]);
    let mut changed = done();
    changed["metadata"]["generation"] = json!(3);
    changed["spec"]["params"]["width"] = json!(9);
    world.reconcile(&changed).await.unwrap();
    let writes = world.server.writes();
    assert_eq!(writes[0].what, "POST revisions");
    assert_eq!(writes[0].body["metadata"]["name"], "thumb-00002");
    // Another operator was faster: it is not written over, and this one looks again.
    world.server.answers(Method::POST, "/revisions", 409);
    let error = world.reconcile(&changed).await.unwrap_err();
    assert!(error.contains("the script says so"), "{error}");
    assert_eq!(words(&world.server.writes()), ["POST revisions"]);
}

#[tokio::test]
async fn an_api_server_that_fails_leaves_the_services_with_what_was_good() {
    let world = World::new().await;
    world.server.answers(Method::GET, MONITORS, 404);
    world.server.answers(Method::POST, "/deployments", 500);
    world.reconcile(&function()).await.unwrap_err();
    // Nobody scales what has no Deployment.
    assert!(world.context.store.snapshot().functions.is_empty());
    assert!(!words(&world.server.writes()).contains(&"PATCH functions/thumb/status"));
}

#[tokio::test]
async fn what_is_wrong_is_told_once_and_makes_nothing() {
    let world = World::new().await;
    let mut wrong = function();
    wrong["spec"]["operation"] = json!("resiz");
    world.reconcile(&wrong).await.unwrap();
    let writes = world.server.writes();
    assert_eq!(words(&writes), ["POST events", "PATCH functions/thumb/status"]);
    assert_eq!(reasons(&writes), ["Invalid"]);
    let condition = writes[1].body["status"]["conditions"][0].clone();
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Invalid"))
    );
    assert!(
        condition["message"].as_str().unwrap().contains("resize"),
        "the remedy: {condition}"
    );
    wrong["status"] = json!({ "observedGeneration": 1, "conditions": [condition] });
    world.reconcile(&wrong).await.unwrap();
    assert_eq!(words(&world.server.writes()), Vec::<&str>::new());

    let mut local = function();
    local["spec"] = json!({ "command": ["./mine"] });
    world.reconcile(&local).await.unwrap();
    assert_eq!(reasons(&world.server.writes()), ["CommandNeedsImage"]);
}

#[tokio::test]
async fn what_others_need_stays_until_they_are_gone() {
    let world = World::new().await;
    world.server.answers(Method::GET, MONITORS, 404);
    world.context.no_monitoring();
    world.reconcile(&function()).await.unwrap();
    let of = |kind: &str, name: &str, spec: Value| {
        json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": { "name": name, "namespace": NAMESPACE, "uid": name, "generation": 1, "resourceVersion": "1" } })
    };
    // A trigger of a flow that is not there is refused, and taken when it is.
    let trigger = of(
        "Trigger",
        "on-upload",
        json!({ "filters": [{ "exact": { "type": "a" } }], "flow": "small" }),
    );
    let mirrored = async |trigger: &Value| {
        mirror::reconcile::<Trigger>(Arc::new(object(trigger.clone())), world.context.clone())
            .await
            .unwrap();
    };
    world.server.writes();
    mirrored(&trigger).await;
    assert_eq!(reasons(&world.server.writes()), ["Invalid"]);
    let flow = of(
        "Flow",
        "small",
        json!({ "steps": [{ "name": "first", "function": "thumb" }] }),
    );
    mirror::reconcile::<Flow>(Arc::new(object(flow.clone())), world.context.clone())
        .await
        .unwrap();
    mirrored(&trigger).await;
    let catalog = world.context.store.snapshot();
    assert!(catalog.flows.contains_key("small") && catalog.triggers.contains_key("on-upload"));
    world.server.writes();

    let gone = |mut object: Value| {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["finalizers"] = json!(["imageflow.dev/mirror", "somebody.else/too"]);
        object
    };
    world.reconcile(&gone(function())).await.unwrap();
    let writes = world.server.writes();
    assert_eq!(words(&writes), ["POST events", "PATCH functions/thumb/status"]);
    assert_eq!(reasons(&writes), ["InUse"]);
    mirrored(&gone(trigger)).await;
    mirror::reconcile::<Flow>(Arc::new(object(gone(flow))), world.context.clone())
        .await
        .unwrap();
    world.server.writes();
    world.reconcile(&gone(function())).await.unwrap();
    let writes = world.server.writes();
    assert_eq!(words(&writes), ["PATCH functions/thumb"]);
    assert_eq!(writes[0].body["metadata"]["finalizers"], json!(["somebody.else/too"]));
    assert!(world.context.store.snapshot().functions.is_empty());
}
