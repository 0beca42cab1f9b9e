//! Functions as pods of a real Kubernetes: applied by kubectl and by the API, woken by events of a real Kafka and by calls, scaled
//! and back to zero. Run by `cargo xtask test cluster`, on the network of the cluster's first node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::time::{Duration, Instant};

use http::Method;
use imageflow_tests::Api;
use imageflow_tests::external::{RESOURCES, RESULT_WIDTH, World, photo, put, until};
use imageflow_tests::http::json;
use imageflow_tests::kubectl::{apply, get, kubectl, try_kubectl, world};
use imageflow_tests::role::Role;
use imageflow_tests::roles::Roles;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// Ready pods, as the API of the platform tells.
async fn at_zero(api: &Api, function: &str) {
    let none = |v: &Value| v["status"]["pods"]["ready"] == 0 && v["status"]["pods"]["starting"] == 0;
    api.until_within(PATIENCE, &format!("/v1/functions/{function}"), none)
        .await;
}

async fn invoke(api: &Api, function: &str, number: usize) -> Duration {
    let begun = Instant::now();
    let path = format!("/v1/functions/{function}/invoke");
    let answer = api.send(Method::POST, &path, &[], photo(number)).await;
    assert_eq!(answer.status(), 200, "{}", json(&answer));
    let info = imageflow_ops::probe(answer.body(), &imageflow_ops::Limits::default()).unwrap();
    assert!(function != "small" || info.width == RESULT_WIDTH);
    begun.elapsed()
}

/// What is applied by the API is a custom resource, and a change of it a revision.
async fn by_the_api(api: &Api) {
    let yaml = |width: u32| {
        format!(
            "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: tiny }}\nspec: {{ operation: resize, params: {{ width: {width} }} }}\n"
        )
    };
    api.apply(&yaml(4)).await;
    assert_eq!(get(&["fn", "tiny"])["spec"]["params"]["width"], 4);
    let applied = api.apply(&yaml(5)).await;
    assert_eq!(applied["items"][0]["revision"], "tiny-00002", "{applied}");
    assert_eq!(get(&["rev", "tiny-00002"])["spec"]["template"]["params"]["width"], 5);
    let unchanged = api.apply(&yaml(5)).await;
    assert_eq!(unchanged["items"][0]["outcome"], "unchanged", "{unchanged}");
    let (well, said) = try_kubectl(
        &[
            "patch",
            "rev",
            "tiny-00001",
            "--type=merge",
            "-p",
            r#"{"spec":{"number":7}}"#,
        ],
        "",
    );
    assert!(!well && said.contains("a revision never changes"), "{said}");
    let answer = api.send(Method::DELETE, "/v1/functions/tiny", &[], Vec::new()).await;
    assert!(answer.status().is_success(), "{}", json(&answer));
    let gone = async || {
        kubectl(&[
            "get",
            "fn,rev,deploy",
            "-l",
            "imageflow.dev/function=tiny",
            "-o",
            "name",
        ])
        .is_empty()
    };
    until("what belonged to it is gone", PATIENCE, gone).await;
}

/// What is wrong is refused by the API server where a rule can, else told in the status; what was good before goes on.
async fn refusals(api: &Api) {
    let function = |name: &str, spec: &str| {
        format!("apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
    };
    for (name, spec, words) in [
        (
            "bad",
            "{ operation: resize, scale: { min: 3, max: 2 } }",
            "min is over max",
        ),
        ("bad", "{ operation: resize, image: x }", "exactly one program"),
        ("bad", "{ operation: resize, sclae: {} }", "unknown field"),
        (
            "bad",
            "{ operation: resize, env: [ { name: PORT, value: x } ] }",
            "the platform sets PORT",
        ),
        ("Bad_Name", "{ operation: resize }", "Bad_Name"),
    ] {
        let (well, said) = try_kubectl(&["apply", "-f", "-"], &function(name, spec));
        assert!(!well && said.contains(words), "{spec}: {said}");
    }
    apply(&function("bad", "{ operation: resise }"));
    kubectl(&["wait", "--for=condition=Ready=False", "fn/bad", "--timeout=30s"]);
    let bad = get(&["fn", "bad"]);
    let ready = &bad["status"]["conditions"][0];
    assert_eq!(ready["reason"], "Invalid");
    assert!(
        ready["message"].as_str().unwrap().contains("did you mean \"resize\"?"),
        "{ready}"
    );
    kubectl(&["delete", "fn", "bad", "--timeout=30s"]);
    apply(&function("local", "{ command: [./mine] }"));
    kubectl(&["wait", "--for=condition=Ready=False", "fn/local", "--timeout=30s"]);
    assert_eq!(
        get(&["fn", "local"])["status"]["conditions"][0]["reason"],
        "CommandNeedsImage"
    );
    kubectl(&["delete", "fn", "local", "--timeout=30s"]);
    // By the API it is the same answer, with the field.
    let body = function("bad", "{ operation: resize, scale: { min: 3, max: 2 } }");
    let headers = [("content-type", "application/yaml")];
    let answer = api.send(Method::POST, "/v1/apply", &headers, body).await;
    assert!(answer.status().is_client_error(), "{}", json(&answer));
}

/// An operator that starts again writes nothing when nothing has changed.
async fn restarted(roles: &Roles<'_>, operator: Role) -> Role {
    let versions = || {
        let each = r"jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion}{' '}{end}";
        kubectl(&["get", "deploy,svc,pdb,netpol,fn,rev", "-o", each])
    };
    // What still comes and goes would have other versions afterwards.
    until("nothing goes on", PATIENCE, async || {
        let (functions, deployments): (Value, Value) = (get(&["fn"]), get(&["deploy"]));
        let all = [&functions, &deployments].map(|list| list["items"].as_array().unwrap());
        let mut all = all.into_iter().flatten();
        all.all(|one| one["status"]["replicas"].as_u64().unwrap_or(0) == 0)
    })
    .await;
    operator.stop();
    let before = versions();
    let operator = roles.operator("operator-1");
    let metrics = Api::new(&operator.admin);
    until("it has looked at all", PATIENCE, async || {
        metrics
            .metric("imageflow_operator_reconciles_total", &["outcome=\"done\""])
            .await
            >= 4.0
    })
    .await;
    assert_eq!(metrics.metric("imageflow_operator_writes_total", &[]).await, 0.0);
    assert_eq!(versions(), before);
    operator
}

/// Pods from zero to several and back, of which some are killed under their work: nothing is lost.
async fn many(world: &World, api: &Api) {
    const PHOTOS: usize = 40;
    let before = world.results().await.len();
    let spec = r#"{"spec":{"concurrency":{"target":1,"limit":1},"scale":{"max":4,"drainTarget":"1s","keepWarm":{"min":"3s","max":"3s"}}}}"#;
    kubectl(&["patch", "fn", "grey", "--type=merge", "-p", spec]);
    let latest = "--for=jsonpath={.status.latestRevision}=grey-00002";
    kubectl(&["wait", latest, "fn/grey", "--timeout=30s"]);
    for number in 100..100 + PHOTOS {
        put(&*world.objects, number).await.unwrap();
    }
    let selector = "imageflow.dev/revision=grey-00002";
    until("there are pods", PATIENCE, async || {
        !kubectl(&["get", "pods", "-l", selector, "-o", "name"]).is_empty()
    })
    .await;
    kubectl(&["delete", "pods", "-l", selector, "--grace-period=0", "--force"]);
    until("all results are there", PATIENCE, async || {
        world.results().await.len() == before + PHOTOS
    })
    .await;
    assert_eq!(api.get("/v1/dead-letters").await["items"], serde_json::json!([]));
    at_zero(api, "grey").await;
}

/// A function with a GPU is on the node with the cards, never with more pods than there are cards, and that is told; one that has work
/// gets a card of one that has none.
async fn gpus(api: &Api) {
    apply(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: dear }\nspec: { operation: grayscale, resources: { cpu: 50m, memory: 64Mi, gpu: 1 }, scale: { replicas: 3 } }\n",
    );
    let pods = || get(&["pods", "-l", "imageflow.dev/function=dear"]);
    let running = || {
        let pods = pods();
        let all = pods["items"].as_array().unwrap();
        let on_cards = |p: &&Value| p["status"]["phase"] == "Running" && p["spec"]["nodeName"] == "gpu-1";
        all.iter().filter(on_cards).count()
    };
    until("both cards are in use", PATIENCE, async || running() == 2).await;
    until("it is said why there is no third", PATIENCE, async || {
        let explained = api.get("/v1/scaling/dear").await.to_string();
        explained.contains("3 asked for, its share of the 2 GPU cards is 2")
    })
    .await;
    assert_eq!(
        pods()["items"].as_array().unwrap().len(),
        2,
        "nobody waits for a card in vain"
    );
    apply(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: busy }\nspec: { operation: grayscale, resources: { cpu: 50m, memory: 64Mi, gpu: 1 } }\n",
    );
    kubectl(&["wait", "--for=condition=Ready", "fn/busy", "--timeout=60s"]);
    known(api, "busy").await;
    let called = api.send(Method::POST, "/v1/functions/busy/invoke", &[], photo(1)).await;
    assert_eq!(called.status(), 200, "a pod without work gave its card up");
    kubectl(&["delete", "fn", "busy", "--timeout=60s"]);
    // By the scale subresource, as kubectl does it.
    kubectl(&["scale", "fn/dear", "--replicas=0"]);
    at_zero(api, "dear").await;
    kubectl(&["delete", "fn", "dear", "--timeout=60s"]);
}

/// Waits until the gateway has heard of a function, some moments after its condition says that it is ready.
async fn known(api: &Api, name: &str) {
    let has = |list: &Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["metadata"]["name"] == name)
    };
    api.until("/v1/functions", has).await;
}

/// A function for which there are never cards enough has its work done by the one that it names, from zero.
async fn fallback(api: &Api) {
    let huge = |gpu: u32| {
        format!(
            "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: huge }}\nspec: {{ operation: resize, params: {{ width: 9 }}, resources: {{ cpu: 50m, memory: 64Mi, gpu: {gpu} }}, scale: {{ fallback: small }} }}\n"
        )
    };
    let (well, said) = try_kubectl(&["apply", "-f", "-"], &huge(0));
    assert!(
        !well && said.contains("scale.fallback has no effect without GPUs"),
        "{said}"
    );
    at_zero(api, "small").await;
    apply(&huge(3));
    kubectl(&["wait", "--for=condition=Ready", "fn/huge", "--timeout=60s"]);
    known(api, "huge").await;
    let answer = api.send(Method::POST, "/v1/functions/huge/invoke", &[], photo(1)).await;
    assert_eq!(answer.status(), 200, "{}", json(&answer));
    let info = imageflow_ops::probe(answer.body(), &imageflow_ops::Limits::default()).unwrap();
    assert_eq!(info.width, RESULT_WIDTH, "it is small that did it");
    let explained = api.get("/v1/scaling/huge").await.to_string();
    assert!(
        explained.contains("no GPU card for it, so small does its work meanwhile"),
        "{explained}"
    );
    kubectl(&["delete", "fn", "huge", "--timeout=60s"]);
    at_zero(api, "small").await;
}

/// A function that a flow needs stays until the flow is gone.
async fn removal() {
    kubectl(&["delete", "fn", "small", "--wait=false"]);
    let blocked = async || get(&["fn", "small"])["status"]["conditions"][0]["reason"] == "InUse";
    until("its removal is blocked", PATIENCE, blocked).await;
    assert!(kubectl(&["get", "events"]).contains("InUse"));
    kubectl(&["delete", "trigger/on-upload", "flow/two", "--timeout=60s"]);
    kubectl(&["wait", "--for=delete", "fn/small", "--timeout=60s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_pods_from_zero_and_back() {
    let Some(world) = world().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut roles = Roles::on_kubernetes(&world, folder.path());
    let pods = roles.pods();
    let autoscaler = roles.autoscaler();
    let operator = roles.operator("operator-1");
    let (gateway, api) = roles.gateway("gateway-1", "127.0.0.1:0");
    let router = roles.router("router-1");
    let dispatcher = roles.dispatcher("dispatcher-1");

    // The same YAML as for the API.
    let said = apply(RESOURCES);
    assert!(said.contains("function.imageflow.dev/small created"), "{said}");
    kubectl(&[
        "wait",
        "--for=condition=Ready",
        "fn/small",
        "fn/grey",
        "flow/two",
        "trigger/on-upload",
        "--timeout=60s",
    ]);
    let small = get(&["fn", "small"]);
    assert_eq!(small["status"]["latestRevision"], "small-00001");
    assert_eq!(get(&["deployment", "small-00001"])["spec"]["replicas"], 0);
    let table = kubectl(&["get", "fn"]);
    assert!(table.contains("PROGRAM") && table.contains("ScaledToZero"), "{table}");

    // An event of a bucket wakes the function, whose pods write the result. A router may hear of the trigger a moment after the
    // operator has written it, so a photo that comes in between is one of before the trigger.
    for number in 0.. {
        put(&*world.objects, number).await.unwrap();
        let there = until("a result is there", PATIENCE, async || {
            !world.results().await.is_empty()
        });
        if tokio::time::timeout(Duration::from_secs(5), there).await.is_ok() {
            break;
        }
        assert!(number < 20, "no photo has a result");
    }
    at_zero(&api, "grey").await;
    // The platform knows before the API server that they go.
    until("its Deployment is at zero", PATIENCE, async || {
        get(&["deployment", "grey-00001"])["spec"]["replicas"] == 0
    })
    .await;

    // A call at zero is held until a pod is there.
    let cold = invoke(&api, "small", 1).await;
    let warm = invoke(&api, "small", 2).await;
    println!("a call at zero took {cold:?}, a warm one {warm:?}");
    // The kubelet tells of a container later than the platform uses it, and of one that is gone nothing any more.
    until("its lines are there", PATIENCE, async || {
        invoke(&api, "small", 3).await;
        let path = "/v1/functions/small/logs?tail=50";
        let answer = api.send(Method::GET, path, &[], Vec::new()).await;
        String::from_utf8_lossy(answer.body()).contains("listening")
    })
    .await;

    by_the_api(&api).await;
    refusals(&api).await;
    let operator = restarted(&roles, operator).await;
    many(&world, &api).await;
    gpus(&api).await;
    fallback(&api).await;
    removal().await;

    for role in [gateway, router, dispatcher, operator, autoscaler, pods] {
        role.stop();
    }
}
