//! `run`: files through a flow, watched until they are done.
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use imageflow_types::{RunState, RunStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::files;
use crate::args::Format;
use crate::args::work::RunArgs;
use crate::client::{Client, NewRun};
use crate::error::CliError;
use crate::output::{Context, table};
use crate::render;

/// How one file went.
struct Outcome {
    file: PathBuf,
    run: Option<RunState>,
    written: Vec<PathBuf>,
    error: Option<CliError>,
}

/// The key that makes a repeat of the same file in the same flow the same run.
#[must_use]
pub fn idempotency_key(target: &str, name: &str, fuse: bool, image: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [target, name, if fuse { "fused" } else { "apart" }] {
        // With its length, so that no two lists of parts run into the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update(image);
    let mut key = hex::encode(hash.finalize());
    key.truncate(40);
    key
}

/// `imageflow run`
///
/// # Errors
/// The first file's error when it is one of use or reach; else that some failed.
pub async fn run(cx: &mut Context, args: RunArgs) -> Result<(), CliError> {
    // All files are looked at before anything starts: a typing error in the last should not cost the others' work.
    for file in &args.files {
        std::fs::metadata(file).map_err(|source| CliError::Input {
            path: file.clone(),
            source,
        })?;
    }
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir).map_err(|source| CliError::Output {
            path: dir.clone(),
            source,
        })?;
    }
    let target = if cx.live {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bars = MultiProgress::with_draw_target(target);
    let client = cx.client.clone();
    let parallel = usize::try_from(args.parallel).unwrap_or(1);
    let mut outcomes: Vec<Outcome> = futures::stream::iter(args.files.clone())
        .map(|file| one(&client, &args, file, &bars))
        .buffered(parallel)
        .collect()
        .await;
    drop(bars);
    report(cx, &args, &outcomes)?;
    let total = outcomes.len();
    outcomes.retain(|o| o.error.is_some());
    let failed = outcomes.len();
    match outcomes.into_iter().find_map(|o| o.error) {
        None => Ok(()),
        Some(e) if e.exit_code() != 1 || total == 1 => Err(e),
        Some(_) => Err(CliError::Failed(format!("{failed} of {total} failed"))),
    }
}

async fn one(client: &Client, args: &RunArgs, file: PathBuf, bars: &MultiProgress) -> Outcome {
    let bar = bars.add(ProgressBar::new(1));
    if let Ok(style) = ProgressStyle::with_template("{prefix:24!} {bar:16} {pos}/{len} {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(files::name(&file));
    let mut outcome = Outcome {
        file,
        run: None,
        written: vec![],
        error: None,
    };
    let work = follow(client, args, &mut outcome, &bar);
    let ended = tokio::time::timeout(args.timeout.0, work).await;
    outcome.error = match ended {
        Ok(result) => result.err(),
        Err(_) => {
            let id = outcome.run.as_ref().map_or_else(String::new, |r| r.run.to_string());
            Some(CliError::Failed(format!(
                "not done in time; see `imageflow runs describe {id}`"
            )))
        }
    };
    match &outcome.error {
        Some(e) => bar.abandon_with_message(e.text().lines().next().unwrap_or_default().to_owned()),
        None => bar.abandon(),
    }
    outcome
}

async fn follow(client: &Client, args: &RunArgs, outcome: &mut Outcome, bar: &ProgressBar) -> Result<(), CliError> {
    let image = files::read(&outcome.file)?;
    let key = if args.again {
        uuid::Uuid::new_v4().to_string()
    } else {
        idempotency_key(&args.flow, &files::name(&outcome.file), !args.no_fuse, &image)
    };
    bar.set_message("uploading");
    let new = NewRun {
        target: &args.flow,
        image,
        idempotency_key: &key,
        fuse: !args.no_fuse,
    };
    let mut state = client.start_run(new).await?;
    show(bar, &state);
    let id = state.run.to_string();
    outcome.run = Some(state.clone());
    if args.no_wait {
        return Ok(());
    }
    while !state.status.is_final() {
        let mut lines = client.watch_run(&id).await?;
        while !state.status.is_final() {
            // A stream may end early, for example when the server restarts; then it is asked for anew.
            let Some(next) = lines.next::<RunState>().await? else {
                break;
            };
            show(bar, &next);
            state = next;
            outcome.run = Some(state.clone());
        }
        if !state.status.is_final() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    if let Some(dir) = &args.out {
        let results: Vec<_> = state
            .results()
            .map(|(step, object)| (step.to_string(), object.key.clone()))
            .collect();
        for (step, key) in results {
            let image = client.run_output(&id, &step).await?;
            let path = dir.join(result_name(&outcome.file, &step, &key));
            std::fs::write(&path, &image).map_err(|source| CliError::Output {
                path: path.clone(),
                source,
            })?;
            outcome.written.push(path);
        }
    }
    match (state.status, state.error()) {
        (RunStatus::Succeeded, _) => Ok(()),
        (_, Some((step, error))) => Err(CliError::Failed(format!("{step}: {}", error.message))),
        (status, None) => Err(CliError::Failed(format!("the run was {}", status.as_str()))),
    }
}

fn show(bar: &ProgressBar, state: &RunState) {
    let (over, all) = render::ended(state);
    bar.set_length(all);
    bar.set_position(over);
    bar.set_message(render::progress(state));
}

/// `cat.png` through step `small` with the result `…/cat-1234.jpg` is `cat-small.jpg`.
fn result_name(file: &Path, step: &str, key: &str) -> String {
    let stem = file
        .file_stem()
        .map_or_else(|| "image".to_owned(), |s| s.to_string_lossy().into_owned());
    match Path::new(key).extension() {
        Some(extension) => format!("{stem}-{step}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{step}"),
    }
}

fn report(cx: &mut Context, args: &RunArgs, outcomes: &[Outcome]) -> Result<(), CliError> {
    if matches!(cx.format, Format::Json | Format::Yaml) {
        let items: Vec<Value> = outcomes
            .iter()
            .map(|o| {
                json!({"file": o.file, "run": o.run, "written": o.written, "error": o.error.as_ref().map(CliError::problem)})
            })
            .collect();
        return cx.structured(&json!({"items": items})).map(drop);
    }
    if cx.format == Format::Name {
        return outcomes
            .iter()
            .filter_map(|o| o.run.as_ref())
            .try_for_each(|r| cx.line(r.run.as_str()));
    }
    let rows = outcomes.iter().map(|o| {
        let status = match (&o.error, &o.run) {
            (None, Some(run)) => run.status.as_str(),
            _ => "failed",
        };
        let ms = o
            .run
            .as_ref()
            .filter(|_| !args.no_wait)
            .map_or_else(|| "-".to_owned(), |r| (r.updated_ms - r.created_ms).to_string());
        let about = match (&o.error, &o.run) {
            (Some(e), _) => e.text().lines().next().unwrap_or_default().to_owned(),
            (None, Some(run)) => render::progress(run),
            _ => String::new(),
        };
        let id = o.run.as_ref().map_or_else(|| "-".to_owned(), |r| r.run.to_string());
        vec![files::name(&o.file), status.to_owned(), ms, id, about]
    });
    let text = table(&["file", "status", "ms", "run", "steps"], rows, cx.color);
    cx.line(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_file_in_the_same_flow_has_the_same_key() {
        let key = idempotency_key("thumbs", "a.jpg", true, b"x");
        assert_eq!(key, idempotency_key("thumbs", "a.jpg", true, b"x"));
        for other in [
            idempotency_key("thumb", "sa.jpg", true, b"x"),
            idempotency_key("thumbs", "b.jpg", true, b"x"),
            idempotency_key("thumbs", "a.jpg", false, b"x"),
            idempotency_key("thumbs", "a.jpg", true, b"y"),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn a_result_is_named_after_its_file_and_step() {
        assert_eq!(
            result_name(Path::new("p/cat.png"), "small", "thumbs/small/cat-12.jpg"),
            "cat-small.jpg"
        );
        assert_eq!(result_name(Path::new("cat"), "small", "x"), "cat-small");
    }
}
