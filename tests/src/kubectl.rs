//! The cluster of the tests, by kubectl, as a person would.
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::external::World;

/// Where functions are, and where kubectl looks when nothing else is said.
pub const NAMESPACE: &str = "imageflow-processing";

/// Whether this runs on the network of the cluster; says so when it does not.
pub fn is_on_cluster() -> bool {
    let is = std::env::var_os("IMAGEFLOW_CLUSTER").is_some();
    if !is {
        println!("skipped: run by cargo xtask test cluster, on the network of the cluster");
    }
    is
}

/// Kafka and an S3 server beside a cluster that knows our kinds and has nothing of an earlier run; `None` where there is no cluster.
pub async fn world() -> Option<World> {
    if !is_on_cluster() {
        return None;
    }
    let world = World::start().await?;
    define();
    clean();
    Some(world)
}

/// What kubectl says, and whether it succeeded.
pub fn try_kubectl(args: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("kubectl")
        .args(["-n", NAMESPACE])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    let input = input.to_owned();
    // It may speak before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output().expect("kubectl ends");
    // One that has refused does not read to the end.
    let _read = writer.join();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.success(), said)
}

/// What kubectl says.
pub fn kubectl(args: &[&str]) -> String {
    let (well, said) = try_kubectl(args, "");
    assert!(well, "kubectl {args:?}: {said}");
    said
}

/// Applies a text.
pub fn apply(yaml: &str) -> String {
    let (well, said) = try_kubectl(&["apply", "-f", "-"], yaml);
    assert!(well, "{said}");
    said
}

/// Objects, as JSON.
pub fn get(what: &[&str]) -> Value {
    let said = kubectl(&[&["get", "-o", "json"], what].concat());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Definitions and namespaces, as an installation has them.
pub fn define() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where this is");
    let crds = Path::new(&here).join("../manifests/crds");
    kubectl(&["apply", "--server-side", "-k", &crds.display().to_string()]);
    let kinds = ["functions", "flows", "triggers", "revisions"].map(|k| format!("crd/{k}.imageflow.dev"));
    let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
    kubectl(&[&wait[..], &kinds.each_ref().map(String::as_str)].concat());
    for name in [NAMESPACE, "imageflow-backend"] {
        apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{ pod-security.kubernetes.io/enforce: restricted }}\n"
        ));
    }
}

/// The last words of containers of a namespace that ended by themselves and were started again.
pub fn last_words(namespace: &str) -> String {
    let pods = get(&["-n", namespace, "pods"]);
    let mut all = String::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let states = pod["status"]["containerStatuses"].as_array();
        if states.is_some_and(|all| all.iter().any(|c| c["restartCount"].as_u64() > Some(0))) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let (_, said) = try_kubectl(&["-n", namespace, "logs", name, "--previous", "--tail=30"], "");
            all += &format!("{name}:\n{said}");
        }
    }
    all
}

/// Takes away what an earlier run left: without an operator nobody lets go of it.
pub fn clean() {
    let all = kubectl(&["get", "fn,flow,trigger", "-o", "name"]);
    for name in all.lines().filter(|l| l.contains('/')) {
        kubectl(&[
            "patch",
            name,
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ]);
    }
    kubectl(&["delete", "fn,flow,trigger,rev", "--all"]);
}
