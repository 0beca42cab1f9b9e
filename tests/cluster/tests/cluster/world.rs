//! What the tests share: a namespace each, and the probes in it.
use std::future::Future;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use imageflow_cluster::{Cluster, PROBE_IMAGE};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// For what a quiet machine does in one to five seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than a probe waits for what it is to get.
const ANSWER: Duration = Duration::from_secs(10);

/// The cluster and a namespace of the test's own.
#[derive(Clone)]
pub struct World {
    pub cluster: Cluster,
    pub client: Client,
    pub namespace: Namespace,
}

/// Runs a test in a namespace, which goes with it, failed or not. Without the cluster's network it says so and does nothing.
pub async fn in_namespace<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(World) -> F) {
    // Not KUBECONFIG: that may be anybody's cluster.
    if std::env::var_os("IMAGEFLOW_CLUSTER").is_none() {
        println!("skipped: run by cargo xtask test cluster, on the network of the cluster");
        return;
    }
    let cluster = Cluster::find().unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let ours: Namespace = from(json!({ "metadata": { "generateName": "test-" } }));
    let namespace = namespaces.create(&PostParams::default(), &ours).await.unwrap();
    let name = namespace.metadata.name.clone().unwrap();
    let ended = tokio::spawn(test(World {
        cluster,
        client,
        namespace,
    }));
    let ended = ended.await;
    namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
    if let Err(panicked) = ended {
        std::panic::resume_unwind(panicked.into_panic());
    }
}

impl World {
    /// The name of the namespace.
    pub fn name(&self) -> &str {
        self.namespace.metadata.name.as_deref().unwrap()
    }

    /// Resources of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), self.name())
    }

    /// Makes a resource in the namespace.
    pub async fn create<K>(&self, resource: Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: serde::Serialize + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
    {
        // A pod is refused until the namespace has its service account.
        let resource: K = from(resource);
        let api = self.api::<K>();
        until("the resource is made", || async {
            match api.create(&PostParams::default(), &resource).await {
                Ok(_) => Some(()),
                Err(kube::Error::Api(status)) if status.message.contains("serviceaccount") => None,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    }

    /// The pods of an app, in order of their names.
    pub async fn pods(&self, app: &str) -> Vec<Pod> {
        let of_app = ListParams::default().labels(&format!("app={app}"));
        let mut pods = self.api::<Pod>().list(&of_app).await.unwrap().items;
        pods.sort_by_key(name_of);
        pods
    }

    /// Waits until an app has this many pods and all of them are ready.
    pub async fn ready(&self, app: &str, count: usize) -> Vec<Pod> {
        until(&format!("{count} pods of {app} are ready"), || async {
            let pods = self.pods(app).await;
            (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
        })
        .await
    }
}

/// A resource as YAML has it.
pub fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// The template of pods that run the probe.
pub fn probe(app: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe",
                "image": PROBE_IMAGE,
                "imagePullPolicy": "Never",
                "ports": [{ "containerPort": 8080 }],
                "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 },
                "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
            }],
        },
    })
}

/// A workload of probes.
pub fn workload(app: &str, mut spec: Value, template: Value) -> Value {
    spec["selector"] = json!({ "matchLabels": { "app": app } });
    spec["template"] = template;
    json!({ "metadata": { "name": app }, "spec": spec })
}

pub fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

pub fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

pub fn phase_of(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn address_of(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap()
}

/// A condition of a pod: its status and its message.
pub fn condition(pod: &Pod, kind: &str) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == kind)?;
    Some((found.status.clone(), found.message.clone().unwrap_or_default()))
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|(status, _)| status == "True")
}

/// Asks a probe.
pub async fn get(pod: &Pod, path: &str) -> (StatusCode, String) {
    send(pod, Method::GET, path, "").await
}

/// Sends something to a probe.
pub async fn send(pod: &Pod, method: Method, path: &str, body: &'static str) -> (StatusCode, String) {
    let client = HttpClient::builder(TokioExecutor::new()).build_http::<Full<hyper::body::Bytes>>();
    let url = format!("http://{}:8080{path}", address_of(pod));
    let request = Request::builder().method(method).uri(&url).body(body.into()).unwrap();
    let answer = timeout(ANSWER, async {
        let response = client.request(request).await.unwrap_or_else(|e| panic!("{url}: {e}"));
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    });
    answer
        .await
        .unwrap_or_else(|_| panic!("{url}: no answer within {ANSWER:?}"))
}

/// Looks again and again until there is something, for states that only polling can show.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
    }
}
