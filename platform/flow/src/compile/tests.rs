use std::collections::BTreeMap;

use imageflow_types::function::{EnvVar, TrafficTarget};
use imageflow_types::{FlowName, HumanDuration, RevisionName};
use serde_json::json;

use super::*;

/// Functions of which each spec, and so each revision, says its own schema.
struct Functions(BTreeMap<FunctionName, (FunctionSpec, Vec<Revision>)>);

impl FunctionLookup for Functions {
    fn get(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        let (spec, revisions) = self.0.get(name)?;
        Some(FunctionView { spec, revisions })
    }
    fn schema<'a>(&'a self, spec: &'a FunctionSpec) -> Option<Cow<'a, Value>> {
        spec.parameters.clone().map(|schema| Cow::Owned(Value::Object(schema)))
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(FunctionName::as_str).collect()
    }
}

fn name(text: &str) -> FunctionName {
    FunctionName::new(text).unwrap()
}

impl Functions {
    fn catalogue() -> Self {
        let mut functions = Self(BTreeMap::new());
        let size = json!({"type":"object","additionalProperties":false,"required":["width"],
            "properties":{"width":{"type":"integer","minimum":1},"format":{"enum":["jpeg","png","webp"]}}});
        functions.put("resize", FunctionSpec::of_operation("resize"), Some(size));
        let any = json!({"type":"object"});
        for operation in ["autorotate", "blur", "noop"] {
            functions.put(operation, FunctionSpec::of_operation(operation), Some(any.clone()));
        }
        let mut foreign = FunctionSpec::of_operation("x");
        (foreign.operation, foreign.command) = (None, Some(vec!["./mine".into()]));
        functions.put("mine", foreign, None);
        functions
    }

    fn put(&mut self, function: &str, mut spec: FunctionSpec, schema: Option<Value>) {
        spec.parameters = schema.and_then(|schema| schema.as_object().cloned());
        let revision = Revision::new(&name(function), 1, &spec, 0);
        self.0.insert(name(function), (spec, vec![revision]));
    }

    /// Applies the function anew, changed.
    fn change(&mut self, function: &str, change: impl FnOnce(&mut FunctionSpec)) {
        let (spec, revisions) = self.0.get_mut(&name(function)).unwrap();
        change(spec);
        let next = revisions.last().unwrap().number + 1;
        revisions.push(Revision::new(&name(function), next, spec, 0));
    }

    fn route(&mut self, function: &str, shares: &[(u32, u32)]) {
        let share = |(number, percent): &(u32, u32)| TrafficTarget {
            revision: Some(RevisionName::of(&name(function), *number)),
            percent: *percent,
            tag: None,
        };
        self.0.get_mut(&name(function)).unwrap().0.traffic = shares.iter().map(share).collect();
    }
}

fn flow(steps: Value) -> FlowSpec {
    serde_json::from_value(json!({"steps": steps})).unwrap()
}

fn target() -> Target {
    Target::Flow(FlowName::new("f").unwrap())
}

fn faults(steps: Value) -> String {
    check(&flow(steps), &Functions::catalogue()).unwrap_err().to_string()
}

fn shape_of(plan: &Plan) -> Vec<(String, Vec<&str>, Option<u32>, bool)> {
    plan.stages
        .iter()
        .map(|s| {
            (
                s.function.to_string(),
                s.steps.iter().map(|x| x.name.as_str()).collect(),
                s.after,
                s.intermediate,
            )
        })
        .collect()
}

#[test]
fn a_cycle_is_told_in_the_direction_of_the_data() {
    let text = faults(json!([
        {"name":"a","function":"blur","after":["c"]}, {"name":"b","function":"blur","after":["a"]},
        {"name":"c","function":"blur","after":["b"]}, {"name":"d","function":"blur","after":["c"]}]));
    assert!(text.contains("a -> b -> c -> a"), "{text}");
    let text = faults(json!([{"name":"a","function":"blur","after":["a"]}]));
    assert!(text.contains("a -> a"), "{text}");
}

#[test]
fn every_fault_names_its_field_and_the_nearest_right_name() {
    let text = faults(json!([
        {"name":"thumb","function":"resise"},
        {"name":"thumb","function":"blur"},
        {"name":"soft","function":"blur","after":["thum"]},
        {"name":"both","function":"blur","after":["thumb","soft"]},
        {"name":"small","function":"resize","params":{"widht":3}}]));
    for wanted in [
        "spec.steps[0].function: there is no function \"resise\"; did you mean \"resize\"?",
        "spec.steps[1].name: \"thumb\" is the name of steps[0] already",
        "spec.steps[2].after[0]: there is no step \"thum\" in this flow; did you mean \"thumb\"?",
        "spec.steps[3].after: names 2 steps",
        "spec.steps[4].params.widht: is not known here; did you mean \"width\"?",
        "spec.steps[4].params.width: is missing",
    ] {
        assert!(text.contains(wanted), "{wanted}\nnot in\n{text}");
    }
}

#[test]
fn a_flow_is_not_empty_and_has_at_most_a_hundred_steps() {
    assert!(faults(json!([])).contains("at least one step"));
    let steps: Vec<Value> = (0..=MAX_STEPS)
        .map(|i| json!({"name": format!("s{i}"), "function": "blur"}))
        .collect();
    assert!(faults(json!(steps)).contains("101 steps are over the limit of 100"));
    assert!(check(&flow(json!(steps[..MAX_STEPS])), &Functions::catalogue()).is_ok());
}

#[test]
fn defaults_of_the_function_fill_in_and_are_named_when_they_are_at_fault() {
    let mut functions = Functions::catalogue();
    let schema = functions.0[&name("resize")].0.parameters.clone().map(Value::Object);
    let mut spec = FunctionSpec::of_operation("resize");
    spec.params.insert("width".into(), json!(64));
    functions.put("small", spec.clone(), schema.clone());
    let small = flow(json!([{"name":"a","function":"small","params":{"format":"webp"}}]));
    check(&small, &functions).unwrap();
    let plan = compile(&target(), &small, &functions, true, 0).unwrap();
    assert_eq!(
        Value::Object(plan.stages[0].steps[0].params.clone()),
        json!({"width":64,"format":"webp"})
    );

    spec.params.insert("width".into(), json!("wide"));
    functions.put("small", spec, schema);
    let text = check(&small, &functions).unwrap_err().to_string();
    assert!(
        text.contains("spec.steps[0].params.width") && text.contains("set by function \"small\" itself"),
        "{text}"
    );
}

#[test]
fn a_chain_of_operations_becomes_one_stage_and_a_fork_begins_new_ones() {
    // Written out of order on purpose.
    let spec = flow(json!([
        {"name":"thumb","function":"resize","after":["soft"],"params":{"width":9}},
        {"name":"upright","function":"autorotate"},
        {"name":"soft","function":"blur","after":["upright"]},
        {"name":"big","function":"noop","after":["soft"]},
        {"name":"own","function":"mine","after":["big"]},
        {"name":"last","function":"noop","after":["own"]}]));
    let plan = compile(&target(), &spec, &Functions::catalogue(), true, 7).unwrap();
    assert_eq!(
        shape_of(&plan),
        vec![
            ("blur".into(), vec!["upright", "soft"], None, true),
            ("noop".into(), vec!["big"], Some(0), true),
            ("mine".into(), vec!["own"], Some(1), true),
            ("noop".into(), vec!["last"], Some(2), false),
            ("resize".into(), vec!["thumb"], Some(0), false),
        ]
    );
    let plain = compile(&target(), &spec, &Functions::catalogue(), false, 7).unwrap();
    assert_eq!(plain.stages.len(), 6);
    assert!(
        plain
            .stages
            .iter()
            .enumerate()
            .all(|(i, s)| s.after.is_none_or(|a| (a as usize) < i))
    );
}

#[test]
fn the_dearest_step_gives_its_pods_and_every_step_counts_in_the_digest() {
    let mut functions = Functions::catalogue();
    let mut heavy = FunctionSpec::of_operation("blur");
    heavy.resources.cpu.millis = 4000;
    functions.put("blur", heavy.clone(), None);
    let spec = flow(json!([{"name":"a","function":"blur"},{"name":"b","function":"noop","after":["a"]}]));
    let before = compile(&target(), &spec, &functions, true, 0).unwrap();
    assert_eq!(before.stages[0].function, name("blur"));
    let mut noop = FunctionSpec::of_operation("noop");
    noop.timeout = HumanDuration::from_secs(3);
    functions.put("noop", noop, None);
    let after = compile(&target(), &spec, &functions, true, 0).unwrap();
    assert_eq!(after.stages[0].revision, before.stages[0].revision);
    assert_ne!(after.stages[0].digest, before.stages[0].digest);

    for unlike in [0, 1] {
        let mut own = heavy.clone();
        match unlike {
            0 => own.env.push(EnvVar {
                name: "A".into(),
                value: "b".into(),
                ..EnvVar::default()
            }),
            _ => own.resources.gpu = 1,
        }
        functions.put("blur", own, None);
        assert_eq!(compile(&target(), &spec, &functions, true, 0).unwrap().stages.len(), 2);
    }
}

#[test]
fn traffic_is_shared_by_percent_and_one_run_always_chooses_the_same() {
    let mut functions = Functions::catalogue();
    functions.change("blur", |spec| spec.timeout = HumanDuration::from_secs(1));
    functions.route("blur", &[(1, 80), (2, 20)]);
    let spec = flow(json!([{"name":"a","function":"blur"}]));
    let revision = |pick| {
        compile(&target(), &spec, &functions, true, pick).unwrap().stages[0]
            .revision
            .clone()
    };
    let canary = (0..2000)
        .filter(|pick| revision(*pick) == RevisionName::of(&name("blur"), 2))
        .count();
    assert!((300..500).contains(&canary), "{canary} of 2000, wanted about 400");
    assert_eq!(revision(42), revision(42));
}

#[test]
fn a_function_is_a_flow_of_one_step_and_faults_are_told_of_its_params() {
    let functions = Functions::catalogue();
    let run = |params: Value| {
        let flow = function_flow(&name("resize"), params.as_object().unwrap());
        compile(&Target::Function(name("resize")), &flow, &functions, true, 1)
    };
    let plan = run(json!({"width": 5})).unwrap();
    assert_eq!(shape_of(&plan), vec![("resize".into(), vec!["resize"], None, false)]);
    assert!(
        run(json!({"width": 0}))
            .unwrap_err()
            .to_string()
            .starts_with("params.width:")
    );
    let long = FunctionName::new(format!("{}-{}", "a".repeat(39), "b".repeat(5))).unwrap();
    assert_eq!(function_flow(&long, &Map::new()).steps[0].name.as_str(), "a".repeat(39));
}

/// `resize` takes `size` in place of `width` since its second revision, 64 by default.
fn resized() -> Functions {
    let mut functions = Functions::catalogue();
    functions.change("resize", |spec| {
        let schema = json!({"type":"object","additionalProperties":false,"required":["size"],
            "properties":{"size":{"type":"integer"}}});
        spec.parameters = schema.as_object().cloned();
        spec.params.insert("size".into(), json!(64));
    });
    functions
}

#[test]
fn after_a_rollback_a_call_is_checked_by_what_was_rolled_back_to() {
    let mut functions = resized();
    let run = |functions: &Functions, params: Value| {
        let flow = function_flow(&name("resize"), params.as_object().unwrap());
        compile(&Target::Function(name("resize")), &flow, functions, true, 1)
    };
    let old = json!({"width": 5});
    let refused = run(&functions, old.clone()).unwrap_err().to_string();
    assert!(refused.starts_with("params.width: is not known here"), "{refused}");
    functions.route("resize", &[(1, 100)]);
    let plan = run(&functions, old.clone()).unwrap();
    assert_eq!(plan.stages[0].revision, RevisionName::of(&name("resize"), 1));
    assert_eq!(
        Value::Object(plan.stages[0].steps[0].params.clone()),
        old,
        "without the newer default"
    );
    let refused = run(&functions, json!({"size": 5})).unwrap_err().to_string();
    assert!(refused.contains("params.size: is not known here"), "{refused}");
}

#[test]
fn a_step_must_fit_every_revision_that_has_traffic() {
    let mut functions = resized();
    let step = |params: Value| flow(json!([{"name":"a","function":"resize","params":params}]));
    let (old, new) = (step(json!({"width": 5})), step(json!({"size": 5})));
    check(&new, &functions).unwrap();
    functions.route("resize", &[(1, 100), (2, 0)]);
    check(&old, &functions).unwrap();
    let refused = check(&new, &functions).unwrap_err().to_string();
    assert!(
        refused.contains("(for revision \"resize-00001\", which has traffic)"),
        "{refused}"
    );
    functions.route("resize", &[(1, 50), (2, 50)]);
    assert!(check(&old, &functions).is_err() && check(&new, &functions).is_err());
}

#[test]
fn a_step_whose_function_allows_more_time_or_more_attempts_than_the_host_stays_by_itself() {
    let spec = flow(json!([
        {"name":"a","function":"blur"},
        {"name":"b","function":"noop","after":["a"]},
        {"name":"c","function":"autorotate","after":["b"]}]));
    let stages = |change: &dyn Fn(&mut FunctionSpec)| {
        let mut functions = Functions::catalogue();
        functions.change("noop", |spec| spec.resources.cpu.millis = 4000);
        functions.change("blur", |spec| change(spec));
        let plan = compile(&target(), &spec, &functions, true, 0).unwrap();
        let names = |(_, names, ..): (String, Vec<&str>, Option<u32>, bool)| names.join("+");
        shape_of(&plan).into_iter().map(names).collect::<Vec<_>>()
    };
    let (time, tries) = (FunctionSpec::of_operation("blur").timeout, 5);
    let all = ["a+b+c"];
    assert_eq!(stages(&|spec| spec.timeout = HumanDuration::from_secs(1)), all);
    assert_eq!(stages(&|spec| spec.delivery.retry = tries - 1), all);
    let apart = ["a", "b+c"];
    assert_eq!(stages(&|spec| spec.timeout = HumanDuration(time.0 * 2)), apart);
    assert_eq!(stages(&|spec| spec.delivery.retry = tries + 1), apart);
    // As host it gives the others as much.
    let host = |spec: &mut FunctionSpec| {
        spec.timeout = HumanDuration(time.0 * 2);
        spec.resources.cpu.millis = 8000;
    };
    assert_eq!(stages(&host), all);
}
