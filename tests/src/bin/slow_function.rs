//! A function that takes its time, notes each call in a file of its pod, and dies of what is poison to it.
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use imageflow_sdk::{Call, Function, Reply};
use imageflow_types::{ErrorCode, Problem};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// So long a call takes, in ms, unless `SLOW_TAKES_MS` says otherwise: the work of this function is to wait.
const TAKES_MS: u64 = 200;

struct Slow {
    calls: File,
    takes: Duration,
}

impl Function for Slow {
    #[expect(clippy::disallowed_methods, reason = "its work is to wait")]
    fn handle(&self, call: Call) -> Result<Reply, Problem> {
        let event = call.event.unwrap_or_default();
        let picture = call
            .input
            .map(|picture| format!("{:x}", Sha256::digest(&picture.bytes)));
        let id = event["id"].as_str().or(picture.as_deref()).unwrap_or_default();
        // Before the work: also calls that end nowhere are counted. One write, so lines are whole.
        let noted = (&self.calls).write_all(format!("{id}\n").as_bytes());
        noted.map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
        match event["data"]["poison"].as_bool() {
            Some(true) => std::process::abort(),
            _ => std::thread::sleep(self.takes),
        }
        Ok(Reply {
            data: Value::from(id),
            ..Reply::default()
        })
    }
}

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let folder = env("SLOW_CALLS").unwrap_or_else(|| ".".to_owned());
    let file = std::path::Path::new(&folder).join(format!("{}.calls", std::process::id()));
    let takes = env("SLOW_TAKES_MS").and_then(|ms| ms.parse().ok());
    let takes = Duration::from_millis(takes.unwrap_or(TAKES_MS));
    let opened = File::options().create(true).append(true).open(&file);
    let served = opened
        .map_err(|e| format!("{}: {e}", file.display()))
        .and_then(|calls| imageflow_sdk::run(Slow { calls, takes }, &env).map_err(|e| e.to_string()));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow-function: {error}");
            ExitCode::FAILURE
        }
    }
}
