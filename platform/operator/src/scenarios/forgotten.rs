//! What is mirrored and not in the cluster any more.
use super::*;
use crate::forgotten;

/// The path of each kind, and a resource of it that is mirrored.
const MIRRORED: [(&str, &str); 3] = [("/triggers", "on-upload"), ("/flows", "small"), ("/functions", "thumb")];

impl ApiServer {
    /// What a list gives. Its path is a part of those of the resources: say those first.
    fn lists(&self, path: &'static str, names: &[&str], more: &str) {
        let items: Vec<Value> = names.iter().map(|name| metadata(name)).collect();
        let list = json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": { "resourceVersion": "9", "continue": more }, "items": items });
        self.answers.lock().unwrap().push((Method::GET, path, 200, list));
    }

    /// None of what is mirrored is there.
    fn lost_all(&self) {
        self.answers.lock().unwrap().clear();
        for path in ["/triggers/on-upload", "/flows/small", "/functions/thumb"] {
            self.answers(Method::GET, path, 404);
        }
    }
}

fn metadata(name: &str) -> Value {
    json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": { "name": name, "namespace": NAMESPACE } })
}

/// With a function, a flow of it and a trigger of the flow in the mirror.
async fn mirrored() -> World {
    let world = World::new().await;
    world.context.no_monitoring();
    world.reconcile(&function()).await.unwrap();
    let of = |kind: &str, name: &str, spec: Value| {
        json!({ "apiVersion": "imageflow.dev/v1alpha1", "kind": kind, "spec": spec,
            "metadata": { "name": name, "namespace": NAMESPACE, "uid": name, "generation": 1, "resourceVersion": "1" } })
    };
    let steps = json!({ "steps": [{ "name": "first", "function": "thumb" }] });
    let flow: Flow = object(of("Flow", "small", steps));
    mirror::reconcile(Arc::new(flow), world.context.clone()).await.unwrap();
    let filters = json!({ "filters": [{ "exact": { "type": "a" } }], "flow": "small" });
    let trigger: Trigger = object(of("Trigger", "on-upload", filters));
    mirror::reconcile(Arc::new(trigger), world.context.clone())
        .await
        .unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
    world
}

impl World {
    /// How many triggers, flows and functions the other services know.
    fn known(&self) -> [usize; 3] {
        let catalog = self.context.store.snapshot();
        [catalog.triggers.len(), catalog.flows.len(), catalog.functions.len()]
    }
}

#[tokio::test]
async fn what_the_cluster_has_lost_is_forgotten() {
    let world = mirrored().await;
    world.server.lost_all();
    for (path, _) in MIRRORED {
        world.server.lists(path, &["another"], "");
    }
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [0, 0, 0]);
}

#[tokio::test]
async fn what_others_need_is_forgotten_after_them() {
    let world = mirrored().await;
    world.server.lost_all();
    world.server.lists("/triggers", &["on-upload"], "");
    world.server.lists("/flows", &[], "");
    world.server.lists("/functions", &[], "");
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
    world.server.lost_all();
    for (path, _) in MIRRORED {
        world.server.lists(path, &["another"], "");
    }
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [0, 0, 0]);
}

#[tokio::test]
async fn nothing_is_forgotten_that_is_there_or_may_be() {
    let world = mirrored().await;
    for (path, name) in MIRRORED {
        world.server.lists(path, &[name, "another"], "");
    }
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
    // A cluster without anything is another one.
    world.server.lost_all();
    for (path, _) in MIRRORED {
        world.server.lists(path, &[], "");
    }
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
    // A list that is not whole, and one that is not given.
    world.server.lost_all();
    world.server.lists("/triggers", &["another"], "");
    world.server.lists("/flows", &["another"], "");
    world.server.lists("/functions", &["another"], "there are more");
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
    world.server.lost_all();
    world.server.lists("/triggers", &["another"], "");
    world.server.lists("/flows", &["another"], "");
    world.server.answers(Method::GET, "/functions", 503);
    forgotten::forget(&world.context).await.unwrap_err();
    assert_eq!(world.known(), [1, 1, 1]);
    // Made again since the list.
    world.server.answers.lock().unwrap().clear();
    for path in ["/triggers/on-upload", "/flows/small", "/functions/thumb"] {
        let name = path.rsplit('/').next().unwrap();
        world
            .server
            .answers
            .lock()
            .unwrap()
            .push((Method::GET, path, 200, metadata(name)));
    }
    for (path, _) in MIRRORED {
        world.server.lists(path, &["another"], "");
    }
    forgotten::forget(&world.context).await.unwrap();
    assert_eq!(world.known(), [1, 1, 1]);
}
