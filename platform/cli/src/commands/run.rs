//! `run`: files through a flow, watched until they are done.
use std::path::PathBuf;

use futures::StreamExt;
use imageflow_types::{ErrorCode, RunId, RunState, RunStatus};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::progress::{FileProgress, Progress};
use super::results::{Results, labels, once, titles};
use super::{files, follow};
use crate::args::Format;
use crate::args::work::RunArgs;
use crate::client::{Client, NewRun, Started, encode};
use crate::error::CliError;
use crate::output::{Context, table};
use crate::render;

/// How one file went.
struct Outcome {
    file: PathBuf,
    title: String,
    id: Option<RunId>,
    run: Option<RunState>,
    written: Vec<PathBuf>,
    error: Option<CliError>,
}

impl Outcome {
    /// How it stands, in a word. What could not be seen to its end goes on.
    fn status(&self) -> &'static str {
        match (&self.error, &self.run) {
            (Some(_), Some(run)) if !run.status.is_final() => run.status.as_str(),
            (Some(_), None) if self.id.is_some() => "waiting",
            (Some(_), _) => "failed",
            (None, Some(run)) => run.status.as_str(),
            (None, None) => "waiting",
        }
    }
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
    let inputs = once(&args.files);
    for file in &inputs {
        std::fs::metadata(file).map_err(|source| CliError::Input {
            path: file.clone(),
            source,
        })?;
    }
    let results = args
        .out
        .as_deref()
        .map(|dir| Results::open(dir, args.force))
        .transpose()?;
    let names: Vec<_> = labels(&inputs).into_iter().zip(titles(&inputs)).collect();
    let client = cx.client.clone();
    let parallel = usize::try_from(args.parallel).unwrap_or(1);
    let progress = Progress::of(cx);
    let work = Work {
        client: &client,
        args: &args,
        results: results.as_ref(),
        progress: &progress,
    };
    let work = &work;
    // Whichever is done makes room for the next; told they are in the order of the files.
    let mut outcomes: Vec<(usize, Outcome)> = futures::stream::iter(names.into_iter().zip(inputs).enumerate())
        .map(|(i, ((label, title), file))| async move { (i, work.one(label, title, file).await) })
        .buffer_unordered(parallel)
        .collect()
        .await;
    outcomes.sort_by_key(|(i, _)| *i);
    let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    progress.clear();
    // That nobody reads the report hides no failure.
    let told = report(cx, &args, &outcomes);
    if let Some(dir) = &args.out {
        let written: usize = outcomes.iter().map(|o| o.written.len()).sum();
        cx.note(format!("{written} results in {}", dir.display()));
    }
    let total = outcomes.len();
    outcomes.retain(|o| o.error.is_some());
    let failed = outcomes.len();
    match outcomes.into_iter().find_map(|o| o.error) {
        None => told,
        Some(e) if e.exit_code() != 1 || total == 1 => Err(e),
        Some(_) => Err(CliError::Failed(format!("{failed} of {total} failed"))),
    }
}

/// What all files of one command share.
struct Work<'a, 'p> {
    client: &'a Client,
    args: &'a RunArgs,
    results: Option<&'a Results>,
    progress: &'a Progress<'p>,
}

impl Work<'_, '_> {
    async fn one(&self, label: String, title: String, file: PathBuf) -> Outcome {
        let mut told = self.progress.file(title.clone());
        let mut outcome = Outcome {
            file,
            title,
            id: None,
            run: None,
            written: vec![],
            error: None,
        };
        let work = self.follow(&label, &mut outcome, &mut told);
        let ended = tokio::time::timeout(self.args.timeout.0, work).await;
        outcome.error = match ended {
            Ok(result) => result.err(),
            Err(_) => {
                let within = format!("not done within {}", self.args.timeout);
                Some(CliError::Failed(match &outcome.id {
                    Some(id) => format!("{within}; it goes on: `imageflow runs describe {id} --watch`"),
                    None => within,
                }))
            }
        };
        told.end(outcome.status(), outcome.error.as_ref());
        outcome
    }

    async fn follow(
        &self,
        label: &str,
        outcome: &mut Outcome,
        told: &mut FileProgress<'_, '_>,
    ) -> Result<(), CliError> {
        let (client, args) = (self.client, self.args);
        let image = files::read(&outcome.file)?;
        let key = if args.again {
            uuid::Uuid::new_v4().to_string()
        } else {
            idempotency_key(&args.flow, &files::name(&outcome.file), !args.no_fuse, &image)
        };
        let new = NewRun {
            target: &args.flow,
            image,
            idempotency_key: &key,
            fuse: !args.no_fuse,
            timeout: args.timeout.0,
        };
        let started = match client.start_run(new).await {
            Ok(started) => started,
            Err(e) => return Err(self.better(e).await),
        };
        let id = started.run().to_string();
        outcome.id = Some(started.run().clone());
        match started {
            Started::Run(state) => {
                told.state(&state);
                outcome.run = Some(*state);
            }
            Started::Asked { .. } => told.waiting(),
        }
        if args.no_wait {
            return Ok(());
        }
        let state = self.end_of(&id, outcome, told).await?;
        if let Some(results) = self.results {
            for (step, object) in state.results() {
                let step = step.to_string();
                let image = client.run_output(&id, &step).await?;
                outcome.written.push(results.keep(label, &step, &object.key, &image)?);
            }
        }
        match (state.status, state.error()) {
            (RunStatus::Succeeded, _) => Ok(()),
            (_, Some((step, error))) => Err(CliError::Failed(format!("{step}: {}", error.message))),
            (status, None) => Err(CliError::Failed(format!("the run was {}", status.as_str()))),
        }
    }

    /// Who names a function where a flow is meant is told how to write it.
    async fn better(&self, error: CliError) -> CliError {
        let name = &self.args.flow;
        let missing = matches!(&error, CliError::Problem(p) if p.code == ErrorCode::NotFound);
        if !missing || name.contains('/') {
            return error;
        }
        match self
            .client
            .get_json::<Value>(format!("/v1/functions/{}", encode(name)))
            .await
        {
            Ok(_) => CliError::Failed(format!(
                "there is no flow \"{name}\"; for the function write function/{name}"
            )),
            Err(_) => error,
        }
    }

    /// Watches a run to its end.
    async fn end_of(
        &self,
        id: &str,
        outcome: &mut Outcome,
        told: &mut FileProgress<'_, '_>,
    ) -> Result<RunState, CliError> {
        if let Some(state) = outcome.run.as_ref().filter(|s| s.status.is_final()) {
            return Ok(state.clone());
        }
        // It was asked for, so it is sure to come, however far behind the platform is.
        follow::to_end(self.client, id, true, |state| {
            told.state(state);
            outcome.run = Some(state.clone());
        })
        .await
    }
}

fn report(cx: &mut Context, args: &RunArgs, outcomes: &[Outcome]) -> Result<(), CliError> {
    if matches!(cx.format, Format::Json | Format::Yaml) {
        let items: Vec<Value> = outcomes
            .iter()
            .map(|o| {
                // A name that is no text would be no JSON.
                let written: Vec<_> = o.written.iter().map(|path| path.to_string_lossy()).collect();
                json!({"file": o.file.to_string_lossy(), "id": o.id, "run": o.run, "written": written, "error": o.error.as_ref().map(CliError::problem)})
            })
            .collect();
        return cx.structured(&json!({"items": items})).map(drop);
    }
    if cx.format == Format::Name {
        return outcomes
            .iter()
            .filter_map(|o| o.id.as_ref())
            .try_for_each(|id| cx.line(id.as_str()));
    }
    let rows = outcomes.iter().map(|o| {
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
        let id = o.id.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        vec![o.title.clone(), o.status().to_owned(), ms, id, about]
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
}
