//! The manifests as they are applied.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// All overlays. A test sees to it that there are no others.
pub const OVERLAYS: [&str; 5] = ["chaos", "cluster", "external", "k3s", "production"];
/// What is applied by itself, beside an overlay.
pub const APART: [&str; 1] = ["kafka/archive"];

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..")
}

/// Where `cargo xtask test manifests` has put the validators; without them there is nothing to do.
pub fn tools() -> Option<PathBuf> {
    let tools = std::env::var_os("IMAGEFLOW_MANIFEST_TOOLS").map(PathBuf::from);
    if tools.is_none() {
        println!("skipped: `cargo xtask test manifests` fetches what this needs");
    }
    tools
}

/// The text of a folder of manifests, put together.
pub fn text(tools: &Path, folder: &str) -> String {
    let mut kustomize = Command::new(tools.join("kustomize"));
    let built = kustomize
        .arg("build")
        .arg(root().join("manifests").join(folder))
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{folder}: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    String::from_utf8(built.stdout).unwrap()
}

/// The objects of a text.
pub fn objects(text: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// The objects of a folder of manifests, put together.
pub fn folder(tools: &Path, folder: &str) -> Vec<Value> {
    objects(&text(tools, folder))
}

/// The objects of an overlay.
pub fn overlay(tools: &Path, name: &str) -> Vec<Value> {
    folder(tools, &format!("overlays/{name}"))
}

/// Runs a validator on a text. Gives what it said when it was not content.
pub fn check(command: &mut Command, input: &str) -> Result<(), String> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may speak before it has read everything.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().ok();
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&said).into_owned())
}

/// A text of an object; empty when there is none.
pub fn string<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list; none when there is no list.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// What kind it is.
pub fn kind(object: &Value) -> &str {
    string(object, "/kind")
}

/// Its name.
pub fn name(object: &Value) -> &str {
    string(object, "/metadata/name")
}

/// Its namespace.
pub fn namespace(object: &Value) -> &str {
    string(object, "/metadata/namespace")
}

/// Of all that makes pods, the template of these.
pub fn template(object: &Value) -> Option<&Value> {
    match kind(object) {
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => object.pointer("/spec/template"),
        _ => None,
    }
}

/// Whether labels fulfil a label selector (Kubernetes: an empty one selects all).
pub fn selects(selector: &Value, labels: &Value) -> bool {
    let of = |key: &str| labels.get(key).and_then(Value::as_str);
    let exact = selector.get("matchLabels").and_then(Value::as_object);
    let exact = exact.is_none_or(|all| all.iter().all(|(key, value)| of(key) == value.as_str()));
    let expressions = list(selector, "/matchExpressions").iter().all(|expression| {
        let label = of(string(expression, "/key"));
        let named = list(expression, "/values").iter().any(|value| label == value.as_str());
        match string(expression, "/operator") {
            "In" => named,
            "NotIn" => !named,
            "Exists" => label.is_some(),
            "DoesNotExist" => label.is_none(),
            other => panic!("there is no operator {other}"),
        }
    });
    exact && expressions
}
