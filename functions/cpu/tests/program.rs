//! The real program as a process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imageflow_events::{EventBuilder, EventBuilderV10, ext};
use imageflow_process::testing::Collector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

struct Program {
    child: Child,
    addr: SocketAddr,
}

fn command(env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imageflow-function-cpu"));
    command
        .env_clear()
        .envs([("PORT", "0"), ("IMAGEFLOW_BIND", "127.0.0.1")])
        .envs(env.iter().copied());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Program {
    async fn start(env: &[(&str, &str)]) -> Self {
        let mut child = command(env).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
        let addr = loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some((_, rest)) = line.split_once("addr=") {
                break rest.split(' ').next().unwrap().parse().unwrap();
            }
        };
        Self { child, addr }
    }

    async fn post(&self, path: &str, headers: HeaderMap, body: Bytes) -> (u16, HeaderMap, Bytes) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.addr);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .body(Full::new(body))
            .unwrap();
        request.headers_mut().extend(headers);
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        (
            parts.status.as_u16(),
            parts.headers,
            body.collect().await.unwrap().to_bytes(),
        )
    }

    async fn image(&self, path: &str, body: impl Into<Bytes>) -> (u16, HeaderMap, Bytes) {
        self.post(path, HeaderMap::new(), body.into()).await
    }

    /// Status, code and detail.
    async fn problem(&self, path: &str, body: impl Into<Bytes>) -> (u16, String, String) {
        let (status, _, body) = self.image(path, body).await;
        let problem: Value = serde_json::from_slice(&body).unwrap();
        (
            status,
            problem["code"].as_str().unwrap().into(),
            problem["detail"].as_str().unwrap().into(),
        )
    }

    async fn signal(mut self, name: &str) -> ExitStatus {
        let pid = self.child.id().unwrap().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
        self.child.wait().await.unwrap()
    }
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect();
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    out
}

fn size(image: &[u8]) -> (u32, u32) {
    let reader = png::Decoder::new(std::io::Cursor::new(image)).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

/// A PNG that says it is huge.
fn bomb() -> Vec<u8> {
    let mut image = picture(1, 1);
    image[16..20].copy_from_slice(&50_000_u32.to_be_bytes());
    image[20..24].copy_from_slice(&50_000_u32.to_be_bytes());
    let checksum = crc(&image[12..29]);
    image[29..33].copy_from_slice(&checksum.to_be_bytes());
    image
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 }
        })
    })
}

#[tokio::test]
async fn a_plain_call_merges_defaults_and_query_and_sigterm_ends_with_0() {
    let env = [
        ("IMAGEFLOW_OPERATION", "resize"),
        ("IMAGEFLOW_PARAMS", r#"{"width":10,"height":10,"fit":"fill"}"#),
    ];
    let program = Program::start(&env).await;
    let (status, headers, body) = program.image("/", picture(64, 32)).await;
    assert_eq!((status, headers["content-type"].as_bytes()), (200, &b"image/png"[..]));
    assert_eq!(size(&body), (10, 10));
    assert_eq!(size(&program.image("/?height=5", picture(64, 32)).await.2), (10, 5));
    assert!(program.signal("-TERM").await.success());
}

#[tokio::test]
async fn bad_input_gets_its_own_status_and_names_what_is_wrong() {
    let program = Program::start(&[("IMAGEFLOW_OPERATION", "resize")]).await;
    let good = picture(64, 32);
    let (status, code, _) = program.problem("/?width=8", good[..good.len() / 2].to_vec()).await;
    assert_eq!((status, code.as_str()), (422, "unprocessable"));
    let (status, code, _) = program.problem("/?width=8", bomb()).await;
    assert_eq!((status, code.as_str()), (413, "too-large"));
    let (status, code, detail) = program.problem("/?width=8", "GIF89a\x01\0\x01\0\0\0\0;").await;
    assert_eq!((status, code.as_str()), (415, "unsupported-format"));
    assert!(detail.to_lowercase().contains("gif"), "{detail}");
    let (status, _, detail) = program.problem("/?widht=8", good.clone()).await;
    assert!(
        status == 400 && detail.contains("widht") && detail.contains("\"width\""),
        "{detail}"
    );
    let (status, _, detail) = program.problem("/?width=0", good.clone()).await;
    assert!(status == 400 && detail.contains("width"), "{detail}");
    assert_eq!(program.problem("/?width=8", "").await.0, 400);
    assert!(program.signal("-INT").await.success());
}

#[tokio::test]
async fn a_pod_of_one_operation_runs_the_fused_steps_of_others() {
    let program = Program::start(&[("IMAGEFLOW_OPERATION", "resize")]).await;
    let step = |operation: &str, params: Value| json!({"name": operation, "operation": operation, "params": params});
    let event = |steps: Value| {
        EventBuilderV10::new()
            .id("run/stage/1")
            .source("/imageflow/flows/f")
            .ty(ext::TYPE_STEP_REQUESTED)
            .data("application/json", json!({"steps": steps}))
            .build()
            .unwrap()
    };
    let (headers, body) = imageflow_events::http::write_binary(&event(json!([step("flip", json!({}))]))).unwrap();
    let (status, _, body) = program.post("/", headers, body).await;
    assert!(
        status == 400 && String::from_utf8_lossy(&body).contains("no image"),
        "{body:?}"
    );
    let (headers, body) = imageflow_events::http::write_binary(&event(json!([step("noop", json!({}))]))).unwrap();
    let (status, _, body) = program.post("/", headers, body).await;
    let reply: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &reply["output"]), (200, &Value::Null), "{reply}");

    let mut client = imageflow_proto::v1::function_service_client::FunctionServiceClient::connect(format!(
        "http://{}",
        program.addr
    ))
    .await
    .unwrap();
    let steps = [
        ("turn", "rotate", r#"{"angle":90}"#),
        ("small", "resize", r#"{"width":5}"#),
    ];
    let request = imageflow_proto::v1::ProcessRequest {
        image: picture(40, 20).into(),
        steps: steps
            .map(|(name, operation, params)| imageflow_proto::v1::Step {
                name: name.into(),
                operation: operation.into(),
                params_json: params.into(),
            })
            .to_vec(),
        ..Default::default()
    };
    let answer = client.process(request.clone()).await.unwrap().into_inner();
    let Some(imageflow_proto::v1::process_response::Outcome::Result(result)) = answer.outcome else {
        panic!("no result")
    };
    assert_eq!(size(&result.image), (5, 10));
    let sizes: Vec<_> = result
        .steps
        .iter()
        .map(|s| (s.name.as_str(), s.width, s.height))
        .collect();
    assert_eq!(sizes, [("turn", 20, 40), ("small", 5, 10)]);
    let [turn, small] = result.steps.as_slice() else {
        panic!("two steps have two times")
    };
    assert!(
        turn.ms > 0.0 && small.ms > 0.0 && turn.ms.to_bits() != small.ms.to_bits(),
        "each step has its own time: {turn:?} {small:?}"
    );

    let mut unknown = request;
    unknown.steps[0].operation = "rotat".into();
    let error = client.process(unknown).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(
        error.message().contains("rotat") && error.message().contains("\"rotate\""),
        "{error}"
    );
}

#[tokio::test]
async fn a_step_may_name_a_picture_of_the_assets() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("logo.png"), picture(2, 2)).unwrap();
    let env = [
        ("IMAGEFLOW_OPERATION", "watermark"),
        ("ASSETS_DIR", folder.path().to_str().unwrap()),
    ];
    let program = Program::start(&env).await;
    let pixels = |image: &[u8]| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(image)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    let (status, _, body) = program.image("/?image=logo.png&gravity=southeast", picture(4, 4)).await;
    assert_eq!(status, 200, "{body:?}");
    let (whole, logo) = (pixels(&body), pixels(&picture(2, 2)));
    // The lower half of the rows, the right half of each.
    assert_eq!((&whole[30..36], &whole[42..]), (&logo[..6], &logo[6..]));
    let (status, _, detail) = program.problem("/?image=logo.jpg", picture(4, 4)).await;
    assert!(status == 400 && detail.contains("logo.jpg"), "{detail}");
}

#[tokio::test]
async fn a_pod_that_lets_a_large_picture_in_works_on_it() {
    let env = [
        ("IMAGEFLOW_OPERATION", "noop"),
        ("IMAGEFLOW_MAX_BODY_BYTES", "70000000"),
    ];
    let program = Program::start(&env).await;
    let mut large = picture(4, 4);
    large.resize(69_000_000, 0);
    let (status, _, body) = program.image("/", large.clone()).await;
    assert_eq!((status, body.len()), (200, large.len()));
}

#[tokio::test]
async fn a_wrong_environment_is_named_and_ends_with_64() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
    let folder = folder.path().to_str().unwrap();
    for (name, value) in [
        ("ASSETS_DIR", folder),
        ("ASSETS_DIR", "/nowhere"),
        ("IMAGEFLOW_OPERATION", "resise"),
        ("IMAGEFLOW_TIMEOUT_MS", "soon"),
        ("IMAGEFLOW_LOG", "imageflow_sdk=loud"),
    ] {
        let run = command(&[(name, value)]).output();
        let output = tokio::time::timeout(Duration::from_secs(30), run)
            .await
            .expect("it does not serve")
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(name) && text.contains(value), "{text}");
    }
}

#[tokio::test]
async fn its_spans_continue_the_callers_trace_and_none_is_lost_at_the_end() {
    let mut collector = Collector::start().await.unwrap();
    let endpoint = collector.endpoint();
    let env = [
        ("IMAGEFLOW_OPERATION", "flip"),
        ("IMAGEFLOW_FUNCTION", "mirror"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
    ];
    let program = Program::start(&env).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("traceparent"),
        format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap(),
    )]);
    assert_eq!(program.post("/", headers, picture(4, 4).into()).await.0, 200);
    assert!(program.signal("-TERM").await.success());

    let mut names = Vec::new();
    for span in collector.received() {
        assert_eq!(
            (span.service.as_str(), span.trace.as_str()),
            ("mirror", trace),
            "{span:?}"
        );
        names.push(span.name);
    }
    names.sort();
    assert_eq!(names, ["mirror", "run"]);
}
