use super::*;
use imageflow_eventlog::{Embedded, EmbeddedConfig};
use imageflow_types::RunId;
use imageflow_types::manifest::Resource;

fn clock() -> i64 {
    1_000
}

fn operations() -> Operations {
    let schema = serde_json::json!({"type":"object","additionalProperties":false,"properties":{"width":{"type":"integer","minimum":1}}});
    Operations::new([("resize".to_owned(), schema)])
}

fn function(extra: &str) -> Resource {
    let text = format!(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: resize }}\nspec:\n  operation: resize\n{extra}"
    );
    Resource::from_yaml(&text).unwrap().remove(0)
}

async fn store(dir: &std::path::Path) -> (Arc<ResourceStore>, Arc<Embedded>, CancellationToken) {
    let log = Embedded::open(EmbeddedConfig::new(dir)).await.unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let store = ResourceStore::open(log.clone(), operations(), StoreConfig::new(clock), &tasks, &stop)
        .await
        .unwrap();
    (store, log, stop)
}

#[tokio::test]
async fn a_changed_function_gets_a_revision_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, log, stop) = store(dir.path()).await;
    let first = kept.apply(function("")).await.unwrap();
    assert_eq!(
        (first.outcome, first.revision.unwrap().as_str().to_owned()),
        (Outcome::Created, "resize-00001".into())
    );
    assert_eq!(kept.apply(function("")).await.unwrap().outcome, Outcome::Unchanged);
    let second = kept.apply(function("  timeout: 5s\n")).await.unwrap();
    assert_eq!(second.revision.unwrap().as_str(), "resize-00002");
    let scaled = kept
        .apply(function("  timeout: 5s\n  scale: { max: 3 }\n"))
        .await
        .unwrap();
    assert_eq!(
        (scaled.outcome, scaled.revision.unwrap().as_str().to_owned()),
        (Outcome::Configured, "resize-00002".into())
    );
    stop.cancel();
    drop(kept);
    log.close().await.unwrap();
    drop(log);
    let (again, ..) = store(dir.path()).await;
    let catalog = again.snapshot();
    assert_eq!(catalog.function("resize").unwrap().revisions.len(), 2);
    assert_eq!(catalog.function("resize").unwrap().document.metadata.generation, 3);
}

/// Partitions bound nothing but how many dispatchers share the work, so a topic of somebody else's making is as good.
#[tokio::test]
async fn a_work_topic_that_is_there_keeps_its_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log, _stop) = store(dir.path()).await;
    let topic = topics::work(&FunctionName::new("resize").unwrap());
    log.ensure_topics(&[TopicSpec::new(&topic, 1)]).await.unwrap();
    store.apply(function("")).await.unwrap();
    let made = log
        .topics()
        .await
        .unwrap()
        .into_iter()
        .find(|t| t.name == topic)
        .unwrap();
    assert_eq!(made, TopicSpec::new(&topic, 1).retention(WORK_KEPT));
}

#[tokio::test]
async fn rollback_gives_the_traffic_to_the_revision_before() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    store.apply(function("")).await.unwrap();
    store.apply(function("  timeout: 5s\n")).await.unwrap();
    let name = FunctionName::new("resize").unwrap();
    store.rollback(&name, None).await.unwrap();
    let entry = store.snapshot().function("resize").unwrap().clone();
    assert_eq!(entry.route(None, 77).unwrap().number, 1);
    assert_eq!(store.rollback(&name, None).await.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test]
async fn after_a_rollback_runs_get_the_parameters_of_the_revision_rolled_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    let of = |known: &str| {
        let text = format!(
            "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: own }}\nspec: {{ command: [./own], parameters: \
             {{ type: object, additionalProperties: false, properties: {{ {known}: {{ type: integer }} }} }} }}\n"
        );
        Resource::from_yaml(&text).unwrap().remove(0)
    };
    store.apply(of("width")).await.unwrap();
    store.apply(of("size")).await.unwrap();
    let name = FunctionName::new("own").unwrap();
    let run = RunId::derive(&["test"]);
    let known = || {
        let catalog = store.snapshot();
        let revision = catalog.revision_of_run(&name, &run).unwrap();
        let parameters = catalog.parameters(&revision.template).unwrap();
        schema::property_names(&parameters).join(" ")
    };
    assert_eq!(known(), "size");
    store.rollback(&name, None).await.unwrap();
    assert_eq!(known(), "width");
}

#[tokio::test]
async fn traffic_is_shared_by_percent_and_reached_by_tag() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    store.apply(function("")).await.unwrap();
    store.apply(function("  timeout: 5s\n")).await.unwrap();
    let split = "  timeout: 5s\n  traffic: [ { revision: resize-00001, percent: 90 }, { percent: 10, tag: canary } ]\n";
    store.apply(function(split)).await.unwrap();
    let entry = store.snapshot().function("resize").unwrap().clone();
    let first = (0..100).filter(|n| entry.route(None, *n).unwrap().number == 1).count();
    assert_eq!(first, 90);
    assert_eq!(entry.route(Some("canary"), 0).unwrap().number, 2);
    assert!(
        entry
            .route(Some("canry"), 0)
            .unwrap_err()
            .detail
            .contains("did you mean \"canary\"")
    );
}

#[tokio::test]
async fn references_are_checked_and_kept_from_dangling() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    let flow = "apiVersion: imageflow.dev/v1alpha1\nkind: Flow\nmetadata: { name: f }\nspec: { steps: [ { name: a, function: resise } ] }\n";
    let flow = Resource::from_yaml(flow).unwrap().remove(0);
    store.apply(function("")).await.unwrap();
    let error = store.apply(flow.clone()).await.unwrap_err();
    assert!(error.detail.contains("did you mean \"resize\""), "{error}");
    let Resource::Flow(mut document) = flow else {
        panic!("not a flow")
    };
    document.spec.steps[0].function = FunctionName::new("resize").unwrap();
    store.apply(Resource::Flow(document)).await.unwrap();
    let error = store.delete(Kind::Function, "resize").await.unwrap_err();
    assert!(error.detail.contains("Flow f"), "{error}");
    store.delete(Kind::Flow, "f").await.unwrap();
    store.delete(Kind::Function, "resize").await.unwrap();
    assert_eq!(
        store.delete(Kind::Function, "resize").await.unwrap_err().code,
        ErrorCode::NotFound
    );
}

#[tokio::test]
async fn default_parameters_are_checked_by_the_schema_of_the_operation() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    let error = store.apply(function("  params: { widht: 3 }\n")).await.unwrap_err();
    assert!(
        error.detail.contains("spec.params.widht") && error.detail.contains("\"width\""),
        "{error}"
    );
    let error = store
        .apply(function("  traffic: [ { revision: resize-00009, percent: 100 } ]\n"))
        .await
        .unwrap_err();
    assert!(error.detail.contains("spec.traffic[0].revision"), "{error}");
}

/// As two gateways do: both stores are on one log, and neither waits for the other's view.
#[tokio::test(flavor = "multi_thread")]
async fn changes_made_at_once_by_two_stores_are_all_kept_one_after_the_other() {
    const EACH: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let (one, log, stop) = store(dir.path()).await;
    let tasks = TaskTracker::new();
    let two = ResourceStore::open(log.clone(), operations(), StoreConfig::new(clock), &tasks, &stop);
    let two = two.await.unwrap();
    let changes = |store: Arc<ResourceStore>, from: u64| async move {
        for seconds in from..from + EACH {
            let applied = store
                .apply(function(&format!("  timeout: {seconds}s\n")))
                .await
                .unwrap();
            assert_ne!(applied.outcome, Outcome::Unchanged);
        }
    };
    let both = [(one.clone(), 1), (two.clone(), 100)].map(|(store, from)| tokio::spawn(changes(store, from)));
    for task in both {
        task.await.unwrap();
    }
    let last = one.apply(function("  timeout: 900s\n")).await.unwrap();
    let number = EACH * 2 + 1;
    assert_eq!(last.revision.unwrap().as_str(), format!("resize-{number:05}"));
    let catalog = one.snapshot();
    let entry = catalog.function("resize").unwrap();
    assert_eq!(entry.document.metadata.generation, number);
    let numbers: Vec<u64> = entry.revisions.iter().map(|r| u64::from(r.number)).collect();
    assert_eq!(numbers, (1..=number).collect::<Vec<_>>());
    two.delete(Kind::Function, "resize").await.unwrap();
    stop.cancel();
}

/// What waits together is written together: each is worked out on what those before it leave, and one that cannot be written
/// takes nobody with it.
#[tokio::test]
async fn changes_that_wait_together_see_each_other_and_do_not_fail_together() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    store.apply(function("")).await.unwrap();
    let resized = |seconds: u64| store.apply(function(&format!("  timeout: {seconds}s\n")));
    let Resource::Function(mut large) = function("") else {
        panic!("not a function")
    };
    large.metadata.name = FunctionName::new("large").unwrap();
    let mirrored = |document: &Document<FunctionName, FunctionSpec>| {
        store.mirror_function(FunctionEntry {
            document: document.clone(),
            revisions: Vec::new(),
        })
    };
    mirrored(&large).await.unwrap();
    large.metadata.labels.insert("blob".to_owned(), "x".repeat(2 << 20));
    let flow = "apiVersion: imageflow.dev/v1alpha1\nkind: Flow\nmetadata: { name: f }\nspec: { steps: [ { name: a, function: resize } ] }";
    let flow = Resource::from_yaml(flow).unwrap().remove(0);
    // Nothing waits for the disk before it stands in the queue (the topics are made), so these stand there together.
    let (first, second, large, flow, used) = tokio::join!(
        resized(1),
        resized(2),
        mirrored(&large),
        store.apply(flow),
        store.delete(Kind::Function, "resize"),
    );
    assert_eq!(first.unwrap().revision.unwrap().as_str(), "resize-00002");
    assert_eq!(second.unwrap().revision.unwrap().as_str(), "resize-00003");
    assert_eq!(large.unwrap_err().code, ErrorCode::TooLarge);
    assert_eq!(flow.unwrap().outcome, Outcome::Created);
    assert!(used.unwrap_err().detail.contains("Flow f"));
    let catalog = store.snapshot();
    assert_eq!(catalog.function("resize").unwrap().revisions.len(), 3);
    assert!(catalog.flows.contains_key("f"));
    assert!(catalog.function("large").unwrap().document.metadata.labels.is_empty());
}

#[tokio::test]
async fn a_change_after_the_stop_is_refused_and_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, stop) = store(dir.path()).await;
    stop.cancel();
    let error = store.delete(Kind::Flow, "f").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
}

#[tokio::test]
async fn who_stands_in_for_a_gpu_function_is_there_and_needs_no_card() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _log, _stop) = store(dir.path()).await;
    let named = |name: &str, extra: &str| {
        let text = format!(
            "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: {name} }}\nspec:\n  operation: resize\n{extra}"
        );
        Resource::from_yaml(&text).unwrap().remove(0)
    };
    let on_card = "  resources: { gpu: 1 }\n  scale: { fallback: slow }\n";
    let missing = store.apply(named("fast", on_card)).await.unwrap_err();
    assert!(missing.to_string().contains("spec.scale.fallback"), "{missing}");
    store.apply(named("slow", "")).await.unwrap();
    store.apply(named("fast", on_card)).await.unwrap();
    let catalog = store.snapshot();
    let stand_in = catalog.stand_in(catalog.function("fast").unwrap()).unwrap();
    assert_eq!((stand_in.0.as_str(), stand_in.1.as_str()), ("slow", "slow-00001"));
    let needs_one = store
        .apply(named("slow", "  resources: { gpu: 1 }\n"))
        .await
        .unwrap_err();
    assert!(needs_one.to_string().contains("stands in for fast"), "{needs_one}");
    let used = store.delete(Kind::Function, "slow").await.unwrap_err();
    assert_eq!(used.code, ErrorCode::Conflict, "{used}");
    let odd = store
        .apply(named("fast", "  scale: { fallback: slow }\n"))
        .await
        .unwrap_err();
    assert!(odd.to_string().contains("has no effect without GPUs"), "{odd}");
}

#[tokio::test(start_paused = true)]
async fn who_has_seen_as_much_waits_for_nothing_and_nobody_waits_for_what_can_never_come() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ..) = store(dir.path()).await;
    store.apply(function("")).await.unwrap();
    let seen = store.seen();
    assert!(!seen.to_string().is_empty());
    store.catch_up(&seen).await;
    // Of a topic that was made anew since.
    store.catch_up(&"0:1000000".parse().unwrap()).await;
}

/// The last record of its partition was a tombstone, and is gone.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_deletion_that_the_topic_has_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        tombstone_retention: std::time::Duration::ZERO,
        ..EmbeddedConfig::new(dir.path())
    };
    let log = Embedded::open(config.clone()).await.unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let open = || ResourceStore::open(log.clone(), operations(), StoreConfig::new(clock), &tasks, &stop);
    let before = open().await.unwrap();
    before.apply(function("")).await.unwrap();
    before.delete(Kind::Function, "resize").await.unwrap();
    let seen = before.seen();
    let now_ms = (config.clock)() + 1;
    log.run_retention(now_ms).await.unwrap();
    let after = open().await.unwrap();
    assert_ne!(after.seen(), seen, "its tombstone is gone");
    after.catch_up(&seen).await;
}
