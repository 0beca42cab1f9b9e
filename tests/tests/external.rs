//! The main job on three Kafka brokers and a real S3 server.
use std::time::Duration;

use http::Method;
use imageflow_objects::{S3Config, S3Store};
use imageflow_servers::s3::{S3Options, S3Server};
use imageflow_servers::tls::authority;
use imageflow_tests::Platform;
use imageflow_tests::external::{RESOURCES, World, photo, put};
use imageflow_tests::http::json;
use imageflow_tests::platform::binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;

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

/// The server tells nobody of its objects: as when what it told was lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_which_nobody_was_told_is_found_by_the_reconcile() {
    let Some(world) = World::start().await else { return };
    let Some(silent) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let (access, secret) = (silent.access_key(), silent.secret_key());
    let env = [("IMAGEFLOW_S3_ACCESS_KEY", access), ("IMAGEFLOW_S3_SECRET_KEY", secret)];
    let folder = tempfile::tempdir().unwrap();
    let args = ["--kafka", &world.cluster.bootstrap(), "--s3", &silent.url()];
    let platform = Platform::start_with(folder.path(), &args, &env);
    platform.api.apply(RESOURCES).await;
    let objects = S3Store::new(S3Config::new(silent.url(), access, secret));
    put(&objects, 1).await.unwrap();
    // The pass of the platform's start may come first; then there is nothing left to raise.
    let server = platform.endpoints["api"].as_str().unwrap();
    let reconcile = async || {
        let asked = Command::new(binary())
            .args(["--server", server, "objects", "reconcile", "raw-images", "-o", "json"])
            .output()
            .await
            .unwrap();
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        serde_json::from_slice::<Value>(&asked.stdout).unwrap()
    };
    let asked = reconcile().await;
    assert!(asked["lookedAt"] == 1 && asked["skipped"] == 0, "{asked}");
    let succeeded = |list: &Value| list["items"][0]["status"] == "succeeded";
    platform.api.until("/v1/runs", succeeded).await;
    assert_eq!(reconcile().await["raised"], 0, "its event is there");
    let runs = platform.api.get("/v1/runs").await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "told once: {runs}");
    platform.stop();
}

/// By TLS, with an authority of somebody's own, and without the checksums that some servers refuse: the platform and its pods.
#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_with_a_certificate_of_its_own_is_reached_by_the_platform_and_by_pods() {
    let folder = tempfile::tempdir().unwrap();
    let ours = authority(folder.path(), "ours").unwrap();
    let ca = ours.ca.display().to_string();
    let options = S3Options {
        tls: Some(ours.server),
        ..S3Options::default()
    };
    let Some(server) = S3Server::for_test(options).await else {
        return;
    };
    let env = [
        ("IMAGEFLOW_S3_ACCESS_KEY", server.access_key()),
        ("IMAGEFLOW_S3_SECRET_KEY", server.secret_key()),
    ];
    let url = server.url();
    let args = ["--s3", &url, "--s3-ca", &ca, "--s3-checksums", "when-required"];
    let platform = Platform::start_with(folder.path(), &args, &env);
    let trust = format!("operation: resize, env: [ {{ name: SSL_CERT_FILE, value: {ca} }} ]");
    platform
        .api
        .apply(&RESOURCES.replace("operation: resize", &trust))
        .await;
    let headers = [("content-type", "image/png"), ("prefer", "wait=60")];
    let path = "/v1/functions/small/runs";
    let done = platform.api.send(Method::POST, path, &headers, photo(1)).await;
    assert_eq!(json(&done)["status"], "succeeded", "{}", json(&done));
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

/// Brokers that take a connection and say nothing: a firewall, a broker that has just been stopped.
#[tokio::test]
async fn what_waits_for_its_brokers_ends_when_it_is_told_to() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let up = ["up", "--listen", "127.0.0.1:0", "--data-dir", folder];
    let role = ["serve", "dispatcher", "--member", "d", "--admin-listen", "127.0.0.1:0"];
    let peers = ["--pods", "http://127.0.0.1:1", "--autoscaler", "http://127.0.0.1:1"];
    for what in [up.to_vec(), [&role[..], &peers].concat()] {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut child = Command::new(binary())
            .args(&what)
            .args(["--kafka", &silent.local_addr().unwrap().to_string()])
            .args(["--s3", "http://127.0.0.1:1"])
            .envs(["IMAGEFLOW_S3_ACCESS_KEY", "IMAGEFLOW_S3_SECRET_KEY"].map(|name| (name, "of-a-test")))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let _asked = tokio::time::timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
        kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), Signal::TERM).unwrap();
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        let status = ended
            .unwrap_or_else(|_| panic!("{what:?} goes on after a SIGTERM"))
            .unwrap();
        assert!(status.success(), "{what:?} ended with {status}");
    }
}
