//! What could not be done, and doing it again.
use std::time::Duration;

use imageflow_eventlog::NewRecord;
use imageflow_types::{RunEvent, topics};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::World;

const SOON: Duration = Duration::from_secs(10);

/// Writes a letter and waits until the gateway knows all of that function up to it.
async fn letter(world: &World, id: &str, at_ms: i64, content: Value) {
    told(world, id, at_ms, content).await;
    let path = format!("/v1/dead-letters/{id}");
    let known = async {
        while world.get(&path).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, known).await.unwrap();
}

async fn told(world: &World, id: &str, at_ms: i64, content: Value) {
    let mut letter =
        json!({"id": id, "function": "resize", "error": {"code": "unprocessable", "message": "m"}, "atMs": at_ms});
    letter
        .as_object_mut()
        .unwrap()
        .extend(content.as_object().unwrap().clone());
    let record = NewRecord::new(topics::DEAD_LETTERS)
        .key("resize")
        .value(letter.to_string());
    world.log.produce(vec![record]).await.unwrap();
}

fn request() -> Value {
    json!({"request": {"run": "run-1", "target": {"flow": "thumbs"}, "requestedMs": 1,
        "input": {"object": {"bucket": "raw-images", "key": "a", "etag": "e"}}}})
}

async fn ids(world: &World, query: &str) -> Vec<String> {
    let items = world.get(&format!("/v1/dead-letters{query}")).await.json()["items"].clone();
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn letters_are_listed_newest_first_and_by_function() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    letter(&world, "l-2", 2, request()).await;
    assert_eq!(ids(&world, "").await, ["l-2", "l-1"]);
    assert_eq!(ids(&world, "?limit=1&function=resize").await, ["l-2"]);
    assert_eq!(ids(&world, "?function=crop").await, [""; 0]);
    assert_eq!(world.get("/v1/dead-letters/l-1").await.json()["error"]["message"], "m");
    let problem = world.get("/v1/dead-letters/l-3").await.problem(404, "not-found");
    assert!(problem.contains("did you mean"), "{problem}");
}

fn failed(code: &str) -> Value {
    let mut content = request();
    content["error"] = json!({"code": code, "message": "m"});
    content
}

/// The gateway's clock stands at 1 s after 1970.
#[tokio::test]
async fn letters_are_listed_and_replayed_by_error_and_time() {
    let world = World::start().await;
    for (id, at_ms, code) in [
        ("l-1", 100, "timeout"),
        ("l-2", 200, "unprocessable"),
        ("l-3", 300, "timeout"),
        ("l-4", 900, "timeout"),
    ] {
        letter(&world, id, at_ms, failed(code)).await;
    }
    assert_eq!(ids(&world, "?code=unprocessable").await, ["l-2"]);
    assert_eq!(
        ids(&world, "?code=timeout&function=resize").await,
        ["l-4", "l-3", "l-1"]
    );
    assert_eq!(ids(&world, "?since=700ms").await, ["l-4", "l-3"], "from then on");
    assert_eq!(ids(&world, "?until=700ms").await, ["l-2", "l-1"], "before then");
    let path = "?code=timeout&since=1970-01-01T00:00:00.100Z&until=1970-01-01T00:00:00.900Z";
    assert_eq!(ids(&world, path).await, ["l-3", "l-1"]);
    let first = world.get("/v1/dead-letters?code=timeout&limit=1").await.json();
    let next = first["next"].as_str().unwrap();
    assert_eq!(
        ids(&world, &format!("?code=timeout&after={next}")).await,
        ["l-3", "l-1"]
    );
    let replay = world
        .post(&format!("/v1/dead-letters/replay{path}"), &[], "")
        .await
        .json();
    assert_eq!(replay["replayed"], 2, "{replay}");
    assert_eq!(ids(&world, "").await, ["l-4", "l-2"]);
}

/// Each branch of a flow that fails leaves one.
#[tokio::test]
async fn letters_of_one_run_are_replayed_as_one_run() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    letter(&world, "l-2", 2, request()).await;
    let mut other = request();
    other["request"]["run"] = json!("run-2");
    letter(&world, "l-3", 3, other).await;
    let replay = world.post("/v1/dead-letters/replay", &[], "").await.json();
    assert_eq!(replay["replayed"], 3, "{replay}");
    let run = |id: &str| {
        let items = replay["items"].as_array().unwrap().iter();
        items.clone().find(|item| item["id"] == id).unwrap()["run"].clone()
    };
    assert_eq!(run("l-1"), run("l-2"));
    assert_ne!(run("l-1"), run("l-3"));
    assert_ne!(run("l-1"), json!("run-1"), "the one that failed is over");
    assert_eq!(ids(&world, "").await, [""; 0]);
}

#[tokio::test]
async fn a_filter_that_is_wrong_selects_nothing() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    for (query, reason) in [
        ("code=time-out", "did you mean \\\"timeout\\\"?"),
        ("code=42", "write one of invalid-argument, "),
        ("since=yesterday", "since: \\\"yesterday\\\" is no time"),
        ("until=2", "until: "),
        ("since=1h&until=2h", "since is not before until"),
        ("cod=timeout", "did you mean \\\"code\\\"?"),
        ("code=timeout&code=internal", "twice"),
    ] {
        let replay = world.post(&format!("/v1/dead-letters/replay?{query}"), &[], "").await;
        let problem = replay.problem(400, "invalid-argument");
        assert!(problem.contains(reason), "{query}: {problem}");
        let list = world.get(&format!("/v1/dead-letters?{query}")).await;
        list.problem(400, "invalid-argument");
    }
    assert_eq!(ids(&world, "").await, ["l-1"]);
}

#[tokio::test]
async fn pages_go_on_where_the_one_before_ended() {
    let world = World::start().await;
    for n in 1..=5 {
        letter(&world, &format!("l-{n}"), n, request()).await;
    }
    let first = world.get("/v1/dead-letters?limit=2").await.json();
    let next = first["next"].as_str().unwrap();
    // What comes and what goes between two pages moves neither.
    letter(&world, "l-6", 6, request()).await;
    world.post("/v1/dead-letters/l-4/replay", &[], "").await;
    let second = world
        .get(&format!("/v1/dead-letters?limit=2&after={next}"))
        .await
        .json();
    let seen: Vec<&Value> = second["items"].as_array().unwrap().iter().map(|i| &i["id"]).collect();
    assert_eq!(seen, ["l-3", "l-2"]);
    let next = second["next"].as_str().unwrap();
    let last = world
        .get(&format!("/v1/dead-letters?limit=2&after={next}"))
        .await
        .json();
    assert_eq!((&last["items"][0]["id"], last.get("next")), (&json!("l-1"), None));
    let problem = world
        .get("/v1/dead-letters?after=l-1")
        .await
        .problem(400, "invalid-argument");
    assert!(problem.contains("after") && problem.contains("next"), "{problem}");
}

#[tokio::test]
async fn a_page_of_large_letters_ends_before_its_limit() {
    let world = World::start().await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "a", "data": "x".repeat(900_000)});
    for n in 1..=12 {
        letter(&world, &format!("l-{n}"), n, json!({"event": event})).await;
    }
    let first = world.get("/v1/dead-letters").await.json();
    let shown = first["items"].as_array().unwrap().len();
    assert!(shown < 12, "{shown}");
    let next = first["next"].as_str().unwrap();
    let rest = ids(&world, &format!("?after={next}")).await;
    assert_eq!(shown + rest.len(), 12);
}

#[tokio::test]
async fn a_letter_told_twice_is_one_letter() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    world.post("/v1/dead-letters/l-1/replay", &[], "").await;
    letter(&world, "l-2", 2, request()).await;
    for (id, at_ms) in [("l-1", 3), ("l-2", 4)] {
        told(&world, id, at_ms, request()).await;
    }
    letter(&world, "l-3", 3, request()).await;
    assert_eq!(
        ids(&world, "").await,
        ["l-3", "l-2"],
        "nor does one come back that was replayed"
    );
}

#[tokio::test]
async fn a_replay_asks_for_a_new_run_once_and_takes_the_letter_off_the_list() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    let reply = world.post("/v1/dead-letters/l-1/replay", &[], "").await;
    assert_eq!(reply.status, 202);
    let RunEvent::Requested(wanted) = world.run_events().await.remove(0) else {
        panic!("no wish")
    };
    assert_eq!(reply.json()["run"], wanted.run.as_str());
    assert_ne!(wanted.run.as_str(), "run-1");
    assert!(ids(&world, "").await.is_empty());
    world
        .post("/v1/dead-letters/l-1/replay", &[], "")
        .await
        .problem(404, "not-found");
    assert_eq!(world.run_events().await.len(), 1);
}

#[tokio::test]
async fn an_event_that_made_no_run_is_sent_again() {
    let world = World::start().await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "com.example.a"});
    letter(&world, "e-1", 1, json!({"event": event, "function": "-"})).await;
    letter(&world, "l-1", 2, request()).await;
    let reply = world.post("/v1/dead-letters/replay?function=-", &[], "").await;
    assert_eq!(reply.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.records(topics::EVENTS).await.len(), 1);
    assert_eq!(ids(&world, "").await, ["l-1"]);
}

#[tokio::test]
async fn a_letter_that_holds_nothing_is_kept_and_said_so() {
    let world = World::start().await;
    letter(&world, "l-1", 1, json!({})).await;
    world
        .post("/v1/dead-letters/l-1/replay", &[], "")
        .await
        .problem(409, "conflict");
    letter(&world, "l-2", 2, request()).await;
    let all = world.post("/v1/dead-letters/replay", &[], "").await.json();
    assert_eq!((&all["replayed"], &all["refused"][0]["id"]), (&json!(1), &json!("l-1")));
    assert_eq!(ids(&world, "").await, ["l-1"], "it holds up no other");
}

#[tokio::test]
async fn a_replay_of_all_goes_on_behind_what_cannot_be_replayed() {
    let world = World::start().await;
    letter(&world, "l-1", 1, json!({})).await;
    letter(&world, "l-2", 2, request()).await;
    let first = world.post("/v1/dead-letters/replay?limit=1", &[], "").await.json();
    assert_eq!(
        (&first["replayed"], &first["refused"][0]["id"]),
        (&json!(0), &json!("l-1"))
    );
    let path = format!(
        "/v1/dead-letters/replay?limit=1&after={}",
        first["next"].as_str().unwrap()
    );
    let second = world.post(&path, &[], "").await.json();
    assert_eq!((&second["replayed"], second.get("next")), (&json!(1), None), "{second}");
    assert_eq!(ids(&world, "").await, ["l-1"]);
    let wrong = world.post("/v1/dead-letters/replay?after=l-1", &[], "").await;
    assert!(wrong.problem(400, "invalid-argument").contains("after"));
}
