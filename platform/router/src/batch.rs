//! One batch: what a number of records change, worked out before anything is written.
use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use imageflow_eventlog::{MAX_RECORD_BYTES, NewRecord, Record};
use imageflow_events::work::{Headers, letter_headers, step_headers};
use imageflow_flow::Effect;
use imageflow_process::trace;
use imageflow_resources::Catalog;
use imageflow_types::error::ErrorCode;
use imageflow_types::names::digest;
use imageflow_types::run::Plan;
use imageflow_types::work::{DeadLetter, Input, RunEvent, RunRequest, StepError, Target};
use imageflow_types::{FlowSpec, FunctionName, Problem, RunId, RunState, RunStatus, topics};

use crate::runs::Runs;

/// What a record holds besides its value: the key, and the attributes of the event.
const KEY_ROOM: usize = 32 * 1024;

/// What a run's state leaves free when it is made, so that its end can be written into it.
const END_ROOM: usize = 64 * 1024;

/// Longest message of a failure in what would be too large with all of it, in bytes.
const SHORT_MESSAGE: usize = 1024;

/// Most states are not larger: a buffer that grows is copied again and again.
const USUAL_BYTES: usize = 2048;

/// The changes of one batch.
#[derive(Default)]
pub struct Batch {
    /// The last state of each run, and as it will be written.
    states: HashMap<RunId, (RunState, Bytes)>,
    records: Vec<NewRecord>,
    /// Functions that get work, each once.
    functions: Vec<FunctionName>,
    /// Runs that begin in this batch.
    started: u64,
    /// How many runs ended in this batch, by status.
    ended: HashMap<RunStatus, u64>,
    letters: HashMap<&'static str, u64>,
    /// Reports of the end of what had ended already.
    repeated: u64,
    /// Plans made for this batch, for requests that want the same.
    plans: Vec<(Wish, Plan)>,
}

/// What a plan depends on, besides the catalogue, when every run of the target gets the same.
#[derive(PartialEq)]
struct Wish {
    target: Target,
    params: serde_json::Map<String, serde_json::Value>,
    fuse: bool,
}

/// Plans that a batch remembers. Events of one trigger come together; those of many are as rare as the plans differ.
const PLANS_KEPT: usize = 8;

impl Batch {
    /// Takes a wish for a run. A run that exists is not made again.
    pub fn request(&mut self, runs: &Runs, catalog: &Catalog, request: &RunRequest, fuse: bool, now_ms: i64) {
        if runs.knows(&request.run) || self.states.contains_key(&request.run) {
            return;
        }
        let span = tracing::info_span!("route", otel.kind = "consumer", run = %request.run, target = %request.target);
        trace::continue_from(&span, request.traceparent.as_deref());
        let _entered = span.enter();
        let made = self.plan(catalog, request, fuse).and_then(|plan| {
            let (state, effects) = imageflow_flow::start(request, plan, now_ms);
            let encoded = encode_within(&state, MAX_RECORD_BYTES - KEY_ROOM - END_ROOM)?;
            Ok((state, encoded, effects))
        });
        match made {
            Ok((state, encoded, effects)) => {
                self.started += 1;
                self.take(state, encoded, effects);
            }
            Err(problem) => self.refuse(request, &problem, now_ms),
        }
    }

    /// Ends a run that cannot be made: its id was told to somebody, who waits for its end.
    fn refuse(&mut self, request: &RunRequest, problem: &Problem, now_ms: i64) {
        let letter = refused(request, problem, now_ms);
        self.dead_letter(&letter);
        let mut error = letter.error;
        shorten(&mut error);
        // With what it was asked for, so that who asks again under its key is told that it is the same; as far as that has room.
        let ended = [request, &without_content(request)].into_iter().find_map(|request| {
            let state = imageflow_flow::refused(request, &error, now_ms);
            let encoded = encode(&state).ok()?;
            Some((state, encoded))
        });
        match ended {
            Some((state, encoded)) => self.take(state, encoded, vec![Effect::Finished(RunStatus::Failed)]),
            None => tracing::error!(run = %request.run, %problem, "a run that cannot be made cannot be ended"),
        }
    }

    /// Hands the wish for a run to the router that has its partition.
    pub fn pass_on(&mut self, request: RunRequest, now_ms: i64) {
        let event = RunEvent::Requested(request);
        match (encode(&event), event) {
            (Ok(value), event) => {
                let record = NewRecord::new(topics::RUN_EVENTS).key(event.run().as_str().to_owned());
                self.records.push(record.value(value));
            }
            (Err(problem), RunEvent::Requested(request)) => self.dead_letter(&refused(&request, &problem, now_ms)),
            (Err(_), _) => {}
        }
    }

    /// Takes what happened to a run.
    pub fn advance(&mut self, runs: &Runs, event: &RunEvent, now_ms: i64) {
        let run = event.run();
        let Some(state) = self.states.get(run).map(|(state, _)| state).or_else(|| runs.live(run)) else {
            // Ended or deleted: late news, or a repeat after a crash.
            self.repeated += u64::from(is_end(event));
            return;
        };
        let span = tracing::info_span!("advance", otel.kind = "consumer", run = %run, event = event.name());
        trace::continue_from(&span, state.request.traceparent.as_deref());
        let _entered = span.enter();
        let (next, effects) = imageflow_flow::advance(state, event, now_ms);
        if next.version == state.version {
            self.repeated += u64::from(is_end(event));
            return;
        }
        let problem = match encode(&next) {
            Ok(encoded) => return self.take(next, encoded, effects),
            Err(problem) => problem,
        };
        // Without the end of a stage, or of all, the run would never end. All else is news of the moment.
        let Some(short) = shortened(event, &problem) else {
            tracing::error!(%run, %problem, "news of a run are left out");
            return;
        };
        let bare = without_data(state);
        let shortest = without_attempts(&short);
        let ended = [(state, &short), (&bare, &short), (&bare, &shortest)]
            .into_iter()
            .find_map(|(state, event)| {
                let (next, effects) = imageflow_flow::advance(state, event, now_ms);
                let encoded = encode(&next).ok()?;
                Some((next, encoded, effects))
            });
        match ended {
            Some((next, encoded, effects)) => self.take(next, encoded, effects),
            None => tracing::error!(%run, %problem, "a run cannot be ended"),
        }
    }

    /// Takes a dead letter, or as much of it as a record takes.
    pub fn dead_letter(&mut self, letter: &DeadLetter) {
        let fits = |letter: &DeadLetter| encode(letter).is_ok();
        let mut letter = Cow::Borrowed(letter);
        if !fits(&letter) {
            // Messages quote what others sent.
            let letter = letter.to_mut();
            shorten(&mut letter.error);
            letter.attempts.iter_mut().for_each(|a| shorten(&mut a.error));
        }
        if !fits(&letter) {
            // What it was about is too large to be kept here a second time. The event itself stays in its topic.
            let letter = letter.to_mut();
            (letter.event, letter.request) = (None, None);
            letter
                .error
                .message
                .push_str(" (the event is too large to be kept with this; it stays in its topic until it is old)");
        }
        if let Some(record) = json(topics::DEAD_LETTERS, &letter.function, letter.as_ref()) {
            *self.letters.entry(letter.error.code.slug()).or_default() += 1;
            self.records.push(with(record, letter_headers(&letter)));
        }
    }

    /// Deletes ended runs from the changelog.
    pub fn delete(&mut self, runs: &[RunId]) {
        self.records.extend(
            runs.iter()
                .map(|r| NewRecord::tombstone(topics::RUNS, r.as_str().to_owned())),
        );
    }

    /// The records to write, handed out once: the last state of each run, then work and dead letters.
    #[must_use]
    pub fn take_records(&mut self) -> Vec<NewRecord> {
        let states = self.states.values().map(|(state, encoded)| {
            NewRecord::new(topics::RUNS)
                .key(state.run.as_str().to_owned())
                .value(encoded.clone())
        });
        states.chain(std::mem::take(&mut self.records)).collect()
    }

    /// The functions that get work by this batch.
    #[must_use]
    pub fn functions(&self) -> &[FunctionName] {
        &self.functions
    }

    /// Makes the changes known, once they are durable.
    pub fn apply(self, runs: &mut Runs) {
        metrics::counter!("imageflow_flow_runs_started_total").increment(self.started);
        metrics::counter!("imageflow_flow_repeated_reports_total").increment(self.repeated);
        for (status, count) in self.ended {
            metrics::counter!("imageflow_flow_runs_total", "status" => status.as_str()).increment(count);
        }
        for (code, count) in self.letters {
            metrics::counter!("imageflow_flow_dead_letters_total", "code" => code).increment(count);
        }
        for (state, _) in self.states.into_values() {
            runs.put(state);
        }
    }

    /// What a run will do: compiled once, kept in its state.
    fn plan(&mut self, catalog: &Catalog, request: &RunRequest, fuse: bool) -> Result<Plan, Problem> {
        let single;
        let flow: &FlowSpec = match &request.target {
            Target::Flow(name) => &catalog.flow(name.as_str())?.spec,
            Target::Function(name) => {
                catalog.function(name.as_str())?;
                single = imageflow_flow::function_flow(name, &request.params);
                &single
            }
        };
        // To check parameters against their schema takes longer than all else that a run's begin does.
        let wish = Wish {
            target: request.target.clone(),
            params: request.params.clone(),
            fuse: request.fuse && fuse,
        };
        if let Some((_, plan)) = self.plans.iter().find(|(known, _)| *known == wish) {
            return Ok(plan.clone());
        }
        let pick = imageflow_flow::pick(&request.run);
        let plan = imageflow_flow::compile(&request.target, flow, catalog, wish.fuse, pick)?;
        let shared = |name| {
            catalog
                .functions
                .get(name)
                .is_some_and(|f| !f.spec().traffic.is_empty())
        };
        if self.plans.len() < PLANS_KEPT && !flow.steps.iter().any(|step| shared(&step.function)) {
            self.plans.push((wish, plan.clone()));
        }
        Ok(plan)
    }

    fn take(&mut self, state: RunState, encoded: Bytes, effects: Vec<Effect>) {
        self.states.insert(state.run.clone(), (state, encoded));
        for effect in effects {
            match effect {
                Effect::Enqueue(mut step) => {
                    if !self.functions.contains(&step.function) {
                        self.functions.push(step.function.clone());
                    }
                    let caller = step.traceparent.as_deref();
                    step.traceparent = Some(trace::onward(&tracing::Span::current(), caller).to_string());
                    if let Some(record) = json(&topics::work(&step.function), step.run.as_str(), &step) {
                        self.records.push(with(record, step_headers(&step)));
                    }
                }
                Effect::DeadLetter(letter) => self.dead_letter(&letter),
                Effect::Finished(status) => *self.ended.entry(status).or_default() += 1,
            }
        }
    }
}

/// A run that cannot be made, because its flow or a function changed or went away since it was asked for.
fn refused(request: &RunRequest, problem: &Problem, now_ms: i64) -> DeadLetter {
    let code = match problem.code {
        code @ (ErrorCode::NotFound | ErrorCode::TooLarge) => code,
        _ => ErrorCode::InvalidArgument,
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

/// A request without what can be large in it.
fn without_content(request: &RunRequest) -> RunRequest {
    let mut request = request.clone();
    request.params.clear();
    if let Input::Event(event) = &mut request.input {
        *event = serde_json::Value::Null;
    }
    request
}

/// The value of a record, when it fits into one.
fn encode<T: serde::Serialize>(value: &T) -> Result<Bytes, Problem> {
    encode_within(value, MAX_RECORD_BYTES - KEY_ROOM)
}

fn encode_within<T: serde::Serialize>(value: &T, most: usize) -> Result<Bytes, Problem> {
    let mut encoded = Vec::with_capacity(USUAL_BYTES);
    serde_json::to_writer(&mut encoded, value).map_err(|e| Problem::new(ErrorCode::Internal, e.to_string()))?;
    if encoded.len() > most {
        let detail = format!(
            "the run would take {} bytes of the log, more than {most}: large data belongs into a bucket",
            encoded.len()
        );
        return Err(Problem::new(ErrorCode::TooLarge, detail));
    }
    Ok(encoded.into())
}

/// The end that an event tells, for a run that cannot hold all of it: a result that has no room is a failure.
fn shortened(event: &RunEvent, problem: &Problem) -> Option<RunEvent> {
    let mut event = event.clone();
    match &mut event {
        RunEvent::Cancel { .. } => {}
        RunEvent::StageFailed { error, attempts, .. } => {
            shorten(error);
            attempts.iter_mut().for_each(|a| shorten(&mut a.error));
        }
        RunEvent::StageCompleted { run, stage, at_ms, .. } => {
            let error = StepError {
                code: problem.code,
                message: problem.to_string(),
                status: None,
                step: None,
            };
            return Some(RunEvent::StageFailed {
                run: run.clone(),
                stage: *stage,
                error,
                attempts: Vec::new(),
                at_ms: *at_ms,
            });
        }
        _ => return None,
    }
    Some(event)
}

fn shorten(error: &mut StepError) {
    let end = error.message.floor_char_boundary(SHORT_MESSAGE);
    error.message.truncate(end);
}

fn without_attempts(event: &RunEvent) -> RunEvent {
    let mut event = event.clone();
    if let RunEvent::StageFailed { attempts, .. } = &mut event {
        attempts.clear();
    }
    event
}

/// A state without what its steps brought along, which lies beside their results too.
fn without_data(state: &RunState) -> RunState {
    let mut state = state.clone();
    for step in &mut state.steps {
        step.data = serde_json::Value::Null;
        step.attempts.clear();
        step.error.iter_mut().for_each(shorten);
    }
    state
}

/// Whether it tells that a stage's work is over. For one that was over already the work, or its report, was done twice.
const fn is_end(event: &RunEvent) -> bool {
    matches!(event, RunEvent::StageCompleted { .. } | RunEvent::StageFailed { .. })
}

/// The value of a run event's record.
pub fn read_run_event(record: &Record) -> Result<RunEvent, serde_json::Error> {
    serde_json::from_slice(record.value.as_deref().unwrap_or_default())
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

fn with(mut record: NewRecord, headers: Headers) -> NewRecord {
    record.headers = headers;
    record
}
