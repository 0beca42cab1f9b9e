//! The manifests: put together, held against schemas, Istio's and Prometheus' own validators, and against rules of ours. Run by
//! `cargo xtask test manifests`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

#[path = "manifests/monitoring.rs"]
mod monitoring;
#[path = "manifests/policies.rs"]
mod policies;
#[path = "manifests/reach.rs"]
mod reach;
#[path = "manifests/render.rs"]
mod render;
#[path = "manifests/rules.rs"]
mod rules;

use render::{APART, OVERLAYS, check, folder, kind, list, name, overlay, root, string, text, tools};

/// The Kubernetes of the tests' cluster.
const KUBERNETES: &str = "1.34.0";

fn kubeconform(tools: &Path, text: &str) -> Result<(), String> {
    let schemas = tools.join("schemas");
    let place = |pattern: &str| schemas.join(pattern).display().to_string();
    let mut command = Command::new(tools.join("kubeconform"));
    command.args(["-strict", "-summary", "-kubernetes-version", KUBERNETES]);
    for pattern in [
        "k8s/{{ .NormalizedKubernetesVersion }}{{ .StrictSuffix }}/{{ .ResourceKind }}{{ .KindSuffix }}.json",
        "crds/{{ .Group }}/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json",
    ] {
        command.args(["-schema-location", &place(pattern)]);
    }
    check(&mut command, text)
}

#[test]
fn all_is_as_its_schemas_want_it() {
    let Some(tools) = tools() else { return };
    let known: Vec<String> = std::fs::read_dir(root().join("manifests/overlays"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        known.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from(OVERLAYS)
    );
    for name in OVERLAYS {
        // The definitions of our own kinds are what their objects are held against; kubeconform knows no schema of definitions.
        let text = text(&tools, &format!("overlays/{name}"));
        let documents = text
            .split("\n---\n")
            .filter(|d| !d.contains("kind: CustomResourceDefinition"));
        let documents: Vec<&str> = documents.collect();
        assert!(documents.len() > 40, "{name}");
        kubeconform(&tools, &documents.join("\n---\n")).unwrap_or_else(|said| panic!("overlays/{name}: {said}"));
    }
    for name in APART {
        kubeconform(&tools, &text(&tools, name)).unwrap_or_else(|said| panic!("{name}: {said}"));
    }
    for file in [
        "k3s/nvidia-device-plugin.yaml",
        "samples/functions.yaml",
        "samples/flow.yaml",
    ] {
        let text = std::fs::read_to_string(root().join("manifests").join(file)).unwrap();
        kubeconform(&tools, &text).unwrap_or_else(|said| panic!("{file}: {said}"));
    }
}

/// A validator that says yes to everything would let this through.
#[test]
fn schemas_refuse_what_is_wrong() {
    let Some(tools) = tools() else { return };
    let text = text(&tools, "overlays/production");
    let documents: Vec<&str> = text.split("\n---\n").collect();
    let of = |wanted: &str| *documents.iter().find(|d| d.contains(wanted)).unwrap();
    for (wanted, from, to) in [
        ("kind: StatefulSet", "serviceName:", "serviceNames:"),
        ("kind: Deployment", "containerPort: 8081", "containerPort: admin"),
        ("kind: NetworkPolicy", "podSelector:", "podSelecter:"),
        ("kind: VirtualService", "retryOn:", "retryWhen:"),
        ("kind: Gateway", "mode: SIMPLE", "mode: SIMPEL"),
    ] {
        let good = of(wanted);
        kubeconform(&tools, good).unwrap_or_else(|said| panic!("{good}: {said}"));
        let bad = good.replacen(from, to, 1);
        assert_ne!(good, bad, "{wanted}");
        assert!(kubeconform(&tools, &bad).is_err(), "{wanted}: {to} was taken");
    }
    let sample = std::fs::read_to_string(root().join("manifests/samples/functions.yaml")).unwrap();
    let bad = sample.replacen("operation:", "operatoin:", 1);
    assert!(kubeconform(&tools, &bad).is_err(), "our own kinds are not looked at");
}

fn istio(tools: &Path, object: &Value) -> Result<(), String> {
    check(&mut Command::new(tools.join("istio-validate")), &object.to_string())
}

#[test]
fn istio_takes_what_is_for_istio() {
    let Some(tools) = tools() else { return };
    for overlay_name in ["production", "chaos"] {
        let objects = overlay(&tools, overlay_name);
        let of_istio: Vec<_> = objects
            .iter()
            .filter(|o| string(o, "/apiVersion").starts_with("networking.istio.io/"))
            .collect();
        assert_eq!(of_istio.len(), 3, "{overlay_name}");
        for object in &of_istio {
            istio(&tools, object).unwrap_or_else(|said| panic!("{}: {said}", name(object)));
        }
        let service = of_istio.iter().find(|o| kind(o) == "VirtualService").unwrap();
        let fault = service["spec"]["http"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|http| http.get("fault").is_some());
        assert_eq!(
            fault.count(),
            usize::from(overlay_name == "chaos"),
            "faults are behind an overlay"
        );
        for (pointer, wrong) in [
            ("/spec/http/1/retries/retryOn", json!("fivexx")),
            ("/spec/http/1/timeout", json!("-3s")),
            ("/spec/http/1/route/0/weight", json!(-1)),
        ] {
            let mut bad = (*service).clone();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            bad.pointer_mut(parent).unwrap()[field] = wrong;
            assert!(istio(&tools, &bad).is_err(), "{pointer} was taken");
        }
    }
}

/// A retry of a POST that makes a second run is one of the things that must not happen.
#[test]
fn only_what_is_safe_is_sent_twice() {
    let Some(tools) = tools() else { return };
    let objects = overlay(&tools, "production");
    let service = objects.iter().find(|o| kind(o) == "VirtualService").unwrap();
    for http in list(service, "/spec/http") {
        let conditions: BTreeSet<&str> = string(http, "/retries/retryOn")
            .split(',')
            .filter(|c| !c.is_empty())
            .collect();
        // With these nothing was sent.
        let harmless = conditions.is_subset(&BTreeSet::from(["connect-failure", "refused-stream"]));
        let safe = list(http, "/match").iter().all(|on| {
            let read = string(on, "/method/regex")
                .split('|')
                .all(|m| ["GET", "HEAD", "OPTIONS"].contains(&m));
            read || on.pointer("/headers/idempotency-key").is_some()
        });
        assert!(harmless || safe, "{http}");
        let attempts = http["retries"]["attempts"].as_u64();
        assert!(
            attempts.is_some(),
            "Istio retries by itself where nothing is said: {http}"
        );
        assert!(attempts == Some(0) || !conditions.is_empty(), "{http}");
    }
}

#[test]
fn the_rules_of_the_house_hold() {
    let Some(tools) = tools() else { return };
    for name in OVERLAYS {
        let objects = overlay(&tools, name);
        let broken = rules::broken(&objects);
        assert!(broken.is_empty(), "overlays/{name}:\n{}", broken.join("\n"));
    }
    // What is applied apart stands on what is there.
    for name in APART {
        let objects = [overlay(&tools, "k3s"), folder(&tools, name)].concat();
        let broken = rules::broken(&objects);
        assert!(broken.is_empty(), "{name}:\n{}", broken.join("\n"));
    }
}

/// One change to one object, and the words that must come of it.
fn mutations() -> Vec<(&'static str, &'static str, &'static str, Value, &'static str)> {
    let pod = "/spec/template/spec";
    let at = |path: &str| -> &'static str { format!("{pod}{path}").leak() };
    vec![
        (
            "Deployment",
            "imageflow-operator",
            at("/containers/0/image"),
            json!("imageflow/imageflow:latest"),
            "another tomorrow",
        ),
        (
            "Deployment",
            "imageflow-operator",
            at("/containers/0/image"),
            json!("host:5000/imageflow"),
            "another tomorrow",
        ),
        (
            "Deployment",
            "imageflow-operator",
            at("/containers/0/resources"),
            json!({}),
            "limits.memory",
        ),
        (
            "StatefulSet",
            "kafka",
            at("/containers/0/livenessProbe"),
            Value::Null,
            "no livenessProbe",
        ),
        (
            "StatefulSet",
            "kafka",
            at("/containers/0/securityContext"),
            json!({}),
            "strictest",
        ),
        (
            "StatefulSet",
            "kafka",
            at("/securityContext/runAsNonRoot"),
            json!(false),
            "as root",
        ),
        (
            "StatefulSet",
            "kafka",
            at("/automountServiceAccountToken"),
            json!(true),
            "token",
        ),
        (
            "StatefulSet",
            "minio",
            at("/containers/0/env/1/value"),
            json!("minioadmin"),
            "in the manifest",
        ),
        (
            "StatefulSet",
            "minio",
            "/spec/replicas",
            json!(5),
            "volumes of class fast-ssd",
        ),
        (
            "StatefulSet",
            "minio",
            "/spec/serviceName",
            json!("minio-nods"),
            "Service is not made",
        ),
        (
            "StatefulSet",
            "imageflow-router",
            "/spec/selector/matchLabels/app.kubernetes.io~1name",
            json!("router"),
            "its own pods",
        ),
        (
            "StatefulSet",
            "imageflow-gateway",
            "/spec/replicas",
            json!(2),
            "says replicas too",
        ),
        (
            "PodDisruptionBudget",
            "kafka",
            "/spec/selector/matchLabels/app.kubernetes.io~1name",
            json!("kafa"),
            "no PodDisruptionBudget",
        ),
        (
            "PodDisruptionBudget",
            "kafka",
            "/spec/minAvailable",
            json!(2),
            "maxUnavailable",
        ),
        (
            "PodDisruptionBudget",
            "imageflow-gateway",
            "/spec/unhealthyPodEvictionPolicy",
            Value::Null,
            "let go wrongly",
        ),
        (
            "PodDisruptionBudget",
            "minio",
            "/spec/unhealthyPodEvictionPolicy",
            json!("AlwaysAllow"),
            "let go wrongly",
        ),
        (
            "Service",
            "backend-api",
            "/spec/selector/app.kubernetes.io~1name",
            json!("gateway"),
            "selects no pod",
        ),
        (
            "Service",
            "backend-api",
            "/spec/ports/0/targetPort",
            json!("https"),
            "none of the pod's",
        ),
        (
            "Service",
            "backend-api",
            "/spec/ports/0/port",
            json!(8001),
            "there is no",
        ),
        (
            "DestinationRule",
            "backend-api",
            "/spec/host",
            json!("backend.imageflow-backend.svc.cluster.local"),
            "no Service backend",
        ),
        (
            "VirtualService",
            "imageflow-api",
            "/spec/gateways/0",
            json!("gateway"),
            "no Gateway",
        ),
        (
            "HorizontalPodAutoscaler",
            "imageflow-gateway",
            "/spec/scaleTargetRef/kind",
            json!("Deployment"),
            "not made",
        ),
        (
            "ConfigMap",
            "kafka-files",
            "/metadata/name",
            json!("kafka-file"),
            "no ConfigMap kafka-files",
        ),
        (
            "ConfigMap",
            "imageflow-config",
            "/data/KAFKA",
            Value::Null,
            "there is no",
        ),
        (
            "NetworkPolicy",
            "default-deny",
            "/spec/policyTypes",
            json!(["Ingress"]),
            "denies by default",
        ),
        (
            "Namespace",
            "imageflow-processing",
            "/metadata/labels",
            json!({}),
            "pod security",
        ),
        (
            "Role",
            "imageflow-operator",
            "/rules/0/verbs/0",
            json!("*"),
            "the right *",
        ),
        (
            "ClusterRole",
            "imageflow-prometheus",
            "/rules/0/resources/0",
            json!("secrets"),
            "the right secrets",
        ),
        (
            "RoleBinding",
            "imageflow-pods",
            "/roleRef/name",
            json!("imageflow-pod"),
            "there is no",
        ),
        (
            "ServiceAccount",
            "prometheus",
            "/metadata/name",
            json!("prom"),
            "there is no",
        ),
    ]
}

/// A rule that cannot be broken is none: each of them tells of the change that is against it.
#[test]
fn every_rule_can_fail() {
    let Some(tools) = tools() else { return };
    let good = overlay(&tools, "production");
    for (of_kind, called, pointer, value, words) in mutations() {
        let mut bad = good.clone();
        let object = bad.iter_mut().find(|o| kind(o) == of_kind && name(o) == called);
        let object = object.unwrap_or_else(|| panic!("there is no {of_kind} {called}"));
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = object
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{called} has no {pointer}"));
        let field = field.replace("~1", "/");
        match (parent, value) {
            (Value::Array(items), value) => items[field.parse::<usize>().unwrap()] = value,
            (Value::Object(fields), Value::Null) => drop(fields.remove(&field).unwrap()),
            (Value::Object(fields), value) => drop(fields.insert(field, value)),
            (other, _) => panic!("{pointer} is in {other}"),
        }
        let said = rules::broken(&bad);
        assert!(
            said.iter().any(|line| line.contains(words)),
            "{called} {pointer}: {said:#?}"
        );
    }
}

/// A collector that is wired to what it does not have does not start. (Its own program would say so too: it takes five minutes to build.)
#[test]
fn collectors_have_what_their_pipelines_name() {
    let source = root().join("manifests/observability");
    for file in ["agent.yaml", "gateway.yaml"] {
        let config: Value = render::objects(&std::fs::read_to_string(source.join(file)).unwrap()).remove(0);
        let mut used = BTreeSet::new();
        for (_, pipeline) in config["service"]["pipelines"].as_object().unwrap() {
            for part in ["receivers", "processors", "exporters"] {
                for called in list(pipeline, &format!("/{part}")).iter().filter_map(Value::as_str) {
                    assert!(
                        config[part].get(called).is_some(),
                        "{file}: there is no {part} {called}"
                    );
                    used.insert((part, called.to_owned()));
                }
            }
        }
        for part in ["receivers", "processors", "exporters"] {
            for called in config[part].as_object().unwrap().keys() {
                assert!(
                    used.contains(&(part, called.clone())),
                    "{file}: {part} {called} is for nothing"
                );
            }
        }
        let first = &config["service"]["pipelines"]["traces"]["processors"][0];
        assert_eq!(first, "memory_limiter", "{file}: what limits memory comes first");
    }
}
