//! What schemas cannot say: rules of ours, and whether what is named is there.
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::render::{kind, list, name, namespace, selects, string, template};

/// Who keep data: a pod of theirs that is not ready may have the only other copy. All others that crash must not hold a drain.
const KEEPERS: [&str; 2] = ["kafka", "minio"];

/// What is wrong, a line each.
pub fn broken(objects: &[Value]) -> Vec<String> {
    let mut all = Vec::new();
    for object in objects {
        let mut wrong = Vec::new();
        pods(objects, object, &mut wrong);
        references(objects, object, &mut wrong);
        rights(objects, object, &mut wrong);
        if !namespace(object).is_empty() && !there(objects, "Namespace", "", namespace(object)) {
            wrong.push(format!("its namespace {} is not made", namespace(object)));
        }
        let who = format!("{} {}/{}", kind(object), namespace(object), name(object));
        all.extend(wrong.into_iter().map(|what| format!("{who}: {what}")));
    }
    all
}

fn there(objects: &[Value], wanted: &str, space: &str, called: &str) -> bool {
    let mut all = objects.iter();
    all.any(|o| kind(o) == wanted && namespace(o) == space && name(o) == called)
}

/// Whether any pods have these labels.
fn anybody(objects: &[Value], space: &str, selector: &Value) -> bool {
    let mut templates = objects.iter().filter(|o| namespace(o) == space).filter_map(template);
    templates.any(|template| selects(selector, &template["metadata"]["labels"]))
}

fn pods(objects: &[Value], object: &Value, wrong: &mut Vec<String>) {
    let Some(template) = template(object) else { return };
    let pod = &template["spec"];
    let lasting = kind(object) != "Job";
    let mut must = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    must(pod["securityContext"]["runAsNonRoot"] == true, "it may run as root");
    must(
        pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault",
        "it has no seccomp profile",
    );
    must(
        pod["enableServiceLinks"] == false,
        "it gets an environment of all Services",
    );
    let account = string(pod, "/serviceAccountName");
    let bound = objects.iter().any(|o| {
        kind(o).ends_with("RoleBinding")
            && list(o, "/subjects")
                .iter()
                .any(|s| s["name"] == account && s["namespace"] == namespace(object))
    });
    must(
        bound || pod["automountServiceAccountToken"] == false,
        "it gets a token and has no rights",
    );
    must(
        account.is_empty() || there(objects, "ServiceAccount", namespace(object), account),
        "its ServiceAccount is not made",
    );
    if lasting {
        must(
            selects(&object["spec"]["selector"], &template["metadata"]["labels"]),
            "its selector does not select its own pods",
        );
        // Nothing of ours runs once only by chance: who has two has a budget for drains.
        let alone = kind(object) == "DaemonSet" || object["spec"]["replicas"] == 1;
        let budget = objects.iter().any(|o| {
            kind(o) == "PodDisruptionBudget"
                && namespace(o) == namespace(object)
                && selects(&o["spec"]["selector"], &template["metadata"]["labels"])
        });
        must(alone || budget, "it has no PodDisruptionBudget");
    }
    let main = list(pod, "/containers").iter().map(|container| (container, lasting));
    let first = list(pod, "/initContainers").iter().map(|container| (container, false));
    for (container, lasting) in main.chain(first) {
        for what in container_rules(container, lasting) {
            must(false, &format!("{}: {what}", string(container, "/name")));
        }
    }
    for what in of_files(objects, object, pod) {
        must(false, &what);
    }
}

fn container_rules(container: &Value, lasting: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let image = string(container, "/image");
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':'));
    if tag.is_none_or(|(_, tag)| tag == "latest") {
        wrong.push(format!("its image {image} may be another tomorrow"));
    }
    for field in ["requests/cpu", "requests/memory", "limits/cpu", "limits/memory"] {
        if container.pointer(&format!("/resources/{field}")).is_none() {
            wrong.push(format!("no resources.{}", field.replace('/', ".")));
        }
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        if lasting && container.get(probe).is_none() {
            wrong.push(format!("no {probe}"));
        }
    }
    let security = &container["securityContext"];
    let wanted = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
    if *security != wanted {
        wrong.push("its securityContext is not the strictest".to_owned());
    }
    for variable in list(container, "/env") {
        let (called, value) = (string(variable, "/name"), string(variable, "/value"));
        let secret = ["PASSWORD", "SECRET", "ACCESS_KEY", "ROLE_KEY", "TOKEN"];
        // A path says where a secret is, which is none.
        if secret.iter().any(|word| called.contains(word)) && !value.is_empty() && !value.starts_with('/') {
            wrong.push(format!("the secret {called} is in the manifest"));
        }
    }
    wrong
}

/// ConfigMaps that are named, and their keys.
fn of_files(objects: &[Value], object: &Value, pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let map = |called: &str| {
        let mut all = objects.iter();
        all.find(|o| kind(o) == "ConfigMap" && namespace(o) == namespace(object) && name(o) == called)
    };
    for volume in list(pod, "/volumes") {
        let called = string(volume, "/configMap/name");
        if !called.is_empty() && map(called).is_none() {
            wrong.push(format!("there is no ConfigMap {called}"));
        }
    }
    for container in [list(pod, "/containers"), list(pod, "/initContainers")].concat() {
        let mounted = list(&container, "/volumeMounts")
            .iter()
            .map(|mount| string(mount, "/name"));
        for volume in mounted {
            let of_pod = list(pod, "/volumes").iter();
            let claimed = list(object, "/spec/volumeClaimTemplates")
                .iter()
                .map(|claim| &claim["metadata"]);
            if !of_pod.chain(claimed).any(|v| v["name"] == volume) {
                wrong.push(format!("there is no volume {volume}"));
            }
        }
        for variable in list(&container, "/env") {
            let Some(from) = variable.pointer("/valueFrom/configMapKeyRef") else {
                continue;
            };
            let found = map(string(from, "/name")).and_then(|map| map["data"].get(string(from, "/key")));
            if found.is_none() && from["optional"] != true {
                wrong.push(format!("there is no {from}"));
            }
        }
    }
    wrong
}

/// Whether a Service is there and has that port.
fn serves(objects: &[Value], space: &str, service: &str, port: &Value) -> bool {
    let mut services = objects.iter().filter(|o| kind(o) == "Service" && namespace(o) == space);
    let service = services.find(|o| name(o) == service);
    service.is_some_and(|s| {
        list(s, "/spec/ports")
            .iter()
            .any(|p| p["name"] == *port || p["port"] == *port)
    })
}

fn references(objects: &[Value], object: &Value, wrong: &mut Vec<String>) {
    let space = namespace(object);
    let spec = &object["spec"];
    match kind(object) {
        "Service" => {
            let selector = json!({ "matchLabels": spec["selector"] });
            let templates = objects.iter().filter(|o| namespace(o) == space).filter_map(template);
            let mut chosen = templates
                .filter(|t| selects(&selector, &t["metadata"]["labels"]))
                .peekable();
            if chosen.peek().is_none() {
                wrong.push("it selects no pod".to_owned());
            }
            for pod in chosen {
                for port in list(spec, "/ports") {
                    let named = list(pod, "/spec/containers").iter().flat_map(|c| list(c, "/ports"));
                    let target = port.get("targetPort").unwrap_or(&port["port"]);
                    if !named
                        .into_iter()
                        .any(|p| p["name"] == *target || p["containerPort"] == *target)
                    {
                        wrong.push(format!("its port {target} is none of the pod's"));
                    }
                }
            }
        }
        "StatefulSet" => {
            if !there(objects, "Service", space, string(spec, "/serviceName")) {
                wrong.push("its Service is not made".to_owned());
            }
            for claim in list(spec, "/volumeClaimTemplates") {
                let class = string(claim, "/spec/storageClassName");
                let volumes = objects
                    .iter()
                    .filter(|o| kind(o) == "PersistentVolume" && o["spec"]["storageClassName"] == class);
                let fits = volumes
                    .filter(|o| o["spec"]["capacity"]["storage"] == claim["spec"]["resources"]["requests"]["storage"]);
                let count = u64::try_from(fits.count()).unwrap();
                if !class.is_empty() && spec["replicas"].as_u64() > Some(count) {
                    wrong.push(format!("of its volumes of class {class} there are {count}"));
                }
            }
        }
        "PodDisruptionBudget" => {
            if !anybody(objects, space, &spec["selector"]) {
                wrong.push("it selects no pod".to_owned());
            }
            if spec.get("minAvailable").is_some() || spec.get("maxUnavailable").is_none() {
                wrong.push("it can hold a drain for good: say maxUnavailable".to_owned());
            }
            let goes = spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
            if goes == KEEPERS.contains(&name(object)) {
                wrong.push("its pods that are not ready are kept or let go wrongly in a drain".to_owned());
            }
        }
        "HorizontalPodAutoscaler" => {
            let target = &spec["scaleTargetRef"];
            let scaled = objects.iter().find(|o| {
                o["kind"] == target["kind"] && namespace(o) == space && o["metadata"]["name"] == target["name"]
            });
            match scaled {
                None => wrong.push("what it scales is not made".to_owned()),
                Some(scaled) if scaled["spec"].get("replicas").is_some() => {
                    wrong.push("what it scales says replicas too, and every apply would undo it".to_owned());
                }
                Some(_) => {}
            }
        }
        "Ingress" => {
            let paths = list(spec, "/rules").iter().flat_map(|rule| list(rule, "/http/paths"));
            for path in paths {
                let service = &path["backend"]["service"];
                let port = service.pointer("/port/name").unwrap_or(&service["port"]["number"]);
                if !serves(objects, space, string(service, "/name"), port) {
                    wrong.push(format!("there is no {service}"));
                }
                if string(path, "/path") == "/" {
                    wrong.push("it lets metrics and health out".to_owned());
                }
            }
        }
        "VirtualService" => {
            for route in list(spec, "/http").iter().flat_map(|http| list(http, "/route")) {
                let mut host = string(route, "/destination/host").split('.');
                let (service, of) = (host.next().unwrap_or_default(), host.next().unwrap_or_default());
                if !serves(objects, of, service, &route["destination"]["port"]["number"]) {
                    wrong.push(format!("there is no {}", route["destination"]));
                }
            }
            for gateway in list(spec, "/gateways").iter().filter_map(Value::as_str) {
                if !there(objects, "Gateway", space, gateway) {
                    wrong.push(format!("there is no Gateway {gateway}"));
                }
            }
        }
        "DestinationRule" => {
            let mut host = string(spec, "/host").split('.');
            let (service, of) = (host.next().unwrap_or_default(), host.next().unwrap_or_default());
            if !there(objects, "Service", of, service) {
                wrong.push(format!("there is no Service {service}"));
            }
        }
        "Namespace" => namespaces(objects, object, wrong),
        "Secret" => wrong.push("secrets are made by who installs".to_owned()),
        _ => {}
    }
}

/// A namespace lets nothing in or out but what is said, and no pod that wants more than it should.
fn namespaces(objects: &[Value], object: &Value, wrong: &mut Vec<String>) {
    let closed = objects.iter().any(|o| {
        kind(o) == "NetworkPolicy"
            && namespace(o) == name(object)
            && o["spec"] == json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] })
    });
    if !closed {
        wrong.push("it has no policy that denies by default".to_owned());
    }
    let level = string(object, "/metadata/labels/pod-security.kubernetes.io~1enforce");
    if !["restricted", "baseline"].contains(&level) {
        wrong.push("it enforces no pod security".to_owned());
    }
}

fn rights(objects: &[Value], object: &Value, wrong: &mut Vec<String>) {
    for rule in list(object, "/rules") {
        let words = ["apiGroups", "resources", "verbs"]
            .iter()
            .flat_map(|field| list(rule, &format!("/{field}")));
        let words: BTreeSet<&str> = words.filter_map(Value::as_str).collect();
        for too_much in ["*", "secrets", "impersonate", "escalate", "bind"] {
            if words.contains(too_much) {
                wrong.push(format!("the right {too_much}"));
            }
        }
    }
    if kind(object).ends_with("RoleBinding") {
        let role = &object["roleRef"];
        let space = if role["kind"] == "ClusterRole" {
            ""
        } else {
            namespace(object)
        };
        if !there(objects, string(role, "/kind"), space, string(role, "/name")) {
            wrong.push(format!("there is no {role}"));
        }
        for subject in list(object, "/subjects") {
            if !there(
                objects,
                "ServiceAccount",
                string(subject, "/namespace"),
                string(subject, "/name"),
            ) {
                wrong.push(format!("there is no {subject}"));
            }
        }
    }
}
