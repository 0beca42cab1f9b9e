//! Every role a process of its own: two gateways, two dispatchers, two routers, the autoscaler and the pods, on three brokers
//! and a real S3 server. The main job is done, and what dies on the way loses nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::time::Duration;

use http::Method;
use imageflow_proto::peer::Peer;
use imageflow_proto::v1::ScaleRequest;
use imageflow_proto::v1::pod_service_client::PodServiceClient;
use imageflow_tests::Api;
use imageflow_tests::external::{World, calls, noted, photo, put, report, until};
use imageflow_tests::http::json;
use imageflow_tests::role::Role;
use imageflow_tests::roles::{Roles, key};
use serde_json::Value;
use tonic::Code;

/// Photos of each half: one by the gateways, one by an S3 client.
const PHOTOS: usize = 24;
/// Photos that come after the deaths.
const LAST: usize = 6;
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until the group has given it partitions.
async fn joined(role: &Role) {
    until("it joins its group", Duration::from_secs(60), async || {
        rebalances(&role.admin).await >= 1.0
    })
    .await;
}

async fn rebalances(admin: &str) -> f64 {
    Api::new(admin)
        .metric("imageflow_eventlog_kafka_rebalances_total", &[])
        .await
}

async fn scale(pods: &str, key: Option<&str>) -> Code {
    let mut client = PodServiceClient::new(Peer::new(pods, key).channel().unwrap());
    let request = ScaleRequest {
        revision: "small-00001".to_owned(),
        replicas: 99,
    };
    client.scale(request).await.unwrap_err().code()
}

async fn upload(api: &Api, number: usize) {
    let path = format!("/v1/images?key=in/{number}.png");
    let answer = api.send(Method::POST, &path, &[], photo(number)).await;
    assert_eq!(answer.status(), 201, "{}", json(&answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_is_done_by_roles_of_their_own_and_a_death_of_each_loses_nothing() {
    let Some(world) = World::start().await else { return };
    let (folder, called) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut roles = Roles::new(&world, folder.path());
    let pods = roles.pods();
    let autoscaler = roles.autoscaler();
    let (gateway_1, api_1) = roles.gateway("gateway-1", "127.0.0.1:0");
    let (gateway_2, api_2) = roles.gateway("gateway-2", "127.0.0.1:0");
    let (router_1, router_2) = (roles.router("router-1"), roles.router("router-2"));
    let (dispatcher_1, dispatcher_2) = (roles.dispatcher("dispatcher-1"), roles.dispatcher("dispatcher-2"));
    for role in [&router_1, &router_2] {
        joined(role).await;
    }
    assert_eq!(scale(&roles.pods, None).await, Code::Unauthenticated);
    assert_eq!(scale(&roles.pods, Some(&key("gateway"))).await, Code::PermissionDenied);

    // What one gateway takes the other knows.
    api_1.apply(&noted(called.path())).await;
    api_2
        .until("/v1/triggers", |list| list["items"].as_array().unwrap().len() == 1)
        .await;
    // They join when they have found the topics of the functions.
    for role in [&dispatcher_1, &dispatcher_2] {
        joined(role).await;
    }
    for number in 0..PHOTOS / 2 {
        upload(if number % 2 == 0 { &api_1 } else { &api_2 }, number).await;
        put(&*world.objects, PHOTOS + number).await.unwrap();
    }
    // With runs under way: the others of each kind take over. One dispatcher only stands still, for longer than its group
    // waits for it.
    let gone = || world.told("in group imageflow-dispatcher has failed");
    let before = gone();
    let joined_before = rebalances(&dispatcher_1.admin).await;
    dispatcher_1.pause();
    router_1.kill();
    gateway_1.kill();
    // Of these there is one each: another takes its address.
    autoscaler.kill();
    pods.kill();
    let pods = roles.pods();
    let autoscaler = roles.autoscaler();
    for number in PHOTOS / 2..PHOTOS {
        upload(&api_2, number).await;
        put(&*world.objects, PHOTOS + number).await.unwrap();
    }
    until("the group goes on without it", PATIENCE, async || gone() > before).await;
    // It comes back with all that it held, and is a member again; then the other one dies.
    dispatcher_1.resume();
    until("it is a member again", PATIENCE, async || {
        rebalances(&dispatcher_1.admin).await > joined_before
    })
    .await;
    dispatcher_2.kill();
    for number in PHOTOS..PHOTOS + LAST {
        upload(&api_2, PHOTOS + number).await;
    }
    let path = format!("/v1/runs?limit={}", PHOTOS * 4);
    let sent = PHOTOS * 2 + LAST;
    let all = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == sent && items.iter().all(|run| run["status"] == "succeeded")
    };
    let runs = api_2.until_within(PATIENCE, &path, all).await;
    world.results_are_right(runs["items"].as_array().unwrap()).await;
    assert_eq!(world.results().await.len(), sent);
    let calls = calls(called.path());
    assert_eq!(calls.len(), sent, "each photo was called");
    let twice: usize = calls.values().map(|times| times - 1).sum();
    report(&format!("roles die or stand still: {twice} of {sent} calls done twice"));
    assert_eq!(api_2.get("/v1/dead-letters").await["items"], serde_json::json!([]));

    // A call through the gateway wakes the pods like work of the dispatcher does; all of it can be explained, and it ends at zero.
    let answer = api_2
        .send(Method::POST, "/v1/functions/grey/invoke", &[], photo(1))
        .await;
    assert_eq!(answer.status(), 200, "{}", json(&answer));
    // Both steps are one stage, and run on the pods of the second.
    let zero = |scaling: &Value| scaling["ready"] == 0 && scaling["desired"] == 0;
    let scaling = api_2.until_within(PATIENCE, "/v1/scaling/grey", zero).await;
    let decisions = scaling["decisions"].as_array().unwrap();
    let up = |d: &Value| d["from"] == 0 && d["to"].as_u64() > Some(0) && !d["reasons"].as_array().unwrap().is_empty();
    assert!(decisions.iter().any(up), "{scaling}");
    for role in [gateway_2, router_2, dispatcher_1, autoscaler, pods] {
        role.stop();
    }
}
