use std::collections::BTreeMap;

use imageflow_types::function::{EnvVar, TrafficTarget};
use imageflow_types::{FlowName, RevisionName};
use serde_json::json;

use super::*;

struct Functions(BTreeMap<FunctionName, (FunctionSpec, Vec<Revision>, Option<Value>)>);

impl FunctionLookup for Functions {
    fn get(&self, name: &FunctionName) -> Option<FunctionView<'_>> {
        let (spec, revisions, schema) = self.0.get(name)?;
        Some(FunctionView {
            spec,
            revisions,
            schema: schema.as_ref().map(Cow::Borrowed),
        })
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

    fn put(&mut self, function: &str, spec: FunctionSpec, schema: Option<Value>) {
        let revision = Revision::new(&name(function), 1, &spec, 0);
        self.0.insert(name(function), (spec, vec![revision], schema));
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
    let schema = functions.0[&name("resize")].2.clone();
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
    noop.timeout = imageflow_types::HumanDuration::from_secs(3);
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
    let share = |number, percent| TrafficTarget {
        revision: Some(RevisionName::of(&name("blur"), number)),
        percent,
        tag: None,
    };
    let entry = functions.0.get_mut(&name("blur")).unwrap();
    entry.0.traffic = vec![share(1, 80), share(2, 20)];
    let mut newer = entry.0.clone();
    newer.timeout = imageflow_types::HumanDuration::from_secs(1);
    entry.1.push(Revision::new(&name("blur"), 2, &newer, 0));
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
