//! The CloudEvents SDKs of Python and Go over Kafka, both ways. `cargo xtask test peers` brings them.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure of a test")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::Command;

use bytes::Bytes;
use http::Method;
use imageflow_eventlog::{EventLog, Kafka, KafkaConfig, NewRecord};
use imageflow_servers::kafka::Cluster;
use imageflow_tests::Platform;
use imageflow_types::topics;
use serde_json::{Map, Value, json};

const SOURCE: &str = "https://shop.example/a%20b";
const SUBJECT: &str = "Grüße 100%.jpg";
const TIME: &str = "2026-11-24T10:00:00.123Z";
const TIME_MS: i64 = 1_795_514_400_123;

/// A program with the SDK of a language.
struct Sdk {
    language: &'static str,
    program: OsString,
    script: Option<String>,
    bootstrap: String,
}

impl Sdk {
    fn run(&self, verb: &str, topic: &str, count: Option<usize>) -> String {
        let output = Command::new(&self.program)
            .args(&self.script)
            .args([verb, &self.bootstrap, topic])
            .args(count.map(|c| c.to_string()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {verb} {topic}: {said}", self.language);
        String::from_utf8(output.stdout).unwrap()
    }

    /// So many events of a topic, as the SDK understands them; sorted by id.
    fn read(&self, topic: &str, count: usize) -> Vec<Value> {
        let printed = self.run("read", topic, Some(count));
        let mut events: Vec<Value> = printed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.len(), count, "{}: {printed}", self.language);
        events.sort_by_key(|e| e["id"].to_string());
        events
    }
}

fn manifest(python: &str) -> String {
    let echo = format!("{}/peers/echo.py", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    format!(
        r#"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: {{ name: echo }}
spec: {{ command: [ "{python}", "{echo}" ], scale: {{ max: 1 }} }}
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: {{ name: on-sdk }}
spec: {{ filters: [ {{ exact: {{ type: com.example.sdk }} }} ], function: echo }}
"#
    )
}

fn event(id: &str, data: &Value) -> Value {
    json!({
        "specversion": "1.0", "id": id, "type": "com.example.sdk", "source": SOURCE, "subject": SUBJECT, "time": TIME,
        "datacontenttype": "application/json", "colour": "grün", "partitionkey": "order 7", "data": data,
    })
}

/// The events of the runs that succeeded, each as its function was given it, by their ids; once there are `count` runs.
async fn delivered(platform: &Platform, count: usize) -> Map<String, Value> {
    let ended = |list: &Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == count
            && items
                .iter()
                .all(|run| ["succeeded", "failed"].contains(&run["status"].as_str().unwrap()))
    };
    let list = platform.api.until("/v1/runs", ended).await;
    let mut events = Map::new();
    for run in list["items"].as_array().unwrap() {
        if run["status"] == "succeeded" {
            let event = run["steps"][0]["data"].clone();
            events.insert(event["id"].as_str().unwrap().to_owned(), event);
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdks_of_python_and_go_read_and_write_what_the_platform_does() {
    let programs = ["IMAGEFLOW_PEERS_PYTHON", "IMAGEFLOW_PEERS_GO"].map(std::env::var_os);
    let [Some(python), Some(go)] = programs else {
        println!("skipped: run by cargo xtask test peers, which installs the SDKs");
        return;
    };
    let Some(cluster) = Cluster::for_test(1).await else {
        return;
    };
    let bootstrap = cluster.bootstrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--kafka", &bootstrap, "--kafka-replication", "1"]);
    platform.api.apply(&manifest(&python.to_string_lossy())).await;
    let script = format!("{}/peers/sdk_kafka.py", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let sdks = [("python", python, Some(script)), ("go", go, None)].map(|(language, program, script)| Sdk {
        language,
        program,
        script,
        bootstrap: bootstrap.clone(),
    });

    what_the_platform_writes_is_read(&platform, &sdks).await;
    what_the_sdks_write_is_run(&platform, &sdks).await;
    let log = Kafka::open(KafkaConfig::new(bootstrap)).await.unwrap();
    what_is_no_event_is_kept(&platform, &log).await;
    log.close().await;
    platform.stop();
}

async fn what_the_platform_writes_is_read(platform: &Platform, sdks: &[Sdk]) {
    let media = [("content-type", "application/cloudevents+json")];
    for (id, data) in [
        ("1 fails", json!({"fail": true})),
        ("2 works", json!({"text": "Grüße", "n": 7})),
    ] {
        let body = event(id, &data).to_string();
        let answer = platform.api.send(Method::POST, "/v1/events", &media, body).await;
        assert_eq!(answer.status(), 202);
    }
    let succeeded = delivered(platform, 2).await;
    assert_eq!(succeeded.keys().collect::<Vec<_>>(), ["2 works"]);
    let letters = platform
        .api
        .until("/v1/dead-letters", |l| !l["items"].as_array().unwrap().is_empty())
        .await;
    let letter = &letters["items"][0];
    let runs = platform.api.get("/v1/runs").await;
    let runs: BTreeSet<&str> = runs["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["run"].as_str().unwrap())
        .collect();
    for sdk in sdks {
        for (seen, id) in sdk.read(topics::EVENTS, 2).iter().zip(["1 fails", "2 works"]) {
            let expected = json!({"id": id, "type": "com.example.sdk", "source": SOURCE, "subject": SUBJECT, "time": TIME_MS,
                "datacontenttype": "application/json", "key": "order 7"});
            includes(sdk, seen, &expected);
            includes(
                sdk,
                &seen["extensions"],
                &json!({"colour": "grün", "partitionkey": "order 7"}),
            );
            assert_eq!(
                seen["data"]["fail"].is_null(),
                id == "2 works",
                "{}: {seen}",
                sdk.language
            );
        }

        let work = sdk.read(&topics::work(&"echo".parse().unwrap()), 2);
        let keys: BTreeSet<&str> = work.iter().map(|w| w["key"].as_str().unwrap()).collect();
        assert_eq!(keys, runs, "{}", sdk.language);
        for seen in &work {
            let run = seen["key"].as_str().unwrap();
            let expected = json!({"id": format!("{run}/0/1"), "type": "dev.imageflow.work",
                "source": format!("/imageflow/runs/{run}"), "subject": SUBJECT, "datacontenttype": "application/json"});
            includes(sdk, seen, &expected);
            let extensions = json!({"imageflowrun": run, "imageflowattempt": "1", "imageflowstep": "echo"});
            includes(sdk, &seen["extensions"], &extensions);
            assert!(
                seen["extensions"]["traceparent"].is_string(),
                "{}: {seen}",
                sdk.language
            );
            assert_eq!(seen["data"]["function"], "echo");
        }

        let seen = &sdk.read(topics::DEAD_LETTERS, 1)[0];
        let expected = json!({"id": letter["id"], "type": "dev.imageflow.dead-letter", "subject": SUBJECT, "key": "echo",
            "source": format!("/imageflow/runs/{}", letter["run"].as_str().unwrap()), "data": letter});
        includes(sdk, seen, &expected);
        let extensions = json!({"knativeerrordest": "/imageflow/functions/echo", "knativeerrorcode": "422",
            "knativeerrordata": letter["error"]["message"], "imageflowrun": letter["run"]});
        includes(sdk, &seen["extensions"], &extensions);
        let original = &seen["data"]["request"]["input"]["event"];
        assert_eq!(
            original["id"], "1 fails",
            "{}: the original event: {seen}",
            sdk.language
        );
    }
}

async fn what_the_sdks_write_is_run(platform: &Platform, sdks: &[Sdk]) {
    for sdk in sdks {
        sdk.run("write", topics::EVENTS, None);
    }
    // Two were posted before, and one of them failed.
    let events = delivered(platform, 10).await;
    assert_eq!(events.len(), 9, "{events:?}");
    for sdk in sdks {
        for (kind, mode) in [
            ("json", "binary"),
            ("json", "structured"),
            ("bytes", "binary"),
            ("bytes", "structured"),
        ] {
            let id = format!("{}-{kind}-{mode}", sdk.language);
            let mut expected = event(&id, &json!({"text": "Grüße", "n": 7}));
            if kind == "bytes" {
                expected["datacontenttype"] = "application/octet-stream".into();
                expected.as_object_mut().unwrap().remove("data");
                expected["data_base64"] = "AP8H".into();
            }
            assert_eq!(events.get(&id), Some(&expected), "{id}");
        }
    }
}

/// Records that are no events become dead letters as they are, and hold up no other.
async fn what_is_no_event_is_kept(platform: &Platform, log: &Kafka) {
    let record = |value: &'static [u8]| NewRecord::new(topics::EVENTS).partition(0).key("k").value(value);
    let attributes = |mut record: NewRecord, version: Option<&'static str>| {
        record.headers = [("ce_id", "3"), ("ce_source", "urn:t"), ("ce_type", "com.example.sdk")]
            .map(|(n, v)| (n.to_owned(), Bytes::from_static(v.as_bytes())))
            .into();
        match version {
            Some(version) => record.header("ce_specversion", version),
            None => record,
        }
    };
    let structured = "application/cloudevents+json";
    let more = event("with more headers", &json!({}));
    log.produce(vec![
        attributes(record(b"\xff\0"), None),
        attributes(record(b"{}"), Some("9.9")),
        attributes(record(b""), Some("")),
        record(b"{no JSON").header("content-type", structured),
        record(br#"{"specversion":"9.9","id":"1","source":"urn:t","type":"t"}"#).header("content-type", structured),
        record(br#"[{"specversion":"1.0"}]"#).header("content-type", "application/cloudevents-batch+json"),
        NewRecord::new(topics::EVENTS).partition(0),
        // Headers beside a structured event say nothing.
        NewRecord::new(topics::EVENTS)
            .partition(0)
            .header("ce_id", "another")
            .header("x", vec![0xff])
            .header("content-type", structured)
            .value(more.to_string()),
    ])
    .await
    .unwrap();
    let events = delivered(platform, 11).await;
    assert_eq!(events.get("with more headers"), Some(&more));
    let letters = platform
        .api
        .until("/v1/dead-letters", |l| l["items"].as_array().unwrap().len() == 8)
        .await;
    let kept: Vec<&Value> = letters["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|letter| letter["error"]["code"] == "malformed-event")
        .map(|letter| &letter["event"])
        .collect();
    assert_eq!(kept.len(), 7, "{letters}");
    for value in [
        json!({"base64": "/wA="}),
        json!("{}"),
        json!(""),
        json!("{no JSON"),
        json!(r#"{"specversion":"9.9","id":"1","source":"urn:t","type":"t"}"#),
        json!(r#"[{"specversion":"1.0"}]"#),
        Value::Null,
    ] {
        assert!(kept.iter().any(|event| event["value"] == value), "{value}: {letters}");
    }
}

fn includes(sdk: &Sdk, seen: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(seen.get(name), Some(value), "{}: {name} of {seen}", sdk.language);
    }
}
