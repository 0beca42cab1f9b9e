//! The example that is no Rust serves the same contract.
use std::net::SocketAddr;
use std::process::Stdio;

use http::Method;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{Answer, Store, header, send};

/// The first bytes of a PNG of 300 by 200.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\x2c\0\0\0\xc8\x08\x02\0\0\0";

struct Python {
    child: Child,
    addr: SocketAddr,
}

impl Python {
    async fn start() -> Option<Self> {
        let script = format!(
            "{}/../examples/python/describe.py",
            std::env::var("CARGO_MANIFEST_DIR").unwrap()
        );
        let spawned = Command::new("python3")
            .arg(script)
            .envs([("PORT", "0"), ("IMAGEFLOW_BIND", "127.0.0.1")])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: python3 cannot be run: {error}");
                return None;
            }
        };
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap())
            .read_line(&mut line)
            .await
            .unwrap();
        let port: u16 = line
            .trim()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap_or_else(|_| panic!("it said {line}"));
        Some(Self {
            child,
            addr: SocketAddr::from(([127, 0, 0, 1], port)),
        })
    }

    async fn image(&self, query: &str, body: &'static [u8]) -> Answer {
        let url = format!("http://{}/{query}", self.addr);
        send(Method::POST, &url, header("content-type", "image/png"), body.into()).await
    }
}

#[tokio::test]
async fn a_program_of_the_python_standard_library_is_a_function() {
    let Some(mut python) = Python::start().await else {
        return;
    };
    let store = Store::start().await;
    store.put("/in/photo", PNG);
    let url = format!("http://{}/", python.addr);

    let plain = python.image("?histogram=true", PNG).await;
    assert_eq!((plain.status, plain.json()["width"].as_u64()), (200, Some(300)));
    assert_eq!(plain.json()["histogram"].as_array().unwrap().len(), 256);
    let (status, _, detail) = python.image("?histgram=true", PNG).await.problem();
    assert!(status == 400 && detail.contains("histgram"), "{detail}");
    assert_eq!(python.image("", b"GIF89a").await.problem().0, 415);

    let etag = PNG.len().to_string();
    let step = store.step(json!({"params":{}}), &etag);
    for (headers, body) in [
        imageflow_events::http::write_binary(&step).unwrap(),
        imageflow_events::http::write_structured(&step).unwrap(),
    ] {
        let answer = send(Method::POST, &url, headers, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let reply = imageflow_events::http::read(&answer.headers, &answer.body)
            .unwrap()
            .remove(0);
        let data = imageflow_events::json_data(&reply).unwrap();
        assert_eq!(
            (data["data"]["height"].as_u64(), data["data"]["format"].as_str()),
            (Some(200), Some("png"))
        );
        assert_eq!(
            imageflow_events::ext::text(&reply, "imageflowrun").as_deref(),
            Some("run-1")
        );
    }
    let (headers, body) = imageflow_events::http::write_binary(&store.step(json!({}), "1")).unwrap();
    let (status, code, _) = send(Method::POST, &url, headers, body).await.problem();
    assert_eq!((status, code.as_str()), (412, "input-changed"));

    let pid = python.child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    assert!(
        python.child.wait().await.unwrap().success(),
        "it drains and ends with 0"
    );
}
