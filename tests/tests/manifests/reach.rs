//! Every pair of components: whether the one may reach the other, and on which port.
use std::collections::BTreeSet;
use std::path::Path;

use imageflow_operator::objects::{self, Owner, Settings};
use imageflow_types::names::FunctionName;
use serde_json::{Value, json};

use super::policies::{self, Peer};
use super::render::{folder, name, namespace, overlay, tools};

/// Namespaces, each with a pod that nobody knows; in the first three names can be looked up by all.
const INTRUDERS: [&str; 6] = [
    "imageflow-storage",
    "imageflow-monitoring",
    "imageflow-observability",
    "imageflow-backend",
    "imageflow-processing",
    "imageflow-web",
];

/// A function's pod, and the policy that the operator makes for it.
fn function() -> (Peer, Value) {
    let settings = Settings {
        namespace: "imageflow-processing".to_owned(),
        system_namespace: "imageflow-backend".to_owned(),
        function_image: String::new(),
        gpu_function_image: String::new(),
        pull_policy: String::new(),
        announce_url: String::new(),
        announce_key: objects::Master::default(),
        otlp_endpoint: String::new(),
    };
    let function: FunctionName = "resize".parse().unwrap();
    let owner = Owner {
        kind: "Function",
        name: "resize".to_owned(),
        uid: "1".to_owned(),
    };
    let policy = json!(objects::network_policy(&function, &owner, &settings));
    let mut policy = policy;
    policy["kind"] = json!("NetworkPolicy");
    let labels = json!(objects::labels_of(&function));
    (Peer::pod("function", "imageflow-processing", labels, &[8080]), policy)
}

/// All who may call or be called in an installation, and all policies.
fn world(tools: &Path) -> (Vec<Peer>, Vec<Value>) {
    let objects = [overlay(tools, "k3s"), folder(tools, "kafka/archive")].concat();
    let mut peers = policies::pods(&objects);
    let mut all = policies::policies(&objects);
    let (function, policy) = function();
    let mut other = function.clone();
    "function-2".clone_into(&mut other.name);
    other.labels["imageflow.dev/function"] = json!("blur");
    let mut of_other = policy.clone();
    of_other["spec"]["podSelector"]["matchLabels"]["imageflow.dev/function"] = json!("blur");
    peers.extend([function, other]);
    all.extend([policy, of_other]);
    peers.extend([
        Peer::pod("dns", "kube-system", json!({ "k8s-app": "kube-dns" }), &[53]),
        Peer::pod(
            "traefik",
            "kube-system",
            json!({ "app.kubernetes.io/name": "traefik" }),
            &[],
        ),
        Peer::pod(
            "stranger",
            "default",
            json!({ "app.kubernetes.io/part-of": "imageflow" }),
            &[],
        ),
        Peer::address("api-server", [10, 43, 0, 1].into(), &[443]),
        Peer::address("node", [10, 0, 1, 11].into(), &[10250, 22]),
        Peer::address("world", [198, 51, 100, 7].into(), &[443, 80]),
    ]);
    // What somebody puts into a namespace of ours: it gets nothing by being there.
    peers.extend(INTRUDERS.map(|space| Peer::pod(space, space, json!({}), &[8080])));
    (peers, all)
}

/// Every connection that there must be; all others must not be.
fn wanted() -> BTreeSet<String> {
    let mut wanted = BTreeSet::new();
    let mut flow = |from: &[&str], to: &str, ports: &[u16]| {
        for (from, port) in from.iter().flat_map(|from| ports.iter().map(move |port| (from, port))) {
            wanted.insert(format!("{from} -> {to}:{port}"));
        }
    };
    let services = [
        "imageflow-gateway",
        "imageflow-dispatcher",
        "imageflow-router",
        "imageflow-autoscaler",
        "imageflow-operator",
        "imageflow-pods",
    ];
    let storage = [
        "kafka",
        "kafka-users",
        "minio",
        "minio-setup",
        "imageflow-archive",
        "archive-connector",
    ];
    let watching = ["otel-agent", "otel-gateway", "tempo", "prometheus", "grafana"];
    let functions = ["function", "function-2"];
    for all in [&services[..], &storage, &watching, &functions, &INTRUDERS[..3]] {
        flow(all, "dns", &[53]);
    }
    // Kafka and the object store.
    flow(&services[..5], "kafka", &[9092]);
    flow(&["minio", "imageflow-archive"], "kafka", &[9092]);
    flow(&["kafka"], "kafka", &[9093, 9094]);
    flow(&["kafka-users"], "kafka", &[9094]);
    flow(
        &["imageflow-gateway", "imageflow-dispatcher", "imageflow-router"],
        "minio",
        &[9000],
    );
    flow(&["minio", "minio-setup", "imageflow-archive"], "minio", &[9000]);
    flow(&functions, "minio", &[9000]);
    flow(
        &["imageflow-archive", "archive-connector"],
        "imageflow-archive",
        &[8083],
    );
    // Among the services, and between them and functions.
    flow(
        &["imageflow-gateway", "imageflow-dispatcher", "imageflow-autoscaler"],
        "imageflow-pods",
        &[7001],
    );
    flow(
        &["imageflow-gateway", "imageflow-dispatcher", "imageflow-router"],
        "imageflow-autoscaler",
        &[7002],
    );
    flow(&functions, "imageflow-pods", &[7003]);
    for function in functions {
        flow(
            &["imageflow-gateway", "imageflow-dispatcher", "prometheus"],
            function,
            &[8080],
        );
    }
    // Callers: what comes from outside comes through the ingress.
    flow(&["traefik", "dns", "stranger"], "imageflow-gateway", &[8000]);
    flow(&["traefik"], "grafana", &[3000]);
    // Who watches.
    flow(&services, "otel-agent", &[4317]);
    flow(&functions, "otel-agent", &[4317, 4318]);
    flow(&["otel-agent"], "otel-gateway", &[4317]);
    flow(&["otel-gateway"], "tempo", &[4317]);
    flow(&["grafana"], "tempo", &[3200]);
    flow(&["grafana"], "prometheus", &[9090]);
    flow(&["prometheus"], "imageflow-gateway", &[8000]);
    for service in &services[1..] {
        flow(&["prometheus"], service, &[8081]);
    }
    flow(&["prometheus"], "otel-agent", &[8888]);
    flow(&["prometheus"], "otel-gateway", &[8888]);
    flow(&["prometheus"], "minio", &[9000]);
    // Outside. That of the API server is no pod's address, so whoever may reach it may reach that port of anybody.
    let watch = [
        "imageflow-gateway",
        "imageflow-autoscaler",
        "imageflow-operator",
        "imageflow-pods",
        "otel-agent",
        "prometheus",
    ];
    flow(&watch, "api-server", &[443]);
    flow(&watch, "world", &[443]);
    flow(&["prometheus"], "node", &[10250]);
    flow(&["imageflow-archive"], "world", &[443]);
    // Pods of others are not ours to close.
    for other in ["traefik", "stranger", "dns"] {
        flow(&[other], "dns", &[53]);
        flow(&[other], "api-server", &[443]);
        flow(&[other], "node", &[10250, 22]);
        flow(&[other], "world", &[443, 80]);
    }
    wanted
}

#[test]
fn everybody_reaches_whom_they_need_and_nobody_else() {
    let Some(tools) = tools() else { return };
    let (peers, policies) = world(&tools);
    let (possible, wanted) = (policies::all_flows(&policies, &peers), wanted());
    let cut: Vec<_> = wanted.difference(&possible).collect();
    let open: Vec<_> = possible.difference(&wanted).collect();
    assert!(cut.is_empty() && open.is_empty(), "cut off: {cut:#?}\nopen: {open:#?}");
    // None of them is for nothing, and the evaluator hears of each.
    for index in 0..policies.len() {
        let mut fewer = policies.clone();
        let gone = fewer.remove(index);
        let changed = policies::all_flows(&fewer, &peers) != wanted;
        assert!(changed, "{}/{} changes nothing", namespace(&gone), name(&gone));
    }
}

/// Functions fetch and store by signed URLs: without a way to the S3 server itself no function can work.
#[test]
fn functions_reach_an_s3_server_that_is_elsewhere_and_nothing_beside_it() {
    let Some(tools) = tools() else { return };
    for (name, address, ports) in [
        ("external", [192, 0, 2, 1], [443, 9000]),
        ("cluster", [10, 77, 0, 1], [9000, 9001]),
    ] {
        let mut all = policies::policies(&overlay(&tools, name));
        let (function, policy) = function();
        all.push(policy);
        let server = Peer::address("s3", address.into(), &ports);
        let beside = Peer::address("beside", [198, 51, 100, 7].into(), &ports);
        let stranger = Peer::pod("stranger", "imageflow-processing", json!({}), &[]);
        for port in ports {
            let from = |who: &Peer, to: &Peer| policies::reaches(&all, who, to, port);
            assert!(from(&function, &server), "overlays/{name}: cut off from {port}");
            assert!(!from(&function, &beside), "overlays/{name}: open to {port}");
            assert!(!from(&stranger, &server), "overlays/{name}: open to anybody");
        }
    }
}
