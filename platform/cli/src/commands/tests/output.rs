//! What comes out in the format that was asked for, and when nobody reads it.
use super::*;

/// A reader that has seen enough.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const FUNCTIONS: &str = "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {name: a}\nspec: {operation: resize}\n---\n\
    apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {name: b}\nspec: {operation: resize}\n";

#[tokio::test]
async fn what_was_deleted_or_cancelled_is_told_as_it_was_asked_for() {
    let deleted = || [json!({}), json!({})];
    let fake = Fake::json(deleted().into_iter().chain(deleted()).chain([json!({})])).await;
    let (_, out, _) = imageflow(&fake.base, &["functions", "delete", "a", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told, json!([{"kind": "Function", "name": "a", "outcome": "deleted"}]));
    let (_, out, _) = imageflow(&fake.base, &["functions", "delete", "a", "-o", "name"]).await;
    assert_eq!(out, "function/a\n");
    let (_, out, _) = imageflow(&fake.base, &["runs", "cancel", "r1", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told, json!({"run": "r1", "outcome": "cancelled"}));
}

#[tokio::test]
async fn what_was_deleted_before_another_was_refused_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "f.yaml", FUNCTIONS);
    let fake = Fake::json([json!({}), json!({})]).await;
    let (result, out, _) = imageflow(&fake.base, &["delete", "-f", &path]).await;
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert_eq!(out, "function/b deleted\n");
}

#[tokio::test]
async fn a_reader_that_is_gone_leaves_nothing_half_done_and_hides_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (path, photo) = (file(&dir, "f.yaml", FUNCTIONS), file(&dir, "cat.png", "x"));
    let fake = Fake::json([json!({}), json!({}), json!({}), json!({}), run_state("failed")]).await;
    let (result, _) = imageflow_to(Box::new(Closed), &fake.base, &["delete", "-f", &path]).await;
    assert_eq!(result.unwrap_err().exit_code(), 0, "as of any command before `head`");
    let deletes = ["DELETE /v1/functions/b", "DELETE /v1/functions/a"];
    let requests = fake.requests();
    assert!(deletes.iter().all(|d| requests.iter().any(|r| r == d)), "{requests:?}");
    let (result, _) = imageflow_to(Box::new(Closed), &fake.base, &["run", "thumbs", &photo]).await;
    assert_eq!(result.unwrap_err().exit_code(), 1);
}

#[tokio::test]
async fn files_that_would_be_one_object_are_refused_before_any_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("b")).unwrap();
    let (one, other) = (file(&dir, "cat.jpg", "x"), file(&dir, "b/cat.jpg", "y"));
    let fake = Fake::json([json!({"bucket": "raw-images", "key": "cat.jpg", "size": 1})]).await;
    let (result, ..) = imageflow(&fake.base, &["images", "put", &one, &other]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(
        error.text().contains("cat.jpg") && error.text().contains("--prefix"),
        "{}",
        error.text()
    );
    assert!(fake.requests().is_empty());
    // The same file twice is one.
    imageflow(&fake.base, &["images", "put", &one, &one]).await.0.unwrap();
    assert_eq!(fake.requests(), ["POST /v1/images?key=cat.jpg"]);
}

#[tokio::test]
async fn a_name_that_is_no_text_is_reported_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.jpg"));
    std::fs::write(&path, "x").unwrap();
    let fake = Fake::json([run_state("succeeded")]).await;
    let args = ["imageflow", "run", "thumbs", "-o", "json"].map(std::ffi::OsString::from);
    let cli = Cli::try_parse_from(args.into_iter().chain([path.into_os_string()])).unwrap();
    let out = Buffer::default();
    let mut cx = Context {
        client: Client::new(&fake.base, None).unwrap(),
        format: cli.command.format(),
        color: false,
        live: false,
        quiet: true,
        out: Box::new(out.clone()),
        err: Box::new(Buffer::default()),
        now_ms: 0,
    };
    crate::commands::run(&mut cx, cli.command).await.unwrap();
    let told: Value = serde_json::from_str(&out.text()).unwrap();
    let name = told["items"][0]["file"].as_str().unwrap();
    assert!(name.ends_with("caf\u{fffd}.jpg"), "{name}");
}
