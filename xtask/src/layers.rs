//! A crate depends only on lower layers. The table is DESIGN section 3.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::tool::{self, Outcome};

/// Layer of each crate.
const LAYERS: [(&str, u8); 26] = [
    ("imageflow-proto", 0),
    ("imageflow-types", 0),
    ("imageflow-images", 0),
    ("imageflow-ops", 1),
    ("imageflow-flow", 1),
    ("imageflow-decider", 1),
    ("imageflow-events", 1),
    ("imageflow-eventlog", 2),
    ("imageflow-objects", 2),
    ("imageflow-pods", 2),
    ("imageflow-process", 2),
    ("imageflow-resources", 3),
    ("imageflow-delivery", 3),
    ("imageflow-sdk", 3),
    ("imageflow-gateway", 4),
    ("imageflow-dispatcher", 4),
    ("imageflow-router", 4),
    ("imageflow-operator", 4),
    ("imageflow-simulator", 3),
    ("imageflow-autoscaler", 4),
    ("imageflow-cpu", 4),
    ("imageflow-cli", 5),
    ("imageflow-cluster", 1),
    ("imageflow-servers", 0),
    ("imageflow-tests", 5),
    ("xtask", 5),
];

/// What the stock function program must not link: pods hold no storage credentials and start fast. `openssl-probe` only looks
/// for certificate files and links nothing.
fn not_in_pods(name: &str) -> bool {
    let family = ["rdkafka", "kube", "fjall"]
        .iter()
        .any(|f| name == *f || name.starts_with(&format!("{f}-")));
    family || name.starts_with("aws-") || matches!(name, "openssl" | "openssl-sys")
}

/// Only these may link a heavy dependency.
const OWNERS: [(&str, &str); 7] = [
    ("fjall", "imageflow-eventlog"),
    ("rdkafka", "imageflow-eventlog"),
    ("aws-sdk-s3", "imageflow-objects"),
    ("s3s", "imageflow-objects"),
    ("turbojpeg", "imageflow-ops"),
    ("webp", "imageflow-ops"),
    ("clap", "imageflow-cli"),
];

/// Checks all edges.
pub fn check() -> Outcome {
    let mut metadata = tool::cargo(&["metadata", "--format-version", "1", "--locked"]);
    let metadata: Value = serde_json::from_str(&tool::output(&mut metadata)?).map_err(|e| e.to_string())?;
    let members: BTreeSet<&str> = strings(&metadata["workspace_members"]).collect();
    let packages: BTreeMap<&str, &Value> = list(&metadata["packages"])
        .filter_map(|p| Some((p["id"].as_str()?, p)))
        .collect();
    let layers: BTreeMap<&str, u8> = LAYERS.into_iter().collect();
    let mut faults = Vec::new();
    for package in members.iter().filter_map(|id| packages.get(id)) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(&layer) = layers.get(name) else {
            faults.push(format!("{name} is in no layer: add it to xtask/src/layers.rs"));
            continue;
        };
        for dependency in list(&package["dependencies"]) {
            let to = dependency["name"].as_str().unwrap_or_default();
            let dev = dependency["kind"].as_str() == Some("dev");
            if let Some(&below) = layers.get(to) {
                // xtask, the tests and dev-dependencies may look sideways; up is never allowed.
                let sideways = below == layer && layer < 5 && !dev;
                if to != name && (below > layer || sideways) {
                    faults.push(format!("{name} (layer {layer}) depends on {to} (layer {below})"));
                }
            }
            for (crate_name, owner) in OWNERS {
                if to == crate_name && name != owner && !dev {
                    faults.push(format!("{name} depends on {to}, which only {owner} may"));
                }
            }
        }
    }
    pods_are_light(&metadata, &mut faults);
    if faults.is_empty() {
        println!("layers: {} crates, every edge goes down", members.len());
        return Ok(());
    }
    Err(format!("layers:\n  {}", faults.join("\n  ")))
}

/// Everything that the stock function program links.
fn pods_are_light(metadata: &Value, faults: &mut Vec<String>) {
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"]["nodes"])
        .filter_map(|n| Some((n["id"].as_str()?, n)))
        .collect();
    let name_of: BTreeMap<&str, &str> = list(&metadata["packages"])
        .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
        .collect();
    let Some(start) = name_of
        .iter()
        .find(|(_, name)| **name == "imageflow-cpu")
        .map(|(id, _)| *id)
    else {
        faults.push("imageflow-cpu is not in the workspace".to_owned());
        return;
    };
    let mut open = vec![start];
    let mut seen = BTreeSet::from([start]);
    while let Some(node) = open.pop().and_then(|id| nodes.get(id)) {
        for dependency in list(&node["deps"]) {
            let normal = list(&dependency["dep_kinds"]).any(|k| k["kind"].is_null());
            let Some(id) = dependency["pkg"].as_str().filter(|_| normal) else {
                continue;
            };
            if seen.insert(id) {
                open.push(id);
            }
        }
    }
    for name in seen.iter().filter_map(|id| name_of.get(id)) {
        if not_in_pods(name) {
            faults.push(format!("imageflow-cpu links {name}"));
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    list(value).filter_map(Value::as_str)
}
