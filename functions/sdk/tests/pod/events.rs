//! CloudEvents: steps of the platform and events of others.
use http::HeaderMap;
use imageflow_events::invocation::{OutputTarget, pack, unpack};
use imageflow_events::{AttributesReader, AttributesWriter, Event, EventBuilder, EventBuilderV10, ext, json_data};
use serde_json::json;

use crate::support::{Answer, Pod, Store, header};

fn reply(answer: &Answer) -> Event {
    assert_eq!(answer.status, 200, "{answer:?}");
    imageflow_events::http::read(&answer.headers, &answer.body)
        .unwrap()
        .remove(0)
}

#[tokio::test]
async fn a_step_fetches_its_input_and_stores_the_sidecar_before_the_object() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    store.put("/in/photo", b"pixels");
    let data = json!({"params":{"width":3},"steps":[{"name":"thumb","operation":"resize","params":{}}],
        "input":{"bucket":"raw-images","key":"photo","etag":"6"}});
    let answer = pod.event(&store.step(data, "6")).await;
    let event = reply(&answer);
    assert_eq!(event.ty(), ext::TYPE_STEP_COMPLETED);
    assert_eq!(ext::text(&event, ext::RUN).as_deref(), Some("run-1"));
    assert!(
        ext::text(&event, ext::TRACEPARENT)
            .unwrap()
            .contains("0af7651916cd43dd8448eb211c80319c")
    );
    let data = json_data(&event).unwrap();
    assert_eq!(data["output"], json!({"etag":"6","size":6,"contentType":"image/png"}));
    assert_eq!(data["data"]["length"], 6);
    assert_eq!(data["data"]["steps"], json!(["thumb"]));
    assert_eq!(data["data"]["params"], json!({"width":3}));
    assert_eq!(data["data"]["intermediate"], true);
    assert_eq!(data["reused"], false);
    assert_eq!(
        store.requests(),
        ["GET /in/photo", "PUT /out/photo.json", "PUT /out/photo"]
    );
    assert_eq!(
        store.object("/out/photo").unwrap(),
        ("pixels".into(), "image/png".into())
    );
    let (sidecar, kind) = store.object("/out/photo.json").unwrap();
    assert_eq!(kind, "application/json");
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&sidecar).unwrap(),
        data["data"]
    );

    let again = json_data(&reply(&pod.event(&store.step(json!({}), "6")).await)).unwrap();
    assert_eq!(again["reused"], true, "the second finds the result there");
    assert_eq!(again["output"]["size"], 6);
}

#[tokio::test]
async fn an_input_that_changed_or_went_is_412_and_nothing_is_written() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    let gone = pod.event(&store.step(json!({}), "6")).await;
    store.put("/in/photo", b"other pixels");
    let changed = pod.event(&store.step(json!({}), "6")).await;
    for (answer, word) in [(gone, "removed"), (changed, "overwritten")] {
        let (status, code, detail) = answer.problem();
        assert_eq!((status, code.as_str()), (412, "input-changed"));
        assert!(detail.contains(word), "{detail}");
    }
    assert_eq!(store.requests(), ["GET /in/photo", "GET /in/photo"]);
}

#[tokio::test]
async fn a_store_that_is_full_or_away_is_said_without_its_signed_url() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    store.put("/in/photo", b"pixels");
    store.fill_up();
    let (status, code, _) = pod.event(&store.step(json!({}), "6")).await.problem();
    assert_eq!((status, code.as_str()), (507, "storage-full"));

    let mut event = store.step(json!({}), "6");
    // Port 1 of loopback: nobody listens.
    event.set_extension(ext::DATAREF, "http://127.0.0.1:1/in/photo?signature=secret");
    let answer = pod.event(&event).await;
    let (status, code, _) = answer.problem();
    assert_eq!((status, code.as_str()), (503, "storage-unavailable"));
    assert_eq!(answer.header("imageflow-refused"), "", "the attempt was made");
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
}

#[tokio::test]
async fn structured_mode_is_the_same_step() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    store.put("/in/photo", b"pixels");
    let (headers, body) = imageflow_events::http::write_structured(&store.step(json!({}), "6")).unwrap();
    let event = reply(&pod.post("/", headers, body).await);
    assert_eq!(json_data(&event).unwrap()["output"]["etag"], "6");
}

#[tokio::test]
async fn an_event_of_somebody_else_is_the_input_and_its_answer_an_event() {
    let pod = Pod::start(&[("IMAGEFLOW_PARAMS", r#"{"width":7}"#)]).await;
    let from = |kind: &str, data: imageflow_events::Data| {
        EventBuilderV10::new()
            .id("1")
            .source("urn:x")
            .ty("com.example.photo")
            .data(kind, data)
            .build()
            .unwrap()
    };
    let picture = reply(
        &pod.event(&from("image/png", imageflow_events::Data::Binary(b"pixels".to_vec())))
            .await,
    );
    assert_eq!(picture.datacontenttype(), Some("image/png"));
    assert_eq!(imageflow_events::data_bytes(&picture), b"pixels");
    let note = reply(&pod.event(&from("application/json", json!({"a":1}).into())).await);
    let data = json_data(&note).unwrap();
    assert_eq!(data["event"]["data"], json!({"a":1}));
    assert_eq!(data["params"], json!({"width":7}), "the function's defaults hold");
}

#[tokio::test]
async fn what_is_no_event_for_a_function_is_400_and_named() {
    let (pod, store) = (Pod::start(&[]).await, Store::start().await);
    let refused = |answer: Answer, word: &str| {
        let (status, code, detail) = answer.problem();
        assert_eq!((status, code.as_str()), (400, "malformed-event"), "{detail}");
        assert!(detail.contains(word), "{detail}");
    };
    let structured = || header("content-type", "application/cloudevents+json");
    refused(pod.post("/", structured(), "{").await, "line 1");
    refused(
        pod.post("/", structured(), r#"{"specversion":"1.0","id":"1","type":"x"}"#)
            .await,
        "source",
    );
    let batch = json!([store.step(json!({}), "6"), store.step(json!({}), "6")]).to_string();
    refused(
        pod.post("/", header("content-type", "application/cloudevents-batch+json"), batch)
            .await,
        "one event",
    );
    refused(pod.event(&store.step(json!({"steps": 3}), "6")).await, "steps");
    let mut torn = store.step(json!({}), "6");
    torn.set_extension(ext::OUTPUT, "***");
    refused(pod.event(&torn).await, ext::OUTPUT);
    for wrong in ["object", "sidecar"] {
        let mut torn = store.step(json!({}), "6");
        let mut target: OutputTarget = unpack(&ext::text(&torn, ext::OUTPUT).unwrap()).unwrap();
        match wrong {
            "object" => target.object.method = "DELETE".into(),
            _ => target.sidecar.method = "POST".into(),
        }
        torn.set_extension(ext::OUTPUT, pack(&target).unwrap());
        refused(pod.event(&torn).await, "PUT");
    }
    let mut foreign = store.step(json!({}), "6");
    foreign.set_type("com.example.fetch");
    refused(pod.event(&foreign).await, "dataref");
    let mut blind = store.step(json!({"input":{"bucket":"b","key":"k","etag":"e"}}), "6");
    blind.remove_extension(ext::DATAREF);
    refused(pod.event(&blind).await, "dataref");
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static("ce-specversion"), "1.0".parse().unwrap())]);
    refused(pod.post("/", headers, "").await, "id");
    assert!(store.requests().is_empty(), "nothing was fetched or written");
}
