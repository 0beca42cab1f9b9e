//! `cargo xtask up --kafka --s3`: three brokers, an S3 server, each role of the platform a process of its own with two gateways,
//! two routers and two dispatchers, and the demo of `imageflow up --demo` on them. With `--once` it ends after that.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use imageflow_objects::PutOptions;
use imageflow_tests::Api;
use imageflow_tests::external::{World, manifests};
use imageflow_tests::roles::Roles;
use imageflow_types::{RunId, RunState, RunStatus, topics};
use tokio::time::Instant;

/// Longest that the photographs may take, and then the way back to zero.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Where the first gateway is.
const LISTEN: &str = "127.0.0.1:8000";

fn samples() -> PathBuf {
    manifests().join("samples")
}

struct Demo<'a> {
    world: &'a World,
    api: &'a Api,
    begun: Instant,
    pods: BTreeMap<String, u64>,
}

impl Demo<'_> {
    fn tell(&self, what: &str) {
        println!("{:>8.3} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Puts the photographs as any S3 client would; returns the runs that the sample trigger makes of them.
    async fn put(&self) -> Result<Vec<(String, RunId)>, String> {
        let folder = samples().join("photos");
        let read = |e: std::io::Error| format!("{}: {e}", folder.display());
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(read)? {
            paths.push(entry.map_err(read)?.path());
        }
        paths.sort();
        let mut wanted = Vec::new();
        for path in paths {
            let content_type = match path.extension().and_then(|e| e.to_str()) {
                Some("jpg") => "image/jpeg",
                Some("png") => "image/png",
                Some("webp") => "image/webp",
                _ => continue,
            };
            let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let body = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let options = PutOptions {
                content_type: Some(content_type.to_owned()),
                ..PutOptions::default()
            };
            let put = self
                .world
                .objects
                .put(topics::BUCKET_RAW, &key, body.into(), options)
                .await;
            let etag = put.map_err(|e| format!("{key} was not taken: {e}"))?.etag;
            let run = RunId::derive(&["trigger", "on-upload", topics::BUCKET_RAW, &key, &etag]);
            wanted.push((key, run));
        }
        Ok(wanted)
    }

    /// Tells each change of the ready pods; whether there are none.
    async fn look(&mut self) -> bool {
        let functions = self.api.get("/v1/functions").await;
        let mut none = true;
        for function in functions["items"].as_array().into_iter().flatten() {
            let name = function["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let count = |of: &str| function["status"]["pods"][of].as_u64().unwrap_or(0);
            let ready = count("ready");
            none &= ready == 0 && count("starting") == 0;
            let before = self.pods.insert(name.clone(), ready).unwrap_or(0);
            if before != ready {
                self.tell(&format!("{name:<12} pods {before} -> {ready}"));
            }
        }
        none
    }

    async fn run(&mut self) -> Result<(), String> {
        for file in ["functions.yaml", "flow.yaml"] {
            let path = samples().join(file);
            let yaml = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            self.api.apply(&yaml).await;
        }
        println!("\napplied the sample functions, flow and trigger: nothing runs yet");
        self.begun = Instant::now();
        let mut wanted = self.put().await?;
        println!(
            "put {} photographs into {} with an S3 client\n",
            wanted.len(),
            topics::BUCKET_RAW
        );
        while !wanted.is_empty() {
            self.look().await;
            let mut left = Vec::new();
            for (key, id) in wanted {
                if !self.ended(&key, &id).await? {
                    left.push((key, id));
                }
            }
            wanted = left;
            if self.begun.elapsed() > PATIENCE {
                return Err(format!(
                    "{} photographs were not done within {PATIENCE:?}",
                    wanted.len()
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
        println!("\nall results are right; waiting for the functions to go back to zero");
        let since = Instant::now();
        while !self.look().await {
            if since.elapsed() > PATIENCE {
                return Err(format!("pods were still there after {PATIENCE:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.tell("all functions are at zero");
        Ok(())
    }

    /// Whether the run has ended; an error when it did not do what the flow says.
    async fn ended(&self, key: &str, id: &RunId) -> Result<bool, String> {
        let path = format!("/v1/runs/{id}");
        let answer = self.api.send(http::Method::GET, &path, &[], Vec::new()).await;
        if answer.status() == http::StatusCode::NOT_FOUND {
            return Ok(false);
        }
        let run: RunState = serde_json::from_slice(answer.body()).map_err(|e| format!("{path}: {e}"))?;
        match run.status {
            RunStatus::Running => return Ok(false),
            RunStatus::Succeeded => {}
            other => {
                let why = run
                    .error()
                    .map_or_else(String::new, |(step, e)| format!(": {step}: {}", e.message));
                return Err(format!("{key} {}{why}", other.as_str()));
            }
        }
        self.tell(&format!("{key:<12} {}", run.status.as_str()));
        let mut results = 0;
        for (step, output) in run.results() {
            let object = self
                .world
                .objects
                .get(&output.bucket, &output.key, Some(&output.etag))
                .await;
            let (_, body) = object.map_err(|e| format!("{}: {e}", output.key))?;
            let info = imageflow_ops::probe(&body, &imageflow_ops::Limits::default());
            let info = info.map_err(|e| format!("{} is no picture: {e}", output.key))?;
            println!(
                "            {step:<8} {}/{} ({}x{}, {} bytes)",
                output.bucket, output.key, info.width, info.height, output.size
            );
            let wrong = match step.as_str() {
                "crisp" => info.width > 480 || info.height > 480,
                "mono" => (info.width, info.height) != (160, 160),
                _ => false,
            };
            if wrong {
                return Err(format!("{} is {}x{}", output.key, info.width, info.height));
            }
            results += 1;
        }
        if results < 2 {
            return Err(format!("{key} has {results} results, not 2"));
        }
        Ok(true)
    }
}

async fn up(once: bool) -> Result<(), String> {
    // The roles and servers are process groups of their own: they end when we do, at whatever time that is asked for.
    let stop = imageflow_process::on_signals().map_err(|e| e.to_string())?.gentle;
    println!("starting three Kafka brokers and an S3 server");
    let world = tokio::select! {
        world = World::start() => world.ok_or("IMAGEFLOW_SKIP_SERVERS is set, and this needs servers")?,
        () = stop.cancelled() => return Ok(()),
    };
    println!("brokers at {}, S3 at {}", world.cluster.bootstrap(), world.server.url());
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut roles = Roles::new(&world, folder.path());
    let pods = roles.pods();
    let autoscaler = roles.autoscaler();
    let (gateway, api) = roles.gateway("gateway-1", if once { "127.0.0.1:0" } else { LISTEN });
    let (gateway_2, _) = roles.gateway("gateway-2", "127.0.0.1:0");
    let movers = [
        roles.router("router-1"),
        roles.router("router-2"),
        roles.dispatcher("dispatcher-1"),
        roles.dispatcher("dispatcher-2"),
    ];
    println!(
        "gateways at {} and {}; 2 routers, 2 dispatchers, the autoscaler and the pods, each a process",
        gateway.url, gateway_2.url
    );
    let mut demo = Demo {
        world: &world,
        api: &api,
        begun: Instant::now(),
        pods: BTreeMap::new(),
    };
    let done = tokio::select! {
        done = demo.run() => done,
        () = stop.cancelled() => Ok(()),
    };
    if done.is_ok() && !once && !stop.is_cancelled() {
        println!("\nit stays up until Ctrl-C; logs are in {}", folder.path().display());
        stop.cancelled().await;
    }
    for role in [gateway, gateway_2].into_iter().chain(movers).chain([autoscaler, pods]) {
        role.stop();
    }
    done
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let once = std::env::args().skip(1).any(|a| a == "--once");
    match up(once).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("up-roles: {why}");
            std::process::ExitCode::FAILURE
        }
    }
}
