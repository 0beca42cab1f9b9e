//! What is made for a function. Pure: from a function and its revision to the objects of the API.
use std::collections::BTreeMap;

use imageflow_pods::kubernetes::{FUNCTION_LABEL, FUNCTION_PORT, LIMIT_ANNOTATION, REVISION_LABEL};
use imageflow_types::announce;
use imageflow_types::function::{FunctionSpec, Program};
use imageflow_types::names::{FunctionName, RevisionName};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Who writes, as the API server keeps it.
pub const FIELD_MANAGER: &str = "imageflow-operator";
/// The user of the stock images, and of images that name none.
const USER: u32 = 65532;
/// Longer than a drain: the pod's own limit ends it first.
const GRACE_SECONDS: u64 = 10;
/// Between two questions whether a container is alive, and how many unanswered ones end it.
const LIVE_SECONDS: u64 = 10;
const LIVE_FAILURES: u64 = 3;
/// Room for what a program writes while it works.
const SCRATCH: &str = "1Gi";

/// What all functions share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the resources and their pods are.
    pub namespace: String,
    /// Where the platform's services are.
    pub system_namespace: String,
    /// Image of functions of the catalogue.
    pub function_image: String,
    /// The same for those that want a GPU.
    pub gpu_function_image: String,
    /// `imagePullPolicy` of functions.
    pub pull_policy: String,
    /// Where pods announce themselves; empty for nowhere.
    pub announce_url: String,
    /// Of which the key of each revision is made.
    pub announce_key: Master,
    /// Where pods send their spans; empty for nowhere.
    pub otlp_endpoint: String,
}

/// The key of the installation. It is never shown.
#[derive(Clone, Default)]
pub struct Master(pub Vec<u8>);

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Master(..)")
    }
}

/// A function's own object: who is to go when it goes.
#[derive(Debug, Clone)]
pub struct Owner {
    /// `Function` or `Revision`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Owner {
    fn reference(&self) -> Value {
        json!([{
            "apiVersion": "imageflow.dev/v1alpha1", "kind": self.kind, "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true,
        }])
    }
}

/// Reads what was built here: the words are ours, so it is always what it should be.
fn made<T: DeserializeOwned + Default>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an object was built wrongly");
        T::default()
    })
}

fn labels(function: &FunctionName) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (FUNCTION_LABEL, function.to_string()),
        ("app.kubernetes.io/name", function.to_string()),
        ("app.kubernetes.io/part-of", "imageflow".to_owned()),
        ("app.kubernetes.io/managed-by", FIELD_MANAGER.to_owned()),
    ])
}

/// The labels of what belongs to a function.
#[must_use]
pub fn labels_of(function: &FunctionName) -> BTreeMap<String, String> {
    labels(function).into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn metadata(name: &str, settings: &Settings, labels: &BTreeMap<&'static str, String>, owner: &Owner) -> Value {
    json!({
        "name": name, "namespace": settings.namespace, "labels": labels, "ownerReferences": owner.reference(),
    })
}

/// The label selector of a function's pods, as text.
#[must_use]
pub fn selector(function: &FunctionName) -> String {
    format!("{FUNCTION_LABEL}={function}")
}

/// The Deployment of a revision. How many pods there are is not said: that is the autoscaler's. `None` when the function has no
/// program that a pod can run.
#[must_use]
pub fn deployment(
    function: &FunctionName,
    revision: &RevisionName,
    template: &FunctionSpec,
    owner: &Owner,
    settings: &Settings,
) -> Option<Deployment> {
    let gpu = template.resources.gpu;
    let image = match template.program()? {
        Program::Operation(_) if gpu > 0 => settings.gpu_function_image.clone(),
        Program::Operation(_) => settings.function_image.clone(),
        Program::Image(image) => image.to_owned(),
        Program::Command(_) => return None,
    };
    let mut labels = labels(function);
    let selects = BTreeMap::from([
        (FUNCTION_LABEL, function.to_string()),
        (REVISION_LABEL, revision.to_string()),
    ]);
    labels.insert(REVISION_LABEL, revision.to_string());
    let mut limits = BTreeMap::from([
        ("cpu", template.resources.cpu.to_string()),
        ("memory", template.resources.memory.to_string()),
    ]);
    if gpu > 0 {
        limits.insert("nvidia.com/gpu", gpu.to_string());
    }
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": template.timeout.0.as_secs() + GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "nodeSelector": { "node-type": if gpu > 0 { "gpu-enabled" } else { "cpu-intensive" } },
        "containers": [{
            "name": "function",
            "image": image,
            "imagePullPolicy": settings.pull_policy,
            "ports": [{ "name": "http", "containerPort": FUNCTION_PORT, "protocol": "TCP" }],
            "env": environment(function, revision, template, settings),
            "resources": { "limits": limits, "requests": limits },
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            },
        }],
    });
    let by_catalogue = matches!(template.program()?, Program::Operation(_));
    for (name, probe) in probes(by_catalogue, template.timeout.0.as_secs()) {
        pod["containers"][0][name] = probe;
    }
    if !by_catalogue {
        // Functions of the catalogue write no files. A kubelet looks for what it has to mount each 300 ms, so a pod without
        // any volume starts sooner by most of that.
        pod["containers"][0]["volumeMounts"] = json!([{ "name": "scratch", "mountPath": "/tmp" }]);
        pod["volumes"] = json!([{ "name": "scratch", "emptyDir": { "sizeLimit": SCRATCH } }]);
    }
    if gpu > 0 {
        pod["tolerations"] = json!([{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }]);
    }
    if !template.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(template.image_pull_secrets);
    }
    Some(made(json!({
        "metadata": metadata(revision.as_str(), settings, &labels, owner),
        "spec": {
            "selector": { "matchLabels": selects },
            "strategy": strategy(gpu),
            "revisionHistoryLimit": 1,
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": { LIMIT_ANNOTATION: template.concurrency.limit.to_string() },
                },
                "spec": pod,
            },
        },
    })))
}

/// What the kubelet asks a container, and how often.
///
/// Of an image it is only asked that connections are taken: it need not know any route but `POST /`, and with one thread it
/// answers nothing while it works. It has no readiness probe: a connection that nobody takes stays in the queue of its listener,
/// which may hold five, so asking each second would fill it and have a program at work be called unready. It is ready from its
/// start on. For the same reason it is given up only after longer than a request may take, by when it has looked at its queue.
fn probes(by_catalogue: bool, timeout_seconds: u64) -> Vec<(&'static str, Value)> {
    let probe = |action: Value, seconds: u64, failures: u64| {
        let mut probe = action;
        probe["periodSeconds"] = json!(seconds);
        probe["failureThreshold"] = json!(failures);
        probe["timeoutSeconds"] = json!(1);
        probe
    };
    let connect = json!({ "tcpSocket": { "port": "http" } });
    let get = |path: &str| json!({ "httpGet": { "path": path, "port": "http" } });
    // Starts are looked at each second, since that is a part of a cold start; a program gets a minute to listen.
    if by_catalogue {
        return vec![
            ("startupProbe", probe(get("/healthz/ready"), 1, 60)),
            ("readinessProbe", probe(get("/healthz/ready"), 1, 2)),
            (
                "livenessProbe",
                probe(get("/healthz/live"), LIVE_SECONDS, LIVE_FAILURES),
            ),
        ];
    }
    let patience = timeout_seconds.div_ceil(LIVE_SECONDS) + LIVE_FAILURES;
    vec![
        ("startupProbe", probe(connect.clone(), 1, 60)),
        ("livenessProbe", probe(connect, LIVE_SECONDS, patience)),
    ]
}

/// How pods are replaced when all of them change, as in an upgrade of the platform: a few at a time, so that the function is never
/// without any. Not with GPUs: the old pods may hold the last cards, for which the new ones would wait for ever.
fn strategy(gpu: u32) -> Value {
    if gpu > 0 {
        return json!({ "type": "Recreate" });
    }
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "25%", "maxSurge": 1 } })
}

/// The contract of a pod's environment (DESIGN 4.3).
fn environment(
    function: &FunctionName,
    revision: &RevisionName,
    template: &FunctionSpec,
    settings: &Settings,
) -> Vec<Value> {
    let mut env: Vec<Value> = template.env.iter().map(|v| json!(v)).collect();
    let mut set = |name: &str, value: String| {
        // The API server leaves an empty value out, and would be asked to change it again and again.
        if !value.is_empty() {
            env.push(json!({ "name": name, "value": value }));
        }
    };
    set("PORT", FUNCTION_PORT.to_string());
    set("IMAGEFLOW_BIND", "0.0.0.0".to_owned());
    set("IMAGEFLOW_FUNCTION", function.to_string());
    set("IMAGEFLOW_REVISION", revision.to_string());
    set(
        "IMAGEFLOW_PARAMS",
        serde_json::to_string(&template.params).unwrap_or_default(),
    );
    set("IMAGEFLOW_CONCURRENCY_LIMIT", template.concurrency.limit.to_string());
    set("IMAGEFLOW_TIMEOUT_MS", template.timeout.as_millis().to_string());
    if let Some(operation) = &template.operation {
        set("IMAGEFLOW_OPERATION", operation.clone());
    }
    set("OTEL_EXPORTER_OTLP_ENDPOINT", settings.otlp_endpoint.clone());
    if !settings.announce_url.is_empty() {
        set("IMAGEFLOW_ANNOUNCE_URL", settings.announce_url.clone());
        // By value: a kubelet that has to fetch a Secret first costs a start 50 ms, and now and then seconds. It is good for
        // announcing pods of this revision, from the sender's own address, and for no more (docs/adr/0009).
        set(
            "IMAGEFLOW_ANNOUNCE_KEY",
            announce::revision_key(&settings.announce_key.0, revision),
        );
    }
    env.push(json!({ "name": "IMAGEFLOW_POD", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } }));
    env
}

/// A Service for callers inside the cluster; the platform itself calls pods.
#[must_use]
pub fn service(function: &FunctionName, owner: &Owner, settings: &Settings) -> Service {
    made(json!({
        "metadata": metadata(function.as_str(), settings, &labels(function), owner),
        "spec": {
            "selector": { FUNCTION_LABEL: function },
            "ports": [{ "name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http" }],
        },
    }))
}

/// Drains of nodes take the pods of a function one by one. Those that are not ready can go at any time: else a function that crashes
/// would keep its nodes from being drained for ever.
#[must_use]
pub fn budget(function: &FunctionName, owner: &Owner, settings: &Settings) -> PodDisruptionBudget {
    made(json!({
        "metadata": metadata(function.as_str(), settings, &labels(function), owner),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": { "matchLabels": { FUNCTION_LABEL: function } },
        },
    }))
}

/// Who may reach a function's pods: the platform and what watches it. What they may reach: names, the object store, the collector,
/// and the process that they announce themselves to.
#[must_use]
pub fn network_policy(function: &FunctionName, owner: &Owner, settings: &Settings) -> NetworkPolicy {
    let namespace =
        |name: &str| json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": name } } });
    let tcp = |port: u16| json!({ "port": port, "protocol": "TCP" });
    made(json!({
        "metadata": metadata(function.as_str(), settings, &labels(function), owner),
        "spec": {
            "podSelector": { "matchLabels": { FUNCTION_LABEL: function } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                { "from": [namespace(&settings.system_namespace), namespace("imageflow-monitoring")], "ports": [tcp(FUNCTION_PORT)] },
            ],
            "egress": [
                { "to": [namespace("kube-system")], "ports": [{ "port": 53, "protocol": "UDP" }, tcp(53)] },
                { "to": [namespace("imageflow-storage")], "ports": [tcp(9000)] },
                { "to": [namespace("imageflow-observability")], "ports": [tcp(4317), tcp(4318)] },
                { "to": [namespace(&settings.system_namespace)], "ports": [tcp(7003)] },
            ],
        },
    }))
}

/// Where Prometheus finds the pods' metrics, where its operator is installed.
#[must_use]
pub fn monitor(function: &FunctionName, owner: &Owner, settings: &Settings) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(function.as_str(), settings, &labels(function), owner),
        "spec": {
            "selector": { "matchLabels": { FUNCTION_LABEL: function } },
            "endpoints": [{ "port": "http", "path": "/metrics", "interval": "15s" }],
        },
    })
}

/// Whether all that is wanted is there as it is wanted. What the API server or others have added does not matter: they are fields
/// that we say nothing of.
#[must_use]
pub fn is_there(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted
            .iter()
            .all(|(key, value)| live.get(key).is_some_and(|live| is_there(value, live))),
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len() && wanted.iter().zip(live).all(|(w, l)| is_there(w, l))
        }
        _ => wanted == live,
    }
}

#[cfg(test)]
mod tests {
    use imageflow_types::function::{EnvVar, EnvVarSource, KeyRef};

    use super::*;

    fn settings() -> Settings {
        Settings {
            namespace: "imageflow-processing".into(),
            system_namespace: "imageflow-backend".into(),
            function_image: "imageflow/function-cpu:1".into(),
            gpu_function_image: "imageflow/function-gpu:1".into(),
            pull_policy: "IfNotPresent".into(),
            announce_url: "http://imageflow-pods.imageflow-backend:7003".into(),
            announce_key: Master(b"the key of the installation".to_vec()),
            otlp_endpoint: String::new(),
        }
    }

    fn owner() -> Owner {
        Owner {
            kind: "Revision",
            name: "resize-00001".into(),
            uid: "u".into(),
        }
    }

    fn deploy(template: &FunctionSpec) -> Value {
        let function = FunctionName::new("resize").unwrap();
        let made = deployment(
            &function,
            &RevisionName::of(&function, 1),
            template,
            &owner(),
            &settings(),
        );
        serde_json::to_value(made.unwrap()).unwrap()
    }

    #[test]
    fn a_deployment_says_nothing_of_the_number_of_pods_and_all_of_what_they_are() {
        let made = deploy(&FunctionSpec::of_operation("resize"));
        assert!(made["spec"].get("replicas").is_none());
        let pod = &made["spec"]["template"];
        assert_eq!(pod["metadata"]["annotations"][LIMIT_ANNOTATION], "4");
        assert_eq!(pod["metadata"]["labels"][REVISION_LABEL], "resize-00001");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["image"], "imageflow/function-cpu:1");
        assert_eq!(
            container["resources"]["limits"],
            json!({ "cpu": "1", "memory": "512Mi" })
        );
        assert_eq!(container["resources"]["limits"], container["resources"]["requests"]);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["spec"]["nodeSelector"]["node-type"], "cpu-intensive");
        let env = container["env"].as_array().unwrap();
        let named = |name: &str| env.iter().find(|v| v["name"] == name).unwrap();
        assert_eq!(named("IMAGEFLOW_OPERATION")["value"], "resize");
        assert!(named("IMAGEFLOW_ANNOUNCE_KEY")["value"].is_string());
    }

    #[test]
    fn a_function_with_a_gpu_goes_where_the_cards_are() {
        let mut template = FunctionSpec::of_operation("resize");
        template.resources.gpu = 1;
        let made = deploy(&template);
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(pod["nodeSelector"]["node-type"], "gpu-enabled");
        assert_eq!(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], "1");
        assert_eq!(pod["containers"][0]["image"], "imageflow/function-gpu:1");
        assert_eq!(pod["tolerations"][0]["key"], "nvidia.com/gpu");
    }

    fn image() -> FunctionSpec {
        let mut template = FunctionSpec::of_operation("resize");
        template.operation = None;
        template.image = Some("mine:1".into());
        template
    }

    #[test]
    fn secrets_and_the_image_of_the_user_are_passed_on() {
        let mut template = image();
        template.image_pull_secrets = vec![imageflow_types::function::LocalRef {
            name: "registry".into(),
        }];
        template.env = vec![EnvVar {
            name: "TOKEN".into(),
            value: String::new(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(KeyRef {
                    name: "mine".into(),
                    key: "token".into(),
                    optional: false,
                }),
                config_map_key_ref: None,
            }),
        }];
        let made = deploy(&template);
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"][0]["name"], "registry");
        assert_eq!(pod["containers"][0]["image"], "mine:1");
        let token = &pod["containers"][0]["env"][0];
        assert_eq!(
            token["valueFrom"]["secretKeyRef"],
            json!({ "name": "mine", "key": "token" })
        );
        assert!(token.get("value").is_none());
    }

    /// An image that serves only `POST /` answers 404 to anything else, and nothing at all while its one thread works.
    #[test]
    fn an_image_is_asked_for_connections_alone_and_has_the_time_of_a_request() {
        let made = deploy(&image());
        let container = &made["spec"]["template"]["spec"]["containers"][0];
        for name in ["startupProbe", "livenessProbe"] {
            assert_eq!(container[name]["tcpSocket"]["port"], "http", "{name}");
            assert!(container[name].get("httpGet").is_none(), "{name}");
        }
        assert!(container.get("readinessProbe").is_none());
        for timeout in [1, 60, 3600] {
            let mut template = image();
            template.timeout = imageflow_types::HumanDuration::from_secs(timeout);
            let made = deploy(&template);
            let live = &made["spec"]["template"]["spec"]["containers"][0]["livenessProbe"];
            let patience = live["periodSeconds"].as_u64().unwrap() * live["failureThreshold"].as_u64().unwrap();
            assert!(patience > timeout, "{live}");
        }
        // Programs of the catalogue know the routes.
        let made = deploy(&FunctionSpec::of_operation("resize"));
        let container = &made["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["startupProbe"]["httpGet"]["path"], "/healthz/ready");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/healthz/ready");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz/live");
    }

    #[test]
    fn all_pods_go_at_once_only_where_the_new_ones_need_their_cards() {
        let mut template = FunctionSpec::of_operation("resize");
        let made = deploy(&template);
        assert_eq!(
            made["spec"]["strategy"],
            json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "25%", "maxSurge": 1 } })
        );
        template.resources.gpu = 1;
        assert_eq!(deploy(&template)["spec"]["strategy"], json!({ "type": "Recreate" }));
    }

    #[test]
    fn pods_that_never_get_ready_do_not_keep_a_node() {
        let budget = budget(&FunctionName::new("resize").unwrap(), &owner(), &settings());
        assert_eq!(json!(budget)["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    }

    #[test]
    fn the_key_of_a_revision_is_its_own() {
        let function = FunctionName::new("resize").unwrap();
        let key = |n| {
            let template = FunctionSpec::of_operation("resize");
            let env = environment(&function, &RevisionName::of(&function, n), &template, &settings());
            env.iter().find(|v| v["name"] == "IMAGEFLOW_ANNOUNCE_KEY").unwrap()["value"].clone()
        };
        assert_ne!(key(1), key(2));
        assert!(!key(1).to_string().contains("installation"));
        assert!(!format!("{:?}", settings()).contains("installation"));
    }

    #[test]
    fn what_others_have_added_is_no_difference_and_what_they_changed_is() {
        let wanted = json!({ "spec": { "a": 1, "list": [{ "b": 2 }] } });
        let live = json!({ "spec": { "a": 1, "list": [{ "b": 2, "defaulted": true }], "replicas": 7 }, "status": {} });
        assert!(is_there(&wanted, &live));
        assert!(!is_there(&wanted, &json!({ "spec": { "a": 2, "list": [{ "b": 2 }] } })));
        assert!(!is_there(
            &wanted,
            &json!({ "spec": { "a": 1, "list": [{ "b": 2 }, {}] } })
        ));
    }
}
