//! Applying, reading and deleting resources.
use http::Method;
use serde_json::{Value, json};

use crate::support::{PNG, SAMPLE, World};

fn documents() -> Value {
    let all = imageflow_types::Resource::from_yaml(SAMPLE).unwrap();
    serde_json::to_value(all).unwrap()
}

#[tokio::test]
async fn a_file_is_applied_in_its_order_and_again_without_effect() {
    let world = World::start().await;
    for expected in ["created", "unchanged"] {
        let reply = world
            .post("/v1/apply", &[("content-type", "application/yaml")], SAMPLE)
            .await;
        let items = reply.json()["items"].clone();
        let outcomes: Vec<&str> = items
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["outcome"].as_str().unwrap())
            .collect();
        assert_eq!(outcomes, [expected; 3]);
        assert_eq!(items[0]["revision"], "resize-00001");
    }
    let function = world.get("/v1/functions/resize").await.json();
    assert_eq!(function["status"]["latestRevision"], "resize-00001");
    assert_eq!(
        function["status"]["parameters"]["properties"]["width"]["maximum"],
        10_000
    );
    assert_eq!(
        world.get("/v1/flows").await.json()["items"][0]["metadata"]["name"],
        "thumbs"
    );
    assert_eq!(world.get("/v1/triggers").await.json()["items"][0]["kind"], "Trigger");
}

#[tokio::test]
async fn json_is_applied_as_one_object_or_an_array() {
    let world = World::start().await;
    let json = [("content-type", "application/json")];
    let one = documents()[0].to_string();
    assert_eq!(
        world.post("/v1/apply", &json, one).await.json()["items"][0]["outcome"],
        "created"
    );
    let reply = world.post("/v1/apply", &json, documents().to_string()).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    assert_eq!(reply.json()["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn one_bad_document_keeps_the_whole_file_out() {
    let world = World::start().await;
    let text = SAMPLE.replace("operation: resize }", "operation: resize, scale: { mix: 1 } }");
    let problem = world
        .post("/v1/apply", &[], text)
        .await
        .problem(400, "invalid-argument");
    assert!(
        problem.contains("spec.scale.mix") && problem.contains("did you mean \\\"min\\\"?"),
        "{problem}"
    );
    let cycle = SAMPLE.replace(
        "steps: [ { name: small, function: resize, params: { width: 64 } } ]",
        "steps: [ { name: a, function: resize, after: [b] }, { name: b, function: resize, after: [a] } ]",
    );
    let problem = world
        .post("/v1/apply", &[], cycle)
        .await
        .problem(400, "invalid-argument");
    assert!(problem.contains("Flow thumbs") && problem.contains("->"), "{problem}");
    assert!(world.resources.snapshot().functions.is_empty());
}

#[tokio::test]
async fn those_who_hold_the_gateway_apply_in_any_order_and_whole_as_well() {
    let world = World::start().await;
    let mut all = imageflow_types::Resource::from_yaml(SAMPLE).unwrap();
    all.reverse();
    let problem = world.gateway.apply_all(all[..2].to_vec()).await.unwrap_err();
    assert!(problem.detail.starts_with("Flow thumbs: "), "{problem}");
    let catalog = world.resources.snapshot();
    assert!(catalog.flows.is_empty() && catalog.triggers.is_empty());
    let applied = world.gateway.apply_all(all).await.unwrap();
    let kinds: Vec<String> = applied.iter().map(|a| a.resource.kind().to_string()).collect();
    assert_eq!(kinds, ["Function", "Flow", "Trigger"]);
}

#[tokio::test]
async fn a_dry_run_checks_and_keeps_nothing() {
    let world = World::start().await;
    assert_eq!(world.post("/v1/apply?dryRun=true", &[], SAMPLE).await.status, 200);
    assert!(world.resources.snapshot().functions.is_empty());
    world.post("/v1/apply", &[], "").await.problem(400, "invalid-argument");
}

#[tokio::test]
async fn one_resource_is_put_and_deleted_at_its_own_path() {
    let world = World::start().await;
    let function = documents()[0].to_string();
    let path = "/v1/functions/resize";
    assert_eq!(
        world.send(Method::PUT, path, &[], function.clone()).await.json()["outcome"],
        "created"
    );
    let wrong = world.send(Method::PUT, "/v1/functions/other", &[], function).await;
    assert!(wrong.problem(400, "invalid-argument").contains("other"));
    assert_eq!(world.send(Method::DELETE, path, &[], "").await.status, 204);
    world
        .send(Method::DELETE, path, &[], "")
        .await
        .problem(404, "not-found");
}

#[tokio::test]
async fn what_is_used_is_not_deleted_and_its_users_are_named() {
    let world = World::sample().await;
    let problem = world
        .send(Method::DELETE, "/v1/functions/resize", &[], "")
        .await
        .problem(409, "conflict");
    assert!(problem.contains("Flow thumbs"), "{problem}");
}

#[tokio::test]
async fn a_rollback_gives_the_traffic_to_the_revision_before() {
    let world = World::sample().await;
    world
        .post("/v1/functions/resize/rollback", &[], "")
        .await
        .problem(409, "conflict");
    let mut function = documents()[0].clone();
    function["spec"]["timeout"] = json!("5s");
    assert_eq!(
        world.post("/v1/apply", &[], function.to_string()).await.json()["items"][0]["revision"],
        "resize-00002"
    );
    assert_eq!(world.post("/v1/functions/resize/rollback", &[], "").await.status, 200);
    let status = world.get("/v1/functions/resize").await.json()["status"].clone();
    let first = status["revisions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "resize-00001")
        .unwrap();
    assert_eq!(first["percent"], 100, "{status}");
    world
        .post("/v1/functions/resize/rollback", &[], r#"{"too": 1}"#)
        .await
        .problem(400, "invalid-argument");
}

#[tokio::test]
async fn after_a_rollback_a_call_is_checked_by_what_it_gets() {
    let world = World::start().await;
    let mut function = documents()[0].clone();
    for operation in ["resize", "crop"] {
        function["spec"]["operation"] = json!(operation);
        let applied = world.post("/v1/apply", &[], function.to_string()).await;
        assert_eq!(applied.status, 200, "{:?}", applied.body);
    }
    // Crop needs a width.
    let path = "/v1/functions/resize/runs";
    world.post(path, &[], PNG).await.problem(400, "invalid-argument");
    assert_eq!(world.post("/v1/functions/resize/rollback", &[], "").await.status, 200);
    let run = world.post(path, &[], PNG).await;
    assert_eq!(run.status, 202, "{:?}", run.body);
}
