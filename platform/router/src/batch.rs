//! One batch: what a number of records change, worked out before anything is written.
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use imageflow_eventlog::{NewRecord, Record};
use imageflow_flow::Effect;
use imageflow_resources::Catalog;
use imageflow_types::error::ErrorCode;
use imageflow_types::names::digest;
use imageflow_types::work::{DeadLetter, RunEvent, RunRequest, StepError, Target};
use imageflow_types::{FlowSpec, Problem, RunId, RunState, topics};

use crate::runs::Runs;

/// The changes of one batch.
#[derive(Default)]
pub struct Batch {
    states: HashMap<RunId, RunState>,
    records: Vec<NewRecord>,
    /// Runs that were asked for and are in this batch or known, for metrics.
    pub started: u64,
    /// Runs that ended in this batch.
    pub ended: u64,
}

impl Batch {
    /// Takes a wish for a run. A run that exists is not made again.
    pub fn request(&mut self, runs: &Runs, catalog: &Catalog, request: &RunRequest, fuse: bool, now_ms: i64) {
        if runs.knows(&request.run) || self.states.contains_key(&request.run) {
            return;
        }
        match plan(catalog, request, fuse) {
            Ok(plan) => {
                let (state, effects) = imageflow_flow::start(request, plan, now_ms);
                self.started += 1;
                self.take(state, effects);
            }
            Err(problem) => self.dead_letter(&refused(request, &problem, now_ms)),
        }
    }

    /// Takes what happened to a run.
    pub fn advance(&mut self, runs: &Runs, event: &RunEvent, now_ms: i64) {
        let run = event.run();
        let Some(state) = self.states.get(run).or_else(|| runs.live(run)) else {
            // Ended or deleted: late news, or a repeat after a crash.
            return;
        };
        let (next, effects) = imageflow_flow::advance(state, event, now_ms);
        if next.version != state.version {
            self.take(next, effects);
        }
    }

    /// Takes a dead letter that belongs to no run.
    pub fn dead_letter(&mut self, letter: &DeadLetter) {
        if let Some(record) = json(topics::DEAD_LETTERS, &letter.function, letter) {
            metrics::counter!("imageflow_flow_dead_letters_total", "code" => letter.error.code.slug()).increment(1);
            self.records.push(record);
        }
    }

    /// Deletes ended runs from the changelog.
    pub fn delete(&mut self, runs: &[RunId]) {
        self.records.extend(
            runs.iter()
                .map(|r| NewRecord::tombstone(topics::RUNS, r.as_str().to_owned())),
        );
    }

    /// The records to write: the last state of each run, then work and dead letters.
    #[must_use]
    pub fn records(&self) -> Vec<NewRecord> {
        let states = self
            .states
            .values()
            .filter_map(|state| json(topics::RUNS, state.run.as_str(), state));
        states.chain(self.records.iter().cloned()).collect()
    }

    /// Makes the changes known, once they are durable.
    pub fn apply(self, runs: &mut Runs) {
        for state in self.states.into_values() {
            runs.put(state);
        }
    }

    fn take(&mut self, state: RunState, effects: Vec<Effect>) {
        match self.states.entry(state.run.clone()) {
            Entry::Occupied(mut entry) => {
                entry.insert(state);
            }
            Entry::Vacant(entry) => {
                entry.insert(state);
            }
        }
        for effect in effects {
            match effect {
                Effect::Enqueue(step) => {
                    if let Some(record) = json(&topics::work(&step.function), step.run.as_str(), &step) {
                        self.records.push(record);
                    }
                }
                Effect::DeadLetter(letter) => self.dead_letter(&letter),
                Effect::Finished(status) => {
                    self.ended += 1;
                    metrics::counter!("imageflow_flow_runs_total", "status" => status.as_str()).increment(1);
                }
            }
        }
    }
}

/// What a run will do: compiled once, kept in its state.
fn plan(catalog: &Catalog, request: &RunRequest, fuse: bool) -> Result<imageflow_types::run::Plan, Problem> {
    let pick = u64::from_str_radix(&digest(&["pick", request.run.as_str()])[..8], 16).unwrap_or(0);
    let single;
    let flow: &FlowSpec = match &request.target {
        Target::Flow(name) => &catalog.flow(name.as_str())?.spec,
        Target::Function(name) => {
            catalog.function(name.as_str())?;
            single = imageflow_flow::function_flow(name, &request.params);
            &single
        }
    };
    Ok(imageflow_flow::compile(
        &request.target,
        flow,
        catalog,
        request.fuse && fuse,
        pick,
    )?)
}

/// A run that cannot be made, because its flow or a function changed or went away since it was asked for.
fn refused(request: &RunRequest, problem: &Problem, now_ms: i64) -> DeadLetter {
    let code = if problem.code == ErrorCode::NotFound {
        ErrorCode::NotFound
    } else {
        ErrorCode::InvalidArgument
    };
    DeadLetter {
        id: format!("dl-{}", &digest(&["refused", request.run.as_str()])[..24]),
        run: Some(request.run.clone()),
        function: match &request.target {
            Target::Function(name) => name.to_string(),
            Target::Flow(_) => "-".to_owned(),
        },
        error: StepError {
            code,
            message: problem.to_string(),
            status: None,
            step: None,
        },
        attempts: Vec::new(),
        request: Some(request.clone()),
        event: None,
        at_ms: now_ms,
    }
}

/// The value of a run event's record.
pub fn read_run_event(record: &Record) -> Option<RunEvent> {
    let value = record.value.as_ref()?;
    match serde_json::from_slice(value) {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::error!(partition = record.partition, offset = record.offset, %error, "a run event cannot be read");
            metrics::counter!("imageflow_flow_unreadable_total").increment(1);
            None
        }
    }
}

fn json<T: serde::Serialize>(topic: &str, key: &str, value: &T) -> Option<NewRecord> {
    match serde_json::to_vec(value) {
        Ok(value) => Some(NewRecord::new(topic).key(key.to_owned()).value(value)),
        Err(error) => {
            tracing::error!(topic, key, %error, "a record cannot be written");
            None
        }
    }
}
