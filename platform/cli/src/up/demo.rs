//! The demo: the samples are applied, three photographs land in the bucket, and what happens is told as it happens.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use imageflow_gateway::RunsView;
use imageflow_objects::PutOptions;
use imageflow_pods::{PodHost, PodState, PodTable};
use imageflow_types::{RunId, RunState, RunStatus, topics};
use tokio::time::Instant;

use super::failed;
use super::platform::Platform;
use crate::error::CliError;
use crate::output::say;

/// Longest that the photographs may take, and then the way back to zero.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the demo; an error says what was not right.
pub async fn run(platform: &Platform, folder: &Path) -> Result<(), CliError> {
    for file in ["functions.yaml", "flow.yaml"] {
        platform.apply_file(&folder.join(file)).await?;
    }
    say!("\napplied the sample functions, flow and trigger: nothing runs yet");
    let photos = photos(&folder.join("photos"))?;
    let begun = Instant::now();
    let mut wanted = Vec::new();
    for path in &photos {
        wanted.push(put(platform, path).await?);
    }
    say!("put {} photographs into {}\n", photos.len(), topics::BUCKET_RAW);
    let finished = watch(platform, &wanted, begun).await?;
    check(platform, &finished).await?;
    say!("\nall results are right; waiting for the functions to go back to zero");
    to_zero(platform, begun).await
}

fn photos(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let read = |source| CliError::Input {
        path: folder.to_owned(),
        source,
    };
    let mut photos = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path
            .extension()
            .is_some_and(|e| e == "jpg" || e == "png" || e == "webp")
        {
            photos.push(path);
        }
    }
    photos.sort();
    if photos.is_empty() {
        return Err(CliError::Failed(format!("{} has no photographs", folder.display())));
    }
    Ok(photos)
}

/// Puts a photograph as any S3 client would; returns the run that the sample trigger makes of it.
async fn put(platform: &Platform, path: &Path) -> Result<RunId, CliError> {
    let body = std::fs::read(path).map_err(|source| CliError::Input {
        path: path.to_owned(),
        source,
    })?;
    let key = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let content_type = match path.extension().and_then(|e| e.to_str()) {
        Some("jpg") => "image/jpeg",
        Some("webp") => "image/webp",
        _ => "image/png",
    };
    let options = PutOptions {
        content_type: Some(content_type.to_owned()),
        ..PutOptions::default()
    };
    let info = platform
        .objects
        .put(topics::BUCKET_RAW, &key, body.into(), options)
        .await;
    let info = info.map_err(|e| failed("the photograph was not taken")(e.to_string()))?;
    Ok(RunId::derive(&[
        "trigger",
        "on-upload",
        topics::BUCKET_RAW,
        &key,
        &info.etag,
    ]))
}

/// Tells each change of pods and runs until all runs have ended.
async fn watch(platform: &Platform, wanted: &[RunId], begun: Instant) -> Result<Vec<RunState>, CliError> {
    let runs: &RunsView = platform.gateway.runs();
    let mut changed = runs.changed();
    let mut table = platform.host.watch();
    let mut told = BTreeMap::new();
    let mut ended: BTreeMap<RunId, RunState> = BTreeMap::new();
    loop {
        let now = counts(&table.borrow_and_update());
        tell(begun, &mut told, now);
        changed.borrow_and_update();
        for id in wanted {
            if ended.contains_key(id) {
                continue;
            }
            let run = runs.get(id).await;
            let run = run.map_err(|e| failed("a run cannot be read")(e.to_string()))?;
            if let Some(run) = run.filter(|run| run.status.is_final()) {
                tell_run(begun, &run);
                ended.insert(id.clone(), run);
            }
        }
        if ended.len() == wanted.len() {
            return Ok(ended.into_values().collect());
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return Err(stopped()) },
            changed = table.changed() => if changed.is_err() { return Err(stopped()) },
            () = tokio::time::sleep_until(begun + PATIENCE) => {
                let missing = wanted.len() - ended.len();
                return Err(CliError::Failed(format!("{missing} photographs were not done within {PATIENCE:?}")));
            }
        }
    }
}

fn stopped() -> CliError {
    CliError::Failed("the platform stopped during the demo".to_owned())
}

/// Ready pods of each function.
fn counts(table: &PodTable) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for pod in table.pods.values() {
        *counts.entry(pod.function.to_string()).or_default() += u32::from(pod.state == PodState::Ready);
    }
    counts
}

fn tell(begun: Instant, told: &mut BTreeMap<String, u32>, now: BTreeMap<String, u32>) {
    let names: Vec<String> = told.keys().chain(now.keys()).cloned().collect();
    for name in names {
        let (before, after) = (
            told.get(&name).copied().unwrap_or(0),
            now.get(&name).copied().unwrap_or(0),
        );
        if before != after {
            say!(
                "{:>8.3} s  {name:<12} pods {before} -> {after}",
                begun.elapsed().as_secs_f64()
            );
            told.insert(name, after);
        }
    }
}

fn tell_run(begun: Instant, run: &RunState) {
    let key = match &run.request.input {
        imageflow_types::work::Input::Object(object) => object.key.clone(),
        imageflow_types::work::Input::Event(_) => "event".to_owned(),
    };
    say!(
        "{:>8.3} s  {key:<12} {}",
        begun.elapsed().as_secs_f64(),
        run.status.as_str()
    );
    for (step, output) in run.results() {
        say!(
            "            {step:<8} {}/{} ({} bytes)",
            output.bucket,
            output.key,
            output.size
        );
    }
}

/// Every result is there, is the one that the run says, and has the size that the flow asks for.
async fn check(platform: &Platform, runs: &[RunState]) -> Result<(), CliError> {
    for run in runs {
        if run.status != RunStatus::Succeeded {
            let why = run
                .error()
                .map_or_else(String::new, |(step, e)| format!(": step {step}: {}", e.message));
            return Err(CliError::Failed(format!(
                "run {} {}{why}",
                run.run,
                run.status.as_str()
            )));
        }
        let mut seen = 0;
        for (step, output) in run.results() {
            let object = platform
                .objects
                .get(&output.bucket, &output.key, Some(&output.etag))
                .await;
            let (_, body) = object.map_err(|e| failed("a result is not there")(e.to_string()))?;
            let info = imageflow_ops::probe(&body, &imageflow_ops::Limits::default());
            let info = info.map_err(|e| failed("a result is no picture")(format!("{}: {e}", output.key)))?;
            let right = match step.as_str() {
                "crisp" => info.width.max(info.height) <= 480 || info.width == 480,
                "mono" => (info.width, info.height) == (160, 160),
                _ => true,
            };
            if !right {
                return Err(CliError::Failed(format!(
                    "{} is {}x{}",
                    output.key, info.width, info.height
                )));
            }
            seen += 1;
        }
        if seen < 2 {
            return Err(CliError::Failed(format!("run {} has {seen} results, not 2", run.run)));
        }
    }
    Ok(())
}

async fn to_zero(platform: &Platform, begun: Instant) -> Result<(), CliError> {
    let deadline = Instant::now() + PATIENCE;
    let mut table = platform.host.watch();
    let mut told = counts(&table.borrow_and_update());
    loop {
        let now = table.borrow_and_update().clone();
        tell(begun, &mut told, counts(&now));
        if now.pods.is_empty() {
            say!("{:>8.3} s  all functions are at zero", begun.elapsed().as_secs_f64());
            return Ok(());
        }
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return Err(stopped()) },
            () = tokio::time::sleep_until(deadline) => {
                return Err(CliError::Failed(format!("{} pods were still there after {PATIENCE:?}", now.pods.len())));
            }
        }
    }
}

/// What to try next.
pub fn print_next(platform: &Platform) {
    let exe = std::env::current_exe().map_or_else(|_| "imageflow".to_owned(), |p| p.display().to_string());
    let server = if platform.api_url == "http://127.0.0.1:8000" {
        String::new()
    } else {
        format!(" --server {}", platform.api_url)
    };
    say!("\nit stays up; try in another terminal:");
    say!(
        "  {exe}{server} invoke resize manifests/samples/photos/rocket.jpg -o small.webp --param width=320 --param format=webp"
    );
    say!("  {exe}{server} run product-photo manifests/samples/photos/*.png --out results");
    say!("  {exe}{server} scaling explain resize");
}
