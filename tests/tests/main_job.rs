//! The main job through the real binary: bucket and HTTP in, results out, from zero and back to zero.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure of a test")]

use http::Method;
use imageflow_objects::PutOptions;
use imageflow_tests::http::json;
use imageflow_tests::platform::binary;
use imageflow_tests::{Platform, pictures};
use serde_json::{Value, json};

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: resize }
spec: { operation: resize, scale: { max: 2, keepWarm: { min: 300ms, max: 300ms } } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: grayscale }
spec: { operation: grayscale, scale: { max: 2, keepWarm: { min: 300ms, max: 300ms } } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Flow
metadata: { name: thumbs }
spec:
  steps:
    - { name: small, function: resize, params: { width: 40 } }
    - { name: grey, function: grayscale, after: [small] }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-upload }
spec:
  filters: [ { exact: { type: dev.imageflow.object.created } }, { prefix: { subject: raw-images/in/ } } ]
  flow: thumbs
";

const PNG: [(&str, &str); 1] = [("content-type", "image/png")];

struct World {
    platform: Platform,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    platform.api.apply(RESOURCES).await;
    World { platform, _dir: dir }
}

fn finished(run: &Value) -> bool {
    run["status"] != "running"
}

fn ready_pods(function: &Value) -> u64 {
    let pods = &function["status"]["pods"];
    pods["ready"].as_u64().unwrap() + pods["starting"].as_u64().unwrap()
}

#[tokio::test]
async fn a_put_becomes_results_and_the_functions_go_back_to_zero() {
    let world = world().await;
    let api = &world.platform.api;
    let objects = world.platform.objects();
    let options = PutOptions {
        content_type: Some("image/png".into()),
        ..PutOptions::default()
    };
    objects
        .put(
            "raw-images",
            "in/a picture.png",
            pictures::png(80, 60, 1).into(),
            options,
        )
        .await
        .unwrap();
    let runs = api
        .until("/v1/runs", |v| v["items"].as_array().unwrap().iter().any(finished))
        .await;
    let run = &runs["items"][0];
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(
        run["plan"]["stages"].as_array().unwrap().len(),
        1,
        "adjacent steps are one stage"
    );
    let id = run["run"].as_str().unwrap();
    let result = api.send(Method::GET, &format!("/v1/runs/{id}/output"), &[], "").await;
    assert_eq!(result.status(), 200);
    let info = imageflow_ops::probe(result.body(), &imageflow_ops::Limits::default()).unwrap();
    assert_eq!((info.width, info.height), (40, 30));
    for function in ["resize", "grayscale"] {
        api.until(&format!("/v1/functions/{function}"), |v| ready_pods(v) == 0)
            .await;
    }
    let scaling = api.get("/v1/scaling/grayscale").await;
    let decisions = scaling["decisions"].as_array().unwrap();
    let up = decisions.iter().any(|d| d["from"] == 0 && d["to"].as_u64() >= Some(1));
    let down = decisions.iter().any(|d| d["to"] == 0);
    let other = api.get("/v1/scaling/resize").await;
    let all: Vec<&Value> = decisions.iter().chain(other["decisions"].as_array().unwrap()).collect();
    assert!(
        up || all.iter().any(|d| d["from"] == 0),
        "the way up is explained: {all:?}"
    );
    assert!(
        down || all.iter().any(|d| d["to"] == 0),
        "the way down is explained: {all:?}"
    );
    assert!(all.iter().all(|d| !d["reasons"].as_array().unwrap().is_empty()));
    world.platform.stop();
}

#[tokio::test]
async fn an_image_goes_in_and_an_image_comes_out_from_zero() {
    let world = world().await;
    let api = &world.platform.api;
    // Not the one of the others, whose pods are kept for a moment only.
    let kept =
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: kept }\nspec: { operation: resize }\n";
    api.apply(kept).await;
    let path = "/v1/functions/kept/invoke?width=20&format=webp";
    let cold = api.send(Method::POST, path, &PNG, pictures::png(80, 60, 2)).await;
    assert_eq!(cold.status(), 200, "{}", String::from_utf8_lossy(cold.body()));
    assert_eq!(cold.headers()["content-type"], "image/webp");
    assert_eq!(cold.headers()["imageflow-cold-start"], "true");
    let warm = api.send(Method::POST, path, &PNG, pictures::png(80, 60, 2)).await;
    assert_eq!(warm.headers()["imageflow-cold-start"], "false");
    assert_eq!(warm.body(), cold.body());
}

#[tokio::test]
async fn fused_and_unfused_give_the_same_pixels() {
    let world = world().await;
    let api = &world.platform.api;
    let mut outputs = Vec::new();
    for fuse in ["true", "false"] {
        let path = format!("/v1/flows/thumbs/runs?fuse={fuse}");
        let headers = [
            ("content-type", "image/png"),
            ("prefer", "wait=30"),
            ("accept", "image/*"),
        ];
        let answer = api.send(Method::POST, &path, &headers, pictures::png(90, 50, 3)).await;
        assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(answer.body()));
        outputs.push(answer.into_body());
    }
    assert_eq!(outputs[0], outputs[1]);
    let runs = api.get("/v1/runs?flow=thumbs").await;
    let stages: Vec<usize> = runs["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["plan"]["stages"].as_array().unwrap().len())
        .collect();
    assert!(stages.contains(&1) && stages.contains(&2), "{stages:?}");
}

#[tokio::test]
async fn a_repeated_idempotency_key_makes_no_second_run() {
    let world = world().await;
    let api = &world.platform.api;
    let headers = [
        ("content-type", "image/png"),
        ("idempotency-key", "order-7"),
        ("prefer", "wait=30"),
    ];
    let first = api
        .send(
            Method::POST,
            "/v1/flows/thumbs/runs",
            &headers,
            pictures::png(50, 50, 4),
        )
        .await;
    let again = api
        .send(
            Method::POST,
            "/v1/flows/thumbs/runs",
            &headers,
            pictures::png(50, 50, 4),
        )
        .await;
    assert_eq!(json(&first)["run"], json(&again)["run"]);
    assert_eq!(api.get("/v1/runs").await["items"].as_array().unwrap().len(), 1);
    let other = api
        .send(
            Method::POST,
            "/v1/flows/thumbs/runs",
            &headers,
            pictures::png(50, 50, 5),
        )
        .await;
    assert_eq!(other.status(), 409, "another picture under the same key");
}

#[tokio::test]
async fn bad_input_gets_a_clear_problem() {
    let world = world().await;
    let api = &world.platform.api;
    let mut truncated = pictures::png(80, 60, 6);
    truncated.truncate(200);
    let resize = "/v1/functions/resize/invoke?width=20";
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (resize, truncated, 422, ""),
        (resize, pictures::bomb(), 413, "50000"),
        (resize, b"GIF89a not a picture that we read".to_vec(), 415, "gif"),
        (
            "/v1/functions/resise/invoke",
            pictures::png(8, 8, 0),
            404,
            "did you mean \"resize\"",
        ),
        (
            "/v1/functions/resize/invoke?widht=20",
            pictures::png(8, 8, 0),
            400,
            "did you mean \"width\"",
        ),
        (
            "/v1/functions/resize/invoke?width=0",
            pictures::png(8, 8, 0),
            400,
            "width",
        ),
        (
            "/v1/flows/thumb/runs",
            pictures::png(8, 8, 0),
            404,
            "did you mean \"thumbs\"",
        ),
        ("/v1/nothing", Vec::new(), 404, ""),
    ];
    for (path, body, status, word) in cases {
        let answer = api.send(Method::POST, path, &PNG, body).await;
        let problem = json(&answer);
        assert_eq!(answer.status(), status, "{path}: {problem}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        let detail = problem["detail"].as_str().unwrap().to_lowercase();
        assert!(detail.contains(word), "{path}: \"{word}\" is not in {problem}");
    }
    let cycle = "apiVersion: imageflow.dev/v1alpha1\nkind: Flow\nmetadata: { name: round }\nspec: { steps: [ { name: a, function: resize, params: { width: 3 }, after: [b] }, { name: b, function: resize, params: { width: 3 }, after: [a] } ] }\n";
    let answer = api
        .send(
            Method::POST,
            "/v1/apply",
            &[("content-type", "application/yaml")],
            cycle,
        )
        .await;
    assert_eq!(answer.status(), 400);
    assert!(
        json(&answer)["detail"].as_str().unwrap().contains("->"),
        "{}",
        json(&answer)
    );
}

#[tokio::test]
async fn a_corrupt_picture_in_the_bucket_becomes_a_dead_letter_that_can_be_replayed() {
    let world = world().await;
    let api = &world.platform.api;
    let objects = world.platform.objects();
    objects
        .put(
            "raw-images",
            "in/broken.png",
            b"this is no picture".to_vec().into(),
            PutOptions::default(),
        )
        .await
        .unwrap();
    let letters = api
        .until("/v1/dead-letters", |v| !v["items"].as_array().unwrap().is_empty())
        .await;
    let letter = &letters["items"][0];
    assert_eq!(letter["error"]["code"], "unsupported-format", "{letter}");
    api.until("/v1/runs", |v| v["items"][0]["status"] == "failed").await;
    let id = letter["id"].as_str().unwrap();
    let replay = api
        .send(Method::POST, &format!("/v1/dead-letters/{id}/replay"), &[], "")
        .await;
    assert!(replay.status().is_success(), "{}", json(&replay));
    api.until("/v1/runs", |v| {
        v["items"].as_array().unwrap().iter().filter(|r| finished(r)).count() == 2
    })
    .await;
}

#[tokio::test]
async fn outside_events_are_taken_in_every_mode_and_not_trusted() {
    let world = world().await;
    let api = &world.platform.api;
    let trigger = "apiVersion: imageflow.dev/v1alpha1\nkind: Trigger\nmetadata: { name: on-order }\nspec: { filters: [ { exact: { type: com.example.order } } ], flow: thumbs }\n";
    api.apply(trigger).await;
    let objects = world.platform.objects();
    objects
        .put(
            "raw-images",
            "orders/1.png",
            pictures::png(60, 60, 9).into(),
            PutOptions::default(),
        )
        .await
        .unwrap();
    objects
        .put(
            "system-logs",
            "secret.png",
            pictures::png(60, 60, 9).into(),
            PutOptions::default(),
        )
        .await
        .unwrap();
    let event = |id: &str, bucket: &str, key: &str| {
        json!({"specversion":"1.0","id":id,"source":"urn:shop","type":"com.example.order","imageflowrun":"run-forged",
               "data":{"bucket":bucket,"key":key}})
    };
    let structured = [("content-type", "application/cloudevents+json")];
    let good = event("1", "raw-images", "orders/1.png").to_string();
    assert_eq!(
        api.send(Method::POST, "/v1/events", &structured, good.clone())
            .await
            .status(),
        202
    );
    assert_eq!(
        api.send(Method::POST, "/v1/events", &structured, good).await.status(),
        202
    );
    let batch = json!([
        event("2", "system-logs", "secret.png"),
        event("3", "raw-images", "orders/none.png")
    ]);
    let batched = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(
        api.send(Method::POST, "/v1/events", &batched, batch.to_string())
            .await
            .status(),
        202
    );
    let letters = api
        .until("/v1/dead-letters", |v| v["items"].as_array().unwrap().len() == 2)
        .await;
    let codes: Vec<&str> = letters["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["error"]["code"].as_str().unwrap())
        .collect();
    assert!(
        codes.contains(&"forbidden") && codes.contains(&"not-found"),
        "{codes:?}"
    );
    let runs = api
        .until("/v1/runs", |v| v["items"].as_array().unwrap().iter().any(finished))
        .await;
    assert_eq!(
        runs["items"].as_array().unwrap().len(),
        1,
        "a repeated event makes no second run"
    );
    assert_ne!(runs["items"][0]["run"], "run-forged");
    let reserved =
        json!({"specversion":"1.0","id":"4","source":"urn:x","type":"dev.imageflow.object.created","data":{}});
    let answer = api
        .send(Method::POST, "/v1/events", &structured, reserved.to_string())
        .await;
    assert_eq!(answer.status(), 400, "{}", json(&answer));
    let malformed = json!({"specversion":"1.0","source":"urn:x","type":"com.example.order"});
    let answer = api
        .send(Method::POST, "/v1/events", &structured, malformed.to_string())
        .await;
    assert_eq!(json(&answer)["code"], "malformed-event");
}

#[tokio::test]
async fn a_changed_function_makes_a_revision_and_rollback_goes_back() {
    let world = world().await;
    let api = &world.platform.api;
    let changed = "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: { name: resize }\nspec: { operation: resize, params: { width: 10 } }\n";
    let applied = api.apply(changed).await;
    assert_eq!(applied["items"][0]["revision"], "resize-00002");
    let answer = api
        .send(
            Method::POST,
            "/v1/functions/resize/invoke",
            &PNG,
            pictures::png(80, 60, 2),
        )
        .await;
    assert_eq!(answer.headers()["imageflow-revision"], "resize-00002");
    let body = [("content-type", "application/json")];
    let back = api
        .send(Method::POST, "/v1/functions/resize/rollback", &body, "{}")
        .await;
    assert!(back.status().is_success(), "{}", json(&back));
    let path = "/v1/functions/resize/invoke?width=20";
    let answer = api.send(Method::POST, path, &PNG, pictures::png(80, 60, 2)).await;
    assert_eq!(answer.headers()["imageflow-revision"], "resize-00001");
}

#[tokio::test]
async fn any_program_is_a_function() {
    let world = world().await;
    let api = &world.platform.api;
    let program = format!(
        "{}/../functions/examples/python/describe.py",
        std::env::var("CARGO_MANIFEST_DIR").unwrap()
    );
    let python = if std::process::Command::new("python3").arg("--version").output().is_ok() {
        "python3"
    } else {
        println!("skipped: python3 is not installed");
        return;
    };
    let manifest = format!(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: describe }}\nspec: {{ command: [ {python}, {program} ] }}\n"
    );
    api.apply(&manifest).await;
    let headers = [("content-type", "image/png"), ("prefer", "wait=30")];
    let run = api
        .send(
            Method::POST,
            "/v1/functions/describe/runs",
            &headers,
            pictures::png(33, 22, 1),
        )
        .await;
    let run = json(&run);
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(
        (&run["steps"][0]["data"]["width"], &run["steps"][0]["data"]["height"]),
        (&json!(33), &json!(22))
    );
}

#[tokio::test]
async fn the_pod_of_the_next_step_is_there_before_its_work() {
    let world = world().await;
    let api = &world.platform.api;
    let calls = tempfile::tempdir().unwrap();
    let program = binary().with_file_name("slow-function");
    let manifest = format!(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: slow }}\nspec:\n  command: [ {} ]\n  env: [ {{ name: SLOW_CALLS, value: {} }}, {{ name: SLOW_TAKES_MS, value: '3000' }} ]\n---\n\
         apiVersion: imageflow.dev/v1alpha1\nkind: Flow\nmetadata: {{ name: slow-first }}\nspec:\n  steps:\n    - {{ name: slow, function: slow }}\n    \
         - {{ name: small, function: resize, after: [slow], params: {{ width: 9 }} }}\n",
        program.display(),
        calls.path().display()
    );
    api.apply(&manifest).await;
    let headers = [("content-type", "image/png"), ("prefer", "wait=30")];
    let picture = pictures::png(33, 22, 1);
    let run = api
        .send(Method::POST, "/v1/flows/slow-first/runs", &headers, picture)
        .await;
    let run = json(&run);
    assert_eq!(run["status"], "succeeded", "{run}");
    let cold = |step: usize| run["steps"][step]["cold"].as_bool().unwrap();
    assert_eq!((cold(0), cold(1)), (true, false), "{run}");
    let scaling = api.get("/v1/scaling/resize").await;
    let first = scaling["decisions"].as_array().unwrap().last().unwrap();
    assert_eq!(
        first["reasons"],
        json!(["from steps before it in a flow: 1 on the way"]),
        "{scaling}"
    );
}

#[tokio::test]
async fn a_killed_platform_leaves_no_pod_behind_and_finds_its_resources_again() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    platform.api.apply(RESOURCES).await;
    let path = "/v1/functions/resize/invoke?width=20";
    assert_eq!(
        platform
            .api
            .send(Method::POST, path, &PNG, pictures::png(80, 60, 2))
            .await
            .status(),
        200
    );
    platform.kill();
    let again = Platform::start(dir.path(), &[]);
    assert_eq!(
        again.api.get("/v1/functions").await["items"].as_array().unwrap().len(),
        2
    );
    assert_eq!(
        again.api.get("/v1/functions/resize").await["status"]["latestRevision"],
        "resize-00001"
    );
    assert_eq!(
        again
            .api
            .send(Method::POST, path, &PNG, pictures::png(80, 60, 2))
            .await
            .status(),
        200
    );
    again.stop();
}

#[tokio::test]
async fn a_listener_beyond_loopback_needs_keys() {
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(imageflow_tests::platform::binary())
        .args([
            "up",
            "--listen",
            "0.0.0.0:0",
            "--s3-listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--api-keys"), "{text}");
}
