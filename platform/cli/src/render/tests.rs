use super::*;
use serde_json::json;

/// A run of the flow `thumbs` with two steps, in the state given.
pub(crate) fn run_state(status: &str) -> Value {
    let object = json!({"bucket": "processed-images", "key": "thumbs/small/cat.jpg", "etag": "e", "size": 2048});
    let step = |name: &str| json!({"name": name, "function": "stock", "operation": name, "params": {}});
    let stage = |name: &str, after: Value| json!({"function": "stock", "revision": "stock-00001", "digest": "d", "steps": [step(name)], "after": after});
    let mut state = json!({
        "schema": 1, "run": imageflow_types::RunId::derive(&["x"]).as_str(), "status": status,
        "request": {"run": imageflow_types::RunId::derive(&["x"]).as_str(), "target": {"flow": "thumbs"}, "input": {"object": object}, "params": {}, "fuse": true, "requestedMs": 0},
        "plan": {"stages": [stage("small", Value::Null), stage("grey", json!(0))], "bucket": "processed-images"},
        "steps": [
            {"name": "small", "function": "stock", "stage": 0, "status": "succeeded", "output": object, "serviceMs": 12, "cold": true},
            {"name": "grey", "function": "stock", "stage": 1, "status": "running"},
        ],
        "createdMs": 1000, "updatedMs": 1250, "version": 3
    });
    match status {
        "failed" => {
            state["steps"][1]["status"] = json!("failed");
            state["steps"][1]["error"] = json!({"code": "unprocessable", "message": "the picture is cut off"});
        }
        "succeeded" => state["steps"][1]["status"] = json!("succeeded"),
        _ => {}
    }
    state
}

fn typed(status: &str) -> RunState {
    serde_json::from_value(run_state(status)).unwrap()
}

#[test]
fn a_flow_is_drawn_as_a_tree_of_what_comes_after_what() {
    let flow = json!({"metadata": {"name": "thumbs"}, "spec": {"output": {"bucket": "processed-images"}, "steps": [
        {"name": "turn", "function": "auto-orient"},
        {"name": "small", "function": "resize", "after": ["turn"], "params": {"width": 100}},
        {"name": "grey", "function": "grayscale", "after": ["small"]},
        {"name": "large", "function": "resize", "after": ["turn"], "params": {"width": 900}},
    ]}});
    let expected = "\
flow thumbs → processed-images
└─ turn: auto-orient
   ├─ small: resize width=100
   │  └─ grey: grayscale
   └─ large: resize width=900";
    assert_eq!(flow_tree(&flow), expected);
}

#[test]
fn a_step_that_comes_after_itself_does_not_draw_for_ever() {
    let flow = json!({"spec": {"steps": [{"name": "a", "after": ["a"]}, {"name": "b"}]}});
    assert!(flow_tree(&flow).lines().count() < 10);
}

#[test]
fn progress_shows_each_step_with_its_time_and_cold_mark() {
    let run = typed("running");
    assert_eq!(progress(&run), "small 12.0 ms cold · grey running");
    assert_eq!(ended(&run), (1, 2));
    assert_eq!(ended(&typed("failed")), (2, 2));
}

#[test]
fn a_failed_run_ends_with_the_step_and_reason() {
    let text = run(&typed("failed"), false);
    assert!(
        text.ends_with("\ngrey: the picture is cut off (unprocessable)"),
        "{text}"
    );
    assert!(
        text.contains("processed-images/thumbs/small/cat.jpg (2.0 KiB)"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn parameters_show_ranges_choices_and_defaults() {
    let schema = json!({
        "properties": {
            "width": {"type": ["integer", "null"], "minimum": 1, "maximum": 9000, "description": "Width in pixels"},
            "fit": {"$ref": "#/$defs/Fit", "default": "cover"},
            "angle": {"type": "number"},
        },
        "required": ["angle"],
        "$defs": {"Fit": {"oneOf": [{"const": "cover"}, {"const": "contain"}]}},
    });
    let text = parameters(&schema, false);
    let lines: Vec<String> = text
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines[1..],
        [
            "width integer 1..9000 - Width in pixels",
            "fit cover|contain cover",
            "angle number (required)"
        ]
    );
    assert_eq!(parameters(&json!({}), false), "no parameters");
}

#[test]
fn a_function_tells_its_pods_revisions_and_why_it_does_not_start() {
    let document = json!({
        "metadata": {"name": "mine"}, "spec": {"command": ["python3", "h.py"], "scale": {"min": 0, "max": 4}},
        "status": {"pods": {"ready": 1, "starting": 2}, "problem": "exited with 1",
            "revisions": [{"name": "mine-00002", "percent": 100, "tag": null}]},
    });
    let text = function(&document, false);
    for part in [
        "program:   python3 h.py",
        "pods:      1 (+2 starting)",
        "scale:     0 to 4",
        "problem:   exited with 1",
    ] {
        assert!(text.lines().any(|l| l == part), "{part} is not in {text}");
    }
    assert!(text.lines().last().unwrap().contains("mine-00002  100%"), "{text}");
}

#[test]
fn scaling_is_told_in_a_sentence_with_what_would_change_it() {
    let last =
        json!({"atMs": 3_661_005, "from": 0, "to": 2, "summary": "0 -> 2: 40 waiting", "change": "3 from 41 on"});
    assert_eq!(
        (moment(&last).as_str(), summary(&last).as_str()),
        ("01:01:01.005", "0 -> 2: 40 waiting")
    );
    let state = json!({"desired": 2, "ready": 1, "decisions": [last]});
    let text = "f: 2 pods wanted, 1 ready\n0 -> 2: 40 waiting\nnext: 3 from 41 on";
    assert_eq!(scaling("f", &state), text);
    assert_eq!(
        scaling("f", &json!({"desired": 0, "ready": 0, "decisions": []})),
        "f: 0 pods wanted, 0 ready"
    );
}

#[test]
fn filters_and_sentences_are_short() {
    let trigger = json!({"spec": {"filters": [{"exact": {"type": "t"}}, {"prefix": {"subject": "raw/"}}, {"suffix": {"subject": ".jpg"}}]}});
    assert_eq!(filters(&trigger), "type=t, subject=raw/*, subject=*.jpg");
    assert_eq!(filters(&json!({"spec": {}})), "-");
    assert_eq!(first_sentence("As in Rec. 7 by 1.5. Then."), "As in Rec. 7 by 1.5");
    assert_eq!(first_sentence("Blurs."), "Blurs");
}
