//! Concurrency, sizes, time, and the drain.
use imageflow_events::{ext, json_data};
use serde_json::json;

use crate::support::{Pod, Store};

#[tokio::test]
async fn above_its_concurrency_limit_a_pod_refuses_and_says_that_it_was_no_attempt() {
    let mut pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let url = pod.url("/?mode=hold");
    let held = tokio::spawn(async move {
        crate::support::send(http::Method::POST, &url, http::HeaderMap::new(), "held".into()).await
    });
    pod.entered.recv().await.unwrap();
    let refused = pod.image("/", vec![0_u8; 200_000]).await;
    assert_eq!(refused.problem().0, 503);
    assert_eq!(
        (refused.header("imageflow-refused"), refused.header("retry-after")),
        ("concurrency", "1")
    );
    assert_eq!(pod.get("/healthz/ready").await.status, 200, "busy is not unready");
    let metrics = String::from_utf8(pod.get("/metrics").await.body.to_vec()).unwrap();
    assert!(metrics.contains("imageflow_function_refused_total{") && metrics.contains("reason=\"concurrency\""));
    pod.gate.open();
    assert_eq!(held.await.unwrap().body, "held");
    assert_eq!(pod.image("/", "next").await.status, 200);
}

#[tokio::test]
async fn a_drain_finishes_what_is_held_and_refuses_what_comes() {
    let mut pod = Pod::start(&[]).await;
    let store = Store::start().await;
    store.put("/in/photo", b"pixels");
    let event = store.step(json!({"params":{"mode":"hold"}}), "6");
    let (headers, body) = imageflow_events::http::write_binary(&event).unwrap();
    let url = pod.url("/");
    let held = tokio::spawn(async move { crate::support::send(http::Method::POST, &url, headers, body).await });
    pod.entered.recv().await.unwrap();
    let (gate, base) = (pod.gate.clone(), pod.url(""));
    let served = pod.drain();
    let get = |path: &str| {
        let url = format!("{base}{path}");
        async move { crate::support::send(http::Method::GET, &url, http::HeaderMap::new(), "".into()).await }
    };
    while get("/healthz/ready").await.status == 200 {
        tokio::task::yield_now().await;
    }
    let url = format!("{base}/");
    let refused = crate::support::send(http::Method::POST, &url, http::HeaderMap::new(), "x".into()).await;
    assert_eq!((refused.status, refused.header("imageflow-refused")), (503, "draining"));
    assert!(!served.is_finished());
    gate.open();
    assert_eq!(held.await.unwrap().status, 200);
    assert_eq!(store.object("/out/photo").unwrap().0, "pixels");
    served.await.unwrap();
    assert!(
        tokio::net::TcpStream::connect(base.trim_start_matches("http://"))
            .await
            .is_err(),
        "the port is closed"
    );
}

#[tokio::test]
async fn a_body_or_object_over_the_limit_is_413() {
    let (pod, store) = (
        Pod::start(&[("IMAGEFLOW_MAX_BODY_BYTES", "10")]).await,
        Store::start().await,
    );
    let (status, _, detail) = pod.image("/", "eleven bytes").await.problem();
    assert!(status == 413 && detail.contains("IMAGEFLOW_MAX_BODY_BYTES"), "{detail}");
    assert_eq!(pod.image("/", "ten bytes!").await.status, 200);
    drop(pod);
    let pod = Pod::start(&[("IMAGEFLOW_MAX_BODY_BYTES", "5000")]).await;
    store.put("/in/photo", &[1; 5001]);
    let (status, code, _) = pod.event(&store.step(json!({}), "5001")).await.problem();
    assert_eq!((status, code.as_str()), (413, "too-large"));
    store.put_written("/in/photo", &[1; 5001]);
    let made = pod.event(&store.step(json!({}), "5001")).await;
    assert_eq!(made.status, 200, "what a step made, the next one takes: {made:?}");
}

#[tokio::test]
async fn a_call_over_its_time_is_504_and_holds_its_slot_until_it_really_ends() {
    let mut pod = Pod::start(&[("IMAGEFLOW_TIMEOUT_MS", "50"), ("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let (status, code, detail) = pod.image("/?mode=hold", "slow").await.problem();
    assert_eq!((status, code.as_str()), (504, "timeout"));
    assert!(detail.contains("50 ms"), "{detail}");
    pod.entered.recv().await.unwrap();
    assert_eq!(pod.image("/", "next").await.header("imageflow-refused"), "concurrency");
    pod.gate.open();
    while pod.image("/", "next").await.status != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_function_that_panics_fails_that_call_only() {
    let pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let (status, code, _) = pod.image("/?mode=panic", "x").await.problem();
    assert_eq!((status, code.as_str()), (500, "internal"));
    assert_eq!(pod.image("/", "next").await.status, 200);
    let (status, code, _) = pod.image("/?mode=instant-panic", "x").await.problem();
    assert_eq!((status, code.as_str()), (500, "internal"));
    assert_eq!(pod.image("/", "next").await.status, 200);
}

#[tokio::test]
async fn only_a_call_that_is_done_in_no_time_gets_no_thread_of_its_own() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    for (mode, own) in [("quick", true), ("instant", false)] {
        let mut event = store.step(json!({"params": {"mode": mode}}), "6");
        event.remove_extension(ext::DATAREF);
        event.remove_extension(ext::INPUT);
        let answer = pod.event(&event).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let reply = imageflow_events::http::read(&answer.headers, &answer.body)
            .unwrap()
            .remove(0);
        let thread = json_data(&reply).unwrap()["data"]["thread"].clone();
        assert_eq!(thread != crate::support::thread(), own, "{mode}");
    }
}
