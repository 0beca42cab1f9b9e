//! Runs, dead letters and deletions as people meet them.
use super::*;

fn letter(id: &str) -> Value {
    json!({"id": id, "function": "f", "error": {"code": "unprocessable", "message": "cut off"}, "attempts": [], "atMs": 1000})
}

#[tokio::test]
async fn a_run_that_the_platform_did_not_look_at_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "x");
    let done = run_state("succeeded");
    let id = done["run"].as_str().unwrap();
    let asked = json!({"run": id, "status": "running"}).to_string();
    let missing = serde_json::to_string(&Problem::not_found("run", id, [])).unwrap();
    let fake = Fake::new([
        (202, "application/json", asked.clone()),
        (404, "application/problem+json", missing),
        (200, "application/x-ndjson", format!("{done}\n")),
        (202, "application/json", asked),
    ])
    .await;
    let (result, out, err) = imageflow(&fake.base, &["run", "thumbs", &path]).await;
    result.unwrap();
    assert!(out.contains("succeeded"), "{out}");
    assert!(err.starts_with("cat.png: waiting to begin\n"), "{err}");
    let watch = format!("GET /v1/runs/{id}?watch=true&wait=60");
    assert_eq!(fake.requests()[1..], [watch.clone(), watch]);
    let (result, out, _) = imageflow(&fake.base, &["run", "thumbs", &path, "--no-wait"]).await;
    result.unwrap();
    assert!(out.contains(id) && out.contains("waiting"), "{out}");
}

#[tokio::test]
async fn without_a_terminal_every_change_is_a_line_unless_unwanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "cat.png", "x");
    let (running, done) = (run_state("running"), run_state("succeeded"));
    let answers = || {
        [
            (202, "application/json", running.to_string()),
            (200, "application/x-ndjson", format!("{running}\n{done}\n")),
        ]
    };
    let fake = Fake::new([answers(), answers(), answers()].concat()).await;
    let (result, _, err) = imageflow(&fake.base, &["run", "thumbs", &path]).await;
    result.unwrap();
    let expected = "cat.png: running  small 12.0 ms cold · grey running\ncat.png: succeeded  small 12.0 ms cold · grey succeeded\n";
    assert_eq!(err, expected);
    for unwanted in [&["-q"][..], &["-o", "json"]] {
        let (result, out, err) = imageflow(&fake.base, &[&["run", "thumbs", &path], unwanted].concat()).await;
        result.unwrap();
        assert!(out.contains("succeeded"), "{out}");
        assert_eq!(err, "");
    }
}

#[tokio::test]
async fn results_of_files_with_one_name_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<String> = ["a", "b"]
        .iter()
        .map(|folder| {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            file(&dir, &format!("{folder}/cat.png"), folder)
        })
        .collect();
    let done = || (200, "application/json", run_state("succeeded").to_string());
    let image = |text: &str| (200, "image/jpeg", text.to_owned());
    let fake = Fake::new([done(), image("1"), done(), image("2"), done(), image("3")]).await;
    let out_dir = dir.path().join("out");
    let args = ["run", "thumbs", "--parallel", "1", "--out", out_dir.to_str().unwrap()];
    let (result, _, err) = imageflow(&fake.base, &[&args[..], &[&paths[0], &paths[1]]].concat()).await;
    result.unwrap();
    let kept = |name: &str| std::fs::read_to_string(out_dir.join(name)).unwrap();
    assert_eq!(
        (kept("a-cat-small.jpg"), kept("b-cat-small.jpg")),
        ("1".into(), "2".into())
    );
    assert!(err.contains("2 results in "), "{err}");
    std::fs::write(out_dir.join("cat-small.jpg"), "mine").unwrap();
    let error = imageflow(&fake.base, &[&args[..], &[&paths[0]]].concat())
        .await
        .0
        .unwrap_err();
    assert!(error.text().contains("--force"), "{}", error.text());
    assert_eq!(kept("cat-small.jpg"), "mine");
}

#[tokio::test]
async fn dead_letters_come_from_as_many_pages_as_it_takes() {
    let page = |ids: std::ops::Range<u32>| ids.map(|n| letter(&format!("l-{n}"))).collect::<Vec<_>>();
    let fake = Fake::json([
        json!({"items": page(0..1000), "next": "5.l-999"}),
        json!({"items": page(1000..1200), "next": "4.l-1199"}),
    ])
    .await;
    let (result, out, _) = imageflow(&fake.base, &["dead-letters", "-o", "name", "list", "--limit", "1200"]).await;
    result.unwrap();
    assert_eq!(out.lines().count(), 1200);
    assert_eq!(
        fake.requests(),
        [
            "GET /v1/dead-letters?limit=1000",
            "GET /v1/dead-letters?limit=200&after=5.l-999"
        ]
    );
}

#[tokio::test]
async fn objects_come_from_as_many_pages_as_it_takes_also_for_the_bare_noun() {
    let page = |keys: std::ops::Range<u32>| {
        let object = |n| json!({"bucket": "raw-images", "key": format!("a/{n}"), "size": 1});
        keys.map(object).collect::<Vec<_>>()
    };
    let first = json!({"items": page(0..1000), "next": "a/999"});
    let fake = Fake::json([first, json!({"items": page(1000..1100)}), json!({"items": page(0..1)})]).await;
    let (result, out, _) = imageflow(&fake.base, &["images", "list", "--limit", "5000", "-o", "name"]).await;
    result.unwrap();
    assert_eq!(out.lines().count(), 1100);
    let (result, out, _) = imageflow(&fake.base, &["images", "--prefix", "a/", "-o", "json"]).await;
    result.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), Value::from(page(0..1)));
    assert_eq!(
        fake.requests(),
        [
            "GET /v1/images?bucket=raw-images&limit=1000",
            "GET /v1/images?bucket=raw-images&limit=1000&after=a%2F999",
            "GET /v1/images?bucket=raw-images&prefix=a%2F&limit=100"
        ]
    );
}

#[tokio::test]
async fn a_replay_of_all_goes_on_until_nothing_is_left_and_tells_what_was_refused() {
    let refused = json!([{"id": "l-0", "detail": "it holds nothing"}]);
    let nothing = json!({"replayed": 0, "items": [], "refused": refused, "more": true, "next": "0.l-0"});
    let answers = [
        nothing.clone(),
        json!({"replayed": 1, "items": [{"id": "l-1", "run": "run-1"}], "refused": [], "more": true, "next": "1.l-1"}),
        json!({"replayed": 1, "items": [{"id": "l-2", "event": "sent again"}], "refused": [], "more": false}),
        nothing,
        json!({"replayed": 0, "items": [], "refused": [], "more": false}),
    ];
    let fake = Fake::json(answers).await;
    let args = ["dead-letters", "replay", "--all", "--function", "f"];
    let (result, out, err) = imageflow(&fake.base, &args).await;
    assert_eq!(out, "l-1 replayed as run-1\nl-2 replayed, its event is sent again\n");
    assert_eq!(err, "l-0 not replayed: it holds nothing\n2 replayed, 1 refused\n");
    assert_eq!(result.unwrap_err().text(), "1 of 3 cannot be replayed");
    let places = ["", "&after=0.l-0", "&after=1.l-1"];
    let expected = places.map(|place| format!("POST /v1/dead-letters/replay?function=f{place}"));
    assert_eq!(fake.requests(), expected, "behind what was refused");
    let (_, out, _) = imageflow(&fake.base, &[&args[..], &["-o", "json"]].concat()).await;
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer, json!({"replayed": 0, "items": [], "refused": refused}));
    assert_eq!(fake.requests().len(), 5);
}

#[tokio::test]
async fn dead_letters_are_chosen_by_function_error_and_time() {
    let none = || json!({"items": [], "replayed": 0, "refused": [], "more": false});
    let fake = Fake::json([none(), none()]).await;
    let filter = [
        "--code",
        "timeout",
        "--since",
        "2h",
        "--until",
        "2026-11-29T20:00:00+01:00",
    ];
    for command in ["list", "replay"] {
        let args = [&["dead-letters", command][..], &filter].concat();
        imageflow(&fake.base, &args).await.0.unwrap();
    }
    let query = "code=timeout&since=2h&until=2026-11-29T20%3A00%3A00%2B01%3A00";
    let expected = [
        format!("GET /v1/dead-letters?{query}&limit=50"),
        format!("POST /v1/dead-letters/replay?{query}"),
    ];
    assert_eq!(fake.requests(), expected);
}

#[test]
fn a_replay_says_which_letters_and_of_an_error_that_there_is() {
    let refused = |args: &[&str]| {
        let args = [&["imageflow", "dead-letters", "replay"][..], args].concat();
        Cli::try_parse_from(args).unwrap_err().to_string()
    };
    assert!(refused(&[]).contains("required"));
    assert!(refused(&["l-1", "--code", "timeout"]).contains("cannot be used with"));
    let unknown = refused(&["--code", "timeot"]);
    assert!(unknown.contains("'timeout'"), "{unknown}");
}

#[tokio::test]
async fn who_deletes_a_function_is_told_what_waited_for_it() {
    let function = |backlog: u64| json!({"metadata": {"name": "f"}, "status": {"backlog": backlog}});
    let fake = Fake::json([function(3), Value::Null, function(0), Value::Null, Value::Null]).await;
    let (_, out, err) = imageflow(&fake.base, &["fn", "delete", "f"]).await;
    assert_eq!(out, "function/f deleted\n");
    assert!(err.starts_with("3 waiting requests become dead letters"), "{err}");
    let (_, _, err) = imageflow(&fake.base, &["delete", "function", "f"]).await;
    assert_eq!(err, "");
    imageflow(&fake.base, &["delete", "flow", "f"]).await.0.unwrap();
    assert_eq!(fake.requests()[3..], ["DELETE /v1/functions/f", "DELETE /v1/flows/f"]);
}

#[tokio::test]
async fn all_documents_of_a_file_that_are_wrong_are_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let head = "apiVersion: imageflow.dev/v1alpha1\nkind: Function\n";
    let text = format!(
        "{head}metadata: {{name: a}}\nspec: {{operaton: resize}}\n---\n{head}metadata: {{name: b}}\nspec: {{operation: resize, scale: {{mix: 1}}}}\n---\nkind: Function\n"
    );
    let path = file(&dir, "f.yaml", &text);
    let fake = Fake::json([]).await;
    let error = imageflow(&fake.base, &["apply", "-f", &path])
        .await
        .0
        .unwrap_err()
        .text();
    for line in [
        "\n  function/a: spec.operaton: ",
        "\n  function/b: spec.scale.mix: ",
        "\n  document 3: apiVersion: ",
    ] {
        assert!(error.contains(line), "{line} is not in {error}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_before_it_is_deployed() {
    let fake = Fake::json([]).await;
    let error = imageflow(&fake.base, &["deploy", "f", "--command", "./nothing-here"])
        .await
        .0
        .unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert!(error.text().contains("nothing-here"), "{}", error.text());
    assert!(fake.requests().is_empty());
}

#[tokio::test]
async fn a_reconcile_says_what_it_came_to() {
    let found = || json!({"bucket": "raw-images", "lookedAt": 12, "raised": 3, "skipped": 1});
    let fake = Fake::json([found(), found(), found()]).await;
    let (result, out, _) = imageflow(&fake.base, &["objects", "reconcile", "raw-images"]).await;
    result.unwrap();
    assert_eq!(
        out,
        " BUCKET      LOOKED AT  RAISED  SKIPPED\n raw-images  12         3       1\n"
    );
    let args = ["object", "reconcile", "raw-images", "--all", "-o", "json"];
    let (result, out, _) = imageflow(&fake.base, &args).await;
    result.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), found());
    let (result, out, _) = imageflow(&fake.base, &["objects", "reconcile", "a/b", "-o", "name"]).await;
    result.unwrap();
    assert_eq!(out, "raw-images\n");
    let expected = [
        "POST /v1/buckets/raw-images/reconcile",
        "POST /v1/buckets/raw-images/reconcile?all=true",
        "POST /v1/buckets/a%2Fb/reconcile",
    ];
    assert_eq!(fake.requests(), expected);
}

#[tokio::test]
async fn a_reconcile_of_a_bucket_that_no_trigger_reads_names_those() {
    let detail = "no trigger reads bucket \"raw\", only raw-images";
    let text = serde_json::to_string(&Problem::new(ErrorCode::NotFound, detail)).unwrap();
    let fake = Fake::new([(404, "application/problem+json", text)]).await;
    let (result, out, _) = imageflow(&fake.base, &["objects", "reconcile", "raw"]).await;
    let said = result.unwrap_err().text();
    assert!(said.contains(detail), "{said}");
    assert_eq!(out, "");
}

#[tokio::test]
async fn runs_are_listed_from_as_many_pages_as_the_platform_makes_of_them() {
    let page = |status: &str| json!({"items": [run_state(status)], "next": "1.run-1"});
    let fake = Fake::json([page("failed"), page("running")]).await;
    let args = ["runs", "--status", "failed", "--limit", "2"];
    let (result, out, _) = imageflow(&fake.base, &args).await;
    result.unwrap();
    assert_eq!(out.lines().count(), 3, "{out}");
    let path = "GET /v1/runs?status=failed&limit=";
    assert_eq!(fake.requests(), [format!("{path}2"), format!("{path}1&after=1.run-1")]);
}
