//! The main job on three Kafka brokers and a real S3 server.
use http::Method;
use imageflow_tests::external::{RESOURCES, World, put};
use imageflow_tests::http::json;
use serde_json::Value;

const PHOTOS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_put_becomes_one_run_and_one_result_on_kafka_and_s3() {
    let Some(world) = World::start().await else { return };
    let platform = world.platform(&[]);
    platform.api.apply(RESOURCES).await;
    for number in 0..PHOTOS {
        put(world.objects.as_ref(), number).await.unwrap();
    }
    let all_succeeded = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == PHOTOS && items.iter().all(|run| run["status"] == "succeeded")
    };
    let list = platform.api.until("/v1/runs", all_succeeded).await;
    for run in list["items"].as_array().unwrap() {
        let id = run["run"].as_str().unwrap();
        let result = platform
            .api
            .send(Method::GET, &format!("/v1/runs/{id}/output"), &[], "")
            .await;
        assert_eq!(result.status(), 200, "{}", json(&result));
    }
    assert_eq!(world.results().await.len(), PHOTOS, "one result a photo");
    assert_eq!(
        platform.api.get("/v1/dead-letters").await["items"],
        serde_json::json!([])
    );
    platform.stop();
}

/// What is under way cannot be ended then, but the process ends: its work is there when the brokers are.
#[tokio::test(flavor = "multi_thread")]
async fn a_platform_whose_brokers_are_gone_ends_soon() {
    let Some(world) = World::start().await else { return };
    let platform = world.platform(&[]);
    platform.api.apply(RESOURCES).await;
    for number in 0..PHOTOS {
        put(world.objects.as_ref(), number).await.unwrap();
    }
    let begun = |list: &Value| !list["items"].as_array().unwrap().is_empty();
    platform.api.until("/v1/runs", begun).await;
    for broker in 0..3 {
        world.cluster.kill(broker).unwrap();
    }
    platform.stop();
}
