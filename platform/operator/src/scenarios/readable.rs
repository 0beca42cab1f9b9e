//! Resources that the API server took and our types do not.
use futures::StreamExt;
use kube::ResourceExt;
use kube::api::Api;
use kube::core::DeserializeGuard;

use super::*;
use crate::readable::{Teller, readable};

fn function(name: &str, generation: i64, memory: &str) -> Value {
    json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": "Function",
        "metadata": { "name": name, "namespace": NAMESPACE, "uid": "u", "resourceVersion": "5", "generation": generation },
        "spec": { "operation": "resize", "resources": { "memory": memory } } })
}

fn guarded(value: Value) -> DeserializeGuard<Function> {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn one_that_cannot_be_read_holds_up_no_other_and_says_why() {
    let server = Arc::new(ApiServer::default());
    let list = json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": "FunctionList", "metadata": { "resourceVersion": "5" },
        "items": [function("bad", 3, "256MB"), function("good", 1, "256Mi")] });
    server
        .answers
        .lock()
        .unwrap()
        .push((Method::GET, "/functions", 200, list));
    let (store, seen) = readable::<Function>(&client(&server), NAMESPACE, || 5);
    let mut seen = std::pin::pin!(seen);
    assert_eq!(seen.next().await.unwrap().unwrap().name_any(), "good");
    let writes = server.writes();
    assert_eq!(writes.len(), 1, "{writes:?}");
    assert_eq!(writes[0].what, "PATCH functions/bad/status");
    let ready = &writes[0].body["status"]["conditions"][0];
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("False"), Some("Invalid"))
    );
    assert_eq!(ready["observedGeneration"], 3);
    assert!(ready["message"].as_str().unwrap().contains("256MB"), "{ready}");
    drop(store);
}

#[tokio::test]
async fn what_could_be_read_last_stands_until_it_is_deleted() {
    let server = Arc::new(ApiServer::default());
    let (reader, mut writer) = store::<Function>();
    let mut teller = Teller::new(Api::namespaced(client(&server), NAMESPACE), reader, || 5);
    let good = teller
        .read(Event::Apply(guarded(function("f", 1, "256Mi"))))
        .await
        .unwrap();
    writer.apply_watcher_event(&good);
    let bad = || guarded(function("f", 2, "1.5Q"));
    assert!(teller.read(Event::Apply(bad())).await.is_none());
    let Some(Event::InitApply(listed)) = teller.read(Event::InitApply(bad())).await else {
        panic!("a new list has it, as it was")
    };
    assert_eq!(listed.metadata.generation, Some(2));
    assert_eq!(listed.spec.0.resources.memory.to_string(), "256Mi");
    assert_eq!(server.writes().len(), 1, "each generation is told of once");
    let mut leaving = function("f", 3, "1.5Q");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-11-30T12:00:00Z");
    let left = teller.read(Event::Apply(guarded(leaving.clone()))).await;
    assert!(matches!(left, Some(Event::Apply(f)) if f.metadata.deletion_timestamp.is_some()));
    let gone = teller.read(Event::Delete(guarded(leaving))).await;
    assert!(matches!(gone, Some(Event::Delete(f)) if f.name_any() == "f"));
    // One that was never read is nobody's.
    let unknown = teller.read(Event::Delete(guarded(function("other", 1, "x")))).await;
    assert!(unknown.is_none());
}
