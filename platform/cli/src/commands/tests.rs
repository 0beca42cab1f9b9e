//! Commands against a small server that answers what each test says.
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use imageflow_types::{ErrorCode, FieldError, FieldErrors, Problem};
use serde_json::{Value, json};

use crate::args::{Cli, Format};
use crate::client::Client;
use crate::error::CliError;
use crate::output::Context;
use crate::render::tests::run_state;

mod output;
mod watch;
mod work;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the server saw: method and path, headers, body.
type Seen = Arc<Mutex<Vec<(String, http::HeaderMap, Bytes)>>>;

struct Fake {
    base: String,
    seen: Seen,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// A server that gives these answers in turn, with their status.
    async fn new(answers: impl IntoIterator<Item = (u16, &'static str, String)>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(answers.into_iter().collect()));
        let seen = Seen::default();
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, seen) = (answers.clone(), log.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answers, seen) = (answers.clone(), seen.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        seen.lock()
                            .unwrap()
                            .push((format!("{} {}", head.method, head.uri), head.headers, body));
                        let next = answers.lock().unwrap().pop_front();
                        let (status, kind, text) = next.unwrap_or((500, "text/plain", "no more answers".to_owned()));
                        let answer = Response::builder().status(status).header("content-type", kind);
                        Ok::<_, std::convert::Infallible>(
                            answer
                                .header("imageflow-cold-start", "true")
                                .body(Full::new(Bytes::from(text)))
                                .unwrap(),
                        )
                    }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { base, seen, task }
    }

    async fn json(answers: impl IntoIterator<Item = Value>) -> Self {
        let answers = answers.into_iter().map(|a| (200, "application/json", a.to_string()));
        Self::new(answers.collect::<Vec<_>>()).await
    }

    fn requests(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(line, ..)| line.clone())
            .collect()
    }
}

/// Runs a command line against a server: its result, standard output and standard error.
async fn imageflow(base: &str, args: &[&str]) -> (Result<(), CliError>, String, String) {
    let out = Buffer::default();
    let (result, err) = imageflow_to(Box::new(out.clone()), base, args).await;
    (result, out.text(), err)
}

/// The same with a standard output of the test's.
async fn imageflow_to(out: Box<dyn Write + Send>, base: &str, args: &[&str]) -> (Result<(), CliError>, String) {
    let cli = Cli::try_parse_from(["imageflow"].iter().chain(args)).unwrap();
    let err = Buffer::default();
    let mut cx = Context {
        client: Client::new(base, Some("secret".to_owned())).unwrap(),
        format: cli.command.format(),
        color: false,
        live: false,
        quiet: cli.global.quiet,
        out,
        err: Box::new(err.clone()),
        now_ms: 61_000,
    };
    let result = super::run(&mut cx, cli.command).await;
    (result, err.text())
}

fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_problem_becomes_text_with_the_nearest_name_and_exit_code_one() {
    let problem = Problem::not_found("function", "thum", ["thumb"]);
    let fake = Fake::new([(
        404,
        "application/problem+json",
        serde_json::to_string(&problem).unwrap(),
    )])
    .await;
    let (result, ..) = imageflow(&fake.base, &["functions", "describe", "thum"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(
        crate::error_text(&error, Format::Table),
        "error: there is no function \"thum\"; did you mean \"thumb\"?"
    );
    let json: Value = serde_json::from_str(&crate::error_text(&error, Format::Json)).unwrap();
    assert_eq!(json["code"], "not-found");
    assert_eq!(fake.seen.lock().unwrap()[0].1["authorization"], "Bearer secret");
}

#[tokio::test]
async fn what_is_not_allowed_exits_with_77_and_a_foreign_error_keeps_its_text() {
    let forbidden = serde_json::to_string(&Problem::new(ErrorCode::Forbidden, "viewers cannot apply")).unwrap();
    let fake = Fake::new([
        (403, "application/problem+json", forbidden),
        (401, "text/plain", "who are you".to_owned()),
        (502, "text/html", "<h1>proxy</h1>".to_owned()),
    ])
    .await;
    let codes = [77, 77, 1];
    for (code, says) in codes
        .into_iter()
        .zip(["viewers cannot apply", "who are you", "<h1>proxy</h1>"])
    {
        let error = imageflow(&fake.base, &["status"]).await.0.unwrap_err();
        assert_eq!(error.exit_code(), code);
        assert!(error.text().contains(says), "{}", error.text());
    }
}

#[tokio::test]
async fn no_server_exits_with_69() {
    // A port that was free a moment ago and belongs to nobody.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = imageflow(&format!("http://{free}"), &["status"]).await.0.unwrap_err();
    assert_eq!(error.exit_code(), 69);
    assert!(error.text().contains("imageflow up"), "{}", error.text());
}

#[tokio::test]
async fn a_wrong_manifest_is_told_with_file_and_field_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        "f.yaml",
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {name: a}\nspec: {operaton: resize}\n",
    );
    let fake = Fake::json([]).await;
    let error = imageflow(&fake.base, &["apply", "-f", &path]).await.0.unwrap_err();
    assert!(
        error.text().starts_with(&format!("{path} is not valid\n")),
        "{}",
        error.text()
    );
    assert!(error.text().contains("spec.operaton"), "{}", error.text());
    assert!(fake.requests().is_empty());
    let missing = imageflow(&fake.base, &["apply", "-f", "/nowhere/f.yaml"])
        .await
        .0
        .unwrap_err();
    assert_eq!(missing.exit_code(), 66);
}

#[tokio::test]
async fn apply_prints_the_outcome_of_each_document() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        "f.yaml",
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {name: a}\nspec: {operation: resize}\n",
    );
    let items = json!({"items": [{"kind": "Function", "name": "a", "outcome": "created", "revision": "a-00001"}]});
    let fake = Fake::json([items.clone(), items]).await;
    let (result, out, _) = imageflow(&fake.base, &["apply", "-f", &path, "--dry-run"]).await;
    result.unwrap();
    assert!(out.contains("created (dry run)") && out.contains("a-00001"), "{out}");
    let (_, out, _) = imageflow(&fake.base, &["apply", "-f", &path, "-o", "name"]).await;
    assert_eq!(out, "function/a\n");
    assert_eq!(fake.requests(), ["POST /v1/apply?dryRun=true", "POST /v1/apply"]);
}

#[tokio::test]
async fn a_run_is_watched_to_its_end_and_its_results_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "\u{89}not quite an image");
    let (out_dir, done) = (dir.path().join("out"), run_state("succeeded"));
    let watch = format!("{}\n\n{done}", run_state("running"));
    let fake = Fake::new([
        (202, "application/json", run_state("running").to_string()),
        (200, "application/x-ndjson", watch),
        (200, "image/jpeg", "pixels".to_owned()),
    ])
    .await;
    let (result, out, _) = imageflow(
        &fake.base,
        &["run", "thumbs", &path, "--out", out_dir.to_str().unwrap()],
    )
    .await;
    result.unwrap();
    assert!(out.contains("succeeded") && out.contains("small 12.0 ms cold"), "{out}");
    assert_eq!(
        std::fs::read_to_string(out_dir.join("cat-small.jpg")).unwrap(),
        "pixels"
    );
    let id = done["run"].as_str().unwrap();
    let expected = [
        "POST /v1/flows/thumbs/runs".to_owned(),
        format!("GET /v1/runs/{id}?watch=true&wait=60"),
        format!("GET /v1/runs/{id}/output/small"),
    ];
    assert_eq!(fake.requests(), expected);
    assert_eq!(fake.seen.lock().unwrap()[0].1["idempotency-key"].len(), 40);
}

#[tokio::test]
async fn a_failed_run_exits_with_one_and_a_missing_file_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "x");
    let fake = Fake::json([run_state("failed")]).await;
    let (result, out, _) = imageflow(&fake.base, &["run", "function/thumb", &path, "--no-fuse"]).await;
    let error = result.unwrap_err();
    assert_eq!(
        (error.exit_code(), error.text()),
        (1, "grey: the picture is cut off".to_owned())
    );
    assert!(out.contains("failed"), "{out}");
    assert_eq!(fake.requests(), ["POST /v1/functions/thumb/runs?fuse=false"]);
    let error = imageflow(&fake.base, &["run", "thumbs", &path, "/nowhere.png"])
        .await
        .0
        .unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn invoke_gives_the_image_on_stdout_and_the_start_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "x");
    let fake = Fake::new([(200, "image/png", "pixels".to_owned())]).await;
    let (result, out, err) = imageflow(
        &fake.base,
        &["invoke", "thumb", &path, "--param", "width=20", "--tag", "new"],
    )
    .await;
    result.unwrap();
    assert_eq!(out, "pixels");
    assert!(err.starts_with("6 B image/png in ") && err.contains("cold"), "{err}");
    assert_eq!(fake.requests(), ["POST /v1/functions/thumb/invoke?width=20&tag=new"]);
}

#[tokio::test]
async fn traffic_replaces_the_shares_and_must_add_up() {
    let function = json!({"metadata": {"name": "f"}, "spec": {"operation": "resize"}, "status": {}});
    let fake = Fake::json([function.clone(), function]).await;
    let error = imageflow(&fake.base, &["fn", "traffic", "f", "f-00001=90"])
        .await
        .0
        .unwrap_err();
    assert_eq!(error.exit_code(), 64);
    imageflow(&fake.base, &["fn", "traffic", "f", "f-00001=90", "f-00002=10%"])
        .await
        .0
        .unwrap();
    let sent: Value = serde_json::from_slice(&fake.seen.lock().unwrap()[1].2).unwrap();
    assert_eq!(
        sent["spec"]["traffic"][1],
        json!({"revision": "f-00002", "percent": 10})
    );
    assert!(sent.get("status").is_none());
}

#[tokio::test]
async fn logs_and_events_and_lists_speak_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let batch = file(&dir, "e.json", "[{},{}]");
    let fake = Fake::new([
        (
            200,
            "application/x-ndjson",
            "{\"atMs\":1000,\"pod\":\"p1\",\"stream\":\"stdout\",\"text\":\"hello\"}\n".to_owned(),
        ),
        (202, "text/plain", String::new()),
        (200, "application/json", "{\"items\":[]}".to_owned()),
        (
            200,
            "application/json",
            json!({"items": [run_state("failed")]}).to_string(),
        ),
    ])
    .await;
    assert_eq!(
        imageflow(&fake.base, &["logs", "f", "--tail", "5"]).await.1,
        "00:00:01.000 p1 hello\n"
    );
    assert_eq!(
        imageflow(&fake.base, &["events", "send", "--file", &batch]).await.1,
        "2 events accepted\n"
    );
    let (_, out, err) = imageflow(&fake.base, &["dead-letters"]).await;
    assert_eq!((out.as_str(), err.as_str()), ("", "nothing there\n"));
    let (_, out, _) = imageflow(&fake.base, &["runs", "--flow", "thumbs"]).await;
    assert!(
        out.contains("thumbs") && out.contains("2/2") && out.contains("60s"),
        "{out}"
    );
    assert_eq!(
        fake.seen.lock().unwrap()[1].1["content-type"],
        "application/cloudevents-batch+json"
    );
}

#[tokio::test]
async fn scaling_reads_what_the_gateway_answers() {
    let decision = json!({"atMs": 1000, "from": 0, "to": 2, "summary": "0 -> 2: 40 waiting", "change": "3 from 41 on",
        "reasons": ["40 waiting"], "inputs": {}});
    let fake = Fake::json([
        json!({"items": [{"function": "f", "desired": 2, "ready": 1, "backlog": 40, "decisions": [decision]}]}),
        json!({"function": "f", "desired": 2, "ready": 1, "decisions": [decision]}),
    ])
    .await;
    let (_, out, _) = imageflow(&fake.base, &["scaling"]).await;
    assert!(out.lines().last().unwrap().contains("40 waiting"), "{out}");
    let (_, out, _) = imageflow(&fake.base, &["scaling", "explain", "f"]).await;
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!(
        lines[..4],
        [
            "f: 2 pods wanted, 1 ready",
            "0 -> 2: 40 waiting",
            "next: 3 from 41 on",
            ""
        ]
    );
    assert!(
        lines[4].starts_with("TIME") && lines[5].ends_with("0 -> 2: 40 waiting"),
        "{out}"
    );
}

#[tokio::test]
async fn field_errors_of_the_platform_are_listed_with_their_remedy() {
    let fields = FieldErrors(vec![
        FieldError::new("steps[0].params.widht", "is unknown").remedy("did you mean \"width\"?"),
    ]);
    let problem = serde_json::to_string(&Problem::from(fields)).unwrap();
    let fake = Fake::new([(400, "application/problem+json", problem)]).await;
    let error = imageflow(&fake.base, &["deploy", "f", "--operation", "resize"])
        .await
        .0
        .unwrap_err();
    assert!(
        error
            .text()
            .contains("\n  steps[0].params.widht: is unknown; did you mean \"width\"?"),
        "{}",
        error.text()
    );
}
