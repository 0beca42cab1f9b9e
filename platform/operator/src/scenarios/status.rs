//! What the status of a function says of its pods.
use super::*;

/// What the status says is wrong: whether it is ready, the reason, the message.
fn condition(writes: &[Asked]) -> (&str, &str, &str) {
    assert_eq!(words(writes), ["PATCH functions/thumb/status"]);
    let condition = &writes[0].body["status"]["conditions"][0];
    let word = |name: &str| condition[name].as_str().unwrap();
    (word("status"), word("reason"), word("message"))
}

impl World {
    /// What a Deployment says of its pods.
    fn show_status(&mut self, revision: &str, status: Value) {
        let live = self
            .context
            .found(&self.context.children.deployments, revision)
            .unwrap();
        let mut live = live.value().unwrap();
        live["status"] = status;
        self.seen.deployments.apply_watcher_event(&Event::Apply(object(live)));
    }

    /// A pod whose container waits.
    fn show_waiting(&mut self, revision: &str, reason: &str, message: &str) {
        let labels = json!({ "imageflow.dev/function": "thumb", "imageflow.dev/revision": revision });
        let pod = json!({ "metadata": { "name": format!("{revision}-x"), "namespace": NAMESPACE, "labels": labels },
            "status": { "containerStatuses": [{ "name": "function", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": reason, "message": message } } }] } });
        self.seen.pods.apply_watcher_event(&Event::Apply(object(pod)));
    }

    /// A second revision, made of other parameters, and the function that asks for it.
    fn show_second(&mut self) -> Value {
        let mut changed = done();
        changed["spec"]["params"]["width"] = json!(9);
        let spec: Function = object(changed.clone());
        let mut second = revision();
        second.metadata.name = Some("thumb-00002".to_owned());
        second.spec.number = 2;
        second.spec.template = spec.spec.0.template();
        second.spec.digest = imageflow_types::revision::template_digest(&second.spec.template);
        let (name, named) = ("thumb".parse().unwrap(), "thumb-00002".parse().unwrap());
        let by = Owner {
            kind: "Revision",
            name: "thumb-00002".into(),
            uid: "uid-2".into(),
        };
        let deployment = objects::deployment(&name, &named, &second.spec.template, &by, &settings()).unwrap();
        self.seen
            .deployments
            .apply_watcher_event(&Event::Apply(kept(deployment)));
        self.seen.revisions.apply_watcher_event(&Event::Apply(kept(second)));
        changed
    }
}

/// Pods that cannot start are told of in the status, by the words of who knows.
#[tokio::test]
async fn the_status_says_what_keeps_pods_from_starting() {
    let mut world = World::new().await;
    world.context.no_monitoring();
    world.show_all();
    world.show_status("thumb-00001", json!({ "replicas": 1 }));
    world.show_waiting("thumb-00001", "ImagePullBackOff", "no such image");
    world.reconcile(&done()).await.unwrap();
    assert_eq!(
        condition(&world.server.writes()),
        ("False", "ImagePullFailed", "no such image")
    );
}

/// Where a quota lets none be made, no pod is there to say so, and no pods look like a function that nobody calls.
#[tokio::test]
async fn the_status_says_why_pods_are_not_made() {
    let mut world = World::new().await;
    world.context.no_monitoring();
    world.show_all();
    let failure =
        json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota" }]);
    world.show_status("thumb-00001", json!({ "conditions": failure }));
    world.reconcile(&done()).await.unwrap();
    assert_eq!(
        condition(&world.server.writes()),
        ("False", "FailedCreate", "exceeded quota")
    );
    // With some it works, and cannot have more.
    world.show_status(
        "thumb-00001",
        json!({ "replicas": 1, "readyReplicas": 1, "conditions": failure }),
    );
    world.reconcile(&done()).await.unwrap();
    assert_eq!(
        condition(&world.server.writes()),
        ("True", "FailedCreate", "revision thumb-00001: exceeded quota")
    );
}

#[tokio::test]
async fn pods_of_an_older_revision_do_not_hide_that_the_newest_crashes() {
    let mut world = World::new().await;
    world.context.no_monitoring();
    world.show_all();
    let changed = world.show_second();
    world.show_status("thumb-00001", json!({ "replicas": 1, "readyReplicas": 1 }));
    world.show_status("thumb-00002", json!({ "replicas": 1 }));
    world.show_waiting("thumb-00002", "CrashLoopBackOff", "it crashes");
    world.reconcile(&changed).await.unwrap();
    assert_eq!(condition(&world.server.writes()), ("False", "CrashLoop", "it crashes"));
    // And the other way round an older one that is about to go says nothing of the newest, unless requests go to it.
    world.seen.pods.apply_watcher_event(&Event::Init);
    world.seen.pods.apply_watcher_event(&Event::InitDone);
    world.show_status("thumb-00001", json!({ "replicas": 1 }));
    world.show_status("thumb-00002", json!({ "replicas": 1, "readyReplicas": 1 }));
    world.show_waiting("thumb-00001", "CrashLoopBackOff", "it crashes");
    world.reconcile(&changed).await.unwrap();
    assert_eq!(
        condition(&world.server.writes()),
        ("True", "Deployed", "revision thumb-00002")
    );
    let mut routed = changed;
    routed["spec"]["traffic"] = json!([{ "revision": "thumb-00001", "percent": 100 }]);
    world.reconcile(&routed).await.unwrap();
    assert_eq!(condition(&world.server.writes()), ("False", "CrashLoop", "it crashes"));
}
