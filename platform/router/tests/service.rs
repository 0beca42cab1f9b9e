//! The router as a service: real log and resources; the test plays gateway and dispatcher.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
mod support;

#[path = "service/large.rs"]
mod large;
#[path = "service/poison.rs"]
mod poison;
#[path = "service/refused.rs"]
mod refused;
#[path = "service/waits.rs"]
mod waits;

use imageflow_eventlog::{EventLog, LogError, NewRecord, Record};
use imageflow_events::object::object_event;
use imageflow_events::{AttributesReader, AttributesWriter, Event, ext, json_data};
use imageflow_router::RouterError;
use imageflow_types::work::{Attempt, DeadLetter, Input, ObjectRef, StepError};
use imageflow_types::{ErrorCode, RunEvent, RunId, RunState, RunStatus, StepRequest, StepStatus, topics};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use support::{NOW_MS, World, completed, run_of, uploaded, uploaded_data, written};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn an_outside_event_makes_one_run_with_its_first_work_and_its_offset_in_one_transaction() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    let mut event = uploaded("1", "cat.png");
    event.set_extension("traceparent", TRACEPARENT);
    let mut foreign = uploaded("2", "cat.png");
    foreign.set_type("com.example.other");
    world.events(&[&event, &foreign]).await;
    world.log.settled().await;
    let run = run_of("on-upload", "cat.png", "e1");
    let made = world
        .log
        .until("the run", |t| t.records.iter().any(|r| r.topic == topics::RUNS))
        .await;
    let states: Vec<RunState> = written(&made, topics::RUNS);
    let work: Vec<StepRequest> = written(&made, &format!("{}outline", topics::WORK_PREFIX));
    assert_eq!((states.len(), work.len(), made.records.len()), (1, 1, 2));
    assert!(made.offsets.iter().any(|o| o.topic == topics::EVENTS && o.offset > 0));
    let (state, step) = (&states[0], &work[0]);
    assert_eq!(
        (&state.run, state.status, state.created_ms),
        (&run, RunStatus::Running, NOW_MS)
    );
    assert_eq!(state.request.trigger.as_ref().map(|t| t.as_str()), Some("on-upload"));
    assert_eq!(
        (&step.run, step.stage, step.revision.as_str()),
        (&run, 0, "outline-00001")
    );
    let trace = step.traceparent.as_deref().and_then(|t| t.split('-').nth(1));
    assert_eq!(trace, TRACEPARENT.split('-').nth(1), "one trace");
    let pinned = ObjectRef {
        bucket: topics::BUCKET_RAW.to_owned(),
        key: "cat.png".to_owned(),
        etag: "e1".to_owned(),
        size: 3,
        content_type: Some("image/png".to_owned()),
    };
    assert_eq!(step.input, Input::Object(pinned));
    assert_eq!(world.log.work("outline").await.len(), 1);
    assert_eq!(*world.announced.lock().unwrap(), std::slice::from_ref(&step.function));
    assert_eq!(world.log.runs().await.len(), 1);
    assert!(world.log.dead_letters().await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn the_same_event_again_makes_no_second_run_in_a_batch_later_or_after_a_restart() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let event = uploaded("1", "cat.png");
    // Another notification of the same object, as a reconcile raises it.
    let told_again = uploaded("other-id", "cat.png");
    world.events(&[&event, &event, &told_again]).await;
    let running = world.route();
    world.log.settled().await;
    world.events(&[&event]).await;
    world.log.settled().await;
    running.stop().await;
    let world = world.reopen().await;
    let running = world.route();
    world.events(&[&event, &told_again]).await;
    world.log.settled().await;
    assert_eq!(world.log.work("outline").await.len(), 1);
    assert_eq!(world.log.runs().await.len(), 1);
    // The run ends, and still it is known.
    let run = run_of("on-upload", "cat.png", "e1");
    world.report(&RunEvent::Cancel { run, at_ms: NOW_MS }).await;
    world.log.settled().await;
    running.stop().await;
    let world = world.reopen().await;
    let running = world.route();
    world.events(&[&event]).await;
    world.log.settled().await;
    assert_eq!(world.log.work("outline").await.len(), 1);
    // Other bytes under the same key are another cause.
    world.objects.add("cat.png", "e2");
    world.events(&[&event]).await;
    world.log.settled().await;
    let runs = world.log.runs().await;
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().any(|r| r.run == run_of("on-upload", "cat.png", "e2")));
    running.stop().await;
}

#[tokio::test]
async fn an_event_without_an_object_is_itself_the_input_of_one_run() {
    let world = World::new().await;
    let running = world.route();
    let event = uploaded_data("1", json!({"words": "draw a cat"}));
    let mut elsewhere = event.clone();
    elsewhere.set_source("urn:test:phone");
    world.events(&[&event, &event, &elsewhere]).await;
    world.log.settled().await;
    let work = world.log.work("outline").await;
    assert_eq!(work.len(), 2, "one of each source");
    let own = RunId::derive(&["trigger", "on-upload", "urn:test:camera", "1"]);
    let step = work.iter().find(|s| s.run == own).unwrap();
    let Input::Event(input) = step.input.clone() else {
        panic!()
    };
    let input: Event = serde_json::from_value(input).unwrap();
    assert_eq!(json_data(&input), json_data(&event));
    assert_eq!((input.id(), input.ty()), (event.id(), event.ty()));
    running.stop().await;
}

#[tokio::test]
async fn a_completed_stage_moves_the_run_on_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    let run = run_of("on-upload", "cat.png", "e1");
    world.log.settled().await;
    let first = completed(&run, 0, "lines.png");
    world.report(&first).await;
    world.log.settled().await;
    let moved = world.log.transactions().pop().unwrap();
    let states: Vec<RunState> = written(&moved, topics::RUNS);
    let work: Vec<StepRequest> = written(&moved, &format!("{}soften", topics::WORK_PREFIX));
    assert_eq!((states.len(), work.len()), (1, 1));
    let statuses: Vec<StepStatus> = states[0].steps.iter().map(|s| s.status).collect();
    assert_eq!(statuses, [StepStatus::Succeeded, StepStatus::Queued]);
    assert_eq!((&work[0].run, work[0].stage), (&run, 1));
    let Input::Object(input) = &work[0].input else { panic!() };
    assert_eq!(
        (input.key.as_str(), input.etag.as_str()),
        ("lines.png", "etag-of-lines.png")
    );
    // The dispatcher was stopped between report and commit: the step was done and told again.
    world.report(&first).await;
    world.report(&completed(&run, 1, "smooth.png")).await;
    world.report(&completed(&run, 1, "smooth.png")).await;
    world.log.settled().await;
    let runs = world.log.runs().await;
    assert_eq!((runs.len(), runs[0].status), (1, RunStatus::Succeeded));
    let results: Vec<&str> = runs[0].results().map(|(_, output)| output.key.as_str()).collect();
    assert_eq!(results, ["smooth.png"]);
    assert_eq!(world.log.work("outline").await.len(), 1);
    assert_eq!(world.log.work("soften").await.len(), 1);
    // It is counted once the transaction is done, which may be seen before.
    running.stop().await;
    assert!(recorder.handle().render().contains("repeated_reports_total 2"));
}

#[tokio::test]
async fn a_failed_stage_is_dead_letter_failed_run_and_offset_in_one_transaction() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.log.settled().await;
    let run = run_of("on-upload", "cat.png", "e1");
    let error = StepError {
        code: ErrorCode::Unprocessable,
        message: "the PNG is truncated".to_owned(),
        status: Some(422),
        step: None,
    };
    let attempt = Attempt {
        number: 1,
        at_ms: NOW_MS,
        error: error.clone(),
    };
    let failed = RunEvent::StageFailed {
        run: run.clone(),
        stage: 0,
        error: error.clone(),
        attempts: vec![attempt.clone()],
        at_ms: NOW_MS,
    };
    // The log does not take it at first: then nothing of it is there.
    let before = world.log.transactions().len();
    world.log.refuse(2);
    world.report(&failed).await;
    world.log.refused(1).await;
    assert!(world.log.dead_letters().await.is_empty());
    assert_eq!(world.log.runs().await[0].status, RunStatus::Running);
    assert_eq!(
        world
            .log
            .inner
            .lag(topics::GROUP_ROUTER, topics::RUN_EVENTS)
            .await
            .unwrap(),
        1
    );
    world.log.settled().await;
    let transactions = world.log.transactions();
    assert_eq!(transactions.len(), before + 1);
    let end = &transactions[before];
    let (states, letters) = (
        written::<RunState>(end, topics::RUNS),
        written::<DeadLetter>(end, topics::DEAD_LETTERS),
    );
    assert_eq!((states.len(), letters.len(), end.records.len()), (1, 1, 2));
    assert_eq!(states[0].status, RunStatus::Failed);
    let statuses: Vec<StepStatus> = states[0].steps.iter().map(|s| s.status).collect();
    assert_eq!(statuses, [StepStatus::Failed, StepStatus::Skipped]);
    assert!(
        end.offsets
            .iter()
            .any(|o| o.topic == topics::RUN_EVENTS && o.offset == 1)
    );
    let letter = &letters[0];
    assert_eq!((letter.run.as_ref(), letter.function.as_str()), (Some(&run), "outline"));
    assert_eq!((&letter.error, &letter.attempts), (&error, &vec![attempt]));
    assert_eq!(letter.request.as_ref().map(|r| &r.run), Some(&run));
    // Told again, after a restart too, it makes no second dead letter.
    world.report(&failed).await;
    world.log.settled().await;
    running.stop().await;
    let world = world.reopen().await;
    let running = world.route();
    world.report(&failed).await;
    world.log.settled().await;
    assert_eq!(world.log.dead_letters().await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn what_the_platform_wrote_starts_only_what_asks_for_it() {
    let world = World::new().await;
    let filters = json!([{"exact": {"type": "dev.imageflow.object.created"}}]);
    let plain = json!({"filters": filters, "function": "outline"});
    let opted = json!({"filters": filters, "function": "soften", "platformObjects": true});
    world.apply("Trigger", "plain", plain).await;
    world.apply("Trigger", "opted", opted).await;
    let running = world.route();
    let object = |key: &str| ObjectRef {
        bucket: topics::BUCKET_RAW.to_owned(),
        key: key.to_owned(),
        etag: "e1".to_owned(),
        size: 3,
        content_type: None,
    };
    let ours = object_event(&object("ours.png"), true, Some("run-1")).unwrap();
    world.events(&[&ours]).await;
    world.log.settled().await;
    let runs: Vec<_> = world.log.runs().await.into_iter().map(|r| r.run).collect();
    assert_eq!(runs, [run_of("opted", "ours.png", "e1")]);
    assert!(world.log.work("outline").await.is_empty());
    let theirs = object_event(&object("theirs.png"), true, None).unwrap();
    world.events(&[&theirs]).await;
    world.log.settled().await;
    let outlined = world.log.work("outline").await;
    assert_eq!(
        (outlined.len(), &outlined[0].run),
        (1, &run_of("plain", "theirs.png", "e1"))
    );
    assert_eq!(world.log.work("soften").await.len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_router_that_restarts_takes_its_runs_up_where_they_were() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.log.settled().await;
    running.stop().await;
    let run = run_of("on-upload", "cat.png", "e1");
    // While no router runs, the dispatcher goes on, and the flow changes: the run keeps the plan that it was made with.
    world.report(&completed(&run, 0, "lines.png")).await;
    let steps = json!([{"name": "lines", "function": "outline"}]);
    world.apply("Flow", "sketch", json!({"steps": steps})).await;
    let world = world.reopen().await;
    assert!(world.log.work("soften").await.is_empty());
    let running = world.route();
    world.log.settled().await;
    assert_eq!(world.log.work("soften").await.len(), 1);
    running.stop().await;
    world.report(&completed(&run, 1, "smooth.png")).await;
    let world = world.reopen().await;
    let running = world.route();
    world.log.settled().await;
    let runs = world.log.runs().await;
    assert_eq!(
        (runs.len(), runs[0].status, runs[0].version),
        (1, RunStatus::Succeeded, 3)
    );
    assert_eq!(world.log.work("outline").await.len(), 1);
    assert_eq!(world.log.work("soften").await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_a_dead_letter_and_holds_nothing_up() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    let garbage = NewRecord::new(topics::EVENTS)
        .key("k")
        .partition(0)
        .header("content-type", "application/cloudevents+json")
        .value("{no event");
    let bytes = NewRecord::new(topics::EVENTS)
        .partition(0)
        .header("x", vec![0xff])
        .header("x", "2")
        .value(vec![0, 0xff, 7]);
    world.log.produce(vec![garbage, bytes]).await.unwrap();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.log.settled().await;
    assert_eq!(
        world.log.work("outline").await.len(),
        1,
        "the next event of the partition"
    );
    let letters = world.log.dead_letters().await;
    assert_eq!(letters.len(), 2);
    let kept = json!({"key": "k", "headers": [["content-type", "application/cloudevents+json"]], "value": "{no event"});
    assert_eq!(letters[0].event, Some(kept));
    let kept = json!({"key": null, "headers": [["x", {"base64": "/w=="}], ["x", "2"]], "value": {"base64": "AP8H"}});
    assert_eq!(letters[1].event, Some(kept), "every byte of it");
    assert_eq!(
        (letters[0].run.as_ref(), letters[0].error.code),
        (None, ErrorCode::MalformedEvent)
    );
    running.stop().await;
}

#[tokio::test]
async fn a_run_event_that_cannot_be_read_holds_nothing_up() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.log.settled().await;
    let run = run_of("on-upload", "cat.png", "e1");
    let garbage = NewRecord::new(topics::RUN_EVENTS)
        .key(run.as_str().to_owned())
        .value("{no event");
    world.log.produce(vec![garbage]).await.unwrap();
    world.report(&completed(&run, 0, "lines.png")).await;
    world.log.settled().await;
    assert_eq!(world.log.work("soften").await.len(), 1);
    let letters = world.log.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0].id.starts_with("record-imageflow.run-events-"),
        "{}",
        letters[0].id
    );
    let kept = json!({"key": run.as_str(), "headers": [], "value": "{no event"});
    assert_eq!(letters[0].event, Some(kept));
    running.stop().await;
}

#[tokio::test]
async fn a_trigger_reads_only_the_buckets_that_it_may_read() {
    let world = World::new().await;
    let running = world.route();
    let event = uploaded_data("1", json!({"bucket": "private", "key": "cat.png"}));
    world.events(&[&event]).await;
    world.log.settled().await;
    let letters = world.log.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].run.as_ref(), letters[0].error.code),
        (None, ErrorCode::Forbidden)
    );
    assert!(letters[0].event.is_some(), "the event is kept");
    assert!(world.log.runs().await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn runs_that_begin_in_one_batch_get_each_its_own_parameters_and_its_own_share_of_the_traffic() {
    let world = World::new().await;
    let revision = async |command: &str, traffic: serde_json::Value| {
        let spec = json!({"command": [command], "traffic": traffic});
        world.apply("Function", "outline", spec).await;
    };
    let request = |cause: usize, function: &str, params: serde_json::Value| {
        let request = json!({"run": RunId::derive(&["batch", function, &cause.to_string()]), "requestedMs": NOW_MS,
            "target": {"function": function}, "params": params, "input": {"event": {"id": cause}}});
        RunEvent::Requested(serde_json::from_value(request).unwrap())
    };
    revision("/bin/false", json!([])).await;
    let halves = json!([{"revision": "outline-00001", "percent": 50}, {"revision": "outline-00002", "percent": 50}]);
    revision("/bin/false", halves).await;
    // All of it is there before the router begins, so one batch takes what is in a partition.
    for cause in 0..60 {
        world.report(&request(cause, "outline", json!({}))).await;
        world
            .report(&request(cause, "soften", json!({"sigma": cause % 2})))
            .await;
    }
    let running = world.route();
    world.log.settled().await;
    let soften = world.log.work("soften").await;
    assert_eq!(soften.len(), 60);
    for step in soften {
        let Input::Event(event) = &step.input else { panic!() };
        let sigma = event["id"].as_u64().unwrap() % 2;
        assert_eq!(step.steps[0].params["sigma"], sigma);
    }
    let outline = world.log.work("outline").await;
    let first = outline
        .iter()
        .filter(|s| s.revision.as_str() == "outline-00001")
        .count();
    assert!(
        (10..=50).contains(&first) && outline.len() == 60,
        "{first} of {}",
        outline.len()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_second_router_of_the_name_takes_over_and_the_first_ends() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    world.objects.add("dog.png", "e1");
    let first = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.log.settled().await;
    let second = world.route();
    let error = first.ended().await.unwrap_err();
    assert!(matches!(error, RouterError::Log(LogError::Fenced { .. })), "{error}");
    let run = run_of("on-upload", "cat.png", "e1");
    world
        .events(&[&uploaded("1", "cat.png"), &uploaded("2", "dog.png")])
        .await;
    world.report(&completed(&run, 0, "lines.png")).await;
    world.log.settled().await;
    assert_eq!(world.log.work("outline").await.len(), 2);
    assert_eq!(world.log.work("soften").await.len(), 1);
    second.stop().await;
}

#[tokio::test]
async fn routers_share_the_runs_and_take_over_from_each_other() {
    const COUNT: usize = 30;
    let world = World::new().await;
    let keys: Vec<String> = (0..COUNT).map(|n| format!("{n}.png")).collect();
    let runs: Vec<_> = keys.iter().map(|key| run_of("on-upload", key, "e1")).collect();
    let mut events = Vec::new();
    for key in &keys {
        world.objects.add(key, "e1");
        events.push(uploaded(key, key));
    }
    let events: Vec<_> = events.iter().collect();
    let first = world.route_as("router-0");
    world.events(&events[..10]).await;
    world.log.settled().await;
    // All events stand in one partition, so most of their runs belong to the router that does not read them.
    let second = world.route_as("router-1");
    world.events(&events).await;
    world.log.settled().await;
    for run in &runs[..20] {
        world.report(&completed(run, 0, "lines.png")).await;
    }
    world.log.settled().await;
    first.stop().await;
    // The one that is left knows what the other began, and makes none of it again.
    world.events(&events).await;
    for run in &runs {
        world.report(&completed(run, 0, "lines.png")).await;
        world.report(&completed(run, 1, "smooth.png")).await;
    }
    world.log.settled().await;
    for function in ["outline", "soften"] {
        let mut worked: Vec<_> = world.log.work(function).await.into_iter().map(|s| s.run).collect();
        let count = worked.len();
        worked.sort();
        worked.dedup();
        assert_eq!(
            (count, worked.len()),
            (COUNT, COUNT),
            "{function}: each run's step once"
        );
    }
    let ended = world.log.runs().await;
    assert!(ended.len() == COUNT && ended.iter().all(|run| run.status == RunStatus::Succeeded));
    assert!(world.log.dead_letters().await.is_empty());
    second.stop().await;
}

#[tokio::test]
async fn work_and_dead_letters_are_cloudevents() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let running = world.route();
    world
        .events(&[&uploaded("1", "cat.png"), &uploaded("2", "gone.png")])
        .await;
    world.log.settled().await;
    let work = world.log.all(&topics::work(&"outline".parse().unwrap())).await;
    let letters = world.log.all(topics::DEAD_LETTERS).await;
    let read = |r: &Record| imageflow_events::record::read(r.key.as_deref(), &r.headers, r.value.as_ref()).unwrap();
    let (step, letter) = (read(&work[0]), read(&letters[0]));
    let run = run_of("on-upload", "cat.png", "e1");
    assert_eq!((step.ty(), step.id()), (ext::TYPE_WORK, format!("{run}/0/1").as_str()));
    assert_eq!(ext::text(&step, ext::PARTITION_KEY).unwrap(), run.as_str());
    assert_eq!((work.len(), step.subject()), (1, Some("raw-images/cat.png")));
    assert_eq!(json_data(&step).unwrap()["run"], run.as_str());
    assert_eq!(letter.ty(), ext::TYPE_DEAD_LETTER);
    assert_eq!(ext::text(&letter, ext::KNATIVE_ERROR_CODE).unwrap(), "404");
    assert_eq!(json_data(&letter).unwrap()["event"]["id"], "2");
    running.stop().await;
}
