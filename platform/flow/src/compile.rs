//! From a flow to a plan: checks the graph and the parameters, chooses revisions, fuses adjacent steps.
use std::borrow::Cow;

use imageflow_types::flow::FlowOutput;
use imageflow_types::names::{digest, nearest};
use imageflow_types::run::{Plan, Stage};
use imageflow_types::work::{StageStep, Target};
use imageflow_types::{
    FieldError, FieldErrors, FlowSpec, FlowStep, FunctionName, FunctionSpec, Revision, RevisionName, RunId, StepName,
    schema,
};
use serde_json::{Map, Value};

use crate::graph::Graph;

/// A flow has at most this many steps.
pub const MAX_STEPS: usize = 100;

/// What the compiler knows of the functions: a view of the catalogue of resources.
pub trait FunctionLookup {
    /// The function of that name.
    fn get(&self, name: &FunctionName) -> Option<FunctionView<'_>>;
    /// All names, to tell the nearest.
    fn names(&self) -> Vec<&str>;
    /// JSON Schema of the parameters that a spec takes, or the template of a revision; `None` when it does not publish one, then
    /// any parameter is taken.
    fn schema<'a>(&'a self, spec: &'a FunctionSpec) -> Option<Cow<'a, Value>>;
}

/// One function as the compiler sees it.
pub struct FunctionView<'a> {
    /// The function as applied last.
    pub spec: &'a FunctionSpec,
    /// Its revisions, in any order.
    pub revisions: &'a [Revision],
}

/// A revision with what a run takes of its function besides.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    revision: &'a Revision,
    /// Attempts after the first.
    retry: u32,
}

/// A function as a flow: one step, named like the function (cut to the length of a step's name).
#[must_use]
pub fn function_flow(function: &FunctionName, params: &Map<String, Value>) -> FlowSpec {
    let steps = step_named(function.as_str()).map(|name| FlowStep {
        name,
        function: function.clone(),
        after: Vec::new(),
        params: params.clone(),
    });
    FlowSpec {
        steps: steps.into_iter().collect(),
        output: FlowOutput::default(),
        buckets: imageflow_types::flow::default_buckets(),
    }
}

/// A step that has the name of something else, cut to the length of a step's name.
pub(crate) fn step_named(text: &str) -> Option<StepName> {
    let cut: String = text.chars().take(40).collect();
    StepName::new(cut.trim_end_matches('-')).ok()
}

/// Checks a flow as somebody wrote it: graph, functions and parameters. Parameters must fit every revision that has traffic: a run
/// may get any of them.
///
/// # Errors
/// Every fault found, each with its field.
pub fn check(flow: &FlowSpec, functions: &dyn FunctionLookup) -> Result<(), FieldErrors> {
    let mut faults = shape(flow);
    if let Err(found) = Graph::of(flow) {
        faults.extend(found);
    }
    for (i, step) in flow.steps.iter().enumerate() {
        match functions.get(&step.function) {
            Some(view) => {
                for (spec, revision) in routed(&view) {
                    let found = check_params(i, step, spec, functions).into_iter();
                    faults.extend(found.map(|fault| by_revision(fault, revision)));
                }
            }
            None => faults.push(unknown_function(i, step, functions)),
        }
    }
    FieldErrors(faults).into_result()
}

/// Makes the plan of one run.
///
/// `flow` is the flow that `target` names, or [`function_flow`] for a function. [`pick()`] makes `pick` of the run's id.
///
/// Parameters of a flow were checked when it was applied and are not checked again for every run; those of a
/// `Target::Function` come from a caller and are checked here, by the revision that the run gets.
///
/// Two adjacent steps become one stage when `fuse` is set, the second is the only successor of the first, and both are
/// catalogue operations without GPU and without variables of their own (`env` could change what an operation does, and
/// the stage runs in only one function's pods). These pods give the stage their function's time limit and retries, so a step
/// whose own function allows more of either stays by itself.
///
/// # Errors
/// Every fault found. Field paths start at `spec.steps[i]`, for a function as target at `params`.
pub fn compile(
    target: &Target,
    flow: &FlowSpec,
    functions: &dyn FunctionLookup,
    fuse: bool,
    pick: u64,
) -> Result<Plan, FieldErrors> {
    let is_function = matches!(target, Target::Function(_));
    let result = plan(flow, functions, fuse, pick, is_function);
    if !is_function {
        return result;
    }
    result.map_err(|FieldErrors(faults)| FieldErrors(faults.into_iter().map(as_caller_sees_it).collect()))
}

/// The caller of a function never wrote a step.
fn as_caller_sees_it(mut fault: FieldError) -> FieldError {
    if let Some(rest) = fault.field.strip_prefix("spec.steps[0].") {
        fault.field = rest.to_owned();
    }
    fault
}

fn shape(flow: &FlowSpec) -> Vec<FieldError> {
    let mut faults = Vec::new();
    if flow.steps.is_empty() {
        faults.push(FieldError::new("spec.steps", "a flow has at least one step"));
    }
    if flow.steps.len() > MAX_STEPS {
        faults.push(
            FieldError::new(
                "spec.steps",
                format!("{} steps are over the limit of {MAX_STEPS}", flow.steps.len()),
            )
            .remedy("split it into several flows"),
        );
    }
    if flow.output.bucket.is_empty() {
        faults.push(FieldError::new("spec.output.bucket", "is empty"));
    }
    faults
}

fn unknown_function(i: usize, step: &FlowStep, functions: &dyn FunctionLookup) -> FieldError {
    let fault = FieldError::new(
        format!("spec.steps[{i}].function"),
        format!("there is no function \"{}\"", step.function),
    );
    match nearest(step.function.as_str(), functions.names()) {
        Some(near) => fault.remedy(format!("did you mean \"{near}\"?")),
        None => fault.remedy("apply the function first"),
    }
}

fn merged(defaults: &Map<String, Value>, own: &Map<String, Value>) -> Map<String, Value> {
    let mut all = defaults.clone();
    all.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// The specs by which the parameters of a step are checked: the function as applied, of which its latest revision is, and each
/// named revision that has traffic, with its name.
fn routed<'a>(view: &FunctionView<'a>) -> Vec<(&'a FunctionSpec, Option<&'a RevisionName>)> {
    let spec = view.spec;
    let shares = || spec.traffic.iter().filter(|share| share.percent > 0);
    let latest = spec.traffic.is_empty() || shares().any(|share| share.revision.is_none());
    let named = |revision: &&'a Revision| shares().any(|share| share.revision.as_ref() == Some(&revision.name));
    let of_revisions = view.revisions.iter().filter(named);
    latest
        .then_some((spec, None))
        .into_iter()
        .chain(of_revisions.map(|r| (&r.template, Some(&r.name))))
        .collect()
}

fn by_revision(mut fault: FieldError, revision: Option<&RevisionName>) -> FieldError {
    if let Some(name) = revision {
        fault.message = format!("{} (for revision \"{name}\", which has traffic)", fault.message);
    }
    fault
}

fn check_params(i: usize, step: &FlowStep, spec: &FunctionSpec, functions: &dyn FunctionLookup) -> Vec<FieldError> {
    let Some(wanted) = functions.schema(spec) else {
        return Vec::new();
    };
    let all = Value::Object(merged(&spec.params, &step.params));
    schema::check(&wanted, &all)
        .into_iter()
        .map(|mut fault| {
            let name = fault.field.split(['.', '[']).next().unwrap_or_default();
            if spec.params.contains_key(name) && !step.params.contains_key(name) {
                fault.message = format!("{} (set by function \"{}\" itself)", fault.message, step.function);
            }
            fault.under(&format!("spec.steps[{i}].params"))
        })
        .collect()
}

fn plan(
    flow: &FlowSpec,
    functions: &dyn FunctionLookup,
    fuse: bool,
    pick: u64,
    check_parameters: bool,
) -> Result<Plan, FieldErrors> {
    let faults = shape(flow);
    if !faults.is_empty() {
        return Err(FieldErrors(faults));
    }
    let graph = Graph::of(flow).map_err(FieldErrors)?;
    let mut faults = Vec::new();
    let mut chosen: Vec<Chosen<'_>> = Vec::with_capacity(flow.steps.len());
    for (i, step) in flow.steps.iter().enumerate() {
        let Some(view) = functions.get(&step.function) else {
            faults.push(unknown_function(i, step, functions));
            continue;
        };
        match choose(&step.function, view.spec, view.revisions, pick) {
            Ok(revision) => {
                if check_parameters {
                    faults.extend(check_params(i, step, &revision.template, functions));
                }
                let retry = view.spec.delivery.retry;
                chosen.push(Chosen { revision, retry });
            }
            Err(message) => faults.push(FieldError::new(format!("spec.steps[{i}].function"), message)),
        }
    }
    FieldErrors(faults).into_result()?;
    Ok(Plan {
        stages: stages(flow, &graph, &chosen, fuse),
        bucket: flow.output.bucket.clone(),
    })
}

/// The number by which a run chooses among revisions: derived from its id, so that it always makes the same choice.
#[must_use]
pub fn pick(run: &RunId) -> u64 {
    u64::from_str_radix(&digest(&["pick", run.as_str()])[..8], 16).unwrap_or(0)
}

/// The revision for one run, by the shares of the traffic; different functions choose independently.
///
/// # Errors
/// What is wrong, when the function has no revision or gives traffic to one that is not there.
pub fn choose<'a>(
    function: &FunctionName,
    spec: &FunctionSpec,
    revisions: &'a [Revision],
    pick: u64,
) -> Result<&'a Revision, String> {
    let latest = revisions
        .iter()
        .max_by_key(|r| r.number)
        .ok_or_else(|| format!("function \"{function}\" has no revision yet"))?;
    let total: u64 = spec.traffic.iter().map(|t| u64::from(t.percent)).sum();
    if total == 0 {
        return Ok(latest);
    }
    // Mixed with the function's name: else the same runs would get the canary of every function.
    let hash = digest(&["traffic", function.as_str(), &pick.to_string()]);
    let mut point = u64::from_str_radix(&hash[..12], 16).unwrap_or(pick) % total;
    for share in &spec.traffic {
        let percent = u64::from(share.percent);
        if point >= percent {
            point -= percent;
            continue;
        }
        let Some(name) = &share.revision else { return Ok(latest) };
        return revisions.iter().find(|r| &r.name == name).ok_or_else(|| {
            format!("function \"{function}\" gives traffic to revision \"{name}\", which is not there")
        });
    }
    Ok(latest)
}

fn fusible(revision: &Revision) -> bool {
    let template = &revision.template;
    template.operation.is_some() && template.resources.gpu == 0 && template.env.is_empty()
}

/// Whether the pods of one function may do all of it: no step has more time, or more attempts, by itself.
fn may_share(members: &[usize], one: usize, chosen: &[Chosen<'_>]) -> bool {
    let all = [members, &[one]].concat();
    let Some(host) = dearest(&all, chosen) else {
        return false;
    };
    let spared =
        |one: &Chosen<'_>| one.revision.template.timeout <= host.revision.template.timeout && one.retry <= host.retry;
    all.iter().all(|i| spared(&chosen[*i]))
}

fn stages(flow: &FlowSpec, graph: &Graph, chosen: &[Chosen<'_>], fuse: bool) -> Vec<Stage> {
    let mut successors = vec![0_u32; flow.steps.len()];
    for parent in graph.parent.iter().flatten() {
        successors[*parent] += 1;
    }
    // Groups of step indexes, each with the group it comes after; a group is opened before any that follows it.
    let mut groups: Vec<(Vec<usize>, Option<usize>)> = Vec::new();
    let mut group_of = vec![0_usize; flow.steps.len()];
    for &i in &graph.order {
        let parent = graph.parent[i];
        let joins = parent.filter(|p| {
            let alike = fuse && successors[*p] == 1 && fusible(chosen[*p].revision) && fusible(chosen[i].revision);
            alike && may_share(&groups[group_of[*p]].0, i, chosen)
        });
        if let Some(p) = joins {
            group_of[i] = group_of[p];
            groups[group_of[p]].0.push(i);
        } else {
            group_of[i] = groups.len();
            groups.push((vec![i], parent.map(|p| group_of[p])));
        }
    }
    let mut followed = vec![false; groups.len()];
    for after in groups.iter().filter_map(|(_, after)| *after) {
        followed[after] = true;
    }
    groups
        .iter()
        .zip(followed)
        .filter_map(|((members, after), intermediate)| {
            let host = dearest(members, chosen)?.revision;
            Some(Stage {
                function: host.function.clone(),
                revision: host.name.clone(),
                digest: stage_digest(members, chosen),
                steps: members
                    .iter()
                    .map(|i| stage_step(&flow.steps[*i], chosen[*i].revision))
                    .collect(),
                after: after.and_then(|a| u32::try_from(a).ok()),
                intermediate,
            })
        })
        .collect()
}

/// The step that needs the biggest pod gives its pods to the whole stage; among equals the last.
fn dearest<'a>(members: &[usize], chosen: &[Chosen<'a>]) -> Option<Chosen<'a>> {
    members.iter().map(|i| chosen[*i]).max_by_key(|one| {
        let resources = &one.revision.template.resources;
        (resources.cpu.millis, resources.memory.bytes)
    })
}

fn stage_digest(members: &[usize], chosen: &[Chosen<'_>]) -> String {
    if let [only] = members {
        return chosen[*only].revision.digest.clone();
    }
    let mut parts = vec!["stage-v1"];
    parts.extend(members.iter().map(|i| chosen[*i].revision.digest.as_str()));
    digest(&parts)
}

fn stage_step(step: &FlowStep, revision: &Revision) -> StageStep {
    StageStep {
        name: step.name.clone(),
        function: step.function.clone(),
        operation: revision.template.operation.clone(),
        params: merged(&revision.template.params, &step.params),
    }
}

#[cfg(test)]
mod tests;
