//! What is watched until it is so, whatever the connection and the platform do meanwhile.
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn id() -> String {
    run_state("running")["run"].as_str().unwrap().to_owned()
}

fn watch_of(id: &str) -> String {
    format!("GET /v1/runs/{id}?watch=true&wait=60")
}

fn stream(states: &[Value]) -> (u16, &'static str, String) {
    let lines: String = states.iter().map(|s| format!("{s}\n")).collect();
    (200, "application/x-ndjson", lines)
}

fn problem(problem: &Problem) -> (u16, &'static str, String) {
    let text = serde_json::to_string(problem).unwrap();
    (problem.status, "application/problem+json", text)
}

#[tokio::test]
async fn a_run_is_described_at_its_end_though_the_platform_stops_meanwhile() {
    let id = id();
    let away = Problem::new(ErrorCode::Unavailable, "the platform stops");
    let fake = Fake::new([
        stream(&[run_state("running")]),
        problem(&away),
        stream(&[]),
        stream(&[run_state("running"), run_state("succeeded")]),
    ])
    .await;
    let (result, out, err) = imageflow(&fake.base, &["runs", "describe", &id, "--watch"]).await;
    result.unwrap();
    assert!(out.contains("succeeded"), "{out}");
    assert_eq!(err.lines().count(), 1, "the same state is told once: {err}");
    assert_eq!(fake.requests(), vec![watch_of(&id); 4]);
}

#[tokio::test]
async fn a_run_that_was_watched_and_did_not_succeed_is_a_failure() {
    let id = id();
    for (status, said) in [("cancelled", "was cancelled"), ("failed", "failed")] {
        let fake = Fake::new([stream(&[run_state(status)])]).await;
        let (result, out, _) = imageflow(&fake.base, &["runs", "describe", &id, "--watch"]).await;
        let error = result.unwrap_err();
        assert_eq!((error.exit_code(), error.text()), (1, format!("run {id} {said}")));
        assert!(out.contains(status), "{out}");
    }
    let fake = Fake::new([problem(&Problem::not_found("run", &id, []))]).await;
    let (result, ..) = imageflow(&fake.base, &["runs", "describe", &id, "--watch"]).await;
    assert_eq!(result.unwrap_err().problem().code, ErrorCode::NotFound);
    assert_eq!(fake.requests(), [watch_of(&id)], "the platform waited for it");
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_asked_for_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "x");
    let (running, done) = (run_state("running").to_string(), run_state("succeeded").to_string());
    let answer = |length: usize, text: &str| {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}\n")
    };
    let answers = [
        answer(running.len() + 1, &running),
        answer(running.len() + 100, &running),
        answer(done.len() + 1, &done),
    ];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let serve = async {
        for answer in answers {
            let (mut connection, _) = listener.accept().await.unwrap();
            // An answer before its question would not be one.
            assert!(connection.read(&mut [0; 4096]).await.unwrap() > 0);
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let args = ["run", "function/thumb", &path];
    let ((result, out, _), ()) = tokio::join!(imageflow(&base, &args), serve);
    result.unwrap();
    assert!(out.contains("succeeded"), "{out}");
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_stays_away_is_given_up() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let (result, ..) = imageflow(&base, &["runs", "describe", &id(), "--watch"]).await;
    assert_eq!(result.unwrap_err().exit_code(), 69);
}

#[tokio::test]
async fn a_watch_of_runs_sees_as_many_as_the_platform_takes_or_as_was_said() {
    let fake = Fake::new([stream(&[run_state("failed")]), stream(&[]), stream(&[])]).await;
    imageflow(&fake.base, &["runs", "--watch"]).await.0.unwrap();
    let args = ["runs", "--watch", "--limit", "7", "--flow", "thumbs"];
    imageflow(&fake.base, &args).await.0.unwrap();
    assert_eq!(
        fake.requests(),
        [
            "GET /v1/runs?watch=true&limit=10000",
            "GET /v1/runs?watch=true&flow=thumbs&limit=7"
        ]
    );
}

#[tokio::test]
async fn a_deployment_is_there_when_pods_of_its_own_revision_are_ready() {
    let applied = json!({"items": [{"kind": "Function", "name": "f", "outcome": "configured", "revision": "f-00002"}]});
    let pod =
        |revision: &str, state: &str| json!({"id": format!("{revision}-x"), "revision": revision, "state": state});
    let function = |pods: [Value; 3]| json!({"metadata": {"name": "f"}, "status": {"latestRevision": "f-00002", "pods": {"ready": 2, "starting": 1}, "podList": pods}});
    let old = || pod("f-00001", "ready");
    let fake = Fake::json([
        applied,
        function([old(), old(), pod("f-00002", "starting")]),
        function([old(), old(), pod("f-00002", "ready")]),
    ])
    .await;
    let args = ["deploy", "f", "--operation", "resize", "--min", "1", "--wait"];
    let (result, _, err) = imageflow(&fake.base, &args).await;
    result.unwrap();
    assert_eq!(err, "f is there, 1 pod ready\n");
    assert_eq!(fake.requests().len(), 3);
}
