//! One trace a run, through the real binary and its pods, to a receiver that speaks OTLP.
use std::collections::{BTreeSet, HashSet};

use http::Method;
use imageflow_process::testing::{Collector, ReceivedSpan};
use imageflow_tests::http::json;
use imageflow_tests::{Platform, pictures};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: small }
spec: { operation: resize, params: { width: 8 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: grey }
spec: { operation: grayscale }
---
apiVersion: imageflow.dev/v1alpha1
kind: Flow
metadata: { name: two }
spec:
  steps:
    - { name: first, function: small }
    - { name: second, function: grey, after: [first] }
";

/// The spans' names with their services, when each hangs on another one or on the caller.
fn tree(spans: &[ReceivedSpan]) -> BTreeSet<(&str, &str)> {
    let ids: HashSet<&str> = spans.iter().map(|s| s.id.as_str()).collect();
    for span in spans {
        assert!(
            ids.contains(span.parent.as_str()) || span.parent == CALLER,
            "{span:?} hangs on nothing: {spans:#?}"
        );
    }
    spans.iter().map(|s| (s.service.as_str(), s.name.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_a_call_are_one_trace_each_from_the_caller_to_the_pods() {
    let mut collector = Collector::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let args = ["--no-fuse", "--otlp-endpoint", &collector.endpoint()];
    let platform = Platform::start(dir.path(), &args);
    platform.api.apply(RESOURCES).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("content-type", "image/png"),
        ("traceparent", parent.as_str()),
        ("prefer", "wait=60"),
    ];
    let answer = platform
        .api
        .send(Method::POST, "/v1/flows/two/runs", &headers, pictures::png(40, 30, 1))
        .await;
    assert_eq!(answer.status(), 200, "{}", json(&answer));
    let other = parent.replace(TRACE, &TRACE.replace('4', "5"));
    let headers = [("content-type", "image/png"), ("traceparent", other.as_str())];
    let path = "/v1/functions/small/invoke";
    let answer = platform
        .api
        .send(Method::POST, path, &headers, pictures::png(40, 30, 2))
        .await;
    assert_eq!(answer.status(), 200);
    // Pods and platform send what they have when they end.
    platform.stop();

    let (run, rest): (Vec<_>, Vec<_>) = collector.received().into_iter().partition(|s| s.trace == TRACE);
    let expected = [
        ("grey", "fetch"),
        ("grey", "grey"),
        ("grey", "run"),
        ("grey", "store"),
        ("imageflow", "POST /v1/flows/{name}/runs"),
        ("imageflow", "advance"),
        ("imageflow", "deliver"),
        ("imageflow", "route"),
        ("small", "fetch"),
        ("small", "run"),
        ("small", "small"),
        ("small", "store"),
    ];
    assert_eq!(tree(&run), BTreeSet::from(expected), "{run:#?}");
    let deliveries = run.iter().filter(|s| s.name == "deliver").count();
    assert_eq!(deliveries, 2, "one for each step: {run:#?}");
    let call: Vec<_> = rest.into_iter().filter(|s| other.contains(&s.trace)).collect();
    let expected = [
        ("imageflow", "POST /v1/functions/{name}/invoke"),
        ("small", "run"),
        ("small", "small"),
    ];
    assert_eq!(tree(&call), BTreeSet::from(expected), "{call:#?}");
}
