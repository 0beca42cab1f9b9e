//! What pods are sent, and what becomes of their answers.
use bytes::Bytes;
use http::StatusCode;
use imageflow_events::ext;
use imageflow_events::invocation::{StepReply, WrittenOutput};
use imageflow_objects::{ObjectStore, PutOptions};
use imageflow_types::work::Input;
use imageflow_types::{ErrorCode, RunEvent, StepRequest, topics};
use serde_json::{Value, json};

use crate::support::{World, body, function, replied, send, status, step, within, work};

const PROCESSED: &str = topics::BUCKET_PROCESSED;

async fn put(world: &World, bucket: &str, key: &str, bytes: &'static [u8]) -> String {
    let options = PutOptions {
        content_type: Some("image/png".to_owned()),
        ..PutOptions::default()
    };
    let info = world.store.put(bucket, key, bytes.into(), options).await.unwrap();
    info.etag
}

async fn sidecar(world: &World, step: &StepRequest) -> Value {
    let key = format!("{}.json", step.output.key);
    let (info, bytes) = world.store.get(PROCESSED, &key, None).await.unwrap();
    assert_eq!(info.metadata.get("imageflow-run"), Some(&step.run.to_string()));
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_step_is_delivered_with_urls_that_fit_and_its_result_is_reported() {
    let world = World::new().await;
    let etag = put(&world, topics::BUCKET_RAW, "photo.png", b"pixels").await;
    let mut step = step("a");
    if let Input::Object(object) = &mut step.input {
        object.etag = etag;
    }
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    assert_eq!((&call.run, call.attempt), (&step.run, 1));
    assert_eq!(call.input().await, (StatusCode::OK, Bytes::from_static(b"pixels")));
    let output = call.output();
    let (put_status, _, _) = send(&output.sidecar, Some("application/json"), Bytes::from_static(b"{}")).await;
    assert!(put_status.is_success(), "{put_status}");
    let (put_status, etag, _) = send(&output.object, Some("image/png"), Bytes::from_static(b"lines")).await;
    assert!(put_status.is_success(), "{put_status}");
    let (again, _, _) = send(&output.object, Some("image/png"), Bytes::from_static(b"other")).await;
    assert_eq!(again, StatusCode::PRECONDITION_FAILED, "an output is written once");
    call.answer(replied(&StepReply {
        output: Some(WrittenOutput {
            etag: etag.clone(),
            size: 5,
            content_type: "image/png".to_owned(),
        }),
        data: json!({"edges": 7}),
        service_ms: 3.0,
        ..StepReply::default()
    }));
    let result = world.completed(&step).await;
    let object = result.output.unwrap();
    assert_eq!(
        (object.key, object.etag, object.size),
        (step.output.key.clone(), etag, 5)
    );
    assert_eq!(
        (result.data, result.service_ms, result.reused),
        (json!({"edges": 7}), 3.0, false)
    );
    let info = world.store.head(PROCESSED, &step.output.key).await.unwrap().unwrap();
    assert_eq!(info.metadata.get("imageflow-run"), Some(&step.run.to_string()));
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn the_input_is_pinned_to_the_bytes_that_the_run_saw() {
    let world = World::new().await;
    put(&world, topics::BUCKET_RAW, "photo.png", b"other pixels").await;
    let running = world.dispatch();
    let step = step("a");
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    let (fetched, _) = call.input().await;
    assert_eq!(fetched, StatusCode::PRECONDITION_FAILED);
    // By the contract the pod answers 412 then; that ends the step without a retry.
    let problem = r#"{"type":"urn:imageflow:problem:input-changed","code":"input-changed","title":"","status":412}"#;
    call.answer(status(412, problem));
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::InputChanged, 1));
    running.stop().await;
    assert!(world.pod.is_quiet().await);
}

#[tokio::test]
async fn an_event_goes_to_the_catalogue_without_a_place_for_an_object_and_what_is_made_is_stored_all_the_same() {
    let world = World::new().await;
    let running = world.dispatch();
    for (name, operation) in [("catalogue", Some("noop")), ("foreign", None)] {
        let mut step = step(name);
        step.input = Input::Event(json!({"id": name}));
        step.steps[0].operation = operation.map(str::to_owned);
        world.give(&step, 0).await;
        let call = world.pod.call().await;
        let place = call.event.extension(ext::OUTPUT);
        assert_eq!(place.is_some(), operation.is_none(), "{name}");
        call.answer(body("image/png", b"of nothing"));
        let object = world.completed(&step).await.output.unwrap();
        let (_, bytes) = world.store.get(PROCESSED, &object.key, None).await.unwrap();
        assert_eq!(bytes, Bytes::from_static(b"of nothing"));
    }
    running.stop().await;
}

#[tokio::test]
async fn the_answer_of_a_foreign_function_is_stored_with_its_sidecar() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(body("image/png", b"drawn by hand"));
    let result = world.completed(&step).await;
    let output = result.output.unwrap();
    let (info, bytes) = world.store.get(PROCESSED, &step.output.key, None).await.unwrap();
    assert_eq!(bytes, Bytes::from_static(b"drawn by hand"));
    assert_eq!(
        (output.key, output.etag, output.size),
        (step.output.key.clone(), info.etag, 13)
    );
    assert_eq!(info.content_type.as_deref(), Some("image/png"));
    assert_eq!(info.metadata.get("imageflow-run"), Some(&step.run.to_string()));
    let data = json!({"contentType": "image/png", "size": 13});
    assert_eq!(sidecar(&world, &step).await, data);
    assert_eq!((result.data, result.reused), (data, false));
    running.stop().await;
}

#[tokio::test]
async fn answers_for_which_there_is_no_room_at_once_are_stored_one_after_the_other() {
    const LARGE: usize = 100 << 10;
    const ROOM: usize = LARGE + LARGE / 2;
    let world = World::new().await.with_room_for_answers(ROOM);
    let steps = ["a", "b", "c", "d"].map(step);
    let running = world.dispatch();
    world.give_all(&function(), &steps, 0).await;
    let mut calls = Vec::new();
    for _ in &steps {
        calls.push(world.pod.call().await);
    }
    for call in calls {
        call.answer(body("image/png", &[7; LARGE]));
    }
    for step in &steps {
        assert_eq!(world.completed(step).await.output.unwrap().size, LARGE as u64);
    }
    let given_back = async {
        while world.delivery.room_for_answers() < ROOM {
            tokio::task::yield_now().await;
        }
    };
    within("what was stored takes no room", given_back).await;
    running.stop().await;
}

#[tokio::test]
async fn a_foreign_answer_whose_object_is_there_completes_with_the_first_one() {
    let world = World::new().await;
    let step = step("a");
    let etag = put(&world, PROCESSED, &step.output.key, b"the first").await;
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(body("image/png", b"the second one"));
    let result = world.completed(&step).await;
    let output = result.output.unwrap();
    assert_eq!((output.etag, output.size, result.reused), (etag, 9, true));
    let (_, bytes) = world.store.get(PROCESSED, &step.output.key, None).await.unwrap();
    assert_eq!(bytes, Bytes::from_static(b"the first"));
    running.stop().await;
}

#[tokio::test]
async fn a_result_that_the_pod_found_there_is_checked_and_its_sidecar_mended() {
    let world = World::new().await;
    let step = step("a");
    let etag = put(&world, PROCESSED, &step.output.key, b"the first").await;
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    let (found, _, _) = send(&call.output().object, Some("image/png"), Bytes::from_static(b"again")).await;
    assert_eq!(found, StatusCode::PRECONDITION_FAILED);
    call.answer(replied(&StepReply {
        output: Some(WrittenOutput {
            etag: String::new(),
            size: 5,
            content_type: "image/png".to_owned(),
        }),
        data: json!({"edges": 7}),
        reused: true,
        ..StepReply::default()
    }));
    let result = world.completed(&step).await;
    let output = result.output.unwrap();
    assert_eq!((output.etag, output.size, result.reused), (etag, 9, true));
    assert_eq!(sidecar(&world, &step).await, json!({"edges": 7}));
    running.stop().await;
}

#[tokio::test]
async fn a_result_that_is_gone_when_it_is_checked_is_made_again() {
    let world = World::with(json!({"retry": 0})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    call.answer(replied(&StepReply {
        output: Some(WrittenOutput {
            etag: String::new(),
            size: 5,
            content_type: "image/png".to_owned(),
        }),
        reused: true,
        ..StepReply::default()
    }));
    let again = world.pod.call().await;
    assert_eq!(again.attempt, 1);
    again.answer(body("image/png", b"made again"));
    assert!(!world.completed(&step).await.reused);
    running.stop().await;
}
