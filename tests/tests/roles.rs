//! Roles as processes of their own: routers that come and go beside the platform, on Kafka and a real S3 server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use http::Method;
use imageflow_tests::external::{RESOURCES, World};
use imageflow_tests::http::json;
use imageflow_tests::pictures;
use imageflow_tests::platform::binary;
use serde_json::Value;

const RUNS: usize = 40;

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

    async fn started_runs(&self) -> f64 {
        imageflow_tests::Api::new(&self.admin)
            .metric("imageflow_flow_runs_started_total", &[])
            .await
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
    let headers = [("content-type", "image/png")];
    let mut ids = BTreeSet::new();
    let mut sent = 0;
    // Until it has begun some of them: the partitions move to it meanwhile.
    while sent < RUNS || router.started_runs().await < 3.0 {
        assert!(sent < 20 * RUNS, "the second router was given no run");
        let body = pictures::png(32, 24, sent as u32);
        let answer = platform
            .api
            .send(Method::POST, "/v1/flows/two/runs", &headers, body)
            .await;
        assert_eq!(answer.status(), 202, "{}", json(&answer));
        ids.insert(json(&answer)["run"].as_str().unwrap().to_owned());
        sent += 1;
    }
    // SIGKILL with runs under way: the platform's own router takes them over.
    drop(router);
    let path = format!("/v1/runs?limit={}", sent * 2);
    let all = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == sent && items.iter().all(|run| run["status"] == "succeeded")
    };
    let list = platform.api.until(&path, all).await;
    let ended = list["items"].as_array().unwrap().iter();
    let ended: BTreeSet<String> = ended.map(|run| run["run"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ended, ids);
    let letters = platform.api.get("/v1/dead-letters").await;
    assert_eq!(letters["items"], serde_json::json!([]));
    platform.stop();
}
