//! The cluster does what the platform needs of one. Run by `cargo xtask test cluster`, on the network of the first node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use hyper::{Method, StatusCode};
use imageflow_cluster::{Cluster, FIRST_ADDRESS, NODES};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[path = "cluster/world.rs"]
mod world;

use world::{
    World, address_of, condition, from, get, in_namespace, is_ready, name_of, node_of, phase_of, probe, send, until,
    workload,
};

#[tokio::test]
async fn three_nodes_are_ready_with_their_labels_taints_and_gpus() {
    in_namespace(|world| async move {
        let nodes = Api::<Node>::all(world.client)
            .list(&ListParams::default())
            .await
            .unwrap();
        let mut seen = BTreeMap::new();
        for node in nodes {
            let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap());
            let ready = status
                .conditions
                .unwrap()
                .into_iter()
                .find(|c| c.type_ == "Ready")
                .unwrap();
            let taints = spec.taints.unwrap_or_default();
            let taints: Vec<String> = taints.into_iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
            let gpus = status
                .allocatable
                .unwrap()
                .get("nvidia.com/gpu")
                .map(|count| count.0.clone());
            let kind = node.metadata.labels.unwrap()["node-type"].clone();
            let version = status.node_info.unwrap().kubelet_version;
            seen.insert(
                node.metadata.name.unwrap(),
                (ready.status, kind, taints.join(" "), gpus, version),
            );
        }
        let plain = |kind: &str| ("True".into(), kind.into(), String::new(), None, "v1.34.4".into());
        let gpu_taint = "nvidia.com/gpu:NoSchedule".to_owned();
        let gpu = (
            "True".into(),
            "gpu-enabled".into(),
            gpu_taint,
            Some("2".to_owned()),
            "v1.34.4".into(),
        );
        let expected = BTreeMap::from([
            ("cpu-1".to_owned(), plain("cpu-intensive")),
            ("gpu-1".to_owned(), gpu),
            ("storage-1".to_owned(), plain("storage-optimized")),
        ]);
        assert_eq!(seen, expected);
    })
    .await;
}

#[tokio::test]
async fn up_leaves_a_cluster_that_is_well_as_it_is() {
    in_namespace(|world| async move {
        let uids = || async {
            let nodes = Api::<Node>::all(world.client.clone())
                .list(&ListParams::default())
                .await
                .unwrap();
            nodes.into_iter().map(|n| n.metadata.uid.unwrap()).collect::<Vec<_>>()
        };
        let before = uids().await;
        let cluster = tokio::task::spawn_blocking(Cluster::up).await.unwrap().unwrap();
        assert_eq!(cluster.kubeconfig(), world.cluster.kubeconfig());
        assert_eq!(uids().await, before);
    })
    .await;
}

#[tokio::test]
async fn a_deployment_goes_from_0_to_1_to_3_to_0_and_its_pods_answer_at_their_addresses() {
    in_namespace(|world| async move {
        let app = "scaled";
        world
            .create::<Deployment>(workload(app, json!({ "replicas": 0 }), probe(app)))
            .await;
        assert_eq!(world.ready(app, 0).await, []);
        for replicas in [1, 3] {
            scale(&world, app, replicas).await;
            for pod in world.ready(app, replicas).await {
                assert_eq!(get(&pod, "/").await, (StatusCode::OK, name_of(&pod)));
            }
        }
        scale(&world, app, 0).await;
        world.ready(app, 0).await;
    })
    .await;
}

async fn scale(world: &World, app: &str, replicas: usize) {
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    let deployments = world.api::<Deployment>();
    deployments
        .patch_scale(app, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_service_is_found_by_name_and_reaches_pods_on_all_nodes_from_each() {
    in_namespace(|world| async move {
        let pods = everywhere(&world, "named").await;
        let service = json!({
            "metadata": { "name": "named" },
            "spec": { "selector": { "app": "named" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        });
        world.create::<Service>(service).await;
        let all: BTreeSet<String> = pods.iter().map(name_of).collect();
        let long = format!("named.{}.svc.cluster.local", world.name());
        for (pod, name) in pods.iter().flat_map(|pod| [(pod, "named"), (pod, &*long)]) {
            let met = Mutex::new(BTreeSet::new());
            let on = node_of(pod).unwrap();
            until(&format!("{name} reaches every pod from {on}"), || async {
                let (status, answer) = get(pod, &format!("/get?url=http://{name}/")).await;
                let mut met = met.lock().unwrap();
                // Until the service has reached each node its name or its address may be refused.
                if status == StatusCode::OK {
                    met.insert(answer);
                }
                (*met == all).then_some(())
            })
            .await;
        }
    })
    .await;
}

/// A probe on each node.
async fn everywhere(world: &World, app: &str) -> Vec<Pod> {
    let mut template = probe(app);
    template["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    world.create::<DaemonSet>(workload(app, json!({}), template)).await;
    let pods = world.ready(app, NODES.len()).await;
    let nodes: BTreeSet<String> = pods.iter().filter_map(node_of).collect();
    assert_eq!(nodes.len(), NODES.len(), "{nodes:?}");
    pods
}

#[tokio::test]
async fn two_gpus_are_given_to_two_pods_and_the_third_waits() {
    in_namespace(|world| async move {
        let app = "gpu";
        let mut template = probe(app);
        template["spec"]["nodeSelector"] = json!({ "node-type": "gpu-enabled" });
        template["spec"]["tolerations"] = json!([{ "key": "nvidia.com/gpu", "operator": "Exists" }]);
        template["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = json!(1);
        world
            .create::<Deployment>(workload(app, json!({ "replicas": 3 }), template))
            .await;
        let (running, waiting) = until("two pods run and one waits for a GPU", || async {
            let pods = world.pods(app).await;
            let (running, waiting): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(is_ready);
            let (scheduled, why) = waiting.first().and_then(|pod| condition(pod, "PodScheduled"))?;
            let waits = scheduled == "False" && why.contains("Insufficient nvidia.com/gpu");
            (running.len() == 2 && waiting.len() == 1 && waits).then_some((running, waiting))
        })
        .await;
        assert_eq!(phase_of(&waiting[0]), "Pending");
        let mut given = BTreeSet::new();
        for pod in &running {
            assert_eq!(node_of(pod).as_deref(), Some("gpu-1"));
            let (status, gpu) = get(pod, "/env?name=NVIDIA_VISIBLE_DEVICES").await;
            assert_eq!(status, StatusCode::OK);
            given.insert(gpu);
        }
        assert_eq!(
            given,
            BTreeSet::from(["GPU-fake-0".to_owned(), "GPU-fake-1".to_owned()])
        );
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_tolerates_nothing_is_kept_off_the_gpu_node() {
    in_namespace(|world| async move {
        let mut template = probe("shy");
        template["spec"]["nodeSelector"] = json!({ "node-type": "gpu-enabled" });
        world.create::<Deployment>(workload("shy", json!({}), template)).await;
        until("the pod is refused for the taint", || async {
            let (scheduled, why) = condition(world.pods("shy").await.first()?, "PodScheduled")?;
            (scheduled == "False" && why.contains("untolerated taint")).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_local_volume_binds_on_the_storage_node_and_outlives_its_pod() {
    in_namespace(|world| async move {
        let folder = format!("/var/lib/kubelet/{}", world.name());
        let mut mkdir = world.cluster.enter("storage-1").unwrap();
        assert!(mkdir.args(["mkdir", &folder]).status().unwrap().success());
        local_volume(&world, &folder).await;
        let claim = json!({
            "metadata": { "name": "data" },
            "spec": {
                "storageClassName": world.name(),
                "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "500Mi" } },
            },
        });
        world.create::<PersistentVolumeClaim>(claim).await;
        let mut template = probe("store");
        template["spec"]["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }]);
        template["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
        let spec = json!({ "strategy": { "type": "Recreate" } });
        world.create::<Deployment>(workload("store", spec, template)).await;

        let first = world.ready("store", 1).await.remove(0);
        assert_eq!(node_of(&first).as_deref(), Some("storage-1"));
        let claim = world.api::<PersistentVolumeClaim>().get("data").await.unwrap();
        assert_eq!(claim.status.and_then(|s| s.phase).as_deref(), Some("Bound"));
        assert_eq!(claim.spec.and_then(|s| s.volume_name).as_deref(), Some(world.name()));
        let file = "/file?path=/data/photo";
        assert_eq!(
            send(&first, Method::PUT, file, "pixels").await,
            (StatusCode::OK, String::new())
        );

        world
            .api::<Pod>()
            .delete(&name_of(&first), &DeleteParams::default())
            .await
            .unwrap();
        let second = until("another pod is ready", || async {
            let pods = world.pods("store").await;
            pods.into_iter()
                .find(|pod| name_of(pod) != name_of(&first) && is_ready(pod))
        })
        .await;
        assert_eq!(get(&second, file).await, (StatusCode::OK, "pixels".to_owned()));
    })
    .await;
}

/// A volume in a folder of the storage node, and a class of its own, both named after the namespace, with which they go.
async fn local_volume(world: &World, folder: &str) {
    let metadata = json!({ "name": world.name(), "ownerReferences": [world.namespace.owner_ref(&()).unwrap()] });
    let class: StorageClass = from(json!({
        "metadata": metadata,
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    let on = json!([{ "key": "node-type", "operator": "In", "values": ["storage-optimized"] }]);
    let volume: PersistentVolume = from(json!({
        "metadata": metadata,
        "spec": {
            "storageClassName": world.name(),
            "capacity": { "storage": "1Gi" },
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": { "path": folder },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": on }] } },
        },
    }));
    let (classes, volumes) = (Api::all(world.client.clone()), Api::all(world.client.clone()));
    classes.create(&PostParams::default(), &class).await.unwrap();
    volumes.create(&PostParams::default(), &volume).await.unwrap();
}

#[tokio::test]
async fn what_listens_on_the_first_node_is_reached_by_pods_on_all_nodes() {
    in_namespace(|world| async move {
        let listener = TcpListener::bind((FIRST_ADDRESS, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let mut peers = Vec::new();
            for _ in NODES {
                let (mut connection, peer) = listener.accept().await.unwrap();
                // The request is one packet, and what it says is of no interest.
                assert!(connection.read(&mut [0; 1024]).await.unwrap() > 0);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                connection.write_all(answer).await.unwrap();
                peers.push(peer.ip().to_string());
            }
            peers
        });
        let pods = everywhere(&world, "caller").await;
        for pod in &pods {
            let answer = get(pod, &format!("/get?url=http://{address}/")).await;
            assert_eq!(answer, (StatusCode::OK, "hello".to_owned()), "from {:?}", node_of(pod));
        }
        // Pods come by their own addresses: nothing between them and the first node hides who calls.
        let callers: Vec<String> = pods.iter().map(address_of).collect();
        assert_eq!(served.await.unwrap(), callers);
    })
    .await;
}

#[tokio::test]
async fn programs_run_on_the_clusters_network_with_its_kubectl() {
    in_namespace(|world| async move {
        let mut kubectl = world.cluster.network().unwrap();
        let output = kubectl
            .args(["kubectl", "get", "nodes", "-o", "name"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "node/cpu-1\nnode/gpu-1\nnode/storage-1\n", "{output:?}");
        let mut hostname = world.cluster.enter("gpu-1").unwrap();
        let output = hostname.args(["cat", "/proc/sys/kernel/hostname"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "gpu-1\n");
    })
    .await;
}
