//! What bad input gets: a problem document that says what was wrong and what to do.
use http::Method;
use imageflow_types::topics;

use crate::support::{PNG, Setup, World};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let world = World::start().await;
    let text = world.get("/v1/nonsense").await.problem(404, "not-found");
    assert!(text.contains("/v1/nonsense"), "{text}");
    world.get("/elsewhere").await.problem(404, "not-found");
    let text = world
        .send(Method::PATCH, "/v1/runs", &[], "")
        .await
        .problem(405, "method-not-allowed");
    assert!(text.contains("PATCH"), "{text}");
}

#[tokio::test]
async fn unknown_names_are_told_with_the_nearest() {
    let world = World::sample().await;
    for (path, near) in [
        ("/v1/functions/resise/invoke", "resize"),
        ("/v1/functions/resise/runs", "resize"),
        ("/v1/flows/thumb/runs", "thumbs"),
    ] {
        let text = world.post(path, &[], PNG).await.problem(404, "not-found");
        assert!(
            text.contains(&format!("did you mean \\\"{near}\\\"?")),
            "{path}: {text}"
        );
    }
    let text = world
        .post("/v1/functions/resize/invoke?widht=3", &[], PNG)
        .await
        .problem(400, "invalid-argument");
    assert!(
        text.contains("widht") && text.contains("did you mean \\\"width\\\"?"),
        "{text}"
    );
    world.get("/v1/runs/run-000").await.problem(404, "not-found");
}

#[tokio::test]
async fn a_body_over_the_limit_names_the_limit() {
    let world = World::sample().await;
    let text = world
        .post("/v1/flows/thumbs/runs", &[], vec![0; 65 * 1024])
        .await
        .problem(413, "too-large");
    assert!(text.contains("65536"), "{text}");
}

#[tokio::test]
async fn a_body_that_is_no_picture_is_refused_and_not_stored() {
    let world = World::sample().await;
    let text = world
        .post("/v1/flows/thumbs/runs", &[], "GIF89a....")
        .await
        .problem(415, "unsupported-format");
    assert!(text.contains("JPEG, PNG or WebP"), "{text}");
    world
        .post("/v1/flows/thumbs/runs", &[], "")
        .await
        .problem(400, "invalid-argument");
    world
        .post("/v1/images?key=a.gif", &[], "GIF89a....")
        .await
        .problem(415, "unsupported-format");
    world
        .post("/v1/images", &[], PNG)
        .await
        .problem(400, "invalid-argument");
    assert!(world.objects.all().is_empty() && world.run_events().await.is_empty());
}

#[tokio::test]
async fn a_reference_must_be_json_to_an_object_that_is_there_and_allowed() {
    let world = World::sample().await;
    let path = "/v1/flows/thumbs/runs";
    world.post(path, &[JSON], "{").await.problem(400, "invalid-argument");
    let text = world
        .post(path, &[JSON], r#"{"inputs": {}}"#)
        .await
        .problem(400, "invalid-argument");
    assert!(text.contains("inputs"), "{text}");
    let elsewhere = r#"{"input": {"bucket": "system-logs", "key": "a"}}"#;
    let text = world.post(path, &[JSON], elsewhere).await.problem(403, "forbidden");
    assert!(text.contains("system-logs") && text.contains("raw-images"), "{text}");
    let missing = r#"{"input": {"bucket": "raw-images", "key": "a.png"}}"#;
    let text = world.post(path, &[JSON], missing).await.problem(404, "not-found");
    assert!(text.contains("raw-images/a.png"), "{text}");
    let outside = r#"{"input": {"bucket": "raw-images", "key": "../a"}}"#;
    world
        .post(path, &[JSON], outside)
        .await
        .problem(400, "invalid-argument");
    assert!(world.run_events().await.is_empty());
}

#[tokio::test]
async fn parameters_out_of_range_and_of_a_flow_are_refused() {
    let world = World::sample().await;
    world.post("/v1/images?key=a.png", &[], PNG).await;
    let body = r#"{"input": {"bucket": "raw-images", "key": "a.png"}, "params": {"width": 20000}}"#;
    let text = world
        .post("/v1/functions/resize/runs", &[JSON], body)
        .await
        .problem(400, "invalid-argument");
    assert!(text.contains("params.width") && text.contains("10000"), "{text}");
    world
        .post("/v1/flows/thumbs/runs", &[JSON], body)
        .await
        .problem(400, "invalid-argument");
    assert!(world.run_events().await.is_empty());
}

#[tokio::test]
async fn the_query_of_a_run_is_checked_before_anything_is_stored() {
    let world = World::sample().await;
    for (query, says) in [
        ("widht=3", "did you mean \\\"width\\\"?"),
        ("width=20000", "10000"),
        ("width=wide", "params.width"),
        ("width=1&width=2", "is given twice"),
        ("tag=canary", "traffic"),
    ] {
        let reply = world
            .post(&format!("/v1/functions/resize/runs?{query}"), &[], PNG)
            .await;
        let text = reply.problem(400, "invalid-argument");
        assert!(text.contains(says), "{query}: {text}");
    }
    for (query, says) in [
        ("width=64", "known is fuse"),
        ("fuze=false", "did you mean \\\"fuse\\\"?"),
    ] {
        let reply = world.post(&format!("/v1/flows/thumbs/runs?{query}"), &[], PNG).await;
        let text = reply.problem(400, "invalid-argument");
        let name = query.split('=').next().unwrap();
        assert!(text.contains(name) && text.contains(says), "{query}: {text}");
    }
    assert!(world.objects.all().is_empty() && world.run_events().await.is_empty());
}

#[tokio::test]
async fn an_image_without_the_parameters_it_needs_is_refused_and_not_stored() {
    let world = World::start().await;
    let crop =
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: crop }\nspec: { operation: crop }";
    for resource in imageflow_types::Resource::from_yaml(crop).unwrap() {
        world.resources.apply(resource).await.unwrap();
    }
    let text = world
        .post("/v1/functions/crop/runs", &[], PNG)
        .await
        .problem(400, "invalid-argument");
    assert!(text.contains("params") && text.contains("width"), "{text}");
    assert!(world.objects.all().is_empty() && world.run_events().await.is_empty());
}

#[tokio::test]
async fn numbers_and_states_in_queries_are_checked() {
    let world = World::start().await;
    for (path, name) in [
        ("/v1/runs?limit=0", "limit"),
        ("/v1/runs?limit=many", "limit"),
        ("/v1/runs?status=done", "status"),
        ("/v1/images?limit=5000", "limit"),
        ("/v1/dead-letters?limit=-1", "limit"),
    ] {
        let text = world.get(path).await.problem(400, "invalid-argument");
        assert!(text.contains(name), "{path}: {text}");
    }
}

#[tokio::test]
async fn too_much_waiting_work_gets_429_and_when_to_come_back() {
    let world = World::sample_with(Setup {
        backlog: 100,
        ..Setup::default()
    })
    .await;
    let reply = world.post("/v1/flows/thumbs/runs", &[], PNG).await;
    let text = reply.problem(429, "overloaded");
    assert!(text.contains("resize"), "{text}");
    assert_eq!(reply.header("retry-after"), "5");
    assert!(world.objects.all().is_empty() && world.run_events().await.is_empty());
}

#[tokio::test]
async fn before_the_log_is_full_new_work_gets_429_but_reads_go_on() {
    let setup = Setup {
        log_limit: Some(1 << 20),
        max_log_fraction: 0.000_001,
        ..Setup::default()
    };
    let world = World::sample_with(setup).await;
    let reply = world.post("/v1/flows/thumbs/runs", &[], PNG).await;
    reply.problem(429, "overloaded");
    assert_eq!(reply.header("retry-after"), "5");
    let event = r#"{"specversion":"1.0","id":"1","source":"urn:t","type":"t"}"#;
    let structured = [("content-type", "application/cloudevents+json")];
    world
        .post("/v1/events", &structured, event)
        .await
        .problem(429, "overloaded");
    assert!(world.records(topics::EVENTS).await.is_empty());
    assert_eq!(world.get("/v1/runs").await.status, 200);
}
