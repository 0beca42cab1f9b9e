//! Roles as processes of their own: routers that come and go beside the platform, on Kafka and a real S3 server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http::Method;
use imageflow_tests::external::{RESOURCES, World, photo, until};
use imageflow_tests::http::json;
use imageflow_tests::platform::binary;
use serde_json::Value;

const PHOTOS: usize = 40;

struct Router {
    child: Child,
    admin: String,
}

impl Router {
    fn start(world: &World, member: &str) -> Self {
        let mut child = Command::new(binary())
            .args(["serve", "router", "--member", member, "--admin-listen", "127.0.0.1:0"])
            .args(["--kafka", &world.cluster.bootstrap(), "--s3", &world.server.url()])
            .env("IMAGEFLOW_S3_ACCESS_KEY", world.server.access_key())
            .env("IMAGEFLOW_S3_SECRET_KEY", world.server.secret_key())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let admin = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(admin.starts_with("http://"), "{line}");
        Self { child, admin }
    }

    /// Waits until the group has given it partitions.
    async fn joined(&self) {
        let api = imageflow_tests::Api::new(&self.admin);
        until("the router joins", Duration::from_secs(60), async || {
            api.metric("imageflow_eventlog_kafka_rebalances_total", &[]).await >= 1.0
        })
        .await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_beside_the_platform_takes_its_share_and_its_death_loses_nothing() {
    let Some(world) = World::start().await else { return };
    let platform = world.platform(&[]);
    platform.api.apply(RESOURCES).await;
    let router = Router::start(&world, "router-1");
    router.joined().await;
    for number in 0..PHOTOS {
        let path = format!("/v1/images?key=in/{number}.png");
        let answer = platform.api.send(Method::POST, &path, &[], photo(number)).await;
        assert_eq!(answer.status(), 201, "{}", json(&answer));
    }
    // SIGKILL with runs under way: the platform's own router takes them over.
    drop(router);
    let path = format!("/v1/runs?limit={}", PHOTOS * 2);
    let all = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == PHOTOS && items.iter().all(|run| run["status"] == "succeeded")
    };
    platform.api.until_within(Duration::from_secs(120), &path, all).await;
    assert_eq!(world.results().await.len(), PHOTOS);
    let letters = platform.api.get("/v1/dead-letters").await;
    assert_eq!(letters["items"], serde_json::json!([]));
    platform.stop();
}
